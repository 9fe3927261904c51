//! Commands of the NVM Command Set (NVM Command Set Specification 3.3) and their data structures.

use zerocopy::little_endian::{U16, U32, U64};

use super::command::sqe_view;
use super::sgl::SglDescriptor;

wire! {
    /// Read, Write, Compare, Verify, Write Zeroes, Write Uncorrectable (NVM Command Set 3.3.1 to 3.3.8).
    pub struct RwCmd[64] {
        /// Opcode.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Namespace Identifier.
        pub nsid @ 4: U32,
        /// Upper bits of the expected or logical block storage and reference tags.
        pub cdw2 @ 8: U32,
        /// Upper bits of the expected or logical block storage and reference tags.
        pub cdw3 @ 12: U32,
        /// Metadata Pointer.
        pub mptr @ 16: U64,
        /// SGL Entry 1.
        pub sgl1 @ 24: SglDescriptor,
        /// Starting LBA (SLBA).
        pub slba @ 40: U64,
        /// Number of Logical Blocks (NLB), 0's based.
        pub nlb0 @ 48: U16,
        /// Upper half of CDW12: see [`RwControl`].
        pub control @ 50: U16,
        /// Dataset Management hints (7:0), reserved, Directive Specific (31:16).
        pub cdw13 @ 52: U32,
        /// Expected or Initial Logical Block Reference Tag.
        pub ilbrt @ 56: U32,
        /// Logical Block Application Tag.
        pub lbat @ 60: U16,
        /// Logical Block Application Tag Mask.
        pub lbatm @ 62: U16,
    }
}

sqe_view!(RwCmd, DsmCmd, CopyCmd);

impl RwCmd {
    /// Number of logical blocks, 1..=65536: NLB with its 0's base taken off.
    #[inline]
    #[must_use]
    pub fn len_blocks(&self) -> u32 {
        u32::from(self.nlb0.get()) + 1
    }

    /// The control half of CDW12.
    #[inline]
    #[must_use]
    pub fn control(&self) -> RwControl {
        RwControl(self.control.get())
    }
}

bits! {
    /// Bits 31:16 of CDW12 of Read, Write, Compare, Verify and Write Zeroes (NVM Command Set, Figures "Command Dword 12").
    pub struct RwControl(u16) {
        cetype / with_cetype: u8 @ 0, 4, "Command Extension Type; with DTYPE in bits 7:4 of a write";
        dtype / with_dtype: u8 @ 4, 4, "Directive Type (Write, Write Zeroes)";
        stc / with_stc: bool @ 8, 1, "Storage Tag Check";
        deac / with_deac: bool @ 9, 1, "Deallocate (Write Zeroes)";
        pract / with_pract: bool @ 13, 1, "Protection Information Action";
        prchk / with_prchk: u8 @ 10, 3, "Protection Information Check";
        fua / with_fua: bool @ 14, 1, "Force Unit Access";
        lr / with_lr: bool @ 15, 1, "Limited Retry";
    }
}

bits! {
    /// Dataset Management field of CDW13 of Read and Write (bits 7:0): hints only.
    pub struct RwDsm(u8) {
        access_frequency / with_access_frequency: u8 @ 0, 4, "Access Frequency";
        access_latency / with_access_latency: u8 @ 4, 2, "Access Latency";
        sequential / with_sequential: bool @ 6, 1, "Sequential Request";
        incompressible / with_incompressible: bool @ 7, 1, "Incompressible";
    }
}

wire! {
    /// Dataset Management (NVM Command Set 3.3.3).
    pub struct DsmCmd[64] {
        /// Opcode 09h.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Namespace Identifier.
        pub nsid @ 4: U32,
        rsvd8 @ 8: [u8; 8],
        /// Metadata Pointer.
        pub mptr @ 16: U64,
        /// SGL Entry 1.
        pub sgl1 @ 24: SglDescriptor,
        /// Number of Ranges (NR), 0's based.
        pub nr0 @ 40: u8,
        rsvd41 @ 41: [u8; 3],
        /// Attributes: see [`DsmAttributes`].
        pub attributes @ 44: U32,
        rsvd48 @ 48: [u8; 16],
    }
}

impl DsmCmd {
    /// Number of ranges in the data, 1..=256.
    #[must_use]
    pub fn ranges(&self) -> u16 {
        u16::from(self.nr0) + 1
    }
}

bits! {
    /// CDW11 of Dataset Management.
    pub struct DsmAttributes(u32) {
        idr / with_idr: bool @ 0, 1, "Integral Dataset for Read";
        idw / with_idw: bool @ 1, 1, "Integral Dataset for Write";
        ad / with_ad: bool @ 2, 1, "Deallocate";
    }
}

/// The most ranges that one Dataset Management command carries.
pub const DSM_RANGES_MAX: usize = 256;

wire! {
    /// One range of Dataset Management (NVM Command Set, Figure "Dataset Management - Range Definition").
    pub struct DsmRange[16] {
        /// Context Attributes: hints only.
        pub cattr @ 0: U32,
        /// Length in logical blocks (not 0's based).
        pub len_blocks @ 4: U32,
        /// Starting LBA.
        pub slba @ 8: U64,
    }
}

wire! {
    /// Copy (NVM Command Set 3.3.2).
    pub struct CopyCmd[64] {
        /// Opcode 19h.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Namespace Identifier of the destination.
        pub nsid @ 4: U32,
        /// Tags.
        pub cdw2 @ 8: U32,
        /// Tags.
        pub cdw3 @ 12: U32,
        /// Metadata Pointer.
        pub mptr @ 16: U64,
        /// SGL Entry 1.
        pub sgl1 @ 24: SglDescriptor,
        /// Starting Destination LBA (SDLBA).
        pub sdlba @ 40: U64,
        /// CDW12: see [`CopyControl`].
        pub cdw12 @ 48: U32,
        /// Command Extension Value (15:0), Directive Specific (31:16).
        pub cdw13 @ 52: U32,
        /// Initial Logical Block Reference Tag.
        pub ilbrt @ 56: U32,
        /// Logical Block Application Tag.
        pub lbat @ 60: U16,
        /// Logical Block Application Tag Mask.
        pub lbatm @ 62: U16,
    }
}

bits! {
    /// CDW12 of Copy (NVM Command Set, Figure "Copy - Command Dword 12").
    pub struct CopyControl(u32) {
        nr0 / with_nr0: u8 @ 0, 8, "Number of Ranges, 0's based";
        desfmt / with_desfmt: u8 @ 8, 4, "Descriptor Format: 0h to 4h";
        prinfor / with_prinfor: u8 @ 12, 4, "Protection Information Read";
        cetype / with_cetype: u8 @ 16, 4, "Command Extension Type";
        dtype / with_dtype: u8 @ 20, 4, "Directive Type";
        stcw / with_stcw: bool @ 24, 1, "Storage Tag Check Write";
        stcr / with_stcr: bool @ 25, 1, "Storage Tag Check Read";
        prinfow / with_prinfow: u8 @ 26, 4, "Protection Information Write";
        fua / with_fua: bool @ 30, 1, "Force Unit Access";
        lr / with_lr: bool @ 31, 1, "Limited Retry";
    }
}

wire! {
    /// Source range of Copy, descriptor formats 0h and 2h (NVM Command Set, Figure "Copy - Source Range Entries").
    ///
    /// Formats 2h and 3h copy between namespaces: SNSID is used only by them.
    pub struct CopyRange0[32] {
        /// Source Namespace Identifier (format 2h; reserved in 0h).
        pub snsid @ 0: U32,
        rsvd4 @ 4: [u8; 4],
        /// Starting LBA.
        pub slba @ 8: U64,
        /// Number of Logical Blocks, 0's based.
        pub nlb0 @ 16: U16,
        /// Command Extension Value.
        pub cev @ 18: U16,
        rsvd20 @ 20: [u8; 2],
        /// Source Options (format 2h): bit 15 Fast Copy Only.
        pub sopt @ 22: U16,
        /// Expected Initial Logical Block Reference Tag.
        pub eilbrt @ 24: U32,
        /// Expected Logical Block Application Tag.
        pub elbat @ 28: U16,
        /// Expected Logical Block Application Tag Mask.
        pub elbatm @ 30: U16,
    }
}

wire! {
    /// Source range of Copy, descriptor formats 1h and 3h: extended protection information.
    pub struct CopyRange1[40] {
        /// Source Namespace Identifier (format 3h; reserved in 1h).
        pub snsid @ 0: U32,
        rsvd4 @ 4: [u8; 4],
        /// Starting LBA.
        pub slba @ 8: U64,
        /// Number of Logical Blocks, 0's based.
        pub nlb0 @ 16: U16,
        /// Command Extension Value.
        pub cev @ 18: U16,
        rsvd20 @ 20: [u8; 2],
        /// Source Options (format 3h): bit 15 Fast Copy Only.
        pub sopt @ 22: U16,
        rsvd24 @ 24: [u8; 2],
        /// Expected storage and reference tags, 10 bytes.
        pub elbt @ 26: [u8; 10],
        /// Expected Logical Block Application Tag.
        pub elbat @ 36: U16,
        /// Expected Logical Block Application Tag Mask.
        pub elbatm @ 38: U16,
    }
}

wire! {
    /// Protection information with a 16-bit guard (NVM Command Set 5.3.1.1): big-endian, as in T10 DIF.
    pub struct ProtectionInfo16[8] {
        /// Guard: CRC-16 of the logical block.
        pub guard @ 0: zerocopy::big_endian::U16,
        /// Application Tag.
        pub app_tag @ 2: zerocopy::big_endian::U16,
        /// Storage and Reference Space.
        pub ref_tag @ 4: zerocopy::big_endian::U32,
    }
}

wire! {
    /// Head of the LBA Status Descriptor List of Get LBA Status (NVM Command Set 4.2.1).
    pub struct LbaStatusList[8] {
        /// Number of LBA Status Descriptors.
        pub nlsd @ 0: U32,
        /// Completion Condition.
        pub cmpc @ 4: u8,
        rsvd5 @ 5: [u8; 3],
    }
}

wire! {
    /// LBA Status Descriptor Entry (NVM Command Set, Figure "LBA Status Descriptor Entry").
    pub struct LbaStatusDescriptor[16] {
        /// Descriptor Starting LBA.
        pub dslba @ 0: U64,
        /// Number of Logical Blocks.
        pub nlb @ 8: U32,
        rsvd12 @ 12: u8,
        /// Status.
        pub status @ 13: u8,
        rsvd14 @ 14: [u8; 2],
    }
}
