//! Changing the state: ops into the log, durable, then into the state; one group after the other.

use std::future::poll_fn;
use std::task::Poll;

use penstock_bdev::IoStatus;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::{Core, Lane};
use crate::egroup::ReadError;
use crate::flow::DiskError;
use crate::format::checkpoint::{META_OP_BYTES, MetaKind, MetaOp};
use crate::format::log::{RECORD_CONTINUED, RECORD_MORE, RecordKind};
use crate::id::{Lsn, ShardId, VBlock};
use crate::log::{AppendError, Record};
use crate::map::Root;
use crate::state::{StateError, shard_op};

/// Units of background work, of about a microsecond each, after which the data path has its turn.
const BREATH_UNITS: usize = 64;

/// Ops of one record at most: half a batch.
pub(super) const OPS_MAX: usize = 8192;

/// Why a control flow of a lane did not do its work. What was under way has had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// There is no room for new egroups.
    #[error("the pool has no room: delete vdisks or snapshots, unmap, or add a disk")]
    NoSpace,
    /// The log has no room for the record, or the index area none for the checkpoint.
    #[error("the lane's {area} is full: the pool has too many small egroups")]
    AreaFull {
        /// Which.
        area: &'static str,
    },
    /// A write or flush failed; the lane takes no writes until it is opened again.
    #[error("the lane failed: {0:?}; open the pool again when the disk is in order")]
    Failed(IoStatus),
    /// Work that can wait is not to go on now.
    #[error("background work is paused; let it go on with pool_set_background")]
    Paused,
    /// A disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Something could not be read that was written.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A change does not fit the state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The shard exists already, or it does not exist.
    #[error("shard {shard}: {problem}")]
    Shard {
        /// Which.
        shard: ShardId,
        /// What is wrong.
        problem: &'static str,
    },
}

impl WorkError {
    /// Whether it is for want of room, of whatever kind.
    pub(super) fn is_lack_of_room(&self) -> bool {
        matches!(self, Self::NoSpace | Self::AreaFull { .. })
    }
}

/// The right to change the state, for one control flow at a time.
pub(super) struct Turn<'a>(&'a Lane);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut core = self.0.0.borrow_mut();
        core.committing = false;
        core.wake();
    }
}

impl Lane {
    /// Waits until `ready` gives something; it is asked again whenever something came back from a disk.
    pub(super) async fn wait<T>(&self, mut ready: impl FnMut(&mut Core) -> Option<T>) -> T {
        poll_fn(|cx| {
            let mut core = self.0.borrow_mut();
            match ready(&mut core) {
                Some(value) => Poll::Ready(value),
                None => {
                    core.waiters.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Lets others have the core after `units` units of work, of about a microsecond each, when enough have come together.
    pub(super) async fn breathe(&self, units: usize) {
        let due = {
            let mut core = self.0.borrow_mut();
            core.worked += units;
            core.worked >= BREATH_UNITS
        };
        if due {
            self.0.borrow_mut().worked = 0;
            let mut waited = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut waited, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
    }

    pub(super) async fn lock(&self) -> Turn<'_> {
        self.wait(|core| (!std::mem::replace(&mut core.committing, true)).then_some(())).await;
        Turn(self)
    }

    /// Appends ops, waits until they are durable, applies them. The regions that the lane took go with them.
    pub(super) async fn commit(&self, _turn: &Turn<'_>, ops: Vec<MetaOp>) -> Result<(), WorkError> {
        let (all, regions) = self.0.borrow().with_regions(ops);
        let lsn = self.append(&all).await?;
        self.durable(lsn).await?;
        self.0.borrow_mut().apply(&all, lsn, regions)?;
        Ok(())
    }

    /// Appends ops, as one group.
    async fn append(&self, ops: &[MetaOp]) -> Result<Lsn, WorkError> {
        let mut groups = ops.chunks(OPS_MAX).enumerate().peekable();
        let mut last = Lsn(0);
        while let Some((number, group)) = groups.next() {
            let more = if groups.peek().is_some() { RECORD_MORE } else { 0 };
            let continued = if number > 0 { RECORD_CONTINUED } else { 0 };
            last = self.wait(|core| core.try_append(group, more | continued)).await?;
        }
        Ok(last)
    }

    pub(super) async fn durable(&self, lsn: Lsn) -> Result<(), WorkError> {
        self.wait(|core| match core.log.failed() {
            _ if core.log.durable_end().lsn > lsn => Some(Ok(())),
            Some(status) => Some(Err(WorkError::Failed(status))),
            None => None,
        })
        .await
    }

    /// Makes an empty shard.
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn create_shard(&self, shard: ShardId) -> Result<(), WorkError> {
        let turn = self.lock().await;
        if self.0.borrow().state.shards.contains_key(&shard) {
            return Err(WorkError::Shard { shard, problem: "it exists already" });
        }
        self.commit(&turn, vec![shard_op(shard, Root::default(), 0, 0)]).await
    }

    /// Makes a shard that begins as a snapshot of another; both share what they have in common. Constant time.
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn clone_shard(&self, shard: ShardId, of: ShardId, snapshot: u64) -> Result<(), WorkError> {
        self.snapshot_made(of, snapshot).await?;
        let turn = self.lock().await;
        let op = {
            let core = self.0.borrow();
            if core.state.shards.contains_key(&shard) {
                return Err(WorkError::Shard { shard, problem: "it exists already" });
            }
            let found = core.state.shards.get(&of).and_then(|of| of.snapshots.get(&snapshot));
            let found = found.and_then(|found| Some((found.root?, found.mapped)));
            let (root, mapped) =
                found.ok_or(WorkError::Shard { shard: of, problem: "there is no such snapshot" })?;
            shard_op(shard, root, mapped, core.state.next_egroup)
        };
        self.commit(&turn, vec![op]).await
    }

    /// Deletes a shard that has no snapshots. Its space is free after the next [`Self::collect`].
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn delete_shard(&self, shard: ShardId) -> Result<(), WorkError> {
        let turn = self.lock().await;
        let alone = self.0.borrow().state.shards.get(&shard).map(|shard| shard.snapshots.is_empty());
        match alone {
            None => return Err(WorkError::Shard { shard, problem: "it does not exist" }),
            Some(false) => {
                return Err(WorkError::Shard { shard, problem: "it has snapshots; delete them first" });
            }
            Some(true) => {}
        }
        self.commit(&turn, vec![MetaOp::of(MetaKind::ShardDrop, shard.0)]).await?;
        self.0.borrow_mut().want_collect = true;
        Ok(())
    }

    /// Takes snapshot `number` of each of `shards` at one point of the log: every write submitted before this point
    /// is in it, none that is submitted later. `at_cut` is called at that point (it must not submit anything); the
    /// future returns when the snapshots are durable. Their maps follow when the tables are drained.
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn snapshot(
        &self,
        shards: &[ShardId],
        number: u64,
        at_cut: impl FnOnce(),
    ) -> Result<(), WorkError> {
        if shards.is_empty() || shards.len() > OPS_MAX {
            let shard = ShardId(0);
            return Err(WorkError::Shard { shard, problem: "a snapshot is of 1 to 8192 shards of a lane" });
        }
        let take =
            |shard: &ShardId| MetaOp { b: U64::new(number), ..MetaOp::of(MetaKind::SnapshotTake, shard.0) };
        let ops: Vec<MetaOp> = shards.iter().map(take).collect();
        let mut at_cut = Some(at_cut);
        let _cut = self.nothing_bypasses().await;
        loop {
            // Without the turn: the drain needs it to come to its end.
            self.ready_to_cut().await?;
            let _turn = self.lock().await;
            self.0.borrow().can_take(shards, number)?;
            let Some(lsn) = self.wait(|core| core.try_cut(&ops)).await? else { continue };
            at_cut.take().into_iter().for_each(|at_cut| at_cut());
            self.durable(lsn).await?;
            self.0.borrow_mut().apply(&ops, lsn, 0)?;
            return Ok(());
        }
    }

    /// Waits until a snapshot has its map.
    ///
    /// # Errors
    /// [`WorkError::Shard`] when there is no such snapshot; [`WorkError::Failed`].
    pub async fn snapshot_made(&self, shard: ShardId, number: u64) -> Result<(), WorkError> {
        self.wait(|core| {
            let snapshot = core.state.shards.get(&shard).and_then(|shard| shard.snapshots.get(&number));
            match (snapshot, core.log.failed()) {
                (None, _) => Some(Err(WorkError::Shard { shard, problem: "there is no such snapshot" })),
                (Some(snapshot), _) if snapshot.root.is_some() => Some(Ok(())),
                (_, Some(status)) => Some(Err(WorkError::Failed(status))),
                // It would be waited for until somebody frees space.
                (Some(_), None) if core.full => Some(Err(WorkError::NoSpace)),
                (Some(_), None) => None,
            }
        })
        .await
    }

    /// Makes a shard what it was when snapshot `number` was taken: what was written up to here is gone, drained or not. Constant time. No
    /// I/O of the shard is to be under way.
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn revert_shard(&self, shard: ShardId, number: u64) -> Result<(), WorkError> {
        loop {
            self.snapshot_made(shard, number).await?;
            // What a snapshot that is being made needs of the tables must be drained first, without the turn.
            self.wait(|core| {
                let pending =
                    core.state.shards.get(&shard).is_some_and(|shard| {
                        shard.snapshots.values().any(|snapshot| snapshot.root.is_none())
                    });
                (!pending || core.log.failed().is_some()).then_some(())
            })
            .await;
            let turn = self.lock().await;
            let op = {
                let core = self.0.borrow();
                let found = core.state.shards.get(&shard);
                match found.map(|found| (found.snapshots.contains_key(&number), &found.snapshots)) {
                    None | Some((false, _)) => {
                        return Err(WorkError::Shard { shard, problem: "there is no such snapshot" });
                    }
                    Some((true, snapshots)) if snapshots.values().any(|one| one.root.is_none()) => continue,
                    Some(_) => {}
                }
                let (b, c) = (U64::new(number), U64::new(core.state.next_egroup));
                MetaOp { b, c, ..MetaOp::of(MetaKind::Revert, shard.0) }
            };
            self.commit(&turn, vec![op]).await?;
            self.0.borrow_mut().want_collect = true;
            return Ok(());
        }
    }

    /// Deletes a snapshot. What nobody else needs of it is free after the next [`Self::collect`].
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn delete_snapshot(&self, shard: ShardId, number: u64) -> Result<(), WorkError> {
        self.snapshot_made(shard, number).await?;
        let turn = self.lock().await;
        let op = MetaOp { b: U64::new(number), ..MetaOp::of(MetaKind::SnapshotDrop, shard.0) };
        self.commit(&turn, vec![op]).await?;
        self.0.borrow_mut().want_collect = true;
        Ok(())
    }
}

impl Core {
    fn can_take(&self, shards: &[ShardId], number: u64) -> Result<(), WorkError> {
        for shard in shards {
            match self.state.shards.get(shard).map(|shard| shard.snapshots.contains_key(&number)) {
                None => return Err(WorkError::Shard { shard: *shard, problem: "it does not exist" }),
                Some(true) => {
                    return Err(WorkError::Shard { shard: *shard, problem: "it has this snapshot already" });
                }
                Some(false) => {}
            }
        }
        Ok(())
    }

    /// Appends the record that takes snapshots and freezes the active table with it. `None`: the log is busy; `Ok(None)`: there
    /// is no table to freeze.
    fn try_cut(&mut self, ops: &[MetaOp]) -> Option<Result<Option<Lsn>, WorkError>> {
        if !self.tables.can_freeze() {
            return Some(Ok(None));
        }
        let lsn = match self.try_append(ops, 0)? {
            Ok(lsn) => lsn,
            Err(error) => return Some(Err(error)),
        };
        assert!(self.freeze(), "a snapshot found no table to freeze");
        if let Some(table) = self.tables.frozen.back_mut() {
            table.snapshots = ops.iter().map(|op| (ShardId(op.id.get()), op.b.get())).collect();
        }
        Some(Ok(Some(lsn)))
    }

    /// Appends one record of ops. `None`: the log is busy.
    fn try_append(&mut self, ops: &[MetaOp], flags: u8) -> Option<Result<Lsn, WorkError>> {
        let (block, shard) = (VBlock(0), ShardId(0));
        let record =
            Record { kind: RecordKind::Meta, flags, shard, block, blocks: 0, shard_lsn: 0, epoch: 0 };
        let fill = |room: &mut [u8]| room.copy_from_slice(ops.as_bytes());
        match self.log.append(&record, size_of_val(ops), fill) {
            Ok(lsn) => Some(Ok(lsn)),
            Err(AppendError::Busy) => None,
            Err(AppendError::Full) => Some(Err(WorkError::AreaFull { area: "log" })),
            Err(AppendError::Failed(status)) => Some(Err(WorkError::Failed(status))),
        }
    }

    /// `ops` behind the regions that no record has yet, and how many those are.
    pub(super) fn with_regions(&self, ops: Vec<MetaOp>) -> (Vec<MetaOp>, usize) {
        let region = |(disk, region): &(crate::id::DiskNo, u32)| crate::state::region_op(*disk, *region);
        let mut all: Vec<MetaOp> = self.unrecorded.iter().map(region).collect();
        let regions = all.len();
        all.extend(ops);
        (all, regions)
    }

    /// Applies ops that are durable; the first `regions` of the unrecorded regions are among them.
    pub(super) fn apply(&mut self, ops: &[MetaOp], lsn: Lsn, regions: usize) -> Result<(), StateError> {
        // Others may have recorded some of them meanwhile.
        let recorded = ops.get(..regions).unwrap_or_default();
        let is_recorded = |(disk, region): &(crate::id::DiskNo, u32)| {
            recorded.iter().any(|op| op.disk.get() == disk.0 && op.a.get() == u64::from(*region))
        };
        self.unrecorded.retain(|region| !is_recorded(region));
        for op in ops {
            if let Some(gone) = self.state.apply(op)? {
                self.release(crate::id::EgroupId(op.id.get()), gone);
            }
            let shard = ShardId(op.id.get());
            match op.kind() {
                Ok(MetaKind::ShardDrop) => {
                    self.tables.forget_shard(shard, Lsn(u64::MAX));
                    self.shard_lsns.remove(&shard);
                    self.policies.remove(&shard);
                }
                Ok(MetaKind::Revert) => {
                    self.tables.forget_shard(shard, lsn);
                    // A drain of what is forgotten may be under way.
                    *self.reverts.entry(shard).or_insert(0) += 1;
                }
                _ => {}
            }
        }
        self.state.lsn = self.state.lsn.max(lsn);
        self.wake();
        Ok(())
    }
}

/// The ops in the payload of a meta record.
pub(super) fn ops_of(payload: &[u8]) -> impl Iterator<Item = MetaOp> {
    payload.chunks_exact(META_OP_BYTES).filter_map(|bytes| MetaOp::read_from_bytes(bytes).ok())
}
