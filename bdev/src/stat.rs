//! What a bdev did, counted per reactor by that reactor alone.

use penstock_reactor::stat::{Counter, Histogram};

use crate::io::Op;

/// Counters of one operation.
#[derive(Debug, Default)]
pub struct OpStats {
    /// I/Os that ended, whatever their status.
    pub ops: Counter,
    /// Bytes of those that succeeded.
    pub bytes: Counter,
    /// I/Os that did not succeed.
    pub errors: Counter,
    /// Sum of the latencies, in nanoseconds.
    pub latency_ns_sum: Counter,
    /// The largest latency, in nanoseconds.
    pub latency_ns_max: Counter,
    /// Latencies in nanoseconds.
    pub latency_ns: Histogram,
}

/// Counters of all channels that one reactor has to a bdev.
#[derive(Debug)]
pub struct ChannelStats {
    per_op: [OpStats; Op::COUNT],
    /// I/Os under way now.
    pub in_flight: Counter,
    /// The most that were under way at once.
    pub in_flight_max: Counter,
}

impl Default for ChannelStats {
    fn default() -> Self {
        Self {
            per_op: std::array::from_fn(|_| OpStats::default()),
            in_flight: Counter::default(),
            in_flight_max: Counter::default(),
        }
    }
}

impl ChannelStats {
    /// The counters of `op`.
    #[inline]
    #[must_use]
    pub fn op(&self, op: Op) -> &OpStats {
        // In bounds: the array has an entry per variant.
        #[expect(clippy::indexing_slicing, reason = "Op has Op::COUNT variants, numbered from 0")]
        &self.per_op[op as usize]
    }
}
