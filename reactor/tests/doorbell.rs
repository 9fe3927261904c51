//! The sleep and wake handshake under the loom model checker, which tries every order of the threads' steps and every
//! value that the memory model lets them see. A lost wake-up shows as a deadlock. The file checked is the one that the
//! reactor is built from, with loom's atomics in place of the standard library's.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

mod atomics {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/doorbell.rs"]
mod doorbell;

use doorbell::Doorbell;
use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// The eventfd: stays readable until it is cleared.
struct Wake {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    fn wake(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn sleep(&self) {
        let mut set = self.set.lock().unwrap();
        while !*set {
            set = self.changed.wait(set).unwrap();
        }
    }

    fn clear(&self) {
        *self.set.lock().unwrap() = false;
    }
}

struct Shared {
    bell: Doorbell,
    wake: Wake,
    mailbox: AtomicUsize,
    stopping: atomics::AtomicBool,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bell: Doorbell::new(),
            wake: Wake { set: Mutex::new(false), changed: Condvar::new() },
            mailbox: AtomicUsize::new(0),
            stopping: atomics::AtomicBool::new(false),
        })
    }

    fn send(&self) {
        self.mailbox.fetch_add(1, atomics::Ordering::AcqRel);
        if self.bell.ring() {
            self.wake.wake();
        }
    }

    fn stop(&self) {
        self.stopping.store(true, atomics::Ordering::Release);
        if self.bell.ring() {
            self.wake.wake();
        }
    }

    /// As `Reactor::run`: turns, and sleeps after a turn without work, until `ended`.
    fn run(&self, ended: impl Fn(usize) -> bool) {
        let mut handled = 0;
        while !ended(handled) {
            let before = handled;
            if self.bell.take() {
                handled += self.mailbox.swap(0, atomics::Ordering::AcqRel);
            }
            if handled == before && self.falls_asleep() {
                self.wake.sleep();
                self.bell.woken();
                self.wake.clear();
            }
        }
    }

    fn falls_asleep(&self) -> bool {
        let asleep = self.bell.fall_asleep();
        if asleep && self.stopping.load(atomics::Ordering::Acquire) {
            self.bell.woken();
            return false;
        }
        asleep
    }
}

/// Runs `test` in every order with at most `preemptions` switches away from a thread that could go on; all orders of the
/// larger cases would take hours, and known bugs of this kind show with two.
fn check(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

#[test]
fn no_message_of_a_sender_is_slept_over() {
    check(3, || {
        let shared = Shared::new();
        let sender = Arc::clone(&shared);
        let sender = thread::spawn(move || {
            sender.send();
            sender.send();
        });
        shared.run(|handled| handled == 2);
        sender.join().unwrap();
    });
}

/// The doorbell once said "pending" by a plain store. The second sender's then hid the first one's from the reactor, which
/// took the flag without being bound to see the first message, and slept over it (on processors weaker than x86).
#[test]
fn no_message_of_two_senders_is_slept_over() {
    check(2, || {
        let shared = Shared::new();
        let senders = [Arc::clone(&shared), Arc::clone(&shared)];
        let senders = senders.map(|shared| thread::spawn(move || shared.send()));
        shared.run(|handled| handled == 2);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn a_stop_is_not_slept_over() {
    loom::model(|| {
        let shared = Shared::new();
        let stopper = Arc::clone(&shared);
        let stopper = thread::spawn(move || stopper.stop());
        shared.run(|_| shared.stopping.load(atomics::Ordering::Acquire));
        stopper.join().unwrap();
    });
}

#[test]
fn a_note_to_itself_keeps_the_reactor_awake() {
    loom::model(|| {
        let bell = Doorbell::new();
        assert!(bell.take());
        bell.leave();
        assert!(!bell.fall_asleep());
    });
}
