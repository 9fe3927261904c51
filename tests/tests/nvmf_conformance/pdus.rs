//! PDUs: each field of each common header and PDU-specific header, in and out of range; orders; fragments.

use anyhow::{Context, Result, ensure};
use penstock_tests::target::Target;

use crate::target;
use crate::wire::{
    C2H_DATA, CAPSULE_CMD, CAPSULE_RESP, DDGST, H2C_DATA, H2C_TERM_REQ, HDGST, HOST_NQN, IC_REQ, IC_RESP,
    LAST, R2T, Sqe, Wire, completion, connect_data, connect_sqe, header, ic_req, property_get, put, u16_at,
    u32_at,
};

/// FES of TermReqs (TCP Transport, figure "Fatal Error Status").
const FIELD: u16 = 1;
const SEQUENCE: u16 = 2;
const OUT_OF_RANGE: u16 = 4;
const LIMIT: u16 = 5;

/// A PDU that ends the connection: what it is, its bytes, FES, and FEI.
type Fatal = (&'static str, Vec<u8>, u16, Option<u32>);

/// A header whose rest is zeroes, up to `len` bytes.
fn padded(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len, 0);
    bytes
}

fn with(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

/// A command capsule's header with these fields, and an Identify behind it.
fn capsule(flags: u8, hlen: u8, pdo: u8, plen: u32) -> Vec<u8> {
    let mut bytes = header(CAPSULE_CMD, flags, hlen, pdo, plen);
    bytes.extend(Sqe::new(6).0);
    bytes
}

fn try_all(port: u16, initialize: bool, cases: Vec<Fatal>) -> Result<()> {
    for (what, bytes, fes, fei) in cases {
        let mut wire = if initialize { Wire::initialized(port)? } else { Wire::open(port)? };
        wire.send(&bytes)?;
        wire.ends_with(fes, fei, &bytes).with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn the_first_pdu_is_an_icreq_within_its_rules_and_nothing_else() -> Result<()> {
    let mut target = target()?;
    let good = ic_req(0, 0, 0, 0);
    let cases = vec![
        ("a capsule first", capsule(0, 72, 0, 72), SEQUENCE, Some(0)),
        ("H2CData first", padded(header(H2C_DATA, LAST, 24, 24, 28), 28), SEQUENCE, Some(0)),
        ("HLEN too short", with(good.clone(), 2, 127), FIELD, Some(2)),
        ("HLEN too long", with(good.clone(), 2, 129), FIELD, Some(2)),
        ("PLEN too short", with(good.clone(), 4, 127), FIELD, Some(4)),
        ("PLEN too long", with(good.clone(), 4, 129), FIELD, Some(4)),
        ("PLEN of 2 GiB", with(good.clone(), 7, 0x80), FIELD, Some(4)),
        ("PFV 1", ic_req(1, 0, 0, 0), FIELD, Some(8)),
        ("PFV FFFFh", ic_req(0xffff, 0, 0, 0), FIELD, Some(8)),
        ("HPDA 32", ic_req(0, 32, 0, 0), FIELD, Some(10)),
        ("HPDA 255", ic_req(0, 255, 0, 0), FIELD, Some(10)),
        ("ICResp", with(good.clone(), 0, IC_RESP), FIELD, Some(0)),
        ("a type that is none", with(good, 0, 0x0a), FIELD, Some(0)),
    ];
    try_all(target.port(), false, cases)?;
    ensure!(target.daemon().process().is_running()?);
    // Reserved bits and fields are the sender's business (TCP Transport 3.6.1).
    for hpda in 0..32 {
        for dgst in 0..4 {
            let mut wire = Wire::open(target.port())?;
            let mut request = ic_req(0, hpda, dgst | 0xf0, 7);
            (request[1], request[3], request[127]) = (0xf0, 0xff, 0xff);
            wire.send(&request)?;
            let answer = wire.receive().with_context(|| format!("HPDA {hpda}, DGST {dgst}"))?;
            ensure!(answer.kind == IC_RESP && answer.head.len() == 128, "{answer:x?}");
            ensure!(u16_at(&answer.head, 8) == 0, "PFV {:x?}", answer.head);
            ensure!(answer.head[10] <= 31 && answer.head[11] == dgst, "CPDA, DGST {:x?}", answer.head);
            let maxh2cdata = u32_at(&answer.head, 12);
            ensure!(maxh2cdata >= 4096 && maxh2cdata.is_multiple_of(4), "MAXH2CDATA {maxh2cdata}");
        }
    }
    Ok(())
}

#[test]
fn a_common_header_out_of_its_rules_ends_the_connection_and_names_the_field() -> Result<()> {
    let target = target()?;
    let h2c = |hlen, pdo, plen| padded(header(H2C_DATA, LAST, hlen, pdo, plen), 32);
    let mut cases = vec![
        ("a second ICReq", ic_req(0, 0, 0, 0), SEQUENCE, Some(0)),
        ("HLEN 71", capsule(0, 71, 0, 72), FIELD, Some(2)),
        ("HLEN 0", capsule(0, 0, 0, 72), FIELD, Some(2)),
        ("HLEN 255", capsule(0, 255, 0, 72), FIELD, Some(2)),
        ("PLEN 71", capsule(0, 72, 0, 71), FIELD, Some(4)),
        ("PLEN 0", capsule(0, 72, 0, 0), FIELD, Some(4)),
        ("data before the header's end", capsule(0, 72, 68, 80), FIELD, Some(3)),
        ("data at no multiple of 4", capsule(0, 72, 74, 84), FIELD, Some(3)),
        ("data behind the end", capsule(0, 72, 200, 80), FIELD, Some(4)),
        ("a header digest that was not agreed on", capsule(HDGST, 72, 0, 72), FIELD, Some(1)),
        ("a data digest that was not agreed on", capsule(DDGST, 72, 72, 80), FIELD, Some(1)),
        ("H2CData with HLEN 23", h2c(23, 24, 32), FIELD, Some(2)),
        ("H2CData without data", h2c(24, 24, 24), FIELD, Some(4)),
        ("H2CData with data before the header's end", h2c(24, 20, 32), FIELD, Some(3)),
        ("H2CTermReq with HLEN 25", padded(header(H2C_TERM_REQ, 0, 25, 0, 25), 25), FIELD, Some(2)),
        ("H2CTermReq of 153 bytes", padded(header(H2C_TERM_REQ, 0, 24, 0, 153), 153), FIELD, Some(4)),
    ];
    for kind in (0..=u8::MAX).filter(|kind| ![IC_REQ, H2C_TERM_REQ, CAPSULE_CMD, H2C_DATA].contains(kind)) {
        let what = match kind {
            IC_RESP | 3 | CAPSULE_RESP | C2H_DATA | R2T => "a PDU that only controllers send",
            _ => "a PDU type that is none",
        };
        cases.push((what, with(capsule(0, 72, 0, 72), 0, kind), FIELD, Some(0)));
    }
    try_all(target.port(), true, cases)?;
    // More data in a capsule than IOCCSZ (or the 8 KiB of admin queues) has room for.
    let mut wire = Wire::initialized(target.port())?;
    let bytes = capsule(0, 72, 72, 72 + (1 << 20));
    wire.send(&bytes)?;
    let answer = wire.receive()?;
    ensure!([FIELD, LIMIT].contains(&u16_at(&answer.head, 8)), "{answer:x?}");
    Ok(())
}

#[test]
fn a_host_that_terminates_gets_no_answer() -> Result<()> {
    let target = target()?;
    for data in [0_u8, 8, 128] {
        for initialize in [false, true] {
            let mut wire =
                if initialize { Wire::initialized(target.port())? } else { Wire::open(target.port())? };
            let plen = 24 + u32::from(data);
            wire.send(&padded(header(H2C_TERM_REQ, 0, 24, 0, plen), usize::try_from(plen)?))?;
            wire.is_closed()?;
        }
    }
    Ok(())
}

#[test]
fn h2cdata_must_be_what_an_r2t_asked_for() -> Result<()> {
    const LEN: usize = 16_384;
    let target = target()?;
    // Field of a right H2CData that is changed, its new value, and the fatal error.
    let cases: [(&str, usize, u32, u16, Option<u32>); 9] = [
        ("another CCCID", 8, 0xbeef, FIELD, Some(8)),
        ("another TTAG", 10, 0x7777, FIELD, Some(10)),
        ("DATAO behind what came", 12, 4, OUT_OF_RANGE, None),
        ("DATAO behind the end", 12, 16_384, OUT_OF_RANGE, None),
        ("DATAO that overflows", 12, 0xffff_fffc, OUT_OF_RANGE, None),
        ("DATAO at no multiple of 4", 12, 2, FIELD, Some(12)),
        ("DATAL shorter than the PDU", 16, 4092, FIELD, Some(16)),
        ("DATAL longer than the PDU", 16, 8192, FIELD, Some(16)),
        ("LAST before the end", 1, u32::from(LAST), FIELD, Some(1)),
    ];
    for (what, at, value, fes, fei) in cases {
        let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
        let blocks = u32::try_from(LEN / 512)?;
        let cid = io.submit(Sqe::blocks(1, 0, blocks).moves(LEN), &[])?;
        let r2t = io.receive()?;
        ensure!(r2t.kind == R2T && u16_at(&r2t.head, 8) == cid, "{r2t:x?}");
        ensure!((u32_at(&r2t.head, 12), u32_at(&r2t.head, 16)) == (0, u32::try_from(LEN)?), "{r2t:x?}");
        let mut bytes = io.h2c_data(cid, u16_at(&r2t.head, 10), 0, &[7; 4096], 0);
        let width = if at == 1 {
            1
        } else if at < 12 {
            2
        } else {
            4
        };
        put(&mut bytes, at, &value.to_le_bytes()[..width]);
        io.send(&bytes)?;
        io.ends_with(fes, fei, &bytes).with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn more_data_than_an_r2t_asked_for_and_data_nobody_asked_for_are_fatal() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let cid = io.submit(Sqe::blocks(1, 0, 32).moves(16_384), &[])?;
    let ttag = u16_at(&io.receive()?.head, 10);
    let first = io.h2c_data(cid, ttag, 0, &[1; 12_288], 0);
    io.send(&first)?;
    let rest = io.h2c_data(cid, ttag, 12_288, &[1; 8192], LAST);
    io.send(&rest)?;
    io.ends_with(OUT_OF_RANGE, None, &rest)?;

    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let cid = io.submit(Sqe::blocks(1, 0, 8).moves(4096), &[])?;
    let ttag = u16_at(&io.receive()?.head, 10);
    let whole = io.h2c_data(cid, ttag, 0, &[1; 4096], LAST);
    io.send(&whole)?;
    ensure!(io.answer_to(cid, &[])?.status == 0);
    io.send(&whole)?;
    io.ends_with(FIELD, Some(10), &whole)
}

#[test]
fn pdus_come_in_any_fragments_and_any_number_at_once() -> Result<()> {
    let target = target()?;
    let idle = Wire::open(target.port())?;
    let mut connect = connect_sqe(0);
    put(&mut connect.0, 2, &[1, 0]);
    let data = connect_data(target.nqn(), HOST_NQN, 0xffff);
    let mut stream = ic_req(0, 0, 0, 0);
    stream.extend(idle.capsule(connect, &data));
    for chunk in [stream.len(), 1, 7, 64, 129, 1000] {
        let mut wire = Wire::open(target.port())?;
        for part in stream.chunks(chunk) {
            wire.send(part)?;
        }
        ensure!(wire.receive()?.kind == IC_RESP);
        let answer = completion(&wire.receive()?);
        ensure!((answer.cid, answer.status) == (1, 0), "in pieces of {chunk}: {answer:x?}");
        // And the other way round: several commands at once, cut anywhere.
        let mut commands = Vec::new();
        for cid in 2..20 {
            let mut get = property_get(0, true);
            put(&mut get.0, 2, &[cid, 0]);
            commands.extend(wire.capsule(get, &[]));
        }
        for part in commands.chunks(chunk) {
            wire.send(part)?;
        }
        for cid in 2..20 {
            let answer = completion(&wire.receive()?);
            ensure!((answer.cid, answer.status) == (cid, 0), "in pieces of {chunk}: {answer:x?}");
        }
    }
    Ok(())
}

#[test]
fn wrong_digests_are_seen_where_digests_were_agreed_on() -> Result<()> {
    let target = target()?;
    for dgst in 0..4 {
        let (mut io, _) = Wire::initialized_with(target.port(), 0, dgst)?;
        let (_admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
        io.connect(target.nqn(), 1, cntlid)?;
        let block = [0x3c; 512];
        ensure!(io.execute(Sqe::blocks(1, 5, 1).carries(512), &block)?.status == 0);
        ensure!(io.execute_by_r2t(Sqe::blocks(1, 6, 1).moves(512), &block)?.status == 0);
        ensure!(io.execute(Sqe::blocks(2, 5, 2).moves(1024), &[])?.data == [0x3c; 1024]);
        if dgst & 2 != 0 {
            // One bit of the data: a status for the command, and nothing is written.
            let cid = io.next_cid();
            let mut sqe = Sqe::blocks(1, 5, 1).carries(512);
            put(&mut sqe.0, 2, &cid.to_le_bytes());
            let mut bytes = io.capsule(sqe, &[0xff; 512]);
            let at = bytes.len() - 100;
            bytes[at] ^= 1;
            io.send(&bytes)?;
            let answer = io.answer_to(cid, &[])?;
            ensure!(answer.status == 0x22, "Transient Transport Error: {answer:x?}");
            ensure!(io.execute(Sqe::blocks(2, 5, 1).moves(512), &[])?.data == block);
        }
        if dgst & 1 != 0 {
            let mut bytes = io.capsule(Sqe::new(0).nsid(1), &[]);
            bytes[40] ^= 0x10;
            io.send(&bytes)?;
            io.ends_with(3, Some(u32_at(&bytes, 72)), &bytes)?;
        }
    }
    Ok(())
}
