//! Goal: after a queue pair is live, commands cost no heap allocation, whichever way their data goes.
//! Method: a counting allocator, and a target of fixed buffers that answers reads by C2HData with SUCCESS,
//! small writes at once and large ones after an R2T.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "the target of a test makes bytes of small numbers and may panic"
)]

use penstock_nvme_tcp::{Qpair, QpairConfig, Transfer, command};
use penstock_spec::nvme::{Cqe, Status};
use penstock_spec::nvme_tcp::header::PduFlags;
use penstock_spec::nvme_tcp::{
    C2hDataHdr, CapsuleCmdHdr, CapsuleRespHdr, CommonHdr, DigestFlags, IcResp, PduType, R2tHdr,
};
use penstock_spec::nvmf::connect::ConnectResult;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

const LEN: usize = 4096;
const DEPTH: u16 = 32;

/// A target of one PDU at a time; `out` is what it answers.
struct Target {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Target {
    fn put(&mut self, ty: PduType, flags: u8, psh: &[u8], data: usize) {
        let plen = psh.len() + data;
        let pdo = if data > 0 { psh.len() } else { 0 };
        let ch = CommonHdr::new(ty, flags, psh.len() as u8, pdo as u8, plen as u32);
        self.output.extend_from_slice(ch.as_bytes());
        self.output.extend_from_slice(&psh[8..]);
        self.output.resize(self.output.len() + data, 0x5a);
    }

    fn respond(&mut self, cid: u16, dw0: u32) {
        let cqe = Cqe::new(cid, 0, Status::SUCCESS).with_dw0(dw0);
        let hdr = CapsuleRespHdr { cqe, ..CapsuleRespHdr::default() };
        self.put(PduType::CAPSULE_RESP, 0, hdr.as_bytes(), 0);
    }

    fn answer(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while !rest.is_empty() {
            let (ch, _) = CommonHdr::ref_from_prefix(rest).unwrap();
            let (pdu, next) = rest.split_at(ch.plen.get() as usize);
            rest = next;
            if ch.pdu_type == PduType::IC_REQ {
                self.output.extend_from_slice(IcResp::new(0, DigestFlags(0), 1 << 20).as_bytes());
            } else if ch.pdu_type == PduType::H2C_DATA {
                self.respond(u16::from_le_bytes([pdu[8], pdu[9]]), 0);
            } else {
                let sqe = CapsuleCmdHdr::ref_from_prefix(pdu).unwrap().0.sqe;
                self.command(sqe.opc, sqe.cid, pdu.len() > 72);
            }
        }
        self.input = input;
        self.input.clear();
    }

    fn command(&mut self, opc: u8, cid: U16, in_capsule: bool) {
        let len = U32::new(LEN as u32);
        match (opc, in_capsule) {
            (0x7f, _) => self.respond(cid.get(), ConnectResult(0).with_cntlid(1).0),
            (2, _) => {
                let hdr = C2hDataHdr { cccid: cid, datal: len, ..C2hDataHdr::default() };
                let flags = PduFlags::LAST | PduFlags::SUCCESS;
                self.put(PduType::C2H_DATA, flags, hdr.as_bytes(), LEN);
            }
            (1, false) => {
                let hdr = R2tHdr { cccid: cid, r2tl: len, ..R2tHdr::default() };
                self.put(PduType::R2T, 0, hdr.as_bytes(), 0);
            }
            _ => self.respond(cid.get(), 0),
        }
    }
}

fn turn(qpair: &mut Qpair<Vec<u8>>, target: &mut Target) {
    for piece in qpair.tx_slices() {
        target.input.extend_from_slice(piece);
    }
    qpair.tx_consume(target.input.len());
    target.answer();
    qpair.recv(&target.output).unwrap();
    target.output.clear();
}

/// Runs `turns` of a full queue each; returns the allocations.
fn run(turns: u64, in_capsule_max: u32, write: bool) -> u64 {
    let nqn = "nqn.2026-11.io.penstock:t".parse().unwrap();
    let admin = QpairConfig::admin([1; 16], nqn, nqn);
    let mut qpair = Qpair::new(QpairConfig { qid: 1, depth: DEPTH, in_capsule_max, ..admin });
    let room = usize::from(DEPTH) * (LEN + 128);
    let mut target = Target { input: Vec::with_capacity(room), output: Vec::with_capacity(room) };
    while !qpair.is_live() {
        turn(&mut qpair, &mut target);
    }
    let mut payloads: Vec<Vec<u8>> = (0..DEPTH).map(|_| vec![0; LEN]).collect();
    let before = penstock_allocations::count();
    for i in 0..turns {
        while let Some(payload) = payloads.pop() {
            let (sqe, transfer) = if write {
                (command::write(1, i, 8, false), Transfer::Write(LEN as u32))
            } else {
                (command::read(1, i, 8), Transfer::Read(LEN as u32))
            };
            qpair.submit(sqe, transfer, i, Some(payload)).unwrap();
        }
        while qpair.outstanding() > 0 {
            turn(&mut qpair, &mut target);
            while let Some(done) = qpair.poll() {
                assert!(done.status().is_success());
                payloads.extend(done.payload);
            }
        }
    }
    penstock_allocations::count() - before
}

#[test]
fn reads_allocate_nothing() {
    assert_eq!(run(2_000, 0, false), 0);
}

#[test]
fn writes_in_the_capsule_allocate_nothing() {
    assert_eq!(run(2_000, 8192, true), 0);
}

#[test]
fn writes_after_an_r2t_allocate_nothing() {
    assert_eq!(run(2_000, 0, true), 0);
}
