//! The Error Information log (Base 5.2.13.1.2): the newest [`ENTRIES`] commands that failed.

use penstock_spec::nvme::Status;
use penstock_spec::nvme::log::health::ErrorLogEntry;
use penstock_spec::nvmf::discovery::TrType;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Entries that are kept (ELPE plus one).
pub(super) const ENTRIES: usize = 64;

/// Parameter Error Location: not a single byte of the command.
const NO_LOCATION: u16 = 0xffff;

/// A command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandError {
    /// Queue it came from; 0 is the admin queue.
    pub sqid: u16,
    /// Its command identifier.
    pub cid: u16,
    /// Its opcode.
    pub opc: u8,
    /// Its namespace identifier.
    pub nsid: u32,
    /// Its first block; 0 where it has none.
    pub lba: u64,
    /// What the host was told.
    pub status: Status,
}

/// The log of one controller.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    /// A ring: error number n is at `(n - 1) % ENTRIES`.
    ring: Vec<ErrorLogEntry>,
    count: u64,
    media_errors: u64,
}

impl ErrorLog {
    /// Takes an error in. Commands that were aborted because somebody wanted it are no errors; a Compare that finds a
    /// difference, or a reservation that keeps a host out, is an answer.
    pub(super) fn record(&mut self, error: &CommandError) {
        let status = error.status;
        if status.is_success()
            || status.is(Status::ABORTED_BY_REQUEST)
            || status.is(Status::ABORTED_SQ_DELETION)
            || status.is(Status::COMPARE_FAILURE)
            || status.is(Status::RESERVATION_CONFLICT)
        {
            return;
        }
        self.count += 1;
        let media = [
            Status::WRITE_FAULT,
            Status::UNRECOVERED_READ_ERROR,
            Status::GUARD_CHECK_ERROR,
            Status::APPLICATION_TAG_CHECK_ERROR,
            Status::REFERENCE_TAG_CHECK_ERROR,
        ];
        self.media_errors += u64::from(media.into_iter().any(|code| status.is(code)));
        let mut entry = ErrorLogEntry::default();
        entry.error_count = U64::new(self.count);
        entry.sqid = U16::new(error.sqid);
        entry.cid = U16::new(error.cid);
        entry.status = U16::new(status.to_bits());
        entry.parameter_error_location = U16::new(NO_LOCATION);
        entry.lba = U64::new(error.lba);
        entry.nsid = U32::new(error.nsid);
        entry.trtype = TrType::TCP.0;
        entry.opc = error.opc;
        entry.lpver = 1;

        if self.ring.len() < ENTRIES {
            self.ring.push(entry);
            return;
        }
        let at = usize::try_from((self.count - 1) % ENTRIES as u64).unwrap_or(0);
        if let Some(slot) = self.ring.get_mut(at) {
            *slot = entry;
        }
    }

    /// The page: the newest entry first, unused entries zero.
    pub(super) fn page(&self) -> Vec<u8> {
        let mut newest_first = self.ring.clone();
        newest_first.sort_by_key(|entry| std::cmp::Reverse(entry.error_count.get()));
        newest_first.resize(ENTRIES, ErrorLogEntry::default());
        newest_first.as_bytes().to_vec()
    }

    /// Errors over the life of the controller.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Errors of the medium over the life of the controller.
    pub(super) const fn media_errors(&self) -> u64 {
        self.media_errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    #[test]
    fn the_newest_errors_are_kept_with_running_numbers_and_aborts_are_none() {
        let mut log = ErrorLog::default();
        for cid in 0..70 {
            let status = Status::UNRECOVERED_READ_ERROR.with_dnr();
            log.record(&CommandError { sqid: 3, cid, opc: 2, nsid: 1, lba: 9, status });
            let status = Status::ABORTED_BY_REQUEST;
            log.record(&CommandError { sqid: 3, cid, opc: 2, nsid: 1, lba: 9, status });
        }
        let page = log.page();
        let entries = <[ErrorLogEntry]>::ref_from_bytes(&page).unwrap();
        assert_eq!(entries.len(), ENTRIES);
        assert_eq!((entries[0].error_count.get(), entries[0].cid.get()), (70, 69));
        assert_eq!((entries[63].error_count.get(), entries[63].cid.get()), (7, 6));
        assert_eq!((log.count(), log.media_errors()), (70, 70));
        assert_eq!(entries[0].status.get(), 0x8502);
    }
}
