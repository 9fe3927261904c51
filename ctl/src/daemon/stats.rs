//! Statistics since a point in time: the reactors' counters only grow, so a reset is a copy that is taken away.

use std::collections::BTreeMap;

use penstock_bdev::{ChannelStats, Op, Shared};
use penstock_reactor::ReactorId;
use penstock_reactor::stat::BUCKETS_MAX;
use penstock_reactor::stat::Histogram;
use uuid::Uuid;

/// What to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// Everything.
    All,
    /// The smallest and the largest latencies.
    Extremes,
    /// The errors.
    Errors,
    /// Nothing.
    None,
}

/// Counters of one operation, copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// I/Os that ended.
    pub ops: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// Sum of the latencies in nanoseconds.
    pub latency_ns_sum: u64,
    /// The smallest latency in nanoseconds; 0 where there is none.
    pub latency_ns_min: u64,
    /// The largest latency in nanoseconds.
    pub latency_ns_max: u64,
}

impl OpCounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let min = match (self.latency_ns_min, other.latency_ns_min) {
            (0, min) | (min, 0) => min,
            (one, two) => one.min(two),
        };
        Self {
            ops: self.ops + other.ops,
            bytes: self.bytes + other.bytes,
            errors: self.errors + other.errors,
            latency_ns_sum: self.latency_ns_sum + other.latency_ns_sum,
            latency_ns_min: min,
            latency_ns_max: self.latency_ns_max.max(other.latency_ns_max),
        }
    }
}

/// Counters of one bdev on one reactor, by operation.
pub type Counts = [OpCounts; Op::COUNT];

#[derive(Debug, Default)]
struct Copied {
    ops: u64,
    bytes: u64,
    errors: u64,
    latency_ns_sum: u64,
    extremes: Option<Histogram>,
}

/// The copies that are taken away, per bdev and reactor.
#[derive(Debug, Default)]
pub struct Baselines {
    copies: BTreeMap<(Uuid, ReactorId), [Copied; Op::COUNT]>,
}

impl Baselines {
    /// The counters of one bdev on one reactor since the last reset.
    #[must_use]
    pub fn counts(&self, bdev: &Shared, reactor: ReactorId, stats: &ChannelStats) -> Counts {
        let base = self.copies.get(&(bdev.uuid(), reactor));
        std::array::from_fn(|index| {
            let Some(op) = Op::ALL.get(index) else { return OpCounts::default() };
            since(stats, *op, base.and_then(|base| base.get(index)))
        })
    }

    /// Forgets what came so far.
    pub fn reset(&mut self, bdev: &Shared, mode: Reset) {
        if mode == Reset::None {
            return;
        }
        for (reactor, stats) in bdev.all_stats() {
            let copies = self.copies.entry((bdev.uuid(), reactor)).or_default();
            for (op, copied) in Op::ALL.into_iter().zip(copies) {
                let now = stats.op(op);
                if mode == Reset::All {
                    copied.ops = now.ops.read();
                    copied.bytes = now.bytes.read();
                    copied.latency_ns_sum = now.latency_ns_sum.read();
                }
                if matches!(mode, Reset::All | Reset::Errors) {
                    copied.errors = now.errors.read();
                }
                if matches!(mode, Reset::All | Reset::Extremes) {
                    let copy = Histogram::new();
                    copy.merge(&now.latency_ns);
                    copied.extremes = Some(copy);
                }
            }
        }
    }

    /// Forgets a bdev that is gone.
    pub fn forget(&mut self, bdev: Uuid) {
        self.copies.retain(|(uuid, _), _| *uuid != bdev);
    }
}

fn since(stats: &ChannelStats, op: Op, base: Option<&Copied>) -> OpCounts {
    let now = stats.op(op);
    let none = Copied::default();
    let base = base.unwrap_or(&none);
    let ops = now.ops.read().saturating_sub(base.ops);
    let (min, max) = if now.ops.read() == 0 { (0, 0) } else { extremes(now, base) };
    OpCounts {
        ops,
        bytes: now.bytes.read().saturating_sub(base.bytes),
        errors: now.errors.read().saturating_sub(base.errors),
        latency_ns_sum: now.latency_ns_sum.read().saturating_sub(base.latency_ns_sum),
        latency_ns_min: min,
        latency_ns_max: max,
    }
}

/// The smallest and the largest latency since the reset, from the histogram: to within 1/64, but never above the
/// largest of all.
fn extremes(now: &penstock_bdev::OpStats, base: &Copied) -> (u64, u64) {
    let largest = now.latency_ns_max.read();
    let Some(earlier) = &base.extremes else {
        return (now.latency_ns.iter().next().map_or(0, |(low, _, _)| low.max(1)), largest);
    };
    let newer = Histogram::new();
    newer.merge(&now.latency_ns);
    newer.subtract(earlier);
    let min = newer.iter().next().map_or(0, |(low, _, _)| low.max(1));
    let max = newer.iter().last().map_or(0, |(_, high, _)| high.min(largest));
    (min, max)
}

/// Latencies of some operations of a bdev over all reactors.
#[must_use]
pub fn latencies(bdev: &Shared, wanted: impl Fn(Op) -> bool) -> Histogram {
    let sum = Histogram::new();
    for (_, stats) in bdev.all_stats() {
        for op in Op::ALL.into_iter().filter(|op| wanted(*op)) {
            sum.merge(&stats.op(op).latency_ns);
        }
    }
    sum
}

const _: () = assert!(BUCKETS_MAX <= 1 << 12, "a copy of a histogram is small");
