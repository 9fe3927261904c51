//! Cross-Controller Reset (Base 2.3 5.4.3; TP8028): this controller's host asks for the end of another of its controllers.
//!
//! The group looks for the impacted controller, on whichever reactor, and ends it; here is what the host is told of
//! that: the command's completion, the log page (LID 1Eh) and the event.

use penstock_spec::nvme::cross_reset::{
    ACID_NONE, CROSS_RESET_ENTRIES_MAX, CrossResetCmd, CrossResetEntry, CrossResetFlags, CrossResetLogHdr,
    CrossResetResult, CrossResetStatus,
};
use penstock_spec::nvme::{Sqe, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::event::Event;
use super::{AdminOutcome, Completion, Controller, INVALID_FIELD};

/// CCRL: resets that one controller may have under way, as TP8028 recommends.
pub const CROSS_RESETS_MAX: u8 = 4;
/// Entries of the log page at most.
const ENTRIES_MAX: usize = 32;

const _: () = assert!(ENTRIES_MAX <= CROSS_RESET_ENTRIES_MAX && ENTRIES_MAX >= CROSS_RESETS_MAX as usize);

/// One life of a controller: from its becoming ready to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance {
    /// CNTLID.
    pub cntlid: u16,
    /// Controller Instance Uniquifier.
    pub ciu: u8,
    /// Controller Instance Random Number.
    pub cirn: u64,
}

/// What became of the search for an impacted controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrossReset {
    /// There is no such instance any more: nothing of it can reach a namespace.
    Gone,
    /// It is being ended; [`Controller::cross_reset_done`] follows.
    Begun,
    /// It is being ended for another controller's sake.
    Underway,
    /// It belongs to another host.
    Foreign,
}

/// Resets that a controller has asked for.
#[derive(Debug, Default)]
pub(super) struct CrossResets {
    /// Commands that wait for the search.
    searching: u8,
    entries: Vec<CrossResetEntry>,
}

impl CrossResets {
    fn in_progress(&self) -> usize {
        let open = self.entries.iter().filter(|entry| entry.ccrs == CrossResetStatus::IN_PROGRESS);
        usize::from(self.searching) + open.count()
    }

    pub(super) fn page(&self) -> Vec<u8> {
        let mut header = CrossResetLogHdr::default();
        header.entries = U16::new(u16::try_from(self.entries.len()).unwrap_or(0));
        let mut page = header.as_bytes().to_vec();
        page.extend_from_slice(self.entries.as_bytes());
        page
    }

    pub(super) fn remove_completed(&mut self) {
        self.entries.retain(|entry| entry.ccrs == CrossResetStatus::IN_PROGRESS);
    }
}

impl Controller {
    pub(super) fn cross_reset(&mut self, sqe: &Sqe) -> Result<AdminOutcome, Status> {
        let cmd = CrossResetCmd::from_sqe(sqe);
        let impacted = Instance { cntlid: cmd.icid.get(), ciu: cmd.ciu, cirn: cmd.cirn.get() };
        // A controller cannot be ended by itself: that would end the command, too.
        if impacted.cntlid == self.params.cntlid || impacted.ciu == 0 {
            return Err(INVALID_FIELD);
        }
        let resets = &self.cross_resets;
        if resets.in_progress() >= usize::from(CROSS_RESETS_MAX) {
            return Err(Status::CROSS_RESET_LIMIT_EXCEEDED);
        }
        if resets.entries.len() + usize::from(resets.searching) >= ENTRIES_MAX {
            return Err(Status::CROSS_RESET_LOG_FULL);
        }
        self.cross_resets.searching += 1;
        Ok(AdminOutcome::CrossReset(impacted))
    }

    /// The search for an [`AdminOutcome::CrossReset`] is over: how its command ends.
    pub fn cross_reset_answer(&mut self, impacted: Instance, found: CrossReset) -> Completion {
        self.cross_resets.searching = self.cross_resets.searching.saturating_sub(1);
        let immediate = CrossResetResult(0).with_immediate(true);
        match found {
            CrossReset::Gone => Completion::ok(immediate.0),
            CrossReset::Underway => Status::CROSS_RESET_IN_PROGRESS.into(),
            CrossReset::Foreign => INVALID_FIELD.into(),
            CrossReset::Begun => {
                let mut entry = CrossResetEntry::default();
                entry.icid = U16::new(impacted.cntlid);
                entry.ciu = impacted.ciu;
                entry.acid = U16::new(ACID_NONE);
                entry.ccrs = CrossResetStatus::IN_PROGRESS;
                entry.ccrf = CrossResetFlags(0).with_validated(true).with_initiated(true).0;

                self.cross_resets.entries.push(entry);
                Completion::ok(0)
            }
        }
    }

    /// A reset that was begun is over: nothing of the impacted controller is under way any more.
    pub fn cross_reset_done(&mut self, impacted: Instance) {
        let open = |entry: &&mut CrossResetEntry| {
            entry.ccrs == CrossResetStatus::IN_PROGRESS
                && (entry.icid.get(), entry.ciu) == (impacted.cntlid, impacted.ciu)
        };
        if let Some(entry) = self.cross_resets.entries.iter_mut().find(open) {
            entry.ccrs = CrossResetStatus::SUCCESSFUL;
            self.events.raise(Event::CrossReset);
        }
    }

    /// The life that it is in; CIU 0 before it was ever ready.
    #[must_use]
    pub const fn instance(&self) -> Instance {
        Instance { cntlid: self.params.cntlid, ciu: self.ciu, cirn: self.cirn }
    }

    /// It became ready: another life begins.
    pub(super) fn begin_instance(&mut self) {
        self.ciu = match self.ciu {
            0 => u8::try_from(self.random.below(255) + 1).unwrap_or(1),
            u8::MAX => 1,
            ciu => ciu + 1,
        };
        self.cirn = self.random.next_u64();
        self.cross_resets.remove_completed();
    }
}
