//! The reactors that share the connections of one service, and how many each of them has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ReactorHandle;

/// All reactors of a service.
#[derive(Debug)]
pub struct Peers {
    handles: Vec<ReactorHandle>,
    /// Connections of each, as the acceptors see them.
    loads: Vec<AtomicU32>,
}

impl Peers {
    /// The reactors that share the connections, in the order of their indices.
    #[must_use]
    pub fn new(handles: Vec<ReactorHandle>) -> Arc<Self> {
        let loads = handles.iter().map(|_| AtomicU32::new(0)).collect();
        Arc::new(Self { handles, loads })
    }

    /// All of them.
    #[must_use]
    pub fn handles(&self) -> &[ReactorHandle] {
        &self.handles
    }

    /// One of them.
    #[must_use]
    pub fn handle(&self, index: usize) -> Option<&ReactorHandle> {
        self.handles.get(index)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// A connection has come to the reactor (`up`), or has left it.
    pub fn add_load(&self, index: usize, up: bool) {
        let Some(load) = self.loads.get(index) else { return };
        if up {
            load.fetch_add(1, Ordering::Relaxed);
        } else {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The one with the fewest connections.
    #[must_use]
    pub fn least_loaded(&self) -> usize {
        let loads = self.loads.iter().map(|load| load.load(Ordering::Relaxed)).enumerate();
        loads.min_by_key(|(_, load)| *load).map_or(0, |(index, _)| index)
    }
}
