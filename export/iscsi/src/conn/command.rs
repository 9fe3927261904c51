//! SCSI commands: their data, their steps, their order.

use penstock_bdev::Io;
use penstock_scsi::{Command, Reply, Step};
use penstock_spec::iscsi::{Bhs, DataOutHdr, RejectReason, ScsiCommandHdr, TAG_NONE};
use penstock_spec::scsi::cdb::CDB_BYTES_MAX;
use zerocopy::transmute_ref;

use super::cmd::{CmdId, CmdState};
use super::session::Turn;
use super::tmf::ReplyTo;
use super::{Conn, IMMEDIATE_MAX, Sink, Target};

/// Task attributes (SAM-5, 8.6).
const ATTR_ORDERED: u8 = 2;
const ATTR_HEAD: u8 = 3;

impl Conn {
    /// The numbered PDU that was next has come.
    #[inline]
    pub(super) fn advance<S: Sink>(&mut self, sink: &mut S) {
        let Some(session) = self.session.as_ref() else { return };
        if session.advance() {
            session.each_member(|conn| sink.nudge(conn));
        }
    }

    /// What becomes of a numbered PDU; ExpCmdSN is advanced where it is next (RFC 7143, 4.2.2.1).
    #[inline]
    pub(super) fn take_turn<S: Sink>(&mut self, cmd_sn: u32, immediate: bool, sink: &mut S) -> Turn {
        let turn = self.session.as_ref().map_or(Turn::Ignore, |session| session.turn(cmd_sn, immediate));
        match turn {
            Turn::Next if !immediate => self.advance(sink),
            Turn::Early if self.waits_here(cmd_sn) => return Turn::Ignore,
            _ => {}
        }
        turn
    }

    /// A numbered PDU that came early is rejected: its CmdSN counts as received.
    fn reject_early(&mut self, turn: Turn, bhs: &Bhs, reason: RejectReason) {
        if turn == Turn::Early
            && let Some(session) = self.session.as_ref()
        {
            session.plug(bhs.cmd_sn.get());
        }
        self.reject(bhs, reason);
    }

    /// A command has come; its immediate data, if any, follow.
    pub(super) fn command<S: Sink>(&mut self, ahs: &[u8], sink: &mut S) {
        let bhs = self.pdu.bhs;
        let hdr: &ScsiCommandHdr = transmute_ref!(&bhs);
        let immediate = bhs.is_immediate();
        let cmd_sn = hdr.cmd_sn.get();
        let turn = self.take_turn(cmd_sn, immediate, sink);
        if turn == Turn::Ignore {
            return;
        }
        let Some(session) = self.session.as_ref() else { return };
        if immediate && session.immediate() >= IMMEDIATE_MAX {
            return self.reject(&bhs, RejectReason::IMMEDIATE);
        }
        let has_nexus = session.key.target.is_some();
        let (edtl, itt) = (hdr.edtl.get(), hdr.itt.get());
        if let Err(reason) = self.check_command(hdr) {
            return self.fatal(&bhs, reason);
        }
        // Discovery sessions have no logical units. CDBs longer than 16 bytes belong to no command that we have.
        if !has_nexus || !ahs.is_empty() {
            return self.reject_early(turn, &bhs, RejectReason::NOT_SUPPORTED);
        }
        if self.slab.find(itt).is_some() || itt == TAG_NONE {
            return self.reject_early(turn, &bhs, RejectReason::TASK_IN_PROGRESS);
        }
        let Some(slot) = self.slab.take() else { return self.fatal(&bhs, RejectReason::PROTOCOL) };
        let (read, write) = (hdr.flags & ScsiCommandHdr::READ != 0, hdr.flags & ScsiCommandHdr::WRITE != 0);
        let mut command = Command {
            cdb: [0; CDB_BYTES_MAX],
            lun: hdr.lun.get(),
            data_out_bytes: if write { edtl } else { 0 },
        };
        for (to, from) in command.cdb.iter_mut().zip(hdr.cdb) {
            *to = from;
        }
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        cmd.state = CmdState::TransferIn;
        cmd.itt = itt;
        cmd.lun = hdr.lun.get();
        cmd.ordered = hdr.attr() == ATTR_ORDERED;
        cmd.head = hdr.attr() == ATTR_HEAD;
        cmd.numbered = !immediate;
        cmd.read = read;
        cmd.edtl = edtl;
        cmd.unsolicited = write && hdr.flags & ScsiCommandHdr::FINAL == 0;
        self.pending += 1;
        self.slab.set_tag(slot, Some(itt));
        if turn == Turn::Early {
            return self.hold_command(slot, cmd_sn, command, sink);
        }
        let step = self.start(slot, &command, sink);
        if matches!(step, Step::Data { .. }) && self.pdu.len > 0 {
            self.pdu.target = Target::Cmd(slot);
        }
        self.run(slot, step, sink);
    }

    /// Begins a command whose turn it is.
    #[inline]
    pub(super) fn start<S: Sink>(&mut self, slot: u16, command: &Command, sink: &mut S) -> Step {
        let (Some(cmd), Some(session)) = (self.slab.get_mut(slot), self.session.as_ref()) else {
            return Step::Done;
        };
        cmd.seq = session.begin(cmd.lun, cmd.ordered, cmd.numbered);
        cmd.began = sink.now();
        match session.nexus() {
            Some(mut nexus) => cmd.task.start(&mut nexus, command, sink.now()),
            None => Step::Done,
        }
    }

    /// Unsolicited data as they were agreed on (RFC 7143, 4.2.5.2 and 13.10 to 13.14).
    fn check_command(&self, hdr: &ScsiCommandHdr) -> Result<(), RejectReason> {
        let len = self.pdu.len;
        let write = hdr.flags & ScsiCommandHdr::WRITE != 0;
        if len > 0 && (!write || !self.agreed.immediate_data) {
            return Err(RejectReason::PROTOCOL);
        }
        if len > hdr.edtl.get().min(self.agreed.first_burst) {
            return Err(RejectReason::PROTOCOL);
        }
        if write && hdr.flags & ScsiCommandHdr::FINAL == 0 && self.agreed.initial_r2t {
            return Err(RejectReason::PROTOCOL);
        }
        Ok(())
    }

    /// Goes on with a command as its task says.
    pub(super) fn run<S: Sink>(&mut self, slot: u16, step: Step, sink: &mut S) {
        let id = CmdId { conn: self.id, slot };
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        match step {
            Step::Data { bytes } => {
                cmd.want = bytes;
                cmd.state = CmdState::NeedData;
                self.retry(slot, sink);
            }
            Step::Buffers { bytes } => {
                cmd.want = bytes;
                cmd.state = CmdState::NeedBuffer;
                self.retry(slot, sink);
            }
            Step::Submit { lu } => {
                cmd.lu = lu;
                let mut io = cmd.task.take_io();
                io.tag = id.tag();
                cmd.io = Some(io);
                cmd.state = CmdState::Busy;
                self.resubmit(slot, sink);
            }
            Step::Control { lu } => {
                cmd.lu = lu;
                cmd.state = CmdState::Control;
                let control = cmd.task.take_control();
                if let Some(nexus) = self.session.as_ref().and_then(|session| session.nexus()) {
                    sink.control(self.id, lu, &nexus, control, ReplyTo::Cmd(slot));
                }
            }
            Step::Done => self.respond(slot, sink),
        }
    }

    /// Tries to get a command its buffer, and moves it on when there is one; else it waits (again).
    pub(crate) fn retry<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let id = CmdId { conn: self.id, slot };
        let (Some(cmd), Some(session)) = (self.slab.get_mut(slot), self.session.as_ref()) else { return };
        if !matches!(cmd.state, CmdState::NeedData | CmdState::NeedBuffer) {
            return;
        }
        let late = cmd.state == CmdState::NeedBuffer && cmd.task.takes_late_buffers();
        let Some(buffers) = sink.buffers(cmd.want, late) else {
            let comes_now = self.pdu.target == Target::Cmd(slot) && self.pdu.left > 0;
            if cmd.state == CmdState::NeedData && comes_now {
                self.stalled = Some(slot);
            }
            sink.starved(id);
            return;
        };
        cmd.buffered += cmd.want;
        if cmd.state == CmdState::NeedBuffer {
            let Some(mut nexus) = session.nexus() else { return };
            let step = cmd.task.buffers(&mut nexus, buffers);
            drop(nexus);
            return self.run(slot, step, sink);
        }
        cmd.data = buffers;
        if !cmd.blocks.is_empty() {
            let freed = Self::move_early(&mut cmd.data, &mut cmd.blocks);
            cmd.buffered = cmd.buffered.saturating_sub(freed);
            sink.released(freed);
        }
        cmd.state = CmdState::TransferIn;
        // Immediate data move it on when they are there.
        if self.pdu.target != Target::Cmd(slot) {
            self.data_came_more(slot, sink);
        }
    }

    /// Goes on with what came behind a command that had to wait for its buffer; to be called after [`Self::retry`].
    pub(crate) fn resume<S: Sink>(&mut self, sink: &mut S) {
        let Some(slot) = self.stalled else { return };
        if self.slab.get(slot).is_some_and(|cmd| cmd.state == CmdState::NeedData) {
            return;
        }
        self.stalled = None;
        let bytes = std::mem::take(&mut self.leftover);
        self.receive(&bytes, sink);
    }

    /// A Data-Out has come; its data follow.
    pub(super) fn data_out(&mut self) {
        let bhs = self.pdu.bhs;
        let hdr: &DataOutHdr = transmute_ref!(&bhs);
        let (offset, len) = (hdr.offset.get(), self.pdu.len);
        let Some(slot) = self.slab.find(hdr.itt.get()) else {
            // What was on its way to a command that was answered or aborted meanwhile.
            return;
        };
        let (first_burst, max_burst) = (self.agreed.first_burst, self.agreed.max_burst);
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        let unsolicited = hdr.ttt.get() == TAG_NONE;
        let waits = matches!(cmd.state, CmdState::TransferIn | CmdState::NeedData | CmdState::Early);
        if unsolicited && cmd.unsolicited && !waits {
            // The task does without data.
            return;
        }
        let end = offset.saturating_add(len);
        let limit = if unsolicited {
            first_burst.min(cmd.edtl)
        } else {
            cmd.sequence_at.saturating_add(max_burst).min(cmd.want)
        };
        let expected = if unsolicited { cmd.unsolicited } else { !cmd.unsolicited && cmd.r2ts > 0 };
        let tag_fits = unsolicited || hdr.ttt.get() == ttt(slot, cmd.sequence);
        let fits = expected && waits && tag_fits && offset == cmd.have && end <= limit;
        if !fits {
            return self.fatal(&bhs, RejectReason::PROTOCOL);
        }
        if hdr.data_sn.get() != cmd.data_sn {
            // A PDU is missing as if its digest had been wrong (RFC 7143, 7.9): the command fails.
            cmd.bad_digest = true;
        }
        cmd.data_sn += 1;
        if bhs.is_final() {
            // The sequence is over, and must be whole where it was asked for.
            if !unsolicited && end != limit {
                return self.fatal(&bhs, RejectReason::PROTOCOL);
            }
            cmd.data_sn = 0;
            if unsolicited {
                cmd.unsolicited = false;
            } else {
                cmd.sequence += 1;
                cmd.sequence_at = end;
                cmd.r2ts -= 1;
            }
        } else if end == limit && !unsolicited {
            return self.fatal(&bhs, RejectReason::PROTOCOL);
        }
        self.pdu.target = Target::Cmd(slot);
        self.pdu.at = offset;
    }

    /// All data of a PDU are there.
    pub(super) fn data_came<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let len = self.pdu.len;
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        cmd.have = cmd.have.saturating_add(len);
        self.data_came_more(slot, sink);
    }

    /// Asks for more data, or goes on where all are there.
    pub(super) fn data_came_more<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let (Some(cmd), Some(session)) = (self.slab.get_mut(slot), self.session.as_ref()) else { return };
        if cmd.unsolicited || cmd.state != CmdState::TransferIn {
            return;
        }
        if cmd.have >= cmd.want {
            if cmd.bad_digest {
                return self.respond_bad_digest(slot, sink);
            }
            let data = std::mem::take(&mut cmd.data);
            let Some(mut nexus) = session.nexus() else { return };
            let step = cmd.task.data_out(&mut nexus, data);
            drop(nexus);
            return self.run(slot, step, sink);
        }
        if cmd.r2t_to < cmd.have {
            cmd.r2t_to = cmd.have;
            cmd.sequence_at = cmd.have;
        }
        self.push_r2ts(slot);
    }

    /// Gives a command's I/O to its bdev, unless older commands are to end first.
    pub(crate) fn resubmit<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let Some(session) = self.session.as_ref() else { return };
        let must_wait = session.ordered.get() > 0 && self.waits_for_older(slot);
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        if !matches!(cmd.state, CmdState::Busy | CmdState::Ordered) {
            return;
        }
        if cmd.state == CmdState::Ordered {
            session.waiting.set(session.waiting.get().saturating_sub(1));
        }
        if must_wait {
            cmd.state = CmdState::Ordered;
            session.waiting.set(session.waiting.get() + 1);
            return;
        }
        let Some(io) = cmd.io.take() else { return };
        match sink.submit(cmd.lu, CmdId { conn: self.id, slot }, io) {
            Ok(()) => {
                cmd.state = CmdState::Executing;
                self.out += 1;
            }
            Err(io) => {
                cmd.io = Some(io);
                cmd.state = CmdState::Busy;
            }
        }
    }

    /// Whether an older command of the same logical unit must end first (SAM-5, 8.6).
    fn waits_for_older(&self, slot: u16) -> bool {
        let Some(cmd) = self.slab.get(slot) else { return false };
        if cmd.head {
            return false;
        }
        let session = self.session.as_ref();
        if let Some(waits) =
            session.and_then(|session| session.waits_for_older(cmd.seq, cmd.lun, cmd.ordered))
        {
            return waits;
        }
        self.slab.used().any(|(_, other)| {
            other.seq < cmd.seq
                && other.lun == cmd.lun
                && other.is_pending()
                && other.state != CmdState::Early
                && (cmd.ordered || other.ordered)
        })
    }

    /// A command has ended: those that waited for it may go on.
    pub(super) fn wake_ordered<S: Sink>(&mut self, sink: &mut S) {
        let waiting: Vec<u16> = self
            .slab
            .used()
            .filter(|(_, cmd)| cmd.state == CmdState::Ordered)
            .map(|(slot, _)| slot)
            .collect();
        for slot in waiting {
            self.resubmit(slot, sink);
        }
    }

    /// The bdev has given a command's I/O back.
    pub(crate) fn io_back<S: Sink>(&mut self, slot: u16, io: Box<Io>, sink: &mut S) {
        self.out = self.out.saturating_sub(1);
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        let Some(mut nexus) = self.session.as_ref().and_then(|session| session.nexus()) else { return };
        let step = cmd.task.completed(&mut nexus, io);
        drop(nexus);
        if cmd.aborted {
            cmd.state = CmdState::TransferIn;
            return self.drop_cmd(slot, sink);
        }
        self.run(slot, step, sink);
    }

    /// The owner of a logical unit has answered a command's request.
    pub(super) fn cmd_replied<S: Sink>(&mut self, slot: u16, reply: &Reply, sink: &mut S) {
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        if cmd.state != CmdState::Control {
            return;
        }
        if cmd.aborted {
            cmd.state = CmdState::TransferIn;
            return self.drop_cmd(slot, sink);
        }
        let step = cmd.task.replied(reply);
        self.run(slot, step, sink);
    }

    /// Ends a command without an answer; nothing of it is outside.
    pub(super) fn drop_cmd<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        let session = self.session.as_ref();
        if let (Some(io), Some(mut nexus)) = (cmd.io.take(), session.and_then(|session| session.nexus())) {
            // It was never submitted: back it goes, so that the task is whole.
            let mut io = io;
            io.status = penstock_bdev::IoStatus::Aborted;
            let _ended = cmd.task.completed(&mut nexus, io);
        }
        let whole = cmd.task.abandon();
        debug_assert!(whole, "the I/O of a dropped command is back");
        self.ended(slot, sink);
        self.free(slot, sink);
    }

    /// A command counts no more: it was answered or aborted.
    pub(super) fn ended<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        if cmd.state == CmdState::TransferOut {
            return;
        }
        let Some(session) = self.session.as_ref() else { return };
        if cmd.state == CmdState::Ordered {
            session.waiting.set(session.waiting.get().saturating_sub(1));
        }
        let begun = cmd.state != CmdState::Early;
        cmd.state = CmdState::TransferOut;
        self.pending = self.pending.saturating_sub(1);
        if begun {
            session.end(cmd.seq, std::mem::take(&mut cmd.ordered), cmd.numbered);
        }
        self.slab.set_tag(slot, None);
        if self.pdu.target == Target::Cmd(slot) {
            self.pdu.target = Target::Discard;
        }
        if self.stalled == Some(slot) {
            // What came behind goes on when the group looks at the connection again.
            sink.starved(CmdId { conn: self.id, slot });
        }
        if session.waiting.get() > 0 {
            session.each_member(|conn| sink.nudge(conn));
            self.wake_ordered(sink);
        }
    }

    /// Frees a slot.
    pub(super) fn free<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let bytes = self.slab.release(slot);
        sink.released(bytes);
    }

    /// The first `sent` bytes of the send queue are with the kernel.
    #[inline]
    pub(crate) fn sent<S: Sink>(&mut self, sent: usize, sink: &mut S) {
        let slab = &mut self.slab;
        self.tx.sent(sent, |slot| sink.released(slab.release(slot)));
    }
}

/// Target Transfer Tag of an R2T.
pub(super) fn ttt(slot: u16, r2t_sn: u32) -> u32 {
    (u32::from(slot & 0x7fff) << 16) | (r2t_sn & 0xffff)
}
