//! Reservations (Base 8.1.22), over the state machine that all protocols share (`penstock_bdev::reservation`).
//!
//! ```text
//!   Register, Acquire, Release                    the control thread: one machine a bdev
//!   on a queue of any reactor ── Request ──► Target ── apply ── save (PTPL) ── next SubsystemConfig ──► all reactors
//!        ▲                                                                                                  │
//!        └────────── status, when every reactor has it and the preempted commands are gone ◄────────────────┘
//! ```
//!
//! Every reactor judges commands by its own snapshot, when they come and again when their data are there, without a lock
//! or a message. Report is answered from the snapshot.

mod command;
mod notice;
mod report;

use std::path::PathBuf;
use std::sync::Arc;

use penstock_bdev::Op;
use penstock_bdev::reservation::{Access, RegistrantId, ReservationType, ReservationView};
use penstock_spec::nvme::NvmOpcode;
use penstock_spec::nvme::reservation as wire;
use penstock_spec::nvmf::Nqn;

pub use command::{ReservationCommand, data_len_min};
pub(crate) use notice::Notices;
pub use report::report;

use crate::tcp::req::ReqId;

/// Requests that wait for the control thread at most, and one for each reactor; further ones are to be tried again.
pub const REQUESTS_MAX: usize = 256;

/// What every reactor knows of the reservations of one namespace.
#[derive(Debug, Clone, Default)]
pub struct NamespaceReservations {
    /// What commands are judged by.
    pub view: Arc<ReservationView>,
    /// Whether they can persist through power loss (PTPLS).
    pub can_persist: bool,
    /// The file of their own that they are kept in.
    pub ptpl_file: Option<PathBuf>,
}

/// A command that only the control thread can carry out, on its way there.
#[derive(Debug)]
pub(crate) struct Request {
    /// Index of the reactor that waits for the answer, the command there, and its connection's serial number.
    pub(crate) from: usize,
    pub(crate) id: ReqId,
    pub(crate) serial: u64,
    pub(crate) cid: u16,
    pub(crate) nqn: Nqn,
    /// The namespace; FFFFFFFFh: all of them.
    pub(crate) nsid: u32,
    pub(crate) host: RegistrantId,
    pub(crate) command: ReservationCommand,
}

/// Whether a command is one of reservations.
#[inline]
#[must_use]
pub const fn is_reservation(opcode: NvmOpcode) -> bool {
    matches!(
        opcode,
        NvmOpcode::RESERVATION_REGISTER
            | NvmOpcode::RESERVATION_REPORT
            | NvmOpcode::RESERVATION_ACQUIRE
            | NvmOpcode::RESERVATION_RELEASE
    )
}

/// What a command does to the namespace, as reservations see it (NVM Command Set, "Command Behavior in the Presence of a
/// Reservation"); `None`: nothing that they forbid.
#[must_use]
pub const fn access_of(opcode: NvmOpcode) -> Option<Access> {
    match opcode {
        NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::VERIFY => Some(Access::Read),
        NvmOpcode::WRITE
        | NvmOpcode::FLUSH
        | NvmOpcode::WRITE_ZEROES
        | NvmOpcode::DATASET_MANAGEMENT
        | NvmOpcode::COPY => Some(Access::Write),
        _ => None,
    }
}

/// As [`access_of`], of an I/O.
#[must_use]
pub(crate) const fn access_of_io(op: Op) -> Access {
    match op {
        Op::Read | Op::Compare => Access::Read,
        _ => Access::Write,
    }
}

const TYPES: [(wire::ReservationType, ReservationType); 6] = [
    (wire::ReservationType::WRITE_EXCLUSIVE, ReservationType::WriteExclusive),
    (wire::ReservationType::EXCLUSIVE_ACCESS, ReservationType::ExclusiveAccess),
    (wire::ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY, ReservationType::WriteExclusiveRegistrantsOnly),
    (
        wire::ReservationType::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
        ReservationType::ExclusiveAccessRegistrantsOnly,
    ),
    (wire::ReservationType::WRITE_EXCLUSIVE_ALL_REGISTRANTS, ReservationType::WriteExclusiveAllRegistrants),
    (wire::ReservationType::EXCLUSIVE_ACCESS_ALL_REGISTRANTS, ReservationType::ExclusiveAccessAllRegistrants),
];

fn type_of(code: u8) -> Option<ReservationType> {
    TYPES.iter().find(|(known, _)| known.0 == code).map(|(_, kind)| *kind)
}

fn code_of(kind: ReservationType) -> u8 {
    TYPES.iter().find(|(_, known)| *known == kind).map_or(0, |(code, _)| code.0)
}

/// RESCAP of Identify Namespace: all types, and IEKEY as of revision 1.3.
#[must_use]
pub fn capabilities(can_persist: bool) -> u8 {
    wire::ReservationCapabilities(0)
        .with_ptpls(can_persist)
        .with_wes(true)
        .with_eas(true)
        .with_weros(true)
        .with_earos(true)
        .with_wears(true)
        .with_eaars(true)
        .with_ieks(true)
        .0
}

#[cfg(test)]
mod tests;
