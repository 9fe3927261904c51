//! How a sleeping reactor is woken: an eventfd in the epoll set that it sleeps on.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use crate::error::ReactorError;
use crate::sys;

/// Makes a reactor's blocking wait return. Shared by all who may wake it.
#[derive(Debug)]
pub struct WakeFd(OwnedFd);

impl WakeFd {
    /// A new eventfd.
    ///
    /// # Errors
    /// [`ReactorError::Os`] when the process has no descriptors left.
    pub fn new() -> Result<Self, ReactorError> {
        let fd =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(os("create an eventfd"))?;
        Ok(Self(fd))
    }

    /// Wakes whoever sleeps on it, now or as soon as they try to sleep.
    pub fn wake(&self) {
        // A full counter (EAGAIN) means that a wake-up is pending already; nothing else can fail here.
        rustix::io::write(&self.0, &1_u64.to_le_bytes()).ok();
    }

    /// Takes back all wake-ups so far.
    pub fn clear(&self) {
        let mut count = [0_u8; 8];
        rustix::io::read(&self.0, &mut count).ok();
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The set of descriptors that end a reactor's sleep when they become readable.
#[derive(Debug)]
pub struct SleepSet {
    epoll: OwnedFd,
    /// Watched from the beginning to the end of each sleep.
    asleep: RefCell<Vec<Weak<OwnedFd>>>,
    sleeps: Rc<Cell<u64>>,
}

impl SleepSet {
    /// An empty set.
    ///
    /// # Errors
    /// [`ReactorError::Os`] when the process has no descriptors left.
    pub fn new() -> Result<Self, ReactorError> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("create an epoll set"))?;
        Ok(Self { epoll: fd, asleep: RefCell::default(), sleeps: Rc::default() })
    }

    /// Lets `fd` (an eventfd, a nested epoll set, an io_uring) end the sleep while it is readable.
    ///
    /// # Errors
    /// [`ReactorError::Os`] when the kernel refuses the descriptor.
    pub fn add(&self, fd: impl AsFd) -> Result<(), ReactorError> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .map_err(os("watch a descriptor for a sleeping reactor"))
    }

    /// Takes `fd` out again.
    pub fn remove(&self, fd: impl AsFd) {
        epoll::delete(&self.epoll, fd).ok();
    }

    /// As [`Self::add`], but watches `fd` only while asleep and as long as it exists: a nested set that is watched all the
    /// time makes each packet that arrives pay for telling this one. Returns the count of sleeps, which moves on with each.
    pub(crate) fn watch_asleep(&self, fd: &Rc<OwnedFd>) -> Rc<Cell<u64>> {
        let mut asleep = self.asleep.borrow_mut();
        asleep.retain(|fd| fd.strong_count() > 0);
        asleep.push(Rc::downgrade(fd));
        Rc::clone(&self.sleeps)
    }

    /// Blocks until a descriptor is readable, or `timeout_ns` has passed; `None` waits for ever.
    pub fn wait(&self, timeout_ns: Option<u64>) {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        self.sleeps.set(self.sleeps.get() + 1);
        // What cannot be watched (no memory in the kernel) must not be slept over.
        if self.for_each_asleep(|fd| self.add(fd).is_ok()) {
            // Interrupted or not: the caller looks at everything again anyway.
            sys::epoll::sleep(&self.epoll, &mut events, timeout_ns).ok();
        }
        self.for_each_asleep(|fd| {
            self.remove(fd);
            true
        });
    }

    /// Whether `function` returned true for all.
    fn for_each_asleep(&self, function: impl Fn(&OwnedFd) -> bool) -> bool {
        self.asleep.borrow().iter().filter_map(Weak::upgrade).all(|fd| function(&fd))
    }
}

/// Turns an `Errno` into an error that says what was attempted.
pub(crate) fn os(what: &'static str) -> impl FnOnce(Errno) -> ReactorError {
    move |errno| ReactorError::Os { what, source: errno.into() }
}
