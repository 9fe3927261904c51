//! Third-party copies: EXTENDED COPY and tokens.
#![allow(clippy::cloned_ref_to_slice_refs, reason = "descriptor lists read better as arrays")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod bench;

use bench::{BLOCKS, Bench, INVALID_CDB, pr_out};
use penstock_bdev::{IoStatus, Op};
use penstock_reactor::Tick;

/// One CSCD descriptor that designates a logical unit by its NAA.
fn cscd(bench: &Bench, lu: usize) -> Vec<u8> {
    let mut descriptor = vec![0xe4, 0, 0, 0, 1, 3, 0, 8];
    descriptor.extend(bench.owners[lu].view().config.naa());
    descriptor.resize(32, 0);
    descriptor[30] = 2;
    descriptor
}

fn blocks(source: u16, target: u16, count: u16, from: u64, to: u64) -> Vec<u8> {
    let mut segment = vec![2, 0, 0, 24];
    segment.extend(source.to_be_bytes());
    segment.extend(target.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(count.to_be_bytes());
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment
}

fn bytes(count: u32, from: u64, to: u64) -> Vec<u8> {
    let mut segment = vec![0x0a, 0, 0, 28, 0, 0, 0, 0];
    segment.extend(count.to_be_bytes());
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend([0; 4]);
    segment
}

fn list(id: u8, usage: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut list = vec![id, usage << 3];
    list.extend((cscds.len() as u16).to_be_bytes());
    list.extend([0; 4]);
    list.extend((segments.len() as u32).to_be_bytes());
    list.extend([0; 4]);
    list.extend(cscds);
    list.extend(segments);
    list
}

fn cdb(opcode: u8, action: u8, len: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = action;
    cdb[10..14].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

fn xcopy(bench: &mut Bench, list: &[u8]) -> bench::Outcome {
    bench.run(0, 0, &cdb(0x83, 0, list.len()), list)
}

fn fill(bench: &mut Bench) {
    for (index, byte) in bench.disks[0].iter_mut().enumerate() {
        *byte = (index / 512) as u8 ^ (index / 131_072) as u8;
    }
}

#[test]
fn blocks_are_copied_within_a_disk_and_between_disks() {
    let mut bench = Bench::new(2, 1);
    fill(&mut bench);
    let own = cscd(&bench, 0);
    let copy = list(1, 2, &[own.clone()], &[blocks(0, 0, 2048, 0, BLOCKS - 2048)]);
    assert_eq!(xcopy(&mut bench, &copy).ops, [Op::Copy]);
    assert_eq!(bench.disks[0][..1 << 20], bench.disks[0][1 << 20..]);
    let other = cscd(&bench, 1);
    let segments = [blocks(0, 1, 1000, 5, 7), blocks(0, 1, 1, 0, 0)];
    let copy = list(1, 2, &[own.clone(), other], &segments);
    let outcome = xcopy(&mut bench, &copy);
    assert_eq!(outcome.ops, [Op::Read, Op::Write, Op::Read, Op::Write, Op::Read, Op::Write]);
    assert_eq!(bench.disks[1][7 * 512..1007 * 512], bench.disks[0][5 * 512..1005 * 512]);
    assert_eq!(bench.disks[1][..512], bench.disks[0][..512]);
    let copy = list(1, 2, &[own.clone()], &[bytes(64 << 10, 3, 1000)]);
    xcopy(&mut bench, &copy).good();
    assert_eq!(bench.disks[0][1000 * 512..1128 * 512], bench.disks[0][3 * 512..131 * 512]);
    // LU ID TYPE is not looked at; the T10 designator is as good, even cut to what fits.
    let mut t10 = vec![0xe4, 0xc0, 0, 0, 2, 1, 0, 20];
    t10.extend(b"PENSTOCK000000001234");
    t10.resize(32, 0);
    let copy = list(1, 2, &[t10], &[blocks(0, 0, 1, 3, 4)]);
    xcopy(&mut bench, &copy).good();
    xcopy(&mut bench, &[]).good();
}

#[test]
fn wrong_descriptors_are_told_apart() {
    let mut bench = Bench::new(1, 1);
    let own = cscd(&bench, 0);
    let params = bench.run(0, 0, &cdb(0x84, 3, 1000), &[]).good();
    let field = |at: usize| usize::from(u16::from_be_bytes(params[at..at + 2].try_into().unwrap()));
    let (cscds_max, segments_max) = (field(8), field(10));
    let bytes_max = field(14);
    assert_eq!((params.len(), params[43], &params[44..]), (47, 3, &[0x02, 0x0a, 0xe4][..]));
    let segment = blocks(0, 0, 1, 0, 1);
    let many = list(1, 0, &vec![own.clone(); cscds_max + 1], &[segment.clone()]);
    xcopy(&mut bench, &many).check(5, 0x2606);
    let many = list(1, 0, &[own.clone()], &vec![segment.clone(); segments_max + 1]);
    xcopy(&mut bench, &many).check(5, 0x2608);
    let long = list(1, 0, &vec![own.clone(); cscds_max + 1], &vec![segment.clone(); bytes_max / 28]);
    xcopy(&mut bench, &long).check(5, 0x1a00);
    let mut fibre = own.clone();
    fibre[0] = 0xe0;
    xcopy(&mut bench, &list(1, 0, &[fibre], &[segment.clone()])).check(5, 0x2607);
    xcopy(&mut bench, &list(1, 0, &[own.clone()], &[vec![3, 0, 0, 4, 0, 0, 0, 0]])).check(5, 0x2609);
    let whole = list(1, 0, &[own.clone()], &[segment]);
    for cut in 1..whole.len() {
        xcopy(&mut bench, &whole[..cut]).check(5, 0x1a00);
    }
    xcopy(&mut bench, &list(1, 0, &[own.clone()], &[blocks(0, 1, 1, 0, 1)])).check(0xa, 0x0804);
    xcopy(&mut bench, &list(1, 0, &[own.clone()], &[blocks(0, 0, 2, 0, BLOCKS - 1)])).check(0xa, 0);
    xcopy(&mut bench, &list(1, 0, &[own.clone()], &[blocks(0, 0, 2, BLOCKS, 0)])).check(0xa, 0);
    xcopy(&mut bench, &list(1, 0, &[own.clone()], &[bytes(100, 0, 5)])).check(5, 0x2600);
    bench.fail = Some((Op::Copy, IoStatus::ReadError));
    xcopy(&mut bench, &list(1, 0, &[own.clone()], &[blocks(0, 0, 1, 0, 1)])).check(0xa, 0x0d02);
    bench.fail = Some((Op::Copy, IoStatus::NoSpace));
    xcopy(&mut bench, &list(1, 0, &[own], &[blocks(0, 0, 1, 0, 1)])).check(7, 0x2707);
}

#[test]
fn the_status_of_a_copy_is_held_until_it_is_asked_for() {
    let mut bench = Bench::new(1, 1);
    let own = cscd(&bench, 0);
    let mut status = cdb(0x84, 0, 100);
    status[2] = 9;
    bench.run(0, 0, &status, &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    xcopy(&mut bench, &list(9, 0, &[own.clone()], &[blocks(0, 0, 5, 0, 5)])).good();
    assert_eq!(bench.run(0, 0, &status, &[]).good(), [0, 0, 0, 8, 1, 0, 1, 0xf1, 0, 0, 0, 5]);
    bench.run(0, 0, &status, &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    xcopy(&mut bench, &list(9, 2, &[own], &[blocks(0, 0, 5, 0, 5)])).good();
    bench.run(0, 0, &status, &[]).check(INVALID_CDB.0, INVALID_CDB.1);
}

#[test]
fn a_copy_needs_the_rights_of_both_its_sides() {
    let mut bench = Bench::new(2, 2);
    let (reserve, register) = (pr_out(1, 3, 7, 0, 0), pr_out(6, 0, 0, 7, 0));
    bench.run(1, 1, &register.0, &register.1).good();
    bench.run(1, 1, &reserve.0, &reserve.1).good();
    let sides = [cscd(&bench, 0), cscd(&bench, 1)];
    for (source, target) in [(0, 1), (1, 0)] {
        xcopy(&mut bench, &list(1, 2, &sides, &[blocks(source, target, 1, 0, 1)])).conflict();
    }
    xcopy(&mut bench, &list(1, 2, &sides, &[blocks(0, 0, 1, 0, 1)])).good();
}

fn populate(bench: &mut Bench, id: u32, ranges: &[(u64, u32)]) -> bench::Outcome {
    let mut list = vec![0; 16];
    list[..2].copy_from_slice(&(14 + 16 * ranges.len() as u16).to_be_bytes());
    list[14..16].copy_from_slice(&(16 * ranges.len() as u16).to_be_bytes());
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let mut cdb = cdb(0x83, 0x10, list.len());
    cdb[6..10].copy_from_slice(&id.to_be_bytes());
    bench.run(0, 0, &cdb, &list)
}

fn information(bench: &mut Bench, id: u32) -> bench::Outcome {
    let mut cdb = cdb(0x84, 0x07, 1000);
    cdb[2..6].copy_from_slice(&id.to_be_bytes());
    bench.run(0, 0, &cdb, &[])
}

fn write_using(
    bench: &mut Bench,
    lun: u16,
    token: &[u8],
    offset: u64,
    ranges: &[(u64, u32)],
) -> bench::Outcome {
    let mut list = vec![0; 536];
    list[..2].copy_from_slice(&(534 + 16 * ranges.len() as u16).to_be_bytes());
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token);
    list[534..536].copy_from_slice(&(16 * ranges.len() as u16).to_be_bytes());
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let mut cdb = cdb(0x83, 0x11, list.len());
    cdb[9] = 0x44;
    bench.run(0, lun, &cdb, &list)
}

#[test]
fn a_token_moves_blocks_within_a_disk_and_between_disks() {
    let mut bench = Bench::new(2, 1);
    fill(&mut bench);
    populate(&mut bench, 0x77, &[(10, 4), (100, 6)]).good();
    let data = information(&mut bench, 0x77).good();
    assert_eq!(data.len(), 32 + 4 + 2 + 512);
    assert_eq!((data[4], data[5], data[15]), (0x10, 1, 0xf1));
    assert_eq!(data[16..24], 10_u64.to_be_bytes());
    assert_eq!(data[32..38], [0, 0, 2, 2, 0, 0]);
    let token = data[38..].to_vec();
    assert_eq!(token[..8], [0, 1, 0, 0, 0, 0, 1, 0xf8]);
    assert_eq!(token[56..64], 5120_u64.to_be_bytes());
    write_using(&mut bench, 0, &token, 2, &[(1000, 3), (2000, 9)]).good();
    let block =
        |bench: &Bench, disk: usize, lba: usize| bench.disks[disk][lba * 512..(lba + 1) * 512].to_vec();
    for (from, to) in [(12, 1000), (13, 1001), (100, 1002), (101, 2000), (105, 2004)] {
        assert_eq!(block(&bench, 0, from), block(&bench, 0, to));
    }
    write_using(&mut bench, 1, &token, 0, &[(7, 10)]).good();
    assert_eq!((block(&bench, 1, 7), block(&bench, 1, 16)), (block(&bench, 0, 10), block(&bench, 0, 105)));
    let done = information(&mut bench, 0x44).good();
    assert_eq!((done[4], done[5], done.len()), (0x11, 1, 36));
    assert_eq!(done[16..24], 10_u64.to_be_bytes());
    information(&mut bench, 5).check(INVALID_CDB.0, INVALID_CDB.1);
}

#[test]
fn tokens_that_are_changed_made_up_or_old_are_refused() {
    let mut bench = Bench::new(1, 1);
    populate(&mut bench, 1, &[(10, 4)]).good();
    let token = information(&mut bench, 1).good()[38..].to_vec();
    for at in [8, 20, 60, 128, 136, 152, 300, 511] {
        let mut forged = token.clone();
        forged[at] ^= 1;
        write_using(&mut bench, 0, &forged, 0, &[(1000, 1)]).check(5, 0x2304);
    }
    let mut other = token.clone();
    other[1] = 0x80;
    write_using(&mut bench, 0, &other, 0, &[(1000, 1)]).check(5, 0x2301);
    bench.now = Tick::from_ns(61_000_000_000);
    write_using(&mut bench, 0, &token, 0, &[(1000, 1)]).check(5, 0x2307);
    populate(&mut bench, 1, &[(BLOCKS, 1)]).check(5, 0x2100);
    populate(&mut bench, 1, &[]).check(5, 0x2600);
    populate(&mut bench, 1, &[(0, 1); 17]).check(5, 0x2608);
    // The token of zeroes is known to all.
    let mut zeroes = vec![0; 512];
    zeroes[..8].copy_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 1, 0xf8]);
    bench.disks[0].fill(1);
    assert_eq!(write_using(&mut bench, 0, &zeroes, 0, &[(5, 3)]).ops, [Op::WriteZeroes]);
    assert_eq!((bench.disks[0][5 * 512], bench.disks[0][8 * 512]), (0, 1));
}
