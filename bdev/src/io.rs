//! One I/O: what to do, with which buffers, and how it ended.

use penstock_reactor::Tick;

use crate::lock::Turn;
use crate::sg::Sg;

/// The largest logical block.
pub const BLOCK_BYTES_MAX: u32 = 4096;

/// Logical block address, in blocks of the bdev it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Fill the buffers from the blocks.
    Read,
    /// Put the buffers on the blocks.
    Write,
    /// Make all writes that completed before durable. No LBA, no data.
    Flush,
    /// The blocks' contents are not needed any more; they read as zeroes where [`BdevInfo`](crate::BdevInfo) says so.
    Unmap,
    /// The blocks read as zeroes from now on.
    WriteZeroes,
    /// Compare the buffers with the blocks: [`IoStatus::Miscompare`] and [`Io::result`] where they differ.
    Compare,
    /// Atomically against every other writer of the bdev: compare the blocks with the first half of the buffers and,
    /// where all are equal, write the second half. `data` is twice as long as the blocks.
    CompareAndWrite,
    /// Copy the blocks from [`Io::src_lba`] to `lba`, inside the bdev. The ranges do not overlap.
    Copy,
    /// Complete everything in flight in this channel, by abort where possible, then this. No LBA, no data.
    Reset,
}

impl Op {
    /// How many operations there are.
    pub const COUNT: usize = 9;

    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Unmap,
        Self::WriteZeroes,
        Self::Compare,
        Self::CompareAndWrite,
        Self::Copy,
        Self::Reset,
    ];

    /// Whether it changes blocks.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Unmap | Self::WriteZeroes | Self::CompareAndWrite | Self::Copy)
    }

    /// Whether it names blocks.
    #[must_use]
    pub const fn has_range(self) -> bool {
        !matches!(self, Self::Flush | Self::Reset)
    }

    /// How many times the length of its blocks the buffers are.
    #[must_use]
    pub const fn data_factor(self) -> usize {
        match self {
            Self::Read | Self::Write | Self::Compare => 1,
            Self::CompareAndWrite => 2,
            Self::Flush | Self::Unmap | Self::WriteZeroes | Self::Copy | Self::Reset => 0,
        }
    }

    /// SPDK's name of it, as in `supported_io_types`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Unmap => "unmap",
            Self::WriteZeroes => "write_zeroes",
            Self::Compare => "compare",
            Self::CompareAndWrite => "compare_and_write",
            Self::Copy => "copy",
            Self::Reset => "reset",
        }
    }
}

/// How to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoFlags(u8);

impl IoFlags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// Force unit access: a write is durable before it completes; a read comes from the medium.
    pub const FUA: Self = Self(1);
    /// Write zeroes must not free the blocks' space (NVMe: DEAC clear).
    pub const KEEP_ALLOCATED: Self = Self(2);

    /// Whether all of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How an I/O ended. Each protocol maps it to its own status by one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IoStatus {
    /// Done.
    Success,
    /// Not done yet: what the field holds while the I/O is under way.
    Pending,
    /// Aborted by [`Channel::abort`](crate::Channel::abort), a reset or a deletion; a write may or may not have happened.
    Aborted,
    /// The blocks are not all on the device.
    OutOfRange,
    /// The bdev does not do this operation, or not with these parameters.
    Unsupported,
    /// The lengths of blocks and buffers do not agree.
    BadLength,
    /// Compared data differ; [`Io::result`] is the offset of the first difference in bytes.
    Miscompare,
    /// The device or this way to it is read-only.
    WriteProtected,
    /// Thin provisioning ran out of space.
    NoSpace,
    /// The medium cannot give these blocks back.
    ReadError,
    /// The medium did not take the blocks.
    WriteError,
    /// A checksum does not fit what was read.
    ChecksumError,
    /// The bdev was removed.
    Gone,
    /// The bdev cannot serve just now (initialising, path in transition); to be tried again.
    NotReady,
    /// A reservation of another host forbids it.
    ReservationConflict,
    /// The device did not answer in time.
    TimedOut,
    /// Anything else.
    Internal,
}

/// Bdevs on top of each other at most: a base and five filters.
pub const LEVELS_MAX: usize = 6;

/// What one layer notes of an I/O that it has passed down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    /// When that layer took it.
    pub(crate) submitted: Tick,
    /// The layer's I/O that this one is a piece of, or [`Self::NO_PARENT`].
    pub(crate) parent: u32,
    /// As which of the channel's writes it is counted, see [`Writer`](crate::lock::Writer).
    pub(crate) turn: Turn,
}

impl Mark {
    pub(crate) const NO_PARENT: u32 = u32::MAX;
    pub(crate) const NONE: Self = Self { submitted: Tick::ZERO, parent: Self::NO_PARENT, turn: Turn::None };
}

/// One I/O. Boxed by whoever issues it, moved down on submit and back up when done, then used again.
#[derive(Debug)]
pub struct Io {
    /// The issuer's word: which of its requests this is. Comes back untouched.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// How.
    pub flags: IoFlags,
    /// How it ended; [`IoStatus::Pending`] until then.
    pub status: IoStatus,
    /// First block.
    pub lba: Lba,
    /// Length in blocks.
    pub blocks: u32,
    /// First block to copy from ([`Op::Copy`]).
    pub src_lba: Lba,
    /// [`IoStatus::Miscompare`]: offset of the first difference, in bytes.
    pub result: u64,
    /// Buffers: `blocks` × block length × [`Op::data_factor`] bytes.
    pub data: Sg,
    /// When the outermost layer took it; set by [`BdevChannel`](crate::BdevChannel).
    pub submitted: Tick,
    /// What each layer notes of it while it is below.
    pub(crate) marks: [Mark; LEVELS_MAX],
}

impl Io {
    /// An I/O that waits to be filled in.
    #[must_use]
    pub fn boxed() -> Box<Self> {
        Box::new(Self {
            tag: 0,
            op: Op::Flush,
            flags: IoFlags::NONE,
            status: IoStatus::Pending,
            lba: Lba(0),
            blocks: 0,
            src_lba: Lba(0),
            result: 0,
            data: Sg::new(),
            submitted: Tick::ZERO,
            marks: [Mark::NONE; LEVELS_MAX],
        })
    }

    /// Fills it in for another use; the buffers stay as they are.
    #[inline]
    pub fn set(&mut self, tag: u64, op: Op, flags: IoFlags, lba: Lba, blocks: u32) {
        self.tag = tag;
        self.op = op;
        self.flags = flags;
        self.status = IoStatus::Pending;
        self.lba = lba;
        self.blocks = blocks;
        self.src_lba = Lba(0);
        self.result = 0;
    }
}
