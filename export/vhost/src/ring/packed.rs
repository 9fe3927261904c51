//! The packed layout (VIRTIO 2.8): one ring of descriptors that both sides write.
//!
//! ```text
//!   descriptors: addr len id flags │ driver event suppression: off_wrap flags │ device event suppression: off_wrap flags
//! ```
//!
//! A descriptor is available when its AVAIL bit is the lap's and its USED bit is not, and used when both are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use penstock_spec::virtio::queue::{DESCRIPTOR_BYTES, descriptor as flag, packed};
use virtio_queue::desc::packed::Descriptor;

use super::inflight::PackedNotes;
use super::{
    Chain, Head, RingAddresses, RingError, RingSetup, event_reached, packed_descriptor, read_indirect, window,
};
use crate::memory::{DirtyLog, GuestMap, Held, Window};

/// A place in the ring, and the lap's bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl Position {
    /// As `SET_VRING_BASE` writes it, in 16 bits.
    fn from_bits(bits: u16) -> Self {
        Self { index: bits & !packed::WRAP, wrap: bits & packed::WRAP != 0 }
    }

    fn bits(self) -> u16 {
        self.index | if self.wrap { packed::WRAP } else { 0 }
    }

    /// So many entries further on.
    pub(super) fn plus(self, entries: u16, size: u16) -> Self {
        let sum = u32::from(self.index) + u32::from(entries);
        let (laps, index) = (sum / u32::from(size), sum % u32::from(size));
        Self { index: u16::try_from(index).unwrap_or(0), wrap: self.wrap ^ (laps % 2 == 1) }
    }

    /// The flags of a descriptor that was used here.
    pub(super) fn used_flags(self) -> u16 {
        if self.wrap { flag::AVAIL | flag::USED } else { 0 }
    }

    fn is_available(self, flags: u16) -> bool {
        let (avail, used) = (flags & flag::AVAIL != 0, flags & flag::USED != 0);
        avail == self.wrap && used != self.wrap
    }
}

/// A virtqueue of the packed layout.
#[derive(Debug)]
pub(crate) struct PackedRing {
    size: u16,
    desc: Window,
    driver: Window,
    device: Window,
    addresses: RingAddresses,
    avail: Position,
    used: Position,
    /// Entries between the two.
    taken: u16,
    /// Where it stood when the driver was last told or found not to want it.
    signalled: Option<Position>,
    /// Entries given back since.
    untold: u32,
    event_idx: bool,
    indirect: bool,
    notes: Option<PackedNotes>,
    /// Heads in the inflight region that were under way when the process before this one ended.
    again: VecDeque<u16>,
}

impl PackedRing {
    pub(super) fn new(map: &GuestMap, setup: RingSetup) -> Result<Self, RingError> {
        let RingSetup { size, addresses, base, .. } = setup;
        let [desc, driver, device] = windows(map, size, addresses)?;
        let half = |shift: u32| Position::from_bits(u16::try_from(base >> shift & 0xffff).unwrap_or(0));
        let (mut avail, mut used, mut again) = (half(0), half(16), VecDeque::new());
        if avail.index >= size || used.index >= size {
            return Err(RingError::Descriptor { index: avail.index.max(used.index), size: u32::from(size) });
        }
        let (mut notes, mut taken) = (None, 0);
        if let Some(area) = setup.inflight {
            let found = PackedNotes::recover(area, size, used, |at| flags_of(&desc, at))?;
            if let Some(noted) = found.again {
                again = noted;
                used = found.used;
                avail = used.plus(found.entries, size);
                taken = found.entries;
            }
            notes = Some(found.notes);
        }
        let (event_idx, indirect) = (setup.event_idx, setup.indirect);
        let signalled = None;
        Ok(Self {
            size,
            desc,
            driver,
            device,
            addresses,
            avail,
            used,
            taken,
            signalled,
            untold: 0,
            event_idx,
            indirect,
            notes,
            again,
        })
    }

    #[inline]
    pub(super) fn has_work(&mut self) -> bool {
        !self.again.is_empty() || self.avail.is_available(flags_of(&self.desc, self.avail.index))
    }

    #[inline]
    pub(super) fn pop(&mut self, held: &Held, chain: &mut Chain) -> Result<bool, RingError> {
        chain.segments.clear();
        if let (Some(noted_at), Some(notes)) = (self.again.pop_front(), &self.notes) {
            let (id, entries) = notes.read(noted_at, |descriptor| self.add(held, chain, descriptor))?;
            chain.head = Head { id, entries, noted_at };
            return Ok(true);
        }
        if !self.has_work() {
            return Ok(false);
        }
        let mut at = self.avail;
        let mut entries = 0;
        loop {
            let raw = self.desc.load_descriptor(DESCRIPTOR_BYTES * usize::from(at.index));
            let descriptor = packed_descriptor(&raw);
            self.add(held, chain, &descriptor)?;
            at = at.plus(1, self.size);
            entries += 1;
            if self.taken + entries > self.size {
                return Err(RingError::TooMany { size: self.size });
            }
            if let Some(notes) = &mut self.notes {
                notes.takes(&descriptor, entries == 1)?;
            }
            if descriptor.has_next() {
                continue;
            }
            let noted_at = self.notes.as_mut().map_or(0, PackedNotes::took);
            chain.head = Head { id: descriptor.id(), entries, noted_at };
            self.avail = at;
            self.taken += entries;
            return Ok(true);
        }
    }

    fn add(&self, held: &Held, chain: &mut Chain, descriptor: &Descriptor) -> Result<(), RingError> {
        if !descriptor.refers_to_indirect_table() {
            return chain.push(descriptor.addr().0, descriptor.len(), descriptor.is_write_only());
        }
        if !self.indirect || descriptor.has_next() || !chain.segments.is_empty() {
            return Err(RingError::Indirect { addr: descriptor.addr().0, len: descriptor.len() });
        }
        read_indirect(held, chain, descriptor.addr().0, descriptor.len(), false)
    }

    #[inline]
    pub(super) fn push(&mut self, head: Head, written: u32) {
        let at = DESCRIPTOR_BYTES * usize::from(self.used.index);
        let next = self.used.plus(head.entries, self.size);
        if let Some(notes) = &mut self.notes {
            notes.gives_back(head.noted_at, next);
        }
        self.desc.store_u32(at + packed::LEN_AT, written);
        self.desc.store_u16(at + packed::ID_AT, head.id, Ordering::Relaxed);
        let write = if written > 0 { flag::WRITE } else { 0 };
        self.desc.store_u16(at + packed::FLAGS_AT, self.used.used_flags() | write, Ordering::Release);
        if let Some(notes) = &mut self.notes {
            notes.gave_back(head.noted_at);
        }
        self.used = next;
        self.untold = self.untold.saturating_add(u32::from(head.entries));
        self.taken = self.taken.saturating_sub(head.entries);
    }

    #[inline]
    pub(super) fn wants_signal(&mut self) -> bool {
        let before = self.signalled.replace(self.used);
        let untold = std::mem::take(&mut self.untold);
        if untold == 0 {
            return false;
        }
        fence(Ordering::SeqCst);
        match self.driver.load_u16(2, Ordering::Acquire) & 3 {
            packed::DISABLE => false,
            packed::DESC if self.event_idx => {
                // A whole lap passes every event.
                let Some(before) = before.filter(|_| untold < u32::from(self.size)) else { return true };
                let event = Position::from_bits(self.driver.load_u16(0, Ordering::Relaxed));
                // Positions of the lap before are below zero.
                let in_lap = |at: Position| {
                    if at.wrap == self.used.wrap { at.index } else { at.index.wrapping_sub(self.size) }
                };
                event_reached(in_lap(event), self.used.index, in_lap(before))
            }
            _ => true,
        }
    }

    pub(super) fn set_kicks(&mut self, wanted: bool) -> bool {
        if wanted && self.event_idx {
            self.device.store_u16(0, self.avail.bits(), Ordering::Relaxed);
        }
        let flags = match (wanted, self.event_idx) {
            (false, _) => packed::DISABLE,
            (true, false) => packed::ENABLE,
            (true, true) => packed::DESC,
        };
        self.device.store_u16(2, flags, Ordering::Release);
        if wanted {
            fence(Ordering::SeqCst);
        }
        self.has_work()
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.avail.bits()) | u32::from(self.used.bits()) << 16
    }

    pub(super) fn move_to(&mut self, map: &GuestMap) -> bool {
        let Ok([desc, driver, device]) = windows(map, self.size, self.addresses) else { return false };
        (self.desc, self.driver, self.device) = (desc, driver, device);
        true
    }

    pub(super) fn set_log(&mut self, log: Option<&Arc<DirtyLog>>) {
        self.desc.set_log(log.map(Arc::clone));
        self.device.set_log(log.map(Arc::clone));
    }
}

fn flags_of(desc: &Window, index: u16) -> u16 {
    desc.load_u16(DESCRIPTOR_BYTES * usize::from(index) + packed::FLAGS_AT, Ordering::Acquire)
}

fn windows(map: &GuestMap, size: u16, addresses: RingAddresses) -> Result<[Window; 3], RingError> {
    Ok([
        window(map, addresses.desc, DESCRIPTOR_BYTES * usize::from(size), DESCRIPTOR_BYTES)?,
        window(map, addresses.avail, packed::EVENT_BYTES, 4)?,
        window(map, addresses.used, packed::EVENT_BYTES, 4)?,
    ])
}
