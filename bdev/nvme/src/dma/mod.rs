//! Memory that a device reaches: what address it has there, and access to what both sides change.
//!
//! Invariants: a [`DmaBuf`] lies in one piece in the device's address space; its bytes are only touched by volatile
//! accesses in bounds; an address is handed to a device only if [`Translator`] found it mapped.

mod map;
mod peer;

use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use penstock_reactor::mem::Buf;
use penstock_spec::nvme::{Cqe, Sqe};

pub use map::{Extent, Mappings, Translator};
pub use peer::PeerMemory;

/// Tries to find a buffer that the device reaches: memory may grow between them.
const TRIES: usize = 8;

/// Zeroed memory that driver and device share.
#[derive(Debug)]
pub struct DmaBuf {
    buf: Buf,
    iova: u64,
}

impl DmaBuf {
    /// `len` zeroed bytes (at most 1 MiB), aligned to at least 4 KiB; `None` where there is no such memory now.
    #[must_use]
    pub fn new(len: usize, translator: &mut Translator) -> Option<Self> {
        let mut refused = Vec::new();
        for _ in 0..TRIES {
            let buf = Buf::zeroed(len)?;
            match translator.translate(&buf) {
                Some(iova) => return Some(Self { buf, iova }),
                None => refused.push(buf),
            }
        }
        None
    }

    /// Its address for the device.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.buf.len()
    }

    /// Where a part of it is for this process: for words that another owner writes (shadow doorbells).
    #[must_use]
    pub fn word_at(&mut self, offset: usize) -> Option<SharedWord> {
        let fits = offset.checked_add(4).is_some_and(|end| end <= self.buf.len()) && offset.is_multiple_of(4);
        fits.then(|| SharedWord(self.buf.as_mut_ptr().wrapping_add(offset).expose_provenance()))
    }

    /// Makes every byte zero. The device must not be using it.
    pub fn clear(&mut self) {
        self.buf.fill(0);
        fence(Ordering::SeqCst);
    }

    /// A copy of its bytes from `offset` on. The device must not be writing them.
    #[must_use]
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        fence(Ordering::Acquire);
        self.buf.get(offset..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }

    /// Copies `bytes` to `offset`; what does not fit is left out.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(to) = self.buf.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len())) {
            to.copy_from_slice(bytes);
        }
    }

    /// Writes entry `index` of a submission queue that this is.
    #[inline]
    pub fn put_sqe(&mut self, index: u16, sqe: &Sqe) {
        let at = usize::from(index) * Sqe::LEN;
        assert!(at + Sqe::LEN <= self.buf.len(), "an entry is in its queue");
        let to = self.buf.as_mut_ptr().wrapping_add(at).cast::<[u64; 8]>();
        let words: [u64; 8] = zerocopy::transmute!(*sqe);
        // SAFETY: 64 bytes of the buffer, which is ours and aligned to 4 KiB; the device reads them after the doorbell.
        unsafe { ptr::write_volatile(to, words) };
    }

    /// Entry `index` of a completion queue that this is, if its phase tag is `phase`.
    #[inline]
    #[must_use]
    pub fn cqe(&self, index: u16, phase: bool) -> Option<Cqe> {
        let at = usize::from(index) * Cqe::LEN;
        assert!(at + Cqe::LEN <= self.buf.len(), "an entry is in its queue");
        let from = self.buf.as_ptr().wrapping_add(at);
        // SAFETY: in bounds and aligned; the device writes it, so the read is volatile.
        let status = unsafe { ptr::read_volatile(from.wrapping_add(14).cast::<u16>()) };
        if (u16::from_le(status) & 1 == 1) != phase {
            return None;
        }
        // The rest of the entry is not read before its phase tag.
        fence(Ordering::Acquire);
        // SAFETY: as above, 16 bytes.
        let words = unsafe { ptr::read_volatile(from.cast::<[u64; 2]>()) };
        Some(zerocopy::transmute!(words))
    }

    /// Writes 8 bytes, little-endian, at word `index`.
    #[inline]
    pub fn put_u64(&mut self, index: usize, value: u64) {
        let at = index * 8;
        assert!(at + 8 <= self.buf.len(), "a word is in its page");
        let to = self.buf.as_mut_ptr().wrapping_add(at).cast::<u64>();
        // SAFETY: in bounds and aligned; ours until the doorbell.
        unsafe { ptr::write_volatile(to, value.to_le()) };
    }
}

/// A word of memory that another owner keeps alive, and that the device also reads or writes.
#[derive(Debug, Clone, Copy)]
pub struct SharedWord(usize);

impl SharedWord {
    /// Reads it.
    ///
    /// # Safety
    /// The [`DmaBuf`] that it came from lives.
    #[must_use]
    unsafe fn load(self) -> u32 {
        let word = ptr::with_exposed_provenance_mut(self.0);
        // SAFETY: the caller keeps the memory alive; it is aligned to 4.
        unsafe { AtomicU32::from_ptr(word) }.load(Ordering::Acquire)
    }

    /// # Safety
    /// As [`Self::load`].
    unsafe fn store(self, value: u32) {
        let word = ptr::with_exposed_provenance_mut(self.0);
        // SAFETY: as in `load`.
        unsafe { AtomicU32::from_ptr(word) }.store(value, Ordering::Release);
    }
}

/// A shadow doorbell and its event index (Base 5.2.5 "Doorbell Buffer Config").
#[derive(Debug, Clone)]
pub struct ShadowBell {
    bell: SharedWord,
    event: SharedWord,
    /// Keeps the pages alive.
    _pages: std::sync::Arc<ShadowPages>,
}

#[expect(clippy::disallowed_types, reason = "never locked: it only makes the pages shareable")]
type Keep<T> = std::sync::Mutex<T>;

/// The two pages of shadow doorbells and event indexes of one controller.
#[derive(Debug)]
pub struct ShadowPages {
    _pages: Keep<(DmaBuf, DmaBuf)>,
    bells: Vec<(SharedWord, SharedWord)>,
    /// Their addresses for the device: shadow doorbells, event indexes.
    pub iovas: (u64, u64),
}

impl ShadowPages {
    /// Two fresh pages, for the doorbells that a page of `page_bytes` has room for.
    #[must_use]
    pub fn new(page_bytes: usize, dstrd: u8, translator: &mut Translator) -> Option<Self> {
        let (mut bells, mut events) =
            (DmaBuf::new(page_bytes, translator)?, DmaBuf::new(page_bytes, translator)?);
        let stride = 4_usize << dstrd.min(10);
        let words = (0..page_bytes).step_by(stride);
        let words = words.filter_map(|at| Some((bells.word_at(at)?, events.word_at(at)?))).collect();
        let iovas = (bells.iova(), events.iova());
        Some(Self { _pages: Keep::new((bells, events)), bells: words, iovas })
    }

    /// The shadow of doorbell `index` (2 × queue, +1 for the completion queue), if the page has room for it.
    #[must_use]
    pub fn bell(self: &std::sync::Arc<Self>, index: usize) -> Option<ShadowBell> {
        let (bell, event) = *self.bells.get(index)?;
        Some(ShadowBell { bell, event, _pages: std::sync::Arc::clone(self) })
    }

    /// Sets all to zero, as at reset. The device must not be using them.
    pub fn clear(&self) {
        for (bell, event) in &self.bells {
            // SAFETY: the pages live in `self`.
            unsafe { bell.store(0) };
            // SAFETY: as above.
            unsafe { event.store(0) };
        }
    }
}

impl ShadowBell {
    /// Moves the doorbell from `old` to `new`; returns whether the device wants the register written as well.
    #[inline]
    #[must_use]
    pub fn ring(&self, old: u16, new: u16) -> bool {
        // SAFETY: the pages are kept alive by this value.
        unsafe { self.bell.store(u32::from(new)) };
        // The device looks at the doorbell after it has written the event index, we the other way round.
        fence(Ordering::SeqCst);
        // SAFETY: as above.
        let event = unsafe { self.event.load() };
        let event = u16::try_from(event & 0xffff).unwrap_or(0);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

/// A buffer that is not from the pools.
#[cfg(test)]
pub(crate) fn unreached(bytes: Vec<u8>) -> Buf {
    let bytes = bytes.leak();
    let len = u32::try_from(bytes.len()).unwrap();
    // SAFETY: leaked memory is valid for ever, and nobody else has it.
    unsafe { Buf::foreign(ptr::NonNull::new(bytes.as_mut_ptr()).unwrap(), len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_is_seen_only_with_its_phase() {
        let mut memory = DmaBuf::new(4096, &mut Translator::identity()).unwrap();
        assert!(memory.cqe(3, true).is_none());
        let entry = Cqe::new(7, 0, penstock_spec::nvme::Status::SUCCESS.with_phase(true));
        memory.put(48, zerocopy::IntoBytes::as_bytes(&entry));
        assert_eq!(memory.cqe(3, true), Some(entry));
        assert!(memory.cqe(3, false).is_none());
    }

    #[test]
    fn a_shadow_doorbell_asks_for_the_register_only_past_the_event_index() {
        let pages = std::sync::Arc::new(ShadowPages::new(4096, 0, &mut Translator::identity()).unwrap());
        let bell = pages.bell(2).unwrap();
        assert!(bell.ring(0, 1), "the event index is 0: the first move is wanted");
        assert!(!bell.ring(1, 2));
        assert!(bell.ring(65_535, 3), "past a wrap");
        assert!(pages.bell(1024).is_none());
    }
}
