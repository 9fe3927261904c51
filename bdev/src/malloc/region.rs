//! The memory of a malloc bdev: one mapping that all cores read and write, as DMA engines would.
//!
//! Two cores may copy to and from the same bytes at once; each then sees an unspecified mixture of old and new bytes,
//! which is what block devices promise of overlapping I/Os. So that the compiler never learns of such bytes as plain
//! memory, they are touched only by the raw copies in this file: no reference to them is ever made.

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod large;

use std::io;
use std::ptr::NonNull;

/// The part of the address space that is kept for growing.
const GROWTH_FACTOR: usize = 4;

/// A range of memory, zero until it is written. Takes memory of the machine only where it was written.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped; whichever thread touches it goes through raw copies
// that tolerate each other (see above).
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

impl Region {
    /// Maps at least `len` bytes; several times that where the address space allows, for growing.
    pub(super) fn map(len: usize) -> io::Result<Self> {
        let roomy = len.checked_mul(GROWTH_FACTOR).and_then(|roomy| Self::map_exactly(roomy).ok());
        let region = match roomy {
            Some(region) => region,
            None => Self::map_exactly(len)?,
        };
        // Fewer TLB misses where the system has huge pages to give; a refusal costs nothing else.
        // SAFETY: the range is the mapping just made; the advice does not change its contents.
        let _advised = unsafe { libc::madvise(region.base.as_ptr().cast(), region.len, libc::MADV_HUGEPAGE) };
        Ok(region)
    }

    fn map_exactly(len: usize) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// How many bytes it can hold.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Copies `to.len()` bytes from `at` on out of it.
    #[inline]
    pub(super) fn read(&self, at: usize, to: &mut [u8]) {
        let from = self.at(at, to.len());
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if to.len() >= large::BYTES_MIN {
            // SAFETY: `at` checked the source's bounds; the target is a slice outside of this mapping.
            return unsafe { large::read(from, to.as_mut_ptr(), to.len()) };
        }
        // SAFETY: `at` checked the source's bounds; the target is a slice outside of this mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }

    /// Copies `from` into it, from `at` on.
    #[inline]
    pub(super) fn write(&self, at: usize, from: &[u8]) {
        let to = self.at(at, from.len());
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if from.len() >= large::BYTES_MIN {
            // SAFETY: `at` checked the target's bounds; the source is a slice outside of this mapping.
            return unsafe { large::write(from.as_ptr(), to, from.len()) };
        }
        // SAFETY: `at` checked the target's bounds; the source is a slice outside of this mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    /// Copies `len` bytes inside it.
    pub(super) fn copy(&self, from: usize, to: usize, len: usize) {
        let (from, to) = (self.at(from, len), self.at(to, len));
        // SAFETY: `at` checked both bounds; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from, to, len) };
    }

    /// Makes `len` bytes zero.
    pub(super) fn zero(&self, at: usize, len: usize) {
        let to = self.at(at, len);
        // SAFETY: `at` checked the bounds.
        unsafe { std::ptr::write_bytes(to, 0, len) };
    }

    /// Makes `len` bytes zero and gives whole pages back to the system where that is worth a system call.
    pub(super) fn free(&self, at: usize, len: usize) {
        const PAGE: usize = 4096;
        const WORTH_A_CALL: usize = 256 << 10;
        let first = at.next_multiple_of(PAGE);
        let end = (at + len) / PAGE * PAGE;
        if first >= end || end - first < WORTH_A_CALL {
            return self.zero(at, len);
        }
        self.zero(at, first - at);
        self.zero(end, at + len - end);
        let range = self.at(first, end - first);
        // SAFETY: whole pages inside the mapping; anonymous memory reads as zero afterwards.
        let freed = unsafe { libc::madvise(range.cast(), end - first, libc::MADV_DONTNEED) };
        if freed != 0 {
            self.zero(first, end - first);
        }
    }

    /// The index of the first byte that differs from `other`, comparing from `at` on.
    pub(super) fn first_difference(&self, at: usize, other: &[u8]) -> Option<usize> {
        const PIECE: usize = 512;
        let mut piece = [0_u8; PIECE];
        for (index, other) in other.chunks(PIECE).enumerate() {
            let mine = piece.get_mut(..other.len())?;
            self.read(at + index * PIECE, mine);
            if let Some(offset) = mine.iter().zip(other).position(|(mine, other)| mine != other) {
                return Some(index * PIECE + offset);
            }
        }
        None
    }

    /// Asks the core to fetch the beginning of a piece that is needed soon.
    #[inline]
    pub(super) fn prefetch(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            const LINES: usize = 4;
            for line in 0..LINES {
                let address = self.base.as_ptr().wrapping_add(at + 64 * line);
                // SAFETY: a prefetch has no effect but on speed, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast_const().cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// The address of `len` bytes from `at` on.
    #[inline]
    fn at(&self, at: usize, len: usize) -> *mut u8 {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {at} are not all in a region of {}", self.len);
        // SAFETY: inside the mapping, checked above.
        unsafe { self.base.as_ptr().add(at) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, made by `map_exactly`, and nobody can reach it any more.
        let _unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_where_they_were_put_and_freed_ones_are_zero() {
        let region = Region::map(1 << 20).unwrap();
        region.write(1000, &[7; 600_000]);
        assert_eq!(region.first_difference(1000, &[7; 600_000]), None);
        region.free(2000, 500_000);
        assert_eq!(region.first_difference(1000, &[7; 2000]), Some(1000));
        assert_eq!(region.first_difference(2000, &[0; 500_000]), None);
        assert_eq!(region.first_difference(501_999, &[0, 7]), None);
        region.copy(502_000, 0, 1000);
        assert_eq!(region.first_difference(0, &[7; 1000]), None);
    }

    #[test]
    fn large_copies_of_any_length_and_alignment_are_whole_and_touch_nothing_else() {
        let region = Region::map(1 << 20).unwrap();
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        for (at, skip, len) in [(0, 0, 65_536), (4096, 1, 65_536), (513, 0, 131_071), (7, 3, 100_001)] {
            region.zero(0, 300_000);
            let from = &bytes[skip..skip + len];
            region.write(at, from);
            let mut to = vec![0xee; len + 2];
            region.read(at, &mut to[1..=len]);
            assert!(to[1..=len] == *from, "{len} bytes at {at}");
            assert_eq!((to[0], to[len + 1]), (0xee, 0xee));
            assert_eq!(region.first_difference(0, &vec![0; at]), None);
            assert_eq!(region.first_difference(at + len, &[0; 4096]), None);
        }
    }

    #[test]
    #[should_panic(expected = "not all in a region")]
    fn a_copy_beyond_the_end_is_refused() {
        let region = Region::map(4096).unwrap();
        region.read(region.len() - 1, &mut [0; 2]);
    }
}
