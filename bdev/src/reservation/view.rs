//! The reservations as every core sees them.

use super::{RegistrantId, ReservationType};

/// What a command does with the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It reads them.
    Read,
    /// It changes them, or anything else of the device that others would see.
    Write,
}

/// What one registrant is in a view; looked up once per view, kept by whoever sends the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// It is registered.
    pub registered: bool,
    /// It holds the reservation (with an all-registrants type: as every registrant does).
    pub holder: bool,
}

/// An immutable copy of the reservations of one bdev.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReservationView {
    /// PRGENERATION or GEN: changes of the registrations since power on.
    pub generation: u32,
    /// Whether they persist through power loss.
    pub persistent: bool,
    /// Registrants with their keys, sorted.
    pub registrants: Vec<(RegistrantId, u64)>,
    /// Who made the reservation, and its type.
    pub holder: Option<(RegistrantId, ReservationType)>,
}

impl ReservationView {
    /// The type of the reservation, if there is one.
    #[inline]
    #[must_use]
    pub fn kind(&self) -> Option<ReservationType> {
        self.holder.as_ref().map(|(_, kind)| *kind)
    }

    /// The key of a registrant.
    #[must_use]
    pub fn key_of(&self, id: &RegistrantId) -> Option<u64> {
        let at = self.registrants.binary_search_by(|(other, _)| other.cmp(id)).ok()?;
        self.registrants.get(at).map(|(_, key)| *key)
    }

    /// What `id` is here.
    #[must_use]
    pub fn standing(&self, id: &RegistrantId) -> Standing {
        let registered = self.key_of(id).is_some();
        let holder = match &self.holder {
            Some((_, kind)) if kind.is_all_registrants() => registered,
            Some((holder, _)) => holder == id,
            None => false,
        };
        Standing { registered, holder }
    }

    /// The key that the reservation is reported with: the holder's, 0 where all registrants hold it.
    #[must_use]
    pub fn reservation_key(&self) -> u64 {
        match &self.holder {
            Some((holder, kind)) if !kind.is_all_registrants() => self.key_of(holder).unwrap_or(0),
            _ => 0,
        }
    }

    /// Whether one with this standing may do that.
    #[inline]
    #[must_use]
    pub fn allows(&self, standing: Standing, access: Access) -> bool {
        let Some(kind) = self.kind() else { return true };
        standing.holder
            || (kind.is_shared() && standing.registered)
            || (access == Access::Read && !kind.excludes_reads())
    }
}
