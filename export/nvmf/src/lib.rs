//! The NVMe over Fabrics target: subsystems, controllers and queue pairs on top of any bdev, over TCP.
//!
//! ```text
//!   control thread                                     every reactor
//!   ──────────────                                     ─────────────
//!   Target ── Arc<SubsystemConfig> (generation n) ──►  Group ── sockets ◄──► tcp (sans-IO machine per connection)
//!                                                        │                     │ capsules
//!                                                        │                     ▼
//!                                                        │                   qpair ── controller (admin commands)
//!                                                        └── bdev channels ◄───┘ checked I/O
//! ```
//!
//! Invariants: a controller lives on the reactor of its admin connection; a command is answered exactly once or its
//! connection is gone; what a peer can make the target hold is bounded by its queue sizes; full means that its socket
//! is not read.
#![forbid(unsafe_code)]

pub mod ana;
pub mod auth;
pub mod config;
pub mod controller;
pub mod discovery;
pub mod group;
pub mod io_cmd;
pub mod reservation;
pub mod status;
pub mod target;
pub mod tcp;
pub mod transport_options;

mod cntlid;
mod qpair;
mod tls;

pub use cntlid::ControllerIds;
pub use target::{Target, TargetError};
pub use transport_options::TransportOptions;
