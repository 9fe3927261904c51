//! The log of a lane: segments, batches, records.
//!
//! ```text
//!   segment   [segment header: 1 block][batch][batch] … [unused]
//!   batch     [batch header 128 B, record headers 64 B each, padded to 1 … 4 blocks][payloads, padded to blocks]
//! ```
//!
//! A batch is one device write. Its CRC covers batch and record headers; each record's CRC covers its own header and
//! payload, so that a record can be handed to another node as it is. Each batch repeats the CRC of the one before: what an
//! earlier life of the log left behind never continues it. `durable` says which batches were safe when this one was written; a
//! damaged batch at or below it is damage, one above it is the torn end of the log.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FormatError, PREFIX_BYTES, Prefix, take};
use crate::codec::{Codec, DECODED_MAX};
use crate::crc::crc32c_of;
use crate::id::{BLOCK_BYTES, ShardId, VBlock, count32, index};

/// Blocks of a batch's header at most.
pub const HEADER_BLOCKS_MAX: usize = 4;
/// Blocks of a batch's payload at most: one buffer.
pub const PAYLOAD_BLOCKS_MAX: usize = 256;
/// Bytes of a batch's payload at most.
pub const PAYLOAD_BYTES_MAX: usize = PAYLOAD_BLOCKS_MAX * BLOCK_BYTES;
/// Records of a batch at most.
pub const RECORDS_MAX: usize = (HEADER_BLOCKS_MAX * BLOCK_BYTES - BATCH_HEADER_BYTES) / RECORD_BYTES;
/// Length of [`BatchHeader`].
pub const BATCH_HEADER_BYTES: usize = 128;
/// Length of [`RecordHeader`].
pub const RECORD_BYTES: usize = 64;
const _: () = assert!(RECORDS_MAX == 254);
const _: () = assert!(size_of::<BatchHeader>() == BATCH_HEADER_BYTES);
const _: () = assert!(size_of::<RecordHeader>() == RECORD_BYTES);
const _: () = assert!(size_of::<SegmentHeader>() == PREFIX_BYTES + 16);

/// The header of a segment; its prefix' `sequence` is the segment's number.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    /// What, whose, where.
    pub prefix: Prefix,
    /// The first batch in it.
    pub first_batch: U64,
    /// Zero.
    pub reserved: U64,
}

/// The header of a batch; its prefix' `sequence` is the batch's number.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BatchHeader {
    /// What, whose, where. The CRC covers this header and the record headers.
    pub prefix: Prefix,
    /// The LSN of the first record; the others follow it.
    pub first_lsn: U64,
    /// All batches up to this one were durable when this one was written.
    pub durable: U64,
    /// The segment it is in.
    pub segment: U64,
    /// CRC of the batch before.
    pub chain: U32,
    /// How many records.
    pub records: U32,
    /// Blocks of headers.
    pub header_blocks: U32,
    /// Blocks of payloads.
    pub payload_blocks: U32,
    /// A random number of this life of the log: the same batch written again after a crash has another CRC.
    pub life: U64,
    /// Zero.
    pub reserved: [u8; 16],
}
const _: () = assert!(core::mem::offset_of!(BatchHeader, chain) == 88);

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// Blocks of a shard have these contents.
    Write = 1,
    /// Blocks of a shard read as zeroes and need no space.
    Zero = 2,
    /// Changes of the lane's state: an array of [`MetaOp`](super::checkpoint::MetaOp)s, which take effect together.
    Meta = 3,
    /// Blocks of a shard are in an egroup that was written, and durable, before: [`MetaOp`](super::checkpoint::MetaOp)s of the egroup, of regions
    /// that are the lane's from now on, and `Stored` ones.
    Direct = 4,
}

impl RecordKind {
    fn of(code: u8) -> Result<Self, FormatError> {
        match code {
            1 => Ok(Self::Write),
            2 => Ok(Self::Zero),
            3 => Ok(Self::Meta),
            4 => Ok(Self::Direct),
            _ => Err(FormatError::Field { field: "kind" }),
        }
    }
}

/// More records follow that take effect together with this one ([`RecordKind::Meta`]).
pub const RECORD_MORE: u8 = 1;

/// It takes effect together with the meta record before it, which has [`RECORD_MORE`].
pub const RECORD_CONTINUED: u8 = 2;

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RecordHeader {
    /// [`RecordKind`].
    pub kind: u8,
    /// `RECORD_` bits.
    pub flags: u8,
    /// How the payload is stored, a [`Codec`]: as it is, or (of a write) as an LZ4 block.
    pub codec: u8,
    /// Zero.
    pub reserved: u8,
    /// CRC32C of this header, with this field and `payload_at` zero, and of the payload.
    pub crc: U32,
    /// The shard; 0 for the lane itself.
    pub shard: U64,
    /// First block of the shard's vdisk.
    pub block: U64,
    /// How many blocks.
    pub blocks: U64,
    /// The record's number in its shard.
    pub shard_lsn: U64,
    /// The epoch of the shard's owner.
    pub epoch: U64,
    /// Where the payload begins, in bytes from the first payload block.
    pub payload_at: U32,
    /// Its stored length in bytes.
    pub payload_bytes: U32,
    /// Its length in bytes when decoded.
    pub decoded_bytes: U32,
    /// Zero.
    pub reserved2: U32,
}
const _: () = assert!(core::mem::offset_of!(RecordHeader, payload_at) == 48);

impl RecordHeader {
    /// The CRC that belongs to this header and `payload`.
    #[must_use]
    pub fn crc_with(&self, payload: &[u8]) -> u32 {
        let bare = Self { crc: U32::ZERO, payload_at: U32::ZERO, ..*self };
        crc32c_of([bare.as_bytes(), payload])
    }

    /// What it says.
    ///
    /// # Errors
    /// [`FormatError::Field`].
    pub fn kind(&self) -> Result<RecordKind, FormatError> {
        RecordKind::of(self.kind)
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        ShardId(self.shard.get())
    }

    /// The first block.
    #[must_use]
    pub fn block(&self) -> VBlock {
        VBlock(self.block.get())
    }

    /// The payload among its batch's, as it is stored, if it is sound.
    ///
    /// # Errors
    /// [`FormatError::Short`] outside of the batch, [`FormatError::Checksum`], [`FormatError::Field`].
    pub fn payload<'a>(&self, payloads: &'a [u8]) -> Result<&'a [u8], FormatError> {
        let at = index(self.payload_at.get());
        let end = at.checked_add(index(self.payload_bytes.get())).ok_or(FormatError::Short)?;
        let payload = payloads.get(at..end).ok_or(FormatError::Short)?;
        if self.crc_with(payload) != self.crc.get() {
            return Err(FormatError::Checksum);
        }
        let kind = self.kind()?;
        let fine = match Codec::of(self.codec)? {
            Codec::Raw => self.decoded_bytes == self.payload_bytes,
            Codec::Lz4 => kind == RecordKind::Write && index(self.decoded_bytes.get()) <= DECODED_MAX,
            Codec::Zstd => false,
        };
        if !fine {
            return Err(FormatError::Field { field: "codec" });
        }
        let bytes = self.blocks.get().checked_mul(BLOCK_BYTES as u64);
        if kind == RecordKind::Write && bytes != Some(u64::from(self.decoded_bytes.get())) {
            return Err(FormatError::Field { field: "blocks" });
        }
        if self.block.get().checked_add(self.blocks.get()).is_none() {
            return Err(FormatError::Field { field: "block" });
        }
        Ok(payload)
    }
}

impl BatchHeader {
    /// The header at the beginning of `bytes`, its numbers checked against each other. Whose it is, the caller checks.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        Prefix::parse(super::Magic::BATCH, bytes)?;
        let header: Self = take(bytes, 0)?;
        let covered = BATCH_HEADER_BYTES + index(header.records.get()).saturating_mul(RECORD_BYTES);
        let refuse = |field| Err(FormatError::Field { field });
        if header.records.get() == 0 || index(header.records.get()) > RECORDS_MAX {
            return refuse("records");
        }
        if header.prefix.covered.get() != count32(covered)
            || index(header.header_blocks.get()) != header_blocks(index(header.records.get()))
        {
            return refuse("header_blocks");
        }
        if index(header.payload_blocks.get()) > PAYLOAD_BLOCKS_MAX {
            return refuse("payload_blocks");
        }
        Ok(header)
    }

    /// Blocks of the whole batch.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.header_blocks.get().saturating_add(self.payload_blocks.get())
    }
}

/// Blocks that the headers of `records` records take.
#[must_use]
pub const fn header_blocks(records: usize) -> usize {
    (BATCH_HEADER_BYTES + records * RECORD_BYTES).div_ceil(BLOCK_BYTES)
}
