//! Features (Base 5.2.26 "Set Features command", 5.2.12 "Get Features command").

use zerocopy::little_endian::U64;

codes! {
    /// Feature Identifier (FID) (Base, Figure "Set Features - Feature Identifiers").
    pub struct Fid(u8) {
        ARBITRATION = 0x01, "Arbitration";
        POWER_MANAGEMENT = 0x02, "Power Management";
        LBA_RANGE_TYPE = 0x03, "LBA Range Type";
        TEMPERATURE_THRESHOLD = 0x04, "Temperature Threshold";
        ERROR_RECOVERY = 0x05, "Error Recovery";
        VOLATILE_WRITE_CACHE = 0x06, "Volatile Write Cache";
        NUMBER_OF_QUEUES = 0x07, "Number of Queues";
        INTERRUPT_COALESCING = 0x08, "Interrupt Coalescing";
        INTERRUPT_VECTOR_CONFIG = 0x09, "Interrupt Vector Configuration";
        WRITE_ATOMICITY_NORMAL = 0x0a, "Write Atomicity Normal";
        ASYNC_EVENT_CONFIG = 0x0b, "Asynchronous Event Configuration";
        AUTONOMOUS_POWER_STATE_TRANSITION = 0x0c, "Autonomous Power State Transition";
        HOST_MEMORY_BUFFER = 0x0d, "Host Memory Buffer";
        TIMESTAMP = 0x0e, "Timestamp";
        KEEP_ALIVE_TIMER = 0x0f, "Keep Alive Timer";
        HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10, "Host Controlled Thermal Management";
        NON_OPERATIONAL_POWER_STATE_CONFIG = 0x11, "Non-Operational Power State Config";
        READ_RECOVERY_LEVEL_CONFIG = 0x12, "Read Recovery Level Config";
        PREDICTABLE_LATENCY_MODE_CONFIG = 0x13, "Predictable Latency Mode Config";
        PREDICTABLE_LATENCY_MODE_WINDOW = 0x14, "Predictable Latency Mode Window";
        LBA_STATUS_INFORMATION = 0x15, "LBA Status Information Report Interval";
        HOST_BEHAVIOR_SUPPORT = 0x16, "Host Behavior Support";
        SANITIZE_CONFIG = 0x17, "Sanitize Config";
        ENDURANCE_GROUP_EVENT_CONFIG = 0x18, "Endurance Group Event Configuration";
        IO_COMMAND_SET_PROFILE = 0x19, "I/O Command Set Profile";
        SPINUP_CONTROL = 0x1a, "Spinup Control";
        POWER_LOSS_SIGNALING_CONFIG = 0x1b, "Power Loss Signaling Config";
        PERFORMANCE_CHARACTERISTICS = 0x1c, "Performance Characteristics";
        FLEXIBLE_DATA_PLACEMENT = 0x1d, "Flexible Data Placement";
        FLEXIBLE_DATA_PLACEMENT_EVENTS = 0x1e, "Flexible Data Placement Events";
        NAMESPACE_ADMIN_LABEL = 0x1f, "Namespace Admin Label";
        KEY_VALUE_CONFIG = 0x20, "Key Value Configuration";
        CONTROLLER_DATA_QUEUE = 0x21, "Controller Data Queue";
        EMBEDDED_MANAGEMENT_CONTROLLER_ADDRESS = 0x78, "Embedded Management Controller Address";
        HOST_MANAGEMENT_AGENT_ADDRESS = 0x79, "Host Management Agent Address";
        ENHANCED_CONTROLLER_METADATA = 0x7d, "Enhanced Controller Metadata";
        CONTROLLER_METADATA = 0x7e, "Controller Metadata";
        NAMESPACE_METADATA = 0x7f, "Namespace Metadata";
        SOFTWARE_PROGRESS_MARKER = 0x80, "Software Progress Marker";
        HOST_IDENTIFIER = 0x81, "Host Identifier";
        RESERVATION_NOTIFICATION_MASK = 0x82, "Reservation Notification Mask";
        RESERVATION_PERSISTENCE = 0x83, "Reservation Persistence";
        NAMESPACE_WRITE_PROTECTION_CONFIG = 0x84, "Namespace Write Protection Config";
        BOOT_PARTITION_WRITE_PROTECTION_CONFIG = 0x85, "Boot Partition Write Protection Config";
    }
}

codes! {
    /// Select (SEL), bits 10:8 of Get Features' CDW10.
    pub struct FeatureSelect(u8) {
        CURRENT = 0x0, "Current";
        DEFAULT = 0x1, "Default";
        SAVED = 0x2, "Saved";
        SUPPORTED_CAPABILITIES = 0x3, "Supported Capabilities";
    }
}

bits! {
    /// CDW10 of Get Features.
    pub struct GetFeaturesDw10(u32) {
        fid / with_fid: u8 @ 0, 8, "Feature Identifier";
        sel / with_sel: u8 @ 8, 3, "Select";
    }
}

bits! {
    /// CDW10 of Set Features.
    pub struct SetFeaturesDw10(u32) {
        fid / with_fid: u8 @ 0, 8, "Feature Identifier";
        sv / with_sv: bool @ 31, 1, "Save";
    }
}

bits! {
    /// Completion dword 0 of Get Features with SEL 011b (Supported Capabilities).
    pub struct FeatureCapabilities(u32) {
        saveable / with_saveable: bool @ 0, 1, "The feature is saveable";
        ns_specific / with_ns_specific: bool @ 1, 1, "The feature is namespace specific";
        changeable / with_changeable: bool @ 2, 1, "The feature is changeable";
    }
}

bits! {
    /// Arbitration (feature 01h).
    pub struct Arbitration(u32) {
        ab / with_ab: u8 @ 0, 3, "Arbitration Burst, log2; 7 is no limit";
        lpw / with_lpw: u8 @ 8, 8, "Low Priority Weight, 0's based";
        mpw / with_mpw: u8 @ 16, 8, "Medium Priority Weight, 0's based";
        hpw / with_hpw: u8 @ 24, 8, "High Priority Weight, 0's based";
    }
}

bits! {
    /// Power Management (feature 02h).
    pub struct PowerManagement(u32) {
        ps / with_ps: u8 @ 0, 5, "Power State";
        wh / with_wh: u8 @ 5, 3, "Workload Hint";
    }
}

bits! {
    /// Temperature Threshold (feature 04h).
    pub struct TemperatureThreshold(u32) {
        tmpth / with_tmpth: u16 @ 0, 16, "Temperature Threshold, kelvins";
        tmpsel / with_tmpsel: u8 @ 16, 4, "Threshold Temperature Select";
        thsel / with_thsel: u8 @ 20, 2, "Threshold Type Select: 0 over, 1 under";
        tmpthh / with_tmpthh: u8 @ 22, 3, "Temperature Threshold Hysteresis";
    }
}

bits! {
    /// Error Recovery (feature 05h).
    pub struct ErrorRecovery(u32) {
        tler / with_tler: u16 @ 0, 16, "Time Limited Error Recovery, 100 ms";
        dulbe / with_dulbe: bool @ 16, 1, "Deallocated or Unwritten Logical Block Error Enable";
    }
}

bits! {
    /// Volatile Write Cache (feature 06h).
    pub struct VolatileWriteCache(u32) {
        wce / with_wce: bool @ 0, 1, "Volatile Write Cache Enable";
    }
}

bits! {
    /// Number of Queues (feature 07h): requested in CDW11, allocated in completion dword 0. Both 0's based.
    pub struct NumberOfQueues(u32) {
        nsq0 / with_nsq0: u16 @ 0, 16, "I/O Submission Queues, 0's based";
        ncq0 / with_ncq0: u16 @ 16, 16, "I/O Completion Queues, 0's based";
    }
}

bits! {
    /// Write Atomicity Normal (feature 0Ah).
    pub struct WriteAtomicityNormal(u32) {
        dn / with_dn: bool @ 0, 1, "Disable Normal: AWUN and NAWUN need not be honoured";
    }
}

bits! {
    /// Host Identifier (feature 81h), CDW11.
    pub struct HostIdentifier(u32) {
        exhid / with_exhid: bool @ 0, 1, "Enable Extended (128-bit) Host Identifier";
    }
}

bits! {
    /// Reservation Notification Mask (feature 82h), CDW11.
    pub struct ReservationNotificationMask(u32) {
        regpre / with_regpre: bool @ 1, 1, "Mask Registration Preempted";
        resrel / with_resrel: bool @ 2, 1, "Mask Reservation Released";
        respre / with_respre: bool @ 3, 1, "Mask Reservation Preempted";
    }
}

bits! {
    /// Reservation Persistence (feature 83h), CDW11.
    pub struct ReservationPersistence(u32) {
        ptpl / with_ptpl: bool @ 0, 1, "Persist Through Power Loss";
    }
}

codes! {
    /// Write Protection State of feature 84h, bits 2:0.
    pub struct WriteProtection(u8) {
        NONE = 0x0, "No Write Protect";
        WRITE_PROTECT = 0x1, "Write Protect";
        UNTIL_POWER_CYCLE = 0x2, "Write Protect Until Power Cycle";
        PERMANENT = 0x3, "Permanent Write Protect";
    }
}

wire! {
    /// Timestamp (feature 0Eh), 8 bytes: 48 bits of milliseconds since 1970, then attributes.
    pub struct Timestamp[8] {
        /// Milliseconds in bits 47:0; Synch in bit 48, Timestamp Origin in bits 51:49.
        pub value @ 0: U64,
    }
}

impl Timestamp {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn ms(&self) -> u64 {
        self.value.get() & crate::wire::mask(48)
    }
}

wire! {
    /// Host Behavior Support (feature 16h).
    pub struct HostBehavior[512] {
        /// Advanced Command Retry Enable.
        pub acre @ 0: u8,
        /// Extended Telemetry Data Area 4 Supported.
        pub etdas @ 1: u8,
        /// LBA Format Extension Enable.
        pub lbafee @ 2: u8,
        /// Host Dispersed Namespace Support.
        pub hdisns @ 3: u8,
        /// Copy Descriptor Formats Enable.
        pub cdfe @ 4: zerocopy::little_endian::U16,
        rsvd6 @ 6: [u8; 506],
    }
}
