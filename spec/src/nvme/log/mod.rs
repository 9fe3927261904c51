//! Log pages (Base 5.2.13 "Get Log Page command").

pub mod ana;
pub mod health;
pub mod support;

use zerocopy::little_endian::{U16, U32, U64};

use super::command::sqe_view;
use super::sgl::SglDescriptor;

codes! {
    /// Log Page Identifier (LID) (Base, Figure "Get Log Page - Log Page Identifiers").
    pub struct Lid(u8) {
        SUPPORTED_LOG_PAGES = 0x00, "Supported Log Pages";
        ERROR_INFORMATION = 0x01, "Error Information";
        SMART_HEALTH = 0x02, "SMART / Health Information";
        FIRMWARE_SLOT = 0x03, "Firmware Slot Information";
        CHANGED_NS_LIST = 0x04, "Changed Attached Namespace List";
        COMMANDS_SUPPORTED = 0x05, "Commands Supported and Effects";
        DEVICE_SELF_TEST = 0x06, "Device Self-test";
        TELEMETRY_HOST = 0x07, "Telemetry Host-Initiated";
        TELEMETRY_CONTROLLER = 0x08, "Telemetry Controller-Initiated";
        ENDURANCE_GROUP = 0x09, "Endurance Group Information";
        PREDICTABLE_LATENCY_NVM_SET = 0x0a, "Predictable Latency Per NVM Set";
        PREDICTABLE_LATENCY_AGGREGATE = 0x0b, "Predictable Latency Event Aggregate";
        ANA = 0x0c, "Asymmetric Namespace Access";
        PERSISTENT_EVENT = 0x0d, "Persistent Event Log";
        LBA_STATUS = 0x0e, "LBA Status Information";
        ENDURANCE_GROUP_AGGREGATE = 0x0f, "Endurance Group Event Aggregate";
        MEDIA_UNIT_STATUS = 0x10, "Media Unit Status";
        SUPPORTED_CAPACITY_CONFIGURATION = 0x11, "Supported Capacity Configuration List";
        FEATURES_SUPPORTED = 0x12, "Feature Identifiers Supported and Effects";
        NVME_MI_COMMANDS_SUPPORTED = 0x13, "NVMe-MI Commands Supported and Effects";
        COMMAND_AND_FEATURE_LOCKDOWN = 0x14, "Command and Feature Lockdown";
        BOOT_PARTITION = 0x15, "Boot Partition";
        ROTATIONAL_MEDIA = 0x16, "Rotational Media Information";
        DISPERSED_NS = 0x17, "Dispersed Namespace Participating NVM Subsystems";
        MANAGEMENT_ADDRESS_LIST = 0x18, "Management Address List";
        PHY_RX_EYE_OPENING = 0x19, "Physical Interface Receiver Eye Opening Measurement";
        REACHABILITY_GROUPS = 0x1a, "Reachability Groups";
        REACHABILITY_ASSOCIATIONS = 0x1b, "Reachability Associations";
        CHANGED_ALLOCATED_NS_LIST = 0x1c, "Changed Allocated Namespace List";
        DEVICE_PERSONALITIES = 0x1d, "Device Personalities";
        CROSS_CONTROLLER_RESET = 0x1e, "Cross-Controller Reset";
        LOST_HOST_COMMUNICATION = 0x1f, "Lost Host Communication";
        FDP_CONFIGURATIONS = 0x20, "FDP Configurations";
        RECLAIM_UNIT_HANDLE_USAGE = 0x21, "Reclaim Unit Handle Usage";
        FDP_STATISTICS = 0x22, "FDP Statistics";
        FDP_EVENTS = 0x23, "FDP Events";
        DISCOVERY = 0x70, "Discovery";
        HOST_DISCOVERY = 0x71, "Host Discovery";
        AVE_DISCOVERY = 0x72, "AVE Discovery";
        PULL_MODEL_DDC_REQUEST = 0x73, "Pull Model DDC Request";
        RESERVATION_NOTIFICATION = 0x80, "Reservation Notification";
        SANITIZE_STATUS = 0x81, "Sanitize Status";
        CHANGED_ZONE_LIST = 0xbf, "Changed Zone List";
    }
}

wire! {
    /// Get Log Page (Base 5.2.13).
    pub struct GetLogPageCmd[64] {
        /// Opcode 02h.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Namespace Identifier.
        pub nsid @ 4: U32,
        rsvd8 @ 8: [u8; 8],
        /// Metadata Pointer.
        pub mptr @ 16: U64,
        /// SGL Entry 1.
        pub sgl1 @ 24: SglDescriptor,
        /// Log Page Identifier.
        pub lid @ 40: Lid,
        /// Log Specific Parameter (bits 6:0), Retain Asynchronous Event (bit 7).
        pub lsp_rae @ 41: u8,
        /// Number of Dwords Lower, 0's based together with `numdu`.
        pub numdl @ 42: U16,
        /// Number of Dwords Upper.
        pub numdu @ 44: U16,
        /// Log Specific Identifier.
        pub lsi @ 46: U16,
        /// Log Page Offset: bytes, or an index when `csi_ot` says so. The low two bits of a byte offset are zero.
        pub lpo @ 48: U64,
        /// CDW14: UUID Index (6:0), Offset Type (23), Command Set Identifier (31:24).
        pub cdw14 @ 56: U32,
        rsvd60 @ 60: [u8; 4],
    }
}

sqe_view!(GetLogPageCmd);

impl GetLogPageCmd {
    /// Bytes asked for: the 0's based number of dwords, times four; 4..=2^34.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        let numd0 = (u64::from(self.numdu.get()) << 16) | u64::from(self.numdl.get());
        (numd0 + 1) * 4
    }

    /// Retain Asynchronous Event: reading the page does not clear the event.
    #[must_use]
    pub const fn rae(&self) -> bool {
        self.lsp_rae & 0x80 != 0
    }

    /// Log Specific Parameter.
    #[must_use]
    pub const fn lsp(&self) -> u8 {
        self.lsp_rae & 0x7f
    }

    /// Offset Type: whether LPO is an index rather than a byte offset.
    #[must_use]
    pub fn offset_is_index(&self) -> bool {
        self.cdw14.get() & (1 << 23) != 0
    }
}

wire! {
    /// Reservation Notification log page (Base 5.2.13.1.30).
    pub struct ReservationNotificationLog[64] {
        /// Log Page Count; 0 means that the page is empty.
        pub count @ 0: U64,
        /// Reservation Notification Log Page Type.
        pub log_type @ 8: ReservationLogType,
        /// Number of Available Log Pages, saturating at 255.
        pub available @ 9: u8,
        rsvd10 @ 10: [u8; 2],
        /// Namespace Identifier.
        pub nsid @ 12: U32,
        rsvd16 @ 16: [u8; 48],
    }
}

codes! {
    /// Type of a Reservation Notification log page.
    pub struct ReservationLogType(u8) {
        EMPTY = 0x0, "Empty Log Page";
        REGISTRATION_PREEMPTED = 0x1, "Registration Preempted";
        RESERVATION_RELEASED = 0x2, "Reservation Released";
        RESERVATION_PREEMPTED = 0x3, "Reservation Preempted";
    }
}

/// The most entries in the Changed Namespace List log page; more than that is told by one entry FFFFFFFFh.
pub const CHANGED_NS_MAX: usize = 1024;
