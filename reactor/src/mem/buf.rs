//! One buffer: owned, moved by value, given back when dropped.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::{ORDERS, PAGE_BYTES, node};

/// The smallest buffer.
pub const BUF_BYTES_MIN: usize = PAGE_BYTES;
/// The largest buffer.
pub const BUF_BYTES_MAX: usize = PAGE_BYTES << (ORDERS - 1);

/// `order` of memory that is somebody else's.
const FOREIGN: u8 = u8::MAX;

/// A piece of memory for data that belongs to whoever holds the value.
///
/// From [`Buf::alloc`] it is DMA-able, aligned to at least 4 KiB, goes back to the dropping thread's cache, and may move
/// between cores. Its bytes are always initialised, but a fresh buffer holds what its last user left: whoever hands it
/// outside fills it first.
pub struct Buf {
    ptr: NonNull<u8>,
    len: u32,
    order: u8,
    node: u8,
}
const _: () = assert!(size_of::<Buf>() == 16 && size_of::<Option<Buf>>() == 16);

// SAFETY: the memory belongs to this value alone, whichever thread holds it; for foreign memory the caller of
// `Buf::foreign` promised the same.
unsafe impl Send for Buf {}

impl Buf {
    /// A buffer of `len` bytes (at most [`BUF_BYTES_MAX`]), or `None` when there is none just now or `len` is too large.
    #[inline]
    #[must_use]
    pub fn alloc(len: usize) -> Option<Self> {
        let order = order_of(len)?;
        let (ptr, node) = node::take(order)?;
        Some(Self { ptr, len: u32::try_from(len).ok()?, order: u8::try_from(order).ok()?, node })
    }

    /// As [`Self::alloc`], with every byte zero.
    #[must_use]
    pub fn zeroed(len: usize) -> Option<Self> {
        let mut buf = Self::alloc(len)?;
        buf.fill(0);
        Some(buf)
    }

    /// Memory that is not from the pools (a guest's, a malloc bdev's). Dropping the value does nothing to it.
    ///
    /// # Safety
    /// `ptr` is valid for reads and writes of `len` initialised bytes for as long as the value lives, and whoever else
    /// may touch them meanwhile tolerates that both sides see each other's half-done writes, as with a DMA device.
    #[must_use]
    pub unsafe fn foreign(ptr: NonNull<u8>, len: u32) -> Self {
        Self { ptr, len, order: FOREIGN, node: 0 }
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a buffer is not a collection; a slice of it may be empty"
    )]
    pub fn len(&self) -> usize {
        // u32 to usize: lossless on every target that has DMA.
        self.len as usize
    }

    /// How long it can be made by [`Self::set_len`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        if self.order == FOREIGN { self.len() } else { PAGE_BYTES << self.order }
    }

    /// Changes the length, up to the capacity.
    ///
    /// # Panics
    /// When `len` is above [`Self::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = u32::try_from(len).unwrap_or(self.len);
    }

    /// Where it begins, for a device.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// Where it begins, for a device.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Whether it is from the pools, and so known to devices beforehand.
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.order != FOREIGN
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        if self.order != FOREIGN {
            node::give(self.ptr, usize::from(self.order), self.node);
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is valid and initialised for `len` bytes, and ours.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len()) }
    }
}

impl DerefMut for Buf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len()) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf")
            .field("len", &self.len)
            .field("pooled", &self.is_pooled())
            .finish_non_exhaustive()
    }
}

#[inline]
fn order_of(len: usize) -> Option<usize> {
    let pages = len.div_ceil(PAGE_BYTES).max(1).next_power_of_two();
    let order = usize::try_from(pages.trailing_zeros()).ok()?;
    (order < ORDERS).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_to_its_size_and_as_long_as_asked() {
        for len in [0, 1, 512, 4096, 4097, 65_536, 131_072, 1 << 20] {
            let buf = Buf::alloc(len).unwrap();
            assert_eq!((buf.len(), buf.as_ptr().addr() % buf.capacity()), (len, 0));
        }
        assert!(Buf::alloc((1 << 20) + 1).is_none());
    }

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        let before = super::super::stats().misses;
        for round in 0..20_u8 {
            let mut held: Vec<Buf> = (0..64).map(|_| Buf::zeroed(8192).unwrap()).collect();
            for (index, buf) in held.iter_mut().enumerate() {
                assert!(buf.iter().all(|byte| *byte == 0));
                buf.fill(u8::try_from(index).unwrap() ^ round);
            }
            for (index, buf) in held.iter().enumerate() {
                assert!(buf.iter().all(|byte| *byte == u8::try_from(index).unwrap() ^ round));
            }
        }
        assert_eq!(super::super::stats().misses, before);
    }

    #[test]
    fn a_buffer_may_be_dropped_on_another_thread() {
        let bufs: Vec<Buf> = (0..600).map(|_| Buf::alloc(4096).unwrap()).collect();
        std::thread::spawn(move || drop(bufs)).join().unwrap();
        assert!(Buf::alloc(1 << 20).is_some());
    }
}
