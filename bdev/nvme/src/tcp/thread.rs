//! A path's own thread: it connects, gives each reactor its queue, keeps the controller alive, and connects again.
//!
//! ```text
//!   connect ─► serve ─ lost, reset ─► disconnect ─► wait reconnect_delay_sec ─► connect ─► serve
//!                │                        │ fast_io_fail_timeout_sec: I/O does not wait for it any more
//!                └── detach ─► gone ◄─────┴ ctrlr_loss_timeout_sec
//! ```
//!
//! Connecting and the admin queue wait (and authentication computes), so it is straight code on a thread, never on a reactor.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use futures_channel::oneshot;
use penstock_nvme_tcp::blocking::{BlockingController, BlockingError};
use penstock_nvme_tcp::controller::{ControllerConfig, Event};
use penstock_nvme_tcp::{AuthConfig, Qpair, QpairConfig, TlsKey, Transfer, Tunnel, command};
use penstock_reactor::net::{SocketOptions, TcpSocket};
use penstock_reactor::{Clock, Cx, ReactorHandle};
use penstock_spec::nvme::event::{EventResult, EventType, NoticeEvent};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::ana::AnaState;
use penstock_spec::nvmf::Nqn;

use super::disk::DiskShared;
use super::options::{LossOptions, TcpError};
use super::payload::IoPayload;
use super::report::{PathAsk, PathCondition};
use super::seat::{NewConnection, NewPath, PathNs, PathState};
use super::{hub, scan};
use crate::admin::Found;

/// How long the thread waits for events and asks at once.
const TURN: Duration = Duration::from_millis(10);
/// How long a reactor may take for a message before it counts as gone.
const REACTOR_LIMIT: Duration = Duration::from_secs(10);
/// How long a controller may take to shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
/// One attempt to connect is given this at least, in nanoseconds.
const ATTEMPT_NS_MIN: u64 = 200_000_000;
/// Between looks at states that are to pass.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Unit of CRDT1 to CRDT3.
const RETRY_DELAY_UNIT_NS: u64 = 100_000_000;

/// What a path is connected with.
#[derive(Debug, Clone)]
pub(super) struct PathConfig {
    pub(super) number: u32,
    /// The path's addresses, the first of which is tried first.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) hostnqn: Nqn,
    pub(super) hostid: [u8; 16],
    pub(super) subnqn: Nqn,
    pub(super) hdgst: bool,
    pub(super) ddgst: bool,
    pub(super) sq_flow_control: bool,
    pub(super) keep_alive_ms: u32,
    pub(super) auth: Option<Arc<AuthConfig>>,
    pub(super) tls: Option<TlsKey>,
    pub(super) io_queues: u16,
    pub(super) depth: u16,
    pub(super) connect_timeout: Duration,
    pub(super) admin_timeout: Duration,
    pub(super) loss: LossOptions,
    /// Where the first attempt fails it is tried again, as if the path had been lost.
    pub(super) keep_trying: bool,
    pub(super) reactors: Vec<ReactorHandle>,
    pub(super) clock: Clock,
}

/// Something that the control side has to do about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathEvent {
    /// Its namespaces are others, or of other lengths.
    Namespaces,
    /// It was lost for too long: it is to be detached.
    Gone,
}

/// Tells the control side of an event; called on the path's thread.
pub(super) type OnEvent = Box<dyn Fn(PathEvent) + Send>;

/// A connected controller.
struct Up {
    controller: BlockingController,
    queues: Vec<(Qpair<IoPayload>, TcpSocket, Option<Tunnel>)>,
    found: Vec<Found>,
    states: Vec<(u32, AnaState)>,
}

/// Why a path does not serve any more.
enum End {
    Detach(Option<oneshot::Sender<()>>),
    Lost(String),
}

/// What the thread holds.
pub(super) struct PathKeeper {
    config: PathConfig,
    disk: Arc<DiskShared>,
    asks: Receiver<PathAsk>,
    on_event: OnEvent,
    generation: u64,
    /// Who waits for the end of a reset.
    resets: Vec<oneshot::Sender<Result<(), String>>>,
    /// Since when each namespace is in a state that is to pass.
    transitions: Vec<(u32, u64)>,
    look_again_ns: u64,
    /// How long a state may take to pass (ANATT).
    anatt_ns: u64,
    /// The first attempt failed; the log has it.
    complained: bool,
}

/// Begins the thread; `first` is told how the first attempt ends. Where that fails the thread ends and nothing is left,
/// unless it is to keep trying.
pub(super) fn start(
    config: PathConfig,
    disk: Arc<DiskShared>,
    asks: Receiver<PathAsk>,
    new: NewPath,
    on_event: OnEvent,
    first: oneshot::Sender<Result<(), TcpError>>,
) -> std::io::Result<()> {
    let keep_trying = config.keep_trying;
    let mut keeper = PathKeeper {
        config,
        disk,
        asks,
        on_event,
        generation: 0,
        resets: Vec::new(),
        transitions: Vec::new(),
        look_again_ns: 0,
        anatt_ns: 0,
        complained: false,
    };
    let run = move || {
        let (disk, rules) = (keeper.disk.id, keeper.disk.rules);
        keeper.on_reactors(move |cx| {
            if let Err(error) = hub::install(cx, disk, rules) {
                tracing::error!(%error, "a reactor cannot take an NVMe/TCP disk");
            }
            let new = new.clone();
            hub::with_seat(cx, disk, |seat, _, _| seat.add_path(new));
        });
        match keeper.first_attempt() {
            Ok(up) => {
                if first.send(Ok(())).is_ok() {
                    keeper.run(up);
                } else {
                    keeper.leave_reactors();
                }
            }
            Err(error) if keep_trying && !matches!(error, TcpError::Differs { .. }) => {
                drop(first.send(Ok(())));
                if let Some(controller) = keeper.reconnect(&error.to_string()) {
                    keeper.run(controller);
                }
            }
            Err(error) => {
                keeper.leave_reactors();
                drop(first.send(Err(error)));
            }
        }
    };
    std::thread::Builder::new().name("nvme-tcp-admin".to_owned()).spawn(run)?;
    Ok(())
}

impl PathKeeper {
    fn first_attempt(&mut self) -> Result<BlockingController, TcpError> {
        let mut up = self.connect(u64::MAX)?;
        if let Some((nsid, Err(refusal))) =
            self.judge(&mut up.found).find(|(_, found)| matches!(found, Err(refusal) if refusal.differs()))
        {
            let (name, nsid, why) = (self.disk.name.clone(), *nsid, refusal.to_string());
            return Err(TcpError::Differs { name, nsid, why });
        }
        self.install(up)
    }

    fn run(mut self, mut controller: BlockingController) {
        loop {
            match self.serve(&mut controller) {
                End::Detach(answer) => {
                    self.leave_reactors();
                    controller.set_timeout(SHUTDOWN_LIMIT);
                    if let Err(error) = controller.shut_down() {
                        tracing::debug!(controller = self.disk.name, %error, "no orderly shutdown");
                    }
                    answer.map(|answer| answer.send(()));
                    return;
                }
                End::Lost(why) => {
                    drop(controller);
                    match self.reconnect(&why) {
                        Some(up) => controller = up,
                        None => return,
                    }
                }
            }
        }
    }

    // ---- connecting

    /// Connects to the first address that answers, within `limit_ns`.
    fn connect(&mut self, limit_ns: u64) -> Result<Up, TcpError> {
        let mut last = None;
        for _ in 0..self.config.addresses.len() {
            let Some(address) = self.config.addresses.first().copied() else { break };
            match self.connect_to(address, limit_ns) {
                Ok(up) => return Ok(up),
                Err(error) => last = Some(error),
            }
            // The next one is tried first from now on.
            self.config.addresses.rotate_left(1);
        }
        Err(last.unwrap_or_else(|| TcpError::NotFound { name: self.disk.name.clone() }))
    }

    fn connect_to(&self, address: SocketAddr, limit_ns: u64) -> Result<Up, TcpError> {
        let config = &self.config;
        let name = || self.disk.name.clone();
        let failed = |why: BlockingError| TcpError::Connect { name: name(), address, why };
        let timeout = config.connect_timeout.min(Duration::from_nanos(limit_ns.max(ATTEMPT_NS_MIN)));
        let step_timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let mut admin = QpairConfig::admin(config.hostid, config.hostnqn, config.subnqn);
        (admin.hdgst, admin.ddgst) = (config.hdgst, config.ddgst);
        (admin.kato_ms, admin.sq_flow_control) = (config.keep_alive_ms, config.sq_flow_control);
        admin.auth = config.auth.clone();
        admin.tls = config.tls.as_ref().map(|key| key.between(&config.hostnqn, &config.subnqn));
        let reactors = u16::try_from(config.reactors.len()).unwrap_or(u16::MAX);
        let io_queues = config.io_queues.max(reactors);
        let controller_config = ControllerConfig { admin, io_queues, step_timeout_ns };
        let mut controller =
            BlockingController::connect(address, controller_config, timeout).map_err(failed)?;
        let granted = controller.controller().io_queues();
        if granted < reactors {
            return Err(TcpError::Queues { name: name(), address, granted, reactors });
        }
        let found = scan::namespaces(&mut controller).map_err(failed)?;
        let states = scan::states(&mut controller, &found).map_err(failed)?;
        let mut queues = Vec::new();
        for qid in 1..=reactors {
            let queue = controller.open_io::<IoPayload>(qid, config.depth).map_err(failed)?;
            let (qpair, stream, tunnel) = queue.into_parts();
            let socket = TcpSocket::from_fd(OwnedFd::from(stream), &SocketOptions::default());
            let socket = socket.map_err(|source| failed(BlockingError::Io { addr: address, source }))?;
            queues.push((qpair, socket, tunnel));
        }
        controller.set_timeout(config.admin_timeout);
        Ok(Up { controller, queues, found, states })
    }

    /// Gives the reactors their connections, and tells the control side what there is.
    fn install(&mut self, up: Up) -> Result<BlockingController, TcpError> {
        let Up { controller, queues, mut found, states } = up;
        self.generation += 1;
        drop(self.judge(&mut found));
        let depth = queues.first().map_or(0, |(qpair, ..)| u16::try_from(qpair.depth()).unwrap_or(u16::MAX));
        let identity = scan::identity(&controller, u16::try_from(queues.len()).unwrap_or(u16::MAX), depth);
        let identify = controller.controller().identify();
        let retry_delays_ns = identify.crdt.map(|units| u64::from(units.get()) * RETRY_DELAY_UNIT_NS);
        self.anatt_ns = u64::from(identify.anatt_s).max(1) * SECOND_NS;
        let addresses = self.config.addresses.clone();
        self.with_report(|report| {
            report.condition = PathCondition::Live;
            report.addresses = addresses;
            report.identity = Some(identity);
            report.connects += 1;
        });
        self.publish(found, &states);
        let (disk, path, generation) = (self.disk.id, self.config.number, self.generation);
        let reactors = self.config.reactors.clone();
        for ((reactor, (qpair, socket, tunnel)), qid) in reactors.iter().zip(queues).zip(1..) {
            let new = NewConnection { path, generation, qid, qpair, socket, tunnel, retry_delays_ns };
            let given = on_reactor(reactor, move |cx| {
                hub::with_seat(cx, disk, |seat, sockets, now| seat.connect(new, sockets, now));
            });
            if given.is_none() {
                let (name, reactor) = (self.disk.name.clone(), reactor.id().0);
                return Err(TcpError::Reactor { name, reactor });
            }
        }
        self.complained = false;
        Ok(controller)
    }

    /// Connects again until it is there, given up, or not wanted any more.
    fn reconnect(&mut self, why: &str) -> Option<BlockingController> {
        let lost_ns = self.now_ns();
        let loss = self.config.loss;
        tracing::warn!(controller = self.disk.name, path = self.config.number, why, "a path is lost");
        self.set_condition(PathCondition::Reconnecting(why.to_owned()), PathState::Connecting);
        let mut failed = false;
        let mut due_ns = lost_ns;
        loop {
            let elapsed_ns = self.now_ns().saturating_sub(lost_ns);
            if !failed && loss.fast_io_fail_ns().is_some_and(|limit| elapsed_ns >= limit) {
                failed = true;
                self.set_condition(PathCondition::Failed(why.to_owned()), PathState::Failed);
            }
            let over = loss.loss_ns().is_some_and(|limit| elapsed_ns >= limit && due_ns > lost_ns);
            if over {
                return self.give_up(why);
            }
            if self.now_ns() >= due_ns {
                let deadlines = [loss.fast_io_fail_ns().filter(|_| !failed), loss.loss_ns()];
                let next = deadlines.into_iter().flatten().min().unwrap_or(u64::MAX);
                match self.connect(next.saturating_sub(elapsed_ns)).and_then(|up| self.install(up)) {
                    Ok(controller) => {
                        let path = self.config.number;
                        tracing::info!(controller = self.disk.name, path, "a path is back");
                        self.resets.drain(..).for_each(|answer| drop(answer.send(Ok(()))));
                        return Some(controller);
                    }
                    Err(error) => self.complain(&error),
                }
                due_ns = self.now_ns().saturating_add(loss.reconnect_delay_ns()).max(lost_ns + 1);
            }
            let wait = Duration::from_nanos(due_ns.saturating_sub(self.now_ns())).clamp(TURN / 10, TURN);
            match self.asks.recv_timeout(wait) {
                Ok(PathAsk::Detach(answer)) => {
                    self.leave_reactors();
                    answer.send(()).ok();
                    return None;
                }
                Ok(PathAsk::Reset(answer)) => {
                    self.resets.push(answer);
                    due_ns = self.now_ns();
                }
                Ok(ask) => self.change_addresses(&ask),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.leave_reactors();
                    return None;
                }
            }
        }
    }

    fn complain(&mut self, error: &TcpError) {
        let why = error.to_string();
        self.resets.drain(..).for_each(|answer| drop(answer.send(Err(why.clone()))));
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(
                controller = self.disk.name,
                path = self.config.number,
                why,
                "it cannot be connected yet"
            );
        }
    }

    /// The path was lost for too long: the control side is to take it away.
    fn give_up(&mut self, why: &str) -> Option<BlockingController> {
        tracing::error!(controller = self.disk.name, path = self.config.number, why, "a path is given up");
        self.set_condition(PathCondition::Gone, PathState::Failed);
        (self.on_event)(PathEvent::Gone);
        while let Ok(ask) = self.asks.recv() {
            match ask {
                PathAsk::Detach(answer) => {
                    self.leave_reactors();
                    answer.send(()).ok();
                    return None;
                }
                PathAsk::Reset(answer) => drop(answer.send(Err("it was given up".to_owned()))),
                _ => {}
            }
        }
        self.leave_reactors();
        None
    }

    // ---- serving

    fn serve(&mut self, controller: &mut BlockingController) -> End {
        loop {
            loop {
                match self.asks.try_recv() {
                    Ok(ask) => {
                        if let Some(end) = self.answer(ask, controller) {
                            return end;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return End::Detach(None),
                }
            }
            let done = match controller.next_event(TURN) {
                Ok(Event::Async(event)) => self.async_event(event, controller),
                Ok(_) | Err(BlockingError::Timeout { .. }) => self.look_again(controller),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                return End::Lost(error.to_string());
            }
        }
    }

    fn answer(&mut self, ask: PathAsk, controller: &mut BlockingController) -> Option<End> {
        let is_now = |generation| generation == self.generation;
        let done = match ask {
            PathAsk::Lost { generation, why } if is_now(generation) => return Some(End::Lost(why)),
            PathAsk::Silence { generation, ms } if is_now(generation) => {
                return Some(End::Lost(format!("a command had no answer for {ms} ms, nor had its abort")));
            }
            PathAsk::Abort { generation, qid, cid } if is_now(generation) => {
                self.with_report(|report| report.aborts += 1);
                controller.submit(command::abort(qid, cid), Transfer::None, 0, None).or_else(|error| {
                    // A full admin queue: the command's owner waits, or times out.
                    if matches!(error, BlockingError::Rejected(_)) { Ok(()) } else { Err(error) }
                })
            }
            PathAsk::Lost { .. } | PathAsk::Silence { .. } | PathAsk::Abort { .. } => Ok(()),
            PathAsk::AnaChanged => self.read_states(controller),
            PathAsk::NamespacesChanged => self.read_namespaces(controller),
            PathAsk::Log { lid, len, answer } => {
                let page = scan::log_page(controller, lid, len);
                let refused = matches!(page, Err(BlockingError::Command { .. }));
                let lost = page.as_ref().err().filter(|_| !refused).map(ToString::to_string);
                answer.send(page.map_err(|error| error.to_string())).ok();
                return lost.map(End::Lost);
            }
            PathAsk::Reset(answer) => {
                self.resets.push(answer);
                return Some(End::Lost("a reset was asked for".to_owned()));
            }
            PathAsk::Detach(answer) => return Some(End::Detach(Some(answer))),
            ask @ (PathAsk::AddAddress(_) | PathAsk::RemoveAddress(_)) => {
                let current = self.config.addresses.first().copied();
                self.change_addresses(&ask);
                if self.config.addresses.first().copied() != current {
                    return Some(End::Lost("its address was taken away".to_owned()));
                }
                Ok(())
            }
        };
        done.err().map(|error| End::Lost(error.to_string()))
    }

    fn change_addresses(&mut self, ask: &PathAsk) {
        let addresses = &mut self.config.addresses;
        match ask {
            PathAsk::AddAddress(address) if !addresses.contains(address) => addresses.push(*address),
            PathAsk::RemoveAddress(address) => addresses.retain(|other| other != address),
            _ => return,
        }
        let addresses = addresses.clone();
        self.with_report(|report| report.addresses = addresses);
    }

    fn async_event(
        &mut self,
        event: EventResult,
        controller: &mut BlockingController,
    ) -> Result<(), BlockingError> {
        let lid = Lid(event.lid());
        match (event.kind(), NoticeEvent(event.info())) {
            (EventType::NOTICE, NoticeEvent::ANA_CHANGE) => self.read_states(controller),
            (EventType::NOTICE, NoticeEvent::NS_ATTRIBUTE_CHANGED) => {
                scan::clear_event(controller, lid)?;
                self.read_namespaces(controller)
            }
            (kind, _) => {
                tracing::info!(
                    controller = self.disk.name,
                    path = self.config.number,
                    kind = kind.0,
                    info = event.info(),
                    "an event of a remote controller"
                );
                if lid.0 == 0 { Ok(()) } else { scan::clear_event(controller, lid) }
            }
        }
    }

    fn read_namespaces(&mut self, controller: &mut BlockingController) -> Result<(), BlockingError> {
        let mut found = scan::namespaces(controller)?;
        let states = scan::states(controller, &found)?;
        drop(self.judge(&mut found));
        self.publish(found, &states);
        Ok(())
    }

    fn read_states(&mut self, controller: &mut BlockingController) -> Result<(), BlockingError> {
        let found = self.disk.report(self.config.number).map(|report| report.namespaces).unwrap_or_default();
        let states = scan::states(controller, &found)?;
        self.publish(found, &states);
        Ok(())
    }

    /// States that are to pass, and namespaces that another path knew otherwise, are looked at again.
    fn look_again(&mut self, controller: &mut BlockingController) -> Result<(), BlockingError> {
        let now_ns = self.now_ns();
        if now_ns < self.look_again_ns {
            return Ok(());
        }
        self.look_again_ns = now_ns.saturating_add(LOOK_AGAIN_NS);
        let Some(report) = self.disk.report(self.config.number) else { return Ok(()) };
        if report.namespaces.iter().any(|(_, ns)| matches!(ns, Err(refusal) if refusal.differs())) {
            return self.read_namespaces(controller);
        }
        if report.states.iter().all(|ns| serves(ns.ana)) { Ok(()) } else { self.read_states(controller) }
    }

    // ---- telling others

    /// Holds what was found against what the other paths have; returns all of it.
    fn judge<'a>(&self, found: &'a mut [Found]) -> impl Iterator<Item = &'a Found> + use<'a> {
        for (nsid, ns) in found.iter_mut() {
            if let Ok(usable) = ns
                && let Some(refusal) = self.disk.objection(self.config.number, usable)
            {
                tracing::warn!(controller = self.disk.name, nsid, %refusal, "a namespace is not used by a path");
                *ns = Err(refusal);
            }
        }
        found.iter()
    }

    /// The path's namespaces and states are these now: for the reactors, the report, and the control side.
    fn publish(&mut self, found: Vec<Found>, states: &[(u32, AnaState)]) {
        let now_ns = self.now_ns();
        let state_of = |nsid: u32| {
            let known = states.iter().find(|(other, _)| *other == nsid);
            known.map_or(AnaState::CHANGE, |(_, state)| *state)
        };
        let usable: Vec<(u32, AnaState)> =
            found.iter().filter(|(_, ns)| ns.is_ok()).map(|(nsid, _)| (*nsid, state_of(*nsid))).collect();
        let anatt_ns = self.anatt_ns;
        let old = std::mem::take(&mut self.transitions);
        let mut namespaces = Vec::new();
        for (nsid, ana) in usable {
            let mut given_up = false;
            if !serves(ana) {
                let since = old.iter().find(|(other, _)| *other == nsid).map_or(now_ns, |(_, since)| *since);
                given_up = now_ns.saturating_sub(since) >= anatt_ns;
                self.transitions.push((nsid, since));
            }
            namespaces.push(PathNs { nsid, ana, given_up });
        }
        let mut changed = false;
        self.with_report(|report| {
            changed = report.namespaces != found;
            report.namespaces = found;
            report.states.clone_from(&namespaces);
        });
        let (disk, path) = (self.disk.id, self.config.number);
        self.on_reactors(move |cx| {
            let namespaces = namespaces.clone();
            hub::with_seat(cx, disk, |seat, _, _| seat.set_namespaces(path, namespaces));
        });
        if changed {
            (self.on_event)(PathEvent::Namespaces);
        }
    }

    fn set_condition(&mut self, condition: PathCondition, state: PathState) {
        self.with_report(|report| report.condition = condition);
        let (disk, path) = (self.disk.id, self.config.number);
        self.on_reactors(move |cx| {
            hub::with_seat(cx, disk, |seat, sockets, now| seat.disconnect(path, state, sockets, now));
        });
    }

    fn leave_reactors(&mut self) {
        let (disk, path) = (self.disk.id, self.config.number);
        self.on_reactors(move |cx| {
            hub::with_seat(cx, disk, |seat, sockets, now| seat.remove_path(path, sockets, now));
        });
        self.resets.drain(..).for_each(|answer| drop(answer.send(Err("it is being detached".to_owned()))));
    }

    fn on_reactors(&self, function: impl Fn(&Cx) + Send + Clone + 'static) {
        for reactor in &self.config.reactors {
            let function = function.clone();
            if on_reactor(reactor, move |cx| function(cx)).is_none() {
                tracing::debug!(
                    controller = self.disk.name,
                    reactor = reactor.id().0,
                    "a reactor does not answer"
                );
            }
        }
    }

    fn with_report(&self, change: impl FnOnce(&mut super::report::PathReport)) {
        self.disk.with_report(self.config.number, change);
    }

    fn now_ns(&self) -> u64 {
        self.config.clock.now().as_ns()
    }
}

fn serves(state: AnaState) -> bool {
    matches!(state, AnaState::OPTIMIZED | AnaState::NON_OPTIMIZED)
}

/// Runs a message on a reactor and waits for its end; `None` where the reactor does not answer.
fn on_reactor(reactor: &ReactorHandle, function: impl FnOnce(&Cx) + Send + 'static) -> Option<()> {
    let (done, is_done) = sync_channel(1);
    let sent = reactor.send(move |cx| {
        function(cx);
        done.try_send(()).ok();
    });
    sent.ok()?;
    is_done.recv_timeout(REACTOR_LIMIT).ok()
}
