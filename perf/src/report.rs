//! What came of a run: for people and as JSON.

use std::fmt::Write as _;

use penstock_reactor::stat::Histogram;
use serde::Serialize;

/// Counts of one worker or of all.
#[derive(Debug, Default)]
pub struct Totals {
    /// I/Os that succeeded: reads, writes.
    pub ops: [u64; 2],
    /// Bytes of those.
    pub bytes: [u64; 2],
    /// I/Os that did not succeed.
    pub errors: u64,
    /// The first bad thing that happened, in words.
    pub first_error: Option<String>,
    /// Sum of latencies in nanoseconds.
    pub latency_ns_sum: u64,
    /// Smallest and largest latency in nanoseconds.
    pub latency_ns_min: u64,
    /// The largest.
    pub latency_ns_max: u64,
    /// All latencies in nanoseconds.
    pub latency_ns: Histogram,
    /// How long it was measured, in nanoseconds.
    pub elapsed_ns: u64,
}

impl Totals {
    /// Counts one I/O that succeeded.
    #[inline]
    pub fn record(&mut self, is_read: bool, bytes: u64, latency_ns: u64) {
        let side = usize::from(!is_read);
        if let (Some(ops), Some(sum)) = (self.ops.get_mut(side), self.bytes.get_mut(side)) {
            *ops += 1;
            *sum += bytes;
        }
        self.latency_ns_sum += latency_ns;
        self.latency_ns_max = self.latency_ns_max.max(latency_ns);
        self.latency_ns_min =
            if self.latency_ns_min == 0 { latency_ns } else { self.latency_ns_min.min(latency_ns) };
        self.latency_ns.record(latency_ns);
    }

    /// Counts one that did not.
    #[cold]
    pub fn record_error(&mut self, what: impl FnOnce() -> String) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(what());
        }
    }

    /// Adds another worker's counts.
    pub fn merge(&mut self, other: Self) {
        for (to, from) in self.ops.iter_mut().zip(other.ops) {
            *to += from;
        }
        for (to, from) in self.bytes.iter_mut().zip(other.bytes) {
            *to += from;
        }
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latency_ns_sum += other.latency_ns_sum;
        self.latency_ns_max = self.latency_ns_max.max(other.latency_ns_max);
        let smaller = [self.latency_ns_min, other.latency_ns_min].into_iter().filter(|ns| *ns > 0).min();
        self.latency_ns_min = smaller.unwrap_or(0);
        self.latency_ns.merge(&other.latency_ns);
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
    }
}

/// Latency percentiles, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LatencyUs {
    /// Mean.
    pub avg: f64,
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p99_9: f64,
    /// 99.99 %.
    pub p99_99: f64,
    /// Largest.
    pub max: f64,
}

/// The result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was driven.
    pub target: String,
    /// The load, as given.
    pub pattern: String,
    /// Bytes of one I/O.
    pub block_bytes: u64,
    /// I/Os in flight per worker.
    pub queue_depth: u32,
    /// Workers, one core each.
    pub workers: usize,
    /// Seconds measured.
    pub seconds: f64,
    /// I/Os per second.
    pub iops: f64,
    /// Reads per second.
    pub read_iops: f64,
    /// Writes per second.
    pub write_iops: f64,
    /// MiB per second.
    pub mib_per_second: f64,
    /// I/Os that succeeded.
    pub ops: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// The first failure, in words.
    pub first_error: Option<String>,
    /// Latencies.
    pub latency_us: LatencyUs,
}

impl Report {
    /// Sums a run up.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures for people; 53 bits are enough")]
    pub fn new(
        target: &str,
        pattern: &str,
        block_bytes: u64,
        queue_depth: u32,
        workers: usize,
        totals: &Totals,
    ) -> Self {
        let seconds = totals.elapsed_ns as f64 / 1e9;
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let us = |ns: u64| ns as f64 / 1e3;
        let percentile = |per_million| {
            us(totals.latency_ns.percentile(per_million).unwrap_or(0).min(totals.latency_ns_max))
        };
        let [reads, writes] = totals.ops;
        let ops = reads + writes;
        Self {
            target: target.to_owned(),
            pattern: pattern.to_owned(),
            block_bytes,
            queue_depth,
            workers,
            seconds,
            iops: per_second(ops),
            read_iops: per_second(reads),
            write_iops: per_second(writes),
            mib_per_second: per_second(totals.bytes.iter().sum()) / f64::from(1 << 20),
            ops,
            errors: totals.errors,
            first_error: totals.first_error.clone(),
            latency_us: LatencyUs {
                avg: if ops > 0 { us(totals.latency_ns_sum) / ops as f64 } else { 0.0 },
                min: us(totals.latency_ns_min),
                p50: percentile(500_000),
                p90: percentile(900_000),
                p99: percentile(990_000),
                p99_9: percentile(999_000),
                p99_99: percentile(999_900),
                max: us(totals.latency_ns_max),
            },
        }
    }

    /// A few lines for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let latency = &self.latency_us;
        let mut text = format!(
            "{} {} bs={} qd={} workers={} {:.1} s\n  {:.0} IOPS ({:.0} read, {:.0} write), {:.1} MiB/s\n  \
             latency µs: avg {:.2} min {:.2} p50 {:.2} p90 {:.2} p99 {:.2} p99.9 {:.2} p99.99 {:.2} max {:.2}\n",
            self.target,
            self.pattern,
            self.block_bytes,
            self.queue_depth,
            self.workers,
            self.seconds,
            self.iops,
            self.read_iops,
            self.write_iops,
            self.mib_per_second,
            latency.avg,
            latency.min,
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p99_9,
            latency.p99_99,
            latency.max,
        );
        if self.errors > 0 {
            let first = self.first_error.as_deref().unwrap_or("unknown");
            // Writing to a String cannot fail.
            writeln!(text, "  {} ERRORS; the first: {first}", self.errors).ok();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_counts_and_time() {
        let mut totals = Totals::default();
        for latency_us in 1..=100 {
            totals.record(latency_us % 4 != 0, 4096, latency_us * 1000);
        }
        totals.elapsed_ns = 500_000_000;
        let mut all = Totals::default();
        all.merge(totals);
        let report = Report::new("null", "randrw", 4096, 1, 1, &all);
        assert_eq!((report.ops, report.iops, report.read_iops), (100, 200.0, 150.0));
        assert!((report.latency_us.p50 - 50.0).abs() < 1.0 && report.latency_us.max == 100.0);
        assert!(report.to_text().contains("200 IOPS (150 read, 50 write)"));
    }
}
