//! Containers: limits and reservations, and counting what their vdisks have mapped.
//!
//! What counts is what the vdisks themselves map; what only snapshots still hold is the pool's. A reservation of one container
//! is a limit for all others.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{Change, CompressionNote, ContainerNote, Fabric, FabricError, Pool};
use crate::id::{BLOCK_BYTES, ShardId};
use crate::vdisk::Quota;

/// Containers of one pool at most.
const CONTAINERS_MAX: usize = 1024;

/// What a container is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerOptions {
    /// Bytes that its vdisks may map at most; 0: as many as there are.
    pub limit: Option<u64>,
    /// Bytes that are kept for it.
    pub reserve: Option<u64>,
    /// How data are compressed: `Some(None)`: not at all from now on.
    pub compression: Option<Option<CompressionNote>>,
}

impl Fabric {
    /// Makes a container.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn create_container(
        &self,
        pool: &Rc<Pool>,
        name: &str,
        options: &ContainerOptions,
    ) -> Result<(), FabricError> {
        super::vdisk::check_name("container", name)?;
        if pool.catalog.borrow().container(name).is_some() {
            return Err(FabricError::Exists { what: "container", name: name.to_owned() });
        }
        if pool.catalog.borrow().containers.len() >= CONTAINERS_MAX {
            let problem = format!("the pool has {CONTAINERS_MAX} containers, which is the most");
            return Err(FabricError::Invalid { what: "container", name: name.to_owned(), problem });
        }
        let (number, taken) = pool.catalog.borrow().numbers(1);
        let note = ContainerNote { name: name.to_owned(), limit: None, reserve: 0, compression: None };
        let note = pool.with_options(number, note, options)?;
        pool.commit(vec![taken, Change::Container(number, Some(note))]).await?;
        pool.limit_containers().await
    }

    /// Changes a container; what is not given stays.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn set_container(
        &self,
        pool: &Rc<Pool>,
        name: &str,
        options: &ContainerOptions,
    ) -> Result<(), FabricError> {
        let (number, note) = pool.container(name)?;
        let note = pool.with_options(number, note, options)?;
        pool.commit(vec![Change::Container(number, Some(note))]).await?;
        pool.compress_container(number).await?;
        pool.limit_containers().await
    }

    /// Deletes a container without vdisks.
    ///
    /// # Errors
    /// [`FabricError::InUse`].
    pub async fn delete_container(&self, pool: &Rc<Pool>, name: &str) -> Result<(), FabricError> {
        let (number, note) = pool.container(name)?;
        let users: Vec<String> = {
            let catalog = pool.catalog.borrow();
            let of = catalog.vdisks.values().filter(|vdisk| vdisk.container == number);
            of.map(|vdisk| vdisk.name.clone()).collect()
        };
        if !users.is_empty() {
            let (users, remedy) = (users.join(", "), "delete them first");
            return Err(FabricError::InUse { what: "container", name: note.name, users, remedy });
        }
        pool.commit(vec![Change::Container(number, None)]).await?;
        pool.quotas.borrow_mut().remove(&number);
        pool.limit_containers().await
    }
}

impl Pool {
    fn container(&self, name: &str) -> Result<(u64, ContainerNote), FabricError> {
        let catalog = self.catalog.borrow();
        let found = catalog.container(name).map(|(number, note)| (number, note.clone()));
        found.ok_or_else(|| FabricError::NotFound {
            what: "container",
            name: name.to_owned(),
            list: "container_list",
        })
    }

    fn with_options(
        &self,
        number: u64,
        mut note: ContainerNote,
        options: &ContainerOptions,
    ) -> Result<ContainerNote, FabricError> {
        if let Some(limit) = options.limit {
            note.limit = (limit > 0).then_some(limit);
        }
        note.reserve = options.reserve.unwrap_or(note.reserve);
        note.compression = options.compression.unwrap_or(note.compression);
        let catalog = self.catalog.borrow();
        let others = catalog.containers.iter().filter(|(other, _)| **other != number);
        let reserved: u64 = others.map(|(_, note)| note.reserve).fold(0, u64::saturating_add);
        let capacity = self.capacity_blocks().saturating_mul(BLOCK_BYTES as u64);
        let problem = if reserved.saturating_add(note.reserve) > capacity {
            format!("the pool has {capacity} bytes, of which {reserved} are reserved; reserve less")
        } else if note.limit.is_some_and(|limit| limit < note.reserve) {
            "its limit is less than what is reserved for it".to_owned()
        } else {
            return Ok(note);
        };
        Err(FabricError::Invalid { what: "container", name: note.name, problem })
    }

    /// Blocks that data of vdisks may occupy.
    #[must_use]
    pub fn capacity_blocks(&self) -> u64 {
        self.members.borrow().capacity_blocks()
    }

    /// Blocks that the vdisks of each container map, when all that was written before is in the maps.
    pub(super) async fn mapped(&self, drain: bool) -> Result<BTreeMap<u64, u64>, FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let counts = self.at_lanes(lanes, move |_, seat, _| async move {
            if drain {
                // Without room for the drain nothing more is mapped either.
                match seat.lane().drained_so_far().await {
                    Ok(()) | Err(crate::lane::WorkError::NoSpace) => {}
                    Err(error) => return Err(error),
                }
            }
            let state = seat.lane().state();
            let counts: Vec<(ShardId, u64)> =
                state.shards.iter().map(|(shard, of)| (*shard, of.mapped)).collect();
            drop(state);
            Ok(counts)
        });
        let counts = counts.await?;
        let catalog = self.catalog.borrow();
        let mut mapped = BTreeMap::new();
        for (shard, blocks) in counts.into_iter().flatten() {
            if let Some(vdisk) = catalog.vdisks.get(&shard.vdisk()) {
                *mapped.entry(vdisk.container).or_insert(0) += blocks;
            }
        }
        Ok(mapped)
    }

    /// Whether anything is limited at all.
    fn has_limits(&self) -> bool {
        let catalog = self.catalog.borrow();
        catalog.containers.values().any(|note| note.limit.is_some() || note.reserve > 0)
    }

    /// Gives every container its credits anew: after a change of limits, or of what is there.
    pub(super) async fn limit_containers(&self) -> Result<(), FabricError> {
        let numbers: Vec<u64> = self.catalog.borrow().containers.keys().copied().collect();
        let quotas: Vec<(u64, Arc<Quota>)> =
            numbers.into_iter().map(|number| (number, self.quota(number))).collect();
        if !self.has_limits() {
            quotas.iter().for_each(|(_, quota)| quota.set(None));
            return Ok(());
        }
        // Nobody spends old credits while it is counted.
        quotas.iter().for_each(|(_, quota)| quota.begin_count());
        let mapped = match self.mapped(true).await {
            Ok(mapped) => mapped,
            Err(error) => {
                quotas.iter().for_each(|(_, quota)| quota.set(Some(0)));
                return Err(error);
            }
        };
        let catalog = self.catalog.borrow();
        let used = |number: &u64| mapped.get(number).copied().unwrap_or(0);
        let blocks = |bytes: u64| bytes / BLOCK_BYTES as u64;
        // What every container has, or has a right to.
        let held = |(number, note): (&u64, &ContainerNote)| used(number).max(blocks(note.reserve));
        let all: u64 = catalog.containers.iter().map(held).sum();
        for (number, quota) in &quotas {
            let Some(note) = catalog.containers.get(number) else { continue };
            let others = all - held((number, note));
            let most = self.capacity_blocks().saturating_sub(others);
            let most = note.limit.map_or(most, |limit| most.min(blocks(limit)));
            quota.set(Some(most.saturating_sub(used(number))));
        }
        Ok(())
    }

    /// Counts, if a limited container wants it.
    pub(super) async fn count_containers(&self) {
        // All wishes are taken: one count serves them.
        let wishes = self.quotas.borrow().values().filter(|quota| quota.take_wish()).count();
        if wishes > 0
            && let Err(error) = self.limit_containers().await
        {
            tracing::warn!(pool = self.name(), error = %super::chain(&error), "containers were not counted");
        }
    }
}
