//! Pings and asynchronous messages: what a target says unasked (RFC 7143, 11.9 and 11.19), and its answers to pings.

use penstock_scsi::{Sense, lun_to_wire};
use penstock_spec::iscsi::{AsyncEvent, AsyncHdr, Bhs, DataLen, NopInHdr, Opcode, TAG_NONE};
use penstock_spec::scsi::sense::Asc;
use zerocopy::IntoBytes;

use super::Conn;

impl Conn {
    pub(super) fn nop_out(&mut self, bhs: &Bhs, data: &[u8]) {
        if bhs.ttt.get() != TAG_NONE {
            // The answer to a ping of ours.
            self.ping_out = false;
        }
        if bhs.itt.get() == TAG_NONE {
            return;
        }
        let data = data.get(..self.agreed.data_to_initiator as usize).unwrap_or(data);
        let stat_sn = self.next_stat_sn();
        self.push_nop_in(bhs, TAG_NONE, stat_sn, data);
    }

    /// Asks the initiator whether it is still there.
    pub(crate) fn push_ping(&mut self) {
        self.ping = self.ping.wrapping_add(1) & 0xffff;
        self.ping_out = true;
        let bhs = Bhs { itt: TAG_NONE.into(), ..Bhs::default() };
        // It has no StatSN of its own: it shows the next.
        let stat_sn = self.stat_sn;
        self.push_nop_in(&bhs, self.ping, stat_sn, &[]);
    }

    fn push_nop_in(&mut self, bhs: &Bhs, ttt: u32, stat_sn: u32, data: &[u8]) {
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = NopInHdr {
            opcode: Opcode::NOP_IN.0,
            flags: 0x80,
            data_len: DataLen::new(u32::try_from(data.len()).unwrap_or(0)),
            lun: bhs.lun,
            itt: bhs.itt,
            ttt: ttt.into(),
            stat_sn: stat_sn.into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            ..NopInHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), data);
    }

    /// Asks the initiator to log out within `seconds` (RFC 7143, 11.9.1).
    pub(crate) fn push_logout_request(&mut self, seconds: u16) {
        self.push_async(AsyncHdr {
            event: AsyncEvent::LOGOUT_REQUEST,
            parameter3: seconds.into(),
            ..AsyncHdr::default()
        });
    }

    /// Tells the initiator that this connection is about to end, and how long to wait before it comes back.
    pub(crate) fn push_connection_drop(&mut self) {
        self.push_async(AsyncHdr {
            event: AsyncEvent::CONNECTION_DROP,
            parameter1: self.cid.into(),
            parameter2: self.agreed.time2wait.into(),
            parameter3: self.agreed.time2retain.into(),
            ..AsyncHdr::default()
        });
    }

    /// Tells the initiator that all connections of the session are about to end, as [`Self::push_connection_drop`].
    pub(crate) fn push_session_drop(&mut self) {
        self.push_async(AsyncHdr {
            event: AsyncEvent::SESSION_DROP,
            parameter2: self.agreed.time2wait.into(),
            parameter3: self.agreed.time2retain.into(),
            ..AsyncHdr::default()
        });
    }

    /// Tells the initiator that its list of LUNs is another: a unit attention that it need not ask for.
    pub(crate) fn push_luns_changed(&mut self, lun: u16) {
        let sense = Sense::attention(Asc::LUNS_CHANGED).encode(false);
        let sense = sense.as_slice();
        let mut data = u16::try_from(sense.len()).unwrap_or(0).to_be_bytes().to_vec();
        data.extend_from_slice(sense);
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = AsyncHdr {
            opcode: Opcode::ASYNC.0,
            flags: 0x80,
            data_len: DataLen::new(u32::try_from(data.len()).unwrap_or(0)),
            lun: lun_to_wire(lun).into(),
            itt: TAG_NONE.into(),
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            event: AsyncEvent::SCSI,
            ..AsyncHdr::default()
        };
        self.push_pdu(hdr.as_bytes(), &data);
    }

    fn push_async(&mut self, event: AsyncHdr) {
        let (exp_cmd_sn, max_cmd_sn) = self.window();
        let hdr = AsyncHdr {
            opcode: Opcode::ASYNC.0,
            flags: 0x80,
            itt: TAG_NONE.into(),
            stat_sn: self.next_stat_sn().into(),
            exp_cmd_sn: exp_cmd_sn.into(),
            max_cmd_sn: max_cmd_sn.into(),
            ..event
        };
        self.push_pdu(hdr.as_bytes(), &[]);
    }
}
