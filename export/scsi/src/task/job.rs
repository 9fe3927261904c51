//! What a task is doing, between two steps.

use penstock_bdev::Op;

use crate::command::copy::Extent;
use crate::command::unmap::Range;

/// The rest of a command. The name of a state says what was asked for last.
#[derive(Debug)]
pub(crate) enum Job {
    None,
    /// A parameter list.
    List,
    /// Buffers, then blocks to be read into them for the initiator.
    Read,
    /// Data, then their write.
    Write {
        then: AfterWrite,
    },
    /// The written blocks, to be read back: that they can be.
    ReadBack,
    /// Data, then their comparison with the blocks.
    Compare,
    /// Data, then the atomic compare and write.
    CompareAndWrite,
    /// Buffers or blocks of a verification without comparison, chunk by chunk.
    VerifyMedium {
        chunk: u32,
    },
    /// One block of data, then chunks of the disk to compare it with.
    VerifySame {
        chunk: u32,
        done_bytes: u64,
    },
    /// ORWRITE: the mask, buffers for the old blocks, buffers for the new ones, and the atomic exchange.
    OrWrite {
        phase: OrPhase,
        tries: u8,
    },
    /// WRITE SAME: the block, then a buffer full of it, written again and again.
    WriteSame {
        unmap: bool,
        chunk: u32,
    },
    /// WRITE SAME of zeroes: pieces without data.
    Zero {
        chunk: u32,
    },
    /// An I/O without data, after which the command is done.
    Last,
    /// UNMAP: the ranges that are left, last first.
    Unmap {
        left: Vec<Range>,
    },
    /// EXTENDED COPY or WRITE USING TOKEN.
    Copy(Box<CopyJob>),
    /// A request to the owner.
    Control,
}

/// What follows a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterWrite {
    Nothing,
    /// WRITE AND VERIFY with BYTCHK 0.
    ReadBack,
    /// WRITE AND VERIFY with BYTCHK 1.
    Compare,
}

/// Where an ORWRITE stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrPhase {
    /// Waits for the mask.
    Mask,
    /// Waits for buffers for the old blocks.
    OldBuffers,
    /// Reads the old blocks.
    Reading,
    /// Waits for buffers for the new blocks.
    NewBuffers,
    /// Exchanges old for new.
    Exchanging,
}

/// A copy under way.
#[derive(Debug)]
pub(crate) struct CopyJob {
    pub(crate) extents: Vec<Extent>,
    /// Which extent.
    pub(crate) at: usize,
    /// Blocks of it that are copied.
    pub(crate) done: u32,
    /// Blocks of the chunk under way.
    pub(crate) chunk: u32,
    /// What the I/O under way does.
    pub(crate) op: Op,
    /// Blocks of all extents that are copied.
    pub(crate) total: u64,
    pub(crate) end: CopyEnd,
}

/// Where the result of a copy is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyEnd {
    /// EXTENDED COPY(LID1), by its list identifier if it has one.
    Lid1(Option<u8>),
    /// WRITE USING TOKEN, by its list identifier.
    Token(u32),
}
