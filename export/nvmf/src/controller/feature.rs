//! Get Features and Set Features (Base 5.2.12, 5.2.26). No feature is saveable, and none is refused silently.

use penstock_reactor::Tick;
use penstock_spec::nvme::event::EventConfig;
use penstock_spec::nvme::feature::{
    Arbitration, FeatureCapabilities, FeatureSelect, Fid, GetFeaturesDw10, HostIdentifier, NumberOfQueues,
    PowerManagement, SetFeaturesDw10, TemperatureThreshold, VolatileWriteCache, WriteAtomicityNormal,
};
use penstock_spec::nvme::{NSID_ALL, Sqe, Status};

use super::{Completion, Controller, INVALID_FIELD, SEQUENCE_ERROR};
use crate::transport_options::TransportOptions;

/// TMPTH of the over temperature threshold unless set: never reached.
const OVER_THRESHOLD_K: u16 = 0xffff;

/// What of a feature can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FeatureInfo {
    pub(super) fid: Fid,
    pub(super) changeable: bool,
    pub(super) ns_specific: bool,
    /// Discovery controllers have it too.
    pub(super) discovery: bool,
}

const fn info(fid: Fid, changeable: bool, ns_specific: bool, discovery: bool) -> FeatureInfo {
    FeatureInfo { fid, changeable, ns_specific, discovery }
}

/// Every feature of this target.
pub(super) const FEATURES: &[FeatureInfo] = &[
    info(Fid::ARBITRATION, true, false, false),
    info(Fid::POWER_MANAGEMENT, true, false, false),
    info(Fid::TEMPERATURE_THRESHOLD, true, false, false),
    info(Fid::ERROR_RECOVERY, false, true, false),
    info(Fid::VOLATILE_WRITE_CACHE, false, false, false),
    info(Fid::NUMBER_OF_QUEUES, true, false, false),
    info(Fid::WRITE_ATOMICITY_NORMAL, true, false, false),
    info(Fid::ASYNC_EVENT_CONFIG, true, false, true),
    info(Fid::KEEP_ALIVE_TIMER, true, false, true),
    info(Fid::IO_COMMAND_SET_PROFILE, true, false, false),
    info(Fid::HOST_IDENTIFIER, false, false, false),
    info(Fid::RESERVATION_NOTIFICATION_MASK, true, true, false),
    info(Fid::RESERVATION_PERSISTENCE, true, true, false),
];

/// Values of the features that are nothing but values.
#[derive(Debug)]
pub(super) struct Features {
    arbitration: Arbitration,
    power: PowerManagement,
    over_k: u16,
    under_k: u16,
    atomicity: WriteAtomicityNormal,
    /// Queues that the transport allows, 0's based.
    queues_max0: u16,
    /// Queues given to the host, 0's based.
    queues0: u16,
}

impl Features {
    pub(super) fn new(options: &TransportOptions) -> Self {
        let queues_max0 = options.max_io_qpairs_per_ctrlr.saturating_sub(1);
        Self {
            arbitration: Arbitration(0),
            power: PowerManagement(0),
            over_k: OVER_THRESHOLD_K,
            under_k: 0,
            atomicity: WriteAtomicityNormal(0),
            queues_max0,
            queues0: queues_max0,
        }
    }

    /// Back to the defaults.
    pub(super) fn reset(&mut self) {
        let (queues_max0, queues0) = (self.queues_max0, self.queues_max0);
        *self = Self { queues_max0, queues0, ..Self::new(&TransportOptions::default()) };
    }
}

impl Controller {
    fn feature(&self, fid: u8) -> Result<FeatureInfo, Status> {
        let known = FEATURES.iter().find(|known| known.fid.0 == fid);
        known.copied().filter(|known| known.discovery || !self.is_discovery()).ok_or(INVALID_FIELD)
    }

    pub(super) fn get_features(&self, sqe: &Sqe, out: &mut Vec<u8>) -> Result<Completion, Status> {
        let dw10 = GetFeaturesDw10(sqe.cdw10.get());
        let feature = self.feature(dw10.fid())?;
        let nsid = sqe.nsid.get();
        if feature.ns_specific && self.params.subsystem.namespace(nsid).is_none() && nsid != NSID_ALL {
            return Err(self.no_namespace(nsid));
        }
        if feature.ns_specific {
            self.path_open(nsid)?;
        }
        match FeatureSelect(dw10.sel()) {
            FeatureSelect::CURRENT => self.current(feature.fid, sqe, out),
            // Nothing is saved, so that the saved value is the default (Base 4.4).
            FeatureSelect::DEFAULT | FeatureSelect::SAVED => self.default_value(feature.fid, sqe, out),
            FeatureSelect::SUPPORTED_CAPABILITIES => {
                let capabilities = FeatureCapabilities(0)
                    .with_changeable(feature.changeable)
                    .with_ns_specific(feature.ns_specific);
                Ok(Completion::ok(capabilities.0))
            }
            _ => Err(INVALID_FIELD),
        }
    }

    fn current(&self, fid: Fid, sqe: &Sqe, out: &mut Vec<u8>) -> Result<Completion, Status> {
        let values = &self.features;
        let dw0 = match fid {
            Fid::ARBITRATION => values.arbitration.0,
            Fid::POWER_MANAGEMENT => values.power.0,
            Fid::TEMPERATURE_THRESHOLD => return threshold(values, sqe),
            Fid::NUMBER_OF_QUEUES => queues(values.queues0, values.queues0),
            Fid::WRITE_ATOMICITY_NORMAL => values.atomicity.0,
            Fid::ASYNC_EVENT_CONFIG => self.events.config().0,
            Fid::KEEP_ALIVE_TIMER => self.keep_alive.kato_ms(),
            Fid::RESERVATION_NOTIFICATION_MASK | Fid::RESERVATION_PERSISTENCE => {
                return self.reservation_feature(fid, sqe.nsid.get());
            }
            _ => return self.default_value(fid, sqe, out),
        };
        Ok(Completion::ok(dw0))
    }

    fn default_value(&self, fid: Fid, sqe: &Sqe, out: &mut Vec<u8>) -> Result<Completion, Status> {
        let dw0 = match fid {
            Fid::TEMPERATURE_THRESHOLD => {
                return threshold(&Features::new(&self.params.options), sqe);
            }
            Fid::VOLATILE_WRITE_CACHE => VolatileWriteCache(0).with_wce(true).0,
            Fid::NUMBER_OF_QUEUES => queues(self.features.queues_max0, self.features.queues_max0),
            Fid::HOST_IDENTIFIER => {
                // Over fabrics the identifier always has 128 bits (Base 5.2.26.1.26).
                if !HostIdentifier(sqe.cdw11.get()).exhid() {
                    return Err(INVALID_FIELD);
                }
                out.extend_from_slice(&self.params.hostid);
                HostIdentifier(0).with_exhid(true).0
            }
            _ => 0,
        };
        Ok(Completion::ok(dw0))
    }

    pub(super) fn set_features(&mut self, sqe: &Sqe, now: Tick) -> Result<Completion, Status> {
        let dw10 = SetFeaturesDw10(sqe.cdw10.get());
        let feature = self.feature(dw10.fid())?;
        if dw10.sv() {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        let nsid = sqe.nsid.get();
        if !feature.ns_specific && nsid != 0 && nsid != NSID_ALL {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
        }
        if feature.ns_specific {
            self.path_open(nsid)?;
        }
        let value = sqe.cdw11.get();
        let dw0 = match feature.fid {
            Fid::ARBITRATION => self.set_arbitration(value)?,
            Fid::POWER_MANAGEMENT => self.set_power(value)?,
            Fid::TEMPERATURE_THRESHOLD => self.set_threshold(value)?,
            Fid::NUMBER_OF_QUEUES => self.set_queues(value)?,
            Fid::WRITE_ATOMICITY_NORMAL => self.set_atomicity(value)?,
            Fid::ASYNC_EVENT_CONFIG => self.set_event_config(value)?,
            Fid::KEEP_ALIVE_TIMER => {
                self.keep_alive.set_kato_ms(value, now);
                0
            }
            Fid::RESERVATION_NOTIFICATION_MASK => {
                if nsid != NSID_ALL && self.params.subsystem.namespace(nsid).is_none() {
                    return Err(self.no_namespace(nsid));
                }
                self.set_notification_mask(nsid, value)
            }
            // There is one combination of command sets, and it has the index 0.
            Fid::IO_COMMAND_SET_PROFILE if value & 0x1ff == 0 => 0,
            Fid::IO_COMMAND_SET_PROFILE => {
                return Err(Status::IO_COMMAND_SET_COMBINATION_REJECTED.with_dnr());
            }
            // It comes with Connect (Base 5.2.26.1.26).
            Fid::HOST_IDENTIFIER => return Err(SEQUENCE_ERROR),
            Fid::VOLATILE_WRITE_CACHE if value & 1 == 1 => 0,
            Fid::ERROR_RECOVERY if value == 0 => 0,
            _ => return Err(Status::FEATURE_NOT_CHANGEABLE.with_dnr()),
        };
        Ok(Completion::ok(dw0))
    }

    fn set_arbitration(&mut self, value: u32) -> Result<u32, Status> {
        if value & 0xf8 != 0 {
            return Err(INVALID_FIELD);
        }
        self.features.arbitration = Arbitration(value);
        Ok(0)
    }

    fn set_power(&mut self, value: u32) -> Result<u32, Status> {
        let power = PowerManagement(value);
        if power.ps() != 0 {
            return Err(INVALID_FIELD);
        }
        self.features.power = PowerManagement(0).with_wh(power.wh());
        Ok(0)
    }

    fn set_atomicity(&mut self, value: u32) -> Result<u32, Status> {
        self.features.atomicity = WriteAtomicityNormal(value & 1);
        Ok(0)
    }

    fn set_threshold(&mut self, value: u32) -> Result<u32, Status> {
        let asked = TemperatureThreshold(value);
        let (composite, all_sensors) = (0, 0xf);
        if asked.tmpsel() != composite && asked.tmpsel() != all_sensors {
            return Err(INVALID_FIELD);
        }
        match asked.thsel() {
            0 => self.features.over_k = asked.tmpth(),
            1 => self.features.under_k = asked.tmpth(),
            _ => return Err(INVALID_FIELD),
        }
        Ok(0)
    }

    fn set_queues(&mut self, value: u32) -> Result<u32, Status> {
        let asked = NumberOfQueues(value);
        if asked.nsq0() == u16::MAX || asked.ncq0() == u16::MAX {
            return Err(INVALID_FIELD);
        }
        if self.shared.queues() > 0 {
            return Err(SEQUENCE_ERROR);
        }
        // Over fabrics a queue pair is one of each.
        let granted = asked.nsq0().max(asked.ncq0()).min(self.features.queues_max0);
        self.features.queues0 = granted;
        Ok(queues(granted, granted))
    }

    fn set_event_config(&mut self, value: u32) -> Result<u32, Status> {
        let asked = EventConfig(value);
        let offered = self.offered_events().0 | EventConfig(0).with_smart(0xff).0;
        if asked.0 & !offered != 0 {
            return Err(INVALID_FIELD);
        }
        self.events.set_config(asked);
        Ok(0)
    }

    /// OAES: the notices that this kind of controller sends.
    pub(super) fn offered_events(&self) -> EventConfig {
        if self.is_discovery() {
            EventConfig(0).with_discovery_log(true)
        } else {
            EventConfig(0)
                .with_ns_attribute(true)
                .with_ana_change(self.params.subsystem.ana_reporting)
                .with_cross_reset(true)
        }
    }

    /// I/O queues that the host may connect: identifiers 1..=this.
    #[must_use]
    pub fn io_queues_max(&self) -> u16 {
        self.features.queues0.saturating_add(1)
    }
}

fn queues(nsq0: u16, ncq0: u16) -> u32 {
    NumberOfQueues(0).with_nsq0(nsq0).with_ncq0(ncq0).0
}

/// The threshold that CDW11 selects; there are no sensors but the composite temperature.
fn threshold(values: &Features, sqe: &Sqe) -> Result<Completion, Status> {
    let asked = TemperatureThreshold(sqe.cdw11.get());
    let kelvins = match (asked.tmpsel(), asked.thsel()) {
        (0, 0) => values.over_k,
        (0, 1) => values.under_k,
        _ => return Err(INVALID_FIELD),
    };
    Ok(Completion::ok(TemperatureThreshold(0).with_tmpth(kelvins).0))
}
