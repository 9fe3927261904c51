//! Data: every form of SGL, R2T, alignment, and how it is cut.

use anyhow::{Context, Result, ensure};
use penstock_tests::target::Target;
use serde_json::json;

use crate::wire::{C2H_DATA, CAPSULE_RESP, LAST, R2T, SUCCESS, Sqe, Wire, put, u16_at, u32_at};
use crate::{BLOCK_BYTES, target, target_with};

const INVALID_FIELD: u16 = 0x002;
const DATA_SGL_LENGTH: u16 = 0x00f;
const SGL_TYPE: u16 = 0x011;
const SGL_OFFSET: u16 = 0x016;

const WRITE: u8 = 1;
const READ: u8 = 2;

/// Bytes of which each tells where it is.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at / 4 + usize::from(seed)) % 251).unwrap_or(0)).collect()
}

#[test]
fn an_sgl_is_a_transport_or_an_in_capsule_block_and_any_other_fails_the_command_alone() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let block = pattern(512, 1);
    for id in 0..=u8::MAX {
        let write = Sqe::blocks(WRITE, 9, 1).sgl(id, 0, 512);
        let answer = match id {
            0x5a => io.execute_by_r2t(write, &block)?,
            0x01 => io.execute(write, &block)?,
            _ => io.execute(write, &[])?,
        };
        let expected = if matches!(id, 0x01 | 0x5a) { 0 } else { SGL_TYPE };
        // A segment's length is looked at as well, and 512 is a good one.
        ensure!(answer.status == expected, "a write with SGL identifier {id:#04x}: {answer:x?}");
        let read = io.execute(Sqe::blocks(READ, 9, 1).sgl(id, 0, 512), &[])?;
        let expected = if id == 0x5a { 0 } else { SGL_TYPE };
        ensure!(read.status == expected, "a read with SGL identifier {id:#04x}: {read:x?}");
    }
    for (psdt, status) in [(0, INVALID_FIELD), (1, 0), (2, INVALID_FIELD), (3, INVALID_FIELD)] {
        let answer = io.execute(Sqe::blocks(READ, 9, 1).moves(512).byte(1, psdt << 6), &[])?;
        ensure!(answer.status == status, "PSDT {psdt}: {answer:x?}");
    }
    ensure!(io.execute(Sqe::blocks(READ, 9, 1).moves(512), &[])?.data == block);
    Ok(())
}

#[test]
fn the_length_of_an_sgl_is_the_commands() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    for len in [0, 1, 508, 511, 513, 1024, 4096] {
        for opcode in [WRITE, READ] {
            let answer = io.execute(Sqe::blocks(opcode, 0, 1).moves(len), &[])?;
            ensure!(
                answer.status == DATA_SGL_LENGTH && answer.dnr,
                "opcode {opcode}, {len} bytes: {answer:x?}"
            );
        }
    }
    Ok(())
}

/// SGLS says that addresses may be offsets into the capsule, and ICDOFF is 0: data described behind its beginning was refused.
#[test]
fn data_in_the_capsule_begin_where_the_sgl_says() -> Result<()> {
    let target = target()?;
    for dgst in [0, 3] {
        let (_admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
        let (mut io, _) = Wire::initialized_with(target.port(), 0, dgst)?;
        io.connect(target.nqn(), 1, cntlid)?;
        // Offset and length in the SGL, bytes in the capsule, status.
        let cases: [(u64, u32, usize, u16); 11] = [
            (0, 1024, 1024, 0),
            (512, 1024, 1536, 0),
            (4, 1024, 1028, 0),
            (3072, 1024, 4096, 0),
            (7168, 1024, 8192, 0),
            (512, 1024, 1024, SGL_OFFSET),
            (4096, 1024, 1024, SGL_OFFSET),
            (u64::MAX, 1024, 1024, SGL_OFFSET),
            (u64::MAX - 1023, 1024, 1024, SGL_OFFSET),
            (0, 1024, 1536, DATA_SGL_LENGTH),
            (0, 1024, 512, DATA_SGL_LENGTH),
        ];
        for (at, (off, len, in_capsule, status)) in cases.into_iter().enumerate() {
            let what = format!("offset {off}, {len} of {in_capsule} bytes, digests {dgst}");
            let lba = u64::try_from(at)? * 4;
            let bytes = pattern(in_capsule, u8::try_from(at)?);
            let before = io.execute(Sqe::blocks(READ, lba, 2).moves(1024), &[])?.data;
            let answer =
                io.execute(Sqe::blocks(WRITE, lba, 2).sgl(1, off, len), &bytes).context(what.clone())?;
            ensure!(answer.status == status, "{what}: {answer:x?}");
            let after = io.execute(Sqe::blocks(READ, lba, 2).moves(1024), &[])?.data;
            let expected = if status == 0 { bytes[usize::try_from(off)?..].to_vec() } else { before };
            ensure!(after == expected, "{what}: other data");
        }
        // Compare takes them the same way.
        let bytes = [vec![0xee; 512], pattern(1536, 1)[512..].to_vec()].concat();
        let same = io.execute(Sqe::blocks(5, 4, 2).sgl(1, 512, 1024), &bytes)?;
        ensure!(same.status == 0, "{same:x?}");
        let other = io.execute(Sqe::blocks(5, 4, 2).sgl(1, 512, 1024), &pattern(1536, 9))?;
        ensure!(other.status == 0x285, "{other:x?}");
    }
    Ok(())
}

#[test]
fn a_mib_is_written_in_pieces_of_any_size() -> Result<()> {
    const LEN: usize = 1 << 20;
    let target = target_with(json!({ "max_io_size": LEN }))?;
    let blocks = u32::try_from(LEN)? / BLOCK_BYTES;
    for (round, piece) in [512, 4096, 5000, 65_536, 131_072, LEN].into_iter().enumerate() {
        let (_admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
        let (mut io, ic_resp) = Wire::initialized_with(target.port(), 0, if round % 2 == 0 { 0 } else { 3 })?;
        io.connect(target.nqn(), 1, cntlid)?;
        let maxh2cdata = usize::try_from(u32_at(&ic_resp, 12))?;
        io.piece = piece.min(maxh2cdata);
        let data = pattern(LEN, u8::try_from(round)?);
        let lba = u64::try_from(round)? * u64::from(blocks);
        let answer = io.execute_by_r2t(Sqe::blocks(WRITE, lba, blocks).moves(LEN), &data)?;
        ensure!(answer.status == 0, "pieces of {piece}: {answer:x?}");
        let answer = io.execute(Sqe::blocks(READ, lba, blocks).moves(LEN), &[])?;
        ensure!(answer.status == 0 && answer.data == data, "pieces of {piece}: other data");
    }
    // One byte more than MAXH2CDATA in one PDU.
    let (_admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
    let (mut io, ic_resp) = Wire::initialized_with(target.port(), 0, 0)?;
    io.connect(target.nqn(), 1, cntlid)?;
    let cid = io.submit(Sqe::blocks(WRITE, 0, blocks).moves(LEN), &[])?;
    let r2t = io.receive()?;
    ensure!(r2t.kind == R2T);
    let maxh2cdata = usize::try_from(u32_at(&ic_resp, 12))?;
    let bytes = io.h2c_data(cid, u16_at(&r2t.head, 10), 0, &vec![0; maxh2cdata + 4], 0);
    drop(io.send(&bytes));
    io.ends_with(5, None, &bytes)
}

#[test]
fn data_for_the_host_keep_its_alignment_and_end_once() -> Result<()> {
    let target = target()?;
    let expected = pattern(65_536, 3);
    {
        let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
        ensure!(io.execute_by_r2t(Sqe::blocks(WRITE, 0, 128).moves(65_536), &expected)?.status == 0);
    }
    for (hpda, dgst) in [(0, 0), (0, 3), (1, 0), (1, 1), (3, 3), (7, 2), (15, 3), (30, 1), (31, 0)] {
        for flow_control in [true, false] {
            let (_admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
            let (mut io, _) = Wire::initialized_with(target.port(), hpda, dgst)?;
            let cattr = if flow_control { 0 } else { 4 };
            let data = crate::wire::connect_data(target.nqn(), crate::wire::HOST_NQN, cntlid);
            let connect = crate::wire::connect_sqe(1).dw(11, 127 | cattr << 16);
            ensure!(io.execute(connect, &data)?.status == 0);
            let cid = io.submit(Sqe::blocks(READ, 0, 128).moves(65_536), &[])?;
            let what = format!("HPDA {hpda}, digests {dgst}, flow control {flow_control}");
            let mut got = Vec::new();
            loop {
                let pdu = io.receive().context(what.clone())?;
                if pdu.kind == CAPSULE_RESP {
                    break;
                }
                ensure!(pdu.kind == C2H_DATA && u16_at(&pdu.head, 8) == cid, "{what}: {pdu:x?}");
                ensure!(usize::from(pdu.pdo) % (usize::from(hpda + 1) * 4) == 0, "{what}: PDO {}", pdu.pdo);
                got.extend(pdu.data);
                ensure!((pdu.flags & LAST != 0) == (got.len() == expected.len()), "{what}: LAST");
                // Without flow control nobody needs the SQHD of a response.
                if pdu.flags & SUCCESS != 0 {
                    ensure!(!flow_control, "{what}: SUCCESS hides SQHD");
                    break;
                }
            }
            ensure!(got == expected, "{what}: other data");
            ensure!(io.execute(Sqe::new(0).nsid(1), &[])?.status == 0, "{what}: flush behind it");
        }
    }
    Ok(())
}

#[test]
fn an_empty_queue_tells_its_heads_way_round() -> Result<()> {
    let target = target()?;
    let (_admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
    let mut io = Wire::initialized(target.port())?;
    let data = crate::wire::connect_data(target.nqn(), crate::wire::HOST_NQN, cntlid);
    // Four entries: at most three commands under way, and SQHD goes 1, 2, 3, 0, 1 ...
    let first = io.execute(crate::wire::connect_sqe(1).dw(11, 3), &data)?;
    ensure!((first.status, first.sqhd) == (0, 1), "{first:x?}");
    for at in 2..20_u16 {
        let answer = io.execute(Sqe::new(0).nsid(1), &[])?;
        ensure!(answer.sqhd == at % 4, "command {at}: {answer:x?}");
    }
    // A command with an identifier that is under way is told so, and the first goes on.
    let cid = io.submit(Sqe::blocks(WRITE, 0, 8).moves(4096), &[])?;
    let r2t = io.receive()?;
    let mut flush = Sqe::new(0).nsid(1);
    put(&mut flush.0, 2, &cid.to_le_bytes());
    let bytes = io.capsule(flush, &[]);
    io.send(&bytes)?;
    let conflict = crate::wire::completion(&io.receive()?);
    ensure!((conflict.cid, conflict.status) == (cid, 0x003), "{conflict:x?}");
    let bytes = io.h2c_data(cid, u16_at(&r2t.head, 10), 0, &[1; 4096], LAST);
    io.send(&bytes)?;
    ensure!(io.answer_to(cid, &[])?.status == 0);
    Ok(())
}
