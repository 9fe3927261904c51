//! Capsules, R2T and data transfer PDUs (TCP transport, 3.6.2 "PDUs").
//!
//! Each structure is the PDU's whole header: CH and PSH, without digest, padding and data.

use zerocopy::little_endian::{U16, U32};

use super::check::{CheckedHdr, PduError};
use super::header::CommonHdr;
use crate::nvme::{Cqe, Sqe};

wire! {
    /// Command Capsule (CapsuleCmd); in-capsule data may follow at PDO.
    pub struct CapsuleCmdHdr[72] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// The command.
        pub sqe @ 8: Sqe,
    }
}

wire! {
    /// Response Capsule (CapsuleResp).
    pub struct CapsuleRespHdr[24] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// The completion.
        pub cqe @ 8: Cqe,
    }
}

wire! {
    /// Host To Controller Data Transfer (H2CData).
    pub struct H2cDataHdr[24] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// Command Capsule CID.
        pub cccid @ 8: U16,
        /// Transfer Tag of the R2T that this answers.
        pub ttag @ 10: U16,
        /// Data Offset within the command's data, bytes, a multiple of 4.
        pub datao @ 12: U32,
        /// Data Length, bytes.
        pub datal @ 16: U32,
        rsvd20 @ 20: [u8; 4],
    }
}

wire! {
    /// Controller To Host Data Transfer (C2HData).
    pub struct C2hDataHdr[24] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// Command Capsule CID.
        pub cccid @ 8: U16,
        rsvd10 @ 10: [u8; 2],
        /// Data Offset within the command's data, bytes, a multiple of 4.
        pub datao @ 12: U32,
        /// Data Length, bytes.
        pub datal @ 16: U32,
        rsvd20 @ 20: [u8; 4],
    }
}

wire! {
    /// Ready to Transfer (R2T).
    pub struct R2tHdr[24] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// Command Capsule CID.
        pub cccid @ 8: U16,
        /// Transfer Tag, to be returned in the H2CData PDUs.
        pub ttag @ 10: U16,
        /// Requested Data Offset within the command's data, bytes, a multiple of 4.
        pub r2to @ 12: U32,
        /// Requested Data Length, bytes, not 0.
        pub r2tl @ 16: U32,
        rsvd20 @ 20: [u8; 4],
    }
}

/// Offsets of the fields of H2CData, C2HData and R2T, as FEI names them.
pub mod offset {
    /// CCCID.
    pub const CCCID: u32 = 8;
    /// TTAG.
    pub const TTAG: u32 = 10;
    /// DATAO or R2TO.
    pub const DATAO: u32 = 12;
    /// DATAL or R2TL.
    pub const DATAL: u32 = 16;
}

/// DATAO and DATAL against each other and against what the common header leaves for data.
fn check_transfer(datao: u32, datal: u32, hdr: &CheckedHdr) -> Result<(), PduError> {
    if datal != hdr.data_len {
        return Err(PduError::Field { name: "DATAL", fei: offset::DATAL, value: datal });
    }
    if !datao.is_multiple_of(4) {
        return Err(PduError::Field { name: "DATAO", fei: offset::DATAO, value: datao });
    }
    if datao.checked_add(datal).is_none() {
        return Err(PduError::OutOfRange { off_bytes: datao, len_bytes: datal });
    }
    Ok(())
}

impl H2cDataHdr {
    /// What can be checked without knowing the command: DATAL against PLEN, DATAO's alignment, overflow.
    ///
    /// # Errors
    /// The field that breaks its rule.
    pub fn check(&self, hdr: &CheckedHdr) -> Result<(), PduError> {
        check_transfer(self.datao.get(), self.datal.get(), hdr)
    }
}

impl C2hDataHdr {
    /// What can be checked without knowing the command: DATAL against PLEN, DATAO's alignment, overflow.
    ///
    /// # Errors
    /// The field that breaks its rule.
    pub fn check(&self, hdr: &CheckedHdr) -> Result<(), PduError> {
        check_transfer(self.datao.get(), self.datal.get(), hdr)
    }
}

impl R2tHdr {
    /// What can be checked without knowing the command: R2TL not 0, R2TO's alignment, overflow.
    ///
    /// # Errors
    /// The field that breaks its rule.
    pub fn check(&self) -> Result<(), PduError> {
        let (r2to, r2tl) = (self.r2to.get(), self.r2tl.get());
        if r2tl == 0 {
            return Err(PduError::Field { name: "R2TL", fei: offset::DATAL, value: r2tl });
        }
        if !r2to.is_multiple_of(4) {
            return Err(PduError::Field { name: "R2TO", fei: offset::DATAO, value: r2to });
        }
        if r2to.checked_add(r2tl).is_none() {
            return Err(PduError::OutOfRange { off_bytes: r2to, len_bytes: r2tl });
        }
        Ok(())
    }
}
