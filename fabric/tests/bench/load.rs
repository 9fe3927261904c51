//! What the tests of a lane begin with, and what keeps a lane busy.

use penstock_bdev::Op;
use penstock_fabric::codec::{Codec, Compression};
use penstock_fabric::flow::Flow;
use penstock_fabric::id::ShardId;
use penstock_fabric::lane::LanePlace;
use penstock_fabric::sim::{PowerCut, World};
use penstock_reactor::rng::Rng;

use super::{Bench, Oracle, format, open, place};

pub(crate) const DISK_BLOCKS: u64 = 24_000;

pub(crate) fn shard(number: u64) -> ShardId {
    ShardId::new(number, 0).unwrap()
}

/// A pool with one lane and shards 1 to 3.
pub(crate) fn fresh(seed: u64, disks: usize) -> (World, LanePlace, Bench) {
    fresh_with(seed, disks, 1)
}

/// The same with so many copies of everything.
pub(crate) fn fresh_with(seed: u64, disks: usize, copies: u8) -> (World, LanePlace, Bench) {
    let mut world = World::new(seed, disks, DISK_BLOCKS);
    let superblocks = format(&mut world, &Flow::new(), copies);
    let place = place(&superblocks);
    let (mut bench, _) = open(&mut world, &place, Oracle::default(), 0).unwrap();
    for number in 1..=3 {
        bench.flow(|lane| Box::pin(async move { lane.create_shard(shard(number)).await }));
        bench.quiesce(&mut world).unwrap();
    }
    (world, place, bench)
}

/// The same lane after a restart.
pub(crate) fn reopen(world: &mut World, place: &LanePlace, bench: Bench) -> Bench {
    let (oracle, stamp) = (bench.oracle.clone(), bench.next_stamp);
    drop(bench);
    let (mut bench, _) = open(world, &fresh_regions(place), oracle, stamp).unwrap();
    bench.read_all(world);
    bench.oracle.forget_lost();
    bench
}

pub(crate) fn fresh_regions(place: &LanePlace) -> LanePlace {
    let mut place = place.clone();
    for disk in &mut place.disks {
        disk.regions = std::sync::Arc::new(penstock_fabric::alloc::Regions::new(place.homes[0].layout));
    }
    place
}

/// Random I/O for `steps` steps.
pub(crate) fn load(
    world: &mut World,
    bench: &mut Bench,
    rng: &mut Rng,
    steps: u64,
    span: u64,
) -> Result<(), PowerCut> {
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

/// Some shards want to have their data encoded, now or later, some not; what is there is, now and then.
pub(crate) fn compress(bench: &Bench, rng: &mut Rng) {
    for number in 1..=3 {
        let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::try_from(rng.below(3)).unwrap()];
        bench.lane.set_compression(shard(number), Compression { codec, inline: rng.chance(600) });
    }
    if rng.chance(300) {
        bench.lane.compress(bench.lane.egroup_mark());
    }
}

pub(crate) fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|value: String| value.parse::<u64>().unwrap());
    match number("PENSTOCK_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PENSTOCK_SEEDS").unwrap_or(default)).collect(),
    }
}

/// Runs each seed twice; says how to run a failing one again.
pub(crate) fn run_seeds(default: u64, run: impl Fn(u64) -> u64 + std::panic::RefUnwindSafe) {
    for seed in seeds(default) {
        let first = std::panic::catch_unwind(|| run(seed));
        let Ok(first) = first else {
            let test = env!("CARGO_CRATE_NAME");
            panic!("replay with: PENSTOCK_SEED={seed} cargo test -p penstock-fabric --test {test}")
        };
        assert_eq!(first, run(seed), "seed {seed} does not give the same run twice");
    }
}

/// Submits until the lane takes it or answers.
pub(crate) fn insist(world: &mut World, bench: &mut Bench, shard: ShardId, op: Op, block: u64, blocks: u32) {
    let mut tries = 0;
    while !bench.submit(shard, None, op, block, blocks) {
        world.step(bench).unwrap();
        tries += 1;
        assert!(tries < 200_000, "the lane neither takes nor answers {op:?}: {:?}", bench.lane.usage());
    }
}
