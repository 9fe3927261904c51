//! Nodes in memory: a bounded number, the least used give way (CLOCK).

use std::cell::Cell;

use penstock_reactor::hash::FixedMap;

use super::{NodeRef, Page};
use crate::id::{EgroupId, ExtentNo};

#[derive(Debug)]
struct Slot {
    key: (EgroupId, ExtentNo),
    page: Page,
    used: Cell<bool>,
}

/// Stored nodes in memory.
#[derive(Debug)]
pub struct NodeCache {
    places: FixedMap<(EgroupId, ExtentNo), usize>,
    slots: Vec<Slot>,
    hand: usize,
    max: usize,
    /// Lookups that found their node.
    pub hits: Cell<u64>,
    /// Lookups that did not.
    pub misses: Cell<u64>,
}

/// Nodes that a cache has room for at least: a path of every level, several times.
const NODES_MIN: usize = 64;

impl NodeCache {
    /// A cache of at most `max` nodes (of 4 KiB), at least `NODES_MIN`.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let max = max.max(NODES_MIN);
        Self {
            places: FixedMap::default(),
            slots: Vec::new(),
            hand: 0,
            max,
            hits: Cell::new(0),
            misses: Cell::new(0),
        }
    }

    /// A node, if it is there.
    #[must_use]
    pub fn get(&self, node: &NodeRef) -> Option<&Page> {
        let slot = self.places.get(&(node.egroup, node.extent)).and_then(|place| self.slots.get(*place));
        let counter = if slot.is_some() { &self.hits } else { &self.misses };
        counter.set(counter.get() + 1);
        slot.inspect(|slot| slot.used.set(true)).map(|slot| &slot.page)
    }

    /// Takes a node in; another gives way where there is no room.
    pub fn insert(&mut self, node: &NodeRef, page: Page) {
        let key = (node.egroup, node.extent);
        let new = Slot { key, page, used: Cell::new(true) };
        if let Some(slot) = self.places.get(&key).and_then(|place| self.slots.get_mut(*place)) {
            *slot = new;
            return;
        }
        if self.slots.len() < self.max {
            self.places.insert(key, self.slots.len());
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
            self.places.remove(&slot.key);
            self.places.insert(key, place);
            *slot = new;
            return;
        }
    }

    /// How many nodes are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}
