//! Terminate Connection Request, both directions (TCP transport, Figures "H2CTermReq" and "C2HTermReq").

use zerocopy::little_endian::{U16, U32};

use super::TERM_DATA_MAX;
use super::check::PduError;
use super::header::{CommonHdr, PduType};

wire! {
    /// Header of H2CTermReq and C2HTermReq; the header of the PDU in error follows as data.
    pub struct TermReqHdr[24] {
        /// Common header.
        pub ch @ 0: CommonHdr,
        /// Fatal Error Status: see [`Fes`].
        pub fes @ 8: U16,
        /// Fatal Error Information: what it is depends on FES.
        pub fei @ 10: U32,
        rsvd14 @ 14: [u8; 10],
    }
}

codes! {
    /// Fatal Error Status (FES). 05h has two meanings, by direction.
    pub struct Fes(u16) {
        INVALID_PDU_HEADER_FIELD = 0x01, "Invalid PDU Header Field";
        PDU_SEQUENCE_ERROR = 0x02, "PDU Sequence Error";
        HEADER_DIGEST_ERROR = 0x03, "Header Digest Error";
        DATA_TRANSFER_OUT_OF_RANGE = 0x04, "Data Transfer Out of Range";
        LIMIT_EXCEEDED = 0x05, "Data Transfer Limit Exceeded (C2H), R2T Limit Exceeded (H2C)";
        UNSUPPORTED_PARAMETER = 0x06, "Unsupported Parameter";
    }
}

impl TermReqHdr {
    /// A request to terminate for `error`, with `data_len` bytes (at most [`TERM_DATA_MAX`]) of the PDU in
    /// error to follow.
    #[must_use]
    pub fn new(pdu_type: PduType, error: &PduError, data_len: usize) -> Self {
        let data_len = u32::try_from(data_len.min(TERM_DATA_MAX)).unwrap_or(0);
        Self {
            ch: CommonHdr::new(pdu_type, 0, 24, 0, 24 + data_len),
            fes: U16::new(error.fes().0),
            fei: U32::new(error.fei()),
            ..Self::default()
        }
    }

    /// The status, typed.
    #[must_use]
    pub fn fes(&self) -> Fes {
        Fes(self.fes.get())
    }
}
