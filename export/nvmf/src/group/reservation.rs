//! Reservations on this reactor: commands that they forbid, commands about them, what their changes bring.
//!
//! While no namespace is reserved, a command costs one test of a flag.

use std::sync::Arc;

use futures_channel::mpsc::Sender;
use penstock_bdev::reservation::{Access, Effects, HostId, RegistrantId, ReservationView};
use penstock_spec::nvme::reservation::ReportDw11;
use penstock_spec::nvme::{Fuse, NSID_ALL, NvmOpcode, Sqe, Status};
use penstock_spec::nvmf::Nqn;

use super::core::{Core, Subsystem};
use super::{Group, GroupCell};
use crate::config::{Nsid, SubsystemConfig};
use crate::controller::Completion;
use crate::io_cmd::{self, Transfer};
use crate::qpair::{IoQueue, Link};
use crate::reservation::{Request, ReservationCommand, access_of, access_of_io, data_len_min, report};
use crate::tcp::req::{Req, ReqId, ReqKind, ReqState};

const CONFLICT: Status = Status::RESERVATION_CONFLICT.with_dnr();

/// What a channel's commands are judged by; `None` while all may do everything.
pub(super) fn guard_of(config: &SubsystemConfig, nsid: Nsid) -> Option<Arc<ReservationView>> {
    let known = config.reservations.get(&nsid)?;
    known.view.holder.is_some().then(|| Arc::clone(&known.view))
}

impl Core {
    /// The status of a command that a reservation forbids, when it comes.
    #[cold]
    pub(super) fn may_begin(&self, queue: &IoQueue, sqe: &Sqe) -> Result<(), Status> {
        let opcode = NvmOpcode(sqe.opc);
        let (Some(access), Some(subsystem)) = (access_of(opcode), self.subsystem(queue.subsystem)) else {
            return Ok(());
        };
        let nsid = sqe.nsid.get();
        if nsid == NSID_ALL && opcode == NvmOpcode::FLUSH {
            return self.may_flush_all(subsystem, queue);
        }
        self.may_access(subsystem.chan(nsid), queue, access)
    }

    /// The status of a command that a reservation forbids by now: its data may have come later, and of several I/Os some
    /// are still to come.
    #[cold]
    pub(super) fn may_go_on(&self, link: &Link, req: &Req) -> Result<(), Status> {
        let Link::Io(queue) = link else { return Ok(()) };
        match req.kind {
            ReqKind::Io { chan } => {
                let access = req.io.as_ref().map_or(Access::Write, |io| access_of_io(io.op));
                self.may_access(chan, queue, access)
            }
            ReqKind::Ranges { chan, .. } | ReqKind::Copy { chan, .. } => {
                self.may_access(chan, queue, Access::Write)
            }
            ReqKind::FlushAll { .. } => match self.subsystem(queue.subsystem) {
                Some(subsystem) => self.may_flush_all(subsystem, queue),
                None => Ok(()),
            },
            ReqKind::Control | ReqKind::Nothing => Ok(()),
        }
    }

    fn may_flush_all(&self, subsystem: &Subsystem, queue: &IoQueue) -> Result<(), Status> {
        subsystem.chans.iter().try_for_each(|chan| self.may_access(*chan, queue, Access::Write))
    }

    fn may_access(&self, chan: u32, queue: &IoQueue, access: Access) -> Result<(), Status> {
        let Some(view) = self.chan(chan).and_then(|chan| chan.guard.as_ref()) else { return Ok(()) };
        let standing = view.standing(queue.shared.host());
        if view.allows(standing, access) { Ok(()) } else { Err(CONFLICT) }
    }

    /// Judges a Reservation Register, Report, Acquire or Release.
    #[cold]
    pub(super) fn judge_reservation(
        &mut self,
        queue: &IoQueue,
        req: &mut Req,
        sqe: &Sqe,
    ) -> Result<Transfer, Status> {
        let (opcode, nsid) = (NvmOpcode(sqe.opc), sqe.nsid.get());
        if sqe.fuse() != Fuse::Normal {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let Some(subsystem) = self.subsystem(queue.subsystem) else {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        };
        if subsystem.config.namespace(nsid).is_none() {
            return Err(io_cmd::no_namespace(nsid, subsystem.config.max_namespaces));
        }
        let HostId::Nvme(hostid) = &queue.shared.host().host else {
            return Err(Status::HOST_ID_INCONSISTENT_FORMAT.with_dnr());
        };
        if *hostid == [0; 16] {
            return Err(Status::HOST_ID_NOT_INITIALIZED.with_dnr());
        }
        let sgl = io_cmd::data_sgl(sqe)?;
        let len_max = self.params.io_bytes_max;
        (req.kind, req.sqe) = (ReqKind::Control, *sqe);
        if opcode == NvmOpcode::RESERVATION_REPORT {
            let len = u64::from(sqe.cdw10.get()).saturating_add(1).saturating_mul(4);
            if len > u64::from(len_max) {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            if u64::from(sgl.len()) < len || sgl.len() > len_max {
                return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
            }
            return Ok(Transfer::ToHost(sgl));
        }
        if sgl.len() < data_len_min(opcode) || sgl.len() > io_cmd::DSM_DATA_LEN_MAX {
            return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
        }
        Ok(Transfer::FromHost(sgl))
    }
}

impl Group {
    /// Executes a command about reservations.
    pub(super) fn reservation(&mut self, id: ReqId, sqe: &Sqe) {
        if NvmOpcode(sqe.opc) == NvmOpcode::RESERVATION_REPORT {
            return self.report(id, sqe);
        }
        let Some(entry) = self.entry_mut(id.conn) else { return };
        let Some(req) = entry.conn.req_mut(id.slot) else { return };
        let parsed = ReservationCommand::parse(sqe, req.data(0, req.len).unwrap_or_default());
        let Link::Io(queue) = &entry.conn.link else { return };
        let (place, host) = (queue.subsystem, queue.shared.host().clone());
        let nqn = self.core.subsystem(place).map(|subsystem| subsystem.config.nqn);
        match (parsed, nqn) {
            (Ok(command), Some(nqn)) => self.ask(id, nqn, sqe.nsid.get(), host, command),
            (Err(status), _) => self.refuse_reservation(id, status),
            (_, None) => self.answer(id, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(), 0),
        }
    }

    fn report(&mut self, id: ReqId, sqe: &Sqe) {
        let found = self.entries.get(id.conn as usize).and_then(Option::as_ref);
        let Some(Link::Io(queue)) = found.map(|entry| &entry.conn.link) else { return };
        let subsystem = self.core.subsystem(queue.subsystem);
        let known = subsystem.and_then(|known| known.config.reservations.get(&Nsid(sqe.nsid.get())));
        let view = known.map(|known| Arc::clone(&known.view)).unwrap_or_default();
        let len = usize::try_from(u64::from(sqe.cdw10.get()).saturating_add(1).saturating_mul(4));
        let mut out = std::mem::take(&mut self.admin_out);
        let told = report(&view, ReportDw11(sqe.cdw11.get()), len.unwrap_or(usize::MAX), &mut out);
        match told {
            Ok(()) => self.admin_done(id, &out, Completion::ok(0)),
            Err(status) => self.refuse_reservation(id, status),
        }
        self.admin_out = out;
    }

    /// Sends a command to the control thread; [`Self::decided`] answers it.
    pub(super) fn ask(
        &mut self,
        id: ReqId,
        nqn: Nqn,
        nsid: u32,
        host: RegistrantId,
        command: ReservationCommand,
    ) {
        let Some(entry) = self.entry_mut(id.conn) else { return };
        let Some(cid) = entry.conn.slab().get(id.slot).map(|req| req.cid) else { return };
        let serial = entry.serial;
        let request = Request { from: self.index, id, serial, cid, nqn, nsid, host, command };
        let sent = self.requests.as_mut().map(|requests| requests.try_send(request).is_ok());
        match sent {
            Some(true) => {}
            // More than it can take just now: to be tried again.
            Some(false) => self.answer(id, Status::COMMAND_INTERRUPTED, 0),
            None => self.answer(id, Status::INTERNAL_ERROR.with_dnr(), 0),
        }
    }

    /// The control thread has decided on a command, and every reactor knows.
    fn decided(&mut self, id: ReqId, serial: u64, cid: u16, status: Status) {
        let Some(entry) = self.entry_mut(id.conn).filter(|entry| entry.serial == serial && !entry.gone)
        else {
            return;
        };
        let waits =
            |req: &&Req| req.cid == cid && req.state == ReqState::Executing && req.kind == ReqKind::Control;
        if entry.conn.slab().get(id.slot).filter(waits).is_none() {
            return;
        }
        if status.is_success() {
            self.answer(id, status, 0);
        } else {
            self.refuse_reservation(id, status);
        }
    }

    fn refuse_reservation(&mut self, id: ReqId, status: Status) {
        if let Some(entry) = self.entries.get(id.conn as usize).and_then(Option::as_ref)
            && let Link::Io(queue) = &entry.conn.link
            && let Some(req) = entry.conn.slab().get(id.slot)
        {
            self.core.refused(queue, &req.sqe, status);
        }
        self.answer(id, status, 0);
    }

    /// A change has come with the last generation: hosts are told, and what is to be aborted is.
    fn reservations_changed(&mut self, nqn: &Nqn, nsid: Nsid, effects: &Effects) {
        for at in 0..self.associations.len() {
            let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { continue };
            if association.controller.params().subsystem.nqn != *nqn {
                continue;
            }
            let host = association.controller.shared().host().clone();
            let notices = effects.notices.iter().filter(|(id, _)| *id == host);
            let notices: Vec<_> = notices.map(|(_, notice)| *notice).collect();
            if !notices.is_empty() {
                notices.iter().for_each(|notice| association.controller.reservation_notice(nsid, *notice));
                self.events_of(at);
            }
        }
        if !effects.aborted.is_empty() {
            for (id, chan) in self.io_of(nqn, nsid, &effects.aborted) {
                self.core.abort(chan, id);
            }
        }
    }

    /// Commands on a namespace that the bdev has of these hosts, and their channel.
    fn io_of(&self, nqn: &Nqn, nsid: Nsid, hosts: &[RegistrantId]) -> Vec<(ReqId, u32)> {
        let mut found = Vec::new();
        for (entry, conn) in self.entries.iter().zip(0_u32..) {
            let Some(entry) = entry.as_ref() else { continue };
            let Link::Io(queue) = &entry.conn.link else { continue };
            let subsystem = self.core.subsystem(queue.subsystem);
            let Some(subsystem) = subsystem.filter(|known| known.config.nqn == *nqn) else { continue };
            if !hosts.contains(queue.shared.host()) {
                continue;
            }
            let chan = subsystem.chan(nsid.0);
            let slab = entry.conn.slab();
            let out = slab.slots_used().filter(|slot| {
                let req = slab.get(*slot).filter(|req| req.is_out());
                req.is_some_and(|req| match req.kind {
                    ReqKind::Io { chan: of }
                    | ReqKind::Ranges { chan: of, .. }
                    | ReqKind::Copy { chan: of, .. } => of == chan,
                    ReqKind::FlushAll { .. } => true,
                    ReqKind::Control | ReqKind::Nothing => false,
                })
            });
            found.extend(out.map(|slot| (ReqId { conn, slot }, chan)));
        }
        found
    }
}

impl GroupCell {
    /// Where commands go that only the control thread can carry out.
    pub(crate) fn set_requests(&self, requests: Sender<Request>) {
        self.0.borrow_mut().requests = Some(requests);
    }

    /// See [`Group::decided`].
    pub(crate) fn decided(&self, id: ReqId, serial: u64, cid: u16, status: Status) {
        self.0.borrow_mut().decided(id, serial, cid, status);
    }

    /// What a change of a namespace's reservations brings besides the new view, which [`Self::apply`] has brought before.
    pub(crate) fn reservations_changed(&self, nqn: &Nqn, nsid: Nsid, effects: &Effects) {
        self.0.borrow_mut().reservations_changed(nqn, nsid, effects);
    }

    /// Whether no bdev has a command of these hosts on the namespace any more.
    pub(crate) fn is_rid_of(&self, nqn: &Nqn, nsid: Nsid, hosts: &[RegistrantId]) -> bool {
        self.0.borrow().io_of(nqn, nsid, hosts).is_empty()
    }
}
