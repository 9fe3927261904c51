//! Disks of an open pool: those that fail, come and leave.
//!
//! A lane that cannot write to a disk marks it; [`Fabric::watch_disks`] sees that, has the superblocks of the others say that it is out,
//! and tells all lanes, which have waited for that. Homes of logs and leaving disks are the slow business of [`Fabric::tend_disks`].
//! Superblocks are written by one of them at a time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use penstock_bdev::{Descriptor, IoStatus};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Fabric, FabricError, Job, Pool, Seat, all};
use crate::alloc::Regions;
use crate::flow::{DiskError, Flow};
use crate::format::superblock::{DiskState, Superblock, Tier};
use crate::id::{BLOCK_BYTES, DiskNo, LaneNo};
use crate::lane::{LaneDisk, RepairProgress, WorkError};
use crate::pool::{self, NewDisk, PoolError};
use crate::vdisk::Hub;

/// Between looks whether a disk fails.
const WATCH_PERIOD: Duration = Duration::from_millis(20);
/// Between looks whether disks are left.
const TEND_PERIOD: Duration = Duration::from_millis(500);
/// Looks until a pool that lacks a disk is opened without it: ten seconds.
const DEGRADED_LOOKS: u32 = 500;
/// MiB per second that a pool writes to make copies, unless it is said otherwise.
pub const REPAIR_MIB_DEFAULT: u64 = 256;

/// A disk that is to be added.
#[derive(Debug, Clone)]
pub struct AddDisk {
    /// The bdev. Whatever is on it is lost.
    pub bdev: String,
    /// Its kind.
    pub tier: Tier,
    /// Also when it is of another pool, or was of this one.
    pub force: bool,
    /// Copies of everything from then on, if that is to change.
    pub copies: Option<u8>,
}

/// Superblocks of a pool are being written while this lives.
struct Updating<'a>(&'a Pool);

impl Drop for Updating<'_> {
    fn drop(&mut self) {
        self.0.updating.set(false);
    }
}

impl Fabric {
    /// Puts disks out that fail, and opens pools that lack one disk and can do without, for ever: a task of the control thread.
    pub async fn watch_disks<Sleep: Future<Output = ()>>(self, pause: impl Fn(Duration) -> Sleep) {
        loop {
            pause(WATCH_PERIOD).await;
            for pool in self.pools() {
                if let Err(error) = pool.put_out_failing().await {
                    tracing::error!(pool = pool.name(), error = %super::chain(&error), "a disk fails and is not out yet");
                }
            }
            self.wait_for_missing();
        }
    }

    /// Gives logs the homes that they are to have and lets disks go that are left, for ever: a task of the control thread.
    pub async fn tend_disks<Sleep: Future<Output = ()>>(self, pause: impl Fn(Duration) -> Sleep) {
        loop {
            pause(TEND_PERIOD).await;
            for pool in self.pools() {
                if let Err(error) = pool.tend().await {
                    tracing::warn!(pool = pool.name(), error = %super::chain(&error), "disks of a pool are not as they are to be");
                }
            }
        }
    }

    /// Counts how long pools have lacked one disk that they can do without.
    fn wait_for_missing(&self) {
        let mut waits = self.0.waits.borrow_mut();
        let loose = self.0.loose.borrow();
        waits.retain(|pool, _| loose.contains_key(pool));
        for (pool, disks) in loose.iter().filter(|(_, disks)| !disks.is_empty()) {
            let newest = disks.iter().max_by_key(|disk| disk.superblock.generation);
            let Some(newest) = newest.map(|disk| &disk.superblock) else { continue };
            let there = |number: DiskNo| disks.iter().any(|disk| disk.superblock.disk_no == number);
            let missing = (0..).map(DiskNo).zip(&newest.states);
            let mut missing = missing.filter(|(number, state)| **state != DiskState::Out && !there(*number));
            let spare = match (missing.next(), missing.next()) {
                (Some((number, _)), None) => {
                    newest.copies > 1 && !newest.degraded && newest.without(number).is_some()
                }
                _ => false,
            };
            let wait = waits.entry(*pool).or_insert((0, 0));
            if wait.0 != disks.len() || !spare {
                *wait = (disks.len(), 0);
            } else {
                wait.1 = wait.1.saturating_add(1);
            }
            if wait.1 == DEGRADED_LOOKS {
                self.0.degraded.borrow_mut().push(*pool);
                self.wake();
            }
        }
    }

    /// The next pool to be opened without a disk.
    pub(super) fn next_degraded(&self) -> Option<Job> {
        self.0.degraded.borrow_mut().pop().map(Job::OpenDegraded)
    }

    /// Opens a pool that lacks a disk.
    pub(super) async fn open_degraded(&self, uuid: Uuid) -> Result<(), FabricError> {
        let Some(disks) = self.0.loose.borrow_mut().remove(&uuid) else { return Ok(()) };
        let bdevs: Vec<String> = disks.iter().map(|disk| disk.bdev.clone()).collect();
        let opened = self.open_pool(&bdevs).await;
        match &opened {
            Ok(pool) => tracing::warn!(pool = pool.name(), "pool opened without a disk that is missing"),
            Err(error) => {
                self.0.problems.borrow_mut().insert(uuid, super::chain(error));
                self.0.loose.borrow_mut().insert(uuid, disks);
            }
        }
        opened.map(drop)
    }

    /// Adds a disk to a pool.
    ///
    /// # Errors
    /// [`FabricError`]: a bdev that is in use or another pool's, too small; what the disks say.
    pub async fn add_disk(&self, pool: &Rc<Pool>, add: &AddDisk) -> Result<(), FabricError> {
        self.examined().await;
        if let Some(found) = self.probe(&add.bdev).await?.filter(|_| !add.force) {
            let users = format!("pool {}", found.pool);
            let remedy = "give force to destroy what is on it";
            return Err(FabricError::InUse { what: "bdev", name: add.bdev.clone(), users, remedy });
        }
        let disk = self.0.registry.claim(&add.bdev, super::open::OWNER)?;
        for disks in self.0.loose.borrow_mut().values_mut() {
            disks.retain(|disk| disk.bdev != add.bdev);
        }
        pool.plug_in(disk, add).await
    }
}

impl Pool {
    async fn update_lock(&self) -> Updating<'_> {
        std::future::poll_fn(|cx| {
            if self.updating.replace(true) {
                // Superblocks are written rarely and fast.
                cx.waker().wake_by_ref();
                return std::task::Poll::Pending;
            }
            std::task::Poll::Ready(())
        })
        .await;
        Updating(self)
    }

    /// Runs a control flow over channels of its own to all disks, by their numbers.
    async fn on_members<T, F, Fut>(
        &self,
        disks: Vec<Option<Descriptor>>,
        function: F,
    ) -> Result<T, FabricError>
    where
        T: Send + 'static,
        F: FnOnce(Flow) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, PoolError>> + 'static,
    {
        let mesh = Arc::clone(&self.mesh);
        let none = || FabricError::Work(WorkError::Failed(IoStatus::Gone));
        let reactor = self.mesh.reactors().first().cloned().ok_or_else(none)?;
        let done = reactor.call_async(move |cx| async move {
            let hub = Hub::of(&cx, &mesh);
            let seat = Seat::new(&cx, &disks, &hub, false)?;
            let outcome = function(seat.flow().clone()).await;
            seat.close(&cx, &hub).await;
            Ok::<T, FabricError>(outcome?)
        });
        done.await?
    }

    /// Writes what `next` makes of the superblocks; the caller has the lock.
    async fn update(&self, _lock: &Updating<'_>, next: Superblock) -> Result<(), FabricError> {
        let mut disks = self.disks.borrow().clone();
        for (number, disk) in (0..).map(DiskNo).zip(&mut disks) {
            if next.state(number) == DiskState::Out {
                *disk = None;
            }
        }
        let mut members = self.members.borrow().clone();
        let updated = self
            .on_members(disks, |flow| async move {
                let outcome = members.update(&flow, next).await;
                Ok((members, outcome))
            })
            .await?;
        match updated {
            (members, Ok(())) => {
                *self.members.borrow_mut() = members;
                Ok(())
            }
            (_, Err(error)) => Err(self.blame(error)),
        }
    }

    /// A disk did not take its superblock: it is the next to be out.
    fn blame(&self, error: DiskError) -> FabricError {
        if let Some(regions) = self.regions.borrow().get(usize::from(error.disk.0)) {
            regions.fail();
        }
        PoolError::from(error).into()
    }

    /// A bdev goes away. Whether the pool can do without it.
    pub(super) fn can_lose(&self, name: &str) -> bool {
        let is_it =
            |disk: &Option<Descriptor>| disk.as_ref().is_some_and(|disk| disk.shared().name() == name);
        let number = self.disks.borrow().iter().position(is_it);
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()).map(DiskNo) else {
            return true;
        };
        let members = self.members.borrow();
        let spare = members.newest.copies > 1 && members.newest.without(number).is_some();
        if let (true, Some(regions)) = (spare, self.regions.borrow().get(usize::from(number.0))) {
            regions.fail();
        }
        spare
    }

    /// Disks that fail are out from now on.
    async fn put_out_failing(&self) -> Result<(), FabricError> {
        let failing: Vec<DiskNo> = {
            let (regions, members) = (self.regions.borrow(), self.members.borrow());
            let is_failing = |(number, regions): &(DiskNo, &Arc<Regions>)| {
                regions.is_failing() && members.newest.state(*number) != DiskState::Out
            };
            (0..).map(DiskNo).zip(&*regions).filter(is_failing).map(|(number, _)| number).collect()
        };
        // One copy of everything: the lanes have failed by themselves.
        if failing.is_empty() || self.lost.get() || self.members.borrow().newest.copies < 2 {
            return Ok(());
        }
        let lock = self.update_lock().await;
        let newest = self.members.borrow().newest.clone();
        let next = failing.iter().try_fold(newest, |next, disk| next.without(*disk));
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let Some(next) = next else {
            // Nothing that waits for them can be kept any more.
            let given_up = self.at_lanes(lanes, |_, seat, _| async move {
                seat.lane().give_up(IoStatus::Gone);
                Ok(())
            });
            given_up.await?;
            self.lost.set(true);
            tracing::error!(pool = self.name(), "too many disks fail: the pool takes no writes");
            return Ok(());
        };
        self.update(&lock, next).await?;
        for disk in failing {
            let uuid =
                self.members.borrow().newest.disks.get(usize::from(disk.0)).copied().unwrap_or_default();
            tracing::error!(pool = self.name(), disk = %uuid, "a disk is out; its data are made again from the other copies");
            self.pull(disk).await?;
        }
        Ok(())
    }

    /// Tells all lanes that a disk is out and lets go of it.
    async fn pull(&self, disk: DiskNo) -> Result<(), FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        self.at_lanes(lanes, move |_, seat, _| async move {
            seat.lane().disk_out(disk);
            seat.pull(disk);
            Ok(())
        })
        .await?;
        if let Some(place) = self.disks.borrow_mut().get_mut(usize::from(disk.0)) {
            *place = None;
        }
        Ok(())
    }

    /// One look at what is slow.
    async fn tend(&self) -> Result<(), FabricError> {
        self.give_homes().await?;
        let (leaving, degraded) = {
            let members = self.members.borrow();
            let leaving = (0..).map(DiskNo).zip(&members.newest.states);
            let leaving = leaving.filter(|(_, state)| **state == DiskState::Leaving);
            (leaving.map(|(number, _)| number).collect::<Vec<_>>(), members.newest.degraded)
        };
        for disk in leaving {
            let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
            let off =
                self.at_lanes(lanes, move |_, seat, _| async move { Ok(seat.lane().is_off(disk)) }).await?;
            if off.into_iter().all(|off| off) {
                self.let_go(disk).await?;
            }
        }
        if degraded && self.members.borrow().homes_wanted().is_empty() {
            let progress = self.repair_progress().await?;
            let enough =
                self.members.borrow().usable().count() >= usize::from(self.members.borrow().newest.copies);
            if progress.todo == 0 && enough {
                let lock = self.update_lock().await;
                let next = self.members.borrow().with_degraded(false);
                self.update(&lock, next).await?;
                tracing::info!(pool = self.name(), "everything has all its copies again");
            }
        }
        Ok(())
    }

    /// Gives logs more homes where they lack some.
    async fn give_homes(&self) -> Result<(), FabricError> {
        let wanted = self.members.borrow().homes_wanted();
        if wanted.is_empty() {
            return Ok(());
        }
        let joining = wanted.iter().map(|(lane, disk)| {
            let home = self.members.borrow().home(*disk);
            async move {
                let home = home?;
                let joined =
                    self.at_lane(lane.0, move |seat, _| async move { seat.lane().join_home(home).await });
                joined.await.ok().map(|()| (*lane, *disk))
            }
        });
        let joined: Vec<(LaneNo, DiskNo)> = all(joining).await.into_iter().flatten().collect();
        let lock = self.update_lock().await;
        // Out meanwhile: it is no home.
        let usable: Vec<DiskNo> = self.members.borrow().usable().collect();
        let joined: Vec<(LaneNo, DiskNo)> =
            joined.into_iter().filter(|(_, disk)| usable.contains(disk)).collect();
        let next = self.members.borrow().with_homes(&joined);
        self.update(&lock, next).await?;
        for (lane, _) in joined {
            let kept: Vec<DiskNo> = self.members.borrow().newest.homes(lane).collect();
            self.at_lane(lane.0, move |seat, _| async move {
                let homes = seat.lane().homes();
                for home in homes.iter().filter(|home| !kept.contains(&home.disk)) {
                    seat.lane().leave_home(home.disk);
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Lets go of a disk that nothing is on any more: it is blank afterwards.
    async fn let_go(&self, disk: DiskNo) -> Result<(), FabricError> {
        let lock = self.update_lock().await;
        if self.members.borrow().newest.homes_on(disk) {
            return Ok(());
        }
        let layout = self.members.borrow().home(disk).map(|home| home.layout);
        let mut next = self.members.borrow().with_state(disk, DiskState::Out);
        if let Some(uuid) = next.disks.get_mut(usize::from(disk.0)) {
            *uuid = Uuid::nil();
        }
        self.update(&lock, next).await?;
        let descriptor = self.disks.borrow().get(usize::from(disk.0)).cloned().flatten();
        self.pull(disk).await?;
        let mut only: Vec<Option<Descriptor>> = vec![None; usize::from(disk.0)];
        only.push(descriptor);
        if let Some(layout) = layout {
            self.on_members(only, move |flow| async move { pool::wipe(&flow, disk, &layout).await }).await?;
        }
        tracing::info!(pool = self.name(), disk = disk.0, "a disk was left: it is blank and free");
        Ok(())
    }

    /// Puts a disk in that is claimed already.
    async fn plug_in(&self, disk: Descriptor, add: &AddDisk) -> Result<(), FabricError> {
        let lock = self.update_lock().await;
        let shared = disk.shared();
        let blocks = shared.blocks() / (BLOCK_BYTES as u64 / u64::from(shared.block_bytes()));
        let number = DiskNo(u16::try_from(self.disks.borrow().len()).unwrap_or(u16::MAX));
        let new = NewDisk { at: number, uuid: Uuid::new_v4(), blocks, tier: add.tier };
        let copies = add.copies;
        let mut members = self.members.borrow().clone();
        let mut disks = self.disks.borrow().clone();
        disks.push(Some(disk.clone()));
        let added = self.on_members(disks, move |flow| async move {
            members.add(&flow, &new, copies).await?;
            Ok(members)
        });
        let members = added.await?;
        let layout = members.disks.last().map_or(members.newest.layout, |(_, superblock)| superblock.layout);
        let copies = members.newest.copies;
        let regions = Arc::new(Regions::new(layout));
        let write_cache = shared.caps().write_cache;
        *self.members.borrow_mut() = members;
        self.disks.borrow_mut().push(Some(disk.clone()));
        self.regions.borrow_mut().push(Arc::clone(&regions));
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let tier = add.tier;
        let told = self.at_lanes(lanes, move |_, seat, cx| {
            let (disk, regions) = (disk.clone(), Arc::clone(&regions));
            async move {
                if seat.plug(&cx, &disk).is_err() {
                    regions.fail();
                }
                seat.lane().disk_comes(LaneDisk::new(number, regions, write_cache, tier), copies);
                Ok(())
            }
        });
        told.await?;
        drop(lock);
        tracing::info!(pool = self.name(), bdev = add.bdev, "a disk was added");
        self.limit_containers().await
    }

    /// Begins to move everything from a disk to the others. It is let go when nothing is on it any more.
    ///
    /// # Errors
    /// [`FabricError`]: no such disk, too few others, or no room on them.
    pub async fn remove_disk(&self, name: &str) -> Result<(), FabricError> {
        let invalid = |problem: String| FabricError::Invalid { what: "disk", name: name.to_owned(), problem };
        let lock = self.update_lock().await;
        let number = self.disk_named(name);
        let (what, list) = ("disk", "pool_list");
        let number = number.ok_or_else(|| FabricError::NotFound { what, name: name.to_owned(), list })?;
        let (copies, others) = {
            let members = self.members.borrow();
            if members.newest.state(number) == DiskState::Leaving {
                return Err(invalid("it is leaving already; pool_list says how far it is".into()));
            }
            (usize::from(members.newest.copies), members.usable().filter(|other| *other != number).count())
        };
        if others < copies {
            return Err(invalid(format!(
                "{copies} copies of everything need as many other disks, and there are {others}; add one first"
            )));
        }
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let room = self
            .at_lanes(lanes.clone(), move |_, seat, _| async move { Ok(seat.lane().room_without(number)) });
        let room = room.await?;
        let wanted: u64 = room.iter().map(|(used, _)| used).sum();
        let free: u64 = room.iter().map(|(_, free)| free).sum::<u64>() + self.free_elsewhere(number);
        if free < wanted {
            let mib = |blocks: u64| blocks / 256;
            return Err(invalid(format!(
                "{} MiB are on it, and the other disks have room for {}; add a disk or delete something first",
                mib(wanted),
                mib(free)
            )));
        }
        let next = self.members.borrow().with_state(number, DiskState::Leaving);
        self.update(&lock, next).await?;
        self.at_lanes(lanes, move |_, seat, _| async move {
            seat.lane().disk_leaves(number);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// A disk by the name of its bdev or its UUID.
    fn disk_named(&self, name: &str) -> Option<DiskNo> {
        let (members, disks) = (self.members.borrow(), self.disks.borrow());
        let is_it = |(number, uuid): &(DiskNo, &Uuid)| {
            let bdev = disks.get(usize::from(number.0)).and_then(Option::as_ref);
            bdev.is_some_and(|bdev| bdev.shared().name() == name || uuid.to_string() == name)
        };
        (0..).map(DiskNo).zip(&members.newest.disks).find(is_it).map(|(number, _)| number)
    }

    /// Blocks in regions of other disks that are nobody's.
    fn free_elsewhere(&self, besides: DiskNo) -> u64 {
        let (members, regions) = (self.members.borrow(), self.regions.borrow());
        let usable = members.usable().filter(|disk| *disk != besides);
        let free = |disk: DiskNo| {
            let blocks = members.home(disk).map_or(0, |home| u64::from(home.layout.region_blocks));
            regions.get(usize::from(disk.0)).map_or(0, |regions| regions.free() as u64 * blocks)
        };
        usable.map(free).sum()
    }

    /// How far copies are good, all lanes together.
    ///
    /// # Errors
    /// [`FabricError::Reactor`].
    pub async fn repair_progress(&self) -> Result<RepairProgress, FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let each =
            self.at_lanes(lanes, |_, seat, _| async move { Ok(seat.lane().repair_progress()) }).await?;
        Ok(each.into_iter().fold(RepairProgress::default(), |sum, lane| sum.with(&lane)))
    }

    /// Changes how fast copies are made, in MiB per second; 0: as fast as can be.
    ///
    /// # Errors
    /// [`FabricError::Reactor`].
    pub async fn set_repair_rate(&self, mib: u64) -> Result<(), FabricError> {
        let lanes = u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let rate = (mib.saturating_mul(256) / u64::from(lanes.max(1))).max(u64::from(mib > 0));
        self.at_lanes(0..lanes, move |_, seat, _| async move {
            seat.lane().set_repair_rate(rate);
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Copies of everything that there are to be.
    #[must_use]
    pub fn copies(&self) -> u8 {
        self.members.borrow().newest.copies
    }

    /// Blocks in regions that are nobody's, as many as data can occupy of them with all their copies; and the copies.
    pub(super) fn free_regions(&self) -> (u64, u64) {
        let members = self.members.borrow();
        let regions = self.regions.borrow();
        let copies = u64::from(members.newest.copies).max(1);
        let free = |(_, superblock): &(DiskNo, crate::format::superblock::Superblock)| {
            let is_in = members.newest.state(superblock.disk_no) == DiskState::In;
            let regions = regions.get(usize::from(superblock.disk_no.0)).filter(|_| is_in);
            regions.map_or(0, |regions| regions.free() as u64) * u64::from(superblock.layout.region_blocks)
        };
        let all: u64 = members.disks.iter().map(free).sum();
        (all / copies, copies)
    }

    /// The disks, for `pool_list`.
    pub(super) fn describe_disks(&self) -> Vec<Value> {
        let members = self.members.borrow();
        let disks = self.disks.borrow();
        let newest = &members.newest;
        let disk = |(number, uuid): (DiskNo, &uuid::Uuid)| {
            let known = members.disks.iter().find(|(_, superblock)| superblock.disk_no == number);
            let bdev = disks.get(usize::from(number.0)).and_then(Option::as_ref);
            let state = match newest.state(number) {
                DiskState::In => "in",
                DiskState::Leaving => "leaving",
                DiskState::Out => "out",
            };
            let tier = known.map(|(_, superblock)| match superblock.tier {
                Tier::Ssd => "ssd",
                Tier::Hdd => "hdd",
            });
            let bytes = known.map(|(_, superblock)| superblock.layout.blocks * BLOCK_BYTES as u64);
            json!({
                "bdev": bdev.map(|bdev| bdev.shared().name().to_owned()),
                "uuid": uuid.to_string(),
                "state": state,
                "tier": tier,
                "bytes": bytes,
            })
        };
        let all = (0..).map(DiskNo).zip(&newest.disks);
        all.filter(|(_, uuid)| !uuid.is_nil()).map(disk).collect()
    }
}
