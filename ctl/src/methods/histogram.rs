//! Latency histograms in SPDK's encoding. The daemon always counts; enabling says since when, and of which operations.

use std::collections::BTreeMap;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use penstock_bdev::{Op, Shared};
use penstock_reactor::stat::Histogram;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::daemon::{App, stats};
use crate::methods::reactor::TICK_RATE;
use crate::params;
use crate::rpc::error::INVALID_STATE;
use crate::rpc::{Kind, RpcError, Table};

const GRANULARITY_DEFAULT: u8 = 7;
/// Finer than our own histograms would say nothing more.
const GRANULARITY_MAX: u8 = 10;
const MIN_NSEC_DEFAULT: u64 = 1000;
const MAX_NSEC_DEFAULT: u64 = 120_000_000_000;

params! {
    /// Of `bdev_enable_histogram`.
    EnableHistogram {
        /// Name, alias or UUID of the bdev.
        name: String,
        /// Whether to begin (anew) or to end.
        enable: bool,
        /// Only this operation: read, write, unmap, … Default: all.
        opc: Option<String>,
        /// Each power of two is cut into 2^granularity parts: 1 to 10. Default: 7.
        granularity: Option<u8>,
        /// Smaller latencies, in nanoseconds, are counted as this. Default: 1000.
        min_nsec: Option<u64>,
        /// Larger latencies, in nanoseconds, are counted as this. Default: 120000000000.
        max_nsec: Option<u64>,
    }
}

params! {
    /// Of `bdev_get_histogram`.
    GetHistogram {
        /// Name, alias or UUID of the bdev.
        name: String,
    }
}

/// What was asked for, and what had been counted by then.
#[derive(Debug)]
pub(crate) struct Enabled {
    op: Option<Op>,
    granularity: u32,
    min_nsec: u64,
    max_nsec: u64,
    earlier: Histogram,
}

/// The bdevs whose histograms are enabled.
pub(crate) type EnabledSet = BTreeMap<Uuid, Enabled>;

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "bdev_enable_histogram",
            Kind::Act,
            "Begins a bdev's latency histogram anew, or ends it.",
            enable_histogram,
        )
        .add(
            "bdev_get_histogram",
            Kind::Read,
            "A bdev's latency histogram since it was enabled: little-endian 64-bit counts, base64, in SPDK's buckets; \
             ticks are nanoseconds (tsc_rate 1e9).",
            get_histogram,
        );
}

fn latencies(bdev: &Shared, op: Option<Op>) -> Histogram {
    stats::latencies(bdev, |other| op.is_none_or(|op| op == other))
}

async fn enable_histogram(app: Rc<App>, params: EnableHistogram) -> Result<Value, RpcError> {
    const METHOD: &str = "bdev_enable_histogram";
    let bdev = app.registry.find(&params.name)?;
    let shared = bdev.shared();
    if !params.enable {
        app.histograms.borrow_mut().remove(&shared.uuid());
        return Ok(Value::Bool(true));
    }
    let op = match params.opc.as_deref() {
        None => None,
        Some(name) => Some(Op::ALL.into_iter().find(|op| op.name() == name).ok_or_else(|| {
            let names = Op::ALL.map(Op::name).join(", ");
            RpcError::invalid_params(format!("{METHOD}: opc {name:?} is none of {names}"))
        })?),
    };
    let granularity = params.granularity.unwrap_or(GRANULARITY_DEFAULT);
    if granularity == 0 || granularity > GRANULARITY_MAX {
        let message = format!("{METHOD}: granularity is {granularity}; it must be 1 to {GRANULARITY_MAX}");
        return Err(RpcError::invalid_params(message));
    }
    let (min_nsec, max_nsec) =
        (params.min_nsec.unwrap_or(MIN_NSEC_DEFAULT), params.max_nsec.unwrap_or(MAX_NSEC_DEFAULT));
    if min_nsec >= max_nsec {
        let message = format!("{METHOD}: min_nsec {min_nsec} is not below max_nsec {max_nsec}");
        return Err(RpcError::invalid_params(message));
    }
    let earlier = latencies(shared, op);
    let enabled = Enabled { op, granularity: u32::from(granularity), min_nsec, max_nsec, earlier };
    app.histograms.borrow_mut().insert(shared.uuid(), enabled);
    Ok(Value::Bool(true))
}

async fn get_histogram(app: Rc<App>, params: GetHistogram) -> Result<Value, RpcError> {
    let bdev = app.registry.find(&params.name)?;
    let shared = bdev.shared();
    let histograms = app.histograms.borrow();
    let Some(enabled) = histograms.get(&shared.uuid()) else {
        let message = format!(
            "the histogram of bdev {} is not enabled; call bdev_enable_histogram first",
            shared.name()
        );
        return Err(RpcError::new(INVALID_STATE, message));
    };
    let now = latencies(shared, enabled.op);
    now.subtract(&enabled.earlier);
    Ok(tell(&Buckets::new(enabled.granularity, enabled.min_nsec, enabled.max_nsec), &now))
}

/// Latencies in nanoseconds, in SPDK's encoding and its usual buckets.
pub(crate) fn spdk(latencies: &Histogram) -> Value {
    tell(&Buckets::new(u32::from(GRANULARITY_DEFAULT), MIN_NSEC_DEFAULT, MAX_NSEC_DEFAULT), latencies)
}

fn tell(buckets: &Buckets, latencies: &Histogram) -> Value {
    let bytes: Vec<u8> = buckets.count(latencies).into_iter().flat_map(u64::to_le_bytes).collect();
    json!({
        "histogram": STANDARD.encode(bytes),
        "granularity": buckets.granularity,
        "min_range": buckets.min_range,
        "max_range": buckets.max_range,
        "tsc_rate": TICK_RATE,
    })
}

/// SPDK's buckets: range 0 holds values below 2^granularity one by one, range r holds those of r + granularity bits in
/// 2^granularity equal parts; ranges outside of `min_range..=max_range` fall into the nearest bucket.
struct Buckets {
    granularity: u32,
    min_range: u32,
    max_range: u32,
}

impl Buckets {
    fn new(granularity: u32, min_nsec: u64, max_nsec: u64) -> Self {
        let mut buckets = Self { granularity, min_range: 0, max_range: 64 - granularity };
        let (min_range, max_range) = (buckets.range_of(min_nsec), buckets.range_of(max_nsec));
        (buckets.min_range, buckets.max_range) = (min_range, max_range);
        buckets
    }

    fn range_of(&self, value: u64) -> u32 {
        (u64::BITS - value.leading_zeros()).saturating_sub(self.granularity)
    }

    fn index_of(&self, value: u64) -> usize {
        let per_range = 1_u64 << self.granularity;
        let range = self.range_of(value);
        let part = match range {
            range if range < self.min_range => 0,
            range if range > self.max_range => per_range - 1,
            range => (value >> range.saturating_sub(1)) & (per_range - 1),
        };
        let range = range.clamp(self.min_range, self.max_range) - self.min_range;
        usize::try_from((u64::from(range) << self.granularity) + part).unwrap_or(usize::MAX)
    }

    fn count(&self, histogram: &Histogram) -> Vec<u64> {
        let ranges = self.max_range - self.min_range + 1;
        let mut counts = vec![0_u64; usize::try_from(ranges << self.granularity).unwrap_or(0)];
        for (low, high, count) in histogram.iter() {
            let middle = low + (high.min(low.saturating_mul(2)) - low) / 2;
            if let Some(bucket) = counts.get_mut(self.index_of(middle)) {
                *bucket += count;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_spdks() {
        let all = Buckets { granularity: 7, min_range: 0, max_range: 57 };
        for (value, range, part) in
            [(0, 0, 0), (127, 0, 127), (128, 1, 0), (255, 1, 127), (256, 2, 0), (300, 2, 22)]
        {
            assert_eq!(all.index_of(value), (range << 7) + part, "{value}");
        }
        assert_eq!(all.index_of(u64::MAX), (57 << 7) + 127);
        let some = Buckets::new(7, 1000, 120_000_000_000);
        assert_eq!((some.min_range, some.max_range), (3, 30));
        assert_eq!(some.index_of(5), 0);
        assert_eq!(some.index_of(u64::MAX), (27 << 7) + 127);
    }

    #[test]
    fn every_count_of_ours_lands_in_a_bucket_of_spdks() {
        let histogram = Histogram::new();
        (0..60).for_each(|bit| histogram.record((1 << bit) + 1));
        let counts = Buckets::new(7, 1000, 120_000_000_000).count(&histogram);
        assert_eq!(counts.iter().sum::<u64>(), 60);
        assert_eq!(counts.len(), 28 << 7);
    }
}
