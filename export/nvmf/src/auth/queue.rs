//! One queue's authentication.

use penstock_reactor::Tick;
use penstock_security::chap::{ControllerSide, Parties, SecureChannel};

/// How long a host may take for its next message where it has no keep-alive timeout, in nanoseconds (Base 8.3.5.5.1: two
/// minutes).
const MESSAGE_TIMEOUT_NS: u64 = 120_000_000_000;
/// How long it may take at least, in nanoseconds. Linux first tests a group that it has never used, for more than the five
/// seconds of its keep-alive timeout where the group is large and the machine slow; and it does not look at a connection that
/// was closed meanwhile, but waits two minutes for an answer.
const MESSAGE_TIMEOUT_MIN_NS: u64 = 30_000_000_000;
const _: () = assert!(MESSAGE_TIMEOUT_MIN_NS <= MESSAGE_TIMEOUT_NS);

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
        let timeout_ns = message_timeout_ns(kato_ms);
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

/// How long a host with this keep-alive timeout may take for its next message, in nanoseconds.
fn message_timeout_ns(kato_ms: u32) -> u64 {
    match u64::from(kato_ms) * 1_000_000 {
        0 => MESSAGE_TIMEOUT_NS,
        kato_ns => kato_ns.max(MESSAGE_TIMEOUT_MIN_NS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Linux host that tested a group of 6144 bits for six seconds, with a keep-alive timeout of five, was let go for it.
    #[test]
    fn a_host_may_take_longer_for_a_message_than_its_keep_alive_timeout() {
        assert_eq!(message_timeout_ns(5_000), 30_000_000_000);
        assert_eq!(message_timeout_ns(60_000), 60_000_000_000);
        assert_eq!(message_timeout_ns(0), 120_000_000_000);
    }
}
