//! Block devices: anything that takes block I/O.
//!
//! ```text
//!   control thread                                   reactors
//!   ──────────────                                   ────────
//!   Registry ── open ──► Descriptor ── (clone) ──►  BdevChannel::open(cx, &descriptor)
//!      │ register, claim, resize, remove                │ submit / poll: checks, statistics, splitting, locks
//!      ▼                                                ▼
//!   dyn Bdev ────────────── open_channel(cx) ──────► dyn Channel      (a base device, a filter, a vdisk)
//! ```
//!
//! Invariants: an [`Io`] is owned by one party at a time and comes back exactly once; completions come only out of
//! `poll`, never inside `submit`; a full queue hands the I/O back untouched.

mod bdev;
mod channel;
mod descriptor;
mod error;
mod io;
mod lock;
mod registry;
mod sg;
mod stat;

pub mod delay;
pub mod inject;
pub mod malloc;
pub mod null;
pub mod passthru;
pub mod qos;
pub mod reservation;
pub mod rpc;
pub mod split;
pub mod uring;

pub use bdev::{Bdev, BdevInfo, Run, Shared, SharedConfig};
pub use channel::{BdevChannel, Busy, Caps, Channel};
pub use descriptor::{Descriptor, OpenMode};
pub use error::BdevError;
pub use io::{BLOCK_BYTES_MAX, Io, IoFlags, IoStatus, LEVELS_MAX, Lba, Op};
pub use registry::{BDEVS_MAX, Event, EventKind, Registry, Subscription};
pub use sg::Sg;
pub use stat::{ChannelStats, OpStats};
