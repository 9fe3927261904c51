//! An address space for devices: a VFIO container (type 1 IOMMU, or none), or an I/O address space of iommufd.
//!
//! All memory for data is mapped into it: what there is when it is made, and what comes later, before a buffer of it is given
//! out; and memory of guests as long as it is shared (without an IOMMU that is not possible, and their data are copied). Where the IOMMU takes our addresses they are used as they are; else windows are taken from the ranges that it has;
//! without an IOMMU it is physical addresses, of hugepages only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_reactor::mem::{self, ArenaInfo, ArenaObserver, Backing, Region};

use super::abi;
use crate::dma::{Extent, Mappings};

/// Ranges of addresses that are looked at, at most.
const RANGES_MAX: usize = 64;
/// Windows begin at a multiple of this: the size of an arena, so that hugepages stay hugepages in the IOMMU.
const WINDOW_ALIGN: u64 = 32 << 20;
/// What an IOMMU maps at the least.
const PAGE: usize = 4096;
/// Windows that were given back and are kept to be used again, at most.
const WINDOWS_FREE_MAX: usize = 1024;
/// What is contiguous in physical memory, without an IOMMU.
const HUGEPAGE: usize = 2 << 20;

/// What translates a device's addresses.
#[derive(Debug)]
pub(super) enum Backend {
    /// A container with a type 1 IOMMU.
    Type1(OwnedFd),
    /// An I/O address space of iommufd.
    Iommufd {
        /// /dev/iommu.
        fd: OwnedFd,
        /// The address space.
        ioas: u32,
    },
    /// Nothing: the device uses physical addresses.
    NoIommu(OwnedFd),
}

/// The address space and what is mapped in it.
#[derive(Debug)]
pub(super) struct AddressSpace {
    pub(super) backend: Backend,
    pub(super) mappings: Arc<Mappings>,
    /// Addresses that the IOMMU takes: first and last.
    ranges: Vec<(u64, u64)>,
    /// Where windows may begin.
    next_window: AtomicU64,
    /// Windows that were given back: first address and length.
    free_windows: Lock<Vec<(u64, usize)>>,
}

#[expect(
    clippy::disallowed_types,
    reason = "held by control threads, when memory of guests comes and goes only"
)]
type Lock<T> = std::sync::Mutex<T>;

impl AddressSpace {
    /// An address space on `backend`, with all memory for data in it.
    pub(super) fn new(backend: Backend) -> io::Result<Arc<Self>> {
        let ranges = match &backend {
            Backend::Type1(fd) => type1_ranges(fd.as_fd()),
            Backend::Iommufd { fd, ioas } => ioas_ranges(fd.as_fd(), *ioas)?,
            Backend::NoIommu(_) => Vec::new(),
        };
        let identity = !matches!(backend, Backend::NoIommu(_));
        let next_window = AtomicU64::new(WINDOW_ALIGN);
        let mappings = Mappings::new(identity);
        let space = Arc::new(Self { backend, mappings, ranges, next_window, free_windows: Lock::default() });
        let observer: Arc<dyn ArenaObserver> = Arc::<Self>::clone(&space);
        mem::observe(&observer);
        if space.mappings.extents().is_empty() {
            let hint = "no memory for data could be mapped for the device: allow more locked memory (LimitMEMLOCK, ulimit -l)";
            return Err(io::Error::other(hint));
        }
        Ok(space)
    }

    /// Maps an arena, at its own address if the IOMMU takes it.
    fn map(&self, va: usize, len: usize) -> io::Result<u64> {
        let iova = self.address_for(va, len).ok_or_else(no_addresses)?;
        self.map_at(va, len, iova)?;
        Ok(iova)
    }

    /// Maps memory that is not from the pools.
    fn map_region(&self, region: Region) -> io::Result<()> {
        let Region { base: va, len } = region;
        if va % PAGE != 0 || len % PAGE != 0 || len == 0 {
            return Err(io::Error::other("it does not begin and end with a page"));
        }
        let first = u64::try_from(va).unwrap_or(u64::MAX);
        let iova = if self.takes(first, len) { Some(first) } else { self.window(len) };
        let iova = iova.ok_or_else(no_addresses)?;
        self.map_at(va, len, iova)?;
        self.mappings.add(Extent { va, len, iova });
        Ok(())
    }

    fn unmap(&self, extent: Extent) -> io::Result<()> {
        let Extent { va, len, iova } = extent;
        let size = u64::try_from(len).unwrap_or(0);
        match &self.backend {
            Backend::Type1(fd) => {
                let argsz = abi::size_u32::<abi::DmaUnmap>();
                let mut unmap = abi::DmaUnmap { argsz, flags: 0, iova, size };
                abi::call_with(fd.as_fd(), abi::IOMMU_UNMAP_DMA, &mut unmap)?;
            }
            Backend::Iommufd { fd, ioas } => {
                let own = abi::size_u32::<abi::IoasUnmap>();
                let mut unmap = abi::IoasUnmap { size: own, ioas_id: *ioas, iova, length: size };
                abi::call_with(fd.as_fd(), abi::IOAS_UNMAP, &mut unmap)?;
            }
            Backend::NoIommu(_) => {}
        }
        if u64::try_from(va).ok() != Some(iova) {
            let mut free = self.free_windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if free.len() < WINDOWS_FREE_MAX {
                free.push((iova, len));
            }
        }
        Ok(())
    }

    fn map_at(&self, va: usize, len: usize, iova: u64) -> io::Result<()> {
        let [vaddr, size] = [va, len].map(|number| u64::try_from(number).unwrap_or(0));
        match &self.backend {
            Backend::Type1(fd) => {
                let argsz = abi::size_u32::<abi::DmaMap>();
                let mut map = abi::DmaMap { argsz, flags: abi::MAP_READ_WRITE, vaddr, iova, size };
                abi::call_with(fd.as_fd(), abi::IOMMU_MAP_DMA, &mut map)?;
            }
            Backend::Iommufd { fd, ioas } => {
                let mut map = abi::IoasMap {
                    size: abi::size_u32::<abi::IoasMap>(),
                    flags: abi::IOAS_MAP_FLAGS,
                    ioas_id: *ioas,
                    reserved: 0,
                    user_va: vaddr,
                    length: size,
                    iova,
                };
                abi::call_with(fd.as_fd(), abi::IOAS_MAP, &mut map)?;
            }
            Backend::NoIommu(_) => {}
        }
        Ok(())
    }

    /// The device's address for what is at `va`: the same, if the IOMMU takes it.
    fn address_for(&self, va: usize, len: usize) -> Option<u64> {
        let first = u64::try_from(va).ok()?;
        if self.takes(first, len) {
            return Some(first);
        }
        self.mappings.distrust();
        self.window(len)
    }

    /// Whether the IOMMU takes these addresses.
    fn takes(&self, first: u64, len: usize) -> bool {
        let last = u64::try_from(len).ok().and_then(|len| first.checked_add(len.checked_sub(1)?));
        let holds = |range: &(u64, u64)| range.0 <= first && last.is_some_and(|last| last <= range.1);
        self.ranges.is_empty() || self.ranges.iter().any(holds)
    }

    /// Addresses that nothing is mapped at.
    fn window(&self, len: usize) -> Option<u64> {
        {
            let mut free = self.free_windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(at) = free.iter().position(|(_, there)| *there == len) {
                return Some(free.swap_remove(at).0);
            }
        }
        let mut at = self.next_window.load(Ordering::Relaxed);
        let end = self.ranges.iter().map(|range| range.1).max().unwrap_or(0);
        while at < end && !self.takes(at, len) {
            at += WINDOW_ALIGN;
        }
        let used = u64::try_from(len).ok()?.next_multiple_of(WINDOW_ALIGN);
        self.next_window.store(at.checked_add(used)?, Ordering::Relaxed);
        self.takes(at, len).then_some(at)
    }

    /// Physical addresses of an arena's hugepages.
    fn map_physical(&self, arena: &ArenaInfo) -> io::Result<()> {
        if !matches!(arena.backing, Backing::Huge1G | Backing::Huge2M) {
            return Err(io::Error::other(
                "without an IOMMU, memory for data must be hugepages (--hugepages require)",
            ));
        }
        let pagemap = File::open("/proc/self/pagemap")?;
        for at in (arena.base..arena.base + arena.len).step_by(HUGEPAGE) {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, u64::try_from(at / 4096 * 8).unwrap_or(0))?;
            // Bits 54:0: page frame number; hidden (0) from those without CAP_SYS_ADMIN. Bit 63: present.
            let entry = u64::from_le_bytes(entry);
            let frame = entry & ((1 << 55) - 1);
            if frame == 0 || entry >> 63 == 0 {
                return Err(io::Error::other(
                    "/proc/self/pagemap does not tell physical addresses: run as root",
                ));
            }
            self.mappings.add(Extent { va: at, len: HUGEPAGE, iova: frame * 4096 });
        }
        Ok(())
    }
}

impl ArenaObserver for AddressSpace {
    fn arena_added(&self, arena: &ArenaInfo) {
        let mapped = if matches!(self.backend, Backend::NoIommu(_)) {
            self.map_physical(arena)
        } else {
            self.map(arena.base, arena.len)
                .map(|iova| self.mappings.add(Extent { va: arena.base, len: arena.len, iova }))
        };
        if let Err(error) = mapped {
            self.mappings.distrust();
            tracing::warn!(
                bytes = arena.len, %error,
                "memory for data cannot be mapped for NVMe devices; I/O with it is copied (allow more locked memory)"
            );
        }
    }

    fn region_added(&self, region: Region) {
        if matches!(self.backend, Backend::NoIommu(_)) {
            return;
        }
        if let Err(error) = self.map_region(region) {
            tracing::warn!(
                bytes = region.len, %error,
                "a guest's memory cannot be mapped for NVMe devices; its I/O is copied (allow more locked memory)"
            );
        }
    }

    fn region_removed(&self, region: Region) {
        let Some(extent) = self.mappings.remove(region.base) else { return };
        if let Err(error) = self.unmap(extent) {
            tracing::error!(bytes = region.len, %error, "a guest's memory stays mapped for NVMe devices");
        }
    }
}

fn no_addresses() -> io::Error {
    io::Error::other("the IOMMU has no addresses left")
}

/// The ranges of a container's IOMMU; empty where the kernel does not tell.
fn type1_ranges(fd: BorrowedFd<'_>) -> Vec<(u64, u64)> {
    let mut buffer = vec![0_u64; 512];
    let bytes = u32::try_from(buffer.len() * 8).unwrap_or(0);
    if let Some(first) = buffer.first_mut() {
        *first = u64::from(bytes);
    }
    if abi::call_with_bytes(fd, abi::IOMMU_GET_INFO, &mut buffer).is_err() {
        return Vec::new();
    }
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_le_bytes()).collect();
    parse_type1_info(&bytes)
}

/// Walks `struct vfio_iommu_type1_info` and its chain of capabilities.
fn parse_type1_info(bytes: &[u8]) -> Vec<(u64, u64)> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?));
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?));
    let walk = || {
        if u32_at(4)? & abi::IOMMU_INFO_CAPS == 0 {
            return None;
        }
        let mut at = usize::try_from(u32_at(16)?).ok()?;
        for _ in 0..RANGES_MAX {
            if at == 0 {
                return None;
            }
            if u16_at(at)? == abi::CAP_IOVA_RANGE {
                let count = usize::try_from(u32_at(at.checked_add(8)?)?).ok()?.min(RANGES_MAX);
                let range = |index: usize| {
                    let at = at.checked_add(16 + index * 16)?;
                    Some((u64_at(at)?, u64_at(at.checked_add(8)?)?))
                };
                return (0..count).map(range).collect::<Option<Vec<_>>>();
            }
            at = usize::try_from(u32_at(at.checked_add(4)?)?).ok()?;
        }
        None
    };
    walk().unwrap_or_default()
}

fn ioas_ranges(fd: BorrowedFd<'_>, ioas: u32) -> io::Result<Vec<(u64, u64)>> {
    let mut found: Vec<abi::IovaRange> = (0..RANGES_MAX).map(|_| abi::IovaRange::default()).collect();
    let mut ranges = abi::IoasRanges {
        size: abi::size_u32::<abi::IoasRanges>(),
        ioas_id: ioas,
        num_iovas: u32::try_from(found.len()).unwrap_or(0),
        allowed_iovas: u64::try_from(found.as_mut_ptr().expose_provenance()).unwrap_or(0),
        ..abi::IoasRanges::default()
    };
    abi::call_with(fd, abi::IOAS_IOVA_RANGES, &mut ranges)?;
    let count = usize::try_from(ranges.num_iovas).unwrap_or(0).min(found.len());
    Ok(found.iter().take(count).map(|range| (range.start, range.last)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, chain: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes[4..8].copy_from_slice(&flags.to_le_bytes());
        bytes[16..20].copy_from_slice(&24_u32.to_le_bytes());
        bytes.extend_from_slice(chain);
        bytes
    }

    #[test]
    fn the_ranges_of_an_iommu_are_found_behind_other_capabilities() {
        let mut chain = vec![3, 0, 1, 0, 32, 0, 0, 0];
        chain.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        for number in [0_u64, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            chain.extend_from_slice(&number.to_le_bytes());
        }
        let ranges = parse_type1_info(&info(3, &chain));
        assert_eq!(ranges, [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
        assert!(parse_type1_info(&info(1, &chain)).is_empty());
        assert!(parse_type1_info(&info(3, &chain[..20])).is_empty());
    }

    #[test]
    fn a_capability_chain_that_turns_in_a_circle_ends() {
        assert!(parse_type1_info(&info(3, &[9, 0, 1, 0, 24, 0, 0, 0])).is_empty());
    }

    #[test]
    fn addresses_that_the_iommu_does_not_take_get_a_window_of_their_own() {
        let space = AddressSpace {
            backend: Backend::NoIommu(File::open("/dev/null").unwrap().into()),
            mappings: Mappings::new(true),
            ranges: vec![(0, 0xfedf_ffff), (0x1_0000_0000, 0x7f_ffff_ffff)],
            next_window: AtomicU64::new(WINDOW_ALIGN),
            free_windows: Lock::default(),
        };
        let arena = 32 << 20;
        assert_eq!(space.address_for(0x7e_0000_0000, arena), Some(0x7e_0000_0000));
        assert!(space.mappings.is_trusted());
        let first = space.address_for(0x7f00_0000_0000, arena).unwrap();
        let second = space.address_for(0x7f10_0000_0000, arena).unwrap();
        assert_eq!((first, second), (WINDOW_ALIGN, 2 * WINDOW_ALIGN));
        assert!(!space.mappings.is_trusted());
        space.next_window.store(0xfe00_0000, Ordering::Relaxed);
        assert_eq!(
            space.address_for(0x7f20_0000_0000, arena),
            Some(0x1_0000_0000),
            "around what is reserved"
        );
    }
}
