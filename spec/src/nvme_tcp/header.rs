//! Common Header (TCP transport, Figure "PDU Common Header (CH)").

use zerocopy::little_endian::U32;

wire! {
    /// Common Header (CH): the first 8 bytes of every PDU.
    pub struct CommonHdr[8] {
        /// PDU-Type.
        pub pdu_type @ 0: PduType,
        /// FLAGS: see [`PduFlags`].
        pub flags @ 1: u8,
        /// Header Length: CH and PSH, digest excluded, bytes.
        pub hlen @ 2: u8,
        /// PDU Data Offset from the start of the PDU, bytes; reserved in PDUs without data.
        pub pdo @ 3: u8,
        /// PDU Length: header, digests, padding and data, bytes.
        pub plen @ 4: U32,
    }
}

/// Offsets of the fields of the common header, as FEI names them.
pub mod offset {
    /// PDU-Type.
    pub const PDU_TYPE: u32 = 0;
    /// FLAGS.
    pub const FLAGS: u32 = 1;
    /// HLEN.
    pub const HLEN: u32 = 2;
    /// PDO.
    pub const PDO: u32 = 3;
    /// PLEN.
    pub const PLEN: u32 = 4;
}

impl CommonHdr {
    /// A header with every field given.
    #[inline]
    #[must_use]
    pub fn new(pdu_type: PduType, flags: u8, hlen: u8, pdo: u8, plen: u32) -> Self {
        Self { pdu_type, flags, hlen, pdo, plen: U32::new(plen) }
    }

    /// The flags, typed.
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> PduFlags {
        PduFlags(self.flags)
    }
}

codes! {
    /// PDU-Type (TCP transport, Figure "PDU Types").
    pub struct PduType(u8) {
        IC_REQ = 0x00, "ICReq";
        IC_RESP = 0x01, "ICResp";
        H2C_TERM_REQ = 0x02, "H2CTermReq";
        C2H_TERM_REQ = 0x03, "C2HTermReq";
        CAPSULE_CMD = 0x04, "CapsuleCmd";
        CAPSULE_RESP = 0x05, "CapsuleResp";
        H2C_DATA = 0x06, "H2CData";
        C2H_DATA = 0x07, "C2HData";
        R2T = 0x09, "R2T";
    }
}

impl PduType {
    /// The HLEN that the standard gives this type, in bytes; 0 for a type that it does not define.
    #[inline]
    #[must_use]
    pub const fn hlen(self) -> u8 {
        match self {
            Self::IC_REQ | Self::IC_RESP => 128,
            Self::CAPSULE_CMD => 72,
            Self::H2C_TERM_REQ
            | Self::C2H_TERM_REQ
            | Self::CAPSULE_RESP
            | Self::H2C_DATA
            | Self::C2H_DATA
            | Self::R2T => 24,
            _ => 0,
        }
    }

    /// Whether a controller may receive this type.
    #[must_use]
    pub const fn is_to_controller(self) -> bool {
        matches!(self, Self::IC_REQ | Self::H2C_TERM_REQ | Self::CAPSULE_CMD | Self::H2C_DATA)
    }

    /// Whether a host may receive this type.
    #[must_use]
    pub const fn is_to_host(self) -> bool {
        matches!(self, Self::IC_RESP | Self::C2H_TERM_REQ | Self::CAPSULE_RESP | Self::C2H_DATA | Self::R2T)
    }

    /// Whether PDUs of this type carry a header digest once it is negotiated.
    #[inline]
    #[must_use]
    pub const fn has_header_digest(self) -> bool {
        matches!(self, Self::CAPSULE_CMD | Self::CAPSULE_RESP | Self::H2C_DATA | Self::C2H_DATA | Self::R2T)
    }

    /// Whether PDUs of this type may carry data with a data digest.
    #[inline]
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::CAPSULE_CMD | Self::H2C_DATA | Self::C2H_DATA)
    }
}

bits! {
    /// FLAGS of the common header.
    pub struct PduFlags(u8) {
        hdgst / with_hdgst: bool @ 0, 1, "HDGSTF: a header digest follows the header";
        ddgst / with_ddgst: bool @ 1, 1, "DDGSTF: a data digest follows the data";
        last / with_last: bool @ 2, 1, "LAST_PDU: the last data PDU (of a command, or of an R2T)";
        success / with_success: bool @ 3, 1, "SUCCESS: the command is complete and no CapsuleResp follows";
    }
}

impl PduFlags {
    /// HDGSTF.
    pub const HDGST: u8 = 1 << 0;
    /// DDGSTF.
    pub const DDGST: u8 = 1 << 1;
    /// LAST_PDU.
    pub const LAST: u8 = 1 << 2;
    /// SUCCESS.
    pub const SUCCESS: u8 = 1 << 3;
}
