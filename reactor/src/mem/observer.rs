//! Who must know of an arena before a buffer of it is given out: devices that reach memory by mappings of their own.

use std::sync::{Arc, Weak};

use super::node::{ArenaInfo, arenas};

#[expect(
    clippy::disallowed_types,
    reason = "held by control threads only, while memory grows or a device comes"
)]
type Lock<T> = std::sync::Mutex<T>;

static OBSERVERS: Lock<Vec<Weak<dyn ArenaObserver>>> = Lock::new(Vec::new());

/// Told of each arena before any buffer of it is given out.
pub trait ArenaObserver: Send + Sync {
    /// There is another arena. Runs on a control thread and may block.
    fn arena_added(&self, arena: &ArenaInfo);
}

/// Tells `observer` of all arenas that there are, and from now on of each further one, until it is dropped. For control
/// threads: it may block as long as the observer does.
pub fn observe(observer: &Arc<dyn ArenaObserver>) {
    let mut observers = OBSERVERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for arena in arenas() {
        observer.arena_added(&arena);
    }
    observers.retain(|other| other.strong_count() > 0);
    observers.push(Arc::downgrade(observer));
}

/// Tells all observers of the arenas that `map` is about to add, then adds them by `add`. No observer comes between.
pub(super) fn announce(new: &[ArenaInfo], add: impl FnOnce()) {
    let observers = OBSERVERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for observer in observers.iter().filter_map(Weak::upgrade) {
        new.iter().for_each(|arena| observer.arena_added(arena));
    }
    add();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Backing, Buf};

    #[derive(Default)]
    struct Seen(Lock<Vec<usize>>);

    impl ArenaObserver for Seen {
        fn arena_added(&self, arena: &ArenaInfo) {
            self.0.lock().unwrap().push(arena.base);
        }
    }

    #[test]
    fn an_observer_hears_of_the_arenas_that_there_are_and_of_those_that_come() {
        drop(Buf::alloc(4096));
        let seen = Arc::new(Seen::default());
        let observer: Arc<dyn ArenaObserver> = Arc::<Seen>::clone(&seen);
        observe(&observer);
        assert_eq!(seen.0.lock().unwrap().len(), arenas().len());
        let new = ArenaInfo { base: 1 << 40, len: 1, backing: Backing::Ordinary, node: 0 };
        let mut added = false;
        announce(&[new], || added = true);
        assert!(added && seen.0.lock().unwrap().contains(&(1 << 40)));
    }
}
