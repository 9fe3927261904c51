//! I/O that is not whole blocks of 4 KiB: blocks of 512 bytes on a lane.
//!
//! ```text
//!   read    Wide: all touched blocks into a buffer ─► the wanted part of it
//!   write   Head: first block ─► Tail: last block ─► Wide: both with the data between them, one write
//!   zeroes  HeadRead ─► HeadWrite ─► TailRead ─► TailWrite ─► Middle: the whole blocks
//! ```
//!
//! The desk locks the blocks of writes and zeroes meanwhile, so nobody writes between the read and the write.

use penstock_bdev::{Io, Lba, Op, Sg};
use penstock_reactor::mem::Buf;

use super::SECTORS;
use crate::id::BLOCK_BYTES;

const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The first block is read; of a write or of zeroes.
    Head,
    /// Zeroes: the first block is written.
    HeadWrite,
    Tail,
    TailWrite,
    /// All touched blocks, by one buffer.
    Wide,
    /// Zeroes: the whole blocks.
    Middle,
    Done,
}

/// What is left to do of an I/O that is not whole blocks.
#[derive(Debug)]
pub(super) struct Edges {
    op: Op,
    /// First sector, and the one behind the last.
    from: u64,
    to: u64,
    step: Step,
    /// The issuer's buffers, once the first step was prepared.
    saved: Option<Sg>,
    /// The I/O is as the step wants it.
    prepared: bool,
    /// All touched blocks.
    wide: Option<Buf>,
    /// One block.
    edge: Option<Buf>,
}

impl Edges {
    /// What an I/O needs; `None`: it is whole blocks.
    pub(super) fn of(io: &Io) -> Option<Self> {
        let (from, to) = (io.lba.0, io.lba.0 + u64::from(io.blocks));
        if from.is_multiple_of(SECTORS) && to.is_multiple_of(SECTORS) {
            return None;
        }
        let (op, step) = (io.op, Step::Done);
        let mut edges = Self { op, from, to, step, saved: None, prepared: false, wide: None, edge: None };
        edges.step = match op {
            Op::Read => Step::Wide,
            _ if edges.has_head() => Step::Head,
            _ => Step::Tail,
        };
        Some(edges)
    }

    pub(super) fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    fn first(&self) -> u64 {
        self.from / SECTORS
    }

    fn end(&self) -> u64 {
        self.to.div_ceil(SECTORS)
    }

    fn has_head(&self) -> bool {
        !self.from.is_multiple_of(SECTORS)
    }

    /// The last block is partial, and is not the first one with a head.
    fn has_tail(&self) -> bool {
        let one_block = self.end() - self.first() == 1;
        !(self.to.is_multiple_of(SECTORS) || self.has_head() && one_block)
    }

    /// Makes `io` the next one for the lane. `None`: there is no buffer; `Some(false)`: nothing is left to do.
    pub(super) fn prepare(&mut self, io: &mut Io) -> Option<bool> {
        if self.prepared {
            return Some(true);
        }
        if self.saved.is_none() {
            self.saved = Some(std::mem::take(&mut io.data));
        }
        let (first, end) = (self.first(), self.end());
        let (op, at, blocks) = match self.step {
            Step::Done => return Some(false),
            Step::Head => (Op::Read, first, 1),
            Step::Tail => (Op::Read, end - 1, 1),
            Step::HeadWrite => (Op::Write, first, 1),
            Step::TailWrite => (Op::Write, end - 1, 1),
            Step::Wide => (self.op, first, end - first),
            Step::Middle => {
                let (from, to) = (self.from.div_ceil(SECTORS), self.to / SECTORS);
                if from >= to {
                    return Some(false);
                }
                (self.op, from, to - from)
            }
        };
        if self.wide.is_none() && matches!(self.op, Op::Read | Op::Write) {
            let blocks = usize::try_from(end - first).unwrap_or(usize::MAX);
            self.wide = Some(Buf::alloc(blocks.saturating_mul(BLOCK_BYTES))?);
        }
        let buf = match self.step {
            Step::Middle => None,
            Step::Wide => self.wide.take(),
            _ => Some(self.edge.take().or_else(|| Buf::alloc(BLOCK_BYTES))?),
        };
        if let Some(buf) = buf {
            io.data.push(buf);
        }
        (io.op, io.lba, io.blocks) = (op, Lba(at), u32::try_from(blocks).unwrap_or(u32::MAX));
        self.prepared = true;
        Some(true)
    }

    /// Takes in what the lane has done, and goes on to the next step.
    pub(super) fn take_in(&mut self, io: &mut Io) {
        self.prepared = false;
        let buf = io.data.take_single();
        let head = matches!(self.step, Step::Head | Step::HeadWrite);
        match (self.step, buf) {
            (Step::Wide, Some(buf)) if self.op == Op::Read => {
                let skip = self.skip();
                let part = buf.get(skip..skip + self.bytes()).unwrap_or_default();
                if let Some(saved) = &mut self.saved {
                    saved.copy_in(0, part);
                }
                self.step = Step::Done;
            }
            (Step::Head | Step::Tail, Some(buf)) if self.op == Op::Write => {
                self.keep_edge(&buf, head);
                self.edge = Some(buf);
                self.step = if head && self.has_tail() { Step::Tail } else { self.merge() };
            }
            (Step::Head | Step::Tail, Some(mut buf)) => {
                let changed = self.zero_part(&mut buf, head);
                self.edge = Some(buf);
                self.step = match (head, changed) {
                    (true, true) => Step::HeadWrite,
                    (false, true) => Step::TailWrite,
                    (true, false) => self.after_head(),
                    (false, false) => Step::Middle,
                };
            }
            (Step::HeadWrite | Step::TailWrite, buf) => {
                self.edge = buf;
                self.step = if head { self.after_head() } else { Step::Middle };
            }
            (Step::Wide | Step::Middle | Step::Done | Step::Head | Step::Tail, _) => self.step = Step::Done,
        }
    }

    /// Puts an edge that was read into the buffer of all blocks.
    fn keep_edge(&mut self, edge: &[u8], head: bool) {
        let Some(wide) = &mut self.wide else { return };
        let at = if head { 0 } else { wide.len().saturating_sub(BLOCK_BYTES) };
        if let Some(room) = wide.get_mut(at..at + BLOCK_BYTES) {
            room.copy_from_slice(edge);
        }
    }

    /// Puts the data between the edges: all is there to be written.
    fn merge(&mut self) -> Step {
        let (skip, bytes) = (self.skip(), self.bytes());
        if let (Some(wide), Some(saved)) = (&mut self.wide, &self.saved)
            && let Some(room) = wide.get_mut(skip..skip + bytes)
        {
            saved.copy_out(0, room);
        }
        Step::Wide
    }

    fn after_head(&self) -> Step {
        if self.has_tail() { Step::Tail } else { Step::Middle }
    }

    /// Where the wanted bytes begin in the touched blocks.
    fn skip(&self) -> usize {
        usize::try_from(self.from % SECTORS).unwrap_or(0) * SECTOR_BYTES
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.to - self.from).unwrap_or(0) * SECTOR_BYTES
    }

    /// Zeroes the part of an edge block that is meant; returns whether that changed anything.
    fn zero_part(&self, block: &mut [u8], head: bool) -> bool {
        let sector = |sector: u64| usize::try_from(sector).unwrap_or(0) * SECTOR_BYTES;
        let base = if head { self.first() } else { self.end() - 1 } * SECTORS;
        let from = sector(self.from.saturating_sub(base));
        let to = sector((self.to - base).min(SECTORS));
        let Some(part) = block.get_mut(from..to) else { return false };
        let changed = part.iter().any(|byte| *byte != 0);
        part.fill(0);
        changed
    }

    /// Gives the issuer's buffers back.
    pub(super) fn give_back(self, io: &mut Io) {
        if let Some(saved) = self.saved {
            io.data.clear();
            io.data = saved;
        }
    }
}

const _: () = assert!(BLOCK_BYTES == SECTOR_BYTES * 8);
