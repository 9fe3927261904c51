//! Which addresses the device knows memory by.
//!
//! Where the IOMMU takes them, a buffer has the same address on both sides, and all arenas are mapped before any buffer
//! of them is given out: a pooled buffer then needs no look-up. Else, and for memory that is not from the pools, a sorted
//! table is searched; its owner may extend it at any time, and a translator takes the new one over when it misses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use penstock_reactor::mem::Buf;

#[expect(clippy::disallowed_types, reason = "held to copy or replace a pointer, when memory grows only")]
type Lock<T> = std::sync::Mutex<T>;

/// A mapped piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First address in this process.
    pub va: usize,
    /// Length in bytes.
    pub len: usize,
    /// First address for the device.
    pub iova: u64,
}

/// All that is mapped for one device, or for several that share an address space.
#[derive(Debug, Default)]
pub struct Mappings {
    table: Lock<Arc<Vec<Extent>>>,
    version: AtomicU64,
    /// Every pooled buffer is mapped, at its own address.
    trusted: AtomicBool,
}

impl Mappings {
    /// Nothing is mapped. `identity`: pooled buffers are, always, at their own addresses.
    #[must_use]
    pub fn new(identity: bool) -> Arc<Self> {
        Arc::new(Self { trusted: AtomicBool::new(identity), ..Self::default() })
    }

    /// Adds a mapped extent.
    pub fn add(&self, extent: Extent) {
        let mut table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut extents = Vec::clone(&table);
        let at = extents.partition_point(|other| other.va < extent.va);
        extents.insert(at, extent);
        *table = Arc::new(extents);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Takes the extent that begins at `va` away, and returns it. Nothing of it may be under way with a device; what the
    /// device knew it by may then be used again, as no translator gives it out any more.
    pub fn remove(&self, va: usize) -> Option<Extent> {
        let mut table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut extents = Vec::clone(&table);
        let at = extents.iter().position(|extent| extent.va == va)?;
        let removed = extents.remove(at);
        *table = Arc::new(extents);
        self.version.fetch_add(1, Ordering::Release);
        Some(removed)
    }

    /// From now on pooled buffers are looked up as well: one could not be mapped at its own address.
    pub fn distrust(&self) {
        self.trusted.store(false, Ordering::SeqCst);
    }

    /// Whether pooled buffers need no look-up.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// The extents.
    #[must_use]
    pub fn extents(&self) -> Arc<Vec<Extent>> {
        Arc::clone(&self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Finds the device's address of memory; one for each user, so that nothing is shared when it is asked.
#[derive(Debug, Clone)]
pub struct Translator {
    mappings: Arc<Mappings>,
    table: Arc<Vec<Extent>>,
    version: u64,
}

impl Translator {
    /// A translator of what `mappings` has.
    #[must_use]
    pub fn new(mappings: Arc<Mappings>) -> Self {
        let version = mappings.version.load(Ordering::Acquire);
        Self { table: mappings.extents(), mappings, version }
    }

    /// One for a device that uses this process's addresses: a model in it.
    #[must_use]
    pub fn identity() -> Self {
        Self::new(Mappings::new(true))
    }

    /// The device's address of the buffer; `None` where it does not reach all of it in one piece.
    #[inline]
    #[must_use]
    pub fn translate(&mut self, buf: &Buf) -> Option<u64> {
        let address = buf.as_ptr().addr();
        if buf.is_pooled() && self.mappings.is_trusted() {
            return u64::try_from(address).ok();
        }
        self.look_up(address, buf.len())
    }

    #[inline]
    fn look_up(&mut self, address: usize, len: usize) -> Option<u64> {
        if self.mappings.version.load(Ordering::Acquire) != self.version {
            self.refresh();
        }
        find(&self.table, address, len)
    }

    #[cold]
    fn refresh(&mut self) {
        // The version first: a table that is newer than it is taken over once more.
        self.version = self.mappings.version.load(Ordering::Acquire);
        self.table = self.mappings.extents();
    }
}

fn find(table: &[Extent], address: usize, len: usize) -> Option<u64> {
    let after = table.partition_point(|extent| extent.va <= address);
    let extent = table.get(after.checked_sub(1)?)?;
    let offset = address - extent.va;
    let fits = offset.checked_add(len).is_some_and(|end| end <= extent.len);
    // Two extents that follow each other on both sides would do as well; buffers never cross arenas.
    fits.then(|| extent.iova.checked_add(u64::try_from(offset).ok()?)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_one_extent_has_an_address() {
        let table = [
            Extent { va: 0x1000, len: 0x1000, iova: 0x9000 },
            Extent { va: 0x4000, len: 0x2000, iova: 0x1_0000_0000 },
        ];
        assert_eq!(find(&table, 0x1000, 0x1000), Some(0x9000));
        assert_eq!(find(&table, 0x1800, 0x801), None);
        assert_eq!(find(&table, 0x5fff, 1), Some(0x1_0000_1fff));
        assert_eq!(find(&table, 0xfff, 1), None);
        assert_eq!(find(&table, 0x6000, 1), None);
        assert_eq!(find(&table, 0x4000, usize::MAX), None);
    }

    #[test]
    fn a_translator_learns_of_what_was_mapped_later() {
        let mappings = Mappings::new(false);
        let mut translator = Translator::new(Arc::clone(&mappings));
        let buf = Buf::alloc(4096).unwrap();
        assert_eq!(translator.translate(&buf), None);
        mappings.add(Extent { va: buf.as_ptr().addr(), len: 4096, iova: 0x5000 });
        assert_eq!(translator.translate(&buf), Some(0x5000));
    }

    #[test]
    fn a_translator_does_not_give_out_what_was_unmapped() {
        let mappings = Mappings::new(false);
        let buf = Buf::alloc(4096).unwrap();
        let va = buf.as_ptr().addr();
        mappings.add(Extent { va, len: 4096, iova: 0x5000 });
        let mut translator = Translator::new(Arc::clone(&mappings));
        assert_eq!(translator.translate(&buf), Some(0x5000));
        assert_eq!(mappings.remove(va).map(|extent| extent.iova), Some(0x5000));
        assert_eq!((translator.translate(&buf), mappings.remove(va)), (None, None));
    }

    #[test]
    fn a_pooled_buffer_is_trusted_until_one_could_not_be_mapped() {
        let mappings = Mappings::new(true);
        let mut translator = Translator::new(Arc::clone(&mappings));
        let buf = Buf::alloc(4096).unwrap();
        assert_eq!(translator.translate(&buf), u64::try_from(buf.as_ptr().addr()).ok());
        mappings.distrust();
        assert_eq!(translator.translate(&buf), None);
    }
}
