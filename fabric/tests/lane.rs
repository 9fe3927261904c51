//! A lane under load: power cuts anywhere, snapshots and clones, rot, full disks; an oracle per block.
//!
//! `PENSTOCK_SEED=n cargo test -p penstock-fabric --test lane` runs one seed; `PENSTOCK_SEEDS=n` that many.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod bench;

use bench::load::{DISK_BLOCKS, compress, fresh, fresh_regions, insist, load, reopen, run_seeds, shard};
use bench::{Bench, Oracle, Work, open};
use penstock_bdev::{IoStatus, Op};
use penstock_fabric::codec::{Codec, Compression};
use penstock_fabric::lane::{Lane, WorkError};
use penstock_fabric::sim::{PowerCut, World};
use penstock_reactor::rng::Rng;

/// Load with snapshots of one or all shards in between, and one deleted.
fn snapshots_under_load(
    world: &mut World,
    bench: &mut Bench,
    rng: &mut Rng,
    life: u64,
) -> Result<(), PowerCut> {
    for part in 0..4 {
        compress(bench, rng);
        load(world, bench, rng, 70, 1500)?;
        let all = [shard(1), shard(2), shard(3)];
        let shards = if rng.chance(500) { &all[..1] } else { &all[..] };
        bench.snapshot(shards, life * 10 + part);
        if rng.chance(300) {
            bench.lane.want_collect();
        }
    }
    if let Some((shard, number)) = bench.oracle.snapshots.keys().next().copied() {
        bench.quiesce(world)?;
        // From here on it may be there or not.
        bench.oracle.snapshots.get_mut(&(shard, number)).unwrap().1 = false;
        let delete =
            move |lane: Lane| -> Work { Box::pin(async move { lane.delete_snapshot(shard, number).await }) };
        bench.run(world, delete)?.unwrap();
        bench.oracle.snapshots.remove(&(shard, number));
    }
    load(world, bench, rng, 30, 1500)
}

#[test]
fn what_is_written_is_read_through_tables_maps_and_restarts() {
    let (mut world, place, mut bench) = fresh(1, 1);
    let mut rng = Rng::seeded(1);
    load(&mut world, &mut bench, &mut rng, 600, 2000).unwrap();
    bench.quiesce(&mut world).unwrap();
    bench.read_all(&mut world);
    bench.settle(&mut world).unwrap();
    assert_eq!(bench.lane.usage().undrained_blocks, 0);
    bench.read_all(&mut world);
    bench.check_space(&place);
    let mut bench = reopen(&mut world, &place, bench);
    bench.check_space(&place);
    load(&mut world, &mut bench, &mut rng, 300, 2000).unwrap();
    bench.quiesce(&mut world).unwrap();
    let bench = reopen(&mut world, &place, bench);
    assert_eq!(bench.background_error, None);
}

#[test]
fn power_cuts_lose_nothing_acknowledged_and_leak_nothing() {
    run_seeds(4, |seed| {
        let (mut world, place, mut bench) = fresh(seed, 1 + usize::try_from(seed % 2).unwrap());
        let mut rng = Rng::seeded(!seed);
        for life in 0..5 {
            world.cut_at = Some(world.events + rng.below(1200));
            let cut = snapshots_under_load(&mut world, &mut bench, &mut rng, life);
            world.cut_at = None;
            if cut.is_ok() {
                world.cut();
            }
            bench = reopen(&mut world, &place, bench);
            bench.check_space(&place);
        }
        bench.settle(&mut world).unwrap();
        bench.read_all(&mut world);
        bench.check_space(&place);
        world.hash()
    });
}

#[test]
fn snapshots_and_clones_stay_what_they_were_and_deleting_them_frees_all_of_it() {
    let (mut world, place, mut bench) = fresh(3, 1);
    let mut rng = Rng::seeded(3);
    load(&mut world, &mut bench, &mut rng, 150, 800).unwrap();
    for number in 0..40 {
        bench.snapshot(&[shard(1)], number);
        load(&mut world, &mut bench, &mut rng, 12, 800).unwrap();
    }
    bench.quiesce(&mut world).unwrap();
    // A clone of an old snapshot, written to, and a clone of a snapshot of the clone.
    let clone = |to, from, number| {
        move |lane: Lane| -> Work {
            Box::pin(async move { lane.clone_shard(shard(to), shard(from), number).await })
        }
    };
    bench.run(&mut world, clone(4, 1, 5)).unwrap().unwrap();
    bench.oracle.clone_of(shard(4), shard(1), 5);
    for block in (0..800).step_by(7) {
        assert!(bench.submit(shard(4), None, Op::Write, block, 1));
        while world.step(&mut bench).unwrap() && block % 70 == 0 {}
    }
    bench.snapshot(&[shard(4)], 1);
    bench.quiesce(&mut world).unwrap();
    bench.run(&mut world, clone(5, 4, 1)).unwrap().unwrap();
    bench.oracle.clone_of(shard(5), shard(4), 1);
    bench.read_all(&mut world);
    let mut bench = reopen(&mut world, &place, bench);
    // Deleting the snapshots of the first leaves the clones alone.
    for number in 0..40 {
        let delete = move |lane: Lane| -> Work {
            Box::pin(async move { lane.delete_snapshot(shard(1), number).await })
        };
        bench.run(&mut world, delete).unwrap().unwrap();
        bench.oracle.snapshots.remove(&(shard(1), number));
    }
    bench.settle(&mut world).unwrap();
    bench.read_all(&mut world);
    bench.check_space(&place);
    // And with everything else gone, nothing is left.
    let refused =
        bench.run(&mut world, |lane| Box::pin(async move { lane.delete_shard(shard(4)).await })).unwrap();
    assert!(matches!(refused, Err(WorkError::Shard { .. })), "{refused:?}");
    let delete = |lane: Lane| -> Work { Box::pin(async move { lane.delete_snapshot(shard(4), 1).await }) };
    bench.run(&mut world, delete).unwrap().unwrap();
    for number in 1..=5 {
        bench
            .run(&mut world, move |lane| Box::pin(async move { lane.delete_shard(shard(number)).await }))
            .unwrap()
            .unwrap();
        bench.oracle.forget_shard(shard(number));
    }
    bench.settle(&mut world).unwrap();
    let usage = bench.lane.usage();
    assert_eq!((usage.used_blocks, usage.live_blocks), (0, 0));
    bench.check_space(&place);
    assert_eq!(bench.background_error, None);
}

#[test]
fn what_compresses_takes_less_room_at_once_or_later_and_is_read_in_parts() {
    for (codec, inline) in
        [(Codec::Lz4, true), (Codec::Zstd, true), (Codec::Lz4, false), (Codec::Zstd, false)]
    {
        let (mut world, place, mut bench) = fresh(10, 1);
        bench.lane.set_compression(shard(1), Compression { codec, inline });
        for block in (0..960).step_by(16) {
            insist(&mut world, &mut bench, shard(1), Op::Write, block, 16);
        }
        bench.settle(&mut world).unwrap();
        let before = bench.lane.usage();
        assert_eq!(before.used_blocks < before.decoded_blocks / 2, inline, "{before:?}");
        bench.lane.set_cache_blocks(0);
        bench.read_all(&mut world);
        bench.lane.compress(bench.lane.egroup_mark());
        for _ in 0..600 {
            world.step(&mut bench).unwrap();
        }
        let usage = bench.lane.usage();
        assert!(usage.used_blocks < usage.decoded_blocks / 2, "{codec:?}: {usage:?}");
        bench.check_space(&place);
        bench.read_all(&mut world);
        // Parts of extents, written over in the middle.
        insist(&mut world, &mut bench, shard(1), Op::Write, 100, 3);
        bench.settle(&mut world).unwrap();
        bench.lane.set_cache_blocks(512);
        for block in (0..950).step_by(5) {
            insist(&mut world, &mut bench, shard(1), Op::Read, block, 9);
        }
        bench.quiesce(&mut world).unwrap();
        let bench = reopen(&mut world, &place, bench);
        bench.check_space(&place);
        assert_eq!(bench.background_error, None);
    }
}

#[test]
fn a_full_disk_says_so_reads_on_and_comes_back_to_life_by_unmaps_and_deletes() {
    let (mut world, place, mut bench) = fresh(4, 1);
    bench.tolerated.insert(IoStatus::NoSpace as u8);
    for way in 0..3 {
        let full = |bench: &Bench| bench.statuses.get(&(IoStatus::NoSpace as u8)).copied().unwrap_or(0);
        let before = full(&bench);
        let mut block = 0;
        while full(&bench) < before + 10 {
            insist(&mut world, &mut bench, shard(1 + block / 64 % 2), Op::Write, block, 64);
            world.step(&mut bench).unwrap();
            block += 64;
            assert!(block < 4 * DISK_BLOCKS, "the disk is never full");
        }
        bench.quiesce(&mut world).unwrap();
        bench.oracle.forget_lost();
        assert!(bench.lane.usage().full && block > 8000, "full after {block} blocks");
        bench.read_all(&mut world);
        match way {
            0 => insist(&mut world, &mut bench, shard(1), Op::WriteZeroes, 0, 3 * 24_000),
            1 => {
                // Every other 64 blocks: egroups are half dead, and compacted.
                for first in (0..block).step_by(256) {
                    insist(&mut world, &mut bench, shard(2), Op::WriteZeroes, first, 128);
                }
            }
            _ => {
                bench
                    .run(&mut world, |lane| Box::pin(async move { lane.delete_shard(shard(1)).await }))
                    .unwrap()
                    .unwrap();
                bench.oracle.forget_shard(shard(1));
                bench
                    .run(&mut world, |lane| Box::pin(async move { lane.create_shard(shard(1)).await }))
                    .unwrap()
                    .unwrap();
            }
        }
        bench.quiesce(&mut world).unwrap();
        for _ in 0..3000 {
            world.step(&mut bench).unwrap();
        }
        let refused = full(&bench);
        for round in 0..300 {
            insist(&mut world, &mut bench, shard(3), Op::Write, round % 30 * 10, 8);
            for _ in 0..20 {
                world.step(&mut bench).unwrap();
            }
        }
        bench.quiesce(&mut world).unwrap();
        assert_eq!(full(&bench), refused, "way {way}: no life again: {:?}", bench.lane.usage());
        bench.read_all(&mut world);
        bench = reopen(&mut world, &place, bench);
        bench.tolerated.insert(IoStatus::NoSpace as u8);
        bench.check_space(&place);
    }
    assert_eq!(bench.background_error, None);
}

#[test]
fn rot_lost_and_misdirected_writes_are_seen_and_never_read_as_data() {
    let mut seen = 0;
    for seed in 0..12 {
        let (mut world, _, mut bench) = fresh(100 + seed, 1);
        let mut rng = Rng::seeded(seed);
        bench.tolerated.extend([
            IoStatus::ChecksumError as u8,
            IoStatus::Internal as u8,
            IoStatus::WriteError as u8,
        ]);
        load(&mut world, &mut bench, &mut rng, 60, 1000).unwrap();
        if seed % 3 > 0 {
            let faults = &mut world.disks[0].faults;
            *(if seed % 3 == 1 { &mut faults.lost } else { &mut faults.misdirected }) = 100;
        }
        load(&mut world, &mut bench, &mut rng, 200, 1000).unwrap();
        bench.quiesce(&mut world).unwrap();
        world.disks[0].faults = penstock_fabric::sim::Faults::default();
        if bench.settle(&mut world).is_ok() && seed % 3 == 0 {
            for _ in 0..400 {
                world.disks[0].rot(5000 + rng.below(6000), usize::try_from(rng.below(32768)).unwrap());
            }
        }
        bench.read_all(&mut world);
        seen += u64::from(bench.statuses.contains_key(&(IoStatus::ChecksumError as u8)));
    }
    assert!(seen >= 4, "damage was seen in {seen} of 12 runs");
}

#[test]
fn a_disk_that_stalls_delays_and_one_that_fails_ends_writes_but_no_reads() {
    let (mut world, place, mut bench) = fresh(6, 1);
    let mut rng = Rng::seeded(6);
    world.disks[0].stalled = true;
    load(&mut world, &mut bench, &mut rng, 50, 500).unwrap();
    assert!(!bench.is_idle());
    world.disks[0].stalled = false;
    bench.quiesce(&mut world).unwrap();
    bench.settle(&mut world).unwrap();
    world.disks[0].faults.write_error = 1000;
    bench.tolerated.extend([IoStatus::WriteError as u8, IoStatus::ReadError as u8]);
    load(&mut world, &mut bench, &mut rng, 50, 500).unwrap();
    bench.quiesce(&mut world).unwrap();
    assert!(bench.lane.failed().is_some() && bench.background_error.is_some());
    world.disks[0].faults.write_error = 0;
    insist(&mut world, &mut bench, shard(1), Op::Write, 0, 1);
    bench.quiesce(&mut world).unwrap();
    assert!(bench.statuses[&(IoStatus::WriteError as u8)] > 0, "a failed lane takes writes");
    let bench = reopen(&mut world, &place, bench);
    assert_eq!(bench.lane.failed(), None);
}

/// Writes the same blocks again and again, which needs no memory, until the log is full.
fn fill_up(world: &mut World, bench: &mut Bench, rng: &mut Rng) {
    let mut refused = 0;
    while refused < 50 {
        if bench.submit(shard(1), None, Op::Write, rng.below(3) * 64, 64) {
            refused = 0;
        } else {
            world.step(bench).unwrap();
            refused += 1;
        }
    }
    bench.quiesce(world).unwrap();
}

/// What comes while a checkpoint is being written is not in it: the log keeps that until the next one is there.
#[test]
fn a_checkpoint_lets_go_of_no_more_of_the_log_than_it_has() {
    for steps in 0..24 {
        let (mut world, place, mut bench) = fresh(11, 1);
        // What bypasses the log is kept until the background goes on.
        bench.lane.set_bypass_blocks(0);
        let mut rng = Rng::seeded(steps);
        bench.submit(shard(1), None, Op::Write, 0, 8);
        bench.quiesce(&mut world).unwrap();
        bench.lane.want_settle();
        for round in [steps, 3] {
            for _ in 0..round {
                world.step(&mut bench).unwrap();
            }
            bench.paused = true;
            fill_up(&mut world, &mut bench, &mut rng);
            bench.paused = false;
        }
        world.cut();
        reopen(&mut world, &place, bench);
    }
}

/// A read that a slow disk holds up still gets what it was sent for: nobody is given that space before it is back.
#[test]
fn space_that_is_being_read_is_not_used_again() {
    let (mut world, place, mut bench) = fresh(9, 1);
    bench.lane.set_bypass_blocks(0);
    insist(&mut world, &mut bench, shard(1), Op::Write, 0, 64);
    bench.settle(&mut world).unwrap();
    // The header part comes into memory.
    insist(&mut world, &mut bench, shard(1), Op::Read, 0, 1);
    bench.quiesce(&mut world).unwrap();
    world.disks[0].reads_stalled = true;
    insist(&mut world, &mut bench, shard(1), Op::Read, 0, 64);
    while world.step(&mut bench).unwrap() {}
    // Many times the free space of the lane's regions.
    for _ in 0..160 {
        insist(&mut world, &mut bench, shard(1), Op::Write, 0, 64);
        bench.lane.want_settle();
        for _ in 0..60 {
            world.step(&mut bench).unwrap();
        }
    }
    world.disks[0].reads_stalled = false;
    bench.quiesce(&mut world).unwrap();
    bench.read_all(&mut world);
    bench.check_space(&place);
    // What nobody shares is free without a mark.
    let usage = bench.lane.usage();
    assert!(usage.used_blocks < 80 && usage.live_blocks == 65, "{usage:?}");
}

#[test]
fn power_may_go_between_any_two_ios_of_a_short_life() {
    let short_life = |cut_at: Option<u64>| {
        let (mut world, place, mut bench) = fresh(7, 1);
        let mut rng = Rng::seeded(7);
        let begin = world.events;
        world.cut_at = cut_at.map(|at| begin + at);
        let mut life = || -> Result<(), PowerCut> {
            load(&mut world, &mut bench, &mut rng, 25, 300)?;
            bench.snapshot(&[shard(1), shard(2)], 1);
            load(&mut world, &mut bench, &mut rng, 10, 300)?;
            bench.settle(&mut world)
        };
        let cut = life().is_err();
        let events = world.events - begin;
        world.cut_at = None;
        if !cut {
            world.cut();
        }
        let bench = reopen(&mut world, &place, bench);
        bench.check_space(&place);
        events
    };
    let events = short_life(None);
    assert!(events > 40, "{events} I/Os");
    for at in 0..events {
        short_life(Some(at));
    }
}

/// Streams of large writes with small ones, zeroes, reads and snapshots among them.
fn large_writes(world: &mut World, bench: &mut Bench, rng: &mut Rng, life: u64) -> Result<(), PowerCut> {
    for part in 0..3 {
        let mut at = rng.below(900);
        for _ in 0..40 {
            let stream = shard(1 + rng.below(2));
            for _ in 0..rng.below(5) {
                let blocks = 6 + rng.below(100);
                bench.submit(stream, None, Op::Write, at, u32::try_from(blocks).unwrap());
                at = (at + blocks) % 900;
            }
            let (op, blocks) = match rng.below(6) {
                0 => (Op::WriteZeroes, 1 + rng.below(200)),
                1 => (Op::Write, 1 + rng.below(4)),
                2 => (Op::Flush, 0),
                _ => (Op::Read, 1 + rng.below(60)),
            };
            let near = (at + 900 - rng.below(100)) % 900;
            bench.submit(stream, None, op, near, u32::try_from(blocks).unwrap());
            for _ in 0..1 + rng.below(6) {
                world.step(bench)?;
            }
        }
        if part == 1 {
            bench.snapshot(&[shard(1), shard(2)], life);
        }
        if rng.chance(400) {
            bench.lane.want_collect();
        }
    }
    Ok(())
}

#[test]
fn large_writes_bypass_the_log_and_power_cuts_lose_none_of_them() {
    run_seeds(4, |seed| {
        let (mut world, place, mut bench) = fresh(seed, 1 + usize::try_from(seed % 2).unwrap());
        let (mut rng, mut bypassed) = (Rng::seeded(!seed), 0);
        for life in 0..4 {
            world.cut_at = Some(world.events + 100 + rng.below(900));
            let cut = large_writes(&mut world, &mut bench, &mut rng, life);
            world.cut_at = None;
            bypassed += bench.lane.bypassed_blocks();
            if cut.is_ok() {
                world.cut();
            }
            bench = reopen(&mut world, &place, bench);
            bench.check_space(&place);
        }
        assert!(bypassed > 500, "{bypassed} blocks bypassed the log");
        // What is written over before it is drained, or deleted, leaves nothing behind.
        large_writes(&mut world, &mut bench, &mut rng, 9).unwrap();
        bench.settle(&mut world).unwrap();
        bench.read_all(&mut world);
        bench.check_space(&place);
        world.hash()
    });
}

/// Work that can wait stops where it is, the drain goes on, and room that is wanted is made all the same.
#[test]
fn background_work_that_is_paused_holds_up_no_write_and_goes_on_later() {
    use penstock_fabric::lane::BackgroundOptions;
    let (mut world, place, mut bench) = fresh(12, 1);
    let mut rng = Rng::seeded(12);
    load(&mut world, &mut bench, &mut rng, 150, 1500).unwrap();
    bench.snapshot(&[shard(1)], 1);
    load(&mut world, &mut bench, &mut rng, 150, 1500).unwrap();
    bench.settle(&mut world).unwrap();
    bench.lane.set_background(BackgroundOptions { share_percent: 1, paused: true });
    bench
        .run(&mut world, |lane| Box::pin(async move { lane.delete_snapshot(shard(1), 1).await }))
        .unwrap()
        .unwrap();
    bench.oracle.snapshots.remove(&(shard(1), 1));
    let (_, before) = bench.lane.background_progress();
    load(&mut world, &mut bench, &mut rng, 200, 1500).unwrap();
    bench.quiesce(&mut world).unwrap();
    bench.settle(&mut world).unwrap();
    let (options, paused) = bench.lane.background_progress();
    assert!(options.paused && paused.finished == before.finished, "{paused:?}");
    bench.lane.set_background(BackgroundOptions { share_percent: 1, paused: false });
    load(&mut world, &mut bench, &mut rng, 200, 1500).unwrap();
    bench.settle(&mut world).unwrap();
    let (_, after) = bench.lane.background_progress();
    assert!(after.finished > before.finished, "{after:?}");
    bench.read_all(&mut world);
    bench.check_space(&place);
    assert_eq!(bench.background_error, None);
}

#[test]
fn images_of_all_versions_still_open() {
    for version in ["v1", "v2", "v3", "v4"] {
        opens(version);
    }
}

fn opens(version: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version);
    if !path.join("image").exists() && std::env::var_os("PENSTOCK_WRITE_FIXTURES").is_some() {
        let (image, oracle) = an_image();
        std::fs::write(path.join("image"), image).unwrap();
        std::fs::write(path.join("image.blocks"), oracle).unwrap();
    }
    let oracle = Oracle::from_text(&std::fs::read_to_string(path.join("image.blocks")).unwrap());
    let image = std::fs::read(path.join("image")).unwrap();
    let (_, place, _) = fresh(8, 1);
    let mut left = image.as_slice();
    let mut world = World::new(8, 1, DISK_BLOCKS);
    while let Some((head, rest)) = left.split_at_checked(8) {
        let number = u32::from_le_bytes(head[..4].try_into().unwrap());
        let len = usize::try_from(u32::from_le_bytes(head[4..].try_into().unwrap())).unwrap();
        let (bytes, rest) = rest.split_at(len);
        let mut block = [0; 4096];
        // What follows repeats the first eight bytes.
        block.chunks_mut(8).for_each(|word| word.copy_from_slice(&bytes[..8]));
        block[..len].copy_from_slice(bytes);
        world.disks[0].poke(number.into(), &block);
        left = rest;
    }
    let (mut bench, report) = open(&mut world, &fresh_regions(&place), oracle, 1 << 40).unwrap();
    assert!(report.records > 0 && report.damaged_checkpoints == 0, "{report:?}");
    bench.read_all(&mut world);
    bench.check_space(&place);
}

/// A disk with data in maps, in a snapshot and in the log, and what must be found there.
fn an_image() -> (Vec<u8>, String) {
    let (mut world, _, mut bench) = fresh(8, 1);
    bench.lane.set_compression(shard(2), Compression { codec: Codec::Lz4, inline: true });
    bench.lane.set_compression(shard(3), Compression { codec: Codec::Zstd, inline: true });
    load(&mut world, &mut bench, &mut Rng::seeded(8), 9, 40).unwrap();
    bench.quiesce(&mut world).unwrap();
    bench.snapshot(&[shard(1)], 1);
    bench.settle(&mut world).unwrap();
    load(&mut world, &mut bench, &mut Rng::seeded(9), 3, 40).unwrap();
    bench.quiesce(&mut world).unwrap();
    // Of each block: number, length, bytes; then the first eight bytes again and again. Blocks of zeroes are left out.
    let mut image = Vec::new();
    for block in 0..DISK_BLOCKS {
        let bytes = world.disks[0].peek(block);
        let len = bytes.chunks(8).rposition(|word| word != &bytes[..8]).map_or(8, |last| 8 * last + 8);
        if bytes.iter().any(|byte| *byte != 0) {
            image.extend(u32::try_from(block).unwrap().to_le_bytes());
            image.extend(u32::try_from(len).unwrap().to_le_bytes());
            image.extend(&bytes[..len]);
        }
    }
    (image, bench.oracle.to_text())
}
