//! A driver of either layout, written from the standard's driver sections: what the rings are tested against.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use penstock_spec::virtio::queue::{DESCRIPTOR_BYTES, descriptor as flag, packed, split};

use super::{RingAddresses, RingSetup, Segment, event_reached};
use crate::memory::{GuestMap, Region, Window};

/// Guest address of the first byte.
pub(crate) const GPA: u64 = 0x1_0000;
/// Where the frontend has that byte.
pub(crate) const USER: u64 = 0x7000_0000_0000;
pub(crate) const MEMORY_BYTES: u64 = 16 << 20;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;
const TABLES: u64 = 0x2_0000;
const TABLE_BYTES: u64 = 0x400;
/// Where buffers may be.
pub(crate) const DATA: u64 = 0x20_0000;

/// A guest's driver for one queue.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) map: Arc<GuestMap>,
    memory: Window,
    packed: bool,
    size: u16,
    event_idx: bool,
    /// Descriptors that are free (split).
    free: Vec<u16>,
    /// Of each ID in use: its descriptors (split), or how many (packed).
    held: Vec<Vec<u16>>,
    next_avail: u16,
    avail_wrap: bool,
    next_used: u16,
    used_wrap: bool,
    /// Entries offered since the driver last looked whether to kick.
    added: u16,
    room: u16,
}

impl Driver {
    pub(crate) fn new(packed: bool, size: u16, event_idx: bool) -> Self {
        let region = Region::private(GPA, MEMORY_BYTES, USER).unwrap();
        let map = Arc::new(GuestMap::new(vec![region]).unwrap());
        let memory = map.window(GPA, usize::try_from(MEMORY_BYTES).unwrap(), 4096).unwrap();
        Self {
            map,
            memory,
            packed,
            size,
            event_idx,
            free: (0..size).rev().collect(),
            held: vec![Vec::new(); usize::from(size)],
            next_avail: 0,
            avail_wrap: true,
            next_used: 0,
            used_wrap: true,
            added: 0,
            room: size,
        }
    }

    pub(crate) fn setup(&self) -> RingSetup {
        let addresses = RingAddresses { desc: USER, avail: USER + AVAIL, used: USER + USED };
        let wrap = u32::from(packed::WRAP);
        RingSetup {
            packed: self.packed,
            size: self.size,
            addresses,
            base: if self.packed { wrap | wrap << 16 } else { 0 },
            event_idx: self.event_idx,
            indirect: true,
            inflight: None,
        }
    }

    /// The driver's memory, from [`GPA`] on.
    pub(crate) fn memory(&self) -> &Window {
        &self.memory
    }

    /// Offers a chain; `None` where it does not fit just now. Returns its ID.
    pub(crate) fn offer(&mut self, segments: &[Segment], indirect: bool) -> Option<u16> {
        let entries = if indirect { 1 } else { u16::try_from(segments.len()).unwrap() };
        if entries > self.room {
            return None;
        }
        self.room -= entries;
        self.added += if self.packed { entries } else { 1 };
        if self.packed {
            Some(self.offer_packed(segments, indirect))
        } else {
            Some(self.offer_split(segments, indirect))
        }
    }

    fn write_descriptor(&self, at: u64, segment: Segment, flags: u16, next: u16, packed: bool) {
        let at = usize::try_from(at).unwrap();
        self.memory.store_u64(at, segment.addr);
        self.memory.store_u32(at + 8, segment.len);
        let (low, high) = if packed { (next, flags) } else { (flags, next) };
        self.memory.store_u16(at + 12, low, Ordering::Relaxed);
        self.memory.store_u16(at + 14, high, Ordering::Release);
    }

    fn write_table(&self, id: u16, segments: &[Segment]) -> Segment {
        let table = TABLES + TABLE_BYTES * u64::from(id);
        for (index, segment) in segments.iter().enumerate() {
            let write = if segment.writable { flag::WRITE } else { 0 };
            let more = index + 1 < segments.len() && !self.packed;
            let next = if more { flag::NEXT } else { 0 };
            let successor = if more { u16::try_from(index + 1).unwrap() } else { 0 };
            let at = table + 16 * u64::try_from(index).unwrap();
            self.write_descriptor(at, *segment, write | next, successor, self.packed);
        }
        let len = 16 * u32::try_from(segments.len()).unwrap();
        Segment { addr: GPA + table, len, writable: false }
    }

    fn offer_split(&mut self, segments: &[Segment], indirect: bool) -> u16 {
        let count = if indirect { 1 } else { segments.len() };
        let used: Vec<u16> = (0..count).map(|_| self.free.pop().unwrap()).collect();
        let head = used[0];
        if indirect {
            let table = self.write_table(head, segments);
            self.write_descriptor(16 * u64::from(head), table, flag::INDIRECT, 0, false);
        } else {
            for (place, segment) in segments.iter().enumerate() {
                let write = if segment.writable { flag::WRITE } else { 0 };
                let next = used.get(place + 1).copied();
                let flags = write | if next.is_some() { flag::NEXT } else { 0 };
                self.write_descriptor(16 * u64::from(used[place]), *segment, flags, next.unwrap_or(0), false);
            }
        }
        self.held[usize::from(head)] = used;
        let at = usize::try_from(AVAIL).unwrap() + 4 + 2 * usize::from(self.next_avail % self.size);
        self.memory.store_u16(at, head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
        let idx = usize::try_from(AVAIL).unwrap() + split::IDX_AT;
        self.memory.store_u16(idx, self.next_avail, Ordering::Release);
        head
    }

    fn offer_packed(&mut self, segments: &[Segment], indirect: bool) -> u16 {
        let id = self.free.pop().unwrap();
        let table;
        let entries = if indirect {
            table = [self.write_table(id, segments)];
            &table[..]
        } else {
            segments
        };
        let first = self.next_avail;
        let lap = |wrap: bool| if wrap { flag::AVAIL } else { flag::USED };
        let mut first_flags = 0;
        for (place, segment) in entries.iter().enumerate() {
            let write = if segment.writable { flag::WRITE } else { 0 };
            let next = if place + 1 < entries.len() { flag::NEXT } else { 0 };
            let kind = if indirect { flag::INDIRECT } else { 0 };
            let flags = write | next | kind | lap(self.avail_wrap);
            // The first one's flags are written last: until then, nothing is there.
            let now = if place == 0 { flags ^ flag::AVAIL ^ flag::USED } else { flags };
            if place == 0 {
                first_flags = flags;
            }
            self.write_descriptor(16 * u64::from(self.next_avail), *segment, now, id, true);
            self.next_avail += 1;
            if self.next_avail == self.size {
                (self.next_avail, self.avail_wrap) = (0, !self.avail_wrap);
            }
        }
        let at = DESCRIPTOR_BYTES * usize::from(first) + packed::FLAGS_AT;
        self.memory.store_u16(at, first_flags, Ordering::Release);
        self.held[usize::from(id)] = vec![0; entries.len()];
        id
    }

    /// Takes a used chain back: its ID and how much was written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let (id, len) = if self.packed { self.take_packed()? } else { self.take_split()? };
        let held = std::mem::take(&mut self.held[usize::from(id)]);
        assert!(!held.is_empty(), "{id} comes back though it is not out");
        self.room += u16::try_from(held.len()).unwrap();
        if self.packed {
            self.free.push(id)
        } else {
            self.free.extend(held)
        }
        Some((id, len))
    }

    fn take_split(&mut self) -> Option<(u16, u32)> {
        let used = usize::try_from(USED).unwrap();
        if self.memory.load_u16(used + split::IDX_AT, Ordering::Acquire) == self.next_used {
            return None;
        }
        let word = self.memory_u32s(used + 4 + 8 * usize::from(self.next_used % self.size));
        self.next_used = self.next_used.wrapping_add(1);
        Some((u16::try_from(word.0).unwrap(), word.1))
    }

    fn memory_u32s(&self, at: usize) -> (u32, u32) {
        let half = |at: usize| {
            u32::from(self.memory.load_u16(at, Ordering::Relaxed))
                | u32::from(self.memory.load_u16(at + 2, Ordering::Relaxed)) << 16
        };
        (half(at), half(at + 4))
    }

    fn take_packed(&mut self) -> Option<(u16, u32)> {
        let at = DESCRIPTOR_BYTES * usize::from(self.next_used);
        let flags = self.memory.load_u16(at + packed::FLAGS_AT, Ordering::Acquire);
        let bits = (flags & flag::AVAIL != 0, flags & flag::USED != 0);
        if bits != (self.used_wrap, self.used_wrap) {
            return None;
        }
        let id = self.memory.load_u16(at + packed::ID_AT, Ordering::Relaxed);
        let len = self.memory_u32s(at + packed::LEN_AT).0;
        self.next_used += u16::try_from(self.held[usize::from(id)].len()).unwrap();
        if self.next_used >= self.size {
            (self.next_used, self.used_wrap) = (self.next_used - self.size, !self.used_wrap);
        }
        Some((id, len))
    }

    /// Whether the device is to be told of what was offered since the last call.
    pub(crate) fn wants_kick(&mut self) -> bool {
        let old = self.next_avail.wrapping_sub(std::mem::take(&mut self.added));
        if !self.packed {
            let used = usize::try_from(USED).unwrap();
            if !self.event_idx {
                return self.memory.load_u16(used, Ordering::Relaxed) & split::NO_NOTIFY == 0;
            }
            let at = used + 4 + 8 * usize::from(self.size);
            return event_reached(self.memory.load_u16(at, Ordering::Relaxed), self.next_avail, old);
        }
        let device = usize::try_from(USED).unwrap();
        match self.memory.load_u16(device + 2, Ordering::Relaxed) & 3 {
            packed::DISABLE => false,
            packed::DESC => {
                let word = self.memory.load_u16(device, Ordering::Relaxed);
                let wrap = word & packed::WRAP != 0;
                let event = word & !packed::WRAP;
                let event = if wrap == self.avail_wrap { event } else { event.wrapping_sub(self.size) };
                event_reached(event, self.next_avail, old)
            }
            _ => true,
        }
    }

    /// Asks to be told of the next used chain; or of none.
    pub(crate) fn set_interrupts(&self, wanted: bool) {
        let avail = usize::try_from(AVAIL).unwrap();
        if !self.packed {
            if self.event_idx {
                let event = if wanted { self.next_used } else { self.next_used.wrapping_sub(1) };
                self.memory.store_u16(avail + 4 + 2 * usize::from(self.size), event, Ordering::SeqCst);
            } else {
                self.memory.store_u16(avail, u16::from(!wanted), Ordering::SeqCst);
            }
            return;
        }
        let wrap = if self.used_wrap { packed::WRAP } else { 0 };
        self.memory.store_u16(avail, self.next_used | wrap, Ordering::SeqCst);
        let flags = match (wanted, self.event_idx) {
            (false, _) => packed::DISABLE,
            (true, false) => packed::ENABLE,
            (true, true) => packed::DESC,
        };
        self.memory.store_u16(avail + 2, flags, Ordering::SeqCst);
    }
}
