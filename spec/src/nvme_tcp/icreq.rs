//! Initialize Connection Request and Response (TCP transport, Figures "ICReq" and "ICResp").

use zerocopy::little_endian::{U16, U32};

use super::check::PduError;
use super::header::{CommonHdr, PduType};
use super::{MAXH2CDATA_MIN, PDA_MAX};

wire! {
    /// Initialize Connection Request (ICReq).
    pub struct IcReq[128] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// PDU Format Version: 0.
        pub pfv @ 8: U16,
        /// Host PDU Data Alignment, dwords, 0's based, at most 31.
        pub hpda @ 10: u8,
        /// Digests that the host asks for: see [`DigestFlags`].
        pub dgst @ 11: u8,
        /// Maximum R2Ts outstanding per command, 0's based.
        pub maxr2t0 @ 12: U32,
        rsvd16 @ 16: [u8; 112],
    }
}

wire! {
    /// Initialize Connection Response (ICResp).
    pub struct IcResp[128] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// PDU Format Version: 0.
        pub pfv @ 8: U16,
        /// Controller PDU Data Alignment, dwords, 0's based, at most 31.
        pub cpda @ 10: u8,
        /// Digests in use on the connection: see [`DigestFlags`].
        pub dgst @ 11: u8,
        /// Maximum data of one H2CData PDU, bytes; at least 4096, a multiple of 4.
        pub maxh2cdata @ 12: U32,
        rsvd16 @ 16: [u8; 112],
    }
}

bits! {
    /// DGST of ICReq and ICResp.
    pub struct DigestFlags(u8) {
        hdgst / with_hdgst: bool @ 0, 1, "HDGST_ENABLE: header digest";
        ddgst / with_ddgst: bool @ 1, 1, "DDGST_ENABLE: data digest";
    }
}

/// Offsets of the fields of ICReq and ICResp, as FEI names them.
pub mod offset {
    /// PFV.
    pub const PFV: u32 = 8;
    /// HPDA or CPDA.
    pub const PDA: u32 = 10;
    /// DGST.
    pub const DGST: u32 = 11;
    /// MAXR2T (ICReq).
    pub const MAXR2T: u32 = 12;
    /// MAXH2CDATA (ICResp).
    pub const MAXH2CDATA: u32 = 12;
}

impl IcReq {
    /// A request; `maxr2t` counts R2Ts from 1.
    #[must_use]
    pub fn new(hpda: u8, dgst: DigestFlags, maxr2t: u32) -> Self {
        Self {
            ch: CommonHdr::new(PduType::IC_REQ, 0, 128, 0, 128),
            hpda,
            dgst: dgst.0,
            maxr2t0: U32::new(maxr2t.saturating_sub(1)),
            ..Self::default()
        }
    }

    /// R2Ts that may be outstanding per command, from 1; saturates at `u32::MAX`.
    #[must_use]
    pub fn maxr2t(&self) -> u32 {
        self.maxr2t0.get().saturating_add(1)
    }

    /// What a controller checks beyond the common header.
    ///
    /// # Errors
    /// An unknown PFV or an HPDA over 31.
    pub fn check(&self) -> Result<(), PduError> {
        if self.pfv.get() != 0 {
            return Err(PduError::Field { name: "PFV", fei: offset::PFV, value: self.pfv.get().into() });
        }
        if self.hpda > PDA_MAX {
            return Err(PduError::Field { name: "HPDA", fei: offset::PDA, value: self.hpda.into() });
        }
        Ok(())
    }
}

impl IcResp {
    /// A response.
    #[must_use]
    pub fn new(cpda: u8, dgst: DigestFlags, maxh2cdata: u32) -> Self {
        Self {
            ch: CommonHdr::new(PduType::IC_RESP, 0, 128, 0, 128),
            cpda,
            dgst: dgst.0,
            maxh2cdata: U32::new(maxh2cdata),
            ..Self::default()
        }
    }

    /// What a host checks beyond the common header, having asked for the digests in `asked`.
    ///
    /// # Errors
    /// An unknown PFV, a CPDA over 31, a digest not asked for, or a MAXH2CDATA out of its rules.
    pub fn check(&self, asked: DigestFlags) -> Result<(), PduError> {
        let (pfv, maxh2cdata) = (self.pfv.get(), self.maxh2cdata.get());
        if pfv != 0 {
            return Err(PduError::Field { name: "PFV", fei: offset::PFV, value: pfv.into() });
        }
        if self.cpda > PDA_MAX {
            return Err(PduError::Field { name: "CPDA", fei: offset::PDA, value: self.cpda.into() });
        }
        if self.dgst & 0b11 & !asked.0 != 0 {
            return Err(PduError::Field { name: "DGST", fei: offset::DGST, value: self.dgst.into() });
        }
        if maxh2cdata < MAXH2CDATA_MIN || !maxh2cdata.is_multiple_of(4) {
            return Err(PduError::Field { name: "MAXH2CDATA", fei: offset::MAXH2CDATA, value: maxh2cdata });
        }
        Ok(())
    }
}
