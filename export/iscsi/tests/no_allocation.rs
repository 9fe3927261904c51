//! Reads and writes over a socket allocate nothing on the reactor: counted by the allocator itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod raw;

use raw::{Bench, Client, READ, WRITE, pattern, rw10};

/// Allocations of both reactors' threads so far.
fn allocations(bench: &Bench) -> u64 {
    (0..2).map(|at| bench.on(at, |_, _| penstock_allocations::count())).sum()
}

/// Several commands at once, of all ways in which data travel.
fn round(client: &mut Client, data: &[u8], depth: usize) {
    let mut tags = Vec::new();
    for at in 0..depth {
        let blocks = u16::try_from(data.len() / 512).unwrap();
        let lba = (at * data.len() / 512) as u32;
        let bhs = client.command_bhs(0, 0x80 | READ, data.len() as u32, &rw10(0x28, lba, blocks));
        client.send(bhs, &[]);
        tags.push(bhs.itt.get());
    }
    for tag in tags {
        assert_eq!(client.finish(tag, &[]).status, 0);
    }
    let blocks = u16::try_from(data.len() / 512).unwrap();
    assert_eq!(client.command(WRITE, data.len() as u32, &rw10(0x2a, 0, blocks), data).status, 0);
}

#[test]
fn reads_and_writes_allocate_nothing() {
    let bench = Bench::new();
    for (isid, keys) in (1..).zip([
        "InitialR2T=No MaxRecvDataSegmentLength=65536",
        "ImmediateData=No MaxBurstLength=2048 FirstBurstLength=2048 MaxOutstandingR2T=2",
        "HeaderDigest=CRC32C DataDigest=CRC32C",
    ]) {
        let mut client = bench.session(isid, keys);
        for len in [512, 4096, 40_960] {
            let data = pattern(len, isid);
            for _ in 0..200 {
                round(&mut client, &data, 8);
            }
        }
        let (first, second) = (allocations(&bench), allocations(&bench));
        for len in [512, 4096, 40_960] {
            let data = pattern(len, isid);
            for _ in 0..200 {
                round(&mut client, &data, 8);
            }
        }
        let third = allocations(&bench);
        // Asking costs some itself; a hundred commands more cost nothing.
        let (asking, all) = (second - first, third - second);
        assert!(all <= asking + 4, "{keys}: {all} allocations for 5400 commands, {asking} for asking");
        assert_eq!(client.logout(0, 0), 0);
    }
}
