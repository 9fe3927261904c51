//! PDUs that came before their turn: those before them are on their way on other connections.
//!
//! A command has its slot, and its unsolicited data a buffer; anything else is kept whole. What waits is bounded by the
//! command window, and the bytes kept whole by [`TEXT_BYTES_MAX`].

use std::collections::VecDeque;

use penstock_bdev::Sg;
use penstock_scsi::{Command, Step};
use penstock_spec::iscsi::{Bhs, RejectReason};
use penstock_spec::scsi::sense::Status;

use super::cmd::CmdState;
use super::{Conn, ConnState, IMMEDIATE_MAX, Sink, Target};

/// Bytes of text (and ping data) that wait at one connection at most.
const TEXT_BYTES_MAX: usize = 256 << 10;

#[derive(Debug)]
enum What {
    Cmd(u16),
    Service(Box<(Bhs, Vec<u8>)>),
}

#[derive(Debug)]
struct Item {
    cmd_sn: u32,
    /// It takes no number of its own: it only waits for those before it.
    immediate: bool,
    what: What,
}

/// What waits at one connection, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Early {
    items: VecDeque<Item>,
    text_bytes: usize,
}

impl Early {
    fn has(&self, cmd_sn: u32) -> bool {
        self.items.iter().any(|item| item.cmd_sn == cmd_sn && !item.immediate)
    }
}

impl Conn {
    /// Whether a PDU with that CmdSN waits here already.
    pub(super) fn waits_here(&self, cmd_sn: u32) -> bool {
        self.early.has(cmd_sn)
    }

    /// Keeps a command, which has its slot, until its turn. Its immediate data follow.
    pub(super) fn hold_command<S: Sink>(&mut self, slot: u16, cmd_sn: u32, command: Command, sink: &mut S) {
        let (first_burst, now) = (self.agreed.first_burst, self.pdu.len);
        let (Some(cmd), Some(session)) = (self.slab.get_mut(slot), self.session.as_ref()) else { return };
        cmd.state = CmdState::Early;
        let want = if now > 0 || cmd.unsolicited { first_burst.min(cmd.edtl) } else { 0 };
        if want > 0 {
            let Some(buffers) = sink.buffers(want, false) else {
                // It counts as received, and is answered before its turn.
                session.plug(cmd_sn);
                return self.respond_busy(slot, sink);
            };
            cmd.buffered += want;
            cmd.want = want;
            cmd.data = buffers;
            if now > 0 {
                self.pdu.target = Target::Cmd(slot);
            }
        }
        cmd.early = Some(Box::new(command));
        session.held.set(session.held.get() + 1);
        self.early.items.push_back(Item { cmd_sn, immediate: false, what: What::Cmd(slot) });
    }

    /// Keeps another PDU until its turn.
    pub(super) fn hold_service(&mut self, bhs: &Bhs, data: &[u8]) {
        let Some(session) = self.session.as_ref() else { return };
        let cmd_sn = bhs.cmd_sn.get();
        let full = self.early.items.len() >= usize::from(self.window + IMMEDIATE_MAX);
        if full || self.early.text_bytes + data.len() > TEXT_BYTES_MAX {
            return self.fatal(bhs, RejectReason::PROTOCOL);
        }
        self.early.text_bytes += data.len();
        session.held.set(session.held.get() + 1);
        let what = What::Service(Box::new((*bhs, data.to_vec())));
        self.early.items.push_back(Item { cmd_sn, immediate: bhs.is_immediate(), what });
    }

    /// A command that waits is aborted: its CmdSN counts as received.
    pub(super) fn unhold<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let held = self.early.items.iter().position(|item| matches!(item.what, What::Cmd(at) if at == slot));
        let Some(item) = held.and_then(|at| self.early.items.remove(at)) else { return };
        let Some(session) = self.session.as_ref() else { return };
        session.held.set(session.held.get().saturating_sub(1));
        session.plug(item.cmd_sn);
        session.each_member(|conn| sink.nudge(conn));
    }

    /// The connection ends: what waits counts as received, so that the others can go on.
    pub(super) fn drop_early<S: Sink>(&mut self, sink: &mut S) {
        let Some(session) = self.session.as_ref() else { return };
        for item in self.early.items.drain(..) {
            session.held.set(session.held.get().saturating_sub(1));
            if !item.immediate {
                session.plug(item.cmd_sn);
            }
        }
        self.early.text_bytes = 0;
        session.each_member(|conn| sink.nudge(conn));
    }

    /// Others of the session have gone on: so do those here whose turn it is.
    pub(crate) fn go_on<S: Sink>(&mut self, sink: &mut S) {
        while self.state == ConnState::Full {
            let (Some(session), Some(item)) = (self.session.as_ref(), self.early.items.front()) else {
                break;
            };
            if !session.has_reached(item.cmd_sn) {
                break;
            }
            let next = session.exp_cmd_sn() == item.cmd_sn;
            let Some(item) = self.early.items.pop_front() else { break };
            session.held.set(session.held.get().saturating_sub(1));
            if next && !item.immediate {
                self.advance(sink);
            }
            match item.what {
                What::Cmd(slot) => self.run_early(slot, sink),
                What::Service(pdu) => {
                    self.early.text_bytes -= pdu.1.len();
                    self.serve(&pdu.0, &pdu.1, sink);
                }
            }
        }
        if self.session.as_ref().is_some_and(|session| session.waiting.get() > 0) {
            self.wake_ordered(sink);
        }
    }

    fn run_early<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        let Some(command) = cmd.early.take() else { return };
        cmd.state = CmdState::TransferIn;
        let came = std::mem::take(&mut cmd.data);
        let step = self.start(slot, &command, sink);
        let (Some(cmd), Step::Data { bytes }) = (self.slab.get_mut(slot), step) else {
            return self.run(slot, step, sink);
        };
        if came.is_empty() {
            return self.run(slot, step, sink);
        }
        if u32::try_from(came.len_bytes()) == Ok(bytes) {
            cmd.data = came;
            cmd.want = bytes;
            return self.data_came_more(slot, sink);
        }
        // A longer buffer is needed; what came goes into it when it is there.
        cmd.blocks = came;
        self.run(slot, step, sink);
    }

    /// What came before the command had its buffer goes into it; returns the bytes of the buffer that is free again.
    pub(super) fn move_early(data: &mut Sg, came: &mut Sg) -> u32 {
        let len = came.len_bytes();
        let mut at = 0;
        for piece in came.iter() {
            at += data.copy_in(at, piece);
        }
        came.clear();
        u32::try_from(len).unwrap_or(0)
    }

    /// Answers BUSY.
    fn respond_busy<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        self.ended(slot, sink);
        self.push_response(slot, Status::BUSY, &[], (0, 0), 0);
        self.free(slot, sink);
    }
}
