//! The state machine: one method per service action.

use std::collections::BTreeMap;

use super::{PersistedReservations, REGISTRANTS_MAX, RegistrantId, ReservationType, ReservationView};

/// What a registrant is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Notice {
    /// The reservation that it took part in was released.
    ReservationReleased,
    /// Its registration was removed by another one's preempt.
    RegistrationPreempted,
    /// All registrations and the reservation were cleared by another one.
    ReservationPreempted,
}

/// What else follows from a command that was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Whom to tell what.
    pub notices: Vec<(RegistrantId, Notice)>,
    /// Whose commands are to be aborted (preempt and abort).
    pub aborted: Vec<RegistrantId>,
}

/// Why a command was not done; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Not registered, a wrong key, or somebody else's reservation: RESERVATION CONFLICT.
    Conflict,
    /// The holder named another type than the one held.
    WrongType,
    /// A parameter makes no sense with the reservation as it is.
    Invalid,
    /// There are [`REGISTRANTS_MAX`] registrants.
    Full,
}

/// The reservations of one bdev.
#[derive(Debug, Clone, Default)]
pub struct Reservations {
    generation: u32,
    persistent: bool,
    registrants: BTreeMap<RegistrantId, u64>,
    holder: Option<(RegistrantId, ReservationType)>,
}

type Outcome = Result<Effects, Refusal>;

impl Reservations {
    /// No registrant, no reservation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The reservations after power on: what had been persisted. Records that contradict each other are dropped.
    #[must_use]
    pub fn restored(saved: &PersistedReservations) -> Self {
        let registrants: BTreeMap<_, _> =
            saved.registrants.iter().filter(|(_, key)| *key != 0).take(REGISTRANTS_MAX).cloned().collect();
        let holder = saved.holder.clone().filter(|(id, _)| registrants.contains_key(id));
        Self { generation: 0, persistent: true, registrants, holder }
    }

    /// Registers `id` with `new_key`, or gives it another key, or with 0 ends its registration. `current` is the key that
    /// it must have now (0: none); `None` where that does not matter. `persistent` changes whether all this outlives a
    /// loss of power.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong current key; [`Refusal::Full`].
    pub fn register(
        &mut self,
        id: &RegistrantId,
        current: Option<u64>,
        new_key: u64,
        persistent: Option<bool>,
    ) -> Outcome {
        let registered = self.registrants.get(id).copied();
        if current.is_some_and(|key| key != registered.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        let mut effects = Effects::default();
        match (registered, new_key) {
            (None, 0) => {}
            (Some(_), 0) => {
                self.remove(id, &mut effects);
                self.count();
            }
            (None, _) if self.registrants.len() >= REGISTRANTS_MAX => return Err(Refusal::Full),
            _ => {
                self.registrants.insert(id.clone(), new_key);
                self.count();
            }
        }
        if let Some(persistent) = persistent {
            self.persistent = persistent;
        }
        Ok(effects)
    }

    /// Reserves. Done again by a holder with the same type, it changes nothing.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong key, or when it is reserved by another one or with another type.
    pub fn reserve(&mut self, id: &RegistrantId, key: u64, kind: ReservationType) -> Outcome {
        self.check(id, key)?;
        match &self.holder {
            None => self.holder = Some((id.clone(), kind)),
            Some((_, held)) if *held == kind && self.holds(id) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Effects::default())
    }

    /// Releases what `id` holds; nothing when it holds nothing.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong key, [`Refusal::WrongType`].
    pub fn release(&mut self, id: &RegistrantId, key: u64, kind: ReservationType) -> Outcome {
        self.check(id, key)?;
        let mut effects = Effects::default();
        if !self.holds(id) {
            return Ok(effects);
        }
        if self.holder.as_ref().is_some_and(|(_, held)| *held != kind) {
            return Err(Refusal::WrongType);
        }
        self.holder = None;
        if kind.is_shared() {
            self.tell_others(id, Notice::ReservationReleased, &mut effects);
        }
        Ok(effects)
    }

    /// Ends the reservation and all registrations.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong key.
    pub fn clear(&mut self, id: &RegistrantId, key: u64) -> Outcome {
        self.check(id, key)?;
        let mut effects = Effects::default();
        self.tell_others(id, Notice::ReservationPreempted, &mut effects);
        self.registrants.clear();
        self.holder = None;
        self.count();
        Ok(effects)
    }

    /// Ends the registrations with `victim`'s key and, if the reservation is theirs (or with 0: everybody's), takes it
    /// over as `kind`. With `abort` their commands are aborted.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong key, or when nobody has the victim's; [`Refusal::Invalid`] for a victim 0 where
    /// not everybody holds the reservation.
    pub fn preempt(
        &mut self,
        id: &RegistrantId,
        key: u64,
        victim: u64,
        kind: ReservationType,
        abort: bool,
    ) -> Outcome {
        self.check(id, key)?;
        let held = self.holder.as_ref().map(|(_, held)| *held);
        let all_hold = held.is_some_and(ReservationType::is_all_registrants);
        if victim == 0 && !all_hold {
            return Err(Refusal::Invalid);
        }
        let holder_key = match &self.holder {
            Some((holder, held)) if !held.is_all_registrants() => self.registrants.get(holder).copied(),
            _ => None,
        };
        let takes_over = victim == 0 || holder_key == Some(victim);
        if victim != 0 && !self.registrants.values().any(|other| *other == victim) {
            return Err(Refusal::Conflict);
        }
        let removed: Vec<RegistrantId> = self
            .registrants
            .iter()
            .filter(|(other, other_key)| *other != id && (victim == 0 || **other_key == victim))
            .map(|(other, _)| other.clone())
            .collect();
        let mut effects = Effects::default();
        for gone in &removed {
            self.registrants.remove(gone);
            effects.notices.push((gone.clone(), Notice::RegistrationPreempted));
        }
        if takes_over {
            if held != Some(kind) {
                self.tell_others(id, Notice::ReservationReleased, &mut effects);
            }
            self.holder = Some((id.clone(), kind));
        } else if let Some((holder, _)) = &mut self.holder {
            // Everybody holds it: the one who made it may be gone, the others go on.
            if !self.registrants.contains_key(holder) {
                *holder = id.clone();
            }
        }
        if abort {
            effects.aborted = removed;
        }
        self.count();
        Ok(effects)
    }

    /// Registers `to` with `new_key` and gives it the reservation that `id` holds; with `unregister`, `id` is no
    /// registrant any more.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong key, or when `id` does not hold it; [`Refusal::Invalid`] for a key 0, for `to`
    /// being `id`, and where all registrants hold it; [`Refusal::Full`].
    pub fn register_and_move(
        &mut self,
        id: &RegistrantId,
        key: u64,
        to: &RegistrantId,
        new_key: u64,
        unregister: bool,
        persistent: bool,
    ) -> Outcome {
        self.check(id, key)?;
        let Some((holder, kind)) = self.holder.clone() else { return Err(Refusal::Conflict) };
        if kind.is_all_registrants() {
            return Err(Refusal::Invalid);
        }
        if holder != *id {
            return Err(Refusal::Conflict);
        }
        if new_key == 0 || to == id {
            return Err(Refusal::Invalid);
        }
        if !self.registrants.contains_key(to) && self.registrants.len() >= REGISTRANTS_MAX {
            return Err(Refusal::Full);
        }
        self.registrants.insert(to.clone(), new_key);
        self.holder = Some((to.clone(), kind));
        if unregister {
            self.registrants.remove(id);
        }
        self.persistent = persistent;
        self.count();
        Ok(Effects::default())
    }

    /// Sets whether all this outlives a loss of power.
    pub fn set_persistent(&mut self, persistent: bool) {
        self.persistent = persistent;
    }

    /// The key of a registrant.
    #[must_use]
    pub fn key_of(&self, id: &RegistrantId) -> Option<u64> {
        self.registrants.get(id).copied()
    }

    /// What cores check commands against.
    #[must_use]
    pub fn view(&self) -> ReservationView {
        ReservationView {
            generation: self.generation,
            persistent: self.persistent,
            registrants: self.registrants.iter().map(|(id, key)| (id.clone(), *key)).collect(),
            holder: self.holder.clone(),
        }
    }

    /// What is to be saved now; `None`: nothing is to outlive a loss of power.
    #[must_use]
    pub fn to_persist(&self) -> Option<PersistedReservations> {
        self.persistent.then(|| PersistedReservations {
            registrants: self.registrants.iter().map(|(id, key)| (id.clone(), *key)).collect(),
            holder: self.holder.clone(),
        })
    }

    fn check(&self, id: &RegistrantId, key: u64) -> Result<(), Refusal> {
        if self.registrants.get(id) == Some(&key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    fn holds(&self, id: &RegistrantId) -> bool {
        match &self.holder {
            Some((_, kind)) if kind.is_all_registrants() => self.registrants.contains_key(id),
            Some((holder, _)) => holder == id,
            None => false,
        }
    }

    /// Ends one registration by its owner's wish, and the reservation with it where it was its own.
    fn remove(&mut self, id: &RegistrantId, effects: &mut Effects) {
        self.registrants.remove(id);
        let Some((holder, kind)) = self.holder.clone() else { return };
        if kind.is_all_registrants() {
            match self.registrants.keys().next() {
                None => self.holder = None,
                Some(heir) if holder == *id => self.holder = Some((heir.clone(), kind)),
                Some(_) => {}
            }
        } else if holder == *id {
            self.holder = None;
            if kind.is_shared() {
                self.tell_others(id, Notice::ReservationReleased, effects);
            }
        }
    }

    fn tell_others(&self, id: &RegistrantId, notice: Notice, effects: &mut Effects) {
        let others = self.registrants.keys().filter(|other| *other != id);
        effects.notices.extend(others.map(|other| (other.clone(), notice)));
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}
