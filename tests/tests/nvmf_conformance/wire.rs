//! The client: PDUs as bytes, with whatever digests and alignment were agreed on, and commands on top of them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::crc::digest;

/// A target answers within this, or a test fails.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

pub(crate) const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:33333333-4444-5555-6666-777777777777";
pub(crate) const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// PDU types (TCP Transport, figure "PDU Types").
pub(crate) const IC_REQ: u8 = 0x00;
pub(crate) const IC_RESP: u8 = 0x01;
pub(crate) const H2C_TERM_REQ: u8 = 0x02;
pub(crate) const C2H_TERM_REQ: u8 = 0x03;
pub(crate) const CAPSULE_CMD: u8 = 0x04;
pub(crate) const CAPSULE_RESP: u8 = 0x05;
pub(crate) const H2C_DATA: u8 = 0x06;
pub(crate) const C2H_DATA: u8 = 0x07;
pub(crate) const R2T: u8 = 0x09;

/// FLAGS of PDUs.
pub(crate) const HDGST: u8 = 1;
pub(crate) const DDGST: u8 = 2;
pub(crate) const LAST: u8 = 4;
pub(crate) const SUCCESS: u8 = 8;

/// SGL identifiers: type and sub type.
pub(crate) const SGL_IN_CAPSULE: u8 = 0x01;
pub(crate) const SGL_TRANSPORT: u8 = 0x5a;

/// Writes `bytes` at `at`.
pub(crate) fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A common header.
pub(crate) fn header(kind: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> Vec<u8> {
    let mut bytes = vec![kind, flags, hlen, pdo];
    bytes.extend(plen.to_le_bytes());
    bytes
}

/// An ICReq: PFV, HPDA, DGST, MAXR2T.
pub(crate) fn ic_req(pfv: u16, hpda: u8, dgst: u8, maxr2t: u32) -> Vec<u8> {
    let mut bytes = header(IC_REQ, 0, 128, 0, 128);
    bytes.resize(128, 0);
    put(&mut bytes, 8, &pfv.to_le_bytes());
    bytes[10] = hpda;
    bytes[11] = dgst;
    put(&mut bytes, 12, &maxr2t.to_le_bytes());
    bytes
}

/// A submission queue entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sqe(pub(crate) [u8; 64]);

impl Sqe {
    /// Of this opcode, with an SGL of no data.
    pub(crate) fn new(opcode: u8) -> Self {
        let mut bytes = [0; 64];
        (bytes[0], bytes[1]) = (opcode, 0x40);
        Self(bytes).sgl(SGL_TRANSPORT, 0, 0)
    }

    /// A Fabrics command.
    pub(crate) fn fabrics(kind: u8) -> Self {
        let mut sqe = Self::new(0x7f);
        sqe.0[4] = kind;
        sqe
    }

    pub(crate) fn nsid(self, nsid: u32) -> Self {
        self.dw(1, nsid)
    }

    /// Command dword `index`.
    pub(crate) fn dw(mut self, index: usize, value: u32) -> Self {
        put(&mut self.0, index * 4, &value.to_le_bytes());
        self
    }

    pub(crate) fn byte(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }

    pub(crate) fn sgl(mut self, id: u8, addr: u64, len: u32) -> Self {
        put(&mut self.0, 24, &addr.to_le_bytes());
        put(&mut self.0, 32, &len.to_le_bytes());
        put(&mut self.0, 36, &[0, 0, 0, id]);
        self
    }

    /// Data of this length by PDUs of their own.
    pub(crate) fn moves(self, len: usize) -> Self {
        self.sgl(SGL_TRANSPORT, 0, u32::try_from(len).unwrap_or(u32::MAX))
    }

    /// Data of this length in the capsule.
    pub(crate) fn carries(self, len: usize) -> Self {
        self.sgl(SGL_IN_CAPSULE, 0, u32::try_from(len).unwrap_or(u32::MAX))
    }

    /// A command for `blocks` blocks from `lba` on.
    pub(crate) fn blocks(opcode: u8, lba: u64, blocks: u32) -> Self {
        let bytes = lba.to_le_bytes();
        Self::new(opcode)
            .nsid(1)
            .dw(10, u32_at(&bytes, 0))
            .dw(11, u32_at(&bytes, 4))
            .dw(12, blocks.wrapping_sub(1) & 0xffff)
    }
}

/// A received PDU, its digests checked and taken off.
#[derive(Clone, Debug)]
pub(crate) struct Pdu {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) pdo: u8,
    /// HLEN bytes.
    pub(crate) head: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

/// How a command ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// SCT and SC: `sct << 8 | sc`.
    pub(crate) status: u16,
    /// Do Not Retry.
    pub(crate) dnr: bool,
    pub(crate) dw0: u32,
    pub(crate) dw1: u32,
    pub(crate) sqhd: u16,
    pub(crate) cid: u16,
    pub(crate) data: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    hdgst: bool,
    ddgst: bool,
    cid: u16,
    /// Bytes of one H2CData at most.
    pub(crate) piece: usize,
}

impl Wire {
    /// Connects and says nothing.
    pub(crate) fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream, hdgst: false, ddgst: false, cid: 0, piece: 4096 })
    }

    /// Exchanges ICReq and ICResp.
    pub(crate) fn initialized(port: u16) -> Result<Self> {
        Ok(Self::initialized_with(port, 0, 0)?.0)
    }

    /// The same, asking for an alignment and digests; and the ICResp.
    pub(crate) fn initialized_with(port: u16, hpda: u8, dgst: u8) -> Result<(Self, Vec<u8>)> {
        let mut wire = Self::open(port)?;
        wire.send(&ic_req(0, hpda, dgst, 0))?;
        let answer = wire.receive()?;
        ensure!(answer.kind == IC_RESP && answer.head.len() == 128, "ICReq was answered with {answer:?}");
        (wire.hdgst, wire.ddgst) = (answer.head[11] & 1 != 0, answer.head[11] & 2 != 0);
        Ok((wire, answer.head))
    }

    /// The admin queue of an enabled controller, and the controller's identifier.
    pub(crate) fn admin(port: u16, nqn: &str) -> Result<(Self, u16)> {
        let mut wire = Self::initialized(port)?;
        let cntlid = wire.connect(nqn, 0, 0xffff)?;
        wire.enable()?;
        Ok((wire, cntlid))
    }

    /// An admin and an I/O queue.
    pub(crate) fn host(port: u16, nqn: &str) -> Result<(Self, Self)> {
        let (admin, cntlid) = Self::admin(port, nqn)?;
        let mut io = Self::initialized(port)?;
        io.connect(nqn, 1, cntlid)?;
        Ok((admin, io))
    }

    /// A successful Connect, of 32 entries for an admin queue and 128 for others.
    pub(crate) fn connect(&mut self, nqn: &str, qid: u16, cntlid: u16) -> Result<u16> {
        let answer = self.execute(connect_sqe(qid), &connect_data(nqn, HOST_NQN, cntlid))?;
        ensure!(answer.status == 0, "Connect of queue {qid}: {answer:x?}");
        Ok(u16::try_from(answer.dw0 & 0xffff)?)
    }

    /// Sets CC.EN and waits for CSTS.RDY.
    pub(crate) fn enable(&mut self) -> Result<()> {
        let answer = self.execute(property_set(0x14, 0x0046_0001), &[])?;
        ensure!(answer.status == 0, "enabling: {answer:x?}");
        penstock_tests::wait::until(ANSWER_LIMIT, || {
            Ok((self.execute(property_get(0x1c, false), &[])?.dw0 & 1 == 1).then_some(()))
        })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the target takes no bytes")
    }

    /// Receives a PDU; lengths and digests must be right.
    pub(crate) fn receive(&mut self) -> Result<Pdu> {
        let mut bytes = vec![0; 8];
        self.stream.read_exact(&mut bytes).context("the target sends no PDU")?;
        let (kind, flags, hlen, pdo, plen) = (bytes[0], bytes[1], bytes[2], bytes[3], u32_at(&bytes, 4));
        let (hlen, plen) = (usize::from(hlen), usize::try_from(plen)?);
        ensure!((8..=4 << 20).contains(&plen) && hlen >= 8 && hlen <= plen, "a PDU with header {bytes:x?}");
        bytes.resize(plen, 0);
        self.stream.read_exact(&mut bytes[8..])?;
        let digested = !matches!(kind, IC_RESP | C2H_TERM_REQ);
        let mut end = hlen;
        if digested && self.hdgst {
            ensure!(
                flags & HDGST != 0 && bytes[hlen..hlen + 4] == digest(&bytes[..hlen]),
                "header digest: {bytes:x?}"
            );
            end += 4;
        }
        let from = if kind == C2H_DATA { usize::from(pdo) } else { end };
        ensure!(from >= end && from <= plen, "PDO {pdo} of {plen} bytes");
        let mut data = bytes[from..].to_vec();
        if kind == C2H_DATA && self.ddgst {
            let received = data.split_off(data.len() - 4);
            ensure!(flags & DDGST != 0 && received == digest(&data), "data digest");
        }
        bytes.truncate(hlen);
        Ok(Pdu { kind, flags, pdo, head: bytes, data })
    }

    /// The next command identifier.
    pub(crate) fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    /// A capsule with `data` in it, as bytes.
    pub(crate) fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        self.pdu(CAPSULE_CMD, 0, &sqe.0, data)
    }

    /// An H2CData, as bytes.
    pub(crate) fn h2c_data(&self, cccid: u16, ttag: u16, datao: usize, data: &[u8], flags: u8) -> Vec<u8> {
        let mut body = [0; 16];
        put(&mut body, 0, &cccid.to_le_bytes());
        put(&mut body, 2, &ttag.to_le_bytes());
        put(&mut body, 4, &u32::try_from(datao).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut body, 8, &u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.pdu(H2C_DATA, flags, &body, data)
    }

    fn pdu(&self, kind: u8, flags: u8, body: &[u8], data: &[u8]) -> Vec<u8> {
        let hlen = 8 + body.len();
        let end = hlen + if self.hdgst { 4 } else { 0 };
        let ddgst = self.ddgst && !data.is_empty();
        let plen = end + data.len() + if ddgst { 4 } else { 0 };
        let flags = flags | u8::from(self.hdgst) | if ddgst { DDGST } else { 0 };
        let pdo = if data.is_empty() { 0 } else { end };
        let byte = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        let mut bytes = header(kind, flags, byte(hlen), byte(pdo), u32::try_from(plen).unwrap_or(u32::MAX));
        bytes.extend(body);
        if self.hdgst {
            bytes.extend(digest(&bytes));
        }
        bytes.extend(data);
        if ddgst {
            bytes.extend(digest(data));
        }
        bytes
    }

    /// Sends a command with a fresh identifier, which it returns.
    pub(crate) fn submit(&mut self, sqe: Sqe, data: &[u8]) -> Result<u16> {
        let cid = self.next_cid();
        let mut sqe = sqe;
        put(&mut sqe.0, 2, &cid.to_le_bytes());
        let capsule = self.capsule(sqe, data);
        self.send(&capsule)?;
        Ok(cid)
    }

    /// Executes a command with `data` in its capsule.
    pub(crate) fn execute(&mut self, sqe: Sqe, data: &[u8]) -> Result<Answer> {
        let cid = self.submit(sqe, data)?;
        self.answer_to(cid, &[])
    }

    /// Executes a command whose data the target asks for.
    pub(crate) fn execute_by_r2t(&mut self, sqe: Sqe, data: &[u8]) -> Result<Answer> {
        let cid = self.submit(sqe, &[])?;
        self.answer_to(cid, data)
    }

    /// Waits for the end of the only command under way: gathers its data, and gives what R2Ts ask for.
    pub(crate) fn answer_to(&mut self, cid: u16, out: &[u8]) -> Result<Answer> {
        let mut data = Vec::new();
        loop {
            let pdu = self.receive()?;
            match pdu.kind {
                CAPSULE_RESP => {
                    let answer = Answer { data, ..completion(&pdu) };
                    ensure!(answer.cid == cid, "command {cid} was answered as {}", answer.cid);
                    return Ok(answer);
                }
                C2H_DATA => {
                    let (at, len) = (u32_at(&pdu.head, 12), u32_at(&pdu.head, 16));
                    ensure!(u16_at(&pdu.head, 8) == cid, "data of another command");
                    ensure!(usize::try_from(at)? == data.len(), "data at {at} behind {} bytes", data.len());
                    ensure!(usize::try_from(len)? == pdu.data.len(), "DATAL {len} of {}", pdu.data.len());
                    data.extend(pdu.data);
                    if pdu.flags & SUCCESS != 0 {
                        ensure!(pdu.flags & LAST != 0, "SUCCESS without LAST");
                        return Ok(Answer { cid, data, ..Answer::default() });
                    }
                }
                R2T => self.give(&pdu, cid, out)?,
                kind => bail!("PDU type {kind:#x}: {pdu:x?}"),
            }
        }
    }

    /// Sends what an R2T asks for.
    fn give(&mut self, r2t: &Pdu, cid: u16, out: &[u8]) -> Result<()> {
        let (cccid, ttag) = (u16_at(&r2t.head, 8), u16_at(&r2t.head, 10));
        let (at, len) = (usize::try_from(u32_at(&r2t.head, 12))?, usize::try_from(u32_at(&r2t.head, 16))?);
        ensure!(cccid == cid && len > 0 && at + len <= out.len(), "an R2T for {at}+{len} of command {cccid}");
        let mut bytes = Vec::new();
        for from in (at..at + len).step_by(self.piece) {
            let to = (from + self.piece).min(at + len);
            let last = if to == at + len { LAST } else { 0 };
            bytes.extend(self.h2c_data(cid, ttag, from, &out[from..to], last));
        }
        self.send(&bytes)
    }

    /// The next PDU must be this TermReq, about `header`, and the end of the connection must follow.
    pub(crate) fn ends_with(&mut self, fes: u16, fei: Option<u32>, header: &[u8]) -> Result<()> {
        let pdu = self.receive()?;
        ensure!(pdu.kind == C2H_TERM_REQ && pdu.head.len() == 24, "no TermReq but {pdu:x?}");
        ensure!(u16_at(&pdu.head, 8) == fes, "FES {} instead of {fes}", u16_at(&pdu.head, 8));
        if let Some(fei) = fei {
            ensure!(u32_at(&pdu.head, 10) == fei, "FEI {} instead of {fei}", u32_at(&pdu.head, 10));
        }
        ensure!(header.starts_with(&pdu.data) && pdu.data.len() >= 8, "it is about {:x?}", pdu.data);
        self.is_closed()
    }

    /// Nothing more comes, and the connection is at its end.
    pub(crate) fn is_closed(&mut self) -> Result<()> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            other => bail!("the connection is not closed: {other:?} {byte:x?}"),
        }
    }
}

/// A response capsule's completion.
pub(crate) fn completion(pdu: &Pdu) -> Answer {
    let status = u16_at(&pdu.head, 22);
    Answer {
        status: status >> 1 & 0x7ff,
        dnr: status & 0x8000 != 0,
        dw0: u32_at(&pdu.head, 8),
        dw1: u32_at(&pdu.head, 12),
        sqhd: u16_at(&pdu.head, 16),
        cid: u16_at(&pdu.head, 20),
        data: Vec::new(),
    }
}

/// A Connect with its data in the capsule.
pub(crate) fn connect_sqe(qid: u16) -> Sqe {
    let entries: u32 = if qid == 0 { 32 } else { 128 };
    let kato_ms = if qid == 0 { 60_000 } else { 0 };
    Sqe::fabrics(1).carries(1024).dw(10, u32::from(qid) << 16).dw(11, entries - 1).dw(12, kato_ms)
}

pub(crate) fn connect_data(nqn: &str, host: &str, cntlid: u16) -> Vec<u8> {
    let mut data = vec![0; 1024];
    put(&mut data, 0, b"conformance-test");
    put(&mut data, 16, &cntlid.to_le_bytes());
    put(&mut data, 256, nqn.as_bytes());
    put(&mut data, 512, host.as_bytes());
    data
}

pub(crate) fn property_get(offset: u32, eight: bool) -> Sqe {
    Sqe::fabrics(4).dw(10, u32::from(eight)).dw(11, offset)
}

pub(crate) fn property_set(offset: u32, value: u32) -> Sqe {
    Sqe::fabrics(0).dw(11, offset).dw(12, value)
}
