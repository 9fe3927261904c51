//! Reservations of a bdev: which hosts may read and write it, whichever protocol they come by.
//!
//! SCSI's persistent reservations (SPC-4 5.13) and NVMe's reservations (Base 8.1.22) are one thing with two encodings.
//! This is the thing: [`Reservations`] is the state machine, owned by one thread; after a change it gives out an
//! immutable [`ReservationView`], which every core reads without a lock; [`Effects`] say whom to tell and whose commands
//! to abort.
//!
//! Invariants: the holder is registered; a registrant has one key, never 0; the generation counts every change of the
//! registrations; there are at most [`REGISTRANTS_MAX`] registrants.

mod book;
mod file;
mod machine;
mod view;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

pub use book::{Applied, NoStore, Protocol, ReservationBook, SharedReservations, SharedStore};
pub use file::PtplFile;
pub use machine::{Effects, Notice, Refusal, Reservations};
pub use view::{Access, ReservationView, Standing};

/// Registrants of one bdev at most.
pub const REGISTRANTS_MAX: usize = 256;

/// Who may do what while the reservation is held. The six types of both standards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReservationType {
    /// The holder writes, all read.
    WriteExclusive,
    /// The holder reads and writes.
    ExclusiveAccess,
    /// Registrants write, all read; one of them holds it.
    WriteExclusiveRegistrantsOnly,
    /// Registrants read and write; one of them holds it.
    ExclusiveAccessRegistrantsOnly,
    /// Registrants write, all read; all of them hold it.
    WriteExclusiveAllRegistrants,
    /// Registrants read and write; all of them hold it.
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// Whether every registrant is a holder.
    #[must_use]
    pub const fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// Whether every registrant has the holder's rights.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Whether it keeps others from reading too.
    #[must_use]
    pub const fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// A host as its protocol names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostId {
    /// NVMe: the 128-bit host identifier.
    Nvme([u8; 16]),
    /// SCSI: the TransportID of the initiator port (SPC-4 7.6.4).
    Scsi(Arc<[u8]>),
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nvme(id) => write!(f, "nvme:{}", Uuid::from_bytes(*id)),
            Self::Scsi(id) => write!(f, "scsi:{}", String::from_utf8_lossy(id).escape_debug()),
        }
    }
}

/// One that registers: NVMe registers hosts, SCSI registers I_T nexuses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistrantId {
    /// The host.
    pub host: HostId,
    /// SCSI: RELATIVE TARGET PORT IDENTIFIER of the nexus. NVMe: 0.
    pub port: u16,
}

/// What outlives a loss of power: the registrations and the reservation. Restored by [`Reservations::restored`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PersistedReservations {
    /// Registrants with their keys.
    pub registrants: Vec<(RegistrantId, u64)>,
    /// The reservation: who made it, and its type.
    pub holder: Option<(RegistrantId, ReservationType)>,
}

/// Keeps what must persist through power loss, by the UUID of the bdev.
pub trait ReservationStore {
    /// Makes `state` durable; `None` forgets what was there. A reservation command that asks for persistence is answered
    /// only after this returned.
    ///
    /// # Errors
    /// What the storage says; the command fails and changes nothing.
    fn save(&mut self, bdev: Uuid, state: Option<&PersistedReservations>) -> std::io::Result<()>;

    /// What was saved last.
    ///
    /// # Errors
    /// What the storage says; the bdev must not be exported then, as its reservations are not known.
    fn load(&mut self, bdev: Uuid) -> std::io::Result<Option<PersistedReservations>>;

    /// Whether it keeps anything for this bdev.
    fn persists(&self, _bdev: Uuid) -> bool {
        true
    }
}
