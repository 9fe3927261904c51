//! Between cores: a bounded queue for requests and one for answers per pair of reactors, and each core's end of them.
//!
//! Invariants: of what a core has sent to another, no more is under way than a queue holds, so an answer always has room; a
//! request comes back to the client that sent it, once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use penstock_bdev::Io;
use penstock_reactor::{Cx, Poller, ReactorHandle, Rest, Tick};

use crate::id::{ShardId, index};
use crate::node::Seat;

/// Requests of one core at desks of its own at most.
const LOCAL_MAX: u32 = 4096;
/// Requests and answers that one poll takes from one queue at most.
const BUDGET: usize = 256;
/// No parent: the I/O is a host's own.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// An I/O on its way to a lane, or back.
#[derive(Debug)]
pub(super) struct Request {
    /// The I/O, in blocks of the vdisk.
    pub(super) io: Box<Io>,
    /// Where it goes and where it came from.
    pub(super) address: Address,
}

/// Where a request goes and where it came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    /// Of which shard.
    pub(super) shard: ShardId,
    /// Of which snapshot of it.
    pub(super) snapshot: Option<u64>,
    /// Its blocks have 512 bytes.
    pub(super) sectors: bool,
    /// The desk, at its core.
    pub(super) desk: u32,
    /// Who sent it: reactor, client there, and what it is a part of.
    pub(super) from: u16,
    pub(super) client: u32,
    pub(super) parent: u32,
}

/// The queues between all reactors of a node.
#[derive(Debug)]
pub struct Mesh {
    reactors: Vec<ReactorHandle>,
    /// By sender × reactors + receiver.
    requests: Vec<ArrayQueue<Request>>,
    answers: Vec<ArrayQueue<Request>>,
    room: u32,
}

impl Mesh {
    /// Queues between these reactors.
    #[must_use]
    pub fn new(reactors: Vec<ReactorHandle>) -> Arc<Self> {
        let count = reactors.len();
        // The more cores, the less each has under way at any one of the others.
        let room = (8192 / count.max(1)).clamp(64, 1024);
        let queues = || (0..count * count).map(|_| ArrayQueue::new(room)).collect();
        Arc::new(Self { requests: queues(), answers: queues(), reactors, room: crate::id::count32(room) })
    }

    /// The reactors, by number.
    #[must_use]
    pub fn reactors(&self) -> &[ReactorHandle] {
        &self.reactors
    }

    fn queue<'a>(
        &self,
        queues: &'a [ArrayQueue<Request>],
        from: usize,
        to: usize,
    ) -> &'a ArrayQueue<Request> {
        match queues.get(from * self.reactors.len() + to) {
            Some(queue) => queue,
            None => panic!("there is no reactor {from} or {to}"),
        }
    }

    fn ring(&self, reactor: usize) {
        if let Some(reactor) = self.reactors.get(reactor) {
            reactor.ring();
        }
    }
}

/// What came back for one channel.
#[derive(Debug, Default)]
pub(super) struct Inbox(RefCell<VecDeque<(Box<Io>, u32)>>);

impl Inbox {
    pub(super) fn pop(&self) -> Option<(Box<Io>, u32)> {
        self.0.borrow_mut().pop_front()
    }

    pub(super) fn push(&self, io: Box<Io>, parent: u32) {
        self.0.borrow_mut().push_back((io, parent));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// One core's end of the mesh: its desks and its channels.
#[derive(Debug)]
pub struct Hub {
    mesh: Arc<Mesh>,
    me: usize,
    /// Under way at each reactor.
    out: Vec<Cell<u32>>,
    seats: RefCell<Vec<Option<Rc<Seat>>>>,
    clients: RefCell<Vec<Option<Rc<Inbox>>>>,
}

impl Hub {
    /// This reactor's, made with its poller on first use.
    #[must_use]
    pub fn of(cx: &Cx, mesh: &Arc<Mesh>) -> Rc<Self> {
        if let Some(hub) = cx.find_service::<HubService>() {
            return Rc::clone(&hub.0);
        }
        let me = index(cx.id().0);
        let out = mesh.reactors.iter().map(|_| Cell::new(0)).collect();
        let (seats, clients) = (RefCell::default(), RefCell::default());
        let hub = Rc::new(Self { mesh: Arc::clone(mesh), me, out, seats, clients });
        cx.add_poller("vdisk mesh", Box::new(HubPoller(Rc::clone(&hub))));
        let service = Rc::clone(&hub);
        drop(cx.service(|_| HubService(service)));
        hub
    }

    /// Takes a seat in; returns its number.
    pub fn add_seat(&self, seat: Rc<Seat>) -> u32 {
        add(&mut self.seats.borrow_mut(), seat)
    }

    /// The seat of that number.
    #[must_use]
    pub fn seat(&self, number: u32) -> Option<Rc<Seat>> {
        self.seats.borrow().get(index(number)).and_then(Clone::clone)
    }

    /// Forgets a seat; returns it.
    pub fn remove_seat(&self, number: u32) -> Option<Rc<Seat>> {
        self.seats.borrow_mut().get_mut(index(number)).and_then(Option::take)
    }

    pub(super) fn add_client(&self, inbox: Rc<Inbox>) -> u32 {
        add(&mut self.clients.borrow_mut(), inbox)
    }

    pub(super) fn remove_client(&self, number: u32) {
        if let Some(client) = self.clients.borrow_mut().get_mut(index(number)) {
            *client = None;
        }
    }

    /// Sends a request to a desk.
    ///
    /// # Errors
    /// The request, when as many are under way there as may be.
    pub(super) fn send(&self, reactor: u16, mut request: Request) -> Result<(), Request> {
        let to = usize::from(reactor);
        let Some(out) = self.out.get(to) else { panic!("there is no reactor {to}") };
        let max = if to == self.me { LOCAL_MAX } else { self.mesh.room };
        if out.get() >= max {
            return Err(request);
        }
        request.address.from = u16::try_from(self.me).unwrap_or(u16::MAX);
        if to == self.me {
            out.set(out.get() + 1);
            self.deliver(request);
            return Ok(());
        }
        self.mesh.queue(&self.mesh.requests, self.me, to).push(request)?;
        out.set(out.get() + 1);
        self.mesh.ring(to);
        Ok(())
    }

    fn deliver(&self, mut request: Request) {
        match self.seats.borrow().get(index(request.address.desk)).and_then(Option::as_ref) {
            Some(seat) => seat.desk().enqueue(request),
            None => {
                // The pool was closed meanwhile.
                request.io.status = penstock_bdev::IoStatus::Gone;
                self.answer(request);
            }
        }
    }

    /// Sends a request back, done.
    pub(super) fn answer(&self, request: Request) {
        let to = usize::from(request.address.from);
        if to == self.me {
            return self.hand_over(to, request);
        }
        let pushed = self.mesh.queue(&self.mesh.answers, self.me, to).push(request);
        assert!(pushed.is_ok(), "more answers than requests");
        self.mesh.ring(to);
    }

    fn hand_over(&self, from: usize, request: Request) {
        if let Some(out) = self.out.get(from) {
            out.set(out.get() - 1);
        }
        // A channel that is gone does not want it any more.
        if let Some(Some(client)) = self.clients.borrow().get(index(request.address.client)) {
            client.push(request.io, request.address.parent);
        }
    }

    fn poll(&self) -> usize {
        let mut count = 0;
        for other in (0..self.mesh.reactors.len()).filter(|other| *other != self.me) {
            let requests = self.mesh.queue(&self.mesh.requests, other, self.me);
            let answers = self.mesh.queue(&self.mesh.answers, other, self.me);
            if !requests.is_empty() {
                let taken = std::iter::from_fn(|| requests.pop()).take(BUDGET);
                count += taken.map(|request| self.deliver(request)).count();
            }
            if !answers.is_empty() {
                let taken = std::iter::from_fn(|| answers.pop()).take(BUDGET);
                count += taken.map(|answer| self.hand_over(other, answer)).count();
            }
        }
        count
    }

    fn is_empty(&self) -> bool {
        (0..self.mesh.reactors.len()).all(|other| {
            self.mesh.queue(&self.mesh.requests, other, self.me).is_empty()
                && self.mesh.queue(&self.mesh.answers, other, self.me).is_empty()
        })
    }
}

fn add<T>(slots: &mut Vec<Option<T>>, new: T) -> u32 {
    let free = slots.iter().position(Option::is_none);
    let at = free.unwrap_or(slots.len());
    match slots.get_mut(at) {
        Some(slot) => *slot = Some(new),
        None => slots.push(Some(new)),
    }
    crate::id::count32(at)
}

struct HubService(Rc<Hub>);

struct HubPoller(Rc<Hub>);

impl Poller for HubPoller {
    fn poll(&mut self, _cx: &Cx, _now: Tick) -> usize {
        self.0.poll()
    }

    fn rest(&mut self, _now: Tick) -> Rest {
        if self.0.is_empty() { Rest::UntilWoken } else { Rest::Never }
    }
}
