#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::host_endian_bytes,
    reason = "test code"
)]

use std::io::IoSlice;

use penstock_bdev::IoStatus;
use penstock_reactor::net::PIECES_MAX;
use penstock_spec::iscsi::header::{FINAL, IMMEDIATE};
use penstock_spec::iscsi::{
    DataInHdr, DataLen, DataOutHdr, R2tHdr, ScsiCommandHdr, ScsiResponseHdr, TAG_NONE,
};
use zerocopy::IntoBytes;

use super::bench::{BLOCK, Bench, TARGET};
use super::*;
use crate::config::IscsiOptions;

/// A PDU that the machine has sent.
#[derive(Debug)]
struct Sent {
    bhs: Bhs,
    data: Vec<u8>,
}

impl Sent {
    fn opcode(&self) -> Opcode {
        self.bhs.opcode()
    }

    fn response(&self) -> ScsiResponseHdr {
        ScsiResponseHdr::read_from_bytes(self.bhs.as_bytes()).unwrap()
    }
}

struct Host {
    conn: Conn,
    bench: Bench,
    header_digest: bool,
    data_digest: bool,
    cmd_sn: u32,
    /// Functions whose commands are not back yet.
    aborting: Vec<(u8, Vec<(u16, u64)>)>,
}

impl Host {
    fn new() -> Self {
        let conn = Conn::new(0, "127.0.0.1:1".parse().unwrap(), 1);
        Self {
            conn,
            bench: Bench::new(),
            header_digest: false,
            data_digest: false,
            cmd_sn: 1,
            aborting: Vec::new(),
        }
    }

    /// A session with these keys on top of the usual ones.
    fn open(keys: &str) -> Self {
        let mut host = Self::new();
        let response = host.login(&format!("InitiatorName=iqn.2026-11.h:1\0TargetName={TARGET}\0{keys}"));
        assert_eq!(response.bhs.rest[4..6], [0, 0], "the login has succeeded");
        host.header_digest = keys.contains("HeaderDigest=CRC32C");
        host.data_digest = keys.contains("DataDigest=CRC32C");
        // The first command of a nexus meets the unit attention of power on.
        let status = host.command(0, 0, &[0; 16], &[]).pop().unwrap();
        assert_eq!(status.response().status, 2);
        host
    }

    /// A login from the operational stage straight to the full feature phase.
    fn login(&mut self, keys: &str) -> Sent {
        let bhs = Bhs {
            opcode: Opcode::LOGIN_REQ.0 | IMMEDIATE,
            flags: 0x80 | 0x04 | 0x03,
            cmd_sn: self.cmd_sn.into(),
            ..Bhs::default()
        };
        self.send(bhs, keys.as_bytes()).remove(0)
    }

    fn send(&mut self, mut bhs: Bhs, data: &[u8]) -> Vec<Sent> {
        bhs.data_len = DataLen::new(data.len() as u32);
        let mut bytes = bhs.as_bytes().to_vec();
        if self.header_digest {
            bytes.extend(digest(bhs.as_bytes()));
        }
        if !data.is_empty() {
            bytes.extend(data);
            let pad = pad_len(data.len() as u32) as usize;
            bytes.extend(&[0; 3][..pad]);
            if self.data_digest {
                bytes.extend(padded_digest(data, pad));
            }
        }
        self.conn.receive(&bytes, &mut self.bench);
        self.sent()
    }

    /// Does what a group does for its connections.
    fn settle(&mut self) {
        while !std::mem::take(&mut self.bench.nudges).is_empty() {
            self.conn.go_on(&mut self.bench);
        }
        for (_, tmf, scope) in std::mem::take(&mut self.bench.sweeps) {
            let mut waiting = Vec::new();
            match scope {
                Scope::Task { slot, .. } => {
                    waiting.extend(self.conn.abort_cmd(slot, &mut self.bench).map(|seq| (slot, seq)));
                }
                Scope::TaskSet { before, .. } | Scope::Units { before, .. } => {
                    self.conn.abort_where(|cmd| cmd.seq < before, &mut waiting, &mut self.bench);
                }
                Scope::Nexuses { .. } => {}
            }
            self.aborting.push((tmf, waiting));
        }
        for (tmf, waiting) in std::mem::take(&mut self.aborting) {
            if waiting.iter().any(|(slot, seq)| self.conn.is_aborting(*slot, *seq)) {
                self.aborting.push((tmf, waiting));
                continue;
            }
            let reply = penstock_scsi::Reply::of(Ok(()));
            self.conn.replied(ReplyTo::Tmf(tmf), &reply, &mut self.bench);
        }
    }

    /// Takes what is to be sent.
    fn sent(&mut self) -> Vec<Sent> {
        self.settle();
        let mut bytes = Vec::new();
        while !self.conn.tx.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let (count, len) = self.conn.tx.gather(self.conn.slab(), &mut pieces);
            pieces[..count].iter().for_each(|piece| bytes.extend_from_slice(piece));
            self.conn.sent(len, &mut self.bench);
        }
        let mut all = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (bhs, tail) = Bhs::read_from_prefix(rest).unwrap();
            rest = tail;
            if self.header_digest {
                assert_eq!(rest[..4], digest(bhs.as_bytes()), "header digest");
                rest = &rest[4..];
            }
            let len = bhs.data_len.get();
            let pad = pad_len(len) as usize;
            let data = rest[..len as usize].to_vec();
            rest = &rest[len as usize + pad..];
            if self.data_digest && len > 0 {
                assert_eq!(rest[..4], padded_digest(&data, pad), "data digest");
                rest = &rest[4..];
            }
            all.push(Sent { bhs, data });
        }
        all
    }

    fn bhs(&mut self, flags: u8, edtl: u32, cdb: &[u8]) -> Bhs {
        let mut hdr = ScsiCommandHdr {
            opcode: Opcode::SCSI_COMMAND.0,
            flags,
            itt: self.cmd_sn.into(),
            edtl: edtl.into(),
            cmd_sn: self.cmd_sn.into(),
            ..ScsiCommandHdr::default()
        };
        self.cmd_sn += 1;
        hdr.cdb[..cdb.len()].copy_from_slice(cdb);
        Bhs::read_from_bytes(hdr.as_bytes()).unwrap()
    }

    fn command(&mut self, flags: u8, edtl: u32, cdb: &[u8], data: &[u8]) -> Vec<Sent> {
        let bhs = self.bhs(flags | FINAL, edtl, cdb);
        let mut sent = self.send(bhs, data);
        sent.extend(self.run());
        sent
    }

    /// Ends all I/Os.
    fn run(&mut self) -> Vec<Sent> {
        while let Some((slot, mut io)) = self.bench.ios.pop_front() {
            self.bench.perform(&mut io);
            self.conn.io_back(slot, io, &mut self.bench);
        }
        self.sent()
    }

    fn data_out(&mut self, itt: u32, ttt: u32, sn: u32, offset: u32, last: bool, data: &[u8]) -> Vec<Sent> {
        let hdr = DataOutHdr {
            opcode: Opcode::DATA_OUT.0,
            flags: if last { FINAL } else { 0 },
            itt: itt.into(),
            ttt: ttt.into(),
            data_sn: sn.into(),
            offset: offset.into(),
            ..DataOutHdr::default()
        };
        let mut sent = self.send(Bhs::read_from_bytes(hdr.as_bytes()).unwrap(), data);
        sent.extend(self.run());
        sent
    }
}

const READ: u8 = ScsiCommandHdr::READ;
const WRITE: u8 = ScsiCommandHdr::WRITE;

fn rw10(opcode: u8, lba: u8, blocks: u16) -> [u8; 10] {
    let [high, low] = blocks.to_be_bytes();
    [opcode, 0, 0, 0, 0, lba, 0, high, low, 0]
}

fn pattern(len: usize) -> Vec<u8> {
    (0..251_u8).cycle().take(len).collect()
}

#[test]
fn a_read_comes_in_segments_and_bursts_with_its_status_in_the_last() {
    let mut host = Host::open("MaxRecvDataSegmentLength=1024\0MaxBurstLength=1536\0");
    let data = pattern(4096);
    host.bench.disk[..4096].copy_from_slice(&data);
    let sent = host.command(READ, 4096, &rw10(0x28, 0, 8), &[]);
    let hdrs: Vec<DataInHdr> =
        sent.iter().map(|pdu| DataInHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap()).collect();
    let lens: Vec<u32> = hdrs.iter().map(|hdr| hdr.data_len.get()).collect();
    assert_eq!(lens, [1024, 512, 1024, 512, 1024]);
    let finals: Vec<bool> = hdrs.iter().map(|hdr| hdr.flags & FINAL != 0).collect();
    assert_eq!(finals, [false, true, false, true, true]);
    assert!(hdrs.iter().zip(0..).all(|(hdr, sn)| hdr.data_sn.get() == sn));
    assert_eq!(hdrs[4].flags & 1, 1);
    assert_eq!(sent.iter().flat_map(|pdu| pdu.data.clone()).collect::<Vec<u8>>(), data);
    assert_eq!(host.bench.held, 0, "all buffers are free");
}

#[test]
fn digests_of_headers_and_data_are_made_and_checked() {
    let mut host = Host::open("HeaderDigest=CRC32C\0DataDigest=CRC32C\0");
    let data = pattern(1024);
    let written = host.command(WRITE, 1024, &rw10(0x2a, 4, 2), &data);
    assert_eq!(written[0].response().status, 0);
    let read = host.command(READ, 1024, &rw10(0x28, 4, 2), &[]);
    assert_eq!(read[0].data, data);
    // Wrong data digest: the PDU is rejected and the command fails, the connection lives.
    let bhs = host.bhs(WRITE | FINAL, 512, &rw10(0x2a, 4, 1));
    let mut bytes = Bhs { data_len: DataLen::new(512), ..bhs }.as_bytes().to_vec();
    bytes.extend(digest(&bytes));
    bytes.extend([7; 512]);
    bytes.extend([0; 4]);
    host.conn.receive(&bytes, &mut host.bench);
    let sent = host.sent();
    assert_eq!((sent[0].opcode(), sent[1].response().status), (Opcode::REJECT, 2));
    assert_eq!(host.bench.disk[4 * BLOCK..4 * BLOCK + 512], data[..512]);
    assert_eq!(host.conn.state(), ConnState::Full);
    // Wrong header digest: the connection ends.
    let mut bytes = host.bhs(FINAL, 0, &[0; 6]).as_bytes().to_vec();
    bytes.extend([1, 2, 3, 4]);
    host.conn.receive(&bytes, &mut host.bench);
    assert_eq!(host.conn.state(), ConnState::Closed);
}

#[test]
fn unsolicited_and_solicited_data_make_one_write() {
    let keys = "InitialR2T=No\0FirstBurstLength=1024\0MaxBurstLength=1024\0MaxOutstandingR2T=2\0";
    let mut host = Host::open(keys);
    let data = pattern(4096);
    let bhs = host.bhs(WRITE, 4096, &rw10(0x2a, 0, 8));
    let itt = bhs.itt.get();
    assert!(host.send(bhs, &data[..512]).is_empty(), "more is to come unasked");
    let r2ts = host.data_out(itt, TAG_NONE, 0, 512, true, &data[512..1024]);
    assert_eq!(r2ts.iter().map(Sent::opcode).collect::<Vec<_>>(), [Opcode::R2T, Opcode::R2T]);
    let fields = |pdu: &Sent| {
        let hdr = R2tHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap();
        (hdr.ttt.get(), hdr.offset.get(), hdr.len.get(), hdr.r2t_sn.get())
    };
    let (first, second) = (fields(&r2ts[0]), fields(&r2ts[1]));
    assert_eq!((first.1, first.2, first.3), (1024, 1024, 0));
    assert_eq!((second.1, second.2, second.3), (2048, 1024, 1));
    assert!(host.data_out(itt, first.0, 0, 1024, false, &data[1024..1536]).is_empty());
    let third = fields(&host.data_out(itt, first.0, 1, 1536, true, &data[1536..2048])[0]);
    assert_eq!((third.1, third.3), (3072, 2));
    assert!(host.data_out(itt, second.0, 0, 2048, true, &data[2048..3072]).is_empty());
    let done = host.data_out(itt, third.0, 0, 3072, true, &data[3072..]);
    assert_eq!((done[0].response().status, done[0].response().exp_data_sn.get()), (0, 3));
    assert_eq!(host.bench.disk[..4096], data);
    assert_eq!(host.bench.held, 0);
}

#[test]
fn data_out_of_bounds_of_its_burst_end_the_connection() {
    let data = pattern(4096);
    // Unsolicited beyond FirstBurstLength, at a wrong offset, with a wrong tag, although it was not agreed on.
    let first_burst = "InitialR2T=No\0FirstBurstLength=1024\0";
    for (keys, ttt, offset, len) in
        [(first_burst, TAG_NONE, 512, 1024), (first_burst, TAG_NONE, 0, 512), (first_burst, 99, 512, 512)]
    {
        let mut host = Host::open(keys);
        let bhs = host.bhs(WRITE, 4096, &rw10(0x2a, 0, 8));
        let itt = bhs.itt.get();
        host.send(bhs, &data[..512]);
        let sent = host.data_out(itt, ttt, 0, offset, true, &data[..len]);
        assert_eq!(sent[0].opcode(), Opcode::REJECT, "{keys} {offset}");
        assert_eq!(host.conn.state(), ConnState::Ending);
    }
    for keys in ["", "InitialR2T=No\0ImmediateData=No\0", "InitialR2T=No\0FirstBurstLength=512\0"] {
        let mut host = Host::open(keys);
        let bhs = host.bhs(WRITE, 4096, &rw10(0x2a, 0, 8));
        host.send(bhs, &data[..1024]);
        assert_eq!(host.conn.state(), ConnState::Ending, "{keys}");
        host.conn.close(&mut host.bench);
        assert_eq!(host.bench.held, 0);
    }
}

#[test]
fn a_missing_data_out_fails_the_command_and_not_the_connection() {
    let mut host = Host::open("ImmediateData=No\0");
    let bhs = host.bhs(WRITE | FINAL, 1024, &rw10(0x2a, 0, 2));
    let itt = bhs.itt.get();
    let r2t = host.send(bhs, &[]).remove(0);
    let sent = host.data_out(itt, r2t.bhs.ttt.get(), 1, 0, true, &pattern(1024));
    assert_eq!(sent[0].response().status, 2);
    assert_eq!((host.conn.state(), host.bench.held), (ConnState::Full, 0));
    assert!(host.bench.disk.iter().all(|byte| *byte == 0));
}

#[test]
fn commands_outside_of_the_window_are_ignored() {
    let mut host = Host::open("");
    let next = host.cmd_sn;
    for cmd_sn in [next - 1, next + 8, next.wrapping_add(1 << 31)] {
        host.cmd_sn = cmd_sn;
        assert!(host.command(0, 0, &[0; 6], &[]).is_empty(), "{cmd_sn}");
    }
    host.cmd_sn = next;
    let sent = host.command(0, 0, &[0; 6], &[]);
    let response = sent[0].response();
    assert_eq!((response.status, response.exp_cmd_sn.get()), (0, next + 1));
    assert_eq!(response.max_cmd_sn.get(), next + 8);
}

/// A task management request for immediate delivery, with what it refers to.
fn tmf(function: u8, ref_itt: u32, ref_cmd_sn: u32, cmd_sn: u32) -> Bhs {
    let mut rest = [0; 16];
    rest[..4].copy_from_slice(&ref_cmd_sn.to_be_bytes());
    Bhs {
        opcode: Opcode::TASK_MGMT_REQ.0 | IMMEDIATE,
        flags: 0x80 | function,
        itt: 900.into(),
        ttt: ref_itt.into(),
        cmd_sn: cmd_sn.into(),
        rest,
        ..Bhs::default()
    }
}

#[test]
fn commands_wait_for_those_before_them_until_a_function_says_that_these_never_come() {
    let mut host = Host::open("InitialR2T=No\0FirstBurstLength=1024\0");
    let first = host.cmd_sn;
    let data = pattern(2048);
    // The first is missing; a write with data in all ways, a ping and a read come.
    host.cmd_sn = first + 1;
    let write = host.bhs(WRITE, 2048, &rw10(0x2a, 0, 4));
    let itt = write.itt.get();
    assert!(host.send(write, &data[..512]).is_empty());
    assert!(host.data_out(itt, TAG_NONE, 0, 512, true, &data[512..1024]).is_empty());
    let nop = Bhs {
        flags: 0x80,
        itt: 77.into(),
        ttt: TAG_NONE.into(),
        cmd_sn: (first + 2).into(),
        ..Bhs::default()
    };
    assert!(host.send(nop, b"ping").is_empty());
    assert!(host.send(nop, b"pong").is_empty(), "a repetition is ignored");
    host.cmd_sn = first + 3;
    assert!(host.command(READ, 512, &rw10(0x28, 0, 1), &[]).is_empty());
    // A function on many tasks waits as well; one whose task is out of the window has nothing to abort.
    assert!(host.send(tmf(2, 0, 0, first + 4), &[]).is_empty());
    assert_eq!(host.send(tmf(1, 5000, first + 20, first + 30), &[])[0].bhs.specific[0], 1);
    let sent = host.send(tmf(1, 5000, first, first + 4), &[]);
    let opcodes: Vec<Opcode> = sent.iter().map(Sent::opcode).collect();
    // The read was begun before the function on all tasks and is aborted by it; so is the write.
    assert_eq!(opcodes[..3], [Opcode::TASK_MGMT_RESP, Opcode::R2T, Opcode::NOP_IN], "{opcodes:?}");
    assert_eq!(sent[2].data, b"ping");
    assert_eq!(host.run().iter().map(Sent::opcode).collect::<Vec<_>>(), [Opcode::TASK_MGMT_RESP]);
    assert_eq!(host.bench.held, 0);
    assert_eq!(host.conn.session.as_ref().unwrap().exp_cmd_sn(), first + 4);
}

#[test]
fn early_data_are_written_when_the_turn_comes_and_aborts_of_early_commands_let_the_others_go() {
    let mut host = Host::open("InitialR2T=No\0FirstBurstLength=1024\0");
    let first = host.cmd_sn;
    let data = pattern(2048);
    host.cmd_sn = first + 1;
    let write = host.bhs(WRITE | FINAL, 512, &rw10(0x2a, 9, 1));
    assert!(host.send(write, &data[..512]).is_empty());
    let long = host.bhs(WRITE, 2048, &rw10(0x2a, 0, 4));
    let itt = long.itt.get();
    assert!(host.send(long, &data[..512]).is_empty());
    // An abort of the first write: its number counts as received.
    let sent = host.send(tmf(1, write.itt.get(), first + 1, first + 3), &[]);
    assert_eq!(sent[0].bhs.specific[0], 0);
    host.cmd_sn = first;
    assert_eq!(host.command(0, 0, &[0; 6], &[])[0].response().status, 0);
    let r2t = host.data_out(itt, TAG_NONE, 0, 512, true, &data[512..1024]).remove(0);
    assert_eq!(r2t.opcode(), Opcode::R2T);
    let sent = host.data_out(itt, r2t.bhs.ttt.get(), 0, 1024, true, &data[1024..]);
    assert_eq!(sent[0].response().status, 0);
    assert_eq!(host.bench.disk[..2048], data);
    assert_eq!(host.bench.disk[9 * BLOCK..10 * BLOCK], [0; BLOCK], "the aborted one has written nothing");
    assert_eq!(host.bench.held, 0);
}

#[test]
fn the_window_closes_when_the_queue_is_full() {
    let mut host = Host::open("");
    for _ in 0..8 {
        let bhs = host.bhs(READ | FINAL, 512, &rw10(0x28, 0, 1));
        assert!(host.send(bhs, &[]).is_empty());
    }
    assert_eq!(host.bench.ios.len(), 8);
    let beyond = host.bhs(READ | FINAL, 512, &rw10(0x28, 0, 1));
    assert!(host.send(beyond, &[]).is_empty());
    assert_eq!(host.bench.ios.len(), 8, "the ninth is ignored");
    assert_eq!(host.run().len(), 8);
}

#[test]
fn an_ordered_command_waits_for_older_ones_and_younger_ones_for_it() {
    let mut host = Host::open("");
    for attr in [1, 2, 1, 3] {
        let bhs = host.bhs(READ | FINAL | attr, 512, &rw10(0x28, 0, 1));
        host.send(bhs, &[]);
    }
    // The simple one and the one for the head of the queue are out.
    assert_eq!(host.bench.ios.len(), 2);
    let (slot, mut io) = host.bench.ios.pop_front().unwrap();
    io.status = IoStatus::Success;
    host.conn.io_back(slot, io, &mut host.bench);
    assert_eq!(host.bench.ios.len(), 2, "the ordered one follows, the younger one still waits");
    assert_eq!(host.run().len(), 4);
}

#[test]
fn an_abort_is_answered_when_the_io_is_back_and_the_command_is_not() {
    let mut host = Host::open("");
    let bhs = host.bhs(READ | FINAL, 512, &rw10(0x28, 0, 1));
    let itt = bhs.itt;
    host.send(bhs, &[]);
    let abort = Bhs {
        opcode: Opcode::TASK_MGMT_REQ.0 | IMMEDIATE,
        flags: 0x81,
        itt: 900.into(),
        ttt: itt,
        ..Bhs::default()
    };
    assert!(host.send(abort, &[]).is_empty());
    assert_eq!(host.bench.aborted.len(), 1);
    let sent = host.run();
    assert_eq!(sent.iter().map(Sent::opcode).collect::<Vec<_>>(), [Opcode::TASK_MGMT_RESP]);
    assert_eq!((sent[0].bhs.specific[0], host.bench.held), (0, 0));
    // TASK REASSIGN is refused, an unknown LUN is named so, a reset goes to the owner first.
    for (function, lun, response) in [(8, 0, 4), (5, 9, 2), (3, 0, 5)] {
        let bhs = Bhs { flags: 0x80 | function, lun: (lun << 48).into(), ttt: 0.into(), ..abort };
        assert_eq!(host.send(bhs, &[])[0].bhs.specific[0], response, "{function}");
    }
    assert!(host.send(Bhs { flags: 0x85, ..abort }, &[]).is_empty());
    let (control, to) = host.bench.controls.pop().unwrap();
    assert_eq!(control, Control::Reset);
    let reply = penstock_scsi::Reply { changed: true, ..penstock_scsi::Reply::of(Ok(())) };
    host.conn.replied(to, &reply, &mut host.bench);
    assert_eq!(host.sent()[0].bhs.specific[0], 0);
}

#[test]
fn without_buffers_a_command_waits_and_what_follows_with_it() {
    let mut host = Host::open("");
    host.bench.no_buffers = true;
    let data = pattern(512);
    let bhs = host.bhs(WRITE | FINAL, 512, &rw10(0x2a, 3, 1));
    assert!(host.send(bhs, &data).is_empty());
    assert!(!host.conn.wants_bytes());
    host.bench.no_buffers = false;
    let slot = host.bench.starved.pop().unwrap();
    host.conn.retry(slot, &mut host.bench);
    host.conn.resume(&mut host.bench);
    assert_eq!(host.run()[0].response().status, 0);
    assert_eq!(host.bench.disk[3 * BLOCK..4 * BLOCK], data);
}

#[test]
fn residuals_tell_what_was_expected_in_vain() {
    let mut host = Host::open("");
    let more = host.command(READ, 4096, &rw10(0x28, 0, 1), &[]);
    let hdr = DataInHdr::read_from_bytes(more[0].bhs.as_bytes()).unwrap();
    assert_eq!((hdr.flags & 6, hdr.residual.get(), more[0].data.len()), (2, 3584, 512));
    let less = host.command(READ, 512, &rw10(0x28, 0, 8), &[]);
    let hdr = DataInHdr::read_from_bytes(less[0].bhs.as_bytes()).unwrap();
    assert_eq!((hdr.flags & 6, hdr.residual.get(), less[0].data.len()), (4, 3584, 512));
    let short = host.command(WRITE, 512, &rw10(0x2a, 0, 2), &[9; 512]);
    assert_eq!((short[0].response().flags & 6, short[0].response().residual.get()), (4, 512));
    assert_eq!(host.bench.disk[511..513], [9, 0]);
}

#[test]
fn logins_are_refused_with_the_standards_statuses() {
    let status = |keys: &str| {
        let mut host = Host::new();
        let sent = host.login(keys);
        (u16::from_be_bytes([sent.bhs.rest[4], sent.bhs.rest[5]]), host.conn.state())
    };
    let initiator = "InitiatorName=iqn.2026-11.h:1\0";
    assert_eq!(status("TargetName=x\0").0, 0x0207);
    assert_eq!(status(initiator).0, 0x0207);
    assert_eq!(status(&format!("{initiator}TargetName=iqn.2026-11.no:1\0")).0, 0x0203);
    assert_eq!(status(&format!("{initiator}SessionType=Odd\0")).0, 0x0209);
    assert_eq!(status(&format!("{initiator}{initiator}TargetName={TARGET}\0")).0, 0x0200);
    assert_eq!(status("InitiatorName=nobody\0").0, 0x0200);
    assert_eq!(status("no key at all").0, 0x0200);
    assert_eq!(status(&format!("{initiator}SessionType=Discovery\0")), (0, ConnState::Full));
    for (tsih, expected) in [(1, 0x0206), (2, 0x020a)] {
        let mut host = Host::new();
        let mut bhs = Bhs { opcode: Opcode::LOGIN_REQ.0 | IMMEDIATE, flags: 0x87, ..Bhs::default() };
        bhs.lun = tsih.into();
        let sent = host.send(bhs, format!("{initiator}TargetName={TARGET}\0").as_bytes()).remove(0);
        assert_eq!(u16::from_be_bytes([sent.bhs.rest[4], sent.bhs.rest[5]]), expected);
    }
}

#[test]
fn a_login_goes_through_both_stages_and_its_keys_over_several_pdus() {
    let mut host = Host::new();
    let base = Bhs { opcode: Opcode::LOGIN_REQ.0 | IMMEDIATE, cmd_sn: 1.into(), ..Bhs::default() };
    let security = format!("InitiatorName=iqn.2026-11.h:1\0TargetName={TARGET}\0AuthMethod=CHAP,None\0");
    let sent = host.send(Bhs { flags: 0x81, ..base }, security.as_bytes()).remove(0);
    let text = String::from_utf8(sent.data).unwrap();
    assert!(text.contains("AuthMethod=None\0") && text.contains("TargetPortalGroupTag=1\0"), "{text}");
    assert_eq!(sent.bhs.flags, 0x81);
    let sent = host.send(Bhs { flags: 0x44, ..base }, b"MaxBurstLe").remove(0);
    assert_eq!((sent.bhs.flags, sent.data.len()), (0x04, 0));
    let sent = host.send(Bhs { flags: 0x87, ..base }, b"ngth=4096\0").remove(0);
    let text = String::from_utf8(sent.data).unwrap();
    assert!(text.contains("MaxBurstLength=4096\0") && text.contains("MaxRecvDataSegmentLength=262144\0"));
    assert_eq!((sent.bhs.flags, host.conn.state()), (0x87, ConnState::Full));
}

#[test]
fn discovery_tells_targets_over_as_many_pdus_as_they_need() {
    let mut host = Host::new();
    host.login("InitiatorName=iqn.2026-11.h:1\0SessionType=Discovery\0MaxRecvDataSegmentLength=1024\0");
    let request =
        Bhs { opcode: Opcode::TEXT_REQ.0 | IMMEDIATE, flags: 0x80, ttt: TAG_NONE.into(), ..Bhs::default() };
    let mut text = Vec::new();
    let mut sent = host.send(request, b"SendTargets=All\0").remove(0);
    while !sent.bhs.is_final() {
        assert!(sent.data.len() <= 1024 && sent.bhs.flags == 0x40);
        text.extend(sent.data);
        sent = host.send(Bhs { ttt: sent.bhs.ttt, ..request }, &[]).remove(0);
    }
    text.extend(sent.data);
    assert_eq!(
        text,
        host.bench.send_targets(&host.conn.key.unwrap(), (host.conn.addr, host.conn.local), None)
    );
    // A discovery session has no logical units.
    assert_eq!(host.command(READ, 512, &rw10(0x28, 0, 1), &[])[0].opcode(), Opcode::REJECT);
}

#[test]
fn pings_are_answered_and_a_logout_ends_the_connection() {
    let mut host = Host::open("");
    let nop = Bhs { opcode: IMMEDIATE, flags: 0x80, itt: 5.into(), ttt: TAG_NONE.into(), ..Bhs::default() };
    let sent = host.send(nop, b"hello");
    assert_eq!((sent[0].opcode(), &sent[0].data[..]), (Opcode::NOP_IN, &b"hello"[..]));
    host.conn.push_ping();
    let ping = host.sent().remove(0);
    assert!(host.conn.ping_out && ping.bhs.itt.get() == TAG_NONE);
    assert!(host.send(Bhs { itt: TAG_NONE.into(), ttt: ping.bhs.ttt, ..nop }, &[]).is_empty());
    assert!(!host.conn.ping_out);
    let logout = Bhs { opcode: Opcode::LOGOUT_REQ.0 | IMMEDIATE, flags: 0x82, ..nop };
    assert_eq!(host.send(logout, &[])[0].bhs.specific[0], 2, "no recovery");
    assert_eq!(host.send(Bhs { flags: 0x80, ..logout }, &[])[0].opcode(), Opcode::LOGOUT_RESP);
    assert_eq!(host.conn.state(), ConnState::Ending);
}

#[test]
fn hostile_pdus_end_the_connection_and_nothing_else() {
    let opcodes = (0..=255).map(|opcode| Bhs { opcode, flags: 0xff, ahs_words: 9, ..Bhs::default() });
    for bhs in opcodes {
        for login in [false, true] {
            let mut host = if login { Host::open("") } else { Host::new() };
            let mut bytes = bhs.as_bytes().to_vec();
            bytes.extend([0xa5; 300]);
            // In one piece and byte by byte.
            host.conn.receive(&bytes, &mut host.bench);
            for byte in bytes {
                host.conn.receive(&[byte], &mut host.bench);
            }
            host.bench.ios.clear();
        }
    }
    let mut host = Host::open("");
    let long = Bhs { opcode: Opcode::DATA_OUT.0, data_len: DataLen::new(DataLen::MAX), ..Bhs::default() };
    host.conn.receive(long.as_bytes(), &mut host.bench);
    assert_eq!(host.conn.state(), ConnState::Ending);
}

#[test]
fn a_session_takes_as_much_memory_as_the_crate_says_and_no_more() {
    // Two slots for each command of the window, each with its I/O; then what is bounded by constants.
    let slot = size_of::<cmd::Cmd>() + size_of::<Io>() + size_of::<u32>() + size_of::<u16>();
    assert!(slot <= 1600, "a slot takes {slot} bytes");
    let slots = (usize::from(IscsiOptions::default().max_queue_depth) + usize::from(IMMEDIATE_MAX)) * 2;
    assert!(slots * slot <= 460 << 10, "the slots of a connection take {} bytes", slots * slot);
    assert!(size_of::<Conn>() <= 2048, "{}", size_of::<Conn>());
}
