//! A controller's own thread: it takes the device, brings it up, gives each reactor its queue, and then looks after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use futures_channel::oneshot;
use penstock_bdev::IoStatus;
use penstock_reactor::{Clock, Cx, ReactorHandle, Tick};
use penstock_spec::nvme::event::{EventResult, EventType, NoticeEvent};

use super::log::{errors_of, health_of};
use super::reset::Retry;
use super::seat::{self, Lane};
use super::{
    ASKS_MAX, Ask, AttachError, Controller, ControllerConfig, ControllerEvent, ControllerState, Identity,
    Lock, OnEvent, Report,
};
use crate::admin::{Admin, AdminError, Waiter};
use crate::command;
use crate::device::Device;
use crate::dma::Translator;
use crate::queue::{IoQueue, Notice, Notify, QueueRules, QueueStats};
use crate::ring::RingPlace;
use crate::vfio::VfioError;

/// Between looks at the health.
const HEALTH_PERIOD_NS: u64 = 60_000_000_000;
/// How long a reactor may take for a message before it counts as gone.
const REACTOR_LIMIT: Duration = Duration::from_secs(10);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The reactors' clock, and the thread's own sleep.
pub(super) struct ThreadTime(pub(super) Clock);

impl Waiter for ThreadTime {
    fn now_ns(&mut self) -> u64 {
        self.0.now().as_ns()
    }

    fn wait(&mut self, ns: u64) {
        std::thread::park_timeout(Duration::from_nanos(ns));
    }
}

/// Takes a device and brings its controller up, on a thread of its own. `open` runs there and may block.
///
/// # Errors
/// [`AttachError`]; nothing is left behind then.
pub async fn attach(
    config: ControllerConfig,
    open: impl FnOnce() -> Result<Box<dyn Device>, VfioError> + Send + 'static,
    on_event: OnEvent,
) -> Result<Arc<Controller>, AttachError> {
    let (answer, answered) = oneshot::channel();
    let address = config.address.clone();
    let lost = || AttachError::Thread { address: address.clone() };
    let run = move || match open()
        .map_err(AttachError::from)
        .and_then(|device| Keeper::attach(config, device, on_event))
    {
        Ok((keeper, controller)) => {
            if answer.send(Ok(controller)).is_ok() {
                keeper.run();
            }
        }
        Err(error) => drop(answer.send(Err(error))),
    };
    std::thread::Builder::new().name("nvme-admin".to_owned()).spawn(run).map_err(|_| lost())?;
    answered.await.map_err(|_| lost())?
}

/// What the thread holds. Fields are dropped in this order: the device last.
pub(super) struct Keeper {
    pub(super) admin: Admin,
    pub(super) controller: std::sync::Weak<Controller>,
    pub(super) id: u64,
    pub(super) name: String,
    /// Each queue, and the reactor that has it.
    pub(super) queues: Vec<(RingPlace, ReactorHandle)>,
    reactors: Vec<ReactorHandle>,
    asks: Receiver<Ask>,
    on_event: OnEvent,
    pub(super) time: ThreadTime,
    period: Duration,
    health_due_ns: u64,
    pub(super) retry: Retry,
    pub(super) io_queues_wanted: u16,
    /// When the last resets were.
    pub(super) resets: std::collections::VecDeque<u64>,
    pub(super) device: Box<dyn Device>,
}

impl Keeper {
    fn attach(
        config: ControllerConfig,
        device: Box<dyn Device>,
        on_event: OnEvent,
    ) -> Result<(Self, Arc<Controller>), AttachError> {
        let address = config.address.clone();
        let failed = |source| AttachError::Admin { address: address.clone(), source };
        let options = config.options;
        let mut time = ThreadTime(config.clock.clone());
        let translator = Translator::new(device.mappings());
        let limit_ns = options.timeout_admin_us.saturating_mul(1000);
        let mut admin = Admin::new(device.registers(), translator, limit_ns).map_err(failed)?;
        admin.stop(&mut time).map_err(failed)?;
        let reactors = u16::try_from(config.reactors.len()).unwrap_or(u16::MAX).max(1);
        let wanted = config.io_queues_max.unwrap_or(reactors).clamp(1, reactors);
        admin.start(wanted, &mut time).map_err(failed)?;
        let (ask, asks) = sync_channel(ASKS_MAX);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let mut keeper = Self {
            admin,
            controller: std::sync::Weak::new(),
            id,
            name: config.name.clone(),
            queues: Vec::new(),
            reactors: config.reactors.clone(),
            asks,
            on_event,
            time,
            period: Duration::from_micros(options.nvme_adminq_poll_period_us),
            health_due_ns: 0,
            retry: Retry::new(u64::from(options.loss.reconnect_delay_sec.max(1)) * 1_000_000_000),
            io_queues_wanted: wanted,
            resets: std::collections::VecDeque::new(),
            device,
        };
        let stats = match keeper.make_queues(&config, &ask) {
            Ok(stats) => stats,
            Err(error) => {
                keeper.leave();
                return Err(error);
            }
        };
        let namespaces = match keeper.admin.namespaces(&mut keeper.time) {
            Ok(namespaces) => namespaces,
            Err(error) => {
                keeper.leave();
                return Err(failed(error));
            }
        };
        let report = Report {
            state: ControllerState::Live,
            identity: keeper.identity(),
            health: None,
            namespaces,
            resets: 0,
            aborts: 0,
        };
        let (name, address) = (config.name, config.address);
        let controller = Arc::new(Controller { id, name, address, ask, report: Lock::new(report), stats });
        keeper.controller = Arc::downgrade(&controller);
        keeper.look_at_health();
        Ok((keeper, controller))
    }

    /// Creates the queues and gives them to the reactors; reactors beyond them get lanes to those that have one.
    fn make_queues(
        &mut self,
        config: &ControllerConfig,
        ask: &std::sync::mpsc::SyncSender<Ask>,
    ) -> Result<Vec<Arc<QueueStats>>, AttachError> {
        let count = usize::from(self.admin.io_queues().min(self.io_queues_wanted)).min(config.reactors.len());
        let mut lanes: Vec<Vec<Arc<Lane>>> = (0..count).map(|_| Vec::new()).collect();
        let mut remotes = Vec::new();
        for (index, reactor) in config.reactors.iter().enumerate().skip(count) {
            let owner = index % count.max(1);
            let lane = Lane::new();
            if let (Some(lanes), Some(owner)) = (lanes.get_mut(owner), config.reactors.get(owner)) {
                lanes.push(Arc::clone(&lane));
                remotes.push((reactor.clone(), lane, owner.clone()));
            }
        }
        let mut all = Vec::new();
        let pairs = config.reactors.iter().zip(lanes).zip(1_u16..);
        for ((reactor, lanes), qid) in pairs {
            let stats = Arc::<QueueStats>::default();
            all.push(Arc::clone(&stats));
            self.make_queue(config, (qid, reactor), (ask, stats), lanes)?;
        }
        let id = self.id;
        for (reactor, lane, owner) in remotes {
            self.on_reactor(&reactor, move |cx| seat::install_remote(cx, id, lane, owner)).ok_or_else(
                || AttachError::Reactor { address: config.address.clone(), reactor: reactor.id().0 },
            )?;
        }
        Ok(all)
    }

    fn make_queue(
        &mut self,
        config: &ControllerConfig,
        (qid, reactor): (u16, &ReactorHandle),
        (ask, stats): (&std::sync::mpsc::SyncSender<Ask>, Arc<QueueStats>),
        lanes: Vec<Arc<Lane>>,
    ) -> Result<(), AttachError> {
        let failed = |source| AttachError::Admin { address: config.address.clone(), source };
        let entries = u16::try_from(config.options.io_queue_requests.saturating_add(1)).unwrap_or(u16::MAX);
        let mut ring = self.admin.ring(qid, entries).map_err(failed)?;
        let place = ring.place();
        let shadows = self.admin.create(place, &mut self.time).map_err(failed)?;
        ring.set_shadows(shadows);
        let rules = QueueRules {
            pointers: self.admin.pointer_rules(),
            timeout_ns: config.options.timeout_us.saturating_mul(1000),
            on_timeout: config.options.action_on_timeout.into(),
            retries_max: config.options.bdev_retry_count,
            retry_delays_ns: self.admin.retry_delays_ns(),
        };
        let ask = ask.clone();
        let notify: Notify = Box::new(move |notice| {
            let ask_for = match notice {
                Notice::Abort { qid, cid } => Ask::Abort { qid, cid },
                Notice::Reset { why, .. } => Ask::Trouble(why),
            };
            ask.try_send(ask_for).is_ok()
        });
        let queue = IoQueue::new(ring, self.admin.translator(), rules, notify, stats);
        let queue = queue.ok_or_else(|| failed(AdminError::Memory))?;
        let id = self.id;
        let installed = self.on_reactor(reactor, move |cx| seat::install(cx, id, queue, lanes));
        self.queues.push((place, reactor.clone()));
        installed
            .ok_or_else(|| AttachError::Reactor { address: config.address.clone(), reactor: reactor.id().0 })
    }

    /// Runs a message on a reactor and waits for its end; `None` where the reactor does not answer.
    pub(super) fn on_reactor(
        &self,
        reactor: &ReactorHandle,
        function: impl FnOnce(&Cx) + Send + 'static,
    ) -> Option<()> {
        let (done, is_done) = sync_channel(1);
        let sent = reactor.send(move |cx| {
            function(cx);
            done.try_send(()).ok();
        });
        sent.ok()?;
        is_done.recv_timeout(REACTOR_LIMIT).ok()
    }

    /// Does something with every queue, each on its reactor.
    pub(super) fn on_queues(&self, function: impl Fn(&mut IoQueue, Tick) + Send + Clone + 'static) {
        let id = self.id;
        for (_, reactor) in &self.queues {
            let function = function.clone();
            if self
                .on_reactor(reactor, move |cx| seat::with_queue(cx, id, |queue, now| function(queue, now)))
                .is_none()
            {
                tracing::error!(
                    controller = self.name,
                    reactor = reactor.id().0,
                    "a reactor does not answer"
                );
            }
        }
    }

    fn run(mut self) {
        loop {
            match self.asks.recv_timeout(self.period) {
                Ok(Ask::Detach(answer)) => {
                    self.leave();
                    drop(self);
                    answer.send(()).ok();
                    return;
                }
                Ok(ask) => self.answer(ask),
                Err(RecvTimeoutError::Timeout) => {}
                // Queues hold senders; but where nobody has the controller any more, nobody can ask.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.controller.strong_count() == 0 {
                break;
            }
            self.look();
        }
        self.leave();
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Abort { qid, cid } => self.abort(qid, cid),
            Ask::Trouble(why) => {
                if self.state() == Some(ControllerState::Live) {
                    tracing::error!(controller = self.name, %why, "the NVMe controller is reset");
                    drop(self.reset(&why.to_string()));
                }
            }
            Ask::Reset(answer) => {
                let result = if self.state() == Some(ControllerState::Gone) {
                    Err("the device is gone".to_owned())
                } else {
                    self.resets.clear();
                    self.reset("it was asked for")
                };
                answer.send(result).ok();
            }
            Ask::Health(answer) => {
                let health = self.admin.health(&mut self.time).map(|log| health_of(&log));
                if let Ok(health) = health {
                    self.with_report(|report| report.health = Some(health));
                }
                answer.send(health.map_err(|error| error.to_string())).ok();
            }
            Ask::Errors(answer) => {
                let errors = self.admin.errors(&mut self.time).map(|page| errors_of(&page));
                answer.send(errors.map_err(|error| error.to_string())).ok();
            }
            Ask::Detach(answer) => drop(answer),
        }
    }

    /// Looks whether the controller is there and well, and what it has to tell.
    fn look(&mut self) {
        if self.state() != Some(ControllerState::Live) {
            if self.state() != Some(ControllerState::Gone) {
                match self.admin.look() {
                    Err(AdminError::Gone) => self.gone(),
                    _ => self.retry(),
                }
            }
            return;
        }
        if self.device.is_wanted_back() {
            tracing::warn!(
                controller = self.name,
                "the NVMe controller is wanted back (unplugged or unbound)"
            );
            self.gone();
            return;
        }
        let found = self.admin.look().and_then(|()| self.take_events());
        match found {
            Ok(()) => {}
            Err(AdminError::Gone) => {
                tracing::error!(controller = self.name, "the NVMe controller was removed");
                self.gone();
            }
            Err(error) => {
                tracing::error!(controller = self.name, %error, "the NVMe controller is reset");
                drop(self.reset(&error.to_string()));
            }
        }
        if self.time.now_ns() >= self.health_due_ns {
            self.look_at_health();
        }
    }

    fn take_events(&mut self) -> Result<(), AdminError> {
        while let Some(event) = self.admin.next_event()? {
            self.take_event(event)?;
        }
        Ok(())
    }

    fn take_event(&mut self, event: EventResult) -> Result<(), AdminError> {
        match (event.kind(), event.info()) {
            (EventType::NOTICE, info) if info == NoticeEvent::NS_ATTRIBUTE_CHANGED.0 => {
                // Reading the list lets the next notice come.
                match self.admin.changed(&mut self.time) {
                    Ok(_) | Err(AdminError::Refused { .. }) => {}
                    Err(error) => return Err(error),
                }
                let namespaces = self.admin.namespaces(&mut self.time)?;
                tracing::info!(
                    controller = self.name,
                    count = namespaces.len(),
                    "the namespaces have changed"
                );
                self.with_report(|report| report.namespaces = namespaces);
                (self.on_event)(ControllerEvent::Namespaces);
            }
            (EventType::SMART_HEALTH, _) => {
                self.look_at_health();
                let warning = self
                    .controller
                    .upgrade()
                    .and_then(|found| found.health())
                    .map(|health| health.critical_warning);
                tracing::warn!(controller = self.name, ?warning, "the NVMe controller warns of its health");
            }
            (EventType::ERROR, info) => {
                tracing::error!(controller = self.name, info, "the NVMe controller reports an error");
            }
            (kind, info) => {
                tracing::info!(controller = self.name, ?kind, info, "an event of the NVMe controller")
            }
        }
        Ok(())
    }

    fn abort(&mut self, qid: u16, cid: u16) {
        if self.state() != Some(ControllerState::Live) {
            return;
        }
        self.with_report(|report| report.aborts += 1);
        match self.admin.execute("Abort", command::abort(qid, cid), &mut self.time) {
            // Whether it found the command shows by the command's end.
            Ok(_) => {}
            // A controller that is full of aborts does the command's time-out no harm: the reset comes.
            Err(AdminError::Refused { status, .. }) => tracing::debug!(?status, "an abort was refused"),
            Err(error) => {
                tracing::error!(controller = self.name, %error, "the NVMe controller is reset");
                drop(self.reset(&error.to_string()));
            }
        }
    }

    fn look_at_health(&mut self) {
        self.health_due_ns = self.time.now_ns().saturating_add(HEALTH_PERIOD_NS);
        match self.admin.health(&mut self.time) {
            Ok(log) => self.with_report(|report| report.health = Some(health_of(&log))),
            Err(error) => tracing::debug!(controller = self.name, %error, "the health cannot be read"),
        }
    }

    /// The device is gone, or has to be given back: all I/O ends, and the control side hears of it.
    pub(super) fn gone(&mut self) {
        self.with_report(|report| report.state = ControllerState::Gone);
        self.on_queues(|queue, _| queue.pause());
        if self.admin.stop(&mut self.time).is_err() {
            self.device.cut_off();
        }
        self.on_queues(|queue, _| queue.end_all(IoStatus::Gone));
        (self.on_event)(ControllerEvent::Gone);
    }

    /// Shuts the controller down, where it is there, and takes it from the reactors. Nothing touches memory afterwards.
    fn leave(&mut self) {
        self.on_queues(|queue, _| queue.pause());
        let shut = match self.state() {
            Some(ControllerState::Gone) => Ok(()),
            _ => self.admin.shut_down(&mut self.time),
        };
        if let Err(error) = shut {
            tracing::warn!(controller = self.name, %error, "the NVMe controller was not shut down in good order");
        }
        if self.admin.stop(&mut self.time).is_err() {
            self.device.cut_off();
        }
        self.on_queues(|queue, _| queue.end_all(IoStatus::Gone));
        let id = self.id;
        for reactor in &self.reactors {
            if self.on_reactor(reactor, move |cx| seat::remove(cx, id)).is_none() {
                tracing::debug!(
                    controller = self.name,
                    reactor = reactor.id().0,
                    "a reactor has ended before"
                );
            }
        }
    }

    pub(super) fn state(&self) -> Option<ControllerState> {
        self.controller.upgrade().map(|controller| controller.lock().state.clone())
    }

    pub(super) fn with_report(&self, change: impl FnOnce(&mut Report)) {
        if let Some(controller) = self.controller.upgrade() {
            change(&mut controller.lock());
        }
    }

    pub(super) fn identity(&self) -> Identity {
        let identify = self.admin.identify();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches([' ', '\0']).to_owned();
        let page_bytes = 4096_u64 << self.admin.cap().mpsmin();
        Identity {
            vendor_id: format!("0x{:04x}", identify.vid.get()),
            model_number: text(&identify.mn),
            serial_number: text(&identify.sn),
            firmware_revision: text(&identify.fr),
            subnqn: text(&identify.subnqn),
            cntlid: identify.cntlid.get(),
            version: self.admin.version().to_string(),
            mdts_bytes: if identify.mdts == 0 {
                0
            } else {
                page_bytes.checked_shl(u32::from(identify.mdts)).unwrap_or(0)
            },
            io_queues: u16::try_from(self.queues.len()).unwrap_or(u16::MAX),
            io_queue_entries: self.queues.first().map_or(0, |(place, _)| place.entries),
            shadow_doorbells: self.admin.has_shadows(),
            sgl: self.admin.pointer_rules().sgl_align.is_some(),
        }
    }
}
