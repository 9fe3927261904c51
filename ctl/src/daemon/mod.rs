//! `penstockd`: one control thread (tokio, single-threaded) and the reactors that it starts, sets up and ends.
//!
//! ```text
//!   control thread                                              reactors (one pinned thread each)
//!   ──────────────                                              ─────────────────────────────────
//!   signals · control socket · metrics · state file · memory ──messages──► bdev channels, NVMe-oF groups
//! ```
//!
//! Invariants: nothing here is on a data path; one change of the configuration runs at a time; what `--state` names is
//! replaced atomically after each.

pub mod app;
pub mod config;
pub mod events;
pub mod logging;
pub mod mdns;
pub mod options;
pub mod reactors;
pub mod reservations;
pub mod run;
pub mod state;
pub mod stats;

mod error;

pub use app::App;
pub use error::DaemonError;
