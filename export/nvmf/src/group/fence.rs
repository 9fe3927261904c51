//! Fencing: before a host is told that it has a new controller, nothing of its dead ones can reach a namespace any more.
//!
//! ```text
//!   origin ── Ask ──► home of the subsystem ── Fence ──► every reactor: ends what is to end, waits for its I/O
//!      ▲                 │ one host at a time   ◄─ Fenced ──┘
//!      └──── Granted ────┘ ◄── Over ── origin
//! ```
//!
//! A controller that ended is *dying* until the last of its I/O queues is gone, and a queue is gone when the bdevs have
//! given back every command of it. New controllers of its host wait for that. Live controllers of the same host at the
//! same port are what the subsystem's [`DuplicateHost`] says: several paths are several ports. A host that has closed its
//! end has given a controller up, whatever is still unread of it.
//!
//! The same waiting serves Cross-Controller Reset. Nothing waits for ever: a Connect that cannot be granted is answered
//! with a status that hosts retry.

use std::sync::Arc;

use penstock_reactor::Tick;
use penstock_spec::nvme::Status;
use penstock_spec::nvmf::Nqn;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::Group;
use super::core::is_everywhere;
use super::join::Msg;
use crate::config::{DuplicateHost, SubsystemConfig};
use crate::controller::{CrossReset, CtrlShared, Instance};
use crate::qpair::{Connect, Link};
use crate::tcp::req::ReqId;

/// How long a Connect waits for I/O of dead controllers; a connection without a controller is closed a little later.
const FENCE_NS: u64 = 8_000_000_000;

/// A host that wants a controller, and where its Connect is.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    pub(super) wanted: Connect,
    pub(super) portid: u16,
    pub(super) policy: DuplicateHost,
    pub(super) origin: usize,
    pub(super) conn: u32,
    pub(super) serial: u64,
    pub(super) slot: u16,
}

impl Admission {
    fn is_of(&self, subnqn: &Nqn, shared: &CtrlShared) -> bool {
        self.wanted.subnqn == *subnqn && shared.is_host(&self.wanted.hostnqn, self.wanted.hostid)
    }

    fn is_same_host(&self, other: &Self) -> bool {
        let (one, other) = (&self.wanted, &other.wanted);
        (one.subnqn, one.hostnqn, one.hostid) == (other.subnqn, other.hostnqn, other.hostid)
    }
}

/// What stands against a new controller; the later ones count more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Nothing.
    Clear,
    /// I/O of a dead controller does not end.
    Stuck,
    /// The host has one, and may have no other.
    Taken,
}

/// Messages of the picture.
#[derive(Debug, Clone)]
pub(super) enum FenceMsg {
    Ask(Box<Admission>),
    Fence { ticket: u64, home: usize, admission: Box<Admission> },
    Fenced { ticket: u64, verdict: Verdict },
    Granted { ticket: u64, home: usize, admission: Box<Admission>, verdict: Verdict },
    Over { ticket: u64 },
}

/// An admission at its home.
#[derive(Debug)]
struct Ticket {
    id: u64,
    admission: Box<Admission>,
    running: bool,
    /// Reactors that have not answered.
    waiting: usize,
    verdict: Verdict,
}

/// A controller that has ended, and whose I/O queues are not all gone.
#[derive(Debug)]
struct Dying {
    subnqn: Nqn,
    instance: Instance,
    shared: Arc<CtrlShared>,
    /// A Cross-Controller Reset waits for it.
    is_reset: bool,
}

/// Who waits for dying controllers.
#[derive(Debug)]
enum Waiter {
    Fence { ticket: u64, home: usize, admission: Box<Admission>, deadline: Tick },
    Reset { reset: Box<ResetMsg> },
}

/// A Cross-Controller Reset on its way.
#[derive(Debug, Clone)]
pub(super) struct ResetMsg {
    pub(super) subnqn: Nqn,
    pub(super) impacted: Instance,
    /// The controller that asks: its reactor, its place there, itself.
    pub(super) from: usize,
    pub(super) controller: u32,
    pub(super) shared: Arc<CtrlShared>,
    /// Its command.
    pub(super) by: ReqId,
    pub(super) by_serial: u64,
    /// Reactors that do not have the impacted controller.
    pub(super) hops: usize,
}

/// What a reactor knows of all this.
#[derive(Debug, Default)]
pub(super) struct Fences {
    tickets: Vec<Ticket>,
    next_ticket: u64,
    dying: Vec<Dying>,
    waiters: Vec<Waiter>,
}

impl Group {
    /// Begins the admission of a host whose Connect of an admin queue is valid.
    pub(super) fn ask_admission(&mut self, id: ReqId, wanted: Connect, config: &SubsystemConfig) {
        let origin = self.index;
        let Some(entry) = self.entry_mut(id.conn) else { return };
        entry.conn.link = Link::Joining;
        let (portid, serial) = (entry.portid, entry.serial);
        let policy = config.duplicate_host;
        let admission = Admission { wanted, portid, policy, origin, conn: id.conn, serial, slot: id.slot };
        let bytes = config.nqn.as_str().bytes();
        let hash = bytes.fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let home = hash % self.peers.len().max(1);
        self.post(home, Msg::Fence(FenceMsg::Ask(Box::new(admission))));
    }

    pub(super) fn fence(&mut self, msg: FenceMsg) {
        match msg {
            FenceMsg::Ask(admission) => {
                self.fences.next_ticket += 1;
                let id = self.fences.next_ticket;
                let verdict = Verdict::Clear;
                self.fences.tickets.push(Ticket { id, admission, running: false, waiting: 0, verdict });
                self.run_tickets();
            }
            FenceMsg::Fence { ticket, home, admission } => self.fence_host(ticket, home, admission),
            FenceMsg::Fenced { ticket, verdict } => self.fenced(ticket, verdict),
            FenceMsg::Granted { ticket, home, admission, verdict } => {
                self.granted(&admission, verdict);
                self.post(home, Msg::Fence(FenceMsg::Over { ticket }));
            }
            FenceMsg::Over { ticket } => {
                self.fences.tickets.retain(|known| known.id != ticket);
                self.run_tickets();
            }
        }
    }

    /// Begins those whose host has no other running: of two Connects at once, the second sees the first's controller.
    fn run_tickets(&mut self) {
        let mut begun = Vec::new();
        for at in 0..self.fences.tickets.len() {
            let Some((before, [ticket, ..])) = self.fences.tickets.split_at_mut_checked(at) else { break };
            if ticket.running || before.iter().any(|other| other.admission.is_same_host(&ticket.admission)) {
                continue;
            }
            ticket.running = true;
            ticket.waiting = self.peers.len();
            begun.push((ticket.id, ticket.admission.clone()));
        }
        let home = self.index;
        for (ticket, admission) in begun {
            for peer in 0..self.peers.len() {
                let admission = admission.clone();
                self.post(peer, Msg::Fence(FenceMsg::Fence { ticket, home, admission }));
            }
        }
    }

    fn fenced(&mut self, id: u64, verdict: Verdict) {
        let home = self.index;
        let Some(ticket) = self.fences.tickets.iter_mut().find(|ticket| ticket.id == id) else { return };
        ticket.verdict = ticket.verdict.max(verdict);
        ticket.waiting = ticket.waiting.saturating_sub(1);
        if ticket.waiting == 0 {
            let (admission, verdict) = (ticket.admission.clone(), ticket.verdict);
            let origin = admission.origin;
            self.post(origin, Msg::Fence(FenceMsg::Granted { ticket: id, home, admission, verdict }));
        }
    }

    /// Ends what is to end on this reactor, and answers when it has.
    fn fence_host(&mut self, ticket: u64, home: usize, admission: Box<Admission>) {
        self.close_given_up(&admission);
        let mut taken = false;
        for at in 0..self.associations.len() {
            let Some(association) = self.associations.get(at).and_then(Option::as_ref) else { continue };
            let params = association.controller.params();
            let same = admission.is_of(&params.subsystem.nqn, association.controller.shared());
            if !same || params.portid != admission.portid {
                continue;
            }
            match admission.policy {
                DuplicateHost::Allow => {}
                DuplicateHost::Reject => taken = true,
                DuplicateHost::Replace => {
                    let cntlid = params.cntlid;
                    tracing::info!(host = %params.hostnqn, cntlid, "replaced by a new controller of its host");
                    self.end_association(at);
                }
            }
        }
        if taken {
            let verdict = Verdict::Taken;
            return self.post(home, Msg::Fence(FenceMsg::Fenced { ticket, verdict }));
        }
        let deadline = self.core.now.plus_ns(FENCE_NS);
        self.fences.waiters.push(Waiter::Fence { ticket, home, admission, deadline });
        self.look_at_fences();
    }

    /// Closes connections whose host has closed its end: commands that are still unread of them must not be executed
    /// behind the back of the new controller.
    fn close_given_up(&mut self, admission: &Admission) {
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(entry) = self.entries.get(index as usize).and_then(Option::as_ref) else { continue };
            let is_of_host = !entry.gone
                && match &entry.conn.link {
                    Link::Io(queue) => self
                        .core
                        .subsystem(queue.subsystem)
                        .is_some_and(|known| admission.is_of(&known.config.nqn, &queue.shared)),
                    Link::Admin { controller } => {
                        let found = self.associations.get(*controller as usize).and_then(Option::as_ref);
                        found.is_some_and(|association| {
                            let nqn = &association.controller.params().subsystem.nqn;
                            admission.is_of(nqn, association.controller.shared())
                        })
                    }
                    Link::New | Link::Joining => false,
                };
            if is_of_host && peer_has_closed(entry.wire.sock()) {
                self.close(index);
            }
        }
    }

    /// A Connect may go on, or not.
    fn granted(&mut self, admission: &Admission, verdict: Verdict) {
        let id = ReqId { conn: admission.conn, slot: admission.slot };
        let waits = self.entry_mut(id.conn).is_some_and(|entry| {
            entry.serial == admission.serial && !entry.gone && matches!(entry.conn.link, Link::Joining)
        });
        if !waits {
            return;
        }
        if verdict != Verdict::Clear {
            let cntlid = admission.wanted.cntlid;
            tracing::info!(host = %admission.wanted.hostnqn, cntlid, ?verdict, "a host is asked to try again");
            return self.refuse(id, Status::CONNECT_CONTROLLER_BUSY.into());
        }
        if let Some(entry) = self.entry_mut(id.conn) {
            entry.conn.link = Link::New;
        }
        // Much may have changed meanwhile.
        let made = self
            .reachable(&admission.wanted, admission.portid)
            .and_then(|config| self.connect_admin(id, &admission.wanted, config, self.core.now));
        if let Err(refusal) = made {
            self.refuse(id, refusal);
        }
    }

    /// An association has ended; it is remembered while its I/O queues are not gone.
    pub(super) fn remember_dying(&mut self, subnqn: Nqn, instance: Instance, shared: &Arc<CtrlShared>) {
        if shared.queues() > 0 {
            let shared = Arc::clone(shared);
            self.fences.dying.push(Dying { subnqn, instance, shared, is_reset: false });
        }
    }

    /// Whether somebody waits.
    pub(super) fn has_fences(&self) -> bool {
        !self.fences.dying.is_empty() || !self.fences.waiters.is_empty()
    }

    /// Answers those for whom nothing is dying any more.
    pub(super) fn look_at_fences(&mut self) {
        self.fences.dying.retain(|dying| dying.shared.queues() > 0);
        let now = self.core.now;
        let mut at = 0;
        while let Some(waiter) = self.fences.waiters.get(at) {
            let dying = &self.fences.dying;
            let (open, late) = match waiter {
                Waiter::Fence { admission, deadline, .. } => {
                    let mut of_host = dying.iter().filter(|d| admission.is_of(&d.subnqn, &d.shared));
                    (of_host.next().is_some(), now >= *deadline)
                }
                Waiter::Reset { reset } => {
                    let is_impacted = |d: &Dying| d.subnqn == reset.subnqn && d.instance == reset.impacted;
                    (dying.iter().any(is_impacted), false)
                }
            };
            if open && !late {
                at += 1;
                continue;
            }
            match self.fences.waiters.swap_remove(at) {
                Waiter::Fence { ticket, home, .. } => {
                    let verdict = if open { Verdict::Stuck } else { Verdict::Clear };
                    self.post(home, Msg::Fence(FenceMsg::Fenced { ticket, verdict }));
                }
                Waiter::Reset { reset } => {
                    let from = reset.from;
                    self.post(from, Msg::ResetDone(reset));
                }
            }
        }
    }

    /// Looks for the controller that is to be ended, and ends it.
    pub(super) fn cross_reset(&mut self, mut reset: Box<ResetMsg>) {
        let found = match self.find_impacted(&reset) {
            Some(found) => found,
            None if reset.hops + 1 < self.peers.len() => {
                reset.hops += 1;
                let next = (self.index + 1) % self.peers.len();
                return self.post(next, Msg::Reset(reset));
            }
            None => CrossReset::Gone,
        };
        let from = reset.from;
        self.post(from, Msg::ResetFound(reset.clone(), found));
        if found == CrossReset::Begun {
            self.fences.waiters.push(Waiter::Reset { reset });
            self.look_at_fences();
        }
    }

    fn find_impacted(&mut self, reset: &ResetMsg) -> Option<CrossReset> {
        let place = self.associations.iter().position(|slot| {
            slot.as_ref().is_some_and(|association| {
                let params = association.controller.params();
                params.subsystem.nqn == reset.subnqn && association.controller.instance() == reset.impacted
            })
        });
        if let Some(at) = place {
            let association = self.associations.get(at).and_then(Option::as_ref)?;
            if !association.controller.shared().has_host_of(&reset.shared) {
                return Some(CrossReset::Foreign);
            }
            let cntlid = reset.impacted.cntlid;
            tracing::info!(subsystem = %reset.subnqn, cntlid, by = reset.shared.cntlid(), "cross-controller reset");
            self.end_association(at);
        }
        let is_impacted = |d: &&mut Dying| d.subnqn == reset.subnqn && d.instance == reset.impacted;
        match self.fences.dying.iter_mut().find(is_impacted) {
            Some(dying) if !dying.shared.has_host_of(&reset.shared) => Some(CrossReset::Foreign),
            Some(dying) if dying.is_reset => Some(CrossReset::Underway),
            Some(dying) => {
                dying.is_reset = true;
                Some(CrossReset::Begun)
            }
            // It had no I/O queue left, and is gone already.
            None => place.map(|_| CrossReset::Gone),
        }
    }

    /// The search for a controller that is to be ended is over.
    pub(super) fn cross_reset_found(&mut self, reset: &ResetMsg, found: CrossReset) {
        let place = reset.controller as usize;
        let association = self.associations.get_mut(place).and_then(Option::as_mut);
        let association = association.filter(|a| Arc::ptr_eq(a.controller.shared(), &reset.shared));
        let Some(association) = association else { return };
        let completion = association.controller.cross_reset_answer(reset.impacted, found);
        if self.entry_mut(reset.by.conn).is_some_and(|entry| entry.serial == reset.by_serial) {
            self.answer(reset.by, completion.status, completion.dw0.into());
        }
    }

    /// A controller that was to be ended is gone.
    pub(super) fn cross_reset_done(&mut self, reset: &ResetMsg) {
        let place = reset.controller as usize;
        let association = self.associations.get_mut(place).and_then(Option::as_mut);
        if let Some(association) = association.filter(|a| Arc::ptr_eq(a.controller.shared(), &reset.shared)) {
            association.controller.cross_reset_done(reset.impacted);
            self.events_of(place);
        }
    }

    /// NVM Subsystem Reset: every controller of the subsystem on this reactor is reset.
    pub(super) fn reset_subsystem(&mut self, subnqn: &Nqn) {
        let now = self.core.now;
        for at in 0..self.associations.len() {
            let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { continue };
            if association.controller.params().subsystem.nqn == *subnqn {
                association.controller.subsystem_reset(now);
                self.tear_down(at);
                self.events_of(at);
            }
        }
    }

    /// The subsystem that a Connect names, where its host may use it by that port.
    pub(super) fn reachable(
        &self,
        wanted: &Connect,
        portid: u16,
    ) -> Result<Arc<SubsystemConfig>, crate::qpair::Refusal> {
        let place = self.core.find(|config| config.is_named(&wanted.subnqn));
        let subsystem = place.and_then(|place| self.core.subsystem(place));
        let unknown = crate::qpair::Refusal::data(penstock_spec::nvmf::connect::SUBNQN_OFF);
        let config = subsystem.map(|subsystem| Arc::clone(&subsystem.config)).ok_or(unknown)?;
        if !is_everywhere(&config) && !config.listens_on(portid) {
            return Err(unknown);
        }
        if !config.allows(&wanted.hostnqn) {
            return Err(Status::CONNECT_INVALID_HOST.with_dnr().into());
        }
        if self.draining {
            return Err(Status::CONNECT_CONTROLLER_BUSY.into());
        }
        Ok(config)
    }
}

/// Whether the peer has closed its end, whatever of it is unread.
fn peer_has_closed(sock: &penstock_reactor::net::TcpSocket) -> bool {
    let mut polled = [PollFd::new(sock, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let broken = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let asked = rustix::event::poll(&mut polled, Some(&now)).is_ok();
    asked && polled.iter().any(|one| one.revents().intersects(broken))
}
