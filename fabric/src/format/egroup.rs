//! An egroup on a disk: header, extent table, checksums, then the extents.
//!
//! ```text
//!   [EgroupHeader 128 B][ExtentEntry 32 B × extents][CRC32C 4 B × crcs][padding to a block] [data blocks …]
//! ```
//!
//! The header part says of each extent whose it is, so that maps can be rebuilt from egroups alone. Its own CRC is kept once more in
//! the lane's index: a header that was lost or put elsewhere does not fit. Extents lie at multiples of [`SECTOR_BYTES`]. An extent that is stored as
//! it is has a CRC per block, one that is compressed has one over its stored bytes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FormatError, Identity, Magic, PREFIX_BYTES, Prefix, put, seal, take};
use crate::codec::Codec;
use crate::id::{BLOCK_BYTES, EgroupId, ExtentNo, Generation, ShardId, VBlock, count32, index};

/// Blocks of an egroup at most, header included: 4 MiB.
pub const EGROUP_BLOCKS_MAX: usize = 1024;
/// Blocks of an extent at most: 64 KiB.
pub const EXTENT_BLOCKS_MAX: usize = 16;
/// Extents lie at multiples of this many bytes.
pub const SECTOR_BYTES: usize = 512;
/// Sectors of a block.
pub const SECTORS_PER_BLOCK: u32 = 8;
const _: () = assert!(SECTORS_PER_BLOCK as usize * SECTOR_BYTES == BLOCK_BYTES);
/// Length of [`EgroupHeader`].
pub const EGROUP_HEADER_BYTES: usize = 128;
/// Length of [`ExtentEntry`].
pub const EXTENT_ENTRY_BYTES: usize = 32;
const _: () = assert!(size_of::<EgroupHeader>() == EGROUP_HEADER_BYTES);
const _: () = assert!(size_of::<ExtentEntry>() == EXTENT_ENTRY_BYTES);
/// Extents of an egroup at most; one more number than there are blocks is never needed.
pub const EXTENTS_MAX: usize = EGROUP_BLOCKS_MAX;
/// Blocks of the header part at most.
pub const EGROUP_HEADER_BLOCKS_MAX: usize = header_blocks(EXTENTS_MAX, EGROUP_BLOCKS_MAX);
const _: () = assert!(EGROUP_HEADER_BLOCKS_MAX == 10);

/// The extent is a node of a block map, stored as it is.
pub const KIND_NODE: u8 = 1;
/// The extent has data of a vdisk.
pub const KIND_DATA: u8 = 0;

/// The header of an egroup; its prefix' `sequence` is the egroup's id, `address` its first block.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EgroupHeader {
    /// What, whose, where. The CRC covers header, extent table and checksums.
    pub prefix: Prefix,
    /// Which version of the egroup it is.
    pub generation: U32,
    /// Entries of the extent table.
    pub extents: U32,
    /// How many checksums.
    pub crcs: U32,
    /// Blocks of the header part.
    pub header_blocks: U32,
    /// Blocks in all.
    pub blocks: U32,
    /// Zero.
    pub reserved: [u8; 44],
}
const _: () = assert!(core::mem::offset_of!(EgroupHeader, generation) == PREFIX_BYTES);

/// An entry of the extent table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentEntry {
    /// The shard that wrote it.
    pub shard: U64,
    /// The block it was written to; for a node the first block it covers.
    pub block: U64,
    /// Where it begins, in sectors from the egroup's first block.
    pub sector: U32,
    /// Stored length in bytes.
    pub stored_bytes: U32,
    /// Its first checksum.
    pub first_crc: U16,
    /// Length in blocks when decoded.
    pub blocks: u8,
    /// A [`Codec`]: stored as it is, a CRC for each block, from a multiple of a block on; else one CRC over the stored bytes.
    pub codec: u8,
    /// `KIND_`.
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

impl ExtentEntry {
    /// How many checksums it has.
    #[must_use]
    pub fn crcs(&self) -> usize {
        match Codec::of(self.codec) {
            Ok(Codec::Raw) => usize::from(self.blocks),
            _ => 1,
        }
    }

    /// The shard that wrote it.
    #[must_use]
    pub fn owner(&self) -> (ShardId, VBlock) {
        (ShardId(self.shard.get()), VBlock(self.block.get()))
    }
}

/// Blocks of a header part with so many extents and checksums.
#[must_use]
pub const fn header_blocks(extents: usize, crcs: usize) -> usize {
    (EGROUP_HEADER_BYTES + extents * EXTENT_ENTRY_BYTES + crcs * 4).div_ceil(BLOCK_BYTES)
}

/// A checked header part, over the bytes it was read into.
#[derive(Debug)]
pub struct HeaderPart<B> {
    bytes: B,
    extents: u32,
    crcs: u32,
    blocks: u32,
}

impl<B: std::ops::Deref<Target = [u8]>> HeaderPart<B> {
    /// The header part in `bytes` of generation `generation` of the egroup that `identity` names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(identity: &Identity, generation: Generation, bytes: B) -> Result<Self, FormatError> {
        let raw: &[u8] = &bytes;
        Prefix::check(identity, raw)?;
        let header: EgroupHeader = take(raw, 0)?;
        if header.generation.get() != generation.0 {
            return Err(FormatError::Stale);
        }
        let (extents, crcs, blocks) = (header.extents.get(), header.crcs.get(), header.blocks.get());
        let refuse = |field| Err(FormatError::Field { field });
        if index(extents) > EXTENTS_MAX || index(crcs) > EGROUP_BLOCKS_MAX {
            return refuse("extents");
        }
        let covered = EGROUP_HEADER_BYTES + index(extents) * EXTENT_ENTRY_BYTES + index(crcs) * 4;
        if index(header.prefix.covered.get()) != covered || raw.len() < covered {
            return refuse("covered");
        }
        if index(blocks) > EGROUP_BLOCKS_MAX
            || index(header.header_blocks.get()) != header_blocks(index(extents), index(crcs))
        {
            return refuse("blocks");
        }
        let part = Self { bytes, extents, crcs, blocks };
        part.check_extents()?;
        Ok(part)
    }

    fn check_extents(&self) -> Result<(), FormatError> {
        let room = index(self.blocks) * BLOCK_BYTES;
        for number in 0..self.extents {
            let entry = self.entry(number)?;
            let end = index(entry.sector.get())
                .saturating_mul(SECTOR_BYTES)
                .saturating_add(index(entry.stored_bytes.get()));
            let (raw_bytes, stored) =
                (usize::from(entry.blocks) * BLOCK_BYTES, index(entry.stored_bytes.get()));
            let as_stored = match Codec::of(entry.codec)? {
                Codec::Raw => stored == raw_bytes && entry.sector.get() % SECTORS_PER_BLOCK == 0,
                Codec::Lz4 | Codec::Zstd => stored < raw_bytes && entry.kind == KIND_DATA,
            };
            let fine = as_stored
                && usize::from(entry.blocks) <= EXTENT_BLOCKS_MAX
                && end <= room
                && usize::from(entry.first_crc.get()) + entry.crcs() <= index(self.crcs);
            if !fine {
                return Err(FormatError::Field { field: "extent" });
            }
        }
        Ok(())
    }

    fn entry(&self, number: u32) -> Result<ExtentEntry, FormatError> {
        take(&self.bytes, EGROUP_HEADER_BYTES + index(number) * EXTENT_ENTRY_BYTES)
    }

    /// How many extents there are.
    #[must_use]
    pub fn extents(&self) -> u32 {
        self.extents
    }

    /// The entry of extent `extent`.
    #[must_use]
    pub fn extent(&self, extent: ExtentNo) -> Option<ExtentEntry> {
        if u32::from(extent.0) >= self.extents { None } else { self.entry(u32::from(extent.0)).ok() }
    }

    /// Checksum `at` of those of `entry`.
    #[must_use]
    pub fn crc(&self, entry: &ExtentEntry, at: usize) -> Option<u32> {
        let first = EGROUP_HEADER_BYTES + index(self.extents) * EXTENT_ENTRY_BYTES;
        let number = usize::from(entry.first_crc.get()) + at;
        if number >= index(self.crcs) {
            return None;
        }
        take::<U32>(&self.bytes, first + number * 4).ok().map(U32::get)
    }

    /// The header's own CRC, which the index keeps too.
    #[must_use]
    pub fn header_crc(&self) -> u32 {
        take::<Prefix>(&self.bytes, 0).map_or(0, |prefix| prefix.crc.get())
    }
}

/// Writes a header part to the beginning of `room`; returns its CRC.
///
/// # Panics
/// When `room` is too small or there are more than `EXTENTS_MAX` extents: bugs of the caller.
pub fn write_header(
    identity: &Identity,
    generation: Generation,
    blocks: usize,
    extents: &[ExtentEntry],
    crcs: &[u32],
    room: &mut [u8],
) -> u32 {
    assert!(extents.len() <= EXTENTS_MAX, "an egroup of {} extents", extents.len());
    assert!(blocks <= EGROUP_BLOCKS_MAX, "an egroup of {blocks} blocks");
    let crcs_at = EGROUP_HEADER_BYTES + size_of_val(extents);
    let covered = crcs_at + size_of_val(crcs);
    let header = EgroupHeader {
        prefix: Prefix::new(identity, count32(covered)),
        generation: U32::new(generation.0),
        extents: U32::new(count32(extents.len())),
        crcs: U32::new(count32(crcs.len())),
        header_blocks: U32::new(count32(header_blocks(extents.len(), crcs.len()))),
        blocks: U32::new(count32(blocks)),
        reserved: [0; 44],
    };
    room.fill(0);
    put(room, 0, &header);
    for (number, entry) in extents.iter().enumerate() {
        put(room, EGROUP_HEADER_BYTES + number * EXTENT_ENTRY_BYTES, entry);
    }
    for (number, crc) in crcs.iter().enumerate() {
        put(room, crcs_at + number * 4, &U32::new(*crc));
    }
    seal(room);
    take::<Prefix>(room, 0).map_or(0, |prefix| prefix.crc.get())
}

/// What a header of egroup `id` at `block` says of itself.
#[must_use]
pub fn identity(pool: uuid::Uuid, disk: u32, lane: crate::id::LaneNo, id: EgroupId, block: u64) -> Identity {
    Identity { magic: Magic::EGROUP, pool, disk, lane, address: block, sequence: id.0 }
}
