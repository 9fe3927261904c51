//! What those above a lane ask of it beside I/O: notes, room for a cut.

use super::{Lane, WorkError};
use crate::format::checkpoint::{MetaKind, MetaOp, NOTE_BYTES_MAX};
use crate::id::Lsn;

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
