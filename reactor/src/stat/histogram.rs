//! A log-linear histogram: each power of two in [`SUB_BUCKETS`] equal parts, so a value is known to within 1/64.
//!
//! ```text
//!   value < 64          its own bucket
//!   64 <= value         bucket = 64 · (exponent − 5) + the six bits below the leading one
//! ```

use super::Counter;

const SUB_BITS: u32 = 6;
/// Parts of each power of two.
pub(crate) const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// The largest exponent that is told apart: 2^36 ns is 68 s.
const EXPONENT_MAX: u32 = 36;
/// Buckets in all; the last one takes all larger values.
pub const BUCKETS_MAX: usize = SUB_BUCKETS * (EXPONENT_MAX - SUB_BITS + 2) as usize;

/// Counts of values (usually nanoseconds) by size. 16 KiB. One core writes, anybody reads.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Counter]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram; allocates all it will ever need.
    #[must_use]
    pub fn new() -> Self {
        Self { buckets: (0..BUCKETS_MAX).map(|_| Counter::default()).collect() }
    }

    /// Counts `value` once.
    #[inline]
    pub fn record(&self, value: u64) {
        if let Some(bucket) = self.buckets.get(Self::bucket_of(value)) {
            bucket.add(1);
        }
    }

    /// Adds all counts of `other` to this one.
    pub fn merge(&self, other: &Self) {
        for (to, from) in self.buckets.iter().zip(other.buckets.iter()) {
            to.add(from.read());
        }
    }

    /// Takes `earlier`, an older copy of this histogram, away: what remains came since.
    pub fn subtract(&self, earlier: &Self) {
        for (to, from) in self.buckets.iter().zip(earlier.buckets.iter()) {
            to.set(to.read().saturating_sub(from.read()));
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for bucket in &self.buckets {
            bucket.set(0);
        }
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::read).sum()
    }

    /// The value below or at which `per_million` millionths of all lie (500 000: the median), rounded up to the end of
    /// its bucket; `None` where nothing was counted.
    #[must_use]
    pub fn percentile(&self, per_million: u64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = u128::from(count) * u128::from(per_million.min(1_000_000));
        let rank = u64::try_from(wanted.div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.read();
            if seen >= rank {
                return Some(Self::bucket_range(index).1);
            }
        }
        None
    }

    /// The buckets that hold something: smallest and largest value, and count.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.buckets.iter().enumerate().filter_map(|(index, bucket)| {
            let count = bucket.read();
            let (low, high) = Self::bucket_range(index);
            (count > 0).then_some((low, high, count))
        })
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "bounded by BUCKETS_MAX")]
    fn bucket_of(value: u64) -> usize {
        if value < SUB_BUCKETS as u64 {
            return value as usize;
        }
        let exponent = value.ilog2();
        if exponent > EXPONENT_MAX {
            return BUCKETS_MAX - 1;
        }
        let below_leading = (value >> (exponent - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
        SUB_BUCKETS * (exponent - SUB_BITS + 1) as usize + below_leading
    }

    /// Smallest and largest value of a bucket.
    #[must_use]
    pub fn bucket_range(index: usize) -> (u64, u64) {
        let part = u64::try_from(index % SUB_BUCKETS).unwrap_or(0);
        let octave = u32::try_from(index / SUB_BUCKETS).unwrap_or(0);
        if octave == 0 {
            return (part, part);
        }
        let shift = octave - 1;
        let low = ((1 << SUB_BITS) | part) << shift;
        if index + 1 >= BUCKETS_MAX {
            return (low, u64::MAX);
        }
        (low, low + (1 << shift) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_the_bucket_whose_range_holds_it() {
        for value in (0..5000).chain((0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let (low, high) = Histogram::bucket_range(Histogram::bucket_of(value));
            assert!((low..=high).contains(&value), "{value} not in {low}..={high}");
            assert!(high == u64::MAX || high - low <= low / 64, "{low}..={high} is too wide");
        }
    }

    #[test]
    fn percentiles_of_a_hundred_values_are_those_values() {
        let histogram = Histogram::new();
        assert_eq!(histogram.percentile(500_000), None);
        (1..=100).for_each(|value| histogram.record(value));
        assert_eq!(histogram.percentile(500_000), Some(50));
        assert_eq!(histogram.percentile(1_000_000), Some(100));
        assert_eq!(histogram.percentile(0), Some(1));
    }
}
