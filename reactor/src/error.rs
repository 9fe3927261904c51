//! What can go wrong on the control side of a reactor.

use std::net::SocketAddr;

use rustix::io::Errno;

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
    /// A socket could not be made, bound or connected.
    #[error("cannot {what} {address}: {hint}")]
    Socket {
        /// What was attempted.
        what: &'static str,
        /// With which address.
        address: SocketAddr,
        /// What to do about it.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
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

impl ReactorError {
    /// The error of a socket, with advice for the reasons that an operator can do something about.
    pub(crate) fn socket(what: &'static str, address: SocketAddr, source: Errno) -> Self {
        let hint = match source {
            Errno::ADDRINUSE => "another socket has this address; choose another port, or stop its owner",
            Errno::ADDRNOTAVAIL => "this machine does not have that address; choose one that `ip addr` shows",
            Errno::ACCESS | Errno::PERM => "not allowed; choose a port from 1024 on, or look at the firewall",
            Errno::MFILE | Errno::NFILE => "no descriptors left; raise the limit (ulimit -n)",
            Errno::NETUNREACH | Errno::HOSTUNREACH => "no route there; look at `ip route get`",
            Errno::AFNOSUPPORT => "this machine does not speak that family of addresses",
            _ => "look at the system's reason",
        };
        Self::Socket { what, address, hint, source: source.into() }
    }
}
