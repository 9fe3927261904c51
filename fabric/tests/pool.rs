//! Disks of a pool are known again, whatever happened to some copies of their superblocks.
#![expect(clippy::unwrap_used, reason = "a test")]

use penstock_fabric::flow::Flow;
use penstock_fabric::format::superblock::Tier;
use penstock_fabric::id::DiskNo;
use penstock_fabric::pool::{self, NewDisk, PoolError, PoolOptions, Probe};
use penstock_fabric::sim::World;
use uuid::Uuid;

const BLOCKS: u64 = 40_000;
const OPTIONS: PoolOptions =
    PoolOptions { lanes: 2, segment_blocks: 512, segments: 4, region_blocks: 2048, copies: 1 };

fn disks(count: u16) -> Vec<NewDisk> {
    let disk = |at| NewDisk {
        at: DiskNo(at),
        uuid: Uuid::from_u128(100 + u128::from(at)),
        blocks: BLOCKS,
        tier: Tier::Ssd,
    };
    (0..count).map(disk).collect()
}

fn made(seed: u64, count: u16) -> (World, Flow) {
    let (mut world, flow) = (World::new(seed, count.into(), BLOCKS), Flow::new());
    world.must(&mut flow.clone(), pool::create(&flow, Uuid::from_u128(1), &disks(count), &OPTIONS)).unwrap();
    (world, flow)
}

#[test]
fn disks_are_recognised_wherever_they_are_plugged_in() {
    let (mut world, flow) = made(1, 3);
    world.disks.rotate_left(1);
    let plugged = world.plugged();
    let opened = world.must(&mut flow.clone(), pool::open(&flow, &plugged)).unwrap();
    let places: Vec<u16> = opened.disks.iter().map(|(at, _)| at.0).collect();
    assert_eq!(places, [2, 0, 1]);
    let homes: Vec<u16> = opened.disks[0].1.lane_homes.iter().map(|home| home.0).collect();
    assert_eq!(homes, [0, 1]);
}

#[test]
fn a_missing_a_doubled_and_a_foreign_disk_are_refused_by_name() {
    let (mut world, flow) = made(2, 2);
    let open = |world: &mut World, plugged: &[(DiskNo, u64)]| {
        world.must(&mut flow.clone(), pool::open(&flow, plugged)).unwrap_err()
    };
    let missing = open(&mut world, &[(DiskNo(1), BLOCKS)]);
    assert!(matches!(missing, PoolError::Missing { number: DiskNo(0), .. }), "{missing}");
    let twice = open(&mut world, &[(DiskNo(0), BLOCKS), (DiskNo(0), BLOCKS), (DiskNo(1), BLOCKS)]);
    assert!(matches!(twice, PoolError::Twice { .. }), "{twice}");
    let other = disks(1);
    let create = pool::create(&flow, Uuid::from_u128(2), &other, &OPTIONS);
    world.must(&mut flow.clone(), create).unwrap();
    let foreign = open(&mut world, &[(DiskNo(0), BLOCKS), (DiskNo(1), BLOCKS)]);
    assert!(matches!(foreign, PoolError::Foreign { .. }), "{foreign}");
}

#[test]
fn a_disk_that_was_cut_off_is_refused() {
    let (mut world, flow) = made(4, 1);
    let open = pool::open(&flow, &[(DiskNo(0), BLOCKS - 8)]);
    let short = world.must(&mut flow.clone(), open).unwrap_err();
    assert!(matches!(short, PoolError::Short { wanted: BLOCKS, .. }), "{short}");
    assert!(short.to_string().contains("give it its length back"), "{short}");
}

#[test]
fn any_single_copy_is_enough_and_opening_mends_the_others() {
    for kept in 0..4 {
        let (mut world, flow) = made(3, 1);
        let copies = penstock_fabric::format::superblock::copies(BLOCKS);
        for (at, copy) in copies.iter().enumerate() {
            if at != kept {
                world.disks[0].rot(copy.0, 1000 + at);
            }
        }
        let probe = world.must(&mut flow.clone(), pool::probe(&flow, DiskNo(0), BLOCKS)).unwrap();
        assert!(matches!(probe, Probe::Member(_, 3)), "{probe:?}");
        world.must(&mut flow.clone(), pool::open(&flow, &[(DiskNo(0), BLOCKS)])).unwrap();
        let probe = world.must(&mut flow.clone(), pool::probe(&flow, DiskNo(0), BLOCKS)).unwrap();
        assert!(matches!(probe, Probe::Member(_, 0)), "{probe:?}");
    }
}

#[test]
fn power_cut_at_any_point_of_a_superblock_update_leaves_the_old_or_the_new_one() {
    for cut_at in 0..8 {
        for seed in 0..50 {
            let (mut world, flow) = made(seed, 1);
            let probe = world.must(&mut flow.clone(), pool::probe(&flow, DiskNo(0), BLOCKS)).unwrap();
            let Probe::Member(mut superblock, _) = probe else { panic!("not recognised") };
            superblock.generation += 1;
            world.cut_at = Some(world.events + cut_at);
            let done = world.run(&mut flow.clone(), pool::write_superblock(&flow, DiskNo(0), &superblock));
            world.cut_at = None;
            let flow = Flow::new();
            let probe = world.must(&mut flow.clone(), pool::probe(&flow, DiskNo(0), BLOCKS)).unwrap();
            let Probe::Member(found, _) = probe else {
                panic!("cut at {cut_at}, seed {seed}: no superblock left")
            };
            assert!(done.is_err() || found.generation == 2);
            assert!((1..=2).contains(&found.generation));
        }
    }
}
