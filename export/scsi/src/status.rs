//! The one table between the statuses of I/Os and sense data.

use penstock_bdev::IoStatus;
use penstock_spec::scsi::sense::{Asc, SenseKey, Status};

use crate::sense::{Fault, Sense};

/// Every status of an I/O that is not success, with its sense key and additional sense code.
const TABLE: &[(IoStatus, SenseKey, Asc)] = &[
    (IoStatus::OutOfRange, SenseKey::ILLEGAL_REQUEST, Asc::LBA_OUT_OF_RANGE),
    (IoStatus::Unsupported, SenseKey::ILLEGAL_REQUEST, Asc::INVALID_OPCODE),
    (IoStatus::BadLength, SenseKey::ILLEGAL_REQUEST, Asc::INVALID_FIELD_IN_CDB),
    (IoStatus::Miscompare, SenseKey::MISCOMPARE, Asc::MISCOMPARE_DURING_VERIFY),
    (IoStatus::WriteProtected, SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED),
    (IoStatus::NoSpace, SenseKey::DATA_PROTECT, Asc::SPACE_ALLOCATION_FAILED),
    (IoStatus::ReadError, SenseKey::MEDIUM_ERROR, Asc::UNRECOVERED_READ_ERROR),
    (IoStatus::WriteError, SenseKey::MEDIUM_ERROR, Asc::WRITE_ERROR),
    (IoStatus::ChecksumError, SenseKey::MEDIUM_ERROR, Asc::LBA_MARKED_BAD),
    (IoStatus::Gone, SenseKey::ILLEGAL_REQUEST, Asc::LU_NOT_SUPPORTED),
    (IoStatus::NotReady, SenseKey::NOT_READY, Asc::BECOMING_READY),
    (IoStatus::TimedOut, SenseKey::ABORTED_COMMAND, Asc::COMMAND_TIMEOUT),
    (IoStatus::Internal, SenseKey::HARDWARE_ERROR, Asc::INTERNAL_TARGET_FAILURE),
];

/// How a command ends whose I/O ended with `status`; `None` for success. `result` is the I/O's: where compared data
/// differ.
#[must_use]
pub fn fault_of(status: IoStatus, result: u64) -> Option<Fault> {
    match status {
        IoStatus::Success => return None,
        IoStatus::ReservationConflict => return Some(Fault::CONFLICT),
        IoStatus::Aborted => return Some(Fault { status: Status::TASK_ABORTED, sense: None }),
        // An I/O that is still under way ends no command; that one came here is our own fault.
        IoStatus::Pending => {
            return Some(Sense::new(SenseKey::HARDWARE_ERROR, Asc::INTERNAL_TARGET_FAILURE).into());
        }
        _ => {}
    }
    let (_, key, asc) = TABLE.iter().find(|(io, ..)| *io == status)?;
    let sense = Sense::new(*key, *asc);
    let miscompare = status == IoStatus::Miscompare;
    Some(if miscompare { sense.with_information(result) } else { sense }.into())
}

/// The status of an I/O that would have ended a command in this way: the table read backwards.
#[must_use]
pub fn io_status_of(status: Status, sense: Option<(SenseKey, Asc)>) -> IoStatus {
    match (status, sense) {
        (Status::GOOD | Status::CONDITION_MET, _) => IoStatus::Success,
        (Status::RESERVATION_CONFLICT, _) => IoStatus::ReservationConflict,
        (Status::TASK_ABORTED, _) => IoStatus::Aborted,
        (Status::CHECK_CONDITION, Some((key, asc))) => TABLE
            .iter()
            .find(|(_, other_key, other_asc)| (*other_key, *other_asc) == (key, asc))
            .map_or(IoStatus::Internal, |(io, ..)| *io),
        _ => IoStatus::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [IoStatus; 16] = [
        IoStatus::Success,
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

    #[test]
    fn every_status_of_an_io_has_sense_that_leads_back_to_it() {
        for io in ALL {
            let fault = fault_of(io, 3);
            assert_eq!(fault.is_none(), io == IoStatus::Success);
            let back = fault.map_or(IoStatus::Success, |fault| {
                io_status_of(fault.status, fault.sense.map(|sense| (sense.key, sense.asc)))
            });
            assert_eq!(back, io);
        }
    }

    #[test]
    fn a_full_thin_disk_says_space_allocation_failed_write_protect() {
        let sense = fault_of(IoStatus::NoSpace, 0).unwrap().sense.unwrap();
        assert_eq!((sense.key.0, sense.asc.0), (0x7, 0x2707));
    }

    #[test]
    fn a_miscompare_says_where() {
        assert_eq!(fault_of(IoStatus::Miscompare, 511).unwrap().sense.unwrap().information, Some(511));
    }
}
