//! What all cores see of a logical unit, beyond its blocks.

use std::sync::Arc;

use penstock_bdev::reservation::{RegistrantId, ReservationView};
use penstock_spec::scsi::sense::Asc;

use crate::config::{LuConfig, PortGroup};

/// Events that a view remembers. A nexus that has missed more is told of a reset, after which an initiator looks at
/// everything again.
pub(crate) const EVENTS_MAX: usize = 64;

/// Whom an event is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Every nexus.
    All,
    /// Every nexus but the one that caused it.
    AllBut(RegistrantId),
    /// One nexus.
    Only(RegistrantId),
}

/// A unit attention condition to be established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts the events of a logical unit.
    pub number: u64,
    /// For whom.
    pub audience: Audience,
    /// Which condition.
    pub asc: Asc,
}

/// Mode parameters that can be changed, all others being fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModeValues {
    /// D_SENSE: sense data are in descriptor format.
    pub d_sense: bool,
    /// SWP: software write protect.
    pub swp: bool,
}

/// The state of a logical unit at one moment. Immutable: its owner makes a new one for each change.
#[derive(Debug, Clone)]
pub struct LuView {
    /// What does not change.
    pub config: Arc<LuConfig>,
    /// Counts the changes.
    pub version: u64,
    /// Persistent reservations.
    pub reservations: Arc<ReservationView>,
    /// Holder of a RESERVE(6).
    pub reserved_by: Option<RegistrantId>,
    /// Mode parameters.
    pub modes: ModeValues,
    /// The medium was ejected (removable media).
    pub ejected: bool,
    /// Those who prevent the medium's removal.
    pub preventing: Vec<RegistrantId>,
    /// Target port groups.
    pub groups: Vec<PortGroup>,
    /// Whether the states of the groups were last set by a command.
    pub groups_set: bool,
    /// The last events, in order.
    pub events: Vec<Event>,
    /// Number of the next event.
    pub next_event: u64,
}

impl LuView {
    /// The group that a target port is in.
    #[must_use]
    pub fn group_of(&self, port: u16) -> Option<&PortGroup> {
        self.groups.iter().find(|group| group.ports.contains(&port))
    }
}
