//! Who must know of an arena before a buffer of it is given out: devices that reach memory by mappings of their own.

use std::any::Any;
use std::fmt;
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, MutexGuard, OnceLock, Weak};

use super::node::{ArenaInfo, arenas};

#[expect(
    clippy::disallowed_types,
    reason = "held by control threads only, while memory grows or a device comes"
)]
type Lock<T> = std::sync::Mutex<T>;

static OBSERVERS: Lock<Observers> = Lock::new(Observers { all: Vec::new(), regions: Vec::new() });

struct Observers {
    all: Vec<Weak<dyn ArenaObserver>>,
    /// What [`share`] has told of, as long as it holds.
    regions: Vec<Region>,
}

/// Memory that is not from the pools and that buffers are made of for a long time: a guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First address in this process.
    pub base: usize,
    /// Length in bytes.
    pub len: usize,
}

/// Told of each arena before any buffer of it is given out.
pub trait ArenaObserver: Send + Sync {
    /// There is another arena. Runs on a control thread and may block.
    fn arena_added(&self, arena: &ArenaInfo);

    /// There is memory of others that buffers may be made of. Runs on a control thread and may block.
    fn region_added(&self, _region: Region) {}

    /// That memory goes: no buffer of it is left. Runs on a control thread and may block.
    fn region_removed(&self, _region: Region) {}
}

/// Keeps devices able to reach a [`Region`]. Dropped after the last buffer of it, on any thread: a thread of its own tells
/// the observers, and lets go of the memory when they are done.
pub struct SharedRegion {
    region: Region,
    keep: Option<Keep>,
}

/// What keeps a region's memory where it is.
type Keep = Box<dyn Any + Send + Sync>;

impl fmt::Debug for SharedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRegion").field("region", &self.region).finish_non_exhaustive()
    }
}

/// Tells all observers, those that are there and those that come, of memory that is not from the pools, which `keep` keeps
/// mapped. For control threads: it may block as long as the observers do (to pin a guest's memory).
#[must_use]
pub fn share(region: Region, keep: Keep) -> SharedRegion {
    let mut observers = lock();
    observers.regions.push(region);
    for observer in observers.all.iter().filter_map(Weak::upgrade) {
        observer.region_added(region);
    }
    SharedRegion { region, keep: Some(keep) }
}

impl Drop for SharedRegion {
    fn drop(&mut self) {
        let Some(keep) = self.keep.take() else { return };
        // Observers may block, and this may be a reactor. Where there is no thread it is done here.
        if let Err(SendError((region, keep))) = unsharer().send((self.region, keep)) {
            unshare(region, keep);
        }
    }
}

fn unshare(region: Region, keep: Keep) {
    let mut observers = lock();
    if let Some(at) = observers.regions.iter().position(|other| *other == region) {
        observers.regions.swap_remove(at);
    }
    for observer in observers.all.iter().filter_map(Weak::upgrade) {
        observer.region_removed(region);
    }
    drop(observers);
    drop(keep);
}

/// The way to the thread that ends shared regions.
fn unsharer() -> &'static Sender<(Region, Keep)> {
    static UNSHARER: OnceLock<Sender<(Region, Keep)>> = OnceLock::new();
    UNSHARER.get_or_init(|| {
        let (sender, regions) = channel();
        let run = move || regions.into_iter().for_each(|(region, keep)| unshare(region, keep));
        // Without the thread its end of the channel is gone, and so senders know.
        std::thread::Builder::new().name("mem-unshare".to_owned()).spawn(run).ok();
        sender
    })
}

fn lock() -> MutexGuard<'static, Observers> {
    OBSERVERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Tells `observer` of all arenas and shared regions that there are, and from now on of each further one, until it is
/// dropped. For control threads: it may block as long as the observer does.
pub fn observe(observer: &Arc<dyn ArenaObserver>) {
    let mut observers = lock();
    for arena in arenas() {
        observer.arena_added(&arena);
    }
    observers.regions.iter().for_each(|region| observer.region_added(*region));
    observers.all.retain(|other| other.strong_count() > 0);
    observers.all.push(Arc::downgrade(observer));
}

/// Tells all observers of the arenas that `map` is about to add, then adds them by `add`. No observer comes between.
pub(super) fn announce(new: &[ArenaInfo], add: impl FnOnce()) {
    let observers = lock();
    for observer in observers.all.iter().filter_map(Weak::upgrade) {
        new.iter().for_each(|arena| observer.arena_added(arena));
    }
    add();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Backing, Buf};

    #[derive(Default)]
    struct Seen(Lock<Vec<usize>>, Lock<Vec<Region>>);

    impl ArenaObserver for Seen {
        fn arena_added(&self, arena: &ArenaInfo) {
            self.0.lock().unwrap().push(arena.base);
        }

        fn region_added(&self, region: Region) {
            self.1.lock().unwrap().push(region);
        }

        fn region_removed(&self, region: Region) {
            self.1.lock().unwrap().retain(|other| *other != region);
        }
    }

    fn until(done: impl Fn() -> bool) {
        while !done() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_observer_hears_of_shared_memory_that_is_there_that_comes_and_that_goes() {
        let [one, other] = [1 << 41, 1 << 42].map(|base| Region { base, len: 4096 });
        let before = share(one, Box::new(()));
        let seen = Arc::new(Seen::default());
        let observer: Arc<dyn ArenaObserver> = Arc::<Seen>::clone(&seen);
        observe(&observer);
        let after = share(other, Box::new(()));
        assert_eq!(*seen.1.lock().unwrap(), [one, other]);
        drop(before);
        until(|| *seen.1.lock().unwrap() == [other]);
        drop(after);
        until(|| seen.1.lock().unwrap().is_empty());
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
