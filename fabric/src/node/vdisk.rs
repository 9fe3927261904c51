//! Making, changing and deleting vdisks.

use std::rc::Rc;

use uuid::Uuid;

use super::recover::lanes_of;
use super::{Change, Fabric, FabricError, Phase, Pool, VdiskNote};
use crate::id::{BLOCK_BYTES, ShardId};
use crate::vdisk::SHARDS_MAX;

/// Bytes of a vdisk at most.
pub(super) const BYTES_MAX: u64 = 1 << 63;
/// Bytes of a name at most.
const NAME_MAX: usize = 128;
/// vdisks of one pool at most.
const VDISKS_MAX: usize = 1 << 14;

/// What a vdisk is to be.
#[derive(Debug, Clone)]
pub struct NewVdisk {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its length in bytes.
    pub bytes: u64,
    /// Bytes of a block: 512 or 4096.
    pub block: u32,
    /// Its container.
    pub container: String,
    /// Its shards; `None`: one for each lane.
    pub shards: Option<u16>,
}

/// What a vdisk's length is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resize {
    /// In bytes.
    pub bytes: u64,
    /// It may become shorter; what is behind the new end is lost.
    pub shrink: bool,
}

/// Refuses names that would be mistaken for something else.
pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), FabricError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:+".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(good) {
        let problem = format!("a name has 1 to {NAME_MAX} letters, digits and . _ - : +");
        return Err(FabricError::Invalid { what, name: name.to_owned(), problem });
    }
    Ok(())
}

fn check_size(name: &str, bytes: u64, block: u32) -> Result<(), FabricError> {
    let invalid = |problem| Err(FabricError::Invalid { what: "vdisk", name: name.to_owned(), problem });
    if !matches!(block, 512 | 4096) {
        return invalid(format!("its block size is {block}; it must be 512 or 4096"));
    }
    if bytes == 0 || bytes > BYTES_MAX || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
        return invalid(format!("its size is {bytes} bytes; give 4096 to 2^63, a multiple of 4096"));
    }
    Ok(())
}

impl Fabric {
    /// The pool and the number of a vdisk.
    ///
    /// # Errors
    /// [`FabricError::NotFound`].
    pub fn vdisk(&self, name: &str) -> Result<(Rc<Pool>, u64, VdiskNote), FabricError> {
        for pool in self.pools() {
            let found = pool.catalog.borrow().vdisk(name).map(|(number, note)| (number, note.clone()));
            if let Some((number, note)) = found {
                return Ok((pool, number, note));
            }
        }
        Err(FabricError::NotFound { what: "vdisk", name: name.to_owned(), list: "vdisk_get" })
    }

    /// Makes a vdisk in a pool.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn create_vdisk(&self, pool: &Rc<Pool>, new: &NewVdisk) -> Result<(), FabricError> {
        self.make_vdisk(pool, new, Phase::Ready).await.map(drop)
    }

    /// Makes a vdisk that is in `phase` when it is there; returns its number.
    pub(super) async fn make_vdisk(
        &self,
        pool: &Rc<Pool>,
        new: &NewVdisk,
        phase: Phase,
    ) -> Result<u64, FabricError> {
        self.check_new(pool, &new.name)?;
        check_size(&new.name, new.bytes, new.block)?;
        let container = pool.catalog.borrow().container(&new.container).map(|(number, _)| number);
        let container = container.ok_or_else(|| FabricError::NotFound {
            what: "container",
            name: new.container.clone(),
            list: "container_list",
        })?;
        let lanes = u64::try_from(pool.lanes()).unwrap_or(1).max(1);
        let shards = new.shards.map_or(lanes, u64::from);
        if shards == 0 || shards > SHARDS_MAX as u64 {
            let problem = format!("it would have {shards} shards; give 1 to {SHARDS_MAX}");
            return Err(FabricError::Invalid { what: "vdisk", name: new.name.clone(), problem });
        }
        let (number, taken) = pool.catalog.borrow().numbers(1);
        // vdisks of few shards begin at different lanes.
        let lane = |shard: u64| u16::try_from((number + shard) % lanes).unwrap_or(0);
        let note = VdiskNote {
            name: new.name.clone(),
            uuid: new.uuid,
            bytes: new.bytes,
            block: new.block,
            container,
            lanes: (0..shards).map(lane).collect(),
            origin: None,
            phase: Phase::Creating,
        };
        pool.commit(vec![taken, Change::Vdisk(number, Some(note.clone()))]).await?;
        let shards: Vec<(u16, ShardId)> = note.shards(number).collect();
        let made = pool
            .at_lanes(lanes_of(&note), move |lane, seat, _| {
                let shards: Vec<ShardId> =
                    shards.iter().filter(|(of, _)| *of == lane).map(|(_, shard)| *shard).collect();
                async move {
                    for shard in shards {
                        seat.lane().create_shard(shard).await?;
                    }
                    Ok(())
                }
            })
            .await;
        pool.finish_vdisk(number, note, phase, made.map(drop)).await?;
        Ok(number)
    }

    /// Makes a vdisk that begins as a snapshot of another; both share what they have in common.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn clone_vdisk(
        &self,
        of: &str,
        snapshot: &str,
        name: &str,
        uuid: Uuid,
    ) -> Result<(), FabricError> {
        let (pool, origin, note) = self.vdisk(of)?;
        self.check_new(&pool, name)?;
        let (_, snapshot) = pool.snapshot(origin, &note.name, snapshot)?;
        let (number, taken) = pool.catalog.borrow().numbers(1);
        let clone = VdiskNote {
            name: name.to_owned(),
            uuid,
            bytes: snapshot.bytes,
            origin: Some((origin, snapshot.number)),
            phase: Phase::Creating,
            ..note.clone()
        };
        pool.commit(vec![taken, Change::Vdisk(number, Some(clone.clone()))]).await?;
        let shards: Vec<(u16, ShardId, ShardId)> = clone
            .shards(number)
            .zip(note.shards(origin))
            .map(|((lane, shard), (_, of))| (lane, shard, of))
            .collect();
        let cut = snapshot.number;
        let made = pool
            .at_lanes(lanes_of(&clone), move |lane, seat, _| {
                let shards: Vec<(ShardId, ShardId)> =
                    shards.iter().filter(|part| part.0 == lane).map(|part| (part.1, part.2)).collect();
                async move {
                    for (shard, of) in shards {
                        seat.lane().clone_shard(shard, of, cut).await?;
                    }
                    Ok(())
                }
            })
            .await;
        pool.finish_vdisk(number, clone, Phase::Ready, made.map(drop)).await
    }

    /// Gives a vdisk another length.
    ///
    /// # Errors
    /// [`FabricError`]; [`FabricError::Invalid`] for a shorter one without `shrink`.
    pub async fn resize_vdisk(&self, name: &str, resize: Resize) -> Result<(), FabricError> {
        let (pool, number, note) = self.vdisk(name)?;
        check_size(&note.name, resize.bytes, note.block)?;
        if resize.bytes < note.bytes && !resize.shrink {
            let problem = format!(
                "{} bytes are less than its {}; give shrink, and lose what is behind",
                resize.bytes, note.bytes
            );
            return Err(FabricError::Invalid { what: "vdisk", name: note.name, problem });
        }
        let changed = VdiskNote { bytes: resize.bytes, ..note.clone() };
        if resize.bytes > note.bytes {
            // What a shrink left behind the old end, or was still under way then, must not be seen.
            pool.zero_from(number, &note, note.bytes, resize.bytes).await?;
            pool.commit(vec![Change::Vdisk(number, Some(changed))]).await?;
            pool.publish_size(number, &note, resize.bytes)
        } else {
            pool.publish_size(number, &note, resize.bytes)?;
            pool.commit(vec![Change::Vdisk(number, Some(changed))]).await?;
            pool.zero_from(number, &note, resize.bytes, note.bytes).await
        }
    }

    /// Gives a vdisk that nobody uses another name.
    ///
    /// # Errors
    /// [`FabricError::InUse`], as exports know it by its name.
    pub async fn rename_vdisk(&self, name: &str, new_name: &str) -> Result<(), FabricError> {
        let (pool, number, note) = self.vdisk(name)?;
        if note.name == new_name {
            return Ok(());
        }
        self.check_new(&pool, new_name)?;
        pool.nobody_uses(&note.name)?;
        let renamed = VdiskNote { name: new_name.to_owned(), ..note.clone() };
        pool.commit(vec![Change::Vdisk(number, Some(renamed.clone()))]).await?;
        pool.hide_vdisk(number, &note).await?;
        pool.show_vdisk(number, &renamed)?;
        pool.show_snapshots_of(number)
    }

    /// Deletes a vdisk.
    ///
    /// # Errors
    /// [`FabricError::InUse`] while it has snapshots, unless `snapshots`, or users, unless `force`.
    pub async fn delete_vdisk(&self, name: &str, snapshots: bool, force: bool) -> Result<(), FabricError> {
        let (pool, number, note) = self.vdisk(name)?;
        let has: Vec<String> = pool.snapshots_of(number).into_iter().map(|(_, note)| note.name).collect();
        if !has.is_empty() && !snapshots {
            let remedy = "delete them first, or give snapshots to delete them too";
            let users = format!("{} snapshots", has.len());
            return Err(FabricError::InUse { what: "vdisk", name: note.name, users, remedy });
        }
        if !force {
            pool.nobody_uses(&note.name)?;
        }
        let going = VdiskNote { phase: Phase::Deleting, ..note.clone() };
        pool.commit(vec![Change::Vdisk(number, Some(going.clone()))]).await?;
        pool.hide_vdisk(number, &note).await?;
        pool.drop_vdisk(number, &going).await?;
        pool.limit_containers().await
    }

    /// Makes a vdisk that nobody uses what one of its snapshots is.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn revert_vdisk(&self, name: &str, snapshot: &str) -> Result<(), FabricError> {
        let (pool, number, note) = self.vdisk(name)?;
        let (_, snapshot) = pool.snapshot(number, &note.name, snapshot)?;
        pool.nobody_uses(&note.name)?;
        let phase = Phase::Reverting(snapshot.number);
        let going = VdiskNote { bytes: snapshot.bytes, phase, ..note.clone() };
        pool.commit(vec![Change::Vdisk(number, Some(going.clone()))]).await?;
        // Away meanwhile: nobody may write to it.
        pool.hide_vdisk(number, &note).await?;
        let done = pool.finish_revert(number, &going, snapshot.number).await;
        if done.is_ok() {
            pool.show_vdisk(number, &VdiskNote { phase: Phase::Ready, ..going })?;
            pool.show_snapshots_of(number)?;
        } else {
            let problem = "it is being reverted; do that again, or open the pool again";
            pool.hidden.borrow_mut().insert(number, problem.into());
        }
        done
    }

    fn check_new(&self, pool: &Pool, name: &str) -> Result<(), FabricError> {
        check_name("vdisk", name)?;
        if pool.catalog.borrow().vdisks.len() >= VDISKS_MAX {
            let problem = format!("the pool has {VDISKS_MAX} vdisks, which is the most");
            return Err(FabricError::Invalid { what: "vdisk", name: name.to_owned(), problem });
        }
        if self.vdisk(name).is_ok() || self.0.registry.find(name).is_ok() {
            return Err(FabricError::Exists { what: "vdisk or bdev", name: name.to_owned() });
        }
        Ok(())
    }
}

impl Pool {
    /// Says what a vdisk is now, ready as a rule, and shows it; or undoes what was made of it.
    async fn finish_vdisk(
        &self,
        number: u64,
        note: VdiskNote,
        phase: Phase,
        made: Result<(), FabricError>,
    ) -> Result<(), FabricError> {
        let ready = VdiskNote { phase, ..note.clone() };
        let made = match made {
            Ok(()) => self.commit(vec![Change::Vdisk(number, Some(ready.clone()))]).await,
            error => error,
        };
        let made = match made {
            Ok(()) => self.compress_vdisk(number).await,
            error => error,
        };
        let shown = made.and_then(|()| self.show_vdisk(number, &ready));
        if let Err(error) = shown {
            drop(self.drop_vdisk(number, &note).await);
            return Err(error);
        }
        self.limit_containers().await
    }

    /// Refuses while somebody has a bdev of this pool open.
    pub(super) fn nobody_uses(&self, name: &str) -> Result<(), FabricError> {
        let users = self.registry.users(name).unwrap_or_default();
        if users.is_empty() {
            return Ok(());
        }
        let remedy = "remove it there first";
        Err(FabricError::InUse { what: "vdisk", name: name.to_owned(), users: users.join(", "), remedy })
    }

    /// Takes a vdisk's bdevs away; its snapshots' too.
    async fn hide_vdisk(&self, number: u64, note: &VdiskNote) -> Result<(), FabricError> {
        let shown: Vec<u64> = self.snapshots_of(number).into_iter().map(|(number, _)| number).collect();
        for snapshot in shown {
            self.hide_snapshot(snapshot).await?;
        }
        let bdev = self.vdisks.borrow_mut().remove(&number);
        if bdev.is_some() {
            drop(bdev);
            self.registry.remove(&note.name).await?;
        }
        Ok(())
    }

    fn publish_size(&self, number: u64, note: &VdiskNote, bytes: u64) -> Result<(), FabricError> {
        let bdev = self.vdisks.borrow().get(&number).cloned();
        if let Some(bdev) = bdev {
            bdev.set_blocks(bytes / u64::from(note.block));
            self.registry.resize(&note.name, None)?;
        }
        Ok(())
    }

    /// Zeroes what is between two lengths of a vdisk.
    async fn zero_from(&self, number: u64, note: &VdiskNote, from: u64, to: u64) -> Result<(), FabricError> {
        let (first, end) = (from / BLOCK_BYTES as u64, to / BLOCK_BYTES as u64);
        self.at_shards(number, note, move |shards, seat| async move {
            for shard in shards {
                seat.lane().zero_shard(shard, first, end - first).await?;
            }
            Ok(())
        })
        .await
        .map(drop)
    }
}
