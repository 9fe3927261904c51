//! One connection: PDUs in, PDUs out, and the commands between. What it shares with others is its [`Session`].
//!
//! Sans-IO: bytes come in by [`Conn::receive`] (or straight into a command's buffer by [`Conn::direct`]), what is to be
//! sent stands in [`Conn::tx`]. Buffers, bdevs and owners of logical units are behind [`Sink`].
//!
//! Invariants: a command holds one slot until its response and data have left, or until it is aborted and what it has
//! outside is back; StatSN counts responses in the order in which they are queued; after a fatal error nothing is
//! received any more and a Reject is the last thing sent.

mod cmd;
mod command;
mod early;
mod machine;
mod notice;
mod reply;
mod service;
mod session;
mod tmf;

#[cfg(any(test, fuzzing))]
pub(crate) mod bench;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::rc::Rc;

use penstock_bdev::reservation::RegistrantId;
use penstock_bdev::{Io, Sg};
use penstock_reactor::Tick;
use penstock_reactor::net::SendQueue;
use penstock_scsi::{Control, LuId, Nexus};
use penstock_spec::iscsi::header::AHS_LEN_MAX;
use penstock_spec::iscsi::{
    BHS_LEN, Bhs, BhsError, CheckedBhs, DIGEST_LEN, LoginReqHdr, LoginStatus, Opcode, RejectReason, pad_len,
};
use zerocopy::FromBytes;

pub(crate) use cmd::{CmdId, CmdState, Slab};
pub(crate) use session::{Member, Session};
pub(crate) use tmf::ReplyTo;

use crate::digest::{digest, padded_digest};
use crate::login::{Answer, Directory, Login};
use crate::negotiate::Operational;
use crate::sessions::SessionKey;

/// A connection with so many unsent header bytes is not read.
const TX_BYTES_MAX: usize = 256 << 10;
/// From so many bytes on, data are received straight into their buffer.
const DIRECT_MIN: u32 = 4096;
/// After a PDU with so many bytes of data or more, only ...
const BULK_MIN: u32 = 32 << 10;
/// ... so many bytes of the next one are received with its header, to be copied from there; the others go straight into
/// its buffer.
const BULK_ROOM: usize = 4096;
/// Commands for immediate delivery under way at most.
const IMMEDIATE_MAX: u16 = 16;
/// Header, additional segments and digest at most.
const HDR_MAX: usize = BHS_LEN + AHS_LEN_MAX + DIGEST_LEN;
/// Text that a PDU may bring (keys, ping data) at most; our MaxRecvDataSegmentLength is above it.
const TEXT_MAX: u32 = 64 << 10;

/// What a connection needs from its surroundings.
pub(crate) trait Sink: Directory {
    /// Buffers of `len` bytes in all, all but the last as long as can be; or `None` when there are not enough just now.
    /// `late`: they are counted, but made by the bdev; the list is empty.
    fn buffers(&mut self, len: u32, late: bool) -> Option<Sg>;
    /// So many bytes of buffers are free again.
    fn released(&mut self, bytes: u32);
    /// `id` waits for a buffer: [`Conn::retry`] is to be called.
    fn starved(&mut self, id: CmdId);
    /// Submits an I/O; hands it back when the bdev's queue is full, after which [`Conn::resubmit`] is to be called.
    fn submit(&mut self, lu: LuId, id: CmdId, io: Box<Io>) -> Result<(), Box<Io>>;
    /// Asks the bdev to end an I/O early.
    fn abort(&mut self, lu: LuId, id: CmdId);
    /// Sends a request to the owner of a logical unit; [`Conn::replied`] is to be called with what it says.
    fn control(&mut self, conn: u32, lu: LuId, nexus: &Nexus, control: Control, to: ReplyTo);
    /// Has commands aborted; [`Conn::replied`] is to be called with [`ReplyTo::Tmf`] as often as this returns, each time
    /// when nothing of them is under way any more.
    fn sweep(&mut self, conn: u32, tmf: u8, scope: Scope) -> usize;
    /// Ends connections, this one or others of its session.
    fn end(&mut self, whom: EndOf);
    /// [`Conn::go_on`] of that connection is to be called soon.
    fn nudge(&mut self, conn: u32);
    /// The reactor of the session with that TSIH, where it is another one.
    fn elsewhere(&self, tsih: u16) -> Option<usize>;
    /// A login has succeeded: its session begins, or it joins one.
    fn enter(&mut self, who: &Entering<'_>) -> Entered;
    /// What there is to be discovered: the answer to SendTargets, of one target or of all.
    /// The initiator's address and ours come with it.
    fn send_targets(&self, key: &SessionKey, ends: (SocketAddr, SocketAddr), only: Option<&str>) -> Vec<u8>;
    /// Time.
    fn now(&self) -> Tick;
}

/// Who wants into a session.
#[derive(Debug)]
pub(crate) struct Entering<'a> {
    pub(crate) conn: u32,
    pub(crate) cid: u16,
    pub(crate) key: &'a SessionKey,
    /// The session that it asked for; 0: a new one.
    pub(crate) tsih: u16,
    pub(crate) addr: SocketAddr,
    pub(crate) agreed: &'a Operational,
    pub(crate) window: u16,
    pub(crate) cmd_sn: u32,
}

/// What becomes of it.
#[derive(Debug)]
pub(crate) enum Entered {
    /// It is in.
    Now(Rc<Session>),
    /// What it takes the place of must end first: [`Conn::login_again`] is to be called then.
    Later,
    /// It may not.
    Refused(LoginStatus),
}

/// Which commands are to be aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One of this connection, which is aborted already: whether it is back.
    Task { conn: u32, slot: u16, seq: u64 },
    /// Those of a session to one LUN that are older than `before`.
    TaskSet { tsih: u16, lun: u64, before: u64 },
    /// Those of all sessions to logical units; of the session of `from`, only those older than `before`. `cleared`: the
    /// others are told that theirs were cleared.
    Units { lus: Vec<LuId>, from: RegistrantId, before: u64, cleared: bool },
    /// Those of some nexuses to a logical unit.
    Nexuses { lu: LuId, of: Vec<RegistrantId> },
}

/// Which connections are to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndOf {
    /// One.
    Conn(u32),
    /// All others of a session.
    Others { tsih: u16, but: u32 },
    /// All sessions of a target, on all reactors: a cold reset.
    Target(Box<penstock_spec::iscsi::IscsiName>),
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnState {
    /// Login.
    Login,
    /// Full feature phase.
    Full,
    /// What is queued is sent, then it is closed; what comes is thrown away.
    Ending,
    /// Nothing is received or sent.
    Closed,
}

/// What part of a PDU comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Header,
    Data,
    Pad,
    Digest,
}

/// Where a PDU's data go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Nowhere.
    Discard,
    /// Kept as text.
    Text,
    /// To a command.
    Cmd(u16),
}

/// The PDU whose header has come.
#[derive(Debug)]
struct Pdu {
    bhs: Bhs,
    target: Target,
    /// Where the next byte goes in the command's data.
    at: u32,
    len: u32,
    left: u32,
    pad_left: u32,
}

/// The machine of one connection.
#[derive(Debug)]
pub(crate) struct Conn {
    id: u32,
    /// The initiator's address.
    pub(crate) addr: SocketAddr,
    /// Ours.
    pub(crate) local: SocketAddr,
    pub(crate) tpgt: u16,
    /// Why its login was refused.
    pub(crate) refused: Option<LoginStatus>,
    state: ConnState,
    login: Option<Box<Login>>,
    pub(crate) key: Option<SessionKey>,
    pub(crate) tsih: u16,
    cid: u16,
    agreed: Operational,
    pub(crate) session: Option<Rc<Session>>,
    /// Commands without an answer.
    pending: u16,
    /// The session's command window.
    window: u16,
    stat_sn: u32,
    /// CmdSN of the login under way.
    login_cmd_sn: u32,
    /// A login whose session has yet to end in another form.
    parked: Option<Box<(LoginReqHdr, Answer)>>,
    early: early::Early,
    /// Its session lives on that reactor: these bytes, and all that follow, are for it.
    pub(crate) moves: Option<(usize, Vec<u8>)>,
    phase: Phase,
    pdu: Pdu,
    hdr: Vec<u8>,
    digest: [u8; DIGEST_LEN],
    digest_len: usize,
    text: Vec<u8>,
    /// What is still to be sent of a text response, and its Target Transfer Tag.
    text_out: Vec<u8>,
    text_ttt: u32,
    /// Keys of a text request that go on in the next PDU.
    text_in: Vec<u8>,
    pub(crate) tx: SendQueue,
    slab: Slab,
    /// Commands that the bdevs have.
    out: u32,
    tmfs: tmf::Tmfs,
    /// The command whose immediate data cannot be received for lack of a buffer, and what came after.
    stalled: Option<u16>,
    leftover: Vec<u8>,
    /// Something came since this was last cleared: for pings.
    pub(crate) heard: bool,
    ping: u32,
    pub(crate) ping_out: bool,
}

impl Conn {
    /// A connection from `addr` to portal group `tpgt` on which nothing has come.
    pub(crate) fn new(id: u32, addr: SocketAddr, tpgt: u16) -> Self {
        let pdu = Pdu { bhs: Bhs::default(), target: Target::Discard, at: 0, len: 0, left: 0, pad_left: 0 };
        Self {
            id,
            addr,
            local: addr,
            tpgt,
            refused: None,
            state: ConnState::Login,
            login: Some(Box::new(Login::new())),
            key: None,
            tsih: 0,
            cid: 0,
            agreed: Operational::default(),
            session: None,
            pending: 0,
            window: 0,
            stat_sn: 0,
            login_cmd_sn: 0,
            parked: None,
            early: early::Early::default(),
            moves: None,
            phase: Phase::Header,
            pdu,
            hdr: Vec::new(),
            digest: [0; DIGEST_LEN],
            digest_len: 0,
            text: Vec::new(),
            text_out: Vec::new(),
            text_ttt: 0,
            text_in: Vec::new(),
            tx: SendQueue::default(),
            slab: Slab::default(),
            out: 0,
            tmfs: tmf::Tmfs::default(),
            stalled: None,
            leftover: Vec::new(),
            heard: false,
            ping: 0,
            ping_out: false,
        }
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> ConnState {
        self.state
    }

    /// Its connection identifier.
    pub(crate) fn cid(&self) -> u16 {
        self.cid
    }

    /// Its slots.
    pub(crate) fn slab(&self) -> &Slab {
        &self.slab
    }

    /// Commands that the bdevs have.
    pub(crate) fn out(&self) -> u32 {
        self.out
    }

    /// Whether what comes can be received now. There must be slots for a whole window.
    #[inline]
    pub(crate) fn wants_bytes(&self) -> bool {
        let slots = usize::from(self.window + IMMEDIATE_MAX);
        let room = self.state != ConnState::Full || self.slab.free_len() + usize::from(self.pending) >= slots;
        room && !self.is_stalled() && self.state != ConnState::Closed && self.tx.hdr_bytes() < TX_BYTES_MAX
    }

    /// Whether what comes has to wait.
    #[inline]
    fn is_stalled(&self) -> bool {
        self.stalled.is_some() || self.parked.is_some() || self.moves.is_some()
    }

    /// What came and was not handled, with what is to be handled by another reactor.
    pub(crate) fn take_moving(&mut self) -> Option<(usize, Vec<u8>)> {
        let (reactor, mut bytes) = self.moves.take()?;
        bytes.append(&mut self.leftover);
        Some((reactor, bytes))
    }

    /// Whether the peer keeps buffers: data that it does not take, or that it was asked for and does not send.
    pub(crate) fn is_owed_by_peer(&self) -> bool {
        !self.tx.is_empty() || self.slab.used().any(|(_, cmd)| cmd.state == CmdState::TransferIn)
    }

    fn data_max(&self) -> u32 {
        self.agreed.data_to_target.max(8192)
    }

    /// The rest of the data that comes now, where it is long enough to be received straight into its buffer.
    #[inline]
    pub(crate) fn direct(&mut self) -> Option<&mut [u8]> {
        let Target::Cmd(slot) = self.pdu.target else { return None };
        let (at, left) = (self.pdu.at, self.pdu.left);
        if self.phase != Phase::Data || left < DIRECT_MIN || self.state != ConnState::Full {
            return None;
        }
        self.slab.get_mut(slot)?.room(at, left).filter(|room| !room.is_empty())
    }

    /// How many bytes behind those of [`Self::direct`] are worth receiving.
    #[inline]
    pub(crate) fn room_bytes(&self) -> usize {
        if self.pdu.len >= BULK_MIN { BULK_ROOM } else { usize::MAX }
    }

    /// `len` bytes have come into [`Self::direct`].
    pub(crate) fn direct_came<S: Sink>(&mut self, len: usize, sink: &mut S) {
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(self.pdu.left);
        self.pdu.left -= len;
        self.pdu.at += len;
        self.heard = true;
        self.after_data(sink);
    }

    /// Handles bytes as they came.
    pub(crate) fn receive<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) {
        self.heard = true;
        let mut rest = bytes;
        while matches!(self.state, ConnState::Login | ConnState::Full) {
            if self.is_stalled() {
                self.leftover.extend_from_slice(rest);
                return;
            }
            if rest.is_empty() {
                return;
            }
            match self.phase {
                Phase::Header => self.header(&mut rest, sink),
                Phase::Data => self.data(&mut rest, sink),
                Phase::Pad => {
                    let pad = (self.pdu.pad_left as usize).min(rest.len());
                    rest = rest.get(pad..).unwrap_or_default();
                    self.pdu.pad_left -= u32::try_from(pad).unwrap_or(0);
                    self.after_data(sink);
                }
                Phase::Digest => self.data_digest(&mut rest, sink),
            }
        }
    }

    fn header_digest_len(&self) -> usize {
        if self.agreed.header_digest && self.state == ConnState::Full { DIGEST_LEN } else { 0 }
    }

    fn has_data_digest(&self) -> bool {
        self.agreed.data_digest && self.state == ConnState::Full
    }

    /// How long the header at the beginning of `bytes` is with all that belongs to it, and what it is.
    fn frame(&self, bytes: &[u8]) -> Result<Option<(CheckedBhs, usize)>, BhsError> {
        let Some(checked) = CheckedBhs::parse_prefix(bytes, self.data_max(), AHS_LEN_MAX)? else {
            return Ok(None);
        };
        Ok(Some((checked, BHS_LEN + checked.ahs_len + self.header_digest_len())))
    }

    fn header<S: Sink>(&mut self, rest: &mut &[u8], sink: &mut S) {
        if self.hdr.is_empty() {
            match self.frame(rest) {
                Err(error) => return self.bad_header(rest, error),
                Ok(Some((checked, len))) if rest.len() >= len => {
                    let (bytes, tail) = rest.split_at(len);
                    *rest = tail;
                    return self.handle(&checked, bytes, sink);
                }
                Ok(_) => {}
            }
        }
        // A header in pieces.
        loop {
            let want = match self.frame(&self.hdr) {
                Err(error) => {
                    let kept = std::mem::take(&mut self.hdr);
                    return self.bad_header(&kept, error);
                }
                Ok(None) => BHS_LEN,
                Ok(Some((checked, len))) if self.hdr.len() >= len => {
                    let kept = std::mem::take(&mut self.hdr);
                    self.handle(&checked, &kept, sink);
                    if self.hdr.capacity() == 0 {
                        // Keep the room for the next one.
                        self.hdr = kept;
                        self.hdr.clear();
                    }
                    return;
                }
                Ok(Some((_, len))) => len,
            };
            if rest.is_empty() {
                return;
            }
            let count = want.saturating_sub(self.hdr.len()).min(rest.len()).min(HDR_MAX);
            let (now, later) = rest.split_at(count);
            self.hdr.extend_from_slice(now);
            *rest = later;
        }
    }

    fn bad_header(&mut self, bytes: &[u8], error: BhsError) {
        tracing::debug!(peer = %self.addr, %error, "an iSCSI connection is ended");
        let bhs = Bhs::read_from_prefix(bytes).map(|(bhs, _)| bhs).unwrap_or_default();
        let reason = match error {
            BhsError::Opcode(_) => RejectReason::NOT_SUPPORTED,
            _ => RejectReason::PROTOCOL,
        };
        self.fatal(&bhs, reason);
    }

    /// Handles a header with its additional segments and digest.
    fn handle<S: Sink>(&mut self, checked: &CheckedBhs, bytes: &[u8], sink: &mut S) {
        let Ok((bhs, _)) = Bhs::read_from_prefix(bytes) else { return };
        if self.header_digest_len() > 0 {
            let Some((header, received)) = bytes.split_last_chunk::<DIGEST_LEN>() else { return };
            if digest(header) != *received {
                let computed = u32::from_le_bytes(digest(header));
                let error = BhsError::Digest { received: u32::from_le_bytes(*received), computed };
                tracing::debug!(peer = %self.addr, %error, "an iSCSI connection is ended");
                // Where the next PDU begins is not known, nor which command this was.
                self.state = ConnState::Closed;
                return;
            }
        }
        let len = checked.data_len;
        self.pdu = Pdu { bhs, target: Target::Discard, at: 0, len, left: len, pad_left: pad_len(len) };
        self.text.clear();
        let ahs = bytes.get(BHS_LEN..BHS_LEN + checked.ahs_len).unwrap_or_default();
        match checked.opcode {
            Opcode::SCSI_COMMAND if self.state == ConnState::Full => self.command(ahs, sink),
            Opcode::DATA_OUT if self.state == ConnState::Full => self.data_out(),
            _ if len > TEXT_MAX => self.fatal(&bhs, RejectReason::PROTOCOL),
            _ => self.pdu.target = Target::Text,
        }
        if !matches!(self.state, ConnState::Login | ConnState::Full) {
            return;
        }
        if len > 0 {
            self.phase = Phase::Data;
        } else {
            self.pdu_end(false, sink);
        }
    }

    fn data<S: Sink>(&mut self, rest: &mut &[u8], sink: &mut S) {
        let len = self.pdu.left.min(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        let (now, later) = rest.split_at(len as usize);
        *rest = later;
        match self.pdu.target {
            Target::Discard => {}
            Target::Text => self.text.extend_from_slice(now),
            Target::Cmd(slot) => {
                if let Some(cmd) = self.slab.get_mut(slot) {
                    cmd.put(self.pdu.at, now);
                }
            }
        }
        self.pdu.at += len;
        self.pdu.left -= len;
        self.after_data(sink);
    }

    /// Some of a PDU's data or padding has come: what is next?
    fn after_data<S: Sink>(&mut self, sink: &mut S) {
        self.phase = match (self.pdu.left, self.pdu.pad_left) {
            (0, 0) if self.has_data_digest() => Phase::Digest,
            (0, 0) => return self.pdu_end(false, sink),
            (0, _) => Phase::Pad,
            _ => Phase::Data,
        };
    }

    fn data_digest<S: Sink>(&mut self, rest: &mut &[u8], sink: &mut S) {
        let count = (DIGEST_LEN - self.digest_len).min(rest.len());
        let (now, later) = rest.split_at(count);
        if let Some(to) = self.digest.get_mut(self.digest_len..self.digest_len + count) {
            to.copy_from_slice(now);
        }
        self.digest_len += count;
        *rest = later;
        if self.digest_len < DIGEST_LEN {
            return;
        }
        self.digest_len = 0;
        let pad = pad_len(self.pdu.len) as usize;
        let good = match self.pdu.target {
            Target::Discard => true,
            Target::Text => padded_digest(&self.text, pad) == self.digest,
            Target::Cmd(slot) => {
                let (from, len) = (self.pdu.at - self.pdu.len, self.pdu.len);
                let computed = self.slab.get(slot).and_then(|cmd| cmd.came_digest(from, len, pad));
                // What is cut off at the end of the wanted data was not kept and cannot be checked.
                computed.is_none_or(|computed| computed == self.digest)
            }
        };
        self.pdu_end(!good, sink);
    }

    /// A PDU is complete.
    fn pdu_end<S: Sink>(&mut self, bad_digest: bool, sink: &mut S) {
        self.phase = Phase::Header;
        let bhs = self.pdu.bhs;
        if bad_digest {
            self.reject(&bhs, RejectReason::DATA_DIGEST);
        }
        match std::mem::replace(&mut self.pdu.target, Target::Discard) {
            Target::Discard => {}
            Target::Cmd(slot) => {
                if let Some(cmd) = self.slab.get_mut(slot) {
                    cmd.bad_digest |= bad_digest;
                }
                self.data_came(slot, sink);
            }
            Target::Text if bad_digest => {}
            Target::Text => {
                let text = std::mem::take(&mut self.text);
                self.service(&bhs, &text, sink);
                self.text = text;
            }
        }
    }

    /// Ends the connection: what waits is dropped, what the bdevs have comes back by itself.
    pub(crate) fn close<S: Sink>(&mut self, sink: &mut S) {
        self.state = ConnState::Closed;
        self.tx.clear(|_| ());
        self.stalled = None;
        self.parked = None;
        self.leftover = Vec::new();
        self.drop_early(sink);
        let used: Vec<(u16, CmdState)> = self.slab.used().map(|(slot, cmd)| (slot, cmd.state)).collect();
        for (slot, state) in used {
            if state == CmdState::Executing {
                let lu = self.slab.get(slot).map_or(LuId(0), |cmd| cmd.lu);
                if let Some(cmd) = self.slab.get_mut(slot) {
                    cmd.aborted = true;
                }
                sink.abort(lu, CmdId { conn: self.id, slot });
            } else {
                self.drop_cmd(slot, sink);
            }
        }
    }

    /// Rejects a PDU, then ends the connection.
    #[cold]
    fn fatal(&mut self, bhs: &Bhs, reason: RejectReason) {
        if self.state == ConnState::Full {
            self.reject(bhs, reason);
            self.end();
        } else {
            self.state = ConnState::Closed;
        }
    }

    /// Sends what is queued, then closes.
    pub(crate) fn end(&mut self) {
        self.state = ConnState::Ending;
        self.stalled = None;
        self.leftover = Vec::new();
    }
}
