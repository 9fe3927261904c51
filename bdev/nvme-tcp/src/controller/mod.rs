//! A controller as its host sees it: the admin queue, brought up and kept alive (Base 3.5, 3.9, 5.2.2).
//!
//! ```text
//! Connect ─▶ CAP ─▶ VS ─▶ CC.EN=1 ─▶ CSTS until RDY ─▶ Identify ─▶ queues ─▶ events ─▶ Live
//! Live ─▶ CC.SHN ─▶ CSTS until complete ─▶ Closed
//! ```
//!
//! Commands of the bring-up, keep-alives and asynchronous event requests are the machine's own; in `Live`
//! its owner submits others. Time is what the caller says it is, in nanoseconds from any origin.

mod error;
#[cfg(test)]
mod tests;

pub use error::ControllerError;

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_security::psk::TlsPsk;
use penstock_spec::nvme::event::{EventConfig, EventResult};
use penstock_spec::nvme::feature::{Fid, NumberOfQueues};
use penstock_spec::nvme::identify::controller::ControllerType;
use penstock_spec::nvme::identify::{Cns, IDENTIFY_LEN, IdentifyController};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::{Cqe, Sqe};
use penstock_spec::nvmf::property::{
    Cap, Cc, Csts, PropertySize, ShutdownNotification, ShutdownStatus, Vs, offset,
};
use zerocopy::FromBytes;

use crate::command;
use crate::error::QpairError;
use crate::qpair::{Completion, Qpair, QpairConfig, QpairState, Rejected, Transfer};

/// The most Asynchronous Event Requests that are kept outstanding.
pub const AERS_MAX: u8 = 4;

/// How often CSTS is read while the controller is not there yet, in nanoseconds.
const CSTS_PERIOD_NS: u64 = 10_000_000;

/// Identify command capsules have 64 bytes before their data (IOCCSZ counts both).
const SQE_LEN: u32 = 64;

/// What a controller is connected with.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// The admin queue, with host and subsystem NQN, keep-alive timeout and digests.
    pub admin: QpairConfig,
    /// I/O queues to ask for, 1..=65535; the controller may grant fewer.
    pub io_queues: u16,
    /// Limit of every step of the bring-up, nanoseconds.
    pub step_timeout_ns: u64,
}

/// Something that the owner of a controller should know.
#[derive(Debug)]
pub enum Event {
    /// The controller is up: I/O queues may be opened and commands submitted.
    Live,
    /// An asynchronous event came; the log page that it names tells more and rearms it.
    Async(EventResult),
    /// A command that was given to `submit` is through.
    Command {
        /// What `submit` was given.
        user: u32,
        /// Its completion.
        cqe: Cqe,
        /// Its data.
        data: Option<Box<[u8]>>,
    },
    /// The shutdown that was asked for is complete: the socket may be closed.
    ShutDown,
    /// The controller is lost; nothing more will come.
    Lost(ControllerError),
}

/// Where the machine is. Every step but `Live` and `Closed` waits for one completion, which moves it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connect,
    ReadCap,
    ReadVs,
    Enable,
    AwaitReady,
    Identify,
    SetQueues,
    SetEvents,
    Live,
    Shutdown,
    AwaitShutdown,
    Closed,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Connect => "Connect",
            Self::ReadCap => "Property Get of CAP",
            Self::ReadVs => "Property Get of VS",
            Self::Enable => "Property Set of CC (enable)",
            Self::AwaitReady => "Property Get of CSTS (ready)",
            Self::Identify => "Identify Controller",
            Self::SetQueues => "Set Features (Number of Queues)",
            Self::SetEvents => "Set Features (Asynchronous Event Configuration)",
            Self::Live => "Keep Alive",
            Self::Shutdown => "Property Set of CC (shutdown)",
            Self::AwaitShutdown => "Property Get of CSTS (shutdown)",
            Self::Closed => "nothing",
        }
    }
}

/// Who a completion of the admin queue is for: the upper half of `user`.
mod tag {
    pub(super) const STEP: u64 = 1 << 32;
    pub(super) const KEEP_ALIVE: u64 = 2 << 32;
    pub(super) const AER: u64 = 3 << 32;
}

/// The admin queue of a controller, as a state machine.
#[derive(Debug)]
pub struct Controller {
    config: ControllerConfig,
    qpair: Qpair<Box<[u8]>>,
    step: Step,
    cap: Cap,
    vs: Vs,
    identify: Box<IdentifyController>,
    io_queues: u16,
    step_since_ns: Option<u64>,
    csts_due_ns: Option<u64>,
    keep_alive_due_ns: Option<u64>,
    keep_alive_sent_ns: Option<u64>,
    events: VecDeque<Event>,
}

impl Controller {
    /// A machine whose first bytes are ready to be sent.
    #[must_use]
    pub fn new(mut config: ControllerConfig) -> Self {
        config.admin.qid = 0;
        config.admin.depth = config.admin.depth.max(u16::from(AERS_MAX) + 4);
        Self {
            qpair: Qpair::new(config.admin.clone()),
            step: Step::Connect,
            cap: Cap(0),
            vs: Vs(0),
            identify: Box::new(IdentifyController::default()),
            io_queues: config.io_queues.max(1),
            step_since_ns: None,
            csts_due_ns: None,
            keep_alive_due_ns: None,
            keep_alive_sent_ns: None,
            events: VecDeque::new(),
            config,
        }
    }

    /// Moves the machine on with what has been received and with the time; returns one event at a time.
    /// Call it after every `recv` and when [`Self::next_timer_ns`] is due, until it returns `None`.
    pub fn poll(&mut self, now_ns: u64) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.step == Step::Closed {
            return None;
        }
        if let Err(error) = self.advance(now_ns) {
            self.step = Step::Closed;
            self.qpair.close();
            while let Some(completion) = self.qpair.abandon() {
                self.hand_back(completion);
            }
            self.events.push_back(Event::Lost(error));
        }
        self.events.pop_front()
    }

    /// Gives an admin command to a live controller. `user` comes back with its completion.
    ///
    /// # Errors
    /// The command is handed back: not live, full, or the data is too short.
    pub fn submit(
        &mut self,
        sqe: Sqe,
        transfer: Transfer,
        user: u32,
        data: Option<Box<[u8]>>,
    ) -> Result<u16, Rejected<Box<[u8]>>> {
        if self.step != Step::Live {
            return Err(Rejected { payload: data, reason: crate::qpair::RejectReason::NotLive });
        }
        self.qpair.submit(sqe, transfer, u64::from(user), data)
    }

    /// Starts a normal shutdown of a live controller; ends with [`Event::ShutDown`].
    pub fn shut_down(&mut self, now_ns: u64) {
        if self.step == Step::Live {
            let cc = self.cc().with_shn(ShutdownNotification::NORMAL.0);
            self.enter(Step::Shutdown, command::property_set(offset::CC, cc.0), Transfer::None, None, now_ns);
        }
    }

    /// Takes bytes from the socket.
    ///
    /// # Errors
    /// The connection is over, which the next [`Self::poll`] also tells as [`Event::Lost`].
    pub fn recv(&mut self, bytes: &[u8]) -> Result<(), QpairError> {
        self.qpair.recv(bytes)
    }

    /// Reports that the socket is closed or broken.
    pub fn disconnected(&mut self) {
        self.qpair.close();
    }

    /// Reports bytes as sent.
    pub fn tx_consume(&mut self, n: usize) {
        self.qpair.tx_consume(n);
    }

    /// Bytes to be sent, as the pieces of one gathering write.
    pub fn tx_slices(&self) -> impl Iterator<Item = &[u8]> {
        self.qpair.tx_slices()
    }

    /// When [`Self::poll`] wants to be called at the latest.
    #[must_use]
    pub fn next_timer_ns(&self) -> Option<u64> {
        let step = self.step_since_ns.map(|t| t.saturating_add(self.config.step_timeout_ns));
        let expiry = self.keep_alive_sent_ns.map(|t| t.saturating_add(self.kato_ns()));
        [step, expiry, self.csts_due_ns, self.keep_alive_due_ns].into_iter().flatten().min()
    }

    /// Whether the controller is up.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.step == Step::Live
    }

    /// Identify Controller data; all zero before the controller is up.
    #[must_use]
    pub fn identify(&self) -> &IdentifyController {
        &self.identify
    }

    /// Controller Capabilities.
    #[must_use]
    pub const fn cap(&self) -> Cap {
        self.cap
    }

    /// Version that the controller complies with.
    #[must_use]
    pub const fn vs(&self) -> Vs {
        self.vs
    }

    /// Controller ID.
    #[must_use]
    pub const fn cntlid(&self) -> u16 {
        self.qpair.cntlid()
    }

    /// As [`Qpair::made_psk`] of the admin queue.
    #[must_use]
    pub fn made_psk(&self) -> Option<&Arc<TlsPsk>> {
        self.qpair.made_psk()
    }

    /// I/O queues that the controller grants; 0 for a discovery controller.
    #[must_use]
    pub const fn io_queues(&self) -> u16 {
        self.io_queues
    }

    /// The longest transfer of one command, in bytes; `None` for no limit.
    #[must_use]
    pub fn transfer_bytes_max(&self) -> Option<u64> {
        let shift = u32::from(self.identify.mdts) + 12 + u32::from(self.cap.mpsmin());
        if self.identify.mdts == 0 { None } else { 1_u64.checked_shl(shift) }
    }

    /// How to open I/O queue `qid`: `depth` is brought within what the controller takes.
    #[must_use]
    pub fn io_qpair(&self, qid: u16, depth: u16) -> QpairConfig {
        let mut depth_max = self.cap.mqes0();
        let maxcmd = self.identify.maxcmd.get();
        if maxcmd != 0 {
            depth_max = depth_max.min(maxcmd);
        }
        let capsule = self.identify.ioccsz.get().saturating_mul(16);
        QpairConfig {
            qid,
            depth: depth.min(depth_max).max(1),
            cntlid: self.cntlid(),
            kato_ms: 0,
            in_capsule_max: capsule.saturating_sub(SQE_LEN),
            ..self.config.admin.clone()
        }
    }

    fn kato_ns(&self) -> u64 {
        u64::from(self.config.admin.kato_ms) * 1_000_000
    }

    fn is_discovery(&self) -> bool {
        self.identify.cntrltype == ControllerType::DISCOVERY || self.config.admin.subnqn.is_discovery()
    }

    /// CC of the enabled controller.
    fn cc(&self) -> Cc {
        let css = if !self.cap.css_nvm() && self.cap.css_iocs() { 6 } else { 0 };
        Cc(0).with_en(true).with_css(css).with_iosqes(6).with_iocqes(4).with_mps(self.cap.mpsmin())
    }

    fn advance(&mut self, now_ns: u64) -> Result<(), ControllerError> {
        if let QpairState::Closed(error) = self.qpair.state() {
            return Err(error.into());
        }
        if self.step == Step::Connect {
            if self.qpair.is_live() {
                let sqe = command::property_get(offset::CAP, PropertySize::Eight);
                self.enter(Step::ReadCap, sqe, Transfer::None, None, now_ns);
            } else if self.step_since_ns.is_none() {
                self.step_since_ns = Some(now_ns);
            }
        }
        while let Some(completion) = self.qpair.poll() {
            match completion.user & !u64::from(u32::MAX) {
                tag::STEP => self.step_done(&completion, now_ns)?,
                tag::KEEP_ALIVE => self.keep_alive_done(&completion)?,
                tag::AER => self.async_event(&completion)?,
                _ => self.hand_back(completion),
            }
        }
        self.timers(now_ns)
    }

    /// Hands a command of the owner's back; the machine's own are dropped.
    fn hand_back(&mut self, completion: Completion<Box<[u8]>>) {
        if let Ok(user) = u32::try_from(completion.user) {
            self.events.push_back(Event::Command { user, cqe: completion.cqe, data: completion.payload });
        }
    }

    /// Sends the command of a step; its completion moves the machine on.
    fn enter(&mut self, step: Step, sqe: Sqe, transfer: Transfer, data: Option<Box<[u8]>>, now_ns: u64) {
        if self.step != step {
            self.step = step;
            self.step_since_ns = Some(now_ns);
        }
        // The admin queue has room for one step, a keep-alive and the event requests by its depth; if its
        // owner has filled the rest, the step times out.
        drop(self.qpair.submit(sqe, transfer, tag::STEP, data));
    }

    fn step_done(&mut self, done: &Completion<Box<[u8]>>, now_ns: u64) -> Result<(), ControllerError> {
        let status = done.status();
        // Without its events a controller is still of use.
        if !status.is_success() && self.step != Step::SetEvents {
            return Err(ControllerError::Refused { what: self.step.name(), status });
        }
        let csts_get = command::property_get(offset::CSTS, PropertySize::Four);
        match self.step {
            Step::ReadCap => {
                self.cap = Cap(done.cqe.result());
                if self.cap.mqes0() == 0 {
                    return Err(ControllerError::Unusable { what: "CAP.MQES", value: 0 });
                }
                let sqe = command::property_get(offset::VS, PropertySize::Four);
                self.enter(Step::ReadVs, sqe, Transfer::None, None, now_ns);
            }
            Step::ReadVs => {
                self.vs = Vs(done.cqe.dw0.get());
                let sqe = command::property_set(offset::CC, self.cc().0);
                self.enter(Step::Enable, sqe, Transfer::None, None, now_ns);
            }
            Step::Enable => self.enter(Step::AwaitReady, csts_get, Transfer::None, None, now_ns),
            Step::AwaitReady => {
                let csts = Csts(done.cqe.dw0.get());
                if csts.cfs() {
                    return Err(ControllerError::Fatal);
                }
                if csts.rdy() {
                    self.enter_identify(now_ns);
                } else {
                    self.csts_due_ns = Some(now_ns.saturating_add(CSTS_PERIOD_NS));
                }
            }
            Step::Identify => self.identified(done.payload.as_deref().unwrap_or_default(), now_ns)?,
            Step::SetQueues => {
                let granted = NumberOfQueues(done.cqe.dw0.get());
                let granted = granted.nsq0().min(granted.ncq0()).saturating_add(1);
                self.io_queues = self.io_queues.min(granted);
                self.enter_events(now_ns);
            }
            Step::SetEvents => self.live(now_ns),
            Step::Shutdown => self.enter(Step::AwaitShutdown, csts_get, Transfer::None, None, now_ns),
            Step::AwaitShutdown => {
                if Csts(done.cqe.dw0.get()).shst() == ShutdownStatus::COMPLETE.0 {
                    self.shut();
                } else {
                    self.csts_due_ns = Some(now_ns.saturating_add(CSTS_PERIOD_NS));
                }
            }
            Step::Connect | Step::Live | Step::Closed => {}
        }
        Ok(())
    }

    fn enter_identify(&mut self, now_ns: u64) {
        let data = vec![0; IDENTIFY_LEN].into_boxed_slice();
        let sqe = command::identify(Cns::CONTROLLER, 0, Csi::NVM);
        let transfer = Transfer::Read(u32::try_from(IDENTIFY_LEN).unwrap_or(0));
        self.enter(Step::Identify, sqe, transfer, Some(data), now_ns);
    }

    fn identified(&mut self, data: &[u8], now_ns: u64) -> Result<(), ControllerError> {
        if let Ok(identify) = IdentifyController::ref_from_bytes(data) {
            *self.identify = *identify;
        }
        if self.is_discovery() {
            self.io_queues = 0;
            self.enter_events(now_ns);
            return Ok(());
        }
        let ioccsz = self.identify.ioccsz.get();
        if ioccsz < SQE_LEN / 16 {
            return Err(ControllerError::Unusable { what: "IOCCSZ", value: ioccsz.into() });
        }
        let icdoff = self.identify.icdoff.get();
        if icdoff != 0 {
            return Err(ControllerError::Unusable { what: "ICDOFF", value: icdoff.into() });
        }
        let queues0 = self.io_queues - 1;
        let wanted = NumberOfQueues(0).with_nsq0(queues0).with_ncq0(queues0);
        let sqe = command::set_features(Fid::NUMBER_OF_QUEUES, 0, wanted.0);
        self.enter(Step::SetQueues, sqe, Transfer::None, None, now_ns);
        Ok(())
    }

    /// Asks for every notice that the controller has.
    fn enter_events(&mut self, now_ns: u64) {
        let notices = EventConfig(self.identify.oaes.get()).with_smart(0);
        if notices.0 == 0 {
            self.live(now_ns);
            return;
        }
        let sqe = command::set_features(Fid::ASYNC_EVENT_CONFIG, 0, notices.0);
        self.enter(Step::SetEvents, sqe, Transfer::None, None, now_ns);
    }

    fn live(&mut self, now_ns: u64) {
        self.step = Step::Live;
        self.step_since_ns = None;
        if self.config.admin.kato_ms > 0 {
            self.keep_alive_due_ns = Some(now_ns.saturating_add(self.kato_ns() / 2));
        }
        for _ in 0..self.identify.aerl0.saturating_add(1).min(AERS_MAX) {
            self.push_aer();
        }
        self.events.push_back(Event::Live);
    }

    fn push_aer(&mut self) {
        // A full queue means one event request less until the next event.
        drop(self.qpair.submit(command::async_event_request(), Transfer::None, tag::AER, None));
    }

    fn async_event(&mut self, done: &Completion<Box<[u8]>>) -> Result<(), ControllerError> {
        // A refused event request (limit exceeded, aborted) is not sent again.
        if done.status().is_success() {
            self.events.push_back(Event::Async(EventResult(done.cqe.dw0.get())));
            if self.step == Step::Live {
                self.push_aer();
            }
        }
        Ok(())
    }

    fn keep_alive_done(&mut self, done: &Completion<Box<[u8]>>) -> Result<(), ControllerError> {
        self.keep_alive_sent_ns = None;
        let status = done.status();
        if status.is_success() {
            return Ok(());
        }
        Err(ControllerError::Refused { what: "Keep Alive", status })
    }

    fn shut(&mut self) {
        self.step = Step::Closed;
        self.step_since_ns = None;
        self.qpair.close();
        while let Some(completion) = self.qpair.abandon() {
            self.hand_back(completion);
        }
        self.events.push_back(Event::ShutDown);
    }

    fn timers(&mut self, now_ns: u64) -> Result<(), ControllerError> {
        let late = |since: Option<u64>, limit: u64| since.is_some_and(|t| now_ns.saturating_sub(t) >= limit);
        let limit = self.config.step_timeout_ns;
        if late(self.step_since_ns, limit) {
            let limit_ms = limit / 1_000_000;
            return Err(ControllerError::Timeout { what: self.step.name(), limit_ms });
        }
        let kato_ns = self.kato_ns();
        if late(self.keep_alive_sent_ns, kato_ns) {
            return Err(ControllerError::Timeout { what: "Keep Alive", limit_ms: kato_ns / 1_000_000 });
        }
        if self.csts_due_ns.is_some_and(|due| due <= now_ns) {
            self.csts_due_ns = None;
            let sqe = command::property_get(offset::CSTS, PropertySize::Four);
            self.enter(self.step, sqe, Transfer::None, None, now_ns);
        }
        if self.step == Step::Live && self.keep_alive_due_ns.is_some_and(|due| due <= now_ns) {
            self.keep_alive_due_ns = Some(now_ns.saturating_add(kato_ns / 2));
            let sent = self.qpair.submit(command::keep_alive(), Transfer::None, tag::KEEP_ALIVE, None);
            if sent.is_ok() && self.keep_alive_sent_ns.is_none() {
                self.keep_alive_sent_ns = Some(now_ns);
            }
        }
        Ok(())
    }
}
