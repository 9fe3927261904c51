//! Submission Queue Entry (Base 4.1 "Submission Queue Entry", Figure "Common Command Format").

use zerocopy::little_endian::{U16, U32, U64};

use super::sgl::{Sgl, SglDescriptor, SglError};

wire! {
    /// Submission Queue Entry, 64 bytes (Base, Figure "Common Command Format").
    pub struct Sqe[64] {
        /// Opcode (OPC).
        pub opc @ 0: u8,
        /// FUSE (bits 1:0) and PSDT (bits 7:6).
        pub flags @ 1: u8,
        /// Command Identifier (CID).
        pub cid @ 2: U16,
        /// Namespace Identifier; in a Fabrics command the lowest byte is FCTYPE.
        pub nsid @ 4: U32,
        /// Command Dword 2.
        pub cdw2 @ 8: U32,
        /// Command Dword 3.
        pub cdw3 @ 12: U32,
        /// Metadata Pointer (MPTR).
        pub mptr @ 16: U64,
        /// Data Pointer (DPTR); over fabrics always SGL Entry 1.
        pub sgl1 @ 24: SglDescriptor,
        /// Command Dword 10.
        pub cdw10 @ 40: U32,
        /// Command Dword 11.
        pub cdw11 @ 44: U32,
        /// Command Dword 12.
        pub cdw12 @ 48: U32,
        /// Command Dword 13.
        pub cdw13 @ 52: U32,
        /// Command Dword 14.
        pub cdw14 @ 56: U32,
        /// Command Dword 15.
        pub cdw15 @ 60: U32,
    }
}

/// FUSE: whether a command is part of a fused operation (Base 3.4.2, Figure "Command Dword 0").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fuse {
    /// 00b: a normal operation.
    Normal,
    /// 01b: fused, first command.
    First,
    /// 10b: fused, second command.
    Second,
    /// 11b: reserved; answered with Invalid Field in Command.
    Reserved,
}

/// PSDT: what the data pointer holds (Base, Figure "Command Dword 0").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Psdt {
    /// 00b: PRPs; not allowed over fabrics.
    Prp,
    /// 01b: SGLs; MPTR is the address of one contiguous buffer.
    SglMptrContiguous,
    /// 10b: SGLs; MPTR is the address of an SGL segment.
    SglMptrSgl,
    /// 11b: reserved.
    Reserved,
}

impl Fuse {
    /// The value of the FUSE field.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::First => 1,
            Self::Second => 2,
            Self::Reserved => 3,
        }
    }
}

impl Psdt {
    /// The value of the PSDT field (2 bits, not shifted).
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        match self {
            Self::Prp => 0,
            Self::SglMptrContiguous => 1,
            Self::SglMptrSgl => 2,
            Self::Reserved => 3,
        }
    }
}

impl Sqe {
    /// Flags of every command sent over fabrics: not fused, PSDT 01b.
    pub const FLAGS_FABRICS: u8 = 1 << 6;

    /// A command for use over fabrics: PSDT says SGL, everything else is zero.
    #[must_use]
    pub fn new(opc: u8, nsid: u32) -> Self {
        Self { opc, flags: Self::FLAGS_FABRICS, nsid: U32::new(nsid), ..Self::default() }
    }

    /// This command with the given SGL Entry 1.
    #[must_use]
    pub fn with_sgl(mut self, sgl: SglDescriptor) -> Self {
        self.sgl1 = sgl;
        self
    }

    /// FUSE, bits 9:8 of CDW0.
    #[inline]
    #[must_use]
    pub const fn fuse(&self) -> Fuse {
        match self.flags & 0b11 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// PSDT, bits 15:14 of CDW0.
    #[inline]
    #[must_use]
    pub const fn psdt(&self) -> Psdt {
        match self.flags >> 6 {
            0 => Psdt::Prp,
            1 => Psdt::SglMptrContiguous,
            2 => Psdt::SglMptrSgl,
            _ => Psdt::Reserved,
        }
    }

    /// Sets FUSE.
    pub fn set_fuse(&mut self, fuse: Fuse) {
        self.flags = (self.flags & !0b11) | fuse.to_bits();
    }

    /// Sets PSDT.
    pub fn set_psdt(&mut self, psdt: Psdt) {
        self.flags = (self.flags & 0x3f) | (psdt.to_bits() << 6);
    }

    /// FCTYPE of a Fabrics command (byte 4).
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "FCTYPE is the lowest byte of dword 1")]
    pub const fn fctype(&self) -> u8 {
        self.nsid.get() as u8
    }

    /// SGL Entry 1 as a checked descriptor of whatever type.
    ///
    /// # Errors
    /// The descriptor's type, subtype or reserved bytes are not a form that the standard defines.
    #[inline]
    pub fn sgl(&self) -> Result<Sgl, SglError> {
        self.sgl1.parse()
    }
}

/// Views a command of a specific layout in a [`Sqe`] and makes one from it.
macro_rules! sqe_view {
    ($($t:ty),* $(,)?) => {$(
        impl $t {
            /// The same 64 bytes, read as this command.
            #[inline]
            #[must_use]
            pub fn from_sqe(sqe: &$crate::nvme::Sqe) -> &Self {
                zerocopy::transmute_ref!(sqe)
            }

            /// The same 64 bytes as a generic submission queue entry.
            #[inline]
            #[must_use]
            pub fn as_sqe(&self) -> &$crate::nvme::Sqe {
                zerocopy::transmute_ref!(self)
            }
        }
    )*};
}
pub(crate) use sqe_view;
