//! One virtqueue on its reactor: takes requests out of the ring, gives them to the disk, puts the answers back.
//!
//! Invariants: a slot is free, or has exactly one request of the driver's, whose memory it keeps mapped; of a slot that is
//! not free, the [`Io`] is with the disk, in `blocked`, or in `later`. A queue of a broken device touches neither ring nor eventfds.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use penstock_bdev::{Busy, Io, IoFlags, IoStatus, Lba, Op, Sg};
use penstock_reactor::{Cx, Rest, Tick};
use penstock_spec::virtio::blk::{ID_BYTES, Status};

use super::{Backend, QueueKey, QueueStart, SessionShared};
use crate::coalesce::Pace;
use crate::memory::{DirtyLog, GuestMap, Held, Loan};
use crate::request::{self, Kind};
use crate::ring::{Chain, Head, Ring, RingError};
use crate::stats::QueueStats;

/// Requests taken from one queue in one turn at most.
const BUDGET: usize = 128;
/// Between looks at the eventfd of a queue that says it sleeps, in nanoseconds.
const CLEAR_NS: u64 = 50_000;
/// A disk that is not ready is asked again after so many nanoseconds,
const NOT_READY_PAUSE_NS: u64 = 10_000_000;
/// and for so many at most; hosts that come by other protocols are as patient by themselves.
const NOT_READY_NS_MAX: u64 = 30_000_000_000;

/// A request under way.
#[derive(Debug)]
struct Slot {
    head: Head,
    kind: Kind,
    /// Ranges that were begun.
    ranges_begun: u32,
    status_at: u64,
    writable: u32,
    loan: Loan,
    /// The list of ranges.
    payload: Sg,
    /// When the disk was first not ready for it.
    waits_since: Option<Tick>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Takes nothing more; ends when nothing is under way.
    Stopping,
    /// The driver broke the rules: the ring is not touched any more.
    Broken,
}

pub(super) struct Queue {
    pub(super) key: QueueKey,
    pub(super) session: Arc<SessionShared>,
    ring: Ring,
    chain: Chain,
    held: Rc<Held>,
    log: Option<Arc<DirtyLog>>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// What the disk has no room for.
    blocked: Option<Box<Io>>,
    /// What the disk was not ready for, and when to ask again; in order of time.
    later: VecDeque<(Tick, Box<Io>)>,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    state: State,
    enabled: bool,
    /// The driver was asked to kick.
    armed: bool,
    cleared_at: Tick,
    /// There are answers that the driver was not told of.
    untold: bool,
    /// Answers since the pace was asked.
    answered: u64,
    pace: Pace,
    stats: Arc<QueueStats>,
    stopped: Option<oneshot::Sender<u32>>,
}

impl Queue {
    /// Begins to serve a ring. What a driver has put there already is taken without a kick.
    pub(super) fn start(
        cx: &Cx,
        start: QueueStart,
        ring: Ring,
    ) -> Result<Self, penstock_reactor::ReactorError> {
        if let Some(kick) = &start.kick {
            cx.sleep_set().add(kick)?;
        }
        let slots = (0..start.size).map(|_| Slot::new()).collect();
        let mut queue = Self {
            key: start.key,
            session: start.session,
            ring,
            chain: Chain::new(),
            held: Rc::new(Held::new(&start.map)),
            log: start.log,
            slots,
            free: (0..start.size).rev().collect(),
            blocked: None,
            later: VecDeque::with_capacity(usize::from(start.size)),
            kick: start.kick,
            call: start.call,
            err: start.err,
            state: State::Running,
            enabled: start.enabled,
            armed: false,
            cleared_at: Tick::ZERO,
            untold: false,
            answered: 0,
            pace: Pace::default(),
            stats: start.stats,
            stopped: None,
        };
        queue.ring.set_log(queue.log.as_ref());
        queue.ring.set_kicks(false);
        Ok(queue)
    }

    /// Takes new requests, at most a budget of them; returns how many.
    #[inline]
    pub(super) fn take(&mut self, number: u16, backend: &mut Backend, now: Tick) -> usize {
        if self.session.is_broken() && self.state != State::Broken {
            self.break_off();
        }
        if let Some(io) = self.blocked.take() {
            self.submit(io, backend, now);
        }
        while self.blocked.is_none()
            && let Some((_, io)) = self.later.pop_front_if(|(due, _)| *due <= now)
        {
            self.submit(io, backend, now);
        }
        let mut count = 0;
        while count < BUDGET && self.takes() {
            let Some(slot) = self.free.last().copied() else {
                if self.ring.has_work() {
                    let size = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
                    self.fail(RingError::TooMany { size });
                }
                break;
            };
            match self.ring.pop(&self.held, &mut self.chain) {
                Ok(false) => break,
                Ok(true) => {
                    self.free.pop();
                    self.begin(slot, number, backend, now);
                }
                Err(error) => self.fail(error),
            }
            count += 1;
        }
        if count > 0 {
            self.stats.requests.add(u64::try_from(count).unwrap_or(0));
            if self.armed && self.state == State::Running {
                self.armed = false;
                self.ring.set_kicks(false);
            }
        }
        count
    }

    fn takes(&self) -> bool {
        self.state == State::Running && self.enabled && self.blocked.is_none()
    }

    fn begin(&mut self, at: u16, number: u16, backend: &mut Backend, now: Tick) {
        let mut io = backend.spare.pop().unwrap_or_else(Io::boxed);
        let tag = u64::from(number) << 16 | u64::from(at);
        let Some(slot) = self.slots.get_mut(usize::from(at)) else { unreachable!("a free slot is one") };
        slot.loan.begin(&self.held);
        slot.head = self.chain.head;
        slot.waits_since = None;
        let request = match request::parse(&self.chain, &slot.loan, &mut io.data, backend.geometry) {
            Ok(request) => request,
            Err(error) => {
                slot.loan.end(&mut io.data);
                self.free.push(at);
                backend.spare.push(io);
                return self.fail(error);
            }
        };
        slot.kind = request.kind;
        slot.status_at = request.status_at;
        slot.writable = request.writable;
        match request.kind {
            Kind::Transfer { op, lba, blocks } => {
                let durable = op == Op::Write && !self.session.writes_back();
                let flags = if durable { IoFlags::FUA } else { IoFlags::NONE };
                io.set(tag, op, flags, lba, blocks);
                self.submit(io, backend, now);
            }
            Kind::Flush => {
                io.set(tag, Op::Flush, IoFlags::NONE, Lba(0), 0);
                self.submit(io, backend, now);
            }
            Kind::Ranges { .. } => {
                std::mem::swap(&mut slot.payload, &mut io.data);
                slot.ranges_begun = 0;
                io.tag = tag;
                self.next_range(at, io, backend, now);
            }
            Kind::Id => {
                let mut id = [0; ID_BYTES];
                for (to, from) in id.iter_mut().zip(backend.id.as_bytes()) {
                    *to = *from;
                }
                io.data.copy_in(0, &id);
                self.finish(at, io, Status::OK, backend);
            }
            Kind::Answer(status) => self.finish(at, io, status, backend),
        }
    }

    fn submit(&mut self, io: Box<Io>, backend: &mut Backend, now: Tick) {
        let Some(channel) = &mut backend.channel else {
            // The disk is gone.
            let at = slot_of(&io);
            return self.finish(at, io, Status::IOERR, backend);
        };
        if self.session.exclusion.forbids(io.op) {
            let at = slot_of(&io);
            self.stats.conflicts.add(1);
            return self.finish(at, io, Status::IOERR, backend);
        }
        if let Err(Busy(io)) = channel.submit(io, now) {
            self.blocked = Some(io);
        }
    }

    /// Begins the next range of a slot's list, or ends the request.
    fn next_range(&mut self, at: u16, mut io: Box<Io>, backend: &mut Backend, now: Tick) {
        let Some(slot) = self.slots.get_mut(usize::from(at)) else { unreachable!("a tag is a slot's") };
        let Kind::Ranges { op, count } = slot.kind else { unreachable!("only lists have ranges") };
        if slot.ranges_begun == count {
            return self.finish(at, io, Status::OK, backend);
        }
        match request::range_at(&slot.payload, slot.ranges_begun, op, backend.geometry) {
            Ok((lba, blocks, flags)) => {
                slot.ranges_begun += 1;
                let durable = !self.session.writes_back();
                let flags = if durable { flags.with(IoFlags::FUA) } else { flags };
                io.set(io.tag, op, flags, lba, blocks);
                self.submit(io, backend, now);
            }
            Err(status) => self.finish(at, io, status, backend),
        }
    }

    /// An I/O of this queue has come back.
    #[inline]
    pub(super) fn completed(&mut self, io: Box<Io>, backend: &mut Backend, now: Tick) {
        let at = slot_of(&io);
        let Some(slot) = self.slots.get_mut(usize::from(at)) else { unreachable!("a tag is a slot's") };
        if io.status == IoStatus::NotReady && self.state != State::Broken {
            let since = *slot.waits_since.get_or_insert(now);
            if now.ns_since(since) < NOT_READY_NS_MAX {
                // A guest knows no answer that says "again".
                return self.later.push_back((now.plus_ns(NOT_READY_PAUSE_NS), io));
            }
        }
        let status = request::status_of(io.status);
        if status == Status::OK && matches!(slot.kind, Kind::Ranges { .. }) && self.state != State::Broken {
            return self.next_range(at, io, backend, now);
        }
        self.finish(at, io, status, backend);
    }

    /// Answers a request and frees its slot.
    #[inline]
    fn finish(&mut self, at: u16, mut io: Box<Io>, status: Status, backend: &mut Backend) {
        let Some(slot) = self.slots.get_mut(usize::from(at)) else { unreachable!("a tag is a slot's") };
        if self.state != State::Broken
            && let Some(held) = slot.loan.held()
        {
            held.write_byte(slot.status_at, status.0);
            if let Some(log) = &self.log {
                log.mark(slot.status_at, 1);
                if matches!(slot.kind, Kind::Transfer { op: Op::Read, .. } | Kind::Id) {
                    mark_data(log, held, &io.data);
                }
            }
            self.ring.push(slot.head, slot.writable);
            self.untold = true;
            self.answered += 1;
        }
        slot.payload.clear();
        slot.loan.end(&mut io.data);
        self.free.push(at);
        backend.spare.push(io);
        if status != Status::OK {
            self.stats.errors.add(1);
        }
    }

    /// Tells the driver of answers, if it wants to know and is not told too often.
    #[inline]
    pub(super) fn signal(&mut self, now: Tick) {
        if !self.untold || self.state == State::Broken {
            return;
        }
        let is_last = self.state == State::Stopping && self.in_flight() == 0;
        let requests = std::mem::take(&mut self.answered);
        if !self.pace.may_signal(&self.session.coalescing, requests, now) && !is_last {
            return;
        }
        self.untold = false;
        if self.ring.wants_signal() {
            self.call();
        }
    }

    fn call(&self) {
        if let Some(call) = &self.call {
            self.stats.signals.add(1);
            notify(call);
        }
    }

    /// Ends a queue that is to stop, once nothing is under way; true when it has ended.
    pub(super) fn ends(&mut self, cx: &Cx) -> bool {
        if self.stopped.is_none() || self.in_flight() > 0 {
            return false;
        }
        self.close(cx);
        if let Some(stopped) = self.stopped.take() {
            stopped.send(self.ring.base()).ok();
        }
        true
    }

    fn close(&mut self, cx: &Cx) {
        if let Some(kick) = self.kick.take() {
            cx.sleep_set().remove(&kick);
        }
    }

    /// Takes nothing more; `stopped` is told where the ring stands when nothing is under way.
    pub(super) fn stop(&mut self, stopped: oneshot::Sender<u32>) {
        if self.state == State::Running {
            self.state = State::Stopping;
        }
        self.stopped = Some(stopped);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn set_map(&mut self, map: &Arc<GuestMap>) {
        self.held = Rc::new(Held::new(map));
        if !self.ring.move_to(map) {
            return self.fail(RingError::Memory { addr: 0, len: 0 });
        }
        self.ring.set_log(self.log.as_ref());
    }

    pub(super) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
        self.ring.set_log(self.log.as_ref());
    }

    /// Tells by another eventfd from now on; at once, as what the old one was told may be lost.
    pub(super) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        if self.state != State::Broken {
            self.call();
        }
    }

    pub(super) fn set_err(&mut self, err: Option<OwnedFd>) {
        self.err = err;
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Whether the core may sleep as far as this queue goes; if so, the driver is asked to kick.
    pub(super) fn rest(&mut self, now: Tick) -> Rest {
        let rest = self.rest_of_ring(now);
        match (rest, self.later.front()) {
            (Rest::UntilWoken, Some((due, _))) => Rest::Until(*due),
            (Rest::Until(other), Some((due, _))) => Rest::Until(other.min(*due)),
            _ => rest,
        }
    }

    fn rest_of_ring(&mut self, now: Tick) -> Rest {
        if self.blocked.is_some() {
            return Rest::Never;
        }
        if self.untold && self.state != State::Broken {
            return Rest::Until(self.pace.next_signal());
        }
        if self.state != State::Running || !self.enabled {
            return if self.stopped.is_some() && self.in_flight() == 0 {
                Rest::Never
            } else {
                Rest::UntilWoken
            };
        }
        let Some(kick) = &self.kick else { return Rest::Never };
        if !self.armed || now.ns_since(self.cleared_at) > CLEAR_NS {
            // First the eventfd, then the ring: a kick that is cleared here came before the look.
            clear(kick);
            self.stats.arms.add(u64::from(!self.armed));
            self.cleared_at = now;
            self.armed = true;
            if self.ring.set_kicks(true) { Rest::Never } else { Rest::UntilWoken }
        } else if self.ring.has_work() {
            Rest::Never
        } else {
            Rest::UntilWoken
        }
    }

    #[cold]
    fn fail(&mut self, error: RingError) {
        if self.session.set_broken(error) {
            let (controller, queue) = (self.session.controller.as_str(), self.key.index);
            tracing::warn!(controller, queue, %error, "a guest broke the rules of its ring; its device is broken");
        }
        self.break_off();
    }

    #[cold]
    fn break_off(&mut self) {
        self.state = State::Broken;
        if let Some(err) = &self.err {
            notify(err);
        }
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            head: Head::default(),
            kind: Kind::Flush,
            ranges_begun: 0,
            status_at: 0,
            writable: 0,
            loan: Loan::default(),
            payload: Sg::new(),
            waits_since: None,
        }
    }
}

fn slot_of(io: &Io) -> u16 {
    u16::try_from(io.tag & 0xffff).unwrap_or(0)
}

/// Notes in the log what a device has filled.
#[cold]
fn mark_data(log: &DirtyLog, held: &Held, data: &Sg) {
    for buf in data.iter() {
        if let Some(gpa) = held.gpa_of(buf.as_ptr()) {
            log.mark(gpa, u64::try_from(buf.len()).unwrap_or(u64::MAX));
        }
    }
}

/// Adds one to an eventfd that another process gave us. It cannot block: it was made non-blocking.
fn notify(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_le_bytes()).ok();
}

fn clear(fd: &OwnedFd) {
    let mut count = [0_u8; 8];
    rustix::io::read(fd, &mut count).ok();
}
