//! Parameter data of the reporting commands (SPC-4 6).

use zerocopy::big_endian::{U16, U32};

wire! {
    /// Head of REPORT LUNS data (SPC-4 6.33); eight bytes per LUN follow.
    pub struct LunListHdr[8] {
        /// LUN LIST LENGTH in bytes.
        pub len @ 0: U32,
        rsvd4 @ 4: [u8; 4],
    }
}

wire! {
    /// Command descriptor of REPORT SUPPORTED OPERATION CODES (SPC-4 6.35.2).
    pub struct CommandDescriptor[8] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        rsvd1 @ 1: u8,
        /// SERVICE ACTION.
        pub service_action @ 2: U16,
        rsvd4 @ 4: u8,
        /// CTDP (bit 1), SERVACTV (bit 0).
        pub flags @ 5: u8,
        /// CDB LENGTH.
        pub cdb_len @ 6: U16,
    }
}

wire! {
    /// Command timeouts descriptor (SPC-4 6.35.4).
    pub struct CommandTimeouts[12] {
        /// DESCRIPTOR LENGTH 000Ah.
        pub len @ 0: U16,
        rsvd2 @ 2: u8,
        /// COMMAND SPECIFIC.
        pub specific @ 3: u8,
        /// NOMINAL COMMAND PROCESSING TIMEOUT in seconds; 0: not indicated.
        pub nominal_s @ 4: U32,
        /// RECOMMENDED COMMAND TIMEOUT in seconds; 0: not indicated.
        pub recommended_s @ 8: U32,
    }
}

wire! {
    /// Head of the one_command data; the CDB usage data follow (SPC-4 6.35.3).
    pub struct OneCommandHdr[4] {
        rsvd0 @ 0: u8,
        /// CTDP (bit 7), SUPPORT (bits 2:0): 1 not supported, 3 as the standard says.
        pub support @ 1: u8,
        /// CDB SIZE.
        pub cdb_len @ 2: U16,
    }
}

wire! {
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS data, extended (SPC-4 6.36).
    pub struct SupportedTmfs[16] {
        /// ATS, ATSS, CACAS, CTSS, LURS, QTS, TRS, WAKES from bit 7 on.
        pub functions @ 0: u8,
        /// QAES (bit 2), QTSS (bit 1), ITNRS (bit 0).
        pub functions1 @ 1: u8,
        rsvd2 @ 2: u8,
        /// REPORT TMF ADDITIONAL DATA LENGTH: 0Ch, or 0 in the basic format of four bytes.
        pub additional_len @ 3: u8,
        /// TMFTMOV (bit 0).
        pub timeouts_valid @ 4: u8,
        rsvd5 @ 5: [u8; 11],
    }
}

wire! {
    /// Target port group descriptor; the ports follow (SPC-4 6.37.1).
    pub struct PortGroup[8] {
        /// PREF (bit 7), RTPG_FMT, ASYMMETRIC ACCESS STATE (bits 3:0).
        pub state @ 0: u8,
        /// T_SUP, O_SUP, LBD_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP from bit 7 (bit 5 reserved) on.
        pub supported @ 1: u8,
        /// TARGET PORT GROUP.
        pub group @ 2: U16,
        rsvd4 @ 4: u8,
        /// STATUS CODE: 0 none, 1 by SET TARGET PORT GROUPS, 2 by implicit behaviour.
        pub status @ 5: u8,
        /// Vendor specific.
        pub vendor @ 6: u8,
        /// TARGET PORT COUNT.
        pub ports @ 7: u8,
    }
}

wire! {
    /// Target port descriptor.
    pub struct Port[4] {
        obsolete0 @ 0: U16,
        /// RELATIVE TARGET PORT IDENTIFIER.
        pub relative_id @ 2: U16,
    }
}

wire! {
    /// Set target port group descriptor (SPC-4 6.45).
    pub struct SetPortGroup[4] {
        /// ASYMMETRIC ACCESS STATE (bits 3:0).
        pub state @ 0: u8,
        rsvd1 @ 1: u8,
        /// TARGET PORT GROUP OR TARGET PORT.
        pub group @ 2: U16,
    }
}

codes! {
    /// ASYMMETRIC ACCESS STATE (SPC-4 5.15.2.4).
    pub struct AccessState(u8) {
        ACTIVE_OPTIMIZED = 0x0, "active/optimized";
        ACTIVE_NON_OPTIMIZED = 0x1, "active/non-optimized";
        STANDBY = 0x2, "standby";
        UNAVAILABLE = 0x3, "unavailable";
        OFFLINE = 0xe, "offline";
        TRANSITIONING = 0xf, "transitioning";
    }
}
