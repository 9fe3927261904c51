//! The index spaces of the engine, each a type of its own.

use std::fmt;

/// Bytes of a block: the unit of allocation, of checksums of raw data and of every disk address in the engine.
pub const BLOCK_BYTES: usize = 4096;

/// A block of a vdisk: its byte address divided by [`BLOCK_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VBlock(pub u64);

/// A block of a disk of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DiskBlock(pub u64);

/// A disk of the pool, by its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DiskNo(pub u16);

/// A lane: a share of the pool that one reactor owns, with its own log, index and regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LaneNo(pub u16);

/// The number of a record in its lane's log, counted from 1; 0 stands for "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// The number of a batch in its lane's log, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BatchNo(pub u64);

/// The number of a log segment in its lane, counted from 1. Its slot in the log area is this modulo the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentNo(pub u64);

/// The generation of an egroup: each transform makes the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u32);

/// An extent of an egroup. It keeps its number through every generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ExtentNo(pub u16);

/// A shard: the vdisk's number in the upper 48 bits, the shard's index in the vdisk in the lower 16. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardId(pub u64);

impl ShardId {
    /// Shard `index` of vdisk `vdisk`; `None` beyond 48 bits.
    #[must_use]
    pub const fn new(vdisk: u64, index: u16) -> Option<Self> {
        // A widening of 16 bits.
        if vdisk < 1 << 48 { Some(Self(vdisk << 16 | index as u64)) } else { None }
    }

    /// The vdisk's number.
    #[must_use]
    pub const fn vdisk(self) -> u64 {
        self.0 >> 16
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.vdisk(), self.0 & 0xffff)
    }
}

/// An egroup: placement group (12 bits), the lane that made it (16 bits), a serial number of that lane (36 bits).
///
/// Serial numbers only grow, so of two egroups of a lane the one with the larger serial is the younger: what was born
/// after a shard's last snapshot belongs to that shard alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EgroupId(pub u64);

impl EgroupId {
    /// Bits of the serial number.
    pub const SERIAL_BITS: u32 = 36;
    /// No egroup: the root of an empty map points there.
    pub const NONE: Self = Self(0);

    /// The egroup `serial` of `lane` in placement group 0; `None` when the lane has used up its numbers.
    #[must_use]
    pub const fn new(lane: LaneNo, serial: u64) -> Option<Self> {
        if serial == 0 || serial >= 1 << Self::SERIAL_BITS {
            return None;
        }
        // A widening of 16 bits.
        Some(Self((lane.0 as u64) << Self::SERIAL_BITS | serial))
    }

    /// The number among its lane's egroups.
    #[must_use]
    pub const fn serial(self) -> u64 {
        self.0 & ((1 << Self::SERIAL_BITS) - 1)
    }
}

impl fmt::Display for EgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// `u32` to `usize`: lossless on every target of ours.
#[inline]
pub(crate) const fn index(value: u32) -> usize {
    value as usize
}
const _: () = assert!(usize::BITS >= 32);

/// A count that is known to fit 32 bits (it is bounded by a `*_MAX` far below).
///
/// # Panics
/// When it does not: a broken bound.
#[inline]
pub(crate) fn count32(value: usize) -> u32 {
    assert!(value <= 0xffff_ffff, "a count of {value} is beyond every bound");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let small = value as u32;
    small
}
