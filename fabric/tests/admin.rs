//! A lane's notes, reverts and differences of snapshots, on simulated disks.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod bench;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bench::{Bench, Oracle, Work, format, open, place};
use penstock_bdev::Op;
use penstock_fabric::flow::Flow;
use penstock_fabric::id::ShardId;
use penstock_fabric::lane::{Changed, Lane, LanePlace};
use penstock_fabric::sim::World;
use penstock_reactor::rng::Rng;

const SHARD: ShardId = ShardId(1 << 16);

fn fresh(seed: u64) -> (World, LanePlace, Bench) {
    let mut world = World::new(seed, 1, 24_000);
    let superblocks = format(&mut world, &Flow::new(), 1);
    let place = place(&superblocks);
    let (mut bench, _) = open(&mut world, &place, Oracle::default(), 0).unwrap();
    bench.run(&mut world, |lane| Box::pin(async move { lane.create_shard(SHARD).await })).unwrap().unwrap();
    (world, place, bench)
}

fn reopen(world: &mut World, place: &LanePlace, bench: Bench) -> Bench {
    let (oracle, stamp) = (bench.oracle.clone(), bench.next_stamp);
    drop(bench);
    let mut place = place.clone();
    place.disks[0].regions = std::sync::Arc::new(penstock_fabric::alloc::Regions::new(place.homes[0].layout));
    open(world, &place, oracle, stamp).unwrap().0
}

fn write(world: &mut World, bench: &mut Bench, rng: &mut Rng, count: u64) -> BTreeSet<u64> {
    let mut written = BTreeSet::new();
    for _ in 0..count {
        let (block, blocks) = (rng.below(6000), 1 + rng.below(12));
        let op = if rng.chance(200) { Op::WriteZeroes } else { Op::Write };
        while !bench.submit(SHARD, None, op, block, u32::try_from(blocks).unwrap()) {
            world.step(bench).unwrap();
        }
        written.extend(block..block + blocks);
        bench.quiesce(world).unwrap();
    }
    written
}

#[test]
fn notes_change_together_and_outlive_power_cuts_and_checkpoints() {
    let (mut world, place, mut bench) = fresh(1);
    let put = |notes: Vec<(u64, Option<Vec<u8>>)>| {
        move |lane: Lane| -> Work { Box::pin(async move { lane.put_notes(notes).await }) }
    };
    let long = vec![0xa5; 4096];
    bench.run(&mut world, put(vec![(1, Some(long.clone())), (2, Some(b"two".to_vec()))])).unwrap().unwrap();
    bench.settle(&mut world).unwrap();
    bench.run(&mut world, put(vec![(1, None), (3, Some(long.clone())), (9, None)])).unwrap().unwrap();
    world.cut();
    let bench = reopen(&mut world, &place, bench);
    let notes = bench.lane.state().notes.clone();
    assert_eq!(notes.into_iter().collect::<Vec<_>>(), [(2, b"two".to_vec()), (3, long)]);
}

#[test]
fn a_revert_brings_a_snapshot_back_and_frees_what_came_later() {
    let (mut world, place, mut bench) = fresh(2);
    let mut rng = Rng::seeded(2);
    write(&mut world, &mut bench, &mut rng, 200);
    bench.snapshot(&[SHARD], 7);
    bench.quiesce(&mut world).unwrap();
    write(&mut world, &mut bench, &mut rng, 200);
    let revert = |lane: Lane| -> Work { Box::pin(async move { lane.revert_shard(SHARD, 7).await }) };
    bench.run(&mut world, revert).unwrap().unwrap();
    bench.oracle.clone_of(SHARD, SHARD, 7);
    bench.read_all(&mut world);
    write(&mut world, &mut bench, &mut rng, 50);
    world.cut();
    let mut bench = reopen(&mut world, &place, bench);
    bench.read_all(&mut world);
    bench.settle(&mut world).unwrap();
    bench.lane.want_collect();
    bench.settle(&mut world).unwrap();
    bench.check_space(&place);
}

#[test]
fn a_difference_names_exactly_the_blocks_that_were_written_between() {
    let (mut world, _, mut bench) = fresh(3);
    let mut rng = Rng::seeded(3);
    let first = write(&mut world, &mut bench, &mut rng, 400);
    bench.snapshot(&[SHARD], 1);
    bench.quiesce(&mut world).unwrap();
    let second = write(&mut world, &mut bench, &mut rng, 40);
    bench.snapshot(&[SHARD], 2);
    bench.quiesce(&mut world).unwrap();
    let mut diff = |old: Option<u64>, new: u64, max: usize| {
        let found: Rc<RefCell<Vec<Changed>>> = Rc::default();
        let all = Rc::clone(&found);
        let walk = move |lane: Lane| -> Work {
            Box::pin(async move {
                let mut start = Some(0);
                while let Some(from) = start {
                    let (part, next) = lane.diff(SHARD, old, new, from, max).await?;
                    assert!(next.is_none_or(|next| next > from));
                    all.borrow_mut().extend(part);
                    start = next;
                }
                Ok(())
            })
        };
        bench.run(&mut world, walk).unwrap().unwrap();
        let found = found.take();
        assert!(found.windows(2).all(|pair| pair[0].first + pair[0].blocks <= pair[1].first));
        found
    };
    let blocks = |found: &[Changed]| -> BTreeSet<u64> {
        found.iter().flat_map(|range| range.first..range.first + range.blocks).collect()
    };
    let changed = blocks(&diff(Some(1), 2, 1_000_000));
    assert!(changed.is_subset(&second), "what was not written is not changed");
    // Zeroes over what was nowhere change nothing.
    let missing: Vec<u64> = second.difference(&changed).copied().collect();
    assert!(missing.iter().all(|block| !first.contains(block) || missing.len() < 100));
    assert_eq!(blocks(&diff(Some(1), 2, 3)), changed, "in pieces");
    assert_eq!(diff(Some(2), 2, 9), []);
    let all = diff(None, 2, 1_000_000);
    assert!(all.iter().all(|range| !range.zero));
    assert!(changed.iter().all(|block| first.contains(block) || second.contains(block)));
}
