//! Reservation Register, Acquire and Release: their fields checked, and what they ask of the state machine.

use penstock_bdev::reservation::{Effects, Refusal, RegistrantId, ReservationType, Reservations};
use penstock_spec::nvme::reservation::{
    AcquireAction, AcquireData, AcquireDw10, ChangePtpl, RegisterAction, RegisterData, RegisterDw10,
    ReleaseAction, ReleaseData, ReleaseDw10,
};
use penstock_spec::nvme::{NvmOpcode, Sqe, Status};
use zerocopy::FromBytes;

use super::type_of;

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
const CONFLICT: Status = Status::RESERVATION_CONFLICT.with_dnr();

/// A command whose fields are valid in themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationCommand {
    /// Register Reservation Key.
    Register {
        /// NRKEY, not 0.
        new_key: u64,
        /// CPTPL: the new Persist Through Power Loss state, if it is to change.
        ptpl: Option<bool>,
    },
    /// Unregister Reservation Key.
    Unregister {
        /// CRKEY; `None`: it does not matter (IEKEY).
        key: Option<u64>,
        /// CPTPL.
        ptpl: Option<bool>,
    },
    /// Replace Reservation Key.
    Replace {
        /// CRKEY; `None`: neither it nor a registration matters (IEKEY).
        key: Option<u64>,
        /// NRKEY, not 0.
        new_key: u64,
        /// CPTPL.
        ptpl: Option<bool>,
    },
    /// Acquire.
    Acquire {
        /// CRKEY.
        key: u64,
        /// RTYPE.
        kind: ReservationType,
    },
    /// Preempt, and Preempt and Abort.
    Preempt {
        /// CRKEY.
        key: u64,
        /// PRKEY.
        victim: u64,
        /// RTYPE.
        kind: ReservationType,
        /// The victims' commands are to be aborted.
        abort: bool,
    },
    /// Release.
    Release {
        /// CRKEY.
        key: u64,
        /// RTYPE.
        kind: ReservationType,
    },
    /// Clear.
    Clear {
        /// CRKEY.
        key: u64,
    },
    /// Not a command of its own: Set Features, Reservation Persistence.
    Persist(bool),
}

/// Bytes of data that such a command brings at least.
#[must_use]
pub const fn data_len_min(opcode: NvmOpcode) -> u32 {
    match opcode {
        NvmOpcode::RESERVATION_RELEASE => 8,
        _ => 16,
    }
}

impl ReservationCommand {
    /// Checks the fields of a Register, Acquire or Release command.
    ///
    /// # Errors
    /// Invalid Field for values that are reserved or not allowed, Data SGL Length Invalid for too few data.
    pub fn parse(sqe: &Sqe, data: &[u8]) -> Result<Self, Status> {
        const SHORT: Status = Status::DATA_SGL_LENGTH_INVALID.with_dnr();
        let dw10 = sqe.cdw10.get();
        match NvmOpcode(sqe.opc) {
            NvmOpcode::RESERVATION_REGISTER => {
                let (data, _) = RegisterData::ref_from_prefix(data).map_err(|_| SHORT)?;
                register(RegisterDw10(dw10), data)
            }
            NvmOpcode::RESERVATION_ACQUIRE => {
                let (data, _) = AcquireData::ref_from_prefix(data).map_err(|_| SHORT)?;
                acquire(AcquireDw10(dw10), data)
            }
            NvmOpcode::RESERVATION_RELEASE => {
                let (data, _) = ReleaseData::ref_from_prefix(data).map_err(|_| SHORT)?;
                release(ReleaseDw10(dw10), data)
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    /// Does it to `machine` for `host`. `can_persist`: whether there is a place to keep reservations in.
    ///
    /// # Errors
    /// The status to answer with; `machine` may have changed then and is to be thrown away.
    pub fn apply(
        &self,
        machine: &mut Reservations,
        host: &RegistrantId,
        can_persist: bool,
    ) -> Result<Effects, Status> {
        let has = machine.key_of(host);
        let done = match *self {
            Self::Register { ptpl: Some(true), .. }
            | Self::Unregister { ptpl: Some(true), .. }
            | Self::Replace { ptpl: Some(true), .. }
            | Self::Persist(true)
                if !can_persist =>
            {
                return Err(INVALID_FIELD);
            }
            // A registrant may register again with the key that it has, and with no other.
            Self::Register { new_key, .. } if has.is_some_and(|key| key != new_key) => return Err(CONFLICT),
            Self::Register { new_key, ptpl } => machine.register(host, None, new_key, ptpl),
            Self::Unregister { .. } if has.is_none() => return Err(CONFLICT),
            Self::Unregister { key, ptpl } => machine.register(host, key, 0, ptpl),
            Self::Replace { key: Some(_), .. } if has.is_none() => return Err(CONFLICT),
            Self::Replace { key, new_key, ptpl } => machine.register(host, key, new_key, ptpl),
            Self::Acquire { key, kind } => machine.reserve(host, key, kind),
            Self::Preempt { key, victim, kind, abort } => machine.preempt(host, key, victim, kind, abort),
            Self::Release { key, kind } => machine.release(host, key, kind),
            Self::Clear { key } => machine.clear(host, key),
            Self::Persist(on) => {
                machine.set_persistent(on);
                Ok(Effects::default())
            }
        };
        done.map_err(|refusal| match refusal {
            Refusal::Conflict => CONFLICT,
            Refusal::WrongType | Refusal::Invalid => INVALID_FIELD,
            Refusal::Full => Status::INTERNAL_ERROR.with_dnr(),
        })
    }
}

impl ReservationCommand {
    /// What it is, for people; keys are left out.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Register { .. } => "register",
            Self::Unregister { .. } => "unregister",
            Self::Replace { .. } => "replace",
            Self::Acquire { .. } => "acquire",
            Self::Preempt { abort: false, .. } => "preempt",
            Self::Preempt { abort: true, .. } => "preempt and abort",
            Self::Release { .. } => "release",
            Self::Clear { .. } => "clear",
            Self::Persist(_) => "set persistence",
        }
    }
}

fn register(dw10: RegisterDw10, data: &RegisterData) -> Result<ReservationCommand, Status> {
    let ptpl = match ChangePtpl(dw10.cptpl()) {
        ChangePtpl::NO_CHANGE => None,
        ChangePtpl::CLEAR => Some(false),
        ChangePtpl::SET => Some(true),
        _ => return Err(INVALID_FIELD),
    };
    let key = (!dw10.iekey()).then_some(data.crkey.get());
    let new_key = data.nrkey.get();
    match RegisterAction(dw10.rrega()) {
        RegisterAction::REGISTER if new_key != 0 => Ok(ReservationCommand::Register { new_key, ptpl }),
        RegisterAction::UNREGISTER => Ok(ReservationCommand::Unregister { key, ptpl }),
        RegisterAction::REPLACE if new_key != 0 => Ok(ReservationCommand::Replace { key, new_key, ptpl }),
        _ => Err(INVALID_FIELD),
    }
}

fn acquire(dw10: AcquireDw10, data: &AcquireData) -> Result<ReservationCommand, Status> {
    if dw10.iekey() {
        return Err(INVALID_FIELD);
    }
    let kind = type_of(dw10.rtype()).ok_or(INVALID_FIELD)?;
    let (key, victim) = (data.crkey.get(), data.prkey.get());
    match AcquireAction(dw10.racqa()) {
        AcquireAction::ACQUIRE => Ok(ReservationCommand::Acquire { key, kind }),
        AcquireAction::PREEMPT => Ok(ReservationCommand::Preempt { key, victim, kind, abort: false }),
        AcquireAction::PREEMPT_AND_ABORT => {
            Ok(ReservationCommand::Preempt { key, victim, kind, abort: true })
        }
        _ => Err(INVALID_FIELD),
    }
}

fn release(dw10: ReleaseDw10, data: &ReleaseData) -> Result<ReservationCommand, Status> {
    if dw10.iekey() {
        return Err(INVALID_FIELD);
    }
    let key = data.crkey.get();
    match ReleaseAction(dw10.rrela()) {
        ReleaseAction::RELEASE => {
            let kind = type_of(dw10.rtype()).ok_or(INVALID_FIELD)?;
            Ok(ReservationCommand::Release { key, kind })
        }
        ReleaseAction::CLEAR => Ok(ReservationCommand::Clear { key }),
        _ => Err(INVALID_FIELD),
    }
}
