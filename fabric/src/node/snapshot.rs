//! Snapshots: of one vdisk or of several at once, shown as bdevs, compared.

use std::rc::Rc;

use penstock_bdev::Bdev;
use uuid::Uuid;

use super::recover::lanes_of;
use super::{Change, Fabric, FabricError, Phase, Pool, SnapshotNote, VdiskNote};
use crate::id::{BLOCK_BYTES, ShardId};
use crate::lane::Changed;

/// vdisks of one snapshot at most.
const GROUP_MAX: usize = 1024;
/// Snapshots of one pool at most.
const SNAPSHOTS_MAX: usize = 1 << 16;

/// vdisks of one pool.
type Group = (Rc<Pool>, Vec<(u64, VdiskNote)>);

/// A snapshot to be taken.
#[derive(Debug, Clone)]
pub struct SnapshotRequest {
    /// Of which vdisks, at one moment.
    pub vdisks: Vec<String>,
    /// Its name, among each vdisk's.
    pub name: String,
}

impl Fabric {
    /// Takes a snapshot of vdisks of one pool, all at one moment: what was acknowledged before is in it, nothing that began
    /// after it returned.
    ///
    /// # Errors
    /// [`FabricError`]; then there is none.
    pub async fn snapshot(&self, request: &SnapshotRequest) -> Result<Vec<Uuid>, FabricError> {
        let (pool, vdisks) = self.group(request)?;
        let count = u64::try_from(vdisks.len()).unwrap_or(0);
        let (first, taken) = pool.catalog.borrow().numbers(count);
        let note = |vdisk: u64, note: &VdiskNote| SnapshotNote {
            name: request.name.clone(),
            vdisk,
            number: first,
            uuid: Uuid::new_v4(),
            bytes: note.bytes,
            created: (self.0.now)(),
            shown: false,
            phase: Phase::Creating,
        };
        let notes: Vec<(u64, SnapshotNote)> =
            (first..).zip(&vdisks).map(|(number, (vdisk, of))| (number, note(*vdisk, of))).collect();
        let mut changes = vec![taken];
        changes.extend(notes.iter().map(|(number, note)| Change::Snapshot(*number, Some(note.clone()))));
        pool.commit(changes).await?;
        let done = match pool.cut(&vdisks, first).await {
            Ok(()) => {
                let ready = |(number, note): &(u64, SnapshotNote)| {
                    Change::Snapshot(*number, Some(SnapshotNote { phase: Phase::Ready, ..note.clone() }))
                };
                pool.commit(notes.iter().map(ready).collect()).await
            }
            error => error,
        };
        if let Err(error) = done {
            for (number, note) in &notes {
                drop(pool.drop_snapshot(*number, note).await);
            }
            return Err(error);
        }
        Ok(notes.into_iter().map(|(_, note)| note.uuid).collect())
    }

    fn group(&self, request: &SnapshotRequest) -> Result<Group, FabricError> {
        super::vdisk::check_name("snapshot", &request.name)?;
        let invalid = |problem: String| {
            Err(FabricError::Invalid { what: "snapshot", name: request.name.clone(), problem })
        };
        let mut vdisks: Vec<(u64, VdiskNote)> = Vec::new();
        let mut pool: Option<Rc<Pool>> = None;
        for name in &request.vdisks {
            let (of, number, note) = self.vdisk(name)?;
            if pool.as_ref().is_some_and(|pool| pool.uuid != of.uuid) {
                return invalid("its vdisks are of several pools; take one for each".into());
            }
            if of.catalog.borrow().snapshot(number, &request.name).is_some() {
                let name = format!("{name}@{}", request.name);
                return Err(FabricError::Exists { what: "snapshot", name });
            }
            if vdisks.iter().any(|(other, _)| *other == number) {
                return invalid(format!("vdisk {name} is named twice"));
            }
            vdisks.push((number, note));
            pool = Some(of);
        }
        let Some(pool) = pool.filter(|_| vdisks.len() <= GROUP_MAX) else {
            return invalid(format!("name 1 to {GROUP_MAX} vdisks"));
        };
        if pool.catalog.borrow().snapshots.len() + vdisks.len() > SNAPSHOTS_MAX {
            return invalid(format!("the pool has {SNAPSHOTS_MAX} snapshots, which is the most"));
        }
        Ok((pool, vdisks))
    }

    /// Deletes a vdisk's snapshot.
    ///
    /// # Errors
    /// [`FabricError::InUse`] while its bdev is.
    pub async fn delete_snapshot(&self, vdisk: &str, name: &str) -> Result<(), FabricError> {
        let (pool, vdisk, note) = self.vdisk(vdisk)?;
        let (number, snapshot) = pool.snapshot(vdisk, &note.name, name)?;
        pool.hide_unused(number).await?;
        let going = SnapshotNote { phase: Phase::Deleting, shown: false, ..snapshot };
        pool.commit(vec![Change::Snapshot(number, Some(going.clone()))]).await?;
        pool.drop_snapshot(number, &going).await
    }

    /// Shows a snapshot as a bdev that is only read, from now on and after restarts; returns its name.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn show_snapshot(&self, vdisk: &str, name: &str) -> Result<String, FabricError> {
        let (pool, vdisk, note) = self.vdisk(vdisk)?;
        let (number, snapshot) = pool.snapshot(vdisk, &note.name, name)?;
        let there = pool.shown.borrow().get(&number).map(|bdev| bdev.shared().name().to_owned());
        if let Some(there) = there {
            return Ok(there);
        }
        pool.until_made(vdisk, &note, snapshot.number).await?;
        let shown = SnapshotNote { shown: true, ..snapshot };
        pool.commit(vec![Change::Snapshot(number, Some(shown.clone()))]).await?;
        pool.show_snapshot(number, &shown)
    }

    /// Takes a snapshot's bdev away again.
    ///
    /// # Errors
    /// [`FabricError::InUse`].
    pub async fn unshow_snapshot(&self, vdisk: &str, name: &str) -> Result<(), FabricError> {
        let (pool, vdisk, note) = self.vdisk(vdisk)?;
        let (number, snapshot) = pool.snapshot(vdisk, &note.name, name)?;
        pool.hide_unused(number).await?;
        let hidden = SnapshotNote { shown: false, ..snapshot };
        pool.commit(vec![Change::Snapshot(number, Some(hidden))]).await
    }

    /// The ranges of a vdisk that differ between two of its snapshots (`None` for the earlier: nothing), from byte `start`
    /// on, in bytes, in order; stops after `max` or so, and says where to go on.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn diff(
        &self,
        vdisk: &str,
        old: Option<&str>,
        new: &str,
        start: u64,
        max: usize,
    ) -> Result<(Vec<Changed>, Option<u64>), FabricError> {
        let (pool, vdisk, note) = self.vdisk(vdisk)?;
        let old = match old {
            Some(old) => Some(pool.snapshot(vdisk, &note.name, old)?.1.number),
            None => None,
        };
        let (_, new) = pool.snapshot(vdisk, &note.name, new)?;
        pool.changed(vdisk, old, &new, start, max).await
    }
}

impl Pool {
    /// Waits until the maps of a vdisk's snapshot are made: reads before would end with an error.
    pub(super) async fn until_made(&self, vdisk: u64, note: &VdiskNote, cut: u64) -> Result<(), FabricError> {
        let shards: Vec<(u16, ShardId)> = note.shards(vdisk).collect();
        self.at_lanes(lanes_of(note), move |lane, seat, _| {
            let shards: Vec<ShardId> =
                shards.iter().filter(|(of, _)| *of == lane).map(|(_, shard)| *shard).collect();
            async move {
                for shard in shards {
                    seat.lane().snapshot_made(shard, cut).await?;
                }
                Ok(())
            }
        })
        .await
        .map(drop)
    }

    /// The ranges in which a snapshot differs from an older one, or from nothing; as [`Fabric::diff`].
    pub(super) async fn changed(
        &self,
        vdisk: u64,
        old: Option<u64>,
        new: &SnapshotNote,
        start: u64,
        max: usize,
    ) -> Result<(Vec<Changed>, Option<u64>), FabricError> {
        let note = self.catalog.borrow().vdisks.get(&vdisk).cloned();
        let Some(note) = note else {
            return Err(FabricError::NotFound { what: "vdisk", name: vdisk.to_string(), list: "vdisk_get" });
        };
        let (from, cut) = (start / BLOCK_BYTES as u64, new.number);
        let shards: Vec<(u16, ShardId)> = note.shards(vdisk).collect();
        let found = self
            .at_lanes(lanes_of(&note), move |lane, seat, _| {
                let shards: Vec<ShardId> =
                    shards.iter().filter(|(of, _)| *of == lane).map(|(_, shard)| *shard).collect();
                async move {
                    let mut found = Vec::new();
                    for shard in shards {
                        found.push(seat.lane().diff(shard, old, cut, from, max).await?);
                    }
                    Ok(found)
                }
            })
            .await?;
        // In order only up to where the first of them stopped.
        let stop = found.iter().flatten().filter_map(|(_, stop)| *stop).min();
        let end = stop.unwrap_or(u64::MAX).min(new.bytes.div_ceil(BLOCK_BYTES as u64));
        let mut ranges: Vec<Changed> = found.into_iter().flatten().flat_map(|(ranges, _)| ranges).collect();
        ranges.retain(|range| range.first < end);
        ranges.sort_unstable_by_key(|range| range.first);
        let scale = BLOCK_BYTES as u64;
        let mut merged: Vec<Changed> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let blocks = range.blocks.min(end - range.first) * scale;
            let range = Changed { first: range.first * scale, blocks, zero: range.zero };
            match merged.last_mut() {
                Some(last) if last.first + last.blocks == range.first && last.zero == range.zero => {
                    last.blocks += range.blocks;
                }
                _ => merged.push(range),
            }
        }
        Ok((merged, stop.map(|stop| stop * scale)))
    }

    /// Takes snapshot `number` of all shards of `vdisks` at one moment.
    pub(super) async fn cut(&self, vdisks: &[(u64, VdiskNote)], number: u64) -> Result<(), FabricError> {
        let shards: Vec<(u16, ShardId)> =
            vdisks.iter().flat_map(|(number, note)| note.shards(*number).collect::<Vec<_>>()).collect();
        let lanes: std::collections::BTreeSet<u16> = shards.iter().map(|(lane, _)| *lane).collect();
        let numbers: Vec<u64> = vdisks.iter().map(|(number, _)| *number).collect();
        // What may take long, before anybody has to wait.
        self.at_lanes(lanes.clone(), |_, seat, _| async move { seat.lane().ready_to_cut().await }).await?;
        let gates = numbers.clone();
        let closed = self
            .at_lanes(lanes.clone(), move |_, seat, _| {
                gates.iter().for_each(|vdisk| seat.desk().close_gate(*vdisk));
                async { Ok(()) }
            })
            .await;
        let cut = match closed {
            Ok(_) => {
                self.at_lanes(lanes.clone(), move |lane, seat, _| {
                    let shards: Vec<ShardId> =
                        shards.iter().filter(|(of, _)| *of == lane).map(|(_, shard)| *shard).collect();
                    async move { seat.lane().snapshot(&shards, number, || ()).await }
                })
                .await
            }
            error => error,
        };
        let opened = self.at_lanes(lanes, move |_, seat, _| {
            numbers.iter().for_each(|vdisk| seat.desk().open_gate(*vdisk));
            async { Ok(()) }
        });
        let opened = opened.await;
        cut.and(opened).map(drop)
    }

    /// A vdisk's snapshot by its name.
    pub(super) fn snapshot(
        &self,
        vdisk: u64,
        vdisk_name: &str,
        name: &str,
    ) -> Result<(u64, SnapshotNote), FabricError> {
        let catalog = self.catalog.borrow();
        let found = catalog.snapshot(vdisk, name).filter(|(_, note)| note.phase == Phase::Ready);
        found.map(|(number, note)| (number, note.clone())).ok_or_else(|| FabricError::NotFound {
            what: "snapshot",
            name: format!("{vdisk_name}@{name}"),
            list: "vdisk_snapshot_list",
        })
    }

    /// A vdisk's snapshots, the oldest first.
    #[must_use]
    pub fn snapshots_of(&self, vdisk: u64) -> Vec<(u64, SnapshotNote)> {
        let catalog = self.catalog.borrow();
        let of = catalog.snapshots.iter().filter(|(_, note)| note.vdisk == vdisk);
        of.map(|(number, note)| (*number, note.clone())).collect()
    }

    /// Shows those of a vdisk's snapshots that are to be shown and are not.
    pub(super) fn show_snapshots_of(&self, vdisk: u64) -> Result<(), FabricError> {
        for (number, note) in self.snapshots_of(vdisk) {
            if note.shown && !self.shown.borrow().contains_key(&number) {
                self.show_snapshot(number, &note)?;
            }
        }
        Ok(())
    }

    async fn hide_unused(&self, number: u64) -> Result<(), FabricError> {
        let name = self.shown.borrow().get(&number).map(|bdev| bdev.shared().name().to_owned());
        if let Some(name) = name {
            self.nobody_uses(&name)?;
        }
        self.hide_snapshot(number).await
    }

    pub(super) async fn hide_snapshot(&self, number: u64) -> Result<(), FabricError> {
        let bdev = self.shown.borrow_mut().remove(&number);
        let name = bdev.as_ref().map(|bdev| bdev.shared().name().to_owned());
        drop(bdev);
        if let Some(name) = name {
            self.registry.remove(&name).await?;
        }
        Ok(())
    }
}
