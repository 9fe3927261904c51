//! INQUIRY data and vital product data pages (SPC-4 6.6 and 7.8, SBC-3 6.6).

use zerocopy::big_endian::{U16, U32, U64};

/// PERIPHERAL QUALIFIER 000b, PERIPHERAL DEVICE TYPE 00h: a direct access block device.
pub const PERIPHERAL_DISK: u8 = 0x00;
/// PERIPHERAL QUALIFIER 011b, PERIPHERAL DEVICE TYPE 1Fh: there is no such logical unit.
pub const PERIPHERAL_NONE: u8 = 0x7f;

/// VERSION of SPC-4.
pub const VERSION_SPC4: u8 = 0x06;

codes! {
    /// VPD page codes (SPC-4 7.8.1).
    pub struct VpdPage(u8) {
        SUPPORTED_PAGES = 0x00, "Supported VPD Pages";
        UNIT_SERIAL_NUMBER = 0x80, "Unit Serial Number";
        DEVICE_IDENTIFICATION = 0x83, "Device Identification";
        MANAGEMENT_NETWORK_ADDRESSES = 0x85, "Management Network Addresses";
        EXTENDED_INQUIRY = 0x86, "Extended INQUIRY Data";
        MODE_PAGE_POLICY = 0x87, "Mode Page Policy";
        THIRD_PARTY_COPY = 0x8f, "Third Party Copy";
        BLOCK_LIMITS = 0xb0, "Block Limits";
        BLOCK_DEVICE_CHARACTERISTICS = 0xb1, "Block Device Characteristics";
        LOGICAL_BLOCK_PROVISIONING = 0xb2, "Logical Block Provisioning";
    }
}

codes! {
    /// VERSION DESCRIPTORs: the standards claimed (SPC-4 annex D).
    pub struct VersionDescriptor(u16) {
        SAM5 = 0x00a0, "SAM-5";
        ISCSI = 0x0960, "iSCSI";
        SPC4 = 0x0460, "SPC-4";
        SBC3 = 0x04c0, "SBC-3";
    }
}

bits! {
    /// Byte 5 of standard INQUIRY data.
    pub struct InquiryFlags5(u8) {
        protect / with_protect: bool @ 0, 1, "Protection information is supported";
        three_pc / with_three_pc: bool @ 3, 1, "Third-Party Copy";
        tpgs / with_tpgs: u8 @ 4, 2, "Target Port Group Support: 1 implicit, 2 explicit, 3 both";
        sccs / with_sccs: bool @ 7, 1, "Storage Controller Component";
    }
}

wire! {
    /// Standard INQUIRY data up to the version descriptors (SPC-4 6.6.2).
    pub struct StandardInquiry[96] {
        /// PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE.
        pub peripheral @ 0: u8,
        /// RMB (bit 7): the medium is removable.
        pub rmb @ 1: u8,
        /// VERSION.
        pub version @ 2: u8,
        /// NORMACA (bit 5), HISUP (bit 4), RESPONSE DATA FORMAT (2).
        pub format @ 3: u8,
        /// ADDITIONAL LENGTH: bytes that follow this one.
        pub additional_len @ 4: u8,
        /// See [`InquiryFlags5`].
        pub flags5 @ 5: u8,
        /// MULTIP (bit 4): several target ports.
        pub flags6 @ 6: u8,
        /// CMDQUE (bit 1).
        pub flags7 @ 7: u8,
        /// T10 VENDOR IDENTIFICATION, padded with blanks.
        pub vendor @ 8: [u8; 8],
        /// PRODUCT IDENTIFICATION, padded with blanks.
        pub product @ 16: [u8; 16],
        /// PRODUCT REVISION LEVEL, padded with blanks.
        pub revision @ 32: [u8; 4],
        rsvd36 @ 36: [u8; 22],
        /// VERSION DESCRIPTORs.
        pub versions @ 58: [U16; 8],
        rsvd74 @ 74: [u8; 22],
    }
}

/// HISUP: LUNs are as in REPORT LUNS; RESPONSE DATA FORMAT 2.
pub const FORMAT_HISUP_2: u8 = 0x12;

wire! {
    /// Head of every VPD page.
    pub struct VpdHdr[4] {
        /// PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE.
        pub peripheral @ 0: u8,
        /// PAGE CODE.
        pub page @ 1: u8,
        /// PAGE LENGTH: bytes that follow.
        pub len @ 2: U16,
    }
}

wire! {
    /// Head of a designation descriptor (SPC-4 7.8.6.1); the designator follows.
    pub struct DesignatorHdr[4] {
        /// PROTOCOL IDENTIFIER (bits 7:4), CODE SET (bits 3:0).
        pub code_set @ 0: u8,
        /// PIV (bit 7), ASSOCIATION (bits 5:4), DESIGNATOR TYPE (bits 3:0).
        pub designator_type @ 1: u8,
        rsvd2 @ 2: u8,
        /// DESIGNATOR LENGTH.
        pub len @ 3: u8,
    }
}

codes! {
    /// DESIGNATOR TYPE.
    pub struct DesignatorType(u8) {
        T10_VENDOR_ID = 0x1, "T10 vendor ID based";
        EUI64 = 0x2, "EUI-64 based";
        NAA = 0x3, "NAA";
        RELATIVE_TARGET_PORT = 0x4, "Relative target port identifier";
        TARGET_PORT_GROUP = 0x5, "Target port group";
        SCSI_NAME = 0x8, "SCSI name string";
    }
}

/// CODE SET: binary.
pub const CODE_SET_BINARY: u8 = 1;
/// CODE SET: ASCII.
pub const CODE_SET_ASCII: u8 = 2;
/// CODE SET: UTF-8.
pub const CODE_SET_UTF8: u8 = 3;
/// ASSOCIATION with the logical unit.
pub const ASSOCIATION_LU: u8 = 0x00;
/// ASSOCIATION with the target port.
pub const ASSOCIATION_PORT: u8 = 0x10;
/// ASSOCIATION with the target device.
pub const ASSOCIATION_TARGET: u8 = 0x20;
/// PIV: the PROTOCOL IDENTIFIER is valid.
pub const DESIGNATOR_PIV: u8 = 0x80;
/// PROTOCOL IDENTIFIER of iSCSI, in the bits where the designator wants it.
pub const PROTOCOL_ISCSI: u8 = 0x50;

wire! {
    /// Extended INQUIRY Data VPD page (SPC-4 7.8.7).
    pub struct ExtendedInquiry[64] {
        /// Head; PAGE LENGTH 003Ch.
        pub hdr @ 0: VpdHdr,
        /// ACTIVATE MICROCODE, SPT, GRD_CHK, APP_CHK, REF_CHK.
        pub protection @ 4: u8,
        /// UASK_SUP (bit 5), GROUP_SUP, PRIOR_SUP, HEADSUP (bit 2), ORDSUP (bit 1), SIMPSUP (bit 0).
        pub task_attributes @ 5: u8,
        /// WU_SUP (bit 3), CRD_SUP (bit 2), NV_SUP (bit 1), V_SUP (bit 0).
        pub cache @ 6: u8,
        /// P_I_I_SUP (bit 4), LUICLR (bit 0).
        pub luiclr @ 7: u8,
        /// R_SUP (bit 4), CBCS (bit 0).
        pub flags8 @ 8: u8,
        /// MULTI I_T NEXUS MICROCODE DOWNLOAD (bits 3:0).
        pub flags9 @ 9: u8,
        /// EXTENDED SELF-TEST COMPLETION MINUTES.
        pub self_test_minutes @ 10: U16,
        rsvd12 @ 12: u8,
        /// MAXIMUM SUPPORTED SENSE DATA LENGTH.
        pub sense_len_max @ 13: u8,
        rsvd14 @ 14: [u8; 50],
    }
}

wire! {
    /// Mode page policy descriptor (SPC-4 7.8.10).
    pub struct ModePagePolicy[4] {
        /// POLICY PAGE CODE (bits 5:0); 3Fh: all pages not named otherwise.
        pub page @ 0: u8,
        /// POLICY SUBPAGE CODE; FFh: all.
        pub subpage @ 1: u8,
        /// MLUS (bit 7), MODE PAGE POLICY (bits 1:0): 0 shared.
        pub policy @ 2: u8,
        rsvd3 @ 3: u8,
    }
}

wire! {
    /// Block Limits VPD page (SBC-4 6.6.4).
    pub struct BlockLimits[64] {
        /// Head; PAGE LENGTH 003Ch.
        pub hdr @ 0: VpdHdr,
        /// WSNZ (bit 0): WRITE SAME of zero blocks is refused.
        pub wsnz @ 4: u8,
        /// MAXIMUM COMPARE AND WRITE LENGTH in blocks.
        pub compare_and_write_max @ 5: u8,
        /// OPTIMAL TRANSFER LENGTH GRANULARITY in blocks.
        pub granularity @ 6: U16,
        /// MAXIMUM TRANSFER LENGTH in blocks.
        pub transfer_max @ 8: U32,
        /// OPTIMAL TRANSFER LENGTH in blocks.
        pub transfer_optimal @ 12: U32,
        /// MAXIMUM PREFETCH LENGTH in blocks.
        pub prefetch_max @ 16: U32,
        /// MAXIMUM UNMAP LBA COUNT.
        pub unmap_lba_max @ 20: U32,
        /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
        pub unmap_descriptors_max @ 24: U32,
        /// OPTIMAL UNMAP GRANULARITY in blocks.
        pub unmap_granularity @ 28: U32,
        /// UGAVALID (bit 31), UNMAP GRANULARITY ALIGNMENT.
        pub unmap_alignment @ 32: U32,
        /// MAXIMUM WRITE SAME LENGTH in blocks.
        pub write_same_max @ 36: U64,
        /// MAXIMUM ATOMIC TRANSFER LENGTH in blocks.
        pub atomic_max @ 44: U32,
        /// ATOMIC ALIGNMENT in blocks.
        pub atomic_alignment @ 48: U32,
        /// ATOMIC TRANSFER LENGTH GRANULARITY in blocks.
        pub atomic_granularity @ 52: U32,
        /// MAXIMUM ATOMIC TRANSFER LENGTH WITH ATOMIC BOUNDARY in blocks.
        pub atomic_boundary_max @ 56: U32,
        /// MAXIMUM ATOMIC BOUNDARY SIZE in blocks.
        pub atomic_boundary_size_max @ 60: U32,
    }
}

wire! {
    /// Block Device Characteristics VPD page (SBC-3 6.6.2).
    pub struct BlockCharacteristics[64] {
        /// Head; PAGE LENGTH 003Ch.
        pub hdr @ 0: VpdHdr,
        /// MEDIUM ROTATION RATE; 0001h: does not rotate.
        pub rotation_rate @ 4: U16,
        /// PRODUCT TYPE.
        pub product_type @ 6: u8,
        /// WABEREQ (bits 7:6), WACEREQ (bits 5:4), NOMINAL FORM FACTOR (bits 3:0).
        pub after_erase @ 7: u8,
        /// FUAB (bit 1), VBULS (bit 0).
        pub flags8 @ 8: u8,
        rsvd9 @ 9: [u8; 55],
    }
}

bits! {
    /// Byte 5 of the Logical Block Provisioning VPD page.
    pub struct ProvisioningFlags(u8) {
        dp / with_dp: bool @ 0, 1, "a provisioning group descriptor is there";
        anc_sup / with_anc_sup: bool @ 1, 1, "blocks can be anchored";
        lbprz / with_lbprz: bool @ 2, 1, "unmapped blocks read as zeroes";
        lbpws10 / with_lbpws10: bool @ 5, 1, "WRITE SAME(10) unmaps";
        lbpws / with_lbpws: bool @ 6, 1, "WRITE SAME(16) unmaps";
        lbpu / with_lbpu: bool @ 7, 1, "UNMAP is supported";
    }
}

wire! {
    /// Logical Block Provisioning VPD page without group descriptor (SBC-3 6.6.4).
    pub struct BlockProvisioning[8] {
        /// Head; PAGE LENGTH 0004h.
        pub hdr @ 0: VpdHdr,
        /// THRESHOLD EXPONENT.
        pub threshold_exponent @ 4: u8,
        /// See [`ProvisioningFlags`].
        pub flags @ 5: u8,
        /// PROVISIONING TYPE (bits 2:0): 1 resource, 2 thin.
        pub provisioning_type @ 6: u8,
        rsvd7 @ 7: u8,
    }
}

wire! {
    /// Head of a third-party copy descriptor (SPC-4 7.8.17).
    pub struct CopyDescriptorHdr[4] {
        /// THIRD-PARTY COPY DESCRIPTOR TYPE.
        pub descriptor_type @ 0: U16,
        /// THIRD-PARTY COPY DESCRIPTOR LENGTH: bytes that follow, a multiple of four.
        pub len @ 2: U16,
    }
}

codes! {
    /// THIRD-PARTY COPY DESCRIPTOR TYPE.
    pub struct CopyDescriptorType(u16) {
        BLOCK_DEVICE_ROD_LIMITS = 0x0000, "Block Device ROD Token Limits";
        SUPPORTED_COMMANDS = 0x0001, "Supported Commands";
        PARAMETER_DATA = 0x0004, "Parameter Data";
        SUPPORTED_DESCRIPTORS = 0x0008, "Supported Descriptors";
        ROD_TOKEN_FEATURES = 0x0106, "ROD Token Features";
        SUPPORTED_ROD = 0x0108, "Supported ROD";
        GENERAL_COPY_OPERATIONS = 0x8001, "General Copy Operations";
    }
}

wire! {
    /// Block Device ROD Token Limits descriptor (SBC-3 6.6.6.3).
    pub struct RodTokenLimits[36] {
        /// Type 0000h, length 0020h.
        pub hdr @ 0: CopyDescriptorHdr,
        rsvd4 @ 4: [u8; 6],
        /// MAXIMUM RANGE DESCRIPTORS.
        pub ranges_max @ 10: U16,
        /// MAXIMUM INACTIVITY TIMEOUT in seconds.
        pub inactivity_max_s @ 12: U32,
        /// DEFAULT INACTIVITY TIMEOUT in seconds.
        pub inactivity_default_s @ 16: U32,
        /// MAXIMUM TOKEN TRANSFER SIZE in blocks.
        pub transfer_max @ 20: U64,
        /// OPTIMAL TRANSFER COUNT in blocks.
        pub transfer_optimal @ 28: U64,
    }
}
