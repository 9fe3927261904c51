//! Messages between the groups of different reactors: how an I/O queue finds its controller, and how it learns of its end.
//!
//! A Connect asks reactor after reactor, beginning with its own, until one has the controller: no table has to be kept
//! right, and it happens once per queue. Nothing here waits: an answer that finds its connection gone is undone.

use std::sync::Arc;

use penstock_security::chap::Parties;
use penstock_spec::nvme::Status;
use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::connect::{self, ConnectResult};

use super::abort::AbortMsg;
use super::control::Member;
use super::fence::{FenceMsg, ResetMsg};
use super::{Group, GroupCell};
use crate::controller::{CommandError, CrossReset, CtrlShared};
use crate::qpair::{Connect, IoQueue, Link, Refusal};
use crate::tcp::req::ReqId;

/// A Connect of an I/O queue on its way.
#[derive(Debug, Clone)]
pub(super) struct Join {
    pub(super) wanted: Connect,
    /// Where it came in.
    pub(super) from: usize,
    pub(super) conn: u32,
    /// By which port.
    pub(super) portid: u16,
    pub(super) serial: u64,
    pub(super) slot: u16,
    /// Reactors that do not have the controller.
    pub(super) hops: usize,
}

/// What the controller's reactor says to a [`Join`].
#[derive(Debug, Clone)]
pub(super) struct Joined {
    pub(super) shared: Arc<CtrlShared>,
    /// The port by which it came.
    pub(super) portid: u16,
    /// The controller's reactor and its place there.
    pub(super) owner: usize,
    pub(super) controller: u32,
}

/// A message between groups.
#[derive(Debug, Clone)]
pub(super) enum Msg {
    /// Is the controller yours?
    Join(Box<Join>),
    /// The answer.
    Joined(Box<Join>, Result<Joined, Refusal>),
    /// An I/O queue is gone, and nothing of it is under way.
    Left { controller: u32, shared: Arc<CtrlShared>, qid: u16 },
    /// Close a connection.
    Terminate { conn: u32, serial: u64 },
    /// Abort a command of an I/O queue.
    Abort(AbortMsg),
    /// A command of an I/O queue has failed.
    Failed { controller: u32, shared: Arc<CtrlShared>, error: CommandError },
    /// Fencing, and the admission of hosts.
    Fence(FenceMsg),
    /// End that controller.
    Reset(Box<ResetMsg>),
    /// The answer.
    ResetFound(Box<ResetMsg>, CrossReset),
    /// Nothing of the controller is under way any more.
    ResetDone(Box<ResetMsg>),
    /// Every controller of the subsystem is to be reset.
    ResetSubsystem(Nqn),
    /// The answer.
    Aborted { by: ReqId, by_serial: u64, aborted: bool },
}

impl Group {
    /// Sends a message to a reactor's group; it is not lost.
    pub(super) fn post(&mut self, peer: usize, msg: Msg) {
        if peer == self.index {
            self.local.push_back(msg);
        } else {
            self.outbox.push_back((peer, msg));
        }
    }

    /// Sends what waits for other reactors, as far as their mailboxes have room.
    pub(super) fn send_outbox(&mut self) -> usize {
        let mut sent = 0;
        while let Some((peer, msg)) = self.outbox.front() {
            let copy = msg.clone();
            let Some(handle) = self.peers.handle(*peer) else { break };
            let result = handle.send(move |cx| {
                if let Some(cell) = GroupCell::of(cx) {
                    cell.0.borrow_mut().deliver(copy);
                }
            });
            if matches!(result, Err(penstock_reactor::ReactorError::MailboxFull { .. })) {
                break;
            }
            self.outbox.pop_front();
            sent += 1;
        }
        sent
    }

    /// Handles a message.
    pub(super) fn deliver(&mut self, msg: Msg) {
        match msg {
            Msg::Join(join) => self.join(join),
            Msg::Joined(join, answer) => self.joined(&join, answer),
            Msg::Left { controller, shared, qid } => self.member_left(controller, &shared, qid),
            Msg::Terminate { conn, serial } => {
                if self.entry_mut(conn).is_some_and(|entry| entry.serial == serial) {
                    self.close(conn);
                }
            }
            Msg::Abort(abort) => self.begin_abort(&abort),
            Msg::Failed { controller, shared, error } => self.failed(controller, &shared, &error),
            Msg::Fence(msg) => self.fence(msg),
            Msg::Reset(reset) => self.cross_reset(reset),
            Msg::ResetFound(reset, found) => self.cross_reset_found(&reset, found),
            Msg::ResetDone(reset) => self.cross_reset_done(&reset),
            Msg::ResetSubsystem(nqn) => self.reset_subsystem(&nqn),
            Msg::Aborted { by, by_serial, aborted } => self.aborted(by, by_serial, aborted),
        }
    }

    fn join(&mut self, mut join: Box<Join>) {
        let wanted = &join.wanted;
        let found = self.associations.iter().position(|slot| {
            slot.as_ref().is_some_and(|association| {
                let params = association.controller.params();
                params.cntlid == wanted.cntlid && params.subsystem.nqn == wanted.subnqn
            })
        });
        let Some(at) = found else {
            join.hops += 1;
            if join.hops < self.peers.len() {
                let next = (self.index + 1) % self.peers.len();
                self.post(next, Msg::Join(join));
            } else {
                let from = join.from;
                self.post(from, Msg::Joined(join, Err(Refusal::data(connect::CNTLID_OFF))));
            }
            return;
        };
        let answer = self.welcome(at, &join);
        let from = join.from;
        self.post(from, Msg::Joined(join, answer));
    }

    /// Takes an I/O queue into an association.
    fn welcome(&mut self, at: usize, join: &Join) -> Result<Joined, Refusal> {
        let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else {
            return Err(Refusal::data(connect::CNTLID_OFF));
        };
        let params = association.controller.params();
        if params.hostnqn != join.wanted.hostnqn {
            return Err(Refusal::data(connect::HOSTNQN_OFF));
        }
        if params.hostid != join.wanted.hostid {
            return Err(Refusal::data(connect::HOSTID_OFF));
        }
        // A path has one state: what came by another port would be on two (Base 8.1.1).
        if params.subsystem.ana_reporting && params.portid != join.portid {
            return Err(Refusal::data(connect::CNTLID_OFF));
        }
        let portid = params.portid;
        association.controller.io_queue_allowed()?;
        let qid = join.wanted.qid;
        let params = association.controller.params();
        if qid > params.options.max_io_qpairs_per_ctrlr || !association.controller.shared().claim_queue(qid) {
            return Err(Refusal::sqe(connect::QID_OFF));
        }
        association.members.push(Member { qid, peer: join.from, conn: join.conn, serial: join.serial });
        Ok(Joined {
            shared: Arc::clone(association.controller.shared()),
            portid,
            owner: self.index,
            controller: u32::try_from(at).unwrap_or(u32::MAX),
        })
    }

    fn joined(&mut self, join: &Join, answer: Result<Joined, Refusal>) {
        let id = ReqId { conn: join.conn, slot: join.slot };
        let place = self.core.find(|config| config.nqn == join.wanted.subnqn);
        let in_capsule = self.core.params.in_capsule_bytes;
        let config =
            place.and_then(|place| self.core.subsystem(place)).map(|subsystem| Arc::clone(&subsystem.config));
        let entry = self.entries.get_mut(join.conn as usize).and_then(Option::as_mut);
        let entry = entry.filter(|entry| {
            entry.serial == join.serial && !entry.gone && matches!(entry.conn.link, Link::Joining)
        });
        // The listener that it came by may have been removed meanwhile.
        let place = match (&entry, config) {
            (Some(entry), Some(config)) => place.filter(|_| config.listens_on(entry.portid)),
            _ => None,
        };
        match (entry, answer, place) {
            (Some(entry), Ok(joined), Some(subsystem)) => {
                let qid = join.wanted.qid;
                let Joined { shared, portid, owner, controller } = joined;
                let cntlid = shared.cntlid();
                let queue = IoQueue { subsystem, shared, qid, portid, owner, controller, locked: false };
                entry.conn.link = Link::Io(queue);
                let flow_control = join.wanted.flow_control;
                entry.conn.connected(join.wanted.entries, flow_control, in_capsule, &self.core.params);
                self.core.stats.io_qpairs += 1;
                let parties = Parties { host: join.wanted.hostnqn, subsystem: join.wanted.subnqn };
                let locked = self.admit(join.conn, parties, 0, self.core.now);
                let result = ConnectResult(0).with_cntlid(cntlid).with_atr(locked);
                self.answer(id, Status::SUCCESS, result.0.into());
            }
            (entry, Ok(joined), _) => {
                let alive = entry.is_some();
                let Joined { shared, portid, owner, controller } = joined;
                let (subsystem, qid) = (u32::MAX, join.wanted.qid);
                self.left(&IoQueue { subsystem, shared, qid, portid, owner, controller, locked: true });
                if alive {
                    self.refuse(id, Refusal::data(connect::SUBNQN_OFF));
                }
            }
            (Some(_), Err(refusal), _) => self.refuse(id, refusal),
            (None, Err(_), _) => {}
        }
    }

    /// Refuses a Connect; the host may try another on the same connection.
    pub(super) fn refuse(&mut self, id: ReqId, refusal: Refusal) {
        if let Some(entry) = self.entry_mut(id.conn) {
            entry.conn.link = Link::New;
        }
        self.answer(id, refusal.status, refusal.dw0.into());
    }

    /// An I/O queue of this reactor is gone, and nothing of it is under way.
    pub(super) fn left(&mut self, queue: &IoQueue) {
        queue.shared.release_queue(queue.qid);
        let shared = Arc::clone(&queue.shared);
        self.post(queue.owner, Msg::Left { controller: queue.controller, shared, qid: queue.qid });
    }

    fn member_left(&mut self, controller: u32, shared: &Arc<CtrlShared>, qid: u16) {
        if self.has_fences() {
            self.look_at_fences();
        }
        let at = controller as usize;
        let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { return };
        if !Arc::ptr_eq(association.controller.shared(), shared) {
            return;
        }
        // The number may be connected again already; the first to have left is the first in the list.
        if let Some(found) = association.members.iter().position(|member| member.qid == qid) {
            association.members.remove(found);
        }
        self.torn_down(at);
    }
}
