//! Error Information, SMART / Health, Firmware Slot log pages (Base 5.2.13.1.2 to 5.2.13.1.4).

use zerocopy::little_endian::{U16, U32, U64};

wire! {
    /// Error Information Log Entry, LID 01h; the newest first.
    pub struct ErrorLogEntry[64] {
        /// Error Count: a running number, 0 for an unused entry.
        pub error_count @ 0: U64,
        /// Submission Queue ID.
        pub sqid @ 8: U16,
        /// Command ID.
        pub cid @ 10: U16,
        /// Status Info: as in the completion, phase tag included.
        pub status @ 12: U16,
        /// Parameter Error Location: byte (7:0) and bit (10:8) in the command; FFFFh if none.
        pub parameter_error_location @ 14: U16,
        /// LBA of the first block in error.
        pub lba @ 16: U64,
        /// Namespace.
        pub nsid @ 24: U32,
        /// Vendor Specific Information Available.
        pub vsia @ 28: u8,
        /// Transport Type (TRTYPE).
        pub trtype @ 29: u8,
        /// Command Set Indicator.
        pub csi @ 30: u8,
        /// Opcode.
        pub opc @ 31: u8,
        /// Command Specific Information.
        pub csinfo @ 32: U64,
        /// Transport Type Specific Information.
        pub ttsi @ 40: U16,
        rsvd42 @ 42: [u8; 20],
        /// Log Page Version.
        pub lpver @ 62: u8,
        rsvd63 @ 63: u8,
    }
}

bits! {
    /// Critical Warning of the SMART / Health log page.
    pub struct CriticalWarning(u8) {
        spare / with_spare: bool @ 0, 1, "Available spare below threshold";
        temperature / with_temperature: bool @ 1, 1, "Temperature beyond a threshold";
        reliability / with_reliability: bool @ 2, 1, "NVM subsystem reliability degraded";
        read_only / with_read_only: bool @ 3, 1, "All media read only";
        volatile_backup / with_volatile_backup: bool @ 4, 1, "Volatile memory backup failed";
        pmr / with_pmr: bool @ 5, 1, "Persistent Memory Region read only or unreliable";
        indeterminate / with_indeterminate: bool @ 6, 1, "Personality state is indeterminate";
    }
}

wire! {
    /// SMART / Health Information, LID 02h. The 16-byte counters are 128-bit little-endian.
    pub struct SmartLog[512] {
        /// Critical Warning: see [`CriticalWarning`].
        pub critical_warning @ 0: u8,
        /// Composite Temperature, kelvins.
        pub ctemp @ 1: U16,
        /// Available Spare, percent.
        pub avsp @ 3: u8,
        /// Available Spare Threshold, percent.
        pub avspt @ 4: u8,
        /// Percentage Used; may exceed 100.
        pub pused @ 5: u8,
        /// Endurance Group Critical Warning Summary.
        pub egcws @ 6: u8,
        rsvd7 @ 7: [u8; 25],
        /// Data Units Read: thousands of 512-byte units, rounded up.
        pub data_units_read @ 32: [u8; 16],
        /// Data Units Written: thousands of 512-byte units, rounded up.
        pub data_units_written @ 48: [u8; 16],
        /// Host Read Commands.
        pub host_read_commands @ 64: [u8; 16],
        /// Host Write Commands.
        pub host_write_commands @ 80: [u8; 16],
        /// Controller Busy Time, minutes.
        pub controller_busy_time_min @ 96: [u8; 16],
        /// Power Cycles.
        pub power_cycles @ 112: [u8; 16],
        /// Power On Hours.
        pub power_on_hours @ 128: [u8; 16],
        /// Unsafe Shutdowns (Unexpected Power Losses).
        pub unsafe_shutdowns @ 144: [u8; 16],
        /// Media and Data Integrity Errors.
        pub media_errors @ 160: [u8; 16],
        /// Number of Error Information Log Entries over the life of the controller.
        pub error_log_entries @ 176: [u8; 16],
        /// Warning Composite Temperature Time, minutes.
        pub wctemp_time_min @ 192: U32,
        /// Critical Composite Temperature Time, minutes.
        pub cctemp_time_min @ 196: U32,
        /// Temperature Sensors 1 to 8, kelvins; 0 if not implemented.
        pub tsen @ 200: [U16; 8],
        /// Thermal Management Temperature 1 and 2 Transition Count.
        pub tmt_transitions @ 216: [U32; 2],
        /// Total Time For Thermal Management Temperature 1 and 2, seconds.
        pub tmt_time_s @ 224: [U32; 2],
        rsvd232 @ 232: [u8; 280],
    }
}

wire! {
    /// Firmware Slot Information, LID 03h.
    pub struct FirmwareSlotLog[512] {
        /// Active Firmware Info: current slot (2:0), slot at the next reset (6:4).
        pub afi @ 0: u8,
        rsvd1 @ 1: [u8; 7],
        /// Firmware Revision for Slots 1 to 7, ASCII.
        pub frs @ 8: [[u8; 8]; 7],
        rsvd64 @ 64: [u8; 448],
    }
}
