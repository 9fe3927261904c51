//! What a crash cut short is finished or undone when a pool is opened.

use std::collections::BTreeSet;

use super::{Change, FabricError, Phase, Pool, SnapshotNote, VdiskNote};
use crate::id::ShardId;

impl Pool {
    /// Finishes and undoes, then makes the bdevs.
    pub(super) async fn recover(&self) -> Result<(), FabricError> {
        let catalog = self.catalog();
        for (number, note) in &catalog.snapshots {
            if matches!(note.phase, Phase::Creating | Phase::Deleting) {
                self.drop_snapshot(*number, note).await?;
            }
        }
        for (number, note) in &catalog.vdisks {
            match note.phase {
                Phase::Ready => {}
                Phase::Creating | Phase::Deleting => self.drop_vdisk(*number, note).await?,
                Phase::Reverting(snapshot) => self.finish_revert(*number, note, snapshot).await?,
            }
        }
        let catalog = self.catalog();
        for (number, note) in &catalog.vdisks {
            if let Err(error) = self.show_vdisk(*number, note) {
                tracing::error!(vdisk = note.name, error = %super::chain(&error), "a vdisk is not there as a bdev");
                self.hidden.borrow_mut().insert(*number, error.to_string());
            }
        }
        for (number, note) in catalog.snapshots.iter().filter(|(_, note)| note.shown) {
            if let Err(error) = self.show_snapshot(*number, note) {
                tracing::error!(snapshot = note.name, error = %super::chain(&error), "a snapshot is not there as a bdev");
                self.hidden.borrow_mut().insert(*number, error.to_string());
            }
        }
        Ok(())
    }

    /// Deletes a snapshot in all lanes that have it, then its note, which says `Deleting` or `Creating` already.
    pub(super) async fn drop_snapshot(&self, number: u64, note: &SnapshotNote) -> Result<(), FabricError> {
        let vdisk = self.catalog.borrow().vdisks.get(&note.vdisk).cloned();
        if let Some(vdisk) = vdisk {
            let shards: Vec<(u16, ShardId)> = vdisk.shards(note.vdisk).collect();
            let (of, snapshot) = (note.vdisk, note.number);
            debug_assert!(shards.iter().all(|(_, shard)| shard.vdisk() == of));
            self.at_lanes(lanes_of(&vdisk), move |lane, seat, _| {
                let shards: Vec<ShardId> =
                    shards.iter().filter(|(of, _)| *of == lane).map(|(_, shard)| *shard).collect();
                async move {
                    for shard in shards {
                        let there = {
                            let state = seat.lane().state();
                            let found = state.shards.get(&shard);
                            found.is_some_and(|shard| shard.snapshots.contains_key(&snapshot))
                        };
                        if there {
                            seat.lane().delete_snapshot(shard, snapshot).await?;
                        }
                    }
                    Ok(())
                }
            })
            .await?;
        }
        self.commit(vec![Change::Snapshot(number, None)]).await
    }

    /// Deletes a vdisk's snapshots and shards, then its note, which says `Deleting` or `Creating` already.
    pub(super) async fn drop_vdisk(&self, number: u64, note: &VdiskNote) -> Result<(), FabricError> {
        let snapshots: Vec<(u64, SnapshotNote)> = {
            let catalog = self.catalog.borrow();
            let of = catalog.snapshots.iter().filter(|(_, snapshot)| snapshot.vdisk == number);
            of.map(|(number, snapshot)| (*number, snapshot.clone())).collect()
        };
        for (number, snapshot) in snapshots {
            self.drop_snapshot(number, &snapshot).await?;
        }
        self.at_shards(number, note, move |shards, seat| async move {
            for shard in shards {
                let there = seat.lane().state().shards.contains_key(&shard);
                if there {
                    seat.lane().delete_shard(shard).await?;
                }
            }
            seat.lane().want_collect();
            Ok(())
        })
        .await?;
        self.commit(vec![Change::Vdisk(number, None)]).await
    }

    /// Makes every shard what the snapshot is, then says that nothing is being done.
    pub(super) async fn finish_revert(
        &self,
        number: u64,
        note: &VdiskNote,
        snapshot: u64,
    ) -> Result<(), FabricError> {
        self.at_shards(number, note, move |shards, seat| async move {
            for shard in shards {
                seat.lane().revert_shard(shard, snapshot).await?;
            }
            Ok(())
        })
        .await?;
        let done = VdiskNote { phase: Phase::Ready, ..note.clone() };
        self.commit(vec![Change::Vdisk(number, Some(done))]).await
    }
}

/// The lanes that have shards of a vdisk.
pub(super) fn lanes_of(note: &VdiskNote) -> BTreeSet<u16> {
    note.lanes.iter().copied().collect()
}
