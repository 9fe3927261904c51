//! Checking and rescuing pools offline, on simulated disks.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod bench;

use bench::load::{compress, fresh, fresh_regions, insist, load, shard};
use bench::{Bench, open};
use penstock_bdev::{IoStatus, Op};
use penstock_fabric::flow::Flow;
use penstock_fabric::fsck::{self, CheckOptions, Report, Severity};
use penstock_fabric::id::LaneNo;
use penstock_fabric::lane::LanePlace;
use penstock_fabric::sim::World;
use penstock_reactor::rng::Rng;

const LOOK: CheckOptions = CheckOptions { data: true, repair: false };

fn check(world: &mut World, options: CheckOptions) -> Report {
    let (flow, plugged) = (Flow::new(), world.plugged());
    let report = world.must(&mut flow.clone(), fsck::check(&flow, &plugged, options, &mut |_, _, _| {}));
    report.unwrap()
}

/// A pool that has seen something, with snapshots, everything drained.
fn used(seed: u64) -> (World, LanePlace, Bench) {
    let (mut world, place, mut bench) = fresh(seed, 2);
    let mut rng = Rng::seeded(seed);
    for number in 0..3 {
        compress(&bench, &mut rng);
        load(&mut world, &mut bench, &mut rng, 80, 700).unwrap();
        bench.snapshot(&[shard(1), shard(2)], number);
    }
    bench.quiesce(&mut world).unwrap();
    bench.settle(&mut world).unwrap();
    (world, place, bench)
}

#[test]
fn a_pool_is_clean_after_any_power_cut() {
    for seed in 0..6 {
        let (mut world, _, mut bench) = used(seed);
        let mut rng = Rng::seeded(seed);
        world.cut_at = Some(world.events + rng.below(600));
        let cut = load(&mut world, &mut bench, &mut rng, 200, 700);
        world.cut_at = None;
        if cut.is_ok() {
            world.cut();
        }
        drop(bench);
        let report = check(&mut world, LOOK);
        assert!(report.findings.is_clean(), "seed {seed}: {:#?}", report.findings.list);
        assert_eq!((report.seen.lanes, report.seen.shards), (1, 3));
        assert!(report.seen.snapshots >= 5 && report.seen.mapped_blocks > 0);
    }
}

#[test]
fn damage_is_named_and_what_is_safe_to_mend_is_mended() {
    let (mut world, place, bench) = used(30);
    let data = {
        let state = bench.lane.state();
        let egroup = state.egroups.values().next().unwrap();
        (usize::from(egroup.disk.0), egroup.first.0 + u64::from(egroup.blocks) - 1)
    };
    drop(bench);
    // One of four superblocks of disk 1, and one of two checkpoints.
    world.disks[1].poke(255, &[0; 4096]);
    let slot = place.homes[0].layout.checkpoint_first(LaneNo(0), 0).0;
    let slot = if world.disks[0].peek(slot)[..4] == *b"Pnsk" {
        slot
    } else {
        slot + u64::from(place.homes[0].layout.checkpoint_blocks)
    };
    world.disks[0].rot(slot, 600);
    let repairable = |report: &Report| {
        let wrong = report.findings.list.iter().filter(|one| one.severity == Severity::Repairable);
        (wrong.clone().count(), wrong.filter(|one| one.repaired).count(), report.findings.damage)
    };
    assert_eq!(repairable(&check(&mut world, LOOK)), (2, 0, 0));
    let report = check(&mut world, CheckOptions { repair: true, ..LOOK });
    assert!(report.findings.is_clean() && repairable(&report) == (2, 2, 0), "{:#?}", report.findings.list);
    assert_eq!(repairable(&check(&mut world, LOOK)), (0, 0, 0));
    world.disks[data.0].rot(data.1, 77);
    let report = check(&mut world, LOOK);
    assert_eq!(report.findings.damage, 1, "{:#?}", report.findings.list);
    assert!(report.findings.list.iter().any(|one| one.what.contains("extent")), "{:?}", report.findings.list);
}

/// A log whose blocks were all zeroed looked like one that ends where it begins: what it had was lost without a word.
#[test]
fn a_log_that_is_gone_is_damage_and_no_torn_end() {
    let (mut world, place, mut bench) = used(31);
    let mut rng = Rng::seeded(31);
    load(&mut world, &mut bench, &mut rng, 20, 700).unwrap();
    bench.quiesce(&mut world).unwrap();
    drop(bench);
    world.cut();
    let log = place.log;
    for block in 0..u64::from(log.segment_blocks) * u64::from(log.segments) {
        world.disks[0].poke(log.first.0 + block, &[0; 4096]);
    }
    let report = check(&mut world, LOOK);
    assert!(report.findings.damage > 0, "{:#?}", report.findings.list);
    // A rescue says so and goes on without it.
    let (findings, _) = rescue(&mut world);
    assert!(findings.count > 0);
    assert_eq!(check(&mut world, LOOK).findings.damage, 0);
}

fn rescue(world: &mut World) -> (fsck::Findings, Vec<(LaneNo, fsck::Rescued)>) {
    let (flow, plugged) = (Flow::new(), world.plugged());
    world.must(&mut flow.clone(), fsck::rescue(&flow, &plugged)).unwrap()
}

fn lose_checkpoints(world: &mut World, place: &LanePlace) {
    for slot in 0..2 {
        world.disks[0].poke(place.homes[0].layout.checkpoint_first(LaneNo(0), slot).0, &[0xff; 4096]);
    }
}

#[test]
fn a_lane_without_checkpoints_is_made_again_from_its_egroups_and_its_log() {
    for seed in 40..46 {
        let (mut world, place, mut bench) = used(seed);
        // Some of it is in the log only.
        let mut rng = Rng::seeded(seed);
        load(&mut world, &mut bench, &mut rng, 20, 700).unwrap();
        bench.quiesce(&mut world).unwrap();
        let (mut oracle, stamp) = (bench.oracle.clone(), bench.next_stamp);
        drop(bench);
        world.cut();
        lose_checkpoints(&mut world, &place);
        assert!(!check(&mut world, LOOK).findings.is_clean());
        let (findings, lanes) = rescue(&mut world);
        assert_eq!((findings.damage, lanes.len()), (0, 1), "{:#?}", findings.list);
        assert_eq!((lanes[0].1.maps_found, lanes[0].1.maps_made), (3, 0), "{lanes:?}");
        let report = check(&mut world, LOOK);
        assert!(report.findings.is_clean(), "{:#?}", report.findings.list);
        oracle.snapshots.clear();
        let (mut bench, _) = open(&mut world, &fresh_regions(&place), oracle, stamp).unwrap();
        bench.read_all(&mut world);
        load(&mut world, &mut bench, &mut rng, 60, 700).unwrap();
        bench.quiesce(&mut world).unwrap();
        bench.settle(&mut world).unwrap();
        bench.read_all(&mut world);
        bench.check_space(&place);
    }
}

/// Nodes are lost too: maps come from what the extents say.
#[test]
fn maps_that_are_lost_are_made_again_from_extents() {
    let (mut world, place, mut bench) = fresh(50, 1);
    for block in (0..640).step_by(16) {
        insist(&mut world, &mut bench, shard(1 + block % 3), Op::Write, block, 16);
    }
    insist(&mut world, &mut bench, shard(1), Op::Write, 37, 5);
    bench.quiesce(&mut world).unwrap();
    bench.settle(&mut world).unwrap();
    let (oracle, stamp) = (bench.oracle.clone(), bench.next_stamp);
    drop(bench);
    for block in 0..24_000 {
        if world.disks[0].peek(block)[..6] == *b"PnskMN" {
            world.disks[0].rot(block, 900);
        }
    }
    lose_checkpoints(&mut world, &place);
    let (findings, lanes) = rescue(&mut world);
    assert_eq!(findings.damage, 0, "{:#?}", findings.list);
    assert_eq!((lanes[0].1.maps_found, lanes[0].1.maps_made), (0, 3), "{lanes:?}");
    let (mut bench, _) = open(&mut world, &fresh_regions(&place), oracle, stamp).unwrap();
    bench.read_all(&mut world);
    bench.check_space(&place);
}

#[test]
fn a_log_that_is_damaged_in_the_middle_is_cut_there() {
    let (mut world, place, mut bench) = fresh(60, 1);
    for block in 0..40 {
        insist(&mut world, &mut bench, shard(1), Op::Write, block, 1);
        bench.quiesce(&mut world).unwrap();
    }
    let (mut oracle, stamp) = (bench.oracle.clone(), bench.next_stamp);
    drop(bench);
    // The payload of a batch in the middle.
    let middle = (0..24_000).filter(|block| world.disks[0].peek(*block)[..6] == *b"PnskLB").nth(20).unwrap();
    world.disks[0].rot(middle + 1, 5);
    let report = check(&mut world, LOOK);
    assert!(
        report.findings.damage == 1 && report.findings.list[0].what.contains("batch"),
        "{:#?}",
        report.findings.list
    );
    let (findings, lanes) = rescue(&mut world);
    assert_eq!((findings.damage, lanes.len()), (1, 0), "{:#?}", findings.list);
    oracle.forget_shard(shard(1));
    let (mut bench, report) = open(&mut world, &fresh_regions(&place), oracle, stamp).unwrap();
    assert!((15..25).contains(&report.records), "{report:?}");
    bench.tolerated.insert(IoStatus::Gone as u8);
    bench.settle(&mut world).unwrap();
    assert!(check(&mut world, LOOK).findings.is_clean());
}

/// Everything is read, at the rate and under load; what is rotten is named, and nothing else.
#[test]
fn a_scrub_finds_what_is_rotten_at_its_rate_and_can_be_paused() {
    let (mut world, _, mut bench) = used(70);
    let rotten = {
        let state = bench.lane.state();
        let (id, egroup) = state.egroups.iter().next().unwrap();
        (*id, usize::from(egroup.disk.0), egroup.first.0 + u64::from(egroup.header_blocks))
    };
    world.disks[rotten.1].rot(rotten.2, 99);
    bench.lane.set_scrub_rate(20_000);
    let (lane, begin) = (bench.lane.clone(), bench.oracle.now);
    bench.flow(|lane| Box::pin(async move { lane.scrub().await.map(drop) }));
    let mut rng = Rng::seeded(70);
    bench.tolerated.insert(IoStatus::ChecksumError as u8);
    load(&mut world, &mut bench, &mut rng, 20, 700).unwrap();
    lane.set_scrub_rate(0);
    let paused = lane.scrub_progress();
    load(&mut world, &mut bench, &mut rng, 20, 700).unwrap();
    let now = lane.scrub_progress();
    assert!(now.blocks <= paused.blocks + 16 && now.passes == 0, "{now:?}");
    lane.set_scrub_rate(20_000);
    bench.quiesce(&mut world).unwrap();
    let done = lane.scrub_progress();
    assert_eq!((done.passes, done.done >= done.total), (1, true), "{done:?}");
    assert!(done.errors >= 1 && done.damaged.iter().all(|(id, _)| *id == rotten.0), "{done:?}");
    // A turn is a millisecond here.
    let milliseconds = bench.oracle.now - begin;
    assert!(done.blocks <= milliseconds * 20 + 2500, "{} blocks in {milliseconds} ms", done.blocks);
}
