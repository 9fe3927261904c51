//! Why a connection ended.

use penstock_security::chap::HostError;
use penstock_spec::nvme::Status;
use penstock_spec::nvme::status::StatusScope;
use penstock_spec::nvme_tcp::{Fes, PduError};

/// Why a queue pair is closed. Commands outstanding come back by [`crate::Qpair::abandon`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QpairError {
    /// The target broke the transport's rules; an H2CTermReq is in the transmit queue.
    #[error("the target broke NVMe/TCP: {0}; the connection is closed, look at the target's log")]
    Protocol(#[from] PduError),
    /// The target ended the connection.
    #[error(
        "the target ended the connection: {fes} (FEI {fei:#x}): it refused something that this host sent"
    )]
    Terminated {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
    /// The target refused the Connect command.
    #[error("the target refused Connect for queue {qid}: {} (dword 0 {dw0:#x}){}", name(*status), hint(*status))]
    ConnectRefused {
        /// Queue.
        qid: u16,
        /// Status of the Connect.
        status: Status,
        /// Completion dword 0: with Connect Invalid Parameters, which field it was.
        dw0: u32,
    },
    /// The target wants the host to authenticate itself.
    #[error(
        "the target asks for in-band authentication: give this host the secret that it has there, or allow it without one"
    )]
    AuthenticationRequired,
    /// The controller does not believe the host, or the host not the controller.
    #[error("authentication failed: {0}")]
    Authentication(HostError),
    /// The authentication has made a key for TLS (secure channel concatenation): all goes on over new connections with it.
    #[error("the key for TLS is made: connect again with it")]
    SecureChannel,
    /// A command of the authentication was refused.
    #[error("the target refused a command of the authentication of queue {qid}: {status}")]
    AuthenticationCommand {
        /// Queue.
        qid: u16,
        /// Its status.
        status: Status,
    },
    /// The connection was closed before.
    #[error("the queue pair is closed: open a new one")]
    Closed,
}

fn name(status: Status) -> &'static str {
    status.name_in(StatusScope::Fabrics).unwrap_or("unknown status")
}

fn hint(status: Status) -> &'static str {
    match status.code() {
        Status::CONNECT_INVALID_HOST => ": allow this host NQN on the subsystem",
        Status::CONNECT_INVALID_PARAMETERS => ": check subsystem NQN, queue size and host NQN",
        Status::CONNECT_CONTROLLER_BUSY => ": try again later, or with fewer queues",
        _ => "",
    }
}
