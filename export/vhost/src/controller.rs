//! One controller: a disk, its socket, the frontends that are connected.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::reservation::SharedReservations;
use penstock_bdev::{Descriptor, Shared};
use penstock_reactor::ReactorHandle;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::coalesce::Coalescing;
use crate::cpumask;
use crate::device::{self, CONFIG_BYTES};
use crate::exclusion::Exclusion;
use crate::session::{QueueView, Session, SessionView};
use crate::worker::WorkerCell;

/// Frontends of one controller at most: a virtual machine, the one that it moves to, and some to spare.
const SESSIONS_MAX: usize = 8;

/// How many queues each reactor serves; all controllers' together.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(crate) reactors: Vec<ReactorHandle>,
    queues: RefCell<Vec<u32>>,
}

impl Placement {
    pub(crate) fn new(reactors: Vec<ReactorHandle>) -> Self {
        let queues = RefCell::new(vec![0; reactors.len()]);
        Self { reactors, queues }
    }

    /// The one of `allowed` with the fewest queues, and one more there.
    fn place(&self, allowed: &[usize]) -> usize {
        let mut queues = self.queues.borrow_mut();
        let load = |index: &&usize| queues.get(**index).copied().unwrap_or(u32::MAX);
        let best = allowed.iter().min_by_key(load).copied().unwrap_or(0);
        if let Some(count) = queues.get_mut(best) {
            *count += 1;
        }
        best
    }

    fn displace(&self, reactor: usize) {
        if let Some(count) = self.queues.borrow_mut().get_mut(reactor) {
            *count = count.saturating_sub(1);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Controller {
    /// Unique among all that ever were.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) bdev: Arc<Shared>,
    pub(crate) read_only: bool,
    pub(crate) packed_ring: bool,
    pub(crate) coalescing: Arc<Coalescing>,
    pub(crate) exclusion: Arc<Exclusion>,
    /// The disk's, so that they live as long as a guest may be kept out by them.
    reservations: SharedReservations,
    /// Indices of the reactors that it may use.
    pub(crate) allowed: Vec<usize>,
    pub(crate) placement: Rc<Placement>,
    descriptor: RefCell<Option<Descriptor>>,
    sessions: RefCell<BTreeMap<u64, Rc<SessionView>>>,
    next_session: Rc<Cell<u64>>,
    closing: watch::Sender<bool>,
    /// Counts connections that have not ended.
    open: watch::Sender<usize>,
    /// Counts those that are closed but have requests under way.
    ending: watch::Sender<usize>,
    accepting: RefCell<Option<JoinHandle<()>>>,
}

/// What a controller is made of.
#[derive(Debug)]
pub(crate) struct ControllerConfig {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) descriptor: Descriptor,
    pub(crate) reservations: SharedReservations,
    pub(crate) read_only: bool,
    pub(crate) packed_ring: bool,
    pub(crate) allowed: Vec<usize>,
    pub(crate) placement: Rc<Placement>,
    pub(crate) next_session: Rc<Cell<u64>>,
}

impl Controller {
    /// A controller that accepts frontends on `listener`.
    pub(crate) fn start(config: ControllerConfig, listener: UnixListener) -> Rc<Self> {
        let controller = Rc::new(Self {
            id: config.id,
            name: config.name,
            path: config.path,
            bdev: Arc::clone(config.descriptor.shared()),
            read_only: config.read_only,
            packed_ring: config.packed_ring,
            coalescing: Arc::default(),
            exclusion: Arc::default(),
            reservations: config.reservations,
            allowed: config.allowed,
            placement: config.placement,
            descriptor: RefCell::new(Some(config.descriptor)),
            sessions: RefCell::default(),
            next_session: config.next_session,
            closing: watch::Sender::new(false),
            open: watch::Sender::new(0),
            ending: watch::Sender::new(0),
            accepting: RefCell::new(None),
        });
        controller.exclusion.set(&controller.reservations.borrow().view());
        let accepting = tokio::task::spawn_local(accept(Rc::clone(&controller), listener));
        *controller.accepting.borrow_mut() = Some(accepting);
        controller
    }

    /// The disk; `None` once it is gone.
    pub(crate) fn descriptor(&self) -> Option<Descriptor> {
        self.descriptor.borrow().clone()
    }

    pub(crate) fn features(&self) -> u64 {
        device::features(&self.bdev.info(), self.read_only, self.packed_ring)
    }

    pub(crate) fn config(&self, writes_back: bool) -> [u8; CONFIG_BYTES] {
        device::config(&self.bdev.info(), writes_back)
    }

    /// A reactor for one more queue.
    pub(crate) fn place(&self) -> (usize, ReactorHandle) {
        let reactor = self.placement.place(&self.allowed);
        let handle = self.reactor(reactor).unwrap_or_else(|| unreachable!("a controller has a reactor"));
        (reactor, handle)
    }

    pub(crate) fn displace(&self, reactor: usize) {
        self.placement.displace(reactor);
    }

    pub(crate) fn reactor(&self, index: usize) -> Option<ReactorHandle> {
        self.placement.reactors.get(index).cloned()
    }

    pub(crate) fn sessions_len(&self) -> usize {
        self.sessions.borrow().len()
    }

    /// Ends a connection's queues by `stopping`; [`Self::settled`] waits for it.
    pub(crate) async fn end(&self, stopping: impl Future<Output = ()>) {
        self.ending.send_modify(|ending| *ending += 1);
        stopping.await;
        self.ending.send_modify(|ending| *ending -= 1);
    }

    /// Waits until no connection that is closed has requests under way. A frontend that comes back does again what the old
    /// connection has not answered: if that were still under way, it could come after the guest's next write of the same
    /// blocks.
    pub(crate) async fn settled(&self) {
        drop(self.ending.subscribe().wait_for(|ending| *ending == 0).await);
    }

    pub(crate) fn tell_config_change(&self) {
        let sessions: Vec<_> = self.sessions.borrow().values().cloned().collect();
        sessions.iter().for_each(|session| session.tell_config_change());
    }

    /// Takes the disk's reservations over as they are now; returns when all reactors judge by them.
    pub(crate) async fn follow_reservations(&self) {
        self.exclusion.set(&self.reservations.borrow().view());
        for index in self.allowed.clone() {
            // One that is gone has no guest.
            if let Some(handle) = self.reactor(index) {
                handle.call(|_| ()).await.ok();
            }
        }
    }

    /// Lets go of a disk that is being removed: what is under way ends, what comes later fails.
    pub(crate) async fn lose_disk(&self) {
        self.descriptor.borrow_mut().take();
        let id = self.id;
        for index in self.allowed.clone() {
            let Some(handle) = self.reactor(index) else { continue };
            if let Ok(Some(closed)) = handle.call(move |cx| WorkerCell::of(cx).close(id)).await {
                closed.await.ok();
            }
        }
    }

    /// Accepts nothing more, ends all connections and waits until they have ended.
    pub(crate) async fn close(&self) {
        if let Some(accepting) = self.accepting.borrow_mut().take() {
            accepting.abort();
        }
        drop(std::fs::remove_file(&self.path));
        self.closing.send_replace(true);
        drop(self.open.subscribe().wait_for(|open| *open == 0).await);
        self.descriptor.borrow_mut().take();
    }

    /// As `vhost_get_controllers` shows it.
    pub(crate) fn report(&self) -> Value {
        let (delay_base_us, iops_threshold) = self.coalescing.get();
        let sessions: Vec<Value> = self.sessions.borrow().values().map(|view| self.session(view)).collect();
        let bdev = self.descriptor().map(|descriptor| descriptor.shared().name().to_owned());
        json!({
            "ctrlr": self.name,
            "cpumask": cpumask::mask_of(&self.placement.reactors, &self.allowed),
            "delay_base_us": delay_base_us,
            "iops_threshold": iops_threshold,
            "socket": self.path,
            "reservation_forbids": self.exclusion.name(),
            "sessions": sessions,
            "backend_specific": {
                "block": { "readonly": self.read_only, "bdev": bdev, "transport": "vhost_user_blk" }
            },
        })
    }

    fn session(&self, view: &SessionView) -> Value {
        let queue = |queue: &QueueView| {
            json!({
                "index": queue.index,
                "size": queue.size,
                "reactor": queue.reactor,
                "requests": queue.stats.requests.read(),
                "errors": queue.stats.errors.read(),
                "reservation_conflicts": queue.stats.conflicts.read(),
                "interrupts": queue.stats.signals.read(),
                "sleeps": queue.stats.arms.read(),
            })
        };
        let queues: Vec<Value> = view.queues.borrow().iter().map(queue).collect();
        json!({
            "vid": view.id,
            "id": view.id,
            "name": format!("{}s{}", self.name, view.id),
            "started": !queues.is_empty(),
            "max_queues": queues.len(),
            "features": format!("{:#x}", view.features.get()),
            "broken": view.shared.error().map(|error| error.to_string()),
            "queues": queues,
        })
    }

    /// The calls that make it again.
    pub(crate) fn config_calls(&self) -> Vec<(&'static str, Value)> {
        let Some(descriptor) = self.descriptor() else { return Vec::new() };
        let make = json!({
            "ctrlr": self.name,
            "dev_name": descriptor.shared().name(),
            "cpumask": cpumask::mask_of(&self.placement.reactors, &self.allowed),
            "readonly": self.read_only,
            "packed_ring": self.packed_ring,
            "transport": "vhost_user_blk",
        });
        let mut calls = vec![("vhost_create_blk_controller", make)];
        let (delay_base_us, iops_threshold) = self.coalescing.get();
        if delay_base_us > 0 {
            let set = json!({
                "ctrlr": self.name, "delay_base_us": delay_base_us, "iops_threshold": iops_threshold,
            });
            calls.push(("vhost_controller_set_coalescing", set));
        }
        calls
    }
}

/// Accepts frontends for as long as the controller lives.
async fn accept(controller: Rc<Controller>, listener: UnixListener) {
    /// After an error that is not the frontend's: the process has no descriptors left, say.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream.into_std(),
            Err(error) => Err(error),
        };
        let name = controller.name.as_str();
        match stream {
            Ok(_) if controller.sessions_len() >= SESSIONS_MAX => {
                tracing::warn!(controller = name, max = SESSIONS_MAX, "one frontend too many is sent away");
            }
            Ok(stream) => {
                if let Err(error) = begin(&controller, stream) {
                    tracing::warn!(controller = name, %error, "a frontend could not be served");
                }
            }
            Err(error) => {
                tracing::warn!(controller = name, %error, "a frontend could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn begin(controller: &Rc<Controller>, stream: UnixStream) -> std::io::Result<()> {
    let id = controller.next_session.get();
    controller.next_session.set(id + 1);
    let session = Session::new(Rc::clone(controller), stream, id)?;
    controller.sessions.borrow_mut().insert(id, session.view());
    controller.open.send_modify(|open| *open += 1);
    let (owner, closing) = (Rc::clone(controller), controller.closing.subscribe());
    tracing::info!(controller = controller.name, session = id, "a frontend is connected");
    tokio::task::spawn_local(async move {
        session.run(closing).await;
        owner.sessions.borrow_mut().remove(&id);
        owner.open.send_modify(|open| *open -= 1);
    });
    Ok(())
}
