//! The bdevs of this node, by name, alias and UUID: who has them open, who claimed them, what happens to them.
//!
//! It lives on the control thread and is a handle, cheap to clone. Invariants: a name, an alias or a UUID leads to one
//! bdev; a claimed bdev has one writer; a bdev is dropped after its last descriptor; a filter is removed before the bdev
//! below it; a removal that has begun ends, whether somebody waits for it or not.

mod closing;

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use crate::bdev::{Bdev, Shared};
use crate::descriptor::{Descriptor, OpenMode};
use crate::error::BdevError;
use closing::Closings;
pub(crate) use closing::{Open, OpenFlag};

/// Bdevs of one node at most.
pub const BDEVS_MAX: usize = 1 << 16;

/// What happened to a bdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It can be opened from now on.
    Registered,
    /// Its length changed; [`Shared::blocks`] says to what.
    Resized,
    /// It is gone for I/O; whoever has it open closes it now.
    Removing,
    /// It was dropped, and its names are free again.
    Removed,
}

/// Something that happened to a bdev.
#[derive(Debug, Clone)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// To which bdev.
    pub bdev: Arc<Shared>,
}

/// How a user keeps other writers away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// All others.
    Exclusive,
    /// All but other exports.
    Export,
}

/// Who has a bdev open.
#[derive(Debug)]
struct User {
    name: String,
    mode: OpenMode,
    claim: Option<Claim>,
    open: OpenFlag,
}

#[derive(Debug)]
struct Entry {
    bdev: Arc<dyn Bdev>,
    aliases: Vec<String>,
    users: Vec<User>,
}

impl Entry {
    /// Those who have it open now.
    fn users(&mut self) -> &[User] {
        self.users.retain(|user| user.open.is_set());
        &self.users
    }
}

type Listener = Rc<dyn Fn(&Event)>;

#[derive(Default)]
struct Inner {
    /// In order of registration.
    entries: BTreeMap<u64, Entry>,
    /// Names, aliases and UUIDs.
    names: BTreeMap<String, u64>,
    listeners: BTreeMap<u64, Listener>,
    /// Entries on their way out.
    removing: BTreeSet<u64>,
    closings: Arc<Closings>,
    next_key: u64,
}

/// All bdevs of this node.
#[derive(Clone, Default)]
pub struct Registry(Rc<RefCell<Inner>>);

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("bdevs", &self.0.borrow().entries.len()).finish_non_exhaustive()
    }
}

/// Keeps a listener in place; dropping it ends the events.
pub struct Subscription {
    registry: Registry,
    key: u64,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.registry.0.borrow_mut().listeners.remove(&self.key);
    }
}

impl Registry {
    /// A registry without bdevs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a bdev in, under its name, its UUID and `aliases`.
    ///
    /// # Errors
    /// [`BdevError::Exists`] when one of them is taken; [`BdevError::Full`] at [`BDEVS_MAX`] bdevs.
    pub fn register(&self, bdev: Arc<dyn Bdev>, aliases: &[String]) -> Result<(), BdevError> {
        self.finish_removals();
        let shared = Arc::clone(bdev.shared());
        {
            let mut inner = self.0.borrow_mut();
            let mut names = vec![shared.name().to_owned(), shared.uuid().to_string()];
            names.extend_from_slice(aliases);
            if let Some(name) = names.iter().find(|name| inner.names.contains_key(*name)) {
                return Err(BdevError::Exists { name: name.clone() });
            }
            if inner.entries.len() >= BDEVS_MAX {
                return Err(BdevError::Full { name: shared.name().to_owned(), max: BDEVS_MAX });
            }
            let key = inner.next_key();
            inner.names.extend(names.into_iter().map(|name| (name, key)));
            inner.entries.insert(key, Entry { bdev, aliases: aliases.to_vec(), users: Vec::new() });
        }
        self.tell(EventKind::Registered, &shared);
        Ok(())
    }

    /// The bdev of that name, alias or UUID.
    ///
    /// # Errors
    /// [`BdevError::NotFound`].
    pub fn find(&self, name: &str) -> Result<Arc<dyn Bdev>, BdevError> {
        self.entry(name).map(|entry| Arc::clone(&entry.bdev))
    }

    /// All bdevs, in order of registration.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<dyn Bdev>> {
        self.0.borrow().entries.values().map(|entry| Arc::clone(&entry.bdev)).collect()
    }

    /// The other names of a bdev, without its UUID.
    ///
    /// # Errors
    /// [`BdevError::NotFound`].
    pub fn aliases(&self, name: &str) -> Result<Vec<String>, BdevError> {
        self.entry(name).map(|entry| entry.aliases.clone())
    }

    /// Those who have a bdev open.
    ///
    /// # Errors
    /// [`BdevError::NotFound`].
    pub fn users(&self, name: &str) -> Result<Vec<String>, BdevError> {
        self.entry(name).map(|mut entry| entry.users().iter().map(|user| user.name.clone()).collect())
    }

    /// Who has a bdev exclusively for writing.
    ///
    /// # Errors
    /// [`BdevError::NotFound`].
    pub fn claimed_by(&self, name: &str) -> Result<Option<String>, BdevError> {
        self.entry(name).map(|mut entry| {
            entry.users().iter().find(|user| user.claim.is_some()).map(|user| user.name.clone())
        })
    }

    /// Opens a bdev for `user`, a name that error messages will show.
    ///
    /// # Errors
    /// [`BdevError::NotFound`], [`BdevError::Removing`]; [`BdevError::Claimed`] for writing while somebody has it
    /// exclusively.
    pub fn open(&self, name: &str, mode: OpenMode, user: &str) -> Result<Descriptor, BdevError> {
        let closings = self.closings();
        let mut entry = self.present(name)?;
        let owner = entry.users().iter().find(|user| user.claim.is_some()).map(|user| user.name.clone());
        if let (OpenMode::ReadWrite, Some(owner)) = (mode, owner) {
            return Err(BdevError::Claimed { name: name.to_owned(), owner });
        }
        Ok(add_user(&mut entry, mode, user, None, &closings))
    }

    /// Opens a bdev for reading and writing, as its only writer until the last clone of the descriptor is dropped.
    ///
    /// # Errors
    /// [`BdevError::NotFound`], [`BdevError::Removing`]; [`BdevError::Claimed`] or [`BdevError::InUse`] when it has
    /// a writer.
    pub fn claim(&self, name: &str, owner: &str) -> Result<Descriptor, BdevError> {
        self.claim_as(name, owner, Claim::Exclusive)
    }

    /// Opens a bdev for reading and writing by hosts, whose reservations keep them apart: as [`Self::claim`], but
    /// others may export it too, by whatever protocol.
    ///
    /// # Errors
    /// As [`Self::claim`], where the other writer is no export.
    pub fn export(&self, name: &str, owner: &str) -> Result<Descriptor, BdevError> {
        self.claim_as(name, owner, Claim::Export)
    }

    fn claim_as(&self, name: &str, owner: &str, claim: Claim) -> Result<Descriptor, BdevError> {
        let closings = self.closings();
        let mut entry = self.present(name)?;
        let shares = |user: &&User| claim == Claim::Export && user.claim == Some(Claim::Export);
        let writers: Vec<&User> =
            entry.users().iter().filter(|user| user.mode == OpenMode::ReadWrite && !shares(user)).collect();
        if let Some(user) = writers.iter().find(|user| user.claim.is_some()) {
            return Err(BdevError::Claimed { name: name.to_owned(), owner: user.name.clone() });
        }
        if !writers.is_empty() {
            let users = writers.iter().map(|user| user.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(BdevError::InUse { name: name.to_owned(), users });
        }
        Ok(add_user(&mut entry, OpenMode::ReadWrite, owner, Some(claim), &closings))
    }

    /// Gives a bdev another length, or looks what length its device has got by itself (`None`); filters above follow.
    /// Returns the new length in blocks.
    ///
    /// # Errors
    /// [`BdevError::NotFound`], [`BdevError::Removing`]; what the module says.
    pub fn resize(&self, name: &str, blocks: Option<u64>) -> Result<u64, BdevError> {
        self.finish_removals();
        let bdev = Arc::clone(&self.present(name)?.bdev);
        let blocks = bdev.resize(blocks)?;
        self.publish_blocks(&bdev, blocks);
        Ok(blocks)
    }

    /// Removes a bdev for good: no further I/O succeeds, whoever has it open is told, and when all have closed it, it
    /// is dropped. Filters above it go first. Returns when it is gone.
    ///
    /// Once polled, the removal goes on without the caller: what is left of it is done by [`Self::look_after_removals`],
    /// or else as part of the next [`Self::register`], [`Self::resize`] or removal.
    ///
    /// # Errors
    /// [`BdevError::NotFound`]; [`BdevError::Removing`] when it is on its way out already.
    pub async fn remove(&self, name: &str) -> Result<(), BdevError> {
        self.finish_removals();
        let first = Arc::clone(self.present(name)?.bdev.shared());
        let key = self.0.borrow().names.get(name).copied().unwrap_or(0);
        self.begin_removal(first);
        self.until_gone(key).await;
        Ok(())
    }

    /// Waits until the bdev that has this name now is gone. For one that is being removed already.
    pub async fn gone(&self, name: &str) {
        let key = self.0.borrow().names.get(name).copied().unwrap_or(0);
        self.until_gone(key).await;
    }

    /// Ends removals as soon as the last user has closed, also those for which nobody waits any more. For the control
    /// thread to run as a task of its own; ends some time after the registry.
    pub fn look_after_removals(&self) -> impl Future<Output = ()> + 'static {
        let (inner, closings) = (Rc::downgrade(&self.0), self.closings());
        poll_fn(move |cx| {
            let Some(inner) = inner.upgrade() else { return Poll::Ready(()) };
            closings.wake_at_next(cx.waker());
            Self(inner).finish_removals();
            Poll::Pending
        })
    }

    /// Calls `listener` for every event from now on, on this thread. It may use the registry.
    #[must_use]
    pub fn subscribe(&self, listener: impl Fn(&Event) + 'static) -> Subscription {
        let mut inner = self.0.borrow_mut();
        let key = inner.next_key();
        inner.listeners.insert(key, Rc::new(listener));
        Subscription { registry: self.clone(), key }
    }

    async fn until_gone(&self, key: u64) {
        let closings = self.closings();
        poll_fn(|cx| {
            // First to be told of closings, then to look: none is missed.
            closings.wake_at_next(cx.waker());
            self.finish_removals();
            if self.0.borrow().entries.contains_key(&key) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn begin_removal(&self, first: Arc<Shared>) {
        // The bdev and all that stands on it, from below; each is above one that is in the list already.
        let mut doomed = vec![first];
        let mut at = 0;
        while let Some(below) = doomed.get(at).map(Arc::clone) {
            doomed.extend(self.filters_over(&below).iter().map(|bdev| Arc::clone(bdev.shared())));
            at += 1;
        }
        {
            let mut inner = self.0.borrow_mut();
            for shared in &doomed {
                shared.set_removed();
                if let Some(key) = inner.names.get(shared.name()).copied() {
                    inner.removing.insert(key);
                }
            }
        }
        // Those on top close first: their users' descriptors lead to those below.
        for shared in doomed.iter().rev() {
            self.tell(EventKind::Removing, shared);
        }
    }

    /// Drops those that are on their way out and that nobody has open, from the top.
    fn finish_removals(&self) {
        while let Some(entry) = self.take_closed() {
            let shared = Arc::clone(entry.bdev.shared());
            // Outside of the borrow: a filter's end closes the bdev below.
            drop(entry);
            self.tell(EventKind::Removed, &shared);
        }
    }

    fn take_closed(&self) -> Option<Entry> {
        let mut inner = self.0.borrow_mut();
        let Inner { entries, names, removing, .. } = &mut *inner;
        // A filter is younger than what it stands on.
        let is_closed = |key: &&u64| entries.get_mut(*key).is_none_or(|entry| entry.users().is_empty());
        let key = *removing.iter().rev().find(is_closed)?;
        removing.remove(&key);
        names.retain(|_, other| *other != key);
        entries.remove(&key)
    }

    fn closings(&self) -> Arc<Closings> {
        Arc::clone(&self.0.borrow().closings)
    }

    fn publish_blocks(&self, bdev: &Arc<dyn Bdev>, blocks: u64) {
        let shared = bdev.shared();
        if shared.blocks() == blocks {
            return;
        }
        shared.set_blocks(blocks);
        self.tell(EventKind::Resized, shared);
        for filter in self.filters_over(shared) {
            if let Some(blocks) = filter.blocks_over(blocks) {
                self.publish_blocks(&filter, blocks);
            }
        }
    }

    fn filters_over(&self, below: &Arc<Shared>) -> Vec<Arc<dyn Bdev>> {
        let stands_on = |bdev: &Arc<dyn Bdev>| {
            bdev.base().is_some_and(|base| Arc::ptr_eq(base.shared(), below)) && !bdev.shared().is_removed()
        };
        self.list().into_iter().filter(stands_on).collect()
    }

    fn tell(&self, kind: EventKind, bdev: &Arc<Shared>) {
        let listeners: Vec<Listener> = self.0.borrow().listeners.values().cloned().collect();
        let event = Event { kind, bdev: Arc::clone(bdev) };
        for listener in listeners {
            listener(&event);
        }
    }

    fn entry(&self, name: &str) -> Result<RefMut<'_, Entry>, BdevError> {
        RefMut::filter_map(self.0.borrow_mut(), |inner| {
            let key = *inner.names.get(name)?;
            inner.entries.get_mut(&key)
        })
        .map_err(|_| BdevError::NotFound { name: name.to_owned() })
    }

    /// As [`Self::entry`], unless it is on its way out.
    fn present(&self, name: &str) -> Result<RefMut<'_, Entry>, BdevError> {
        let entry = self.entry(name)?;
        if entry.bdev.shared().is_removed() {
            return Err(BdevError::Removing { name: name.to_owned() });
        }
        Ok(entry)
    }
}

impl Inner {
    fn next_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }
}

fn add_user(
    entry: &mut Entry,
    mode: OpenMode,
    user: &str,
    claim: Option<Claim>,
    closings: &Arc<Closings>,
) -> Descriptor {
    let (held, open) = Open::new(Arc::clone(closings));
    entry.users.push(User { name: user.to_owned(), mode, claim, open });
    Descriptor::counted(Arc::clone(&entry.bdev), mode, held)
}

#[cfg(test)]
mod tests;
