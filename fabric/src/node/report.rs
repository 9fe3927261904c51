//! What pools say of themselves: usage, lanes, thresholds.

use std::rc::Rc;

use serde_json::{Value, json};

use super::{Fabric, FabricError, Phase, Pool, VdiskNote};
use crate::id::BLOCK_BYTES;

/// Percentages at which a warning is given.
pub(super) const THRESHOLDS: [u8; 3] = [80, 90, 95];
const BYTES: u64 = BLOCK_BYTES as u64;

/// How full a pool has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolEvent {
    /// The pool's name.
    pub pool: String,
    /// The threshold that it is above now, in percent; 0: below all.
    pub percent: u8,
}

/// How full a pool is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolUsage {
    /// What data and maps may occupy.
    pub capacity: u64,
    /// What nothing occupies.
    pub free: u64,
    /// What egroups occupy.
    pub used: u64,
    /// What is in these egroups when it is decoded.
    pub decoded: u64,
    /// What of that maps refer to, as of the last count.
    pub live: u64,
    /// What waits in memory and log to be put in its place.
    pub undrained: u64,
    /// What vdisks map.
    pub mapped: u64,
    /// Lanes that find no room.
    pub full_lanes: u64,
    /// Lanes that have failed.
    pub failed_lanes: u64,
    /// Blocks and structures that did not fit their checksums.
    pub checksum_errors: u64,
    /// Segments of the logs in use, and all.
    pub log_segments: (u64, u64),
}

impl PoolUsage {
    /// How full it is.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let used = self.capacity.saturating_sub(self.free);
        u8::try_from(u128::from(used) * 100 / u128::from(self.capacity.max(1))).unwrap_or(100)
    }
}

impl Pool {
    /// How full it is.
    ///
    /// # Errors
    /// [`FabricError::Reactor`].
    pub async fn usage(&self) -> Result<PoolUsage, FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let each = self.at_lanes(lanes, |_, seat, _| async move {
            let mapped: u64 = seat.lane().state().shards.values().map(|shard| shard.mapped).sum();
            Ok((seat.lane().usage(), mapped, seat.lane().failed().is_some() || seat.problem().is_some()))
        });
        let (regions, copies) = self.free_regions();
        let mut sum = PoolUsage {
            capacity: self.capacity_blocks() * BYTES,
            free: regions * BYTES,
            ..PoolUsage::default()
        };
        for (lane, mapped, failed) in each.await? {
            sum.free += lane.free_blocks / copies * BYTES;
            sum.used += lane.used_blocks * BYTES;
            sum.decoded += lane.decoded_blocks * BYTES;
            sum.live += lane.live_blocks * BYTES;
            sum.undrained += lane.undrained_blocks * BYTES;
            sum.mapped += mapped * BYTES;
            sum.full_lanes += u64::from(lane.full);
            sum.failed_lanes += u64::from(failed);
            sum.checksum_errors += lane.checksum_errors;
            sum.log_segments.0 += lane.log_segments.0;
            sum.log_segments.1 += lane.log_segments.1;
        }
        Ok(sum)
    }

    /// The highest threshold that it is above, in percent; 0: none.
    #[must_use]
    pub fn warned_percent(&self) -> u8 {
        self.warned.get()
    }

    /// `pool_list`'s entry.
    #[must_use]
    pub fn describe(&self) -> Value {
        let catalog = self.catalog.borrow();
        json!({
            "name": self.name(),
            "uuid": self.uuid.to_string(),
            "state": "open",
            "disks": self.describe_disks(),
            "copies": self.members.borrow().newest.copies,
            "degraded": self.members.borrow().newest.degraded,
            "lanes": self.lanes(),
            "capacity_bytes": self.capacity_blocks() * BYTES,
            "containers": catalog.containers.len(),
            "vdisks": catalog.vdisks.len(),
            "snapshots": catalog.snapshots.len(),
        })
    }

    /// `vdisk_get`'s entries, by number: what each vdisk is and maps.
    ///
    /// # Errors
    /// [`FabricError::Reactor`].
    pub async fn describe_vdisks(&self, only: Option<u64>) -> Result<Vec<Value>, FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let shards = self.at_lanes(lanes, move |_, seat, _| async move {
            let state = seat.lane().state();
            let of = state.shards.iter().filter(|(shard, _)| only.is_none_or(|only| shard.vdisk() == only));
            let found: Vec<(u64, u64)> = of.map(|(shard, of)| (shard.vdisk(), of.mapped)).collect();
            drop(state);
            Ok(found)
        });
        let shards: Vec<(u64, u64)> = shards.await?.into_iter().flatten().collect();
        let catalog = self.catalog.borrow();
        let entry = |(number, note): (&u64, &VdiskNote)| {
            let mapped: u64 =
                shards.iter().filter(|(of, _)| of == number).map(|(_, blocks)| blocks * BYTES).sum();
            let origin = note.origin.and_then(|(vdisk, snapshot)| {
                let vdisk_name = catalog.vdisks.get(&vdisk)?.name.clone();
                let snapshot =
                    catalog.snapshots.values().find(|of| of.vdisk == vdisk && of.number == snapshot)?;
                Some(format!("{vdisk_name}@{}", snapshot.name))
            });
            json!({
                "name": note.name,
                "uuid": note.uuid.to_string(),
                "pool": self.name(),
                "container": catalog.containers.get(&note.container).map(|container| &container.name),
                "bytes": note.bytes,
                "block_size": note.block,
                "shards": note.lanes.len(),
                "mapped_bytes": mapped,
                "snapshots": catalog.snapshots.values().filter(|snapshot| snapshot.vdisk == *number).count(),
                "clone_of": origin,
                "state": match (note.phase, self.hidden.borrow().get(number)) {
                    (Phase::Ready, None) => "online".to_owned(),
                    (Phase::Ready, Some(problem)) => format!("offline: {problem}"),
                    (Phase::Creating, _) => "creating".to_owned(),
                    (Phase::Deleting, _) => "deleting".to_owned(),
                    (Phase::Reverting(_), _) => "reverting".to_owned(),
                },
            })
        };
        let vdisks = catalog.vdisks.iter().filter(|(number, _)| only.is_none_or(|only| only == **number));
        Ok(vdisks.map(entry).collect())
    }

    /// `vdisk_snapshot_list`'s entries.
    #[must_use]
    pub fn describe_snapshots(&self, vdisk: u64) -> Vec<Value> {
        let name = self.catalog.borrow().vdisks.get(&vdisk).map(|vdisk| vdisk.name.clone());
        let entry = |(number, note): (u64, super::SnapshotNote)| {
            json!({
                "name": note.name,
                "vdisk": name,
                "uuid": note.uuid.to_string(),
                "bytes": note.bytes,
                "created": note.created,
                "group": note.number,
                "bdev": self.shown.borrow().get(&number).map(|bdev| {
                    penstock_bdev::Bdev::shared(&**bdev).name().to_owned()
                }),
                "ready": note.phase == Phase::Ready,
            })
        };
        self.snapshots_of(vdisk).into_iter().map(entry).collect()
    }

    /// `container_list`'s entries.
    ///
    /// # Errors
    /// [`FabricError::Reactor`].
    pub async fn describe_containers(&self) -> Result<Vec<Value>, FabricError> {
        let mapped = self.mapped(false).await?;
        let catalog = self.catalog.borrow();
        let entry = |(number, note): (&u64, &super::ContainerNote)| {
            json!({
                "name": note.name,
                "pool": self.name(),
                "replication_factor": self.copies(),
                "compression": note.compression.map_or("off", |compression| compression.codec.name()),
                "compression_delay_s": note.compression.and_then(|compression| compression.delay_s),
                "limit_bytes": note.limit,
                "reserved_bytes": note.reserve,
                "mapped_bytes": mapped.get(number).copied().unwrap_or(0) * BYTES,
                "vdisks": catalog.vdisks.values().filter(|vdisk| vdisk.container == *number).count(),
            })
        };
        Ok(catalog.containers.iter().map(entry).collect())
    }
}

impl Fabric {
    /// Pools whose disks are not all there, or that could not be opened.
    #[must_use]
    pub fn incomplete(&self) -> Vec<Value> {
        let problems = self.0.problems.borrow();
        let entry = |(uuid, disks): (&uuid::Uuid, &Vec<super::Loose>)| {
            let newest = disks.iter().max_by_key(|disk| disk.superblock.generation)?;
            let states = newest.superblock.states.iter();
            let all = states.filter(|state| **state != crate::format::superblock::DiskState::Out).count();
            let state = match problems.get(uuid) {
                Some(problem) => format!("offline: {problem}"),
                None => format!("incomplete: {} of {all} disks are there", disks.len()),
            };
            Some(json!({
                "uuid": uuid.to_string(),
                "state": state,
                "disks": disks.iter().map(|disk| json!({ "bdev": disk.bdev })).collect::<Vec<_>>(),
            }))
        };
        self.0.loose.borrow().iter().filter_map(entry).collect()
    }

    /// Warns when a pool has become fuller than a threshold, once for each.
    pub(super) async fn look_at_usage(&self, pool: &Rc<Pool>) {
        let Ok(usage) = pool.usage().await else { return };
        let percent = usage.percent();
        let above = THRESHOLDS.into_iter().rfind(|threshold| percent >= *threshold).unwrap_or(0);
        let before = pool.warned.replace(above);
        if above == before {
            return;
        }
        let name = pool.name();
        if above > before {
            tracing::warn!(
                pool = name,
                percent,
                "a pool fills up: delete vdisks or snapshots, unmap, or add a disk"
            );
        } else {
            tracing::info!(pool = name, percent, "a pool has room again");
        }
        let listener = self.0.listener.borrow().clone();
        if let Some(listener) = listener {
            listener(&PoolEvent { pool: name, percent: above });
        }
    }
}
