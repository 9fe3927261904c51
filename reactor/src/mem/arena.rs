//! A mapped piece of memory: hugepages where there are some, else ordinary pages, locked where that is allowed.
//!
//! A page of 1 GiB is cut into arenas. The memory of a mapping is asked for from its NUMA node before it is touched:
//! hugepages are reserved by the mapping, placed by the policy, and then touched all at once, so that no I/O does.

use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock_with, mmap_anonymous, munmap};

use crate::error::ReactorError;
use crate::sys::numa::NumaTopology;

/// Size and alignment of an arena.
pub const ARENA_BYTES: usize = 32 << 20;
/// The largest hugepage that is used.
const GIB: usize = 1 << 30;
const _: () = assert!(GIB.is_multiple_of(ARENA_BYTES));

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
    /// Hugepages of 1 GiB.
    Huge1G,
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
    /// Maps one arena near NUMA node `node`, or, where `room_bytes` allows it and a page of 1 GiB is free, all of that.
    pub(crate) fn map(
        hugepages: Hugepages,
        node: usize,
        room_bytes: usize,
    ) -> Result<Vec<Self>, ReactorError> {
        if hugepages == Hugepages::Never {
            return Self::map_ordinary(node);
        }
        if room_bytes >= GIB
            && let Ok(base) = reserve(GIB, MapFlags::HUGETLB | MapFlags::HUGE_1GB)
        {
            touch(base, GIB, node);
            let cut = |at: usize| {
                let base = NonNull::new(base.as_ptr().wrapping_add(at))?;
                Some(Self { base, backing: Backing::Huge1G })
            };
            return Ok((0..GIB).step_by(ARENA_BYTES).filter_map(cut).collect());
        }
        match reserve(ARENA_BYTES, MapFlags::HUGETLB | MapFlags::HUGE_2MB) {
            Ok(base) => {
                touch(base, ARENA_BYTES, node);
                Ok(vec![Self { base, backing: Backing::Huge2M }])
            }
            Err(source) if hugepages == Hugepages::Require => {
                let hint = "reserve hugepages (sysctl vm.nr_hugepages) or allow ordinary pages";
                Err(ReactorError::Memory { bytes: ARENA_BYTES, hint, source })
            }
            Err(_) => Self::map_ordinary(node),
        }
    }

    fn map_ordinary(node: usize) -> Result<Vec<Self>, ReactorError> {
        let base = reserve(ARENA_BYTES, MapFlags::NORESERVE).map_err(|source| {
            let hint = "free memory, or configure less";
            ReactorError::Memory { bytes: ARENA_BYTES, hint, source }
        })?;
        place(base, ARENA_BYTES, node);
        // SAFETY: the range is the mapping just made.
        let locked = unsafe { mlock_with(base.as_ptr().cast(), ARENA_BYTES, MlockFlags::ONFAULT) };
        let backing = if locked.is_ok() { Backing::Locked } else { Backing::Ordinary };
        Ok(vec![Self { base, backing }])
    }

    /// Where it begins.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// What it is made of.
    pub(crate) fn backing(&self) -> Backing {
        self.backing
    }
}

/// Maps `len` bytes, aligned to `len`.
fn reserve(len: usize, flags: MapFlags) -> Result<NonNull<u8>, std::io::Error> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // Twice the size, of which what lies outside the aligned half is given back. Only addresses are taken here:
    // hugepages are reserved by the second, exact mapping.
    let reserve_flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new anonymous mapping touches no existing memory.
    let wide = unsafe { mmap_anonymous(std::ptr::null_mut(), 2 * len, prot, reserve_flags) }?;
    let lead = wide.cast::<u8>().align_offset(len) % len;
    let base = wide.cast::<u8>().wrapping_add(lead);
    if lead > 0 {
        // SAFETY: the range is the unaligned head of the mapping just made, which nobody uses.
        unsafe { munmap(wide, lead) }?;
    }
    let tail = len - lead;
    if tail > 0 {
        // SAFETY: the range is the tail of that mapping, past the aligned half.
        unsafe { munmap(base.wrapping_add(len).cast(), tail) }?;
    }
    if flags.contains(MapFlags::HUGETLB) {
        let exact = MapFlags::PRIVATE | MapFlags::FIXED | flags;
        // SAFETY: replaces the aligned half, which is ours and unused.
        let mapped = unsafe { mmap_anonymous(base.cast(), len, prot, exact) };
        if let Err(errno) = mapped {
            // SAFETY: the aligned half is ours; a failed fixed mapping may or may not have removed it.
            unsafe { munmap(base.cast(), len) }.ok();
            return Err(errno.into());
        }
    }
    NonNull::new(base).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}

/// Asks for the pages of a fresh mapping from `node`.
fn place(base: NonNull<u8>, len: usize, node: usize) {
    if let Err(error) = NumaTopology::system().prefer(node, base, len) {
        tracing::warn!(node, %error, "memory for data cannot be placed near its cores; it will be slower");
    }
}

/// Places and touches the pages of a fresh mapping.
fn touch(base: NonNull<u8>, len: usize, node: usize) {
    place(base, len, node);
    // Before Linux 5.14 there is no such advice, and the first use of a page touches it.
    // SAFETY: the range is a mapping just made, and populating it changes no byte.
    unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxPopulateWrite) }.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_aligned_to_its_size_and_zeroed() {
        let arena = Arena::map(Hugepages::Never, 0, 0).unwrap().pop().unwrap();
        assert_eq!(arena.base().addr().get() % ARENA_BYTES, 0);
        // SAFETY: the arena is mapped, and nobody else knows of it.
        let bytes = unsafe { std::slice::from_raw_parts(arena.base().as_ptr(), ARENA_BYTES) };
        assert_eq!((bytes.first(), bytes.last()), (Some(&0), Some(&0)));
    }

    /// Uses a page of 1 GiB where the machine has one to spare; without, it must fall back to smaller ones.
    #[test]
    fn room_for_a_gibibyte_gives_a_whole_page_of_it_or_one_arena() {
        let arenas = Arena::map(Hugepages::Auto, 0, GIB).unwrap();
        let huge = arenas.iter().filter(|arena| arena.backing() == Backing::Huge1G).count();
        assert!(huge == 32 || (huge == 0 && arenas.len() == 1), "{huge} of {}", arenas.len());
        assert!(arenas.iter().all(|arena| arena.base().addr().get() % ARENA_BYTES == 0));
    }

    #[test]
    fn hugepages_that_are_required_and_missing_are_an_error_that_says_what_to_do() {
        match Arena::map(Hugepages::Require, 0, 0) {
            Ok(arenas) => assert!(arenas.iter().all(|arena| arena.backing() == Backing::Huge2M)),
            Err(error) => assert!(error.to_string().contains("vm.nr_hugepages"), "{error}"),
        }
    }
}
