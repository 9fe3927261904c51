//! A core's way to a bdev, as its users see it: checks, statistics, ceilings, locks, splitting, state.
//!
//! ```text
//!   submit ─► check ─► fits as it is, no gate shut? ── yes ─► module          (the fast path: nothing is stored here)
//!                │ wrong            │ no
//!                ▼                  ▼
//!              ended ◄── QosQueue ─► waiting ─► module, or a Parent whose pieces go there
//! ```
//!
//! Invariants: an I/O is in exactly one of: the module, `qos`, `waiting`, a parent, `resetting`, `ended`; what waits is
//! tried again in every `poll`; each I/O leaves through `poll` once.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use penstock_reactor::{Cx, Rest, Tick};

use super::parent::Parents;
use super::{Busy, Channel};
use crate::bdev::{GATE_LOCKS, GATE_QOS, Shared};
use crate::descriptor::{Descriptor, OpenMode};
use crate::io::{Io, IoStatus, Mark, Op};
use crate::lock::{Turn, Writer};
use crate::qos::{self, QosQueue};
use crate::stat::ChannelStats;

/// I/Os of one channel that wait inside at most; then it is `Busy`.
pub(super) const WAITING_MAX: usize = 1024;
/// Waiting I/Os that one `poll` tries again at most.
const RETRIES_MAX: usize = 64;

/// A module's channel with everything that is the same for all of them.
pub struct BdevChannel {
    pub(super) inner: Box<dyn Channel>,
    pub(super) shared: Arc<Shared>,
    stats: Arc<ChannelStats>,
    /// This bdev's place in [`Io::marks`].
    pub(super) level: usize,
    /// I/Os that ended here.
    pub(super) ended: VecDeque<Box<Io>>,
    /// I/Os that cannot go on yet.
    waiting: VecDeque<Box<Io>>,
    qos: QosQueue,
    pub(super) parents: Parents,
    resetting: Option<Box<Io>>,
    /// What was under way when the bdev went was asked to end.
    told_of_removal: bool,
    in_flight: usize,
    /// I/Os and pieces in the module.
    pub(super) below: usize,
    writer: Rc<Writer>,
    pub(super) cx: Cx,
    descriptor: Descriptor,
}

impl std::fmt::Debug for BdevChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BdevChannel").field("bdev", &self.shared.name()).finish_non_exhaustive()
    }
}

impl BdevChannel {
    pub(crate) fn new(descriptor: Descriptor, inner: Box<dyn Channel>, cx: &Cx) -> Self {
        let shared = Arc::clone(descriptor.shared());
        Self {
            inner,
            stats: shared.stats_of(cx.id()),
            level: shared.level(),
            ended: VecDeque::with_capacity(WAITING_MAX),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            qos: QosQueue::new(&shared.qos, WAITING_MAX),
            parents: Parents::new(),
            resetting: None,
            told_of_removal: false,
            in_flight: 0,
            below: 0,
            writer: shared.locks.add_writer(cx),
            cx: cx.clone(),
            shared,
            descriptor,
        }
    }

    /// The channel, with statistics of its own that nobody reads.
    pub(crate) fn uncounted(mut self) -> Self {
        self.stats = Arc::default();
        self
    }

    /// Takes `io`. Whatever is wrong with it is said by its status, out of [`Self::poll`].
    ///
    /// # Errors
    /// [`Busy`], with the I/O, when the device's queue and the one in front of it are full: to be tried again after
    /// the next completion.
    #[inline]
    pub fn submit(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Busy> {
        io.submitted = now;
        io.status = IoStatus::Pending;
        *self.mark(&mut io) = Mark { submitted: now, ..Mark::NONE };
        if let Err(status) = self.check(&io) {
            io.status = status;
            self.ended.push_back(io);
        } else {
            self.begin_turn(&mut io);
            if self.shared.gates() == 0 && self.resetting.is_none() && self.fits(&io) {
                if let Err(io) = self.pass_down(io, now) {
                    // The module's queue is full, perhaps of other channels' I/Os.
                    self.wait(io)?;
                }
            } else {
                self.end_turn(&mut io);
                self.submit_slowly(io, now)?;
            }
        }
        self.in_flight += 1;
        self.stats.in_flight.add(1);
        self.stats.in_flight_max.raise_to(self.stats.in_flight.read());
        Ok(())
    }

    /// Appends at most `budget` ended I/Os to `done`; returns how many.
    #[inline]
    pub fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let before = done.len();
        if self.below > 0 {
            self.inner.poll(now, budget, done);
            self.take_back(now, before, done);
        }
        if self.has_slow_work() {
            self.go_on(now);
        }
        while done.len() - before < budget
            && let Some(io) = self.ended.pop_front()
        {
            done.push(io);
        }
        let count = done.len() - before;
        for io in done.iter_mut().skip(before) {
            self.count(io, now);
        }
        if count > 0 {
            self.in_flight -= count;
            let in_flight = self.stats.in_flight.read();
            self.stats.in_flight.set(in_flight.saturating_sub(u64::try_from(count).unwrap_or(0)));
        }
        count
    }

    /// Tries to end the I/O `tag` early; it comes out of [`Self::poll`] in any case. Returns whether that was taken on.
    pub fn abort(&mut self, tag: u64) -> bool {
        let waiting = self.waiting.iter().position(|io| io.tag == tag);
        let found = waiting.and_then(|at| self.waiting.remove(at)).or_else(|| self.qos.remove(tag));
        if let Some(io) = found {
            self.end(io, IoStatus::Aborted);
            return true;
        }
        self.abort_parent(tag) || self.inner.abort(tag)
    }

    /// Ends early what can be ended early of everything under way; each completes out of [`Self::poll`]. For filters
    /// that are reset themselves; others submit an [`Op::Reset`].
    pub fn abort_all(&mut self) {
        self.end_all_waiting(IoStatus::Aborted);
        self.abort_parents(IoStatus::Aborted);
        self.inner.reset();
    }

    /// I/Os under way.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the core may sleep as far as this channel goes.
    #[must_use]
    pub fn rest(&self, now: Tick) -> Rest {
        if self.in_flight == 0 {
            return Rest::UntilWoken;
        }
        let has_work = !self.ended.is_empty() || !self.waiting.is_empty();
        if has_work || (self.resetting.is_some() && self.below == 0) || self.parents.want_polling() {
            return Rest::Never;
        }
        if self.shared.is_removed() && !self.told_of_removal {
            return Rest::Never;
        }
        let inner = if self.below > 0 { self.inner.rest(now) } else { Rest::UntilWoken };
        match (inner, self.qos.rest(now)) {
            (Rest::Never, _) | (_, Rest::Never) => Rest::Never,
            (Rest::Until(a), Rest::Until(b)) => Rest::Until(a.min(b)),
            (Rest::UntilWoken, other) | (other, Rest::UntilWoken) => other,
        }
    }

    /// Name, geometry, state and statistics of the bdev.
    #[inline]
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What cannot be done, and why.
    #[inline]
    fn check(&self, io: &Io) -> Result<(), IoStatus> {
        if self.shared.is_removed() {
            return Err(IoStatus::Gone);
        }
        if io.op.is_write() && self.descriptor.mode() == OpenMode::ReadOnly {
            return Err(IoStatus::WriteProtected);
        }
        if !self.shared.caps().supports(io.op) {
            return Err(IoStatus::Unsupported);
        }
        if !io.op.has_range() {
            return Ok(());
        }
        let device_blocks = self.shared.blocks();
        let in_range =
            |first: u64| first.checked_add(u64::from(io.blocks)).is_some_and(|end| end <= device_blocks);
        if io.blocks == 0 || !in_range(io.lba.0) {
            return Err(IoStatus::OutOfRange);
        }
        if io.op == Op::Copy
            && (!in_range(io.src_lba.0) || io.src_lba.0.abs_diff(io.lba.0) < u64::from(io.blocks))
        {
            return Err(IoStatus::OutOfRange);
        }
        let bytes = u64::from(io.blocks) * u64::from(self.shared.block_bytes());
        let wanted = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_mul(io.op.data_factor()));
        if io.op.data_factor() > 0 && wanted != Some(io.data.len_bytes()) {
            let late = io.op == Op::Read && io.data.is_empty() && self.shared.caps().late_buffers;
            return if late { Ok(()) } else { Err(IoStatus::BadLength) };
        }
        Ok(())
    }

    /// Whether the module takes `io` as it is.
    #[inline]
    fn fits(&self, io: &Io) -> bool {
        let caps = self.shared.caps();
        if !caps.has(io.op) || io.op == Op::Reset {
            return false;
        }
        if !io.op.has_range() {
            return true;
        }
        let short = caps.io_blocks_max == 0 || io.blocks <= caps.io_blocks_max;
        // The boundary is a power of two.
        let boundary = u64::from(caps.boundary_blocks);
        let inside = boundary == 0 || (io.lba.0 & (boundary - 1)) + u64::from(io.blocks) <= boundary;
        short && (inside || self.boundary_blocks(io.op) == 0)
    }

    /// The boundary that an operation must not cross; 0: none.
    #[inline]
    pub(super) fn boundary_blocks(&self, op: Op) -> u64 {
        match op {
            Op::Unmap | Op::WriteZeroes if self.shared.caps().has(op) => 0,
            _ => u64::from(self.shared.caps().boundary_blocks),
        }
    }

    #[inline]
    pub(super) fn mark<'a>(&self, io: &'a mut Io) -> &'a mut Mark {
        #[expect(clippy::indexing_slicing, reason = "Shared::new refuses levels from LEVELS_MAX on")]
        &mut io.marks[self.level]
    }

    /// Counts a write, before it is asked whether anything is locked.
    #[inline]
    fn begin_turn(&self, io: &mut Io) {
        if io.op.is_write() {
            self.mark(io).turn = self.writer.begin();
        }
    }

    /// Gives the module an I/O that is counted; it is counted no more where it comes back.
    #[inline]
    fn pass_down(&mut self, io: Box<Io>, now: Tick) -> Result<(), Box<Io>> {
        match self.inner.submit(io, now) {
            Ok(()) => {
                self.below += 1;
                Ok(())
            }
            Err(Busy(mut io)) => {
                self.end_turn(&mut io);
                Err(io)
            }
        }
    }

    #[inline]
    fn end_turn(&self, io: &mut Io) {
        let turn = std::mem::replace(&mut self.mark(io).turn, Turn::None);
        self.writer.end(turn);
    }

    #[cold]
    fn wait(&mut self, io: Box<Io>) -> Result<(), Busy> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(Busy(io));
        }
        self.waiting.push_back(io);
        Ok(())
    }

    #[cold]
    fn submit_slowly(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        if self.waiting.len() + self.qos.len() >= WAITING_MAX {
            return Err(Busy(io));
        }
        if io.op == Op::Reset && self.resetting.is_none() {
            self.begin_reset(io);
        } else if self.shared.gates() & GATE_QOS != 0 && qos::is_limited(io.op) {
            self.qos.push(io, &self.shared.qos, now);
        } else if io.op == Op::Flush && !self.shared.caps().has(Op::Flush) {
            self.end(io, IoStatus::Success);
        } else {
            self.waiting.push_back(io);
        }
        // What can begin begins now, not one turn later.
        self.go_on(now);
        Ok(())
    }

    /// Sorts what came from the module since `before`: pieces go to their parents.
    #[inline]
    fn take_back(&mut self, now: Tick, before: usize, done: &mut Vec<Box<Io>>) {
        self.below -= done.len() - before;
        let mut index = before;
        while let Some(io) = done.get_mut(index) {
            assert!(io.status != IoStatus::Pending, "an I/O came back without a status");
            self.end_turn(io);
            if self.mark(io).parent == Mark::NO_PARENT {
                index += 1;
            } else {
                let piece = done.swap_remove(index);
                self.piece_ended(piece, now);
            }
        }
    }

    #[inline]
    fn has_slow_work(&self) -> bool {
        self.shared.gates() != 0
            || !self.waiting.is_empty()
            || self.qos.len() > 0
            || !self.parents.is_empty()
            || self.resetting.is_some()
    }

    /// Does whatever has become possible.
    #[cold]
    fn go_on(&mut self, now: Tick) {
        if self.shared.is_removed() {
            self.end_all_waiting(IoStatus::Gone);
            if !self.told_of_removal {
                self.told_of_removal = true;
                self.inner.reset();
            }
        }
        self.run_parents(now);
        if self.resetting.is_some() {
            if self.below == 0
                && self.parents.is_empty()
                && let Some(io) = self.resetting.take()
            {
                let status = if self.shared.is_removed() { IoStatus::Gone } else { IoStatus::Success };
                self.end(io, status);
            }
            return;
        }
        while self.waiting.len() < WAITING_MAX
            && let Some(io) = self.qos.pop(&self.shared, now)
        {
            self.waiting.push_back(io);
        }
        for _ in 0..self.waiting.len().min(RETRIES_MAX) {
            let Some(io) = self.waiting.pop_front() else { break };
            if let Err(io) = self.begin(io, now) {
                self.waiting.push_back(io);
            }
            if self.resetting.is_some() {
                break;
            }
        }
    }

    /// Begins a waiting I/O, or hands it back.
    fn begin(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Box<Io>> {
        if io.op == Op::Reset {
            self.begin_reset(io);
            return Ok(());
        }
        self.begin_turn(&mut io);
        let must_ask = io.op.is_write() && io.op != Op::CompareAndWrite;
        if must_ask && self.shared.gates() & GATE_LOCKS != 0 {
            let end = io.lba.0.saturating_add(u64::from(io.blocks));
            if self.shared.locks.forbid(io.lba.0, end) {
                self.end_turn(&mut io);
                return Err(io);
            }
        }
        if self.fits(&io) {
            return self.pass_down(io, now);
        }
        if !must_ask || !self.parents.has_room() {
            // A compare-and-write locks its range, and would wait for itself.
            self.end_turn(&mut io);
        }
        if !self.parents.has_room() {
            return Err(io);
        }
        self.begin_parent(io, now);
        Ok(())
    }

    fn begin_reset(&mut self, io: Box<Io>) {
        self.abort_all();
        self.resetting = Some(io);
    }

    fn end_all_waiting(&mut self, status: IoStatus) {
        for mut io in self.qos.drain().chain(self.waiting.drain(..)) {
            io.status = status;
            self.ended.push_back(io);
        }
        if status == IoStatus::Gone {
            self.abort_parents(status);
        }
    }

    /// Ends an I/O that is not in the module.
    pub(super) fn end(&mut self, mut io: Box<Io>, status: IoStatus) {
        self.end_turn(&mut io);
        io.status = status;
        self.ended.push_back(io);
    }

    #[inline]
    fn count(&self, io: &mut Io, now: Tick) {
        io.submitted = self.mark(io).submitted;
        let stats = self.stats.op(io.op);
        let latency_ns = now.ns_since(io.submitted);
        stats.ops.add(1);
        if io.status == IoStatus::Success {
            stats.bytes.add(u64::from(io.blocks) * u64::from(self.shared.block_bytes()));
        } else {
            stats.errors.add(1);
        }
        stats.latency_ns_sum.add(latency_ns);
        stats.latency_ns_max.raise_to(latency_ns);
        stats.latency_ns.record(latency_ns);
    }
}

impl Drop for BdevChannel {
    fn drop(&mut self) {
        self.give_up_parents();
        self.qos.close(&self.shared.qos);
        self.shared.locks.remove_writer(&self.writer, &self.cx);
    }
}
