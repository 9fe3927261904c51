//! The inflight region: memory of the frontend's in which a backend notes what it has taken and not given back, so that
//! the next one after a crash does just that again (vhost-user, "Inflight I/O tracking").
//!
//! ```text
//!   split:   features version desc_num last_batch_head used_idx │ desc[]: inflight next counter
//!   packed:  features version desc_num free_head old_free_head used_idx old_used_idx used_wrap old_used_wrap │
//!            desc[]: inflight next last num counter id flags len addr         (a copy: the ring's own is overwritten)
//! ```
//!
//! Each step is one store, in an order that makes every prefix of them recoverable. The frontend can write here too, so
//! what is read is checked.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::packed::Descriptor;
use vm_memory::{FileOffset, MmapRegion};

use super::packed::Position;
use super::{QUEUE_SIZE_MAX, RingError};
use crate::memory::{MemoryError, Window};

const VERSION: u16 = 1;
const VERSION_AT: usize = 8;
const DESC_NUM_AT: usize = 10;
/// Regions of queues begin at multiples of this.
const ALIGN: usize = 64;

const SPLIT_HEADER: usize = 16;
const SPLIT_ENTRY: usize = 16;
const PACKED_HEADER: usize = 32;
const PACKED_ENTRY: usize = 32;

/// Bytes of one queue's part.
pub(crate) fn region_bytes(packed: bool, size: u16) -> usize {
    let size = usize::from(size);
    let bytes = if packed { PACKED_HEADER + PACKED_ENTRY * size } else { SPLIT_HEADER + SPLIT_ENTRY * size };
    bytes.next_multiple_of(ALIGN)
}

/// One queue's part of the region.
#[derive(Debug)]
pub(crate) struct InflightArea {
    window: Window,
    /// Entries that there is room for: the queue's size, or more.
    entries: u16,
}

impl InflightArea {
    /// Maps the part of queue `index` of a region whose queues have `size` entries.
    pub(crate) fn map(
        file: File,
        offset: u64,
        packed: bool,
        size: u16,
        index: u16,
    ) -> Result<Self, MemoryError> {
        let part = region_bytes(packed, size);
        let skip = part.saturating_mul(usize::from(index));
        let len = skip.saturating_add(part);
        let region = MmapRegion::from_file(FileOffset::new(file, offset), len).map_err(|source| {
            MemoryError::Map { len: u64::try_from(len).unwrap_or(u64::MAX), offset, source }
        })?;
        let window = Window::new(&Arc::new(region), 0, skip, part, 8);
        let len = u64::try_from(part).unwrap_or(u64::MAX);
        window.map(|window| Self { window, entries: size }).ok_or(MemoryError::Range { gpa: 0, len })
    }

    /// Whether nobody has noted anything there yet, for a ring of `size` entries.
    fn is_fresh(&self, size: u16) -> Result<bool, RingError> {
        let noted = self.window.load_u16(DESC_NUM_AT, Ordering::Relaxed);
        match self.window.load_u16(VERSION_AT, Ordering::Acquire) {
            _ if size > self.entries || self.entries > QUEUE_SIZE_MAX => Err(RingError::Inflight),
            0 => Ok(true),
            VERSION if noted == self.entries => Ok(false),
            _ => Err(RingError::Inflight),
        }
    }
}

/// What is noted of a split ring.
#[derive(Debug)]
pub(super) struct SplitNotes {
    area: Window,
    counter: u64,
}

impl SplitNotes {
    const LAST_BATCH_HEAD: usize = 12;
    const USED_IDX: usize = 14;
    /// The flag is a byte with a zero behind it.
    const INFLIGHT: usize = 0;
    const NEXT: usize = 6;
    const COUNTER: usize = 8;

    /// Goes on from what is noted: the heads to be done again, in the order in which they were taken; `None` where nothing
    /// ever was noted.
    pub(super) fn recover(
        area: InflightArea,
        size: u16,
        used_idx: u16,
    ) -> Result<(Self, Option<VecDeque<u16>>), RingError> {
        let fresh = area.is_fresh(size)?;
        let mut notes = Self { area: area.window, counter: 0 };
        if fresh {
            notes.area.store_u16(Self::USED_IDX, used_idx, Ordering::Relaxed);
            notes.area.store_u16(DESC_NUM_AT, area.entries, Ordering::Relaxed);
            notes.area.store_u16(VERSION_AT, VERSION, Ordering::Release);
            return Ok((notes, None));
        }
        // Given back, but not struck out any more.
        let noted_idx = notes.area.load_u16(Self::USED_IDX, Ordering::Relaxed);
        let mut head = notes.area.load_u16(Self::LAST_BATCH_HEAD, Ordering::Relaxed);
        for _ in 0..used_idx.wrapping_sub(noted_idx).min(size) {
            if head >= size {
                return Err(RingError::Inflight);
            }
            notes.area.store_u16(entry(head) + Self::INFLIGHT, 0, Ordering::Relaxed);
            head = notes.area.load_u16(entry(head) + Self::NEXT, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        notes.area.store_u16(Self::USED_IDX, used_idx, Ordering::Release);
        let is_noted =
            |head: &u16| notes.area.load_u16(entry(*head) + Self::INFLIGHT, Ordering::Relaxed) != 0;
        let mut again: Vec<(u64, u16)> = (0..size)
            .filter(is_noted)
            .map(|head| (notes.area.load_u64(entry(head) + Self::COUNTER), head))
            .collect();
        again.sort_unstable();
        notes.counter = again.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok((notes, Some(again.into_iter().map(|(_, head)| head).collect())))
    }

    /// A chain is taken.
    pub(super) fn took(&mut self, head: u16) {
        self.area.store_u64(entry(head) + Self::COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.area.store_u16(entry(head) + Self::INFLIGHT, 1, Ordering::Release);
    }

    /// A chain will be given back next.
    pub(super) fn gives_back(&mut self, head: u16) {
        let before = self.area.load_u16(Self::LAST_BATCH_HEAD, Ordering::Relaxed);
        self.area.store_u16(entry(head) + Self::NEXT, before, Ordering::Relaxed);
        self.area.store_u16(Self::LAST_BATCH_HEAD, head, Ordering::Release);
    }

    /// It is given back.
    pub(super) fn gave_back(&mut self, head: u16, used_idx: u16) {
        self.area.store_u16(entry(head) + Self::INFLIGHT, 0, Ordering::Release);
        self.area.store_u16(Self::USED_IDX, used_idx, Ordering::Release);
    }
}

fn entry(head: u16) -> usize {
    SPLIT_HEADER + SPLIT_ENTRY * usize::from(head)
}

/// What is noted of a packed ring.
#[derive(Debug)]
pub(super) struct PackedNotes {
    area: Window,
    size: u16,
    counter: u64,
    free_head: u16,
    /// The head of the chain that is being taken: `old_free_head`.
    head: u16,
    used: Position,
}

/// Where a packed ring goes on.
#[derive(Debug)]
pub(super) struct PackedFound {
    pub(super) notes: PackedNotes,
    pub(super) used: Position,
    /// Entries of the ring that are taken and not given back.
    pub(super) entries: u16,
    /// Heads to be done again; `None` where nothing ever was noted.
    pub(super) again: Option<VecDeque<u16>>,
}

impl PackedNotes {
    const FREE_HEAD: usize = 12;
    const OLD_FREE_HEAD: usize = 14;
    const USED_IDX: usize = 16;
    const OLD_USED_IDX: usize = 18;
    /// `used_wrap_counter`, and in the byte behind it `old_used_wrap_counter`.
    const WRAPS: usize = 20;

    const INFLIGHT: usize = 0;
    const NEXT: usize = 2;
    const LAST: usize = 4;
    const NUM: usize = 6;
    const COUNTER: usize = 8;
    const ID: usize = 16;
    const FLAGS: usize = 18;
    const LEN: usize = 20;
    const ADDR: usize = 24;

    /// Goes on from what is noted. `used` is where the ring would go on if nothing is; `flags` reads a descriptor's.
    pub(super) fn recover(
        area: InflightArea,
        size: u16,
        used: Position,
        flags: impl Fn(u16) -> u16,
    ) -> Result<PackedFound, RingError> {
        let fresh = area.is_fresh(size)?;
        let ring_size = size;
        let size = area.entries;
        let mut notes = Self { area: area.window, size, counter: 0, free_head: 0, head: 0, used };
        if fresh {
            notes.begin(used);
            return Ok(PackedFound { notes, used, entries: 0, again: None });
        }
        let load = |at: usize| notes.area.load_u16(at, Ordering::Relaxed);
        let wraps = load(Self::WRAPS);
        let now = Position { index: load(Self::USED_IDX), wrap: wraps & 0xff != 0 };
        let old = Position { index: load(Self::OLD_USED_IDX), wrap: wraps >> 8 != 0 };
        if now.index >= ring_size || old.index >= ring_size {
            return Err(RingError::Inflight);
        }
        let state =
            penstock_spec::virtio::queue::descriptor::AVAIL | penstock_spec::virtio::queue::descriptor::USED;
        // The last chain was on its way back: the ring says whether it got there.
        let committed = now != old && flags(old.index) & state == old.used_flags();
        notes.used = if committed { now } else { old };
        notes.free_head = load(if committed { Self::FREE_HEAD } else { Self::OLD_FREE_HEAD });
        notes.head = notes.free_head;
        notes.write_state();
        notes.write_old_state();
        let (again, entries) = notes.under_way()?;
        if entries > ring_size {
            return Err(RingError::Inflight);
        }
        let used = notes.used;
        Ok(PackedFound { notes, used, entries, again: Some(again) })
    }

    fn begin(&mut self, used: Position) {
        for index in 0..self.size {
            self.set(index, Self::NEXT, index + 1);
        }
        self.used = used;
        self.write_state();
        self.write_old_state();
        self.area.store_u16(DESC_NUM_AT, self.size, Ordering::Relaxed);
        self.area.store_u16(VERSION_AT, VERSION, Ordering::Release);
    }

    /// Strikes out what is in the free list, and collects the rest by the order in which it was taken.
    fn under_way(&mut self) -> Result<(VecDeque<u16>, u16), RingError> {
        let mut free = self.free_head;
        for _ in 0..self.size {
            if free >= self.size {
                break;
            }
            self.set(free, Self::INFLIGHT, 0);
            free = self.field(free, Self::NEXT);
        }
        let mut again: Vec<(u64, u16)> = (0..self.size)
            .filter(|index| self.field(*index, Self::INFLIGHT) & 0xff != 0)
            .map(|index| (self.area.load_u64(place(index) + Self::COUNTER), index))
            .collect();
        again.sort_unstable();
        self.counter = again.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let entries: u32 = again.iter().map(|(_, index)| u32::from(self.field(*index, Self::NUM))).sum();
        let entries =
            u16::try_from(entries).ok().filter(|entries| *entries <= self.size).ok_or(RingError::Inflight)?;
        Ok((again.into_iter().map(|(_, index)| index).collect(), entries))
    }

    /// The next descriptor of a chain; `first` begins one.
    pub(super) fn takes(&mut self, descriptor: &Descriptor, first: bool) -> Result<(), RingError> {
        let at = self.free_head;
        if at >= self.size {
            return Err(RingError::Inflight);
        }
        if first {
            self.set(self.head, Self::NUM, 0);
            self.area.store_u64(place(self.head) + Self::COUNTER, self.counter);
            self.counter = self.counter.wrapping_add(1);
        }
        self.set(at, Self::ID, descriptor.id());
        self.set(at, Self::FLAGS, descriptor.flags());
        self.area.store_u32(place(at) + Self::LEN, descriptor.len());
        self.area.store_u64(place(at) + Self::ADDR, descriptor.addr().0);
        self.set(self.head, Self::NUM, self.field(self.head, Self::NUM).wrapping_add(1));
        self.set(self.head, Self::LAST, at);
        self.free_head = self.field(at, Self::NEXT);
        Ok(())
    }

    /// The chain is taken whole; returns where it is noted.
    pub(super) fn took(&mut self) -> u16 {
        let head = self.head;
        self.set(head, Self::INFLIGHT, 1);
        self.head = self.free_head;
        self.area.store_u16(Self::FREE_HEAD, self.free_head, Ordering::Release);
        self.area.store_u16(Self::OLD_FREE_HEAD, self.free_head, Ordering::Release);
        head
    }

    /// The chain that is noted at `head` will be given back next; then the ring goes on at `next`.
    pub(super) fn gives_back(&mut self, head: u16, next: Position) {
        let last = self.field(head, Self::LAST);
        if last < self.size {
            self.set(last, Self::NEXT, self.free_head);
        }
        self.free_head = head;
        self.used = next;
        self.write_state();
    }

    /// It is given back.
    pub(super) fn gave_back(&mut self, head: u16) {
        self.set(head, Self::INFLIGHT, 0);
        self.head = self.free_head;
        self.write_old_state();
    }

    /// Calls `each` with the descriptors noted at `head`, and returns their buffer ID and number.
    pub(super) fn read(
        &self,
        head: u16,
        mut each: impl FnMut(&Descriptor) -> Result<(), RingError>,
    ) -> Result<(u16, u16), RingError> {
        let entries = self.field(head, Self::NUM);
        if entries == 0 || entries > self.size {
            return Err(RingError::Inflight);
        }
        let (mut at, mut id) = (head, 0);
        for _ in 0..entries {
            if at >= self.size {
                return Err(RingError::Inflight);
            }
            id = self.field(at, Self::ID);
            let (addr, flags) = (self.area.load_u64(place(at) + Self::ADDR), self.field(at, Self::FLAGS));
            let word = self.area.load_u64(place(at) + Self::ID);
            let len = u32::try_from(word >> 32).unwrap_or(u32::MAX);
            each(&Descriptor::new(addr, len, id, flags))?;
            at = self.field(at, Self::NEXT);
        }
        Ok((id, entries))
    }

    fn write_state(&self) {
        self.area.store_u16(Self::FREE_HEAD, self.free_head, Ordering::Relaxed);
        self.area.store_u16(Self::USED_IDX, self.used.index, Ordering::Relaxed);
        let old = self.area.load_u16(Self::WRAPS, Ordering::Relaxed) & 0xff00;
        self.area.store_u16(Self::WRAPS, old | u16::from(self.used.wrap), Ordering::Release);
    }

    fn write_old_state(&self) {
        self.area.store_u16(Self::OLD_FREE_HEAD, self.free_head, Ordering::Relaxed);
        self.area.store_u16(Self::OLD_USED_IDX, self.used.index, Ordering::Relaxed);
        let wrap = u16::from(self.used.wrap);
        self.area.store_u16(Self::WRAPS, wrap | wrap << 8, Ordering::Release);
    }

    fn field(&self, index: u16, at: usize) -> u16 {
        self.area.load_u16(place(index.min(self.size - 1)) + at, Ordering::Relaxed)
    }

    fn set(&self, index: u16, at: usize, value: u16) {
        self.area.store_u16(place(index.min(self.size - 1)) + at, value, Ordering::Release);
    }
}

fn place(index: u16) -> usize {
    PACKED_HEADER + PACKED_ENTRY * usize::from(index)
}

#[cfg(test)]
impl InflightArea {
    /// Says of a chain that it is under way.
    pub(super) fn set_flag_for_test(&self, packed: bool, head: u16) {
        let at = if packed { place(head) } else { entry(head) };
        self.window.store_u16(at, 1, Ordering::Relaxed);
        if packed {
            // The step before: what was used is not committed.
            self.window.store_u16(PackedNotes::OLD_USED_IDX, 0, Ordering::Relaxed);
        } else {
            let used = self.window.load_u16(SplitNotes::USED_IDX, Ordering::Relaxed);
            self.window.store_u16(SplitNotes::USED_IDX, used.wrapping_sub(1), Ordering::Relaxed);
        }
    }

    /// Fills it with noise, but for a version that is right.
    pub(super) fn fill_for_test(&self, seed: u64) {
        let mut word = seed | 1;
        for at in (0..self.window.len()).step_by(8) {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let small = word & 0x0007_0007_0007_0007;
            self.window.store_u64(at, if word & 1 == 0 { small } else { word });
        }
        self.window.store_u16(VERSION_AT, VERSION, Ordering::Relaxed);
        self.window.store_u16(DESC_NUM_AT, self.entries, Ordering::Relaxed);
    }
}
