//! Commands that their path refuses, on I/O queues: nothing of this is looked at while all paths are open.

use penstock_spec::nvme::Status;
use penstock_spec::nvmf::Nqn;

use super::core::Core;
use super::{Group, GroupCell};
use crate::qpair::{IoQueue, Link};
use crate::tcp::req::Req;

impl Core {
    /// Looks whether any path is closed, after a change.
    pub(super) fn look_at_paths(&mut self) {
        let live = self.subsystems.iter().flatten().filter(|subsystem| !subsystem.removed);
        self.paths_closed = live.into_iter().any(|subsystem| subsystem.config.ana_blocks());
    }

    /// The status of a command that the path of its queue refuses.
    #[cold]
    pub(super) fn path_open(&self, queue: &IoQueue, nsid: u32) -> Result<(), Status> {
        let Some(subsystem) = self.subsystem(queue.subsystem) else { return Ok(()) };
        subsystem.config.path_open(queue.portid, nsid)
    }

    /// As [`Self::path_open`], for a command that was taken before.
    #[cold]
    pub(super) fn still_open(&self, link: &Link, req: &Req) -> Result<(), Status> {
        let Link::Io(queue) = link else { return Ok(()) };
        match self.nsid_of(queue, req) {
            Some(nsid) => self.path_open(queue, nsid),
            None => Ok(()),
        }
    }

    /// The namespace of a command that goes to a bdev.
    fn nsid_of(&self, queue: &IoQueue, req: &Req) -> Option<u32> {
        self.subsystem(queue.subsystem)?.nsid_of(req.kind.chan()?)
    }
}

impl Group {
    /// Whether a bdev has a command that came by a path that is closed now.
    fn has_closed_io(&self, subnqn: &Nqn, portid: u16) -> bool {
        self.entries.iter().flatten().any(|entry| {
            let Link::Io(queue) = &entry.conn.link else { return false };
            let found = self.core.subsystem(queue.subsystem);
            if queue.portid != portid || found.is_none_or(|subsystem| subsystem.config.nqn != *subnqn) {
                return false;
            }
            entry.conn.slab().slots_used().any(|slot| {
                let req = entry.conn.slab().get(slot).filter(|req| req.is_out());
                let nsid = req.and_then(|req| self.core.nsid_of(queue, req));
                nsid.is_some_and(|nsid| self.core.path_open(queue, nsid).is_err())
            })
        })
    }
}

impl GroupCell {
    /// Whether no bdev has a command any more that came to the subsystem by a path that refuses it now.
    #[must_use]
    pub fn path_is_quiet(&self, subnqn: &Nqn, portid: u16) -> bool {
        !self.0.borrow().has_closed_io(subnqn, portid)
    }
}
