//! Parameter data of block commands (SBC-3 5 and 6).

use zerocopy::big_endian::{U16, U32, U64};

wire! {
    /// READ CAPACITY(10) data (SBC-3 5.12.2).
    pub struct Capacity10[8] {
        /// RETURNED LOGICAL BLOCK ADDRESS: the last; FFFFFFFFh: more.
        pub last_lba @ 0: U32,
        /// LOGICAL BLOCK LENGTH in bytes.
        pub block_bytes @ 4: U32,
    }
}

wire! {
    /// READ CAPACITY(16) data (SBC-3 5.13.2).
    pub struct Capacity16[32] {
        /// RETURNED LOGICAL BLOCK ADDRESS: the last.
        pub last_lba @ 0: U64,
        /// LOGICAL BLOCK LENGTH in bytes.
        pub block_bytes @ 8: U32,
        /// P_TYPE (bits 3:1), PROT_EN (bit 0).
        pub protection @ 12: u8,
        /// P_I_EXPONENT (bits 7:4), LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT (bits 3:0).
        pub exponents @ 13: u8,
        /// LBPME (bit 15), LBPRZ (bit 14), LOWEST ALIGNED LOGICAL BLOCK ADDRESS.
        pub lowest_aligned @ 14: U16,
        rsvd16 @ 16: [u8; 16],
    }
}

/// LBPME in [`Capacity16::lowest_aligned`]: logical block provisioning management is enabled.
pub const LBPME: u16 = 0x8000;
/// LBPRZ in [`Capacity16::lowest_aligned`]: unmapped blocks read as zeroes.
pub const LBPRZ: u16 = 0x4000;

wire! {
    /// Head of the UNMAP parameter list (SBC-3 5.28.2).
    pub struct UnmapHdr[8] {
        /// UNMAP DATA LENGTH: bytes that follow.
        pub data_len @ 0: U16,
        /// UNMAP BLOCK DESCRIPTOR DATA LENGTH.
        pub descriptors_len @ 2: U16,
        rsvd4 @ 4: [u8; 4],
    }
}

wire! {
    /// UNMAP block descriptor; also a range of ODX's commands (SBC-3 5.28.2, 5.7.3).
    pub struct RangeDescriptor[16] {
        /// LOGICAL BLOCK ADDRESS.
        pub lba @ 0: U64,
        /// NUMBER OF LOGICAL BLOCKS.
        pub blocks @ 8: U32,
        rsvd12 @ 12: [u8; 4],
    }
}

wire! {
    /// Head of GET LBA STATUS data (SBC-3 5.5.2).
    pub struct LbaStatusHdr[8] {
        /// PARAMETER DATA LENGTH: bytes that follow this field.
        pub len @ 0: U32,
        rsvd4 @ 4: [u8; 4],
    }
}

wire! {
    /// LBA status descriptor.
    pub struct LbaStatus[16] {
        /// LBA STATUS LOGICAL BLOCK ADDRESS.
        pub lba @ 0: U64,
        /// NUMBER OF LOGICAL BLOCKS.
        pub blocks @ 8: U32,
        /// PROVISIONING STATUS (bits 3:0): 0 mapped or unknown, 1 deallocated, 2 anchored.
        pub status @ 12: u8,
        rsvd13 @ 13: [u8; 3],
    }
}

wire! {
    /// Head of the SANITIZE OVERWRITE parameter list (SBC-3 5.26.2.2).
    pub struct SanitizeOverwriteHdr[4] {
        /// INVERT (bit 7), TEST (bits 6:5), OVERWRITE COUNT (bits 4:0).
        pub count @ 0: u8,
        rsvd1 @ 1: u8,
        /// INITIALIZATION PATTERN LENGTH.
        pub pattern_len @ 2: U16,
    }
}

wire! {
    /// READ DEFECT DATA(10) head (SBC-3 5.14.2).
    pub struct DefectHdr10[4] {
        rsvd0 @ 0: u8,
        /// PLISTV (bit 4), GLISTV (bit 3), DEFECT LIST FORMAT (bits 2:0).
        pub format @ 1: u8,
        /// DEFECT LIST LENGTH.
        pub len @ 2: U16,
    }
}

wire! {
    /// READ DEFECT DATA(12) head (SBC-3 5.15.2).
    pub struct DefectHdr12[8] {
        rsvd0 @ 0: u8,
        /// PLISTV (bit 4), GLISTV (bit 3), DEFECT LIST FORMAT (bits 2:0).
        pub format @ 1: u8,
        /// GENERATION CODE.
        pub generation @ 2: U16,
        /// DEFECT LIST LENGTH.
        pub len @ 4: U32,
    }
}
