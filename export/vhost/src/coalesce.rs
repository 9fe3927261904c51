//! Interrupt coalescing, as SPDK has it: above a rate of requests, a driver is told of completions only every so often.
//!
//! Every 10 ms the rate is looked at; where it is above the threshold, completions are told of at most every
//! `delay_base` × (rate − threshold) / threshold from then on.

use std::sync::atomic::{AtomicU32, Ordering};

use penstock_reactor::Tick;

/// Between looks at the rate, in nanoseconds.
const INTERVAL_NS: u64 = 10_000_000;
/// Looks in a second.
const LOOKS_PER_S: u64 = 1_000_000_000 / INTERVAL_NS;
/// No completion waits longer than this to be told, in nanoseconds.
const DELAY_NS_MAX: u64 = 5_000_000;
/// The longest base delay that may be set, in microseconds.
pub(crate) const DELAY_BASE_US_MAX: u32 = 4_000_000;

/// What `vhost_controller_set_coalescing` sets; shared by all queues of a controller.
#[derive(Debug, Default)]
pub(crate) struct Coalescing {
    delay_base_us: AtomicU32,
    iops_threshold: AtomicU32,
}

impl Coalescing {
    pub(crate) fn set(&self, delay_base_us: u32, iops_threshold: u32) {
        self.delay_base_us.store(delay_base_us, Ordering::Relaxed);
        self.iops_threshold.store(iops_threshold, Ordering::Relaxed);
    }

    /// Base delay in microseconds, threshold in requests per second.
    pub(crate) fn get(&self) -> (u32, u32) {
        (self.delay_base_us.load(Ordering::Relaxed), self.iops_threshold.load(Ordering::Relaxed))
    }
}

/// One queue's pace.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Requests since the last look.
    requests: u64,
    next_look: Tick,
    delay_ns: u64,
    /// Not to be told before.
    next_signal: Tick,
}

impl Pace {
    /// Whether the driver may be told now that `requests` more have ended since the last call.
    #[inline]
    pub(crate) fn may_signal(&mut self, coalescing: &Coalescing, requests: u64, now: Tick) -> bool {
        let (delay_base_us, threshold) = coalescing.get();
        if delay_base_us == 0 {
            return true;
        }
        self.requests += requests;
        if now >= self.next_look {
            let elapsed_ns = INTERVAL_NS + now.ns_since(self.next_look).min(INTERVAL_NS);
            let rate = self.requests.saturating_mul(LOOKS_PER_S).saturating_mul(INTERVAL_NS) / elapsed_ns;
            self.delay_ns = delay_ns(u64::from(delay_base_us), u64::from(threshold), rate);
            self.requests = 0;
            self.next_look = now.plus_ns(INTERVAL_NS);
        }
        if now < self.next_signal {
            return false;
        }
        self.next_signal = now.plus_ns(self.delay_ns);
        true
    }

    /// When the driver may be told next.
    pub(crate) fn next_signal(&self) -> Tick {
        self.next_signal
    }
}

fn delay_ns(base_us: u64, threshold: u64, rate: u64) -> u64 {
    if rate <= threshold {
        return 0;
    }
    let over = rate - threshold;
    (base_us.saturating_mul(1000).saturating_mul(over) / threshold.max(1)).min(DELAY_NS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn below_the_threshold_every_completion_is_told_of() {
        let (coalescing, mut pace) = (Coalescing::default(), Pace::default());
        coalescing.set(100, 60_000);
        for step in 1..200 {
            assert!(pace.may_signal(&coalescing, 1, Tick::from_ns(step * MS)));
        }
    }

    #[test]
    fn above_it_completions_wait_the_longer_the_more_there_are() {
        let coalescing = Coalescing::default();
        coalescing.set(300, 10_000);
        let told = |per_ms: u64| {
            let mut pace = Pace::default();
            let steps = (1..1000).map(|step| Tick::from_ns(step * MS / 10));
            steps.filter(|now| pace.may_signal(&coalescing, per_ms / 10, *now)).count()
        };
        let (few, many) = (told(20), told(100));
        assert!(many < few && few < 999, "{many} and {few} of 999");
        assert!(many > 10, "no completion waits for ever: {many}");
    }

    #[test]
    fn no_completion_waits_longer_than_the_bound() {
        assert_eq!(delay_ns(4_000_000, 1, 1_000_000_000), DELAY_NS_MAX);
        assert_eq!(delay_ns(100, 1000, 1000), 0);
        assert_eq!(delay_ns(100, 1000, 2000), 100_000);
        assert_eq!(delay_ns(100, 0, 2), 200_000);
    }
}
