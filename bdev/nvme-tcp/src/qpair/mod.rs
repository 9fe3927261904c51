//! One NVMe/TCP connection: a queue pair of a controller (TCP transport 3.1; Base 3.3.2, 6.3).
//!
//! ```text
//! new ──ICReq──▶ Initializing ──ICResp──▶ Connecting ──Connect completed──▶ Live
//!                     └───────────────┴── any violation, TermReq, refusal ──┴──▶ Closed
//! ```
//!
//! The driver's turn: [`Qpair::submit`] what there is; write [`Qpair::tx_slices`] with one gathering write
//! and report it by [`Qpair::tx_consume`]; read, if [`Qpair::rx_target`] names a place, directly there, and
//! hand the rest to [`Qpair::recv`]; take completions from [`Qpair::poll`].

mod auth;
mod rx;
mod slot;

#[cfg(test)]
mod tests;

pub use auth::AuthConfig;

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_reactor::net::SendQueue;
use penstock_security::chap::MESSAGE_LEN_MAX;
use penstock_security::psk::TlsPsk;
use penstock_spec::nvme::{Cqe, Sqe, Status};
use penstock_spec::nvme_tcp::header::PduFlags;
use penstock_spec::nvme_tcp::{
    ADMIN_IN_CAPSULE_LEN, CapsuleCmdHdr, CommonHdr, DIGEST_LEN, DigestFlags, H2cDataHdr, HLEN_MAX, IcReq,
    PDA_MAX, PduError, PduType, Receiver, RxRules, TERM_DATA_MAX, TermReqHdr, data_offset,
};
use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::connect::{ConnectAttributes, ConnectCmd, ConnectData, ConnectResult};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use self::auth::Auth;
use self::rx::Rx;
use self::slot::{Slot, SlotState, Slots};
use crate::digest::{Crc32c, crc32c};
use crate::error::QpairError;
use crate::payload::Payload;
use crate::tls::Tls;

/// The most commands outstanding on one queue pair.
pub const DEPTH_MAX: u16 = 1024;

/// The most R2Ts outstanding per command that this host offers.
pub const MAXR2T_MAX: u16 = 16;

/// Bits of a CID that name the slot; the rest is a generation, so that a late answer is recognised.
const SLOT_BITS: u32 = 10;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;
/// Generations stop short of all ones: FFFFh is no CID.
const GENERATIONS: u16 = (1 << (16 - SLOT_BITS)) - 1;
const _: () = assert!(1 << SLOT_BITS == DEPTH_MAX);

/// The most inline bytes of one PDU: header and digest padded to 128, and the data digest.
const PDU_INLINE_MAX: usize = 128 + DIGEST_LEN;
/// Segments of one PDU: header, payload, data digest.
const PDU_SEGMENTS_MAX: usize = 3;
/// The longest data that is copied: Connect's, or a message of an authentication.
const COPIED_MAX: usize = if MESSAGE_LEN_MAX > ConnectData::LEN { MESSAGE_LEN_MAX } else { ConnectData::LEN };
/// Room kept for the PDUs that must always go out: ICReq, Connect with its data, H2CTermReq.
const RESERVE_BYTES: usize = HLEN_MAX + PDU_INLINE_MAX + COPIED_MAX + TermReqHdr::LEN + TERM_DATA_MAX;
const RESERVE_SEGMENTS: usize = 2 * PDU_SEGMENTS_MAX;
/// H2CData PDUs that may wait in the transmit queue beyond one capsule per command.
const H2C_PDUS_QUEUED_MAX: usize = 32;

/// What a queue pair is opened with.
#[derive(Debug, Clone)]
pub struct QpairConfig {
    /// Queue identifier: 0 is the admin queue.
    pub qid: u16,
    /// Commands outstanding, 1..=[`DEPTH_MAX`]. The queue has one entry more: a full one is told from an empty one by it.
    pub depth: u16,
    /// Submission queue flow control of an I/O queue. Without it a target may complete reads by the SUCCESS flag of their
    /// data, which saves a PDU for each; the admin queue always has it.
    pub sq_flow_control: bool,
    /// Controller to connect to; [`penstock_spec::nvmf::connect::CNTLID_DYNAMIC`] on the admin queue.
    pub cntlid: u16,
    /// Host Identifier.
    pub hostid: [u8; 16],
    /// Host NQN.
    pub hostnqn: Nqn,
    /// NQN of the subsystem.
    pub subnqn: Nqn,
    /// Keep Alive Timeout, milliseconds; 0 for none. Only the admin queue sends it.
    pub kato_ms: u32,
    /// Ask for header digests.
    pub hdgst: bool,
    /// Ask for data digests.
    pub ddgst: bool,
    /// Alignment of incoming data, dwords, 0's based (HPDA).
    pub hpda: u8,
    /// R2Ts outstanding per command that the target may have, 1..=[`MAXR2T_MAX`].
    pub maxr2t: u16,
    /// In-capsule data that I/O commands may carry, bytes: IOCCSZ * 16 - 64. Admin queues take 8192.
    pub in_capsule_max: u32,
    /// What the host authenticates itself with where the controller asks for it; nothing is done elsewhere.
    pub auth: Option<Arc<AuthConfig>>,
    /// TLS on the connection, which is its driver's business; the machine only knows whether it is there. Without a key in
    /// it, and where the controller insists, the authentication of the admin queue makes one, and ends the connection
    /// with [`QpairError::SecureChannel`] then.
    pub tls: Option<Tls>,
}

impl QpairConfig {
    /// An admin queue of 31 commands to `subnqn`, without digests.
    #[must_use]
    pub fn admin(hostid: [u8; 16], hostnqn: Nqn, subnqn: Nqn) -> Self {
        Self {
            qid: 0,
            depth: 31,
            sq_flow_control: true,
            cntlid: penstock_spec::nvmf::connect::CNTLID_DYNAMIC,
            hostid,
            hostnqn,
            subnqn,
            kato_ms: 0,
            hdgst: false,
            ddgst: false,
            hpda: 0,
            maxr2t: 1,
            in_capsule_max: ADMIN_IN_CAPSULE_LEN,
            auth: None,
            tls: None,
        }
    }

    /// Whether the connection has TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.psks.is_empty())
    }
}

/// Where a queue pair is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QpairState {
    /// ICReq is sent; an ICResp moves it on.
    Initializing,
    /// Connect is sent; its completion moves it on.
    Connecting,
    /// The controller wants proof of the host; the end of the transaction moves it on.
    Authenticating,
    /// Commands may be submitted.
    Live,
    /// Nothing goes in or out any more, except what the transmit queue still holds.
    Closed(QpairError),
}

/// Direction and length of a command's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// Controller to host, bytes.
    Read(u32),
    /// Host to controller, bytes.
    Write(u32),
}

impl Transfer {
    const fn len_bytes(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Read(len) | Self::Write(len) => len,
        }
    }
}

/// A command that is through, with the payload that it owned.
#[derive(Debug)]
pub struct Completion<B> {
    /// What `submit` was given to recognise it by.
    pub user: u64,
    /// The completion; one made by this host after SUCCESS has only status and CID.
    pub cqe: Cqe,
    /// The payload.
    pub payload: Option<B>,
}

impl<B> Completion<B> {
    /// The status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.cqe.status()
    }
}

/// A command that was not taken, handed back untouched.
#[derive(Debug)]
pub struct Rejected<B> {
    /// The payload.
    pub payload: Option<B>,
    /// Why.
    pub reason: RejectReason,
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// All slots, or the transmit queue, are in use: poll and send first.
    #[error("the queue pair is full: poll for completions and send what is queued, then submit again")]
    Busy,
    /// The queue pair is not live.
    #[error("the queue pair is not live: wait for it to connect, or open a new one")]
    NotLive,
    /// The payload is shorter than the transfer.
    #[error("the payload is shorter than the command's transfer: give it a larger buffer")]
    PayloadTooShort,
}

/// Data that an R2T asked for and that is not in the transmit queue yet.
#[derive(Debug, Clone, Copy)]
struct H2cJob {
    slot: usize,
    ttag: u16,
    off: u32,
    len: u32,
}

/// A queue pair over a TCP connection, without the connection.
#[derive(Debug)]
pub struct Qpair<B> {
    config: QpairConfig,
    state: QpairState,
    rules: RxRules,
    cpda: u8,
    maxh2cdata: u32,
    cntlid: u16,
    connect_slot: usize,
    auth: Option<Box<Auth>>,
    /// The key that the authentication has made, for the connections that come.
    made: Option<Arc<TlsPsk>>,
    slots: Slots<B>,
    free: Vec<u16>,
    done: VecDeque<u16>,
    h2c: VecDeque<H2cJob>,
    tx: SendQueue,
    rx: Rx,
}

impl<B: Payload> Qpair<B> {
    /// A queue pair whose ICReq is ready to be sent. Values out of range are brought into it.
    #[must_use]
    pub fn new(mut config: QpairConfig) -> Self {
        config.depth = config.depth.clamp(1, DEPTH_MAX);
        config.maxr2t = config.maxr2t.clamp(1, MAXR2T_MAX);
        config.hpda = config.hpda.min(PDA_MAX);
        let depth = usize::from(config.depth);
        let pdus = depth + H2C_PDUS_QUEUED_MAX;
        let mut tx = SendQueue::bounded(
            pdus * PDU_INLINE_MAX + RESERVE_BYTES,
            pdus * PDU_SEGMENTS_MAX + RESERVE_SEGMENTS,
        );
        let asked = DigestFlags(0).with_hdgst(config.hdgst).with_ddgst(config.ddgst);
        tx.push(IcReq::new(config.hpda, asked, u32::from(config.maxr2t)).as_bytes());
        Self {
            state: QpairState::Initializing,
            rules: RxRules::before_init(Receiver::Host),
            cpda: 0,
            maxh2cdata: 0,
            cntlid: config.cntlid,
            connect_slot: 0,
            auth: None,
            made: None,
            slots: Slots((0..config.depth).map(Slot::new).collect()),
            free: (0..config.depth).rev().collect(),
            done: VecDeque::with_capacity(depth),
            h2c: VecDeque::with_capacity(depth * usize::from(config.maxr2t)),
            tx,
            rx: Rx::new(),
            config,
        }
    }

    /// Gives a command to the queue pair, payload included. CID and SGL are set here.
    ///
    /// # Errors
    /// The command is handed back: full, not live, or the payload is too short.
    #[inline]
    pub fn submit(
        &mut self,
        mut sqe: Sqe,
        transfer: Transfer,
        user: u64,
        payload: Option<B>,
    ) -> Result<u16, Rejected<B>> {
        let reject = |payload, reason| Err(Rejected { payload, reason });
        if self.state != QpairState::Live {
            return reject(payload, RejectReason::NotLive);
        }
        let len = transfer.len_bytes();
        let held = payload.as_ref().map_or(0, |p| p.len_bytes());
        if u32::try_from(held).is_ok_and(|held| held < len) {
            return reject(payload, RejectReason::PayloadTooShort);
        }
        let inline = PDU_INLINE_MAX + RESERVE_BYTES;
        if !self.tx.has_room(inline, PDU_SEGMENTS_MAX + RESERVE_SEGMENTS) {
            return reject(payload, RejectReason::Busy);
        }
        let Some(index) = self.free.pop() else { return reject(payload, RejectReason::Busy) };
        let in_capsule =
            matches!(transfer, Transfer::Write(len) if len > 0 && len <= self.config.in_capsule_max);
        let cid = self.take_slot(index, transfer, in_capsule, user, payload);
        sqe.cid = U16::new(cid);
        self.push_capsule(sqe, usize::from(index), None);
        Ok(cid)
    }

    /// The next command that is through. A pass over all of them ends with `None`.
    #[inline]
    pub fn poll(&mut self) -> Option<Completion<B>> {
        let index = self.done.pop_front()?;
        let slot = self.slots.0.get_mut(usize::from(index))?;
        assert!(slot.state == SlotState::Done, "only completed commands are in the completion queue");
        slot.state = SlotState::Free;
        self.free.push(index);
        Some(Completion { user: slot.user, cqe: slot.cqe, payload: slot.payload.take() })
    }

    /// Reports that the first `n` bytes of [`Self::tx_slices`] are out of the driver's hands for good.
    pub fn tx_consume(&mut self, n: usize) {
        let (slots, done) = (&mut self.slots.0, &mut self.done);
        self.tx.sent(n, |index| {
            let Some(slot) = slots.get_mut(usize::from(index)) else { return };
            slot.tx_refs -= 1;
            if slot.tx_refs == 0 && slot.state == SlotState::Draining {
                slot.state = SlotState::Done;
                done.push_back(slot.cid & SLOT_MASK);
            }
        });
        self.pump();
    }

    /// Closes a queue pair whose connection is gone, or that its owner has done with.
    pub fn close(&mut self) {
        if !matches!(self.state, QpairState::Closed(_)) {
            self.state = QpairState::Closed(QpairError::Closed);
        }
    }

    /// Takes the commands that will not complete any more out of a closed queue pair, one by one, as
    /// Command Aborted By Host. Forgets what was to be sent: call it when the connection is shut.
    pub fn abandon(&mut self) -> Option<Completion<B>> {
        if !matches!(self.state, QpairState::Closed(_)) {
            return None;
        }
        if let Some(done) = self.poll() {
            return Some(done);
        }
        self.tx.clear(|_| ());
        self.h2c.clear();
        for slot in &mut self.slots.0 {
            if matches!(slot.state, SlotState::Active | SlotState::Draining) {
                if slot.state == SlotState::Active {
                    slot.cqe = Cqe::new(slot.cid, 0, Status::ABORTED_BY_HOST);
                }
                slot.state = SlotState::Done;
                slot.tx_refs = 0;
                self.done.push_back(slot.cid & SLOT_MASK);
            }
        }
        self.poll()
    }

    /// The bytes to be sent, in order, as the pieces of one gathering write. They stay where they are until
    /// [`Self::tx_consume`] takes them.
    pub fn tx_slices(&self) -> impl Iterator<Item = &[u8]> {
        self.tx.pieces(&self.slots)
    }

    /// How many bytes [`Self::tx_slices`] has, in all.
    #[inline]
    #[must_use]
    pub fn tx_len_bytes(&self) -> usize {
        self.tx.len_bytes()
    }

    /// Where the queue pair is in its life.
    #[must_use]
    pub const fn state(&self) -> QpairState {
        self.state
    }

    /// Whether commands may be submitted.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state == QpairState::Live
    }

    /// The key for TLS that an authentication has made, after [`QpairError::SecureChannel`].
    #[must_use]
    pub fn made_psk(&self) -> Option<&Arc<TlsPsk>> {
        self.made.as_ref()
    }

    /// Identifier of the controller, once connected.
    #[must_use]
    pub const fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// Commands outstanding or not polled yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.0.len() - self.free.len()
    }

    /// The most commands outstanding.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.slots.0.len()
    }

    /// In-capsule data that a write may carry, in bytes.
    #[must_use]
    pub const fn in_capsule_max(&self) -> u32 {
        self.config.in_capsule_max
    }

    fn take_slot(
        &mut self,
        index: u16,
        transfer: Transfer,
        in_capsule: bool,
        user: u64,
        payload: Option<B>,
    ) -> u16 {
        let Some(slot) = self.slots.0.get_mut(usize::from(index)) else { return index };
        assert!(slot.state == SlotState::Free, "a slot of the free list is free");
        let generation = (slot.cid >> SLOT_BITS) + 1;
        let generation = if generation == GENERATIONS { 0 } else { generation };
        let cid = (generation << SLOT_BITS) | index;
        *slot = Slot { state: SlotState::Active, transfer, in_capsule, user, payload, ..Slot::new(cid) };
        cid
    }

    /// Queues the command capsule; in-capsule data comes from the slot's payload or from `copied`.
    fn push_capsule(&mut self, mut sqe: Sqe, index: usize, copied: Option<&[u8]>) {
        let Some(slot) = self.slots.0.get_mut(index) else { return };
        let (hdgst, ddgst) = (self.rules.hdgst, self.rules.ddgst);
        let psh_end = PduType::CAPSULE_CMD.hlen() + if hdgst { 4 } else { 0 };
        let len = slot.transfer.len_bytes();
        let mut flags = if hdgst { PduFlags::HDGST } else { 0 };
        let (mut pdo, mut plen) = (0, u32::from(psh_end));
        if slot.in_capsule {
            flags |= if ddgst { PduFlags::DDGST } else { 0 };
            pdo = data_offset(psh_end, self.cpda);
            plen = pdo + len + if ddgst { 4 } else { 0 };
            sqe.sgl1 = penstock_spec::nvme::SglDescriptor::in_capsule(0, len);
        } else {
            sqe.sgl1 = penstock_spec::nvme::SglDescriptor::transport(len);
        }
        let pdo_byte = u8::try_from(pdo).unwrap_or(0);
        let ch = CommonHdr::new(PduType::CAPSULE_CMD, flags, PduType::CAPSULE_CMD.hlen(), pdo_byte, plen);
        push_header(&mut self.tx, CapsuleCmdHdr { ch, sqe }.as_bytes(), hdgst, pdo);
        if !slot.in_capsule {
            return;
        }
        match copied {
            Some(bytes) => {
                self.tx.push(bytes);
                if ddgst {
                    self.tx.push(&crc32c(bytes).to_le_bytes());
                }
            }
            None => push_data(&mut self.tx, slot, 0, len, ddgst),
        }
    }

    /// Moves data that R2Ts asked for into the transmit queue, as far as there is room.
    fn pump(&mut self) {
        while let Some(job) = self.h2c.front_mut() {
            let reserve = RESERVE_BYTES + PDU_INLINE_MAX;
            if !self.tx.has_room(reserve, RESERVE_SEGMENTS + PDU_SEGMENTS_MAX) {
                return;
            }
            let Some(slot) = self.slots.0.get_mut(job.slot) else { return };
            let len = job.len.min(self.maxh2cdata);
            let last = len == job.len;
            let (hdgst, ddgst) = (self.rules.hdgst, self.rules.ddgst);
            let flags = PduFlags(0).with_hdgst(hdgst).with_ddgst(ddgst).with_last(last);
            let hlen = PduType::H2C_DATA.hlen();
            let pdo = data_offset(hlen + if hdgst { 4 } else { 0 }, self.cpda);
            let plen = pdo + len + if ddgst { 4 } else { 0 };
            let pdo_byte = u8::try_from(pdo).unwrap_or(0);
            let hdr = H2cDataHdr {
                ch: CommonHdr::new(PduType::H2C_DATA, flags.0, hlen, pdo_byte, plen),
                cccid: U16::new(slot.cid),
                ttag: U16::new(job.ttag),
                datao: U32::new(job.off),
                datal: U32::new(len),
                ..H2cDataHdr::default()
            };
            push_header(&mut self.tx, hdr.as_bytes(), hdgst, pdo);
            match self.auth.as_ref().filter(|auth| auth.slot == job.slot) {
                Some(auth) => push_copy(&mut self.tx, &auth.message, job.off, len, ddgst),
                None => push_data(&mut self.tx, slot, job.off, len, ddgst),
            }
            job.off += len;
            job.len -= len;
            if last {
                slot.r2ts -= 1;
                self.h2c.pop_front();
            }
        }
    }

    /// Sends Connect, once the connection is initialized.
    fn push_connect(&mut self) {
        let Some(index) = self.free.pop() else { return };
        let len = ConnectData::LEN;
        let transfer = Transfer::Write(u32::try_from(len).unwrap_or(0));
        let cid = self.take_slot(index, transfer, true, 0, None);
        let config = &self.config;
        let data = ConnectData::new(config.hostid, config.cntlid, &config.subnqn, &config.hostnqn);
        let no_flow_control = config.qid != 0 && !config.sq_flow_control;
        let cmd = ConnectCmd {
            opc: penstock_spec::nvme::AdminOpcode::FABRICS.0,
            flags: Sqe::FLAGS_FABRICS,
            cid: U16::new(cid),
            fctype: penstock_spec::nvme::FabricsType::CONNECT.0,
            qid: U16::new(config.qid),
            sqsize0: U16::new(config.depth),
            cattr: ConnectAttributes(0).with_disable_sq_flow_control(no_flow_control).0,
            kato_ms: U32::new(if config.qid == 0 { config.kato_ms } else { 0 }),
            ..ConnectCmd::default()
        };
        self.connect_slot = usize::from(index);
        self.state = QpairState::Connecting;
        self.push_capsule(*cmd.as_sqe(), usize::from(index), Some(data.as_bytes()));
    }

    /// The Connect is through: the queue pair is live or closed.
    fn connected(&mut self, cqe: &Cqe) -> Result<(), QpairError> {
        if let Some(slot) = self.slots.0.get_mut(self.connect_slot) {
            slot.state = SlotState::Free;
            self.free.push(slot.cid & SLOT_MASK);
        }
        let status = cqe.status();
        if !status.is_success() {
            let dw0 = cqe.dw0.get();
            return Err(QpairError::ConnectRefused { qid: self.config.qid, status, dw0 });
        }
        let result = ConnectResult(cqe.dw0.get());
        self.cntlid = result.cntlid();
        let channel =
            self.config.qid == 0 && !self.config.is_secure() && (result.ascr() || self.config.tls.is_some());
        if !result.atr() && !result.ascr() && !channel {
            self.state = QpairState::Live;
            return Ok(());
        }
        let Some(auth) = self.config.auth.as_ref() else {
            return Err(QpairError::AuthenticationRequired);
        };
        self.auth = Some(Auth::new(&self.config, auth, channel));
        self.state = QpairState::Authenticating;
        self.auth_next()
    }

    /// Moves a command that the target has completed towards the completion queue.
    fn complete(&mut self, index: usize, mut cqe: Cqe) -> Result<(), QpairError> {
        if self.state == QpairState::Connecting && index == self.connect_slot {
            return self.connected(&cqe);
        }
        if self.auth.as_ref().is_some_and(|auth| auth.slot == index) {
            return self.auth_done(&cqe);
        }
        let Some(slot) = self.slots.0.get_mut(index) else { return Ok(()) };
        if let (Transfer::Read(len), true) = (slot.transfer, cqe.status().is_success()) {
            if slot.ddgst_failed {
                cqe = Cqe::new(slot.cid, cqe.sqhd.get(), Status::TRANSIENT_TRANSPORT_ERROR);
            } else if slot.moved_bytes != len {
                let (off_bytes, len_bytes) = (slot.moved_bytes, len - slot.moved_bytes);
                return Err(PduError::OutOfRange { off_bytes, len_bytes }.into());
            }
        }
        slot.cqe = cqe;
        if slot.r2ts > 0 {
            slot.r2ts = 0;
            self.h2c.retain(|job| job.slot != index);
        }
        if slot.tx_refs > 0 {
            slot.state = SlotState::Draining;
        } else {
            slot.state = SlotState::Done;
            self.done.push_back(slot.cid & SLOT_MASK);
        }
        Ok(())
    }

    /// Closes for good; a violation by the target is answered with an H2CTermReq that carries `header`.
    fn fail(&mut self, error: QpairError, header: &[u8]) {
        if let QpairError::Protocol(pdu_error) = &error {
            let header = header.get(..header.len().min(TERM_DATA_MAX)).unwrap_or_default();
            let term = TermReqHdr::new(PduType::H2C_TERM_REQ, pdu_error, header.len());
            if self.tx.has_room(TermReqHdr::LEN + header.len(), 1) {
                self.tx.push(term.as_bytes());
                self.tx.push(header);
            }
        }
        self.h2c.clear();
        self.state = QpairState::Closed(error);
    }
}

/// Queues a header with its digest and the padding up to `pdo` (0: no data follows).
fn push_header(tx: &mut SendQueue, header: &[u8], hdgst: bool, pdo: u32) {
    const ZEROES: [u8; 128] = [0; 128];
    tx.push(header);
    let mut end = header.len();
    if hdgst {
        tx.push(&crc32c(header).to_le_bytes());
        end += DIGEST_LEN;
    }
    let pad = usize::try_from(pdo).unwrap_or(0).saturating_sub(end);
    if pad > 0 {
        tx.push(ZEROES.get(..pad).unwrap_or_default());
    }
}

/// Queues a copy of a range of `bytes` and its digest.
fn push_copy(tx: &mut SendQueue, bytes: &[u8], off: u32, len: u32, ddgst: bool) {
    let (Ok(off), Ok(len)) = (usize::try_from(off), usize::try_from(len)) else { return };
    let Some(bytes) = off.checked_add(len).and_then(|end| bytes.get(off..end)) else { return };
    tx.push(bytes);
    if ddgst {
        tx.push(&crc32c(bytes).to_le_bytes());
    }
}

/// Queues a range of a slot's payload and its digest.
fn push_data<B: Payload>(tx: &mut SendQueue, slot: &mut Slot<B>, off: u32, len: u32, ddgst: bool) {
    slot.tx_refs += 1;
    tx.push_data(slot.cid & SLOT_MASK, off, len, true);
    if !ddgst {
        return;
    }
    let (Ok(off), Ok(len)) = (usize::try_from(off), usize::try_from(len)) else { return };
    let mut crc = Crc32c::new();
    let (mut at, end) = (off, off + len);
    while let Some(chunk) = slot.payload.as_ref().map(|p| p.chunk(at)).filter(|c| !c.is_empty() && at < end) {
        let chunk = chunk.get(..chunk.len().min(end - at)).unwrap_or_default();
        crc.update(chunk);
        at += chunk.len();
    }
    tx.push(&crc.finish().to_le_bytes());
}
