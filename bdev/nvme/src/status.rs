//! What a controller's statuses mean to those above a bdev (Base 4.2.3; NVM Command Set 3.1).

use penstock_bdev::{IoStatus, Op};
use penstock_spec::nvme::status::Sct;
use penstock_spec::nvme::{Cqe, Status};

/// What is to be done with a command that ended so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is through.
    Ended(IoStatus),
    /// The same command may succeed later; the number of the Command Retry Delay (0: none).
    Retry(u8, IoStatus),
}

/// Statuses that an I/O has a word of its own for. Everything else is [`IoStatus::Internal`], or an error of the medium.
const TABLE: &[(Status, IoStatus)] = &[
    (Status::INVALID_OPCODE, IoStatus::Unsupported),
    (Status::INVALID_FIELD, IoStatus::Unsupported),
    (Status::ABORTED_BY_REQUEST, IoStatus::Aborted),
    (Status::ABORTED_SQ_DELETION, IoStatus::Aborted),
    (Status::ABORTED_POWER_LOSS, IoStatus::Aborted),
    (Status::ABORTED_PREEMPT, IoStatus::Aborted),
    (Status::INVALID_NAMESPACE_OR_FORMAT, IoStatus::Gone),
    (Status::NAMESPACE_WRITE_PROTECTED, IoStatus::WriteProtected),
    (Status::LBA_OUT_OF_RANGE, IoStatus::OutOfRange),
    (Status::CAPACITY_EXCEEDED, IoStatus::NoSpace),
    (Status::NAMESPACE_NOT_READY, IoStatus::NotReady),
    (Status::FORMAT_IN_PROGRESS, IoStatus::NotReady),
    (Status::COMMAND_INTERRUPTED, IoStatus::NotReady),
    (Status::TRANSIENT_TRANSPORT_ERROR, IoStatus::NotReady),
    (Status::RESERVATION_CONFLICT, IoStatus::ReservationConflict),
    (Status::ATTEMPTED_WRITE_TO_READ_ONLY_RANGE, IoStatus::WriteProtected),
    (Status::COMMAND_SIZE_LIMIT_EXCEEDED, IoStatus::Unsupported),
    (Status::WRITE_FAULT, IoStatus::WriteError),
    (Status::UNRECOVERED_READ_ERROR, IoStatus::ReadError),
    (Status::COMPARE_FAILURE, IoStatus::Miscompare),
    (Status::GUARD_CHECK_ERROR, IoStatus::ChecksumError),
    (Status::APPLICATION_TAG_CHECK_ERROR, IoStatus::ChecksumError),
    (Status::REFERENCE_TAG_CHECK_ERROR, IoStatus::ChecksumError),
    (Status::ACCESS_DENIED, IoStatus::ReservationConflict),
];

/// Statuses that pass by themselves.
const TRANSIENT: &[Status] =
    &[Status::NAMESPACE_NOT_READY, Status::COMMAND_INTERRUPTED, Status::TRANSIENT_TRANSPORT_ERROR];

/// What `cqe`'s status means for an I/O that does `op`.
#[inline]
#[must_use]
pub fn judge(op: Op, cqe: &Cqe) -> Verdict {
    let status = cqe.status();
    if status.is_success() {
        return Verdict::Ended(IoStatus::Success);
    }
    judge_failure(op, status)
}

#[cold]
fn judge_failure(op: Op, status: Status) -> Verdict {
    let known = TABLE.iter().find(|row| row.0.is(status)).map(|row| row.1);
    let meaning = known.unwrap_or(match (status.sct(), op) {
        (Sct::MEDIA, Op::Read | Op::Compare) => IoStatus::ReadError,
        (Sct::MEDIA, _) => IoStatus::WriteError,
        _ => IoStatus::Internal,
    });
    // A copy or a compare-and-write fails on reading, too; the medium's word counts more than the operation.
    if TRANSIENT.iter().any(|code| code.is(status)) && !status.dnr() {
        return Verdict::Retry(status.crd(), meaning);
    }
    Verdict::Ended(meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(op: Op, status: Status) -> Verdict {
        judge(op, &Cqe::new(0, 0, status))
    }

    #[test]
    fn errors_of_the_medium_say_which_way_the_data_went() {
        assert_eq!(verdict(Op::Read, Status::UNRECOVERED_READ_ERROR), Verdict::Ended(IoStatus::ReadError));
        assert_eq!(verdict(Op::Write, Status::WRITE_FAULT), Verdict::Ended(IoStatus::WriteError));
        assert_eq!(verdict(Op::Read, Status::new(2, 0xf0)), Verdict::Ended(IoStatus::ReadError));
        assert_eq!(verdict(Op::Unmap, Status::new(2, 0xf0)), Verdict::Ended(IoStatus::WriteError));
    }

    #[test]
    fn what_passes_by_itself_is_tried_again_unless_the_controller_forbids_it() {
        let busy = Status::NAMESPACE_NOT_READY;
        assert_eq!(verdict(Op::Read, busy.with_crd(2)), Verdict::Retry(2, IoStatus::NotReady));
        assert_eq!(verdict(Op::Read, busy.with_dnr()), Verdict::Ended(IoStatus::NotReady));
    }

    #[test]
    fn every_status_of_the_standard_ends_or_repeats_an_io_and_only_success_succeeds() {
        for (status, name) in Status::all() {
            for op in Op::ALL {
                let ended = verdict(op, *status);
                assert_ne!(ended, Verdict::Ended(IoStatus::Pending), "{name}");
                assert_eq!(ended == Verdict::Ended(IoStatus::Success), status.is_success(), "{name}");
            }
        }
    }
}
