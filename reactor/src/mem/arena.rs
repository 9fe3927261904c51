//! A mapped piece of memory: hugepages where there are some, else ordinary pages, locked where that is allowed.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, MlockFlags, ProtFlags, mlock_with, mmap_anonymous, munmap};

use crate::error::ReactorError;

/// Size and alignment of an arena.
pub const ARENA_BYTES: usize = 32 << 20;

/// Whether to use hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hugepages {
    /// 1 GiB or 2 MiB pages where some are reserved, ordinary pages else.
    #[default]
    Auto,
    /// Hugepages or an error.
    Require,
    /// Ordinary pages.
    Never,
}

/// What an arena is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Hugepages of 2 MiB.
    Huge2M,
    /// Ordinary pages that stay in memory once touched.
    Locked,
    /// Ordinary pages; the process may not lock as much memory.
    Ordinary,
}

/// One mapping of [`ARENA_BYTES`], aligned to its size. Lives as long as the process.
#[derive(Debug)]
pub(crate) struct Arena {
    base: NonNull<u8>,
    backing: Backing,
}

// SAFETY: an arena is an address range that it alone owns; which thread maps or looks at it does not matter.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps an arena.
    pub(crate) fn map(hugepages: Hugepages) -> Result<Self, ReactorError> {
        if hugepages != Hugepages::Never {
            let huge = Self::reserve(MapFlags::HUGETLB | MapFlags::HUGE_2MB | MapFlags::POPULATE);
            match huge {
                Ok(base) => return Ok(Self { base, backing: Backing::Huge2M }),
                Err(source) if hugepages == Hugepages::Require => {
                    let hint = "reserve hugepages (sysctl vm.nr_hugepages) or allow ordinary pages";
                    return Err(ReactorError::Memory { bytes: ARENA_BYTES, hint, source });
                }
                Err(_) => {}
            }
        }
        let base = Self::reserve(MapFlags::NORESERVE).map_err(|source| {
            let hint = "free memory, or configure less";
            ReactorError::Memory { bytes: ARENA_BYTES, hint, source }
        })?;
        // SAFETY: the range is the mapping just made.
        let locked = unsafe { mlock_with(base.as_ptr().cast(), ARENA_BYTES, MlockFlags::ONFAULT) };
        let backing = if locked.is_ok() { Backing::Locked } else { Backing::Ordinary };
        Ok(Self { base, backing })
    }

    /// Where it begins.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// What it is made of.
    pub(crate) fn backing(&self) -> Backing {
        self.backing
    }

    /// Maps twice the size and gives back what lies outside the aligned half.
    fn reserve(flags: MapFlags) -> Result<NonNull<u8>, std::io::Error> {
        let huge = flags.contains(MapFlags::HUGETLB);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // Only addresses are reserved here; hugepages are populated by the second, exact mapping.
        let reserve_flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let wide = unsafe { mmap_anonymous(std::ptr::null_mut(), 2 * ARENA_BYTES, prot, reserve_flags) }?;
        let lead = wide.cast::<u8>().align_offset(ARENA_BYTES) % ARENA_BYTES;
        let base = wide.cast::<u8>().wrapping_add(lead);
        if lead > 0 {
            // SAFETY: the range is the unaligned head of the mapping just made, which nobody uses.
            unsafe { munmap(wide, lead) }?;
        }
        let tail = ARENA_BYTES - lead;
        if tail > 0 {
            // SAFETY: the range is the tail of that mapping, past the aligned half.
            unsafe { munmap(base.wrapping_add(ARENA_BYTES).cast(), tail) }?;
        }
        if huge {
            let exact = MapFlags::PRIVATE | MapFlags::FIXED | flags;
            // SAFETY: replaces the aligned half, which is ours and unused.
            let mapped = unsafe { mmap_anonymous(base.cast(), ARENA_BYTES, prot, exact) };
            if let Err(errno) = mapped {
                // SAFETY: the aligned half is ours; a failed fixed mapping may or may not have removed it.
                unsafe { munmap(base.cast(), ARENA_BYTES) }.ok();
                return Err(errno.into());
            }
        }
        NonNull::new(base).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_aligned_to_its_size_and_zeroed() {
        let arena = Arena::map(Hugepages::Never).unwrap();
        assert_eq!(arena.base().addr().get() % ARENA_BYTES, 0);
        // SAFETY: the arena is mapped, and nobody else knows of it.
        let bytes = unsafe { std::slice::from_raw_parts(arena.base().as_ptr(), ARENA_BYTES) };
        assert_eq!((bytes.first(), bytes.last()), (Some(&0), Some(&0)));
    }
}
