//! What those above a lane ask of it beside I/O: notes, room for a cut.

use super::table::ZeroRange;
use super::{Core, Lane, WorkError};
use crate::format::checkpoint::{MetaKind, MetaOp, NOTE_BYTES_MAX};
use crate::format::log::RecordKind;
use crate::id::{Lsn, ShardId, VBlock};
use crate::log::{AppendError, Record};

impl Lane {
    /// Puts notes in place (or, where the text is `None`, removes them), all of them at once; returns when they are durable.
    ///
    /// # Errors
    /// [`WorkError`].
    ///
    /// # Panics
    /// For a note of more than [`NOTE_BYTES_MAX`] bytes: a bug of the caller.
    pub async fn put_notes(&self, notes: Vec<(u64, Option<Vec<u8>>)>) -> Result<(), WorkError> {
        let turn = self.lock().await;
        let mut ops = Vec::new();
        for (id, text) in notes {
            match text {
                Some(text) => {
                    assert!(text.len() <= NOTE_BYTES_MAX, "a note of {} bytes", text.len());
                    ops.extend(MetaOp::note(id, &text));
                }
                None if self.0.borrow().state.notes.contains_key(&id) => {
                    ops.push(MetaOp::of(MetaKind::NoteDrop, id));
                }
                None => {}
            }
        }
        if ops.is_empty() {
            return Ok(());
        }
        self.commit(&turn, ops).await
    }

    /// Waits until a snapshot can be taken without waiting for the drain.
    ///
    /// # Errors
    /// [`WorkError::Failed`].
    pub async fn ready_to_cut(&self) -> Result<(), WorkError> {
        self.wait(|core| match core.log.failed() {
            Some(status) => Some(Err(WorkError::Failed(status))),
            None => core.tables.can_freeze().then_some(Ok(())),
        })
        .await
    }

    /// Zeroes blocks of a shard, as many as there are; returns when that is durable.
    ///
    /// # Errors
    /// [`WorkError::NoSpace`] when even the reserve of the log is used up; [`WorkError::Failed`].
    pub async fn zero_shard(&self, shard: ShardId, first: u64, blocks: u64) -> Result<(), WorkError> {
        if blocks == 0 {
            return Ok(());
        }
        let lsn = self.wait(|core| core.try_zero(shard, VBlock(first), blocks)).await?;
        self.durable(lsn).await
    }

    /// Waits until all that was submitted before is in the maps.
    ///
    /// # Errors
    /// [`WorkError::NoSpace`], [`WorkError::Failed`].
    pub async fn drained_so_far(&self) -> Result<(), WorkError> {
        let end = Lsn(self.0.borrow().log.next_lsn().0 - 1);
        self.wait(|core| {
            if let Some(status) = core.log.failed() {
                return Some(Err(WorkError::Failed(status)));
            }
            if core.state.drained >= end || core.tables.is_empty() {
                return Some(Ok(()));
            }
            if core.full {
                return Some(Err(WorkError::NoSpace));
            }
            let frozen = core.tables.frozen.iter().any(|table| table.end >= end);
            if !frozen && !core.tables.active.is_empty() && core.tables.can_freeze() {
                core.freeze();
            }
            None
        })
        .await
    }
}

impl Core {
    /// Appends a record that zeroes a range. `None`: there is no room just now.
    fn try_zero(&mut self, shard: ShardId, block: VBlock, blocks: u64) -> Option<Result<Lsn, WorkError>> {
        if !self.state.shards.contains_key(&shard) {
            return Some(Err(WorkError::Shard { shard, problem: "it does not exist" }));
        }
        if !self.tables.active.has_room_for_range() {
            self.freeze();
        }
        if !self.tables.active.has_room_for_range() {
            return self.full.then_some(Err(WorkError::NoSpace));
        }
        let shard_lsn = self.shard_lsns.get(&shard).map_or(1, |last| last + 1);
        let record = Record { kind: RecordKind::Zero, flags: 0, shard, block, blocks, shard_lsn, epoch: 1 };
        match self.log.append(&record, 0, |_| {}) {
            Ok(lsn) => {
                self.shard_lsns.insert(shard, shard_lsn);
                let end = block.0.saturating_add(blocks);
                self.tables.active.put_range(ZeroRange { shard, first: block.0, end, lsn });
                self.zeroed_blocks = self.zeroed_blocks.saturating_add(blocks);
                self.wake();
                Some(Ok(lsn))
            }
            Err(AppendError::Failed(status)) => Some(Err(WorkError::Failed(status))),
            Err(AppendError::Full) if self.full => Some(Err(WorkError::NoSpace)),
            Err(AppendError::Full | AppendError::Busy) => None,
        }
    }
}
