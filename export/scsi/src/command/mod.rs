//! What is not moving blocks: commands whose data are built or parsed here.

pub(crate) mod capacity;
pub(crate) mod copy;
pub(crate) mod inquiry;
pub(crate) mod mode;
pub(crate) mod ports;
pub(crate) mod report;
pub(crate) mod reserve;
pub(crate) mod table;
pub(crate) mod token;
pub(crate) mod unmap;
pub(crate) mod vpd;

pub(crate) use copy::CopyResults;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::sense::Sense;

/// Bytes of a parameter list at most.
pub(crate) const LIST_BYTES_MAX: u32 = 64 << 10;

/// The CDB as its layout; its length was checked against the table.
///
/// # Errors
/// INVALID FIELD IN CDB, should it be too short after all.
#[inline]
pub(crate) fn view<T: FromBytes + KnownLayout + Immutable + zerocopy::Unaligned>(
    cdb: &[u8],
) -> Result<&T, Sense> {
    T::ref_from_prefix(cdb).map(|(layout, _)| layout).map_err(|_| Sense::cdb(0))
}

/// Appends a structure to data-in.
pub(crate) fn put<T: IntoBytes + Immutable>(out: &mut Vec<u8>, structure: &T) {
    out.extend_from_slice(structure.as_bytes());
}

/// A length as a field of 16 bits; what does not fit cannot be, as all lists are bounded far below.
pub(crate) fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// A length as a field of 32 bits.
pub(crate) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A length as a field of 8 bits.
pub(crate) fn len8(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}
