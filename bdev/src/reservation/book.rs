//! The reservations of all bdevs, for the control thread: every protocol that exports a bdev works on the same machine.
//!
//! Invariants: a bdev has one [`Reservations`] while any protocol holds it; who changes it tells the others before the
//! host is answered.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::{Rc, Weak};

use uuid::Uuid;

use super::file::PtplFile;
use super::{Effects, PersistedReservations, ReservationStore, Reservations};

/// The reservations of one bdev.
pub type SharedReservations = Rc<RefCell<Reservations>>;
/// Where they are kept.
pub type SharedStore = Rc<RefCell<dyn ReservationStore>>;

/// Ends when a protocol has taken a change over on all its cores, and the commands that it was to abort are gone.
pub type Applied = Pin<Box<dyn Future<Output = ()>>>;

type Listener = Rc<dyn Fn(Uuid, &Effects) -> Option<Applied>>;

/// A file where a bdev has one of its own, else what keeps all of them.
struct Stores {
    common: SharedStore,
    files: BTreeMap<Uuid, PtplFile>,
}

impl ReservationStore for Stores {
    fn save(&mut self, bdev: Uuid, state: Option<&PersistedReservations>) -> io::Result<()> {
        match self.files.get_mut(&bdev) {
            Some(file) => file.save(bdev, state),
            None => self.common.borrow_mut().save(bdev, state),
        }
    }

    fn load(&mut self, bdev: Uuid) -> io::Result<Option<PersistedReservations>> {
        match self.files.get_mut(&bdev) {
            Some(file) => file.load(bdev),
            None => self.common.borrow_mut().load(bdev),
        }
    }

    fn persists(&self, bdev: Uuid) -> bool {
        self.files.contains_key(&bdev) || self.common.borrow().persists(bdev)
    }
}

struct Inner {
    store: Rc<RefCell<Stores>>,
    machines: RefCell<BTreeMap<Uuid, Weak<RefCell<Reservations>>>>,
    listeners: RefCell<Vec<(Protocol, Listener)>>,
    next: Cell<u64>,
}

/// Who works on the reservations: not told of its own changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol(u64);

/// All reservations of this node: a handle, cheap to clone.
#[derive(Clone)]
pub struct ReservationBook(Rc<Inner>);

impl fmt::Debug for ReservationBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservationBook")
            .field("bdevs", &self.0.machines.borrow().len())
            .finish_non_exhaustive()
    }
}

impl ReservationBook {
    /// A book whose persistent part is kept by `store`.
    #[must_use]
    pub fn new(store: SharedStore) -> Self {
        Self(Rc::new(Inner {
            store: Rc::new(RefCell::new(Stores { common: store, files: BTreeMap::new() })),
            machines: RefCell::default(),
            listeners: RefCell::default(),
            next: Cell::new(0),
        }))
    }

    /// The reservations of a bdev: those that others work on, else what was saved.
    ///
    /// # Errors
    /// What the storage says; the bdev must not be exported then.
    pub fn of(&self, bdev: Uuid) -> io::Result<SharedReservations> {
        let known = self.0.machines.borrow().get(&bdev).and_then(Weak::upgrade);
        if let Some(known) = known {
            return Ok(known);
        }
        let saved = self.0.store.borrow_mut().load(bdev)?;
        let machine = saved.as_ref().map_or_else(Reservations::new, Reservations::restored);
        let machine = Rc::new(RefCell::new(machine));
        let mut machines = self.0.machines.borrow_mut();
        machines.retain(|_, machine| machine.strong_count() > 0);
        machines.insert(bdev, Rc::downgrade(&machine));
        Ok(machine)
    }

    /// Where the persistent part is kept.
    #[must_use]
    pub fn store(&self) -> SharedStore {
        Rc::clone(&self.0.store) as SharedStore
    }

    /// Whether the reservations of a bdev can outlive a loss of power.
    #[must_use]
    pub fn persists(&self, bdev: Uuid) -> bool {
        self.0.store.borrow().persists(bdev)
    }

    /// The file of its own that a bdev's reservations are kept in.
    #[must_use]
    pub fn file_of(&self, bdev: Uuid) -> Option<PathBuf> {
        self.0.store.borrow().files.get(&bdev).map(|file| file.path().to_owned())
    }

    /// Gives a bdev's reservations a file of their own, or (`None`) takes it away; the file itself stays.
    pub fn keep_in(&self, bdev: Uuid, path: Option<&Path>) {
        let mut stores = self.0.store.borrow_mut();
        match path {
            Some(path) => drop(stores.files.insert(bdev, PtplFile::new(path))),
            None => drop(stores.files.remove(&bdev)),
        }
    }

    /// Calls `listener` after every change that another protocol makes.
    pub fn subscribe(&self, listener: impl Fn(Uuid, &Effects) + 'static) -> Protocol {
        self.add(Rc::new(move |bdev, effects| {
            listener(bdev, effects);
            None
        }))
    }

    /// As [`Self::subscribe`], for a protocol that says when all its cores have the change.
    pub fn subscribe_applied(&self, listener: impl Fn(Uuid, &Effects) -> Applied + 'static) -> Protocol {
        self.add(Rc::new(move |bdev, effects| Some(listener(bdev, effects))))
    }

    fn add(&self, listener: Listener) -> Protocol {
        let protocol = Protocol(self.0.next.get());
        self.0.next.set(protocol.0 + 1);
        self.0.listeners.borrow_mut().push((protocol, listener));
        protocol
    }

    /// Tells the other protocols that `from` has changed a bdev's reservations, and does not wait for them.
    pub fn changed(&self, from: Protocol, bdev: Uuid, effects: &Effects) {
        drop(self.tell(from, bdev, effects));
    }

    /// Tells the other protocols that `from` has changed a bdev's reservations; ends when all of them have the change.
    #[must_use]
    pub fn tell(&self, from: Protocol, bdev: Uuid, effects: &Effects) -> Applied {
        let listeners: Vec<Listener> = self
            .0
            .listeners
            .borrow()
            .iter()
            .filter(|(other, _)| *other != from)
            .map(|(_, listener)| Rc::clone(listener))
            .collect();
        let all: Vec<Applied> = listeners.iter().filter_map(|listener| listener(bdev, effects)).collect();
        Box::pin(async move {
            for applied in all {
                applied.await;
            }
        })
    }
}

/// Keeps nothing: reservations that ask for persistence are refused.
#[derive(Debug, Default)]
pub struct NoStore;

impl ReservationStore for NoStore {
    fn save(&mut self, _: Uuid, state: Option<&PersistedReservations>) -> io::Result<()> {
        match state {
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
            None => Ok(()),
        }
    }

    fn load(&mut self, _: Uuid) -> io::Result<Option<PersistedReservations>> {
        Ok(None)
    }

    fn persists(&self, _: Uuid) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_protocols_work_on_one_machine_and_hear_of_each_other() {
        let book = ReservationBook::new(Rc::new(RefCell::new(NoStore)));
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let machine = book.of(one).unwrap();
        assert!(Rc::ptr_eq(&machine, &book.of(one).unwrap()));
        assert!(!Rc::ptr_eq(&machine, &book.of(two).unwrap()));
        let heard = Rc::new(RefCell::new(Vec::new()));
        let subscribe = |name: &'static str| {
            let heard = Rc::clone(&heard);
            book.subscribe(move |bdev, _| heard.borrow_mut().push((name, bdev)))
        };
        let (scsi, _nvme) = (subscribe("scsi"), subscribe("nvme"));
        book.changed(scsi, one, &Effects::default());
        assert_eq!(*heard.borrow(), [("nvme", one)]);
    }
}
