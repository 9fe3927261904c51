//! Data-Out, Data-In, Ready To Transfer (RFC 7143, 11.7 and 11.8).

use zerocopy::big_endian::{U32, U64};

use super::header::DataLen;

wire! {
    /// SCSI Data-Out (11.7).
    pub struct DataOutHdr[48] {
        /// Opcode.
        pub opcode @ 0: u8,
        /// F: the last PDU of a sequence.
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2],
        /// TotalAHSLength.
        pub ahs_words @ 4: u8,
        /// DataSegmentLength.
        pub data_len @ 5: DataLen,
        /// LUN, as in the R2T.
        pub lun @ 8: U64,
        /// Initiator Task Tag.
        pub itt @ 16: U32,
        /// Target Transfer Tag of the R2T; all ones: unsolicited.
        pub ttt @ 20: U32,
        /// Zero.
        pub rsvd24 @ 24: U32,
        /// ExpStatSN.
        pub exp_stat_sn @ 28: U32,
        /// Zero.
        pub rsvd32 @ 32: U32,
        /// DataSN: number of the PDU in its sequence.
        pub data_sn @ 36: U32,
        /// Offset of the data in the command's, in bytes.
        pub offset @ 40: U32,
        /// Zero.
        pub rsvd44 @ 44: U32,
    }
}

pdu! {
    /// SCSI Data-In (11.7).
    pub struct DataInHdr: response {
        /// F, A, the residual flags and S.
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: u8,
        /// SCSI status, with S.
        pub status @ 3: u8;
        /// LUN, with A.
        pub lun @ 8: U64;
        /// Target Transfer Tag, with A; else all ones.
        pub ttt @ 20: U32;
        /// DataSN: number of the PDU among the command's Data-In and R2T PDUs.
        pub data_sn @ 36: U32,
        /// Offset of the data in the command's, in bytes.
        pub offset @ 40: U32,
        /// Residual count, with S, in bytes.
        pub residual @ 44: U32,
    }
}

impl DataInHdr {
    /// F: the last PDU of a sequence.
    pub const FINAL: u8 = 0x80;
    /// O: overflow, with S.
    pub const OVERFLOW: u8 = 0x04;
    /// U: underflow, with S.
    pub const UNDERFLOW: u8 = 0x02;
    /// S: the PDU carries the command's status, and no response follows.
    pub const STATUS: u8 = 0x01;
}

pdu! {
    /// Ready To Transfer (11.8).
    pub struct R2tHdr: response {
        /// 0x80.
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN of the command.
        pub lun @ 8: U64;
        /// Target Transfer Tag.
        pub ttt @ 20: U32;
        /// R2TSN: number of the R2T among the command's.
        pub r2t_sn @ 36: U32,
        /// Offset of the data asked for, in bytes.
        pub offset @ 40: U32,
        /// Desired Data Transfer Length, in bytes: not zero, at most MaxBurstLength.
        pub len @ 44: U32,
    }
}
