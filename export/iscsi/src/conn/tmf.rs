//! Task management (RFC 7143, 11.5): what is aborted, and when that is answered.
//!
//! A function is answered when nothing that it aborts is outside any more and the owners of the logical units that it
//! resets have said so. Commands for immediate delivery are the usual form; a numbered request takes its turn.

use penstock_scsi::{Control, LuId, Reply, lun_of};
use penstock_spec::iscsi::{
    Bhs, Opcode, RejectReason, TaskMgmtReqHdr, TaskMgmtRespHdr, TmfFunction, TmfResponse,
};
use zerocopy::{IntoBytes, transmute_ref};

use super::cmd::{CmdId, CmdState};
use super::{Conn, Sink};

/// Functions of one session under way at most.
const TMFS_MAX: usize = 16;

/// Whose reply it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyTo {
    /// A command's.
    Cmd(u16),
    /// A task management function's.
    Tmf(u8),
    /// Nobody's.
    Nobody,
}

/// A function under way.
#[derive(Debug)]
struct Tmf {
    itt: u32,
    /// Commands that are not back, then replies that are not there.
    left: usize,
    /// Logical units to be reset after that.
    resets: Vec<LuId>,
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
    /// A task management request has come and it is its turn.
    pub(super) fn task_management<S: Sink>(&mut self, bhs: &Bhs, sink: &mut S) {
        let hdr: &TaskMgmtReqHdr = transmute_ref!(bhs);
        let (function, itt, lun) = (hdr.function(), hdr.itt.get(), hdr.lun.get());
        let Some(nexus) = self.nexus.as_ref() else { return self.reject(bhs, RejectReason::NOT_SUPPORTED) };
        let of_lun = |lun: u64| {
            let wanted = lun_of(lun)?;
            nexus.luns().find(|(known, _)| *known == wanted).map(|(_, view)| view.config.id)
        };
        let lu = of_lun(lun);
        let needs_lun = !matches!(
            function,
            TmfFunction::TARGET_WARM_RESET | TmfFunction::TARGET_COLD_RESET | TmfFunction::TASK_REASSIGN
        );
        if needs_lun && lu.is_none() {
            return self.push_tmf_response(itt, TmfResponse::NO_LUN);
        }
        let (victims, resets) = match function {
            TmfFunction::ABORT_TASK => match self.slab.find(hdr.ref_itt.get()) {
                Some(slot) => (vec![slot], Vec::new()),
                None => return self.no_task(hdr),
            },
            TmfFunction::ABORT_TASK_SET => (self.pending_on(None, Some(lun)), Vec::new()),
            TmfFunction::CLEAR_TASK_SET => {
                if let Some(lu) = lu {
                    sink.abort_others(lu, nexus);
                }
                (self.pending_on(None, Some(lun)), Vec::new())
            }
            TmfFunction::LOGICAL_UNIT_RESET => (self.pending_on(None, Some(lun)), lu.into_iter().collect()),
            TmfFunction::TARGET_WARM_RESET => {
                let mut all: Vec<LuId> = nexus.luns().map(|(_, view)| view.config.id).collect();
                all.sort_unstable();
                all.dedup();
                (self.pending_on(None, None), all)
            }
            TmfFunction::TASK_REASSIGN => return self.push_tmf_response(itt, TmfResponse::NO_REASSIGN),
            // A cold reset would have to end all sessions; CLEAR ACA has nothing to clear, NACA being refused.
            _ => return self.push_tmf_response(itt, TmfResponse::NOT_SUPPORTED),
        };
        for lu in &resets {
            if let Some(nexus) = self.nexus.as_ref() {
                sink.abort_others(*lu, nexus);
            }
        }
        let Some(tmf) = self.tmfs.add(Tmf { itt, left: victims.len() + 1, resets }) else {
            return self.push_tmf_response(itt, TmfResponse::REJECTED);
        };
        for slot in victims {
            self.abort_cmd(slot, Some(tmf), sink);
        }
        self.tmf_step(tmf, sink);
    }

    /// ABORT TASK of a task that is not there (RFC 7143, 11.5.1): one that has come already is as good as aborted.
    fn no_task(&mut self, hdr: &TaskMgmtReqHdr) {
        let behind = self.numbers.exp_cmd_sn.wrapping_sub(hdr.ref_cmd_sn.get());
        let was_here = behind > 0 && behind <= u32::from(self.numbers.window);
        let response = if was_here { TmfResponse::COMPLETE } else { TmfResponse::NO_TASK };
        self.push_tmf_response(hdr.itt.get(), response);
    }

    /// Ends a command without an answer, now or when it is back.
    fn abort_cmd<S: Sink>(&mut self, slot: u16, tmf: Option<u8>, sink: &mut S) {
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        let (state, lu, known) = (cmd.state, cmd.lu, cmd.tmf);
        cmd.aborted = true;
        cmd.tmf = tmf.or(known);
        if !cmd.is_out() {
            return self.drop_cmd(slot, sink);
        }
        if let Some(other) = known.filter(|_| tmf.is_some()) {
            // Another function waited for it: that one is as good as over.
            self.tmf_step(other, sink);
        }
        if state == CmdState::Executing {
            sink.abort(lu, CmdId { conn: self.id, slot });
        }
    }

    /// Ends all commands to a logical unit: another session has reset or preempted.
    pub(crate) fn abort_lu<S: Sink>(&mut self, lu: LuId, sink: &mut S) {
        let Some(nexus) = self.nexus.as_ref() else { return };
        let luns: Vec<u16> =
            nexus.luns().filter(|(_, view)| view.config.id == lu).map(|(lun, _)| lun).collect();
        let on = |cmd: &super::cmd::Cmd| lun_of(cmd.lun).is_some_and(|lun| luns.contains(&lun));
        let slots: Vec<u16> =
            self.slab.used().filter(|(_, cmd)| cmd.is_pending() && on(cmd)).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.abort_cmd(slot, None, sink);
        }
    }

    /// One thing that a function has waited for is there.
    pub(super) fn tmf_step<S: Sink>(&mut self, at: u8, sink: &mut S) {
        let Some(tmf) = self.tmfs.get_mut(at) else { return };
        tmf.left = tmf.left.saturating_sub(1);
        if tmf.left > 0 {
            return;
        }
        let resets = std::mem::take(&mut tmf.resets);
        if resets.is_empty() {
            let itt = tmf.itt;
            if let Some(slot) = self.tmfs.0.get_mut(usize::from(at)) {
                *slot = None;
            }
            return self.push_tmf_response(itt, TmfResponse::COMPLETE);
        }
        tmf.left = resets.len();
        for lu in resets {
            if let Some(nexus) = self.nexus.as_ref() {
                sink.control(self.id, lu, nexus, Control::Reset, ReplyTo::Tmf(at));
            }
        }
    }

    /// The owner of a logical unit has answered.
    pub(crate) fn replied<S: Sink>(&mut self, to: ReplyTo, reply: &Reply, sink: &mut S) {
        match to {
            ReplyTo::Cmd(slot) => self.cmd_replied(slot, reply, sink),
            ReplyTo::Tmf(at) => self.tmf_step(at, sink),
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
