//! A bounded map of what was read from disks: where there is no room, what was not used lately gives way (CLOCK).
//!
//! Every hit sets a mark; a hand goes round, takes marks away and evicts where it finds none. A hit writes one byte, so lookups
//! need no `&mut`.

use std::cell::Cell;
use std::hash::Hash;

use penstock_reactor::hash::FixedMap;

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    used: Cell<bool>,
}

/// Values in memory, by key.
#[derive(Debug)]
pub struct Clock<K, V> {
    places: FixedMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    max: usize,
    /// Lookups that found their value.
    pub hits: Cell<u64>,
    /// Lookups that did not.
    pub misses: Cell<u64>,
}

impl<K: Copy + Eq + Hash, V> Clock<K, V> {
    /// Room for `max` values, at least one.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let (hits, misses) = (Cell::new(0), Cell::new(0));
        Self { places: FixedMap::default(), slots: Vec::new(), hand: 0, max: max.max(1), hits, misses }
    }

    /// The value of `key`, if it is there.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let slot = self.places.get(key).and_then(|place| self.slots.get(*place));
        let counter = if slot.is_some() { &self.hits } else { &self.misses };
        counter.set(counter.get() + 1);
        slot.inspect(|slot| slot.used.set(true)).map(|slot| &slot.value)
    }

    /// Takes a value in, or a newer one; another gives way where there is no room.
    pub fn insert(&mut self, key: K, value: V) {
        let new = Slot { key, value, used: Cell::new(true) };
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

    /// How many values are there.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_lately_gives_way() {
        let mut clock = Clock::new(3);
        (0..3).for_each(|key| clock.insert(key, key * 10));
        // All marks are set: the first insert goes round once and takes place 0.
        clock.insert(3, 30);
        assert_eq!((clock.get(&0), clock.get(&1)), (None, Some(&10)));
        clock.insert(4, 40);
        assert_eq!((clock.get(&1), clock.get(&2), clock.get(&4)), (Some(&10), None, Some(&40)));
        clock.insert(4, 41);
        assert_eq!((clock.get(&4), clock.len()), (Some(&41), 3));
        assert_eq!((clock.hits.get(), clock.misses.get()), (4, 2));
    }
}
