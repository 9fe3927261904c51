//! One frontend's connection: a control flow on the control thread.
//!
//! ```text
//!   socket ─► Message ─► Session: what the frontend said (features, memory, queues) ─► messages to the reactors
//!          ◄─ reply   ◄─ when every reactor that it concerns has done it
//! ```
//!
//! Nothing here waits for a frontend but its own task. A request that cannot be done is refused (where the frontend wants
//! to know); what is no message of the protocol ends the connection, and the end of a connection stops its queues.

mod error;
mod handle;
mod queues;
mod vring;
mod wire;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::watch;

pub use error::SessionError;
pub(crate) use vring::QueueView;

use crate::controller::Controller;
use crate::device::QUEUES_MAX;
use crate::memory::{DirtyLog, GuestMap};
use crate::worker::SessionShared;
use vring::Vring;
use wire::{Message, Wire};

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;

/// The inflight region that the frontend has handed over.
#[derive(Debug)]
struct Inflight {
    file: File,
    offset: u64,
    queues: u16,
    size: u16,
}

/// What others see of a connection.
#[derive(Debug)]
pub(crate) struct SessionView {
    pub(crate) id: u64,
    pub(crate) shared: Arc<SessionShared>,
    pub(crate) features: Cell<u64>,
    pub(crate) queues: RefCell<Vec<QueueView>>,
    /// The channel for requests of ours.
    backend: RefCell<Option<OwnedFd>>,
}

impl SessionView {
    /// Tells the frontend that the configuration space has changed. One that does not read its channel misses it.
    pub(crate) fn tell_config_change(&self) {
        if let Some(channel) = &*self.backend.borrow() {
            let sent = wire::send(channel.as_fd(), &wire::header(CONFIG_CHANGE, 1, 0), None);
            if let Err(error) = sent {
                tracing::warn!(controller = self.shared.controller, %error, "a frontend could not be told of the disk's new size");
            }
        }
    }
}

pub(crate) struct Session {
    wire: Wire,
    controller: Rc<Controller>,
    view: Rc<SessionView>,
    protocol: u64,
    map: Arc<GuestMap>,
    vrings: Vec<Vring>,
    inflight: Option<Inflight>,
    /// The bitmap for dirty pages, whether it is in use or not.
    log: Option<Arc<DirtyLog>>,
}

impl Session {
    /// A connection that was just accepted.
    ///
    /// # Errors
    /// What the system says of the socket.
    pub(crate) fn new(controller: Rc<Controller>, stream: UnixStream, id: u64) -> std::io::Result<Self> {
        let shared = Arc::new(SessionShared::new(
            controller.name.clone(),
            Arc::clone(&controller.coalescing),
            Arc::clone(&controller.exclusion),
        ));
        let view = Rc::new(SessionView {
            id,
            shared,
            features: Cell::new(0),
            queues: RefCell::default(),
            backend: RefCell::default(),
        });
        Ok(Self {
            wire: Wire::new(stream)?,
            controller,
            view,
            protocol: 0,
            map: Arc::default(),
            vrings: (0..QUEUES_MAX).map(|_| Vring::default()).collect(),
            inflight: None,
            log: None,
        })
    }

    /// What others may see of it.
    pub(crate) fn view(&self) -> Rc<SessionView> {
        Rc::clone(&self.view)
    }

    /// Serves the frontend until it closes the connection, breaks the protocol, or `closing` turns true.
    pub(crate) async fn run(mut self, mut closing: watch::Receiver<bool>) {
        let ended = self.serve(&mut closing).await;
        let controller = self.controller.name.as_str();
        match ended {
            Ok(()) => tracing::info!(controller, session = self.view.id, "a frontend is gone"),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    controller,
                    session = self.view.id,
                    error,
                    "a frontend's connection is closed"
                );
            }
        }
        let controller = Rc::clone(&self.controller);
        controller.end(self.stop_all()).await;
    }

    /// A message that was begun is done whole, so that no queue is started that nobody knows of.
    async fn serve(&mut self, closing: &mut watch::Receiver<bool>) -> Result<(), SessionError> {
        loop {
            let message = tokio::select! {
                message = self.wire.recv() => message?,
                _ = closing.wait_for(|closing| *closing) => None,
            };
            let Some(message) = message else { return Ok(()) };
            self.take(message).await?;
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), SessionError> {
        let (request, wants_reply) = (message.request, message.wants_reply && self.acknowledges());
        let handled = self.handle(message).await;
        let refused = match handled {
            // It has answered by itself.
            Ok(true) => return Ok(()),
            Ok(false) => 0_u64,
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                let (controller, error) = (self.controller.name.as_str(), chain(&error));
                tracing::warn!(controller, session = self.view.id, error, "a frontend's request is refused");
                if handle::has_reply(request) {
                    // Whoever waits for an answer of another shape learns it by the end of the connection.
                    return Err(SessionError::Io(std::io::ErrorKind::InvalidInput.into()));
                }
                1
            }
        };
        if wants_reply {
            self.wire.reply(request, &[&refused.to_le_bytes()], None).await?;
        }
        Ok(())
    }
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
