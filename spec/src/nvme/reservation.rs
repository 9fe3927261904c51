//! Reservations (Base 8.1.22 "Reservations"; 7.5 to 7.8 the commands).

use zerocopy::little_endian::{U16, U32, U64};

codes! {
    /// Reservation Type (RTYPE) (Base, Figure "Reservation Type Encoding").
    pub struct ReservationType(u8) {
        NONE = 0x0, "No Reservation";
        WRITE_EXCLUSIVE = 0x1, "Write Exclusive Reservation";
        EXCLUSIVE_ACCESS = 0x2, "Exclusive Access Reservation";
        WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x3, "Write Exclusive - Registrants Only Reservation";
        EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x4, "Exclusive Access - Registrants Only Reservation";
        WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x5, "Write Exclusive - All Registrants Reservation";
        EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x6, "Exclusive Access - All Registrants Reservation";
    }
}

codes! {
    /// Reservation Register Action (RREGA).
    pub struct RegisterAction(u8) {
        REGISTER = 0x0, "Register Reservation Key";
        UNREGISTER = 0x1, "Unregister Reservation Key";
        REPLACE = 0x2, "Replace Reservation Key";
    }
}

codes! {
    /// Reservation Acquire Action (RACQA).
    pub struct AcquireAction(u8) {
        ACQUIRE = 0x0, "Acquire";
        PREEMPT = 0x1, "Preempt";
        PREEMPT_AND_ABORT = 0x2, "Preempt and Abort";
    }
}

codes! {
    /// Reservation Release Action (RRELA).
    pub struct ReleaseAction(u8) {
        RELEASE = 0x0, "Release";
        CLEAR = 0x1, "Clear";
    }
}

codes! {
    /// Change Persist Through Power Loss State (CPTPL).
    pub struct ChangePtpl(u8) {
        NO_CHANGE = 0x0, "No change to PTPL state";
        CLEAR = 0x2, "Set PTPL state to 0: released on power on";
        SET = 0x3, "Set PTPL state to 1: persists";
    }
}

bits! {
    /// CDW10 of Reservation Register.
    pub struct RegisterDw10(u32) {
        rrega / with_rrega: u8 @ 0, 3, "Reservation Register Action";
        iekey / with_iekey: bool @ 3, 1, "Ignore Existing Key";
        disnsrs / with_disnsrs: bool @ 4, 1, "Dispersed Namespace Reservation Support";
        cptpl / with_cptpl: u8 @ 30, 2, "Change Persist Through Power Loss State";
    }
}

bits! {
    /// CDW10 of Reservation Acquire.
    pub struct AcquireDw10(u32) {
        racqa / with_racqa: u8 @ 0, 3, "Reservation Acquire Action";
        iekey / with_iekey: bool @ 3, 1, "Ignore Existing Key: shall be 0";
        disnsrs / with_disnsrs: bool @ 4, 1, "Dispersed Namespace Reservation Support";
        rtype / with_rtype: u8 @ 8, 8, "Reservation Type";
    }
}

bits! {
    /// CDW10 of Reservation Release.
    pub struct ReleaseDw10(u32) {
        rrela / with_rrela: u8 @ 0, 3, "Reservation Release Action";
        iekey / with_iekey: bool @ 3, 1, "Ignore Existing Key: shall be 0";
        disnsrs / with_disnsrs: bool @ 4, 1, "Dispersed Namespace Reservation Support";
        rtype / with_rtype: u8 @ 8, 8, "Reservation Type";
    }
}

bits! {
    /// CDW11 of Reservation Report (CDW10 is NUMD, 0's based dwords).
    pub struct ReportDw11(u32) {
        eds / with_eds: bool @ 0, 1, "Extended Data Structure";
        disnsrs / with_disnsrs: bool @ 1, 1, "Dispersed Namespace Reservation Support";
    }
}

bits! {
    /// Reservation Capabilities (RESCAP) of Identify Namespace.
    pub struct ReservationCapabilities(u8) {
        ptpls / with_ptpls: bool @ 0, 1, "Persist Through Power Loss Support";
        wes / with_wes: bool @ 1, 1, "Write Exclusive Support";
        eas / with_eas: bool @ 2, 1, "Exclusive Access Support";
        weros / with_weros: bool @ 3, 1, "Write Exclusive - Registrants Only Support";
        earos / with_earos: bool @ 4, 1, "Exclusive Access - Registrants Only Support";
        wears / with_wears: bool @ 5, 1, "Write Exclusive - All Registrants Support";
        eaars / with_eaars: bool @ 6, 1, "Exclusive Access - All Registrants Support";
        ieks / with_ieks: bool @ 7, 1, "Ignore Existing Key is as of revision 1.3 and later";
    }
}

wire! {
    /// Data of Reservation Register.
    pub struct RegisterData[16] {
        /// Current Reservation Key.
        pub crkey @ 0: U64,
        /// New Reservation Key.
        pub nrkey @ 8: U64,
    }
}

wire! {
    /// Data of Reservation Acquire.
    pub struct AcquireData[16] {
        /// Current Reservation Key.
        pub crkey @ 0: U64,
        /// Preempt Reservation Key.
        pub prkey @ 8: U64,
    }
}

wire! {
    /// Data of Reservation Release.
    pub struct ReleaseData[8] {
        /// Current Reservation Key.
        pub crkey @ 0: U64,
    }
}

wire! {
    /// Head of the Reservation Status data structure; with EDS set it is followed by 40 reserved bytes.
    pub struct ReservationStatusHdr[24] {
        /// Generation.
        pub gen_ @ 0: U32,
        /// Reservation Type.
        pub rtype @ 4: u8,
        /// Number of Registrants.
        pub regstrnt @ 5: U16,
        rsvd7 @ 7: [u8; 2],
        /// Persist Through Power Loss State.
        pub ptpls @ 9: u8,
        rsvd10 @ 10: [u8; 14],
    }
}

/// Offset of the first registrant in the extended Reservation Status data structure, in bytes.
pub const EXTENDED_REGISTRANTS_OFF: usize = 64;

wire! {
    /// Registrant data structure (64-bit host identifiers).
    pub struct Registrant[24] {
        /// Controller ID; FFFFh where the controller is not known.
        pub cntlid @ 0: U16,
        /// Reservation Status: bit 0 is set when this host holds the reservation.
        pub rcsts @ 2: u8,
        rsvd3 @ 3: [u8; 5],
        /// Host Identifier, 64 bits.
        pub hostid @ 8: U64,
        /// Reservation Key.
        pub rkey @ 16: U64,
    }
}

wire! {
    /// Registrant Extended data structure (128-bit host identifiers; the only one over fabrics).
    pub struct RegistrantExtended[64] {
        /// Controller ID; FFFFh where the controller is not known.
        pub cntlid @ 0: U16,
        /// Reservation Status: bit 0 is set when this host holds the reservation.
        pub rcsts @ 2: u8,
        rsvd3 @ 3: [u8; 5],
        /// Reservation Key.
        pub rkey @ 8: U64,
        /// Host Identifier, 128 bits.
        pub hostid @ 16: [u8; 16],
        rsvd32 @ 32: [u8; 32],
    }
}
