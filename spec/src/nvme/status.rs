//! Status field of a completion (Base 4.2.3 "Status Field Definition").
//!
//! [`Status`] is the upper half of completion dword 3 as it goes over the wire: phase tag in bit 0, then
//! SC, SCT, CRD, More and DNR. Every code that the standards name is a constant of it.

use core::fmt;

codes! {
    /// Status Code Type (SCT), 3 bits (Base, Figure "Status Code Type Values").
    pub struct Sct(u8) {
        GENERIC = 0x0, "Generic Command Status";
        COMMAND_SPECIFIC = 0x1, "Command Specific Status";
        MEDIA = 0x2, "Media and Data Integrity Errors";
        PATH = 0x3, "Path Related Status";
        VENDOR = 0x7, "Vendor Specific";
    }
}

/// Status word of a completion: P (bit 0), SC (8:1), SCT (11:9), CRD (13:12), M (14), DNR (15).
///
/// Equality compares all bits; compare codes with [`Status::is`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Status(u16);

/// Which command set a command specific code from 80h on belongs to: the standards use those numbers twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusScope {
    /// Commands of the NVM, Zoned and Key Value command sets.
    Io,
    /// Fabrics commands (opcode 7Fh).
    Fabrics,
}

impl Status {
    const P: u16 = 1;
    const MORE: u16 = 1 << 14;
    const DNR: u16 = 1 << 15;
    const CODE_MASK: u16 = 0x0ffe;

    /// A status of this type and code with no other bit set; `sct` is taken modulo 8.
    #[inline]
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct as u16 & 0x7) << 9) | ((sc as u16) << 1))
    }

    /// From the 16 bits of the completion, phase tag included.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The 16 bits of the completion, phase tag included.
    #[inline]
    #[must_use]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// Status Code Type.
    #[inline]
    #[must_use]
    pub const fn sct(self) -> Sct {
        Sct(((self.0 >> 9) & 0x7) as u8)
    }

    /// Status Code.
    #[inline]
    #[must_use]
    pub const fn sc(self) -> u8 {
        ((self.0 >> 1) & 0xff) as u8
    }

    /// Command Retry Delay: 0 none, 1..=3 name CRDT1..3 of Identify Controller.
    #[must_use]
    pub const fn crd(self) -> u8 {
        ((self.0 >> 12) & 0x3) as u8
    }

    /// More: the Error Information log has more about this.
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// Do Not Retry.
    #[must_use]
    pub const fn dnr(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// Phase Tag (memory-based transports only).
    #[must_use]
    pub const fn phase(self) -> bool {
        self.0 & Self::P != 0
    }

    /// This status with Do Not Retry set.
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | Self::DNR)
    }

    /// This status with More set.
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// This status with a Command Retry Delay (0..=3).
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self((self.0 & !(0x3 << 12)) | ((crd as u16 & 0x3) << 12))
    }

    /// This status with the phase tag as given.
    #[must_use]
    pub const fn with_phase(self, phase: bool) -> Self {
        Self((self.0 & !Self::P) | phase as u16)
    }

    /// Only SCT and SC.
    #[inline]
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & Self::CODE_MASK)
    }

    /// Whether type and code are those of `other`, whatever the other bits say.
    #[inline]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// Whether type and code say Successful Completion.
    #[inline]
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & Self::CODE_MASK == 0
    }

    /// The standard's name; command specific codes from 80h on as those of I/O commands.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.name_in(StatusScope::Io)
    }

    /// The standard's name of the code in a command of `scope`.
    #[must_use]
    pub fn name_in(self, scope: StatusScope) -> Option<&'static str> {
        let code = self.code();
        if scope == StatusScope::Fabrics && code.sct() == Sct::COMMAND_SPECIFIC && code.sc() >= 0x80 {
            return FABRICS.iter().find(|e| e.0 == code).map(|e| e.1);
        }
        ALL.iter().find(|e| e.0 == code).map(|e| e.1)
    }

    /// Every status that the standards name for admin and I/O commands, with its name.
    #[must_use]
    pub const fn all() -> &'static [(Self, &'static str)] {
        ALL
    }

    /// Every command specific status of Fabrics commands, with its name.
    #[must_use]
    pub const fn all_fabrics() -> &'static [(Self, &'static str)] {
        FABRICS
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{}", self.sct())?,
        }
        write!(f, " (SCT {:#x}, SC {:#04x}", self.sct().0, self.sc())?;
        if self.more() {
            f.write_str(", More")?;
        }
        if self.dnr() {
            f.write_str(", DNR")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status[{self}]")
    }
}

/// Makes the constants and the name table of one scope from a list by type.
macro_rules! statuses {
    ($table:ident: $($sct:literal { $($name:ident = $sc:literal, $text:literal;)* })*) => {
        impl Status {
            $($(#[doc = $text] pub const $name: Self = Self::new($sct, $sc);)*)*
        }
        static $table: &[(Status, &str)] = &[$($((Status::$name, $text),)*)*];
    };
}

statuses! { ALL:
    0x0 {
        SUCCESS = 0x00, "Successful Completion";
        INVALID_OPCODE = 0x01, "Invalid Command Opcode";
        INVALID_FIELD = 0x02, "Invalid Field in Command";
        COMMAND_ID_CONFLICT = 0x03, "Command ID Conflict";
        DATA_TRANSFER_ERROR = 0x04, "Data Transfer Error";
        ABORTED_POWER_LOSS = 0x05, "Commands Aborted due to Power Loss Notification";
        INTERNAL_ERROR = 0x06, "Internal Error";
        ABORTED_BY_REQUEST = 0x07, "Command Abort Requested";
        ABORTED_SQ_DELETION = 0x08, "Command Aborted due to SQ Deletion";
        ABORTED_FAILED_FUSED = 0x09, "Command Aborted due to Failed Fused Command";
        ABORTED_MISSING_FUSED = 0x0a, "Command Aborted due to Missing Fused Command";
        INVALID_NAMESPACE_OR_FORMAT = 0x0b, "Invalid Namespace or Format";
        COMMAND_SEQUENCE_ERROR = 0x0c, "Command Sequence Error";
        INVALID_SGL_SEGMENT_DESCRIPTOR = 0x0d, "Invalid SGL Segment Descriptor";
        INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0x0e, "Invalid Number of SGL Descriptors";
        DATA_SGL_LENGTH_INVALID = 0x0f, "Data SGL Length Invalid";
        METADATA_SGL_LENGTH_INVALID = 0x10, "Metadata SGL Length Invalid";
        SGL_DESCRIPTOR_TYPE_INVALID = 0x11, "SGL Descriptor Type Invalid";
        INVALID_USE_OF_CMB = 0x12, "Invalid Use of Controller Memory Buffer";
        PRP_OFFSET_INVALID = 0x13, "PRP Offset Invalid";
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x14, "Atomic Write Unit Exceeded";
        OPERATION_DENIED = 0x15, "Operation Denied";
        SGL_OFFSET_INVALID = 0x16, "SGL Offset Invalid";
        HOST_ID_INCONSISTENT_FORMAT = 0x18, "Host Identifier Inconsistent Format";
        KEEP_ALIVE_TIMER_EXPIRED = 0x19, "Keep Alive Timer Expired";
        KEEP_ALIVE_TIMEOUT_INVALID = 0x1a, "Keep Alive Timeout Invalid";
        ABORTED_PREEMPT = 0x1b, "Command Aborted due to Preempt and Abort";
        SANITIZE_FAILED = 0x1c, "Sanitize Failed";
        SANITIZE_IN_PROGRESS = 0x1d, "Sanitize In Progress";
        SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x1e, "SGL Data Block Granularity Invalid";
        COMMAND_NOT_SUPPORTED_FOR_CMB_QUEUE = 0x1f, "Command Not Supported for Queue in CMB";
        NAMESPACE_WRITE_PROTECTED = 0x20, "Namespace is Write Protected";
        COMMAND_INTERRUPTED = 0x21, "Command Interrupted";
        TRANSIENT_TRANSPORT_ERROR = 0x22, "Transient Transport Error";
        COMMAND_PROHIBITED_BY_LOCKDOWN = 0x23, "Command Prohibited by Command and Feature Lockdown";
        ADMIN_COMMAND_MEDIA_NOT_READY = 0x24, "Admin Command Media Not Ready";
        INVALID_KEY_TAG = 0x25, "Invalid Key Tag";
        HOST_DISPERSED_NS_NOT_ENABLED = 0x26, "Host Dispersed Namespace Support Not Enabled";
        HOST_ID_NOT_INITIALIZED = 0x27, "Host Identifier Not Initialized";
        INCORRECT_KEY = 0x28, "Incorrect Key";
        FDP_DISABLED = 0x29, "FDP Disabled";
        INVALID_PLACEMENT_HANDLE_LIST = 0x2a, "Invalid Placement Handle List";
        LBA_OUT_OF_RANGE = 0x80, "LBA Out of Range";
        CAPACITY_EXCEEDED = 0x81, "Capacity Exceeded";
        NAMESPACE_NOT_READY = 0x82, "Namespace Not Ready";
        RESERVATION_CONFLICT = 0x83, "Reservation Conflict";
        FORMAT_IN_PROGRESS = 0x84, "Format In Progress";
        INVALID_VALUE_SIZE = 0x85, "Invalid Value Size";
        INVALID_KEY_SIZE = 0x86, "Invalid Key Size";
        KV_KEY_DOES_NOT_EXIST = 0x87, "KV Key Does Not Exist";
        UNRECOVERED_ERROR = 0x88, "Unrecovered Error";
        KEY_EXISTS = 0x89, "Key Exists";
    }
    0x1 {
        COMPLETION_QUEUE_INVALID = 0x00, "Completion Queue Invalid";
        INVALID_QUEUE_ID = 0x01, "Invalid Queue Identifier";
        INVALID_QUEUE_SIZE = 0x02, "Invalid Queue Size";
        ABORT_COMMAND_LIMIT_EXCEEDED = 0x03, "Abort Command Limit Exceeded";
        ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED = 0x05, "Asynchronous Event Request Limit Exceeded";
        INVALID_FIRMWARE_SLOT = 0x06, "Invalid Firmware Slot";
        INVALID_FIRMWARE_IMAGE = 0x07, "Invalid Firmware Image";
        INVALID_INTERRUPT_VECTOR = 0x08, "Invalid Interrupt Vector";
        INVALID_LOG_PAGE = 0x09, "Invalid Log Page";
        INVALID_FORMAT = 0x0a, "Invalid Format";
        FIRMWARE_REQUIRES_CONVENTIONAL_RESET = 0x0b, "Firmware Activation Requires Conventional Reset";
        INVALID_QUEUE_DELETION = 0x0c, "Invalid Queue Deletion";
        FEATURE_NOT_SAVEABLE = 0x0d, "Feature Identifier Not Saveable";
        FEATURE_NOT_CHANGEABLE = 0x0e, "Feature Not Changeable";
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0f, "Feature Not Namespace Specific";
        FIRMWARE_REQUIRES_NVM_RESET = 0x10, "Firmware Activation Requires NVM Subsystem Reset";
        FIRMWARE_REQUIRES_RESET = 0x11, "Firmware Activation Requires Controller Level Reset";
        FIRMWARE_REQUIRES_MAX_TIME_VIOLATION = 0x12, "Firmware Activation Requires Maximum Time Violation";
        FIRMWARE_ACTIVATION_PROHIBITED = 0x13, "Firmware Activation Prohibited";
        OVERLAPPING_RANGE = 0x14, "Overlapping Range";
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x15, "Namespace Insufficient Capacity";
        NAMESPACE_ID_UNAVAILABLE = 0x16, "Namespace Identifier Unavailable";
        NAMESPACE_ALREADY_ATTACHED = 0x18, "Namespace Already Attached";
        NAMESPACE_IS_PRIVATE = 0x19, "Namespace Is Private";
        NAMESPACE_NOT_ATTACHED = 0x1a, "Namespace Not Attached";
        THIN_PROVISIONING_NOT_SUPPORTED = 0x1b, "Thin Provisioning Not Supported";
        CONTROLLER_LIST_INVALID = 0x1c, "Controller List Invalid";
        DEVICE_SELF_TEST_IN_PROGRESS = 0x1d, "Device Self-test In Progress";
        BOOT_PARTITION_WRITE_PROHIBITED = 0x1e, "Boot Partition Write Prohibited";
        INVALID_CONTROLLER_ID = 0x1f, "Invalid Controller Identifier";
        INVALID_SECONDARY_CONTROLLER_STATE = 0x20, "Invalid Secondary Controller State";
        INVALID_NUMBER_OF_CONTROLLER_RESOURCES = 0x21, "Invalid Number of Controller Resources";
        INVALID_RESOURCE_ID = 0x22, "Invalid Resource Identifier";
        SANITIZE_PROHIBITED_WITH_PMR = 0x23, "Sanitize Prohibited While Persistent Memory Region is Enabled";
        ANA_GROUP_ID_INVALID = 0x24, "ANA Group Identifier Invalid";
        ANA_ATTACH_FAILED = 0x25, "ANA Attach Failed";
        INSUFFICIENT_CAPACITY = 0x26, "Insufficient Capacity";
        NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x27, "Namespace Attachment Limit Exceeded";
        PROHIBITION_OF_COMMAND_EXECUTION_NOT_SUPPORTED = 0x28, "Prohibition of Command Execution Not Supported";
        IO_COMMAND_SET_NOT_SUPPORTED = 0x29, "I/O Command Set Not Supported";
        IO_COMMAND_SET_NOT_ENABLED = 0x2a, "I/O Command Set Not Enabled";
        IO_COMMAND_SET_COMBINATION_REJECTED = 0x2b, "I/O Command Set Combination Rejected";
        INVALID_IO_COMMAND_SET = 0x2c, "Invalid I/O Command Set";
        IDENTIFIER_UNAVAILABLE = 0x2d, "Identifier Unavailable";
        NAMESPACE_IS_DISPERSED = 0x2e, "Namespace Is Dispersed";
        INVALID_DISCOVERY_INFORMATION = 0x2f, "Invalid Discovery Information";
        ZONING_DATA_STRUCTURE_LOCKED = 0x30, "Zoning Data Structure Locked";
        ZONING_DATA_STRUCTURE_NOT_FOUND = 0x31, "Zoning Data Structure Not Found";
        INSUFFICIENT_DISCOVERY_RESOURCES = 0x32, "Insufficient Discovery Resources";
        REQUESTED_FUNCTION_DISABLED = 0x33, "Requested Function Disabled";
        ZONEGROUP_ORIGINATOR_INVALID = 0x34, "ZoneGroup Originator Invalid";
        INVALID_HOST = 0x35, "Invalid Host";
        INVALID_NVM_SUBSYSTEM = 0x36, "Invalid NVM Subsystem";
        INVALID_CONTROLLER_DATA_QUEUE = 0x37, "Invalid Controller Data Queue";
        NOT_ENOUGH_RESOURCES = 0x38, "Not Enough Resources";
        CONTROLLER_SUSPENDED = 0x39, "Controller Suspended";
        CONTROLLER_NOT_SUSPENDED = 0x3a, "Controller Not Suspended";
        CONTROLLER_DATA_QUEUE_FULL = 0x3b, "Controller Data Queue Full";
        NS_SANITIZE_LIMIT_EXCEEDED = 0x3c, "Request Exceeds Maximum Namespace Sanitize Operations In Progress";
        DEFAULT_PERSONALITY_REQUIRED = 0x3d, "Manufacturing Default Personality Required";
        INVALID_POWER_LIMIT = 0x3e, "Invalid Power Limit";
        CROSS_RESET_IN_PROGRESS = 0x3f, "Cross-Controller Reset In Progress";
        CROSS_RESET_LOG_FULL = 0x40, "Cross-Controller Reset Log Page Full";
        CROSS_RESET_LIMIT_EXCEEDED = 0x41, "Cross-Controller Reset Limit Exceeded";
        STREAM_RESOURCE_ALLOCATION_FAILED = 0x7f, "Stream Resource Allocation Failed";
        CONFLICTING_ATTRIBUTES = 0x80, "Conflicting Attributes";
        INVALID_PROTECTION_INFORMATION = 0x81, "Invalid Protection Information";
        ATTEMPTED_WRITE_TO_READ_ONLY_RANGE = 0x82, "Attempted Write to Read Only Range";
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x83, "Command Size Limit Exceeded";
        INVALID_COMMAND_ID = 0x84, "Invalid Command ID";
        INCOMPATIBLE_NAMESPACE_OR_FORMAT = 0x85, "Incompatible Namespace or Format";
        FAST_COPY_NOT_POSSIBLE = 0x86, "Fast Copy Not Possible";
        OVERLAPPING_IO_RANGE = 0x87, "Overlapping I/O Range";
        NAMESPACE_NOT_REACHABLE = 0x88, "Namespace Not Reachable";
        INSUFFICIENT_RESOURCES = 0x89, "Insufficient Resources";
        ZONE_BOUNDARY_ERROR = 0xb8, "Zoned Boundary Error";
        ZONE_IS_FULL = 0xb9, "Zone Is Full";
        ZONE_IS_READ_ONLY = 0xba, "Zone Is Read Only";
        ZONE_IS_OFFLINE = 0xbb, "Zone Is Offline";
        ZONE_INVALID_WRITE = 0xbc, "Zone Invalid Write";
        TOO_MANY_ACTIVE_ZONES = 0xbd, "Too Many Active Zones";
        TOO_MANY_OPEN_ZONES = 0xbe, "Too Many Open Zones";
        INVALID_ZONE_STATE_TRANSITION = 0xbf, "Invalid Zone State Transition";
    }
    0x2 {
        WRITE_FAULT = 0x80, "Write Fault";
        UNRECOVERED_READ_ERROR = 0x81, "Unrecovered Read Error";
        GUARD_CHECK_ERROR = 0x82, "End-to-end Guard Check Error";
        APPLICATION_TAG_CHECK_ERROR = 0x83, "End-to-end Application Tag Check Error";
        REFERENCE_TAG_CHECK_ERROR = 0x84, "End-to-end Reference Tag Check Error";
        COMPARE_FAILURE = 0x85, "Compare Failure";
        ACCESS_DENIED = 0x86, "Access Denied";
        DEALLOCATED_OR_UNWRITTEN_BLOCK = 0x87, "Deallocated or Unwritten Logical Block";
        STORAGE_TAG_CHECK_ERROR = 0x88, "End-to-End Storage Tag Check Error";
    }
    0x3 {
        INTERNAL_PATH_ERROR = 0x00, "Internal Path Error";
        ANA_PERSISTENT_LOSS = 0x01, "Asymmetric Access Persistent Loss";
        ANA_INACCESSIBLE = 0x02, "Asymmetric Access Inaccessible";
        ANA_TRANSITION = 0x03, "Asymmetric Access Transition";
        CONTROLLER_PATHING_ERROR = 0x60, "Controller Pathing Error";
        HOST_PATHING_ERROR = 0x70, "Host Pathing Error";
        ABORTED_BY_HOST = 0x71, "Command Aborted By Host";
    }
}

statuses! { FABRICS:
    0x1 {
        CONNECT_INCOMPATIBLE_FORMAT = 0x80, "Connect Incompatible Format";
        CONNECT_CONTROLLER_BUSY = 0x81, "Connect Controller Busy";
        CONNECT_INVALID_PARAMETERS = 0x82, "Connect Invalid Parameters";
        CONNECT_RESTART_DISCOVERY = 0x83, "Connect Restart Discovery";
        CONNECT_INVALID_HOST = 0x84, "Connect Invalid Host";
        INVALID_QUEUE_TYPE = 0x85, "Invalid Queue Type";
        DISCOVER_RESTART = 0x90, "Discover Restart";
        AUTHENTICATION_REQUIRED = 0x91, "Authentication Required";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_own_code_within_its_scope() {
        for table in [Status::all(), Status::all_fabrics()] {
            for (i, (status, name)) in table.iter().enumerate() {
                assert!(!table[..i].iter().any(|(s, _)| s.is(*status)), "{name} is there twice");
            }
        }
    }

    #[test]
    fn flags_do_not_disturb_the_code() {
        let status = Status::LBA_OUT_OF_RANGE.with_dnr().with_more().with_crd(3).with_phase(true);
        assert!(status.dnr() && status.more() && status.phase());
        assert_eq!(status.crd(), 3);
        assert!(status.is(Status::LBA_OUT_OF_RANGE));
        assert_eq!(status.to_bits(), 0xf101);
        assert_eq!(status.name(), Some("LBA Out of Range"));
        assert!(!status.is_success() && Status::SUCCESS.with_phase(true).is_success());
    }

    #[test]
    fn fabrics_codes_are_named_apart_from_those_of_io_commands() {
        let status = Status::CONNECT_INVALID_PARAMETERS;
        assert_eq!(status.name_in(StatusScope::Fabrics), Some("Connect Invalid Parameters"));
        assert_eq!(status.name(), Some("Attempted Write to Read Only Range"));
    }
}
