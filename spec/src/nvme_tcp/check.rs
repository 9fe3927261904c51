//! The common header, checked, and the error that a TermReq is made from.

use super::header::{CommonHdr, PduFlags, PduType, offset};
use super::term::Fes;
use super::{DIGEST_LEN, TERM_DATA_MAX, align_of_pda};

/// Which end of the connection reads the PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// The target's end.
    Controller,
    /// The initiator's end.
    Host,
}

/// What a receiver holds an incoming common header against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxRules {
    /// Who receives.
    pub receiver: Receiver,
    /// Whether ICReq and ICResp have been exchanged.
    pub initialized: bool,
    /// Whether header digests are in use.
    pub hdgst: bool,
    /// Whether data digests are in use.
    pub ddgst: bool,
    /// The receiver's own data alignment (CPDA or HPDA), 0's based dwords.
    pub pda: u8,
    /// The most data that a CapsuleCmd may carry, in bytes.
    pub in_capsule_max: u32,
    /// The most data that an H2CData (MAXH2CDATA) or C2HData may carry, in bytes.
    pub data_max: u32,
}

impl RxRules {
    /// Rules for the first PDU of a connection.
    #[must_use]
    pub const fn before_init(receiver: Receiver) -> Self {
        Self {
            receiver,
            initialized: false,
            hdgst: false,
            ddgst: false,
            pda: 0,
            in_capsule_max: 0,
            data_max: 0,
        }
    }
}

/// A common header that keeps every rule of its type, direction and connection.
///
/// `hlen + hdgst_len <= data_off`, and `data_off + data_len + ddgst_len == plen` (without data, `data_off`
/// is the end of the header and its digest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedHdr {
    /// PDU-Type, one that the receiver may receive now.
    pub pdu_type: PduType,
    /// FLAGS.
    pub flags: PduFlags,
    /// HLEN, as the type has it.
    pub hlen: u8,
    /// Bytes of header digest after the header: 0 or 4.
    pub hdgst_len: u8,
    /// Where data begins, in bytes from the start of the PDU.
    pub data_off: u32,
    /// Bytes of data.
    pub data_len: u32,
    /// Bytes of data digest after the data: 0 or 4.
    pub ddgst_len: u8,
    /// PLEN.
    pub plen: u32,
}

/// Why a PDU was refused. Every one is fatal to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PduError {
    /// A type that does not exist or does not go this way.
    #[error("PDU type {0:?} is not one that this side receives")]
    Type(PduType),
    /// A type that may not come now.
    #[error("PDU of type {0} at the wrong time: ICReq and ICResp come first, and once")]
    Sequence(PduType),
    /// Flags that do not agree with what was negotiated or with each other.
    #[error("{pdu_type} with flags {flags:#04x}, which the negotiated digests or the type do not allow")]
    Flags {
        /// PDU-Type.
        pdu_type: PduType,
        /// FLAGS as received.
        flags: u8,
    },
    /// HLEN is not that of the type.
    #[error("{pdu_type} with HLEN {hlen}, which must be {want}")]
    Hlen {
        /// PDU-Type.
        pdu_type: PduType,
        /// HLEN as received.
        hlen: u8,
        /// HLEN of the type.
        want: u8,
    },
    /// PDO inside the header, or not aligned as negotiated.
    #[error("{pdu_type} with PDO {pdo}, which must be at least {min} and a multiple of {align}")]
    Pdo {
        /// PDU-Type.
        pdu_type: PduType,
        /// PDO as received.
        pdo: u8,
        /// Smallest valid PDO.
        min: u32,
        /// Alignment, in bytes.
        align: u32,
    },
    /// PLEN too small or too large.
    #[error("{pdu_type} with PLEN {plen}, which must be {min} to {max}")]
    Plen {
        /// PDU-Type.
        pdu_type: PduType,
        /// PLEN as received.
        plen: u32,
        /// Smallest valid PLEN.
        min: u32,
        /// Largest valid PLEN.
        max: u32,
    },
    /// A field of the PDU specific header with an invalid value.
    #[error("PDU header field {name} has the invalid value {value:#x}")]
    Field {
        /// Name of the field in the standard.
        name: &'static str,
        /// Offset of the field in the PDU header.
        fei: u32,
        /// Value as received.
        value: u32,
    },
    /// A data PDU longer than the receiver allows (MAXH2CDATA), or more R2Ts than MAXR2T.
    #[error("{pdu_type} beyond its limit: {value} where {max} is the most")]
    Limit {
        /// PDU-Type.
        pdu_type: PduType,
        /// What came.
        value: u32,
        /// What is allowed.
        max: u32,
    },
    /// Data outside of the command's or the R2T's range.
    #[error("{len_bytes} bytes at offset {off_bytes} are out of the transfer's range")]
    OutOfRange {
        /// DATAO or R2TO.
        off_bytes: u32,
        /// DATAL or R2TL.
        len_bytes: u32,
    },
    /// The header digest does not match.
    #[error("header digest {received:#010x} received, {computed:#010x} computed")]
    HeaderDigest {
        /// As received.
        received: u32,
        /// As computed.
        computed: u32,
    },
    /// A valid value that the receiver does not support.
    #[error("PDU parameter {name} is not supported")]
    Unsupported {
        /// Name of the field in the standard.
        name: &'static str,
        /// Offset of the field in the PDU header.
        fei: u32,
    },
}

impl PduError {
    /// Fatal Error Status of the TermReq that answers this.
    #[must_use]
    pub const fn fes(&self) -> Fes {
        match self {
            Self::Type(_)
            | Self::Flags { .. }
            | Self::Hlen { .. }
            | Self::Pdo { .. }
            | Self::Plen { .. }
            | Self::Field { .. } => Fes::INVALID_PDU_HEADER_FIELD,
            Self::Sequence(_) => Fes::PDU_SEQUENCE_ERROR,
            Self::HeaderDigest { .. } => Fes::HEADER_DIGEST_ERROR,
            Self::OutOfRange { .. } => Fes::DATA_TRANSFER_OUT_OF_RANGE,
            Self::Limit { .. } => Fes::LIMIT_EXCEEDED,
            Self::Unsupported { .. } => Fes::UNSUPPORTED_PARAMETER,
        }
    }

    /// Fatal Error Information of that TermReq: the offset of the field in error, or the received digest.
    #[must_use]
    pub const fn fei(&self) -> u32 {
        match self {
            Self::Type(_) => offset::PDU_TYPE,
            Self::Flags { .. } => offset::FLAGS,
            Self::Hlen { .. } => offset::HLEN,
            Self::Pdo { .. } => offset::PDO,
            Self::Plen { .. } => offset::PLEN,
            Self::Field { fei, .. } | Self::Unsupported { fei, .. } => *fei,
            Self::HeaderDigest { received, .. } => *received,
            Self::OutOfRange { .. } => super::data::offset::DATAO,
            Self::Sequence(_) | Self::Limit { .. } => 0,
        }
    }
}

impl CheckedHdr {
    /// Checks a common header. Reserved bits are not looked at, as the standard demands.
    ///
    /// # Errors
    /// The first rule that it breaks: type, sequence, flags, HLEN, PLEN and PDO, limits.
    pub fn parse(ch: &CommonHdr, rules: &RxRules) -> Result<Self, PduError> {
        let pdu_type = ch.pdu_type;
        check_type(pdu_type, rules)?;
        let flags = check_flags(ch, rules)?;
        let hlen = pdu_type.hlen();
        if ch.hlen != hlen {
            return Err(PduError::Hlen { pdu_type, hlen: ch.hlen, want: hlen });
        }
        let has_digest = rules.hdgst && pdu_type.has_header_digest();
        let hdgst_len = if has_digest { DIGEST_LEN_U8 } else { 0 };
        let end = u32::from(hlen) + u32::from(hdgst_len);
        let plen = ch.plen.get();
        let mut checked =
            Self { pdu_type, flags, hlen, hdgst_len, data_off: end, data_len: 0, ddgst_len: 0, plen };
        match pdu_type {
            PduType::H2C_TERM_REQ | PduType::C2H_TERM_REQ => {
                checked.check_plen(end, end + TERM_DATA_MAX_U32)?;
                checked.data_len = plen - end;
            }
            _ if pdu_type.has_data() => checked.check_data(ch.pdo, rules)?,
            _ => checked.check_plen(end, end)?,
        }
        Ok(checked)
    }

    /// End of the header and its digest, in bytes from the start of the PDU.
    #[inline]
    #[must_use]
    pub const fn psh_end(&self) -> u8 {
        self.hlen + self.hdgst_len
    }

    /// Bytes of padding between the header (and its digest) and the data.
    #[inline]
    #[must_use]
    pub fn pad_len(&self) -> u32 {
        self.data_off - u32::from(self.psh_end())
    }

    fn check_plen(&self, min: u32, max: u32) -> Result<(), PduError> {
        if (min..=max).contains(&self.plen) {
            return Ok(());
        }
        Err(PduError::Plen { pdu_type: self.pdu_type, plen: self.plen, min, max })
    }

    /// PLEN and PDO of a PDU that may (CapsuleCmd) or must (H2CData, C2HData) have data.
    fn check_data(&mut self, pdo: u8, rules: &RxRules) -> Result<(), PduError> {
        let pdu_type = self.pdu_type;
        let end = self.data_off;
        if pdu_type == PduType::CAPSULE_CMD && self.plen == end {
            return Ok(());
        }
        let ddgst_len = if rules.ddgst { DIGEST_LEN_U8 } else { 0 };
        let align = align_of_pda(rules.pda);
        let data_off = u32::from(pdo);
        self.check_plen(end + 1 + u32::from(ddgst_len), u32::MAX)?;
        if data_off < end || !data_off.is_multiple_of(align) {
            return Err(PduError::Pdo { pdu_type, pdo, min: end, align });
        }
        let overhead = data_off + u32::from(ddgst_len);
        let capsule = pdu_type == PduType::CAPSULE_CMD;
        let plen_max = if capsule { overhead.saturating_add(rules.in_capsule_max) } else { u32::MAX };
        self.check_plen(overhead + 1, plen_max)?;
        let data_len = self.plen - overhead;
        if !capsule && data_len > rules.data_max {
            return Err(PduError::Limit { pdu_type, value: data_len, max: rules.data_max });
        }
        self.data_off = data_off;
        self.data_len = data_len;
        self.ddgst_len = ddgst_len;
        Ok(())
    }
}

const DIGEST_LEN_U8: u8 = 4;
const TERM_DATA_MAX_U32: u32 = 128;
const _: () = assert!(DIGEST_LEN_U8 as usize == DIGEST_LEN);
const _: () = assert!(TERM_DATA_MAX_U32 as usize == TERM_DATA_MAX);

fn check_type(pdu_type: PduType, rules: &RxRules) -> Result<(), PduError> {
    let (expected, init) = match rules.receiver {
        Receiver::Controller => (pdu_type.is_to_controller(), PduType::IC_REQ),
        Receiver::Host => (pdu_type.is_to_host(), PduType::IC_RESP),
    };
    if !expected {
        return Err(PduError::Type(pdu_type));
    }
    let term = matches!(pdu_type, PduType::H2C_TERM_REQ | PduType::C2H_TERM_REQ);
    if !term && (pdu_type == init) == rules.initialized {
        return Err(PduError::Sequence(pdu_type));
    }
    Ok(())
}

/// Digest flags must be as negotiated. DDGSTF of a PDU without data says nothing and is let pass when
/// data digests are in use, either way.
fn check_flags(ch: &CommonHdr, rules: &RxRules) -> Result<PduFlags, PduError> {
    let (pdu_type, flags) = (ch.pdu_type, ch.flags());
    let bad = PduError::Flags { pdu_type, flags: ch.flags };
    if !pdu_type.has_header_digest() {
        return Ok(flags);
    }
    if flags.hdgst() != rules.hdgst {
        return Err(bad);
    }
    if pdu_type.has_data() {
        let may_lack_data = pdu_type == PduType::CAPSULE_CMD
            && ch.plen.get() == u32::from(ch.hlen) + if rules.hdgst { 4 } else { 0 };
        if flags.ddgst() != rules.ddgst && !(rules.ddgst && may_lack_data) {
            return Err(bad);
        }
    }
    if pdu_type == PduType::C2H_DATA && flags.success() && !flags.last() {
        return Err(bad);
    }
    Ok(flags)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
