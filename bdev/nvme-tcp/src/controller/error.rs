//! Why a controller could not be brought up, or was lost.

use penstock_spec::nvme::Status;

use crate::error::QpairError;

/// Why a controller could not be brought up, or was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControllerError {
    /// The admin connection ended.
    #[error("the admin queue is lost: {0}")]
    Qpair(#[from] QpairError),
    /// A command of the bring-up was refused.
    #[error("the controller refused {what}: {status}")]
    Refused {
        /// The command.
        what: &'static str,
        /// Its status.
        status: Status,
    },
    /// The controller reports a fatal status.
    #[error("the controller reports Controller Fatal Status: reset or reconnect it")]
    Fatal,
    /// A step took longer than it may.
    #[error("{what} took longer than {limit_ms} ms: the target hangs or is unreachable")]
    Timeout {
        /// The step.
        what: &'static str,
        /// Its limit, in milliseconds.
        limit_ms: u64,
    },
    /// The controller says something that this host cannot work with.
    #[error("the controller's {what} is {value:#x}, which this host cannot work with")]
    Unusable {
        /// Name of the field in the standard.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}
