//! Basic Header Segment (RFC 7143, 11.2.1).

use zerocopy::FromBytes;
use zerocopy::big_endian::{U32, U64};

/// Length of a basic header segment, in bytes.
pub const BHS_LEN: usize = 48;
/// Length of a header or data digest, in bytes.
pub const DIGEST_LEN: usize = 4;
/// The most that TotalAHSLength can say, in bytes.
pub const AHS_LEN_MAX: usize = 255 * 4;

/// DataSegmentLength: 24 bits, bytes, padding not counted.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::KnownLayout,
    zerocopy::Immutable,
    zerocopy::Unaligned,
)]
#[repr(transparent)]
pub struct DataLen(pub [u8; 3]);

impl DataLen {
    /// The largest length.
    pub const MAX: u32 = (1 << 24) - 1;

    /// A length; what does not fit in 24 bits is cut to [`Self::MAX`].
    #[inline]
    #[must_use]
    pub const fn new(len_bytes: u32) -> Self {
        let len = if len_bytes > Self::MAX { Self::MAX } else { len_bytes };
        let [_, a, b, c] = len.to_be_bytes();
        Self([a, b, c])
    }

    /// In bytes.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        let Self([a, b, c]) = self;
        u32::from_be_bytes([0, a, b, c])
    }
}

/// Bytes of padding after a segment of `len_bytes` (RFC 7143, 11.1).
#[inline]
#[must_use]
pub const fn pad_len(len_bytes: u32) -> u32 {
    len_bytes.wrapping_neg() & 3
}

codes! {
    /// Opcode, without the I bit (RFC 7143, 11.2.1.2).
    pub struct Opcode(u8) {
        NOP_OUT = 0x00, "NOP-Out";
        SCSI_COMMAND = 0x01, "SCSI Command";
        TASK_MGMT_REQ = 0x02, "Task Management Function Request";
        LOGIN_REQ = 0x03, "Login Request";
        TEXT_REQ = 0x04, "Text Request";
        DATA_OUT = 0x05, "SCSI Data-Out";
        LOGOUT_REQ = 0x06, "Logout Request";
        SNACK = 0x10, "SNACK Request";
        NOP_IN = 0x20, "NOP-In";
        SCSI_RESPONSE = 0x21, "SCSI Response";
        TASK_MGMT_RESP = 0x22, "Task Management Function Response";
        LOGIN_RESP = 0x23, "Login Response";
        TEXT_RESP = 0x24, "Text Response";
        DATA_IN = 0x25, "SCSI Data-In";
        LOGOUT_RESP = 0x26, "Logout Response";
        R2T = 0x31, "Ready To Transfer";
        ASYNC = 0x32, "Asynchronous Message";
        REJECT = 0x3f, "Reject";
    }
}

impl Opcode {
    /// Whether an initiator sends it.
    #[inline]
    #[must_use]
    pub const fn is_to_target(self) -> bool {
        matches!(
            self,
            Self::NOP_OUT
                | Self::SCSI_COMMAND
                | Self::TASK_MGMT_REQ
                | Self::LOGIN_REQ
                | Self::TEXT_REQ
                | Self::DATA_OUT
                | Self::LOGOUT_REQ
                | Self::SNACK
        )
    }

    /// Whether an initiator's PDU of this type carries CmdSN and so has a place in the order of commands.
    #[inline]
    #[must_use]
    pub const fn is_numbered(self) -> bool {
        matches!(
            self,
            Self::NOP_OUT
                | Self::SCSI_COMMAND
                | Self::TASK_MGMT_REQ
                | Self::LOGIN_REQ
                | Self::TEXT_REQ
                | Self::LOGOUT_REQ
        )
    }
}

wire! {
    /// What all headers have in common.
    pub struct Bhs[48] {
        /// I bit (0x40) and opcode.
        pub opcode @ 0: u8,
        /// F bit (0x80) and what the opcode says.
        pub flags @ 1: u8,
        /// As the opcode says.
        pub specific @ 2: [u8; 2],
        /// TotalAHSLength, in words of 4 bytes.
        pub ahs_words @ 4: u8,
        /// DataSegmentLength.
        pub data_len @ 5: DataLen,
        /// LUN, or as the opcode says.
        pub lun @ 8: U64,
        /// Initiator Task Tag.
        pub itt @ 16: U32,
        /// Target Transfer Tag, or as the opcode says.
        pub ttt @ 20: U32,
        /// CmdSN of numbered PDUs to the target; StatSN of those to the initiator.
        pub cmd_sn @ 24: U32,
        /// ExpStatSN of PDUs to the target; ExpCmdSN of those to the initiator.
        pub exp_stat_sn @ 28: U32,
        /// As the opcode says.
        pub rest @ 32: [u8; 16],
    }
}

/// The I bit: the PDU is for immediate delivery.
pub const IMMEDIATE: u8 = 0x40;
/// The F bit: final PDU of a sequence.
pub const FINAL: u8 = 0x80;

impl Bhs {
    /// The opcode without the I bit.
    #[inline]
    #[must_use]
    pub const fn opcode(&self) -> Opcode {
        Opcode(self.opcode & 0x3f)
    }

    /// The I bit.
    #[inline]
    #[must_use]
    pub const fn is_immediate(&self) -> bool {
        self.opcode & IMMEDIATE != 0
    }

    /// The F bit.
    #[inline]
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.flags & FINAL != 0
    }
}

/// What is wrong with a header. All of these end the connection: where the next PDU begins is not known or not agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BhsError {
    /// Not an opcode for a target.
    #[error("{0:?} is not an opcode that a target understands")]
    Opcode(Opcode),
    /// DataSegmentLength above what was declared.
    #[error("{opcode} with {len} bytes of data, above MaxRecvDataSegmentLength of {max}")]
    DataLen {
        /// Of the PDU.
        opcode: Opcode,
        /// As the header says, in bytes.
        len: u32,
        /// What the receiver declared, in bytes.
        max: u32,
    },
    /// Additional header segments longer than the receiver takes.
    #[error("{opcode} with {len} bytes of additional header segments, more than the {max} understood")]
    AhsLen {
        /// Of the PDU.
        opcode: Opcode,
        /// In bytes.
        len: usize,
        /// In bytes.
        max: usize,
    },
    /// The header digest does not match.
    #[error("header digest {received:#010x} received, {computed:#010x} computed")]
    Digest {
        /// As received.
        received: u32,
        /// As computed.
        computed: u32,
    },
}

/// Where a PDU's parts are, checked against what the receiver takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedBhs {
    /// Without the I bit.
    pub opcode: Opcode,
    /// The I bit.
    pub immediate: bool,
    /// Bytes of additional header segments: a multiple of 4.
    pub ahs_len: usize,
    /// Bytes of data, at most what the rules say.
    pub data_len: u32,
}

impl CheckedBhs {
    /// Checks a header that came to a target which takes `data_max` bytes of data and `ahs_max` bytes of AHS.
    ///
    /// # Errors
    /// The first rule that it breaks.
    #[inline]
    pub fn parse(bhs: &Bhs, data_max: u32, ahs_max: usize) -> Result<Self, BhsError> {
        let opcode = bhs.opcode();
        if !opcode.is_to_target() {
            return Err(BhsError::Opcode(opcode));
        }
        let data_len = bhs.data_len.get();
        if data_len > data_max {
            return Err(BhsError::DataLen { opcode, len: data_len, max: data_max });
        }
        let ahs_len = usize::from(bhs.ahs_words) * 4;
        if ahs_len > ahs_max {
            return Err(BhsError::AhsLen { opcode, len: ahs_len, max: ahs_max });
        }
        Ok(Self { opcode, immediate: bhs.is_immediate(), ahs_len, data_len })
    }

    /// As [`Self::parse`], on the first bytes of `bytes`; `None` while there are fewer than [`BHS_LEN`].
    ///
    /// # Errors
    /// As [`Self::parse`].
    #[inline]
    pub fn parse_prefix(bytes: &[u8], data_max: u32, ahs_max: usize) -> Result<Option<Self>, BhsError> {
        match Bhs::ref_from_prefix(bytes) {
            Ok((bhs, _)) => Self::parse(bhs, data_max, ahs_max).map(Some),
            Err(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_three_bytes_big_endian_and_padded_to_words() {
        assert_eq!(DataLen::new(0x01_0203).0, [1, 2, 3]);
        assert_eq!(DataLen([0xff; 3]).get(), DataLen::MAX);
        assert_eq!(DataLen::new(u32::MAX).get(), DataLen::MAX);
        assert_eq!([0, 1, 2, 3, 4, 5].map(pad_len), [0, 3, 2, 1, 0, 3]);
    }

    #[test]
    fn a_header_is_held_to_what_the_receiver_declared() {
        let bhs = Bhs { opcode: 0x41, ahs_words: 4, data_len: DataLen::new(8192), ..Bhs::default() };
        let checked = CheckedBhs::parse(&bhs, 8192, 16).unwrap();
        assert!(checked.immediate && checked.opcode == Opcode::SCSI_COMMAND);
        assert_eq!((checked.ahs_len, checked.data_len), (16, 8192));
        assert!(matches!(CheckedBhs::parse(&bhs, 8191, 16), Err(BhsError::DataLen { .. })));
        assert!(matches!(CheckedBhs::parse(&bhs, 8192, 12), Err(BhsError::AhsLen { .. })));
        let response = Bhs { opcode: 0x21, ..bhs };
        assert!(matches!(CheckedBhs::parse(&response, 8192, 16), Err(BhsError::Opcode(_))));
    }
}
