//! The loop.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::clock::{Clock, Tick};
use crate::cx::{Cx, PollerChange, PollerId, PollerStat};
use crate::error::ReactorError;
use crate::msg::{PollMode, ReactorHandle, ReactorId, Shared};
use crate::poller::{Poller, Rest};
use crate::stat::STALL_NS;
use crate::sys::affinity;
use crate::sys::numa::NumaTopology;
use crate::trace::{TracePoint, TraceRecord};

/// Messages handled in one turn at most.
const MESSAGES_PER_TURN: usize = 64;
/// Steps of tasks run in one turn at most.
const TASKS_PER_TURN: usize = 64;
/// Timers fired in one turn at most.
const TIMERS_PER_TURN: usize = 64;
/// Poller counters are published every so many turns.
const PUBLISH_TURNS: u64 = 1 << 16;
/// After a stall, the clock is read after every poller for so many turns, so that the next one is laid at the right door.
const CLOSE_LOOK_TURNS: u32 = 1 << 14;
/// Stalls are logged once per this time and reactor; all are counted.
const STALL_LOG_NS: u64 = 1_000_000_000;

/// How to start a reactor.
#[derive(Debug, Clone)]
pub struct ReactorConfig {
    /// Its number.
    pub id: ReactorId,
    /// The core to pin to; `None` leaves the thread to the scheduler.
    pub core: Option<u32>,
    /// What it does when idle.
    pub mode: PollMode,
    /// Where its time comes from.
    pub clock: Clock,
    /// The seed of its random numbers.
    pub seed: u64,
}

/// A reactor thread that runs.
#[derive(Debug)]
pub struct Started {
    /// How to reach it.
    pub handle: ReactorHandle,
    /// Ends when the reactor has stopped and dropped all that it owned.
    pub join: JoinHandle<()>,
}

struct PollerEntry {
    poller: Box<dyn Poller>,
    next_at: Tick,
    stat: PollerStat,
}

/// One core's loop. Owned by its thread; simulators own several and turn them by hand.
pub struct Reactor {
    cx: Cx,
    /// Called every turn.
    busy_pollers: Vec<PollerEntry>,
    /// Called by time.
    timed_pollers: Vec<PollerEntry>,
    next_timed: Tick,
    /// The end of the last turn that found something to do.
    last_work: Tick,
    last_stall_log: Tick,
    close_look: u32,
    turns: u64,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor").field("id", &self.cx.id()).finish_non_exhaustive()
    }
}

impl Reactor {
    /// Makes a reactor on the calling thread; it does nothing until it is turned or run.
    ///
    /// # Errors
    /// [`ReactorError::Os`] when descriptors cannot be had.
    pub fn new(config: &ReactorConfig) -> Result<Self, ReactorError> {
        let shared = Arc::new(Shared::new(config.id, config.core, config.mode)?);
        Self::with_shared(config, shared)
    }

    /// Starts a thread, pins it, and runs a reactor there until [`ReactorHandle::stop`].
    ///
    /// # Errors
    /// Whatever pinning or making the reactor failed with.
    pub fn start(config: ReactorConfig) -> Result<Started, ReactorError> {
        let shared = Arc::new(Shared::new(config.id, config.core, config.mode)?);
        let handle = ReactorHandle { shared: Arc::clone(&shared) };
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("reactor_{}", config.id));
        let join = thread
            .spawn(move || {
                crate::mem::never_wait();
                let pinned = config.core.map_or(Ok(()), |core| {
                    crate::mem::bind_thread_to_node(NumaTopology::system().node_of_core(core));
                    affinity::pin(core)
                });
                match pinned.and_then(|()| Self::with_shared(&config, shared)) {
                    Ok(mut reactor) => {
                        drop(ready.send(Ok(())));
                        reactor.run();
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .map_err(|source| ReactorError::Os { what: "start a reactor's thread", source })?;
        started.recv().unwrap_or(Err(ReactorError::Gone { reactor: handle.id() }))?;
        Ok(Started { handle, join })
    }

    fn with_shared(config: &ReactorConfig, shared: Arc<Shared>) -> Result<Self, ReactorError> {
        let cx = Cx::new(shared, config.clock.clone(), config.seed)?;
        let now = cx.now();
        Ok(Self {
            cx,
            busy_pollers: Vec::new(),
            timed_pollers: Vec::new(),
            next_timed: Tick::NEVER,
            last_work: now,
            last_stall_log: Tick::ZERO,
            close_look: 0,
            turns: 0,
        })
    }

    /// The reactor as code on this thread sees it.
    #[must_use]
    pub fn cx(&self) -> &Cx {
        &self.cx
    }

    /// Turns until told to stop.
    pub fn run(&mut self) {
        while !self.cx.inner().shared.is_stopping() {
            if self.turn() == 0 {
                self.maybe_sleep();
            }
        }
        self.shut_down();
    }

    /// One turn; returns how many events were handled.
    pub fn turn(&mut self) -> usize {
        let start = self.cx.now();
        let (mut clock, mut work) = (start, 0);
        if self.cx.inner().shared.take_pending() {
            work += self.run_queues();
            self.look_for_stall("messages and tasks", &mut clock);
        }
        if self.cx.inner().next_timer.get() <= start {
            work += self.fire_timers(start);
        }
        if self.next_timed <= start {
            work += self.run_timed(start, &mut clock);
        }
        for index in 0..self.busy_pollers.len() {
            let Some(entry) = self.busy_pollers.get_mut(index) else { break };
            entry.stat.run_count += 1;
            let done = entry.poller.poll(&self.cx, start);
            if done > 0 {
                entry.stat.busy_count += 1;
                work += done;
            }
            if done > 0 || self.close_look > 0 {
                let name = entry.stat.name;
                self.look_for_stall(name, &mut clock);
            }
        }
        self.close_look = self.close_look.saturating_sub(1);
        self.end_turn(start, clock, work)
    }

    fn end_turn(&mut self, start: Tick, clock: Tick, work: usize) -> usize {
        // Where a poller worked, the time after it is the time now; else it must be asked for.
        let end = if clock > start { clock } else { self.cx.clock().now().max(start) };
        if end.ns_since(clock) > STALL_NS {
            self.report_stall("a poller that found nothing", end.ns_since(clock));
        }
        self.cx.inner().now.set(end);
        self.turns += 1;
        let stats = &self.cx.inner().shared.stats;
        stats.turns.set(self.turns);
        if work > 0 {
            stats.busy_ns.add(end.ns_since(start));
            self.last_work = end;
        } else {
            stats.idle_ns.add(end.ns_since(start));
        }
        if !self.cx.inner().changes.borrow().is_empty() {
            self.apply_changes();
        }
        if self.turns.is_multiple_of(PUBLISH_TURNS) {
            self.publish_poller_stats();
        }
        work
    }

    fn run_queues(&mut self) -> usize {
        let mut work = 0;
        let shared = Arc::clone(&self.cx.inner().shared);
        let mut messages = 0;
        while messages < MESSAGES_PER_TURN
            && let Some(message) = shared.pop_message()
        {
            message(&self.cx);
            messages += 1;
        }
        shared.stats.messages.add(u64::try_from(messages).unwrap_or(0));
        work += messages;
        let mut steps = 0;
        while steps < TASKS_PER_TURN
            && let Some(runnable) = shared.tasks.pop()
        {
            runnable.run();
            steps += 1;
        }
        work += steps;
        if messages == MESSAGES_PER_TURN || !shared.tasks.is_empty() {
            shared.leave_pending();
        }
        work
    }

    fn fire_timers(&mut self, now: Tick) -> usize {
        let mut fired = 0;
        while fired < TIMERS_PER_TURN {
            let due = self.cx.inner().timers.borrow_mut().pop_due(now);
            let Some(waker) = due else { break };
            waker.wake();
            fired += 1;
        }
        let next_at = self.cx.inner().timers.borrow().next_at();
        self.cx.inner().next_timer.set(next_at);
        fired
    }

    fn run_timed(&mut self, now: Tick, clock: &mut Tick) -> usize {
        let mut work = 0;
        for index in 0..self.timed_pollers.len() {
            let Some(entry) = self.timed_pollers.get_mut(index) else { break };
            if entry.next_at > now {
                continue;
            }
            entry.next_at = now.plus_ns(entry.stat.period_ns);
            entry.stat.run_count += 1;
            let done = entry.poller.poll(&self.cx, now);
            if done > 0 {
                entry.stat.busy_count += 1;
                work += done;
            }
            let name = entry.stat.name;
            self.look_for_stall(name, clock);
        }
        self.next_timed = self.timed_pollers.iter().map(|entry| entry.next_at).min().unwrap_or(Tick::NEVER);
        work
    }

    /// Reads the clock after a poller that did something, and reports it when it took too long.
    fn look_for_stall(&mut self, name: &'static str, clock: &mut Tick) {
        let now = self.cx.clock().now();
        let held_ns = now.ns_since(*clock);
        *clock = now.max(*clock);
        if held_ns > STALL_NS {
            self.report_stall(name, held_ns);
        }
    }

    #[cold]
    fn report_stall(&mut self, name: &'static str, held_ns: u64) {
        self.close_look = CLOSE_LOOK_TURNS;
        let stats = &self.cx.inner().shared.stats;
        stats.stalls.add(1);
        stats.stall_ns_max.raise_to(held_ns);
        let tick = self.cx.now();
        let record = TraceRecord { tick, point: TracePoint::Stall, arg: held_ns, ..TraceRecord::default() };
        self.cx.with_trace(|trace| trace.record(record));
        if self.last_stall_log == Tick::ZERO || tick.ns_since(self.last_stall_log) > STALL_LOG_NS {
            self.last_stall_log = tick;
            let stalls = stats.stalls.read();
            tracing::debug!(reactor = %self.cx.id(), poller = name, held_us = held_ns / 1000, stalls, "a poller held its core");
        }
    }

    /// Sleeps when nothing has come for long enough and no poller objects.
    fn maybe_sleep(&mut self) {
        let PollMode::Adaptive { spin_ns } = self.cx.inner().shared.mode() else { return };
        let now = self.cx.now();
        if now.ns_since(self.last_work) < spin_ns || self.cx.clock().is_virtual() {
            return;
        }
        let Some(until) = self.rest_until(now) else { return };
        let shared = &self.cx.inner().shared;
        if !shared.fall_asleep() {
            return;
        }
        shared.stats.sleeps.add(1);
        self.cx.inner().sleep_set.wait((until != Tick::NEVER).then(|| until.ns_since(now)));
        shared.woken();
        let woke = self.cx.clock().now().max(now);
        let slept_ns = woke.ns_since(now);
        shared.stats.sleep_ns.add(slept_ns);
        shared.stats.idle_ns.add(slept_ns);
        self.cx.inner().now.set(woke);
        let record =
            TraceRecord { tick: woke, point: TracePoint::Sleep, arg: slept_ns, ..TraceRecord::default() };
        self.cx.with_trace(|trace| trace.record(record));
    }

    /// Until when the reactor may sleep; `None` where it may not.
    fn rest_until(&mut self, now: Tick) -> Option<Tick> {
        let mut until = self.next_timed.min(self.cx.inner().next_timer.get());
        for entry in &mut self.busy_pollers {
            match entry.poller.rest(now) {
                Rest::Never => return None,
                Rest::Until(at) => until = until.min(at),
                Rest::UntilWoken => {}
            }
        }
        (until > now).then_some(until)
    }

    fn apply_changes(&mut self) {
        let changes = std::mem::take(&mut *self.cx.inner().changes.borrow_mut());
        let now = self.cx.now();
        for change in changes {
            match change {
                PollerChange::Add { id, name, period_ns, poller } => {
                    let stat = PollerStat { id, name, period_ns, run_count: 0, busy_count: 0 };
                    let entry = PollerEntry { poller, next_at: now.plus_ns(period_ns), stat };
                    if period_ns == 0 {
                        self.busy_pollers.push(entry);
                    } else {
                        self.next_timed = self.next_timed.min(entry.next_at);
                        self.timed_pollers.push(entry);
                    }
                }
                PollerChange::Remove(id) => self.remove(id),
            }
        }
        self.publish_poller_stats();
    }

    fn remove(&mut self, id: PollerId) {
        self.busy_pollers.retain(|entry| entry.stat.id != id);
        self.timed_pollers.retain(|entry| entry.stat.id != id);
    }

    fn publish_poller_stats(&self) {
        let mut stats = self.cx.inner().poller_stats.borrow_mut();
        stats.clear();
        stats.extend(self.busy_pollers.iter().chain(&self.timed_pollers).map(|entry| entry.stat));
    }

    /// Drops pollers, tasks and services, and refuses messages from now on.
    fn shut_down(&mut self) {
        self.busy_pollers.clear();
        self.timed_pollers.clear();
        let shared = Arc::clone(&self.cx.inner().shared);
        shared.close();
        self.cx.inner().living.end_all(&shared.tasks);
        // What the tasks asked for at their end.
        let changes = std::mem::take(&mut *self.cx.inner().changes.borrow_mut());
        drop(changes);
        self.cx.clear_services();
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.shut_down();
    }
}

#[cfg(test)]
mod tests;
