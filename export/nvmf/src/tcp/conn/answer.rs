//! What a connection sends: responses, R2Ts, data.

use penstock_spec::nvme::{Cqe, Status};
use penstock_spec::nvme_tcp::{
    C2hDataHdr, CapsuleRespHdr, CommonHdr, PduFlags, PduType, R2tHdr, data_offset,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::super::digest::digest;
use super::super::req::{ReqState, Role};
use super::{Conn, ConnState, Sink};

/// The most header and padding in front of data.
const PAD: [u8; 128] = [0; 128];

impl<L> Conn<L> {
    /// Answers a request, with the first `data` bytes of its data where it has any for the host.
    #[inline]
    pub(crate) fn respond<S: Sink<Link = L>>(
        &mut self,
        slot: u16,
        status: Status,
        result: u64,
        data: u32,
        sink: &mut S,
    ) {
        let Some(req) = self.slab.get(slot) else { return };
        let (cid, role) = (req.cid, req.role);
        let status = if role == Role::Alone { status } else { self.part(slot, role, status, sink) };
        self.slab.end_cid(cid);
        if self.state != ConnState::Open {
            self.free(slot, sink);
            return;
        }
        if data == 0 {
            self.free(slot, sink);
            self.push_response(cid, status, result);
            return;
        }
        let success = self.success && status.is_success() && result == 0;
        self.push_c2h_data(slot, cid, data, success);
        if !success {
            self.push_response(cid, status, result);
        }
    }

    fn flags(&self) -> u8 {
        if self.rules.hdgst { PduFlags::HDGST } else { 0 }
    }

    #[inline]
    fn push_header(&mut self, header: &[u8]) {
        self.tx.push(header);
        if self.rules.hdgst {
            self.tx.push(&digest(header));
        }
    }

    #[inline]
    pub(super) fn push_response(&mut self, cid: u16, status: Status, result: u64) {
        let plen = 24 + if self.rules.hdgst { 4 } else { 0 };
        let sqhd = if self.flow_control { self.sqhd } else { u16::MAX };
        let header = CapsuleRespHdr {
            ch: CommonHdr::new(PduType::CAPSULE_RESP, self.flags(), 24, 0, plen),
            cqe: Cqe::new(cid, sqhd, status).with_result(result),
        };
        self.push_header(header.as_bytes());
    }

    pub(super) fn push_r2t(&mut self, slot: u16) {
        let plen = 24 + if self.rules.hdgst { 4 } else { 0 };
        let ch = CommonHdr::new(PduType::R2T, self.flags(), 24, 0, plen);
        let Some(req) = self.slab.get_mut(slot) else { return };
        req.state = ReqState::TransferIn;
        req.r2t = true;
        self.r2t_left += u64::from(req.len);
        let header = R2tHdr {
            ch,
            cccid: U16::new(req.cid),
            ttag: U16::new(slot),
            r2to: U32::new(0),
            r2tl: U32::new(req.len),
            ..R2tHdr::default()
        };
        self.push_header(header.as_bytes());
    }

    #[inline]
    fn push_c2h_data(&mut self, slot: u16, cid: u16, len: u32, success: bool) {
        let (hdgst, ddgst) = (self.rules.hdgst, self.rules.ddgst);
        let psh_end: u8 = if hdgst { 28 } else { 24 };
        let data_off = data_offset(psh_end, self.hpda);
        let plen = data_off + len + if ddgst { 4 } else { 0 };
        let mut flags = self.flags() | PduFlags::LAST;
        flags |= if ddgst { PduFlags::DDGST } else { 0 };
        flags |= if success { PduFlags::SUCCESS } else { 0 };
        let pdo = u8::try_from(data_off).unwrap_or(u8::MAX);
        let header = C2hDataHdr {
            ch: CommonHdr::new(PduType::C2H_DATA, flags, 24, pdo, plen),
            cccid: U16::new(cid),
            datal: U32::new(len),
            ..C2hDataHdr::default()
        };
        self.push_header(header.as_bytes());
        let pad = (data_off - u32::from(psh_end)) as usize;
        if pad > 0 {
            self.tx.push(PAD.get(..pad).unwrap_or_default());
        }
        self.tx.push_data(slot, 0, len, true);
        let Some(req) = self.slab.get_mut(slot) else { return };
        req.state = ReqState::TransferOut;
        if ddgst {
            let crc = digest(req.data(0, len).unwrap_or_default());
            self.tx.push(&crc);
        }
    }
}
