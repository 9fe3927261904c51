//! Which pages of the guest this side has written: what live migration copies again.

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{FileOffset, MmapRegion};

use super::map::MemoryError;

/// Bytes that one bit stands for (`VHOST_LOG_PAGE`).
const PAGE_BYTES: u64 = 4096;

/// The bitmap that the frontend reads and clears while a guest moves.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    mapping: MmapRegion,
}

impl DirtyLog {
    /// Maps the frontend's bitmap.
    pub(crate) fn map(file: File, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let bytes = usize::try_from(len).map_err(|_| MemoryError::Range { gpa: offset, len })?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), bytes)
            .map_err(|source| MemoryError::Map { len, offset, source })?;
        Ok(Self { mapping })
    }

    /// Notes that `len` bytes at `gpa` were written. What the bitmap has no bit for is not the guest's RAM.
    #[inline]
    pub(crate) fn mark(&self, gpa: u64, len: u64) {
        let last = gpa.saturating_add(len.saturating_sub(1)) / PAGE_BYTES;
        for page in gpa / PAGE_BYTES..=last {
            let Some(byte) = usize::try_from(page / 8).ok().filter(|byte| *byte < self.mapping.size()) else {
                return;
            };
            let ptr = self.mapping.as_ptr().wrapping_add(byte);
            // SAFETY: inside the mapping, checked above.
            let bits = unsafe { AtomicU8::from_ptr(ptr) };
            let bit = 1 << (page % 8);
            // Mostly it is set already; a look is cheaper than a locked write.
            if bits.load(Ordering::Relaxed) & bit == 0 {
                bits.fetch_or(bit, Ordering::Release);
            }
        }
    }

    /// Whether the page of `gpa` is noted.
    #[cfg(test)]
    pub(crate) fn is_marked(&self, gpa: u64) -> bool {
        let page = gpa / PAGE_BYTES;
        let byte = usize::try_from(page / 8).unwrap();
        // SAFETY: tests ask for what the bitmap covers.
        let bits = unsafe { AtomicU8::from_ptr(self.mapping.as_ptr().wrapping_add(byte)) };
        bits.load(Ordering::Relaxed) & (1 << (page % 8)) != 0
    }
}
