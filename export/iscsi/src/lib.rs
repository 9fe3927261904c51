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
//!
//! # Memory
//!
//! A connection takes 2 KiB, and from its login on, with the default window of 128 commands, at most 460 KiB for the slots of
//! its commands; besides, up to 256 KiB of headers that are not sent yet (beyond that it is not read), as much of what came
//! behind a command that waits for its buffer, 64 KiB of keys or ping data, 256 KiB of those that wait for their turn. Data
//! buffers are the group's: [`config::IscsiOptions::buffer_bytes_max`] for all its connections; while others wait for one, an
//! initiator that keeps some and moves no byte for 5 s is cut off.
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
