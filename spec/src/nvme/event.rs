//! Asynchronous events (Base 5.2.2 "Asynchronous Event Request command").

codes! {
    /// Asynchronous Event Type, bits 2:0 of completion dword 0.
    pub struct EventType(u8) {
        ERROR = 0x0, "Error status";
        SMART_HEALTH = 0x1, "SMART / Health status";
        NOTICE = 0x2, "Notice";
        IMMEDIATE = 0x3, "Immediate";
        ONE_SHOT = 0x4, "One-shot";
        IO_COMMAND_SET = 0x6, "I/O Command Specific status";
        VENDOR = 0x7, "Vendor specific";
    }
}

bits! {
    /// Dword 0 of an Asynchronous Event Request's completion.
    pub struct EventResult(u32) {
        event_type / with_event_type: u8 @ 0, 3, "Asynchronous Event Type (AET)";
        info / with_info: u8 @ 8, 8, "Asynchronous Event Information (AEI)";
        lid / with_lid: u8 @ 16, 8, "Log Page Identifier that has the details";
    }
}

impl EventResult {
    /// An event of this type and information, to be read in the log page `lid`.
    #[must_use]
    pub fn new(event_type: EventType, info: u8, lid: super::log::Lid) -> Self {
        Self(0).with_event_type(event_type.0).with_info(info).with_lid(lid.0)
    }

    /// The event's type.
    #[must_use]
    pub fn kind(self) -> EventType {
        EventType(self.event_type())
    }
}

codes! {
    /// Event information of type Error (Base, Figure "Asynchronous Event Information - Error Status").
    pub struct ErrorEvent(u8) {
        INVALID_DOORBELL_REGISTER = 0x00, "Write to Invalid Doorbell Register";
        INVALID_DOORBELL_VALUE = 0x01, "Invalid Doorbell Write Value";
        DIAGNOSTIC_FAILURE = 0x02, "Diagnostic Failure";
        PERSISTENT_INTERNAL_ERROR = 0x03, "Persistent Internal Error";
        TRANSIENT_INTERNAL_ERROR = 0x04, "Transient Internal Error";
        FIRMWARE_IMAGE_LOAD_ERROR = 0x05, "Firmware Image Load Error";
    }
}

codes! {
    /// Event information of type SMART / Health.
    pub struct SmartEvent(u8) {
        RELIABILITY = 0x00, "NVM subsystem Reliability";
        TEMPERATURE = 0x01, "Temperature Threshold";
        SPARE = 0x02, "Spare Below Threshold";
    }
}

codes! {
    /// Event information of type Notice (Base, Figure "Asynchronous Event Information - Notice").
    pub struct NoticeEvent(u8) {
        NS_ATTRIBUTE_CHANGED = 0x00, "Attached Namespace Attribute Changed";
        FIRMWARE_ACTIVATION_STARTING = 0x01, "Firmware Activation Starting";
        TELEMETRY_LOG_CHANGED = 0x02, "Telemetry Log Changed";
        ANA_CHANGE = 0x03, "Asymmetric Namespace Access Change";
        PREDICTABLE_LATENCY_LOG_CHANGE = 0x04, "Predictable Latency Event Aggregate Log Change";
        LBA_STATUS_ALERT = 0x05, "LBA Status Information Alert";
        ENDURANCE_GROUP_LOG_CHANGE = 0x06, "Endurance Group Event Aggregate Log Page Change";
        REACHABILITY_GROUP_CHANGE = 0x07, "Reachability Group Change";
        REACHABILITY_ASSOCIATION_CHANGE = 0x08, "Reachability Association Change";
        ALLOCATED_NS_ATTRIBUTE_CHANGED = 0x09, "Allocated Namespace Attribute Changed";
        ZONE_DESCRIPTOR_CHANGED = 0xef, "Zone Descriptor Changed";
        DISCOVERY_LOG_CHANGE = 0xf0, "Discovery Log Page Change";
        HOST_DISCOVERY_LOG_CHANGE = 0xf1, "Host Discovery Log Page Change";
        AVE_DISCOVERY_LOG_CHANGE = 0xf2, "AVE Discovery Log Page Change";
        PULL_MODEL_DDC_REQUEST = 0xf3, "Pull Model DDC Request Log Page Change";
        CROSS_CONTROLLER_RESET_COMPLETED = 0xf4, "Cross-Controller Reset Completed";
        LOST_HOST_COMMUNICATION = 0xf5, "Lost Host Communication";
    }
}

codes! {
    /// Event information of type Immediate.
    pub struct ImmediateEvent(u8) {
        NORMAL_SHUTDOWN = 0x00, "Normal NVM Subsystem Shutdown";
        TEMPERATURE_THRESHOLD_HYSTERESIS = 0x01, "Temperature Threshold Hysteresis Recovery";
    }
}

codes! {
    /// Event information of type I/O Command Specific.
    pub struct IoCommandEvent(u8) {
        RESERVATION_LOG_AVAILABLE = 0x00, "Reservation Log Page Available";
        SANITIZE_COMPLETED = 0x01, "Sanitize Operation Completed";
        SANITIZE_COMPLETED_UNEXPECTED_DEALLOC = 0x02, "Sanitize Operation Completed With Unexpected Deallocation";
        SANITIZE_ENTERED_MEDIA_VERIFICATION = 0x03, "Sanitize Operation Entered Media Verification State";
    }
}

bits! {
    /// Asynchronous Event Configuration (feature 0Bh, CDW11); OAES of Identify Controller has the same
    /// notice bits from bit 8 on.
    pub struct EventConfig(u32) {
        smart / with_smart: u8 @ 0, 8, "SMART / Health Critical Warnings";
        ns_attribute / with_ns_attribute: bool @ 8, 1, "Attached Namespace Attribute Notices";
        firmware_activation / with_firmware_activation: bool @ 9, 1, "Firmware Activation Notices";
        telemetry_log / with_telemetry_log: bool @ 10, 1, "Telemetry Log Notices";
        ana_change / with_ana_change: bool @ 11, 1, "Asymmetric Namespace Access Change Notices";
        predictable_latency / with_predictable_latency: bool @ 12, 1, "Predictable Latency Event Aggregate Log Change Notices";
        lba_status / with_lba_status: bool @ 13, 1, "LBA Status Information Alert Notices";
        endurance_group / with_endurance_group: bool @ 14, 1, "Endurance Group Event Aggregate Log Change Notices";
        normal_shutdown / with_normal_shutdown: bool @ 15, 1, "Normal NVM Subsystem Shutdown";
        temperature_hysteresis / with_temperature_hysteresis: bool @ 16, 1, "Temperature Threshold Hysteresis Recovery";
        reachability_group / with_reachability_group: bool @ 17, 1, "Reachability Group Notices";
        reachability_association / with_reachability_association: bool @ 18, 1, "Reachability Association Notices";
        allocated_ns_attribute / with_allocated_ns_attribute: bool @ 19, 1, "Allocated Namespace Attribute Notices";
        cross_reset / with_cross_reset: bool @ 20, 1, "Cross-Controller Reset Completed Notices";
        lost_host / with_lost_host: bool @ 21, 1, "Lost Host Communication Notices";
        zone_descriptor / with_zone_descriptor: bool @ 27, 1, "Zone Descriptor Changed Notices";
        discovery_log / with_discovery_log: bool @ 31, 1, "Discovery Log Page Change Notification";
    }
}
