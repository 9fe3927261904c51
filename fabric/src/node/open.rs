//! Making, recognising, opening, closing and deleting pools.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::{Bdev, Descriptor, OpenMode};
use uuid::Uuid;

use super::pool::LaneSeat;
use super::{Change, ContainerNote, Fabric, FabricError, Loose, Pool, PoolNote, Seat, all, on_disks};
use crate::alloc::Regions;
use crate::format::superblock::{DiskState, EDGE_BLOCKS, LANES_MAX, Superblock, Tier};
use crate::id::{BLOCK_BYTES, DiskNo, LaneNo};
use crate::lane::{self, LaneOptions, LanePlace};
use crate::pool::{self, NewDisk, PoolOptions, Probe};

/// Who has the disks of a pool open, for people.
pub(super) const OWNER: &str = "pool";
/// Memory for what the lanes of a pool have not drained, in blocks.
const TABLE_BLOCKS: u32 = 1 << 16;

/// What a pool is to be made of.
#[derive(Debug, Clone)]
pub struct NewPool {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Names of bdevs. Whatever is on them is lost.
    pub bdevs: Vec<String>,
    /// Their kind.
    pub tier: Tier,
    /// How they are divided.
    pub options: PoolOptions,
    /// Disks of another pool are taken too.
    pub force: bool,
}

impl Fabric {
    /// Looks whether a bdev is a disk of a pool, and opens the pool if it is the last that was missing.
    pub(super) async fn examine_one(&self, name: &str) -> Result<(), FabricError> {
        if self.0.reserved.borrow().contains(name) || self.0.registry.find(name).is_err() {
            return Ok(());
        }
        // Somebody has it for writing: a filter stands on it, or it is exported already.
        if self.0.registry.claimed_by(name)?.is_some() {
            return Ok(());
        }
        let Some(superblock) = self.probe(name).await? else { return Ok(()) };
        let uuid = superblock.pool;
        if self.0.pools.borrow().contains_key(&uuid) {
            tracing::warn!(bdev = name, pool = %uuid, "a disk of a pool that is open already is left alone");
            return Ok(());
        }
        let complete = {
            let mut loose = self.0.loose.borrow_mut();
            let disks = loose.entry(uuid).or_default();
            disks.retain(|disk| disk.superblock.disk != superblock.disk);
            disks.push(Loose { bdev: name.to_owned(), superblock });
            let newest = disks.iter().max_by_key(|disk| disk.superblock.generation);
            newest.is_some_and(|newest| {
                let newest = &newest.superblock;
                let wanted = newest.states.iter().filter(|state| **state != DiskState::Out).count();
                let is_wanted = |disk: &&Loose| newest.state(disk.superblock.disk_no) != DiskState::Out;
                disks.iter().filter(is_wanted).count() >= wanted
            })
        };
        if !complete {
            tracing::info!(bdev = name, pool = %uuid, "a disk of a pool that lacks others");
            return Ok(());
        }
        let disks = self.0.loose.borrow_mut().remove(&uuid).unwrap_or_default();
        let bdevs: Vec<String> = disks.iter().map(|disk| disk.bdev.clone()).collect();
        let opened = self.open_pool(&bdevs).await;
        match &opened {
            Ok(_) => drop(self.0.problems.borrow_mut().remove(&uuid)),
            Err(error) => {
                self.0.problems.borrow_mut().insert(uuid, super::chain(error));
                self.0.loose.borrow_mut().insert(uuid, disks);
            }
        }
        opened.map(drop)
    }

    pub(super) async fn probe(&self, name: &str) -> Result<Option<Superblock>, FabricError> {
        let shared = Arc::clone(self.0.registry.find(name)?.shared());
        let bytes = shared.blocks().saturating_mul(u64::from(shared.block_bytes()));
        if bytes / (BLOCK_BYTES as u64) < 2 * EDGE_BLOCKS {
            return Ok(None);
        }
        let disk = self.0.registry.open(name, OpenMode::ReadOnly, "examine")?;
        let reactor = self.first()?;
        let found = on_disks(&reactor, &self.0.mesh, vec![disk], |seat| async move {
            let mut found = Vec::new();
            for (at, blocks) in seat.plugged() {
                found.push(pool::probe(seat.flow(), at, blocks).await?);
            }
            Ok(found)
        });
        Ok(match found.await?.pop() {
            Some(Probe::Member(superblock, _)) => Some(*superblock),
            Some(Probe::Blank) | None => None,
        })
    }

    pub(super) fn first(&self) -> Result<penstock_reactor::ReactorHandle, FabricError> {
        let none = || FabricError::Invalid {
            what: "node",
            name: "penstockd".into(),
            problem: "it has no reactor".into(),
        };
        self.0.mesh.reactors().first().cloned().ok_or_else(none)
    }

    /// Makes a pool and opens it.
    ///
    /// # Errors
    /// [`FabricError`]: names that are taken, disks that are in use or another pool's, too small, or too many.
    pub async fn create_pool(&self, new: &NewPool) -> Result<Rc<Pool>, FabricError> {
        let invalid =
            |problem: String| Err(FabricError::Invalid { what: "pool", name: new.name.clone(), problem });
        super::vdisk::check_name("pool", &new.name)?;
        if self.0.pools.borrow().values().any(|pool| pool.name() == new.name) {
            return Err(FabricError::Exists { what: "pool", name: new.name.clone() });
        }
        if new.options.lanes == 0 || usize::from(new.options.lanes) > LANES_MAX {
            return invalid(format!("{} lanes; give 1 to {LANES_MAX}", new.options.lanes));
        }
        if new.bdevs.is_empty() {
            return invalid("no disks; give the names of one or more bdevs".into());
        }
        self.examined().await;
        for name in &new.bdevs {
            if let Some(found) = self.probe(name).await?.filter(|_| !new.force) {
                let users = format!("pool {}", found.pool);
                let remedy = "give force to destroy what is on it";
                return Err(FabricError::InUse { what: "bdev", name: name.clone(), users, remedy });
            }
        }
        self.0.reserved.borrow_mut().extend(new.bdevs.iter().cloned());
        let made = self.make(new).await;
        self.0.reserved.borrow_mut().retain(|name| !new.bdevs.contains(name));
        made?;
        for disks in self.0.loose.borrow_mut().values_mut() {
            disks.retain(|disk| !new.bdevs.contains(&disk.bdev));
        }
        let pool = self.open_pool(&new.bdevs).await?;
        let container = ContainerNote { name: "default".into(), limit: None, reserve: 0, compression: None };
        let note = PoolNote { name: new.name.clone(), next: 2 };
        pool.commit(vec![Change::Pool(note), Change::Container(1, Some(container))]).await?;
        Ok(pool)
    }

    /// Lays the disks out: lanes first, superblocks last, so that a pool that is recognised is whole.
    async fn make(&self, new: &NewPool) -> Result<(), FabricError> {
        let mut disks = Vec::new();
        for name in &new.bdevs {
            disks.push(self.0.registry.claim(name, OWNER)?);
        }
        let (uuid, tier, options) = (new.uuid, new.tier, new.options);
        let reactor = self.first()?;
        on_disks(&reactor, &self.0.mesh, disks, move |seat| async move {
            let plugged = seat.plugged();
            let new_disk = |(at, blocks): (DiskNo, u64)| NewDisk { at, uuid: Uuid::new_v4(), blocks, tier };
            let disks: Vec<NewDisk> = plugged.into_iter().map(new_disk).collect();
            let superblocks = pool::plan(uuid, &disks, &options)?;
            let members = pool::Pool::planned(&disks, &superblocks);
            let regions = members.regions();
            for place in (0..options.lanes).filter_map(|lane| members.place(LaneNo(lane), &regions)) {
                lane::format(seat.flow(), &place).await.map_err(pool::PoolError::from)?;
            }
            for (disk, superblock) in disks.iter().zip(&superblocks) {
                pool::write_superblock(seat.flow(), disk.at, superblock)
                    .await
                    .map_err(pool::PoolError::from)?;
            }
            Ok(())
        })
        .await
    }

    /// Opens a pool whose disks these are.
    pub(super) async fn open_pool(&self, bdevs: &[String]) -> Result<Rc<Pool>, FabricError> {
        let mut disks = Vec::new();
        for name in bdevs {
            disks.push(self.0.registry.claim(name, OWNER)?);
        }
        let reactor = self.first()?;
        let found = on_disks(&reactor, &self.0.mesh, disks.clone(), |seat| async move {
            Ok(pool::open_degraded(seat.flow(), &seat.plugged()).await?)
        });
        let mut found = found.await?;
        let disks = plug_by_number(&mut found, &disks);
        let regions = found.regions();
        let lanes = found.newest.layout.lanes;
        let options = lane_options(lanes);
        let reactors = self.0.mesh.reactors().to_vec();
        let opening = (0..lanes).map(|number| {
            let place = place(&found, LaneNo(number), &regions, &disks);
            let (disks, mesh) = (disks.clone(), Arc::clone(&self.0.mesh));
            let at = usize::from(number) % reactors.len().max(1);
            let reactor = reactors.get(at).cloned();
            async move {
                let Some(place) = place else { return Err(Some(FabricError::NoHome { lane: number })) };
                let Some(reactor) = reactor else { return Err(self.first().map(drop).err()) };
                let opened = reactor.call_async(move |cx| Seat::open(cx, mesh, disks, place, options));
                match opened.await {
                    Ok(Ok(desk)) => Ok(LaneSeat { reactor: at, desk }),
                    Ok(Err(error)) => Err(Some(error)),
                    Err(error) => Err(Some(error.into())),
                }
            }
        });
        let opened = all(opening).await;
        let seats: Vec<LaneSeat> = opened.iter().filter_map(|seat| seat.as_ref().ok().copied()).collect();
        let pool = Rc::new(Pool {
            uuid: found.uuid,
            mesh: Arc::clone(&self.0.mesh),
            registry: self.0.registry.clone(),
            disks: RefCell::new(disks),
            members: RefCell::new(found),
            regions: RefCell::new(regions),
            seats: RefCell::new(seats),
            catalog: RefCell::default(),
            vdisks: RefCell::default(),
            shown: RefCell::default(),
            hidden: RefCell::default(),
            quotas: RefCell::default(),
            marks: RefCell::default(),
            updating: Cell::new(false),
            lost: Cell::new(false),
            warned: Cell::new(0),
        });
        let failed = opened.into_iter().find_map(Result::err).flatten();
        let started = match failed {
            Some(error) => Err(error),
            None => pool.start().await,
        };
        if let Err(error) = started {
            pool.close_seats().await;
            return Err(error);
        }
        tracing::info!(pool = pool.name(), lanes, vdisks = pool.vdisks.borrow().len(), "pool opened");
        self.0.pools.borrow_mut().insert(pool.uuid, Rc::clone(&pool));
        Ok(pool)
    }

    /// Closes a pool; its vdisks go first.
    pub(super) async fn close_pool(&self, pool: &Rc<Pool>) {
        self.0.pools.borrow_mut().remove(&pool.uuid);
        let shown = std::mem::take(&mut *pool.shown.borrow_mut());
        let vdisks = std::mem::take(&mut *pool.vdisks.borrow_mut());
        for bdev in shown.into_values().chain(vdisks.into_values()) {
            let name = bdev.shared().name().to_owned();
            drop(bdev);
            drop(self.0.registry.remove(&name).await);
        }
        pool.close_seats().await;
        tracing::info!(pool = pool.name(), "pool closed");
    }

    /// Closes a pool and makes its disks blank.
    ///
    /// # Errors
    /// [`FabricError::InUse`] while it has vdisks, unless `force`; what the disks say.
    pub async fn delete_pool(&self, name: &str, force: bool) -> Result<(), FabricError> {
        let pool = self.pool(Some(name))?;
        let vdisks: Vec<String> = {
            let catalog = pool.catalog.borrow();
            catalog.vdisks.values().map(|vdisk| vdisk.name.clone()).collect()
        };
        if !vdisks.is_empty() && !force {
            let remedy = "delete them first, or give force to lose them";
            let name = name.to_owned();
            return Err(FabricError::InUse { what: "pool", name, users: vdisks.join(", "), remedy });
        }
        for vdisk in &vdisks {
            pool.nobody_uses(vdisk)?;
        }
        let names: Vec<String> =
            pool.disks.borrow().iter().flatten().map(|disk| disk.shared().name().to_owned()).collect();
        let layouts: Vec<_> =
            pool.members.borrow().disks.iter().map(|(_, superblock)| superblock.layout).collect();
        self.close_pool(&pool).await;
        drop(pool);
        let mut disks = Vec::new();
        for name in &names {
            disks.push(self.0.registry.claim(name, OWNER)?);
        }
        let reactor = self.first()?;
        on_disks(&reactor, &self.0.mesh, disks, move |seat| async move {
            for ((at, _), layout) in seat.plugged().into_iter().zip(layouts) {
                pool::wipe(seat.flow(), at, &layout).await?;
            }
            Ok(())
        })
        .await
    }

    /// The pool of that name or UUID, or the only one.
    ///
    /// # Errors
    /// [`FabricError::NotFound`], [`FabricError::WhichPool`].
    pub fn pool(&self, name: Option<&str>) -> Result<Rc<Pool>, FabricError> {
        let pools = self.0.pools.borrow();
        let not_found =
            |name: &str| FabricError::NotFound { what: "pool", name: name.to_owned(), list: "pool_list" };
        match name {
            Some(name) => {
                let is_it = |pool: &&Rc<Pool>| pool.name() == name || pool.uuid.to_string() == name;
                pools.values().find(is_it).cloned().ok_or_else(|| not_found(name))
            }
            None if pools.len() > 1 => Err(FabricError::WhichPool { count: pools.len() }),
            None => pools.values().next().cloned().ok_or_else(|| not_found("at all")),
        }
    }

    /// All pools that are open.
    #[must_use]
    pub fn pools(&self) -> Vec<Rc<Pool>> {
        self.0.pools.borrow().values().cloned().collect()
    }
}

impl Pool {
    /// Lets the lanes work, reads the catalog and makes the bdevs.
    async fn start(&self) -> Result<(), FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        self.at_lanes(lanes, |_, seat, cx| async move {
            let failed = |_| lane::WorkError::Failed(penstock_bdev::IoStatus::Internal);
            seat.start(&cx).map_err(failed)
        })
        .await?;
        let notes = self.at_lane(0, |seat, _| async move {
            let notes = seat.lane().state().notes.clone();
            Ok(notes)
        });
        let catalog = super::Catalog::read(self.uuid, &notes.await?)?;
        *self.catalog.borrow_mut() = catalog;
        self.compress_all().await?;
        self.set_repair_rate(super::REPAIR_MIB_DEFAULT).await?;
        self.limit_containers().await?;
        self.recover().await
    }

    async fn close_seats(&self) {
        let seats = std::mem::take(&mut *self.seats.borrow_mut());
        let closing = seats.into_iter().map(|seat| {
            let (reactor, mesh) = (self.mesh.reactors().get(seat.reactor).cloned(), Arc::clone(&self.mesh));
            async move {
                let Some(reactor) = reactor else { return };
                let closed = reactor.call_async(move |cx| async move {
                    let hub = crate::vdisk::Hub::of(&cx, &mesh);
                    if let Some(seat) = hub.remove_seat(seat.desk) {
                        seat.close(&cx, &hub).await;
                    }
                });
                drop(closed.await);
            }
        });
        all(closing).await;
        self.disks.borrow_mut().clear();
    }
}

/// Plugs the disks of a pool in by their numbers.
fn plug_by_number(found: &mut pool::Pool, disks: &[Descriptor]) -> Vec<Option<Descriptor>> {
    let mut by_number: Vec<Option<Descriptor>> = vec![None; found.newest.disks.len()];
    for (at, superblock) in &mut found.disks {
        let plugged = disks.get(usize::from(at.0)).cloned();
        *at = superblock.disk_no;
        if let Some(place) = by_number.get_mut(usize::from(at.0)) {
            *place = plugged;
        }
    }
    by_number
}

/// Where a lane is, on disks that are plugged in by their numbers.
fn place(
    found: &pool::Pool,
    lane: LaneNo,
    regions: &[Arc<Regions>],
    disks: &[Option<Descriptor>],
) -> Option<LanePlace> {
    let mut place = found.place(lane, regions)?;
    for (disk, descriptor) in place.disks.iter_mut().zip(disks) {
        disk.write_cache = descriptor.as_ref().is_none_or(|disk| disk.shared().caps().write_cache);
    }
    Some(place)
}

/// What each of so many lanes may use.
fn lane_options(lanes: u16) -> LaneOptions {
    let lanes = u32::from(lanes.max(1));
    let share = |all: usize, least: usize, most: usize| {
        (all / usize::try_from(lanes).unwrap_or(1)).clamp(least, most)
    };
    LaneOptions {
        table_blocks: (TABLE_BLOCKS / lanes).clamp(1024, 16384),
        nodes: share(1 << 15, 1024, 8192),
        headers: share(1 << 12, 256, 1024),
        ..LaneOptions::default()
    }
}
