//! A node of a block map: one block, kept as an extent of an egroup.
//!
//! ```text
//!   [Prefix 64 B, of it the last 8 bytes: level, count][entry 24 B × up to 168]
//! ```
//!
//! A node moves with its egroup, so its `address` is its extent number and its `sequence` the egroup's id. The entry that leads to a
//! node repeats its CRC. Entries are in the order of their first block and do not overlap; an entry lies wholly in the
//! range that its node covers.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::id::BLOCK_BYTES;

/// Where a node says what level it has (a leaf: 0) and how many entries, in the prefix' reserved bytes.
pub const LEVEL_AT: usize = 56;
/// Where the number of entries is.
pub const COUNT_AT: usize = 58;
/// Where the entries begin.
pub const ENTRIES_AT: usize = super::PREFIX_BYTES;
/// Length of an entry.
pub const ENTRY_BYTES: usize = 24;
/// Entries of a node at most.
pub const ENTRIES_MAX: usize = (BLOCK_BYTES - ENTRIES_AT) / ENTRY_BYTES;
const _: () = assert!(ENTRIES_MAX == 168 && ENTRIES_AT + ENTRIES_MAX * ENTRY_BYTES == BLOCK_BYTES);
/// Levels of a tree at most: 2^52 blocks in half-full nodes.
pub const LEVELS_MAX: usize = 10;

/// A leaf's entry: a run of blocks is a run of blocks of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LeafEntry {
    /// First block of the vdisk.
    pub block: U64,
    /// The egroup.
    pub egroup: U64,
    /// The extent in it.
    pub extent: U16,
    /// First block in the extent.
    pub first: u8,
    /// How many blocks.
    pub blocks: u8,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<LeafEntry>() == ENTRY_BYTES);

/// An inner node's entry: from `block` on (the first entry: from the beginning of the node's range) the node there knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InnerEntry {
    /// First block that the child covers.
    pub block: U64,
    /// The child's egroup.
    pub egroup: U64,
    /// The child's extent.
    pub extent: U16,
    /// Zero.
    pub reserved: U16,
    /// The child's CRC.
    pub crc: U32,
}
const _: () = assert!(size_of::<InnerEntry>() == ENTRY_BYTES);
