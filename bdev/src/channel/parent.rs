//! I/Os that the module does not take as they are: too large for it, or made of reads and writes.
//!
//! ```text
//!   Split           pieces of the same operation, several at once, each with a view of the parent's buffers
//!   Zeroes          writes of one zeroed buffer
//!   Compare         read a piece ─► compare ─► next piece
//!   Copy            read a piece ─► write the same buffer ─► next piece
//!   CompareAndWrite lock the range ─► Compare over all of it ─► write all of it ─► unlock
//! ```
//!
//! A parent keeps its buffers until its last piece is back. What cannot go on (module full, no buffer, range locked) is
//! tried again in the next `poll`; pieces and slots are used again, so nothing is allocated in a steady state.

use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;

use super::Busy;
use super::front::BdevChannel;
use crate::io::{Io, IoStatus, Lba, Mark, Op};
use crate::lock::Lock;
use crate::sg::Lender;

/// Parents of one channel at once at most; further ones wait.
const PARENTS_MAX: usize = 64;
/// Pieces of one parent in the module at most.
const PIECES_MAX: u32 = 16;
/// The largest piece that needs a buffer of its own, in bytes.
const OWN_PIECE_BYTES: u32 = 64 << 10;
/// Tags of pieces begin with this, so that people can tell them apart.
const PIECE_TAG: u64 = 0x7069_6563 << 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Split,
    Zeroes,
    Compare,
    Copy,
    CompareAndWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The range is to be locked.
    Lock,
    /// Pieces are read into buffers of their own.
    Read,
    /// Pieces go down with the parent's data, or none.
    Write,
}

#[derive(Debug)]
struct Parent {
    /// Its buffers are in `data` meanwhile.
    io: Box<Io>,
    data: Lender,
    kind: Kind,
    step: Step,
    /// Blocks of which pieces were issued in this step.
    at: u32,
    /// Pieces in the module.
    out: u32,
    status: IoStatus,
    lock: Option<Lock>,
    /// A piece that the module had no room for.
    parked: Option<Box<Io>>,
    /// Zeroes, between two pieces.
    zeroes: Option<Buf>,
}

impl Parent {
    fn fail(&mut self, status: IoStatus) {
        if self.status == IoStatus::Success {
            self.status = status;
        }
    }

    /// The first piece's difference counts, whichever is found first.
    fn miscompare(&mut self, offset: u64) {
        if self.status == IoStatus::Success {
            self.status = IoStatus::Miscompare;
            self.io.result = offset;
        } else if self.status == IoStatus::Miscompare {
            self.io.result = self.io.result.min(offset);
        }
    }

    /// Whether pieces have views of this I/O's buffers and may be in the module together.
    fn shares_buffers(&self) -> bool {
        self.kind == Kind::Split || self.step == Step::Write && self.kind == Kind::CompareAndWrite
    }
}

/// The parents of one channel, and spare pieces.
#[derive(Debug)]
pub(super) struct Parents {
    slots: Vec<Option<Parent>>,
    spare: Vec<Box<Io>>,
    alive: usize,
    /// One waits for more than the module's completions.
    stalled: bool,
}

impl Parents {
    pub(super) fn new() -> Self {
        Self { slots: (0..PARENTS_MAX).map(|_| None).collect(), spare: Vec::new(), alive: 0, stalled: false }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.alive == 0
    }

    pub(super) fn has_room(&self) -> bool {
        self.alive < PARENTS_MAX
    }

    pub(super) fn want_polling(&self) -> bool {
        self.stalled
    }

    fn take(&mut self, index: usize) -> Option<Parent> {
        self.slots.get_mut(index).and_then(Option::take)
    }

    fn put(&mut self, index: usize, parent: Parent) {
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(parent);
        }
    }

    fn recycle(&mut self, mut piece: Box<Io>, of: &mut Parent) {
        of.data.take_back(&mut piece.data);
        self.spare.push(piece);
    }
}

impl BdevChannel {
    /// Begins an I/O that the module does not take as it is. There must be room.
    pub(super) fn begin_parent(&mut self, mut io: Box<Io>, now: Tick) {
        let kind = match io.op {
            op if self.shared.caps().has(op) => Kind::Split,
            Op::WriteZeroes => Kind::Zeroes,
            Op::Compare => Kind::Compare,
            Op::Copy => Kind::Copy,
            Op::CompareAndWrite => Kind::CompareAndWrite,
            Op::Read | Op::Write | Op::Unmap | Op::Flush | Op::Reset => {
                return self.end(io, IoStatus::Unsupported);
            }
        };
        let step = match kind {
            Kind::CompareAndWrite => Step::Lock,
            Kind::Compare | Kind::Copy => Step::Read,
            Kind::Split | Kind::Zeroes => Step::Write,
        };
        let Some(index) = self.parents.slots.iter().position(Option::is_none) else {
            unreachable!("the caller looked for room")
        };
        let status = IoStatus::Success;
        let (lock, parked, zeroes) = (None, None, None);
        let data = Lender::new(std::mem::take(&mut io.data));
        self.parents.alive += 1;
        self.parents.put(index, Parent { io, data, kind, step, at: 0, out: 0, status, lock, parked, zeroes });
        self.run_parent(index, now);
    }

    /// Lets every parent go on as far as it can.
    pub(super) fn run_parents(&mut self, now: Tick) {
        self.parents.stalled = false;
        if self.parents.alive > 0 {
            (0..PARENTS_MAX).for_each(|index| self.run_parent(index, now));
        }
    }

    /// A piece came back from the module.
    pub(super) fn piece_ended(&mut self, mut piece: Box<Io>, now: Tick) {
        let index = usize::try_from(self.mark(&mut piece).parent).unwrap_or(usize::MAX);
        let Some(mut parent) = self.parents.take(index) else { unreachable!("a piece has a parent") };
        parent.out -= 1;
        let block_bytes = u64::from(self.shared.block_bytes());
        let offset_blocks = piece.lba.0.wrapping_sub(parent.io.lba.0);
        let offset_bytes = offset_blocks.wrapping_mul(block_bytes);
        match (parent.kind, piece.status) {
            (Kind::Split, IoStatus::Miscompare) => parent.miscompare(offset_bytes + piece.result),
            (_, status) if status != IoStatus::Success => parent.fail(status),
            (Kind::Compare | Kind::CompareAndWrite, _) if piece.op == Op::Read => {
                let at = usize::try_from(offset_bytes).unwrap_or(usize::MAX);
                let list = parent.data.list();
                let difference = piece.data.iter().find_map(|read| list.first_difference(at, read));
                if let Some(difference) = difference {
                    parent.miscompare(offset_bytes + u64::try_from(difference).unwrap_or(0));
                }
            }
            (Kind::Copy, _) if piece.op == Op::Read && parent.status == IoStatus::Success => {
                let offset = piece.lba.0.wrapping_sub(parent.io.src_lba.0);
                piece.op = Op::Write;
                piece.lba = Lba(parent.io.lba.0 + offset);
                self.send(piece, &mut parent, now);
                self.parents.put(index, parent);
                return;
            }
            (Kind::Zeroes, _) => parent.zeroes = piece.data.take_single(),
            _ => {}
        }
        self.parents.recycle(piece, &mut parent);
        self.parents.put(index, parent);
        self.run_parent(index, now);
    }

    fn run_parent(&mut self, index: usize, now: Tick) {
        let Some(mut parent) = self.parents.take(index) else { return };
        if self.step_parent(&mut parent, index, now) {
            self.finish_parent(parent);
        } else {
            self.parents.put(index, parent);
        }
    }

    /// Goes as far as it can; returns whether the parent has ended.
    fn step_parent(&mut self, parent: &mut Parent, index: usize, now: Tick) -> bool {
        loop {
            if parent.status != IoStatus::Success {
                return parent.out == 0;
            }
            if let Some(piece) = parent.parked.take() {
                if !self.send(piece, parent, now) {
                    return false;
                }
                continue;
            }
            if parent.step == Step::Lock {
                if !self.lock(parent) {
                    self.parents.stalled = true;
                    return false;
                }
                parent.step = Step::Read;
            }
            if parent.at == parent.io.blocks {
                if parent.out > 0 {
                    return false;
                }
                if parent.kind != Kind::CompareAndWrite || parent.step == Step::Write {
                    return true;
                }
                // All of it is equal: now all of it is written.
                (parent.step, parent.at) = (Step::Write, 0);
            }
            let out_max = if parent.shares_buffers() { PIECES_MAX } else { 1 };
            if parent.out >= out_max || !self.issue(parent, index, now) {
                return false;
            }
        }
    }

    /// Makes the next piece and passes it down; returns whether that was possible.
    fn issue(&mut self, parent: &mut Parent, index: usize, now: Tick) -> bool {
        let block_bytes = self.shared.block_bytes();
        let blocks = self.piece_blocks(parent);
        let bytes = usize::try_from(u64::from(blocks) * u64::from(block_bytes)).unwrap_or(usize::MAX);
        let mut piece = self.parents.spare.pop().unwrap_or_else(Io::boxed);
        let at = u64::from(parent.at);
        let (op, from) = match (parent.kind, parent.step) {
            (Kind::Split, _) => (parent.io.op, parent.io.lba.0),
            (Kind::Copy, _) => (Op::Read, parent.io.src_lba.0),
            (_, Step::Write) => (Op::Write, parent.io.lba.0),
            (_, Step::Read | Step::Lock) => (Op::Read, parent.io.lba.0),
        };
        let number = u32::try_from(index).unwrap_or(Mark::NO_PARENT);
        piece.set(PIECE_TAG | u64::from(number), op, parent.io.flags, Lba(from + at), blocks);
        piece.src_lba = Lba(parent.io.src_lba.0 + at);
        *self.mark(&mut piece) = Mark { submitted: now, parent: number, ..Mark::NONE };
        if parent.shares_buffers() {
            if op.data_factor() > 0 {
                let second_half = u64::from(parent.step == Step::Write && parent.kind != Kind::Split);
                let skip = at + second_half * u64::from(parent.io.blocks);
                let skip = usize::try_from(skip * u64::from(block_bytes)).unwrap_or(usize::MAX);
                parent.data.lend(&mut piece.data, skip, bytes);
            }
        } else {
            let own = match parent.kind {
                // Long enough for the longest piece, which need not be the first.
                Kind::Zeroes => {
                    let longest = parent.io.blocks.saturating_mul(block_bytes).min(OWN_PIECE_BYTES);
                    let longest = usize::try_from(longest).unwrap_or(bytes);
                    parent.zeroes.take().or_else(|| Buf::zeroed(longest))
                }
                _ => Buf::alloc(bytes),
            };
            let Some(mut own) = own else {
                self.parents.recycle(piece, parent);
                self.parents.stalled = true;
                return false;
            };
            own.set_len(bytes);
            piece.data.push(own);
        }
        parent.at += blocks;
        self.send(piece, parent, now)
    }

    /// Passes a piece down, or keeps it in its parent; returns whether the module took it.
    fn send(&mut self, piece: Box<Io>, parent: &mut Parent, now: Tick) -> bool {
        match self.inner.submit(piece, now) {
            Ok(()) => {
                parent.out += 1;
                self.below += 1;
                true
            }
            Err(Busy(piece)) => {
                parent.parked = Some(piece);
                self.parents.stalled = true;
                false
            }
        }
    }

    /// The length of the next piece in blocks.
    fn piece_blocks(&self, parent: &Parent) -> u32 {
        let caps = self.shared.caps();
        let mut blocks = parent.io.blocks - parent.at;
        if caps.io_blocks_max > 0 {
            blocks = blocks.min(caps.io_blocks_max);
        }
        if !parent.shares_buffers() {
            blocks = blocks.min(OWN_PIECE_BYTES / self.shared.block_bytes());
        }
        if let Some(mask) = self.boundary_blocks(parent.io.op).checked_sub(1) {
            let firsts = [parent.io.lba.0, parent.io.src_lba.0];
            let concerned = if parent.io.op == Op::Copy { firsts.as_slice() } else { &firsts[..1] };
            for first in concerned {
                let left = mask + 1 - ((first + u64::from(parent.at)) & mask);
                blocks = blocks.min(u32::try_from(left).unwrap_or(u32::MAX));
            }
        }
        blocks
    }

    fn lock(&mut self, parent: &mut Parent) -> bool {
        if parent.lock.is_none() {
            let (first, end) = (parent.io.lba.0, parent.io.lba.0 + u64::from(parent.io.blocks));
            parent.lock = self.shared.locks.lock(&self.shared, first, end, &self.cx);
        }
        parent.lock.as_mut().is_some_and(|lock| lock.is_held(&self.cx))
    }

    fn finish_parent(&mut self, mut parent: Parent) {
        if let Some(piece) = parent.parked.take() {
            self.parents.recycle(piece, &mut parent);
        }
        parent.io.data = parent.data.take();
        if let Some(lock) = &parent.lock {
            self.shared.locks.unlock(&self.shared, lock);
        }
        self.parents.alive -= 1;
        self.end(parent.io, parent.status);
    }

    /// Lets all parents end with what is in the module.
    pub(super) fn abort_parents(&mut self, status: IoStatus) {
        self.parents.slots.iter_mut().flatten().for_each(|parent| parent.fail(status));
    }

    /// Ends the parent `tag` early; returns whether there is one.
    pub(super) fn abort_parent(&mut self, tag: u64) -> bool {
        let is_it = |slot: &Option<Parent>| slot.as_ref().is_some_and(|parent| parent.io.tag == tag);
        let Some(index) = self.parents.slots.iter().position(is_it) else { return false };
        if let Some(Some(parent)) = self.parents.slots.get_mut(index) {
            parent.fail(IoStatus::Aborted);
        }
        self.parents.stalled = true;
        self.inner.abort(PIECE_TAG | u64::try_from(index).unwrap_or(0));
        true
    }

    /// The channel ends. Buffers that the device still has are lost: it may write to them.
    pub(super) fn give_up_parents(&mut self) {
        for mut parent in self.parents.slots.drain(..).flatten() {
            if let Some(lock) = &parent.lock {
                self.shared.locks.unlock(&self.shared, lock);
            }
            if let Some(mut piece) = parent.parked.take() {
                parent.data.take_back(&mut piece.data);
            }
        }
    }
}
