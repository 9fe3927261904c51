//! A pool that is open.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::{Bdev, Descriptor, Registry};
use penstock_reactor::{Cx, ReactorHandle};
use uuid::Uuid;

use super::recover::lanes_of;
use super::{Catalog, Change, FabricError, Seat, SnapshotNote, VdiskNote, all, on_seat};
use crate::alloc::Regions;
use crate::id::ShardId;
use crate::lane::WorkError;
use crate::vdisk::{Mesh, Quota, Route, Vdisk, VdiskConfig};

/// Where a lane is served.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneSeat {
    pub(super) reactor: usize,
    pub(super) desk: u32,
}

/// A pool that is open.
pub struct Pool {
    /// Its identity.
    pub uuid: Uuid,
    pub(super) mesh: Arc<Mesh>,
    pub(super) registry: Registry,
    /// By number; `None` for those that are out; empty once it is closed.
    pub(super) disks: RefCell<Vec<Option<Descriptor>>>,
    /// What the superblocks say; disks are plugged in by their numbers.
    pub(super) members: RefCell<crate::pool::Pool>,
    /// By number.
    pub(super) regions: RefCell<Vec<Arc<Regions>>>,
    /// By lane.
    pub(super) seats: RefCell<Vec<LaneSeat>>,
    pub(super) catalog: RefCell<Catalog>,
    /// bdevs of vdisks, by number.
    pub(super) vdisks: RefCell<BTreeMap<u64, Arc<Vdisk>>>,
    /// bdevs of snapshots, by number.
    pub(super) shown: RefCell<BTreeMap<u64, Arc<Vdisk>>>,
    /// Why vdisks or snapshots are not there as bdevs.
    pub(super) hidden: RefCell<BTreeMap<u64, String>>,
    /// Of containers, by number.
    pub(super) quotas: RefCell<BTreeMap<u64, Arc<Quota>>>,
    /// Where lanes ended some time ago, for compression after a delay.
    pub(super) marks: RefCell<super::compression::Marks>,
    /// Its superblocks are being written.
    pub(super) updating: Cell<bool>,
    /// A disk is going that it cannot do without.
    pub(super) lost: Cell<bool>,
    /// The highest threshold that it is above, in percent.
    pub(super) warned: Cell<u8>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl Pool {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        let catalog = self.catalog.borrow();
        catalog.pool.as_ref().map_or_else(|| self.uuid.to_string(), |pool| pool.name.clone())
    }

    /// What it keeps.
    #[must_use]
    pub fn catalog(&self) -> Catalog {
        self.catalog.borrow().clone()
    }

    /// How many lanes.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.seats.borrow().len()
    }

    fn seat(&self, lane: u16) -> Result<(ReactorHandle, u32), FabricError> {
        let closed = || FabricError::Work(WorkError::Failed(penstock_bdev::IoStatus::Gone));
        let seat = self.seats.borrow().get(usize::from(lane)).copied().ok_or_else(closed)?;
        let reactor = self.mesh.reactors().get(seat.reactor).cloned().ok_or_else(closed)?;
        Ok((reactor, seat.desk))
    }

    /// Runs a control flow at a lane.
    pub(super) async fn at_lane<T, F, Fut>(&self, lane: u16, function: F) -> Result<T, FabricError>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Seat>, Cx) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, WorkError>> + 'static,
    {
        let (reactor, desk) = self.seat(lane)?;
        on_seat(&reactor, &self.mesh, desk, function).await
    }

    /// Runs a control flow at several lanes at once; all of them end before the first error is returned.
    pub(super) async fn at_lanes<T, F, Fut>(
        &self,
        lanes: impl IntoIterator<Item = u16>,
        function: F,
    ) -> Result<Vec<T>, FabricError>
    where
        T: Send + 'static,
        F: Fn(u16, Rc<Seat>, Cx) -> Fut + Send + Clone + 'static,
        Fut: Future<Output = Result<T, WorkError>> + 'static,
    {
        let each = lanes.into_iter().map(|lane| {
            let function = function.clone();
            self.at_lane(lane, move |seat, cx| function(lane, seat, cx))
        });
        all(each).await.into_iter().collect()
    }

    /// As [`Self::at_lanes`], at those that have shards of a vdisk, each with its own.
    pub(super) async fn at_shards<T, F, Fut>(
        &self,
        number: u64,
        note: &VdiskNote,
        function: F,
    ) -> Result<Vec<T>, FabricError>
    where
        T: Send + 'static,
        F: Fn(Vec<ShardId>, Rc<Seat>) -> Fut + Send + Clone + 'static,
        Fut: Future<Output = Result<T, WorkError>> + 'static,
    {
        let shards: Vec<(u16, ShardId)> = note.shards(number).collect();
        self.at_lanes(lanes_of(note), move |lane, seat, _| {
            let of_lane = shards.iter().filter(|(of, _)| *of == lane);
            function(of_lane.map(|(_, shard)| *shard).collect(), seat)
        })
        .await
    }

    /// Makes changes of the catalog durable, then true.
    pub(super) async fn commit(&self, changes: Vec<Change>) -> Result<(), FabricError> {
        let notes = Catalog::to_notes(&changes)?;
        self.at_lane(0, move |seat, _| async move { seat.lane().put_notes(notes).await }).await?;
        self.catalog.borrow_mut().apply(changes);
        Ok(())
    }

    /// Where a vdisk's shards are served.
    fn routes(&self, number: u64, note: &VdiskNote) -> Result<Vec<Route>, FabricError> {
        let route = |(lane, shard): (u16, _)| {
            let (reactor, desk) = self.seat(lane)?;
            let reactor = u16::try_from(reactor.id().0).unwrap_or(u16::MAX);
            Ok(Route { reactor, desk, shard })
        };
        note.shards(number).map(route).collect()
    }

    pub(super) fn quota(&self, container: u64) -> Arc<Quota> {
        Arc::clone(self.quotas.borrow_mut().entry(container).or_default())
    }

    /// Makes a vdisk's bdev.
    pub(super) fn show_vdisk(&self, number: u64, note: &VdiskNote) -> Result<(), FabricError> {
        let container = self.container_name(note.container);
        let config = VdiskConfig {
            name: note.name.clone(),
            uuid: note.uuid,
            bytes: note.bytes,
            block_bytes: note.block,
            pool: self.name(),
            container,
            quota: self.quota(note.container),
            routes: self.routes(number, note)?,
            snapshot: None,
        };
        let bdev = Vdisk::new(config, &self.mesh)?;
        let alias = format!("{}/{}", self.name(), note.name);
        self.registry.register(Arc::clone(&bdev) as Arc<dyn Bdev>, &[alias])?;
        self.vdisks.borrow_mut().insert(number, bdev);
        self.hidden.borrow_mut().remove(&number);
        Ok(())
    }

    /// Makes a snapshot's bdev.
    pub(super) fn show_snapshot(&self, number: u64, note: &SnapshotNote) -> Result<String, FabricError> {
        let vdisk = self.catalog.borrow().vdisks.get(&note.vdisk).cloned();
        let Some(vdisk) = vdisk else {
            let (what, list) = ("vdisk", "vdisk_get");
            return Err(FabricError::NotFound { what, name: note.vdisk.to_string(), list });
        };
        let name = format!("{}@{}", vdisk.name, note.name);
        let config = VdiskConfig {
            name: name.clone(),
            uuid: note.uuid,
            bytes: note.bytes,
            block_bytes: vdisk.block,
            pool: self.name(),
            container: self.container_name(vdisk.container),
            quota: self.quota(vdisk.container),
            routes: self.routes(note.vdisk, &vdisk)?,
            snapshot: Some(note.number),
        };
        let bdev = Vdisk::new(config, &self.mesh)?;
        self.registry.register(Arc::clone(&bdev) as Arc<dyn Bdev>, &[])?;
        self.shown.borrow_mut().insert(number, bdev);
        self.hidden.borrow_mut().remove(&number);
        Ok(name)
    }

    fn container_name(&self, number: u64) -> String {
        let catalog = self.catalog.borrow();
        catalog.containers.get(&number).map_or_else(String::new, |container| container.name.clone())
    }
}
