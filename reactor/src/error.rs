//! What can go wrong on the control side of a reactor.

use crate::msg::ReactorId;

/// Errors of starting, reaching and configuring reactors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReactorError {
    /// The operating system refused.
    #[error("cannot {what}")]
    Os {
        /// What was attempted.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A thread could not be bound to its core.
    #[error(
        "cannot pin a reactor to core {core}; this process may run on cores {allowed:?}: choose among them"
    )]
    Pin {
        /// The core asked for.
        core: u32,
        /// The cores of this process's affinity mask.
        allowed: Vec<u32>,
    },
    /// The mailbox was full: the reactor is overloaded or stalled.
    #[error("reactor {reactor} has {waiting} messages waiting and takes no more; try again")]
    MailboxFull {
        /// Whose mailbox.
        reactor: ReactorId,
        /// How many messages wait in it.
        waiting: usize,
    },
    /// The reactor stopped before it answered.
    #[error("reactor {reactor} has stopped")]
    Gone {
        /// Which reactor.
        reactor: ReactorId,
    },
    /// There are as many tasks as a reactor takes.
    #[error("reactor {reactor} runs {max} tasks already and takes no more")]
    TasksFull {
        /// Which reactor.
        reactor: ReactorId,
        /// The bound.
        max: usize,
    },
    /// No memory for data could be had.
    #[error("cannot get {bytes} bytes of memory for data: {hint}")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// What to do about it.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}
