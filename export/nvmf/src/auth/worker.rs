//! The thread for what would hold a reactor up: exponentiations of DH-HMAC-CHAP, handshakes of TLS.
//!
//! One thread for a target: work waits in a bounded queue and is done in the order in which it came; hosts that connect in
//! crowds wait for each other, not their I/O. A result goes into the channel of the reactor that has asked for it, which
//! is then told to look there.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use penstock_reactor::{ReactorError, ReactorHandle};
use penstock_security::chap::Done;
use penstock_security::tls::{Progress, Session, TlsError};

use crate::group::GroupCell;
use crate::tls::Psks;

/// Tasks that wait at most. Each is a command or a connection of a host, so few hosts come near it.
const TASKS_MAX: usize = 4096;
/// Pause before a reactor with a full mailbox is tried again.
const MAILBOX_PAUSE: Duration = Duration::from_millis(1);

type Task = Box<dyn FnOnce(&mut Psks) -> Option<ReactorHandle> + Send>;

/// A result, and whom it is for: a connection of the reactor that has asked.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) conn: u32,
    pub(crate) serial: u64,
    pub(crate) what: Worked,
}

/// What was done.
#[derive(Debug)]
pub(crate) enum Worked {
    /// A job of an authentication, for the command that waits for it.
    Auth { slot: u16, done: Done },
    /// A step of a handshake; the session comes back.
    Tls { session: Box<Session>, progress: Result<Progress, TlsError> },
}

/// Where the results for one reactor go.
#[derive(Debug)]
pub(crate) struct Answers {
    handle: ReactorHandle,
    to: Sender<Answer>,
    from: Receiver<Answer>,
}

impl Answers {
    /// Of the reactor of this handle.
    pub(crate) fn new(handle: ReactorHandle) -> Self {
        let (to, from) = channel();
        Self { handle, to, from }
    }

    /// The next result.
    pub(crate) fn next(&self) -> Option<Answer> {
        self.from.try_recv().ok()
    }
}

/// The worker's queue; the thread ends with it.
pub(crate) struct Worker {
    tasks: Option<SyncSender<Task>>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("runs", &self.tasks.is_some()).finish()
    }
}

impl Worker {
    /// Starts the thread. To be called where a new thread may run on any core: it inherits the caller's.
    pub(crate) fn start() -> Self {
        let (tasks, queue) = sync_channel::<Task>(TASKS_MAX);
        let thread = std::thread::Builder::new().name("nvmf-auth".to_owned());
        let started = thread.spawn(move || {
            let mut psks = Psks::default();
            for task in queue {
                if let Some(reactor) = task(&mut psks) {
                    tell(&reactor);
                }
            }
        });
        if let Err(error) = &started {
            tracing::error!(%error, "no thread for authentication: hosts that need it are refused");
        }
        Self { tasks: started.ok().map(|_| tasks) }
    }

    /// Runs `work` on the thread. False, and nothing is run, when too much waits already.
    pub(crate) fn submit(
        &self,
        answers: &Answers,
        work: impl FnOnce(&mut Psks) -> Answer + Send + 'static,
    ) -> bool {
        let (reactor, to) = (answers.handle.clone(), answers.to.clone());
        let task: Task = Box::new(move |psks| to.send(work(psks)).ok().map(|()| reactor));
        self.tasks.as_ref().is_some_and(|tasks| tasks.try_send(task).is_ok())
    }

    /// Changes the keys for TLS; what is submitted afterwards finds them changed. False when too much waits already.
    pub(crate) fn change_psks(&self, change: impl FnOnce(&mut Psks) + Send + 'static) -> bool {
        let task: Task = Box::new(move |psks| {
            change(psks);
            None
        });
        self.tasks.as_ref().is_some_and(|tasks| tasks.try_send(task).is_ok())
    }
}

/// Tells a reactor that results are there.
fn tell(reactor: &ReactorHandle) {
    let look = || {
        reactor.send(|cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.take_answers();
            }
        })
    };
    while matches!(look(), Err(ReactorError::MailboxFull { .. })) {
        #[expect(clippy::disallowed_methods, reason = "this thread is no reactor")]
        std::thread::sleep(MAILBOX_PAUSE);
    }
}
