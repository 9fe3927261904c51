//! Commands of the NVM command set: every opcode, namespace, range and flag.

use anyhow::{Result, ensure};
use penstock_tests::target::Target;
use serde_json::json;

use crate::wire::{Answer, Sqe, Wire};
use crate::{BLOCKS, target, target_with};

const SUCCESS: u16 = 0;
const INVALID_OPCODE: u16 = 0x001;
const INVALID_FIELD: u16 = 0x002;
const INVALID_NAMESPACE: u16 = 0x00b;
const LBA_OUT_OF_RANGE: u16 = 0x080;
const COMPARE_FAILURE: u16 = 0x285;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const COMPARE: u8 = 0x05;
const WRITE_ZEROES: u8 = 0x08;
const DSM: u8 = 0x09;
const VERIFY: u8 = 0x0c;
const COPY: u8 = 0x19;
const RESERVATIONS: [u8; 4] = [0x0d, 0x0e, 0x11, 0x15];

/// A command for blocks, with its data where it has some.
fn run(io: &mut Wire, opcode: u8, lba: u64, blocks: u32, change: impl Fn(Sqe) -> Sqe) -> Result<Answer> {
    let len = usize::try_from(blocks)? * 512;
    let sqe = Sqe::blocks(opcode, lba, blocks);
    match opcode {
        WRITE | COMPARE => io.execute_by_r2t(change(sqe.moves(len)), &vec![0; len]),
        READ => io.execute(change(sqe.moves(len)), &[]),
        _ => io.execute(change(sqe), &[]),
    }
}

fn ranges(ranges: &[(u64, u32)]) -> Vec<u8> {
    let range =
        |(lba, blocks): &(u64, u32)| [&[0; 4][..], &blocks.to_le_bytes(), &lba.to_le_bytes()].concat();
    ranges.iter().flat_map(range).collect()
}

/// Copy's source ranges, format 0.
fn sources(ranges: &[(u64, u16)]) -> Vec<u8> {
    let range = |(lba, blocks): &(u64, u16)| {
        let mut bytes = [0; 32];
        crate::wire::put(&mut bytes, 8, &lba.to_le_bytes());
        crate::wire::put(&mut bytes, 16, &blocks.wrapping_sub(1).to_le_bytes());
        bytes
    };
    ranges.iter().flat_map(range).collect()
}

#[test]
fn an_opcode_that_is_none_is_invalid_and_nothing_else_happens() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let known = [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM, VERIFY, COPY, 0x7f];
    for opcode in (0..=u8::MAX).filter(|opcode| !known.contains(opcode) && !RESERVATIONS.contains(opcode)) {
        let answer = io.execute(Sqe::new(opcode).nsid(1), &[])?;
        ensure!(answer.status == INVALID_OPCODE && answer.dnr, "opcode {opcode:#04x}: {answer:x?}");
    }
    for fctype in [0x00, 0x02, 0x04, 0x09, 0xff] {
        let answer = io.execute(Sqe::fabrics(fctype), &[])?;
        ensure!(answer.status != SUCCESS, "Fabrics command {fctype:#04x} on an I/O queue: {answer:x?}");
    }
    ensure!(run(&mut io, READ, 0, 1, |sqe| sqe)?.status == SUCCESS);
    Ok(())
}

#[test]
fn namespaces_that_are_not_there_are_told_apart() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    for opcode in [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, VERIFY] {
        for (nsid, status) in [
            (0, INVALID_NAMESPACE),
            (2, INVALID_FIELD),
            (0x1234_5678, INVALID_NAMESPACE),
            (u32::MAX, INVALID_NAMESPACE),
        ] {
            let status = if (opcode, nsid) == (FLUSH, u32::MAX) { SUCCESS } else { status };
            let answer = run(&mut io, opcode, 0, 1, |sqe| sqe.nsid(nsid))?;
            ensure!(answer.status == status, "opcode {opcode:#04x}, NSID {nsid:#x}: {answer:x?}");
        }
    }
    Ok(())
}

#[test]
fn ranges_of_blocks_end_with_the_namespace() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let cases: [(u64, u32, u16); 9] = [
        (0, 1, SUCCESS),
        (BLOCKS - 1, 1, SUCCESS),
        (BLOCKS - 8, 8, SUCCESS),
        (BLOCKS - 7, 8, LBA_OUT_OF_RANGE),
        (BLOCKS, 1, LBA_OUT_OF_RANGE),
        (1 << 32, 1, LBA_OUT_OF_RANGE),
        (1 << 63, 1, LBA_OUT_OF_RANGE),
        (u64::MAX, 1, LBA_OUT_OF_RANGE),
        (u64::MAX - 6, 8, LBA_OUT_OF_RANGE),
    ];
    for opcode in [WRITE, READ, COMPARE, WRITE_ZEROES, VERIFY] {
        for (lba, blocks, status) in cases {
            let answer = run(&mut io, opcode, lba, blocks, |sqe| sqe)?;
            ensure!(
                answer.status == status,
                "opcode {opcode:#04x}, {blocks} blocks at {lba:#x}: {answer:x?}"
            );
        }
    }
    for (lba, blocks, status) in cases {
        let list = ranges(&[(0, 1), (lba, blocks)]);
        let answer = io.execute(Sqe::new(DSM).nsid(1).dw(10, 1).dw(11, 4).carries(list.len()), &list)?;
        ensure!(answer.status == status, "deallocation of {blocks} blocks at {lba:#x}: {answer:x?}");
        let list = sources(&[(0, 1), (lba, u16::try_from(blocks)?)]);
        let copy = Sqe::new(COPY).nsid(1).dw(10, 64).dw(12, 1).carries(list.len());
        let answer = io.execute(copy, &list)?;
        ensure!(answer.status == status, "copy of {blocks} blocks at {lba:#x}: {answer:x?}");
    }
    Ok(())
}

#[test]
fn flags_that_are_not_offered_are_invalid_and_others_are_honoured() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    // Bits of dword 12.
    let cases: [(&str, u32, u16); 7] = [
        ("FUA", 1 << 30, SUCCESS),
        ("limited retry", 1 << 31, SUCCESS),
        ("PRACT", 1 << 29, INVALID_FIELD),
        ("PRCHK guard", 1 << 28, INVALID_FIELD),
        ("PRCHK application tag", 1 << 27, INVALID_FIELD),
        ("PRCHK reference tag", 1 << 26, INVALID_FIELD),
        ("storage tag check", 1 << 24, INVALID_FIELD),
    ];
    for opcode in [WRITE, READ, COMPARE, WRITE_ZEROES, VERIFY] {
        for (what, bits, status) in cases {
            // DEAC has the place of a directive's type here: it is Write Zeroes' own.
            let answer = run(&mut io, opcode, 0, 8, |sqe| sqe.dw(12, 7 | bits))?;
            ensure!(answer.status == status, "{what} in opcode {opcode:#04x}: {answer:x?}");
        }
    }
    let directive = run(&mut io, WRITE, 0, 8, |sqe| sqe.dw(12, 7 | 1 << 20))?;
    ensure!(directive.status == INVALID_FIELD, "a stream: {directive:x?}");
    let hints = run(&mut io, READ, 0, 8, |sqe| sqe.dw(13, 0x7f))?;
    ensure!(hints.status == SUCCESS, "DSM hints: {hints:x?}");
    let deac = run(&mut io, WRITE_ZEROES, 0, 8, |sqe| sqe.dw(12, 7 | 1 << 25))?;
    ensure!(deac.status == SUCCESS, "DEAC: {deac:x?}");
    Ok(())
}

#[test]
fn fused_commands_are_compare_and_write_next_to_each_other() -> Result<()> {
    const FAILED_FUSED: u16 = 0x009;
    const MISSING_FUSED: u16 = 0x00a;
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let first = |sqe: Sqe| sqe.byte(1, 0x41);
    let second = |sqe: Sqe| sqe.byte(1, 0x42);
    let sqe = |opcode: u8| Sqe::blocks(opcode, 40, 1).carries(512);
    // What is there, what is compared, and the statuses of both.
    for (compared, statuses) in [(0_u8, [SUCCESS, SUCCESS]), (0xee, [COMPARE_FAILURE, FAILED_FUSED])] {
        ensure!(io.execute(sqe(WRITE), &[0; 512])?.status == SUCCESS);
        let cids =
            [io.submit(first(sqe(COMPARE)), &[compared; 512])?, io.submit(second(sqe(WRITE)), &[7; 512])?];
        for (cid, status) in cids.into_iter().zip(statuses) {
            let answer = io.answer_to(cid, &[])?;
            ensure!(answer.status == status, "compared with {compared:#x}: {answer:x?}");
        }
        let now = io.execute(Sqe::blocks(READ, 40, 1).moves(512), &[])?.data;
        ensure!(now == [if compared == 0 { 7 } else { 0 }; 512]);
    }
    // A second without a first; a first whose second is none; pairs of other commands.
    let lonely = io.execute(second(sqe(WRITE)), &[7; 512])?;
    ensure!(lonely.status == MISSING_FUSED, "a second alone: {lonely:x?}");
    let cid = io.submit(first(sqe(COMPARE)), &[0; 512])?;
    let flush = io.submit(Sqe::new(FLUSH).nsid(1), &[])?;
    let mut ends = [crate::wire::completion(&io.receive()?), crate::wire::completion(&io.receive()?)];
    ends.sort_by_key(|end| end.cid);
    ensure!((ends[0].cid, ends[0].status) == (cid, MISSING_FUSED), "{ends:x?}");
    ensure!((ends[1].cid, ends[1].status) == (flush, SUCCESS), "{ends:x?}");
    for (what, bad) in [("FUSE 3", sqe(WRITE).byte(1, 0x43)), ("a write as the first", first(sqe(WRITE)))] {
        let answer = io.execute(bad, &[0; 512])?;
        ensure!(answer.status == INVALID_FIELD, "{what}: {answer:x?}");
    }
    ensure!(io.execute(sqe(WRITE), &[0; 512])?.status == SUCCESS);
    Ok(())
}

#[test]
fn more_than_mdts_is_refused_and_all_of_it_is_served() -> Result<()> {
    let target = target_with(json!({ "max_io_size": 65_536, "io_unit_size": 65_536 }))?;
    let (mut admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let identify = admin.execute(Sqe::new(6).dw(10, 1).moves(4096), &[])?;
    let mdts = u32::from(identify.data[77]);
    ensure!(1 << (mdts + 12) == 65_536, "MDTS {mdts}");
    for opcode in [WRITE, READ, COMPARE, VERIFY] {
        let most = run(&mut io, opcode, 0, 128, |sqe| sqe)?;
        ensure!(most.status == SUCCESS, "MDTS by opcode {opcode:#04x}: {most:x?}");
        let more = run(&mut io, opcode, 0, 129, |sqe| sqe)?;
        ensure!(more.status == INVALID_FIELD, "one block more by opcode {opcode:#04x}: {more:x?}");
    }
    Ok(())
}

#[test]
fn lists_of_ranges_have_the_length_that_their_number_says() -> Result<()> {
    let target = target()?;
    let (_admin, mut io) = Wire::host(target.port(), target.nqn())?;
    let list = ranges(&[(0, 8); 256]);
    let dsm = |count: u32| Sqe::new(DSM).nsid(1).dw(10, count - 1).dw(11, 4);
    ensure!(io.execute(dsm(256).carries(4096), &list)?.status == SUCCESS);
    ensure!(io.execute_by_r2t(dsm(256).moves(4096), &list)?.status == SUCCESS);
    ensure!(io.execute(dsm(1).carries(4096), &list)?.status == SUCCESS, "a page, however few ranges");
    ensure!(io.execute(dsm(2).carries(16), &list[..16])?.status == 0x00f, "fewer than it says");
    ensure!(io.execute(dsm(1).carries(16), &ranges(&[(0, 0)]))?.status == SUCCESS, "a range of nothing");
    // Attributes that are only hints.
    ensure!(io.execute(dsm(1).dw(11, 3).carries(16), &ranges(&[(0, 8)]))?.status == SUCCESS);
    let copy = |count: u32| Sqe::new(COPY).nsid(1).dw(10, 100).dw(12, count - 1);
    let one = sources(&[(0, 8)]);
    ensure!(io.execute(copy(1).carries(32), &one)?.status == SUCCESS);
    ensure!(io.execute(copy(2).carries(32), &one)?.status == 0x00f, "fewer than it says");
    for format in 1..16 {
        let answer = io.execute(copy(1).dw(12, format << 8).carries(32), &one)?;
        ensure!(answer.status == INVALID_FIELD, "copy format {format}: {answer:x?}");
    }
    Ok(())
}
