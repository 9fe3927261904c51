//! Parameter data of third-party copy (SPC-4 6.4 to 6.8 and 5.17; SBC-3 5.7, 5.25, 5.47).

use zerocopy::big_endian::{U16, U32, U64};

wire! {
    /// Head of the EXTENDED COPY(LID1) parameter list (SPC-4 6.4.3).
    pub struct ExtendedCopyHdr[16] {
        /// LIST IDENTIFIER.
        pub list_id @ 0: u8,
        /// STR (bit 5), LIST ID USAGE (bits 4:3), PRIORITY (bits 2:0).
        pub flags @ 1: u8,
        /// CSCD DESCRIPTOR LIST LENGTH.
        pub cscd_len @ 2: U16,
        rsvd4 @ 4: [u8; 4],
        /// SEGMENT DESCRIPTOR LIST LENGTH.
        pub segments_len @ 8: U32,
        /// INLINE DATA LENGTH.
        pub inline_len @ 12: U32,
    }
}

/// LIST ID USAGE 11b, in place: no list identifier, nothing is held.
pub const LIST_ID_NONE: u8 = 0x18;
/// LIST ID USAGE 10b, in place: nothing needs to be held.
pub const LIST_ID_DISCARD: u8 = 0x10;
/// LIST ID USAGE bits.
pub const LIST_ID_MASK: u8 = 0x18;

/// CSCD descriptor type code: identification descriptor.
pub const CSCD_IDENTIFICATION: u8 = 0xe4;

wire! {
    /// Identification CSCD descriptor with the device type specific parameters of a disk (SPC-4 6.4.5.4, 6.4.5.9).
    pub struct CscdIdentification[32] {
        /// DESCRIPTOR TYPE CODE E4h.
        pub type_code @ 0: u8,
        /// LU ID TYPE (bits 7:6), NUL (bit 5), PERIPHERAL DEVICE TYPE (bits 4:0).
        pub device_type @ 1: u8,
        /// RELATIVE INITIATOR PORT IDENTIFIER.
        pub initiator_port @ 2: U16,
        /// CODE SET (bits 3:0).
        pub code_set @ 4: u8,
        /// ASSOCIATION (bits 5:4), DESIGNATOR TYPE (bits 3:0).
        pub designator_type @ 5: u8,
        rsvd6 @ 6: u8,
        /// DESIGNATOR LENGTH.
        pub designator_len @ 7: u8,
        /// DESIGNATOR.
        pub designator @ 8: [u8; 20],
        /// PAD (bit 2), then the DISK BLOCK LENGTH (low 24 bits).
        pub block_bytes @ 28: U32,
    }
}

/// Segment descriptor type code: block to block, length in blocks.
pub const SEGMENT_BLOCK_TO_BLOCK: u8 = 0x02;
/// Segment descriptor type code: block to block, length in bytes and with offsets.
pub const SEGMENT_BLOCK_TO_BLOCK_OFFSET: u8 = 0x0a;

wire! {
    /// Head of a segment descriptor (SPC-4 6.4.6.1).
    pub struct SegmentHdr[8] {
        /// DESCRIPTOR TYPE CODE.
        pub type_code @ 0: u8,
        /// DC (bit 1), CAT (bit 0).
        pub flags @ 1: u8,
        /// DESCRIPTOR LENGTH: bytes that follow.
        pub len @ 2: U16,
        /// SOURCE CSCD DESCRIPTOR ID.
        pub source @ 4: U16,
        /// DESTINATION CSCD DESCRIPTOR ID.
        pub destination @ 6: U16,
    }
}

wire! {
    /// Block to block segment descriptor (SPC-4 6.4.6.5).
    pub struct SegmentBlocks[28] {
        /// Type 02h, length 0018h.
        pub hdr @ 0: SegmentHdr,
        rsvd8 @ 8: [u8; 2],
        /// BLOCK DEVICE NUMBER OF BLOCKS: of the source, or with DC of the destination.
        pub blocks @ 10: U16,
        /// SOURCE BLOCK DEVICE LOGICAL BLOCK ADDRESS.
        pub source_lba @ 12: U64,
        /// DESTINATION BLOCK DEVICE LOGICAL BLOCK ADDRESS.
        pub destination_lba @ 20: U64,
    }
}

wire! {
    /// Block to block with offset segment descriptor (SPC-4 6.4.6.11).
    pub struct SegmentBytes[32] {
        /// Type 0Ah, length 001Ch.
        pub hdr @ 0: SegmentHdr,
        /// NUMBER OF BYTES.
        pub bytes @ 8: U32,
        /// SOURCE BLOCK DEVICE LOGICAL BLOCK ADDRESS.
        pub source_lba @ 12: U64,
        /// DESTINATION BLOCK DEVICE LOGICAL BLOCK ADDRESS.
        pub destination_lba @ 20: U64,
        /// SOURCE BLOCK DEVICE BYTE OFFSET.
        pub source_off @ 28: U16,
        /// DESTINATION BLOCK DEVICE BYTE OFFSET.
        pub destination_off @ 30: U16,
    }
}

wire! {
    /// RECEIVE COPY STATUS(LID1) data (SPC-4 6.21).
    pub struct CopyStatusLid1[12] {
        /// AVAILABLE DATA: bytes that follow.
        pub available @ 0: U32,
        /// HDD (bit 7), COPY COMMAND STATUS (bits 6:0): 0 in progress, 1 done, 2 failed.
        pub status @ 4: u8,
        /// SEGMENTS PROCESSED.
        pub segments @ 5: U16,
        /// TRANSFER COUNT UNITS: 0 bytes, 1 KiB, F1h blocks.
        pub units @ 7: u8,
        /// TRANSFER COUNT.
        pub count @ 8: U32,
    }
}

wire! {
    /// RECEIVE COPY OPERATING PARAMETERS data up to the list of descriptor types (SPC-4 6.23).
    pub struct CopyOperatingParameters[44] {
        /// AVAILABLE DATA: bytes that follow.
        pub available @ 0: U32,
        /// SNLID (bit 0): no list identifier is supported.
        pub snlid @ 4: u8,
        rsvd5 @ 5: [u8; 3],
        /// MAXIMUM CSCD DESCRIPTOR COUNT.
        pub cscds_max @ 8: U16,
        /// MAXIMUM SEGMENT DESCRIPTOR COUNT.
        pub segments_max @ 10: U16,
        /// MAXIMUM DESCRIPTOR LIST LENGTH.
        pub descriptors_len_max @ 12: U32,
        /// MAXIMUM SEGMENT LENGTH in bytes.
        pub segment_bytes_max @ 16: U32,
        /// MAXIMUM INLINE DATA LENGTH.
        pub inline_max @ 20: U32,
        /// HELD DATA LIMIT.
        pub held_max @ 24: U32,
        /// MAXIMUM STREAM DEVICE TRANSFER SIZE.
        pub stream_max @ 28: U32,
        rsvd32 @ 32: [u8; 2],
        /// TOTAL CONCURRENT COPIES.
        pub concurrent_total @ 34: U16,
        /// MAXIMUM CONCURRENT COPIES.
        pub concurrent_max @ 36: u8,
        /// DATA SEGMENT GRANULARITY (log 2).
        pub segment_granularity @ 37: u8,
        /// INLINE DATA GRANULARITY (log 2).
        pub inline_granularity @ 38: u8,
        /// HELD DATA GRANULARITY (log 2).
        pub held_granularity @ 39: u8,
        rsvd40 @ 40: [u8; 3],
        /// IMPLEMENTED DESCRIPTOR LIST LENGTH.
        pub descriptor_types_len @ 43: u8,
    }
}

wire! {
    /// Head of the POPULATE TOKEN parameter list (SBC-3 5.7.2); range descriptors follow.
    pub struct PopulateTokenHdr[16] {
        /// POPULATE TOKEN DATA LENGTH: bytes that follow this field.
        pub len @ 0: U16,
        /// RTV (bit 1): the ROD TYPE is valid; IMMED (bit 0).
        pub flags @ 2: u8,
        rsvd3 @ 3: u8,
        /// INACTIVITY TIMEOUT in seconds.
        pub inactivity_s @ 4: U32,
        /// ROD TYPE.
        pub rod_type @ 8: U32,
        rsvd12 @ 12: [u8; 2],
        /// BLOCK DEVICE RANGE DESCRIPTOR LENGTH.
        pub ranges_len @ 14: U16,
    }
}

/// Length of a ROD token in bytes.
pub const ROD_TOKEN_BYTES: usize = 512;

wire! {
    /// Head of the WRITE USING TOKEN parameter list (SBC-3 5.47.2); range descriptors follow.
    pub struct WriteUsingTokenHdr[536] {
        /// WRITE USING TOKEN DATA LENGTH: bytes that follow this field.
        pub len @ 0: U16,
        /// DEL_TKN (bit 1), IMMED (bit 0).
        pub flags @ 2: u8,
        rsvd3 @ 3: [u8; 5],
        /// OFFSET INTO ROD in blocks.
        pub offset @ 8: U64,
        /// ROD TOKEN.
        pub token @ 16: [u8; ROD_TOKEN_BYTES],
        rsvd528 @ 528: [u8; 6],
        /// BLOCK DEVICE RANGE DESCRIPTOR LENGTH.
        pub ranges_len @ 534: U16,
    }
}

codes! {
    /// ROD TYPE (SPC-4 5.17.6.2).
    pub struct RodType(u32) {
        COPY_MANAGER_INTERNAL = 0x0000_0000, "copy manager internal";
        ACCESS_UPON_REFERENCE = 0x0001_0000, "access upon reference";
        BLOCK_ZERO = 0xffff_0001, "block device zero ROD token";
    }
}

wire! {
    /// Head of a ROD token (SPC-4 5.17.6.4).
    pub struct RodTokenHdr[128] {
        /// ROD TYPE.
        pub rod_type @ 0: U32,
        rsvd4 @ 4: [u8; 2],
        /// ROD TOKEN LENGTH: bytes that follow.
        pub len @ 6: U16,
        /// COPY MANAGER ROD TOKEN IDENTIFIER.
        pub identifier @ 8: U64,
        /// CREATOR LOGICAL UNIT DESCRIPTOR.
        pub creator @ 16: [u8; 32],
        /// NUMBER OF BYTES REPRESENTED, upper half.
        pub bytes_high @ 48: U64,
        /// NUMBER OF BYTES REPRESENTED, lower half.
        pub bytes @ 56: U64,
        /// ROD TOKEN SPECIFIC DATA.
        pub specific @ 64: [u8; 32],
        /// Device type specific data: LOGICAL BLOCK LENGTH, then the provisioning bytes of READ CAPACITY(16).
        pub device_specific @ 96: [u8; 32],
    }
}

wire! {
    /// Head of RECEIVE ROD TOKEN INFORMATION data (SPC-4 6.25).
    pub struct RodTokenInformation[32] {
        /// AVAILABLE DATA: bytes that follow.
        pub available @ 0: U32,
        /// RESPONSE TO SERVICE ACTION (bits 4:0).
        pub service_action @ 4: u8,
        /// COPY OPERATION STATUS (bits 6:0): 01h done, 02h failed, 03h done but token usage.
        pub status @ 5: u8,
        /// OPERATION COUNTER.
        pub operations @ 6: U16,
        /// ESTIMATED STATUS UPDATE DELAY in milliseconds.
        pub delay_ms @ 8: U32,
        /// EXTENDED COPY COMPLETION STATUS.
        pub completion_status @ 12: u8,
        /// LENGTH OF THE SENSE DATA FIELD.
        pub sense_field_len @ 13: u8,
        /// SENSE DATA LENGTH.
        pub sense_len @ 14: u8,
        /// TRANSFER COUNT UNITS: F1h blocks.
        pub units @ 15: u8,
        /// TRANSFER COUNT.
        pub count @ 16: U64,
        /// SEGMENTS PROCESSED.
        pub segments @ 24: U16,
        rsvd26 @ 26: [u8; 6],
    }
}
