//! Pools of one node, on its control thread: recognised, opened over the reactors, and what is in them as bdevs.
//!
//! ```text
//!   registry: a bdev appears ─► examine: whose disk is it? ─► all disks of a pool there ─► open lanes on the reactors
//!                                                              ─► read lane 0's notes ─► finish what a crash cut short ─► bdevs
//! ```
//!
//! Invariants: one change of a pool at a time (the daemon runs one changing method at a time); a note is durable before a lane
//! is changed for it; every lane of a pool is open before the first of them is written to.

mod background;
mod catalog;
mod compression;
mod container;
mod disks;
mod error;
mod open;
mod pool;
mod recover;
mod report;
mod seat;
mod snapshot;
mod transfer;
mod usage;
mod vdisk;
mod why;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use penstock_bdev::{Descriptor, EventKind, Registry, Subscription};
use penstock_reactor::{Cx, ReactorHandle};
use uuid::Uuid;

pub use background::PoolBackground;
pub use catalog::{
    Catalog, Change, CodecNote, CompressionNote, ContainerNote, NoteText, Phase, PoolNote, SnapshotNote,
    VdiskNote,
};
pub use compression::DELAY_MAX_S;
pub use container::ContainerOptions;
pub use disks::{AddDisk, REPAIR_MIB_DEFAULT};
pub use error::FabricError;
pub use open::NewPool;
pub use pool::Pool;
pub use report::{PoolEvent, PoolUsage};
pub use seat::Seat;
pub use snapshot::SnapshotRequest;
pub use transfer::{Export, Import};
pub use vdisk::{NewVdisk, Resize};

use crate::flow::all;
use crate::format::superblock::Superblock;
use crate::lane::WorkError;
use crate::vdisk::{Hub, Mesh, Vdisk};

/// Between looks whether containers want to be counted.
const COUNT_PERIOD: Duration = Duration::from_millis(50);
/// Looks between two looks at how full pools are.
const USAGE_LOOKS: u32 = 20;

/// A disk of a pool that is not complete.
#[derive(Debug)]
struct Loose {
    bdev: String,
    superblock: Superblock,
}

type Listener = Rc<dyn Fn(&PoolEvent)>;

struct Inner {
    mesh: Arc<Mesh>,
    registry: Registry,
    pools: RefCell<BTreeMap<Uuid, Rc<Pool>>>,
    /// Disks of pools that lack some, by pool.
    loose: RefCell<BTreeMap<Uuid, Vec<Loose>>>,
    /// Why pools could not be opened.
    problems: RefCell<BTreeMap<Uuid, String>>,
    /// Disks of pools that lack some, and for how many looks they have been the same.
    waits: RefCell<BTreeMap<Uuid, (usize, u32)>>,
    /// Pools to be opened without a disk.
    degraded: RefCell<Vec<Uuid>>,
    /// bdevs to examine.
    pending: RefCell<VecDeque<String>>,
    /// bdevs that are being made into a pool: not to be examined.
    reserved: RefCell<BTreeSet<String>>,
    examining: Cell<bool>,
    closing: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
    listener: RefCell<Option<Listener>>,
    now: Rc<dyn Fn() -> u64>,
    subscription: RefCell<Option<Subscription>>,
}

/// All pools of this node.
#[derive(Clone)]
pub struct Fabric(Rc<Inner>);

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fabric").field("pools", &self.0.pools.borrow().len()).finish_non_exhaustive()
    }
}

impl Fabric {
    /// Without pools; every bdev that is registered from now on is to be examined by [`Self::examine`]. `now` gives seconds
    /// since 1970.
    #[must_use]
    pub fn new(reactors: Vec<ReactorHandle>, registry: Registry, now: impl Fn() -> u64 + 'static) -> Self {
        let fabric = Self(Rc::new(Inner {
            mesh: Mesh::new(reactors),
            registry: registry.clone(),
            pools: RefCell::default(),
            loose: RefCell::default(),
            problems: RefCell::default(),
            waits: RefCell::default(),
            degraded: RefCell::default(),
            pending: RefCell::default(),
            reserved: RefCell::default(),
            examining: Cell::new(false),
            closing: Cell::new(false),
            wakers: RefCell::default(),
            listener: RefCell::default(),
            now: Rc::new(now),
            subscription: RefCell::default(),
        }));
        let inner = Rc::downgrade(&fabric.0);
        let subscription = registry.subscribe(move |event| {
            let Some(inner) = inner.upgrade() else { return };
            let fabric = Self(inner);
            match event.kind {
                EventKind::Registered => fabric.appeared(event.bdev.name(), event.bdev.product()),
                EventKind::Removing => fabric.disappears(event.bdev.name()),
                EventKind::Resized | EventKind::Removed => {}
            }
        });
        *fabric.0.subscription.borrow_mut() = Some(subscription);
        fabric
    }

    /// Tells `listener` how full pools become.
    pub fn set_listener(&self, listener: impl Fn(&PoolEvent) + 'static) {
        *self.0.listener.borrow_mut() = Some(Rc::new(listener));
    }

    /// Examines bdevs as they appear and closes pools whose disks go, for ever: a task of the control thread.
    pub async fn examine(self) {
        loop {
            let next = poll_fn(|cx| self.poll_next(cx.waker())).await;
            match next {
                Job::Examine(name) => {
                    if let Err(error) = self.examine_one(&name).await {
                        tracing::warn!(bdev = name, error = %chain(&error), "a bdev was not examined, or its pool not opened");
                    }
                }
                Job::OpenDegraded(uuid) => {
                    if let Err(error) = self.open_degraded(uuid).await {
                        tracing::warn!(pool = %uuid, error = %chain(&error), "a pool that lacks a disk was not opened");
                    }
                }
                Job::Close(pool) => self.close_pool(&pool).await,
            }
            self.0.examining.set(false);
            self.wake();
        }
    }

    /// Waits until every bdev that is registered has been examined.
    pub async fn examined(&self) {
        poll_fn(|cx| {
            if self.0.pending.borrow().is_empty() && !self.0.examining.get() {
                return Poll::Ready(());
            }
            self.0.wakers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Counts what limited containers have mapped, and looks how full pools are, for ever: a task of the control thread.
    /// `pause` sleeps so long, and not on a reactor: that would keep it from its rest.
    pub async fn look_after<Sleep: Future<Output = ()>>(self, pause: impl Fn(Duration) -> Sleep) {
        let mut looks = 0;
        loop {
            pause(COUNT_PERIOD).await;
            let pools: Vec<Rc<Pool>> = self.0.pools.borrow().values().cloned().collect();
            looks = (looks + 1) % USAGE_LOOKS;
            for pool in pools {
                pool.count_containers().await;
                if looks == 0 {
                    self.look_at_usage(&pool).await;
                    if let Err(error) = pool.compress_old().await {
                        tracing::warn!(pool = pool.name(), error = %chain(&error), "old data are not compressed");
                    }
                }
            }
        }
    }

    /// Closes all pools: their bdevs must be closed already.
    pub async fn shut_down(&self) {
        self.0.closing.set(true);
        let pools: Vec<Rc<Pool>> = self.0.pools.borrow().values().cloned().collect();
        for pool in pools {
            self.close_pool(&pool).await;
        }
    }

    fn wake(&self) {
        let wakers: Vec<Waker> = self.0.wakers.borrow_mut().drain(..).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn appeared(&self, name: &str, product: &'static str) {
        let ours = matches!(product, Vdisk::PRODUCT | Vdisk::SNAPSHOT_PRODUCT);
        if ours || self.0.closing.get() {
            return;
        }
        self.0.pending.borrow_mut().push_back(name.to_owned());
        self.wake();
    }

    fn disappears(&self, name: &str) {
        for disks in self.0.loose.borrow_mut().values_mut() {
            disks.retain(|disk| disk.bdev != name);
        }
        let has =
            |pool: &&Rc<Pool>| pool.disks.borrow().iter().flatten().any(|disk| disk.shared().name() == name);
        let pool = self.0.pools.borrow().values().find(has).cloned();
        if let Some(pool) = pool.filter(|pool| !pool.can_lose(name)) {
            pool.lost.set(true);
            self.wake();
        }
    }

    fn poll_next(&self, waker: &Waker) -> Poll<Job> {
        let lost = self.0.pools.borrow().values().find(|pool| pool.lost.get()).cloned();
        let job = match lost {
            Some(pool) => Some(Job::Close(pool)),
            None => {
                let next = self.0.pending.borrow_mut().pop_front().map(Job::Examine);
                next.or_else(|| self.next_degraded())
            }
        };
        match job {
            Some(job) => {
                self.0.examining.set(true);
                Poll::Ready(job)
            }
            None => {
                self.0.wakers.borrow_mut().push(waker.clone());
                Poll::Pending
            }
        }
    }
}

enum Job {
    Examine(String),
    OpenDegraded(Uuid),
    Close(Rc<Pool>),
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}

/// Runs a control flow with a disk's or a lane's mouth on a reactor.
async fn on_seat<T, F, Fut>(
    reactor: &ReactorHandle,
    mesh: &Arc<Mesh>,
    desk: u32,
    function: F,
) -> Result<T, FabricError>
where
    T: Send + 'static,
    F: FnOnce(Rc<Seat>, Cx) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, WorkError>> + 'static,
{
    let mesh = Arc::clone(mesh);
    let done = reactor.call_async(move |cx| async move {
        let seat = Hub::of(&cx, &mesh).seat(desk);
        match seat {
            Some(seat) => function(seat, cx).await,
            None => Err(WorkError::Failed(penstock_bdev::IoStatus::Gone)),
        }
    });
    Ok(done.await??)
}

/// Runs a control flow over channels of its own.
async fn on_disks<T, F, Fut>(
    reactor: &ReactorHandle,
    mesh: &Arc<Mesh>,
    disks: Vec<Descriptor>,
    function: F,
) -> Result<T, FabricError>
where
    T: Send + 'static,
    F: FnOnce(Rc<Seat>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, FabricError>> + 'static,
{
    let mesh = Arc::clone(mesh);
    let done = reactor.call_async(move |cx| async move {
        let hub = Hub::of(&cx, &mesh);
        let disks: Vec<Option<Descriptor>> = disks.into_iter().map(Some).collect();
        let seat = Seat::new(&cx, &disks, &hub, false)?;
        let outcome = function(Rc::clone(&seat)).await;
        seat.close(&cx, &hub).await;
        outcome
    });
    done.await?
}
