//! Where io_uring is forbidden: a few threads that do the same I/Os with plain, blocking system calls.
//!
//! Each thread has a bounded queue; a full one is `Busy`. An ended I/O goes into its channel's bounded queue, and a
//! message wakes the channel's reactor.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crossbeam_queue::ArrayQueue;
use penstock_reactor::{ReactorHandle, Rest, Tick};

use super::file::Disk;
use crate::channel::{Busy, Channel};
use crate::io::Io;

/// Threads of the process.
const THREADS: usize = 4;
/// I/Os that wait for one thread at most.
const QUEUE_LEN: usize = 256;
/// I/Os of one channel under way at most.
const CHANNEL_LEN: usize = 512;

struct Job {
    io: Box<Io>,
    disk: Arc<Disk>,
    back: Arc<Back>,
}

/// Where a channel's ended I/Os go.
struct Back {
    ended: ArrayQueue<Box<Io>>,
    reactor: ReactorHandle,
}

fn threads() -> &'static [SyncSender<Job>] {
    static THREAD_QUEUES: OnceLock<Vec<SyncSender<Job>>> = OnceLock::new();
    THREAD_QUEUES.get_or_init(|| {
        let start = |number: usize| {
            let (sender, receiver) = sync_channel(QUEUE_LEN);
            let thread = std::thread::Builder::new().name(format!("bdev_io_{number}"));
            thread.spawn(move || serve(&receiver)).ok().map(|_| sender)
        };
        (0..THREADS).filter_map(start).collect()
    })
}

fn serve(jobs: &Receiver<Job>) {
    while let Ok(Job { mut io, disk, back }) = jobs.recv() {
        io.status = disk.execute(&mut io);
        drop(disk);
        // Never full: it is as long as a channel has I/Os. The channel may be gone; then the I/O ends here.
        back.ended.push(io).ok();
        // A full mailbox belongs to a reactor that is awake.
        back.reactor.send(|_| {}).ok();
    }
}

/// One core's way to a disk, by threads.
pub(super) struct ThreadChannel {
    disk: Arc<Disk>,
    back: Arc<Back>,
    in_flight: usize,
    next_thread: usize,
}

impl ThreadChannel {
    pub(super) fn new(disk: Arc<Disk>, reactor: ReactorHandle) -> Self {
        let back = Arc::new(Back { ended: ArrayQueue::new(CHANNEL_LEN), reactor });
        Self { disk, back, in_flight: 0, next_thread: 0 }
    }
}

impl Channel for ThreadChannel {
    fn submit(&mut self, io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        let threads = threads();
        if self.in_flight == CHANNEL_LEN || threads.is_empty() {
            return Err(Busy(io));
        }
        let mut job = Job { io, disk: Arc::clone(&self.disk), back: Arc::clone(&self.back) };
        for _ in 0..threads.len() {
            self.next_thread = (self.next_thread + 1) % threads.len();
            let Some(thread) = threads.get(self.next_thread) else { break };
            match thread.try_send(job) {
                Ok(()) => {
                    self.in_flight += 1;
                    return Ok(());
                }
                Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => job = back,
            }
        }
        Err(Busy(job.io))
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let mut count = 0;
        while count < budget
            && let Some(io) = self.back.ended.pop()
        {
            done.push(io);
            count += 1;
        }
        self.in_flight -= count;
        count
    }

    fn rest(&self, _now: Tick) -> Rest {
        if self.back.ended.is_empty() { Rest::UntilWoken } else { Rest::Never }
    }
}
