//! The executor of a reactor's control flows, on `async-task`.
//!
//! A runnable task sits in the reactor's queue at most once, and there are at most [`TASKS_MAX`] tasks, so the queue
//! of that length is never full. A task that waits for something is reachable only through its wakers, so the reactor
//! keeps one of each: by them it finds them all when it stops, and drops their futures on their own thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use async_task::{Runnable, Task};
use crossbeam_queue::ArrayQueue;

use crate::msg::Shared;

/// Tasks of one reactor at most.
pub const TASKS_MAX: usize = 1 << 14;

/// Runnable tasks, and how many there are in all.
#[derive(Debug)]
pub(crate) struct TaskQueue {
    runnable: ArrayQueue<Runnable>,
    alive: AtomicUsize,
}

impl TaskQueue {
    pub(crate) fn new() -> Self {
        Self { runnable: ArrayQueue::new(TASKS_MAX), alive: AtomicUsize::new(0) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runnable.is_empty()
    }

    pub(crate) fn pop(&self) -> Option<Runnable> {
        self.runnable.pop()
    }

    pub(crate) fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }
}

/// Rounds of [`Living::end_all`]: a future that is dropped may start another one.
const END_ROUNDS_MAX: usize = 64;

/// The tasks that have not ended, known to their reactor alone.
#[derive(Debug, Default)]
pub(crate) struct Living {
    wakers: RefCell<BTreeMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Living {
    /// Drops the futures of all tasks.
    pub(crate) fn end_all(&self, queue: &TaskQueue) {
        for _ in 0..END_ROUNDS_MAX {
            let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
            if wakers.is_empty() && queue.is_empty() {
                return;
            }
            wakers.into_values().for_each(Waker::wake);
            while let Some(runnable) = queue.pop() {
                drop(runnable);
            }
        }
    }
}

/// Counts a task from its birth to the drop of its future.
struct Alive {
    shared: Arc<Shared>,
    living: Rc<Living>,
    key: u64,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.shared.tasks.alive.fetch_sub(1, Ordering::Relaxed);
        let waker = self.living.wakers.borrow_mut().remove(&self.key);
        drop(waker);
    }
}

/// Starts `future` on the calling thread's reactor; `None` where it runs [`TASKS_MAX`] tasks already.
pub(crate) fn spawn<F>(shared: &Arc<Shared>, living: &Rc<Living>, future: F) -> Option<Task<F::Output>>
where
    F: Future + 'static,
    F::Output: 'static,
{
    if shared.tasks.alive.fetch_add(1, Ordering::Relaxed) >= TASKS_MAX {
        shared.tasks.alive.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let key = living.next.get();
    living.next.set(key + 1);
    let alive = Alive { shared: Arc::clone(shared), living: Rc::clone(living), key };
    let counted = async move {
        let output = future.await;
        drop(alive);
        output
    };
    let home = Arc::clone(shared);
    let schedule = move |runnable| {
        assert!(home.tasks.runnable.push(runnable).is_ok(), "a task is queued at most once");
        home.notify();
    };
    let (runnable, task) = async_task::spawn_local(counted, schedule);
    living.wakers.borrow_mut().insert(key, runnable.waker());
    runnable.schedule();
    Some(task)
}
