//! One NVMe controller: the admin side of an I/O or discovery controller, without a socket, a clock or a lock.
//!
//! Commands go in with the time, completions come out. It lives on the reactor of its admin queue; its I/O queues look
//! at [`CtrlShared`]. What it does not do, Identify does not offer.
//!
//! ```text
//!   Connect ──► Controller::new ── CC.EN=1 ──► ready ── CC.SHN ──► shut down
//!                    ▲                          │ CC.EN=0             │ CC.EN=0
//!                    └──── io_queues_gone ◄─── resetting ◄────────────┘
//! ```
//!
//! The owner calls [`admin`](Controller::admin) for every command of the admin queue after Connect, then
//! [`take_io_teardown`](Controller::take_io_teardown) and [`poll_event`](Controller::poll_event); at
//! [`deadline`](Controller::deadline) it calls [`tick`](Controller::tick).

mod cross_reset;
mod effects;
mod error_log;
mod event;
mod feature;
mod identify;
mod keep_alive;
mod log;
mod path;
mod property;
mod reservation;
mod shared;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use penstock_reactor::Tick;
use penstock_reactor::rng::Rng;
use penstock_spec::nvme::feature::{Fid, GetFeaturesDw10, SetFeaturesDw10};
use penstock_spec::nvme::log::GetLogPageCmd;
use penstock_spec::nvme::sgl::TcpSgl;
use penstock_spec::nvme::{AdminOpcode, FabricsType, Fuse, Psdt, Sqe, Status};
use penstock_spec::nvmf::Nqn;

pub use cross_reset::{CROSS_RESETS_MAX, CrossReset, Instance};
pub use error_log::CommandError;
pub use event::AER_MAX;
pub use shared::CtrlShared;

use crate::ana::AnaLog;
use crate::config::{ADMIN_DATA_LEN_MAX, DiscoveryConfig, Nsid, SubsystemConfig, SubsystemKind};
use crate::discovery;
use crate::io_cmd::Transfer;
use crate::reservation::Notices;
use crate::transport_options::TransportOptions;
use cross_reset::CrossResets;
use error_log::ErrorLog;
use event::{Event, Events};
use feature::Features;
use keep_alive::KeepAlive;
use property::Properties;

/// Abort commands that may be under way at once (ACL plus one).
pub const ABORTS_MAX: u8 = 4;

/// What Connect has settled.
#[derive(Debug, Clone)]
pub struct ControllerParams {
    /// Its identifier.
    pub cntlid: u16,
    /// The subsystem it belongs to.
    pub subsystem: Arc<SubsystemConfig>,
    /// What there is to be discovered; only read by discovery controllers.
    pub discovery: Arc<DiscoveryConfig>,
    /// The transport's limits.
    pub options: Arc<TransportOptions>,
    /// The host's name.
    pub hostnqn: Nqn,
    /// The host's identifier.
    pub hostid: [u8; 16],
    /// Keep Alive Timeout of Connect, in milliseconds.
    pub kato_ms: u32,
    /// The port that it came by.
    pub portid: u16,
    /// Where its random numbers come from.
    pub seed: u64,
    /// This end of the admin connection: what stands for "any address" in the discovery log.
    pub local: SocketAddr,
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// How it ended.
    pub status: Status,
    /// Completion dword 0.
    pub dw0: u32,
    /// Completion dword 1.
    pub dw1: u32,
}

impl Completion {
    /// Success with dword 0.
    #[must_use]
    pub const fn ok(dw0: u32) -> Self {
        Self { status: Status::SUCCESS, dw0, dw1: 0 }
    }
}

impl From<Status> for Completion {
    fn from(status: Status) -> Self {
        Self { status, dw0: 0, dw1: 0 }
    }
}

/// What became of an admin command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminOutcome {
    /// It is done; what was put into `out` is to be sent first.
    Done(Completion),
    /// An Asynchronous Event Request that is held; [`Controller::poll_event`] answers it.
    Held,
    /// Set Features of Reservation Persistence, which the control thread carries out. The owner answers when it has.
    Persist {
        /// The namespace; FFFFFFFFh: all.
        nsid: u32,
        /// Whether its reservations persist through power loss.
        on: bool,
    },
    /// An Abort of an I/O queue's command, or of an admin command other than a held event request. The owner looks for
    /// it, calls [`Controller::abort_done`] and completes the Abort with dword 0 bit 0 clear only if it was aborted.
    Abort {
        /// Queue of the command to be aborted.
        sqid: u16,
        /// Its command identifier.
        cid: u16,
    },
    /// A Cross-Controller Reset of that instance of another controller of the subsystem. The owner looks for it and calls
    /// [`Controller::cross_reset_answer`].
    CrossReset(Instance),
}

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
const INVALID_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
const SEQUENCE_ERROR: Status = Status::COMMAND_SEQUENCE_ERROR.with_dnr();

/// A controller; see the module.
#[derive(Debug)]
pub struct Controller {
    params: ControllerParams,
    shared: Arc<CtrlShared>,
    properties: Properties,
    features: Features,
    events: Events,
    keep_alive: KeepAlive,
    errors: ErrorLog,
    changed: BTreeSet<Nsid>,
    notices: Notices,
    ana: AnaLog,
    cross_resets: CrossResets,
    ciu: u8,
    cirn: u64,
    random: Rng,
    /// NSSR was written.
    subsystem_reset: bool,
    /// Event requests that a reset or an Abort ended: command identifier and status.
    ended: Vec<(u16, Status)>,
    aborts: u8,
    io_teardown: bool,
}

/// The data of an admin command, told before it is executed so that the transport can fetch or place them.
///
/// # Errors
/// The status to answer with.
pub fn admin_transfer(sqe: &Sqe) -> Result<Transfer, Status> {
    let to_host = match AdminOpcode(sqe.opc) {
        AdminOpcode::IDENTIFY | AdminOpcode::GET_LOG_PAGE => true,
        AdminOpcode::GET_FEATURES => GetFeaturesDw10(sqe.cdw10.get()).fid() == Fid::HOST_IDENTIFIER.0,
        _ => false,
    };
    if !to_host {
        return Ok(Transfer::None);
    }
    let sgl = admin_sgl(sqe)?;
    if usize::try_from(sgl.len()).is_ok_and(|len| len <= ADMIN_DATA_LEN_MAX) {
        return Ok(Transfer::ToHost(sgl));
    }
    Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr())
}

/// Hosts find out what a controller has by asking for it (SPDK's, at every start, for the command sets of CNS 06h): a
/// query for what is not offered is answered so, but is no error that an operator should hear of (Base 5.2.13.1.2
/// leaves open which commands are logged).
fn is_probe(opcode: AdminOpcode, status: Status) -> bool {
    let query = [AdminOpcode::IDENTIFY, AdminOpcode::GET_LOG_PAGE, AdminOpcode::GET_FEATURES];
    query.contains(&opcode) && (status.is(INVALID_FIELD) || status.is(Status::INVALID_LOG_PAGE))
}

fn is_persistence(sqe: &Sqe) -> bool {
    SetFeaturesDw10(sqe.cdw10.get()).fid() == Fid::RESERVATION_PERSISTENCE.0
}

fn admin_sgl(sqe: &Sqe) -> Result<TcpSgl, Status> {
    if sqe.psdt() != Psdt::SglMptrContiguous {
        return Err(INVALID_FIELD);
    }
    sqe.sgl1.parse_tcp().map_err(|error| error.status().with_dnr())
}

impl Controller {
    /// A controller that was just connected and waits to be enabled.
    #[must_use]
    pub fn new(params: ControllerParams, now: Tick) -> Self {
        let discovery = params.subsystem.kind == SubsystemKind::Discovery;
        Self {
            shared: Arc::new(CtrlShared::new(params.cntlid, params.hostnqn, params.hostid)),
            properties: Properties::new(&params.options, params.subsystem.enable_nssr),
            features: Features::new(&params.options),
            events: Events::default(),
            keep_alive: KeepAlive::new(params.kato_ms, discovery, now),
            errors: ErrorLog::default(),
            changed: BTreeSet::new(),
            notices: Notices::default(),
            ana: AnaLog::new(&params.subsystem, params.portid),
            cross_resets: CrossResets::default(),
            ciu: 0,
            cirn: 0,
            random: Rng::seeded(params.seed),
            subsystem_reset: false,
            ended: Vec::new(),
            aborts: 0,
            io_teardown: false,
            params,
        }
    }

    /// Executes a command of the admin queue (anything but Connect). Data for the host are put into `out`, which is
    /// cleared first; none of today's commands takes data from the host.
    pub fn admin(&mut self, sqe: &Sqe, _data_in: &[u8], out: &mut Vec<u8>, now: Tick) -> AdminOutcome {
        out.clear();
        self.shared.note_traffic();
        // Its host has given up an event request whose identifier it uses again: nothing is to answer that any more.
        self.events.abort(sqe.cid.get());
        let outcome = match self.dispatch(sqe, out, now) {
            Ok(outcome) => outcome,
            Err(status) => AdminOutcome::Done(status.into()),
        };
        self.shared.set_lease(self.keep_alive.lease());
        if let AdminOutcome::Done(Completion { status, .. }) = outcome
            && !status.is_success()
        {
            out.clear();
            let (cid, nsid) = (sqe.cid.get(), sqe.nsid.get());
            let (opcode, cdw10) = (AdminOpcode(sqe.opc), sqe.cdw10.get());
            tracing::debug!(cntlid = self.params.cntlid, %opcode, nsid, cdw10, cdw11 = sqe.cdw11.get(), %status, "an admin command failed");
            if !is_probe(opcode, status) {
                self.errors.record(&CommandError { sqid: 0, cid, opc: sqe.opc, nsid, lba: 0, status });
            }
        }
        outcome
    }

    fn dispatch(&mut self, sqe: &Sqe, out: &mut Vec<u8>, now: Tick) -> Result<AdminOutcome, Status> {
        if sqe.fuse() != Fuse::Normal {
            return Err(INVALID_FIELD);
        }
        let opcode = AdminOpcode(sqe.opc);
        if opcode == AdminOpcode::FABRICS {
            return self.fabrics(sqe, now);
        }
        if !effects::admin_supported(opcode, self.is_discovery()) {
            return Err(Status::INVALID_OPCODE.with_dnr());
        }
        if !self.properties.is_ready() {
            return Err(SEQUENCE_ERROR);
        }
        let completion = match opcode {
            AdminOpcode::IDENTIFY => {
                self.identify(sqe, out)?;
                self.fit(sqe, out)?;
                Completion::ok(0)
            }
            AdminOpcode::GET_LOG_PAGE => {
                self.get_log_page(GetLogPageCmd::from_sqe(sqe), out, now)?;
                self.fit(sqe, out)?;
                self.log_was_read(GetLogPageCmd::from_sqe(sqe));
                Completion::ok(0)
            }
            AdminOpcode::GET_FEATURES => {
                let completion = self.get_features(sqe, out)?;
                if !out.is_empty() {
                    self.fit(sqe, out)?;
                }
                completion
            }
            AdminOpcode::SET_FEATURES if is_persistence(sqe) => return self.set_persistence(sqe),
            AdminOpcode::SET_FEATURES => self.set_features(sqe, now)?,
            AdminOpcode::KEEP_ALIVE => {
                self.keep_alive.restart(now);
                Completion::ok(0)
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                if !self.events.hold(sqe.cid.get()) {
                    return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.with_dnr());
                }
                return Ok(AdminOutcome::Held);
            }
            AdminOpcode::CROSS_CONTROLLER_RESET => return self.cross_reset(sqe),
            _ => return self.abort(sqe),
        };
        Ok(AdminOutcome::Done(completion))
    }

    /// The data must find room in what the host has described; a larger SGL is left partly unused.
    fn fit(&self, sqe: &Sqe, out: &[u8]) -> Result<(), Status> {
        let room = admin_sgl(sqe)?.len();
        if usize::try_from(room).is_ok_and(|room| out.len() <= room) {
            return Ok(());
        }
        Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr())
    }

    fn fabrics(&mut self, sqe: &Sqe, now: Tick) -> Result<AdminOutcome, Status> {
        let completion = match FabricsType(sqe.fctype()) {
            FabricsType::PROPERTY_GET => self.property_get(sqe)?,
            FabricsType::PROPERTY_SET => self.property_set(sqe, now)?,
            FabricsType::CONNECT => return Err(SEQUENCE_ERROR),
            // It is for I/O queues (Base 6.4).
            FabricsType::DISCONNECT => return Err(Status::INVALID_QUEUE_TYPE.with_dnr()),
            _ => return Err(Status::INVALID_OPCODE.with_dnr()),
        };
        Ok(AdminOutcome::Done(completion))
    }

    fn abort(&mut self, sqe: &Sqe) -> Result<AdminOutcome, Status> {
        let cdw10 = sqe.cdw10.get();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "SQID is the low half of CDW10, CID the high one"
        )]
        let (sqid, cid) = (cdw10 as u16, (cdw10 >> 16) as u16);
        if sqid == 0 && self.events.abort(cid) {
            self.ended.push((cid, Status::ABORTED_BY_REQUEST));
            return Ok(AdminOutcome::Done(Completion::ok(0)));
        }
        if self.aborts >= ABORTS_MAX {
            return Err(Status::ABORT_COMMAND_LIMIT_EXCEEDED);
        }
        self.aborts += 1;
        Ok(AdminOutcome::Abort { sqid, cid })
    }

    /// An [`AdminOutcome::Abort`] was carried out.
    pub fn abort_done(&mut self) {
        self.aborts = self.aborts.saturating_sub(1);
    }

    /// The next Asynchronous Event Request that is to be completed: its command identifier and how.
    pub fn poll_event(&mut self) -> Option<(u16, Completion)> {
        if let Some((cid, status)) = self.ended.pop() {
            return Some((cid, status.into()));
        }
        if !self.properties.is_ready() {
            return None;
        }
        self.events.next().map(|(cid, result)| (cid, Completion::ok(result.0)))
    }

    /// Whether the I/O queues are to be closed now (reset, shutdown); [`Self::io_queues_gone`] is to follow. Once per
    /// occasion.
    pub fn take_io_teardown(&mut self) -> bool {
        std::mem::take(&mut self.io_teardown)
    }

    /// The last I/O queue is closed and none of its commands is under way: a reset or shutdown goes on.
    pub fn io_queues_gone(&mut self) {
        self.properties.io_queues_gone();
    }

    /// Whether the host asked for a reset of the whole subsystem; once per occasion.
    pub fn take_subsystem_reset(&mut self) -> bool {
        std::mem::take(&mut self.subsystem_reset)
    }

    /// When [`Self::tick`] is to be called.
    #[must_use]
    pub const fn deadline(&self) -> Tick {
        self.keep_alive.deadline()
    }

    /// Looks at the keep-alive timer. True when the host is gone: the association is over, every connection of it is to
    /// be closed.
    pub fn tick(&mut self, now: Tick) -> bool {
        let shared = &self.shared;
        if !self.keep_alive.expired(|| shared.take_traffic(), now) {
            self.shared.set_lease(self.keep_alive.lease());
            return false;
        }
        self.properties.fail();
        self.shared.kill();
        true
    }

    /// Whether an I/O queue of `sqsize0` (0's based) may be connected now.
    ///
    /// # Errors
    /// The status of the Connect.
    pub fn io_queue_allowed(&self) -> Result<(), Status> {
        if self.is_discovery() {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        if !self.properties.is_ready() {
            return Err(SEQUENCE_ERROR);
        }
        self.properties.io_entry_sizes()
    }

    /// A new generation of the subsystem: the host is told which namespaces changed.
    pub fn set_subsystem(&mut self, subsystem: Arc<SubsystemConfig>) {
        let changed = subsystem.changed_namespaces(&self.params.subsystem);
        if self.ana.update(&self.params.subsystem, &subsystem, self.params.portid) && subsystem.ana_reporting
        {
            self.events.raise(Event::AnaChange);
        }
        self.params.subsystem = subsystem;
        if !changed.is_empty() && !self.is_discovery() {
            self.changed.extend(changed);
            self.events.raise(Event::NamespaceAttribute);
        }
    }

    /// A new generation of what there is to be discovered: the host is told where it sees a difference.
    pub fn set_discovery(&mut self, config: Arc<DiscoveryConfig>) {
        let before = std::mem::replace(&mut self.params.discovery, config);
        if !self.is_discovery() {
            return;
        }
        let entries = |config| discovery::entries(config, &self.params.hostnqn, self.params.local);
        if entries(&before) != entries(&self.params.discovery) {
            self.events.raise(Event::DiscoveryLog);
        }
    }

    /// Takes an error of an I/O queue into the error log.
    pub fn record_error(&mut self, error: &CommandError) {
        self.errors.record(error);
    }

    /// Whether this is a discovery controller.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.params.subsystem.kind == SubsystemKind::Discovery
    }

    /// Whether the host may (still) use the subsystem.
    #[must_use]
    pub fn host_allowed(&self) -> bool {
        self.params.subsystem.allows(&self.params.hostnqn)
    }

    /// What its I/O queues look at.
    #[must_use]
    pub const fn shared(&self) -> &Arc<CtrlShared> {
        &self.shared
    }

    /// What Connect settled, with the subsystem as of now.
    #[must_use]
    pub const fn params(&self) -> &ControllerParams {
        &self.params
    }

    /// KATO in force, in milliseconds.
    #[must_use]
    pub const fn kato_ms(&self) -> u32 {
        self.keep_alive.kato_ms()
    }
}

#[cfg(test)]
mod tests;
