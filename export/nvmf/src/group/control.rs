//! Commands for controllers and queue pairs, and the associations that live on this reactor.

use std::sync::Arc;

use penstock_reactor::{Cx, Tick};
use penstock_security::chap::Parties;
use penstock_spec::nvme::{FabricsType, NvmOpcode, Sqe, Status};
use penstock_spec::nvme_tcp::ADMIN_IN_CAPSULE_LEN;
use penstock_spec::nvmf::connect::{ConnectResult, RECFMT};
use penstock_spec::nvmf::{ConnectCmd, ConnectData, Nqn};
use zerocopy::FromBytes;

use super::abort::AbortMsg;
use super::fence::ResetMsg;
use super::join::{Join, Msg};
use super::tls::check_channel;
use super::{Entry, Group};
use crate::config::SubsystemKind;
use crate::controller::{AdminOutcome, Completion, Controller, ControllerParams, Instance};
use crate::qpair::{Connect, Link, Refusal};
use crate::reservation::{ReservationCommand, is_reservation};
use crate::tcp::req::{ReqId, ReqKind, ReqState};

/// Commands and messages handled per turn.
const BUDGET: usize = 256;

/// An I/O queue of an association, on whichever reactor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) qid: u16,
    /// Index of its reactor among the peers.
    pub(super) peer: usize,
    /// Its connection there.
    pub(super) conn: u32,
    pub(super) serial: u64,
}

/// A controller, its admin connection and its I/O queues.
#[derive(Debug)]
pub(super) struct Association {
    pub(super) controller: Controller,
    /// The admin connection.
    pub(super) conn: u32,
    pub(super) members: Vec<Member>,
    /// The controller waits for the last of them to be gone.
    pub(super) tearing_down: bool,
}

impl Group {
    /// Executes waiting commands of controllers and queue pairs, and messages.
    pub(super) fn run_control(&mut self, _cx: &Cx, now: Tick) -> usize {
        let mut work = 0;
        while work < BUDGET
            && let Some(id) = self.core.control.pop_front()
        {
            self.command(id, now);
            work += 1;
        }
        while work < 2 * BUDGET
            && let Some(msg) = self.local.pop_front()
        {
            self.deliver(msg);
            work += 1;
        }
        work + self.send_outbox()
    }

    fn command(&mut self, id: ReqId, now: Tick) {
        let Some(entry) = self.entry_mut(id.conn) else { return };
        let Some(req) = entry.conn.req_mut(id.slot) else { return };
        if req.state != ReqState::Executing || req.kind != ReqKind::Control {
            return;
        }
        let sqe = req.sqe;
        let fabrics = (sqe.opc == NvmOpcode::FABRICS.0).then(|| FabricsType(sqe.fctype()));
        match (&entry.conn.link, fabrics) {
            (Link::New, Some(FabricsType::CONNECT)) => {
                if let Err(refusal) = self.connect(id, &sqe, now) {
                    self.answer(id, refusal.status, refusal.dw0.into());
                }
            }
            (
                Link::Admin { .. } | Link::Io(_),
                Some(FabricsType::AUTHENTICATION_SEND | FabricsType::AUTHENTICATION_RECEIVE),
            ) => self.authenticate(id, &sqe, now),
            (Link::Admin { .. }, _) if entry.is_locked() => {
                self.answer(id, Status::AUTHENTICATION_REQUIRED.with_dnr(), 0);
            }
            (Link::Admin { controller }, _) => {
                let at = *controller as usize;
                self.admin(at, id, &sqe, now);
            }
            (Link::Io(_), Some(FabricsType::DISCONNECT)) if sqe.cdw10.get() & 0xffff != u32::from(RECFMT) => {
                self.answer(id, Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr(), 0);
            }
            (Link::Io(_), Some(FabricsType::DISCONNECT)) => {
                entry.ending = true;
                self.answer(id, Status::SUCCESS, 0);
            }
            (Link::Io(_), Some(FabricsType::CONNECT)) => {
                self.answer(id, Status::COMMAND_SEQUENCE_ERROR.with_dnr(), 0);
            }
            (Link::Io(_), None) if is_reservation(NvmOpcode(sqe.opc)) => self.reservation(id, &sqe),
            (Link::Io(_), _) => self.answer(id, Status::INVALID_OPCODE.with_dnr(), 0),
            _ => self.answer(id, Status::COMMAND_SEQUENCE_ERROR.with_dnr(), 0),
        }
    }

    /// Answers a command without data.
    pub(super) fn answer(&mut self, id: ReqId, status: Status, result: u64) {
        if let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) {
            entry.conn.respond(id.slot, status, result, 0, &mut self.core);
            self.touch(id.conn);
        }
    }

    fn connect(&mut self, id: ReqId, sqe: &Sqe, now: Tick) -> Result<(), Refusal> {
        let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else {
            return Ok(());
        };
        let portid = entry.portid;
        let data = entry
            .conn
            .req_mut(id.slot)
            .and_then(|req| ConnectData::read_from_bytes(req.data(0, req.len)?).ok());
        let data = data.ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr())?;
        let wanted = Connect::parse(ConnectCmd::from_sqe(sqe), &data, &self.core.params)?;
        let config = self.reachable(&wanted, portid)?;
        if let Some(entry) = self.entries.get(id.conn as usize).and_then(Option::as_deref) {
            check_channel(entry, &config, &wanted)?;
        }
        if wanted.qid == 0 && config.kind == SubsystemKind::Discovery {
            return self.connect_admin(id, &wanted, config, now);
        }
        if wanted.qid == 0 {
            self.ask_admission(id, wanted, &config);
            return Ok(());
        }
        let Some(entry) = self.entry_mut(id.conn) else { return Ok(()) };
        entry.conn.link = Link::Joining;
        let join = Join {
            conn: id.conn,
            portid,
            serial: entry.serial,
            slot: id.slot,
            from: self.index,
            hops: 0,
            wanted,
        };
        self.post(self.index, Msg::Join(Box::new(join)));
        Ok(())
    }

    pub(super) fn connect_admin(
        &mut self,
        id: ReqId,
        wanted: &Connect,
        config: Arc<crate::config::SubsystemConfig>,
        now: Tick,
    ) -> Result<(), Refusal> {
        let claimed = config.controller_ids.claim(config.min_cntlid, config.max_cntlid);
        let cntlid = claimed.ok_or(Status::CONNECT_CONTROLLER_BUSY)?;
        let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else {
            config.controller_ids.release(cntlid);
            return Ok(());
        };
        let Ok(local) = entry.wire.sock().local_addr() else {
            config.controller_ids.release(cntlid);
            return Err(Status::INTERNAL_ERROR.into());
        };
        let params = ControllerParams {
            cntlid,
            subsystem: config,
            discovery: Arc::clone(&self.discovery),
            options: Arc::clone(&self.options),
            hostnqn: wanted.hostnqn,
            hostid: wanted.hostid,
            kato_ms: wanted.kato_ms,
            portid: entry.portid,
            seed: self.rng.next_u64(),
            local,
        };
        let controller = Controller::new(params, now);
        let at = self.associations.iter().position(Option::is_none).unwrap_or(self.associations.len());
        if at == self.associations.len() {
            self.associations.push(None);
        }
        if let Some(slot) = self.associations.get_mut(at) {
            let members = Vec::new();
            *slot = Some(Box::new(Association { controller, conn: id.conn, members, tearing_down: false }));
        }
        entry.conn.link = Link::Admin { controller: u32::try_from(at).unwrap_or(u32::MAX) };
        entry.conn.connected(wanted.entries, wanted.flow_control, ADMIN_IN_CAPSULE_LEN, &self.core.params);
        self.core.stats.admin_qpairs += 1;
        let parties = Parties { host: wanted.hostnqn, subsystem: wanted.subnqn };
        let locked = self.admit(id.conn, parties, wanted.kato_ms, now);
        let result = ConnectResult(0).with_cntlid(cntlid).with_atr(locked);
        self.answer(id, Status::SUCCESS, result.0.into());
        Ok(())
    }

    fn admin(&mut self, at: usize, id: ReqId, sqe: &Sqe, now: Tick) {
        let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { return };
        let mut out = std::mem::take(&mut self.admin_out);
        let outcome = association.controller.admin(sqe, &[], &mut out, now);
        match outcome {
            AdminOutcome::Done(completion) => self.admin_done(id, &out, completion),
            AdminOutcome::Held => {
                if let Some(req) = self.entry_mut(id.conn).and_then(|entry| entry.conn.req_mut(id.slot)) {
                    req.state = ReqState::Held;
                }
            }
            AdminOutcome::Abort { sqid, cid } => self.abort(at, id, sqid, cid),
            AdminOutcome::CrossReset(impacted) => self.begin_cross_reset(at, id, impacted),
            AdminOutcome::Persist { nsid, on } => {
                let (nqn, host) = (
                    association.controller.params().subsystem.nqn,
                    association.controller.shared().host().clone(),
                );
                self.ask(id, nqn, nsid, host, ReservationCommand::Persist(on));
            }
        }
        self.admin_out = out;
        if let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut)
            && association.controller.take_subsystem_reset()
        {
            let nqn = association.controller.params().subsystem.nqn;
            for peer in 0..self.peers.len() {
                self.post(peer, Msg::ResetSubsystem(nqn));
            }
        }
        self.tear_down(at);
        self.events_of(at);
    }

    /// Answers an admin command; what the controller left unfilled of the host's buffer is zero.
    pub(super) fn admin_done(&mut self, id: ReqId, out: &[u8], completion: Completion) {
        let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else { return };
        let Some(req) = entry.conn.req_mut(id.slot) else { return };
        let mut len = 0;
        if completion.status.is_success() && req.len > 0 {
            len = req.len;
            if let Some(to) = req.data_mut(0, len) {
                let filled = out.len().min(to.len());
                let (data, rest) = to.split_at_mut(filled);
                data.copy_from_slice(out.get(..filled).unwrap_or_default());
                rest.fill(0);
            }
        }
        let result = u64::from(completion.dw0) | (u64::from(completion.dw1) << 32);
        entry.conn.respond(id.slot, completion.status, result, len, &mut self.core);
        self.touch(id.conn);
    }

    fn abort(&mut self, at: usize, id: ReqId, sqid: u16, cid: u16) {
        let serial = self.entry_mut(id.conn).map_or(0, |entry| entry.serial);
        let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { return };
        if let Some(member) = association.members.iter().find(|member| member.qid == sqid).copied() {
            let Member { conn, serial: to_serial, peer, .. } = member;
            let from = self.index;
            let msg = Msg::Abort(AbortMsg { conn, serial: to_serial, cid, from, by: id, by_serial: serial });
            self.post(peer, msg);
        } else {
            // Commands of the admin queue are over before an Abort can meet them; other queues do not exist.
            association.controller.abort_done();
            self.answer(id, Status::SUCCESS, 1);
        }
    }

    /// Begins the search for the controller that is to be ended.
    fn begin_cross_reset(&mut self, at: usize, by: ReqId, impacted: Instance) {
        let by_serial = self.entry_mut(by.conn).map_or(0, |entry| entry.serial);
        let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { return };
        let reset = ResetMsg {
            subnqn: association.controller.params().subsystem.nqn,
            impacted,
            from: self.index,
            controller: u32::try_from(at).unwrap_or(u32::MAX),
            shared: Arc::clone(association.controller.shared()),
            by,
            by_serial,
            hops: 0,
        };
        self.post(self.index, Msg::Reset(Box::new(reset)));
    }

    /// An Abort was tried on another queue.
    pub(super) fn aborted(&mut self, by: ReqId, by_serial: u64, aborted: bool) {
        let Some(entry) = self.entry_mut(by.conn).filter(|entry| entry.serial == by_serial) else { return };
        let Link::Admin { controller } = entry.conn.link else { return };
        if let Some(association) = self.associations.get_mut(controller as usize).and_then(Option::as_mut) {
            association.controller.abort_done();
        }
        self.answer(by, Status::SUCCESS, u64::from(!aborted));
    }

    /// Answers the event requests that are due.
    pub(super) fn events_of(&mut self, at: usize) {
        loop {
            let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { return };
            let Some((cid, completion)) = association.controller.poll_event() else { return };
            let conn = association.conn;
            let Some(slot) = self.entry_mut(conn).and_then(|entry| entry.conn.slab().find(cid)) else {
                continue;
            };
            self.answer(ReqId { conn, slot }, completion.status, completion.dw0.into());
        }
    }

    /// Closes the I/O queues of a controller that was reset or shut down.
    pub(super) fn tear_down(&mut self, at: usize) {
        let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { return };
        if association.controller.take_io_teardown() {
            association.tearing_down = true;
            for member in association.members.clone() {
                self.post(member.peer, Msg::Terminate { conn: member.conn, serial: member.serial });
            }
        }
        self.torn_down(at);
    }

    /// Tells a controller when the last of its I/O queues is gone.
    pub(super) fn torn_down(&mut self, at: usize) {
        let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { return };
        if association.tearing_down && association.members.is_empty() {
            association.tearing_down = false;
            association.controller.io_queues_gone();
        }
    }

    /// Looks at keep-alive timers.
    pub(super) fn tick_associations(&mut self, now: Tick) {
        for at in 0..self.associations.len() {
            let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { continue };
            if now < association.controller.deadline() || !association.controller.tick(now) {
                continue;
            }
            let params = association.controller.params();
            let (cntlid, kato_ms) = (params.cntlid, association.controller.kato_ms());
            tracing::info!(host = %params.hostnqn, cntlid, kato_ms, "the keep-alive timer expired: the association ends");
            self.end_association(at);
        }
    }

    /// Ends the associations that `which` picks; how many.
    pub(super) fn end_associations(&mut self, which: impl Fn(&ControllerParams) -> bool) -> usize {
        let mut ended = 0;
        for at in 0..self.associations.len() {
            let picked = self.associations.get(at).and_then(Option::as_ref);
            if picked.is_some_and(|association| which(association.controller.params())) {
                self.end_association(at);
                ended += 1;
            }
        }
        ended
    }

    /// The subsystem of a queue pair.
    pub(super) fn nqn_of(&self, link: &Link) -> Option<Nqn> {
        match link {
            Link::New | Link::Joining => None,
            Link::Admin { controller } => {
                let association = self.associations.get(*controller as usize)?.as_ref()?;
                Some(association.controller.params().subsystem.nqn)
            }
            Link::Io(queue) => Some(self.core.subsystem(queue.subsystem)?.config.nqn),
        }
    }

    pub(super) fn disconnect_listener(&mut self, subnqn: &Nqn, portid: u16) {
        self.close_those(|group, entry| {
            entry.portid == portid && group.nqn_of(&entry.conn.link).is_some_and(|nqn| nqn == *subnqn)
        });
    }

    pub(super) fn disconnect_portal(&mut self, portid: u16) {
        self.close_those(|_, entry| entry.portid == portid);
    }

    fn close_those(&mut self, which: impl Fn(&Self, &Entry) -> bool) {
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let found = self.entries.get(index as usize).and_then(Option::as_deref);
            if found.is_some_and(|entry| !entry.gone && which(self, entry)) {
                self.close(index);
            }
        }
    }

    /// Ends an association: its controller is no more, all its connections are closed.
    pub(super) fn end_association(&mut self, at: usize) {
        let Some(association) = self.associations.get_mut(at).and_then(Option::take) else { return };
        association.controller.shared().kill();
        let params = association.controller.params();
        let (nqn, instance) = (params.subsystem.nqn, association.controller.instance());
        self.remember_dying(nqn, instance, association.controller.shared());
        params.subsystem.controller_ids.release(params.cntlid);
        for member in &association.members {
            self.post(member.peer, Msg::Terminate { conn: member.conn, serial: member.serial });
        }
        self.close(association.conn);
    }
}
