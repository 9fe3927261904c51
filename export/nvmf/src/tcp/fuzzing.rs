//! What the fuzz target does with a hostile host's bytes; the corpus is replayed by the ordinary tests.

use std::collections::VecDeque;
use std::io::IoSlice;

use penstock_bdev::Io;
use penstock_reactor::mem::Buf;
use penstock_spec::nvme::opcode::DataTransfer;
use penstock_spec::nvme::sgl::SglDescriptor;
use penstock_spec::nvme::{NvmOpcode, Sqe, Status};
use penstock_spec::nvme_tcp::{
    CapsuleCmdHdr, CommonHdr, DigestFlags, H2cDataHdr, IcReq, PduFlags, PduType, data_offset,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::conn::{Conn, ConnState, Exec, Sink};
use super::digest::digest;
use super::params::TcpParams;
use super::req::{Dir, Req, ReqId, ReqKind, ReqState};
use crate::io_cmd::Transfer;
use penstock_reactor::net::PIECES_MAX;

/// Entries of the queue: few, so that it is full often.
const DEPTH: u16 = 4;
/// Bytes in buffers at once, so that they are short often.
const ROOM_BYTES: u64 = 64 << 10;

/// What is behind the connection: every command is an I/O that ends when the program says so.
struct Behind {
    params: TcpParams,
    out: Vec<(ReqId, Box<Io>)>,
    starved: VecDeque<ReqId>,
    has_buffers: bool,
    held_bytes: u64,
}

impl Sink for Behind {
    type Link = ();

    fn judge(&mut self, (): &(), _id: ReqId, req: &mut Req, sqe: &Sqe) -> Result<Transfer, Status> {
        req.kind = ReqKind::Io { chan: 0 };
        let sgl = sqe.sgl1.parse_tcp().map_err(|error| error.status().with_dnr());
        let transfer = match DataTransfer::of(sqe.opc) {
            DataTransfer::NONE => Transfer::None,
            DataTransfer::HOST_TO_CONTROLLER => Transfer::FromHost(sgl?),
            DataTransfer::CONTROLLER_TO_HOST => Transfer::ToHost(sgl?),
            _ => return Err(Status::INVALID_OPCODE.with_dnr()),
        };
        if transfer.len_bytes() > self.params.io_bytes_max {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(transfer)
    }

    fn room(&self) -> u64 {
        ROOM_BYTES.saturating_sub(self.held_bytes)
    }

    fn buffer(&mut self, len: u32) -> Option<Buf> {
        if !self.has_buffers || self.held_bytes + u64::from(len) > ROOM_BYTES {
            return None;
        }
        let buf = Buf::alloc(usize::try_from(len).ok()?)?;
        self.held_bytes += u64::from(len);
        Some(buf)
    }

    fn starved(&mut self, id: ReqId) {
        self.starved.push_back(id);
    }

    fn io(&mut self) -> Box<Io> {
        Io::boxed()
    }

    fn recycle(&mut self, io: Box<Io>) {
        let len = u64::try_from(io.data.len_bytes()).unwrap_or(u64::MAX);
        assert!(len <= self.held_bytes, "a buffer comes back once");
        self.held_bytes -= len;
    }

    fn shortened(&mut self, bytes: u32) {
        self.held_bytes -= u64::from(bytes);
    }

    fn params(&self) -> &TcpParams {
        &self.params
    }

    fn execute(&mut self, (): &(), id: ReqId, req: &mut Req) -> Exec {
        if req.len > 0 {
            assert!(req.data(0, req.len).is_some(), "all data is there");
        }
        let io = req.io.take().unwrap_or_else(Io::boxed);
        self.out.push((id, io));
        Exec::Started
    }
}

struct Run {
    conn: Conn<()>,
    behind: Behind,
    hdgst: bool,
    ddgst: bool,
}

/// A connection, brought up if the first byte says so, then a program: each step is one byte of what to do and what it
/// needs. Whatever comes: what is taken in is answered or the connection is closed, and every buffer comes back.
pub fn connection(bytes: &[u8]) {
    let Some(([setup, hpda], mut program)) = bytes.split_first_chunk::<2>() else { return };
    let params = TcpParams { io_bytes_max: 32 << 10, cpda: setup >> 5, ..TcpParams::default() };
    let behind =
        Behind { params, out: Vec::new(), starved: VecDeque::new(), has_buffers: true, held_bytes: 0 };
    let (hdgst, ddgst) = (setup & 2 != 0, setup & 4 != 0);
    let mut run = Run { conn: Conn::new(1, ()), behind, hdgst, ddgst };
    if setup & 1 != 0 {
        let digests = DigestFlags(0).with_hdgst(hdgst).with_ddgst(ddgst);
        run.receive(IcReq::new(hpda & 31, digests, 1).as_bytes());
        let params = run.behind.params.clone();
        run.conn.connected(DEPTH, setup & 8 != 0, 8192, &params);
    }
    while let Some((&step, rest)) = program.split_first() {
        let n = usize::from(step >> 3);
        program = rest;
        match step & 7 {
            0 => {
                let (now, rest) = program.split_at(n.min(program.len()));
                program = rest;
                run.receive(now);
            }
            1 | 2 => {
                let (args, rest) = program.split_at(4.min(program.len()));
                program = rest;
                let mut arg = [0; 4];
                arg.iter_mut().zip(args).for_each(|(to, from)| *to = *from);
                let pdu = if step & 7 == 1 { run.capsule(step >> 3, arg) } else { run.data(step >> 3, arg) };
                // In two pieces, so that data goes straight into its buffer as well.
                let (first, second) = pdu.split_at(usize::from(arg[3]).min(pdu.len()));
                run.receive(first);
                run.receive(second);
            }
            3 => run.send(n * 64),
            4 => run.step(|run| run.complete(n)),
            5 => run.behind.has_buffers ^= true,
            6 => run.step(Run::retry),
            _ => run.step(|run| run.conn.retry_waiting(&mut run.behind)),
        }
    }
    run.end();
}

impl Run {
    /// Does something; where a TermReq is queued already, nothing comes after it.
    fn step(&mut self, step: impl FnOnce(&mut Self)) {
        let over = self.conn.state() == ConnState::Terminating;
        let before = self.conn.tx.hdr_bytes();
        step(self);
        assert!(!over || self.conn.tx.hdr_bytes() == before, "a TermReq is the last thing sent");
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.step(|run| run.take_in(bytes));
    }

    fn take_in(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if let Some(to) = self.conn.direct() {
            let (now, later) = rest.split_at(to.len().min(rest.len()));
            if let Some(to) = to.get_mut(..now.len()) {
                to.copy_from_slice(now);
            }
            rest = later;
            self.conn.direct_came(now.len(), &mut self.behind);
        }
        self.conn.receive(rest, &mut self.behind);
    }

    /// A command whose frame is right, with digests.
    fn capsule(&self, kind: u8, [cid, len, off, _]: [u8; 4]) -> Vec<u8> {
        let len = u32::from(len) * 128;
        let opcode = [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::WRITE, NvmOpcode::FLUSH];
        let opcode = opcode.get(usize::from(kind & 3)).copied().unwrap_or(NvmOpcode::FLUSH);
        let in_capsule = kind & 3 == 2;
        let mut sqe = Sqe { opc: opcode.0, cid: U16::new(u16::from(cid & 7)), ..Sqe::default() };
        // Some data begin behind the capsule's first byte; some of those end behind its last.
        let (unused, lead) = (u32::from(off & 3), u32::from(off >> 2 & 3));
        sqe.sgl1 = if in_capsule {
            SglDescriptor::in_capsule(u64::from(unused), len)
        } else {
            SglDescriptor::transport(len)
        };
        let lead = if lead == 0 { unused } else { 0 };
        let data = vec![cid; if in_capsule { usize::try_from(len + lead).unwrap_or(0) } else { 0 }];
        self.pdu(PduType::CAPSULE_CMD, 72, 0, |ch| CapsuleCmdHdr { ch, sqe }.as_bytes().to_vec(), &data)
    }

    /// Data for a slot, right or not.
    fn data(&self, kind: u8, [slot, len, off, _]: [u8; 4]) -> Vec<u8> {
        let slot = u16::from(slot & 7);
        let (off, len) = (u32::from(off) * 128, u32::from(len) * 128);
        let known = self.conn.slab().get(slot).map_or((0, 0), |req| (req.cid, req.have));
        let (cid, off) = if kind & 1 == 0 { known } else { (slot, off) };
        let flags = if kind & 2 == 0 { PduFlags::LAST } else { 0 };
        let data = vec![kind; usize::try_from(len).unwrap_or(0)];
        let header = |ch| {
            let (cccid, ttag) = (U16::new(cid), U16::new(slot));
            let (datao, datal) = (U32::new(off), U32::new(len));
            H2cDataHdr { ch, cccid, ttag, datao, datal, ..H2cDataHdr::default() }.as_bytes().to_vec()
        };
        self.pdu(PduType::H2C_DATA, 24, flags, header, &data)
    }

    fn pdu(
        &self,
        pdu_type: PduType,
        hlen: u8,
        flags: u8,
        header: impl Fn(CommonHdr) -> Vec<u8>,
        data: &[u8],
    ) -> Vec<u8> {
        let (hdgst, ddgst) = (self.hdgst, self.ddgst && !data.is_empty());
        let flags = flags | if hdgst { PduFlags::HDGST } else { 0 } | if ddgst { PduFlags::DDGST } else { 0 };
        let psh_end = hlen + if hdgst { 4 } else { 0 };
        let off =
            if data.is_empty() { psh_end.into() } else { data_offset(psh_end, self.behind.params.cpda) };
        let len = u32::try_from(data.len()).unwrap_or(0);
        let pdo = if data.is_empty() { 0 } else { u8::try_from(off).unwrap_or(0) };
        let plen = off + len + if ddgst { 4 } else { 0 };
        let mut pdu = header(CommonHdr::new(pdu_type, flags, hlen, pdo, plen));
        if hdgst {
            pdu.extend(digest(&pdu.clone()));
        }
        pdu.resize(usize::try_from(off).unwrap_or(0), 0);
        pdu.extend_from_slice(data);
        if ddgst {
            pdu.extend(digest(data));
        }
        pdu
    }

    fn send(&mut self, max: usize) {
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let (count, bytes) = self.conn.tx.gather(self.conn.slab(), &mut pieces);
        let gathered: usize = pieces.iter().take(count).map(|piece| piece.len()).sum();
        assert_eq!(gathered, bytes, "every queued byte can be gathered");
        self.conn.sent(bytes.min(max), &mut self.behind);
    }

    fn complete(&mut self, at: usize) {
        if self.behind.out.is_empty() {
            return;
        }
        let (id, io) = self.behind.out.swap_remove(at % self.behind.out.len());
        if !self.conn.io_back(id.slot, io, &mut self.behind) {
            return;
        }
        let Some(req) = self.conn.req_mut(id.slot) else { return };
        let ok = at & 16 == 0;
        let data = if ok && req.dir == Dir::ToHost { req.len } else { 0 };
        let status = if ok { Status::SUCCESS } else { Status::INTERNAL_ERROR };
        self.conn.respond(id.slot, status, 0, data, &mut self.behind);
    }

    fn retry(&mut self) {
        for _ in 0..self.behind.starved.len() {
            let Some(id) = self.behind.starved.pop_front() else { return };
            self.conn.retry(id.slot, &mut self.behind);
            self.conn.resume(&mut self.behind);
        }
    }

    /// Everything that the connection can do by itself is done; then it is closed.
    fn end(mut self) {
        self.behind.has_buffers = true;
        let mut rounds = 0;
        while self.conn.state() == ConnState::Open && rounds < 1000 {
            let before = (self.conn.slab().used(), self.behind.out.len(), self.behind.starved.len());
            while !self.behind.out.is_empty() {
                self.complete(0);
            }
            while !self.conn.tx.is_empty() {
                self.send(usize::MAX);
            }
            self.retry();
            self.conn.retry_waiting(&mut self.behind);
            let after = (self.conn.slab().used(), self.behind.out.len(), self.behind.starved.len());
            rounds += 1;
            if before == after && self.behind.out.is_empty() && self.conn.tx.is_empty() {
                break;
            }
        }
        match self.conn.state() {
            ConnState::Terminating => assert!(self.conn.error().is_some(), "a TermReq has its reason"),
            ConnState::Open => {
                let used = self.conn.slab().slots_used().filter_map(|slot| self.conn.slab().get(slot));
                let owed: Vec<_> = used.collect();
                let stuck = owed.iter().any(|req| req.state == ReqState::TransferIn);
                for req in owed {
                    let waits = stuck && req.state == ReqState::NeedBuffer;
                    assert!(req.state == ReqState::TransferIn || waits, "{req:?} waits for nobody");
                }
            }
            ConnState::New | ConnState::Closed => {}
        }
        self.conn.close(&mut self.behind);
        while let Some((id, io)) = self.behind.out.pop() {
            assert!(!self.conn.io_back(id.slot, io, &mut self.behind), "nothing is answered any more");
        }
        assert_eq!((self.conn.slab().used(), self.conn.out()), (0, 0), "every slot is free at the end");
        assert_eq!(self.behind.held_bytes, 0, "every buffer is back");
    }
}

#[cfg(test)]
mod tests {
    use penstock_reactor::rng::Rng;

    #[test]
    fn the_corpus_of_connections_passes() {
        let dir = format!("{}/../../fuzz/corpus/nvmf_connection", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for file in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{dir}: {e}")) {
            super::connection(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }

    #[test]
    fn random_programs_pass() {
        let rounds = std::env::var("FUZZ_ROUNDS").map_or(20_000, |rounds| rounds.parse().unwrap());
        let mut rng = Rng::seeded(11);
        for _ in 0..rounds {
            let len = 2 + usize::try_from(rng.next_u64() % 120).unwrap();
            let mut bytes: Vec<u8> = (0..len).map(|_| u8::try_from(rng.next_u64() & 255).unwrap()).collect();
            bytes[0] |= u8::from(!rng.next_u64().is_multiple_of(8));
            if std::panic::catch_unwind(|| super::connection(&bytes)).is_err() {
                panic!("{bytes:02x?}");
            }
        }
    }
}
