//! How a reactor that falls asleep and a sender that leaves something for it cannot miss each other.
//!
//! ```text
//!   sender                         reactor
//!   push                           say: sleeping
//!   say: pending                   fence
//!   fence                          look: pending?  yes ─► stay awake
//!   look: sleeping?  yes ─► wake   sleep until woken
//! ```
//!
//! With a sequentially consistent fence between saying and looking on both sides, at least one of them sees what the
//! other said. The test `doorbell` runs this very file under a model checker, which is why it takes its atomics from
//! whoever includes it.

use super::atomics::{AtomicBool, Ordering, fence};

/// One reactor's two flags.
#[derive(Debug)]
pub(crate) struct Doorbell {
    /// Something was left since the reactor last looked.
    pending: AtomicBool,
    sleeping: AtomicBool,
}

impl Doorbell {
    /// An awake reactor that has not looked yet.
    pub(crate) fn new() -> Self {
        Self { pending: AtomicBool::new(true), sleeping: AtomicBool::new(false) }
    }

    /// Tells the reactor that something was left, by any thread; true when the reactor must be woken.
    pub(crate) fn ring(&self) -> bool {
        // A swap, not a store: `take` must learn of everything that any of several senders pushed, not only the last one.
        self.pending.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed)
    }

    /// Whether anything was left since the last call. Reactor only, as all below.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::AcqRel)
    }

    /// Leaves a note for the next [`Self::take`].
    pub(crate) fn leave(&self) {
        // A swap for the same reason: a store would hide what a sender said just before.
        self.pending.swap(true, Ordering::Relaxed);
    }

    /// Says that the reactor is about to sleep; false, and not sleeping, when something was left meanwhile.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.pending.load(Ordering::Acquire) {
            self.sleeping.store(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Says that the reactor is awake.
    pub(crate) fn woken(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}
