//! What the daemon holds on its control thread, and how a method comes to run on it.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use penstock_bdev::reservation::{NoStore, ReservationBook, SharedStore};
use penstock_bdev::{Registry, Subscription};
use penstock_fabric::node::Fabric;
use penstock_iscsi::target::Target as IscsiTarget;
use penstock_nvme::NvmeControllers;
use penstock_nvme::tcp::TcpControllers;
use penstock_nvmf::target::Target;
use penstock_reactor::{Clock, PollMode, ReactorHandle};
use penstock_security::keyring::Keyring;
use penstock_vhost::Vhost;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::daemon::config::{Call, Calls};
use crate::daemon::events::Notes;
use crate::daemon::logging::Log;
use crate::daemon::mdns::{MdnsError, Publication};
use crate::daemon::reservations::ReservationFile;
use crate::daemon::state;
use crate::daemon::stats::Baselines;
use crate::methods;
use crate::methods::histogram::EnabledSet;
use crate::methods::transfer::Jobs;
use crate::rpc::error::{INVALID_STATE, errno};
use crate::rpc::method::{LocalFuture, Phase};
use crate::rpc::server::Service;
use crate::rpc::{Kind, RpcError, Table, wire};

/// What the daemon is made of, before it is started.
#[derive(Debug)]
pub struct Parts {
    /// The reactors.
    pub reactors: Vec<ReactorHandle>,
    /// The reactors' clock.
    pub clock: Clock,
    /// How the reactors polled when they were started.
    pub poll_mode: PollMode,
    /// The logs.
    pub log: Log,
    /// Where the live configuration is kept.
    pub state: Option<PathBuf>,
    /// Where the vhost-user sockets are.
    pub vhost_dir: PathBuf,
}

/// The daemon, on its control thread.
#[derive(Debug)]
pub struct App {
    /// The reactors.
    pub reactors: Vec<ReactorHandle>,
    /// The reactors' clock.
    pub clock: Clock,
    /// How the reactors polled when they were started.
    pub poll_mode: PollMode,
    /// The logs.
    pub log: Log,
    /// All bdevs.
    pub registry: Registry,
    /// Pools and vdisks.
    pub fabric: Fabric,
    /// NVMe controllers driven from user space.
    pub nvme: NvmeControllers,
    /// Remote NVMe controllers.
    pub remote: TcpControllers,
    /// The NVMe-oF target.
    pub target: Target,
    /// The iSCSI target.
    pub iscsi: IscsiTarget,
    /// The reservations of all bdevs.
    pub reservations: ReservationBook,
    /// Names of keys and the files that they are in.
    pub keyring: RefCell<Keyring>,
    /// The vhost-user target.
    pub vhost: Vhost,
    /// The last notifications.
    pub notes: Rc<Notes>,
    /// Imports and exports.
    pub jobs: Jobs,
    /// Since when statistics count.
    pub baselines: RefCell<Baselines>,
    /// Latency histograms that are enabled.
    pub(crate) histograms: RefCell<EnabledSet>,
    /// The methods.
    pub table: Table<Rc<Self>>,
    /// The publication of the discovery service, where it is asked for.
    mdns: RefCell<Option<Publication>>,
    state: Option<PathBuf>,
    _subscription: Subscription,
    initialised: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    /// What `penstockd --wait-for-rpc` waits for.
    start: watch::Sender<bool>,
    changing: Mutex<()>,
    /// Set while the state is restored: nothing is written then.
    restoring: Cell<bool>,
}

impl App {
    /// Puts the parts together. Nothing is initialised yet.
    #[must_use]
    pub fn new(parts: Parts) -> Rc<Self> {
        let registry = Registry::new();
        let notes = Rc::new(Notes::default());
        let recorder = Rc::clone(&notes);
        let subscription = registry.subscribe(move |event| recorder.record(event));
        let store: SharedStore = match &parts.state {
            Some(path) => Rc::new(RefCell::new(ReservationFile::beside(path))),
            None => Rc::new(RefCell::new(NoStore)),
        };
        let reservations = ReservationBook::new(store);
        let target =
            Target::with_reservations(parts.reactors.clone(), registry.clone(), reservations.clone());
        let iscsi = IscsiTarget::new(parts.reactors.clone(), registry.clone(), reservations.clone());
        let vhost =
            Vhost::new(parts.reactors.clone(), registry.clone(), reservations.clone(), parts.vhost_dir);
        let fabric =
            Fabric::new(parts.reactors.clone(), registry.clone(), crate::daemon::events::unix_seconds);
        let recorder = Rc::clone(&notes);
        fabric.set_listener(move |event| recorder.record_pool(event));
        let nvme = NvmeControllers::new(parts.reactors.clone(), parts.clock.clone(), registry.clone());
        let remote = TcpControllers::new(parts.reactors.clone(), parts.clock.clone(), registry.clone());
        Rc::new(Self {
            fabric,
            nvme,
            remote,
            target,
            iscsi,
            reservations,
            vhost,
            reactors: parts.reactors,
            clock: parts.clock,
            poll_mode: parts.poll_mode,
            log: parts.log,
            registry,
            notes,
            keyring: RefCell::default(),
            jobs: Jobs::default(),
            baselines: RefCell::default(),
            histograms: RefCell::default(),
            mdns: RefCell::default(),
            table: methods::table(),
            state: parts.state,
            _subscription: subscription,
            initialised: watch::Sender::new(false),
            stop: watch::Sender::new(false),
            start: watch::Sender::new(false),
            changing: Mutex::new(()),
            restoring: Cell::new(false),
        })
    }

    /// Whether methods that need an initialised daemon may run.
    #[must_use]
    pub fn is_initialised(&self) -> bool {
        *self.initialised.borrow()
    }

    /// Lets them run.
    pub fn set_initialised(&self) {
        self.initialised.send_replace(true);
    }

    /// Waits until they may.
    pub async fn initialised(&self) {
        // An error would say that the sender is gone; it is in `self`.
        drop(self.initialised.subscribe().wait_for(|done| *done).await);
    }

    /// Asks the daemon to initialise itself: what `--wait-for-rpc` waits for.
    pub fn ask_to_start(&self) {
        self.start.send_replace(true);
    }

    /// Waits until it is asked to.
    pub async fn asked_to_start(&self) {
        drop(self.start.subscribe().wait_for(|asked| *asked).await);
    }

    /// Asks the daemon to drain and end.
    pub fn ask_to_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Turns true when the daemon is to end.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Calls a method as a client would.
    ///
    /// # Errors
    /// What the method refuses with.
    pub async fn call(self: &Rc<Self>, name: &str, params: Value) -> Result<Value, RpcError> {
        let Some(method) = self.table.find(name) else {
            return Err(wire::unknown_method(name, self.table.iter().map(|method| method.name)));
        };
        self.check_phase(name, method.phase)?;
        if method.kind != Kind::Change {
            return method.call(Rc::clone(self), params).await;
        }
        let _one_at_a_time = self.changing.lock().await;
        let result = method.call(Rc::clone(self), params).await?;
        self.follow_mdns();
        self.save(name).await?;
        Ok(result)
    }

    /// Waits until no method changes anything, and keeps others from it: for jobs that end.
    pub(crate) async fn alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Runs a configuration's calls in order, within a change that is under way.
    ///
    /// # Errors
    /// The first call that is refused, and how; those before it stay done.
    pub async fn replay(self: &Rc<Self>, calls: &Calls) -> Result<(), (String, RpcError)> {
        for Call { method: name, params } in calls.iter() {
            let refused = |error| (name.clone(), error);
            let Some(method) = self.table.find(name) else {
                let known = self.table.iter().map(|method| method.name);
                return Err(refused(wire::unknown_method(name, known)));
            };
            if method.kind == Kind::Read || matches!(method.name, "load_config" | "spdk_kill_instance") {
                return Err(refused(RpcError::invalid_params(format!("{name} sets nothing up"))));
            }
            let params = params.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
            method.call(Rc::clone(self), params).await.map_err(refused)?;
            // A disk may have brought a pool, and that the vdisks which later calls name.
            self.fabric.examined().await;
        }
        Ok(())
    }

    /// As [`Self::replay`], at start: nothing is written meanwhile.
    ///
    /// # Errors
    /// As there.
    pub async fn restore(self: &Rc<Self>, calls: &Calls) -> Result<(), (String, RpcError)> {
        self.restoring.set(true);
        let done = self.replay(calls).await;
        self.follow_mdns();
        self.restoring.set(false);
        done
    }

    /// Whether the daemon is being set up as it was before its restart.
    pub(crate) fn is_restoring(&self) -> bool {
        self.restoring.get()
    }

    /// Publishes the discovery service by mDNS, if it is not yet.
    ///
    /// # Errors
    /// The network cannot be had for it, or the library refuses.
    pub fn publish_mdns(&self) -> Result<(), MdnsError> {
        let mut mdns = self.mdns.borrow_mut();
        if mdns.is_none() {
            let mut publication = Publication::begin()?;
            let (nqn, addrs) = self.target.discovery_service();
            publication.update(nqn.as_str(), &addrs)?;
            *mdns = Some(publication);
        }
        Ok(())
    }

    /// Ends that.
    pub fn stop_mdns(&self) {
        *self.mdns.borrow_mut() = None;
    }

    /// Whether it is published.
    pub(crate) fn publishes_mdns(&self) -> bool {
        self.mdns.borrow().is_some()
    }

    /// What is published follows the listeners.
    fn follow_mdns(&self) {
        if let Some(publication) = self.mdns.borrow_mut().as_mut() {
            let (nqn, addrs) = self.target.discovery_service();
            if let Err(error) = publication.update(nqn.as_str(), &addrs) {
                tracing::warn!(%error, "what mDNS publishes is not up to date");
            }
        }
    }

    /// Where the live configuration is kept.
    #[must_use]
    pub fn state_path(&self) -> Option<&PathBuf> {
        self.state.as_ref()
    }

    /// Writes the live configuration, where a state file was asked for.
    async fn save(self: &Rc<Self>, method: &str) -> Result<(), RpcError> {
        let Some(path) = self.state.clone().filter(|_| !self.restoring.get()) else { return Ok(()) };
        let calls = methods::config::live(self);
        let written = tokio::task::spawn_blocking(move || state::write(&path, calls)).await;
        let problem = match written {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => crate::rpc::error::chain(&error),
            Err(error) => error.to_string(),
        };
        tracing::error!(problem, "the state file was not written");
        let message = format!("{method} is done, but it will be lost at the next start: {problem}");
        Err(RpcError::new(-i64::from(errno::IO), message))
    }

    fn check_phase(&self, name: &str, phase: Phase) -> Result<(), RpcError> {
        let message = match (phase, self.is_initialised()) {
            (Phase::Startup, true) => {
                format!(
                    "{name} may only be called before initialisation; start penstockd with --wait-for-rpc"
                )
            }
            (Phase::Runtime, false) => {
                format!("{name} may only be called after initialisation; call framework_start_init first")
            }
            _ => return Ok(()),
        };
        Err(RpcError::new(INVALID_STATE, message))
    }
}

impl Service for App {
    fn call(self: Rc<Self>, method: String, params: Value) -> LocalFuture<Result<Value, RpcError>> {
        Box::pin(async move { App::call(&self, &method, params).await })
    }
}
