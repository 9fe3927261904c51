//! Counters and histograms: written by one core without a lock, read by anybody.

mod histogram;

use std::sync::atomic::{AtomicU64, Ordering};

pub use histogram::{BUCKETS_MAX, Histogram};

/// A counter that one thread writes and others may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning core calls this, so a plain load and store are enough.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Raises the counter to `n` where it is lower.
    #[inline]
    pub fn raise_to(&self, n: u64) {
        if n > self.read() {
            self.0.store(n, Ordering::Relaxed);
        }
    }

    /// Sets the counter.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Its value.
    #[inline]
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a reactor did with its time.
#[derive(Debug, Default)]
pub struct ReactorStats {
    /// Nanoseconds in turns that found something to do.
    pub busy_ns: Counter,
    /// Nanoseconds in turns that found nothing, sleep included.
    pub idle_ns: Counter,
    /// Nanoseconds asleep.
    pub sleep_ns: Counter,
    /// Turns.
    pub turns: Counter,
    /// Times it went to sleep.
    pub sleeps: Counter,
    /// Messages handled.
    pub messages: Counter,
    /// Pollers that held the core for over [`STALL_NS`].
    pub stalls: Counter,
    /// The longest that one poller held the core, in nanoseconds.
    pub stall_ns_max: Counter,
}

/// A poller that holds its core longer is reported.
pub const STALL_NS: u64 = 1_000_000;
