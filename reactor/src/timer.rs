//! Timers of one reactor, in order of time, then of registration.

use std::collections::BTreeMap;
use std::task::Waker;

use crate::clock::Tick;

/// Timers waiting at most; enough for one per connection and task of a core.
pub(crate) const TIMERS_MAX: usize = 1 << 16;

/// One waiting timer: who is woken.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<(Tick, u64), Waker>,
    next_id: u64,
}

/// Names a timer, to cancel it.
pub(crate) type TimerKey = (Tick, u64);

impl Timers {
    /// Wakes `waker` at `at`.
    pub(crate) fn add(&mut self, at: Tick, waker: Waker) -> TimerKey {
        assert!(self.due.len() < TIMERS_MAX, "more than {TIMERS_MAX} timers on one reactor");
        let key = (at, self.next_id);
        self.next_id += 1;
        self.due.insert(key, waker);
        key
    }

    /// Wakes `waker` instead of whom it was to wake.
    pub(crate) fn set_waker(&mut self, key: TimerKey, waker: &Waker) {
        if let Some(known) = self.due.get_mut(&key) {
            known.clone_from(waker);
        }
    }

    /// Forgets a timer; one that has fired is no error.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.due.remove(&key);
    }

    /// When the earliest is due.
    pub(crate) fn next_at(&self) -> Tick {
        self.due.first_key_value().map_or(Tick::NEVER, |((at, _), _)| *at)
    }

    /// Takes one that is due.
    pub(crate) fn pop_due(&mut self, now: Tick) -> Option<Waker> {
        if self.next_at() > now {
            return None;
        }
        self.due.pop_first().map(|(_, waker)| waker)
    }
}
