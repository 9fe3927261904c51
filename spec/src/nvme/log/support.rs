//! What a controller supports: Supported Log Pages, Commands Supported and Effects, Feature Identifiers
//! Supported and Effects (Base 5.2.13.1.1, 5.2.13.1.6, 5.2.13.1.18).

use zerocopy::little_endian::U32;

wire! {
    /// Supported Log Pages, LID 00h: one entry ([`LogSupport`]) per LID.
    pub struct SupportedLogPages[1024] {
        /// LID Supported and Effects, indexed by LID.
        pub lids @ 0: [U32; 256],
    }
}

bits! {
    /// LID Supported and Effects data structure.
    pub struct LogSupport(u32) {
        lsupp / with_lsupp: bool @ 0, 1, "LID Supported";
        ios / with_ios: bool @ 1, 1, "Index Offset Supported";
        lidsp / with_lidsp: u16 @ 16, 16, "LID Specific Parameter";
    }
}

wire! {
    /// Commands Supported and Effects, LID 05h: one entry ([`CommandEffects`]) per opcode.
    pub struct CommandsSupportedLog[4096] {
        /// Admin commands, indexed by opcode.
        pub acs @ 0: [U32; 256],
        /// I/O commands of the command set asked for, indexed by opcode.
        pub iocs @ 1024: [U32; 256],
        rsvd2048 @ 2048: [u8; 2048],
    }
}

bits! {
    /// Commands Supported and Effects data structure.
    pub struct CommandEffects(u32) {
        csupp / with_csupp: bool @ 0, 1, "Command Supported";
        lbcc / with_lbcc: bool @ 1, 1, "Logical Block Content Change (User Data Content Change)";
        ncc / with_ncc: bool @ 2, 1, "Namespace Capability Change";
        nic / with_nic: bool @ 3, 1, "Namespace Inventory Change";
        ccc / with_ccc: bool @ 4, 1, "Controller Capability Change";
        cser / with_cser: u8 @ 14, 2, "Command Submission and Execution Relaxations";
        cse / with_cse: u8 @ 16, 3, "Command Submission and Execution";
        uuid_selection / with_uuid_selection: bool @ 19, 1, "UUID Selection Supported";
        csp / with_csp: u16 @ 20, 12, "Command Scope";
    }
}

wire! {
    /// Feature Identifiers Supported and Effects, LID 12h: one entry ([`FeatureEffects`]) per FID.
    pub struct FeaturesSupportedLog[1024] {
        /// FID Supported and Effects, indexed by FID.
        pub fids @ 0: [U32; 256],
    }
}

bits! {
    /// FID Supported and Effects data structure.
    pub struct FeatureEffects(u32) {
        fsupp / with_fsupp: bool @ 0, 1, "FID Supported";
        udcc / with_udcc: bool @ 1, 1, "User Data Content Change";
        ncc / with_ncc: bool @ 2, 1, "Namespace Capability Change";
        nic / with_nic: bool @ 3, 1, "Namespace Inventory Change";
        ccc / with_ccc: bool @ 4, 1, "Controller Capability Change";
        cser / with_cser: u8 @ 14, 2, "Command Submission and Execution Relaxations";
        cse / with_cse: u8 @ 16, 3, "Command Submission and Execution";
        uss / with_uss: bool @ 19, 1, "UUID Selection Supported";
        fsp / with_fsp: u16 @ 20, 12, "FID Scope: bit 0 namespace, bit 1 controller";
    }
}
