//! A vdisk as a bdev: I/O from any reactor to the lanes that have its shards, and back.
//!
//! ```text
//!   reactor A                                      reactor B
//!   ─────────                                      ─────────
//!   BdevChannel (checks, splitting at stripes)
//!      │                    mesh: a bounded queue
//!   Channel ── Hub ───────── per pair of cores ──► Hub ── Desk ─► Lane ─► disks
//!      ▲        └─ same core: straight to the desk         │ gates, blocks of 512
//!      └─────────────────── and back ──────────────────────┘
//! ```
//!
//! The address space is striped: stripe n (1 MiB) is shard n modulo the number of shards. A shard is addressed by the vdisk's own
//! blocks, so zeroes over many stripes are one record per shard. Nothing is allocated or locked per I/O; a full queue is `Busy`.

mod bdev;
mod channel;
mod desk;
mod edges;
mod mesh;
mod quota;

pub use bdev::{Route, Vdisk, VdiskConfig};
pub use desk::Desk;
pub use mesh::{Hub, Mesh};
pub use quota::Quota;

/// Blocks of 4 KiB of a stripe: as long as the longest write of a lane.
pub const STRIPE_BLOCKS: u64 = 256;
/// Shards of one vdisk at most.
pub const SHARDS_MAX: usize = 256;
/// Sectors of 512 bytes in a block.
const SECTORS: u64 = 8;

const _: () = assert!(STRIPE_BLOCKS == 256 && crate::format::log::PAYLOAD_BLOCKS_MAX >= 256);
