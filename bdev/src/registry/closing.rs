//! How the registry hears, on the control thread, that a bdev was closed on whichever thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

#[expect(
    clippy::disallowed_types,
    reason = "held for a few instructions, when a bdev is closed or removed only"
)]
type Mutex<T> = std::sync::Mutex<T>;

/// Tasks of the control thread that wait for closings.
#[derive(Debug, Default)]
pub(super) struct Closings(Mutex<Vec<Waker>>);

impl Closings {
    /// Wakes a task once, at the next closing.
    pub(super) fn wake_at_next(&self, waker: &Waker) {
        let mut waiting = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// What an open descriptor holds; its end is the closing.
#[derive(Debug)]
pub(crate) struct Open {
    flag: Arc<AtomicBool>,
    closings: Arc<Closings>,
}

/// Whether a descriptor is still open.
#[derive(Debug)]
pub(crate) struct OpenFlag(Arc<AtomicBool>);

impl Open {
    pub(super) fn new(closings: Arc<Closings>) -> (Self, OpenFlag) {
        let flag = Arc::new(AtomicBool::new(true));
        (Self { flag: Arc::clone(&flag), closings }, OpenFlag(flag))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.flag.store(false, Ordering::Release);
        self.closings.wake_all();
    }
}

impl OpenFlag {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
