//! Metrics for Prometheus, in the OpenMetrics text format, over HTTP on the control thread.

pub mod http;
mod nvme;
mod pool;
pub mod text;
