//! Parameter data of PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16).

use zerocopy::big_endian::{U16, U32, U64};

codes! {
    /// TYPE of a persistent reservation (SPC-4 6.15.3.4).
    pub struct PrType(u8) {
        WRITE_EXCLUSIVE = 0x1, "Write Exclusive";
        EXCLUSIVE_ACCESS = 0x3, "Exclusive Access";
        WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5, "Write Exclusive - Registrants Only";
        EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6, "Exclusive Access - Registrants Only";
        WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7, "Write Exclusive - All Registrants";
        EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8, "Exclusive Access - All Registrants";
    }
}

wire! {
    /// Head of all PERSISTENT RESERVE IN data but REPORT CAPABILITIES.
    pub struct PrInHdr[8] {
        /// PRGENERATION.
        pub generation @ 0: U32,
        /// ADDITIONAL LENGTH: bytes that follow.
        pub len @ 4: U32,
    }
}

wire! {
    /// READ RESERVATION: the reservation (SPC-4 6.15.3.2).
    pub struct ReservationDescriptor[16] {
        /// RESERVATION KEY; 0 for the all-registrants types.
        pub key @ 0: U64,
        obsolete8 @ 8: [u8; 4],
        rsvd12 @ 12: u8,
        /// SCOPE (bits 7:4), TYPE (bits 3:0).
        pub scope_type @ 13: u8,
        obsolete14 @ 14: [u8; 2],
    }
}

wire! {
    /// REPORT CAPABILITIES data (SPC-4 6.15.4).
    pub struct Capabilities[8] {
        /// LENGTH 0008h.
        pub len @ 0: U16,
        /// CRH (bit 4), SIP_C (bit 3), ATP_C (bit 2), PTPL_C (bit 0).
        pub flags2 @ 2: u8,
        /// TMV (bit 7), ALLOW COMMANDS (bits 6:4), PTPL_A (bit 0).
        pub flags3 @ 3: u8,
        /// PERSISTENT RESERVATION TYPE MASK.
        pub types @ 4: [u8; 2],
        rsvd6 @ 6: [u8; 2],
    }
}

wire! {
    /// READ FULL STATUS: one registration; its TransportID follows (SPC-4 6.15.5).
    pub struct FullStatusDescriptor[24] {
        /// RESERVATION KEY.
        pub key @ 0: U64,
        rsvd8 @ 8: [u8; 4],
        /// ALL_TG_PT (bit 1), R_HOLDER (bit 0).
        pub flags @ 12: u8,
        /// SCOPE (bits 7:4), TYPE (bits 3:0).
        pub scope_type @ 13: u8,
        rsvd14 @ 14: [u8; 4],
        /// RELATIVE TARGET PORT IDENTIFIER.
        pub relative_port @ 18: U16,
        /// ADDITIONAL DESCRIPTOR LENGTH: of the TransportID.
        pub additional_len @ 20: U32,
    }
}

wire! {
    /// PERSISTENT RESERVE OUT parameter list of all service actions but REGISTER AND MOVE (SPC-4 6.16.3).
    pub struct PrOutList[24] {
        /// RESERVATION KEY.
        pub key @ 0: U64,
        /// SERVICE ACTION RESERVATION KEY.
        pub action_key @ 8: U64,
        obsolete16 @ 16: [u8; 4],
        /// SPEC_I_PT (bit 3), ALL_TG_PT (bit 2), APTPL (bit 0).
        pub flags @ 20: u8,
        rsvd21 @ 21: [u8; 3],
    }
}

wire! {
    /// REGISTER AND MOVE parameter list; the TransportID follows (SPC-4 6.16.4).
    pub struct PrMoveList[24] {
        /// RESERVATION KEY.
        pub key @ 0: U64,
        /// SERVICE ACTION RESERVATION KEY.
        pub action_key @ 8: U64,
        rsvd16 @ 16: u8,
        /// UNREG (bit 1), APTPL (bit 0).
        pub flags @ 17: u8,
        /// RELATIVE TARGET PORT IDENTIFIER.
        pub relative_port @ 18: U16,
        /// TRANSPORTID PARAMETER DATA LENGTH.
        pub transport_id_len @ 20: U32,
    }
}

wire! {
    /// Head of an iSCSI TransportID (SPC-4 7.6.4.6); the name follows, null-terminated and padded to four bytes.
    pub struct IscsiTransportIdHdr[4] {
        /// TPID FORMAT (bits 7:6): 0 device name, 1 with ",i,0x" and the ISID; PROTOCOL IDENTIFIER 5h.
        pub format @ 0: u8,
        rsvd1 @ 1: u8,
        /// ADDITIONAL LENGTH.
        pub len @ 2: U16,
    }
}
