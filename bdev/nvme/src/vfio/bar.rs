//! A mapped BAR: the registers of a device.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::register::{GONE, Registers};

/// Of a BAR so many bytes are mapped at most: registers and the doorbells of all queues at the widest usual stride.
const MAPPED_MAX: u64 = 1 << 20;

/// Registers of a device, mapped into this process. Unmapped with the value; nothing is accessed beyond its end.
#[derive(Debug)]
pub(super) struct Bar {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is the device's registers: accesses are single volatile loads and stores of aligned words, which the
// bus serialises, from whichever thread.
unsafe impl Send for Bar {}
// SAFETY: as above; there is no state of our own behind `&self`.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps what begins at `offset` of a VFIO device's descriptor.
    pub(super) fn map(device: BorrowedFd<'_>, offset: u64, size: u64) -> io::Result<Self> {
        let len = usize::try_from(size.min(MAPPED_MAX)).map_err(io::Error::other)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, device, offset) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    fn word(&self, offset: u32) -> Option<*mut u32> {
        let at = usize::try_from(offset).ok()?;
        let fits = at.checked_add(4).is_some_and(|end| end <= self.len) && at.is_multiple_of(4);
        fits.then(|| self.base.as_ptr().wrapping_add(at).cast())
    }
}

impl Registers for Bar {
    #[inline]
    fn read32(&self, offset: u32) -> u32 {
        let Some(word) = self.word(offset) else { return GONE };
        // SAFETY: `word` has checked that it is aligned and within the mapping.
        u32::from_le(unsafe { ptr::read_volatile(word) })
    }

    #[inline]
    fn write32(&self, offset: u32, value: u32) {
        let Some(word) = self.word(offset) else { return };
        // What was written to memory is there before the device hears of it.
        fence(Ordering::SeqCst);
        // SAFETY: as in `read32`.
        unsafe { ptr::write_volatile(word, value.to_le()) };
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and nobody else has its address.
        unsafe { munmap(self.base.as_ptr().cast(), self.len) }.ok();
    }
}
