//! A fixed piece of guest memory: a part of a ring, an inflight region.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::MmapRegion;

use super::dirty::DirtyLog;

/// Bytes that another process writes too. All accesses are atomic per field; what lies outside is a bug of ours.
pub(crate) struct Window {
    ptr: NonNull<u8>,
    len: usize,
    gpa: u64,
    log: Option<Arc<DirtyLog>>,
    _mapping: Arc<MmapRegion>,
}

// SAFETY: the memory is shared with another process anyway; every access is atomic or of plain bytes that nobody trusts, and
// the mapping is kept by the value.
unsafe impl Send for Window {}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("gpa", &self.gpa).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Window {
    /// `len` bytes of a mapping; `None` where they are not all in it or not aligned to `align`.
    pub(crate) fn new(
        mapping: &Arc<MmapRegion>,
        gpa: u64,
        offset: usize,
        len: usize,
        align: usize,
    ) -> Option<Self> {
        if offset.checked_add(len)? > mapping.size() {
            return None;
        }
        let base = NonNull::new(mapping.as_ptr())?;
        // SAFETY: inside the mapping, checked above.
        let ptr = unsafe { base.add(offset) };
        let aligned = ptr.addr().get().is_multiple_of(align.max(1));
        aligned.then(|| Self { ptr, len, gpa, log: None, _mapping: Arc::clone(mapping) })
    }

    /// Notes writes in `log` from now on.
    pub(crate) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
    }

    /// A 16-bit field.
    #[inline]
    pub(crate) fn load_u16(&self, at: usize, order: Ordering) -> u16 {
        let ptr = self.field(at, 2).cast();
        // SAFETY: `field` checked bounds and alignment; the mapping lives as long as `self`.
        let field = unsafe { AtomicU16::from_ptr(ptr) };
        u16::from_le(field.load(order))
    }

    /// Sets a 16-bit field.
    #[inline]
    pub(crate) fn store_u16(&self, at: usize, value: u16, order: Ordering) {
        let ptr = self.field(at, 2).cast();
        // SAFETY: as in `load_u16`.
        let field = unsafe { AtomicU16::from_ptr(ptr) };
        field.store(value.to_le(), order);
        self.wrote(at, 2);
    }

    /// Sets a 32-bit field.
    #[inline]
    pub(crate) fn store_u32(&self, at: usize, value: u32) {
        let ptr = self.field(at, 4).cast();
        // SAFETY: as in `load_u16`.
        let field = unsafe { AtomicU32::from_ptr(ptr) };
        field.store(value.to_le(), Ordering::Relaxed);
        self.wrote(at, 4);
    }

    /// A 64-bit field.
    #[inline]
    pub(crate) fn load_u64(&self, at: usize) -> u64 {
        let ptr = self.field(at, 8).cast();
        // SAFETY: as in `load_u16`.
        let field = unsafe { AtomicU64::from_ptr(ptr) };
        u64::from_le(field.load(Ordering::Relaxed))
    }

    /// Sets a 64-bit field.
    #[inline]
    pub(crate) fn store_u64(&self, at: usize, value: u64) {
        let ptr = self.field(at, 8).cast();
        // SAFETY: as in `load_u16`.
        let field = unsafe { AtomicU64::from_ptr(ptr) };
        field.store(value.to_le(), Ordering::Relaxed);
        self.wrote(at, 8);
    }

    /// A 16-byte descriptor.
    #[inline]
    pub(crate) fn load_descriptor(&self, at: usize) -> [u8; 16] {
        let words = [self.load_u64(at), self.load_u64(at + 8)];
        let mut bytes = [0; 16];
        let (low, high) = bytes.split_at_mut(8);
        low.copy_from_slice(&words[0].to_le_bytes());
        high.copy_from_slice(&words[1].to_le_bytes());
        bytes
    }

    /// Length in bytes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn field(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at <= self.len && len <= self.len - at, "{len} bytes at {at} of a window of {}", self.len);
        // SAFETY: inside the window, checked above.
        let ptr = unsafe { self.ptr.add(at) }.as_ptr();
        assert!(ptr.addr().is_multiple_of(len), "a field of {len} bytes is aligned");
        ptr
    }

    #[inline]
    fn wrote(&self, at: usize, len: u32) {
        if let Some(log) = &self.log {
            log.mark(self.gpa.saturating_add(u64::try_from(at).unwrap_or(u64::MAX)), u64::from(len));
        }
    }
}
