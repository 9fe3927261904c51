//! What code that runs on a reactor can ask of it.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_task::Task;

use crate::clock::{Clock, Tick};
use crate::error::ReactorError;
use crate::msg::{ReactorHandle, ReactorId, Shared};
use crate::poller::Poller;
use crate::rng::Rng;
use crate::sys::wake::SleepSet;
use crate::task::{self, Living, TASKS_MAX};
use crate::timer::{TimerKey, Timers};
use crate::trace::TraceRing;

/// Names a poller of one reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollerId(u64);

/// A change of the list of pollers, done between two turns.
pub(crate) enum PollerChange {
    Add { id: PollerId, name: &'static str, period_ns: u64, poller: Box<dyn Poller> },
    Remove(PollerId),
}

/// One poller's name and counters, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollerStat {
    /// Which.
    pub id: PollerId,
    /// Its name.
    pub name: &'static str,
    /// 0: called every turn; else the nanoseconds between calls.
    pub period_ns: u64,
    /// How often it was called.
    pub run_count: u64,
    /// How often it found something to do.
    pub busy_count: u64,
}

/// The reactor, seen from code that runs on it. Cheap to clone, and never leaves its core.
#[derive(Clone)]
pub struct Cx(Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) living: Rc<Living>,
    pub(crate) clock: Clock,
    pub(crate) now: Cell<Tick>,
    pub(crate) timers: RefCell<Timers>,
    /// When the earliest timer is due, kept beside the map so that a turn looks at one word.
    pub(crate) next_timer: Cell<Tick>,
    pub(crate) changes: RefCell<Vec<PollerChange>>,
    pub(crate) poller_stats: RefCell<Vec<PollerStat>>,
    pub(crate) sleep_set: SleepSet,
    next_poller: Cell<u64>,
    services: RefCell<BTreeMap<TypeId, Rc<dyn Any>>>,
    rng: RefCell<Rng>,
    trace: RefCell<TraceRing>,
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("reactor", &self.0.shared.id).finish_non_exhaustive()
    }
}

impl Cx {
    pub(crate) fn new(shared: Arc<Shared>, clock: Clock, seed: u64) -> Result<Self, ReactorError> {
        let sleep_set = SleepSet::new()?;
        sleep_set.add(&shared.wake)?;
        let now = Cell::new(clock.now());
        Ok(Self(Rc::new(Inner {
            shared,
            living: Rc::default(),
            clock,
            now,
            timers: RefCell::default(),
            next_timer: Cell::new(Tick::NEVER),
            changes: RefCell::default(),
            poller_stats: RefCell::default(),
            sleep_set,
            next_poller: Cell::new(0),
            services: RefCell::default(),
            rng: RefCell::new(Rng::seeded(seed)),
            trace: RefCell::new(TraceRing::new()),
        })))
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// The reactor's number.
    #[must_use]
    pub fn id(&self) -> ReactorId {
        self.0.shared.id
    }

    /// A handle that other threads may use.
    #[must_use]
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle { shared: Arc::clone(&self.0.shared) }
    }

    /// The time at the beginning of this turn. Costs nothing.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.0.now.get()
    }

    /// The clock itself, for the few who need the time within a turn.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The descriptors that end this reactor's sleep.
    #[must_use]
    pub fn sleep_set(&self) -> &SleepSet {
        &self.0.sleep_set
    }

    /// Calls `poller` every turn, from the next one on. `name` appears in reports.
    pub fn add_poller(&self, name: &'static str, poller: Box<dyn Poller>) -> PollerId {
        self.add_timed_poller(name, Duration::ZERO, poller)
    }

    /// Calls `poller` every `period`, first after one period. A zero period means every turn.
    pub fn add_timed_poller(
        &self,
        name: &'static str,
        period: Duration,
        poller: Box<dyn Poller>,
    ) -> PollerId {
        let id = PollerId(self.0.next_poller.get());
        self.0.next_poller.set(id.0 + 1);
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        self.0.changes.borrow_mut().push(PollerChange::Add { id, name, period_ns, poller });
        id
    }

    /// Drops a poller after the current turn; it is not called again once this turn has ended.
    pub fn remove_poller(&self, id: PollerId) {
        self.0.changes.borrow_mut().push(PollerChange::Remove(id));
    }

    /// Names and counters of the pollers, as of the end of the last turn that changed or reported them.
    #[must_use]
    pub fn poller_stats(&self) -> Vec<PollerStat> {
        self.0.poller_stats.borrow().clone()
    }

    /// Starts a control flow on this reactor. Dropping the [`Task`] cancels it; `detach` lets it run.
    ///
    /// # Errors
    /// [`ReactorError::TasksFull`] at [`TASKS_MAX`] tasks.
    pub fn spawn<F>(&self, future: F) -> Result<Task<F::Output>, ReactorError>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        task::spawn(&self.0.shared, &self.0.living, future)
            .ok_or(ReactorError::TasksFull { reactor: self.id(), max: TASKS_MAX })
    }

    /// Waits until `at`.
    pub async fn sleep_until(&self, at: Tick) {
        let mut timer = Timer { cx: self, key: None };
        poll_fn(|context| {
            if self.now() >= at {
                return Poll::Ready(());
            }
            match timer.key {
                // Whoever polls last is woken: a future may have moved to another task since.
                Some(key) => self.0.timers.borrow_mut().set_waker(key, context.waker()),
                None => timer.key = Some(self.set_timer(at, context.waker().clone())),
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().plus(duration)).await;
    }

    fn set_timer(&self, at: Tick, waker: std::task::Waker) -> TimerKey {
        let mut timers = self.0.timers.borrow_mut();
        let key = timers.add(at, waker);
        self.0.next_timer.set(timers.next_at());
        key
    }

    fn cancel_timer(&self, key: TimerKey) {
        let mut timers = self.0.timers.borrow_mut();
        timers.cancel(key);
        self.0.next_timer.set(timers.next_at());
    }

    /// The one object of type `T` on this reactor (a group of sockets, a ring, …), made on first use.
    pub fn service<T: Any>(&self, make: impl FnOnce(&Self) -> T) -> Rc<T> {
        if let Some(found) = self.find_service::<T>() {
            return found;
        }
        let made = Rc::new(make(self));
        let erased: Rc<dyn Any> = made.clone();
        self.0.services.borrow_mut().insert(TypeId::of::<T>(), erased);
        made
    }

    /// The one object of type `T`, if it has been made.
    #[must_use]
    pub fn find_service<T: Any>(&self) -> Option<Rc<T>> {
        let found = self.0.services.borrow().get(&TypeId::of::<T>()).cloned();
        found.and_then(|service| service.downcast().ok())
    }

    /// Drops the reactor's reference to its `T`.
    pub fn remove_service<T: Any>(&self) {
        let removed = self.0.services.borrow_mut().remove(&TypeId::of::<T>());
        drop(removed);
    }

    pub(crate) fn clear_services(&self) {
        let all = std::mem::take(&mut *self.0.services.borrow_mut());
        drop(all);
    }

    /// Random numbers, seeded per reactor.
    pub fn with_rng<R>(&self, function: impl FnOnce(&mut Rng) -> R) -> R {
        function(&mut self.0.rng.borrow_mut())
    }

    /// The core's trace ring.
    pub fn with_trace<R>(&self, function: impl FnOnce(&mut TraceRing) -> R) -> R {
        function(&mut self.0.trace.borrow_mut())
    }
}

/// Cancels its timer when the waiting future is dropped.
struct Timer<'a> {
    cx: &'a Cx,
    key: Option<TimerKey>,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.cx.cancel_timer(key);
        }
    }
}
