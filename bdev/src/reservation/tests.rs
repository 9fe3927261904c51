use proptest::prelude::*;

use super::*;

fn host(number: u8) -> RegistrantId {
    RegistrantId { host: HostId::Nvme([number; 16]), port: 0 }
}

/// A naive model: a table of (host, key), the reservation as the standards' text tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    keys: Vec<(u8, u64)>,
    reservation: Option<(u8, ReservationType)>,
}

impl Model {
    fn key(&self, who: u8) -> u64 {
        self.keys.iter().find(|(other, _)| *other == who).map_or(0, |(_, key)| *key)
    }

    fn holds(&self, who: u8) -> bool {
        self.reservation.is_some_and(|(holder, kind)| {
            if kind.is_all_registrants() { self.key(who) != 0 } else { holder == who }
        })
    }

    fn set(&mut self, who: u8, key: u64) {
        self.keys.retain(|(other, _)| *other != who);
        if key != 0 {
            self.keys.push((who, key));
        }
    }

    fn may(&self, who: u8, access: Access) -> bool {
        use ReservationType as T;
        let (holds, registered) = (self.holds(who), self.key(who) != 0);
        match self.reservation {
            None => true,
            Some((_, T::WriteExclusive)) => holds || access == Access::Read,
            Some((_, T::ExclusiveAccess)) => holds,
            Some((_, T::WriteExclusiveRegistrantsOnly | T::WriteExclusiveAllRegistrants)) => {
                registered || access == Access::Read
            }
            Some((_, T::ExclusiveAccessRegistrantsOnly | T::ExclusiveAccessAllRegistrants)) => registered,
        }
    }

    fn apply(&mut self, who: u8, command: &Command) -> bool {
        let before = self.clone();
        let done = self.try_apply(who, command);
        if !done {
            *self = before;
        }
        // All registrants hold it: without registrants nobody does.
        if self.keys.is_empty() {
            self.reservation = None;
        }
        done
    }

    fn try_apply(&mut self, who: u8, command: &Command) -> bool {
        match *command {
            Command::Register { current, new } => {
                if current.is_some_and(|key| key != self.key(who)) {
                    return false;
                }
                self.set(who, new);
                if let Some((holder, kind)) = self.reservation
                    && new == 0
                    && !kind.is_all_registrants()
                    && holder == who
                {
                    self.reservation = None;
                }
                return true;
            }
            _ if self.key(who) == 0 => return false,
            _ => {}
        }
        let own = self.key(who);
        match *command {
            Command::Register { .. } => true,
            Command::Reserve { key, kind } => {
                let free = self.reservation.is_none();
                let again = self.holds(who) && self.reservation.is_some_and(|(_, held)| held == kind);
                if free && key == own {
                    self.reservation = Some((who, kind));
                }
                key == own && (free || again)
            }
            Command::Release { key, kind } => {
                if key == own && self.holds(who) && self.reservation.is_some_and(|(_, held)| held == kind) {
                    self.reservation = None;
                    return true;
                }
                key == own && !self.holds(who)
            }
            Command::Clear { key } => {
                *self = if key == own { Self::default() } else { self.clone() };
                key == own
            }
            Command::Preempt { key, victim, kind } => {
                let all = self.reservation.is_some_and(|(_, kind)| kind.is_all_registrants());
                let of_holder = self
                    .reservation
                    .is_some_and(|(holder, held)| !held.is_all_registrants() && self.key(holder) == victim);
                let known = self.keys.iter().any(|(_, other)| *other == victim);
                if key != own || (victim == 0 && !all) || (victim != 0 && !known) {
                    return false;
                }
                self.keys.retain(|(other, other_key)| *other == who || (victim != 0 && *other_key != victim));
                if victim == 0 || of_holder {
                    self.reservation = Some((who, kind));
                }
                true
            }
            Command::Move { key, to, new, unregister } => {
                let mine = self
                    .reservation
                    .is_some_and(|(holder, kind)| holder == who && !kind.is_all_registrants());
                if key != own || !mine || new == 0 || to == who {
                    return false;
                }
                self.set(to, new);
                if unregister {
                    self.set(who, 0);
                }
                self.reservation = self.reservation.map(|(_, kind)| (to, kind));
                true
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Command {
    Register { current: Option<u64>, new: u64 },
    Reserve { key: u64, kind: ReservationType },
    Release { key: u64, kind: ReservationType },
    Clear { key: u64 },
    Preempt { key: u64, victim: u64, kind: ReservationType },
    Move { key: u64, to: u8, new: u64, unregister: bool },
}

fn commands() -> impl Strategy<Value = Vec<(u8, Command)>> {
    let key = || 0..4_u64;
    let kind = || prop::sample::select(ReservationType::ALL.to_vec());
    let command = prop_oneof![
        4 => (prop::option::of(key()), key()).prop_map(|(current, new)| Command::Register { current, new }),
        3 => (key(), kind()).prop_map(|(key, kind)| Command::Reserve { key, kind }),
        2 => (key(), kind()).prop_map(|(key, kind)| Command::Release { key, kind }),
        1 => key().prop_map(|key| Command::Clear { key }),
        3 => (key(), key(), kind()).prop_map(|(key, victim, kind)| Command::Preempt { key, victim, kind }),
        2 => (key(), 0..4_u8, key(), any::<bool>())
            .prop_map(|(key, to, new, unregister)| Command::Move { key, to, new, unregister }),
    ];
    prop::collection::vec((0..4_u8, command), 1..60)
}

fn apply(machine: &mut Reservations, who: u8, command: &Command) -> Result<Effects, Refusal> {
    let id = host(who);
    match *command {
        Command::Register { current, new } => machine.register(&id, current, new, None),
        Command::Reserve { key, kind } => machine.reserve(&id, key, kind),
        Command::Release { key, kind } => machine.release(&id, key, kind),
        Command::Clear { key } => machine.clear(&id, key),
        Command::Preempt { key, victim, kind } => machine.preempt(&id, key, victim, kind, true),
        Command::Move { key, to, new, unregister } => {
            machine.register_and_move(&id, key, &host(to), new, unregister, false)
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_a_naive_table_does(commands in commands()) {
        let (mut machine, mut model) = (Reservations::new(), Model::default());
        for (who, command) in &commands {
            let before = machine.view();
            let outcome = apply(&mut machine, *who, command);
            let done = model.apply(*who, command);
            prop_assert_eq!(outcome.is_ok(), done, "{:?} by {}", command, who);
            let view = machine.view();
            if let Ok(effects) = outcome {
                prop_assert!(effects.notices.iter().all(|(id, _)| *id != host(*who)), "told its own author");
                for gone in &effects.aborted {
                    prop_assert!(view.key_of(gone).is_none() && before.key_of(gone).is_some());
                }
            } else {
                prop_assert_eq!(&before, &view, "a refused command changed something");
            }
            for other in 0..4 {
                prop_assert_eq!(view.key_of(&host(other)).unwrap_or(0), model.key(other));
                let standing = view.standing(&host(other));
                prop_assert_eq!(standing.holder, model.holds(other));
                for access in [Access::Read, Access::Write] {
                    prop_assert_eq!(view.allows(standing, access), model.may(other, access));
                }
            }
            prop_assert_eq!(view.kind(), model.reservation.map(|(_, kind)| kind));
            if let Some((holder, _)) = &view.holder {
                prop_assert!(view.key_of(holder).is_some(), "the holder is not registered");
            }
        }
    }

    #[test]
    fn what_persists_comes_back_as_it_was(commands in commands()) {
        let mut machine = Reservations::new();
        machine.register(&host(9), None, 9, Some(true)).unwrap();
        for (who, command) in &commands {
            apply(&mut machine, *who, command).ok();
        }
        if let Some(saved) = machine.to_persist() {
            let restored = Reservations::restored(&saved).view();
            let view = machine.view();
            prop_assert_eq!((restored.registrants, restored.holder), (view.registrants, view.holder));
        }
    }
}

#[test]
fn the_end_of_a_shared_reservation_is_told_to_the_other_registrants() {
    for kind in ReservationType::ALL {
        let mut machine = Reservations::new();
        for who in 1..4 {
            machine.register(&host(who), Some(0), u64::from(who), None).unwrap();
        }
        machine.reserve(&host(1), 1, kind).unwrap();
        let told = machine.release(&host(1), 1, kind).unwrap().notices;
        let expected = if kind.is_shared() { 2 } else { 0 };
        assert_eq!(told.len(), expected, "{kind:?}");
        assert!(told.iter().all(|(_, notice)| *notice == Notice::ReservationReleased));
    }
}

#[test]
fn a_preempt_tells_its_victims_and_those_who_lose_their_rights() {
    let mut machine = Reservations::new();
    for who in 1..4 {
        machine.register(&host(who), Some(0), u64::from(who), None).unwrap();
    }
    machine.reserve(&host(1), 1, ReservationType::WriteExclusiveRegistrantsOnly).unwrap();
    let effects = machine.preempt(&host(2), 2, 1, ReservationType::ExclusiveAccess, true).unwrap();
    assert_eq!(effects.aborted, [host(1)]);
    let expected = [(host(1), Notice::RegistrationPreempted), (host(3), Notice::ReservationReleased)];
    assert_eq!(effects.notices, expected);
    assert_eq!(machine.view().generation, 4);
    let refused = machine.preempt(&host(3), 3, 1, ReservationType::ExclusiveAccess, true);
    assert_eq!(refused, Err(Refusal::Conflict));
}

#[test]
fn registrants_are_bounded() {
    let mut machine = Reservations::new();
    for number in 0..REGISTRANTS_MAX {
        let id = RegistrantId { host: HostId::Nvme([1; 16]), port: u16::try_from(number).unwrap() };
        machine.register(&id, None, 7, None).unwrap();
    }
    assert_eq!(machine.register(&host(2), None, 7, None), Err(Refusal::Full));
    let first = RegistrantId { host: HostId::Nvme([1; 16]), port: 0 };
    machine.register(&first, None, 8, None).unwrap();
}
