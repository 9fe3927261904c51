//! NVMe/TCP Transport Specification 1.x: the protocol data units (PDUs) of a TCP connection.
//!
//! ```text
//! | CH 8 B | PSH (PDU specific header) | HDGST 0/4 B | PAD | DATA | DDGST 0/4 B |
//! 0        8                        HLEN                  PDO                   PLEN
//! ```
//!
//! [`CheckedHdr::parse`] judges the common header alone, before anything else of the PDU has arrived;
//! the `check` functions of the PDUs judge the rest. Each refusal is a [`PduError`] that knows the FES and
//! FEI of the TermReq that the standard asks for.

pub mod check;
pub mod data;
pub mod header;
pub mod icreq;
pub mod term;

pub use check::{CheckedHdr, PduError, Receiver, RxRules};
pub use data::{C2hDataHdr, CapsuleCmdHdr, CapsuleRespHdr, H2cDataHdr, R2tHdr};
pub use header::{CommonHdr, PduFlags, PduType};
pub use icreq::{DigestFlags, IcReq, IcResp};
pub use term::{Fes, TermReqHdr};

/// Length of a header or data digest (CRC32C, little-endian), in bytes.
pub const DIGEST_LEN: usize = 4;

/// The longest PDU header of any type, in bytes: ICReq and ICResp.
pub const HLEN_MAX: usize = 128;

/// The largest HPDA or CPDA: data aligned to 128 bytes.
pub const PDA_MAX: u8 = 31;

/// The smallest MAXH2CDATA that a controller may offer, in bytes.
pub const MAXH2CDATA_MIN: u32 = 4096;

/// In-capsule data that every admin queue takes, in bytes (TCP transport: admin capsules carry up to 8 KiB).
pub const ADMIN_IN_CAPSULE_LEN: u32 = 8192;

/// The most data in a TermReq PDU, in bytes: the header of the PDU in error.
pub const TERM_DATA_MAX: usize = 128;

/// Data alignment in bytes that a 0's based PDA (HPDA or CPDA) asks for: 4 to 128.
#[inline]
#[must_use]
pub fn align_of_pda(pda: u8) -> u32 {
    (u32::from(pda.min(PDA_MAX)) + 1) * 4
}

/// Where data begins (PDO) after a header of `psh_end` bytes (HLEN plus header digest), for a receiver
/// with this PDA.
#[inline]
#[must_use]
pub fn data_offset(psh_end: u8, pda: u8) -> u32 {
    u32::from(psh_end).next_multiple_of(align_of_pda(pda))
}
