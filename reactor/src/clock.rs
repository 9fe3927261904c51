//! Time, as a value that is passed in.
//!
//! A [`Tick`] is nanoseconds since the clock's own beginning. The system clock reads the TSC where it is
//! invariant (one `rdtsc`, calibrated against `CLOCK_MONOTONIC` at start-up), `CLOCK_MONOTONIC` elsewhere; the
//! virtual clock is set by a simulator and never moves by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::tsc::Tsc;

/// A point in time: nanoseconds since the clock began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(u64);

impl Tick {
    /// The clock's beginning.
    pub const ZERO: Self = Self(0);
    /// Later than any time that comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// A time from nanoseconds since the clock's beginning.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the clock's beginning.
    #[must_use]
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to here; 0 where `earlier` is later.
    #[must_use]
    pub const fn ns_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time `ns` nanoseconds later.
    #[must_use]
    pub const fn plus_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// The time `duration` later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        self.plus_ns(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[derive(Debug, Clone)]
enum Source {
    Tsc(Tsc),
    Monotonic(u64),
    Virtual(Arc<AtomicU64>),
}

/// Where the time comes from. Cheap to clone; clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock(Source);

impl Clock {
    /// The machine's clock. Calibrates the TSC on first use (about 2 ms, once per process).
    #[must_use]
    pub fn system() -> Self {
        match Tsc::calibrated() {
            Some(tsc) => Self(Source::Tsc(tsc)),
            None => Self(Source::Monotonic(crate::sys::tsc::monotonic_base_ns())),
        }
    }

    /// A clock that stands still until it is set: for simulation and tests.
    #[must_use]
    pub fn simulated() -> (Self, VirtualClock) {
        let time = Arc::new(AtomicU64::new(0));
        (Self(Source::Virtual(Arc::clone(&time))), VirtualClock(time))
    }

    /// The time now.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Tick {
        match &self.0 {
            Source::Tsc(tsc) => Tick(tsc.now_ns()),
            Source::Monotonic(base_ns) => Tick(crate::sys::tsc::monotonic_ns().saturating_sub(*base_ns)),
            Source::Virtual(time) => Tick(time.load(Ordering::Relaxed)),
        }
    }

    /// Whether the time only moves when somebody sets it.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        matches!(self.0, Source::Virtual(_))
    }
}

/// The hand that moves a simulated [`Clock`].
#[derive(Debug, Clone)]
pub struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    /// Sets the time; it never goes back.
    pub fn advance_to(&self, tick: Tick) {
        self.0.fetch_max(tick.0, Ordering::Relaxed);
    }

    /// Moves the time on by `ns` nanoseconds.
    pub fn advance_ns(&self, ns: u64) {
        self.0.fetch_add(ns, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_agrees_with_the_kernels_over_a_few_milliseconds() {
        let clock = Clock::system();
        let (t0, k0) = (clock.now(), crate::sys::tsc::monotonic_ns());
        while crate::sys::tsc::monotonic_ns() - k0 < 5_000_000 {}
        let (t1, k1) = (clock.now(), crate::sys::tsc::monotonic_ns());
        let (ours, kernels) = (t1.ns_since(t0), k1 - k0);
        assert!(ours.abs_diff(kernels) < 1_000_000, "{ours} ns here, {kernels} ns in the kernel");
    }

    #[test]
    fn a_simulated_clock_moves_only_when_told_and_never_back() {
        let (clock, hand) = Clock::simulated();
        hand.advance_ns(5);
        hand.advance_to(Tick::from_ns(3));
        assert_eq!(clock.now(), Tick::from_ns(5));
    }
}
