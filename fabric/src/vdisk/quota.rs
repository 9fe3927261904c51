//! A container's share of a pool, as its vdisks' writes see it.
//!
//! A limited container has credits: blocks that may be written before somebody counts again. Who finds none waits; the
//! control thread counts what is mapped, exactly, and gives new ones or says that the container is full. So a limit is not
//! passed but by what is under way while it is counted, and overwriting inside of it goes on.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// What a write is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Go,
    /// Try again: it is being counted.
    Wait,
    /// There is no room.
    Full,
}

/// Credits of a container.
#[derive(Debug, Default)]
pub struct Quota {
    limited: AtomicBool,
    credits: AtomicI64,
    full: AtomicBool,
    /// Somebody wants a count.
    wanted: AtomicBool,
}

impl Quota {
    /// Asks for `blocks` blocks of 4 KiB.
    #[inline]
    pub fn ask(&self, blocks: u64) -> Verdict {
        if !self.limited.load(Ordering::Relaxed) {
            return Verdict::Go;
        }
        self.ask_limited(i64::try_from(blocks).unwrap_or(i64::MAX))
    }

    fn ask_limited(&self, blocks: i64) -> Verdict {
        let take = |credits: i64| (credits >= blocks).then(|| credits - blocks);
        if self.credits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Verdict::Go;
        }
        if self.full.load(Ordering::Acquire) {
            return Verdict::Full;
        }
        self.wanted.store(true, Ordering::Release);
        Verdict::Wait
    }

    /// Says that something may have become free.
    #[inline]
    pub fn freed(&self) {
        if self.full.load(Ordering::Relaxed) {
            self.wanted.store(true, Ordering::Release);
        }
    }

    /// Whether writes end with no space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.limited.load(Ordering::Relaxed) && self.full.load(Ordering::Relaxed)
    }

    /// Whether a count is wanted; takes the wish.
    pub fn take_wish(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Says how many blocks may be written from now on; `None`: any number.
    pub fn set(&self, credits: Option<u64>) {
        let limited = credits.is_some();
        let credits = i64::try_from(credits.unwrap_or(0)).unwrap_or(i64::MAX);
        self.credits.store(credits, Ordering::Relaxed);
        // An I/O of up to a stripe must fit, else it would wait for ever.
        self.full.store(limited && credits < 256, Ordering::Release);
        self.limited.store(limited, Ordering::Release);
    }

    /// Takes all credits away: writes wait until the count is done.
    pub fn begin_count(&self) {
        self.credits.store(0, Ordering::Relaxed);
        self.full.store(false, Ordering::Release);
        self.limited.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_take_credits_wait_for_a_count_and_end_at_the_limit() {
        let quota = Quota::default();
        assert_eq!(quota.ask(1 << 40), Verdict::Go, "nobody set a limit");
        quota.set(Some(300));
        assert_eq!(quota.ask(256), Verdict::Go);
        assert_eq!(quota.ask(256), Verdict::Wait);
        assert!(quota.take_wish() && !quota.take_wish());
        quota.set(Some(40));
        assert_eq!((quota.ask(30), quota.ask(30)), (Verdict::Go, Verdict::Full));
        assert!(quota.is_full());
        quota.freed();
        assert!(quota.take_wish());
        quota.set(None);
        assert_eq!(quota.ask(1 << 40), Verdict::Go);
    }
}
