//! What is on the disks, to the byte: docs/formats.md in types.
//!
//! Everything is little-endian. Every block of metadata begins with a [`Prefix`]: what it is, whose, where it belongs, and a
//! CRC32C. A structure is looked at only after [`Prefix::check`] has said that it is the one that was asked for.

pub mod checkpoint;
pub mod egroup;
pub mod log;
pub mod node;
pub mod superblock;

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32c_of;
use crate::id::{LaneNo, index};

/// The format that this program writes. 2: extents and payloads of the log may be encoded; the index knows how many blocks an egroup
/// has when decoded. 3: the log tells of data that bypassed it. 4: egroups, logs and checkpoints may be on two disks. What earlier
/// versions wrote is read as it is.
pub const VERSION: u16 = 4;

/// The disk of a structure that is the same on several: those of the log. Before version 4 they had the number of theirs.
pub const ANY_DISK: u32 = u32::MAX;

/// What a structure is, by its first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Magic(pub [u8; 8]);

impl Magic {
    /// A copy of a disk's superblock. The bytes after the name catch transfers that change line ends.
    pub const SUPERBLOCK: Self = Self(*b"PnskSB\r\n");
    /// The header of a log segment.
    pub const SEGMENT: Self = Self(*b"PnskLS\r\n");
    /// The header of a batch in the log.
    pub const BATCH: Self = Self(*b"PnskLB\r\n");
    /// The header of an egroup.
    pub const EGROUP: Self = Self(*b"PnskEG\r\n");
    /// A node of a block map.
    pub const NODE: Self = Self(*b"PnskMN\r\n");
    /// The root of a checkpoint.
    pub const CHECKPOINT: Self = Self(*b"PnskCP\r\n");
}

/// The beginning of every structure on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Prefix {
    /// What it is.
    pub magic: [u8; 8],
    /// Format version; a newer one is refused, not guessed at.
    pub version: U16,
    /// The lane it belongs to; 0 in a superblock.
    pub lane: U16,
    /// CRC32C of the first `covered` bytes of the structure, with this field zero.
    pub crc: U32,
    /// Bytes that the CRC covers, from the first of the prefix.
    pub covered: U32,
    /// The disk's number in the pool.
    pub disk: U32,
    /// Its own place: a block of the disk, or for a node the extent number, so that what a disk put elsewhere is seen.
    pub address: U64,
    /// Its place in time: generation, segment number, batch number, or the egroup's id.
    pub sequence: U64,
    /// The pool, so that another pool's remains are not taken for ours.
    pub pool: [u8; 16],
    /// Zero.
    pub reserved: [u8; 8],
}
const _: () = assert!(size_of::<Prefix>() == PREFIX_BYTES);
const _: () = assert!(core::mem::offset_of!(Prefix, crc) == CRC_AT);
const _: () = assert!(core::mem::offset_of!(Prefix, pool) == 40);

/// Length of [`Prefix`].
pub const PREFIX_BYTES: usize = 64;
const CRC_AT: usize = 12;

/// Whose a structure is and where it belongs: what the reader expects of a [`Prefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// What it is.
    pub magic: Magic,
    /// The pool.
    pub pool: Uuid,
    /// The disk's number.
    pub disk: u32,
    /// The lane.
    pub lane: LaneNo,
    /// Its place.
    pub address: u64,
    /// Its place in time.
    pub sequence: u64,
}

/// Why bytes are not the structure that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Too few bytes.
    #[error("the structure is cut short")]
    Short,
    /// Other bytes: never written, or overwritten.
    #[error("there is no such structure here")]
    Magic,
    /// Written by a newer program.
    #[error("its format has version {found}; this program knows {known} and older: run a newer program")]
    Version {
        /// The version found.
        found: u16,
        /// The newest version known.
        known: u16,
    },
    /// The bytes changed since they were written, or not all were written.
    #[error("its checksum does not fit")]
    Checksum,
    /// Sound, but of another pool.
    #[error("it belongs to another pool")]
    Pool,
    /// Sound, but of another disk, lane or place: misdirected.
    #[error("it belongs to another place")]
    Misplaced,
    /// Sound, but older or newer than expected: a lost write, or remains of an earlier use.
    #[error("it is of another time")]
    Stale,
    /// A field has a value that no writer writes.
    #[error("field {field} has a forbidden value")]
    Field {
        /// Its name.
        field: &'static str,
    },
}

impl Prefix {
    /// A prefix for `identity` of a structure whose first `covered` bytes the CRC covers; [`seal`] computes that.
    #[must_use]
    pub fn new(identity: &Identity, covered: u32) -> Self {
        Self {
            magic: identity.magic.0,
            version: U16::new(VERSION),
            lane: U16::new(identity.lane.0),
            crc: U32::ZERO,
            covered: U32::new(covered),
            disk: U32::new(identity.disk),
            address: U64::new(identity.address),
            sequence: U64::new(identity.sequence),
            pool: identity.pool.into_bytes(),
            reserved: [0; 8],
        }
    }

    /// Checks magic, version, length and CRC of the structure at the beginning of `bytes`; not yet whose it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(magic: Magic, bytes: &[u8]) -> Result<Self, FormatError> {
        let (prefix, _) = Self::read_from_prefix(bytes).map_err(|_| FormatError::Short)?;
        if prefix.magic != magic.0 {
            return Err(FormatError::Magic);
        }
        let covered = bytes.get(..index(prefix.covered.get())).ok_or(FormatError::Short)?;
        if covered.len() < PREFIX_BYTES {
            return Err(FormatError::Short);
        }
        let (before, rest) = covered.split_at(CRC_AT);
        let after = rest.get(4..).unwrap_or_default();
        if crc32c_of([before, &[0; 4], after]) != prefix.crc.get() {
            return Err(FormatError::Checksum);
        }
        // After the CRC: a damaged version is damage, not a message from the future.
        if prefix.version.get() > VERSION {
            return Err(FormatError::Version { found: prefix.version.get(), known: VERSION });
        }
        Ok(prefix)
    }

    /// As [`Self::parse`], and that it is the very structure that `identity` names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(identity: &Identity, bytes: &[u8]) -> Result<Self, FormatError> {
        let prefix = Self::parse(identity.magic, bytes)?;
        prefix.is_at(identity)?;
        if prefix.sequence.get() != identity.sequence {
            return Err(FormatError::Stale);
        }
        Ok(prefix)
    }

    /// Whether a sound structure is of `identity`'s pool, disk, lane and place, of whatever time.
    ///
    /// # Errors
    /// [`FormatError::Pool`], [`FormatError::Misplaced`].
    pub fn is_at(&self, identity: &Identity) -> Result<(), FormatError> {
        if self.pool != identity.pool.into_bytes() {
            return Err(FormatError::Pool);
        }
        let any_disk = identity.disk == ANY_DISK && self.version.get() < 4;
        let here = (self.disk.get() == identity.disk || any_disk)
            && self.lane.get() == identity.lane.0
            && self.address.get() == identity.address;
        if here { Ok(()) } else { Err(FormatError::Misplaced) }
    }
}

/// Computes the CRC of the structure at the beginning of `bytes` and puts it into its prefix.
///
/// # Panics
/// When the prefix says that more bytes are covered than there are: a bug of the caller.
pub fn seal(bytes: &mut [u8]) {
    let covered = Prefix::read_from_prefix(bytes).map(|(prefix, _)| index(prefix.covered.get()));
    let covered = covered.ok().and_then(|covered| bytes.get_mut(..covered));
    let Some(covered) = covered else { panic!("a structure is longer than its bytes") };
    let (before, rest) = covered.split_at_mut(CRC_AT);
    let Some((crc, after)) = rest.split_at_mut_checked(4) else {
        panic!("a structure is shorter than its prefix")
    };
    crc.fill(0);
    let sum = crc32c_of([&*before, &*crc, &*after]);
    crc.copy_from_slice(&sum.to_le_bytes());
}

/// Puts `value` at byte `at` of `bytes`.
///
/// # Panics
/// When it does not fit: a bug of the caller, who made the bytes.
pub(crate) fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], at: usize, value: &T) {
    let value = value.as_bytes();
    let room = at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end));
    let Some(room) = room else { panic!("a structure does not fit its block") };
    room.copy_from_slice(value);
}

/// The `T` at byte `at` of `bytes`.
pub(crate) fn take<T: FromBytes>(bytes: &[u8], at: usize) -> Result<T, FormatError> {
    let bytes = bytes.get(at..).ok_or(FormatError::Short)?;
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| FormatError::Short)
}

#[cfg(test)]
mod tests;
