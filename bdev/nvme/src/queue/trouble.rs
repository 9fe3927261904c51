//! What does not go well: retries, miscompares, silence, aborts, resets, the end.

use penstock_bdev::{Busy, Io, IoStatus, Op};
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;
use penstock_spec::nvme::Cqe;

use super::slot::{SlotState, cid_of};
use super::{IoQueue, Notice, OnTimeout, State, Trouble};
use crate::admin::Shadows;

/// How often the commands' ages are looked at: so many times within a time-out.
const LOOKS_PER_TIMEOUT: u64 = 8;
/// But not more often than this, in nanoseconds.
const LOOK_NS_MIN: u64 = 1_000_000;

impl IoQueue {
    /// Nothing more goes to the controller, and nothing is taken from it, until [`Self::resume`].
    pub fn pause(&mut self) {
        if self.state == State::Live {
            self.state = State::Paused;
        }
    }

    /// The controller has stopped: the rings are as new, and whatever it had is to be done again, or ends if it was
    /// abandoned, has been tried too often, or might have another effect the second time.
    pub fn rewind(&mut self) {
        self.ring.rewind();
        self.in_device = 0;
        self.stats.in_device.set(0);
        self.waiting.clear();
        let retries_max = self.rules.retries_max.min(super::TRIES_MAX);
        for index in self.used() {
            let slot = self.slot(index);
            let Some(op) = slot.io.as_ref().map(|io| io.op) else {
                // The second half of a pair goes with the first, and begins anew with it.
                self.release_second(index);
                continue;
            };
            slot.mate = None;
            let differs = slot.state == SlotState::Difference;
            let replayed = !matches!(slot.state, SlotState::Waiting(_));
            slot.tries = slot.tries.saturating_add(u8::from(replayed));
            if differs {
                // Where they differ was only to be looked up.
                self.finish(index, IoStatus::Miscompare);
            } else if slot.abandoned {
                self.finish(index, IoStatus::Aborted);
            } else if replayed && (slot.tries > retries_max || op == Op::CompareAndWrite) {
                self.finish(index, IoStatus::TimedOut);
            } else {
                slot.state = SlotState::Waiting(Tick::ZERO);
                // Data may have to be moved again; what it read is worth nothing.
                slot.bounce = None;
                self.waiting.push_back(index);
                self.stats.replays.add(u64::from(replayed));
            }
        }
    }

    /// The controller serves again, perhaps with shadow doorbells.
    pub fn resume(&mut self, shadows: Shadows, now: Tick) {
        if self.state == State::Paused {
            self.state = State::Live;
            self.ring.set_shadows(shadows);
            self.retry(now);
            self.ring.bell();
        }
    }

    /// The controller has stopped for good, or is gone: everything ends with `status`, now and from now on.
    pub fn end_all(&mut self, status: IoStatus) {
        self.state = State::Ended(status);
        self.in_device = 0;
        self.stats.in_device.set(0);
        self.waiting.clear();
        for index in self.used() {
            if self.slot(index).io.is_some() {
                self.finish(index, status);
            } else {
                self.release_second(index);
            }
        }
    }

    /// After [`Self::end_all`]: the controller is there again, with fresh rings.
    pub fn revive(&mut self) {
        if matches!(self.state, State::Ended(_)) {
            self.ring.rewind();
            self.state = State::Paused;
        }
    }

    /// Asks for the end of the I/O `tag` of `end`. It comes out in any case. Returns whether that was taken on.
    pub fn abort(&mut self, end: usize, tag: u64) -> bool {
        let is_it = |slot: &super::Slot| slot.end == end && slot.io.as_ref().is_some_and(|io| io.tag == tag);
        let found = self.slots.iter().position(is_it).and_then(|index| u16::try_from(index).ok());
        found.is_some_and(|index| self.abort_slot(index))
    }

    /// Asks for the end of everything of `end`.
    pub fn abort_all(&mut self, end: usize) {
        for index in self.used() {
            let slot = self.slot(index);
            if slot.end == end && slot.io.is_some() {
                self.abort_slot(index);
            }
        }
    }

    fn abort_slot(&mut self, index: u16) -> bool {
        let qid = self.ring.qid();
        let slot = self.slot(index);
        slot.abandoned = true;
        match slot.state {
            SlotState::Waiting(_) => {
                self.waiting.retain(|other| *other != index);
                self.finish(index, IoStatus::Aborted);
                true
            }
            SlotState::InDevice | SlotState::Difference => {
                let cid = cid_of(index, slot.generation);
                (self.notify)(Notice::Abort { qid, cid })
            }
            SlotState::HalfDone | SlotState::Free => false,
        }
    }

    #[cold]
    pub(super) fn submit_to_a_dead_end(&mut self, end: usize, mut io: Box<Io>) -> Result<(), Busy> {
        let State::Ended(status) = self.state else { return Err(Busy(io)) };
        io.status = status;
        self.end_mut(end).ended.push_back(io);
        Ok(())
    }

    /// Gives the controller what waits and may go; the rest goes on waiting.
    #[cold]
    pub(super) fn retry(&mut self, now: Tick) {
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            let slot = self.slot(index);
            let is_due = matches!(slot.state, SlotState::Waiting(due) if due <= now);
            if !is_due || !self.issue(index, now) {
                self.waiting.push_back(index);
            }
        }
    }

    #[cold]
    pub(super) fn wait_for_retry(&mut self, index: u16, delay: u8, now: Tick) {
        let delays = self.rules.retry_delays_ns;
        let delay_ns = usize::from(delay).checked_sub(1).and_then(|at| delays.get(at)).copied().unwrap_or(0);
        let slot = self.slot(index);
        slot.tries = slot.tries.saturating_add(1);
        slot.state = SlotState::Waiting(now.plus_ns(delay_ns));
        slot.bounce = None;
        slot.next_generation();
        self.waiting.push_back(index);
        self.stats.retries.add(1);
    }

    /// One half of a fused pair is through.
    #[cold]
    pub(super) fn half_done(&mut self, index: u16, mate: u16, now: Tick) {
        if self.slot(mate).state != SlotState::HalfDone {
            return;
        }
        let (first, second) = if self.slot(index).io.is_some() { (index, mate) } else { (mate, index) };
        let (compare, write) = (self.slot(first).status, self.slot(second).status);
        self.release_second(second);
        self.slot(first).mate = None;
        // Where the compare failed, the write was only aborted for it.
        let decisive = if compare.status().is_success() { write } else { compare };
        self.judged(first, &decisive, now);
    }

    /// A compare failed: the blocks are read to say where.
    #[cold]
    pub(super) fn look_for_difference(&mut self, index: u16, now: Tick) {
        let len = self.slot(index).io.as_ref().map_or(0, |io| match io.op {
            Op::CompareAndWrite => io.data.len_bytes() / 2,
            _ => io.data.len_bytes(),
        });
        self.slot(index).bounce = None;
        let read = Buf::alloc(len).is_some_and(|buf| self.issue_difference_read(index, buf, now));
        if !read {
            // No memory for it: that they differ is what counts.
            self.finish(index, IoStatus::Miscompare);
        }
    }

    #[cold]
    pub(super) fn found_difference(&mut self, index: u16, cqe: &Cqe) {
        let slot = self.slot(index);
        if let (Some(found), Some(io)) = (slot.bounce.take(), slot.io.as_mut())
            && cqe.status().is_success()
        {
            // Others may have written since; then they differ nowhere, and 0 is as good an answer as any.
            let offset = io.data.first_difference(0, &found).unwrap_or(0);
            io.result = u64::try_from(offset).unwrap_or(0);
        }
        self.finish(index, IoStatus::Miscompare);
    }

    #[cold]
    pub(super) fn look_for_silence(&mut self, now: Tick) {
        let timeout_ns = self.rules.timeout_ns;
        if timeout_ns == 0 || self.rules.on_timeout == OnTimeout::Nothing {
            self.next_check = Tick::NEVER;
            return;
        }
        self.next_check = now.plus_ns((timeout_ns / LOOKS_PER_TIMEOUT).max(LOOK_NS_MIN));
        let qid = self.ring.qid();
        for index in self.used() {
            let on_timeout = self.rules.on_timeout;
            let slot = self.slot(index);
            let age_ns = now.ns_since(slot.since);
            if !slot.is_in_device() || age_ns < timeout_ns {
                continue;
            }
            if on_timeout == OnTimeout::Abort && !slot.abort_asked {
                // The abort has as long as the command had; whatever comes of it, the I/O may be tried again.
                slot.abort_asked = true;
                slot.since = now;
                let cid = cid_of(index, slot.generation);
                self.stats.timeouts.add(1);
                (self.notify)(Notice::Abort { qid, cid });
            } else {
                self.stats.timeouts.add(u64::from(on_timeout == OnTimeout::Reset));
                self.fall_out(Trouble::Silence { qid, ms: age_ns / 1_000_000 });
                return;
            }
        }
    }

    /// The controller cannot be worked with any more: it has to be reset, and until then it is left alone.
    #[cold]
    pub(super) fn fall_out(&mut self, why: Trouble) {
        self.state = State::Paused;
        let qid = self.ring.qid();
        (self.notify)(Notice::Reset { qid, why });
    }

    fn release_second(&mut self, index: u16) {
        self.slot(index).release();
        self.free.push(index);
    }

    /// The slots in use, as of now.
    fn used(&self) -> Vec<u16> {
        let used = self.slots.iter().zip(0_u16..).filter(|(slot, _)| slot.state != SlotState::Free);
        used.map(|(_, index)| index).collect()
    }
}
