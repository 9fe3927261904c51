//! The owners of logical units, on the control thread, and the way of requests to them and of views back.
//!
//! A request is answered when every reactor has the view that it made: a command that was preempted is then refused on
//! every core. Nothing here waits: the last reactor that has taken a view over sends the reply.
#![expect(
    clippy::disallowed_types,
    reason = "a message is given to a full mailbox again; taken once per change of a logical unit, never per command"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;
use penstock_bdev::reservation::{Effects, RegistrantId};
use penstock_reactor::ReactorHandle;
use penstock_scsi::{Control, LuId, LuOwner, LuView, Reply};
use uuid::Uuid;

use crate::conn::ReplyTo;
use crate::group::{GroupCell, Peers};

/// Where a reply goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) reactor: usize,
    pub(crate) conn: u32,
    pub(crate) serial: u64,
    pub(crate) to: ReplyTo,
}

/// A request to the owner of a logical unit.
#[derive(Debug)]
pub struct ControlRequest {
    pub(crate) lu: LuId,
    pub(crate) from: RegistrantId,
    pub(crate) control: Control,
    pub(crate) reply: Address,
}

/// How reactors reach the control thread: puts the request into its queue, which is bounded by the sessions' command
/// windows.
pub type ControlPort = Arc<dyn Fn(ControlRequest) + Send + Sync>;

/// A change of a bdev's reservations that other protocols are to be told of.
pub struct Changed {
    /// The bdev.
    pub bdev: Uuid,
    /// What was done.
    pub effects: Effects,
    /// Answers the request once all reactors know; to be awaited when the other protocols do.
    pub answer: Pin<Box<dyn Future<Output = ()>>>,
}

impl fmt::Debug for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changed").field("bdev", &self.bdev).finish_non_exhaustive()
    }
}

/// The owners of logical units.
pub struct LuHost {
    peers: Arc<Peers>,
    owners: BTreeMap<LuId, LuOwner>,
}

impl fmt::Debug for LuHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LuHost").field("owners", &self.owners.keys()).finish_non_exhaustive()
    }
}

impl LuHost {
    /// A host without logical units.
    #[must_use]
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers, owners: BTreeMap::new() }
    }

    /// Takes a logical unit in and tells the reactors of it. They must have their groups by now.
    pub fn add(&mut self, owner: LuOwner) {
        let view = Arc::clone(owner.view());
        self.owners.insert(view.config.id, owner);
        self.publish(&view, Vec::new(), || ());
    }

    /// Lets a logical unit go: over on a reactor when [`GroupCell::uses_lu`] is false there. Whether it was there.
    pub fn remove(&mut self, lu: LuId) -> bool {
        self.owners.remove(&lu).is_some()
    }

    /// Changes a logical unit and tells the reactors of it.
    pub fn change(&mut self, lu: LuId, change: impl FnOnce(&mut LuOwner)) {
        let Some(owner) = self.owners.get_mut(&lu) else { return };
        let before = owner.view().version;
        change(owner);
        let view = Arc::clone(owner.view());
        if view.version != before {
            self.publish(&view, Vec::new(), || ());
        }
    }

    /// Takes over what was done to a bdev's reservations by other means than the logical unit `but`. What is returned
    /// ends when all reactors have it and the commands that it was to abort are gone.
    pub fn reservations_changed(
        &mut self,
        bdev: Uuid,
        but: Option<LuId>,
        effects: &Effects,
    ) -> impl Future<Output = ()> + use<> {
        let on_it = |owner: &&mut LuOwner| {
            let config = &owner.view().config;
            config.descriptor.shared().uuid() == bdev && Some(config.id) != but
        };
        let mut views = Vec::new();
        for owner in self.owners.values_mut().filter(on_it) {
            owner.reservations_changed(effects);
            views.push(Arc::clone(owner.view()));
        }
        let applied: Vec<_> =
            views.iter().map(|view| self.publish_applied(view, effects.aborted.clone())).collect();
        async move {
            for one in applied {
                // A reactor that is gone has no commands either.
                one.await.ok();
            }
        }
    }

    /// The owner of a logical unit.
    pub fn owner(&self, lu: LuId) -> Option<&LuOwner> {
        self.owners.get(&lu)
    }

    /// Handles a request of a reactor. Where it has changed a bdev's reservations, other protocols are to be told before
    /// it is answered: then the answer is left to whoever gets what is returned.
    pub fn handle(&mut self, request: &ControlRequest) -> Option<Changed> {
        let address = request.reply;
        let handle = self.peers.handle(address.reactor).cloned()?;
        let Some(owner) = self.owners.get_mut(&request.lu) else {
            let fault = penstock_scsi::fault_of(penstock_bdev::IoStatus::Gone, 0);
            let result = fault.map_or(Ok(()), Err);
            send_reply(&handle, address, Reply::of(result));
            return None;
        };
        let reply = owner.handle(&request.from, &request.control);
        let effects = owner.take_effects();
        if !reply.changed && reply.aborted.is_empty() {
            send_reply(&handle, address, reply);
            return None;
        }
        let view = Arc::clone(owner.view());
        let aborted = reply.aborted.clone();
        let Some(effects) = effects else {
            self.publish(&view, aborted, move || send_reply(&handle, address, reply));
            return None;
        };
        let bdev = view.config.descriptor.shared().uuid();
        let here = self.publish_applied(&view, aborted);
        let others = self.reservations_changed(bdev, Some(request.lu), &effects);
        let answer = async move {
            here.await.ok();
            others.await;
            send_reply(&handle, address, reply);
        };
        Some(Changed { bdev, effects, answer: Box::pin(answer) })
    }

    /// As [`Self::publish`]; what is returned ends when every reactor has the view.
    fn publish_applied(&self, view: &Arc<LuView>, aborted: Vec<RegistrantId>) -> oneshot::Receiver<()> {
        let (done, applied) = oneshot::channel();
        self.publish(view, aborted, move || {
            // Nobody may wait for it.
            done.send(()).ok();
        });
        applied
    }

    /// Gives a view to all reactors, then aborts the commands of `aborted` there, then does `then` once.
    fn publish(&self, view: &Arc<LuView>, aborted: Vec<RegistrantId>, then: impl FnOnce() + Send + 'static) {
        let handles = self.peers.handles();
        let left = Arc::new(AtomicUsize::new(handles.len()));
        let then = Arc::new(Mutex::new(Some(then)));
        let aborted = Arc::new(aborted);
        for handle in handles {
            let (view, aborted) = (Arc::clone(view), Arc::clone(&aborted));
            let (left, then) = (Arc::clone(&left), Arc::clone(&then));
            send(handle, move |cx| {
                let done = move || {
                    if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                        let then = then.lock().unwrap_or_else(PoisonError::into_inner).take();
                        if let Some(then) = then {
                            then();
                        }
                    }
                };
                match GroupCell::of(cx) {
                    Some(cell) => cell.apply_lu(cx, &view, &aborted, Box::new(done)),
                    None => done(),
                }
            });
        }
    }
}

fn send_reply(handle: &ReactorHandle, address: Address, reply: Reply) {
    send(handle, move |cx| {
        if let Some(cell) = GroupCell::of(cx) {
            cell.replied(address, &reply);
        }
    });
}

fn send(handle: &ReactorHandle, run: impl FnOnce(&penstock_reactor::Cx) + Send + 'static) {
    if let Err(error) = handle.send_patiently(run) {
        tracing::error!(reactor = %handle.id(), %error, "a message of the iSCSI target is lost");
    }
}
