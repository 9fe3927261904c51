//! The state of a lane: as a whole in a checkpoint, as changes in the log; both are arrays of [`MetaOp`].
//!
//! ```text
//!   slot 0 or 1   [root: 1 block][body: MetaOp 64 B × ops, padded to blocks]
//! ```
//!
//! The slots take turns: checkpoint n goes to slot n modulo 2, its body first, then a flush, then its root, then a flush. The
//! root has the body's CRC and says where in the log replay begins.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FormatError, PREFIX_BYTES, Prefix};

/// Length of a [`MetaOp`].
pub const META_OP_BYTES: usize = 64;
const _: () = assert!(size_of::<MetaOp>() == META_OP_BYTES);
const _: () = assert!(size_of::<CheckpointRoot>() == PREFIX_BYTES + 96);

/// The root of a checkpoint; its prefix' `sequence` is the checkpoint's number, from 1.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CheckpointRoot {
    /// What, whose, where.
    pub prefix: Prefix,
    /// How many [`MetaOp`]s the body has.
    pub ops: U64,
    /// CRC32C of the body without its padding.
    pub body_crc: U32,
    /// CRC of the batch before the first one to replay.
    pub chain: U32,
    /// The state includes all changes up to this LSN.
    pub state_lsn: U64,
    /// The maps include all data up to this LSN.
    pub drained_lsn: U64,
    /// Replay begins in this segment …
    pub segment: U64,
    /// … at this block of it (0: the segment has not been begun) …
    pub segment_block: U32,
    /// Zero.
    pub reserved: U32,
    /// … with this batch, …
    pub batch: U64,
    /// … whose first record has this LSN.
    pub lsn: U64,
    /// The serial number that the next egroup gets.
    pub next_egroup: U64,
    /// Zero.
    pub reserved2: [u8; 24],
}

/// What a [`MetaOp`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MetaKind {
    /// Egroup `id` is generation `d` on disk `disk` from block `a` on, `b` blocks, of which `c` are referred to; its header part
    /// has `e` blocks and the CRC `crc`. It is to have `copies` copies; the second is on disk `disk2 - 1` from block `a2` on, its
    /// header part with the CRC `crc2`.
    Egroup = 1,
    /// Of egroup `id`, `c` blocks are referred to.
    EgroupLive = 2,
    /// Egroup `id` is gone.
    EgroupDrop = 3,
    /// Region `a` of disk `disk` is this lane's.
    Region = 4,
    /// Shard `id`: its map's root is extent `e` of egroup `a` (0: empty) with CRC `crc`; `b` is the serial number from which on egroups
    /// are the shard's alone; `c` its number of mapped blocks; `d` the root's level.
    Shard = 5,
    /// Shard `id` is gone.
    ShardDrop = 6,
    /// All data up to LSN `a` are in the maps.
    Drained = 7,
    /// Snapshot `b` of shard `id` was taken at this place of the log.
    SnapshotTake = 8,
    /// Snapshot `b` of shard `id` has its map: extent `e` of egroup `a`, CRC `crc`, level `d`, `c` mapped blocks.
    Snapshot = 9,
    /// Snapshot `b` of shard `id` is gone.
    SnapshotDrop = 10,
    /// Only in a record of egroup data that bypassed the log: `b` blocks from block `id` on are in the egroup of that record, from extent `c` on, 16 in
    /// each extent.
    Stored = 13,
    /// A part of note `id`, see [`MetaOp::note`].
    Note = 16,
    /// Note `id` is gone.
    NoteDrop = 17,
    /// Shard is what its snapshot b is; egroups from serial number c on are its alone. What was written to it before is void.
    Revert = 11,
    /// Region `a` of disk `disk` is this lane's no more.
    RegionDrop = 12,
}

/// A change of a lane's state.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct MetaOp {
    /// [`MetaKind`].
    pub kind: u8,
    /// How many copies of an egroup there are to be; 0 is 1.
    pub copies: u8,
    /// The disk.
    pub disk: U16,
    /// A CRC.
    pub crc: U32,
    /// Of what.
    pub id: U64,
    /// See [`MetaKind`].
    pub a: U64,
    /// See [`MetaKind`].
    pub b: U64,
    /// See [`MetaKind`].
    pub c: U64,
    /// See [`MetaKind`].
    pub d: U32,
    /// See [`MetaKind`].
    pub e: U32,
    /// The first block of the second copy.
    pub a2: U64,
    /// Its CRC.
    pub crc2: U32,
    /// Its disk plus 1; 0: there is none.
    pub disk2: U16,
    /// Zero.
    pub reserved: U16,
}

impl MetaOp {
    /// A change of kind `kind` of the object `id`, all else zero.
    #[must_use]
    pub fn of(kind: MetaKind, id: u64) -> Self {
        Self { kind: kind as u8, id: U64::new(id), ..Self::default() }
    }

    /// What it changes.
    ///
    /// # Errors
    /// [`FormatError::Field`].
    pub fn kind(&self) -> Result<MetaKind, FormatError> {
        Ok(match self.kind {
            1 => MetaKind::Egroup,
            2 => MetaKind::EgroupLive,
            3 => MetaKind::EgroupDrop,
            4 => MetaKind::Region,
            5 => MetaKind::Shard,
            6 => MetaKind::ShardDrop,
            7 => MetaKind::Drained,
            8 => MetaKind::SnapshotTake,
            9 => MetaKind::Snapshot,
            10 => MetaKind::SnapshotDrop,
            16 => MetaKind::Note,
            17 => MetaKind::NoteDrop,
            11 => MetaKind::Revert,
            13 => MetaKind::Stored,
            12 => MetaKind::RegionDrop,
            _ => return Err(FormatError::Field { field: "kind" }),
        })
    }
}

/// Bytes of a note in one op: those from `a` on.
pub const NOTE_PART_BYTES: usize = META_OP_BYTES - 16;
/// Bytes of a note at most.
pub const NOTE_BYTES_MAX: usize = 4096;

/// A part of a note: [`MetaOp`] with bytes in place of its numbers.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NotePart {
    kind: u8,
    reserved: u8,
    /// Its number, from 0; part 0 replaces a note that was there.
    part: U16,
    /// Bytes of the whole note.
    bytes: U32,
    id: U64,
    text: [u8; NOTE_PART_BYTES],
}
const _: () = assert!(size_of::<NotePart>() == META_OP_BYTES);

impl MetaOp {
    /// The ops that put a note of up to [`NOTE_BYTES_MAX`] bytes in place; they belong into one record.
    #[must_use]
    pub fn note(id: u64, text: &[u8]) -> Vec<Self> {
        let count = text.len().div_ceil(NOTE_PART_BYTES).max(1);
        let bytes = U32::new(crate::id::count32(text.len()));
        let part = |number: usize| {
            let from = text.get(number * NOTE_PART_BYTES..).unwrap_or_default();
            let mut part = NotePart {
                kind: MetaKind::Note as u8,
                reserved: 0,
                part: U16::new(u16::try_from(number).unwrap_or(u16::MAX)),
                bytes,
                id: U64::new(id),
                text: [0; NOTE_PART_BYTES],
            };
            part.text.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            Self::read_from_bytes(part.as_bytes()).unwrap_or_default()
        };
        (0..count).map(part).collect()
    }

    /// Of a part of a note: its number, the bytes of the whole, and its bytes, padded with zeroes.
    #[must_use]
    pub fn note_part(&self) -> Option<(usize, usize, [u8; NOTE_PART_BYTES])> {
        let part = NotePart::read_from_bytes(self.as_bytes()).ok()?;
        let bytes = usize::try_from(part.bytes.get()).ok().filter(|bytes| *bytes <= NOTE_BYTES_MAX)?;
        Some((usize::from(part.part.get()), bytes, part.text))
    }
}
