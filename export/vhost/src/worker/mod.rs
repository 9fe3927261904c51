//! The queues of one reactor, and the disks behind them.
//!
//! ```text
//!   control thread ── start / update / stop (messages) ──► Worker (one per reactor, one poller)
//!                                                            └ Disk: Backend (BdevChannel, spare Ios) + its Queues
//!   a turn: for each disk: queues take requests ─► channel ─► queues answer ─► one interrupt a queue, if wanted
//! ```

mod queue;

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures_channel::oneshot;
use penstock_bdev::{BdevChannel, BdevError, Descriptor, Io, Op};
use penstock_reactor::{Cx, Poller, ReactorError, Rest, Tick};

use crate::coalesce::Coalescing;
use crate::exclusion::Exclusion;
use crate::memory::{DirtyLog, GuestMap};
use crate::request::Geometry;
use crate::ring::{Ring, RingError, RingSetup};
use crate::stats::QueueStats;
use queue::Queue;

/// Completions taken from one disk in one turn at most.
const COMPLETIONS_MAX: usize = 256;

/// Names a queue of one frontend's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueKey {
    pub(crate) session: u64,
    pub(crate) index: u16,
}

/// What all queues of one frontend share with the control thread.
#[derive(Debug)]
pub(crate) struct SessionShared {
    /// Name of the controller, for the log.
    pub(crate) controller: String,
    pub(crate) coalescing: Arc<Coalescing>,
    pub(crate) exclusion: Arc<Exclusion>,
    broken: AtomicBool,
    error: OnceLock<RingError>,
    /// Writes are durable when they complete.
    write_through: AtomicBool,
}

impl SessionShared {
    pub(crate) fn new(controller: String, coalescing: Arc<Coalescing>, exclusion: Arc<Exclusion>) -> Self {
        Self {
            controller,
            coalescing,
            exclusion,
            broken: AtomicBool::new(false),
            error: OnceLock::new(),
            write_through: AtomicBool::new(false),
        }
    }

    /// Whether the driver has broken the rules.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// How it did first.
    pub(crate) fn error(&self) -> Option<RingError> {
        self.error.get().copied()
    }

    /// Returns whether it is news.
    fn set_broken(&self, error: RingError) -> bool {
        let is_first = self.error.set(error).is_ok();
        self.broken.store(true, Ordering::Relaxed);
        is_first
    }

    #[inline]
    pub(crate) fn writes_back(&self) -> bool {
        !self.write_through.load(Ordering::Relaxed)
    }

    pub(crate) fn set_writes_back(&self, on: bool) {
        self.write_through.store(!on, Ordering::Relaxed);
    }
}

/// A queue to be served.
#[derive(Debug)]
pub(crate) struct QueueStart {
    pub(crate) key: QueueKey,
    pub(crate) session: Arc<SessionShared>,
    /// The disk; `None` where it is gone.
    pub(crate) descriptor: Option<Descriptor>,
    /// Which controller, so that its queues on one reactor share a channel.
    pub(crate) controller: u64,
    pub(crate) setup: RingSetup,
    pub(crate) size: u16,
    pub(crate) map: Arc<GuestMap>,
    pub(crate) log: Option<Arc<DirtyLog>>,
    pub(crate) kick: Option<OwnedFd>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) err: Option<OwnedFd>,
    pub(crate) enabled: bool,
    pub(crate) stats: Arc<QueueStats>,
}

/// A change of a queue that is served.
#[derive(Debug)]
pub(crate) enum Update {
    Map(Arc<GuestMap>),
    Log(Option<Arc<DirtyLog>>),
    Call(Option<OwnedFd>),
    Err(Option<OwnedFd>),
    Enabled(bool),
}

/// Why a queue cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The ring is not as it must be.
    #[error("its ring is not usable")]
    Ring(#[from] RingError),
    /// The disk cannot be opened on the reactor.
    #[error("the disk cannot be opened on the reactor")]
    Bdev(#[from] BdevError),
    /// The reactor has no room for its eventfd.
    #[error("the reactor cannot watch its eventfd")]
    Reactor(#[from] ReactorError),
}

/// A disk as the queues of one reactor use it.
struct Backend {
    channel: Option<BdevChannel>,
    /// Ios that wait to be used again.
    spare: Vec<Box<Io>>,
    geometry: Geometry,
    id: String,
}

struct Disk {
    controller: u64,
    backend: Backend,
    queues: Vec<Option<Queue>>,
    done: Vec<Box<Io>>,
    /// Told when the channel is closed.
    closing: Vec<oneshot::Sender<()>>,
}

struct Worker {
    disks: Vec<Disk>,
}

/// One reactor's queues, as its service.
pub(crate) struct WorkerCell(RefCell<Worker>);

impl WorkerCell {
    /// The reactor's; made, with its poller, on first use.
    pub(crate) fn of(cx: &Cx) -> Rc<Self> {
        if let Some(found) = cx.find_service::<Self>() {
            return found;
        }
        let cell = cx.service(|_| Self(RefCell::new(Worker { disks: Vec::new() })));
        cx.add_poller("vhost", Box::new(WorkerPoller(Rc::clone(&cell))));
        cell
    }

    /// Begins to serve a queue.
    pub(crate) fn start(&self, cx: &Cx, mut start: QueueStart) -> Result<(), StartError> {
        let mut worker = self.0.borrow_mut();
        let setup = std::mem::take(&mut start.setup);
        let ring = Ring::new(&start.map, setup)?;
        let disk = worker.disk_for(cx, &start)?;
        let queue = Queue::start(cx, start, ring)?;
        match disk.queues.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(queue),
            None => disk.queues.push(Some(queue)),
        }
        Ok(())
    }

    /// Changes a queue; false where there is none of that name.
    pub(crate) fn update(&self, key: QueueKey, update: Update) -> bool {
        let mut worker = self.0.borrow_mut();
        let Some(queue) = worker.queue(key) else { return false };
        match update {
            Update::Map(map) => queue.set_map(&map),
            Update::Log(log) => queue.set_log(log),
            Update::Call(call) => queue.set_call(call),
            Update::Err(err) => queue.set_err(err),
            Update::Enabled(enabled) => queue.set_enabled(enabled),
        }
        true
    }

    /// Stops a queue. The answer, where its ring stands, comes when nothing is under way any more.
    pub(crate) fn stop(&self, key: QueueKey) -> Option<oneshot::Receiver<u32>> {
        let (stopped, when_stopped) = oneshot::channel();
        self.0.borrow_mut().queue(key)?.stop(stopped);
        Some(when_stopped)
    }

    /// Closes the way to a controller's disk: requests under way end, later ones fail. The answer comes when it is closed.
    pub(crate) fn close(&self, controller: u64) -> Option<oneshot::Receiver<()>> {
        let (closed, when_closed) = oneshot::channel();
        let mut worker = self.0.borrow_mut();
        worker.disks.iter_mut().find(|disk| disk.controller == controller)?.closing.push(closed);
        Some(when_closed)
    }
}

impl Worker {
    fn disk_for(&mut self, cx: &Cx, start: &QueueStart) -> Result<&mut Disk, StartError> {
        let found = self.disks.iter().position(|disk| disk.controller == start.controller);
        let at = match found {
            Some(at) => at,
            None => {
                self.disks.push(Disk::open(cx, start.controller, start.descriptor.as_ref())?);
                self.disks.len() - 1
            }
        };
        Ok(self.disks.get_mut(at).unwrap_or_else(|| unreachable!("found or pushed")))
    }

    fn queue(&mut self, key: QueueKey) -> Option<&mut Queue> {
        let mut queues = self.disks.iter_mut().flat_map(|disk| disk.queues.iter_mut().flatten());
        queues.find(|queue| queue.key == key)
    }

    fn poll(&mut self, cx: &Cx, now: Tick) -> usize {
        let mut work = 0;
        for disk in &mut self.disks {
            work += disk.poll(cx, now);
        }
        if work > 0 || self.disks.iter().any(|disk| !disk.closing.is_empty()) {
            self.disks.retain_mut(|disk| !disk.ends());
        }
        work
    }

    fn rest(&mut self, now: Tick) -> Rest {
        let mut rest = Rest::UntilWoken;
        for disk in &mut self.disks {
            rest = match (rest, disk.rest(now)) {
                (Rest::Never, _) | (_, Rest::Never) => return Rest::Never,
                (Rest::Until(a), Rest::Until(b)) => Rest::Until(a.min(b)),
                (Rest::UntilWoken, other) | (other, Rest::UntilWoken) => other,
            };
        }
        rest
    }
}

impl Disk {
    fn open(cx: &Cx, controller: u64, descriptor: Option<&Descriptor>) -> Result<Self, StartError> {
        let channel = descriptor.map(|descriptor| descriptor.channel(cx)).transpose()?;
        let shared = descriptor.map(Descriptor::shared);
        let caps = shared.map(|shared| *shared.caps());
        let geometry = Geometry {
            block_bytes: shared.map_or(512, |shared| shared.block_bytes()),
            discards: caps.is_some_and(|caps| caps.supports(Op::Unmap)),
            zeroes: caps.is_some_and(|caps| caps.supports(Op::WriteZeroes)),
        };
        let id = shared.map(|shared| shared.name().to_owned()).unwrap_or_default();
        Ok(Self {
            controller,
            backend: Backend { channel, spare: Vec::with_capacity(COMPLETIONS_MAX), geometry, id },
            queues: Vec::new(),
            done: Vec::with_capacity(COMPLETIONS_MAX),
            closing: Vec::new(),
        })
    }

    #[inline]
    fn poll(&mut self, cx: &Cx, now: Tick) -> usize {
        let Self { backend, queues, done, .. } = self;
        let mut work = 0;
        for (number, queue) in (0..).zip(queues.iter_mut()) {
            if let Some(queue) = queue {
                work += queue.take(number, backend, now);
            }
        }
        if let Some(channel) = &mut backend.channel {
            work += channel.poll(now, COMPLETIONS_MAX, done);
        }
        for io in done.drain(..) {
            let number = usize::try_from(io.tag >> 16).unwrap_or(usize::MAX);
            let Some(Some(queue)) = queues.get_mut(number) else {
                unreachable!("a queue stays until its requests have ended")
            };
            queue.completed(io, backend, now);
        }
        for place in queues.iter_mut() {
            let Some(queue) = place else { continue };
            queue.signal(now);
            if queue.ends(cx) {
                *place = None;
                work += 1;
            }
        }
        work
    }

    /// Closes the channel where that was asked for and it is idle; true when nobody needs the disk any more.
    fn ends(&mut self) -> bool {
        let is_idle = self.backend.channel.as_ref().is_none_or(|channel| channel.in_flight() == 0);
        let is_unused = self.queues.iter().all(Option::is_none);
        if is_idle && !self.closing.is_empty() {
            self.backend.channel = None;
            for closed in self.closing.drain(..) {
                closed.send(()).ok();
            }
        }
        is_idle && is_unused
    }

    fn rest(&mut self, now: Tick) -> Rest {
        if !self.closing.is_empty() && self.backend.channel.as_ref().is_none_or(|one| one.in_flight() == 0) {
            return Rest::Never;
        }
        let mut rest = self.backend.channel.as_ref().map_or(Rest::UntilWoken, |channel| channel.rest(now));
        for queue in self.queues.iter_mut().flatten() {
            rest = match (rest, queue.rest(now)) {
                (Rest::Never, _) | (_, Rest::Never) => return Rest::Never,
                (Rest::Until(a), Rest::Until(b)) => Rest::Until(a.min(b)),
                (Rest::UntilWoken, other) | (other, Rest::UntilWoken) => other,
            };
        }
        rest
    }
}

pub(crate) struct WorkerPoller(Rc<WorkerCell>);

#[cfg(test)]
impl WorkerPoller {
    /// A second poller of the same queues.
    pub(crate) fn for_test(worker: &Rc<WorkerCell>) -> Self {
        Self(Rc::clone(worker))
    }
}

impl Poller for WorkerPoller {
    fn poll(&mut self, cx: &Cx, now: Tick) -> usize {
        self.0.0.borrow_mut().poll(cx, now)
    }

    fn rest(&mut self, now: Tick) -> Rest {
        self.0.0.borrow_mut().rest(now)
    }
}
