//! SCSI commands: their data, their steps, their order.

use penstock_bdev::{Io, Sg};
use penstock_scsi::{Command, LuId, Reply, Step};
use penstock_spec::iscsi::{DataOutHdr, RejectReason, ScsiCommandHdr, TAG_NONE};
use penstock_spec::scsi::cdb::CDB_BYTES_MAX;
use zerocopy::transmute_ref;

use super::cmd::{CmdId, CmdState};
use super::tmf::ReplyTo;
use super::{Conn, IMMEDIATE_MAX, Sink, Target};

/// Task attributes (SAM-5, 8.6).
const ATTR_ORDERED: u8 = 2;
const ATTR_HEAD: u8 = 3;

/// What becomes of a numbered PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is next.
    Next,
    /// It is outside of the window and is ignored.
    Ignore,
    /// A PDU before it is missing: on one connection it cannot come any more.
    Gap,
}

impl Conn {
    /// Looks at the CmdSN of a numbered PDU and advances ExpCmdSN where it is next (RFC 7143, 4.2.2.1).
    pub(super) fn take_turn(&mut self, cmd_sn: u32, immediate: bool) -> Turn {
        if immediate {
            return Turn::Next;
        }
        let numbers = &mut self.numbers;
        let ahead = cmd_sn.wrapping_sub(numbers.exp_cmd_sn);
        let window = numbers.max_cmd_sn.wrapping_sub(numbers.exp_cmd_sn).wrapping_add(1);
        if window > u32::from(u16::MAX) || ahead >= window {
            return Turn::Ignore;
        }
        if ahead > 0 {
            return Turn::Gap;
        }
        numbers.exp_cmd_sn = numbers.exp_cmd_sn.wrapping_add(1);
        Turn::Next
    }

    /// A command has come; its immediate data, if any, follow.
    pub(super) fn command<S: Sink>(&mut self, ahs: &[u8], sink: &mut S) {
        let bhs = self.pdu.bhs;
        let hdr: &ScsiCommandHdr = transmute_ref!(&bhs);
        let immediate = bhs.is_immediate();
        match self.take_turn(hdr.cmd_sn.get(), immediate) {
            Turn::Next => {}
            Turn::Ignore => return,
            Turn::Gap => return self.fatal(&bhs, RejectReason::PROTOCOL),
        }
        if immediate && self.numbers.immediate >= IMMEDIATE_MAX {
            return self.reject(&bhs, RejectReason::IMMEDIATE);
        }
        let (edtl, itt) = (hdr.edtl.get(), hdr.itt.get());
        if let Err(reason) = self.check_command(hdr) {
            return self.fatal(&bhs, reason);
        }
        // Discovery sessions have no logical units. CDBs longer than 16 bytes belong to no command that we have.
        if self.nexus.is_none() || !ahs.is_empty() {
            return self.reject(&bhs, RejectReason::NOT_SUPPORTED);
        }
        if self.slab.find(itt).is_some() || itt == TAG_NONE {
            return self.reject(&bhs, RejectReason::TASK_IN_PROGRESS);
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
        let (Some(cmd), Some(nexus)) = (self.slab.get_mut(slot), self.nexus.as_mut()) else { return };
        cmd.state = CmdState::TransferIn;
        cmd.itt = itt;
        cmd.lun = hdr.lun.get();
        cmd.seq = self.numbers.next_seq;
        self.numbers.next_seq += 1;
        cmd.ordered = hdr.attr() == ATTR_ORDERED;
        cmd.head = hdr.attr() == ATTR_HEAD;
        cmd.numbered = !immediate;
        cmd.read = read;
        cmd.edtl = edtl;
        cmd.unsolicited = write && hdr.flags & ScsiCommandHdr::FINAL == 0;
        self.numbers.ordered += u16::from(cmd.ordered);
        if immediate {
            self.numbers.immediate += 1;
        } else {
            self.numbers.active += 1;
        }
        let step = cmd.task.start(nexus, &command, sink.now());
        if matches!(step, Step::Data { .. }) && self.pdu.len > 0 {
            self.pdu.target = Target::Cmd(slot);
        }
        self.run(slot, step, sink);
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
                if let Some(nexus) = self.nexus.as_ref() {
                    sink.control(self.id, lu, nexus, control, ReplyTo::Cmd(slot));
                }
            }
            Step::Done => self.respond(slot, sink),
        }
    }

    /// Tries to get a command its buffer, and moves it on when there is one; else it waits (again).
    pub(crate) fn retry<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let id = CmdId { conn: self.id, slot };
        let (Some(cmd), Some(nexus)) = (self.slab.get_mut(slot), self.nexus.as_mut()) else { return };
        if !matches!(cmd.state, CmdState::NeedData | CmdState::NeedBuffer) {
            return;
        }
        let Some(buf) = sink.buffer(cmd.want) else {
            let comes_now = self.pdu.target == Target::Cmd(slot) && self.pdu.left > 0;
            if cmd.state == CmdState::NeedData && comes_now {
                self.stalled = Some(slot);
            }
            sink.starved(id);
            return;
        };
        cmd.buffered += cmd.want;
        if cmd.state == CmdState::NeedBuffer {
            let mut list = Sg::new();
            list.push(buf);
            let step = cmd.task.buffers(nexus, list);
            return self.run(slot, step, sink);
        }
        cmd.data.push(buf);
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
        let waits = matches!(cmd.state, CmdState::TransferIn | CmdState::NeedData);
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
    fn data_came_more<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let (Some(cmd), Some(nexus)) = (self.slab.get_mut(slot), self.nexus.as_mut()) else { return };
        if cmd.unsolicited || cmd.state != CmdState::TransferIn {
            return;
        }
        if cmd.have >= cmd.want {
            if cmd.bad_digest {
                return self.respond_bad_digest(slot, sink);
            }
            let data = std::mem::take(&mut cmd.data);
            let step = cmd.task.data_out(nexus, data);
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
        let must_wait = self.numbers.ordered > 0 && self.waits_for_older(slot);
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        if !matches!(cmd.state, CmdState::Busy | CmdState::Ordered) {
            return;
        }
        if cmd.state == CmdState::Ordered {
            self.numbers.waiting = self.numbers.waiting.saturating_sub(1);
        }
        if must_wait {
            cmd.state = CmdState::Ordered;
            self.numbers.waiting += 1;
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
        !cmd.head
            && self.slab.used().any(|(_, other)| {
                other.seq < cmd.seq
                    && other.lun == cmd.lun
                    && other.is_pending()
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
        let Some(nexus) = self.nexus.as_mut() else { return };
        let step = cmd.task.completed(nexus, io);
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
        if let (Some(io), Some(nexus)) = (cmd.io.take(), self.nexus.as_mut()) {
            // It was never submitted: back it goes, so that the task is whole.
            let mut io = io;
            io.status = penstock_bdev::IoStatus::Aborted;
            let _ended = cmd.task.completed(nexus, io);
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
        let tmf = cmd.tmf.take();
        if cmd.state == CmdState::Ordered {
            self.numbers.waiting = self.numbers.waiting.saturating_sub(1);
        }
        cmd.state = CmdState::TransferOut;
        if cmd.numbered {
            self.numbers.active = self.numbers.active.saturating_sub(1);
        } else {
            self.numbers.immediate = self.numbers.immediate.saturating_sub(1);
        }
        self.numbers.ordered -= u16::from(std::mem::take(&mut cmd.ordered)).min(self.numbers.ordered);
        if self.pdu.target == Target::Cmd(slot) {
            self.pdu.target = Target::Discard;
        }
        if self.stalled == Some(slot) {
            // What came behind goes on when the group looks at the connection again.
            sink.starved(CmdId { conn: self.id, slot });
        }
        if self.numbers.waiting > 0 {
            self.wake_ordered(sink);
        }
        if let Some(tmf) = tmf {
            self.tmf_step(tmf, sink);
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

    /// Logical units of the session's commands that are not answered yet.
    pub(super) fn pending_on(&self, lu: Option<LuId>, lun: Option<u64>) -> Vec<u16> {
        let on =
            |cmd: &super::cmd::Cmd| lu.is_none_or(|lu| cmd.lu == lu) && lun.is_none_or(|lun| cmd.lun == lun);
        self.slab.used().filter(|(_, cmd)| cmd.is_pending() && on(cmd)).map(|(slot, _)| slot).collect()
    }
}

/// Target Transfer Tag of an R2T.
pub(super) fn ttt(slot: u16, r2t_sn: u32) -> u32 {
    (u32::from(slot & 0x7fff) << 16) | (r2t_sn & 0xffff)
}
