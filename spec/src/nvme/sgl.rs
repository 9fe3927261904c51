//! Scatter Gather Lists (Base 4.3.2 "Scatter Gather List (SGL)").
//!
//! [`SglDescriptor`] is the 16 bytes as they come, [`Sgl`] the same after every check that needs no
//! context; [`TcpSgl`] is what NVMe/TCP allows of them.

use zerocopy::little_endian::{U32, U64};

use super::status::Status;

/// SGL Descriptor Type codes (Base, Figure "SGL Descriptor Type").
pub mod sgl_type {
    /// SGL Data Block descriptor.
    pub const DATA_BLOCK: u8 = 0x0;
    /// SGL Bit Bucket descriptor.
    pub const BIT_BUCKET: u8 = 0x1;
    /// SGL Segment descriptor.
    pub const SEGMENT: u8 = 0x2;
    /// SGL Last Segment descriptor.
    pub const LAST_SEGMENT: u8 = 0x3;
    /// Keyed SGL Data Block descriptor.
    pub const KEYED_DATA_BLOCK: u8 = 0x4;
    /// Transport SGL Data Block descriptor.
    pub const TRANSPORT_DATA_BLOCK: u8 = 0x5;
    /// Vendor specific.
    pub const VENDOR: u8 = 0xf;
}

/// SGL Descriptor Sub Type codes (Base, Figure "SGL Descriptor Sub Type Values").
pub mod sgl_subtype {
    /// Address: the Address field is a memory address.
    pub const ADDRESS: u8 = 0x0;
    /// Offset: the Address field is an offset from the start of the capsule's data.
    pub const OFFSET: u8 = 0x1;
    /// NVMe Transport specific: the transport moves the data in its own PDUs.
    pub const TRANSPORT: u8 = 0xa;
    /// Keyed descriptors only: RDMA Send with Invalidate of the key.
    pub const INVALIDATE_KEY: u8 = 0xf;
}

wire! {
    /// One SGL descriptor, 16 bytes (Base, Figure "SGL Descriptor Format").
    pub struct SglDescriptor[16] {
        /// Address, or offset into the capsule.
        pub addr @ 0: U64,
        /// Length in bytes; a keyed descriptor keeps only its low 24 bits here.
        pub length @ 8: U32,
        /// Reserved, or the rest of the key.
        pub rsvd12 @ 12: [u8; 3],
        /// SGL Identifier: type in bits 7:4, sub type in bits 3:0.
        pub id @ 15: u8,
    }
}

/// Where a descriptor's Address field counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SglBase {
    /// A memory address of the host.
    Address,
    /// Bytes from the start of the capsule's in-capsule data area.
    Capsule,
}

/// A checked SGL descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sgl {
    /// SGL Data Block, sub type Address or Offset.
    DataBlock {
        /// What `addr` counts from.
        base: SglBase,
        /// Address, or offset in bytes.
        addr: u64,
        /// Length of the block, in bytes.
        len: u32,
    },
    /// SGL Bit Bucket: read data of this length is thrown away.
    BitBucket {
        /// Length, in bytes.
        len: u32,
    },
    /// SGL Segment or Last Segment: where the next descriptors are.
    Segment {
        /// What `addr` counts from.
        base: SglBase,
        /// Address, or offset in bytes.
        addr: u64,
        /// Length in bytes: a non-zero multiple of 16.
        len: u32,
        /// Whether it is the last segment.
        last: bool,
    },
    /// Keyed SGL Data Block (RDMA).
    Keyed {
        /// Memory address of the host.
        addr: u64,
        /// Length in bytes, 24 bits.
        len: u32,
        /// Memory key.
        key: u32,
        /// Whether the target shall invalidate the key when it completes the command.
        invalidate: bool,
    },
    /// Transport SGL Data Block: the transport fetches or delivers `len` bytes in its own PDUs.
    Transport {
        /// Length, in bytes.
        len: u32,
    },
}

/// Where the data of an NVMe/TCP command is (TCP transport 3.2, "SGL descriptors").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpSgl {
    /// In the command capsule, `off_bytes` after the start of its data.
    InCapsule {
        /// Offset from the start of the capsule's data, in bytes.
        off_bytes: u64,
        /// Length, in bytes.
        len: u32,
    },
    /// Moved by H2CData (after R2T) or C2HData PDUs.
    Transport {
        /// Length, in bytes.
        len: u32,
    },
}

impl TcpSgl {
    /// Length of the data, in bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> u32 {
        match *self {
            Self::InCapsule { len, .. } | Self::Transport { len } => len,
        }
    }

    /// Whether the command moves no data.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a descriptor was refused; [`SglError::status`] is the answer that the standard asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SglError {
    /// The type (or the type with this sub type) is not defined.
    #[error("SGL descriptor type {ty:#x} with sub type {subtype:#x} is not defined by the standard")]
    Type {
        /// SGL Descriptor Type.
        ty: u8,
        /// SGL Descriptor Sub Type.
        subtype: u8,
    },
    /// A segment's length is zero or no multiple of a descriptor's size.
    #[error("SGL segment of {len} bytes is not a positive number of 16-byte descriptors")]
    SegmentLen {
        /// Length, in bytes.
        len: u32,
    },
    /// The transport does not carry this kind of descriptor.
    #[error("SGL descriptor identifier {id:#04x} cannot be used on NVMe/TCP")]
    NotForTcp {
        /// SGL Identifier byte.
        id: u8,
    },
}

impl SglError {
    /// The status that answers a command with such a descriptor.
    #[must_use]
    pub const fn status(self) -> Status {
        match self {
            Self::Type { .. } | Self::NotForTcp { .. } => Status::SGL_DESCRIPTOR_TYPE_INVALID,
            Self::SegmentLen { .. } => Status::INVALID_SGL_SEGMENT_DESCRIPTOR,
        }
    }
}

impl SglDescriptor {
    /// A command that moves no data: a Transport descriptor of length zero (type 5h, as hosts send it).
    #[must_use]
    pub fn none() -> Self {
        Self::transport(0)
    }

    /// Transport SGL Data Block: NVMe/TCP data in PDUs of their own.
    #[inline]
    #[must_use]
    pub fn transport(len: u32) -> Self {
        Self {
            length: U32::new(len),
            id: (sgl_type::TRANSPORT_DATA_BLOCK << 4) | sgl_subtype::TRANSPORT,
            ..Self::default()
        }
    }

    /// SGL Data Block with sub type Offset: data inside the capsule.
    #[inline]
    #[must_use]
    pub fn in_capsule(off_bytes: u64, len: u32) -> Self {
        Self {
            addr: U64::new(off_bytes),
            length: U32::new(len),
            id: (sgl_type::DATA_BLOCK << 4) | sgl_subtype::OFFSET,
            ..Self::default()
        }
    }

    /// SGL Descriptor Type (bits 7:4 of the identifier).
    #[inline]
    #[must_use]
    pub const fn ty(&self) -> u8 {
        self.id >> 4
    }

    /// SGL Descriptor Sub Type (bits 3:0 of the identifier).
    #[inline]
    #[must_use]
    pub const fn subtype(&self) -> u8 {
        self.id & 0x0f
    }

    /// Checks type, sub type and, for segments, the length.
    ///
    /// # Errors
    /// [`SglError::Type`] or [`SglError::SegmentLen`].
    #[inline]
    pub fn parse(&self) -> Result<Sgl, SglError> {
        let (ty, subtype) = (self.ty(), self.subtype());
        let bad = SglError::Type { ty, subtype };
        let (addr, len) = (self.addr.get(), self.length.get());
        let base = || match subtype {
            sgl_subtype::ADDRESS => Ok(SglBase::Address),
            sgl_subtype::OFFSET => Ok(SglBase::Capsule),
            _ => Err(bad),
        };
        match ty {
            sgl_type::DATA_BLOCK => Ok(Sgl::DataBlock { base: base()?, addr, len }),
            sgl_type::BIT_BUCKET if subtype == sgl_subtype::ADDRESS => Ok(Sgl::BitBucket { len }),
            sgl_type::SEGMENT | sgl_type::LAST_SEGMENT => {
                let base = base()?;
                if len == 0 || !len.is_multiple_of(16) {
                    return Err(SglError::SegmentLen { len });
                }
                Ok(Sgl::Segment { base, addr, len, last: ty == sgl_type::LAST_SEGMENT })
            }
            sgl_type::KEYED_DATA_BLOCK => {
                let invalidate = match subtype {
                    sgl_subtype::ADDRESS => false,
                    sgl_subtype::INVALIDATE_KEY => true,
                    _ => return Err(bad),
                };
                let [b0, b1, b2, k0]: [u8; 4] = zerocopy::transmute!(self.length);
                let [k1, k2, k3] = self.rsvd12;
                let len = u32::from_le_bytes([b0, b1, b2, 0]);
                Ok(Sgl::Keyed { addr, len, key: u32::from_le_bytes([k0, k1, k2, k3]), invalidate })
            }
            sgl_type::TRANSPORT_DATA_BLOCK if subtype == sgl_subtype::TRANSPORT => Ok(Sgl::Transport { len }),
            _ => Err(bad),
        }
    }

    /// What NVMe/TCP allows in a command: data in the capsule, or Transport data.
    ///
    /// # Errors
    /// Everything that [`Self::parse`] refuses, and [`SglError::NotForTcp`].
    #[inline]
    pub fn parse_tcp(&self) -> Result<TcpSgl, SglError> {
        match self.parse()? {
            Sgl::Transport { len } => Ok(TcpSgl::Transport { len }),
            Sgl::DataBlock { base: SglBase::Capsule, addr, len } => {
                Ok(TcpSgl::InCapsule { off_bytes: addr, len })
            }
            _ => Err(SglError::NotForTcp { id: self.id }),
        }
    }
}

impl From<Sgl> for SglDescriptor {
    fn from(sgl: Sgl) -> Self {
        let make = |addr, len, ty: u8, subtype: u8| Self {
            addr: U64::new(addr),
            length: U32::new(len),
            rsvd12: [0; 3],
            id: (ty << 4) | subtype,
        };
        let sub = |base| match base {
            SglBase::Address => sgl_subtype::ADDRESS,
            SglBase::Capsule => sgl_subtype::OFFSET,
        };
        match sgl {
            Sgl::DataBlock { base, addr, len } => make(addr, len, sgl_type::DATA_BLOCK, sub(base)),
            Sgl::BitBucket { len } => make(0, len, sgl_type::BIT_BUCKET, sgl_subtype::ADDRESS),
            Sgl::Segment { base, addr, len, last } => {
                let ty = if last { sgl_type::LAST_SEGMENT } else { sgl_type::SEGMENT };
                make(addr, len, ty, sub(base))
            }
            Sgl::Keyed { addr, len, key, invalidate } => {
                let subtype = if invalidate { sgl_subtype::INVALIDATE_KEY } else { sgl_subtype::ADDRESS };
                let [b0, b1, b2, _] = len.to_le_bytes();
                let [k0, k1, k2, k3] = key.to_le_bytes();
                let mut d = make(addr, 0, sgl_type::KEYED_DATA_BLOCK, subtype);
                d.length = zerocopy::transmute!([b0, b1, b2, k0]);
                d.rsvd12 = [k1, k2, k3];
                d
            }
            Sgl::Transport { len } => make(0, len, sgl_type::TRANSPORT_DATA_BLOCK, sgl_subtype::TRANSPORT),
        }
    }
}
