//! Which disk gets what of a lane, and what becomes of it when a disk fails, leaves or comes.
//!
//! A disk that fails to write or to flush is *failing* for all lanes at once: nothing new goes there, and what counts on it waits.
//! Whoever has the pool then writes into the superblocks of all other disks that it is out, and says so to every lane: from there
//! on the lanes count on the others alone. In this order, so that what was acknowledged without a disk is never read from it.

use penstock_bdev::IoStatus;

use super::{Core, Home, Lane, LaneDisk, WorkError};
use crate::alloc::{Free, RESERVE_BLOCKS};
use crate::egroup::Spot;
use crate::flow::Flow;
use crate::format::superblock::{DiskState, Tier};
use crate::id::{DiskBlock, DiskNo, EgroupId};
use crate::log::{Lacking, LogPosition, mend};
use crate::placement::{Candidate, ranked};
use crate::state::{Egroup, Gone, Place};

impl Lane {
    /// Says that a disk is out: the superblocks of the others say so durably. What has another copy goes on.
    pub fn disk_out(&self, disk: DiskNo) {
        let mut core = self.0.borrow_mut();
        let Some(entry) = core.disks.get_mut(usize::from(disk.0)) else { return };
        entry.state = DiskState::Out;
        core.forget_home(disk);
        core.unallocate(disk);
        core.acknowledge();
        core.wake();
    }

    /// Takes nothing more: what it counts on is lost.
    pub fn give_up(&self, status: IoStatus) {
        let mut core = self.0.borrow_mut();
        core.log.fail(status);
        core.acknowledge();
        core.wake();
    }

    /// Blocks that egroups have on a disk, and free blocks that the lane has on others in use.
    #[must_use]
    pub fn room_without(&self, disk: DiskNo) -> (u64, u64) {
        let core = self.0.borrow();
        let on = |egroup: &&Egroup| egroup.places().any(|place| place.disk == disk);
        let used = core.state.egroups.values().filter(on).map(|egroup| u64::from(egroup.blocks)).sum();
        let free = (0..).map(DiskNo).zip(&core.free).filter(|(of, _)| *of != disk && core.is_in(*of));
        (used, free.map(|(_, free)| free.blocks().saturating_sub(RESERVE_BLOCKS)).sum())
    }

    /// Says that a disk is leaving: nothing new goes there, and its data move to others ([`Self::repair_progress`]).
    pub fn disk_leaves(&self, disk: DiskNo) {
        let mut core = self.0.borrow_mut();
        let Some(entry) = core.disks.get_mut(usize::from(disk.0)) else { return };
        if entry.state == DiskState::In {
            entry.state = DiskState::Leaving;
            core.unallocate(disk);
            core.wake();
        }
    }

    /// Adds a disk, which gets the next number, and how many copies there are to be from now on.
    pub fn disk_comes(&self, disk: LaneDisk, copies: u8) {
        let mut core = self.0.borrow_mut();
        core.disks.push(disk);
        core.free.push(Free::default());
        core.place.copies = copies;
        if core.full {
            (core.full, core.zeroes_wanted) = (false, 1);
        }
        core.repair.restart();
        core.wake();
    }

    /// Whether nothing of the lane is on a disk; if something is, and nothing moves it, that begins again.
    #[must_use]
    pub fn is_off(&self, disk: DiskNo) -> bool {
        let mut core = self.0.borrow_mut();
        let core = &mut *core;
        let mut regions = core.state.regions.iter().chain(&core.unrecorded);
        let left = regions.any(|(of, _)| *of == disk) || core.bypass.is_on(disk);
        if left {
            // What was being written when the disk began to leave came late.
            core.repair.go_on();
            core.wake();
        }
        !left
            && !core.place.homes.iter().any(|home| home.disk == disk)
            && !core.doomed.iter().any(|(_, gone)| gone.places.iter().any(|place| place.disk == disk))
    }

    /// The lane's mouth, for control flows that must not wait for another's.
    #[must_use]
    pub fn flow(&self) -> Flow {
        self.1.clone()
    }

    /// The disks that have the log and the checkpoints.
    #[must_use]
    pub fn homes(&self) -> Vec<Home> {
        self.0.borrow().place.homes.clone()
    }

    /// Has log and checkpoints on one disk more; returns when that one alone would do. It counts as a home when the superblocks
    /// say so.
    ///
    /// # Errors
    /// [`WorkError`]; what is at the disk then is of no use.
    pub async fn join_home(&self, home: Home) -> Result<(), WorkError> {
        let (joined, before) = {
            let mut core = self.0.borrow_mut();
            let joined = core.log.add_home(home.at).ok_or(WorkError::AreaFull { area: "list of homes" })?;
            if !core.place.homes.iter().any(|other| other.disk == home.disk) {
                core.place.homes.push(home);
            }
            (joined, core.checkpoint)
        };
        self.give_segment(&home, joined).await?;
        loop {
            let last = {
                let mut core = self.0.borrow_mut();
                (core.want_checkpoint, core.want_settle) = (true, true);
                core.wake();
                core.checkpoint
            };
            let done = self.wait(|core| match core.log.failed() {
                Some(status) => Some(Err(WorkError::Failed(status))),
                // It failed meanwhile.
                None if !core.place.homes.iter().any(|other| other.disk == home.disk) => {
                    Some(Err(WorkError::Failed(IoStatus::Gone)))
                }
                None if core.full => Some(Err(WorkError::NoSpace)),
                // One may have been under way that does not know of this home.
                None => (core.checkpoint > last)
                    .then_some(Ok(core.checkpoint > before + 1 && core.replay_batch >= joined.batch)),
            });
            if done.await? {
                return Ok(());
            }
        }
    }

    /// Gives a home that joins the header of the segment that is being written: its batches from `joined` on are there, and replay may begin
    /// with them.
    async fn give_segment(&self, home: &Home, joined: LogPosition) -> Result<(), WorkError> {
        self.wait(|core| match core.log.failed() {
            Some(status) => Some(Err(WorkError::Failed(status))),
            None => (core.log.durable_end().batch >= joined.batch).then_some(Ok(())),
        })
        .await?;
        let header = {
            let core = self.0.borrow();
            let other = core.place.homes.iter().find(|other| other.disk != home.disk);
            other.filter(|_| joined.block > 0).map(|other| Lacking {
                from: other.at,
                to: home.at,
                first: core.place.log.segment_first(joined.segment),
                blocks: 1,
            })
        };
        let given = mend(&self.1, header.as_slice()).await;
        given.inspect_err(|error| {
            if error.disk == home.at {
                self.0.borrow_mut().suspect(home.disk);
            }
        })?;
        Ok(())
    }

    /// Has log and checkpoints on a disk no more.
    pub fn leave_home(&self, disk: DiskNo) {
        let mut core = self.0.borrow_mut();
        core.forget_home(disk);
        core.acknowledge();
        core.wake();
    }
}

impl Core {
    pub(super) fn free_blocks(&self) -> u64 {
        self.free.iter().map(Free::blocks).sum()
    }

    /// Where a disk is plugged in.
    pub(super) fn at(&self, disk: DiskNo) -> DiskNo {
        self.disks.get(usize::from(disk.0)).map_or(disk, |disk| disk.at)
    }

    fn disk(&self, disk: DiskNo) -> Option<&LaneDisk> {
        self.disks.get(usize::from(disk.0))
    }

    /// Whether something can be read from a disk.
    pub(super) fn is_there(&self, disk: DiskNo) -> bool {
        self.disk(disk).is_some_and(|disk| disk.state != DiskState::Out)
    }

    fn is_failing(&self, disk: DiskNo) -> bool {
        self.disk(disk).is_some_and(|disk| disk.regions.is_failing())
    }

    /// Whether a disk belongs to the pool and is to go on doing so.
    pub(super) fn is_in(&self, disk: DiskNo) -> bool {
        self.disk(disk).is_some_and(|disk| disk.state == DiskState::In)
    }

    /// Disks that new things may go to.
    pub(super) fn usable(&self) -> usize {
        self.disks.iter().filter(|disk| disk.state == DiskState::In && !disk.regions.is_failing()).count()
    }

    /// Copies that there are to be, of as many disks as there are.
    pub(super) fn copies_now(&self) -> usize {
        usize::from(self.place.copies).min(self.usable()).max(1)
    }

    /// The copies of an egroup that can be read, with where their disks are plugged in; those on disks that fail come last.
    pub(super) fn live(&self, egroup: &Egroup) -> Vec<(Place, DiskNo)> {
        let mut live: Vec<(Place, DiskNo)> = egroup
            .places()
            .filter(|place| self.is_there(place.disk))
            .map(|place| (place, self.at(place.disk)))
            .collect();
        live.sort_by_key(|(place, _)| self.is_failing(place.disk));
        live
    }

    /// A disk fails; whoever has the pool is to say that it is out.
    pub(super) fn suspect(&mut self, disk: DiskNo) {
        if let Some(entry) = self.disk(disk) {
            entry.regions.fail();
        }
    }

    /// Homes that the log has found failing.
    pub(super) fn suspect_homes(&mut self) {
        for at in self.log.suspects().iter() {
            let home = self.place.homes.iter().find(|home| home.at == at).map(|home| home.disk);
            home.into_iter().for_each(|disk| self.suspect(disk));
        }
    }

    fn forget_home(&mut self, disk: DiskNo) {
        let Some(home) = self.place.homes.iter().find(|home| home.disk == disk).copied() else { return };
        self.place.homes.retain(|home| home.disk != disk);
        self.log.drop_home(home.at);
    }

    /// Nothing more is put on a disk.
    fn unallocate(&mut self, disk: DiskNo) {
        if let Some(free) = self.free.get_mut(usize::from(disk.0)) {
            *free = Free::default();
        }
        self.repair.restart();
    }

    pub(super) fn pin(&mut self, id: EgroupId) {
        *self.pins.entry(id).or_insert(0) += 1;
    }

    pub(super) fn unpin(&mut self, id: EgroupId) {
        let Some(pins) = self.pins.get_mut(&id) else { panic!("egroup {id} is not pinned") };
        *pins -= 1;
        if *pins > 0 {
            return;
        }
        self.pins.remove(&id);
        while let Some(at) = self.doomed.iter().position(|(doomed, _)| *doomed == id) {
            let (_, gone) = self.doomed.swap_remove(at);
            self.give_space(&gone);
        }
    }

    /// Gives space of an egroup back, or has that done by the last read of it.
    pub(super) fn release(&mut self, id: EgroupId, gone: Gone) {
        if self.pins.contains_key(&id) {
            self.doomed.push((id, gone));
        } else {
            self.give_space(&gone);
        }
    }

    fn give_space(&mut self, gone: &Gone) {
        for place in &gone.places {
            if self.is_in(place.disk)
                && let Some(free) = self.free.get_mut(usize::from(place.disk.0))
            {
                free.give(place.first, u64::from(gone.blocks));
            }
        }
        if self.full {
            (self.full, self.zeroes_wanted) = (false, 1);
        }
        self.repair.unstick();
        self.wake();
    }

    /// Disks for an egroup, the best first.
    fn order(&self, id: EgroupId) -> Vec<usize> {
        let candidate = |(number, disk): (u64, &LaneDisk)| {
            let usable = disk.state == DiskState::In && !disk.regions.is_failing();
            let weight = if usable { disk.regions.len() as u64 } else { 0 };
            let class = match disk.tier {
                Tier::Ssd => 0,
                Tier::Hdd => 1,
            };
            Candidate { id: number, domain: number, weight, class }
        };
        let candidates: Vec<Candidate> = (0..).zip(&self.disks).map(candidate).collect();
        ranked(id.0, &candidates)
    }

    /// Room for `copies` copies of an egroup of `blocks` blocks, each on a disk of its own that is none of `besides`. Data leave the
    /// reserve alone.
    pub(super) fn take_space(
        &mut self,
        id: EgroupId,
        blocks: u64,
        for_state: bool,
        copies: usize,
        besides: &[DiskNo],
    ) -> Option<Vec<Spot>> {
        let reserve = if for_state { 0 } else { RESERVE_BLOCKS };
        let mut order = self.order(id);
        order.retain(|number| !besides.iter().any(|disk| usize::from(disk.0) == *number));
        let mut spots = Vec::with_capacity(copies);
        if self.place.copies < 2 {
            spots.extend(self.take_anywhere(&order, blocks, reserve));
        } else {
            for number in order {
                if spots.len() < copies {
                    spots.extend(self.take_on(number, blocks, reserve));
                }
            }
        }
        if spots.len() == copies {
            return Some(spots);
        }
        for spot in spots {
            if let Some(free) = self.free.get_mut(usize::from(spot.disk.0)) {
                free.give(spot.first, blocks);
            }
        }
        None
    }

    /// Room on one disk, which keeps a reserve of its own: what has two copies needs it on each of two.
    fn take_on(&mut self, number: usize, blocks: u64, reserve: u64) -> Option<Spot> {
        loop {
            let free = self.free.get_mut(number)?;
            if free.blocks() >= blocks + reserve
                && let Some(first) = free.take(blocks)
            {
                return self.spot(number, first);
            }
            self.take_region(number)?;
        }
    }

    /// Room on any of the disks, which have one reserve together.
    fn take_anywhere(&mut self, order: &[usize], blocks: u64, reserve: u64) -> Option<Spot> {
        loop {
            if self.free_blocks() >= blocks + reserve {
                for number in order {
                    if let Some(first) = self.free.get_mut(*number).and_then(|free| free.take(blocks)) {
                        return self.spot(*number, first);
                    }
                }
            }
            self.take_any_region()?;
        }
    }

    /// One region more, of the disk in use where the lane has the least free.
    pub(super) fn take_any_region(&mut self) -> Option<()> {
        let is_usable = |disk: &LaneDisk| disk.state == DiskState::In && !disk.regions.is_failing();
        let usable = self.disks.iter().enumerate().filter(|(_, disk)| is_usable(disk));
        let mut least: Vec<usize> = usable.map(|(number, _)| number).collect();
        least.sort_by_key(|number| self.free.get(*number).map(Free::blocks));
        least.into_iter().find_map(|number| self.take_region(number))
    }

    fn spot(&self, number: usize, first: DiskBlock) -> Option<Spot> {
        let disk = DiskNo(u16::try_from(number).ok()?);
        Some(Spot { disk, at: self.at(disk), first })
    }

    /// One region more of a disk for the lane.
    fn take_region(&mut self, number: usize) -> Option<()> {
        let disk = self.disks.get(number)?;
        let region = disk.regions.take(self.owner.lane)?;
        let (first, blocks) = disk.regions.blocks(region);
        self.free.get_mut(number)?.give(first, blocks);
        self.unrecorded.push((DiskNo(u16::try_from(number).ok()?), region));
        Some(())
    }
}
