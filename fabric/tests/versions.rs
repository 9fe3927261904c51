//! Reverts, changes between snapshots, and who uses the space: against the oracle.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod bench;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bench::load::{compress, fresh, load, reopen, run_seeds, shard};
use bench::{Bench, Stamp, Work};
use penstock_bdev::{IoStatus, Op};
use penstock_fabric::lane::{Lane, SpaceUse, VersionUse, WorkError};
use penstock_fabric::sim::{PowerCut, World};
use penstock_reactor::rng::Rng;

/// What a control flow gives.
fn ask<T: 'static>(
    world: &mut World,
    bench: &mut Bench,
    make: impl AsyncFnOnce(Lane) -> Result<T, WorkError> + 'static,
) -> T {
    let answer = Rc::new(RefCell::new(None));
    let place = Rc::clone(&answer);
    let flow = |lane: Lane| -> Work {
        Box::pin(async move {
            *place.borrow_mut() = Some(make(lane).await?);
            Ok(())
        })
    };
    bench.run(world, flow).unwrap().unwrap();
    answer.take().unwrap()
}

fn revert(world: &mut World, bench: &mut Bench, number: u64, rng: &mut Rng) -> Result<(), PowerCut> {
    load(world, bench, rng, 40, 600)?;
    bench.quiesce(world)?;
    let blocks = bench.oracle.revert(shard(1), number);
    let flow =
        move |lane: Lane| -> Work { Box::pin(async move { lane.revert_shard(shard(1), number).await }) };
    bench.run(world, flow)?.unwrap();
    bench.oracle.reverted(shard(1), &blocks);
    load(world, bench, rng, 30, 600)
}

#[test]
fn a_revert_brings_a_snapshot_back_as_a_whole_or_not_at_all() {
    run_seeds(4, |seed| {
        let (mut world, place, mut bench) = fresh(seed, 1);
        let mut rng = Rng::seeded(!seed);
        for life in 0..5 {
            compress(&bench, &mut rng);
            load(&mut world, &mut bench, &mut rng, 40, 600).unwrap();
            bench.snapshot(&[shard(1), shard(2)], life);
            bench.quiesce(&mut world).unwrap();
            let number = rng.below(life + 1);
            // Once in a while power holds.
            world.cut_at = Some(world.events + rng.below(400));
            let cut = revert(&mut world, &mut bench, number, &mut rng);
            world.cut_at = None;
            if cut.is_ok() {
                bench.quiesce(&mut world).unwrap();
                bench.read_all(&mut world);
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

/// All changes, by small answers.
fn changes(world: &mut World, bench: &mut Bench, from: Option<u64>, to: u64) -> BTreeSet<u64> {
    let (mut found, mut start) = (BTreeSet::new(), 0);
    loop {
        let (ranges, next) =
            ask(world, bench, async move |lane| lane.diff(shard(1), from, to, start, 7).await);
        for range in &ranges {
            for block in range.first..range.first + range.blocks {
                assert!(block >= start && found.insert(block), "block {block} comes twice");
            }
        }
        let Some(next) = next else { return found };
        assert!(next > start);
        start = next;
    }
}

#[test]
fn changes_between_snapshots_are_exactly_the_blocks_that_differ() {
    let (mut world, _, mut bench) = fresh(21, 1);
    let mut rng = Rng::seeded(21);
    for number in 0..6 {
        load(&mut world, &mut bench, &mut rng, if number == 0 { 400 } else { 20 }, 1500).unwrap();
        bench.snapshot(&[shard(1)], number);
        bench.quiesce(&mut world).unwrap();
    }
    let of = |bench: &Bench, snapshot: u64| -> BTreeMap<u64, Stamp> {
        let blocks = bench.oracle.snapshots[&(shard(1), snapshot)].0.clone();
        blocks.into_iter().filter(|(_, stamp)| *stamp != 0).collect()
    };
    for from in std::iter::once(None).chain((0..6).map(Some)) {
        for to in 0..6 {
            let (was, now) = (from.map_or(BTreeMap::new(), |from| of(&bench, from)), of(&bench, to));
            let keys: BTreeSet<u64> = was.keys().chain(now.keys()).copied().collect();
            let expected: BTreeSet<u64> =
                keys.into_iter().filter(|key| was.get(key) != now.get(key)).collect();
            assert_eq!(changes(&mut world, &mut bench, from, to), expected, "from {from:?} to {to:?}");
        }
    }
}

#[test]
fn each_block_counts_for_whoever_alone_refers_to_it() {
    let (mut world, _, mut bench) = fresh(22, 1);
    let mut rng = Rng::seeded(22);
    for number in 0..5 {
        load(&mut world, &mut bench, &mut rng, 80, 700).unwrap();
        bench.snapshot(&[shard(1), shard(2)], number);
    }
    bench.quiesce(&mut world).unwrap();
    for (to, of, number) in [(4, 1, 1), (5, 2, 3)] {
        let clone = move |lane: Lane| -> Work {
            Box::pin(async move { lane.clone_shard(shard(to), shard(of), number).await })
        };
        bench.run(&mut world, clone).unwrap().unwrap();
        bench.oracle.clone_of(shard(to), shard(of), number);
        assert!(bench.submit(shard(to), None, Op::Write, 70, 30));
    }
    bench.settle(&mut world).unwrap();
    let found: SpaceUse = ask(&mut world, &mut bench, async |lane| lane.space_use().await);
    // A stamp is written once, so it is the block.
    let mut versions: Vec<(u64, Option<u64>, BTreeSet<Stamp>)> = Vec::new();
    let stamps = |blocks: BTreeMap<u64, Stamp>| blocks.into_values().filter(|stamp| *stamp != 0).collect();
    for number in 1..=5 {
        versions.push((number, None, stamps(bench.oracle.head(shard(number)))));
        for ((of, snapshot), (blocks, _)) in &bench.oracle.snapshots {
            if *of == shard(number) {
                versions.push((number, Some(*snapshot), stamps(blocks.clone())));
            }
        }
    }
    let elsewhere = |stamp: &Stamp, skip: &dyn Fn(u64, Option<u64>) -> bool| {
        versions.iter().any(|(number, snapshot, stamps)| !skip(*number, *snapshot) && stamps.contains(stamp))
    };
    let all: BTreeSet<Stamp> = versions.iter().flat_map(|(_, _, stamps)| stamps).copied().collect();
    assert_eq!(found.data, all.len() as u64);
    for (number, snapshot, stamps) in &versions {
        let exclusive =
            stamps.iter().filter(|stamp| !elsewhere(stamp, &|n, s| (n, s) == (*number, *snapshot)));
        let expected = VersionUse { mapped: stamps.len() as u64, exclusive: exclusive.count() as u64 };
        let shard_use = &found.shards[&shard(*number)];
        let found = snapshot.map_or(shard_use.head, |snapshot| shard_use.snapshots[&snapshot]);
        assert_eq!(found, expected, "snapshot {snapshot:?} of shard {number}");
    }
    for number in 1..=5 {
        let own: BTreeSet<Stamp> = versions
            .iter()
            .filter(|(of, _, _)| *of == number)
            .flat_map(|(_, _, stamps)| stamps)
            .copied()
            .collect();
        let exclusive = own.iter().filter(|stamp| !elsewhere(stamp, &|of, _| of == number)).count();
        assert_eq!(found.shards[&shard(number)].exclusive, exclusive as u64, "shard {number}");
    }
    assert!(found.shared > 0);
}

#[test]
fn held_writes_wait_and_reads_do_not() {
    let (mut world, _, mut bench) = fresh(23, 1);
    bench.lane.hold_writes();
    assert!(
        !bench.submit(shard(1), None, Op::Write, 0, 1)
            && !bench.submit(shard(1), None, Op::WriteZeroes, 0, 1)
    );
    assert!(bench.submit(shard(1), None, Op::Read, 0, 1));
    bench.snapshot(&[shard(1)], 1);
    bench.quiesce(&mut world).unwrap();
    bench.lane.release_writes();
    assert!(bench.submit(shard(1), None, Op::Write, 0, 1));
    bench.quiesce(&mut world).unwrap();
    bench.read_all(&mut world);
    assert_eq!(bench.statuses.keys().copied().collect::<Vec<_>>(), [IoStatus::Success as u8]);
}
