//! The split layout (VIRTIO 2.7).
//!
//! ```text
//!   descriptors: addr len flags next │ available: flags idx ring[size] used_event │ used: flags idx ring[size] avail_event
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use penstock_spec::virtio::queue::{DESCRIPTOR_BYTES, split};

use super::inflight::SplitNotes;
use super::{
    Chain, Head, RingAddresses, RingError, RingSetup, event_reached, read_indirect, split_descriptor, window,
};
use crate::memory::{DirtyLog, GuestMap, Held, Window};

/// A virtqueue of the split layout.
#[derive(Debug)]
pub(crate) struct SplitRing {
    size: u16,
    desc: Window,
    avail: Window,
    used: Window,
    addresses: RingAddresses,
    /// Entries of the available ring taken so far.
    next_avail: u16,
    /// The available index when it was looked at last.
    seen_avail: u16,
    next_used: u16,
    /// The used index when the driver was last told or found not to want it.
    signalled: Option<u16>,
    event_idx: bool,
    indirect: bool,
    notes: Option<SplitNotes>,
    /// Heads that were under way when the process before this one ended.
    again: VecDeque<u16>,
}

impl SplitRing {
    pub(super) fn new(map: &GuestMap, setup: RingSetup) -> Result<Self, RingError> {
        let RingSetup { size, addresses, .. } = setup;
        let [desc, avail, used] = windows(map, size, addresses)?;
        // The base is 16 bits; further ones are the packed layout's.
        let base = u16::try_from(setup.base & 0xffff).unwrap_or(0);
        let next_used = used.load_u16(split::IDX_AT, Ordering::Acquire);
        let mut ring = Self {
            size,
            desc,
            avail,
            used,
            addresses,
            next_avail: base,
            seen_avail: base,
            next_used,
            signalled: None,
            event_idx: setup.event_idx,
            indirect: setup.indirect,
            notes: None,
            again: VecDeque::new(),
        };
        if let Some(area) = setup.inflight {
            let (notes, again) = SplitNotes::recover(area, size, next_used)?;
            if let Some(again) = again {
                // Nothing but what is noted can have been taken and not given back.
                ring.next_avail = next_used.wrapping_add(u16::try_from(again.len()).unwrap_or(0));
                ring.seen_avail = ring.next_avail;
                ring.again = again;
            }
            ring.notes = Some(notes);
        }
        Ok(ring)
    }

    #[inline]
    pub(super) fn has_work(&mut self) -> bool {
        if !self.again.is_empty() || self.seen_avail != self.next_avail {
            return true;
        }
        self.seen_avail = self.avail.load_u16(split::IDX_AT, Ordering::Acquire);
        self.seen_avail != self.next_avail
    }

    #[inline]
    pub(super) fn pop(&mut self, held: &Held, chain: &mut Chain) -> Result<bool, RingError> {
        if !self.has_work() {
            return Ok(false);
        }
        let head = match self.again.pop_front() {
            Some(head) => head,
            None => self.next_head()?,
        };
        self.follow(held, chain, head)?;
        chain.head = Head { id: head, entries: 1, noted_at: head };
        Ok(true)
    }

    fn next_head(&mut self) -> Result<u16, RingError> {
        if self.seen_avail.wrapping_sub(self.next_avail) > self.size {
            return Err(RingError::AvailIndex {
                from: self.next_avail,
                to: self.seen_avail,
                size: self.size,
            });
        }
        let at = split::RING_AT + split::AVAIL_BYTES * usize::from(self.next_avail % self.size);
        let head = self.avail.load_u16(at, Ordering::Relaxed);
        if head >= self.size {
            return Err(RingError::Descriptor { index: head, size: u32::from(self.size) });
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(notes) = &mut self.notes {
            notes.took(head);
        }
        Ok(head)
    }

    fn follow(&self, held: &Held, chain: &mut Chain, head: u16) -> Result<(), RingError> {
        chain.segments.clear();
        let mut index = head;
        for _ in 0..self.size {
            let descriptor =
                split_descriptor(&self.desc.load_descriptor(DESCRIPTOR_BYTES * usize::from(index)));
            if descriptor.refers_to_indirect_table() {
                // A table ends a chain (2.7.5.3.1).
                if !self.indirect || descriptor.has_next() {
                    return Err(RingError::Indirect { addr: descriptor.addr().0, len: descriptor.len() });
                }
                return read_indirect(held, chain, descriptor.addr().0, descriptor.len(), true);
            }
            chain.push(descriptor.addr().0, descriptor.len(), descriptor.is_write_only())?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
            if index >= self.size {
                return Err(RingError::Descriptor { index, size: u32::from(self.size) });
            }
        }
        Err(RingError::Loop { max: usize::from(self.size) })
    }

    #[inline]
    pub(super) fn push(&mut self, head: Head, written: u32) {
        let at = split::RING_AT + split::USED_BYTES * usize::from(self.next_used % self.size);
        self.used.store_u32(at, u32::from(head.id));
        self.used.store_u32(at + 4, written);
        if let Some(notes) = &mut self.notes {
            notes.gives_back(head.id);
        }
        self.next_used = self.next_used.wrapping_add(1);
        self.used.store_u16(split::IDX_AT, self.next_used, Ordering::Release);
        if let Some(notes) = &mut self.notes {
            notes.gave_back(head.id, self.next_used);
        }
    }

    #[inline]
    pub(super) fn wants_signal(&mut self) -> bool {
        let before = self.signalled.replace(self.next_used);
        if before == Some(self.next_used) {
            return false;
        }
        // The driver writes its wish, then looks at the index; here it is the other way round.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.avail.load_u16(0, Ordering::Relaxed) & split::NO_INTERRUPT == 0;
        }
        let event = self.avail.load_u16(avail_bytes(self.size), Ordering::Relaxed);
        before.is_none_or(|before| event_reached(event, self.next_used, before))
    }

    pub(super) fn set_kicks(&mut self, wanted: bool) -> bool {
        if self.event_idx {
            // Not wanted: an event just behind is not reached for 65535 entries.
            let event = if wanted { self.next_avail } else { self.next_avail.wrapping_sub(1) };
            self.used.store_u16(used_bytes(self.size), event, Ordering::Relaxed);
        } else {
            let flags = if wanted { 0 } else { split::NO_NOTIFY };
            self.used.store_u16(0, flags, Ordering::Relaxed);
        }
        if wanted {
            fence(Ordering::SeqCst);
        }
        self.has_work()
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.next_avail)
    }

    pub(super) fn move_to(&mut self, map: &GuestMap) -> bool {
        let Ok([desc, avail, used]) = windows(map, self.size, self.addresses) else { return false };
        (self.desc, self.avail, self.used) = (desc, avail, used);
        true
    }

    pub(super) fn set_log(&mut self, log: Option<&Arc<DirtyLog>>) {
        self.used.set_log(log.map(Arc::clone));
    }
}

/// Length of the available ring up to its event.
fn avail_bytes(size: u16) -> usize {
    split::RING_AT + split::AVAIL_BYTES * usize::from(size)
}

/// Length of the used ring up to its event.
fn used_bytes(size: u16) -> usize {
    split::RING_AT + split::USED_BYTES * usize::from(size)
}

fn windows(map: &GuestMap, size: u16, addresses: RingAddresses) -> Result<[Window; 3], RingError> {
    let table = DESCRIPTOR_BYTES * usize::from(size);
    // With the events, which are there whether they are used or not (2.7.6, 2.7.8).
    Ok([
        window(map, addresses.desc, table, DESCRIPTOR_BYTES)?,
        window(map, addresses.avail, avail_bytes(size) + 2, 2)?,
        window(map, addresses.used, used_bytes(size) + 2, 4)?,
    ])
}
