//! One queue's authentication.

use penstock_reactor::Tick;
use penstock_security::chap::{ControllerSide, Parties, SecureChannel};

/// How long a host may take for its next message where it has no keep-alive timeout, in nanoseconds (Base 8.3.5.5.1: two
/// minutes).
const MESSAGE_TIMEOUT_NS: u64 = 120_000_000_000;

/// A queue's authentication: the first, without which it executes nothing, or one of later ones.
#[derive(Debug)]
pub(crate) struct QueueAuth {
    pub(crate) parties: Parties,
    /// The secure channel that may follow this connection.
    pub(crate) channel: SecureChannel,
    /// Nothing but authentication is executed.
    pub(crate) locked: bool,
    pub(crate) side: ControllerSide,
    /// The command that waits for the worker.
    pub(crate) waiting: Option<u16>,
    timeout_ns: u64,
    /// When the transaction under way is given up.
    deadline: Tick,
}

impl QueueAuth {
    /// Of a queue that was just connected.
    pub(crate) fn new(
        parties: Parties,
        channel: SecureChannel,
        locked: bool,
        kato_ms: u32,
        now: Tick,
    ) -> Self {
        let kato_ns = u64::from(kato_ms) * 1_000_000;
        let timeout_ns = if kato_ns == 0 { MESSAGE_TIMEOUT_NS } else { kato_ns };
        let side = ControllerSide::new(parties, channel);
        let deadline = now.plus_ns(timeout_ns);
        Self { parties, channel, locked, side, waiting: None, timeout_ns, deadline }
    }

    /// The host's next message has come: a transaction that is over, or was given up, makes room for another. Returns by
    /// when the message after it is due.
    pub(crate) fn begin(&mut self, now: Tick) -> Tick {
        let given_up = !self.locked && now >= self.deadline && self.waiting.is_none();
        if self.side.is_over() || given_up {
            self.side = ControllerSide::new(self.parties, self.channel);
        }
        self.deadline = now.plus_ns(self.timeout_ns);
        self.deadline
    }
}
