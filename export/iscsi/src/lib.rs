//! The iSCSI target (RFC 7143): discovery and normal sessions on top of SCSI disks.
//!
//! ```text
//!   control thread                                       every reactor
//!   ──────────────                                       ─────────────
//!   LuHost (owners of logical units) ── views ────────►  Group ── sockets ◄──► conn (sans-IO machine per connection)
//!      ▲         TargetConfig (snapshots) ────────────►    │                     │ commands
//!      └── ControlRequest (reservations, resets) ◄─────────┤                     ▼
//!                                                          └── bdev channels ◄── penstock_scsi::Task
//! ```
//!
//! Invariants: a session lives on one reactor; a command is answered exactly once, or it was aborted,
//! or its connection is gone; what an initiator can make the target hold is bounded by the command window and the
//! group's buffers; full means that its socket is not read.
//!
//! All connections of a session live on one reactor: whoever accepts one that names a session of another reactor hands it
//! over. ErrorRecoveryLevel is negotiated to 0.
#![forbid(unsafe_code)]

pub mod auth;
pub mod config;
pub mod group;
pub mod host;
pub mod target;

mod chap;
mod conn;
mod digest;
mod login;
mod negotiate;
mod sessions;

pub use negotiate::Operational;
pub use sessions::{SessionInfo, Sessions};

/// What the fuzz target does; its corpus is replayed by the ordinary tests.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
