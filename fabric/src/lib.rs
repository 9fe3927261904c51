//! The storage engine of vdisks.
//!
//! ```text
//!   pool    disks, recognised by their superblocks; each divided into log area, index area and regions
//!   lane    the share of a pool that one reactor owns: a log, an index, regions; it knows no other lane
//!   log     what was acknowledged and is not in an egroup yet; changes of the lane's state
//! ```
//!
//! docs/formats.md has every byte of it, ARCHITECTURE.md the reasons. Machines of the data path are without I/O: they push
//! [`flow::DiskIo`]s and are handed them back; control flows are `async` over the same [`flow::Flow`]. [`sim`] has disks that
//! misbehave.
#![forbid(unsafe_code)]
#![allow(
    missing_debug_implementations,
    reason = "zerocopy's derives add hidden helper types; every type of ours has Debug"
)]

pub mod alloc;
pub mod cache;
pub mod clock;
pub mod codec;
pub mod crc;
pub mod driver;
pub mod egroup;
pub mod flow;
pub mod format;
pub mod fsck;
pub mod id;
pub mod lane;
pub mod log;
pub mod map;
pub mod node;
pub mod placement;
pub mod pool;
pub mod sim;
pub mod state;
pub mod vdisk;
