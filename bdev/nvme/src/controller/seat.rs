//! A controller on a reactor: the reactor's own queue, or its lane to another reactor's.
//!
//! A device may have fewer queue pairs than there are reactors. Those without one hand their I/O to a reactor that has one,
//! through a pair of bounded rings of boxed I/Os (a [`Lane`]); nothing is locked, nothing is allocated per I/O. The owner is
//! woken by an empty message where it sleeps.
//!
//! Invariants: a lane's I/Os never exceed [`LANE_MAX`], so the way back is never full; the owner looks at its lanes every
//! turn, and says that it sleeps before it looks for the last time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::ArrayQueue;
use penstock_bdev::{Busy, Channel, Io};
use penstock_reactor::{Cx, Poller, PollerId, ReactorHandle, Rest, Tick};

use crate::queue::{IoQueue, NsParams};

/// I/Os of one reactor in its lane to another, at most.
pub(crate) const LANE_MAX: usize = 1024;
/// Requests that are not I/Os (open, close, abort) have room beside them.
const LANE_REQUESTS_MAX: usize = 256;
/// I/Os taken from one lane in one turn at most.
const LANE_BATCH: usize = 256;

/// What a reactor asks of the owner of a queue.
#[derive(Debug)]
enum Request {
    Open { end: usize, ns: NsParams },
    Io { end: usize, io: Box<Io> },
    Abort { end: usize, tag: u64 },
    AbortAll { end: usize },
    Close { end: usize },
}

/// The way from a reactor without a queue to one with, and back.
#[derive(Debug)]
pub(crate) struct Lane {
    to: ArrayQueue<Request>,
    back: ArrayQueue<(usize, Box<Io>)>,
    /// The owner sleeps, or is about to.
    asleep: AtomicBool,
}

impl Lane {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            to: ArrayQueue::new(LANE_MAX + LANE_REQUESTS_MAX),
            back: ArrayQueue::new(LANE_MAX),
            asleep: AtomicBool::new(true),
        })
    }
}

/// One lane as the owner sees it.
#[derive(Debug)]
struct Client {
    lane: Arc<Lane>,
    /// The client's numbers of namespaces, by position, and the queue's.
    ends: Vec<Option<usize>>,
    /// What the queue had no room for.
    held: Option<(usize, Box<Io>)>,
    done: Vec<Box<Io>>,
}

/// A reactor's own queue.
pub(crate) struct Own {
    pub(crate) queue: Rc<RefCell<IoQueue>>,
    clients: Rc<RefCell<Vec<Client>>>,
    poller: PollerId,
}

/// A reactor's way to another's queue.
pub(crate) struct Remote {
    lane: Arc<Lane>,
    owner: ReactorHandle,
    in_flight: Cell<usize>,
    /// Ended I/Os that came back, by namespace.
    ended: RefCell<Vec<Option<Vec<Box<Io>>>>>,
    rung: Cell<bool>,
}

/// How a reactor reaches a controller.
#[derive(Clone)]
enum Seat {
    Own(Rc<Own>),
    Remote(Rc<Remote>),
}

/// A reactor's controllers, by number.
#[derive(Default)]
struct Seats(RefCell<BTreeMap<u64, Seat>>);

fn seats(cx: &Cx) -> Rc<Seats> {
    cx.service(|_| Seats::default())
}

/// Gives the reactor a queue of its own, which serves `lanes` as well.
pub(crate) fn install(cx: &Cx, controller: u64, queue: IoQueue, lanes: Vec<Arc<Lane>>) {
    let queue = Rc::new(RefCell::new(queue));
    let client = |lane| Client { lane, ends: Vec::new(), held: None, done: Vec::with_capacity(LANE_BATCH) };
    let clients = Rc::new(RefCell::new(lanes.into_iter().map(client).collect::<Vec<_>>()));
    let poller = QueuePoller { queue: Rc::clone(&queue), clients: Rc::clone(&clients) };
    let poller = cx.add_poller("nvme", Box::new(poller));
    seats(cx).0.borrow_mut().insert(controller, Seat::Own(Rc::new(Own { queue, clients, poller })));
}

/// Gives the reactor a way to `owner`'s queue.
pub(crate) fn install_remote(cx: &Cx, controller: u64, lane: Arc<Lane>, owner: ReactorHandle) {
    let ended = RefCell::default();
    let remote = Remote { lane, owner, in_flight: Cell::new(0), ended, rung: Cell::new(false) };
    seats(cx).0.borrow_mut().insert(controller, Seat::Remote(Rc::new(remote)));
}

/// Does something with the reactor's own queue, if it has one.
pub(crate) fn with_queue(cx: &Cx, controller: u64, function: impl FnOnce(&mut IoQueue, Tick)) {
    let seat = seats(cx).0.borrow().get(&controller).cloned();
    if let Some(Seat::Own(own)) = seat {
        function(&mut own.queue.borrow_mut(), cx.now());
    }
}

/// Takes the controller from the reactor. Its queue goes as soon as the last channel to it has.
pub(crate) fn remove(cx: &Cx, controller: u64) {
    let seat = seats(cx).0.borrow_mut().remove(&controller);
    if let Some(Seat::Own(own)) = seat {
        cx.remove_poller(own.poller);
    }
}

/// A channel to a namespace; `None` where the reactor does not know the controller.
pub(crate) fn open(cx: &Cx, controller: u64, ns: NsParams) -> Option<Box<dyn Channel>> {
    let seat = seats(cx).0.borrow().get(&controller).cloned()?;
    Some(match seat {
        Seat::Own(own) => {
            let end = own.queue.borrow_mut().open(ns);
            Box::new(OwnChannel { own, end })
        }
        Seat::Remote(remote) => {
            let end = remote.take_end();
            remote.push(Request::Open { end, ns });
            Box::new(RemoteChannel { remote, end })
        }
    })
}

struct QueuePoller {
    queue: Rc<RefCell<IoQueue>>,
    clients: Rc<RefCell<Vec<Client>>>,
}

impl Poller for QueuePoller {
    #[inline]
    fn poll(&mut self, _cx: &Cx, now: Tick) -> usize {
        let mut queue = self.queue.borrow_mut();
        let mut count = 0;
        for client in self.clients.borrow_mut().iter_mut() {
            count += client.serve(&mut queue, now);
        }
        count + queue.turn(now)
    }

    fn rest(&mut self, _now: Tick) -> Rest {
        for client in self.clients.borrow_mut().iter_mut() {
            client.lane.asleep.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !client.lane.to.is_empty() || client.held.is_some() {
                return Rest::Never;
            }
        }
        self.queue.borrow().rest()
    }
}

impl Client {
    /// Takes what came, gives back what ended.
    fn serve(&mut self, queue: &mut IoQueue, now: Tick) -> usize {
        if self.lane.asleep.load(Ordering::Relaxed) {
            self.lane.asleep.store(false, Ordering::SeqCst);
        }
        let mut count = 0;
        while count < LANE_BATCH {
            let Some((end, io)) = self.held.take().or_else(|| self.next(queue)) else { break };
            if let Err(Busy(io)) = queue.submit(end, io, now) {
                self.held = Some((end, io));
                break;
            }
            count += 1;
        }
        for (number, end) in self.ends.iter().enumerate() {
            let Some(end) = end else { continue };
            queue.take_ended(*end, LANE_BATCH, &mut self.done);
            for io in self.done.drain(..) {
                assert!(self.lane.back.push((number, io)).is_ok(), "a lane has room for all of its I/Os");
                count += 1;
            }
        }
        count
    }

    /// The next I/O; what is no I/O is done at once.
    fn next(&mut self, queue: &mut IoQueue) -> Option<(usize, Box<Io>)> {
        loop {
            let request = self.lane.to.pop()?;
            let known = |end: usize| self.ends.get(end).copied().flatten();
            match request {
                Request::Open { end, ns } => {
                    if self.ends.len() <= end {
                        self.ends.resize(end + 1, None);
                    }
                    let opened = queue.open(ns);
                    if let Some(place) = self.ends.get_mut(end) {
                        *place = Some(opened);
                    }
                }
                Request::Io { end, io } => return known(end).map(|end| (end, io)),
                Request::Abort { end, tag } => {
                    if let Some(end) = known(end) {
                        // It comes out in any case.
                        queue.abort(end, tag);
                    }
                }
                Request::AbortAll { end } => known(end).into_iter().for_each(|end| queue.abort_all(end)),
                Request::Close { end } => {
                    if let Some(end) = self.ends.get_mut(end).and_then(Option::take) {
                        queue.close(end);
                    }
                }
            }
        }
    }
}

struct OwnChannel {
    own: Rc<Own>,
    end: usize,
}

impl Channel for OwnChannel {
    #[inline]
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        self.own.queue.borrow_mut().submit(self.end, io, now)
    }

    #[inline]
    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let mut queue = self.own.queue.borrow_mut();
        queue.turn(now);
        queue.take_ended(self.end, budget, done)
    }

    fn abort(&mut self, tag: u64) -> bool {
        self.own.queue.borrow_mut().abort(self.end, tag)
    }

    fn reset(&mut self) {
        self.own.queue.borrow_mut().abort_all(self.end);
    }
}

impl Drop for OwnChannel {
    fn drop(&mut self) {
        self.own.queue.borrow_mut().close(self.end);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.clients.borrow_mut().clear();
    }
}

impl Remote {
    fn take_end(&self) -> usize {
        let mut ended = self.ended.borrow_mut();
        let free = ended.iter().position(Option::is_none);
        let end = free.unwrap_or_else(|| {
            ended.push(None);
            ended.len() - 1
        });
        if let Some(place) = ended.get_mut(end) {
            *place = Some(Vec::with_capacity(LANE_MAX));
        }
        end
    }

    fn push(&self, request: Request) -> Option<Request> {
        let refused = self.lane.to.push(request).err();
        self.rung.set(true);
        refused
    }

    /// Wakes the owner if it sleeps, once for all that was pushed.
    fn ring(&self) {
        if !self.rung.replace(false) {
            return;
        }
        fence(Ordering::SeqCst);
        // A full mailbox is no harm: its owner is awake.
        if self.lane.asleep.load(Ordering::SeqCst) && self.owner.send(|_| {}).is_err() {
            self.rung.set(true);
        }
    }

    fn take_back(&self) {
        while let Some((end, io)) = self.lane.back.pop() {
            self.in_flight.set(self.in_flight.get() - 1);
            // A closed namespace's is dropped.
            if let Some(Some(ended)) = self.ended.borrow_mut().get_mut(end) {
                ended.push(io);
            }
        }
    }
}

struct RemoteChannel {
    remote: Rc<Remote>,
    end: usize,
}

impl Channel for RemoteChannel {
    fn submit(&mut self, io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        let remote = &self.remote;
        if remote.in_flight.get() >= LANE_MAX {
            return Err(Busy(io));
        }
        match remote.push(Request::Io { end: self.end, io }) {
            None => {
                remote.in_flight.set(remote.in_flight.get() + 1);
                Ok(())
            }
            Some(Request::Io { io, .. }) => Err(Busy(io)),
            Some(_) => unreachable!("what was refused is what was pushed"),
        }
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        self.remote.ring();
        self.remote.take_back();
        let mut all = self.remote.ended.borrow_mut();
        let Some(Some(ended)) = all.get_mut(self.end) else { return 0 };
        let count = ended.len().min(budget);
        done.extend(ended.drain(..count));
        count
    }

    fn abort(&mut self, tag: u64) -> bool {
        self.remote.push(Request::Abort { end: self.end, tag }).is_none()
    }

    fn reset(&mut self) {
        self.remote.push(Request::AbortAll { end: self.end });
    }
}

impl Drop for RemoteChannel {
    fn drop(&mut self) {
        if let Some(place) = self.remote.ended.borrow_mut().get_mut(self.end) {
            *place = None;
        }
        self.remote.push(Request::Close { end: self.end });
        self.remote.ring();
    }
}
