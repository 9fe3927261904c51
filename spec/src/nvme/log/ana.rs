//! Asymmetric Namespace Access log page, LID 0Ch (Base 5.2.13.1.12; 8.1.1 "Asymmetric Namespace Access Reporting").

use zerocopy::little_endian::{U16, U32, U64};

codes! {
    /// Asymmetric Namespace Access State.
    pub struct AnaState(u8) {
        OPTIMIZED = 0x01, "ANA Optimized state";
        NON_OPTIMIZED = 0x02, "ANA Non-Optimized state";
        INACCESSIBLE = 0x03, "ANA Inaccessible state";
        PERSISTENT_LOSS = 0x04, "ANA Persistent Loss state";
        CHANGE = 0x0f, "ANA Change state";
    }
}

wire! {
    /// Head of the ANA log page; followed by `descriptors` of [`AnaGroupDescriptor`], each with its NSIDs.
    pub struct AnaLogHdr[16] {
        /// Change Count.
        pub chgcnt @ 0: U64,
        /// Number of ANA Group Descriptors.
        pub descriptors @ 8: U16,
        rsvd10 @ 10: [u8; 6],
    }
}

wire! {
    /// ANA Group Descriptor; followed by `nsids` little-endian 32-bit NSIDs in increasing order.
    pub struct AnaGroupDescriptor[32] {
        /// ANA Group ID.
        pub agid @ 0: U32,
        /// Number of NSID Values that follow.
        pub nsids @ 4: U32,
        /// Change Count of this group.
        pub chgcnt @ 8: U64,
        /// Asymmetric Namespace Access State (bits 3:0).
        pub state @ 16: AnaState,
        rsvd17 @ 17: [u8; 15],
    }
}

/// Log Specific Parameter of the ANA log: Return Groups Only (no NSIDs).
pub const LSP_RETURN_GROUPS_ONLY: u8 = 1;

bits! {
    /// ANA Capabilities (ANACAP) of Identify Controller.
    pub struct AnaCapabilities(u8) {
        optimized / with_optimized: bool @ 0, 1, "Reports the ANA Optimized state";
        non_optimized / with_non_optimized: bool @ 1, 1, "Reports the ANA Non-Optimized state";
        inaccessible / with_inaccessible: bool @ 2, 1, "Reports the ANA Inaccessible state";
        persistent_loss / with_persistent_loss: bool @ 3, 1, "Reports the ANA Persistent Loss state";
        change / with_change: bool @ 4, 1, "Reports the ANA Change state";
        anagrpid_static / with_anagrpid_static: bool @ 6, 1, "ANAGRPID does not change while the namespace is attached";
        anagrpid_supported / with_anagrpid_supported: bool @ 7, 1, "Non-zero ANAGRPID in Namespace Management is supported";
    }
}
