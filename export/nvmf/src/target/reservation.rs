//! Reservations, on the control thread: where they are decided and kept.
//!
//! A change is saved, then made, then published to all reactors and told to the other protocols; its command is answered
//! when all of them have it, and when the commands that it aborts are gone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_channel::mpsc::{Receiver, Sender, channel};
use penstock_bdev::reservation::{
    Applied, Effects, HostId, Protocol, RegistrantId, ReservationBook, SharedReservations,
};
use penstock_reactor::Cx;
use penstock_spec::nvme::{NSID_ALL, Status};
use penstock_spec::nvmf::Nqn;
use uuid::Uuid;

use super::{Target, TargetError};
use crate::config::Nsid;
use crate::group::GroupCell;
use crate::reservation::{NamespaceReservations, REQUESTS_MAX, Request};

/// Commands whose changes are on their way to the reactors at most; further ones wait.
const UNDER_WAY_MAX: usize = 64;

/// The target's part of the reservations of this node.
pub(super) struct Keeper {
    book: ReservationBook,
    protocol: RefCell<Option<Protocol>>,
    /// Keeps the machines of exported bdevs alive.
    machines: RefCell<BTreeMap<(Nqn, Nsid), (Uuid, SharedReservations)>>,
    requests: Sender<Request>,
    incoming: RefCell<Option<Receiver<Request>>>,
}

impl Keeper {
    pub(super) fn new(book: ReservationBook) -> Self {
        let (requests, incoming) = channel(REQUESTS_MAX);
        Self {
            book,
            protocol: RefCell::new(None),
            machines: RefCell::default(),
            requests,
            incoming: RefCell::new(Some(incoming)),
        }
    }

    /// For one reactor.
    pub(super) fn requests(&self) -> Sender<Request> {
        self.requests.clone()
    }

    fn of(&self, bdev: Uuid, machine: &SharedReservations) -> NamespaceReservations {
        NamespaceReservations {
            view: machine.borrow().view().into(),
            can_persist: self.book.persists(bdev),
            ptpl_file: self.book.file_of(bdev),
        }
    }
}

impl Target {
    /// Carries out what hosts ask of reservations. For the control thread to run as a task of its own; ends with the
    /// target.
    pub fn look_after_reservations(&self) -> impl Future<Output = ()> + 'static {
        let weak = std::rc::Rc::downgrade(&self.0);
        let mut incoming = self.0.keeper.incoming.borrow_mut().take();
        let mut under_way: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        poll_fn(move |cx| {
            loop {
                under_way.retain_mut(|one| one.as_mut().poll(cx).is_pending());
                let Some(requests) = &mut incoming else { return Poll::Ready(()) };
                if under_way.len() >= UNDER_WAY_MAX {
                    return Poll::Pending;
                }
                let Poll::Ready(request) = Pin::new(&mut requests.recv()).poll(cx) else {
                    return Poll::Pending;
                };
                let (Ok(request), Some(inner)) = (request, weak.upgrade()) else { return Poll::Ready(()) };
                under_way.push(Box::pin(Self(inner).carry_out(request)));
            }
        })
    }

    /// Listens to what other protocols do to reservations.
    pub(super) fn follow_reservations(&self) {
        let weak = std::rc::Rc::downgrade(&self.0);
        let listener = move |bdev, effects: &Effects| -> Applied {
            match weak.upgrade() {
                Some(inner) => Self(inner).publish_reservations(bdev, effects),
                None => Box::pin(async {}),
            }
        };
        *self.0.keeper.protocol.borrow_mut() = Some(self.0.keeper.book.subscribe_applied(listener));
    }

    async fn carry_out(self, request: Request) {
        let Request { from, id, serial, cid, .. } = request;
        let status = self.decide(&request).await;
        let Some(handle) = self.0.reactors.get(from) else { return };
        // A reactor that is gone has no host that waits.
        drop(handle.send_patiently(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.decided(id, serial, cid, status);
            }
        }));
    }

    async fn decide(&self, request: &Request) -> Status {
        if request.nsid != NSID_ALL {
            return match self.reserve(request, Nsid(request.nsid)) {
                Ok(applied) => {
                    applied.await;
                    Status::SUCCESS
                }
                Err(status) => status,
            };
        }
        // Reservation Persistence of all namespaces: of those that can.
        let of_it = |(nqn, nsid): &(Nqn, Nsid)| (*nqn == request.nqn).then_some(*nsid);
        let all: Vec<Nsid> = self.0.keeper.machines.borrow().keys().filter_map(of_it).collect();
        let mut status = Status::INVALID_FIELD.with_dnr();
        for nsid in all {
            if let Ok(applied) = self.reserve(request, nsid) {
                applied.await;
                status = Status::SUCCESS;
            }
        }
        status
    }

    /// Makes one change, at once; what it returns ends when all have it.
    fn reserve(&self, request: &Request, nsid: Nsid) -> Result<Applied, Status> {
        let keeper = &self.0.keeper;
        let found = keeper.machines.borrow().get(&(request.nqn, nsid)).cloned();
        let (bdev, machine) = found.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        let (before, was_persistent) = (machine.borrow().view(), machine.borrow().to_persist());
        // Tried on a copy: what cannot be made durable must not happen.
        let mut next = machine.borrow().clone();
        let effects = request.command.apply(&mut next, &request.host, keeper.book.persists(bdev))?;
        let persist = next.to_persist();
        if persist != was_persistent {
            let saved = keeper.book.store().borrow_mut().save(bdev, persist.as_ref());
            if let Err(error) = saved {
                tracing::error!(%bdev, %error, "reservations were not saved; the command fails");
                return Err(Status::INTERNAL_ERROR);
            }
        }
        let changed = next.view() != before;
        *machine.borrow_mut() = next;
        if !changed && effects == Effects::default() {
            return Ok(Box::pin(async {}));
        }
        tracing::info!(%bdev, host = ?request.host.host, command = ?request.command.name(), "reservations changed");
        let here = self.publish_reservations(bdev, &effects);
        let protocol = *keeper.protocol.borrow();
        let elsewhere = protocol.map(|protocol| keeper.book.tell(protocol, bdev, &effects));
        Ok(Box::pin(async move {
            here.await;
            if let Some(elsewhere) = elsewhere {
                elsewhere.await;
            }
        }))
    }

    /// Sends the state of a bdev's reservations to all reactors, in every subsystem that has it.
    fn publish_reservations(&self, bdev: Uuid, effects: &Effects) -> Applied {
        let machines = self.0.keeper.machines.borrow();
        let affected: Vec<_> = machines.iter().filter(|(_, (of, _))| *of == bdev).collect();
        let mut answers = Vec::new();
        let mut aborting = Vec::new();
        let ours = |id: &&RegistrantId| matches!(id.host, HostId::Nvme(_));
        let aborted: Vec<RegistrantId> = effects.aborted.iter().filter(ours).cloned().collect();
        for ((nqn, nsid), (_, machine)) in affected {
            let (nqn, nsid) = (*nqn, *nsid);
            let now = self.0.keeper.of(bdev, machine);
            let changed = self.change(&nqn, |config| {
                config.reservations.insert(nsid, now);
                Ok(())
            });
            let Ok(((), published)) = changed else { continue };
            answers.push(published);
            let effects = effects.clone();
            answers.push(self.0.reactors.tell(move |cx| {
                if let Some(cell) = GroupCell::of(cx) {
                    cell.reservations_changed(&nqn, nsid, &effects);
                }
            }));
            if !aborted.is_empty() {
                aborting.push((nqn, nsid));
            }
        }
        let target = self.clone();
        Box::pin(async move {
            for answers in answers {
                // A reactor that is gone serves nobody.
                drop(target.all(answers, "publish reservations").await);
            }
            for (nqn, nsid) in aborting {
                target.wait_for_end(nqn, nsid, &aborted).await;
            }
        })
    }

    /// Waits until no command of these hosts is under way on the namespace, however long that takes: whoever preempted
    /// them must not be told before.
    async fn wait_for_end(&self, nqn: Nqn, nsid: Nsid, hosts: &[RegistrantId]) {
        let hosts = hosts.to_vec();
        let gone = move |cx: &Cx| GroupCell::of(cx).is_none_or(|cell| cell.is_rid_of(&nqn, nsid, &hosts));
        // A reactor that is gone serves nobody.
        drop(self.0.reactors.wait_until(Duration::MAX, gone).await);
    }

    /// Takes a bdev's reservations into a new namespace.
    pub(super) fn adopt_reservations(
        &self,
        key: (Nqn, Nsid),
        bdev: Uuid,
        ptpl_file: Option<&Path>,
    ) -> Result<NamespaceReservations, TargetError> {
        let keeper = &self.0.keeper;
        let (is_used, kept_in) = (keeper.is_used(bdev), keeper.book.file_of(bdev));
        if let Some(path) = ptpl_file {
            if is_used && kept_in.as_deref() != Some(path) {
                let there = kept_in.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
                return Err(TargetError::Invalid {
                    parameter: "ptpl_file",
                    value: path.display().to_string(),
                    allowed: format!("that of the bdev's other namespaces: {there}"),
                });
            }
            keeper.book.keep_in(bdev, Some(path));
        }
        let machine = keeper.book.of(bdev).map_err(|source| {
            if !is_used {
                keeper.book.keep_in(bdev, None);
            }
            TargetError::Reservations { bdev: bdev.to_string(), source }
        })?;
        let known = keeper.of(bdev, &machine);
        keeper.machines.borrow_mut().insert(key, (bdev, machine));
        Ok(known)
    }

    /// Lets the reservations go of namespaces that are no more; those that persist come back with their bdev.
    pub(super) fn forget_reservations(&self) {
        let keeper = &self.0.keeper;
        let state = self.0.state.borrow();
        let mut gone = Vec::new();
        keeper.machines.borrow_mut().retain(|(nqn, nsid), (bdev, _)| {
            let config = state.subsystems.get(nqn);
            let stays = config.is_some_and(|config| config.namespaces.contains_key(nsid));
            if !stays {
                gone.push(*bdev);
            }
            stays
        });
        for bdev in gone {
            if !keeper.is_used(bdev) {
                keeper.book.keep_in(bdev, None);
            }
        }
    }
}

impl Keeper {
    fn is_used(&self, bdev: Uuid) -> bool {
        self.machines.borrow().values().any(|(of, _)| *of == bdev)
    }
}
