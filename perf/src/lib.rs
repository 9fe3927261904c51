//! `penstock-perf`: load on bdevs and NVMe devices of this process and on NVMe/TCP and iSCSI targets, and what came of it.
//!
//! ```text
//!   args ──► workload (which block, which operation) ──► worker: a poller that keeps a device's queue full
//!                                                    └─► report: percentiles, JSON
//! ```

pub mod args;
pub mod iscsi;
pub mod pcie;
pub mod remote;
pub mod report;
pub mod run;
pub mod target;
pub mod verify;
pub mod worker;
pub mod workload;
