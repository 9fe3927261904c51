//! Locked LBA ranges: what makes compare-and-write atomic against every other writer of a bdev, on every reactor.
//!
//! A lock is taken in two steps. The range is published; from then on each channel parks new writes that overlap it, as
//! soon as its core learns of it. Then every reactor with a channel is asked to say when the writes have ended that were
//! under way as it learned; after the last answer nobody else writes in the range until it is published no more.
//!
//! Most channels need not be asked: each keeps the number of its writes under way where all cores see it, and one that has
//! none answers by that. It counts a write before it looks for locks, and who locks looks at the counts after publishing,
//! with a barrier on all cores in between ([`fence`]); so either the write sees the lock or the lock sees the write. That
//! core need not even run: waiting for another core's turn would take milliseconds where cores have other work, too.
//!
//! To know which writes were under way, a channel counts its writes in two turns. Being asked, it changes to the other
//! turn and answers when the count of the old one is zero; asked again meanwhile, it answers after the next change.
//! A write costs plain counts and one relaxed load; nothing waits, and what cannot go on is tried again in `poll`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, TryLockError};

use penstock_reactor::sys::fence;
use penstock_reactor::{Cx, ReactorError, ReactorHandle};

use crate::bdev::{GATE_LOCKS, Shared};

/// Locked ranges of one bdev at most; further ones wait.
const LOCKS_MAX: usize = 64;

#[expect(
    clippy::disallowed_types,
    reason = "held for a few instructions, for compare-and-write and opening channels only; writers only try it"
)]
type Mutex<T> = std::sync::Mutex<T>;

/// In which turn a write is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Turn {
    /// In none: it is no write, or has a lock.
    None,
    Even,
    Odd,
}

/// Locked ranges and the channels that may write, of one bdev.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    ranges: Vec<Range>,
    writers: Vec<WriterRef>,
    next_id: u64,
}

#[derive(Debug)]
struct Range {
    id: u64,
    first: u64,
    end: u64,
}

/// How to reach a channel's [`Writer`] from another core.
#[derive(Debug, Clone)]
struct WriterRef {
    id: u64,
    reactor: ReactorHandle,
    under_way: Arc<UnderWay>,
}

/// How many writes of a channel are under way, for other cores. On a cache line of its own: it is written per I/O.
#[derive(Debug, Default)]
#[repr(align(128))]
struct UnderWay(AtomicU32);

/// A locked range: it holds when [`Self::is_held`]. It must be given back with [`Locks::unlock`].
#[derive(Debug)]
pub(crate) struct Lock {
    id: u64,
    /// Channels that have not answered.
    missing: Arc<AtomicUsize>,
    /// Channels that could not be asked yet.
    unasked: Vec<WriterRef>,
}

/// An answer that is owed; given when dropped, wherever that happens.
#[derive(Debug)]
struct Answer(Arc<AtomicUsize>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Locks {
    /// Publishes a range; `None` where it must be tried again later.
    pub(crate) fn lock(&self, shared: &Shared, first: u64, end: u64, cx: &Cx) -> Option<Lock> {
        let mut table = self.0.try_lock().ok()?;
        if table.ranges.len() >= LOCKS_MAX || table.overlaps(first, end) {
            return None;
        }
        table.next_id += 1;
        let id = table.next_id;
        table.ranges.push(Range { id, first, end });
        shared.set_gate(GATE_LOCKS, true);
        let mut unasked = table.writers.clone();
        drop(table);
        let elsewhere = unasked.iter().any(|writer| writer.reactor.id() != cx.id());
        if !elsewhere || fence::every_core() {
            unasked.retain(|writer| writer.under_way.0.load(Ordering::Acquire) > 0);
        }
        let mut lock = Lock { id, missing: Arc::new(AtomicUsize::new(unasked.len())), unasked };
        lock.ask(cx);
        Some(lock)
    }

    /// Gives a range back.
    pub(crate) fn unlock(&self, shared: &Shared, lock: &Lock) {
        let mut table = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.ranges.retain(|range| range.id != lock.id);
        if table.ranges.is_empty() {
            shared.set_gate(GATE_LOCKS, false);
        }
    }

    /// Whether a write there must wait. True when in doubt.
    pub(crate) fn forbid(&self, first: u64, end: u64) -> bool {
        match self.0.try_lock() {
            Ok(table) => table.overlaps(first, end),
            Err(TryLockError::Poisoned(table)) => table.into_inner().overlaps(first, end),
            Err(TryLockError::WouldBlock) => true,
        }
    }

    /// Adds a channel of this reactor.
    pub(crate) fn add_writer(&self, cx: &Cx) -> Rc<Writer> {
        let mut table = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let id = NEXT_WRITER.fetch_add(1, Ordering::Relaxed);
        let writer = Rc::new(Writer { id, ..Writer::default() });
        Writers::of(cx).0.borrow_mut().insert(id, Rc::downgrade(&writer));
        let under_way = Arc::clone(&writer.under_way);
        table.writers.push(WriterRef { id, reactor: cx.handle(), under_way });
        writer
    }

    /// Takes a channel out, before its writer is dropped.
    pub(crate) fn remove_writer(&self, writer: &Writer, cx: &Cx) {
        let mut table = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.writers.retain(|other| other.id != writer.id);
        if let Some(writers) = cx.find_service::<Writers>() {
            writers.0.borrow_mut().remove(&writer.id);
        }
    }
}

/// Numbers the writers of all bdevs: a reactor finds them by it.
static NEXT_WRITER: AtomicU64 = AtomicU64::new(0);

impl Table {
    fn overlaps(&self, first: u64, end: u64) -> bool {
        self.ranges.iter().any(|range| range.first < end && first < range.end)
    }
}

impl Lock {
    /// Whether nobody else writes in the range any more. To be asked in every `poll`.
    pub(crate) fn is_held(&mut self, cx: &Cx) -> bool {
        if !self.unasked.is_empty() {
            self.ask(cx);
        }
        self.missing.load(Ordering::Acquire) == 0
    }

    fn ask(&mut self, cx: &Cx) {
        let missing = &self.missing;
        self.unasked.retain(|writer| {
            let id = writer.id;
            let answer = Answer(Arc::clone(missing));
            if writer.reactor.id() == cx.id() {
                Writers::ask(cx, id, answer);
                return false;
            }
            match writer.reactor.send(move |cx| Writers::ask(cx, id, answer)) {
                Err(ReactorError::MailboxFull { .. }) => {
                    // The answer was dropped with the message, and is owed again. Only this core looks at the count.
                    missing.fetch_add(1, Ordering::Relaxed);
                    true
                }
                // A reactor that has stopped writes no more.
                _ => false,
            }
        });
    }
}

/// All channels' writers of one reactor.
#[derive(Default)]
struct Writers(RefCell<BTreeMap<u64, Weak<Writer>>>);

impl Writers {
    fn of(cx: &Cx) -> Rc<Self> {
        cx.service(|_| Self::default())
    }

    fn ask(cx: &Cx, id: u64, answer: Answer) {
        let writers = cx.find_service::<Self>();
        let writer = writers.and_then(|writers| writers.0.borrow().get(&id).and_then(Weak::upgrade));
        // A channel that is gone writes no more: dropping the answer gives it.
        if let Some(writer) = writer {
            writer.ask(answer);
        }
    }
}

/// One channel's writes under way, by turn.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    id: u64,
    is_odd: Cell<bool>,
    even: Cell<u32>,
    odd: Cell<u32>,
    /// Both together.
    under_way: Arc<UnderWay>,
    /// Owed when the turn before this one has ended.
    owed: RefCell<Vec<Answer>>,
    /// Owed when this turn has ended.
    owed_next: RefCell<Vec<Answer>>,
}

impl Writer {
    /// Counts a write that is to begin: before it is asked whether it may.
    #[inline]
    pub(crate) fn begin(&self) -> Turn {
        let (turn, count) = if self.is_odd.get() { (Turn::Odd, &self.odd) } else { (Turn::Even, &self.even) };
        count.set(count.get() + 1);
        self.under_way.0.store(self.even.get() + self.odd.get(), Ordering::Relaxed);
        fence::light();
        turn
    }

    /// Counts a write that has ended, or did not begin.
    #[inline]
    pub(crate) fn end(&self, turn: Turn) {
        let (count, is_old) = match turn {
            Turn::None => return,
            Turn::Even => (&self.even, self.is_odd.get()),
            Turn::Odd => (&self.odd, !self.is_odd.get()),
        };
        count.set(count.get() - 1);
        // Who finds 0 here sees what the writes have done.
        self.under_way.0.store(self.even.get() + self.odd.get(), Ordering::Release);
        if is_old && count.get() == 0 {
            self.old_turn_ended();
        }
    }

    fn old_count(&self) -> u32 {
        if self.is_odd.get() { self.even.get() } else { self.odd.get() }
    }

    fn ask(&self, answer: Answer) {
        if self.old_count() > 0 {
            self.owed_next.borrow_mut().push(answer);
            return;
        }
        self.is_odd.set(!self.is_odd.get());
        if self.old_count() > 0 {
            self.owed.borrow_mut().push(answer);
        }
    }

    #[cold]
    fn old_turn_ended(&self) {
        self.owed.borrow_mut().clear();
        if self.owed_next.borrow().is_empty() {
            return;
        }
        self.is_odd.set(!self.is_odd.get());
        self.owed.swap(&self.owed_next);
        if self.old_count() == 0 {
            self.owed.borrow_mut().clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_waits_for_the_writes_under_way_and_no_later_ones() {
        let writer = Writer::default();
        let missing = Arc::new(AtomicUsize::new(3));
        let first = writer.begin();
        writer.ask(Answer(Arc::clone(&missing)));
        let second = writer.begin();
        writer.ask(Answer(Arc::clone(&missing)));
        assert_eq!(missing.load(Ordering::Relaxed), 3);
        writer.end(first);
        assert_eq!(missing.load(Ordering::Relaxed), 2, "the first question knew of the first write only");
        let third = writer.begin();
        writer.end(second);
        assert_eq!(missing.load(Ordering::Relaxed), 1);
        writer.ask(Answer(Arc::clone(&missing)));
        drop(writer);
        assert_eq!(missing.load(Ordering::Relaxed), 0, "a channel that is gone owes nothing: {third:?}");
    }
}
