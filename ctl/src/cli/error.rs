//! What the tool tells people when it fails.

use std::io;
use std::path::PathBuf;

use crate::rpc::RpcError;

/// Errors of the tool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// Nobody answers on the socket.
    #[error("no daemon answers on {path}; start penstockd, or name its socket with --socket")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The conversation broke.
    #[error("the daemon did not answer {method}; look at its log")]
    Answer {
        /// The method.
        method: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{error} ({code})", code = .error.code)]
    Refused {
        /// What it said.
        error: RpcError,
    },
    /// What was typed is no JSON.
    #[error(
        "the parameters are no JSON object; quote them for the shell: penstock rpc METHOD '{{\"name\": \"x\"}}'"
    )]
    Params(#[source] serde_json::Error),
    /// A size or address that was typed makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file could not be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The disks of a pool cannot be looked at.
    #[error("the pool cannot be looked at")]
    Pool(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Something is wrong with a pool.
    #[error(
        "{count} findings, {damage} of them damage; see above what helps (--repair mends what is called repairable)"
    )]
    Unclean {
        /// How many.
        count: u64,
        /// How many of them are damage.
        damage: u64,
    },
    /// A job failed.
    #[error("the {kind} of vdisk {vdisk} failed: {error}")]
    Job {
        /// Import or export.
        kind: String,
        /// The vdisk.
        vdisk: String,
        /// What the daemon says.
        error: String,
    },
    /// The output went away.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
}
