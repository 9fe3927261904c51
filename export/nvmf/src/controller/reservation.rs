//! The controller's part of reservations: notices to its host, and the two features.

use penstock_bdev::reservation::Notice;
use penstock_spec::nvme::feature::{
    Fid, ReservationNotificationMask, ReservationPersistence, SetFeaturesDw10,
};
use penstock_spec::nvme::{NSID_ALL, Sqe, Status};

use super::event::Event;
use super::{AdminOutcome, Completion, Controller, INVALID_FIELD};
use crate::config::{NamespaceConfig, Nsid};
use crate::reservation::capabilities;

impl Controller {
    /// The host has lost something by another one's reservation command, unless it does not want to hear of it.
    pub fn reservation_notice(&mut self, nsid: Nsid, notice: Notice) {
        if self.notices.add(nsid, notice) {
            self.events.raise(Event::ReservationLog);
        }
    }

    /// The reservation notification page was read: the next notice, if there is one, is an event of its own.
    pub(super) fn notice_was_read(&mut self) {
        self.events.was_read(Event::ReservationLog);
        if self.notices.was_read() {
            self.events.raise(Event::ReservationLog);
        }
    }

    /// RESCAP.
    pub(super) fn reservation_capabilities(&self, namespace: &NamespaceConfig) -> u8 {
        let known = self.params.subsystem.reservations.get(&namespace.nsid);
        capabilities(known.is_some_and(|known| known.can_persist))
    }

    /// Features 82h and 83h: of one namespace.
    pub(super) fn reservation_feature(&self, fid: Fid, nsid: u32) -> Result<Completion, Status> {
        if self.params.subsystem.namespace(nsid).is_none() {
            return Err(INVALID_FIELD);
        }
        let nsid = Nsid(nsid);
        let dw0 = if fid == Fid::RESERVATION_NOTIFICATION_MASK {
            self.notices.mask(nsid).0
        } else {
            let known = self.params.subsystem.reservations.get(&nsid);
            let persistent = known.is_some_and(|known| known.view.persistent);
            ReservationPersistence(0).with_ptpl(persistent).0
        };
        Ok(Completion::ok(dw0))
    }

    /// Set Features of 82h; FFFFFFFFh sets the masks of all namespaces.
    pub(super) fn set_notification_mask(&mut self, nsid: u32, value: u32) -> u32 {
        let all = self.params.subsystem.namespaces.keys();
        for nsid in all.filter(|known| nsid == NSID_ALL || known.0 == nsid) {
            self.notices.set_mask(*nsid, ReservationNotificationMask(value));
        }
        0
    }

    /// Set Features of 83h: the control thread decides.
    pub(super) fn set_persistence(&self, sqe: &Sqe) -> Result<AdminOutcome, Status> {
        if SetFeaturesDw10(sqe.cdw10.get()).sv() {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        let nsid = sqe.nsid.get();
        if nsid != NSID_ALL && self.params.subsystem.namespace(nsid).is_none() {
            return Err(self.no_namespace(nsid));
        }
        self.path_open(nsid)?;
        let on = ReservationPersistence(sqe.cdw11.get()).ptpl();
        Ok(AdminOutcome::Persist { nsid, on })
    }
}
