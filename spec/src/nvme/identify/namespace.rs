//! Identify Namespace data structures (NVM Command Set 4.1.5.1, 4.1.5.3; Base 5.2.14.2.9, 5.2.14.2.3).

use zerocopy::little_endian::{U16, U32, U64};

wire! {
    /// Identify Namespace, CNS 00h and 11h (NVM Command Set, Figure "Identify Namespace Data Structure").
    pub struct IdentifyNamespace[4096] {
        /// Namespace Size, blocks.
        pub nsze @ 0: U64,
        /// Namespace Capacity, blocks.
        pub ncap @ 8: U64,
        /// Namespace Utilization, blocks.
        pub nuse @ 16: U64,
        /// Namespace Features: see [`NamespaceFeatures`].
        pub nsfeat @ 24: u8,
        /// Number of LBA Formats, 0's based.
        pub nlbaf0 @ 25: u8,
        /// Formatted LBA Size: see [`FormattedLbaSize`].
        pub flbas @ 26: u8,
        /// Metadata Capabilities.
        pub mc @ 27: u8,
        /// End-to-end Data Protection Capabilities.
        pub dpc @ 28: u8,
        /// End-to-end Data Protection Type Settings.
        pub dps @ 29: u8,
        /// Namespace Multi-path I/O and Sharing Capabilities: bit 0 shared, bit 1 dispersed.
        pub nmic @ 30: u8,
        /// Reservation Capabilities: see [`crate::nvme::reservation::ReservationCapabilities`].
        pub rescap @ 31: u8,
        /// Format Progress Indicator.
        pub fpi @ 32: u8,
        /// Deallocate Logical Block Features: see [`DeallocateFeatures`].
        pub dlfeat @ 33: u8,
        /// Namespace Atomic Write Unit Normal, blocks, 0's based.
        pub nawun0 @ 34: U16,
        /// Namespace Atomic Write Unit Power Fail, blocks, 0's based.
        pub nawupf0 @ 36: U16,
        /// Namespace Atomic Compare & Write Unit, blocks, 0's based.
        pub nacwu0 @ 38: U16,
        /// Namespace Atomic Boundary Size Normal, blocks, 0's based; 0 is none.
        pub nabsn0 @ 40: U16,
        /// Namespace Atomic Boundary Offset, blocks.
        pub nabo @ 42: U16,
        /// Namespace Atomic Boundary Size Power Fail, blocks, 0's based; 0 is none.
        pub nabspf0 @ 44: U16,
        /// Namespace Optimal I/O Boundary, blocks; 0 is none.
        pub noiob @ 46: U16,
        /// NVM Capacity, bytes, 128-bit little-endian.
        pub nvmcap @ 48: [u8; 16],
        /// Namespace Preferred Write Granularity, blocks, 0's based.
        pub npwg0 @ 64: U16,
        /// Namespace Preferred Write Alignment, blocks, 0's based.
        pub npwa0 @ 66: U16,
        /// Namespace Preferred Deallocate Granularity, blocks, 0's based.
        pub npdg0 @ 68: U16,
        /// Namespace Preferred Deallocate Alignment, blocks, 0's based.
        pub npda0 @ 70: U16,
        /// Namespace Optimal Write Size, blocks, 0's based.
        pub nows0 @ 72: U16,
        /// Maximum Single Source Range Length of Copy, blocks.
        pub mssrl @ 74: U16,
        /// Maximum Copy Length, blocks.
        pub mcl @ 76: U32,
        /// Maximum Source Range Count of Copy, 0's based.
        pub msrc0 @ 80: u8,
        /// Key Per I/O Status.
        pub kpios @ 81: u8,
        /// Number of Unique Attribute LBA Formats.
        pub nulbaf @ 82: u8,
        rsvd83 @ 83: u8,
        /// Key Per I/O Data Access Alignment and Granularity.
        pub kpiodaag @ 84: U32,
        rsvd88 @ 88: [u8; 4],
        /// ANA Group Identifier.
        pub anagrpid @ 92: U32,
        rsvd96 @ 96: [u8; 3],
        /// Namespace Attributes: bit 0 currently write protected.
        pub nsattr @ 99: u8,
        /// NVM Set Identifier.
        pub nvmsetid @ 100: U16,
        /// Endurance Group Identifier.
        pub endgid @ 102: U16,
        /// Namespace Globally Unique Identifier, big-endian; zero if none.
        pub nguid @ 104: [u8; 16],
        /// IEEE Extended Unique Identifier, big-endian; zero if none.
        pub eui64 @ 120: [u8; 8],
        /// LBA Formats.
        pub lbaf @ 128: [LbaFormat; 64],
        /// Vendor specific.
        pub vs @ 384: [u8; 3712],
    }
}

impl IdentifyNamespace {
    /// The LBA format that the namespace is formatted with, if its index is one of the 64.
    #[must_use]
    pub fn format(&self) -> Option<&LbaFormat> {
        self.lbaf.get(usize::from(FormattedLbaSize(self.flbas).index()))
    }

    /// Size of a logical block in bytes: 512 to 2 GiB; `None` if the format says nothing usable.
    #[must_use]
    pub fn block_len(&self) -> Option<u32> {
        self.format().and_then(LbaFormat::block_len)
    }
}

bits! {
    /// NSFEAT of Identify Namespace.
    pub struct NamespaceFeatures(u8) {
        thinp / with_thinp: bool @ 0, 1, "Thin Provisioning: NUSE may be less than NCAP";
        nsabp / with_nsabp: bool @ 1, 1, "NAWUN, NAWUPF and NACWU are those of the namespace";
        dae / with_dae: bool @ 2, 1, "Deallocated or Unwritten Logical Block Error supported";
        uidreuse / with_uidreuse: bool @ 3, 1, "NGUID and EUI64 are never reused";
        optperf / with_optperf: u8 @ 4, 2, "NPWG, NPWA, NPDG (NPDGL), NPDA (NPDAL) and NOWS are defined";
        mam / with_mam: bool @ 6, 1, "Multiple Atomicity Mode";
        optrperf / with_optrperf: bool @ 7, 1, "NPRG, NPRA and NORS are defined";
    }
}

bits! {
    /// FLBAS of Identify Namespace.
    pub struct FormattedLbaSize(u8) {
        index_lo / with_index_lo: u8 @ 0, 4, "Format Index Lower";
        extended / with_extended: bool @ 4, 1, "Metadata is at the end of the data (extended LBA)";
        index_hi / with_index_hi: u8 @ 5, 2, "Format Index Upper";
    }
}

impl FormattedLbaSize {
    /// Index of the LBA format, 0..=63.
    #[must_use]
    pub fn index(self) -> u8 {
        (self.index_hi() << 4) | self.index_lo()
    }
}

bits! {
    /// DLFEAT of Identify Namespace.
    pub struct DeallocateFeatures(u8) {
        read_behavior / with_read_behavior: u8 @ 0, 3, "Deallocated blocks read as: 0 not reported, 1 all 00h, 2 all FFh";
        write_zeroes_deallocate / with_write_zeroes_deallocate: bool @ 3, 1, "Write Zeroes with DEAC supported";
        guard_crc / with_guard_crc: bool @ 4, 1, "Guard of deallocated blocks is the CRC of what is read";
    }
}

wire! {
    /// LBA Format data structure (NVM Command Set, Figure "LBA Format Data Structure").
    pub struct LbaFormat[4] {
        /// Metadata Size, bytes.
        pub ms @ 0: U16,
        /// LBA Data Size, log2 of bytes; 0 means that the format is not supported, else at least 9.
        pub lbads @ 2: u8,
        /// Relative Performance (bits 1:0): 0 best.
        pub rp @ 3: u8,
    }
}

impl LbaFormat {
    /// A format of `2^lbads` bytes a block, without metadata.
    #[must_use]
    pub fn new(lbads: u8) -> Self {
        Self { lbads, ..Self::default() }
    }

    /// Size of a logical block in bytes; `None` if unsupported or out of range (LBADS below 9 or over 31).
    #[must_use]
    pub fn block_len(&self) -> Option<u32> {
        if self.lbads < 9 {
            return None;
        }
        1_u32.checked_shl(u32::from(self.lbads))
    }
}

wire! {
    /// I/O Command Set Independent Identify Namespace, CNS 08h (Base, figure of that name).
    pub struct IdentifyNamespaceIndependent[4096] {
        /// Common Namespace Features: bit 3 UIDREUSE, bit 4 RMEDIA, bit 5 VWCNP.
        pub nsfeat @ 0: u8,
        /// Namespace Multi-path I/O and Sharing Capabilities.
        pub nmic @ 1: u8,
        /// Reservation Capabilities.
        pub rescap @ 2: u8,
        /// Format Progress Indicator.
        pub fpi @ 3: u8,
        /// ANA Group Identifier.
        pub anagrpid @ 4: U32,
        /// Namespace Attributes.
        pub nsattr @ 8: u8,
        rsvd9 @ 9: u8,
        /// NVM Set Identifier.
        pub nvmsetid @ 10: U16,
        /// Endurance Group Identifier.
        pub endgid @ 12: U16,
        /// Namespace Status: bit 0 NRDY, the namespace is ready.
        pub nstat @ 14: u8,
        /// Key Per I/O Status.
        pub kpios @ 15: u8,
        /// Maximum Key Tag.
        pub maxkt @ 16: U16,
        rsvd18 @ 18: [u8; 2],
        /// Reachability Group Identifier.
        pub rgrpid @ 20: U32,
        rsvd24 @ 24: [u8; 4072],
    }
}

/// NSTAT of the I/O Command Set Independent Identify Namespace: Namespace Ready (NRDY).
pub const NSTAT_READY: u8 = 1;

wire! {
    /// NVM Command Set specific Identify Namespace, CNS 05h and CSI 00h (NVM Command Set 4.1.5.3).
    pub struct IdentifyNamespaceNvm[4096] {
        /// Logical Block Storage Tag Mask.
        pub lbstm @ 0: U64,
        /// Protection Information Capabilities.
        pub pic @ 8: u8,
        /// Protection Information Format Attribute.
        pub pifa @ 9: u8,
        rsvd10 @ 10: [u8; 2],
        /// Extended LBA Formats: Storage Tag Size (6:0), Protection Information Format (8:7), Qualified (12:9).
        pub elbaf @ 12: [U32; 64],
        /// Namespace Preferred Deallocate Granularity Large, blocks, 0's based.
        pub npdgl0 @ 268: U32,
        /// Namespace Preferred Read Granularity, blocks, 0's based.
        pub nprg0 @ 272: U32,
        /// Namespace Preferred Read Alignment, blocks, 0's based.
        pub npra0 @ 276: U32,
        /// Namespace Optimal Read Size, blocks, 0's based.
        pub nors0 @ 280: U32,
        /// Namespace Preferred Deallocate Alignment Large, blocks, 0's based.
        pub npdal0 @ 284: U32,
        /// LBA Format Placement Shard Size.
        pub lbapss @ 288: U32,
        /// Tracked LBA Allocation Granularity.
        pub tlbaag @ 292: U32,
        rsvd296 @ 296: [u8; 3800],
    }
}

codes! {
    /// Namespace Identifier Type (NIDT) of a Namespace Identification Descriptor.
    pub struct Nidt(u8) {
        EUI64 = 0x1, "IEEE Extended Unique Identifier";
        NGUID = 0x2, "Namespace Globally Unique Identifier";
        UUID = 0x3, "Namespace UUID";
        CSI = 0x4, "Command Set Identifier";
    }
}

impl Nidt {
    /// Length of the identifier (NIDL) in bytes that the standard gives this type.
    #[must_use]
    pub const fn nidl(self) -> Option<u8> {
        match self {
            Self::EUI64 => Some(8),
            Self::NGUID | Self::UUID => Some(16),
            Self::CSI => Some(1),
            _ => None,
        }
    }
}

wire! {
    /// Head of a Namespace Identification Descriptor, CNS 03h; followed by `nidl` bytes (NID).
    pub struct NsIdDescriptor[4] {
        /// Namespace Identifier Type; zero ends the list.
        pub nidt @ 0: Nidt,
        /// Namespace Identifier Length, bytes.
        pub nidl @ 1: u8,
        rsvd2 @ 2: [u8; 2],
    }
}

impl NsIdDescriptor {
    /// The head of a descriptor whose identifier has `nidl` bytes.
    #[must_use]
    pub fn new(nidt: Nidt, nidl: u8) -> Self {
        Self { nidt, nidl, ..Self::default() }
    }
}

/// The descriptors of a CNS 03h list: type and identifier bytes, up to the end mark or the first that does
/// not fit.
pub fn ns_id_descriptors(mut list: &[u8]) -> impl Iterator<Item = (Nidt, &[u8])> {
    core::iter::from_fn(move || {
        let (head, rest) = list.split_at_checked(NsIdDescriptor::LEN)?;
        let head: &NsIdDescriptor = zerocopy::FromBytes::ref_from_bytes(head).ok()?;
        if head.nidt.0 == 0 || head.nidl == 0 {
            return None;
        }
        let (nid, rest) = rest.split_at_checked(usize::from(head.nidl))?;
        list = rest;
        Some((head.nidt, nid))
    })
}
