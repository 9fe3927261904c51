//! Notifications as SPDK's `notify_get_notifications` gives them: the last ones, numbered for ever.

use std::cell::RefCell;
use std::collections::VecDeque;

use penstock_bdev::{Event, EventKind};
use penstock_fabric::node::PoolEvent;

/// Notifications kept; older ones are forgotten.
pub const NOTES_MAX: usize = 4096;

/// Kinds of notifications.
pub const TYPES: [&str; 7] = [
    "bdev_register",
    "bdev_unregister",
    "bdev_resize",
    "pool_below_80",
    "pool_above_80",
    "pool_above_90",
    "pool_above_95",
];

/// Seconds since 1970.
#[must_use]
pub fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

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
        self.push(kind, event.bdev.name());
    }

    /// Takes in how full a pool has become.
    pub fn record_pool(&self, event: &PoolEvent) {
        let kind = match event.percent {
            0..80 => "pool_below_80",
            80..90 => "pool_above_80",
            90..95 => "pool_above_90",
            95.. => "pool_above_95",
        };
        self.push(kind, &event.pool);
    }

    fn push(&self, kind: &'static str, object: &str) {
        let mut notes = self.0.borrow_mut();
        let id = notes.0;
        notes.0 += 1;
        if notes.1.len() == NOTES_MAX {
            notes.1.pop_front();
        }
        notes.1.push_back(Note { id, kind, object: object.to_owned() });
    }

    /// At most `max` notifications from number `first` on.
    #[must_use]
    pub fn since(&self, first: u64, max: usize) -> Vec<Note> {
        self.0.borrow().1.iter().filter(|note| note.id >= first).take(max).cloned().collect()
    }
}
