//! The table of a guest's memory.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use penstock_reactor::mem;
use vm_memory::{FileOffset, MmapRegion};

use super::window::Window;

/// Regions of one table at most: what a frontend may ask for by `GET_MAX_MEM_SLOTS`.
pub(crate) const REGIONS_MAX: usize = 64;

/// What is wrong with a memory table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The file cannot be mapped.
    #[error(
        "cannot map {len} bytes of guest memory at offset {offset} of its file; the guest needs memory that is shared (QEMU: share=on)"
    )]
    Map {
        /// Length in bytes.
        len: u64,
        /// Offset in the file.
        offset: u64,
        /// The reason.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// Two regions overlap.
    #[error("the memory region of {len:#x} bytes at guest address {gpa:#x} overlaps another one")]
    Overlap {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// More regions than there may be.
    #[error("{count} memory regions; there may be {REGIONS_MAX}")]
    TooMany {
        /// How many there would be.
        count: usize,
    },
    /// Empty, or beyond the end of the address space.
    #[error("a memory region of {len:#x} bytes at guest address {gpa:#x} is no range of addresses")]
    Range {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// To be removed, but not there.
    #[error("there is no memory region of {len:#x} bytes at guest address {gpa:#x} to remove")]
    Unknown {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// One piece of guest memory.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// Guest physical address.
    gpa: u64,
    /// Length in bytes.
    len: u64,
    /// Address in the frontend's process, in which ring addresses are given.
    user: u64,
    mapping: Arc<MmapRegion>,
    /// Devices that need mappings of their own reach it as long as this lives.
    _shared: Option<Arc<mem::SharedRegion>>,
}

impl Region {
    /// Maps a piece of a file as the guest's memory at `gpa`, and at `user` in the frontend's process.
    ///
    /// # Errors
    /// [`MemoryError::Range`], [`MemoryError::Map`] (also where the file is shorter).
    pub(crate) fn map(gpa: u64, len: u64, user: u64, file: File, offset: u64) -> Result<Self, MemoryError> {
        let range = MemoryError::Range { gpa, len };
        let is_range = len > 0 && gpa.checked_add(len).is_some() && user.checked_add(len).is_some();
        let Some(bytes) = usize::try_from(len).ok().filter(|_| is_range) else { return Err(range) };
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), bytes)
            .map_err(|source| MemoryError::Map { len, offset, source })?;
        let mapping = Arc::new(mapping);
        let base = mapping.as_ptr().addr();
        let shared = mem::share(mem::Region { base, len: bytes }, Box::new(Arc::clone(&mapping)));
        Ok(Self { gpa, len, user, mapping, _shared: Some(Arc::new(shared)) })
    }

    /// Memory that is nobody else's.
    ///
    /// # Errors
    /// As [`Self::map`].
    #[cfg(any(test, fuzzing))]
    pub(crate) fn private(gpa: u64, len: u64, user: u64) -> Result<Self, MemoryError> {
        let bytes = usize::try_from(len).map_err(|_| MemoryError::Range { gpa, len })?;
        let mapping = MmapRegion::new(bytes).map_err(|source| MemoryError::Map { len, offset: 0, source })?;
        Ok(Self { gpa, len, user, mapping: Arc::new(mapping), _shared: None })
    }

    fn end(&self) -> u64 {
        // Checked by `map`.
        self.gpa.saturating_add(self.len)
    }
}

/// A guest's memory: regions that do not overlap, by address. Never changes; a change makes another one.
#[derive(Debug, Default)]
pub(crate) struct GuestMap {
    regions: Vec<Region>,
}

impl GuestMap {
    /// A table of these regions.
    ///
    /// # Errors
    /// [`MemoryError::TooMany`], [`MemoryError::Overlap`].
    pub(crate) fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        if regions.len() > REGIONS_MAX {
            return Err(MemoryError::TooMany { count: regions.len() });
        }
        regions.sort_by_key(|region| region.gpa);
        for (before, after) in regions.iter().zip(regions.iter().skip(1)) {
            if before.end() > after.gpa {
                return Err(MemoryError::Overlap { gpa: after.gpa, len: after.len });
            }
        }
        Ok(Self { regions })
    }

    /// This table and one region more.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn with(&self, region: Region) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::new(regions)
    }

    /// The same table anew.
    #[cfg(test)]
    pub(crate) fn same(&self) -> Self {
        Self { regions: self.regions.clone() }
    }

    /// This table without the region that is exactly so.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`].
    pub(crate) fn without(&self, gpa: u64, len: u64, user: u64) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.retain(|region| (region.gpa, region.len, region.user) != (gpa, len, user));
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown { gpa, len });
        }
        Ok(Self { regions })
    }

    /// `len` bytes at an address of the frontend's process, if they are in one region and aligned to `align`.
    pub(crate) fn window_at_user(&self, user: u64, len: usize, align: usize) -> Option<Window> {
        let region =
            self.regions.iter().find(|region| (region.user..region.user + region.len).contains(&user))?;
        let offset = user - region.user;
        Window::new(
            &region.mapping,
            region.gpa.checked_add(offset)?,
            usize::try_from(offset).ok()?,
            len,
            align,
        )
    }

    /// `len` bytes at a guest address, likewise: for those who play the driver.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn window(&self, gpa: u64, len: usize, align: usize) -> Option<Window> {
        let region = self.regions.iter().find(|region| (region.gpa..region.end()).contains(&gpa))?;
        let offset = usize::try_from(gpa - region.gpa).ok()?;
        Window::new(&region.mapping, gpa, offset, len, align)
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    gpa: u64,
    end: u64,
    base: NonNull<u8>,
}

/// A queue's own copy of the table, so that a look-up touches no memory of other cores'.
#[derive(Debug)]
pub(crate) struct Held {
    places: Vec<Place>,
    _map: Arc<GuestMap>,
}

impl Held {
    pub(crate) fn new(map: &Arc<GuestMap>) -> Self {
        let place = |region: &Region| {
            let base = NonNull::new(region.mapping.as_ptr())?;
            Some(Place { gpa: region.gpa, end: region.end(), base })
        };
        Self { places: map.regions.iter().filter_map(place).collect(), _map: Arc::clone(map) }
    }

    /// Where the bytes at `gpa` are, and how many follow in the same region (at least one).
    #[inline]
    pub(super) fn locate(&self, gpa: u64) -> Option<(NonNull<u8>, u64)> {
        let place = self.places.iter().find(|place| place.gpa <= gpa && gpa < place.end)?;
        let offset = usize::try_from(gpa - place.gpa).ok()?;
        // SAFETY: below the end of the region, which is mapped as one piece for as long as the table is held.
        let ptr = unsafe { place.base.add(offset) };
        Some((ptr, place.end - gpa))
    }

    /// Whether there is a byte at `gpa`.
    #[inline]
    pub(crate) fn has_byte(&self, gpa: u64) -> bool {
        self.locate(gpa).is_some()
    }

    /// The guest address of a byte of this process, if it is the guest's.
    pub(crate) fn gpa_of(&self, byte: *const u8) -> Option<u64> {
        self.places.iter().find_map(|place| {
            let offset = u64::try_from(byte.addr().checked_sub(place.base.addr().get())?).ok()?;
            let gpa = place.gpa.checked_add(offset)?;
            (gpa < place.end).then_some(gpa)
        })
    }

    /// Copies bytes of the guest's out; false where not all are there.
    pub(crate) fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        let (mut at, mut left) = (gpa, to);
        while !left.is_empty() {
            let Some((from, room)) = self.locate(at) else { return false };
            let count = usize::try_from(room).unwrap_or(usize::MAX).min(left.len());
            let (now, later) = left.split_at_mut(count);
            // SAFETY: `count` bytes from there on are mapped, and outside of our own memory.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), now.as_mut_ptr(), count) };
            let Some(next) = at.checked_add(room) else { return later.is_empty() };
            (at, left) = (next, later);
        }
        true
    }

    /// Writes one byte of the guest's; false where it is not there.
    #[inline]
    pub(crate) fn write_byte(&self, gpa: u64, byte: u8) -> bool {
        let Some((to, _)) = self.locate(gpa) else { return false };
        // SAFETY: mapped; volatile, as the guest may look at it meanwhile.
        unsafe { to.write_volatile(byte) };
        true
    }
}
