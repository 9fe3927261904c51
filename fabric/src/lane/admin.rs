//! What those above a lane ask of it beside I/O: notes, reverts, room for a cut.

use super::{Lane, WorkError};
use crate::format::checkpoint::{MetaKind, MetaOp, NOTE_BYTES_MAX};
use crate::id::{Lsn, ShardId};
use crate::state::shard_op;

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

    /// Makes a shard what one of its snapshots is. Nobody else may write to the shard meanwhile; what was written before is
    /// drained first.
    ///
    /// # Errors
    /// [`WorkError`]; [`WorkError::NoSpace`] when the pool is full.
    pub async fn revert_shard(&self, shard: ShardId, snapshot: u64) -> Result<(), WorkError> {
        self.snapshot_made(shard, snapshot).await?;
        self.drained_so_far().await?;
        let turn = self.lock().await;
        let op = {
            let core = self.0.borrow();
            let found = core.state.shards.get(&shard).and_then(|shard| shard.snapshots.get(&snapshot));
            let found = found.and_then(|found| Some((found.root?, found.mapped)));
            let (root, mapped) =
                found.ok_or(WorkError::Shard { shard, problem: "there is no such snapshot" })?;
            // All of it is the snapshot's too.
            shard_op(shard, root, mapped, core.state.next_egroup)
        };
        self.commit(&turn, vec![op]).await?;
        drop(turn);
        self.want_collect();
        Ok(())
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
