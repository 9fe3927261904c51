//! Asymmetric Namespace Access (Base 8.1.1): what each path may do, and the log page that tells of it.
//!
//! A path is a controller's port: the listener by which its admin queue came. Each listener has one state for all ANA
//! groups, and others for groups named one by one, so that every group has a state on every listener and a namespace
//! can never be in a group without one. The log page is made from the same snapshot as Identify.

use std::collections::BTreeMap;

use penstock_spec::nvme::Status;
use penstock_spec::nvme::log::ana::{AnaCapabilities, AnaGroupDescriptor, AnaLogHdr, AnaState};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::config::{NAMESPACES_MAX, SubsystemConfig};

/// ANATT: how long a group may be in the change state, in seconds; hosts wait so long before they give a path up.
pub const ANATT_S: u8 = 10;
/// ANA groups of one subsystem at most.
pub const GROUPS_MAX: u32 = NAMESPACES_MAX;

// The number of descriptors has 16 bits, and the whole page is at most what one admin command brings.
const _: () = assert!(GROUPS_MAX <= u16::MAX as u32);
const _: () = assert!(
    AnaLogHdr::LEN + (GROUPS_MAX as usize) * AnaGroupDescriptor::LEN + 4 * (NAMESPACES_MAX as usize)
        <= crate::config::ADMIN_DATA_LEN_MAX
);

/// ANACAP: all states are reported, and namespaces may move to other groups.
pub(crate) fn capabilities() -> AnaCapabilities {
    AnaCapabilities(0)
        .with_optimized(true)
        .with_non_optimized(true)
        .with_inaccessible(true)
        .with_persistent_loss(true)
        .with_change(true)
}

/// The states and their names in SPDK's methods.
const NAMES: &[(AnaState, &str)] = &[
    (AnaState::OPTIMIZED, "optimized"),
    (AnaState::NON_OPTIMIZED, "non_optimized"),
    (AnaState::INACCESSIBLE, "inaccessible"),
    (AnaState::PERSISTENT_LOSS, "persistent_loss"),
    (AnaState::CHANGE, "change"),
];

/// The state of that name.
#[must_use]
pub fn state_of(name: &str) -> Option<AnaState> {
    NAMES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
}

/// The name of a state.
#[must_use]
pub fn name_of(state: AnaState) -> &'static str {
    NAMES.iter().find(|(known, _)| *known == state).map_or("optimized", |(_, name)| name)
}

/// The names of all states, for messages.
#[must_use]
pub fn names() -> String {
    NAMES.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

/// What a command is answered on a path in that state; `None` where it is executed (Base 8.1.1.5 to 8.1.1.8).
#[must_use]
pub fn refusal(state: AnaState) -> Option<Status> {
    match state {
        AnaState::OPTIMIZED | AnaState::NON_OPTIMIZED => None,
        AnaState::INACCESSIBLE => Some(Status::ANA_INACCESSIBLE),
        AnaState::PERSISTENT_LOSS => Some(Status::ANA_PERSISTENT_LOSS),
        AnaState::CHANGE => Some(Status::ANA_TRANSITION),
        _ => Some(Status::INTERNAL_PATH_ERROR),
    }
}

/// The states of all groups on one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStates {
    all: AnaState,
    /// Groups whose state is another.
    groups: BTreeMap<u32, AnaState>,
}

impl Default for PathStates {
    fn default() -> Self {
        Self::new(AnaState::OPTIMIZED)
    }
}

impl PathStates {
    /// All groups in one state.
    #[must_use]
    pub const fn new(all: AnaState) -> Self {
        Self { all, groups: BTreeMap::new() }
    }

    /// The state of a group.
    #[must_use]
    pub fn state(&self, anagrpid: u32) -> AnaState {
        self.groups.get(&anagrpid).copied().unwrap_or(self.all)
    }

    /// Changes the state of one group, or of all.
    pub fn set(&mut self, anagrpid: Option<u32>, state: AnaState) {
        match anagrpid {
            None => *self = Self::new(state),
            Some(group) if state == self.all => drop(self.groups.remove(&group)),
            Some(group) => drop(self.groups.insert(group, state)),
        }
    }

    /// The state of all groups that are not among [`Self::others`].
    #[must_use]
    pub const fn all(&self) -> AnaState {
        self.all
    }

    /// Groups with a state of their own.
    pub fn others(&self) -> impl Iterator<Item = (u32, AnaState)> + '_ {
        self.groups.iter().map(|(group, state)| (*group, *state))
    }

    /// Whether some command would be refused.
    #[must_use]
    pub fn blocks(&self) -> bool {
        refusal(self.all).is_some() || self.groups.values().any(|state| refusal(*state).is_some())
    }
}

impl SubsystemConfig {
    /// The state of a group for controllers of a port. A port that is gone reaches nothing.
    #[must_use]
    pub fn ana_state(&self, portid: u16, anagrpid: u32) -> AnaState {
        if !self.ana_reporting {
            return AnaState::OPTIMIZED;
        }
        let listener = self.listeners.iter().find(|listener| listener.portid == portid);
        listener.map_or(AnaState::INACCESSIBLE, |listener| listener.ana.state(anagrpid))
    }

    /// Whether some path refuses some command.
    #[must_use]
    pub fn ana_blocks(&self) -> bool {
        self.ana_reporting && self.listeners.iter().any(|listener| listener.ana.blocks())
    }

    /// What a command on `nsid` is answered by a controller of the port instead of being executed. The broadcast NSID
    /// stands for all namespaces.
    ///
    /// # Errors
    /// The path related status.
    pub fn path_open(&self, portid: u16, nsid: u32) -> Result<(), Status> {
        let closed = |anagrpid| refusal(self.ana_state(portid, anagrpid));
        let status = match self.namespace(nsid) {
            Some(namespace) => closed(namespace.anagrpid),
            None if nsid == penstock_spec::nvme::NSID_ALL => {
                self.namespaces.values().find_map(|namespace| closed(namespace.anagrpid))
            }
            None => None,
        };
        status.map_or(Ok(()), Err)
    }
}

/// A group in the log page.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    /// The log's change count when this group last changed.
    changed: u64,
    state: AnaState,
    nsids: Vec<u32>,
}

/// The ANA log page of one controller (LID 0Ch).
#[derive(Debug, Default)]
pub(crate) struct AnaLog {
    changes: u64,
    /// Groups with namespaces.
    groups: BTreeMap<u32, Group>,
}

impl AnaLog {
    /// The page of a controller of a port that was just connected.
    pub(crate) fn new(config: &SubsystemConfig, portid: u16) -> Self {
        Self { changes: 0, groups: groups(config, portid, 0) }
    }

    /// A new generation of the subsystem. Whether the host is to be told: a state changed, or a namespace is in another
    /// group. What came or went as a namespace is told by another event (Base 5.2.2, "Notice").
    pub(crate) fn update(&mut self, before: &SubsystemConfig, config: &SubsystemConfig, portid: u16) -> bool {
        let next = self.changes + 1;
        let mut fresh = groups(config, portid, next);
        let mut told = config.namespaces.iter().any(|(nsid, namespace)| {
            before.namespaces.get(nsid).is_some_and(|was| was.anagrpid != namespace.anagrpid)
        });
        for (id, group) in &mut fresh {
            let Some(was) = self.groups.get(id) else { continue };
            told |= was.state != group.state;
            if (was.state, &was.nsids) == (group.state, &group.nsids) {
                group.changed = was.changed;
            }
        }
        if fresh != self.groups {
            self.groups = fresh;
            self.changes = next;
        }
        told
    }

    /// The page; `groups_only` leaves the NSIDs out (RGO).
    pub(crate) fn page(&self, groups_only: bool) -> Vec<u8> {
        let mut header = AnaLogHdr::default();
        header.chgcnt = U64::new(self.changes);
        header.descriptors = U16::new(u16::try_from(self.groups.len()).unwrap_or(u16::MAX));

        let mut page = header.as_bytes().to_vec();
        for (id, group) in &self.groups {
            let nsids: &[u32] = if groups_only { &[] } else { &group.nsids };
            let mut descriptor = AnaGroupDescriptor::default();
            descriptor.agid = U32::new(*id);
            descriptor.nsids = U32::new(u32::try_from(nsids.len()).unwrap_or(0));
            descriptor.chgcnt = U64::new(group.changed);
            descriptor.state = group.state;

            page.extend_from_slice(descriptor.as_bytes());
            page.extend(nsids.iter().flat_map(|nsid| nsid.to_le_bytes()));
        }
        page
    }
}

fn groups(config: &SubsystemConfig, portid: u16, changed: u64) -> BTreeMap<u32, Group> {
    let mut groups = BTreeMap::new();
    for namespace in config.namespaces.values() {
        let id = namespace.anagrpid;
        let new = || Group { changed, state: config.ana_state(portid, id), nsids: Vec::new() };
        groups.entry(id).or_insert_with(new).nsids.push(namespace.nsid.0);
    }
    groups
}

#[cfg(test)]
mod tests;
