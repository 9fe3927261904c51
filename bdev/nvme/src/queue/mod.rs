//! An I/O queue pair with the I/Os in it: what one core drives, without I/O and without a clock of its own.
//!
//! ```text
//!               submit                                      turn
//!   channel ─────────────► slot ─► ring ─► controller ─► ring ─► slot ─► ended ─► channel
//!                           ▲ │ retry, replay, no memory           │
//!                           └─┴─────────── waiting ◄───────────────┘
//! ```
//!
//! A slot: `Free` ─ submit ─► `InDevice` ─ completion ─► `Free`. A fused pair waits in `HalfDone` for its other half; a
//! miscompare reads the blocks (`Difference`) to say where they differ; what is to be tried again is `Waiting`.
//!
//! Invariants: an I/O is in exactly one slot or list of ended ones, and leaves once; its buffers stay in the slot as long as
//! the controller may touch them, which is until its completion or until the controller has stopped ([`IoQueue::rewind`]);
//! a CID is a slot and a generation, so that a completion which comes twice is known; commands never exceed slots, slots
//! never the ring.

mod issue;
mod slot;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_bdev::{Busy, Io, IoStatus, Op};
use penstock_reactor::stat::Counter;
use penstock_reactor::{Rest, Tick};
use penstock_spec::nvme::Cqe;

use crate::data::PointerRules;
use crate::dma::{DmaBuf, Translator};
use crate::ring::{Garbage, Ring};
use crate::status::{Verdict, judge};
pub(crate) use issue::COPY_RANGES_MAX;
use slot::{Slot, SlotState, cid_of, index_of};

/// Completions taken in one turn at most.
const REAP_MAX: usize = 256;
/// Times that one I/O is tried at most, whatever is configured.
pub const TRIES_MAX: u8 = 100;

/// What a namespace's commands need to be known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NsParams {
    /// Namespace Identifier.
    pub nsid: u32,
    /// Log2 of the length of a block in bytes.
    pub block_shift: u32,
    /// Blocks of one source range of Copy at most.
    pub copy_range_blocks: u32,
    /// Write Zeroes may deallocate.
    pub deallocates_zeroes: bool,
}

/// What happens to a command that takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// It is waited for.
    Nothing,
    /// It is aborted; where that does not end it either, the controller is reset.
    Abort,
    /// The controller is reset.
    Reset,
}

/// How a queue behaves.
#[derive(Debug, Clone, Copy)]
pub struct QueueRules {
    /// What data pointers the controller takes.
    pub pointers: PointerRules,
    /// How long a command may take, in nanoseconds; 0: for ever.
    pub timeout_ns: u64,
    /// What then.
    pub on_timeout: OnTimeout,
    /// Times that one I/O is tried again at most.
    pub retries_max: u8,
    /// Command Retry Delays 1 to 3 (CRDT), in nanoseconds.
    pub retry_delays_ns: [u64; 3],
}

/// What a queue asks of its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// To abort a command.
    Abort {
        /// The queue.
        qid: u16,
        /// The command.
        cid: u16,
    },
    /// To reset the controller.
    Reset {
        /// The queue.
        qid: u16,
        /// Why.
        why: Trouble,
    },
}

/// Why a controller has to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It says what cannot be.
    #[error(transparent)]
    Garbage(#[from] Garbage),
    /// It does not answer.
    #[error("a command of queue {qid} had no answer for {ms} ms")]
    Silence {
        /// The queue.
        qid: u16,
        /// How long, in milliseconds.
        ms: u64,
    },
}

/// How a queue reaches its controller: returns whether the notice was taken.
pub type Notify = Box<dyn Fn(Notice) -> bool + Send>;

/// Counters of one queue.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Commands given to the controller.
    pub commands: Counter,
    /// Doorbell registers written.
    pub doorbells: Counter,
    /// I/Os whose data was moved to memory that the controller reaches.
    pub bounced: Counter,
    /// Commands tried again because of their status.
    pub retries: Counter,
    /// Commands tried again after a reset.
    pub replays: Counter,
    /// Commands that took too long.
    pub timeouts: Counter,
    /// Commands with the controller now.
    pub in_device: Counter,
}

/// Whether a queue's controller serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It does.
    Live,
    /// It is being reset: nothing goes out or in.
    Paused,
    /// It does not, and will not; I/Os end so.
    Ended(IoStatus),
}

#[derive(Debug)]
struct End {
    ns: NsParams,
    ended: VecDeque<Box<Io>>,
    /// I/Os in slots.
    under_way: usize,
    open: bool,
}

/// The queue.
pub struct IoQueue {
    ring: Ring,
    translator: Translator,
    rules: QueueRules,
    slots: Vec<Slot>,
    free: Vec<u16>,
    lists: Vec<DmaBuf>,
    ends: Vec<End>,
    /// Slots whose command is to be given to the controller, again or at last.
    waiting: VecDeque<u16>,
    segments: Vec<(u64, usize)>,
    state: State,
    in_device: usize,
    next_check: Tick,
    notify: Notify,
    stats: Arc<QueueStats>,
}

impl std::fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoQueue")
            .field("qid", &self.ring.qid())
            .field("state", &self.state)
            .field("in_device", &self.in_device)
            .finish_non_exhaustive()
    }
}

impl IoQueue {
    /// A live queue on a ring that the controller knows; `None` where there is no memory for the commands' lists.
    #[must_use]
    pub fn new(
        ring: Ring,
        mut translator: Translator,
        rules: QueueRules,
        notify: Notify,
        stats: Arc<QueueStats>,
    ) -> Option<Self> {
        let slots = ring.entries() - 1;
        let lists = issue::lists(usize::from(slots), &mut translator)?;
        Some(Self {
            translator,
            rules,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            free: (0..slots).rev().collect(),
            lists,
            ends: Vec::new(),
            waiting: VecDeque::with_capacity(usize::from(slots)),
            segments: Vec::with_capacity(penstock_bdev::Sg::SEGMENTS_MAX),
            state: State::Live,
            in_device: 0,
            next_check: Tick::ZERO,
            notify,
            stats,
            ring,
        })
    }

    /// Lets a namespace's I/O in; returns the number that it is known by.
    pub fn open(&mut self, ns: NsParams) -> usize {
        let ended = VecDeque::with_capacity(self.slots.len());
        let end = End { ns, ended, under_way: 0, open: true };
        let unused = self.ends.iter_mut().position(|end| !end.open && end.under_way == 0);
        match unused.and_then(|index| Some((index, self.ends.get_mut(index)?))) {
            Some((index, place)) => {
                *place = end;
                index
            }
            None => {
                self.ends.push(end);
                self.ends.len() - 1
            }
        }
    }

    /// Ends what [`Self::open`] began. I/Os under way are dropped when they are through.
    pub fn close(&mut self, end: usize) {
        if let Some(end) = self.ends.get_mut(end) {
            end.open = false;
            end.ended.clear();
        }
    }

    /// Takes `io` for the namespace behind `end`.
    ///
    /// # Errors
    /// [`Busy`], with the I/O: no slot is free, the controller is being reset, or there is no memory to move its data to.
    #[inline]
    pub fn submit(&mut self, end: usize, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        if self.state != State::Live {
            return self.submit_to_a_dead_end(end, io);
        }
        let commands = if io.op == Op::CompareAndWrite { 2 } else { 1 };
        if self.free.len() < commands || usize::from(self.ring.room()) < commands {
            return Err(Busy(io));
        }
        let Some(index) = self.free.pop() else { return Err(Busy(io)) };
        let slot = self.slot(index);
        slot.begin(io, end);
        if self.issue(index, now) {
            self.end_mut(end).under_way += 1;
            return Ok(());
        }
        let slot = self.slot(index);
        let io = slot.io.take();
        slot.release();
        self.free.push(index);
        io.map_or(Ok(()), |io| Err(Busy(io)))
    }

    /// Moves everything on: doorbells, completions, what waits, what takes too long. Returns how many commands completed.
    #[inline]
    pub fn turn(&mut self, now: Tick) -> usize {
        if self.state != State::Live
            || (self.in_device == 0 && self.waiting.is_empty() && !self.ring.wants_bell())
        {
            return 0;
        }
        self.ring.bell();
        let mut count = 0;
        while count < REAP_MAX {
            let completed = self.ring.pop().and_then(|cqe| match cqe {
                Some(cqe) => self.complete(&cqe, now).map(|()| true),
                None => Ok(false),
            });
            match completed {
                Ok(true) => count += 1,
                Ok(false) => break,
                Err(garbage) => {
                    self.fall_out(garbage.into());
                    return count;
                }
            }
        }
        if !self.waiting.is_empty() {
            self.retry(now);
        }
        self.ring.bell();
        self.stats.doorbells.set(self.ring.doorbells);
        if now >= self.next_check {
            self.look_for_silence(now);
        }
        count
    }

    /// Appends at most `budget` ended I/Os of `end` to `done`; returns how many.
    #[inline]
    pub fn take_ended(&mut self, end: usize, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let Some(end) = self.ends.get_mut(end) else { return 0 };
        let count = end.ended.len().min(budget);
        done.extend(end.ended.drain(..count));
        count
    }

    /// I/Os under way, all namespaces.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Commands that the controller has.
    #[must_use]
    pub fn in_device(&self) -> usize {
        self.in_device
    }

    /// Whether the core may sleep as far as this queue goes: completions come without a wake-up.
    #[must_use]
    pub fn rest(&self) -> Rest {
        if self.under_way() == 0 && !self.ring.wants_bell() { Rest::UntilWoken } else { Rest::Never }
    }

    /// Whether `end` has ended I/Os that were not taken.
    #[must_use]
    pub fn has_ended(&self, end: usize) -> bool {
        self.ends.get(end).is_some_and(|end| !end.ended.is_empty())
    }

    /// Its ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    fn complete(&mut self, cqe: &Cqe, now: Tick) -> Result<(), Garbage> {
        let cid = cqe.cid.get();
        let index = index_of(cid);
        let garbage = Garbage::Command { qid: self.ring.qid(), cid };
        let slot = self.slots.get_mut(usize::from(index)).ok_or(garbage)?;
        if !slot.is_in_device() || cid_of(index, slot.generation) != cid {
            return Err(garbage);
        }
        self.in_device -= 1;
        self.stats.in_device.set(u64::try_from(self.in_device).unwrap_or(0));
        if let Some(mate) = slot.mate {
            slot.state = SlotState::HalfDone;
            slot.status = *cqe;
            self.half_done(index, mate, now);
        } else if slot.state == SlotState::Difference {
            self.found_difference(index, cqe);
        } else {
            self.judged(index, cqe, now);
        }
        Ok(())
    }

    /// A command is through, and so is its mate.
    #[inline]
    fn judged(&mut self, index: u16, cqe: &Cqe, now: Tick) {
        let retries_max = self.rules.retries_max.min(TRIES_MAX);
        let slot = self.slot(index);
        let Some(op) = slot.io.as_ref().map(|io| io.op) else { return };
        match judge(op, cqe) {
            Verdict::Ended(IoStatus::Miscompare) => self.look_for_difference(index, now),
            Verdict::Retry(_, meaning) if slot.tries >= retries_max || slot.abandoned => {
                self.finish(index, meaning)
            }
            Verdict::Retry(delay, _) => self.wait_for_retry(index, delay, now),
            // We had it aborted because it took too long, not its owner.
            Verdict::Ended(IoStatus::Aborted) if slot.abort_asked && !slot.abandoned => {
                if slot.tries < retries_max && op != Op::CompareAndWrite {
                    self.wait_for_retry(index, 0, now);
                } else {
                    self.finish(index, IoStatus::TimedOut);
                }
            }
            Verdict::Ended(status) => self.finish(index, status),
        }
    }

    /// The I/O in `index` is through for good.
    #[inline]
    fn finish(&mut self, index: u16, status: IoStatus) {
        let slot = self.slot(index);
        let Some(mut io) = slot.io.take() else { return };
        if let Some(bounce) = slot.bounce.take()
            && io.op == Op::Read
            && status == IoStatus::Success
        {
            io.data.copy_in(0, &bounce);
        }
        let end = slot.end;
        slot.release();
        self.free.push(index);
        io.status = status;
        let end = self.end_mut(end);
        end.under_way -= 1;
        if end.open {
            end.ended.push_back(io);
        }
    }

    #[inline]
    fn slot(&mut self, index: u16) -> &mut Slot {
        #[expect(clippy::indexing_slicing, reason = "indexes come from `free` or were looked up")]
        &mut self.slots[usize::from(index)]
    }

    #[inline]
    fn end_mut(&mut self, end: usize) -> &mut End {
        #[expect(clippy::indexing_slicing, reason = "`open` returned it, and ends are never removed")]
        &mut self.ends[end]
    }
}

impl Drop for IoQueue {
    /// The controller writes to the commands' memory until it has completed them or has stopped.
    fn drop(&mut self) {
        if self.in_device == 0 {
            return;
        }
        for slot in self.slots.drain(..).filter(Slot::is_in_device) {
            #[expect(
                clippy::mem_forget,
                reason = "the controller may still write to it: better lost than reused"
            )]
            std::mem::forget(slot);
        }
        #[expect(clippy::mem_forget, reason = "as above")]
        std::mem::forget(std::mem::take(&mut self.lists));
    }
}
