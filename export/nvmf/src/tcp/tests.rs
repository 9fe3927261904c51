//! Tests of the connection machine: against our own initiator with any fragmentation and order, and against rubbish.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

use penstock_bdev::Io;
use penstock_nvme_tcp::{Qpair, QpairConfig, Transfer as HostTransfer, command};
use penstock_reactor::mem::Buf;
use penstock_reactor::rng::Rng;
use penstock_spec::nvme::opcode::DataTransfer;
use penstock_spec::nvme::sgl::SglDescriptor;
use penstock_spec::nvme::{NvmOpcode, Sqe, Status};
use penstock_spec::nvme_tcp::term::TermReqHdr;
use penstock_spec::nvme_tcp::{
    CapsuleCmdHdr, CapsuleRespHdr, CommonHdr, DigestFlags, Fes, H2cDataHdr, IcReq, PduType,
};
use proptest::prelude::*;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::conn::{Conn, ConnState, Exec, Sink};
use super::digest::digest;
use super::params::{C2hSuccess, TcpParams};
use super::req::{Dir, Req, ReqId, ReqKind, ReqState};
use crate::io_cmd::Transfer;
use penstock_reactor::net::PIECES_MAX;

/// Everything behind a connection: a store by LBA, with completions when the test wants them.
struct Store {
    params: TcpParams,
    data: BTreeMap<u64, Vec<u8>>,
    out: Vec<(ReqId, Box<Io>)>,
    starved: VecDeque<ReqId>,
    /// Whether there are buffers just now.
    has_buffers: bool,
    /// Buffers that are out.
    held: usize,
}

impl Store {
    fn new(params: TcpParams) -> Self {
        Self {
            params,
            data: BTreeMap::new(),
            out: Vec::new(),
            starved: VecDeque::new(),
            has_buffers: true,
            held: 0,
        }
    }
}

impl Sink for Store {
    type Link = ();

    fn judge(&mut self, (): &(), _id: ReqId, req: &mut Req, sqe: &Sqe) -> Result<Transfer, Status> {
        req.sqe = *sqe;
        req.kind = ReqKind::Io { chan: 0 };
        let code = if sqe.opc == NvmOpcode::FABRICS.0 { sqe.fctype() } else { sqe.opc };
        let sgl = sqe.sgl1.parse_tcp().map_err(|error| error.status().with_dnr());
        match DataTransfer::of(code) {
            DataTransfer::NONE => Ok(Transfer::None),
            DataTransfer::HOST_TO_CONTROLLER => Ok(Transfer::FromHost(sgl?)),
            DataTransfer::CONTROLLER_TO_HOST => Ok(Transfer::ToHost(sgl?)),
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    fn room(&self) -> u64 {
        u64::MAX
    }

    fn buffer(&mut self, len: u32) -> Option<Buf> {
        let buf = self.has_buffers.then(|| Buf::zeroed(len as usize).unwrap())?;
        self.held += 1;
        Some(buf)
    }

    fn starved(&mut self, id: ReqId) {
        self.starved.push_back(id);
    }

    fn io(&mut self) -> Box<Io> {
        Io::boxed()
    }

    fn recycle(&mut self, io: Box<Io>) {
        self.held -= io.data.segments();
    }

    fn shortened(&mut self, _bytes: u32) {}

    fn params(&self) -> &TcpParams {
        &self.params
    }

    fn execute(&mut self, (): &(), id: ReqId, req: &mut Req) -> Exec {
        if req.sqe.opc == NvmOpcode::FABRICS.0 {
            return Exec::Done(Status::SUCCESS);
        }
        let lba = u64::from(req.sqe.cdw10.get());
        match req.dir {
            Dir::FromHost => {
                self.data.insert(lba, req.data(0, req.len).unwrap().to_vec());
            }
            Dir::ToHost => {
                let len = req.len as usize;
                let stored = self.data.get(&lba).cloned().unwrap_or_default();
                let to = req.data_mut(0, req.len).unwrap();
                to.copy_from_slice(&[stored, vec![0; len]].concat()[..len]);
            }
            Dir::None => {}
        }
        let io = req.io.take().unwrap_or_else(Io::boxed);
        self.out.push((id, io));
        Exec::Started
    }
}

/// A connection with what is behind it.
struct Side {
    conn: Conn<()>,
    store: Store,
}

impl Side {
    fn new(params: TcpParams) -> Self {
        Self { conn: Conn::new(7, ()), store: Store::new(params) }
    }

    /// Bytes come in: straight into a buffer where there is one, as a group does it.
    fn receive(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if let Some(to) = self.conn.direct() {
            let len = to.len().min(rest.len());
            to[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            self.conn.direct_came(len, &mut self.store);
        }
        self.conn.receive(rest, &mut self.store);
    }

    /// At most `max` of the bytes to be sent.
    fn send(&mut self, max: usize) -> Vec<u8> {
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let (count, bytes) = self.conn.tx.gather(self.conn.slab(), &mut pieces);
        let mut out: Vec<u8> = pieces[..count].iter().flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(out.len(), bytes);
        out.truncate(max);
        self.conn.sent(out.len(), &mut self.store);
        out
    }

    fn send_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !self.conn.tx.is_empty() {
            all.extend(self.send(usize::MAX));
        }
        all
    }

    /// Completes the I/O at this place among those that are out.
    fn complete(&mut self, at: usize) {
        let (id, io) = self.store.out.swap_remove(at);
        if self.conn.io_back(id.slot, io, &mut self.store) {
            let req = self.conn.req_mut(id.slot).unwrap();
            let data = if req.dir == Dir::ToHost { req.len } else { 0 };
            self.conn.respond(id.slot, Status::SUCCESS, 0, data, &mut self.store);
        }
    }

    fn retry_starved(&mut self) {
        for _ in 0..self.store.starved.len() {
            let Some(id) = self.store.starved.pop_front() else { break };
            self.conn.retry(id.slot, &mut self.store);
            self.conn.resume(&mut self.store);
        }
    }
}

fn initialized(dgst: DigestFlags, params: TcpParams) -> Side {
    let mut side = Side::new(params);
    side.receive(IcReq::new(0, dgst, 1).as_bytes());
    side.send_all();
    let params = side.store.params.clone();
    side.conn.connected(4, true, 8192, &params);
    side
}

fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let pdo = if data.is_empty() { 0 } else { 72 };
    let plen = u32::try_from(72 + data.len()).unwrap();
    let hdr = CapsuleCmdHdr { ch: CommonHdr::new(PduType::CAPSULE_CMD, 0, 72, pdo, plen), sqe };
    [hdr.as_bytes(), data].concat()
}

fn write(cid: u16, sgl: SglDescriptor) -> Sqe {
    Sqe { cid: U16::new(cid), ..Sqe::new(NvmOpcode::WRITE.0, 1).with_sgl(sgl) }
}

fn h2c(cid: u16, ttag: u16, datao: u32, data: &[u8], flags: u8) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let hdr = H2cDataHdr {
        ch: CommonHdr::new(PduType::H2C_DATA, flags, 24, 24, 24 + len),
        cccid: U16::new(cid),
        ttag: U16::new(ttag),
        datao: U32::new(datao),
        datal: U32::new(len),
        ..H2cDataHdr::default()
    };
    [hdr.as_bytes(), data].concat()
}

/// The TermReq that answers `bytes`, as (FES, FEI, data).
fn term_req(side: &mut Side, bytes: &[u8]) -> (Fes, u32, Vec<u8>) {
    side.receive(bytes);
    assert_eq!(side.conn.state(), ConnState::Terminating);
    let sent = side.send_all();
    let (hdr, data) = TermReqHdr::ref_from_prefix(&sent).unwrap();
    assert_eq!((hdr.ch.pdu_type, hdr.ch.hlen), (PduType::C2H_TERM_REQ, 24));
    assert_eq!(hdr.ch.plen.get() as usize, sent.len());
    (hdr.fes(), hdr.fei.get(), data.to_vec())
}

#[test]
fn every_error_of_the_protocol_is_answered_by_its_term_req() {
    let ok = || initialized(DigestFlags(0), TcpParams::default());
    let r2t = || {
        let mut side = ok();
        side.receive(&capsule(write(5, SglDescriptor::transport(8192)), &[]));
        assert_eq!(side.send_all()[0], PduType::R2T.0);
        side
    };
    let with = |mut bytes: Vec<u8>, at: usize, value: u8| {
        bytes[at] = value;
        bytes
    };
    let ic = || IcReq::new(0, DigestFlags(0), 1).as_bytes().to_vec();
    let cmd = || capsule(Sqe::new(0, 1), &[]);
    let data = [0; 4096];
    let new = || Side::new(TcpParams::default());
    let invalid = Fes::INVALID_PDU_HEADER_FIELD;
    let range = Fes::DATA_TRANSFER_OUT_OF_RANGE;
    let cases: Vec<(&str, Side, Vec<u8>, Fes, u32)> = vec![
        ("a capsule before ICReq", new(), cmd(), Fes::PDU_SEQUENCE_ERROR, 0),
        ("a second ICReq", ok(), ic(), Fes::PDU_SEQUENCE_ERROR, 0),
        ("an unknown PFV", new(), with(ic(), 8, 1), invalid, 8),
        ("an HPDA over 31", new(), with(ic(), 10, 32), invalid, 10),
        ("an unknown type", ok(), with(cmd(), 0, 0x20), invalid, 0),
        ("a type of the other direction", ok(), with(cmd(), 0, PduType::CAPSULE_RESP.0), invalid, 0),
        ("a digest that was not agreed", ok(), with(cmd(), 1, 1), invalid, 1),
        ("a wrong HLEN", ok(), with(cmd(), 2, 71), invalid, 2),
        (
            "a PDO inside the header",
            ok(),
            with(capsule(write(1, SglDescriptor::in_capsule(0, 4096)), &data), 3, 8),
            invalid,
            3,
        ),
        ("a PLEN below the header", ok(), with(cmd(), 4, 8), invalid, 4),
        ("a capsule that is too long", ok(), with(with(cmd(), 3, 72), 6, 1), invalid, 4),
        ("H2CData without R2T", ok(), h2c(5, 0, 0, &data, 4), invalid, 10),
        ("H2CData of another command", r2t(), h2c(6, 3, 0, &data, 0), invalid, 8),
        ("H2CData out of order", r2t(), h2c(5, 3, 4096, &data, 4), range, 12),
        ("H2CData beyond the end", r2t(), h2c(5, 3, 0, &[0; 8196], 4), range, 12),
        ("LAST before the end", r2t(), h2c(5, 3, 0, &data, 4), invalid, 1),
        ("a DATAL unlike PLEN", r2t(), with(h2c(5, 3, 0, &data, 0), 17, 8), invalid, 16),
        ("a DATAO that is not aligned", r2t(), with(h2c(5, 3, 0, &data, 0), 12, 1), invalid, 12),
    ];
    for (name, mut side, bytes, fes, fei) in cases {
        let ttag = side.conn.slab().find(5);
        let bytes = match (ttag, bytes[0] == PduType::H2C_DATA.0) {
            (Some(ttag), true) => with(bytes, 10, u8::try_from(ttag).unwrap()),
            _ => bytes,
        };
        let (got_fes, got_fei, header) = term_req(&mut side, &bytes);
        assert_eq!((got_fes, got_fei), (fes, fei), "{name}");
        assert_eq!(header, bytes[..header.len()], "{name}");
        assert!(header.len() >= 8, "{name}");
        // What comes afterwards changes nothing.
        side.receive(&cmd());
        assert!(side.conn.tx.is_empty(), "{name}");
    }
}

#[test]
fn a_wrong_header_digest_is_fatal_and_the_term_req_tells_it() {
    let mut side = initialized(DigestFlags(0).with_hdgst(true), TcpParams::default());
    let hdr = CapsuleCmdHdr { ch: CommonHdr::new(PduType::CAPSULE_CMD, 1, 72, 0, 76), sqe: Sqe::new(0, 1) };
    let bytes = [hdr.as_bytes(), &[1, 2, 3, 4]].concat();
    let (fes, fei, _) = term_req(&mut side, &bytes);
    assert_eq!((fes, fei), (Fes::HEADER_DIGEST_ERROR, 0x0403_0201));
}

#[test]
fn a_wrong_data_digest_ends_the_command_and_not_the_connection() {
    let mut side = initialized(DigestFlags(0).with_ddgst(true), TcpParams::default());
    let sqe = write(9, SglDescriptor::in_capsule(0, 512));
    let ch = CommonHdr::new(PduType::CAPSULE_CMD, 2, 72, 72, 72 + 512 + 4);
    let mut bytes = CapsuleCmdHdr { ch, sqe }.as_bytes().to_vec();
    bytes.extend([3; 512]);
    let mut crc = digest(&[3; 512]);
    crc[0] ^= 1;
    bytes.extend(crc);
    side.receive(&bytes);
    let sent = side.send_all();
    let (response, _) = CapsuleRespHdr::ref_from_prefix(&sent).unwrap();
    assert!(response.cqe.status().is(Status::TRANSIENT_TRANSPORT_ERROR));
    assert_eq!((side.conn.state(), side.store.held), (ConnState::Open, 0));
    assert!(side.store.data.is_empty());
}

#[test]
fn a_command_identifier_in_use_is_refused_and_one_command_too_many_is_fatal() {
    let mut side = initialized(DigestFlags(0), TcpParams::default());
    for cid in 0..4 {
        side.receive(&capsule(Sqe { cid: U16::new(cid), ..Sqe::new(0, 1) }, &[]));
    }
    side.receive(&capsule(Sqe { cid: U16::new(2), ..Sqe::new(0, 1) }, &[]));
    let sent = side.send_all();
    let (response, rest) = CapsuleRespHdr::ref_from_prefix(&sent).unwrap();
    assert!(rest.is_empty() && response.cqe.status().is(Status::COMMAND_ID_CONFLICT));
    let (fes, _, _) = term_req(&mut side, &capsule(Sqe { cid: U16::new(4), ..Sqe::new(0, 1) }, &[]));
    assert_eq!(fes, Fes::PDU_SEQUENCE_ERROR);
    // What the bdev had comes back and is not answered.
    while !side.store.out.is_empty() {
        side.complete(0);
    }
    assert_eq!((side.conn.slab().used(), side.conn.out()), (0, 0));
}

#[test]
fn a_closed_connection_keeps_only_what_the_bdev_has() {
    let mut side = initialized(DigestFlags(0), TcpParams::default());
    side.receive(&capsule(write(1, SglDescriptor::in_capsule(0, 512)), &[1; 512]));
    side.receive(&capsule(write(2, SglDescriptor::transport(65536)), &[]));
    side.store.has_buffers = false;
    side.receive(&capsule(write(3, SglDescriptor::in_capsule(0, 512)), &[1; 512])[..172]);
    assert_eq!((side.conn.slab().used(), side.store.held), (3, 2));
    side.conn.close(&mut side.store);
    assert_eq!((side.conn.slab().used(), side.conn.out(), side.store.held), (1, 1, 1));
    side.complete(0);
    assert_eq!((side.conn.slab().used(), side.conn.out(), side.store.held), (0, 0, 0));
}

#[test]
fn requests_wait_for_buffers_and_the_socket_waits_with_a_capsule() {
    let mut side = initialized(DigestFlags(0), TcpParams::default());
    side.store.has_buffers = false;
    let read = Sqe::new(NvmOpcode::READ.0, 1).with_sgl(SglDescriptor::transport(4096));
    side.receive(&capsule(Sqe { cid: U16::new(1), ..read }, &[]));
    side.receive(&capsule(write(2, SglDescriptor::transport(65536)), &[]));
    assert!(side.conn.wants_bytes());
    let two = [
        capsule(write(3, SglDescriptor::in_capsule(0, 512)), &[1; 512]),
        capsule(Sqe { cid: U16::new(4), ..Sqe::new(0, 1) }, &[]),
    ];
    side.receive(&two.concat());
    assert!(!side.conn.wants_bytes());
    side.retry_starved();
    assert_eq!((side.store.starved.len(), side.store.out.len()), (3, 0));
    side.store.has_buffers = true;
    side.retry_starved();
    assert!(side.conn.wants_bytes());
    assert_eq!((side.store.starved.len(), side.store.out.len()), (0, 3));
    assert_eq!(
        side.conn.slab().find(2).map(|slot| side.conn.req_mut(slot).unwrap().state),
        Some(ReqState::TransferIn)
    );
}

#[test]
fn a_connection_holds_no_more_than_its_share_of_the_buffers() {
    let mut side = initialized(DigestFlags(0), TcpParams::default());
    let params = side.store.params.clone();
    side.conn.connected(16, true, 8192, &params);
    for cid in 0..12 {
        let read = Sqe::new(NvmOpcode::READ.0, 1).with_sgl(SglDescriptor::transport(1 << 20));
        side.receive(&capsule(Sqe { cid: U16::new(cid), ..read }, &[]));
    }
    assert_eq!((side.store.out.len(), side.store.held), (8, 8));
    side.complete(0);
    side.conn.retry_waiting(&mut side.store);
    assert_eq!(side.store.held, 8, "its data is not sent yet");
    assert!(side.conn.owed_by_peer());
    side.send_all();
    side.conn.retry_waiting(&mut side.store);
    assert_eq!((side.store.out.len(), side.store.held), (8, 8));
    for _ in 0..11 {
        side.complete(0);
        side.send_all();
        side.conn.retry_waiting(&mut side.store);
    }
    assert_eq!((side.conn.slab().used(), side.store.held, side.conn.has_waiting()), (0, 0, false));
}

#[test]
fn an_idle_connection_of_128_entries_costs_less_than_64_kib() {
    let mut side = Side::new(TcpParams::default());
    let params = side.store.params.clone();
    side.conn.connected(128, true, 8192, &params);
    let slots = 128 * (size_of::<Req>() + size_of::<u16>());
    let cids = 8 << 10;
    // Of a queue that was busy: headers of a turn (a C2HData and a response per command) and their items.
    let sending = 128 * (2 * 24 + 2 * 32);
    let all = size_of::<Conn<()>>() + slots + cids + sending;
    assert!(all < 64 << 10, "{all} bytes: {} a request", size_of::<Req>());
}

/// What the host does in one step of the property test.
#[derive(Debug, Clone)]
struct Step {
    lba: u64,
    blocks: u32,
    write: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..6_u64, prop_oneof![1..9_u32, 9..65_u32], any::<bool>());
    prop::collection::vec(step.prop_map(|(lba, blocks, write)| Step { lba, blocks, write }), 1..60)
}

/// Plays `steps` with our initiator as host; every read must give what was written last.
#[expect(clippy::too_many_lines, reason = "one run, told in order")]
fn play(steps: &[Step], dgst: DigestFlags, hpda: u8, success: C2hSuccess, seed: u64) {
    let mut rng = Rng::seeded(seed);
    let params = TcpParams { c2h_success: success, cpda: hpda, ..TcpParams::default() };
    let mut side = Side::new(params.clone());
    let nqn = "nqn.2026-11.io.penstock:t".parse().unwrap();
    let config = QpairConfig {
        depth: 16,
        qid: 1,
        cntlid: 1,
        hdgst: dgst.hdgst(),
        ddgst: dgst.ddgst(),
        hpda,
        in_capsule_max: 4096,
        ..QpairConfig::admin([1; 16], nqn, nqn)
    };
    let mut host: Qpair<Vec<u8>> = Qpair::new(config);
    let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut busy: BTreeMap<u64, Step> = BTreeMap::new();
    let mut todo: VecDeque<Step> = steps.iter().cloned().collect();
    let mut connected = false;
    for turn in 0_u32.. {
        assert!(turn < 200_000, "it goes on for ever: {busy:?}");
        if host.is_live() && !connected {
            connected = true;
            side.conn.connected(17, false, 4096, &params);
        }
        if connected && let Some(step) = todo.front().filter(|step| !busy.contains_key(&step.lba)).cloned() {
            let len = step.blocks * 512;
            let (sqe, transfer, payload) = if step.write {
                let data: Vec<u8> = (0..len).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
                model.insert(step.lba, data.clone());
                (command::write(1, step.lba, step.blocks, false), HostTransfer::Write(len), data)
            } else {
                (command::read(1, step.lba, step.blocks), HostTransfer::Read(len), vec![0; len as usize])
            };
            if host.submit(sqe, transfer, step.lba, Some(payload)).is_ok() {
                busy.insert(step.lba, step);
                todo.pop_front();
            }
        }
        let len = 1 + usize::try_from(rng.next_u64() % 9000).unwrap();
        let mut bytes: Vec<u8> = host.tx_slices().flat_map(<[u8]>::to_vec).take(len).collect();
        if !side.conn.wants_bytes() {
            bytes.clear();
        }
        side.receive(&bytes);
        host.tx_consume(bytes.len());
        side.store.has_buffers = !rng.next_u64().is_multiple_of(4);
        side.retry_starved();
        if !side.store.out.is_empty() && rng.next_u64().is_multiple_of(2) {
            side.complete(usize::try_from(rng.next_u64()).unwrap() % side.store.out.len());
        }
        let back = side.send(1 + usize::try_from(rng.next_u64() % 9000).unwrap());
        host.recv(&back).unwrap();
        while let Some(done) = host.poll() {
            assert!(done.status().is_success());
            let step = busy.remove(&done.user).unwrap();
            if !step.write {
                let len = step.blocks as usize * 512;
                let want = [model.get(&step.lba).cloned().unwrap_or_default(), vec![0; len]].concat();
                assert!(done.payload.unwrap() == want[..len], "lba {} differs", step.lba);
            }
        }
        if todo.is_empty() && busy.is_empty() {
            break;
        }
    }
    assert!(side.conn.error().is_none());
    while !side.conn.tx.is_empty() {
        side.send(usize::MAX);
    }
    assert_eq!((side.conn.slab().used(), side.store.held, side.conn.r2t_left()), (0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn data_survive_any_fragmentation_order_and_lack_of_buffers(
        steps in steps(), dgst in 0..4_u8, hpda in prop_oneof![Just(0_u8), Just(7), Just(31)],
        success in any::<bool>(), seed in any::<u64>(),
    ) {
        let success = if success { C2hSuccess::NoFlowControl } else { C2hSuccess::Never };
        play(&steps, DigestFlags(dgst), hpda, success, seed);
    }

    #[test]
    fn rubbish_never_panics_and_ends_in_at_most_one_term_req(
        bytes in prop::collection::vec(any::<u8>(), 0..2000), begin in any::<bool>(), cut in 1..500_usize, dgst in 0..4_u8,
        types in prop::collection::vec((0..10_u8, 0..8_u8, any::<u32>()), 0..20),
    ) {
        let mut side = Side::new(TcpParams::default());
        if begin {
            side = initialized(DigestFlags(dgst), TcpParams::default());
        }
        let mut all = Vec::new();
        for (ty, flags, word) in types {
            let ty = PduType(ty);
            let ch = CommonHdr::new(ty, flags, ty.hlen(), 72, u32::from(ty.hlen()) + word % 600);
            all.extend(ch.as_bytes());
            all.extend(bytes.iter().take(usize::from(ty.hlen()).saturating_sub(8)));
        }
        all.extend(&bytes);
        for part in all.chunks(cut) {
            side.receive(part);
            if !side.store.out.is_empty() {
                side.complete(0);
            }
        }
        side.send_all();
        side.conn.close(&mut side.store);
        while !side.store.out.is_empty() {
            side.complete(0);
        }
        prop_assert_eq!((side.conn.slab().used(), side.store.held), (0, 0));
    }
}
