use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::clock::VirtualClock;

fn simulated() -> (Reactor, VirtualClock) {
    let (clock, hand) = Clock::simulated();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::ADAPTIVE, clock, seed: 1 };
    (Reactor::new(&config).unwrap(), hand)
}

fn started(mode: PollMode) -> Started {
    let clock = Clock::system();
    Reactor::start(ReactorConfig { id: ReactorId(3), core: None, mode, clock, seed: 1 }).unwrap()
}

struct Counting(Rc<Cell<u64>>);

impl Poller for Counting {
    fn poll(&mut self, _cx: &Cx, _now: Tick) -> usize {
        self.0.set(self.0.get() + 1);
        1
    }
}

#[test]
fn a_busy_poller_runs_every_turn_and_a_timed_one_when_it_is_due() {
    let (mut reactor, hand) = simulated();
    let (busy, timed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let id = reactor.cx().add_poller("busy", Box::new(Counting(busy.clone())));
    reactor.cx().add_timed_poller("timed", Duration::from_millis(1), Box::new(Counting(timed.clone())));
    for _ in 0..11 {
        reactor.turn();
        hand.advance_ns(250_000);
    }
    assert_eq!((busy.get(), timed.get()), (10, 2));
    reactor.cx().remove_poller(id);
    reactor.turn();
    reactor.turn();
    assert_eq!(busy.get(), 11, "the turn of the removal was the last");
}

#[test]
fn a_task_sleeps_by_the_reactors_clock() {
    let (mut reactor, hand) = simulated();
    let cx = reactor.cx().clone();
    let woken = Rc::new(Cell::new(false));
    let seen = woken.clone();
    let flow = async move {
        cx.sleep(Duration::from_secs(5)).await;
        seen.set(true);
    };
    reactor.cx().spawn(flow).unwrap().detach();
    for _ in 0..3 {
        reactor.turn();
    }
    assert!(!woken.get());
    hand.advance_ns(5_000_000_000);
    for _ in 0..3 {
        reactor.turn();
    }
    assert!(woken.get());
    assert_eq!(reactor.cx().handle().tasks_alive(), 0);
}

#[test]
fn a_full_mailbox_hands_the_message_back() {
    let (mut reactor, _hand) = simulated();
    let handle = reactor.cx().handle();
    let count = Arc::new(AtomicU64::new(0));
    let send = || {
        let count = Arc::clone(&count);
        handle.send(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        })
    };
    for _ in 0..crate::msg::MAILBOX_LEN {
        send().unwrap();
    }
    assert!(matches!(send(), Err(ReactorError::MailboxFull { .. })));
    while reactor.turn() > 0 {}
    assert_eq!(count.load(Ordering::Relaxed), 4096);
    send().unwrap();
}

#[test]
fn a_sleeping_reactor_wakes_for_a_message_and_stops_when_told() {
    let started = started(PollMode::Adaptive { spin_ns: 1000 });
    while started.handle.stats().sleeps.read() == 0 {
        std::thread::yield_now();
    }
    let (tell, told) = std::sync::mpsc::channel();
    started.handle.send(move |cx| tell.send(cx.id()).unwrap()).unwrap();
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(ReactorId(3)));
    started.handle.stop();
    started.join.join().unwrap();
    assert!(matches!(started.handle.send(|_| {}), Err(ReactorError::Gone { .. })));
}

#[test]
fn the_poll_mode_changes_live() {
    let started = started(PollMode::Busy);
    let turns = started.handle.stats().turns.read();
    while started.handle.stats().turns.read() < turns + 1000 {
        std::thread::yield_now();
    }
    assert_eq!(started.handle.stats().sleeps.read(), 0);
    started.handle.set_poll_mode(PollMode::Adaptive { spin_ns: 1000 });
    while started.handle.stats().sleeps.read() == 0 {
        std::thread::yield_now();
    }
    started.handle.stop();
    started.join.join().unwrap();
}

#[test]
fn a_message_left_in_a_stopped_reactor_tells_its_sender() {
    let started = started(PollMode::Busy);
    started.handle.stop();
    let answer = futures_executor::block_on(started.handle.call(|_| 1));
    started.join.join().unwrap();
    assert!(matches!(answer, Ok(1) | Err(ReactorError::Gone { .. })));
}

/// Sets a flag when it is dropped.
struct Told(Arc<AtomicU64>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tasks that waited for somebody else's waker used to outlive their reactor, with all the sockets they held.
#[test]
fn a_task_that_waits_for_ever_is_dropped_when_its_reactor_stops() {
    let started = started(PollMode::Busy);
    let dropped = Arc::new(AtomicU64::new(0));
    let (never, waits) = futures_channel::oneshot::channel::<()>();
    let told = (Told(Arc::clone(&dropped)), Told(Arc::clone(&dropped)));
    let flow = move |cx: &Cx| {
        let (first, second) = told;
        let sleeper = cx.clone();
        let waiting = async move {
            let _held = first;
            waits.await.ok();
        };
        let sleeping = async move {
            let _held = second;
            sleeper.sleep(Duration::from_secs(3600)).await;
        };
        cx.spawn(waiting).unwrap().detach();
        cx.spawn(sleeping).unwrap().detach();
    };
    futures_executor::block_on(started.handle.call(flow)).unwrap();
    assert_eq!(started.handle.tasks_alive(), 2);
    started.handle.stop();
    started.join.join().unwrap();
    assert_eq!((dropped.load(Ordering::Relaxed), started.handle.tasks_alive()), (2, 0));
    assert!(never.send(()).is_err());
}

#[test]
fn a_sleeping_future_wakes_whoever_polled_it_last() {
    let (mut reactor, hand) = simulated();
    let cx = reactor.cx().clone();
    let sleeping = async move { cx.sleep(Duration::from_millis(1)).await };
    let mut sleeping = Box::pin(sleeping);
    let mut first = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(sleeping.as_mut().poll(&mut first).is_pending());
    let task = reactor.cx().spawn(sleeping).unwrap();
    reactor.turn();
    hand.advance_ns(1_000_000);
    for _ in 0..3 {
        reactor.turn();
    }
    assert!(task.is_finished(), "the noop waker of the first poll was woken instead");
}

/// Holds the core for 3 ms of real time, once.
struct Holding(bool);

impl Poller for Holding {
    fn poll(&mut self, cx: &Cx, _now: Tick) -> usize {
        if !std::mem::replace(&mut self.0, true) {
            let start = cx.clock().now();
            while cx.clock().now().ns_since(start) < 3_000_000 {}
        }
        0
    }
}

#[test]
fn a_poller_that_holds_its_core_is_counted_as_a_stall() {
    let clock = Clock::system();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let mut reactor = Reactor::new(&config).unwrap();
    reactor.cx().with_trace(|trace| trace.set_enabled(true));
    reactor.turn();
    let before = reactor.cx().handle().stats().stalls.read();
    reactor.cx().add_poller("holding", Box::new(Holding(false)));
    for _ in 0..4 {
        reactor.turn();
    }
    let stats = reactor.cx().handle();
    assert!(stats.stats().stalls.read() > before);
    assert!(stats.stats().stall_ns_max.read() >= 3_000_000);
    let dump = reactor.cx().with_trace(|trace| trace.dump());
    assert!(dump.iter().any(|record| record.point == TracePoint::Stall && record.arg >= 3_000_000));
}
