//! The sockets that one reactor polls.
//!
//! A *hot* socket gave data recently. It is reported ready on every turn without asking the kernel: the owner tries to
//! receive and says by [`SocketGroup::note`] what came of it, so that a busy turn over a few connections costs one
//! system call per connection. All others are asked after by one `epoll_wait(0)`: on every turn where none is hot, on
//! every few turns else.
//!
//! Invariants: every socket is always in the epoll set, level-triggered, hot or not, and a reactor that sleeps watches
//! the set. So what a guess missed, the kernel reports later, and a reactor that falls asleep over unread data wakes at
//! once.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::{fmt, io};

use rustix::event::epoll;

use crate::error::ReactorError;
use crate::sys;
use crate::sys::wake::{SleepSet, os};

/// Sockets of one group at most; keys are below it.
pub const SOCKETS_MAX: usize = 1 << 16;
/// Sockets reported by one poll at most: the budget of a turn. The others come first in the next one.
pub const READY_MAX: usize = 256;
/// Events taken from the kernel by one call.
const EVENTS: usize = 64;
const _: () = assert!(EVENTS <= READY_MAX);
/// Vain tries after which a lone hot socket is hot no more; among n, each has 1/n² of them, for each turn costs n tries.
const MISSES_MAX: u32 = 1024;
/// Tries of hot sockets per question to the kernel, which costs about as much as one try and a half ...
const TRIES_PER_ASK: usize = 8;
/// ... and more where many are hot, for it then goes through all those again: so many turns of them all per question.
const TURNS_PER_ASK: usize = 4;

/// What a group watches a socket for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Data, the peer's end, a connection to accept.
    pub read: bool,
    /// Room to send, a connection that was begun.
    pub write: bool,
}

impl Interest {
    /// Nothing but errors: the socket is paused. (The kernel always reports those.)
    pub const NONE: Self = Self { read: false, write: false };
    /// To receive.
    pub const READ: Self = Self { read: true, write: false };
    /// To receive and to send.
    pub const BOTH: Self = Self { read: true, write: true };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, self.read);
        flags.set(epoll::EventFlags::OUT, self.write);
        flags
    }
}

/// A socket worth trying. A hint: trying may still find nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The key it was added by.
    pub key: u32,
    /// Try to receive (or accept). Set as well when the connection is broken: the receive tells how.
    pub readable: bool,
    /// Try to send (or finish the connect).
    pub writable: bool,
    /// The kernel reported an error or that both directions are closed. Reported even for a paused socket, on every
    /// turn until the socket is removed.
    pub broken: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    interest: Interest,
    /// Where it is in the list of hot ones, or [`COLD`].
    hot_at: u32,
    /// Vain tries since it last gave something.
    misses: u32,
    /// The poll that reported it last, and where in its answer.
    polled: u64,
    ready_at: u32,
}

const COLD: u32 = u32::MAX;

/// A reactor's sockets. It belongs to the reactor whose sleep set it was made with, and wakes that one.
pub struct SocketGroup {
    epoll: Rc<OwnedFd>,
    /// By key.
    entries: Vec<Option<Entry>>,
    len: usize,
    hot: Vec<u32>,
    /// Which hot socket comes first in the next poll.
    hot_next: usize,
    /// Hot sockets reported since the kernel was last asked.
    tries: usize,
    /// Sleeps of the reactor, and how many there were when the kernel was last asked: what woke it is asked at once.
    sleeps: Rc<Cell<u64>>,
    sleeps_seen: u64,
    polls: u64,
    events: Box<[epoll::Event; EVENTS]>,
}

impl fmt::Debug for SocketGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketGroup").field("len", &self.len).field("hot", &self.hot).finish_non_exhaustive()
    }
}

impl SocketGroup {
    /// An empty group that ends the sleep of the reactor that `sleep_set` belongs to.
    ///
    /// # Errors
    /// [`ReactorError::Os`] when the process has no descriptors left.
    pub fn new(sleep_set: &SleepSet) -> Result<Self, ReactorError> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("create an epoll set for sockets"))?;
        let epoll = Rc::new(fd);
        let sleeps = sleep_set.watch_asleep(&epoll);
        let event = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Ok(Self {
            epoll,
            entries: Vec::new(),
            len: 0,
            hot: Vec::new(),
            hot_next: 0,
            tries: 0,
            sleeps_seen: sleeps.get(),
            sleeps,
            polls: 0,
            events: Box::new([event; EVENTS]),
        })
    }

    /// Watches `socket` under `key`, which comes back in [`Ready`]. Keys are small: an index of the owner's own table.
    ///
    /// # Errors
    /// `InvalidInput` for a key from [`SOCKETS_MAX`] on, `AlreadyExists` for one in use; whatever the kernel refuses.
    pub fn add(&mut self, socket: impl AsFd, key: u32, interest: Interest) -> io::Result<()> {
        let at = index(key);
        if at >= SOCKETS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.entry(key).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(key.into()), interest.flags())?;
        if self.entries.len() <= at {
            self.entries.resize(at + 1, None);
        }
        // Room for all of them to be hot, so that a turn never allocates.
        self.hot.reserve(self.entries.len().saturating_sub(self.hot.len()));
        if let Some(slot) = self.entries.get_mut(at) {
            *slot = Some(Entry { interest, hot_at: COLD, misses: 0, polled: 0, ready_at: 0 });
            self.len += 1;
        }
        Ok(())
    }

    /// Forgets `key`. `socket` is the one it was added with, still open.
    pub fn remove(&mut self, socket: impl AsFd, key: u32) {
        self.cool(key);
        if self.entries.get_mut(index(key)).and_then(Option::take).is_some() {
            self.len -= 1;
            epoll::delete(&self.epoll, socket).ok();
        }
    }

    /// Changes what `socket`, known as `key`, is watched for. Costs a system call only where something changes.
    ///
    /// # Errors
    /// `NotFound` for an unknown key; whatever the kernel refuses.
    pub fn set_interest(&mut self, socket: impl AsFd, key: u32, interest: Interest) -> io::Result<()> {
        let Some(entry) = self.entry(key) else { return Err(io::ErrorKind::NotFound.into()) };
        if entry.interest == interest {
            return Ok(());
        }
        epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(key.into()), interest.flags())?;
        if let Some(entry) = self.entry_mut(key) {
            entry.interest = interest;
        }
        if !interest.read {
            self.cool(key);
        }
        Ok(())
    }

    /// Changes whether `socket` is watched for room to send; set it after a send that would have blocked.
    ///
    /// # Errors
    /// As [`Self::set_interest`].
    pub fn want_write(&mut self, socket: impl AsFd, key: u32, write: bool) -> io::Result<()> {
        let Some(entry) = self.entry(key) else { return Err(io::ErrorKind::NotFound.into()) };
        let interest = Interest { write, ..entry.interest };
        self.set_interest(socket, key, interest)
    }

    /// Changes whether `socket` is watched for data; off, the peer is held back by its window.
    ///
    /// # Errors
    /// As [`Self::set_interest`].
    pub fn want_read(&mut self, socket: impl AsFd, key: u32, read: bool) -> io::Result<()> {
        let Some(entry) = self.entry(key) else { return Err(io::ErrorKind::NotFound.into()) };
        let interest = Interest { read, ..entry.interest };
        self.set_interest(socket, key, interest)
    }

    /// Tells what trying to receive from `key` gave: data, or nothing. Makes it hot, or in time cold.
    ///
    /// A listener's owner need not call this: an untold socket stays cold.
    #[inline]
    pub fn note(&mut self, key: u32, received: bool) {
        let hot = count(self.hot.len());
        let Some(entry) = self.entry_mut(key) else { return };
        if received {
            entry.misses = 0;
            if entry.hot_at == COLD && entry.interest.read {
                entry.hot_at = hot;
                self.hot.push(key);
            }
            return;
        }
        entry.misses = entry.misses.saturating_add(1);
        if entry.hot_at != COLD && entry.misses > MISSES_MAX / hot.saturating_mul(hot).max(1) {
            self.cool(key);
        }
    }

    /// Puts the sockets worth trying into `ready` (emptied first), at most [`READY_MAX`]. Never blocks.
    pub fn poll(&mut self, ready: &mut Vec<Ready>) {
        ready.clear();
        self.polls += 1;
        self.report_hot(ready);
        self.tries += ready.len();
        let asked_for = self.hot.is_empty() || self.sleeps_seen != self.sleeps.get();
        if asked_for || self.tries >= TRIES_PER_ASK.max(TURNS_PER_ASK * self.hot.len()) {
            self.tries = 0;
            self.sleeps_seen = self.sleeps.get();
            self.ask_kernel(ready);
        }
    }

    /// Sockets in the group.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hot ones among them.
    #[must_use]
    pub fn hot_len(&self) -> usize {
        self.hot.len()
    }

    /// Hot sockets leave room for as many as the kernel may report, so that no cold one starves.
    fn report_hot(&mut self, ready: &mut Vec<Ready>) {
        let all = self.hot.len();
        let take = all.min(READY_MAX - EVENTS);
        if self.hot_next >= all {
            self.hot_next = 0;
        }
        let (polled, first) = (self.polls, self.hot_next);
        let (tail, head) = self.hot.split_at(first);
        for key in head.iter().chain(tail).take(take).copied() {
            let Some(Some(entry)) = self.entries.get_mut(index(key)) else { continue };
            entry.polled = polled;
            entry.ready_at = count(ready.len());
            ready.push(Ready { key, readable: true, writable: false, broken: false });
        }
        self.hot_next = first + take;
        if self.hot_next >= all {
            self.hot_next = self.hot_next.saturating_sub(all);
        }
    }

    fn ask_kernel(&mut self, ready: &mut Vec<Ready>) {
        // Interrupted: the next turn asks again.
        let Ok(found) = sys::epoll::look(&self.epoll, &mut self.events[..]) else { return };
        let polled = self.polls;
        for event in self.events.get(..found).unwrap_or_default() {
            let (flags, data) = (event.flags, event.data);
            let Ok(key) = u32::try_from(data.u64()) else { continue };
            let Some(Some(entry)) = self.entries.get_mut(index(key)) else { continue };
            let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            let told = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP);
            let now = Ready {
                key,
                readable: told || broken,
                writable: entry.interest.write && (broken || flags.contains(epoll::EventFlags::OUT)),
                broken,
            };
            if entry.polled == polled {
                if let Some(known) = ready.get_mut(index(entry.ready_at)) {
                    known.readable |= now.readable;
                    known.writable |= now.writable;
                    known.broken |= now.broken;
                }
                continue;
            }
            entry.polled = polled;
            entry.ready_at = count(ready.len());
            ready.push(now);
        }
    }

    /// Takes `key` out of the hot ones.
    fn cool(&mut self, key: u32) {
        let Some(entry) = self.entry_mut(key) else { return };
        let at = std::mem::replace(&mut entry.hot_at, COLD);
        entry.misses = 0;
        if at == COLD {
            return;
        }
        self.hot.swap_remove(index(at));
        if let Some(moved) = self.hot.get(index(at)).copied()
            && let Some(entry) = self.entry_mut(moved)
        {
            entry.hot_at = at;
        }
    }

    fn entry(&self, key: u32) -> Option<&Entry> {
        self.entries.get(index(key)).and_then(Option::as_ref)
    }

    fn entry_mut(&mut self, key: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index(key)).and_then(Option::as_mut)
    }
}

fn index(key: u32) -> usize {
    usize::try_from(key).unwrap_or(usize::MAX)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
