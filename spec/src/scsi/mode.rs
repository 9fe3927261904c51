//! Mode parameters (SPC-4 7.5, SBC-3 6.5).

use zerocopy::big_endian::{U16, U32, U64};

wire! {
    /// Mode parameter header of the six-byte commands (SPC-4 7.5.5).
    pub struct ModeHdr6[4] {
        /// MODE DATA LENGTH: bytes that follow; reserved in MODE SELECT.
        pub len @ 0: u8,
        /// MEDIUM TYPE.
        pub medium_type @ 1: u8,
        /// DEVICE-SPECIFIC PARAMETER: see [`DeviceSpecific`].
        pub device_specific @ 2: u8,
        /// BLOCK DESCRIPTOR LENGTH.
        pub block_descriptor_len @ 3: u8,
    }
}

wire! {
    /// Mode parameter header of the ten-byte commands (SPC-4 7.5.5).
    pub struct ModeHdr10[8] {
        /// MODE DATA LENGTH: bytes that follow; reserved in MODE SELECT.
        pub len @ 0: U16,
        /// MEDIUM TYPE.
        pub medium_type @ 2: u8,
        /// DEVICE-SPECIFIC PARAMETER: see [`DeviceSpecific`].
        pub device_specific @ 3: u8,
        /// LONGLBA (bit 0).
        pub longlba @ 4: u8,
        rsvd5 @ 5: u8,
        /// BLOCK DESCRIPTOR LENGTH.
        pub block_descriptor_len @ 6: U16,
    }
}

bits! {
    /// DEVICE-SPECIFIC PARAMETER of a disk (SBC-3 6.5.1).
    pub struct DeviceSpecific(u8) {
        dpofua / with_dpofua: bool @ 4, 1, "DPO and FUA are supported";
        wp / with_wp: bool @ 7, 1, "Write Protect";
    }
}

wire! {
    /// Short LBA mode parameter block descriptor (SBC-3 6.5.2.2).
    pub struct BlockDescriptor[8] {
        /// NUMBER OF LOGICAL BLOCKS; FFFFFFFFh: more.
        pub blocks @ 0: U32,
        /// LOGICAL BLOCK LENGTH in bytes (low 24 bits).
        pub block_bytes @ 4: U32,
    }
}

wire! {
    /// Long LBA mode parameter block descriptor (SBC-3 6.5.2.3).
    pub struct LongBlockDescriptor[16] {
        /// NUMBER OF LOGICAL BLOCKS.
        pub blocks @ 0: U64,
        rsvd8 @ 8: U32,
        /// LOGICAL BLOCK LENGTH in bytes.
        pub block_bytes @ 12: U32,
    }
}

codes! {
    /// PAGE CODE of mode pages (SPC-4 7.5.8).
    pub struct ModePage(u8) {
        READ_WRITE_ERROR_RECOVERY = 0x01, "Read-Write Error Recovery";
        CACHING = 0x08, "Caching";
        CONTROL = 0x0a, "Control";
        INFORMATIONAL_EXCEPTIONS = 0x1c, "Informational Exceptions Control";
        ALL_PAGES = 0x3f, "all pages";
    }
}

/// SUBPAGE CODE: all subpages.
pub const SUBPAGE_ALL: u8 = 0xff;

codes! {
    /// PAGE CONTROL of MODE SENSE.
    pub struct PageControl(u8) {
        CURRENT = 0, "current values";
        CHANGEABLE = 1, "changeable values";
        DEFAULT = 2, "default values";
        SAVED = 3, "saved values";
    }
}

wire! {
    /// Read-Write Error Recovery mode page (SBC-3 6.5.8).
    pub struct ErrorRecoveryPage[12] {
        /// PS (bit 7), PAGE CODE 01h.
        pub page @ 0: u8,
        /// PAGE LENGTH 0Ah.
        pub len @ 1: u8,
        /// AWRE (bit 7), ARRE (bit 6), TB, RC, EER, PER, DTE, DCR.
        pub flags @ 2: u8,
        /// READ RETRY COUNT.
        pub read_retries @ 3: u8,
        obsolete4 @ 4: [u8; 3],
        /// LBPERE (bit 7): provisioning thresholds are reported.
        pub lbpere @ 7: u8,
        /// WRITE RETRY COUNT.
        pub write_retries @ 8: u8,
        rsvd9 @ 9: u8,
        /// RECOVERY TIME LIMIT in milliseconds.
        pub recovery_ms_max @ 10: U16,
    }
}

wire! {
    /// Caching mode page (SBC-3 6.5.6).
    pub struct CachingPage[20] {
        /// PS (bit 7), PAGE CODE 08h.
        pub page @ 0: u8,
        /// PAGE LENGTH 12h.
        pub len @ 1: u8,
        /// IC, ABPF, CAP, DISC, SIZE, WCE (bit 2), MF, RCD (bit 0).
        pub flags @ 2: u8,
        /// Retention priorities.
        pub retention @ 3: u8,
        /// DISABLE PRE-FETCH TRANSFER LENGTH.
        pub disable_prefetch @ 4: U16,
        /// MINIMUM PRE-FETCH.
        pub prefetch_min @ 6: U16,
        /// MAXIMUM PRE-FETCH.
        pub prefetch_max @ 8: U16,
        /// MAXIMUM PRE-FETCH CEILING.
        pub prefetch_ceiling @ 10: U16,
        /// FSW, LBCSS, DRA, SYNC_PROG, NV_DIS.
        pub flags12 @ 12: u8,
        /// NUMBER OF CACHE SEGMENTS.
        pub segments @ 13: u8,
        /// CACHE SEGMENT SIZE.
        pub segment_size @ 14: U16,
        rsvd16 @ 16: [u8; 4],
    }
}

/// WCE in [`CachingPage::flags`]: writes are cached.
pub const CACHING_WCE: u8 = 0x04;

wire! {
    /// Control mode page (SPC-4 7.5.10).
    pub struct ControlPage[12] {
        /// PS (bit 7), PAGE CODE 0Ah.
        pub page @ 0: u8,
        /// PAGE LENGTH 0Ah.
        pub len @ 1: u8,
        /// TST (bits 7:5), TMF_ONLY (bit 4), DPICZ (bit 3), D_SENSE (bit 2), GLTSD (bit 1), RLEC (bit 0).
        pub flags2 @ 2: u8,
        /// QUEUE ALGORITHM MODIFIER (bits 7:4), NUAR (bit 3), QERR (bits 2:1).
        pub flags3 @ 3: u8,
        /// RAC (bit 6), UA_INTLCK_CTRL (bits 5:4), SWP (bit 3).
        pub flags4 @ 4: u8,
        /// ATO (bit 7), TAS (bit 6), ATMPE, RWWP, AUTOLOAD MODE.
        pub flags5 @ 5: u8,
        obsolete6 @ 6: [u8; 2],
        /// BUSY TIMEOUT PERIOD in 100 ms; FFFFh: without limit.
        pub busy_timeout @ 8: U16,
        /// EXTENDED SELF-TEST COMPLETION TIME in seconds.
        pub self_test_s @ 10: U16,
    }
}

/// D_SENSE in [`ControlPage::flags2`]: sense data are in descriptor format.
pub const CONTROL_D_SENSE: u8 = 0x04;
/// TST 001b in [`ControlPage::flags2`]: a task set per I_T nexus.
pub const CONTROL_TST_PER_NEXUS: u8 = 0x20;
/// GLTSD in [`ControlPage::flags2`].
pub const CONTROL_GLTSD: u8 = 0x02;
/// SWP in [`ControlPage::flags4`]: software write protect.
pub const CONTROL_SWP: u8 = 0x08;
/// TAS in [`ControlPage::flags5`]: aborted commands of other nexuses end with TASK ABORTED.
pub const CONTROL_TAS: u8 = 0x40;
/// QUEUE ALGORITHM MODIFIER 1 (unrestricted reordering) in [`ControlPage::flags3`].
pub const CONTROL_UNRESTRICTED_REORDERING: u8 = 0x10;

wire! {
    /// Informational Exceptions Control mode page (SBC-3 6.5.7).
    pub struct ExceptionsPage[12] {
        /// PS (bit 7), PAGE CODE 1Ch.
        pub page @ 0: u8,
        /// PAGE LENGTH 0Ah.
        pub len @ 1: u8,
        /// PERF, EBF, EWASC, DEXCPT (bit 3), TEST, EBACKERR, LOGERR.
        pub flags @ 2: u8,
        /// MRIE (bits 3:0).
        pub mrie @ 3: u8,
        /// INTERVAL TIMER in 100 ms.
        pub interval @ 4: U32,
        /// REPORT COUNT.
        pub report_count @ 8: U32,
    }
}
