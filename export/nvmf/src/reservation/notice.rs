//! What a controller has to tell its host of reservations: the Reservation Notification log page (Base 5.2.13.1.30) and
//! the mask (feature 82h).
//!
//! At most [`NOTICES_MAX`] wait; the oldest goes when one more comes, and the gap in the page's counter shows it.

use std::collections::{BTreeMap, VecDeque};

use penstock_bdev::reservation::Notice;
use penstock_spec::nvme::feature::ReservationNotificationMask;
use penstock_spec::nvme::log::{ReservationLogType, ReservationNotificationLog};
use zerocopy::little_endian::{U32, U64};

use crate::config::Nsid;

/// Notices that wait at most: as many as the page's field can tell of, and the page itself.
const NOTICES_MAX: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Entry {
    count: u64,
    nsid: Nsid,
    notice: Notice,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    masks: BTreeMap<Nsid, ReservationNotificationMask>,
    waiting: VecDeque<Entry>,
    count: u64,
}

impl Notices {
    /// The mask of a namespace.
    pub(crate) fn mask(&self, nsid: Nsid) -> ReservationNotificationMask {
        self.masks.get(&nsid).copied().unwrap_or_default()
    }

    /// Sets it; bits that mean nothing are left out.
    pub(crate) fn set_mask(&mut self, nsid: Nsid, mask: ReservationNotificationMask) {
        let known = ReservationNotificationMask(0).with_regpre(true).with_resrel(true).with_respre(true);
        self.masks.insert(nsid, ReservationNotificationMask(mask.0 & known.0));
    }

    /// Something happened; whether the host wants to hear of it.
    pub(crate) fn add(&mut self, nsid: Nsid, notice: Notice) -> bool {
        let mask = self.mask(nsid);
        let masked = match notice {
            Notice::RegistrationPreempted => mask.regpre(),
            Notice::ReservationReleased => mask.resrel(),
            Notice::ReservationPreempted => mask.respre(),
        };
        if masked {
            return false;
        }
        // 0 is kept for an empty page.
        self.count = self.count.wrapping_add(1).max(1);
        if self.waiting.len() >= NOTICES_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Entry { count: self.count, nsid, notice });
        true
    }

    /// The log page: the oldest notice, or an empty page.
    pub(crate) fn page(&self) -> ReservationNotificationLog {
        let mut page = ReservationNotificationLog::default();
        if let Some(Entry { count, nsid, notice }) = self.waiting.front() {
            page.count = U64::new(*count);
            page.log_type = match notice {
                Notice::RegistrationPreempted => ReservationLogType::REGISTRATION_PREEMPTED,
                Notice::ReservationReleased => ReservationLogType::RESERVATION_RELEASED,
                Notice::ReservationPreempted => ReservationLogType::RESERVATION_PREEMPTED,
            };
            page.available = u8::try_from(self.waiting.len() - 1).unwrap_or(u8::MAX);
            page.nsid = U32::new(nsid.0);
        }
        page
    }

    /// The host has the page; whether there is a next one.
    pub(crate) fn was_read(&mut self) -> bool {
        self.waiting.pop_front();
        !self.waiting.is_empty()
    }

    /// Forgets all.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}
