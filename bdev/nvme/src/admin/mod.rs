//! The admin queue of a controller: bring-up (Base 3.5), Identify, queues, events, health, shutdown.
//!
//! ```text
//!   CC.EN=0 ─► CSTS.RDY=0 ─► admin queue ─► CC.EN=1 ─► CSTS.RDY=1 ─► Identify ─► queues asked for ─► events ─► doorbells
//! ```
//!
//! It is driven by one control thread that may wait: straight code instead of states. Registers, memory and the time are
//! handed in, so it runs against the model in virtual time. Each wait has a limit, and ends early where the controller is
//! gone or says that it is broken.

mod namespace;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_spec::nvme::event::{EventConfig, EventResult};
use penstock_spec::nvme::feature::{Fid, NumberOfQueues};
use penstock_spec::nvme::identify::controller::{OptionalAdmin, SglSupport, WriteCache};
use penstock_spec::nvme::identify::{Cns, IDENTIFY_LEN, IdentifyController};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::health::SmartLog;
use penstock_spec::nvme::{Cqe, NSID_ALL, Sqe, Status};
use penstock_spec::nvmf::property::{Cap, Cc, Crto, Csts, Vs};
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

use crate::command;
use crate::data::PointerRules;
use crate::dma::{DmaBuf, ShadowBell, ShadowPages, Translator};
use crate::register::{GONE, Registers, offset};
use crate::ring::{ENTRIES_MAX, ENTRIES_MIN, Garbage, Ring, RingPlace};

pub(crate) use namespace::Traits;
pub use namespace::{Found, NAMESPACES_MAX, Namespace, Refusal};

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 32;
/// Asynchronous Event Requests that are kept outstanding, at most.
const EVENTS_MAX: u16 = 4;
/// CIDs of Asynchronous Event Requests begin here; those of other commands stay below.
const EVENT_CID: u16 = 0x8000;
/// Between looks at a register or a completion, in nanoseconds: first, and at most.
const LOOK_NS: (u64, u64) = (20_000, 2_000_000);
/// Entries of the error log that are read, at most, and the length of each in bytes.
const ERROR_ENTRIES_MAX: u16 = 64;
const ERROR_ENTRY_BYTES: u16 = 64;
/// Unit of CAP.TO and CRTO.
const HALF_SECOND_NS: u64 = 500_000_000;

/// The shadows of a queue pair's doorbells (submission, completion), where the controller has them.
pub type Shadows = Option<(ShadowBell, ShadowBell)>;

/// The time, and the only way to let it pass.
pub trait Waiter {
    /// Nanoseconds since any beginning.
    fn now_ns(&mut self) -> u64;

    /// Returns after about `ns` nanoseconds.
    fn wait(&mut self, ns: u64);
}

/// Why a controller cannot be worked with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Every register reads as all ones.
    #[error("the device does not answer any more: it was removed, or its link is down")]
    Gone,
    /// CSTS.CFS.
    #[error("the controller reports a fatal error (CSTS.CFS); reset or replace the device")]
    Fatal,
    /// It did not become ready, or did not stop.
    #[error("the controller was not {what} after {ms} ms (CAP.TO); reset or replace the device")]
    NotReady {
        /// Ready, or stopped.
        what: &'static str,
        /// The limit, in milliseconds.
        ms: u64,
    },
    /// An admin command had no answer.
    #[error("{what} had no answer for {ms} ms; raise timeout_admin_us, or reset the device")]
    Silent {
        /// The command.
        what: &'static str,
        /// The limit, in milliseconds.
        ms: u64,
    },
    /// An admin command was refused.
    #[error("{what} was refused: {status:?}")]
    Refused {
        /// The command.
        what: &'static str,
        /// The answer.
        status: Status,
    },
    /// It is of a kind that cannot be driven.
    #[error("the controller cannot be used: {0}")]
    Unusable(String),
    /// It says what cannot be.
    #[error(transparent)]
    Garbage(#[from] Garbage),
    /// No memory that the device reaches.
    #[error("there is no memory for data left that the device reaches; give the daemon more (--mem-max-mib)")]
    Memory,
}

/// The admin queue and what is known by it.
#[derive(Debug)]
pub struct Admin {
    registers: Arc<dyn Registers>,
    translator: Translator,
    ring: Ring,
    page: DmaBuf,
    cap: Cap,
    vs: Vs,
    identify: Box<IdentifyController>,
    /// I/O queue pairs that the controller gives.
    io_queues: u16,
    write_cache: bool,
    shadows: Option<Arc<ShadowPages>>,
    has_shadows: bool,
    command_limit_ns: u64,
    next_cid: u16,
    events: VecDeque<EventResult>,
    /// CIDs of the event requests that are to be made.
    events_owed: Vec<u16>,
}

impl Admin {
    /// A controller as it was found; nothing is done yet but reading. `command_limit_ns`: for each admin command.
    ///
    /// # Errors
    /// [`AdminError::Gone`]; [`AdminError::Unusable`] for what its capabilities exclude; [`AdminError::Memory`].
    pub fn new(
        registers: Arc<dyn Registers>,
        mut translator: Translator,
        command_limit_ns: u64,
    ) -> Result<Self, AdminError> {
        if registers.read32(offset::CSTS) == GONE {
            return Err(AdminError::Gone);
        }
        let (cap, vs) = (Cap(registers.read64(offset::CAP)), Vs(registers.read32(offset::VS)));
        if !cap.css_nvm() {
            return Err(AdminError::Unusable("it does not offer the NVM command set".to_owned()));
        }
        if cap.mqes0() == 0 {
            return Err(AdminError::Unusable("CAP.MQES is 0, which the standard forbids".to_owned()));
        }
        if cap.mpsmin() > 4 {
            let problem = format!("its smallest memory page is {} KiB, more than 64", 4 << cap.mpsmin());
            return Err(AdminError::Unusable(problem));
        }
        let ring = Ring::new(0, ADMIN_ENTRIES, cap.dstrd(), Arc::clone(&registers), &mut translator);
        Ok(Self {
            ring: ring.ok_or(AdminError::Memory)?,
            page: DmaBuf::new(IDENTIFY_LEN, &mut translator).ok_or(AdminError::Memory)?,
            registers,
            translator,
            cap,
            vs,
            identify: Box::new(IdentifyController::default()),
            io_queues: 0,
            write_cache: false,
            shadows: None,
            has_shadows: false,
            command_limit_ns,
            next_cid: 0,
            events: VecDeque::new(),
            events_owed: Vec::new(),
        })
    }

    /// Stops the controller: when this returns, it touches no memory any more.
    ///
    /// # Errors
    /// [`AdminError::Gone`], [`AdminError::NotReady`].
    pub fn stop(&mut self, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        let cc = self.registers.read32(offset::CC);
        if cc == GONE {
            return Err(AdminError::Gone);
        }
        self.registers.write32(offset::CC, Cc(cc).with_en(false).with_shn(0).0);
        self.await_ready(false, waiter)
    }

    /// Starts a controller that has stopped, as far as I/O queues may be created; `io_queues` are asked for.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn start(&mut self, io_queues: u16, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        self.ring.rewind();
        self.events.clear();
        let (sq, cq) = self.ring.iovas();
        let size0 = u32::from(ADMIN_ENTRIES - 1);
        self.registers.write32(offset::AQA, size0 << 16 | size0);
        self.registers.write64(offset::ASQ, sq);
        self.registers.write64(offset::ACQ, cq);
        let cc = Cc(0).with_mps(self.cap.mpsmin()).with_iosqes(6).with_iocqes(4).with_en(true);
        self.registers.write32(offset::CC, cc.0);
        self.await_ready(true, waiter)?;
        let identify = self.read("Identify Controller", command::identify(Cns::CONTROLLER, 0), waiter)?;
        *self.identify = IdentifyController::read_from_bytes(identify)
            .map_err(|_| AdminError::Unusable("Identify Controller is short".to_owned()))?;
        self.check_entry_sizes()?;
        self.ask_for_queues(io_queues, waiter)?;
        self.look_at_write_cache(waiter)?;
        self.ask_for_events(waiter)?;
        self.offer_shadows(waiter)
    }

    /// Creates an I/O queue pair; returns the shadows of its doorbells.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn create(&mut self, place: RingPlace, waiter: &mut dyn Waiter) -> Result<Shadows, AdminError> {
        let (sq, cq) = place.iovas;
        let create_cq = command::with_prps(command::create_cq(place.qid, place.entries), cq, 0);
        self.execute("Create I/O Completion Queue", create_cq, waiter)?;
        let create_sq = command::with_prps(command::create_sq(place.qid, place.entries), sq, 0);
        self.execute("Create I/O Submission Queue", create_sq, waiter)?;
        let shadows = self.shadows.as_ref().filter(|_| self.has_shadows);
        let index = usize::from(place.qid) * 2;
        // Only both or none: a queue beyond the page's room uses its registers.
        Ok(shadows.and_then(|pages| Some((pages.bell(index)?, pages.bell(index + 1)?))))
    }

    /// A ring for I/O queue `qid`, not created yet.
    ///
    /// # Errors
    /// [`AdminError::Memory`].
    pub fn ring(&mut self, qid: u16, entries: u16) -> Result<Ring, AdminError> {
        let most = self.cap.mqes0().saturating_add(1).min(ENTRIES_MAX);
        let entries = entries.clamp(ENTRIES_MIN, most.max(ENTRIES_MIN));
        let ring =
            Ring::new(qid, entries, self.cap.dstrd(), Arc::clone(&self.registers), &mut self.translator);
        ring.ok_or(AdminError::Memory)
    }

    /// Does one command without data and waits for its end; returns the completion of a success.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn execute(
        &mut self,
        what: &'static str,
        mut sqe: Sqe,
        waiter: &mut dyn Waiter,
    ) -> Result<Cqe, AdminError> {
        let cid = self.next_cid;
        self.next_cid = (self.next_cid + 1) % EVENT_CID;
        sqe.cid = U16::new(cid);
        if self.ring.room() == 0 {
            return Err(AdminError::Silent { what, ms: 0 });
        }
        self.ring.push(&sqe);
        self.ring.bell();
        let limit = waiter.now_ns().saturating_add(self.command_limit_ns);
        let mut pause_ns = LOOK_NS.0;
        loop {
            while let Some(cqe) = self.ring.pop()? {
                self.ring.bell();
                if cqe.cid.get() == cid {
                    let status = cqe.status();
                    return if status.is_success() {
                        Ok(cqe)
                    } else {
                        Err(AdminError::Refused { what, status })
                    };
                }
                self.take_event(&cqe)?;
            }
            self.look()?;
            if waiter.now_ns() >= limit {
                return Err(AdminError::Silent { what, ms: self.command_limit_ns / 1_000_000 });
            }
            waiter.wait(pause_ns);
            pause_ns = (pause_ns * 2).min(LOOK_NS.1);
        }
    }

    /// As [`Self::execute`], with up to 4096 bytes of data from the controller.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn read(
        &mut self,
        what: &'static str,
        sqe: Sqe,
        waiter: &mut dyn Waiter,
    ) -> Result<&[u8], AdminError> {
        self.page.clear();
        let sqe = command::with_prps(sqe, self.page.iova(), 0);
        self.execute(what, sqe, waiter)?;
        Ok(self.page.bytes(0, IDENTIFY_LEN))
    }

    /// Whether the controller is there and well.
    ///
    /// # Errors
    /// [`AdminError::Gone`], [`AdminError::Fatal`].
    pub fn look(&self) -> Result<(), AdminError> {
        match self.registers.read32(offset::CSTS) {
            GONE => Err(AdminError::Gone),
            csts if Csts(csts).cfs() => Err(AdminError::Fatal),
            _ => Ok(()),
        }
    }

    /// Takes what has come by itself; returns the next event.
    ///
    /// # Errors
    /// [`AdminError::Garbage`].
    pub fn next_event(&mut self) -> Result<Option<EventResult>, AdminError> {
        while let Some(cqe) = self.ring.pop()? {
            self.take_event(&cqe)?;
        }
        while self.ring.room() > ADMIN_ENTRIES / 2
            && let Some(cid) = self.events_owed.pop()
        {
            let mut sqe = command::async_event_request();
            sqe.cid = U16::new(cid);
            self.ring.push(&sqe);
        }
        self.ring.bell();
        Ok(self.events.pop_front())
    }

    /// SMART / Health.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn health(&mut self, waiter: &mut dyn Waiter) -> Result<SmartLog, AdminError> {
        let bytes = self.read(
            "Get Log Page (health)",
            command::get_log_page(Lid::SMART_HEALTH, NSID_ALL, 512),
            waiter,
        )?;
        bytes.get(..512).and_then(|page| SmartLog::read_from_bytes(page).ok()).ok_or(AdminError::Memory)
    }

    /// The error log page, as far as it fits in a page of memory (64 entries).
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn errors(&mut self, waiter: &mut dyn Waiter) -> Result<Vec<u8>, AdminError> {
        let entries = u16::from(self.identify.elpe0).saturating_add(1).min(ERROR_ENTRIES_MAX);
        let len = entries * ERROR_ENTRY_BYTES;
        let sqe = command::get_log_page(Lid::ERROR_INFORMATION, NSID_ALL, len);
        let bytes = self.read("Get Log Page (errors)", sqe, waiter)?;
        Ok(bytes.get(..usize::from(len)).unwrap_or_default().to_vec())
    }

    /// Tells the controller to save what it has (CC.SHN), and waits as long as it asks for (RTD3E), 10 s at most.
    ///
    /// # Errors
    /// [`AdminError::Gone`], [`AdminError::NotReady`].
    pub fn shut_down(&mut self, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        let cc = self.registers.read32(offset::CC);
        if cc == GONE {
            return Err(AdminError::Gone);
        }
        self.registers.write32(offset::CC, Cc(cc).with_shn(1).0);
        let limit_ns = u64::from(self.identify.rtd3e_us.get()).clamp(2_000_000, 10_000_000) * 1000;
        self.await_status("shut down", limit_ns, waiter, |csts| csts.shst() == 2)
    }

    /// What Identify Controller says.
    #[must_use]
    pub fn identify(&self) -> &IdentifyController {
        &self.identify
    }

    /// CAP.
    #[must_use]
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// VS.
    #[must_use]
    pub fn version(&self) -> Vs {
        self.vs
    }

    /// I/O queue pairs that it gives.
    #[must_use]
    pub fn io_queues(&self) -> u16 {
        self.io_queues
    }

    /// Whether doorbells have shadows.
    #[must_use]
    pub fn has_shadows(&self) -> bool {
        self.has_shadows
    }

    /// What data pointers it takes.
    #[must_use]
    pub fn pointer_rules(&self) -> PointerRules {
        let sgl_align = match SglSupport(self.identify.sgls.get()).support() {
            1 => Some(1),
            2 => Some(4),
            _ => None,
        };
        PointerRules { page_bytes: 4096 << self.cap.mpsmin(), sgl_align }
    }

    /// The Command Retry Delays, in nanoseconds.
    #[must_use]
    pub fn retry_delays_ns(&self) -> [u64; 3] {
        self.identify.crdt.map(|delay| u64::from(delay.get()) * 100_000_000)
    }

    /// A translator of its own for another user.
    #[must_use]
    pub fn translator(&self) -> Translator {
        self.translator.clone()
    }

    fn await_ready(&self, ready: bool, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        let mut half_seconds = u64::from(self.cap.to()).max(1);
        if self.cap.crms() != 0 {
            half_seconds = half_seconds.max(u64::from(Crto(self.registers.read32(offset::CRTO)).crwmt()));
        }
        let what = if ready { "ready" } else { "stopped" };
        self.await_status(what, half_seconds * HALF_SECOND_NS, waiter, |csts| csts.rdy() == ready)
            .inspect_err(|_| {
                let csts = Csts(self.registers.read32(offset::CSTS));
                tracing::debug!(?csts, what, "the controller does not come");
            })?;
        // A controller that stops leaves its fatal state behind.
        if ready { self.look() } else { Ok(()) }
    }

    fn await_status(
        &self,
        what: &'static str,
        limit_ns: u64,
        waiter: &mut dyn Waiter,
        is_there: impl Fn(Csts) -> bool,
    ) -> Result<(), AdminError> {
        let end = waiter.now_ns().saturating_add(limit_ns);
        let mut pause_ns = LOOK_NS.0;
        loop {
            let csts = self.registers.read32(offset::CSTS);
            if csts == GONE {
                return Err(AdminError::Gone);
            }
            if is_there(Csts(csts)) {
                return Ok(());
            }
            if Csts(csts).cfs() && what == "ready" {
                return Err(AdminError::Fatal);
            }
            if waiter.now_ns() >= end {
                return Err(AdminError::NotReady { what, ms: limit_ns / 1_000_000 });
            }
            waiter.wait(pause_ns);
            pause_ns = (pause_ns * 2).min(LOOK_NS.1);
        }
    }

    fn check_entry_sizes(&self) -> Result<(), AdminError> {
        let takes = |sizes: u8, wanted: u8| sizes & 0xf <= wanted && sizes >> 4 >= wanted;
        if takes(self.identify.sqes, 6) && takes(self.identify.cqes, 4) {
            return Ok(());
        }
        let (sqes, cqes) = (self.identify.sqes, self.identify.cqes);
        Err(AdminError::Unusable(format!(
            "its queue entries are not 64 and 16 bytes (SQES {sqes:#x}, CQES {cqes:#x})"
        )))
    }

    fn ask_for_queues(&mut self, wanted: u16, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        let wanted0 = wanted.clamp(1, 65_534) - 1;
        let number = NumberOfQueues(0).with_nsq0(wanted0).with_ncq0(wanted0);
        let sqe = command::set_features(Fid::NUMBER_OF_QUEUES, number.0);
        let given = NumberOfQueues(self.execute("Set Features (Number of Queues)", sqe, waiter)?.dw0.get());
        self.io_queues = wanted0.min(given.nsq0()).min(given.ncq0()) + 1;
        Ok(())
    }

    /// A write cache that is there may be switched off.
    fn look_at_write_cache(&mut self, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        self.write_cache = WriteCache(self.identify.vwc).present();
        if self.write_cache {
            let sqe = command::get_features(Fid::VOLATILE_WRITE_CACHE);
            match self.execute("Get Features (Volatile Write Cache)", sqe, waiter) {
                Ok(cqe) => self.write_cache = cqe.dw0.get() & 1 == 1,
                // Not told: it is taken to be on.
                Err(AdminError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn ask_for_events(&mut self, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        let offered = EventConfig(self.identify.oaes.get());
        // Every critical warning, and namespaces that change.
        let config = EventConfig(0).with_smart(0x1f).with_ns_attribute(offered.ns_attribute());
        let sqe = command::set_features(Fid::ASYNC_EVENT_CONFIG, config.0);
        match self.execute("Set Features (Asynchronous Event Configuration)", sqe, waiter) {
            Ok(_) => {}
            Err(AdminError::Refused { status, .. }) => tracing::debug!(?status, "events cannot be chosen"),
            Err(error) => return Err(error),
        }
        let count = (u16::from(self.identify.aerl0) + 1).min(EVENTS_MAX);
        self.events_owed = (0..count).map(|number| EVENT_CID | number).collect();
        self.next_event().map(|event| self.events.extend(event))
    }

    fn offer_shadows(&mut self, waiter: &mut dyn Waiter) -> Result<(), AdminError> {
        self.has_shadows = false;
        if !OptionalAdmin(self.identify.oacs.get()).dbcs() {
            return Ok(());
        }
        if self.shadows.is_none() {
            let page_bytes = 4096 << self.cap.mpsmin();
            let pages = ShadowPages::new(page_bytes, self.cap.dstrd(), &mut self.translator);
            self.shadows = pages.map(Arc::new);
        }
        let Some(pages) = self.shadows.clone() else { return Err(AdminError::Memory) };
        pages.clear();
        let (shadow, events) = pages.iovas;
        match self.execute("Doorbell Buffer Config", command::doorbell_buffers(shadow, events), waiter) {
            Ok(_) => self.has_shadows = true,
            // The registers do as well.
            Err(AdminError::Refused { status, .. }) => tracing::debug!(?status, "no shadow doorbells"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take_event(&mut self, cqe: &Cqe) -> Result<(), AdminError> {
        let cid = cqe.cid.get();
        if cid & EVENT_CID == 0 {
            // The late answer to a command that was given up.
            tracing::debug!(cid, "a late answer on the admin queue");
            return Ok(());
        }
        // A refused request is not repeated.
        if cqe.status().is_success() {
            self.events_owed.push(cid);
            self.events.push_back(EventResult(cqe.dw0.get()));
        }
        Ok(())
    }
}
