//! Copies made good again: those that are bad in place, those that are on lost or leaving disks elsewhere.
//!
//! The egroup stays the generation that it is: a copy is put together from extents that are sound, whichever copy has them, and written; then
//! the index is switched to it. A power cut in the middle leaves the old places in the index, and what was begun is free space.

use penstock_bdev::IoStatus;
use penstock_reactor::Tick;

use super::{Core, Lane, WorkError};
use crate::egroup::{Spot, rebuild};
use crate::flow::DiskError;
use crate::format::checkpoint::MetaOp;
use crate::format::superblock::DiskState;
use crate::id::{DiskNo, EgroupId};
use crate::state::{Egroup, Place, egroup_op, region_drop_op};

/// Bad copies that are remembered; what comes beyond is found again by a scrub.
const BAD_MAX: usize = 1024;
/// What a rate may make up for at once, in nanoseconds.
const BURST_NS: u64 = 100_000_000;

/// How far copies are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RepairProgress {
    /// Blocks of 4 KiB per second that are written for it at most; 0: as many as can be.
    pub rate: u64,
    /// Egroups that lack a copy, or have one on a leaving disk.
    pub todo: u64,
    /// Copies that were written elsewhere since the lane was opened …
    pub moved: u64,
    /// … with so many blocks.
    pub blocks: u64,
    /// Copies that were bad and were written again.
    pub mended: u64,
    /// Times that something was read from another copy than was tried first.
    pub fallbacks: u64,
    /// Egroups of which no copy is whole.
    pub lost: u64,
    /// There is no room for more copies.
    pub stuck: bool,
}

impl RepairProgress {
    /// Both together.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            rate: self.rate + other.rate,
            todo: self.todo + other.todo,
            moved: self.moved + other.moved,
            blocks: self.blocks + other.blocks,
            mended: self.mended + other.mended,
            fallbacks: self.fallbacks + other.fallbacks,
            lost: self.lost + other.lost,
            stuck: self.stuck || other.stuck,
        }
    }
}

/// The state of the repair.
#[derive(Debug, Default)]
pub(super) struct Repair {
    pub(super) progress: RepairProgress,
    /// Where the search for egroups that lack copies goes on; `None`: all are as they are to be.
    next: Option<EgroupId>,
    /// Copies that were found bad.
    bad: Vec<(EgroupId, DiskNo)>,
    /// Every other piece of work is its own.
    turn: bool,
    now: Tick,
    /// Blocks that may be written now.
    tokens: i64,
}

impl Repair {
    /// Looks at all egroups again.
    pub(super) fn restart(&mut self) {
        self.next = Some(EgroupId(0));
        self.progress.stuck = false;
    }

    /// Looks at all egroups again if it does nothing.
    pub(super) fn go_on(&mut self) {
        if !self.has_work() {
            self.restart();
        }
    }

    /// There may be room now.
    pub(super) fn unstick(&mut self) {
        if self.progress.stuck {
            self.restart();
        }
    }

    fn has_work(&self) -> bool {
        !self.bad.is_empty() || (self.next.is_some() && !self.progress.stuck)
    }

    /// It has something to do and the rate allows it.
    fn is_due(&self) -> bool {
        self.has_work() && (self.progress.rate == 0 || self.tokens > 0)
    }

    fn takes_turn(&mut self) -> bool {
        self.turn = !self.turn && self.is_due();
        self.turn
    }

    /// Lets time pass; true: it is due now.
    fn tick(&mut self, now: Tick) -> bool {
        let passed = now.ns_since(self.now).min(BURST_NS);
        let earned = i64::try_from(u128::from(passed) * u128::from(self.progress.rate) / 1_000_000_000);
        let earned = earned.unwrap_or(i64::MAX);
        if earned == 0 {
            return false;
        }
        self.now = now;
        let was_due = self.is_due();
        let most = i64::try_from(self.progress.rate).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_add(earned).min(most);
        self.is_due() && !was_due
    }
}

impl Lane {
    /// How far copies are good.
    #[must_use]
    pub fn repair_progress(&self) -> RepairProgress {
        let core = self.0.borrow();
        let todo = core.state.egroups.values().filter(|egroup| core.kept(egroup).is_some()).count() as u64;
        RepairProgress { todo, ..core.repair.progress }
    }

    /// Changes how fast copies are made, in blocks of 4 KiB per second; 0: as fast as can be.
    pub fn set_repair_rate(&self, rate: u64) {
        let mut core = self.0.borrow_mut();
        core.repair.progress.rate = rate;
        core.wake();
    }

    /// One piece of repair.
    pub(super) async fn repair_some(&self) -> Result<(), WorkError> {
        let bad = self.0.borrow_mut().repair.bad.pop();
        if let Some((id, disk)) = bad {
            return self.mend_copy(id, disk).await;
        }
        let found = self.0.borrow_mut().next_to_move();
        match found {
            Some((id, egroup, keep)) => self.move_copies(id, &egroup, keep).await,
            None => self.drop_regions().await,
        }
    }

    /// Writes a bad copy again, where it is.
    async fn mend_copy(&self, id: EgroupId, disk: DiskNo) -> Result<(), WorkError> {
        let found = self.0.borrow().state.egroups.get(&id).copied();
        // Dropped or moved meanwhile.
        let Some(egroup) = found else { return Ok(()) };
        let Some(place) = egroup.places().find(|place| place.disk == disk) else { return Ok(()) };
        let (owner, live, at) = {
            let core = self.0.borrow();
            if !core.is_there(disk) {
                return Ok(());
            }
            (core.owner, core.live(&egroup), core.at(disk))
        };
        let _pin = self.pinned(id);
        let (builder, bad) = match rebuild(&self.1, &owner, id, &egroup, &live).await {
            Ok(rebuilt) => rebuilt,
            Err(_) => return self.lost_one(),
        };
        if !bad.iter().any(|number| live.get(*number).is_some_and(|(of, _)| *of == place)) {
            return Ok(());
        }
        let spot = Spot { disk, at, first: place.first };
        let outcome = builder.write(&self.1, &owner, egroup.generation, egroup.copies, &[spot]).await;
        let outcome = match outcome {
            Ok(_) => self.1.flush(at).await,
            Err(error) => Err(error),
        };
        let mut core = self.0.borrow_mut();
        match outcome {
            Ok(()) => core.repair.progress.mended += 1,
            Err(_) => core.suspect(disk),
        }
        core.repair.tokens -= i64::from(egroup.blocks);
        Ok(())
    }

    /// Gives an egroup the copies that it lacks, beside those that it keeps.
    async fn move_copies(&self, id: EgroupId, egroup: &Egroup, keep: Vec<Place>) -> Result<(), WorkError> {
        let (owner, live, spots) = {
            let mut core = self.0.borrow_mut();
            let lacking = core.copies_now().saturating_sub(keep.len());
            let besides: Vec<DiskNo> = keep.iter().map(|place| place.disk).collect();
            let live = core.live(egroup);
            let Some(spots) = core.take_space(id, u64::from(egroup.blocks), false, lacking, &besides) else {
                core.repair.progress.stuck = true;
                return Ok(());
            };
            (core.owner, live, spots)
        };
        let pin = self.pinned(id);
        let (builder, _) = match rebuild(&self.1, &owner, id, egroup, &live).await {
            Ok(rebuilt) => rebuilt,
            Err(_) => {
                self.give_up_spots(id, egroup, &spots);
                return self.lost_one();
            }
        };
        let mut places = keep;
        if !spots.is_empty() {
            let copies = self.0.borrow().place.copies;
            match builder.write(&self.1, &owner, egroup.generation, copies, &spots).await {
                Ok((written, failures)) if failures.is_empty() => places.extend(written.places()),
                // That disk is out soon; then another one is looked for.
                Ok((_, failures)) => return self.failed_spots(id, egroup, &spots, failures.first()),
                Err(error) => return self.failed_spots(id, egroup, &spots, Some(&error)),
            }
        }
        drop(pin);
        for spot in &spots {
            if let Err(error) = self.1.flush(spot.at).await {
                return self.failed_spots(id, egroup, &spots, Some(&error));
            }
        }
        let turn = self.lock().await;
        let new = {
            let mut core = self.0.borrow_mut();
            core.repair.tokens -= i64::from(egroup.blocks) * i64::try_from(spots.len()).unwrap_or(1);
            // Changed meanwhile: the count of what is referred to, perhaps; nothing else is done beside this.
            let now = core.state.egroups.get(&id).filter(|now| now.generation == egroup.generation);
            now.and_then(|now| now.with_places(&places))
        };
        let Some(new) = new else {
            drop(turn);
            self.give_up_spots(id, egroup, &spots);
            return Ok(());
        };
        if let Err(error) = self.commit(&turn, vec![egroup_op(id, &new)]).await {
            // Where the record was not even appended, nobody refers to what was written.
            if matches!(error, WorkError::AreaFull { .. }) {
                self.give_up_spots(id, egroup, &spots);
            }
            self.0.borrow_mut().repair.restart();
            return Err(error);
        }
        let progress = &mut self.0.borrow_mut().repair.progress;
        progress.moved += spots.len() as u64;
        progress.blocks += u64::from(egroup.blocks) * spots.len() as u64;
        Ok(())
    }

    fn failed_spots(
        &self,
        id: EgroupId,
        egroup: &Egroup,
        spots: &[Spot],
        error: Option<&DiskError>,
    ) -> Result<(), WorkError> {
        self.give_up_spots(id, egroup, spots);
        let mut core = self.0.borrow_mut();
        for spot in spots.iter().filter(|spot| error.is_some_and(|error| error.disk == spot.at)) {
            core.suspect(spot.disk);
        }
        core.repair.restart();
        Ok(())
    }

    fn give_up_spots(&self, id: EgroupId, egroup: &Egroup, spots: &[Spot]) {
        let place = |spot: &Spot| Place { disk: spot.disk, first: spot.first, header_crc: 0 };
        let places = spots.iter().map(place).collect();
        self.0.borrow_mut().release(id, crate::state::Gone { blocks: egroup.blocks, places });
    }

    fn lost_one(&self) -> Result<(), WorkError> {
        let mut core = self.0.borrow_mut();
        core.repair.progress.lost += 1;
        match core.log.failed() {
            Some(status) => Err(WorkError::Failed(status)),
            None => Ok(()),
        }
    }

    /// Gives regions back of disks that are to be left and have nothing any more.
    async fn drop_regions(&self) -> Result<(), WorkError> {
        let ops: Vec<MetaOp> = {
            let core = self.0.borrow();
            let regions = core.state.regions.iter().chain(&core.unrecorded);
            let left = regions.filter(|(disk, _)| core.is_empty_and_left(*disk));
            left.map(|(disk, region)| region_drop_op(*disk, *region)).collect()
        };
        if ops.is_empty() {
            return Ok(());
        }
        let turn = self.lock().await;
        self.commit(&turn, ops.clone()).await?;
        let core = self.0.borrow();
        for op in ops {
            let disk = core.disks.get(usize::from(op.disk.get()));
            if let (Some(disk), Ok(region)) = (disk, u32::try_from(op.a.get())) {
                disk.regions.give(region, core.owner.lane);
            }
        }
        Ok(())
    }
}

impl Core {
    /// Lets time pass for the repair.
    pub(super) fn tick_repair(&mut self, now: Tick) {
        if self.repair.progress.rate > 0 && self.repair.tick(now) {
            self.wake();
        }
    }

    /// Whether the repair waits for time to pass.
    pub(super) fn repair_starves(&self) -> bool {
        self.repair.has_work() && !self.repair.is_due()
    }

    pub(super) fn repair_is_due(&self) -> bool {
        self.repair.is_due() && !self.full && self.log.failed() != Some(IoStatus::Gone)
    }

    pub(super) fn repair_takes_turn(&mut self) -> bool {
        self.repair_is_due() && self.repair.takes_turn()
    }

    /// Remembers a copy that is bad; another one is to be good.
    pub(super) fn note_bad(&mut self, id: EgroupId, disk: DiskNo) {
        self.repair.progress.fallbacks += 1;
        let bad = &mut self.repair.bad;
        if bad.len() < BAD_MAX && !bad.contains(&(id, disk)) {
            bad.push((id, disk));
            self.wake();
        }
    }

    /// The copies that an egroup keeps, if it is to get others or to lose some.
    fn kept(&self, egroup: &Egroup) -> Option<Vec<Place>> {
        let keep: Vec<Place> = egroup.places().filter(|place| self.is_in(place.disk)).collect();
        let leaves = egroup.places().any(|place| {
            let disk = self.disks.get(usize::from(place.disk.0));
            disk.is_some_and(|disk| disk.state == DiskState::Leaving)
        });
        (leaves || keep.len() < self.copies_now()).then_some(keep)
    }

    fn next_to_move(&mut self) -> Option<(EgroupId, Egroup, Vec<Place>)> {
        let from = self.repair.next?;
        let later = self.state.egroups.range(from..);
        let found = later
            .filter_map(|(id, egroup)| Some((*id, *egroup, self.kept(egroup)?)))
            // Without a copy that can be read there is nothing to be done.
            .find(|(_, egroup, _)| egroup.places().any(|place| self.is_there(place.disk)));
        self.repair.next = found.as_ref().map(|(id, _, _)| EgroupId(id.0 + 1));
        found
    }

    /// Whether a disk is out or leaves, and no egroup that can be moved is on it.
    fn is_empty_and_left(&self, disk: DiskNo) -> bool {
        let state = self.disks.get(usize::from(disk.0)).map(|disk| disk.state);
        let left = matches!(state, Some(DiskState::Leaving | DiskState::Out));
        left && !self.bypass.is_on(disk)
            && !self.state.egroups.values().any(|egroup| egroup.places().any(|place| place.disk == disk))
    }
}
