//! Why a frontend's request is refused, or its connection closed.

use vhost::vhost_user::message::FrontendReq;

use crate::memory::MemoryError;
use crate::worker::StartError;

/// What went wrong with a frontend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The socket.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// A header that is no header of version 1.
    #[error("message {code} has flags {flags:#x}: not vhost-user version 1")]
    Header {
        /// The message.
        code: u32,
        /// Its flags.
        flags: u32,
    },
    /// A message longer than any.
    #[error("message {code} is {len} bytes long")]
    TooLong {
        /// The message.
        code: u32,
        /// Its length in bytes.
        len: usize,
    },
    /// A request that the protocol does not have.
    #[error("there is no request {code}")]
    Unknown {
        /// The message.
        code: u32,
    },
    /// A request that was not offered.
    #[error("{request:?} was not offered, or not negotiated")]
    NotOffered {
        /// The request.
        request: FrontendReq,
    },
    /// A body of the wrong length or content.
    #[error("{request:?} has a body of {len} bytes that cannot be right")]
    Body {
        /// The request.
        request: FrontendReq,
        /// Its length in bytes.
        len: usize,
    },
    /// Too many or too few files.
    #[error("{request:?} came with {count} files")]
    Files {
        /// The request.
        request: FrontendReq,
        /// How many.
        count: usize,
    },
    /// Features that were not offered.
    #[error("features {features:#x} are not among the offered {offered:#x}")]
    Features {
        /// What the frontend wants.
        features: u64,
        /// What was offered.
        offered: u64,
    },
    /// A queue that there is not.
    #[error("{request:?} names queue {index}; there are {max}")]
    Queue {
        /// The request.
        request: FrontendReq,
        /// The queue.
        index: u32,
        /// How many there are.
        max: u16,
    },
    /// A request that does not fit the state of its queue.
    #[error("{request:?} of queue {index}: {problem}")]
    State {
        /// The request.
        request: FrontendReq,
        /// The queue.
        index: u16,
        /// What does not fit.
        problem: &'static str,
    },
    /// A file that is not of the kind it must be.
    #[error("{request:?} came with a file that is no {kind}")]
    Kind {
        /// The request.
        request: FrontendReq,
        /// What it must be.
        kind: &'static str,
    },
    /// Guest memory.
    #[error("{request:?}")]
    Memory {
        /// The request.
        request: FrontendReq,
        /// The reason.
        #[source]
        source: MemoryError,
    },
    /// A queue that cannot be served.
    #[error("queue {index} cannot be served")]
    Start {
        /// The queue.
        index: u16,
        /// The reason.
        #[source]
        source: StartError,
    },
    /// A reactor that cannot be reached.
    #[error("a reactor cannot be reached")]
    Reactor(#[from] penstock_reactor::ReactorError),
}

impl SessionError {
    /// Whether the connection is of no use any more; else the request alone is refused.
    pub(super) fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Io(_)
                | Self::Header { .. }
                | Self::TooLong { .. }
                | Self::Unknown { .. }
                | Self::Reactor(_)
        )
    }
}
