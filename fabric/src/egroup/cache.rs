//! Header parts in memory: a bounded number, the least used give way (CLOCK).

use std::cell::Cell;
use std::rc::Rc;

use penstock_reactor::hash::FixedMap;
use penstock_reactor::mem::Buf;

use crate::format::egroup::HeaderPart;
use crate::id::{EgroupId, Generation};

/// A checked header part.
pub type Header = HeaderPart<Buf>;

#[derive(Debug)]
struct Slot {
    id: EgroupId,
    generation: Generation,
    header: Rc<Header>,
    used: Cell<bool>,
}

/// Header parts in memory.
#[derive(Debug)]
pub struct HeaderCache {
    places: FixedMap<EgroupId, usize>,
    slots: Vec<Slot>,
    hand: usize,
    max: usize,
}

impl HeaderCache {
    /// A cache of at most `max` header parts (of 4 to 40 KiB), at least 8.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { places: FixedMap::default(), slots: Vec::new(), hand: 0, max: max.max(8) }
    }

    /// The header part of that generation, if it is there.
    #[must_use]
    pub fn get(&self, id: EgroupId, generation: Generation) -> Option<Rc<Header>> {
        let slot = self.places.get(&id).and_then(|place| self.slots.get(*place))?;
        slot.used.set(true);
        (slot.generation == generation).then(|| Rc::clone(&slot.header))
    }

    /// Takes a header part in; another gives way where there is no room.
    pub fn insert(&mut self, id: EgroupId, generation: Generation, header: Rc<Header>) {
        let new = Slot { id, generation, header, used: Cell::new(true) };
        if let Some(slot) = self.places.get(&id).and_then(|place| self.slots.get_mut(*place)) {
            *slot = new;
            return;
        }
        if self.slots.len() < self.max {
            self.places.insert(id, self.slots.len());
            self.slots.push(new);
            return;
        }
        // Two rounds at most: the first takes every mark away.
        for _ in 0..=2 * self.slots.len() {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = self.slots.get_mut(place) else { continue };
            if slot.used.replace(false) {
                continue;
            }
            self.places.remove(&slot.id);
            self.places.insert(id, place);
            *slot = new;
            return;
        }
    }
}
