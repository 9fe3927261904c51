//! Task management (RFC 7143, 4.2.3 and 11.5): what is aborted, and when that is answered.
//!
//! A function is answered when nothing that it aborts is under way any more, on any reactor, and the owners of the
//! logical units that it resets have said so. Commands that came after it are not its business.
//!
//! A function on many tasks waits until every command before it has come (4.2.3.3), an abort of a task that has not
//! come makes its CmdSN count as received (11.5.1).

use penstock_scsi::{Control, LuId, Reply, lun_of};
use penstock_spec::iscsi::{
    Bhs, Opcode, RejectReason, TaskMgmtReqHdr, TaskMgmtRespHdr, TmfFunction, TmfResponse,
};
use zerocopy::{IntoBytes, transmute_ref};

use super::cmd::{Cmd, CmdId, CmdState};
use super::{Conn, EndOf, Scope, Sink};

/// Functions of one connection under way at most.
const TMFS_MAX: usize = 16;

/// Whose reply it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyTo {
    /// A command's.
    Cmd(u16),
    /// A task management function's.
    Tmf(u8),
    /// A login's.
    Login,
    /// Nobody's.
    Nobody,
}

/// A function under way.
#[derive(Debug)]
struct Tmf {
    itt: u32,
    /// Answers that are not there: of the reactors, then of the owners.
    left: usize,
    /// Logical units to be reset after that.
    resets: Vec<LuId>,
    /// After the answer, all sessions of the target end.
    cold: bool,
}

/// The functions under way.
#[derive(Debug, Default)]
pub(super) struct Tmfs(Vec<Option<Tmf>>);

impl Tmfs {
    fn add(&mut self, tmf: Tmf) -> Option<u8> {
        let at = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if at >= TMFS_MAX {
            return None;
        }
        if at == self.0.len() {
            self.0.push(None);
        }
        *self.0.get_mut(at)? = Some(tmf);
        u8::try_from(at).ok()
    }

    fn get_mut(&mut self, at: u8) -> Option<&mut Tmf> {
        self.0.get_mut(usize::from(at))?.as_mut()
    }
}

impl Conn {
    /// Whether an immediate PDU is a function on many tasks, of which some have not come.
    pub(super) fn waits_for_others(&self, bhs: &Bhs) -> bool {
        if bhs.opcode() != Opcode::TASK_MGMT_REQ || !bhs.is_immediate() {
            return false;
        }
        let hdr: &TaskMgmtReqHdr = transmute_ref!(bhs);
        let many = !matches!(hdr.function(), TmfFunction::ABORT_TASK | TmfFunction::TASK_REASSIGN);
        many && self.session.as_ref().is_some_and(|session| session.is_ahead(hdr.cmd_sn.get()))
    }

    /// A task management request has come and it is its turn.
    pub(super) fn task_management<S: Sink>(&mut self, bhs: &Bhs, sink: &mut S) {
        let hdr: &TaskMgmtReqHdr = transmute_ref!(bhs);
        let (function, itt, lun) = (hdr.function(), hdr.itt.get(), hdr.lun.get());
        let Some(session) = self.session.clone() else { return };
        let Some(nexus) = session.nexus() else { return self.reject(bhs, RejectReason::NOT_SUPPORTED) };
        let of_lun = |lun: u64| {
            let wanted = lun_of(lun)?;
            nexus.luns().find(|(known, _)| *known == wanted).map(|(_, view)| view.config.id)
        };
        let whole_target = matches!(
            function,
            TmfFunction::TARGET_WARM_RESET | TmfFunction::TARGET_COLD_RESET | TmfFunction::TASK_REASSIGN
        );
        let lu = of_lun(lun);
        if !whole_target && lu.is_none() {
            return self.push_tmf_response(itt, TmfResponse::NO_LUN);
        }
        let mut lus: Vec<LuId> = match lu.filter(|_| !whole_target) {
            Some(lu) => vec![lu],
            None => nexus.luns().map(|(_, view)| view.config.id).collect(),
        };
        lus.sort_unstable();
        lus.dedup();
        let (from, before) = (nexus.id().clone(), session.next_seq());
        drop(nexus);
        let units = |cleared: bool, lus: &[LuId]| Scope::Units { lus: lus.to_vec(), from, before, cleared };
        let (scope, resets) = match function {
            TmfFunction::ABORT_TASK => match self.slab.find(hdr.ref_itt.get()) {
                // From here on it is not answered, even if its I/O ends before the others hear of the abort.
                Some(slot) => match self.abort_cmd(slot, sink) {
                    Some(seq) => (Scope::Task { conn: self.id, slot, seq }, Vec::new()),
                    None => return self.push_tmf_response(itt, TmfResponse::COMPLETE),
                },
                None => return self.no_task(hdr, sink),
            },
            TmfFunction::ABORT_TASK_SET => (Scope::TaskSet { tsih: session.tsih, lun, before }, Vec::new()),
            TmfFunction::CLEAR_TASK_SET => (units(true, &lus), Vec::new()),
            TmfFunction::LOGICAL_UNIT_RESET
            | TmfFunction::TARGET_WARM_RESET
            | TmfFunction::TARGET_COLD_RESET => (units(false, &lus), lus),
            // Error recovery level 2 only.
            TmfFunction::TASK_REASSIGN => return self.push_tmf_response(itt, TmfResponse::NO_REASSIGN),
            // CLEAR ACA has nothing to clear, NACA being refused.
            _ => return self.push_tmf_response(itt, TmfResponse::NOT_SUPPORTED),
        };
        let cold = function == TmfFunction::TARGET_COLD_RESET;
        let Some(tmf) = self.tmfs.add(Tmf { itt, left: usize::MAX, resets, cold }) else {
            return self.push_tmf_response(itt, TmfResponse::REJECTED);
        };
        let answers = sink.sweep(self.id, tmf, scope);
        if let Some(tmf) = self.tmfs.get_mut(tmf) {
            tmf.left = answers;
        }
    }

    /// ABORT TASK of a task that is not there (RFC 7143, 11.5.1).
    fn no_task<S: Sink>(&mut self, hdr: &TaskMgmtReqHdr, sink: &mut S) {
        let Some(session) = self.session.clone() else { return };
        let (cmd_sn, wanted) = (hdr.cmd_sn.get(), hdr.ref_cmd_sn.get());
        let missing = wanted == session.exp_cmd_sn() || session.is_ahead(wanted);
        let older = cmd_sn.wrapping_sub(wanted).wrapping_sub(1) < (1 << 31) - 1;
        if !(missing && older) {
            return self.push_tmf_response(hdr.itt.get(), TmfResponse::NO_TASK);
        }
        if session.plug(wanted) {
            session.each_member(|conn| sink.nudge(conn));
        }
        self.push_tmf_response(hdr.itt.get(), TmfResponse::COMPLETE);
    }

    /// Ends a command without an answer, now or when it is back; its age, where it is not back yet.
    pub(crate) fn abort_cmd<S: Sink>(&mut self, slot: u16, sink: &mut S) -> Option<u64> {
        let cmd = self.slab.get_mut(slot).filter(|cmd| cmd.is_pending())?;
        let (state, lu, seq) = (cmd.state, cmd.lu, cmd.seq);
        let known = std::mem::replace(&mut cmd.aborted, true);
        match state {
            CmdState::Early => {
                self.unhold(slot, sink);
                self.drop_cmd(slot, sink);
                return None;
            }
            CmdState::Executing if !known => sink.abort(lu, CmdId { conn: self.id, slot }),
            CmdState::Executing | CmdState::Control => {}
            _ => {
                self.drop_cmd(slot, sink);
                return None;
            }
        }
        Some(seq)
    }

    /// Whether an aborted command is not back yet.
    pub(crate) fn is_aborting(&self, slot: u16, seq: u64) -> bool {
        self.slab.get(slot).is_some_and(|cmd| cmd.seq == seq && cmd.is_out())
    }

    /// Aborts the commands that have begun and that `which` is true of; those that are not back yet, with their ages, go
    /// into `waiting`. Returns how many were aborted.
    pub(crate) fn abort_where<S: Sink>(
        &mut self,
        which: impl Fn(&Cmd) -> bool,
        waiting: &mut Vec<(u16, u64)>,
        sink: &mut S,
    ) -> usize {
        let begun = |cmd: &Cmd| cmd.is_pending() && cmd.state != CmdState::Early;
        let used = self.slab.used().filter(|(_, cmd)| begun(cmd) && which(cmd));
        let slots: Vec<u16> = used.map(|(slot, _)| slot).collect();
        for slot in &slots {
            if let Some(seq) = self.abort_cmd(*slot, sink) {
                waiting.push((*slot, seq));
            }
        }
        slots.len()
    }

    /// One thing that a function has waited for is there.
    fn tmf_step<S: Sink>(&mut self, at: u8, sink: &mut S) {
        let Some(tmf) = self.tmfs.get_mut(at) else { return };
        tmf.left = tmf.left.saturating_sub(1);
        if tmf.left > 0 {
            return;
        }
        let resets = std::mem::take(&mut tmf.resets);
        if resets.is_empty() {
            let (itt, cold) = (tmf.itt, tmf.cold);
            if let Some(slot) = self.tmfs.0.get_mut(usize::from(at)) {
                *slot = None;
            }
            self.push_tmf_response(itt, TmfResponse::COMPLETE);
            if let Some(target) = self.key.and_then(|key| key.target).filter(|_| cold) {
                sink.end(EndOf::Target(Box::new(target)));
            }
            return;
        }
        tmf.left = resets.len();
        let Some(nexus) = self.session.as_ref().and_then(|session| session.nexus()) else { return };
        for lu in resets {
            sink.control(self.id, lu, &nexus, Control::Reset, ReplyTo::Tmf(at));
        }
    }

    /// The owner of a logical unit, or a reactor, has answered.
    pub(crate) fn replied<S: Sink>(&mut self, to: ReplyTo, reply: &Reply, sink: &mut S) {
        match to {
            ReplyTo::Cmd(slot) => self.cmd_replied(slot, reply, sink),
            ReplyTo::Tmf(at) => self.tmf_step(at, sink),
            ReplyTo::Login => self.login_again(sink),
            ReplyTo::Nobody => {}
        }
    }

    fn push_tmf_response(&mut self, itt: u32, response: TmfResponse) {
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = TaskMgmtRespHdr {
            opcode: Opcode::TASK_MGMT_RESP.0,
            flags: 0x80,
            response,
            itt: itt.into(),
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            ..TaskMgmtRespHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), &[]);
    }
}
