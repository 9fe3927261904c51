//! Controller properties (Base 3.1.4) and the commands that reach them over fabrics (Base 6.5, 6.6).

use zerocopy::little_endian::{U16, U32, U64};

use crate::nvme::command::sqe_view;
use crate::nvme::sgl::SglDescriptor;

/// Offsets of the properties that fabrics controllers have (Base, Figure "Property Definition").
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version, 4 bytes.
    pub const VS: u32 = 0x08;
    /// Controller Configuration, 4 bytes.
    pub const CC: u32 = 0x14;
    /// Controller Status, 4 bytes.
    pub const CSTS: u32 = 0x1c;
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: u32 = 0x20;
    /// NVM Subsystem Shutdown, 4 bytes.
    pub const NSSD: u32 = 0x64;
    /// Controller Ready Timeouts, 4 bytes.
    pub const CRTO: u32 = 0x68;
}

wire! {
    /// Property Set command.
    pub struct PropertySetCmd[64] {
        /// Opcode 7Fh.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Fabrics Command Type 00h.
        pub fctype @ 4: u8,
        rsvd5 @ 5: [u8; 35],
        /// Attributes: size in bits 2:0, see [`PropertySize`].
        pub attrib @ 40: u8,
        rsvd41 @ 41: [u8; 3],
        /// Offset of the property, bytes.
        pub ofst @ 44: U32,
        /// Value; a 4-byte property takes the lower half.
        pub value @ 48: U64,
        rsvd56 @ 56: [u8; 8],
    }
}

wire! {
    /// Property Get command; the value is dwords 0 and 1 of its completion.
    pub struct PropertyGetCmd[64] {
        /// Opcode 7Fh.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Fabrics Command Type 04h.
        pub fctype @ 4: u8,
        rsvd5 @ 5: [u8; 19],
        /// Reserved for fabrics; no data.
        pub sgl1 @ 24: SglDescriptor,
        /// Attributes: size in bits 2:0, see [`PropertySize`].
        pub attrib @ 40: u8,
        rsvd41 @ 41: [u8; 3],
        /// Offset of the property, bytes.
        pub ofst @ 44: U32,
        rsvd48 @ 48: [u8; 16],
    }
}

sqe_view!(PropertySetCmd, PropertyGetCmd);

/// ATTRIB, bits 2:0: how large the property is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropertySize {
    /// 000b: 4 bytes.
    Four,
    /// 001b: 8 bytes.
    Eight,
}

impl PropertySize {
    /// From ATTRIB; `None` for a reserved value.
    #[must_use]
    pub const fn from_attrib(attrib: u8) -> Option<Self> {
        match attrib & 0b111 {
            0 => Some(Self::Four),
            1 => Some(Self::Eight),
            _ => None,
        }
    }

    /// The value of ATTRIB.
    #[must_use]
    pub const fn attrib(self) -> u8 {
        match self {
            Self::Four => 0,
            Self::Eight => 1,
        }
    }
}

bits! {
    /// Controller Capabilities (CAP), offset 0h (Base 3.1.4.1).
    pub struct Cap(u64) {
        mqes0 / with_mqes0: u16 @ 0, 16, "Maximum Queue Entries Supported, 0's based";
        cqr / with_cqr: bool @ 16, 1, "Contiguous Queues Required: 1 over fabrics";
        ams / with_ams: u8 @ 17, 2, "Arbitration Mechanism Supported";
        to / with_to: u8 @ 24, 8, "Timeout of CSTS.RDY, 500 ms";
        dstrd / with_dstrd: u8 @ 32, 4, "Doorbell Stride: 0 over fabrics";
        nssrs / with_nssrs: bool @ 36, 1, "NVM Subsystem Reset Supported";
        css_nvm / with_css_nvm: bool @ 37, 1, "NVM Command Set (CSS bit 0)";
        css_iocs / with_css_iocs: bool @ 43, 1, "I/O Command Sets by CNS 1Ch (CSS bit 6)";
        css_none / with_css_none: bool @ 44, 1, "No I/O Command Set (CSS bit 7): discovery, administrative";
        bps / with_bps: bool @ 45, 1, "Boot Partition Support";
        cps / with_cps: u8 @ 46, 2, "Controller Power Scope";
        mpsmin / with_mpsmin: u8 @ 48, 4, "Memory Page Size Minimum: 2^(12 + n) bytes";
        mpsmax / with_mpsmax: u8 @ 52, 4, "Memory Page Size Maximum: 2^(12 + n) bytes";
        pmrs / with_pmrs: bool @ 56, 1, "Persistent Memory Region Supported";
        cmbs / with_cmbs: bool @ 57, 1, "Controller Memory Buffer Supported";
        nsss / with_nsss: bool @ 58, 1, "NVM Subsystem Shutdown Supported";
        crms / with_crms: u8 @ 59, 2, "Controller Ready Modes Supported: bit 0 with media, bit 1 independent";
        nsses / with_nsses: bool @ 61, 1, "NVM Subsystem Shutdown Enhancements Supported";
    }
}

bits! {
    /// Version (VS), offset 8h (Base 3.1.4.2).
    pub struct Vs(u32) {
        ter / with_ter: u8 @ 0, 8, "Tertiary Version Number";
        mnr / with_mnr: u8 @ 8, 8, "Minor Version Number";
        mjr / with_mjr: u16 @ 16, 16, "Major Version Number";
    }
}

impl Vs {
    /// A version number.
    #[must_use]
    pub fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self(0).with_mjr(major).with_mnr(minor).with_ter(tertiary)
    }
}

impl core::fmt::Display for Vs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}.{}", self.mjr(), self.mnr(), self.ter())
    }
}

bits! {
    /// Controller Configuration (CC), offset 14h (Base 3.1.4.5).
    pub struct Cc(u32) {
        en / with_en: bool @ 0, 1, "Enable";
        css / with_css: u8 @ 4, 3, "I/O Command Set Selected: 0 NVM, 6 all supported, 7 admin only";
        mps / with_mps: u8 @ 7, 4, "Memory Page Size: 2^(12 + n) bytes";
        ams / with_ams: u8 @ 11, 3, "Arbitration Mechanism Selected";
        shn / with_shn: u8 @ 14, 2, "Shutdown Notification: see ShutdownNotification";
        iosqes / with_iosqes: u8 @ 16, 4, "I/O Submission Queue Entry Size, log2: 6";
        iocqes / with_iocqes: u8 @ 20, 4, "I/O Completion Queue Entry Size, log2: 4";
        crime / with_crime: bool @ 24, 1, "Controller Ready Independent of Media Enable";
    }
}

codes! {
    /// Shutdown Notification (CC.SHN).
    pub struct ShutdownNotification(u8) {
        NONE = 0x0, "no notification";
        NORMAL = 0x1, "normal shutdown";
        ABRUPT = 0x2, "abrupt shutdown";
    }
}

bits! {
    /// Controller Status (CSTS), offset 1Ch (Base 3.1.4.6).
    pub struct Csts(u32) {
        rdy / with_rdy: bool @ 0, 1, "Ready";
        cfs / with_cfs: bool @ 1, 1, "Controller Fatal Status";
        shst / with_shst: u8 @ 2, 2, "Shutdown Status: see ShutdownStatus";
        nssro / with_nssro: bool @ 4, 1, "NVM Subsystem Reset Occurred";
        pp / with_pp: bool @ 5, 1, "Processing Paused";
        st / with_st: bool @ 6, 1, "Shutdown Type: 1 is an NVM subsystem shutdown";
    }
}

codes! {
    /// Shutdown Status (CSTS.SHST).
    pub struct ShutdownStatus(u8) {
        NORMAL = 0x0, "normal operation";
        OCCURRING = 0x1, "shutdown processing occurring";
        COMPLETE = 0x2, "shutdown processing complete";
    }
}

/// What NSSR takes to reset the NVM subsystem: "NVMe".
pub const NSSR_RESET: u32 = 0x4e56_4d65;

bits! {
    /// Controller Ready Timeouts (CRTO), offset 68h (Base 3.1.4.22).
    pub struct Crto(u32) {
        crwmt / with_crwmt: u16 @ 0, 16, "Controller Ready With Media Timeout, 500 ms";
        crimt / with_crimt: u16 @ 16, 16, "Controller Ready Independent of Media Timeout, 500 ms";
    }
}
