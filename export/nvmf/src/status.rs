//! The one table between a bdev's [`IoStatus`] and NVMe's [`Status`].
//!
//! DNR is set where the same command cannot succeed a moment later. A checksum error is told as Unrecovered Read Error:
//! the end-to-end codes are for protection information that the host itself handed over.

use penstock_bdev::IoStatus;
use penstock_spec::nvme::Status;

/// Every status that an I/O can end with, what the host is told, and whether that code means this one on the way back.
const TABLE: &[(IoStatus, Status, bool)] = &[
    (IoStatus::Success, Status::SUCCESS, true),
    (IoStatus::Pending, Status::INTERNAL_ERROR, false),
    (IoStatus::Aborted, Status::ABORTED_BY_REQUEST, true),
    (IoStatus::OutOfRange, Status::LBA_OUT_OF_RANGE.with_dnr(), true),
    (IoStatus::Unsupported, Status::INVALID_OPCODE.with_dnr(), true),
    (IoStatus::BadLength, Status::DATA_SGL_LENGTH_INVALID.with_dnr(), true),
    (IoStatus::Miscompare, Status::COMPARE_FAILURE.with_dnr(), true),
    (IoStatus::WriteProtected, Status::NAMESPACE_WRITE_PROTECTED.with_dnr(), true),
    (IoStatus::NoSpace, Status::CAPACITY_EXCEEDED.with_dnr(), true),
    (IoStatus::ReadError, Status::UNRECOVERED_READ_ERROR.with_dnr(), true),
    (IoStatus::ChecksumError, Status::UNRECOVERED_READ_ERROR.with_dnr(), false),
    (IoStatus::WriteError, Status::WRITE_FAULT.with_dnr(), true),
    (IoStatus::Gone, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(), true),
    (IoStatus::NotReady, Status::NAMESPACE_NOT_READY, true),
    (IoStatus::ReservationConflict, Status::RESERVATION_CONFLICT.with_dnr(), true),
    (IoStatus::TimedOut, Status::COMMAND_INTERRUPTED, true),
    (IoStatus::Internal, Status::INTERNAL_ERROR, true),
];

/// What a host is told about an I/O that ended so.
#[inline]
#[must_use]
pub fn to_nvme(status: IoStatus) -> Status {
    if status == IoStatus::Success {
        return Status::SUCCESS;
    }
    TABLE.iter().find(|row| row.0 == status).map_or(Status::INTERNAL_ERROR, |row| row.1)
}

/// What a status of an I/O command means to those above a bdev; flags other than the code do not matter.
#[must_use]
pub fn from_nvme(status: Status) -> IoStatus {
    TABLE.iter().find(|row| row.2 && row.1.is(status)).map_or(IoStatus::Internal, |row| row.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [IoStatus; 17] = [
        IoStatus::Success,
        IoStatus::Pending,
        IoStatus::Aborted,
        IoStatus::OutOfRange,
        IoStatus::Unsupported,
        IoStatus::BadLength,
        IoStatus::Miscompare,
        IoStatus::WriteProtected,
        IoStatus::NoSpace,
        IoStatus::ReadError,
        IoStatus::WriteError,
        IoStatus::ChecksumError,
        IoStatus::Gone,
        IoStatus::NotReady,
        IoStatus::ReservationConflict,
        IoStatus::TimedOut,
        IoStatus::Internal,
    ];

    /// Fails to compile when a status is added and not looked at here.
    fn index(status: IoStatus) -> usize {
        match status {
            IoStatus::Success
            | IoStatus::Pending
            | IoStatus::Aborted
            | IoStatus::OutOfRange
            | IoStatus::Unsupported
            | IoStatus::BadLength
            | IoStatus::Miscompare
            | IoStatus::WriteProtected
            | IoStatus::NoSpace
            | IoStatus::ReadError
            | IoStatus::WriteError
            | IoStatus::ChecksumError
            | IoStatus::Gone
            | IoStatus::NotReady
            | IoStatus::ReservationConflict
            | IoStatus::TimedOut
            | IoStatus::Internal => status as usize,
        }
    }

    #[test]
    fn every_io_status_has_exactly_one_row() {
        for status in ALL {
            assert_eq!(TABLE.iter().filter(|row| row.0 == status).count(), 1, "{status:?}");
            assert_eq!(to_nvme(status).is_success(), status == IoStatus::Success, "{status:?}");
        }
        let mut seen: Vec<usize> = ALL.into_iter().map(index).collect();
        seen.dedup();
        assert_eq!(seen.len(), TABLE.len());
    }

    #[test]
    fn every_status_comes_back_as_what_it_was_but_for_those_that_share_a_code() {
        for status in ALL {
            let back = from_nvme(to_nvme(status));
            match status {
                IoStatus::Pending => assert_eq!(back, IoStatus::Internal),
                IoStatus::ChecksumError => assert_eq!(back, IoStatus::ReadError),
                _ => assert_eq!(back, status),
            }
        }
        assert_eq!(from_nvme(Status::SANITIZE_FAILED), IoStatus::Internal);
    }

    #[test]
    fn a_code_stands_for_one_io_status_on_the_way_back() {
        for row in TABLE.iter().filter(|row| row.2) {
            assert_eq!(TABLE.iter().filter(|other| other.2 && other.1.is(row.1)).count(), 1, "{:?}", row.0);
        }
    }
}
