//! Why the daemon does not start, or did not end well.

use std::io;
use std::path::PathBuf;

use penstock_reactor::ReactorError;

use crate::rpc::RpcError;
use crate::rpc::socket::SocketError;

/// Errors of starting and ending the daemon.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// A file could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A configuration or state file does not say what it should.
    #[error("{path} is no valid {kind}: {problem}")]
    BadFile {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
        /// What is wrong, and where.
        problem: String,
    },
    /// A method of a configuration or state file was refused.
    #[error("{path}: {method} was refused: {source}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Which of its methods.
        method: String,
        /// What the method said.
        #[source]
        source: RpcError,
    },
    /// The control socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A reactor could not be started.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// The metrics' address cannot be had.
    #[error("cannot serve metrics on {address}; choose another (--metrics), or leave it out")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An option does not make sense.
    #[error("{option}: {problem}")]
    Option {
        /// Which, as on the command line.
        option: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The control thread itself broke.
    #[error("cannot {what}")]
    Os {
        /// What was attempted.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The end took too long.
    #[error("the daemon could not end within {seconds} s: {what} did not finish")]
    Drain {
        /// The bound.
        seconds: u64,
        /// What was waited for.
        what: &'static str,
    },
}
