//! Notifications as SPDK's `notify_get_notifications` gives them: the last ones, numbered for ever.

use std::cell::RefCell;
use std::collections::VecDeque;

use penstock_bdev::{Event, EventKind};

/// Notifications kept; older ones are forgotten.
pub const NOTES_MAX: usize = 4096;

/// Kinds of notifications.
pub const TYPES: [&str; 3] = ["bdev_register", "bdev_unregister", "bdev_resize"];

/// One notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its number: 0, 1, …
    pub id: u64,
    /// One of [`TYPES`].
    pub kind: &'static str,
    /// The object.
    pub object: String,
}

/// The last notifications.
#[derive(Debug, Default)]
pub struct Notes(RefCell<(u64, VecDeque<Note>)>);

impl Notes {
    /// Takes in what the registry tells.
    pub fn record(&self, event: &Event) {
        let kind = match event.kind {
            EventKind::Registered => "bdev_register",
            EventKind::Removed => "bdev_unregister",
            EventKind::Resized => "bdev_resize",
            _ => return,
        };
        let mut notes = self.0.borrow_mut();
        let id = notes.0;
        notes.0 += 1;
        if notes.1.len() == NOTES_MAX {
            notes.1.pop_front();
        }
        notes.1.push_back(Note { id, kind, object: event.bdev.name().to_owned() });
    }

    /// At most `max` notifications from number `first` on.
    #[must_use]
    pub fn since(&self, first: u64, max: usize) -> Vec<Note> {
        self.0.borrow().1.iter().filter(|note| note.id >= first).take(max).cloned().collect()
    }
}
