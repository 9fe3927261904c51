//! One reactor's rings, shared by all its uring channels: the ordinary one, and beside it one whose reads and writes are
//! polled for (`IORING_SETUP_IOPOLL`), made when the first channel to a device with polled queues is opened. Only enter
//! calls find completions there, and nothing announces them: the core does not sleep over them.
//!
//! Invariants: a slot is free, or owns a [`Request`] of which the kernel has, or is about to get, exactly one submission
//! with the slot's number as user data; a request's memory lives until its completion, whatever becomes of its channel;
//! there are no more slots than submission entries, so the submission queue is never full.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;

use io_uring::{IoUring, opcode, types};
use penstock_reactor::mem::{self, ARENA_BYTES};
use penstock_reactor::{Cx, Poller, Rest, Tick};

use super::request::{Next, Request};
use crate::io::Io;

/// I/Os of one reactor in the kernel at most.
const SLOTS: u32 = 1024;
/// Room for cancellations beside the slots.
const ENTRIES: u32 = 2 * SLOTS;
/// Registered files of one reactor at most; further ones are named by descriptor.
const FILES_MAX: u32 = 1024;
/// Registered arenas at most; I/O to further ones goes unregistered.
const ARENAS_MAX: u32 = 64;
/// Completions handled in one turn at most.
const REAP_MAX: usize = 256;
/// User data of cancellations; no slot has this number.
const CANCELLATION: u64 = u64::MAX;
/// `IORING_ENTER_GETEVENTS`.
const ENTER_GETEVENTS: u32 = 1;
/// How long a ring that is dropped waits for the kernel to give its memory back, in seconds.
const DRAIN_S_MAX: u64 = 10;

/// Where a channel's ended I/Os wait for its `poll`.
pub(super) type Ended = Rc<RefCell<VecDeque<Box<Io>>>>;

#[derive(Default)]
struct Slot {
    request: Option<(Request, Ended)>,
    iovecs: Vec<libc::iovec>,
}

pub(super) struct Ring {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots whose next submission waits to be queued.
    again: Vec<u32>,
    /// Addresses of the registered arenas, by index.
    arenas: Vec<usize>,
    /// How many there may be: 0 where the kernel takes none; not more than it took, once it has refused one.
    arenas_max: usize,
    /// An arena that an I/O of this turn had its buffer from, and that is not registered.
    new_arena: Option<usize>,
    files: Vec<bool>,
    cancellations: usize,
    /// Set on the polled ring: where I/Os go whose device turned out not to be polled.
    fallback: Option<Rc<RefCell<Self>>>,
    /// I/Os on their way there.
    refused: Vec<(Request, Ended)>,
}

/// The reactor's rings as its service; each made by the first channel that needs it.
#[derive(Default)]
struct RingService {
    ordinary: RefCell<Option<Rc<RefCell<Ring>>>>,
    polled: RefCell<Option<Rc<RefCell<Ring>>>>,
}

/// Whether this process may use io_uring at all.
pub(super) fn is_allowed() -> bool {
    IoUring::new(2).is_ok()
}

impl Ring {
    /// How many arenas the kernel knows by number.
    #[cfg(test)]
    pub(super) fn registered_arenas(cx: &Cx) -> usize {
        let service = cx.service(|_| RingService::default());
        let ring = service.ordinary.borrow();
        ring.as_ref().map_or(0, |ring| ring.borrow().arenas.len())
    }

    /// The reactor's ring; its memory is brought up to date.
    pub(super) fn of(cx: &Cx) -> io::Result<Rc<RefCell<Self>>> {
        let service = cx.service(|_| RingService::default());
        if let Some(ring) = &*service.ordinary.borrow() {
            ring.borrow_mut().register_arenas();
            return Ok(Rc::clone(ring));
        }
        let ring = Rc::new(RefCell::new(Self::new(build()?, None)));
        let fd = ring.borrow().uring.as_raw_fd();
        // SAFETY: the descriptor is the ring's, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        cx.sleep_set().add(fd).map_err(io::Error::other)?;
        cx.add_poller("uring", Box::new(RingPoller(Rc::clone(&ring))));
        *service.ordinary.borrow_mut() = Some(Rc::clone(&ring));
        Ok(ring)
    }

    /// The reactor's polled ring; its memory is brought up to date.
    pub(super) fn polled(cx: &Cx) -> io::Result<Rc<RefCell<Self>>> {
        let service = cx.service(|_| RingService::default());
        if let Some(ring) = &*service.polled.borrow() {
            ring.borrow_mut().register_arenas();
            return Ok(Rc::clone(ring));
        }
        let ring = Rc::new(RefCell::new(Self::new(build_polled()?, Some(Self::of(cx)?))));
        cx.add_poller("uring polled", Box::new(RingPoller(Rc::clone(&ring))));
        *service.polled.borrow_mut() = Some(Rc::clone(&ring));
        Ok(ring)
    }

    fn new(uring: IoUring, fallback: Option<Rc<RefCell<Self>>>) -> Self {
        let registers_files = uring.submitter().register_files_sparse(FILES_MAX).is_ok();
        let registers_memory = uring.submitter().register_buffers_sparse(ARENAS_MAX).is_ok();
        let mut ring = Self {
            uring,
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            free: (0..SLOTS).rev().collect(),
            again: Vec::with_capacity(REAP_MAX),
            arenas: Vec::with_capacity(len(ARENAS_MAX)),
            arenas_max: if registers_memory { len(ARENAS_MAX) } else { 0 },
            new_arena: None,
            files: if registers_files { vec![false; len(FILES_MAX)] } else { Vec::new() },
            cancellations: 0,
            fallback,
            refused: Vec::with_capacity(len(SLOTS)),
        };
        ring.register_arenas();
        ring
    }

    /// Tells the kernel of all arenas there are. Pins them; a refusal (a limit on locked memory) only costs speed.
    fn register_arenas(&mut self) {
        for arena in mem::arenas() {
            if !self.register_arena(arena.base) {
                break;
            }
        }
    }

    /// Tells the kernel of the arena at `base`, unless it knows; returns whether it knows now.
    fn register_arena(&mut self, base: usize) -> bool {
        if self.arenas.contains(&base) {
            return true;
        }
        if self.arenas.len() >= self.arenas_max {
            return false;
        }
        let iovec = libc::iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: ARENA_BYTES };
        let index = u32::try_from(self.arenas.len()).unwrap_or(u32::MAX);
        // SAFETY: arenas are mapped for as long as the process lives.
        let updated = unsafe { self.uring.submitter().register_buffers_update(index, &[iovec], None) };
        if updated.is_ok() {
            self.arenas.push(base);
        } else {
            // Not to be refused again with every I/O.
            self.arenas_max = self.arenas.len();
        }
        updated.is_ok()
    }

    /// Registers a descriptor; `None` where it must be named by itself.
    pub(super) fn add_file(&mut self, fd: RawFd) -> Option<u32> {
        let index = self.files.iter().position(|used| !used)?;
        let number = u32::try_from(index).ok()?;
        self.uring.submitter().register_files_update(number, &[fd]).ok()?;
        *self.files.get_mut(index)? = true;
        Some(number)
    }

    /// Takes a registered descriptor out again.
    pub(super) fn remove_file(&mut self, index: u32) {
        // What is queued and names it goes to the kernel first, which then keeps the file by itself.
        self.enter();
        if self.uring.submitter().register_files_update(index, &[-1]).is_ok()
            && let Some(used) = self.files.get_mut(len(index))
        {
            *used = false;
        }
    }

    /// Whether another request fits.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Queues a request for this turn's submission. There must be room.
    pub(super) fn submit(&mut self, request: Request, ended: &Ended) {
        let number = self.free.pop();
        let slot = number.and_then(|number| self.slots.get_mut(len(number)));
        let (Some(number), Some(slot)) = (number, slot) else { unreachable!("the caller looked for room") };
        slot.request = Some((request, Rc::clone(ended)));
        self.queue(number);
    }

    /// Asks the kernel to end the I/O `tag` of a channel early. Returns whether it is there to be asked for.
    pub(super) fn cancel(&mut self, tag: u64, ended: &Ended) -> bool {
        let is_it = |slot: &Slot| {
            slot.request.as_ref().is_some_and(|(request, to)| request.io.tag == tag && Rc::ptr_eq(to, ended))
        };
        let Some(number) = self.slots.iter().position(is_it) else { return false };
        if self.uring.submission().len() >= len(ENTRIES - SLOTS) {
            return false;
        }
        let entry = opcode::AsyncCancel::new(u64::try_from(number).unwrap_or(CANCELLATION)).build();
        // SAFETY: a cancellation refers to no memory.
        let pushed = unsafe { self.uring.submission().push(&entry.user_data(CANCELLATION)) };
        self.cancellations += usize::from(pushed.is_ok());
        pushed.is_ok()
    }

    fn queue(&mut self, number: u32) {
        let Some(Slot { request: Some((request, _)), iovecs }) = self.slots.get_mut(len(number)) else {
            unreachable!("a queued slot has a request")
        };
        let entry = request.entry(iovecs, &self.arenas).user_data(u64::from(number));
        self.new_arena = self.new_arena.or_else(|| request.take_new_arena());
        // SAFETY: the buffers and the list of them belong to the slot until the completion comes, and the file is kept
        // open by the request.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "there are no more slots than submission entries");
    }

    fn is_polled(&self) -> bool {
        self.fallback.is_some()
    }

    /// I/Os and cancellations that the kernel has not answered.
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.cancellations
    }

    /// Hands the kernel what is queued, and lets it do its deferred work or look at the polled devices.
    fn enter(&mut self) {
        let queue = self.uring.submission();
        let (waiting, deferred) = (queue.len(), queue.taskrun());
        drop(queue);
        if waiting > 0 || deferred || self.is_polled() {
            let count = u32::try_from(waiting).unwrap_or(u32::MAX);
            // Interrupted or busy: what was not taken is offered again in the next turn.
            // SAFETY: no argument beside the numbers; what the entries refer to belongs to their slots.
            unsafe { self.uring.submitter().enter::<libc::sigset_t>(count, 0, ENTER_GETEVENTS, None) }.ok();
        }
    }

    /// One turn's work; returns how many completions there were.
    pub(super) fn turn(&mut self) -> usize {
        if self.in_flight() == 0 && self.refused.is_empty() {
            return 0;
        }
        self.enter();
        let count = self.reap();
        // At most one a turn: the kernel pins all of its pages, which takes a few milliseconds where they are small.
        if let Some(base) = self.new_arena.take() {
            self.register_arena(base);
        }
        self.pass_on_refused();
        count
    }

    fn pass_on_refused(&mut self) {
        let Some(fallback) = &self.fallback else { return };
        let mut fallback = fallback.borrow_mut();
        while fallback.has_room()
            && let Some((request, ended)) = self.refused.pop()
        {
            fallback.submit(request, &ended);
        }
    }

    fn reap(&mut self) -> usize {
        let mut count = 0;
        let is_polled = self.is_polled();
        for completion in self.uring.completion().take(REAP_MAX) {
            count += 1;
            if completion.user_data() == CANCELLATION {
                self.cancellations = self.cancellations.saturating_sub(1);
                continue;
            }
            let number = u32::try_from(completion.user_data()).unwrap_or(u32::MAX);
            let Some(slot) = self.slots.get_mut(len(number)) else { unreachable!("user data is a slot") };
            let Some((request, _)) = &mut slot.request else {
                unreachable!("a slot has one submission in the kernel")
            };
            if is_polled && completion.result() == -libc::EOPNOTSUPP {
                request.do_not_poll();
                self.refused.extend(slot.request.take());
                self.free.push(number);
                continue;
            }
            match request.advance(completion.result()) {
                Next::Again => self.again.push(number),
                Next::Ended(status) => {
                    if let Some((mut request, ended)) = slot.request.take() {
                        request.io.status = status;
                        ended.borrow_mut().push_back(request.io);
                    }
                    self.free.push(number);
                }
            }
        }
        while let Some(number) = self.again.pop() {
            self.queue(number);
        }
        count
    }
}

impl Drop for Ring {
    /// The kernel reads and writes the requests' memory until it has completed them.
    fn drop(&mut self) {
        self.drain_polled();
        let timeout = types::Timespec::new().sec(DRAIN_S_MAX);
        while self.in_flight() > 0 && !self.is_polled() {
            let waited =
                self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout));
            let timed_out = waited.is_err_and(|error| error.raw_os_error() == Some(libc::ETIME));
            if self.reap() == 0 && timed_out {
                break;
            }
        }
        for slot in self.slots.drain(..).filter(|slot| slot.request.is_some()) {
            #[expect(
                clippy::mem_forget,
                reason = "the kernel may still write to it: better lost than reused"
            )]
            std::mem::forget(slot);
        }
    }
}

impl Ring {
    /// A polled ring that is dropped: a wait in the kernel would not end before the last I/O, however long that takes.
    #[expect(clippy::disallowed_methods, reason = "at the end of a reactor, when nothing else is to be done")]
    fn drain_polled(&mut self) {
        let pause = std::time::Duration::from_millis(1);
        let mut pauses_left = DRAIN_S_MAX * 1000;
        while self.is_polled() && self.in_flight() > 0 && pauses_left > 0 {
            self.enter();
            if self.reap() == 0 {
                std::thread::sleep(pause);
                pauses_left -= 1;
            }
        }
    }
}

/// A ring that polls its devices.
fn build_polled() -> io::Result<IoUring> {
    let mut newer = IoUring::builder();
    newer.setup_iopoll().setup_single_issuer().setup_submit_all().dontfork();
    newer.build(ENTRIES).or_else(|_| IoUring::builder().setup_iopoll().dontfork().build(ENTRIES))
}

/// The cheapest kind of ring that this kernel offers and that wakes a sleeping core.
///
/// Not `DEFER_TASKRUN`: a completion that waits for its deferred work does not make the ring's descriptor readable, and
/// the core would sleep for ever.
fn build() -> io::Result<IoUring> {
    let mut newer = IoUring::builder();
    newer.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all().dontfork();
    newer.build(ENTRIES).or_else(|_| IoUring::new(ENTRIES))
}

/// Lossless on every target that has io_uring.
fn len(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

struct RingPoller(Rc<RefCell<Ring>>);

impl Poller for RingPoller {
    fn poll(&mut self, _cx: &Cx, _now: Tick) -> usize {
        self.0.borrow_mut().turn()
    }

    fn rest(&mut self, _now: Tick) -> Rest {
        let mut ring = self.0.borrow_mut();
        let is_awaited = ring.is_polled() && (ring.in_flight() > 0 || !ring.refused.is_empty());
        if ring.uring.submission().is_empty() && !is_awaited { Rest::UntilWoken } else { Rest::Never }
    }
}
