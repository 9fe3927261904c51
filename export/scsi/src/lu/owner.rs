//! The one owner of a logical unit's state, on the control thread.
//!
//! Commands that change more than blocks come here as [`Control`]; what they change, others see in the next
//! [`LuView`]. The caller publishes that view to all reactors and waits until they have it before the [`Reply`] goes
//! back: a command that was preempted is then refused on every core.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::Run;
use penstock_bdev::reservation::{
    Effects, HostId, Notice, Refusal, RegistrantId, ReservationStore, ReservationType, ReservationView,
    Reservations,
};
use penstock_spec::scsi::report::AccessState;
use penstock_spec::scsi::sense::{Asc, SenseKey};

use super::view::{Audience, EVENTS_MAX, Event, LuView, ModeValues};
use crate::config::{LuConfig, PortGroup};
use crate::sense::{Fault, Sense};

/// The reservations of one bdev: whoever exports it by another protocol holds the same.
pub type SharedReservations = Rc<RefCell<Reservations>>;

/// A service action of PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrCommand {
    /// REGISTER and REGISTER AND IGNORE EXISTING KEY (`current` is `None`).
    Register {
        /// The key that must be registered now; 0: none.
        current: Option<u64>,
        /// The key from now on; 0: none.
        new_key: u64,
        /// APTPL.
        persistent: bool,
    },
    /// RESERVE.
    Reserve {
        /// RESERVATION KEY.
        key: u64,
        /// TYPE.
        kind: ReservationType,
    },
    /// RELEASE.
    Release {
        /// RESERVATION KEY.
        key: u64,
        /// TYPE.
        kind: ReservationType,
    },
    /// CLEAR.
    Clear {
        /// RESERVATION KEY.
        key: u64,
    },
    /// PREEMPT and PREEMPT AND ABORT.
    Preempt {
        /// RESERVATION KEY.
        key: u64,
        /// SERVICE ACTION RESERVATION KEY.
        victim: u64,
        /// TYPE.
        kind: ReservationType,
        /// Abort the victims' commands.
        abort: bool,
    },
    /// REGISTER AND MOVE.
    Move {
        /// RESERVATION KEY.
        key: u64,
        /// SERVICE ACTION RESERVATION KEY.
        new_key: u64,
        /// Where to.
        to: RegistrantId,
        /// UNREG.
        unregister: bool,
        /// APTPL.
        persistent: bool,
    },
}

/// What only the owner can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// RESERVE(6).
    Reserve6,
    /// RELEASE(6).
    Release6,
    /// PERSISTENT RESERVE OUT.
    Pr(PrCommand),
    /// MODE SELECT.
    ModeSelect(ModeValues),
    /// START STOP UNIT with LOEJ: load (`true`) or eject.
    Load(bool),
    /// PREVENT ALLOW MEDIUM REMOVAL.
    Prevent(bool),
    /// GET LBA STATUS: from which block on, and how many descriptors at most.
    Allocation {
        /// STARTING LOGICAL BLOCK ADDRESS.
        first: u64,
        /// How many descriptors.
        runs_max: usize,
    },
    /// SET TARGET PORT GROUPS: group and state.
    SetPortGroups(Vec<(u16, AccessState)>),
    /// Not a command: LOGICAL UNIT RESET or a reset of the target.
    Reset,
    /// Not a command: the nexus is gone (logout, connection lost, reinstatement).
    NexusLost,
}

/// What became of a [`Control`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How the command ends.
    pub result: Result<(), Fault>,
    /// Whether there is a new view to publish first.
    pub changed: bool,
    /// Nexuses whose commands to this logical unit are to be aborted before the answer (PREEMPT AND ABORT).
    pub aborted: Vec<RegistrantId>,
    /// [`Control::Allocation`]: what is known.
    pub runs: Vec<Run>,
}

impl Reply {
    /// One that changes nothing.
    #[must_use]
    pub fn of(result: Result<(), Fault>) -> Self {
        Self { result, changed: false, aborted: Vec::new(), runs: Vec::new() }
    }
}

/// Owner of a logical unit.
pub struct LuOwner {
    view: Arc<LuView>,
    reservations: SharedReservations,
    store: Rc<RefCell<dyn ReservationStore>>,
    /// What the last change of the reservations did, until it is asked for.
    effects: Option<Effects>,
}

impl std::fmt::Debug for LuOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LuOwner").field("view", &self.view).finish_non_exhaustive()
    }
}

impl LuOwner {
    /// A logical unit as after power on, with what `reservations` have been restored to.
    #[must_use]
    pub fn new(
        config: Arc<LuConfig>,
        reservations: SharedReservations,
        store: Rc<RefCell<dyn ReservationStore>>,
    ) -> Self {
        let view = Arc::new(LuView {
            groups: config.groups.clone(),
            reservations: Arc::new(reservations.borrow().view()),
            config,
            version: 0,
            reserved_by: None,
            modes: ModeValues::default(),
            ejected: false,
            preventing: Vec::new(),
            groups_set: false,
            events: Vec::new(),
            next_event: 0,
        });
        Self { view, reservations, store, effects: None }
    }

    /// The current view.
    #[must_use]
    pub fn view(&self) -> &Arc<LuView> {
        &self.view
    }

    /// Does `control` for `from`.
    pub fn handle(&mut self, from: &RegistrantId, control: &Control) -> Reply {
        let before = self.view.version;
        let (mut aborted, mut runs) = (Vec::new(), Vec::new());
        let result = match control {
            Control::Reserve6 => self.reserve6(from),
            Control::Release6 => self.release6(from),
            Control::Pr(command) => self.persistent(from, command, &mut aborted),
            Control::ModeSelect(modes) => self.mode_select(from, *modes),
            Control::Load(load) => self.load(from, *load),
            Control::Prevent(prevent) => self.prevent(from, *prevent),
            Control::SetPortGroups(states) => self.set_port_groups(from, states),
            Control::Allocation { first, runs_max } => {
                runs = self.allocation(*first, *runs_max);
                Ok(())
            }
            Control::Reset => self.reset(),
            Control::NexusLost => self.nexus_lost(from),
        };
        Reply { result, changed: self.view.version != before, aborted, runs }
    }

    /// What the last command has done to the shared reservations: for [`Self::reservations_changed`] of other logical
    /// units on the same bdev, and for other protocols.
    pub fn take_effects(&mut self) -> Option<Effects> {
        self.effects.take()
    }

    /// Takes over which ports there are, in which target port groups; a group that is known keeps its state.
    pub fn set_groups(&mut self, mut groups: Vec<PortGroup>) {
        for group in &mut groups {
            if let Some(known) = self.view.groups.iter().find(|known| known.id == group.id) {
                group.state = known.state;
                group.preferred = known.preferred;
            }
        }
        if groups != self.view.groups {
            self.change(|view| {
                view.groups = groups;
                raise(view, Audience::All, Asc::ALUA_STATE_CHANGED);
            });
        }
    }

    /// Takes over what another protocol has done to the shared reservations.
    pub fn reservations_changed(&mut self, effects: &Effects) {
        let reservations = Arc::new(self.reservations.borrow().view());
        self.change(|view| {
            view.reservations = reservations;
            tell(view, effects);
        });
    }

    /// Tells all nexuses that the thin provisioning's soft threshold is reached.
    pub fn soft_threshold_reached(&mut self) {
        self.change(|view| raise(view, Audience::All, Asc::SOFT_THRESHOLD_REACHED));
    }

    /// Sets the states of target port groups on the target's own account; unknown groups are left out.
    pub fn set_access_states(&mut self, states: &[(u16, AccessState)]) {
        self.change(|view| {
            set_states(view, states);
            view.groups_set = false;
            raise(view, Audience::All, Asc::ALUA_STATE_CHANGED);
        });
    }

    fn change(&mut self, change: impl FnOnce(&mut LuView)) {
        let view = Arc::make_mut(&mut self.view);
        change(view);
        view.version += 1;
    }

    /// Which blocks have storage; of a bdev that does not tell, all may have.
    fn allocation(&self, first: u64, runs_max: usize) -> Vec<Run> {
        let config = &self.view.config;
        let left = config.info().blocks.saturating_sub(first);
        let known = if config.is_thin() { config.descriptor.allocation(first, runs_max) } else { None };
        known.unwrap_or_else(|| vec![Run { blocks: left, allocated: true }])
    }

    fn reserve6(&mut self, from: &RegistrantId) -> Result<(), Fault> {
        // SPC-2 reservations and registrations exclude each other (SPC-4 5.13.3, CRH 0).
        let taken = self.view.reserved_by.as_ref().is_some_and(|holder| holder != from);
        if taken || !self.view.reservations.registrants.is_empty() {
            return Err(Fault::CONFLICT);
        }
        if self.view.reserved_by.is_none() {
            let from = from.clone();
            self.change(|view| view.reserved_by = Some(from));
        }
        Ok(())
    }

    fn release6(&mut self, from: &RegistrantId) -> Result<(), Fault> {
        if !self.view.reservations.registrants.is_empty() {
            return Err(Fault::CONFLICT);
        }
        if self.view.reserved_by.as_ref() == Some(from) {
            self.change(|view| view.reserved_by = None);
        }
        Ok(())
    }

    fn persistent(
        &mut self,
        from: &RegistrantId,
        command: &PrCommand,
        aborted: &mut Vec<RegistrantId>,
    ) -> Result<(), Fault> {
        if self.view.reserved_by.is_some() {
            return Err(Fault::CONFLICT);
        }
        // Tried on a copy: what cannot be made durable must not happen.
        let mut next = self.reservations.borrow().clone();
        let was_persistent = next.to_persist();
        let mut effects = apply(&mut next, from, command).map_err(|refusal| fault_of(refusal, command))?;
        let persist = next.to_persist();
        if persist != was_persistent {
            let uuid = self.view.config.descriptor.shared().uuid();
            let saved = self.store.borrow_mut().save(uuid, persist.as_ref());
            saved.map_err(|_| Sense::illegal(Asc::INSUFFICIENT_REGISTRATION_RESOURCES))?;
        }
        let reservations: Arc<ReservationView> = Arc::new(next.view());
        *self.reservations.borrow_mut() = next;
        *aborted = std::mem::take(&mut effects.aborted);
        if reservations != self.view.reservations {
            self.change(|view| {
                view.reservations = reservations;
                tell(view, &effects);
            });
            effects.aborted.clone_from(aborted);
            self.effects = Some(effects);
        }
        Ok(())
    }

    fn mode_select(&mut self, from: &RegistrantId, modes: ModeValues) -> Result<(), Fault> {
        if modes != self.view.modes {
            let audience = Audience::AllBut(from.clone());
            self.change(|view| {
                view.modes = modes;
                raise(view, audience, Asc::MODE_PARAMETERS_CHANGED);
            });
        }
        Ok(())
    }

    fn load(&mut self, from: &RegistrantId, load: bool) -> Result<(), Fault> {
        if !self.view.preventing.is_empty() {
            return Err(Sense::illegal(Asc::MEDIUM_REMOVAL_PREVENTED).into());
        }
        if self.view.ejected == load {
            let audience = Audience::AllBut(from.clone());
            self.change(|view| {
                view.ejected = !load;
                if load {
                    raise(view, audience, Asc::NOT_READY_TO_READY);
                }
            });
        }
        Ok(())
    }

    fn prevent(&mut self, from: &RegistrantId, prevent: bool) -> Result<(), Fault> {
        let prevents = self.view.preventing.contains(from);
        if prevent && !prevents {
            let from = from.clone();
            self.change(|view| view.preventing.push(from));
        } else if !prevent && prevents {
            self.change(|view| view.preventing.retain(|other| other != from));
        }
        Ok(())
    }

    fn set_port_groups(&mut self, from: &RegistrantId, states: &[(u16, AccessState)]) -> Result<(), Fault> {
        if states.iter().any(|(id, _)| !self.view.groups.iter().any(|group| group.id == *id)) {
            return Err(Sense::list(6).into());
        }
        let audience = Audience::AllBut(from.clone());
        self.change(|view| {
            set_states(view, states);
            view.groups_set = true;
            raise(view, audience, Asc::ALUA_STATE_CHANGED);
        });
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.change(|view| {
            view.reserved_by = None;
            view.preventing.clear();
            view.modes = ModeValues::default();
            raise(view, Audience::All, Asc::POWER_ON_OR_RESET);
        });
        Ok(())
    }

    fn nexus_lost(&mut self, from: &RegistrantId) -> Result<(), Fault> {
        let holds = self.view.reserved_by.as_ref() == Some(from);
        if holds || self.view.preventing.contains(from) {
            self.change(|view| {
                view.reserved_by.take_if(|holder| holder == from);
                view.preventing.retain(|other| other != from);
            });
        }
        Ok(())
    }
}

fn apply(next: &mut Reservations, from: &RegistrantId, command: &PrCommand) -> Result<Effects, Refusal> {
    match command {
        PrCommand::Register { current, new_key, persistent } => {
            next.register(from, *current, *new_key, Some(*persistent))
        }
        PrCommand::Reserve { key, kind } => next.reserve(from, *key, *kind),
        PrCommand::Release { key, kind } => next.release(from, *key, *kind),
        PrCommand::Clear { key } => next.clear(from, *key),
        PrCommand::Preempt { key, victim, kind, abort } => next.preempt(from, *key, *victim, *kind, *abort),
        PrCommand::Move { key, new_key, to, unregister, persistent } => {
            next.register_and_move(from, *key, to, *new_key, *unregister, *persistent)
        }
    }
}

fn fault_of(refusal: Refusal, command: &PrCommand) -> Fault {
    match refusal {
        Refusal::Conflict => Fault::CONFLICT,
        Refusal::WrongType => Sense::illegal(Asc::INVALID_RELEASE).into(),
        Refusal::Full => Sense::illegal(Asc::INSUFFICIENT_REGISTRATION_RESOURCES).into(),
        Refusal::Invalid if matches!(command, PrCommand::Move { .. }) => Sense::cdb(1).into(),
        Refusal::Invalid => Sense::list(8).into(),
    }
}

fn set_states(view: &mut LuView, states: &[(u16, AccessState)]) {
    for (id, state) in states {
        if let Some(group) = view.groups.iter_mut().find(|group| group.id == *id) {
            group.state = *state;
        }
    }
}

fn tell(view: &mut LuView, effects: &Effects) {
    for (id, notice) in &effects.notices {
        if matches!(id.host, HostId::Scsi(_)) {
            let asc = match notice {
                Notice::ReservationReleased => Asc::RESERVATIONS_RELEASED,
                Notice::RegistrationPreempted => Asc::REGISTRATIONS_PREEMPTED,
                Notice::ReservationPreempted => Asc::RESERVATIONS_PREEMPTED,
            };
            raise(view, Audience::Only(id.clone()), asc);
        }
    }
}

fn raise(view: &mut LuView, audience: Audience, asc: Asc) {
    view.events.push(Event { number: view.next_event, audience, asc });
    view.next_event += 1;
    let surplus = view.events.len().saturating_sub(EVENTS_MAX);
    view.events.drain(..surplus);
}

/// The sense of a logical unit that cannot be reached through a port group in that state; `None`: it can.
pub(crate) fn access_fault(state: AccessState) -> Option<Sense> {
    let asc = match state {
        AccessState::ACTIVE_OPTIMIZED | AccessState::ACTIVE_NON_OPTIMIZED => return None,
        AccessState::STANDBY => Asc::ALUA_STANDBY,
        AccessState::TRANSITIONING => Asc::ALUA_TRANSITION,
        AccessState::OFFLINE => Asc::ALUA_OFFLINE,
        _ => Asc::ALUA_UNAVAILABLE,
    };
    Some(Sense::new(SenseKey::NOT_READY, asc))
}
