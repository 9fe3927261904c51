//! The executor of a reactor's control flows, on `async-task`.
//!
//! A runnable task sits in the reactor's queue at most once, and there are at most [`TASKS_MAX`] tasks, so the queue
//! of that length is never full.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// Counts a task from its birth to the drop of its future.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.tasks.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts `future` on the calling thread's reactor; `None` where it runs [`TASKS_MAX`] tasks already.
pub(crate) fn spawn<F>(shared: &Arc<Shared>, future: F) -> Option<Task<F::Output>>
where
    F: Future + 'static,
    F::Output: 'static,
{
    if shared.tasks.alive.fetch_add(1, Ordering::Relaxed) >= TASKS_MAX {
        shared.tasks.alive.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let alive = Alive(Arc::clone(shared));
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
    runnable.schedule();
    Some(task)
}
