//! Two copies of everything on several disks: any one of them may rot, misdirect, fail, vanish, come back old, or be left, at any point.
//!
//! `PENSTOCK_SEED=n cargo test -p penstock-fabric --test disks` runs one seed; `PENSTOCK_SEEDS=n` that many.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod bench;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bench::load::{DISK_BLOCKS, compress, load, run_seeds, shard};
use bench::{Bench, Oracle, POOL, Work, open};
use penstock_bdev::Op;
use penstock_fabric::alloc::Regions;
use penstock_fabric::flow::Flow;
use penstock_fabric::format::superblock::{DiskState, Tier};
use penstock_fabric::fsck::{self, CheckOptions};
use penstock_fabric::id::{DiskNo, LaneNo};
use penstock_fabric::lane::{self, Lane, LaneDisk};
use penstock_fabric::pool::{self, NewDisk, Pool, PoolOptions};
use penstock_fabric::sim::{Faults, PowerCut, SimDisk, World};
use penstock_reactor::rng::Rng;
use uuid::Uuid;

/// A lane, the pool that it is of, and what whoever has the pool does for it.
struct Owned {
    bench: Bench,
    pool: Rc<RefCell<Pool>>,
    regions: Vec<Arc<Regions>>,
    /// Superblocks are being written.
    busy: Rc<Cell<bool>>,
}

fn new_disk(world: &World, at: u16) -> NewDisk {
    let uuid = Uuid::from_u128(1000 + u128::from(at));
    NewDisk { at: DiskNo(at), uuid, blocks: world.disks[usize::from(at)].blocks(), tier: Tier::Ssd }
}

fn plugged(world: &World) -> Vec<(DiskNo, u64)> {
    let there = world.plugged().into_iter().filter(|(at, _)| !world.disks[usize::from(at.0)].gone);
    there.collect()
}

impl Owned {
    fn fresh(world: &mut World) -> Self {
        let disks: Vec<NewDisk> = (0..).zip(&world.disks).map(|(at, _)| new_disk(world, at)).collect();
        let (flow, options) = (Flow::new(), PoolOptions { copies: 2, ..POOL });
        let made = world.must(&mut flow.clone(), pool::create(&flow, Uuid::from_u128(1), &disks, &options));
        let planned = Pool::planned(&disks, &made.unwrap());
        let place = planned.place(LaneNo(0), &planned.regions()).unwrap();
        world.must(&mut flow.clone(), lane::format(&flow, &place)).unwrap();
        let mut owned = Self::open(world, Oracle::default(), 0);
        for number in 1..=3 {
            owned.bench.flow(|lane| Box::pin(async move { lane.create_shard(shard(number)).await }));
            owned.bench.quiesce(world).unwrap();
        }
        owned
    }

    fn open(world: &mut World, oracle: Oracle, stamp: u64) -> Self {
        let (flow, plugged) = (Flow::new(), plugged(world));
        let pool = world.must(&mut flow.clone(), pool::open_degraded(&flow, &plugged)).unwrap();
        let regions = pool.regions();
        let place = pool.place(LaneNo(0), &regions).unwrap();
        let (bench, _) = open(world, &place, oracle, stamp).unwrap();
        Self { bench, pool: Rc::new(RefCell::new(pool)), regions, busy: Rc::default() }
    }

    /// After a power cut.
    fn reopen(self, world: &mut World) -> Self {
        world.cut();
        let (oracle, stamp) = (self.bench.oracle.clone(), self.bench.next_stamp);
        drop(self);
        let mut owned = Self::open(world, oracle, stamp);
        // Before it works on.
        owned.check();
        owned.bench.read_all(world);
        owned.bench.oracle.forget_lost();
        owned
    }

    /// Writes new superblocks by way of the lane's mouth, then tells the lane.
    fn change(
        &mut self,
        next: penstock_fabric::format::superblock::Superblock,
        then: impl FnOnce(&Lane) + 'static,
    ) {
        let (pool, busy) = (Rc::clone(&self.pool), Rc::clone(&self.busy));
        busy.set(true);
        self.bench.flow(|lane| -> Work {
            Box::pin(async move {
                let mut now = pool.borrow().clone();
                // A disk that fails meanwhile is dealt with next.
                if now.update(&lane.flow(), next).await.is_ok() {
                    *pool.borrow_mut() = now;
                    then(&lane);
                }
                busy.set(false);
                Ok(())
            })
        });
    }

    /// Disks that fail are out, once the superblocks of the others say so.
    fn tend(&mut self) {
        if self.busy.get() {
            return;
        }
        let failing = (0..).map(DiskNo).zip(&self.regions).find(|(number, regions)| {
            regions.is_failing() && self.pool.borrow().newest.state(*number) != DiskState::Out
        });
        if let Some((disk, _)) = failing {
            let next = self.pool.borrow().newest.without(disk).expect("a lane's last home fails");
            self.change(next, move |lane| lane.disk_out(disk));
        }
    }

    fn load(&mut self, world: &mut World, rng: &mut Rng, steps: u64) -> Result<(), PowerCut> {
        for _ in 0..steps / 5 {
            load(world, &mut self.bench, rng, 5, 1500)?;
            self.tend();
        }
        Ok(())
    }

    /// Until nothing is under way and no disk is waited for.
    fn quiesce(&mut self, world: &mut World) -> Result<(), PowerCut> {
        for _ in 0..100_000 {
            self.tend();
            if self.bench.is_idle() {
                return Ok(());
            }
            world.step(&mut self.bench)?;
        }
        panic!("it does not come to rest");
    }

    /// Until everything has its copies.
    fn repair(&mut self, world: &mut World) -> Result<(), PowerCut> {
        for _ in 0..200_000 {
            self.tend();
            let progress = self.bench.lane.repair_progress();
            if self.bench.is_idle() && (progress.todo == 0 || progress.stuck) {
                return Ok(());
            }
            world.step(&mut self.bench)?;
        }
        panic!("copies are not made: {:?}", self.bench.lane.repair_progress());
    }

    /// Gives the lane the homes that it is to have.
    fn rehome(&mut self, world: &mut World) -> Result<(), PowerCut> {
        let wanted = self.pool.borrow().homes_wanted();
        for (lane, disk) in wanted {
            assert_eq!(lane, LaneNo(0));
            let home = self.pool.borrow().home(disk).unwrap();
            self.bench.flow(|lane| Box::pin(async move { lane.join_home(home).await }));
            self.quiesce(world)?;
            self.bench.flows_ended.pop().unwrap().unwrap();
            let next = self.pool.borrow().with_homes(&[(lane, disk)]);
            let kept: Vec<DiskNo> = next.homes(lane).collect();
            self.change(next, move |lane| {
                let homes = lane.homes();
                for home in homes.iter().filter(|home| !kept.contains(&home.disk)) {
                    lane.leave_home(home.disk);
                }
            });
            self.quiesce(world)?;
        }
        Ok(())
    }

    fn add_disk(&mut self, world: &mut World) -> Result<(), PowerCut> {
        world.disks.push(SimDisk::new(DISK_BLOCKS));
        let at = u16::try_from(world.disks.len() - 1).unwrap();
        let disk = new_disk(world, at);
        let (pool, made) = (Rc::clone(&self.pool), Rc::new(RefCell::new(false)));
        let done = Rc::clone(&made);
        self.bench.flow(|lane| -> Work {
            Box::pin(async move {
                let mut now = pool.borrow().clone();
                now.add(&lane.flow(), &disk, None).await.unwrap();
                *pool.borrow_mut() = now;
                *done.borrow_mut() = true;
                Ok(())
            })
        });
        self.quiesce(world)?;
        assert!(*made.borrow());
        let layout = self.pool.borrow().disks.last().unwrap().1.layout;
        let regions = Arc::new(Regions::new(layout));
        self.regions.push(Arc::clone(&regions));
        self.bench.lane.disk_comes(LaneDisk::new(DiskNo(at), regions, true, Tier::Ssd), 2);
        Ok(())
    }

    /// Every egroup has two copies on disks that are in.
    fn has_all_copies(&self) {
        let pool = self.pool.borrow();
        for (id, egroup) in &self.bench.lane.state().egroups {
            let good = egroup.places().filter(|place| pool.newest.state(place.disk) == DiskState::In);
            assert_eq!(good.count(), 2, "egroup {id}: {egroup:?}");
        }
        assert_eq!(self.bench.lane.homes().len(), 2);
    }

    fn check(&self) {
        let place = self.pool.borrow().place(LaneNo(0), &self.regions).unwrap();
        self.bench.check_space(&place);
        assert_eq!(self.bench.background_error, None);
    }
}

/// Offline: nothing is wrong.
fn fsck(world: &mut World) {
    let (flow, plugged) = (Flow::new(), plugged(world));
    let options = CheckOptions { data: true, repair: false };
    let report = world.must(&mut flow.clone(), fsck::check(&flow, &plugged, options, &mut |_, _, _| {}));
    let report = report.unwrap();
    assert!(report.findings.is_clean(), "{:#?}", report.findings.list);
}

#[test]
fn any_disk_may_vanish_at_any_point_and_nothing_is_lost() {
    run_seeds(4, |seed| {
        let mut world = World::new(seed, 3, DISK_BLOCKS);
        let mut rng = Rng::seeded(!seed);
        let mut owned = Owned::fresh(&mut world);
        for life in 0..4 {
            compress(&owned.bench, &mut rng);
            owned.load(&mut world, &mut rng, 60).unwrap();
            // Any of those that are in; what was under way there is half done.
            let usable: Vec<DiskNo> = owned.pool.borrow().usable().collect();
            let victim = usize::from(usable[usize::try_from(rng.below(usable.len() as u64)).unwrap()].0);
            if rng.chance(500) {
                world.disks[victim].gone = true;
            } else {
                world.disks[victim].faults.write_error = 1000;
            }
            let cut = rng.chance(500);
            world.cut_at = cut.then(|| world.events + rng.below(400));
            let outcome = owned.load(&mut world, &mut rng, 200);
            world.cut_at = None;
            if outcome.is_ok() {
                owned.quiesce(&mut world).unwrap();
                owned.bench.read_all(&mut world);
                owned.quiesce(&mut world).unwrap();
            }
            world.disks[victim].faults = Faults::default();
            world.disks[victim].gone = !rng.chance(300) && outcome.is_ok();
            owned = owned.reopen(&mut world);
            // What was lost is made again, and a new disk takes its place.
            world.disks[victim].gone = world.disks[victim].gone || rng.chance(500);
            owned.load(&mut world, &mut rng, 100).unwrap();
            owned.quiesce(&mut world).unwrap();
            owned.add_disk(&mut world).unwrap();
            owned.rehome(&mut world).unwrap();
            owned.repair(&mut world).unwrap();
            owned.has_all_copies();
            owned.bench.settle(&mut world).unwrap();
            owned.check();
            let healthy = owned.pool.borrow().with_degraded(false);
            owned.change(healthy, |_| {});
            owned.quiesce(&mut world).unwrap();
            assert!(owned.pool.borrow().usable().count() >= 3, "life {life}");
        }
        owned.bench.settle(&mut world).unwrap();
        owned.bench.read_all(&mut world);
        drop(owned);
        world.cut();
        fsck(&mut world);
        world.hash()
    });
}

#[test]
fn a_disk_that_rots_misdirects_or_loses_writes_harms_nothing_that_has_a_copy() {
    run_seeds(4, |seed| {
        let mut world = World::new(seed, 2 + usize::try_from(seed % 2).unwrap(), DISK_BLOCKS);
        let mut rng = Rng::seeded(!seed);
        let mut owned = Owned::fresh(&mut world);
        let bad = usize::try_from(rng.below(2)).unwrap();
        for _ in 0..4 {
            compress(&owned.bench, &mut rng);
            world.disks[bad].faults = Faults { misdirected: 15, lost: 15, read_error: 10, write_error: 0 };
            owned.bench.lane.set_cache_blocks(0);
            world.cut_at = rng.chance(500).then(|| world.events + 300 + rng.below(600));
            let outcome = owned.load(&mut world, &mut rng, 300);
            world.cut_at = None;
            if outcome.is_ok() {
                owned.bench.settle(&mut world).unwrap();
                owned.bench.read_all(&mut world);
            }
            world.disks[bad].faults = Faults::default();
            let rotten = {
                let state = owned.bench.lane.state();
                let on = |disk: DiskNo| usize::from(disk.0) == bad;
                let copies = state.egroups.values().flat_map(|egroup| {
                    egroup
                        .places()
                        .filter(|place| on(place.disk))
                        .map(|place| place.first.0 + u64::from(egroup.blocks) - 1)
                });
                copies.collect::<Vec<u64>>()
            };
            for block in rotten.into_iter().step_by(3) {
                world.disks[bad].rot(block, usize::try_from(rng.below(32_768)).unwrap());
            }
            owned = owned.reopen(&mut world);
        }
        // A scrub finds what nobody has read, and all of it is mended.
        for _ in 0..2 {
            owned.bench.lane.set_scrub_rate(1 << 30);
            owned.bench.flow(|lane| Box::pin(async move { lane.scrub().await.map(drop) }));
            owned.quiesce(&mut world).unwrap();
            for _ in 0..3000 {
                world.step(&mut owned.bench).unwrap();
            }
        }
        let progress = owned.bench.lane.repair_progress();
        assert!(progress.mended > 0 && progress.lost == 0, "{progress:?}");
        owned.bench.settle(&mut world).unwrap();
        owned.bench.settle(&mut world).unwrap();
        owned.check();
        owned = owned.reopen(&mut world);
        let (oracle, stamp) = (owned.bench.oracle.clone(), owned.bench.next_stamp);
        drop(owned);
        world.cut();
        fsck(&mut world);
        // Now the good one may go.
        world.disks[1 - bad].gone = true;
        let mut owned = Owned::open(&mut world, oracle, stamp);
        owned.bench.read_all(&mut world);
        owned.load(&mut world, &mut rng, 20).unwrap();
        world.hash()
    });
}

#[test]
fn a_disk_is_left_under_load_and_power_cuts_and_nothing_of_the_pool_stays_there() {
    run_seeds(4, |seed| {
        let mut world = World::new(seed, 3, DISK_BLOCKS);
        let mut rng = Rng::seeded(!seed);
        let mut owned = Owned::fresh(&mut world);
        owned.load(&mut world, &mut rng, 400).unwrap();
        owned.quiesce(&mut world).unwrap();
        let leaver = DiskNo(u16::try_from(rng.below(3)).unwrap());
        let next = owned.pool.borrow().with_state(leaver, DiskState::Leaving);
        owned.change(next, move |lane| lane.disk_leaves(leaver));
        owned.quiesce(&mut world).unwrap();
        for _ in 0..3 {
            world.cut_at = Some(world.events + rng.below(400));
            let outcome = owned
                .load(&mut world, &mut rng, 60)
                .and_then(|()| owned.rehome(&mut world))
                .and_then(|()| owned.load(&mut world, &mut rng, 60));
            world.cut_at = None;
            if outcome.is_err() {
                owned = owned.reopen(&mut world);
            }
        }
        owned.rehome(&mut world).unwrap();
        for _ in 0..100_000 {
            if owned.bench.lane.is_off(leaver) {
                break;
            }
            world.step(&mut owned.bench).unwrap();
        }
        assert!(owned.bench.lane.is_off(leaver), "{:?}", owned.bench.lane.repair_progress());
        owned.has_all_copies();
        let next = owned.pool.borrow().with_state(leaver, DiskState::Out);
        owned.change(next, move |lane| lane.disk_out(leaver));
        owned.quiesce(&mut world).unwrap();
        world.disks[usize::from(leaver.0)].gone = true;
        owned.load(&mut world, &mut rng, 60).unwrap();
        owned.quiesce(&mut world).unwrap();
        owned = owned.reopen(&mut world);
        // Any other may go now.
        let next = owned.pool.borrow().usable().next().unwrap();
        world.disks[usize::from(next.0)].gone = true;
        owned.load(&mut world, &mut rng, 60).unwrap();
        owned.quiesce(&mut world).unwrap();
        owned.bench.read_all(&mut world);
        owned = owned.reopen(&mut world);
        owned.bench.settle(&mut world).unwrap();
        world.hash()
    });
}

#[test]
fn a_disk_that_comes_back_old_is_not_believed_and_two_that_went_their_own_ways_are_told_apart() {
    let mut world = World::new(5, 2, DISK_BLOCKS);
    let mut rng = Rng::seeded(5);
    let mut owned = Owned::fresh(&mut world);
    owned.load(&mut world, &mut rng, 100).unwrap();
    world.disks[1].gone = true;
    owned.load(&mut world, &mut rng, 100).unwrap();
    owned.quiesce(&mut world).unwrap();
    for block in 0..100 {
        while !owned.bench.submit(shard(1), None, Op::Write, block, 1) {
            world.step(&mut owned.bench).unwrap();
        }
    }
    owned.quiesce(&mut world).unwrap();
    world.disks[1].gone = false;
    owned = owned.reopen(&mut world);
    assert_eq!(owned.pool.borrow().stale.len(), 1);
    assert!(owned.pool.borrow().newest.degraded);
    drop(owned);
    world.cut();
    fsck(&mut world);
    // The old one alone is a pool too, as nobody is there to say otherwise; from then on the two exclude each other.
    world.disks[0].gone = true;
    drop(Owned::open(&mut world, Oracle::default(), 1 << 40));
    world.cut();
    world.disks[0].gone = false;
    let (flow, plugged) = (Flow::new(), plugged(&world));
    let error = world.must(&mut flow.clone(), pool::open_degraded(&flow, &plugged)).unwrap_err();
    assert!(matches!(error, pool::PoolError::Diverged { .. }), "{error}");
}
