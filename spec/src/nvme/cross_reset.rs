//! Cross-Controller Reset: a host ends, by a controller that it reaches, one that it does not (Base 2.3 5.4.3;
//! TP8028 "Rapid Path Failure Recovery").

use zerocopy::little_endian::{U16, U32, U64};

use super::command::sqe_view;

wire! {
    /// Cross-Controller Reset (Base 2.3 5.4.3).
    pub struct CrossResetCmd[64] {
        /// Opcode 38h.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Namespace Identifier: not used.
        pub nsid @ 4: U32,
        rsvd8 @ 8: [u8; 32],
        /// Impacted Controller ID.
        pub icid @ 40: U16,
        /// Controller Instance Uniquifier of the impacted controller.
        pub ciu @ 42: u8,
        rsvd43 @ 43: u8,
        rsvd44 @ 44: [u8; 4],
        /// Controller Instance Random Number of the impacted controller.
        pub cirn @ 48: U64,
        rsvd56 @ 56: [u8; 8],
    }
}

sqe_view!(CrossResetCmd);

bits! {
    /// Completion dword 0 of Cross-Controller Reset.
    pub struct CrossResetResult(u32) {
        immediate / with_immediate: bool @ 0, 1, "Immediate Reset Successful: no log entry follows";
    }
}

/// The most entries in the Cross-Controller Reset log page.
pub const CROSS_RESET_ENTRIES_MAX: usize = 511;

/// Log Specific Parameter of the Cross-Controller Reset log: completed entries are removed once they are read (RMC).
pub const LSP_REMOVE_COMPLETED: u8 = 1;

/// ACID of an entry where no other controller carries the reset out.
pub const ACID_NONE: u16 = 0xffff;

wire! {
    /// Head of the Cross-Controller Reset log page, LID 1Eh; followed by `entries` of [`CrossResetEntry`].
    pub struct CrossResetLogHdr[8] {
        /// Number of Entries.
        pub entries @ 0: U16,
        rsvd2 @ 2: [u8; 6],
    }
}

wire! {
    /// Entry of the Cross-Controller Reset log page.
    pub struct CrossResetEntry[8] {
        /// Impacted Controller ID.
        pub icid @ 0: U16,
        /// Its Controller Instance Uniquifier.
        pub ciu @ 2: u8,
        rsvd3 @ 3: u8,
        /// Alternate Controller ID: the controller that carries the reset out, or [`ACID_NONE`].
        pub acid @ 4: U16,
        /// Cross-Controller Reset Status.
        pub ccrs @ 6: CrossResetStatus,
        /// Cross-Controller Reset Flags: see [`CrossResetFlags`].
        pub ccrf @ 7: u8,
    }
}

codes! {
    /// Cross-Controller Reset Status (CCRS).
    pub struct CrossResetStatus(u8) {
        IN_PROGRESS = 0x0, "in progress";
        SUCCESSFUL = 0x1, "successful";
        FAILED = 0x2, "failed";
    }
}

bits! {
    /// Cross-Controller Reset Flags (CCRF).
    pub struct CrossResetFlags(u8) {
        validated / with_validated: bool @ 0, 1, "The impacted controller instance was found";
        initiated / with_initiated: bool @ 1, 1, "Its reset was begun";
    }
}
