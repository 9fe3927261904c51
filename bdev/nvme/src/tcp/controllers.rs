//! All remote controllers of the node, on the control thread: attach, detach, and keeping the bdevs what the namespaces are.
//!
//! Invariants: a name is one subsystem; a namespace is a bdev as long as a path that is not given up has it; bdevs go before
//! the last path does, so that what their users still write has a way.

mod bdevs;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use penstock_bdev::Registry;
use penstock_reactor::{Clock, ReactorHandle};
use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::nqn::UUID_PREFIX;
use serde_json::{Value, json};
use uuid::Uuid;

use super::disk::DiskShared;
use super::options::{MultipathMode, TcpAttach, TcpError};
use super::report::{ASKS_MAX, PathAsk, PathAsker, PathCondition, PathReport, PathStats};
use super::route::{MultipathOptions, PATHS_MAX};
use super::seat::{NewPath, SeatRules};
use super::thread::{self, PathConfig, PathEvent};
use super::{hub, report};
use crate::event::{self, Work};
use crate::options::NvmeOptions;

/// Remote subsystems of one node at most.
pub const PATH_DISKS_MAX: usize = 256;
/// Queues that are asked for where nothing is said.
const IO_QUEUES: u16 = 1;

/// A path, as the control thread holds it.
struct Path {
    number: u32,
    asker: PathAsker,
    /// The call's parameters, to attach it again.
    params: Value,
    /// Addresses that were added to it, each with its call's parameters.
    further: Vec<(SocketAddr, Value)>,
}

struct Entry {
    disk: Arc<DiskShared>,
    paths: Vec<Path>,
    /// By NSID, where something else than the default holds.
    options: BTreeMap<u32, MultipathOptions>,
}

struct Inner {
    registry: Registry,
    reactors: Vec<ReactorHandle>,
    clock: Clock,
    entries: RefCell<BTreeMap<String, Entry>>,
    next_id: Cell<u32>,
    /// Who we are where nothing is said.
    host: Uuid,
    sender: UnboundedSender<(String, u32, PathEvent)>,
    events: RefCell<Option<UnboundedReceiver<(String, u32, PathEvent)>>>,
}

/// All remote controllers. A handle, cheap to clone.
#[derive(Clone)]
pub struct TcpControllers(Rc<Inner>);

impl std::fmt::Debug for TcpControllers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpControllers")
            .field("count", &self.0.entries.borrow().len())
            .finish_non_exhaustive()
    }
}

/// A path of a namespace on a reactor.
#[derive(Debug, Clone)]
pub struct IoPathView {
    /// The reactor.
    pub reactor: u32,
    /// The bdev.
    pub bdev: String,
    /// Controller ID.
    pub cntlid: u16,
    /// I/O goes by it now.
    pub current: bool,
    /// It is connected.
    pub connected: bool,
    /// The namespace is optimized or non-optimized by it.
    pub accessible: bool,
    /// The namespace's state by it.
    pub ana_state: &'static str,
    /// Where it leads.
    pub trid: Value,
}

impl TcpControllers {
    /// No controllers yet.
    #[must_use]
    pub fn new(reactors: Vec<ReactorHandle>, clock: Clock, registry: Registry) -> Self {
        let (sender, events) = unbounded();
        Self(Rc::new(Inner {
            registry,
            reactors,
            clock,
            entries: RefCell::default(),
            next_id: Cell::new(1),
            host: Uuid::new_v4(),
            sender,
            events: RefCell::new(Some(events)),
        }))
    }

    /// Connects to a controller and makes bdevs of its namespaces, or adds a path to one that is there; returns the names
    /// of all its bdevs.
    ///
    /// # Errors
    /// [`TcpError`]; nothing is left behind then.
    pub async fn attach(&self, params: TcpAttach, options: &NvmeOptions) -> Result<Vec<String>, TcpError> {
        let name = params.name.clone();
        self.check(&params)?;
        let host = self.host_of(&params)?;
        let known = self.0.entries.borrow().get(&name).map(|entry| Arc::clone(&entry.disk));
        if known.is_some() && params.multipath == MultipathMode::Failover {
            self.add_address(&params);
            return Ok(self.bdev_names(&name));
        }
        let disk = known.clone().unwrap_or_else(|| {
            let rules = SeatRules {
                timeout_ns: options.timeout_us.saturating_mul(1000),
                on_timeout: options.action_on_timeout.into(),
                retries_max: options.bdev_retry_count,
            };
            let id = u64::from(self.next());
            DiskShared::new(id, name.clone(), (params.subnqn, host.0, host.1), rules)
        });
        let path = match self.connect(&disk, &params, options).await {
            Ok(path) => path,
            Err(error) => {
                if known.is_none() {
                    self.leave_reactors(&disk).await;
                }
                return Err(error);
            }
        };
        let address = params.address;
        tracing::info!(controller = name, %address, subnqn = disk.subnqn.as_str(), "an NVMe/TCP path was attached");
        {
            let mut entries = self.0.entries.borrow_mut();
            let new = || Entry { disk: Arc::clone(&disk), paths: Vec::new(), options: BTreeMap::new() };
            entries.entry(name.clone()).or_insert_with(new).paths.push(path);
        }
        match self.match_bdevs(&name) {
            Ok(names) => Ok(names),
            Err(error) if known.is_none() => {
                // Those that were registered go again.
                self.detach(&name, None).await.ok();
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one path away, or all of them with the bdevs. Waits for the bdevs' users.
    ///
    /// # Errors
    /// [`TcpError::NotFound`], [`TcpError::NoPath`].
    pub async fn detach(&self, name: &str, address: Option<SocketAddr>) -> Result<(), TcpError> {
        let Some(address) = address else { return self.detach_all(name).await };
        let no_path = || TcpError::NoPath { name: name.to_owned(), what: address.to_string() };
        let reports = self.find(name)?.reports();
        let (number, report) =
            reports.iter().find(|(_, report)| report.addresses.contains(&address)).ok_or_else(no_path)?;
        if report.addresses.len() > 1 {
            let mut entries = self.0.entries.borrow_mut();
            let paths = entries.get_mut(name).map(|entry| &mut entry.paths);
            let path = paths.and_then(|paths| paths.iter_mut().find(|path| path.number == *number));
            let path = path.ok_or_else(no_path)?;
            path.asker.ask(PathAsk::RemoveAddress(address));
            path.forget(address);
            return Ok(());
        }
        if reports.len() > 1 {
            self.detach_path(name, *number).await;
            return Ok(());
        }
        self.detach_all(name).await
    }

    async fn detach_all(&self, name: &str) -> Result<(), TcpError> {
        let disk = self.find(name)?;
        self.remove_bdevs(&disk).await;
        let numbers: Vec<u32> = disk.reports().iter().map(|(number, _)| *number).collect();
        for number in numbers {
            self.detach_path(name, number).await;
        }
        self.leave_reactors(&disk).await;
        self.0.entries.borrow_mut().remove(name);
        tracing::info!(controller = name, "an NVMe/TCP controller was detached");
        Ok(())
    }

    /// Ends a path; its I/O goes by others.
    async fn detach_path(&self, name: &str, number: u32) {
        let path = {
            let mut entries = self.0.entries.borrow_mut();
            let Some(entry) = entries.get_mut(name) else { return };
            let Some(at) = entry.paths.iter().position(|path| path.number == number) else { return };
            entry.paths.remove(at)
        };
        let (answer, answered) = oneshot::channel();
        if path.asker.ask(PathAsk::Detach(answer)) && answered.await.is_err() {
            tracing::debug!(controller = name, number, "it had ended before");
        }
        if let Ok(disk) = self.find(name) {
            disk.remove_path(number);
            if let Err(error) = self.match_bdevs(name) {
                tracing::error!(controller = name, %error, "a namespace is no bdev");
            }
        }
    }

    /// A subsystem.
    ///
    /// # Errors
    /// [`TcpError::NotFound`].
    pub fn find(&self, name: &str) -> Result<Arc<DiskShared>, TcpError> {
        let entries = self.0.entries.borrow();
        let found = entries.get(name).map(|entry| Arc::clone(&entry.disk));
        found.ok_or_else(|| TcpError::NotFound { name: name.to_owned() })
    }

    /// All subsystems, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<DiskShared>> {
        self.0.entries.borrow().values().map(|entry| Arc::clone(&entry.disk)).collect()
    }

    /// Connects a subsystem's paths anew, or the one with that controller ID. I/O waits, or takes another path.
    ///
    /// # Errors
    /// [`TcpError::NotFound`], [`TcpError::NoPath`]; [`TcpError::Reset`] with the first that did not come back at once.
    pub async fn reset(&self, name: &str, cntlid: Option<u16>) -> Result<(), TcpError> {
        let disk = self.find(name)?;
        let is_it = |report: &PathReport| {
            cntlid.is_none() || report.identity.as_ref().map(|identity| identity.cntlid) == cntlid
        };
        let numbers: Vec<u32> = disk
            .reports()
            .into_iter()
            .filter(|(_, report)| is_it(report))
            .map(|(number, _)| number)
            .collect();
        if numbers.is_empty() {
            let what = format!("a controller {}", cntlid.unwrap_or_default());
            return Err(TcpError::NoPath { name: name.to_owned(), what });
        }
        for number in numbers {
            let (answer, answered) = oneshot::channel();
            let asked = self.with_path(name, number, |path| path.asker.ask(PathAsk::Reset(answer)));
            let done = match asked {
                Some(true) => answered.await.unwrap_or_else(|_| Err("it is being detached".to_owned())),
                _ => Err("it has too much to do; try again".to_owned()),
            };
            done.map_err(|problem| TcpError::Reset { name: name.to_owned(), problem })?;
        }
        Ok(())
    }

    /// Parameters of the calls that attach all of them again.
    #[must_use]
    pub fn configs(&self) -> Vec<Value> {
        let entries = self.0.entries.borrow();
        let paths = entries.values().flat_map(|entry| &entry.paths);
        paths
            .flat_map(|path| {
                std::iter::once(&path.params).chain(path.further.iter().map(|(_, params)| params)).cloned()
            })
            .collect()
    }

    /// Does what paths' events ask for. For the control thread to run as a task of its own; a second one does nothing.
    pub fn look_after(&self) -> impl Future<Output = ()> + 'static {
        let events = self.0.events.borrow_mut().take();
        let this = self.clone();
        async move {
            if let Some(events) = events {
                event::take_all(events, |(name, number, event)| this.take_event(&name, number, event)).await;
            }
        }
    }

    /// Detaches all: the end of the daemon.
    pub async fn shut_down(&self) {
        let names: Vec<String> = self.0.entries.borrow().keys().cloned().collect();
        for name in names {
            self.detach(&name, None).await.ok();
        }
    }

    /// What cannot be done at once comes back as work.
    fn take_event(&self, name: &str, number: u32, event: PathEvent) -> Option<Work> {
        let this = self.clone();
        let name = name.to_owned();
        match event {
            PathEvent::Namespaces => self.follow_namespaces(&name),
            PathEvent::Gone => Some(Box::pin(async move {
                let last = this.find(&name).is_ok_and(|disk| disk.reports().len() == 1);
                if last {
                    drop(this.detach_all(&name).await);
                } else {
                    this.detach_path(&name, number).await;
                }
            })),
        }
    }

    /// Starts a path's thread and waits for its first connection.
    async fn connect(
        &self,
        disk: &Arc<DiskShared>,
        params: &TcpAttach,
        options: &NvmeOptions,
    ) -> Result<Path, TcpError> {
        let number = self.next();
        let (ask, asks) = sync_channel(ASKS_MAX);
        let asker = PathAsker::new(ask);
        let stats = Arc::<PathStats>::default();
        let config = PathConfig {
            number,
            addresses: vec![params.address],
            hostnqn: disk.hostnqn,
            hostid: disk.hostid,
            subnqn: disk.subnqn,
            hdgst: params.hdgst,
            ddgst: params.ddgst,
            sq_flow_control: params.sq_flow_control,
            keep_alive_ms: options.keep_alive_timeout_ms,
            auth: params.auth.clone(),
            tls: params.tls.clone(),
            io_queues: params.num_io_queues.unwrap_or(IO_QUEUES),
            depth: u16::try_from(options.io_queue_requests).unwrap_or(u16::MAX),
            connect_timeout: params.connect_timeout,
            admin_timeout: Duration::from_micros(options.timeout_admin_us),
            loss: params.loss,
            keep_trying: params.keep_trying,
            reactors: self.0.reactors.clone(),
            clock: self.0.clock.clone(),
        };
        disk.add_path(
            number,
            PathReport {
                condition: PathCondition::Connecting,
                addresses: config.addresses.clone(),
                identity: None,
                namespaces: Vec::new(),
                states: Vec::new(),
                connects: 0,
                aborts: 0,
                stats: Arc::clone(&stats),
            },
        );
        let (sender, named) = (self.0.sender.clone(), disk.name.clone());
        let on_event: thread::OnEvent = Box::new(move |event| {
            // The daemon is ending where nobody listens.
            sender.unbounded_send((named.clone(), number, event)).ok();
        });
        let (first, attempted) = oneshot::channel();
        let new = NewPath { number, asker: asker.clone(), stats };
        let lost = || TcpError::Thread { name: disk.name.clone() };
        let started = thread::start(config, Arc::clone(disk), asks, new, on_event, first);
        let done = match started {
            Ok(()) => attempted.await.unwrap_or_else(|_| Err(lost())),
            Err(_) => Err(lost()),
        };
        if let Err(error) = done {
            disk.remove_path(number);
            return Err(error);
        }
        Ok(Path { number, asker, params: with_host(params, disk), further: Vec::new() })
    }

    /// Gives the first path another address.
    fn add_address(&self, params: &TcpAttach) {
        let mut entries = self.0.entries.borrow_mut();
        let Some(entry) = entries.get_mut(&params.name) else { return };
        let saved = with_host(params, &entry.disk);
        if let Some(path) = entry.paths.first_mut() {
            path.asker.ask(PathAsk::AddAddress(params.address));
            path.further.push((params.address, saved));
        }
    }

    fn check(&self, params: &TcpAttach) -> Result<(), TcpError> {
        let name = || params.name.clone();
        let invalid =
            |parameter, problem: String| Err(TcpError::Invalid { name: name(), parameter, problem });
        if params.name.is_empty() || params.name.len() > 200 {
            return invalid("name", "must have 1 to 200 bytes".to_owned());
        }
        if params.subnqn.is_discovery() {
            return invalid("subnqn", "is the discovery service's, which has no namespaces".to_owned());
        }
        if let Err((parameter, problem)) = params.loss.check() {
            return invalid(parameter, problem);
        }
        if params.num_io_queues == Some(0) {
            return invalid("num_io_queues", "is 0; it must be 1 or more".to_owned());
        }
        let entries = self.0.entries.borrow();
        let Some(entry) = entries.get(&params.name) else {
            let full = entries.len() >= PATH_DISKS_MAX;
            let error = TcpError::Full { name: name(), what: "controllers", max: PATH_DISKS_MAX };
            return if full { Err(error) } else { Ok(()) };
        };
        if params.multipath == MultipathMode::Disable {
            return Err(TcpError::NameTaken { name: name() });
        }
        if entry.disk.subnqn.as_str() != params.subnqn.as_str() {
            let problem = format!("is not that of the controller, {}", entry.disk.subnqn.as_str());
            return invalid("subnqn", problem);
        }
        if params.hostnqn.is_some_and(|nqn| nqn.as_str() != entry.disk.hostnqn.as_str()) {
            let problem = format!("is not that of the first path, {}", entry.disk.hostnqn.as_str());
            return invalid("hostnqn", problem);
        }
        let reports = entry.disk.reports();
        if reports.iter().any(|(_, report)| report.addresses.contains(&params.address)) {
            return Err(TcpError::PathTaken { name: name(), address: params.address });
        }
        let count: usize = reports.iter().map(|(_, report)| report.addresses.len()).sum();
        if count >= PATHS_MAX {
            return Err(TcpError::Full { name: name(), what: "paths", max: PATHS_MAX });
        }
        Ok(())
    }

    /// Host NQN and identifier, made of each other or of this daemon's own where they are not given.
    fn host_of(&self, params: &TcpAttach) -> Result<(Nqn, [u8; 16]), TcpError> {
        let made = match (&params.hostnqn, params.hostid) {
            (_, Some(id)) => Uuid::from_bytes(id),
            (Some(nqn), None) => {
                let text = nqn.as_str();
                let inside = text.strip_prefix(UUID_PREFIX).and_then(|text| Uuid::parse_str(text).ok());
                inside.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()))
            }
            (None, None) => self.0.host,
        };
        let nqn = match params.hostnqn {
            Some(nqn) => nqn,
            None => {
                Nqn::parse(format!("{UUID_PREFIX}{made}").as_bytes()).map_err(|error| TcpError::Invalid {
                    name: params.name.clone(),
                    parameter: "hostid",
                    problem: error.to_string(),
                })?
            }
        };
        Ok((nqn, made.into_bytes()))
    }

    async fn leave_reactors(&self, disk: &DiskShared) {
        let id = disk.id;
        for reactor in &self.0.reactors {
            drop(reactor.call(move |cx| hub::remove(cx, id)).await);
        }
    }

    fn with_path<R>(&self, name: &str, number: u32, function: impl FnOnce(&mut Path) -> R) -> Option<R> {
        let mut entries = self.0.entries.borrow_mut();
        let path = entries.get_mut(name)?.paths.iter_mut().find(|path| path.number == number)?;
        Some(function(path))
    }

    fn next(&self) -> u32 {
        let next = self.0.next_id.get();
        self.0.next_id.set(next.wrapping_add(1));
        next
    }
}

impl Path {
    /// An address of the path is gone; the call that attached it comes from the next one.
    fn forget(&mut self, address: SocketAddr) {
        let before = self.further.len();
        self.further.retain(|(other, _)| *other != address);
        if self.further.len() == before && before > 0 {
            self.params = self.further.remove(0).1;
        }
    }
}

/// The call's parameters with host NQN and identifier, so that the next daemon is the same host.
fn with_host(params: &TcpAttach, disk: &DiskShared) -> Value {
    let mut saved = params.params.clone();
    if let Some(members) = saved.as_object_mut() {
        members.insert("hostnqn".to_owned(), json!(disk.hostnqn.as_str()));
        members.insert("hostid".to_owned(), json!(Uuid::from_bytes(disk.hostid).to_string()));
    }
    saved
}

/// The controller that a path leads to; 0 before it was connected.
fn cntlid_of(report: &report::PathReport) -> u16 {
    report.identity.as_ref().map_or(0, |identity| identity.cntlid)
}
