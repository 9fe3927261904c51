//! Commands that move blocks, against a disk in a vector.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod bench;

use bench::{BLOCKS, Bench, INVALID_CDB, LBA_OOB, Outcome, caw, rw10, rw12, rw16};
use penstock_bdev::{IoStatus, Op};
use proptest::prelude::*;

const READS: [u8; 3] = [0x28, 0xa8, 0x88];
const WRITES: [u8; 3] = [0x2a, 0xaa, 0x8a];
const WRITE_VERIFIES: [u8; 3] = [0x2e, 0xae, 0x8e];
const VERIFIES: [u8; 3] = [0x2f, 0xaf, 0x8f];

fn rw(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    match opcode >> 5 {
        1 | 2 => rw10(opcode, flags, lba as u32, blocks as u16).to_vec(),
        5 => rw12(opcode, flags, lba as u32, blocks).to_vec(),
        _ => rw16(opcode, flags, lba, blocks).to_vec(),
    }
}

#[test]
fn what_is_written_is_read_whichever_length_the_cdb_has() {
    let mut bench = Bench::new(1, 1);
    for (write, read) in WRITES.into_iter().zip(READS) {
        for (lba, blocks) in [(0, 1), (0, 256), (BLOCKS - 256, 256), (7, 1), (BLOCKS - 1, 1)] {
            let data = vec![write ^ blocks as u8; blocks as usize * 512];
            let outcome = bench.run(0, 0, &rw(write, 0, lba, blocks), &data);
            assert_eq!(outcome.transfer_bytes, data.len() as u64);
            outcome.good();
            assert_eq!(bench.run(0, 0, &rw(read, 0, lba, blocks), &[]).good(), data);
        }
    }
    // READ(6): a length of 0 means 256 blocks.
    assert_eq!(bench.run(0, 0, &[0x08, 0, 0, 0, 0, 0], &[]).good().len(), 256 * 512);
    bench.run(0, 0, &[0x0a, 0, 0, 3, 1, 0], &[9; 512]).good();
    assert_eq!(bench.run(0, 0, &[0x08, 0, 0, 3, 1, 0], &[]).good(), [9; 512]);
}

#[test]
fn what_is_beyond_the_end_is_refused_before_any_data_come() {
    let mut bench = Bench::new(1, 1);
    let all = READS.into_iter().chain(WRITES).chain(WRITE_VERIFIES).chain(VERIFIES).chain([0x8b, 0x34, 0x90]);
    for opcode in all {
        let data = vec![0; 512 * 256];
        for blocks in [1_u32, 2, 256] {
            let far = if opcode >> 5 == 4 { u64::MAX } else { u64::from(u32::MAX) };
            for lba in [BLOCKS + 1 - u64::from(blocks), BLOCKS, far / 2 + 1, far] {
                let outcome = bench.run(0, 0, &rw(opcode, 0, lba, blocks), &data[..512 * blocks as usize]);
                outcome.check(LBA_OOB.0, LBA_OOB.1);
                assert_eq!(outcome.ops, []);
            }
        }
        bench.run(0, 0, &rw(opcode, 0, 0, 0), &[]).good();
        bench.run(0, 0, &rw(opcode, 0, BLOCKS + 1, 0), &[]).check(LBA_OOB.0, LBA_OOB.1);
    }
}

#[test]
fn protection_information_is_refused_and_dpo_and_fua_are_taken() {
    let mut bench = Bench::new(1, 1);
    let all = READS.into_iter().chain(WRITES).chain(WRITE_VERIFIES).chain(VERIFIES).chain([0x8b]);
    for opcode in all {
        for protect in 1..8 {
            let outcome = bench.run(0, 0, &rw(opcode, protect << 5, 0, 1), &[0; 512]);
            outcome.check(INVALID_CDB.0, INVALID_CDB.1);
        }
        bench.run(0, 0, &rw(opcode, 0x10, 0, 1), &[0; 512]).good();
    }
    for opcode in READS.into_iter().chain(WRITES).chain([0x8b]) {
        bench.run(0, 0, &rw(opcode, 0x1a, 0, 1), &[0; 512]).good();
    }
}

#[test]
fn a_write_with_less_data_writes_whole_blocks_of_what_there_is() {
    let mut bench = Bench::new(1, 1);
    for opcode in WRITES.into_iter().chain(WRITE_VERIFIES) {
        bench.disks[0].fill(b'a');
        let outcome = bench.run(0, 0, &rw(opcode, 0, 0, 2), &[b'b'; 512]);
        assert_eq!(outcome.transfer_bytes, 1024);
        outcome.good();
        assert_eq!((bench.disks[0][511], bench.disks[0][512]), (b'b', b'a'));
        // More data than blocks: the rest is not asked for.
        let outcome = bench.run(0, 0, &rw(opcode, 0, 1, 1), &[b'c'; 10_000]);
        assert_eq!(outcome.transfer_bytes, 512);
        outcome.good();
        assert_eq!((bench.disks[0][1023], bench.disks[0][1024]), (b'c', b'a'));
        // Nothing at all.
        let outcome = bench.run(0, 0, &rw(opcode, 0, 0, 1), &[]);
        assert_eq!((outcome.transfer_bytes, outcome.ops.len()), (512, 0));
        outcome.good();
        // Part of a block.
        let outcome = bench.run(0, 0, &rw(opcode, 0, 0, 1), &[b'd'; 200]);
        assert_eq!((outcome.transfer_bytes, outcome.ops.len()), (512, 0));
        outcome.check(5, 0x0e03);
    }
}

#[test]
fn verifying_compares_what_bytchk_says() {
    let mut bench = Bench::new(1, 1);
    for (index, byte) in bench.disks[0].iter_mut().enumerate() {
        *byte = (index / 512) as u8;
    }
    for opcode in VERIFIES {
        let mut data = bench.disks[0][512..512 * 41].to_vec();
        bench.run(0, 0, &rw(opcode, 0x02, 1, 40), &data).good();
        data[1000] ^= 0x55;
        let outcome = bench.run(0, 0, &rw(opcode, 0x02, 1, 40), &data);
        outcome.check(0xe, 0x1d00);
        // INFORMATION is where they differ.
        assert_eq!(outcome.sense_bytes[..7], [0xf0, 0, 0xe, 0, 0, 3, 0xe8]);
        let outcome = bench.run(0, 0, &rw(opcode, 0x00, 0, 4096), &[]);
        assert_eq!(outcome.ops, [Op::Read; 8]);
        assert!(outcome.good().is_empty());
        // The same block everywhere.
        bench.run(0, 0, &rw(opcode, 0x06, 3, 1), &[3; 512]).good();
        let outcome = bench.run(0, 0, &rw(opcode, 0x06, 3, 2), &[3; 512]);
        outcome.check(0xe, 0x1d00);
        assert_eq!(outcome.sense_bytes[3..7], [0, 0, 2, 0]);
        bench.run(0, 0, &rw(opcode, 0x04, 3, 2), &[3; 512]).check(INVALID_CDB.0, INVALID_CDB.1);
    }
    bench.disks[0].fill(7);
    bench.run(0, 0, &rw(0x8f, 0x06, 0, 4096), &[7; 512]).good();
}

#[test]
fn write_and_verify_writes_and_then_reads_or_compares() {
    let mut bench = Bench::new(1, 1);
    for opcode in WRITE_VERIFIES {
        let outcome = bench.run(0, 0, &rw(opcode, 0x02, 5, 3), &[opcode; 1536]);
        assert_eq!(outcome.ops, [Op::Write, Op::Compare]);
        let outcome = bench.run(0, 0, &rw(opcode, 0x00, 5, 3), &[opcode; 1536]);
        assert_eq!(outcome.ops, [Op::Write, Op::Read]);
        assert!(outcome.good().is_empty());
        assert_eq!(bench.disks[0][5 * 512..8 * 512], [opcode; 1536]);
        bench.fail = Some((Op::Read, IoStatus::ReadError));
        bench.run(0, 0, &rw(opcode, 0x00, 5, 3), &[opcode; 1536]).check(3, 0x1100);
    }
}

#[test]
fn compare_and_write_needs_both_halves_and_says_where_they_differ() {
    let mut bench = Bench::new(1, 1);
    bench.disks[0].fill(b'A');
    for blocks in [1_u8, 2, 255] {
        let half = usize::from(blocks) * 512;
        let mut data = vec![b'A'; half * 2];
        data[half..].fill(b'B');
        data[half - 27] = b'C';
        let outcome = bench.run(0, 0, &caw(0, 0, blocks), &data);
        outcome.check(0xe, 0x1d00);
        assert_eq!(outcome.sense_bytes[3..7], ((half - 27) as u32).to_be_bytes());
        assert!(bench.disks[0].iter().all(|byte| *byte == b'A'));
        data[half - 27] = b'A';
        bench.run(0, 0, &caw(0, 0, blocks), &data).good();
        assert!(bench.disks[0][..half].iter().all(|byte| *byte == b'B'));
        bench.disks[0].fill(b'A');
        for wrong in [half, half * 2 - 512, half * 2 + 512] {
            let data = vec![b'A'; wrong];
            assert_eq!(bench.run(0, 0, &caw(0, 0, blocks), &data).status, 2);
        }
    }
    bench.run(0, 0, &caw(0, 0, 0), &[]).good();
    bench.run(0, 0, &caw(0, BLOCKS, 1), &[0; 1024]).check(LBA_OOB.0, LBA_OOB.1);
    let mut small = Bench::with(1, 1, 512, |config| config.limits.compare_and_write_blocks_max = 4);
    small.run(0, 0, &caw(0, 0, 5), &[0; 5120]).check(INVALID_CDB.0, INVALID_CDB.1);
}

#[test]
fn orwrite_sets_bits_and_starts_over_when_others_write_meanwhile() {
    let mut bench = Bench::new(1, 1);
    bench.disks[0].fill(0xa5);
    bench.run(0, 0, &rw16(0x8b, 0, 3, 40), &[0x0a; 40 * 512]).good();
    assert_eq!(bench.disks[0][3 * 512..43 * 512], [0xaf; 40 * 512]);
    assert_eq!((bench.disks[0][3 * 512 - 1], bench.disks[0][43 * 512]), (0xa5, 0xa5));
    let mut times = 0;
    bench.meanwhile = Some(Box::new(move |disk| {
        times += 1;
        if times == 1 {
            disk[0] = 0x00;
        }
    }));
    let outcome = bench.run(0, 0, &rw16(0x8b, 0, 0, 1), &[0x0a; 512]);
    assert_eq!(outcome.ops, [Op::Read, Op::CompareAndWrite, Op::Read, Op::CompareAndWrite]);
    assert_eq!(bench.disks[0][..2], [0x0a, 0xaf]);
    bench.meanwhile = Some(Box::new(|disk| disk[0] = disk[0].wrapping_add(1)));
    assert_eq!(bench.run(0, 0, &rw16(0x8b, 0, 0, 1), &[0x0a; 512]).status, 0x08);
}

#[test]
fn write_same_repeats_a_block_and_unmaps_only_what_reads_the_same() {
    let mut bench = Bench::new(1, 1);
    for (cdb, unmap) in [
        (rw10(0x41, 0, 3, 2000).to_vec(), false),
        (rw16(0x93, 0, 3, 2000).to_vec(), false),
        (rw16(0x93, 0x08, 3, 2000).to_vec(), true),
    ] {
        bench.disks[0].fill(1);
        let outcome = bench.run(0, 0, &cdb, &[0x77; 512]);
        assert_eq!(outcome.ops, [Op::Write; 4]);
        assert!(bench.disks[0][3 * 512..2003 * 512].iter().all(|byte| *byte == 0x77));
        assert_eq!((bench.disks[0][1535], bench.disks[0][2003 * 512]), (1, 1));
        let outcome = bench.run(0, 0, &cdb, &[0; 512]);
        assert_eq!(outcome.ops, [Op::WriteZeroes], "{unmap}");
        assert!(bench.disks[0][3 * 512..2003 * 512].iter().all(|byte| *byte == 0));
    }
    // No data-out buffer: zeroes.
    bench.disks[0].fill(1);
    assert_eq!(bench.run(0, 0, &rw16(0x93, 0x09, 1, 2), &[]).ops, [Op::WriteZeroes]);
    assert_eq!(bench.disks[0][512..1536], [0; 1024]);
    for (cdb, data) in [
        (rw16(0x93, 0x10, 0, 1).to_vec(), 512),
        (rw16(0x93, 0x18, 0, 1).to_vec(), 512),
        (rw16(0x93, 0x20, 0, 1).to_vec(), 512),
        (rw16(0x93, 0, 0, 0).to_vec(), 512),
        (rw10(0x41, 0, 0, 0).to_vec(), 512),
    ] {
        bench.run(0, 0, &cdb, &vec![0; data]).check(INVALID_CDB.0, INVALID_CDB.1);
    }
    for wrong in [0, 256, 1024] {
        assert_eq!(bench.run(0, 0, &rw16(0x93, 0x08, 0, 1), &vec![0; wrong]).status, 2);
    }
    for (lba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1)] {
        bench.run(0, 0, &rw16(0x93, 0, lba, blocks), &[0; 512]).check(LBA_OOB.0, LBA_OOB.1);
    }
}

fn unmap(ranges: &[(u64, u32)]) -> ([u8; 10], Vec<u8>) {
    let descriptors = ranges.len() * 16;
    let mut list = Vec::new();
    list.extend((6 + descriptors as u16).to_be_bytes());
    list.extend((descriptors as u16).to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let [high, low] = (list.len() as u16).to_be_bytes();
    ([0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list)
}

#[test]
fn unmap_takes_ranges_and_refuses_those_that_are_not_there() {
    let mut bench = Bench::new(1, 1);
    bench.disks[0].fill(1);
    let (cdb, list) = unmap(&[(1, 2), (9, 0), (5, 1), (BLOCKS, 0)]);
    assert_eq!(bench.run(0, 0, &cdb, &list).ops, [Op::Unmap, Op::Unmap]);
    assert_eq!(bench.disks[0][512..1536], [0; 1024]);
    assert_eq!((bench.disks[0][5 * 512], bench.disks[0][1536]), (0, 1));
    let (cdb, list) = unmap(&[(BLOCKS, 1)]);
    bench.run(0, 0, &cdb, &list).check(LBA_OOB.0, LBA_OOB.1);
    let (cdb, list) = unmap(&[]);
    assert_eq!(bench.run(0, 0, &cdb, &list).ops, []);
    bench.run(0, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).good();
    bench.run(0, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 7, 0], &[0; 7]).check(5, 0x1a00);
    let (cdb, list) = unmap(&[(0, 1); 257]);
    bench.run(0, 0, &cdb, &list).check(5, 0x2600);
    let (cdb, list) = unmap(&[(0, 1); 256]);
    bench.run(0, 0, &cdb, &list).good();
    bench.fail = Some((Op::Unmap, IoStatus::NoSpace));
    let (cdb, list) = unmap(&[(0, 1)]);
    bench.run(0, 0, &cdb, &list).check(7, 0x2707);
}

#[test]
fn write_atomic_is_there_only_where_the_disk_promises_it() {
    let atomic = |blocks: u16, lba: u64| {
        let mut cdb = rw16(0x9c, 0, lba, 0);
        cdb[12..14].copy_from_slice(&blocks.to_be_bytes());
        cdb
    };
    let mut bench = Bench::new(1, 1);
    bench.run(0, 0, &atomic(1, 0), &[0; 512]).check(5, 0x2000);
    let mut bench = Bench::with(1, 1, 512, |config| config.limits.atomic_blocks_max = 8);
    bench.run(0, 0, &atomic(8, 4), &[5; 4096]).good();
    assert_eq!(bench.disks[0][4 * 512..12 * 512], [5; 4096]);
    bench.run(0, 0, &atomic(9, 0), &[5; 9 * 512]).check(INVALID_CDB.0, INVALID_CDB.1);
    bench.run(0, 0, &atomic(0, 0), &[]).good();
    bench.run(0, 0, &atomic(1, BLOCKS), &[5; 512]).check(LBA_OOB.0, LBA_OOB.1);
    assert_eq!(bench.run(0, 0, &atomic(8, 0), &[6; 512]).status, 2);
    assert_eq!(bench.disks[0][0], 0);
}

#[test]
fn a_flush_goes_to_the_disk() {
    let mut bench = Bench::new(1, 1);
    assert_eq!(bench.run(0, 0, &rw10(0x35, 0, 0, 0), &[]).ops, [Op::Flush]);
    assert_eq!(bench.run(0, 0, &rw16(0x91, 2, 0, 0), &[]).ops, [Op::Flush]);
    bench.run(0, 0, &rw16(0x91, 0, BLOCKS, 1), &[]).check(LBA_OOB.0, LBA_OOB.1);
    bench.fail = Some((Op::Flush, IoStatus::WriteError));
    bench.run(0, 0, &rw10(0x35, 0, 0, 0), &[]).check(3, 0x0c00);
    // START STOP UNIT that stops flushes, unless NO_FLUSH.
    assert_eq!(bench.run(0, 0, &[0x1b, 0, 0, 0, 0, 0], &[]).ops, [Op::Flush]);
    assert_eq!(bench.run(0, 0, &[0x1b, 0, 0, 0, 4, 0], &[]).ops, []);
    bench.run(0, 0, &[0x1b, 0, 0, 0, 2, 0], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
}

#[test]
fn transfers_beyond_the_limit_are_refused() {
    let mut bench = Bench::with(1, 1, 512, |config| config.limits.transfer_bytes_max = 8192);
    bench.run(0, 0, &rw10(0x28, 0, 0, 16), &[]).good();
    bench.run(0, 0, &rw10(0x28, 0, 0, 17), &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    bench.run(0, 0, &rw16(0x8a, 0, 0, 17), &[0; 17 * 512]).check(INVALID_CDB.0, INVALID_CDB.1);
}

#[derive(Debug, Clone)]
enum Action {
    Write(u64, u8, u8),
    WriteVerify(u64, u8, u8),
    Or(u64, u8, u8),
    Same(u64, u16, u8, bool),
    Unmap(u64, u16),
    CompareAndWrite(u64, u8, u8, u8),
    Copy(u64, u64, u16),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let lba = 0..BLOCKS + 4;
    let byte = prop_oneof![Just(0_u8), Just(1), Just(0x80), any::<u8>()];
    let action = prop_oneof![
        (lba.clone(), 0..20_u8, byte.clone())
            .prop_map(|(lba, blocks, byte)| Action::Write(lba, blocks, byte)),
        (lba.clone(), 0..20_u8, byte.clone())
            .prop_map(|(lba, blocks, byte)| Action::WriteVerify(lba, blocks, byte)),
        (lba.clone(), 0..20_u8, byte.clone()).prop_map(|(lba, blocks, byte)| Action::Or(lba, blocks, byte)),
        (lba.clone(), 0..1500_u16, byte.clone(), any::<bool>())
            .prop_map(|(lba, blocks, byte, unmap)| Action::Same(lba, blocks, byte, unmap)),
        (lba.clone(), 0..300_u16).prop_map(|(lba, blocks)| Action::Unmap(lba, blocks)),
        (lba.clone(), 0..9_u8, byte.clone(), byte)
            .prop_map(|(lba, blocks, old, new)| Action::CompareAndWrite(lba, blocks, old, new)),
        (lba.clone(), lba, 0..1200_u16).prop_map(|(from, to, blocks)| Action::Copy(from, to, blocks)),
    ];
    prop::collection::vec(action, 1..25)
}

fn perform(bench: &mut Bench, model: &mut Vec<u8>, action: &Action) -> (Outcome, bool) {
    let range = |lba: u64, blocks: usize| {
        let first = lba as usize * 512;
        (first + blocks * 512 <= BLOCKS as usize * 512).then_some(first..first + blocks * 512)
    };
    match *action {
        Action::Write(lba, blocks, byte) | Action::WriteVerify(lba, blocks, byte) => {
            let opcode = if matches!(action, Action::Write(..)) { 0x8a } else { 0x8e };
            let data = vec![byte; usize::from(blocks) * 512];
            let outcome = bench.run(0, 0, &rw16(opcode, 0, lba, blocks.into()), &data);
            let range = range(lba, usize::from(blocks));
            range.clone().inspect(|range| model[range.clone()].fill(byte));
            (outcome, range.is_some())
        }
        Action::Or(lba, blocks, byte) => {
            let data = vec![byte; usize::from(blocks) * 512];
            let outcome = bench.run(0, 0, &rw16(0x8b, 0, lba, blocks.into()), &data);
            let range = range(lba, usize::from(blocks));
            range.clone().inspect(|range| model[range.clone()].iter_mut().for_each(|old| *old |= byte));
            (outcome, range.is_some())
        }
        Action::Same(lba, blocks, byte, unmap) => {
            let flags = if unmap { 0x08 } else { 0 };
            let outcome = bench.run(0, 0, &rw16(0x93, flags, lba, blocks.into()), &[byte; 512]);
            let range = range(lba, usize::from(blocks)).filter(|_| blocks > 0);
            range.clone().inspect(|range| model[range.clone()].fill(byte));
            (outcome, range.is_some())
        }
        Action::Unmap(lba, blocks) => {
            let (cdb, list) = unmap(&[(lba, blocks.into())]);
            let outcome = bench.run(0, 0, &cdb, &list);
            let range = range(lba, usize::from(blocks));
            range.clone().inspect(|range| model[range.clone()].fill(0));
            (outcome, range.is_some())
        }
        Action::CompareAndWrite(lba, blocks, old, new) => {
            let mut data = vec![old; usize::from(blocks) * 512];
            data.extend(vec![new; usize::from(blocks) * 512]);
            let outcome = bench.run(0, 0, &caw(0, lba, blocks), &data);
            let range = range(lba, usize::from(blocks))
                .filter(|range| model[range.clone()].iter().all(|byte| *byte == old));
            range.clone().inspect(|range| model[range.clone()].fill(new));
            (outcome, range.is_some())
        }
        Action::Copy(from, to, blocks) => {
            let (cdb, list) = xcopy(bench, from, to, blocks);
            let outcome = bench.run(0, 0, &cdb, &list);
            let ranges = (range(from, usize::from(blocks)), range(to, usize::from(blocks)));
            // Chunks of what overlaps are copied in order, from the first on.
            if let (Some(from), Some(to)) = ranges.clone() {
                for (from, to) in from.zip(to) {
                    model[to] = model[from];
                }
            }
            let apart = from.abs_diff(to) >= u64::from(blocks);
            if !apart {
                model.clone_from(&bench.disks[0]);
            }
            (outcome, ranges.0.is_some() && ranges.1.is_some())
        }
    }
}

fn xcopy(bench: &Bench, from: u64, to: u64, blocks: u16) -> ([u8; 16], Vec<u8>) {
    let mut list = vec![0; 16 + 32 + 28];
    list[1] = 0x10;
    list[3] = 32;
    list[11] = 28;
    list[16] = 0xe4;
    list[20] = 1;
    list[21] = 3;
    list[23] = 8;
    list[24..32].copy_from_slice(&bench.owners[0].view().config.naa());
    list[46] = 2;
    list[48] = 2;
    list[51] = 24;
    list[58..60].copy_from_slice(&blocks.to_be_bytes());
    list[60..68].copy_from_slice(&from.to_be_bytes());
    list[68..76].copy_from_slice(&to.to_be_bytes());
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[13] = list.len() as u8;
    (cdb, list)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_sequence_of_commands_leaves_the_disk_as_a_vector_would_be(actions in actions()) {
        let mut bench = Bench::new(1, 1);
        let mut model = vec![0; BLOCKS as usize * 512];
        for action in &actions {
            let (outcome, done) = perform(&mut bench, &mut model, action);
            prop_assert_eq!(outcome.status == 0, done, "{:?} {:?}", action, outcome.sense);
            prop_assert!(bench.disks[0] == model, "{:?}", action);
        }
    }
}
