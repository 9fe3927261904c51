//! What comes from the target: headers, data into payloads, completions.

use penstock_spec::nvme::{Cqe, Status};
use penstock_spec::nvme_tcp::data::offset;
use penstock_spec::nvme_tcp::{
    C2hDataHdr, CapsuleRespHdr, CheckedHdr, CommonHdr, DIGEST_LEN, DigestFlags, HLEN_MAX, IcResp, PduError,
    PduType, R2tHdr, Receiver, RxRules, TermReqHdr,
};
use zerocopy::FromBytes;

use super::slot::{Slot, SlotState};
use super::{H2cJob, Qpair, QpairState, SLOT_MASK, Transfer};
use crate::digest::{Crc32c, crc32c};
use crate::error::QpairError;
use crate::payload::Payload;

/// The longest header with digest.
const HEADER_MAX: usize = HLEN_MAX + DIGEST_LEN;

/// Offset of CID in a CapsuleResp, as FEI names it.
const RESPONSE_CID_OFF: u32 = 8 + 12;

/// What the next byte of the stream belongs to.
#[derive(Debug)]
enum Step {
    /// A header, of which `have` bytes are in the buffer.
    Header,
    /// Padding before data.
    Pad { left: usize },
    /// Data of the command in `slot`.
    Data { left: usize },
    /// Data digest, of which some bytes may have come.
    Digest { have: usize },
}

/// Receive state: where in which PDU the stream stands.
#[derive(Debug)]
pub(super) struct Rx {
    step: Step,
    /// A header that came in pieces.
    header: [u8; HEADER_MAX],
    have: usize,
    /// The data PDU under way.
    slot: usize,
    off: usize,
    data_left: usize,
    last: bool,
    success: bool,
    ddgst: bool,
    crc: Crc32c,
    digest: [u8; DIGEST_LEN],
}

impl Rx {
    pub(super) fn new() -> Self {
        Self {
            step: Step::Header,
            header: [0; HEADER_MAX],
            have: 0,
            slot: 0,
            off: 0,
            data_left: 0,
            last: false,
            success: false,
            ddgst: false,
            crc: Crc32c::new(),
            digest: [0; DIGEST_LEN],
        }
    }
}

impl<B: Payload> Qpair<B> {
    /// Takes the next bytes of the stream, all of them.
    ///
    /// # Errors
    /// The connection is over: what is in the transmit queue (it may be an H2CTermReq) is worth one more
    /// write, then the socket is to be closed and commands are to be taken back by [`Qpair::abandon`].
    pub fn recv(&mut self, mut bytes: &[u8]) -> Result<(), QpairError> {
        if matches!(self.state, QpairState::Closed(_)) {
            return Err(QpairError::Closed);
        }
        while !bytes.is_empty() {
            bytes = match self.rx.step {
                Step::Header => self.recv_header(bytes)?,
                Step::Pad { left } => self.recv_pad(left, bytes),
                Step::Data { left } => self.recv_data(left, bytes)?,
                Step::Digest { have } => self.recv_digest(have, bytes)?,
            };
        }
        self.pump();
        Ok(())
    }

    /// Where the data under way may be received without a copy, if there is data under way: a driver reads
    /// there first, into its own buffer second, and reports the first part by [`Self::rx_received`].
    pub fn rx_target(&mut self) -> Option<&mut [u8]> {
        let Step::Data { left } = self.rx.step else { return None };
        if matches!(self.state, QpairState::Closed(_)) {
            return None;
        }
        let off = self.rx.off;
        let payload = self.slots.0.get_mut(self.rx.slot)?.payload.as_mut()?;
        let chunk = payload.chunk_mut(off);
        let len = chunk.len().min(left);
        chunk.get_mut(..len)
    }

    /// Whether the target is in the middle of a PDU.
    #[must_use]
    pub fn is_amid(&self) -> bool {
        self.rx.have > 0 || !matches!(self.rx.step, Step::Header)
    }

    /// Reports that the first `n` bytes of [`Self::rx_target`] have been received there.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn rx_received(&mut self, n: usize) -> Result<(), QpairError> {
        if matches!(self.state, QpairState::Closed(_)) {
            return Err(QpairError::Closed);
        }
        let Step::Data { left } = self.rx.step else { return Ok(()) };
        assert!(n <= left, "{n} bytes received directly where {left} were asked for");
        if self.rx.ddgst {
            let slot = self.slots.0.get(self.rx.slot);
            let chunk = slot.and_then(|s| s.payload.as_ref()).map(|p| p.chunk(self.rx.off));
            self.rx.crc.update(chunk.and_then(|c| c.get(..n)).unwrap_or_default());
        }
        self.data_moved(n, left)
    }

    /// A header: in place if it is whole, else gathered.
    fn recv_header<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], QpairError> {
        if self.rx.have == 0
            && let Some(ch) = bytes.first_chunk::<8>()
        {
            let hdr = self.check_common(ch)?;
            if let Some((header, rest)) = bytes.split_at_checked(usize::from(hdr.psh_end())) {
                self.dispatch(&hdr, header)?;
                return Ok(rest);
            }
        }
        let mut rest = self.gather(CommonHdr::LEN, bytes);
        let Some(ch) = self.rx.header.first_chunk::<8>().copied().filter(|_| self.rx.have >= 8) else {
            return Ok(rest);
        };
        let hdr = self.check_common(&ch)?;
        let want = usize::from(hdr.psh_end());
        rest = self.gather(want, rest);
        if self.rx.have == want {
            let header = self.rx.header;
            self.rx.have = 0;
            self.dispatch(&hdr, header.get(..want).unwrap_or_default())?;
        }
        Ok(rest)
    }

    /// Copies up to `want` header bytes into the buffer.
    fn gather<'a>(&mut self, want: usize, bytes: &'a [u8]) -> &'a [u8] {
        let missing = want.saturating_sub(self.rx.have);
        let (now, rest) = bytes.split_at(missing.min(bytes.len()));
        if let Some(place) = self.rx.header.get_mut(self.rx.have..self.rx.have + now.len()) {
            place.copy_from_slice(now);
            self.rx.have += now.len();
        }
        rest
    }

    fn check_common(&mut self, ch: &[u8; 8]) -> Result<CheckedHdr, QpairError> {
        let common: CommonHdr = zerocopy::transmute!(*ch);
        CheckedHdr::parse(&common, &self.rules).map_err(|error| self.violation(error, ch))
    }

    /// Closes the queue pair because the PDU with this header breaks a rule.
    fn violation(&mut self, error: PduError, header: &[u8]) -> QpairError {
        let error = QpairError::Protocol(error);
        self.fail(error, header);
        error
    }

    /// A whole header, digest included.
    fn dispatch(&mut self, hdr: &CheckedHdr, header: &[u8]) -> Result<(), QpairError> {
        self.handle(hdr, header).inspect_err(|error| self.fail(*error, header))
    }

    fn handle(&mut self, hdr: &CheckedHdr, header: &[u8]) -> Result<(), QpairError> {
        let (psh, digest) = header.split_at_checked(usize::from(hdr.hlen)).unwrap_or_default();
        if let Some(received) = digest.first_chunk::<4>() {
            let (received, computed) = (u32::from_le_bytes(*received), crc32c(psh));
            if received != computed {
                return Err(PduError::HeaderDigest { received, computed }.into());
            }
        }
        match hdr.pdu_type {
            PduType::CAPSULE_RESP => self.handle_response(view(psh)),
            PduType::C2H_DATA => self.handle_data(hdr, view(psh)),
            PduType::R2T => self.handle_r2t(view(psh)),
            PduType::IC_RESP => self.handle_ic_resp(view(psh)),
            _ => {
                let term: &TermReqHdr = view(psh);
                Err(QpairError::Terminated { fes: term.fes(), fei: term.fei.get() })
            }
        }
    }

    fn handle_ic_resp(&mut self, resp: &IcResp) -> Result<(), QpairError> {
        let asked = DigestFlags(0).with_hdgst(self.config.hdgst).with_ddgst(self.config.ddgst);
        resp.check(asked)?;
        let in_use = DigestFlags(resp.dgst);
        self.cpda = resp.cpda;
        self.maxh2cdata = resp.maxh2cdata.get();
        self.rules = RxRules {
            receiver: Receiver::Host,
            initialized: true,
            hdgst: in_use.hdgst(),
            ddgst: in_use.ddgst(),
            pda: self.config.hpda,
            in_capsule_max: 0,
            data_max: u32::MAX,
        };
        self.push_connect();
        Ok(())
    }

    fn handle_response(&mut self, resp: &CapsuleRespHdr) -> Result<(), QpairError> {
        let cqe = resp.cqe;
        let index = self.active(cqe.cid.get(), RESPONSE_CID_OFF)?;
        self.complete(index, cqe)
    }

    fn handle_r2t(&mut self, r2t: &R2tHdr) -> Result<(), QpairError> {
        r2t.check()?;
        let cid = r2t.cccid.get();
        let index = self.active(cid, offset::CCCID)?;
        let maxr2t = self.config.maxr2t;
        let Some(slot) = self.slots.0.get_mut(index) else { return Ok(()) };
        let (off, len) = (r2t.r2to.get(), r2t.r2tl.get());
        let Transfer::Write(total) = slot.transfer else { return Err(wrong_cid(cid)) };
        if slot.in_capsule {
            return Err(wrong_cid(cid));
        }
        if off != slot.moved_bytes || off.checked_add(len).is_none_or(|end| end > total) {
            return Err(PduError::OutOfRange { off_bytes: off, len_bytes: len }.into());
        }
        if slot.r2ts >= maxr2t {
            let (value, max) = (u32::from(slot.r2ts) + 1, u32::from(maxr2t));
            return Err(PduError::Limit { pdu_type: PduType::R2T, value, max }.into());
        }
        slot.r2ts += 1;
        slot.moved_bytes = off + len;
        self.h2c.push_back(H2cJob { slot: index, ttag: r2t.ttag.get(), off, len });
        Ok(())
    }

    fn handle_data(&mut self, hdr: &CheckedHdr, data: &C2hDataHdr) -> Result<(), QpairError> {
        data.check(hdr)?;
        let cid = data.cccid.get();
        let index = self.active(cid, offset::CCCID)?;
        let Some(slot) = self.slots.0.get_mut(index) else { return Ok(()) };
        let (off, len) = (data.datao.get(), data.datal.get());
        let Transfer::Read(total) = slot.transfer else { return Err(wrong_cid(cid)) };
        let in_range = off.checked_add(len).is_some_and(|end| end <= total);
        if slot.last_seen || off != slot.moved_bytes || !in_range {
            return Err(PduError::OutOfRange { off_bytes: off, len_bytes: len }.into());
        }
        slot.last_seen = hdr.flags.last();
        let (Ok(pad), Ok(left)) = (usize::try_from(hdr.pad_len()), usize::try_from(len)) else {
            return Err(PduError::OutOfRange { off_bytes: off, len_bytes: len }.into());
        };
        self.rx.slot = index;
        self.rx.off = usize::try_from(off).unwrap_or(usize::MAX);
        self.rx.data_left = left;
        self.rx.last = hdr.flags.last();
        self.rx.success = hdr.flags.success();
        self.rx.ddgst = hdr.ddgst_len > 0;
        if self.rx.ddgst {
            self.rx.crc = Crc32c::new();
        }
        self.rx.step = if pad > 0 { Step::Pad { left: pad } } else { Step::Data { left } };
        Ok(())
    }

    fn recv_pad<'a>(&mut self, left: usize, bytes: &'a [u8]) -> &'a [u8] {
        let n = left.min(bytes.len());
        let left = left - n;
        self.rx.step = if left > 0 { Step::Pad { left } } else { Step::Data { left: self.rx.data_left } };
        bytes.get(n..).unwrap_or_default()
    }

    fn recv_data<'a>(&mut self, left: usize, bytes: &'a [u8]) -> Result<&'a [u8], QpairError> {
        let (now, rest) = bytes.split_at(left.min(bytes.len()));
        let payload = self.slots.0.get_mut(self.rx.slot).and_then(|s| s.payload.as_mut());
        let mut from = now;
        let mut at = self.rx.off;
        if let Some(payload) = payload {
            while !from.is_empty() {
                let place = payload.chunk_mut(at);
                let n = place.len().min(from.len());
                assert!(n > 0, "submit saw that the payload is long enough");
                let (head, tail) = from.split_at(n);
                if let Some(place) = place.get_mut(..n) {
                    place.copy_from_slice(head);
                }
                at += n;
                from = tail;
            }
        } else if let Some(auth) = self.auth.as_mut().filter(|auth| auth.slot == self.rx.slot) {
            auth.take(at, now);
        }
        if self.rx.ddgst {
            self.rx.crc.update(now);
        }
        self.data_moved(now.len(), left)?;
        Ok(rest)
    }

    /// `n` of the `left` bytes of data are in the payload.
    fn data_moved(&mut self, n: usize, left: usize) -> Result<(), QpairError> {
        self.rx.off += n;
        if n < left {
            self.rx.step = Step::Data { left: left - n };
        } else if self.rx.ddgst {
            self.rx.step = Step::Digest { have: 0 };
        } else {
            self.data_done()?;
        }
        Ok(())
    }

    fn recv_digest<'a>(&mut self, have: usize, bytes: &'a [u8]) -> Result<&'a [u8], QpairError> {
        let (now, rest) = bytes.split_at((DIGEST_LEN - have).min(bytes.len()));
        let have = have + now.len();
        if let Some(place) = self.rx.digest.get_mut(have - now.len()..have) {
            place.copy_from_slice(now);
        }
        if have < DIGEST_LEN {
            self.rx.step = Step::Digest { have };
            return Ok(rest);
        }
        if u32::from_le_bytes(self.rx.digest) != self.rx.crc.finish()
            && let Some(slot) = self.slots.0.get_mut(self.rx.slot)
        {
            slot.ddgst_failed = true;
        }
        self.data_done()?;
        Ok(rest)
    }

    /// A data PDU is complete; with SUCCESS, so is its command.
    fn data_done(&mut self) -> Result<(), QpairError> {
        self.rx.step = Step::Header;
        let (index, len) = (self.rx.slot, self.rx.data_left);
        let Some(slot) = self.slots.0.get_mut(index) else { return Ok(()) };
        slot.moved_bytes += u32::try_from(len).unwrap_or(0);
        if !(self.rx.last && self.rx.success) {
            return Ok(());
        }
        let cqe = Cqe::new(slot.cid, 0, Status::SUCCESS);
        self.complete(index, cqe).inspect_err(|error| self.fail(*error, &[]))
    }

    /// Index of the slot that waits for `cid`; the field with the CID is at `fei`.
    #[inline]
    fn active(&self, cid: u16, fei: u32) -> Result<usize, QpairError> {
        let index = usize::from(cid & SLOT_MASK);
        let waits = |slot: &Slot<B>| slot.state == SlotState::Active && slot.cid == cid;
        if self.slots.0.get(index).is_some_and(waits) {
            return Ok(index);
        }
        Err(PduError::Field { name: "CID", fei, value: u32::from(cid) }.into())
    }
}

/// A CID that is outstanding but cannot be meant by this PDU.
fn wrong_cid(cid: u16) -> QpairError {
    PduError::Field { name: "CCCID", fei: offset::CCCID, value: u32::from(cid) }.into()
}

/// A header of checked length, as its structure.
#[inline]
fn view<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned>(psh: &[u8]) -> &T {
    match T::ref_from_bytes(psh) {
        Ok(view) => view,
        Err(_) => unreachable!("HLEN was checked against the type"),
    }
}
