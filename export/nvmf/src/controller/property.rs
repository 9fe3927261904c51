//! Controller properties (Base 3.1.4): CAP, VS, CC, CSTS, CRTO, and what writing CC does.

use penstock_reactor::Tick;
use penstock_spec::nvme::{Sqe, Status};
use penstock_spec::nvmf::property::{
    Cap, Cc, Crto, Csts, NSSR_RESET, PropertyGetCmd, PropertySetCmd, PropertySize, ShutdownNotification,
    ShutdownStatus, Vs, offset,
};

use super::{Completion, Controller, INVALID_FIELD};
use crate::transport_options::TransportOptions;

/// VS: NVM Express Base Specification 2.0.
pub(super) fn version() -> Vs {
    Vs::new(2, 0, 0)
}

/// CAP.TO and CRTO.CRWMT: enabling takes no time; 500 ms is the least that can be said.
const READY_TIMEOUT_500MS: u8 = 1;
/// CC.IOSQES: log2 of 64.
const IOSQES: u8 = 6;
/// CC.IOCQES: log2 of 16.
const IOCQES: u8 = 4;
/// CC.CSS: the NVM command set.
const CSS_NVM: u8 = 0;
/// CC.CSS: all command sets of CNS 1Ch.
const CSS_IOCS: u8 = 6;

/// What writing CC asks of the controller around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Enabled,
    /// CC.EN went from 1 to 0.
    Reset,
    /// CC.SHN was set.
    Shutdown,
}

/// The registers.
#[derive(Debug)]
pub(super) struct Properties {
    cap: Cap,
    cc: Cc,
    csts: Csts,
    /// CSTS.NSSRO, until the host clears it.
    nssro: bool,
}

impl Properties {
    pub(super) fn new(options: &TransportOptions, nssr: bool) -> Self {
        let cap = Cap(0)
            .with_mqes0(options.max_queue_depth.saturating_sub(1))
            .with_cqr(true)
            .with_to(READY_TIMEOUT_500MS)
            .with_nssrs(nssr)
            .with_css_nvm(true)
            .with_css_iocs(true)
            .with_crms(1);
        Self { cap, cc: Cc(0), csts: Csts(0), nssro: false }
    }

    /// Enabled, ready, not shut down and not failed.
    pub(super) fn is_ready(&self) -> bool {
        self.cc.en() && self.csts.rdy() && !self.csts.cfs() && self.csts.shst() == ShutdownStatus::NORMAL.0
    }

    /// Controller Fatal Status: the keep-alive timer expired.
    pub(super) fn fail(&mut self) {
        self.csts = self.csts.with_cfs(true);
    }

    /// What waited for the I/O queues is complete.
    pub(super) fn io_queues_gone(&mut self) {
        if !self.cc.en() {
            self.csts = Csts(0);
        } else if self.csts.shst() == ShutdownStatus::OCCURRING.0 {
            self.csts = self.csts.with_shst(ShutdownStatus::COMPLETE.0);
        }
    }

    /// CC.IOSQES and CC.IOCQES must be right before an I/O queue is made.
    pub(super) fn io_entry_sizes(&self) -> Result<(), Status> {
        if self.cc.iosqes() == IOSQES && self.cc.iocqes() == IOCQES {
            return Ok(());
        }
        Err(INVALID_FIELD)
    }

    fn read(&self, ofst: u32, size: PropertySize) -> Result<u64, Status> {
        let crto = Crto(0).with_crwmt(u16::from(READY_TIMEOUT_500MS));
        match (ofst, size) {
            (offset::CAP, PropertySize::Eight) => Ok(self.cap.0),
            (offset::VS, PropertySize::Four) => Ok(u64::from(version().0)),
            (offset::CC, PropertySize::Four) => Ok(u64::from(self.cc.0)),
            (offset::CSTS, PropertySize::Four) => Ok(u64::from(self.csts.with_nssro(self.nssro).0)),
            (offset::CRTO, PropertySize::Four) => Ok(u64::from(crto.0)),
            // It reads as zero, whether it is offered or not.
            (offset::NSSR, PropertySize::Four) => Ok(0),
            _ => Err(INVALID_FIELD),
        }
    }

    /// Writes NSSR; whether the subsystem is to be reset.
    fn write_nssr(&self, value: u32) -> Result<bool, Status> {
        if self.cap.nssrs() { Ok(value == NSSR_RESET) } else { Err(INVALID_FIELD) }
    }

    /// Writes CSTS: only NSSRO can be written, and only be cleared (by 1).
    fn write_csts(&mut self, csts: Csts) -> Result<(), Status> {
        if !self.cap.nssrs() {
            return Err(INVALID_FIELD);
        }
        self.nssro &= !csts.nssro();
        Ok(())
    }

    /// NVM Subsystem Reset: as if the host had cleared CC.EN, and it is told. Whether there is something to reset.
    fn subsystem_reset(&mut self) -> bool {
        self.nssro = true;
        let was_enabled = self.cc.en();
        self.cc = Cc(0);
        was_enabled
    }

    fn write_cc(&mut self, cc: Cc) -> Result<Change, Status> {
        let shutdown = ShutdownNotification(cc.shn());
        if shutdown.name().is_none() {
            return Err(INVALID_FIELD);
        }
        let before = self.cc;
        if cc.en() && !before.en() {
            self.check_enable(cc)?;
            self.cc = cc;
            self.csts = Csts(0).with_rdy(true);
            if shutdown != ShutdownNotification::NONE {
                self.csts = self.csts.with_shst(ShutdownStatus::OCCURRING.0);
                return Ok(Change::Shutdown);
            }
            return Ok(Change::Enabled);
        }
        if cc.en() && (cc.css(), cc.mps(), cc.ams()) != (before.css(), before.mps(), before.ams()) {
            return Err(INVALID_FIELD);
        }
        self.cc = cc;
        if before.en() && !cc.en() {
            return Ok(Change::Reset);
        }
        let asked_now =
            shutdown != ShutdownNotification::NONE && before.shn() == ShutdownNotification::NONE.0;
        if cc.en() && asked_now && self.csts.shst() == ShutdownStatus::NORMAL.0 {
            self.csts = self.csts.with_shst(ShutdownStatus::OCCURRING.0);
            return Ok(Change::Shutdown);
        }
        if !cc.en() && asked_now {
            // Not enabled: there is nothing to shut down.
            self.csts = self.csts.with_shst(ShutdownStatus::COMPLETE.0);
        }
        Ok(Change::None)
    }

    fn check_enable(&self, cc: Cc) -> Result<(), Status> {
        let css = cc.css() == CSS_NVM || cc.css() == CSS_IOCS;
        // A reset that waits for I/O queues to end is not over (CSTS.RDY is still 1).
        if self.csts.rdy() {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        if !css || cc.mps() > self.cap.mpsmax() || cc.ams() != 0 || cc.crime() {
            return Err(INVALID_FIELD);
        }
        Ok(())
    }
}

impl Controller {
    pub(super) fn property_get(&self, sqe: &Sqe) -> Result<Completion, Status> {
        let cmd = PropertyGetCmd::from_sqe(sqe);
        let size = PropertySize::from_attrib(cmd.attrib).ok_or(INVALID_FIELD)?;
        let value = self.properties.read(cmd.ofst.get(), size)?;
        #[expect(clippy::cast_possible_truncation, reason = "the value is split into its halves")]
        let (dw0, dw1) = (value as u32, (value >> 32) as u32);
        Ok(Completion { status: Status::SUCCESS, dw0, dw1 })
    }

    pub(super) fn property_set(&mut self, sqe: &Sqe, now: Tick) -> Result<Completion, Status> {
        let cmd = PropertySetCmd::from_sqe(sqe);
        let size = PropertySize::from_attrib(cmd.attrib).ok_or(INVALID_FIELD)?;
        let value = u32::try_from(cmd.value.get() & u64::from(u32::MAX)).map_err(|_| INVALID_FIELD)?;
        match (cmd.ofst.get(), size) {
            (offset::CC, PropertySize::Four) => {}
            (offset::NSSR, PropertySize::Four) => {
                self.subsystem_reset |= self.properties.write_nssr(value)?;
                return Ok(Completion::ok(0));
            }
            (offset::CSTS, PropertySize::Four) => {
                self.properties.write_csts(Csts(value))?;
                return Ok(Completion::ok(0));
            }
            _ => return Err(INVALID_FIELD),
        }
        match self.properties.write_cc(Cc(value))? {
            Change::None => {}
            Change::Enabled => {
                self.begin_instance();
                self.keep_alive.set_running(true, now);
            }
            Change::Reset => {
                self.reset(now);
                self.tear_down_io();
            }
            Change::Shutdown => {
                if self.ciu == 0 {
                    self.begin_instance();
                }
                self.keep_alive.set_running(false, now);
                self.tear_down_io();
            }
        }
        self.shared.set_ready(self.properties.is_ready());
        Ok(Completion::ok(0))
    }

    /// NVM Subsystem Reset (Base 3.7.1): the controller is reset, and says so in CSTS.
    pub fn subsystem_reset(&mut self, now: Tick) {
        if self.properties.subsystem_reset() {
            self.reset(now);
            self.tear_down_io();
        }
    }

    /// A controller level reset (Base 3.7.2): everything but the association and its error log is as after Connect.
    fn reset(&mut self, now: Tick) {
        let held = self.events.reset();
        self.ended.extend(held.into_iter().map(|cid| (cid, Status::ABORTED_SQ_DELETION)));
        self.features.reset();
        self.changed.clear();
        self.notices.reset();
        self.keep_alive.set_running(false, now);
    }

    fn tear_down_io(&mut self) {
        self.shared.set_ready(false);
        if self.shared.queues() == 0 {
            self.properties.io_queues_gone();
        } else {
            self.io_teardown = true;
        }
    }
}
