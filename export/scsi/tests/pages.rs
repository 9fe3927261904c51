//! The bytes of every page and report.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod bench;

use bench::{BLOCKS, Bench, INVALID_CDB, descriptor, rw10, rw16, thin, vpd};
use penstock_bdev::{Caps, Op};

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn standard_inquiry_says_what_the_disk_is() {
    let mut bench = Bench::new(1, 1);
    let data = bench.run(0, 0, &[0x12, 0, 0, 1, 4, 0], &[]).good();
    assert_eq!(data.len(), 96);
    assert_eq!(data[..8], [0x00, 0x00, 0x06, 0x12, 91, 0x38, 0, 2]);
    assert_eq!(&data[8..36], b"PENSTOCKVirtual Disk    0001");
    assert_eq!(
        [be16(&data, 58), be16(&data, 60), be16(&data, 62), be16(&data, 64)],
        [0x00a0, 0x0960, 0x0460, 0x04c0]
    );
    assert_eq!(data[66..], [0; 30]);
    for alloc in [0_u8, 5, 36, 95, 96, 255] {
        let cut = bench.run(0, 0, &[0x12, 0, 0, 0, alloc, 0], &[]).good();
        assert_eq!(cut[..], data[..data.len().min(alloc.into())]);
    }
    bench.run(0, 0, &[0x12, 0, 1, 0, 255, 0], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    bench.run(0, 0, &[0x12, 1, 0x01, 0, 255, 0], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    let mut removable = Bench::with(1, 1, 512, |config| config.removable = true);
    assert_eq!(removable.run(0, 0, &[0x12, 0, 0, 0, 96, 0], &[]).good()[1], 0x80);
}

#[test]
fn a_lun_without_disk_answers_inquiry_report_luns_and_request_sense_only() {
    let mut bench = Bench::new(2, 1);
    assert_eq!(bench.run(0, 7, &[0x12, 0, 0, 0, 36, 0], &[]).good()[..3], [0x7f, 0, 6]);
    bench.run(0, 7, &vpd(0x83, 255), &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    assert_eq!(
        bench.run(0, 7, &[3, 0, 0, 0, 18, 0], &[]).good()[2..13],
        [5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25]
    );
    let luns = bench.run(0, 7, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]).good();
    assert_eq!(luns, [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bench.run(0, 7, &[0; 6], &[]).check(5, 0x2500);
    bench.run(0, 7, &[0xff; 16], &[]).check(5, 0x2500);
    bench.run_wire(0, 0xc101_0000_0000_0000, &[0; 6], &[]).check(5, 0x2500);
    bench.run(0, 0, &[0xa0, 0, 0x55, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
}

#[test]
fn every_supported_page_is_there_in_ascending_order_with_its_length() {
    let mut bench = Bench::new(1, 1);
    let pages = bench.run(0, 0, &vpd(0, 255), &[]).good();
    assert_eq!(pages, [0, 0, 0, 10, 0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2]);
    for page in &pages[4..] {
        let data = bench.run(0, 0, &vpd(*page, 4096), &[]).good();
        assert_eq!((data[0], data[1]), (0, *page));
        assert_eq!(usize::from(be16(&data, 2)) + 4, data.len(), "page {page:02x}");
        let cut = bench.run(0, 0, &vpd(*page, 3), &[]).good();
        assert_eq!(cut[..], data[..3]);
    }
}

#[test]
fn identification_names_the_disk_its_port_its_group_and_its_target() {
    let mut bench = Bench::new(1, 1);
    assert_eq!(&bench.run(0, 0, &vpd(0x80, 255), &[]).good()[4..], b"00000000123456780000000000000000");
    let data = bench.run(0, 0, &vpd(0x83, 1024), &[]).good();
    let mut rest = &data[4..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let len = usize::from(rest[3]);
        found.push((rest[0], rest[1], rest[4..4 + len].to_vec()));
        rest = &rest[4 + len..];
    }
    let naa = bench.owners[0].view().config.naa().to_vec();
    assert_eq!(found[0], (0x01, 0x03, naa));
    assert_eq!(found[1], (0x02, 0x01, b"PENSTOCK00000000123456780000000000000000".to_vec()));
    assert_eq!(found[2], (0x51, 0x94, vec![0, 0, 0, 1]));
    assert_eq!(found[3], (0x51, 0x95, vec![0, 0, 0, 1]));
    assert_eq!(found[4], (0x53, 0x98, b"iqn.2024-01.io.penstock:test,t,0x0001\0\0\0".to_vec()));
    assert_eq!(found[5], (0x53, 0xa8, b"iqn.2024-01.io.penstock:test\0\0\0\0".to_vec()));
    assert_eq!(found.len(), 6);
}

#[test]
fn block_limits_and_provisioning_agree_with_the_disk() {
    let mut bench = Bench::new(1, 1);
    let limits = bench.run(0, 0, &vpd(0xb0, 255), &[]).good();
    assert_eq!(limits.len(), 64);
    assert_eq!(limits[..8], [0, 0xb0, 0, 0x3c, 1, 255, 0, 8]);
    assert_eq!((be32(&limits, 8), be32(&limits, 20), be32(&limits, 24)), (32_768, 1 << 20, 256));
    assert_eq!((be32(&limits, 28), be64(&limits, 36), be32(&limits, 44)), (8, 32_768, 0));
    let characteristics = bench.run(0, 0, &vpd(0xb1, 255), &[]).good();
    assert_eq!(characteristics[..9], [0, 0xb1, 0, 0x3c, 0, 1, 0, 0, 0]);
    let provisioning = bench.run(0, 0, &vpd(0xb2, 255), &[]).good();
    assert_eq!(provisioning, [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
    let extended = bench.run(0, 0, &vpd(0x86, 255), &[]).good();
    assert_eq!(extended[..14], [0, 0x86, 0, 0x3c, 0, 7, 1, 1, 0, 0, 0, 0, 0, 32]);
    assert_eq!(bench.run(0, 0, &vpd(0x87, 255), &[]).good(), [0, 0x87, 0, 4, 0x3f, 0xff, 0, 0]);
    // A disk that cannot unmap says so everywhere.
    let thick = Caps { native_ops: Caps::ops(&[Op::Read, Op::Write]), write_cache: false, ..thin() };
    let mut bench = Bench::with(1, 1, 512, |config| config.descriptor = descriptor(9, 512, thick));
    let limits = bench.run(0, 0, &vpd(0xb0, 255), &[]).good();
    assert_eq!((be32(&limits, 20), be32(&limits, 24)), (0, 0));
    assert_eq!(bench.run(0, 0, &vpd(0xb2, 255), &[]).good(), [0, 0xb2, 0, 4, 0, 0, 0, 0]);
    bench.run(0, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).check(5, 0x2000);
    bench.run(0, 0, &rw16(0x93, 8, 0, 1), &[0; 512]).check(INVALID_CDB.0, INVALID_CDB.1);
    assert_eq!(bench.run(0, 0, &rw10(0x35, 0, 0, 0), &[]).ops, []);
}

#[test]
fn capacity_is_told_in_both_lengths() {
    let mut bench = Bench::new(1, 1);
    let data = bench.run(0, 0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).good();
    assert_eq!((be32(&data, 0), be32(&data, 4)), (BLOCKS as u32 - 1, 512));
    bench.run(0, 0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    let cdb = |alloc: u8| {
        let mut cdb = rw16(0x9e, 0x10, 0, 0);
        cdb[13] = alloc;
        cdb
    };
    let data = bench.run(0, 0, &cdb(32), &[]).good();
    assert_eq!((be64(&data, 0), be32(&data, 8)), (BLOCKS - 1, 512));
    assert_eq!(data[12..16], [0, 3, 0xc0, 0]);
    for alloc in 0..32 {
        assert_eq!(bench.run(0, 0, &cdb(alloc), &[]).good()[..], data[..usize::from(alloc)]);
    }
    let mut bench = Bench::with(1, 1, 4096, |_| {});
    assert_eq!(bench.run(0, 0, &cdb(32), &[]).good()[8..14], [0, 0, 16, 0, 0, 0]);
    let data = bench.run(0, 0, &rw16(0x9e, 0x12, 5, 24), &[]).good();
    assert_eq!((be32(&data, 0), be64(&data, 8), be32(&data, 16), data[20]), (20, 5, BLOCKS as u32 - 5, 0));
    for lba in [BLOCKS, BLOCKS + 1, 1 << 63, u64::MAX] {
        bench.run(0, 0, &rw16(0x9e, 0x12, lba, 24), &[]).check(5, 0x2100);
    }
}

#[test]
fn mode_pages_are_the_same_alone_and_together() {
    let mut bench = Bench::new(1, 1);
    let all = bench.run(0, 0, &[0x1a, 0, 0x3f, 0, 255, 0], &[]).good();
    assert_eq!(usize::from(all[0]) + 1, all.len());
    assert_eq!(all[1..4], [0, 0x10, 8]);
    assert_eq!((be32(&all, 4), be32(&all, 8)), (BLOCKS as u32, 512));
    let mut together = Vec::new();
    for page in [0x01, 0x08, 0x0a, 0x1c] {
        let alone = bench.run(0, 0, &[0x1a, 8, page, 0, 255, 0], &[]).good();
        assert_eq!(alone[..4], [alone.len() as u8 - 1, 0, 0x10, 0]);
        assert_eq!((alone[4], usize::from(alone[5]) + 6), (page, alone.len()));
        let ten = bench.run(0, 0, &[0x5a, 8, page, 0, 0, 0, 0, 1, 0, 0], &[]).good();
        assert_eq!(usize::from(be16(&ten, 0)) + 2, ten.len());
        assert_eq!((ten[3], &ten[8..]), (0x10, &alone[4..]));
        together.extend_from_slice(&alone[4..]);
    }
    assert_eq!(all[12..], together);
    // The control page: D_SENSE clear, unrestricted reordering, busy without limit.
    let control = bench.run(0, 0, &[0x1a, 8, 0x0a, 0, 255, 0], &[]).good();
    assert_eq!(control[4..], [0x0a, 10, 0x22, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
    let changeable = bench.run(0, 0, &[0x1a, 8, 0x4a, 0, 255, 0], &[]).good();
    assert_eq!(changeable[4..], [0x0a, 10, 0x04, 0, 0x08, 0, 0, 0, 0, 0, 0, 0]);
    // WCE: this disk has a volatile cache.
    assert_eq!(bench.run(0, 0, &[0x1a, 8, 0x08, 0, 255, 0], &[]).good()[4..7], [8, 18, 4]);
    bench.run(0, 0, &[0x1a, 8, 0xca, 0, 255, 0], &[]).check(5, 0x3900);
    bench.run(0, 0, &[0x1a, 8, 0x02, 0, 255, 0], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    bench.run(0, 0, &[0x1a, 8, 0x0a, 1, 255, 0], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
    // LLBAA: a long block descriptor.
    let long = bench.run(0, 0, &[0x5a, 0x10, 0x0a, 0, 0, 0, 0, 1, 0, 0], &[]).good();
    assert_eq!((long[4], be16(&long, 6), be64(&long, 8), be32(&long, 20)), (1, 16, BLOCKS, 512));
    assert_eq!(bench.run(0, 0, &[0x1a, 0, 0x3f, 0, 4, 0], &[]).good().len(), 4);
}

fn select(page: &[u8]) -> ([u8; 6], Vec<u8>) {
    let mut list = vec![0; 4];
    list.extend_from_slice(page);
    ([0x15, 0x10, 0, 0, list.len() as u8, 0], list)
}

#[test]
fn mode_select_changes_what_may_be_changed_and_tells_the_others() {
    let mut bench = Bench::new(1, 2);
    let mut control = bench.run(0, 0, &[0x1a, 8, 0x0a, 0, 255, 0], &[]).good()[4..].to_vec();
    control[4] |= 0x08;
    let (cdb, list) = select(&control);
    bench.run(0, 0, &cdb, &list).good();
    let written = bench.run(0, 0, &rw10(0x2a, 0, 0, 1), &[0; 512]);
    written.check(7, 0x2702);
    assert_eq!(written.ops, []);
    bench.run(0, 0, &rw10(0x28, 0, 0, 1), &[]).good();
    assert_eq!(bench.run(0, 0, &[0x1a, 8, 0x0a, 0, 255, 0], &[]).good()[2], 0x90);
    bench.run(1, 0, &[0; 6], &[]).check(6, 0x2a01);
    bench.run(1, 0, &[0; 6], &[]).good();
    control[4] = 0;
    control[2] |= 0x04;
    let (cdb, list) = select(&control);
    bench.run(0, 0, &cdb, &list).good();
    bench.run(0, 0, &rw10(0x2a, 0, 0, 1), &[0; 512]).good();
    // Descriptor format from now on.
    assert_eq!(bench.run(0, 0, &rw16(0x88, 0, u64::MAX, 1), &[]).sense_bytes[..3], [0x72, 5, 0x21]);
    for (byte, bits) in [(2, 0x80), (3, 0x20), (8, 0x01), (1, 0x01)] {
        let mut wrong = control.clone();
        wrong[byte] ^= bits;
        let (cdb, list) = select(&wrong);
        bench.run(0, 0, &cdb, &list).check(5, if byte == 1 { 0x1a00 } else { 0x2600 });
    }
    let (cdb, list) = select(&[0x3e, 2, 0, 0]);
    bench.run(0, 0, &cdb, &list).check(5, 0x2600);
    let (cdb, list) = select(&control);
    bench.run(0, 0, &[0x15, 0x11, 0, 0, 16, 0], &list).check(INVALID_CDB.0, INVALID_CDB.1);
    bench.run(0, 0, &[0x15, 0x00, 0, 0, 16, 0], &list).check(INVALID_CDB.0, INVALID_CDB.1);
    bench.run(0, 0, &cdb, &list[..3]).check(5, 0x1a00);
    bench.run(0, 0, &[0x15, 0x10, 0, 0, 0, 0], &[]).good();
}

#[test]
fn supported_operation_codes_are_those_that_work() {
    let mut bench = Bench::new(1, 1);
    let ask = |options: u8, opcode: u8, action: u16| {
        let [high, low] = action.to_be_bytes();
        [0xa3, 0x0c, options, opcode, high, low, 0, 0, 0xff, 0xff, 0, 0]
    };
    let all = bench.run(0, 0, &ask(0, 0, 0), &[]).good();
    assert_eq!(be32(&all, 0) as usize + 4, all.len());
    for descriptor in all[4..].chunks(8) {
        let (opcode, action, has_action) = (descriptor[0], be16(descriptor, 2), descriptor[5] & 1 != 0);
        let (right, wrong) = if has_action { (2, 1) } else { (1, 2) };
        bench.run(0, 0, &ask(wrong, opcode, action), &[]).check(INVALID_CDB.0, INVALID_CDB.1);
        let one = bench.run(0, 0, &ask(right, opcode, action), &[]).good();
        assert_eq!((one[1], be16(&one, 2), one[4]), (3, be16(descriptor, 6), opcode));
        assert_eq!(one.len(), 4 + usize::from(be16(descriptor, 6)));
        assert_eq!(bench.run(0, 0, &ask(3, opcode, action), &[]).good(), one);
        // With its timeouts descriptor.
        let timed = bench.run(0, 0, &ask(0x80 | right, opcode, action), &[]).good();
        assert_eq!((timed[1], timed.len()), (0x83, one.len() + 12));
        if !has_action {
            assert_eq!((descriptor[2], descriptor[3]), (0, 0));
        }
    }
    let timed = bench.run(0, 0, &ask(0x80, 0, 0), &[]).good();
    assert!(timed[4..].chunks(20).all(|descriptor| descriptor[5] & 2 != 0 && descriptor[9] == 0x0a));
    assert_eq!(bench.run(0, 0, &ask(1, 0x48, 0), &[]).good()[1], 1);
    assert_eq!(bench.run(0, 0, &ask(1, 0x28, 0), &[]).good()[5] & 0x18, 0x18);
    let tmfs = bench.run(0, 0, &[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0], &[]).good();
    assert_eq!(tmfs, [0xda, 0, 0, 0]);
    assert_eq!(bench.run(0, 0, &[0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 99, 0, 0], &[]).good().len(), 16);
}

#[test]
fn there_are_no_defects() {
    let mut bench = Bench::new(1, 1);
    assert_eq!(bench.run(0, 0, &[0x37, 0, 0x18, 0, 0, 0, 0, 0, 32, 0], &[]).good(), [0, 0x18, 0, 0]);
    let data = bench.run(0, 0, &[0xb7, 0x18, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]).good();
    assert_eq!(data, [0, 0x18, 0, 0, 0, 0, 0, 0]);
}
