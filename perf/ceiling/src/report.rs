//! What was measured, for people and programs.

use serde::Serialize;

use crate::args::{Backend, Case, Op};

/// One case by one backend.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CaseResult {
    backend: Backend,
    #[serde(flatten)]
    case: Case,
    /// The median of the rounds, requests per second.
    iops: f64,
    mib_per_s: f64,
    /// From the number in flight and the rate (Little's law), in microseconds.
    latency_mean_us: f64,
    /// Every round, in the order measured.
    rounds_iops: Vec<f64>,
}

impl CaseResult {
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub(crate) fn new(backend: Backend, case: Case, rounds_iops: Vec<f64>) -> Self {
        let mut sorted = rounds_iops.clone();
        sorted.sort_by(f64::total_cmp);
        let iops = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let in_flight = f64::from(case.qd) * case.connections as f64;
        Self {
            backend,
            case,
            iops,
            mib_per_s: iops * case.block_bytes as f64 / f64::from(1 << 20),
            latency_mean_us: if iops > 0.0 { in_flight * 1e6 / iops } else { 0.0 },
            rounds_iops,
        }
    }

    pub(crate) fn to_line(&self) -> String {
        let Case { op, block_bytes, qd, connections } = self.case;
        let op = match op {
            Op::Read => "read",
            Op::Write => "write",
        };
        let best = self.rounds_iops.iter().copied().fold(0.0, f64::max);
        format!(
            "{op:5} {block_bytes:>7} B  conns {connections:>3}  qd {qd:>4}  {:9}  {:>10.0} IOPS (best {best:>10.0})  {:>8.0} MiB/s  {:>8.2} us",
            format!("{:?}", self.backend).to_lowercase(),
            self.iops,
            self.mib_per_s,
            self.latency_mean_us,
        )
    }
}
