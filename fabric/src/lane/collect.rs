//! Garbage: what no map refers to, found by marking from the roots; and the lane's background work as a whole.
//!
//! An egroup that was born after its shard's last snapshot is referred to by that shard alone: the drain counts its dead
//! blocks down as it replaces them, and its space is free with the record that replaces the last. What snapshots and clones
//! share is counted here: every node is visited once, however many roots lead to it.

use std::collections::BTreeMap;

use penstock_bdev::IoStatus;
use zerocopy::little_endian::U64;

use super::{Job, Lane, WorkError};
use crate::format::checkpoint::{MetaKind, MetaOp};
use crate::format::node::LeafEntry;
use crate::id::{EgroupId, ExtentNo};
use crate::map::NodeRef;

/// Which blocks of an extent are referred to.
pub(super) type Marks = BTreeMap<(EgroupId, ExtentNo), u16>;

impl Lane {
    /// Does the lane's background work until the lane fails: drains, checkpoints, collects. One task per lane.
    ///
    /// # Errors
    /// What made the lane fail.
    pub async fn background(&self) -> Result<(), WorkError> {
        loop {
            self.wait(|core| (core.log.failed().is_some() || core.has_work()).then_some(())).await;
            if let Some(status) = self.failed() {
                return Err(WorkError::Failed(status));
            }
            let full = {
                let core = self.0.borrow();
                core.full && (!core.want_collect || core.is_paused())
            };
            if full {
                self.free_zeroes().await?;
                continue;
            }
            match self.work().await {
                Ok(()) => {}
                Err(WorkError::AreaFull { area: "log" }) => self.out_of_log().await?,
                Err(error) if error.is_lack_of_room() => self.out_of_space().await?,
                Err(error) => return self.give_in(error),
            }
        }
    }

    /// The background cannot go on: nothing would be drained any more, so nothing is taken any more.
    fn give_in(&self, error: WorkError) -> Result<(), WorkError> {
        let mut core = self.0.borrow_mut();
        core.log.fail(IoStatus::Internal);
        core.acknowledge();
        core.wake();
        Err(error)
    }

    /// The log has no room for a record: its older part may be in no need to be kept.
    async fn out_of_log(&self) -> Result<(), WorkError> {
        let before = self.0.borrow().log.oldest();
        if let Err(error) = self.checkpoint().await {
            return self.give_in(error);
        }
        let mut core = self.0.borrow_mut();
        if core.log.oldest() == before {
            core.full = true;
        }
        Ok(())
    }

    /// The drain found no room: perhaps there is garbage. Else writes get "no space" from now on, and whatever frees space
    /// wakes the drain again.
    async fn out_of_space(&self) -> Result<(), WorkError> {
        let looked = {
            let mut core = self.0.borrow_mut();
            let now = core.state.lsn;
            std::mem::replace(&mut core.collected, now) == now || !core.may_try()
        };
        if looked {
            self.0.borrow_mut().full = true;
            return Ok(());
        }
        self.free_zeroes().await
    }

    /// What zeroes cover is freed ahead of their turn, and garbage too.
    async fn free_zeroes(&self) -> Result<(), WorkError> {
        let outcome = match self.drain_zeroes().await {
            Ok(()) => self.collect(true).await,
            error => error,
        };
        match outcome {
            // Even the reserve is used up: only deletions help.
            Err(error) if error.is_lack_of_room() => {
                self.0.borrow_mut().full = true;
                Ok(())
            }
            Err(error) => self.give_in(error),
            Ok(()) => Ok(()),
        }
    }

    /// One piece of background work.
    async fn work(&self) -> Result<(), WorkError> {
        let collect = {
            let mut core = self.0.borrow_mut();
            !core.is_paused() && std::mem::take(&mut core.want_collect)
        };
        if collect {
            // What waits to be drained does not need what it replaces.
            return self.collect(false).await;
        }
        let checkpoint = std::mem::take(&mut self.0.borrow_mut().want_checkpoint);
        if checkpoint {
            return self.checkpoint().await;
        }
        let repair = self.0.borrow_mut().repair_takes_turn();
        if repair {
            return self.repair_some().await;
        }
        if self.0.borrow().wants_space_use() {
            return self.find_space_use().await;
        }
        if self.drain().await? {
            return Ok(());
        }
        let (urgent, paused) = {
            let core = self.0.borrow();
            (core.is_urgent(), core.is_paused())
        };
        if !urgent {
            return if paused { Ok(()) } else { self.encode_some().await };
        }
        let frozen = {
            let mut core = self.0.borrow_mut();
            !core.tables.active.is_empty() && core.freeze()
        };
        if frozen { Ok(()) } else { self.checkpoint().await }
    }

    /// Moves everything that was acknowledged into egroups and writes a checkpoint: for tests, and before a disk is taken away.
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn settle(&self) -> Result<(), WorkError> {
        self.want_settle();
        self.wait(|core| match core.log.failed() {
            Some(status) => Some(Err(WorkError::Failed(status))),
            None if core.full => Some(Err(WorkError::NoSpace)),
            None => (!core.want_settle).then_some(Ok(())),
        })
        .await
    }

    /// Asks the background for what [`Self::settle`] waits for.
    pub fn want_settle(&self) {
        let mut core = self.0.borrow_mut();
        core.want_settle = true;
        core.wake();
    }

    /// Asks the background for a [`Self::collect`].
    pub fn want_collect(&self) {
        let mut core = self.0.borrow_mut();
        core.want_collect = true;
        core.wake();
    }

    /// Counts what the maps refer to and frees what they do not; compacts more where `room` is wanted.
    async fn collect(&self, room: bool) -> Result<(), WorkError> {
        self.begin_job(Job::Mark, 0, room);
        let outcome = self.collect_now(room).await;
        self.end_job(outcome.is_ok());
        if outcome == Err(WorkError::Paused) {
            self.0.borrow_mut().want_collect = true;
            return Ok(());
        }
        outcome
    }

    async fn collect_now(&self, room: bool) -> Result<(), WorkError> {
        let marks = self.mark().await?;
        let mut live: BTreeMap<EgroupId, u64> = BTreeMap::new();
        for ((id, _), blocks) in &marks {
            *live.entry(*id).or_insert(0) += u64::from(blocks.count_ones());
        }
        let turn = self.lock().await;
        let ops = self.0.borrow().live_ops(&live);
        if !ops.is_empty() {
            self.commit(&turn, ops).await?;
        }
        drop(turn);
        self.compact(&marks, room).await
    }

    /// Every block of every egroup that a map refers to. Only the background changes maps, and it is here.
    async fn mark(&self) -> Result<Marks, WorkError> {
        let mut todo: Vec<NodeRef> = Vec::new();
        for shard in self.0.borrow().state.shards.values() {
            todo.extend(shard.root.node);
            todo.extend(shard.snapshots.values().filter_map(|snapshot| snapshot.root?.node));
        }
        let mut marks = Marks::new();
        while let Some(node) = todo.pop() {
            if marks.insert((node.egroup, node.extent), 1).is_some() {
                continue;
            }
            let page = self.page(node).await?;
            self.step_job();
            self.aside(page.count() / 8).await?;
            for at in 0..page.count() {
                if page.level() > 0 {
                    todo.extend(page.child(at));
                } else if let Some(run) = page.leaf(at) {
                    let key = (EgroupId(run.egroup.get()), ExtentNo(run.extent.get()));
                    *marks.entry(key).or_insert(0) |= blocks_of(&run);
                }
            }
        }
        Ok(marks)
    }
}

/// The blocks of an extent that a run has, as bits.
pub(super) fn blocks_of(run: &LeafEntry) -> u16 {
    let blocks = (u32::MAX >> (32 - u32::from(run.blocks).clamp(1, 16))) << run.first.min(15);
    u16::try_from(blocks & 0xffff).unwrap_or(0)
}

impl super::Core {
    /// What is to be changed so that the state has these counts. What waits for the drain in its place is in no map yet, and stays.
    fn live_ops(&self, live: &BTreeMap<EgroupId, u64>) -> Vec<MetaOp> {
        let undrained = self.tables.direct();
        let known = self.state.egroups.iter().filter(|(id, _)| !undrained.contains(id));
        let op = |(id, egroup): (&EgroupId, &crate::state::Egroup)| match live.get(id) {
            None => Some(MetaOp::of(MetaKind::EgroupDrop, id.0)),
            Some(live) if *live != egroup.live => {
                Some(MetaOp { c: U64::new(*live), ..MetaOp::of(MetaKind::EgroupLive, id.0) })
            }
            Some(_) => None,
        };
        known.filter_map(op).collect()
    }

    /// Whether the log has room for attempts to free space; the last of it is for deletions.
    fn may_try(&self) -> bool {
        let (used, all) = self.log.segments_used();
        used < all
    }

    fn wants_space_use(&self) -> bool {
        self.space.as_ref().map_or(0, |(made, _)| *made) < self.space_wanted
    }

    /// Whether tables are to be frozen and a checkpoint is to be written.
    fn is_urgent(&self) -> bool {
        let (used, all) = self.log.segments_used();
        // Half of the log is for what comes while the other half is drained; nothing helps before the drain has room.
        let long = used * 2 >= all && self.log.oldest() < self.log.durable_end().segment;
        long || self.want_settle
    }

    /// Whether the background has something to do.
    fn has_work(&mut self) -> bool {
        if self.want_settle && self.tables.is_empty() && self.state.lsn <= self.checkpointed {
            self.want_settle = false;
            self.wake();
        }
        let drain = !self.tables.frozen.is_empty() && !self.full;
        let zeroes = self.full && self.zeroed_blocks >= self.zeroes_wanted && self.may_try();
        let encode = self.encode_from < self.encode_until && !self.full && !self.is_paused();
        (self.want_collect && !self.is_paused())
            || self.wants_space_use()
            || zeroes
            || drain
            || encode
            || (self.want_checkpoint && !self.full)
            || self.repair_is_due()
            || (self.is_urgent() && !self.full)
    }
}
