//! Answers: Data-In, SCSI Response, R2T, Reject, and the numbers in all of them.

use penstock_scsi::{DataIn, Sense};
use penstock_spec::iscsi::{
    Bhs, DataInHdr, DataLen, Opcode, R2tHdr, RejectHdr, RejectReason, ScsiResponseHdr, TAG_NONE, pad_len,
};
use penstock_spec::scsi::sense::{Asc, SenseKey, Status};
use zerocopy::IntoBytes;

use super::cmd::CmdState;
use super::command::ttt;
use super::{Conn, Sink};
use crate::digest::{digest, padded_digest};

const PAD: [u8; 4] = [0; 4];
/// PROTOCOL SERVICE CRC ERROR: data came with a wrong digest (RFC 7143, 11.4.7.2).
const CRC_ERROR: Asc = Asc(0x4705);

/// What is between the data that a command has and those that were expected.
fn residual(transfer_bytes: u64, edtl: u32) -> (u8, u32) {
    let edtl = u64::from(edtl);
    let count = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    match transfer_bytes.cmp(&edtl) {
        std::cmp::Ordering::Less => (ScsiResponseHdr::UNDERFLOW, count(edtl - transfer_bytes)),
        std::cmp::Ordering::Equal => (0, 0),
        std::cmp::Ordering::Greater => (ScsiResponseHdr::OVERFLOW, count(transfer_bytes - edtl)),
    }
}

impl Conn {
    /// ExpCmdSN and MaxCmdSN.
    #[inline]
    pub(super) fn window(&self) -> (u32, u32) {
        let login = || (self.login_cmd_sn, self.login_cmd_sn);
        self.session.as_ref().map_or_else(login, |session| session.window())
    }

    /// The next StatSN, which is used up.
    #[inline]
    pub(super) fn next_stat_sn(&mut self) -> u32 {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.wrapping_add(1);
        stat_sn
    }

    #[inline]
    pub(super) fn push_header(&mut self, header: &[u8]) {
        self.tx.push(header);
        if self.agreed.header_digest && self.login.is_none() {
            self.tx.push(&digest(header));
        }
    }

    /// A header and data that are copied.
    pub(super) fn push_pdu(&mut self, header: &[u8], data: &[u8]) {
        self.push_header(header);
        if data.is_empty() {
            return;
        }
        let pad = pad_len(u32::try_from(data.len()).unwrap_or(0)) as usize;
        self.tx.push(data);
        self.tx.push(PAD.get(..pad).unwrap_or_default());
        if self.agreed.data_digest && self.login.is_none() {
            self.tx.push(&padded_digest(data, pad));
        }
    }

    /// Answers a command whose task has ended.
    pub(super) fn respond<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let Some(cmd) = self.slab.get_mut(slot) else { return };
        let answer = *cmd.task.answer();
        let limit = if cmd.read { cmd.edtl } else { 0 };
        let bytes = match cmd.task.data_in() {
            DataIn::None => 0,
            DataIn::Blocks(list) => list.len_bytes(),
            DataIn::Bytes(bytes) => bytes.len(),
        };
        let is_blocks = matches!(cmd.task.data_in(), DataIn::Blocks(_));
        let len = u32::try_from(bytes).unwrap_or(u32::MAX).min(limit);
        if is_blocks {
            cmd.blocks = cmd.task.take_blocks();
        }
        let failed = !matches!(answer.status, Status::GOOD | Status::CONDITION_MET);
        let residual = match residual(answer.transfer_bytes, cmd.edtl) {
            // What a failed command has left of the expected data says nothing.
            (ScsiResponseHdr::UNDERFLOW, _) if failed => (0, 0),
            residual => residual,
        };
        let with_status = len > 0 && answer.status == Status::GOOD;
        let began = cmd.began;
        if let Some(session) = self.session.as_ref() {
            session.count_latency(|| sink.now().ns_since(began));
        }
        self.ended(slot, sink);
        let (pdus, ends) = if len > 0 {
            self.push_data_in(slot, len, is_blocks, with_status.then_some(residual))
        } else {
            (0, false)
        };
        if !with_status {
            let sense = answer.sense;
            self.push_response(slot, answer.status, sense.as_slice(), residual, pdus);
        }
        if !ends {
            self.free(slot, sink);
        }
    }

    /// Answers a command whose data came with a wrong digest (RFC 7143, 7.8).
    pub(super) fn respond_bad_digest<S: Sink>(&mut self, slot: u16, sink: &mut S) {
        let sense = Sense::new(SenseKey::ABORTED_COMMAND, CRC_ERROR).encode(false);
        if let Some(cmd) = self.slab.get_mut(slot) {
            let whole = cmd.task.abandon();
            debug_assert!(whole, "a command whose data is coming has no I/O");
        }
        self.ended(slot, sink);
        self.push_response(slot, Status::CHECK_CONDITION, sense.as_slice(), (0, 0), 0);
        self.free(slot, sink);
    }

    /// Data-In PDUs with the first `len` bytes of what the command has. Returns how many they are, and whether the
    /// slot is freed when the last is sent.
    fn push_data_in(
        &mut self,
        slot: u16,
        len: u32,
        is_blocks: bool,
        status: Option<(u8, u32)>,
    ) -> (u32, bool) {
        let (segment, burst) = (self.agreed.data_to_initiator, self.agreed.max_burst);
        let itt = self.slab.get(slot).map_or(0, |cmd| cmd.itt);
        let (mut at, mut data_sn, mut burst_left) = (0, 0, burst);
        while at < len {
            let now = segment.min(len - at).min(burst_left);
            burst_left -= now;
            let last = at + now == len;
            let mut flags = 0;
            if last || burst_left == 0 {
                flags |= DataInHdr::FINAL;
                burst_left = burst;
            }
            let (exp_cmd_sn, max_cmd_sn) = self.window();
            let mut hdr = DataInHdr {
                opcode: Opcode::DATA_IN.0,
                data_len: DataLen::new(now),
                itt: itt.into(),
                ttt: TAG_NONE.into(),
                exp_cmd_sn: exp_cmd_sn.into(),
                max_cmd_sn: max_cmd_sn.into(),
                data_sn: data_sn.into(),
                offset: at.into(),
                ..DataInHdr::default()
            };
            if let Some((residual_flags, residual)) = status.filter(|_| last) {
                flags |= DataInHdr::STATUS | residual_flags;
                hdr.status = Status::GOOD.0;
                hdr.stat_sn = self.next_stat_sn().into();
                hdr.residual = residual.into();
            }
            hdr.flags = flags;
            self.push_header(hdr.as_bytes());
            self.push_data(slot, at, now, is_blocks, last);
            at += now;
            data_sn += 1;
        }
        (data_sn, is_blocks)
    }

    fn push_data(&mut self, slot: u16, at: u32, len: u32, is_blocks: bool, last: bool) {
        let Some(cmd) = self.slab.get(slot) else { return };
        let pad = pad_len(len) as usize;
        let has_digest = self.agreed.data_digest;
        let crc = if is_blocks {
            self.tx.push_data(slot, at, len, last);
            has_digest.then(|| cmd.out_digest(at, len, pad))
        } else {
            let DataIn::Bytes(all) = cmd.task.data_in() else { return };
            let bytes = all.get(at as usize..(at + len) as usize).unwrap_or_default();
            self.tx.push(bytes);
            has_digest.then(|| padded_digest(bytes, pad))
        };
        self.tx.push(PAD.get(..pad).unwrap_or_default());
        if let Some(crc) = crc {
            self.tx.push(&crc);
        }
    }

    pub(super) fn push_response(
        &mut self,
        slot: u16,
        status: Status,
        sense: &[u8],
        residual: (u8, u32),
        pdus: u32,
    ) {
        let Some(cmd) = self.slab.get(slot) else { return };
        let (itt, r2t_sn) = (cmd.itt, cmd.r2t_sn);
        let mut data = [0; 2 + penstock_scsi::SENSE_BYTES_MAX];
        let len = u16::try_from(sense.len()).unwrap_or(0);
        let mut data_len = 0;
        if !sense.is_empty() {
            let [high, low] = len.to_be_bytes();
            for (to, from) in data.iter_mut().zip([high, low].iter().chain(sense)) {
                *to = *from;
            }
            data_len = usize::from(len) + 2;
        }
        let data = data.get(..data_len).unwrap_or_default();
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = ScsiResponseHdr {
            opcode: Opcode::SCSI_RESPONSE.0,
            flags: 0x80 | residual.0,
            status: status.0,
            data_len: DataLen::new(u32::try_from(data_len).unwrap_or(0)),
            itt: itt.into(),
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            exp_data_sn: (pdus + r2t_sn).into(),
            residual: residual.1.into(),
            ..ScsiResponseHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), data);
    }

    /// Asks for a command's data, as much as may be asked for at once.
    pub(super) fn push_r2ts(&mut self, slot: u16) {
        let (burst, r2t_max) = (self.agreed.max_burst, self.agreed.r2t_max);
        loop {
            let (exp_cmd_sn, max_cmd_sn) = self.window();
            let stat_sn = self.stat_sn;
            let Some(cmd) = self.slab.get_mut(slot) else { return };
            if cmd.r2ts >= r2t_max || cmd.r2t_to >= cmd.want {
                return;
            }
            let len = burst.min(cmd.want - cmd.r2t_to);
            let hdr = R2tHdr {
                opcode: Opcode::R2T.0,
                flags: 0x80,
                lun: cmd.lun.into(),
                itt: cmd.itt.into(),
                ttt: ttt(slot, cmd.r2t_sn).into(),
                stat_sn: stat_sn.into(),
                exp_cmd_sn: exp_cmd_sn.into(),
                max_cmd_sn: max_cmd_sn.into(),
                r2t_sn: cmd.r2t_sn.into(),
                offset: cmd.r2t_to.into(),
                len: len.into(),
                ..R2tHdr::default()
            };
            cmd.r2t_sn += 1;
            cmd.r2ts += 1;
            cmd.r2t_to += len;
            cmd.state = CmdState::TransferIn;
            self.push_header(hdr.as_bytes());
        }
    }

    /// Rejects a PDU; the connection goes on.
    pub(super) fn reject(&mut self, bhs: &Bhs, reason: RejectReason) {
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = RejectHdr {
            opcode: Opcode::REJECT.0,
            flags: 0x80,
            reason,
            data_len: DataLen::new(48),
            itt: TAG_NONE.into(),
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            ..RejectHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), bhs.as_bytes());
    }
}
