//! One connection: PDUs in, PDUs out, and the commands between.
//!
//! Sans-IO: bytes come in by [`Conn::receive`] (or straight into a request's buffer by [`Conn::direct`]), what is to be
//! sent stands in [`Conn::tx`]. The meaning of commands, buffers and the bdevs are behind [`Sink`].
//!
//! Invariants: a command holds one slot from its capsule until its response (and data) has left; a request that is out
//! ([`Req::is_out`](super::req::Req::is_out)) comes back exactly once by [`Conn::io_back`], even on a closed connection;
//! after a fatal error nothing is received any more and one TermReq is the last thing sent.

mod answer;
mod fused;

use std::cmp::Ordering;
use std::collections::VecDeque;

use penstock_bdev::Io;
use penstock_reactor::mem::Buf;
use penstock_reactor::net::SendQueue;
use penstock_spec::nvme::sgl::TcpSgl;
use penstock_spec::nvme::{Fuse, Sqe, Status};
use penstock_spec::nvme_tcp::term::TermReqHdr;
use penstock_spec::nvme_tcp::{
    ADMIN_IN_CAPSULE_LEN, CapsuleCmdHdr, CheckedHdr, CommonHdr, DigestFlags, H2cDataHdr, HLEN_MAX, IcReq,
    IcResp, PduError, PduType, Receiver, RxRules,
};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::digest::digest;
use super::params::{C2hSuccess, TcpParams};
use super::pdu_rx::{Frame, Pdu, Phase, Rx, frame};
use super::req::{Dir, Req, ReqId, ReqState, Role, Slab};
use crate::io_cmd::Transfer;
use fused::Pending;

/// A connection with so many unsent header bytes is not read.
const TX_BYTES_MAX: usize = 64 << 10;
/// From so many bytes on, data is received straight into its buffer.
const DIRECT_MIN: u32 = 4096;

/// After a PDU with so many bytes of data or more, only ...
const BULK_MIN: u32 = 32 << 10;

/// ... so many bytes of the next one are received with its header, to be copied from there; the others go straight into
/// its buffer.
const BULK_ROOM: usize = 4096;
/// Bytes of data that one connection may hold in buffers; commands beyond that wait for the earlier ones, so that a
/// host with many large I/Os, or one that stops in the middle of them, leaves room for the others.
pub(crate) const HELD_BYTES_MAX: u64 = 8 << 20;
const _: () = assert!(HELD_BYTES_MAX >= crate::transport_options::IO_SIZE_MAX as u64);

/// How executing a request began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exec {
    /// It ends later.
    Started,
    /// The bdev's queue is full; the sink keeps the request's id and tries again.
    Busy,
    /// It has ended.
    Done(Status),
}

/// What a connection needs from its surroundings.
pub(crate) trait Sink {
    /// What a connection's queue pair is.
    type Link;

    /// Judges a new command: fills in kind and I/O of `req`, and says how its data goes.
    ///
    /// # Errors
    /// The status to answer with.
    fn judge(&mut self, link: &Self::Link, id: ReqId, req: &mut Req, sqe: &Sqe) -> Result<Transfer, Status>;

    /// Bytes that may be taken in buffers before there are none.
    fn room(&self) -> u64;

    /// A buffer of `len` bytes, or `None` when there is none just now.
    fn buffer(&mut self, len: u32) -> Option<Buf>;

    /// `id` waits for a buffer: [`Conn::retry`] is to be called.
    fn starved(&mut self, id: ReqId);

    /// An I/O that nobody uses.
    fn io(&mut self) -> Box<Io>;

    /// Takes an I/O back; its buffers are dropped.
    fn recycle(&mut self, io: Box<Io>);

    /// A buffer was made shorter by so many bytes, which will not come back with its I/O.
    fn shortened(&mut self, bytes: u32);

    /// The transport's settings.
    fn params(&self) -> &TcpParams;

    /// Executes a command whose data is there.
    fn execute(&mut self, link: &Self::Link, id: ReqId, req: &mut Req) -> Exec;
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnState {
    /// ICReq has not come.
    New,
    /// PDUs are exchanged.
    Open,
    /// A TermReq is in the send queue or sent: what comes is thrown away.
    Terminating,
    /// The peer has ended it, or it is broken: nothing is received or sent.
    Closed,
}

/// The machine of one connection.
#[derive(Debug)]
pub(crate) struct Conn<L> {
    /// Index in the group.
    id: u32,
    /// Its queue pair.
    pub(crate) link: L,
    state: ConnState,
    rules: RxRules,
    hpda: u8,
    sqhd: u16,
    sq_entries: u16,
    flow_control: bool,
    success: bool,
    rx: Rx,
    /// What is to be sent.
    pub(crate) tx: SendQueue,
    slab: Slab,
    /// Requests that the bdev has.
    out: u32,
    /// Bytes that R2Ts have asked for and that have not come.
    r2t_left: u64,
    /// Bytes in its requests' buffers.
    held: u64,
    /// Requests that wait because it holds too much.
    waiting: VecDeque<u16>,
    /// The request whose data in the capsule cannot be received for lack of a buffer, and what came after.
    stalled: Option<u16>,
    leftover: Vec<u8>,
    /// The first command of a fused pair, if that was the last to come.
    fused: Pending,
    /// Why it was terminated.
    error: Option<PduError>,
}

impl<L> Conn<L> {
    /// A connection on which nothing has come.
    pub(crate) fn new(id: u32, link: L) -> Self {
        Self {
            id,
            link,
            state: ConnState::New,
            rules: RxRules::before_init(Receiver::Controller),
            hpda: 0,
            sqhd: 0,
            sq_entries: 1,
            flow_control: true,
            success: false,
            rx: Rx::new(),
            tx: SendQueue::default(),
            slab: Slab::new(1),
            out: 0,
            r2t_left: 0,
            held: 0,
            waiting: VecDeque::new(),
            stalled: None,
            leftover: Vec::new(),
            fused: Pending::None,
            error: None,
        }
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> ConnState {
        self.state
    }

    /// Why it was terminated, if it was for a PDU.
    pub(crate) fn error(&self) -> Option<&PduError> {
        self.error.as_ref()
    }

    /// Its slots.
    pub(crate) fn slab(&self) -> &Slab {
        &self.slab
    }

    /// A slot.
    #[inline]
    pub(crate) fn req_mut(&mut self, slot: u16) -> Option<&mut Req> {
        self.slab.get_mut(slot)
    }

    /// Requests that the bdev has.
    pub(crate) fn out(&self) -> u32 {
        self.out
    }

    /// Whether what comes can be received now.
    #[inline]
    pub(crate) fn wants_bytes(&self) -> bool {
        self.stalled.is_none() && self.state != ConnState::Closed && self.tx.hdr_bytes() < TX_BYTES_MAX
    }

    /// Bytes that are expected as answers to R2Ts.
    #[inline]
    pub(crate) fn r2t_left(&self) -> u64 {
        self.r2t_left
    }

    /// Whether the peer is in the middle of a PDU, or of the data that it was asked for.
    #[inline]
    pub(crate) fn is_amid(&self) -> bool {
        self.r2t_left > 0 || self.rx.phase != Phase::Header || self.rx.has_part()
    }

    /// Whether the peer is to send data, or to take some, before buffers are free again.
    pub(crate) fn owed_by_peer(&self) -> bool {
        let owes = self.r2t_left > 0 || self.rx.phase != Phase::Header || !self.tx.is_empty();
        self.held > 0 && (owes || self.is_pairing())
    }

    /// Makes room for a queue of `entries`, as its Connect said. `in_capsule_max`: bytes of data in its capsules.
    pub(crate) fn connected(
        &mut self,
        entries: u16,
        flow_control: bool,
        in_capsule_max: u32,
        params: &TcpParams,
    ) {
        self.slab.grow(entries);
        self.sq_entries = entries.max(1);
        // Connect was the queue's first command.
        self.sqhd = 1;
        self.flow_control = flow_control;
        self.success = match params.c2h_success {
            C2hSuccess::Never => false,
            C2hSuccess::NoFlowControl => !flow_control,
            C2hSuccess::Always => true,
        };
        self.rules.in_capsule_max = in_capsule_max;
    }

    /// The rest of the data that comes now, where it is long enough to be received straight into its buffer.
    #[inline]
    pub(crate) fn direct(&mut self) -> Option<&mut [u8]> {
        let pdu = &self.rx.pdu;
        if self.rx.phase != Phase::Data || pdu.data_left < DIRECT_MIN || self.state != ConnState::Open {
            return None;
        }
        let (slot, at, left) = (pdu.slot?, pdu.at, pdu.data_left);
        self.slab.get_mut(slot)?.data_mut(at, left)
    }

    /// How many bytes behind those of [`Self::direct`] are worth receiving.
    #[inline]
    pub(crate) fn room_bytes(&self) -> usize {
        if self.rx.pdu.data_len >= BULK_MIN { BULK_ROOM } else { usize::MAX }
    }

    /// `len` bytes have come into [`Self::direct`].
    pub(crate) fn direct_came<S: Sink<Link = L>>(&mut self, len: usize, sink: &mut S) {
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(self.rx.pdu.data_left);
        self.rx.pdu.data_left -= len;
        self.rx.pdu.at += len;
        if self.rx.pdu.data_left == 0 {
            self.data_end(sink);
            self.receive(&[], sink);
        }
    }

    /// Handles bytes as they came.
    pub(crate) fn receive<S: Sink<Link = L>>(&mut self, bytes: &[u8], sink: &mut S) {
        let mut rest = bytes;
        while matches!(self.state, ConnState::New | ConnState::Open) {
            if self.stalled.is_some() {
                self.leftover.extend_from_slice(rest);
                return;
            }
            if rest.is_empty() {
                return;
            }
            match self.rx.phase {
                Phase::Header => self.header(&mut rest, sink),
                Phase::Pad => {
                    let pad = (self.rx.pdu.pad_left as usize).min(rest.len());
                    rest = rest.get(pad..).unwrap_or_default();
                    self.rx.pdu.pad_left -= u32::try_from(pad).unwrap_or(0);
                    if self.rx.pdu.pad_left == 0 {
                        self.rx.phase = Phase::Data;
                    }
                }
                Phase::Data => self.data(&mut rest, sink),
                Phase::Digest => {
                    if let Some(received) = self.rx.take_digest(&mut rest) {
                        self.check_data(received);
                        self.pdu_end(sink);
                    }
                }
            }
        }
    }

    fn header<S: Sink<Link = L>>(&mut self, rest: &mut &[u8], sink: &mut S) {
        while self.rx.has_part() {
            match frame(self.rx.part(), &self.rules) {
                Frame::Short(_) if rest.is_empty() => return,
                Frame::Short(want) => self.rx.keep(rest, want),
                Frame::Bad(error) => {
                    let (part, len) = self.rx.take_part();
                    return self.fatal(error, header_of(part.get(..len).unwrap_or_default()));
                }
                Frame::Hdr(hdr, len) => {
                    let (part, _) = self.rx.take_part();
                    return self.handle(&hdr, part.get(..len).unwrap_or_default(), sink);
                }
            }
        }
        match frame(rest, &self.rules) {
            Frame::Short(want) => self.rx.keep(rest, want),
            Frame::Bad(error) => self.fatal(error, header_of(rest)),
            Frame::Hdr(hdr, len) => {
                let (bytes, tail) = rest.split_at(len);
                *rest = tail;
                self.handle(&hdr, bytes, sink);
            }
        }
    }

    /// Handles a header with its digest.
    #[inline]
    fn handle<S: Sink<Link = L>>(&mut self, hdr: &CheckedHdr, bytes: &[u8], sink: &mut S) {
        let mut pdu = Pdu {
            slot: None,
            at: 0,
            pad_left: hdr.pad_len(),
            data_len: hdr.data_len,
            data_left: hdr.data_len,
            has_digest: hdr.ddgst_len > 0,
        };
        let handled = self.check_header(hdr, bytes).and_then(|()| match hdr.pdu_type {
            PduType::CAPSULE_CMD => {
                let Ok((cmd, _)) = CapsuleCmdHdr::ref_from_prefix(bytes) else { return Ok(()) };
                self.capsule(&cmd.sqe, &mut pdu, sink)
            }
            PduType::H2C_DATA => {
                let Ok((data, _)) = H2cDataHdr::ref_from_prefix(bytes) else { return Ok(()) };
                self.h2c_data(hdr, data, &mut pdu)
            }
            PduType::IC_REQ => {
                let Ok((request, _)) = IcReq::ref_from_prefix(bytes) else { return Ok(()) };
                self.ic_req(request, sink.params())
            }
            _ => {
                self.state = ConnState::Closed;
                Ok(())
            }
        });
        match handled {
            Ok(()) => self.rx.begin(pdu),
            Err(error) => self.fatal(error, bytes.get(..usize::from(hdr.hlen)).unwrap_or_default()),
        }
    }

    #[inline]
    fn check_header(&self, hdr: &CheckedHdr, bytes: &[u8]) -> Result<(), PduError> {
        if hdr.hdgst_len == 0 {
            return Ok(());
        }
        let Some((header, received)) = bytes.split_at_checked(usize::from(hdr.hlen)) else { return Ok(()) };
        let computed = digest(header);
        if received == computed {
            return Ok(());
        }
        let received = U32::read_from_bytes(received).map_or(0, U32::get);
        Err(PduError::HeaderDigest { received, computed: u32::from_le_bytes(computed) })
    }

    fn ic_req(&mut self, request: &IcReq, params: &TcpParams) -> Result<(), PduError> {
        request.check()?;
        let asked = DigestFlags(request.dgst);
        let hdgst = asked.hdgst() && params.header_digest;
        let ddgst = asked.ddgst() && params.data_digest;
        self.hpda = request.hpda;
        self.rules = RxRules {
            receiver: Receiver::Controller,
            initialized: true,
            hdgst,
            ddgst,
            pda: params.cpda,
            in_capsule_max: ADMIN_IN_CAPSULE_LEN.max(params.in_capsule_bytes),
            data_max: params.h2c_data_max(),
        };
        let agreed = DigestFlags(0).with_hdgst(hdgst).with_ddgst(ddgst);
        self.tx.push(IcResp::new(params.cpda, agreed, params.h2c_data_max()).as_bytes());
        self.state = ConnState::Open;
        Ok(())
    }

    /// A host that uses the CID of a held event request for another command has given the request up: SPDK's does so
    /// before it shuts down. False where the CID's command is not such a request.
    #[cold]
    fn forget_held(&mut self, cid: u16) -> bool {
        let Some(slot) = self.slab.find(cid) else { return false };
        if self.slab.get(slot).is_none_or(|req| req.state != ReqState::Held) {
            return false;
        }
        self.slab.end_cid(cid);
        self.slab.free(slot);
        true
    }

    /// A command has come.
    #[inline]
    fn capsule<S: Sink<Link = L>>(&mut self, sqe: &Sqe, pdu: &mut Pdu, sink: &mut S) -> Result<(), PduError> {
        let cid = sqe.cid.get();
        self.sqhd = if self.sqhd + 1 >= self.sq_entries { 0 } else { self.sqhd + 1 };
        if self.slab.has_cid(cid) && !self.forget_held(cid) {
            self.push_response(cid, Status::COMMAND_ID_CONFLICT.with_dnr(), 0);
            self.break_pair(sink);
            return Ok(());
        }
        // More commands than the queue has entries: the host has lost count, and nothing it says can be trusted.
        let Some(slot) = self.slab.take(cid) else { return Err(PduError::Sequence(PduType::CAPSULE_CMD)) };
        let id = ReqId { conn: self.id, slot };
        let Some(req) = self.slab.get_mut(slot) else { return Ok(()) };
        req.state = ReqState::Executing;
        let mut judged = sink.judge(&self.link, id, req, sqe);
        if sqe.fuse() != Fuse::Normal || self.fused != Pending::None {
            judged = self.pair(slot, sqe.fuse(), judged, sink);
        }
        let Some(req) = self.slab.get_mut(slot) else { return Ok(()) };
        match judged {
            Err(status) => self.respond(slot, status, 0, 0, sink),
            Ok(Transfer::None) => self.execute(slot, sink),
            Ok(Transfer::Scratch(len)) => {
                req.len = len;
                self.retry(slot, sink);
            }
            Ok(Transfer::ToHost(TcpSgl::Transport { len })) => {
                (req.dir, req.len) = (Dir::ToHost, len);
                if len == 0 { self.execute(slot, sink) } else { self.retry(slot, sink) }
            }
            Ok(Transfer::FromHost(TcpSgl::Transport { len })) => {
                (req.dir, req.len) = (Dir::FromHost, len);
                if len == 0 { self.execute(slot, sink) } else { self.retry(slot, sink) }
            }
            Ok(Transfer::FromHost(TcpSgl::InCapsule { off_bytes, len })) => {
                (req.dir, req.len, req.in_capsule) = (Dir::FromHost, pdu.data_len, true);
                if off_bytes != 0 || len != pdu.data_len {
                    match unused_before(off_bytes, len, pdu.data_len) {
                        Ok(unused) => {
                            req.unused = unused;
                            pdu.slot = Some(slot);
                            self.retry(slot, sink);
                        }
                        Err(status) => self.respond(slot, status.with_dnr(), 0, 0, sink),
                    }
                } else if len == 0 {
                    self.execute(slot, sink);
                } else {
                    pdu.slot = Some(slot);
                    self.retry(slot, sink);
                }
            }
            Ok(Transfer::ToHost(TcpSgl::InCapsule { .. })) => {
                self.respond(slot, Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr(), 0, 0, sink);
            }
        }
        Ok(())
    }

    /// Tries to get a request with data its buffer, and moves it on when there is one; else it waits (again).
    pub(crate) fn retry<S: Sink<Link = L>>(&mut self, slot: u16, sink: &mut S) {
        // A TermReq is the last thing sent; what waited then is freed with the connection.
        if self.state != ConnState::Open {
            return;
        }
        let id = ReqId { conn: self.id, slot };
        let Some(req) = self.slab.get_mut(slot) else { return };
        let len = u64::from(req.len);
        // The second of a pair is what its first, which holds a buffer, waits for.
        let may_wait = !req.in_capsule && !matches!(req.role, Role::Second(_));
        if may_wait && self.must_wait(len, sink) {
            if let Some(req) = self.slab.get_mut(slot) {
                req.state = ReqState::NeedBuffer;
            }
            self.waiting.push_back(slot);
            return;
        }
        let Some(req) = self.slab.get_mut(slot) else { return };
        let Some(buf) = sink.buffer(req.len) else {
            req.state = ReqState::NeedBuffer;
            if req.in_capsule {
                self.stalled = Some(slot);
            }
            sink.starved(id);
            return;
        };
        self.held += len;
        if req.io.is_none() {
            req.io = Some(sink.io());
        }
        if let Some(io) = req.io.as_mut() {
            io.data.push(buf);
        }
        match (req.dir, req.in_capsule) {
            (Dir::FromHost, true) => req.state = ReqState::TransferIn,
            (Dir::FromHost, false) => self.push_r2t(slot),
            _ => self.execute(slot, sink),
        }
    }

    /// Whether `len` bytes more are more than the connection may hold: beyond a fixed bound, or more than is left for all
    /// others. By the second, hosts that keep their buffers leave as much as each of them has, however many they are.
    #[inline]
    fn must_wait<S: Sink<Link = L>>(&self, len: u64, sink: &S) -> bool {
        self.held > 0 && self.held + len > HELD_BYTES_MAX.min(sink.room())
    }

    /// Whether requests wait because the connection holds too much.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lets those requests go on for which there is room now.
    pub(crate) fn retry_waiting<S: Sink<Link = L>>(&mut self, sink: &mut S) {
        for _ in 0..self.waiting.len() {
            let Some(slot) = self.waiting.front().copied() else { return };
            let len = self.slab.get(slot).map_or(0, |req| u64::from(req.len));
            if self.must_wait(len, sink) {
                return;
            }
            self.waiting.pop_front();
            self.retry(slot, sink);
        }
    }

    /// Goes on with what came behind a capsule that had to wait for its buffer; to be called after [`Self::retry`].
    pub(crate) fn resume<S: Sink<Link = L>>(&mut self, sink: &mut S) {
        let Some(slot) = self.stalled else { return };
        if self.slab.get(slot).is_some_and(|req| req.state == ReqState::NeedBuffer) {
            return;
        }
        self.stalled = None;
        let bytes = std::mem::take(&mut self.leftover);
        self.receive(&bytes, sink);
    }

    fn h2c_data(&mut self, hdr: &CheckedHdr, data: &H2cDataHdr, pdu: &mut Pdu) -> Result<(), PduError> {
        data.check(hdr)?;
        let (slot, at, len) = (data.ttag.get(), data.datao.get(), data.datal.get());
        let Some(req) = self.slab.get(slot).filter(|req| req.state == ReqState::TransferIn && req.r2t) else {
            let fei = penstock_spec::nvme_tcp::data::offset::TTAG;
            return Err(PduError::Field { name: "TTAG", fei, value: slot.into() });
        };
        if data.cccid.get() != req.cid {
            let fei = penstock_spec::nvme_tcp::data::offset::CCCID;
            return Err(PduError::Field { name: "CCCID", fei, value: data.cccid.get().into() });
        }
        let end = at.saturating_add(len);
        if at != req.have || end > req.len {
            return Err(PduError::OutOfRange { off_bytes: at, len_bytes: len });
        }
        if hdr.flags.last() && end < req.len {
            return Err(PduError::Flags { pdu_type: hdr.pdu_type, flags: hdr.flags.0 });
        }
        self.r2t_left = self.r2t_left.saturating_sub(len.into());
        pdu.slot = Some(slot);
        pdu.at = at;
        Ok(())
    }

    #[inline]
    fn data<S: Sink<Link = L>>(&mut self, rest: &mut &[u8], sink: &mut S) {
        let pdu = &mut self.rx.pdu;
        let len = pdu.data_left.min(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        let (now, later) = rest.split_at(len as usize);
        *rest = later;
        if let Some(slot) = pdu.slot
            && let Some(to) = self.slab.get_mut(slot).and_then(|req| req.data_mut(pdu.at, len))
        {
            to.copy_from_slice(now);
        }
        pdu.at += len;
        pdu.data_left -= len;
        if pdu.data_left == 0 {
            self.data_end(sink);
        }
    }

    /// All data of a PDU is there.
    #[inline]
    fn data_end<S: Sink<Link = L>>(&mut self, sink: &mut S) {
        if self.rx.pdu.has_digest {
            self.rx.phase = Phase::Digest;
        } else {
            self.pdu_end(sink);
        }
    }

    fn check_data(&mut self, received: [u8; 4]) {
        let pdu = self.rx.pdu;
        let Some(req) = pdu.slot.and_then(|slot| self.slab.get_mut(slot)) else { return };
        let data = req.data(pdu.at - pdu.data_len, pdu.data_len);
        if data.is_none_or(|data| digest(data) != received) {
            req.bad_digest = true;
        }
    }

    /// A PDU with data is complete.
    #[inline]
    fn pdu_end<S: Sink<Link = L>>(&mut self, sink: &mut S) {
        self.rx.phase = Phase::Header;
        let (slot, len) = (self.rx.pdu.slot, self.rx.pdu.data_len);
        let Some(slot) = slot else { return };
        let Some(req) = self.slab.get_mut(slot) else { return };
        req.have += len;
        if req.have < req.len {
            return;
        }
        req.r2t = false;
        let bad_digest = req.bad_digest;
        if req.unused > 0 {
            let dropped = req.drop_unused();
            self.held = self.held.saturating_sub(dropped.into());
            sink.shortened(dropped);
        }
        if bad_digest {
            self.respond(slot, Status::TRANSIENT_TRANSPORT_ERROR, 0, 0, sink);
        } else {
            self.execute(slot, sink);
        }
    }

    /// Executes a request whose data is there, now or again.
    #[inline]
    pub(crate) fn execute<S: Sink<Link = L>>(&mut self, slot: u16, sink: &mut S) {
        let id = ReqId { conn: self.id, slot };
        let Some(mut req) = self.slab.get_mut(slot) else { return };
        if req.role != Role::Alone {
            if !self.may_execute(slot, sink) {
                return;
            }
            let Some(one_of_two) = self.slab.get_mut(slot) else { return };
            req = one_of_two;
        }
        req.state = ReqState::Executing;
        match sink.execute(&self.link, id, req) {
            Exec::Started => self.out += u32::from(req.is_out()),
            Exec::Busy => req.state = ReqState::Busy,
            Exec::Done(status) => {
                let result = u64::from(req.result);
                self.respond(slot, status, result, 0, sink);
            }
        }
    }

    /// The bdev has given a request's I/O back. Returns whether the request is still to be answered.
    #[inline]
    pub(crate) fn io_back<S: Sink<Link = L>>(&mut self, slot: u16, io: Box<Io>, sink: &mut S) -> bool {
        self.out = self.out.saturating_sub(1);
        let Some(req) = self.slab.get_mut(slot) else { return false };
        req.io = Some(io);
        if self.state != ConnState::Open {
            self.free(slot, sink);
            return false;
        }
        true
    }

    /// The first `sent` bytes of the send queue are with the kernel.
    #[inline]
    pub(crate) fn sent<S: Sink<Link = L>>(&mut self, sent: usize, sink: &mut S) {
        let (slab, held) = (&mut self.slab, &mut self.held);
        self.tx.sent(sent, |slot| {
            if let Some(io) = slab.free(slot) {
                *held = held.saturating_sub(bytes_of(&io));
                sink.recycle(io);
            }
        });
    }

    /// Ends the connection: what waits is dropped, what the bdev has comes back by itself.
    pub(crate) fn close<S: Sink<Link = L>>(&mut self, sink: &mut S) {
        self.state = ConnState::Closed;
        self.tx.clear(|_| ());
        self.stalled = None;
        self.waiting.clear();
        self.leftover = Vec::new();
        let used: Vec<u16> = self.slab.slots_used().collect();
        for slot in used {
            if self.slab.get(slot).is_some_and(|req| !req.is_out()) {
                self.free(slot, sink);
            }
        }
    }

    /// Sends a TermReq and receives nothing more.
    #[cold]
    pub(crate) fn fatal(&mut self, error: PduError, header: &[u8]) {
        let header = header.get(..penstock_spec::nvme_tcp::TERM_DATA_MAX).unwrap_or(header);
        self.tx.push(TermReqHdr::new(PduType::C2H_TERM_REQ, &error, header.len()).as_bytes());
        self.tx.push(header);
        self.state = ConnState::Terminating;
        self.stalled = None;
        self.waiting.clear();
        self.leftover = Vec::new();
        self.error = Some(error);
    }

    #[inline]
    fn free<S: Sink<Link = L>>(&mut self, slot: u16, sink: &mut S) {
        if let Some(io) = self.slab.free(slot) {
            self.held = self.held.saturating_sub(bytes_of(&io));
            sink.recycle(io);
        }
    }
}

/// How many bytes of a capsule's data come before those that its SGL describes, which end with it (Base 4.3.2.2, sub type
/// Offset; ICDOFF is 0).
#[cold]
fn unused_before(off_bytes: u64, len: u32, data_len: u32) -> Result<u32, Status> {
    match off_bytes.checked_add(len.into()).map(|end| end.cmp(&data_len.into())) {
        Some(Ordering::Equal) if len > 0 => u32::try_from(off_bytes).map_err(|_| Status::SGL_OFFSET_INVALID),
        Some(Ordering::Greater) | None if off_bytes > 0 => Err(Status::SGL_OFFSET_INVALID),
        _ => Err(Status::DATA_SGL_LENGTH_INVALID),
    }
}

/// Bytes in an I/O's buffers.
#[inline]
fn bytes_of(io: &Io) -> u64 {
    u64::try_from(io.data.len_bytes()).unwrap_or(0)
}

/// The header at the beginning of `bytes`, as far as it says itself and is there.
fn header_of(bytes: &[u8]) -> &[u8] {
    let hlen = bytes.get(2).copied().map_or(0, usize::from).clamp(CommonHdr::LEN, HLEN_MAX);
    bytes.get(..hlen).unwrap_or(bytes)
}
