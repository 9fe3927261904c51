//! The mailbox of a reactor: how other threads reach it.
//!
//! Messages are closures that run on the reactor with its [`Cx`]. They serve control flows (open a channel, hand over
//! a connection, read statistics); data of one core's I/O stays on that core, or goes by SPSC rings between pairs of
//! cores. The mailbox is bounded: a full one is an error to the sender, who decides. A sender that the scheduler stops
//! halfway through its push is waited for by the reactor (`ArrayQueue` is not free of such waits), one more reason to give
//! reactors cores of their own.
//!
//! Waking: a sender pushes, then rings the [`Doorbell`], and wakes the reactor where that says so.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use futures_channel::oneshot;

use crate::cx::Cx;
use crate::doorbell::Doorbell;
use crate::error::ReactorError;
use crate::stat::ReactorStats;
use crate::sys::wake::WakeFd;
use crate::task::TaskQueue;

/// Messages waiting in one mailbox at most.
pub(crate) const MAILBOX_LEN: usize = 4096;

/// Tries of [`ReactorHandle::send_patiently`]; a mailbox is emptied every turn.
const SEND_TRIES_MAX: usize = 1_000_000;

pub(crate) type Message = Box<dyn FnOnce(&Cx) + Send>;

/// Names a reactor: 0, 1, … in the order of the daemon's cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReactorId(pub u32);

impl fmt::Display for ReactorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a reactor does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollMode {
    /// Polls for `spin_ns` after the last event, then blocks until something wakes it.
    Adaptive {
        /// How long it polls in vain before it sleeps, in nanoseconds.
        spin_ns: u64,
    },
    /// Polls for ever: the core is at 100 %, and nothing waits for a wake-up.
    Busy,
}

impl PollMode {
    /// Adaptive, with a spin that outlasts the round trip of a host that keeps one I/O in flight.
    pub const ADAPTIVE: Self = Self::Adaptive { spin_ns: 1_000_000 };

    const BUSY_CODE: u64 = u64::MAX;

    fn code(self) -> u64 {
        match self {
            Self::Adaptive { spin_ns } => spin_ns.min(Self::BUSY_CODE - 1),
            Self::Busy => Self::BUSY_CODE,
        }
    }

    fn from_code(code: u64) -> Self {
        if code == Self::BUSY_CODE { Self::Busy } else { Self::Adaptive { spin_ns: code } }
    }
}

/// What a reactor shares with the other threads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: ReactorId,
    pub(crate) core: Option<u32>,
    pub(crate) tasks: TaskQueue,
    pub(crate) stats: ReactorStats,
    mailbox: ArrayQueue<MessageCell>,
    bell: Doorbell,
    stopping: AtomicBool,
    /// No message is taken any more.
    closed: AtomicBool,
    mode: AtomicU64,
    pub(crate) wake: WakeFd,
}

/// A message, with a `Debug` that the queue can show.
pub(crate) struct MessageCell(pub(crate) Message);

impl fmt::Debug for MessageCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Message")
    }
}

impl Shared {
    pub(crate) fn new(id: ReactorId, core: Option<u32>, mode: PollMode) -> Result<Self, ReactorError> {
        Ok(Self {
            id,
            core,
            tasks: TaskQueue::new(),
            stats: ReactorStats::default(),
            mailbox: ArrayQueue::new(MAILBOX_LEN),
            bell: Doorbell::new(),
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            mode: AtomicU64::new(mode.code()),
            wake: WakeFd::new()?,
        })
    }

    pub(crate) fn mode(&self) -> PollMode {
        PollMode::from_code(self.mode.load(Ordering::Relaxed))
    }

    /// Tells the reactor to look at its queues, and wakes it if it sleeps.
    pub(crate) fn notify(&self) {
        if self.bell.ring() {
            self.wake.wake();
        }
    }

    /// Whether anything was pushed since the last call.
    #[inline]
    pub(crate) fn take_pending(&self) -> bool {
        self.bell.take()
    }

    /// Leaves a note for the next turn to look again.
    pub(crate) fn leave_pending(&self) {
        self.bell.leave();
    }

    pub(crate) fn pop_message(&self) -> Option<Message> {
        self.mailbox.pop().map(|cell| cell.0)
    }

    /// Says that the reactor is about to sleep; false, and not sleeping, when something has come meanwhile.
    pub(crate) fn fall_asleep(&self) -> bool {
        let asleep = self.bell.fall_asleep();
        // The turn before may have taken the stop's ring and not known it from a message's.
        if asleep && self.is_stopping() {
            self.bell.woken();
            return false;
        }
        asleep
    }

    pub(crate) fn woken(&self) {
        self.bell.woken();
        self.wake.clear();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Refuses messages from now on and drops those that wait, so that their senders learn of it.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        while let Some(message) = self.pop_message() {
            drop(message);
        }
    }
}

/// Reaches a reactor from any thread.
#[derive(Debug, Clone)]
pub struct ReactorHandle {
    pub(crate) shared: Arc<Shared>,
}

impl ReactorHandle {
    /// The reactor's number.
    #[must_use]
    pub fn id(&self) -> ReactorId {
        self.shared.id
    }

    /// The core it is pinned to.
    #[must_use]
    pub fn core(&self) -> Option<u32> {
        self.shared.core
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> &ReactorStats {
        &self.shared.stats
    }

    /// Tasks of its executor that have not ended.
    #[must_use]
    pub fn tasks_alive(&self) -> usize {
        self.shared.tasks.alive()
    }

    /// How it polls.
    #[must_use]
    pub fn poll_mode(&self) -> PollMode {
        self.shared.mode()
    }

    /// Changes how it polls; holds from the next turn on.
    pub fn set_poll_mode(&self, mode: PollMode) {
        self.shared.mode.store(mode.code(), Ordering::Relaxed);
        self.shared.notify();
    }

    /// Runs `message` on the reactor.
    ///
    /// # Errors
    /// [`ReactorError::MailboxFull`] and [`ReactorError::Gone`]; `message` is dropped unrun.
    pub fn send(&self, message: impl FnOnce(&Cx) + Send + 'static) -> Result<(), ReactorError> {
        self.push(MessageCell(Box::new(message)))?.map_or(Ok(()), |_| Err(self.full()))
    }

    /// Runs `message` on the reactor, whose mailbox may be full for a moment: the calling thread yields until there is room.
    /// Messages of one thread arrive in the order of its calls. Not for reactors: two that wait for one another would stop.
    ///
    /// # Errors
    /// As [`Self::send`]; [`ReactorError::MailboxFull`] only when the reactor does not empty its mailbox at all.
    pub fn send_patiently(&self, message: impl FnOnce(&Cx) + Send + 'static) -> Result<(), ReactorError> {
        let mut unsent = MessageCell(Box::new(message));
        for _ in 0..SEND_TRIES_MAX {
            match self.push(unsent)? {
                None => return Ok(()),
                Some(message) => unsent = message,
            }
            std::thread::yield_now();
        }
        Err(self.full())
    }

    /// Puts a message into the mailbox; returns it when there is no room.
    fn push(&self, message: MessageCell) -> Result<Option<MessageCell>, ReactorError> {
        let gone = ReactorError::Gone { reactor: self.shared.id };
        if self.shared.closed.load(Ordering::SeqCst) {
            return Err(gone);
        }
        if let Err(message) = self.shared.mailbox.push(message) {
            return Ok(Some(message));
        }
        // The reactor may have closed between the look and the push: then nobody else drops the message.
        if self.shared.closed.load(Ordering::SeqCst) {
            self.shared.close();
            return Err(gone);
        }
        self.shared.notify();
        Ok(None)
    }

    fn full(&self) -> ReactorError {
        ReactorError::MailboxFull { reactor: self.shared.id, waiting: MAILBOX_LEN }
    }

    /// Runs `function` on the reactor and waits for what it returns. Works under any executor.
    ///
    /// # Errors
    /// As [`Self::send`]; and [`ReactorError::Gone`] when the reactor stops before it has answered.
    pub async fn call<R: Send + 'static>(
        &self,
        function: impl FnOnce(&Cx) -> R + Send + 'static,
    ) -> Result<R, ReactorError> {
        let (answer, answered) = oneshot::channel();
        self.send(move |cx| drop(answer.send(function(cx))))?;
        answered.await.map_err(|_| ReactorError::Gone { reactor: self.shared.id })
    }

    /// Starts the control flow that `function` makes on the reactor, and waits for its end.
    ///
    /// # Errors
    /// As [`Self::call`]; and [`ReactorError::TasksFull`].
    pub async fn call_async<F, Fut>(&self, function: F) -> Result<Fut::Output, ReactorError>
    where
        F: FnOnce(Cx) -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.send(move |cx| {
            let flow = function(cx.clone());
            // Where the executor is full, dropping `answer` tells the caller.
            if let Ok(task) = cx.spawn(async move { drop(answer.send(flow.await)) }) {
                task.detach();
            }
        })?;
        answered.await.map_err(|_| ReactorError::Gone { reactor: self.shared.id })
    }

    /// Has the reactor poll once more, waking it if it sleeps: for queues of a poller's own that another core fills. What was
    /// pushed before is seen by that poll. Allocates nothing and takes no lock.
    #[inline]
    pub fn ring(&self) {
        self.shared.notify();
    }

    /// Asks the reactor to end after its current turn.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.notify();
    }
}
