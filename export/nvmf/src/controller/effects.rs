//! What a controller supports, as one table for the dispatcher and for the log pages that tell of it.

use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::support::{
    CommandEffects, CommandsSupportedLog, FeatureEffects, FeaturesSupportedLog, LogSupport, SupportedLogPages,
};
use penstock_spec::nvme::{AdminOpcode, NvmOpcode};
use zerocopy::little_endian::U32;

use super::feature::FEATURES;
use crate::io_cmd;
use crate::reservation::is_reservation;

/// Admin commands of I/O controllers, and whether discovery controllers have them too.
const ADMIN: &[(AdminOpcode, bool)] = &[
    (AdminOpcode::GET_LOG_PAGE, true),
    (AdminOpcode::IDENTIFY, true),
    (AdminOpcode::ABORT, true),
    (AdminOpcode::SET_FEATURES, true),
    (AdminOpcode::GET_FEATURES, true),
    (AdminOpcode::ASYNC_EVENT_REQUEST, true),
    (AdminOpcode::KEEP_ALIVE, true),
    (AdminOpcode::CROSS_CONTROLLER_RESET, false),
];

/// What kind of controller it is, as far as its log pages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Discovery,
    Io,
    /// With ANA reporting.
    IoAna,
}

/// Which kinds of controllers have a log page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    All,
    Io,
    Discovery,
    Ana,
}

/// Log pages.
const LOGS: &[(Lid, On)] = &[
    (Lid::SUPPORTED_LOG_PAGES, On::All),
    (Lid::ERROR_INFORMATION, On::All),
    (Lid::SMART_HEALTH, On::Io),
    (Lid::FIRMWARE_SLOT, On::Io),
    (Lid::CHANGED_NS_LIST, On::Io),
    (Lid::COMMANDS_SUPPORTED, On::Io),
    (Lid::ANA, On::Ana),
    (Lid::CROSS_CONTROLLER_RESET, On::Io),
    (Lid::FEATURES_SUPPORTED, On::All),
    (Lid::NVME_MI_COMMANDS_SUPPORTED, On::Io),
    (Lid::DISCOVERY, On::Discovery),
    (Lid::RESERVATION_NOTIFICATION, On::Io),
];

/// FSP bit 1: the feature belongs to the controller; bit 0: to a namespace.
const SCOPE_CONTROLLER: u16 = 1 << 1;
const SCOPE_NAMESPACE: u16 = 1;

pub(super) fn admin_supported(opcode: AdminOpcode, discovery: bool) -> bool {
    ADMIN.iter().any(|(known, both)| *known == opcode && (*both || !discovery))
}

pub(super) fn log_supported(lid: Lid, kind: Kind) -> bool {
    let has = |on| match on {
        On::All => true,
        On::Io => kind != Kind::Discovery,
        On::Discovery => kind == Kind::Discovery,
        On::Ana => kind == Kind::IoAna,
    };
    LOGS.iter().any(|(known, on)| *known == lid && has(*on))
}

/// LID 00h.
pub(super) fn supported_log_pages(kind: Kind) -> SupportedLogPages {
    let mut page = SupportedLogPages::default();
    for (lid, entry) in (0..=u8::MAX).zip(page.lids.iter_mut()) {
        *entry = U32::new(LogSupport(0).with_lsupp(log_supported(Lid(lid), kind)).0);
    }
    page
}

/// LID 05h.
pub(super) fn commands_supported(discovery: bool) -> CommandsSupportedLog {
    let mut page = CommandsSupportedLog::default();
    let supported = CommandEffects(0).with_csupp(true);
    for (opcode, entry) in (0..=u8::MAX).zip(page.acs.iter_mut()) {
        if admin_supported(AdminOpcode(opcode), discovery) {
            *entry = U32::new(supported.0);
        }
    }
    for (opcode, entry) in (0..=u8::MAX).zip(page.iocs.iter_mut()) {
        let opcode = NvmOpcode(opcode);
        if discovery || !(io_cmd::is_supported(opcode) || is_reservation(opcode)) {
            continue;
        }
        let changes = matches!(
            opcode,
            NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES | NvmOpcode::DATASET_MANAGEMENT | NvmOpcode::COPY
        );
        *entry = U32::new(supported.with_lbcc(changes).0);
    }
    page
}

/// LID 12h.
pub(super) fn features_supported(discovery: bool) -> FeaturesSupportedLog {
    let mut page = FeaturesSupportedLog::default();
    for feature in FEATURES.iter().filter(|feature| feature.discovery || !discovery) {
        let scope = if feature.ns_specific { SCOPE_NAMESPACE } else { SCOPE_CONTROLLER };
        if let Some(entry) = page.fids.get_mut(usize::from(feature.fid.0)) {
            *entry = U32::new(FeatureEffects(0).with_fsupp(true).with_fsp(scope).0);
        }
    }
    page
}
