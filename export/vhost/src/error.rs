//! Why a `vhost_*` method is refused.

use std::path::PathBuf;

use penstock_bdev::BdevError;

/// Errors of the control side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostError {
    /// The bdev.
    #[error("vhost controller {ctrlr}: its bdev")]
    Bdev {
        /// The controller.
        ctrlr: String,
        /// The reason.
        #[source]
        source: BdevError,
    },
    /// The bdev's reservations are not known.
    #[error(
        "vhost controller {ctrlr} is not made: the reservations of bdev {bdev} cannot be read; mend their file or remove it"
    )]
    Reservations {
        /// The controller.
        ctrlr: String,
        /// The bdev.
        bdev: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The name is taken.
    #[error("a vhost controller {ctrlr} exists already; choose another name or delete it first")]
    Exists {
        /// The controller.
        ctrlr: String,
    },
    /// No such controller.
    #[error("there is no vhost controller {ctrlr}; vhost_get_controllers lists them")]
    NotFound {
        /// The controller.
        ctrlr: String,
    },
    /// Frontends are connected.
    #[error("vhost controller {ctrlr} has {sessions} frontends connected; stop these virtual machines first")]
    Busy {
        /// The controller.
        ctrlr: String,
        /// How many.
        sessions: usize,
    },
    /// A parameter does not make sense.
    #[error("vhost controller {ctrlr}: {parameter} {problem}")]
    Invalid {
        /// The controller.
        ctrlr: String,
        /// Which parameter.
        parameter: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// There are as many as there may be.
    #[error("cannot add vhost controller {ctrlr}: there are {max} already; delete one first")]
    Full {
        /// The controller.
        ctrlr: String,
        /// The bound.
        max: usize,
    },
    /// The socket.
    #[error("vhost controller {ctrlr}: cannot {what} {path}")]
    Socket {
        /// The controller.
        ctrlr: String,
        /// What was attempted.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}
