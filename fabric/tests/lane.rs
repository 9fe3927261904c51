//! A lane under load: power cuts anywhere, snapshots and clones, rot, full disks; an oracle per block.
//!
//! `PENSTOCK_SEED=n cargo test -p penstock-fabric --test lane` runs one seed; `PENSTOCK_SEEDS=n` that many.
#![expect(clippy::unwrap_used, reason = "a test")]

#[expect(clippy::indexing_slicing, reason = "a test")]
mod bench;

use bench::{Bench, Oracle, Work, format, open, place};
use penstock_bdev::Op;
use penstock_fabric::flow::Flow;
use penstock_fabric::id::ShardId;
use penstock_fabric::lane::{Lane, LanePlace, WorkError};
use penstock_fabric::sim::{PowerCut, World};
use penstock_reactor::rng::Rng;

const DISK_BLOCKS: u64 = 24_000;

fn shard(number: u64) -> ShardId {
    ShardId::new(number, 0).unwrap()
}

/// A pool with one lane and shards 1 to 3.
fn fresh(seed: u64, disks: usize) -> (World, LanePlace, Bench) {
    let mut world = World::new(seed, disks, DISK_BLOCKS);
    let superblocks = format(&mut world, &Flow::new());
    let place = place(&superblocks);
    let (mut bench, _) = open(&mut world, &place, Oracle::default(), 0).unwrap();
    for number in 1..=3 {
        bench.flow(|lane| Box::pin(async move { lane.create_shard(shard(number)).await }));
        bench.quiesce(&mut world).unwrap();
    }
    (world, place, bench)
}

/// The same lane after a restart.
fn reopen(world: &mut World, place: &LanePlace, bench: Bench) -> Bench {
    let (oracle, stamp) = (bench.oracle.clone(), bench.next_stamp);
    drop(bench);
    let (mut bench, _) = open(world, &fresh_regions(place), oracle, stamp).unwrap();
    bench.read_all(world);
    bench.oracle.forget_lost();
    bench
}

fn fresh_regions(place: &LanePlace) -> LanePlace {
    let mut place = place.clone();
    for disk in &mut place.disks {
        disk.regions = std::sync::Arc::new(penstock_fabric::alloc::Regions::new(place.layout));
    }
    place
}

/// Random I/O for `steps` steps.
fn load(world: &mut World, bench: &mut Bench, rng: &mut Rng, steps: u64, span: u64) -> Result<(), PowerCut> {
    for _ in 0..steps {
        for _ in 0..rng.below(6) {
            let shard = shard(1 + rng.below(3));
            let block = rng.below(span);
            let (op, blocks) = match rng.below(12) {
                0..=3 => (Op::Read, 1 + rng.below(24)),
                4 => (Op::WriteZeroes, 1 + rng.below(60)),
                5 => (Op::Write, 1 + rng.below(120)),
                6 => (Op::Flush, 0),
                _ => (Op::Write, 1 + rng.below(8)),
            };
            bench.submit(shard, None, op, block, u32::try_from(blocks).unwrap());
        }
        for _ in 0..1 + rng.below(4) {
            world.step(bench)?;
        }
    }
    Ok(())
}

/// Load with snapshots of one or all shards in between, and one deleted.
fn snapshots_under_load(
    world: &mut World,
    bench: &mut Bench,
    rng: &mut Rng,
    life: u64,
) -> Result<(), PowerCut> {
    for part in 0..4 {
        load(world, bench, rng, 70, 1500)?;
        let all = [shard(1), shard(2), shard(3)];
        let shards = if rng.chance(500) { &all[..1] } else { &all[..] };
        bench.snapshot(shards, life * 10 + part);
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

fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|value: String| value.parse::<u64>().unwrap());
    match number("PENSTOCK_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PENSTOCK_SEEDS").unwrap_or(default)).collect(),
    }
}

/// Runs each seed twice; says how to run a failing one again.
fn run_seeds(default: u64, run: impl Fn(u64) -> u64 + std::panic::RefUnwindSafe) {
    for seed in seeds(default) {
        let first = std::panic::catch_unwind(|| run(seed));
        let Ok(first) = first else {
            panic!("replay with: PENSTOCK_SEED={seed} cargo test -p penstock-fabric --test lane")
        };
        assert_eq!(first, run(seed), "seed {seed} does not give the same run twice");
    }
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
