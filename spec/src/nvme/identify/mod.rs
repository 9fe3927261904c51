//! Identify (Base 5.2.14 "Identify command"; NVM Command Set 4.1.5).

pub mod controller;
pub mod namespace;

pub use controller::{IdentifyController, IdentifyControllerNvm};
pub use namespace::{
    IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm, LbaFormat, Nidt, NsIdDescriptor,
};

use zerocopy::little_endian::{U16, U32, U64};

use super::command::sqe_view;
use super::sgl::SglDescriptor;

/// Length of the data of every Identify, in bytes.
pub const IDENTIFY_LEN: usize = 4096;

/// The most entries in a Namespace List.
pub const NS_LIST_MAX: usize = 1024;

/// The most entries in a Controller List.
pub const CONTROLLER_LIST_MAX: usize = 2047;

codes! {
    /// Controller or Namespace Structure (CNS) (Base, Figure "Identify - CNS Values").
    pub struct Cns(u8) {
        NAMESPACE = 0x00, "Identify Namespace";
        CONTROLLER = 0x01, "Identify Controller";
        ACTIVE_NS_LIST = 0x02, "Active Namespace ID list";
        NS_ID_DESCRIPTORS = 0x03, "Namespace Identification Descriptor list";
        NVM_SET_LIST = 0x04, "NVM Set List";
        CSI_NAMESPACE = 0x05, "I/O Command Set specific Identify Namespace";
        CSI_CONTROLLER = 0x06, "I/O Command Set specific Identify Controller";
        CSI_ACTIVE_NS_LIST = 0x07, "I/O Command Set specific Active Namespace ID list";
        INDEPENDENT_NAMESPACE = 0x08, "I/O Command Set Independent Identify Namespace";
        NAMESPACE_FORMAT = 0x09, "Namespace Capabilities for a User Data Format";
        CSI_NAMESPACE_FORMAT = 0x0a, "I/O Command Set specific Namespace Capabilities for a User Data Format";
        ALLOCATED_NS_LIST = 0x10, "Allocated Namespace ID list";
        ALLOCATED_NAMESPACE = 0x11, "Identify Namespace of an allocated NSID";
        NS_CONTROLLER_LIST = 0x12, "Controllers attached to the namespace";
        CONTROLLER_LIST = 0x13, "Controllers of the NVM subsystem";
        PRIMARY_CONTROLLER_CAPABILITIES = 0x14, "Primary Controller Capabilities";
        SECONDARY_CONTROLLER_LIST = 0x15, "Secondary Controller List";
        NS_GRANULARITY_LIST = 0x16, "Namespace Granularity List";
        UUID_LIST = 0x17, "UUID List";
        DOMAIN_LIST = 0x18, "Domain List";
        ENDURANCE_GROUP_LIST = 0x19, "Endurance Group List";
        CSI_ALLOCATED_NS_LIST = 0x1a, "I/O Command Set specific Allocated Namespace ID list";
        CSI_ALLOCATED_NAMESPACE = 0x1b, "I/O Command Set specific Identify Namespace of an allocated NSID";
        IO_COMMAND_SET = 0x1c, "I/O Command Set data structure";
        UNDERLYING_NS_LIST = 0x1d, "Underlying Namespace List";
        PORTS_LIST = 0x1e, "Ports List";
        INDEPENDENT_ALLOCATED_NAMESPACE = 0x1f, "I/O Command Set Independent Identify Namespace of an allocated NSID";
        SUPPORTED_CONTROLLER_STATE_FORMATS = 0x20, "Supported Controller State Formats";
    }
}

wire! {
    /// Identify (Base 5.2.14).
    pub struct IdentifyCmd[64] {
        /// Opcode 06h.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Namespace Identifier; in list requests, only greater NSIDs are returned.
        pub nsid @ 4: U32,
        rsvd8 @ 8: [u8; 8],
        /// Metadata Pointer.
        pub mptr @ 16: U64,
        /// SGL Entry 1.
        pub sgl1 @ 24: SglDescriptor,
        /// Controller or Namespace Structure.
        pub cns @ 40: Cns,
        rsvd41 @ 41: u8,
        /// Controller Identifier; in list requests, the lowest to be returned.
        pub cntid @ 42: U16,
        /// CNS Specific Identifier.
        pub cnssid @ 44: U16,
        rsvd46 @ 46: u8,
        /// Command Set Identifier.
        pub csi @ 47: super::opcode::Csi,
        rsvd48 @ 48: [u8; 8],
        /// CDW14: UUID Index (6:0).
        pub cdw14 @ 56: U32,
        rsvd60 @ 60: [u8; 4],
    }
}

sqe_view!(IdentifyCmd);

wire! {
    /// Namespace List: NSIDs in increasing order, unused entries zero (Base 4.6.2).
    pub struct NsList[4096] {
        /// Namespace identifiers.
        pub nsids @ 0: [U32; 1024],
    }
}

impl NsList {
    /// The identifiers up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.nsids.iter().map(|n| n.get()).take_while(|n| *n != 0)
    }
}

wire! {
    /// Controller List: CNTLIDs in increasing order (Base 4.6.1).
    pub struct ControllerList[4096] {
        /// Number of Identifiers.
        pub count @ 0: U16,
        /// Controller identifiers, the first `count` of them in use.
        pub cntlids @ 2: [U16; 2047],
    }
}

wire! {
    /// I/O Command Set data structure, CNS 1Ch: vectors of supported command set combinations.
    pub struct IoCommandSets[4096] {
        /// I/O Command Set Vectors: bit n of a vector stands for CSI n.
        pub vectors @ 0: [U64; 512],
    }
}

wire! {
    /// UUID List entry, CNS 17h (entry 0 of the list is reserved).
    pub struct UuidListEntry[32] {
        /// Header: Identifier Association in bits 1:0.
        pub header @ 0: u8,
        rsvd1 @ 1: [u8; 15],
        /// UUID; all zero ends the list.
        pub uuid @ 16: [u8; 16],
    }
}
