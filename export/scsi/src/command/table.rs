//! Every command that is there: what it may meet before it is done, and which bits of its CDB count.
//!
//! The same table decides what a CDB is, answers REPORT SUPPORTED OPERATION CODES, and applies the rules of
//! reservations (SPC-4 table 66, SBC-3 table 13), unit attentions and readiness, so that they cannot disagree.

use penstock_bdev::reservation::Access;
use penstock_spec::scsi::cdb::SERVICE_ACTION_MASK;
use penstock_spec::scsi::opcode::ServiceActionIn16 as Sai16;
use penstock_spec::scsi::opcode::{CopyIn, CopyOut, MaintenanceIn, MaintenanceOut, Opcode, PrIn, PrOut};
use penstock_spec::scsi::sense::Asc;

use crate::config::LuConfig;
use crate::sense::Sense;

/// What a command is, independent of how long its CDB is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ReportLuns,
    ModeSense,
    ModeSelect,
    StartStop,
    PreventAllow,
    Reserve6,
    Release6,
    PrIn,
    PrOut,
    Capacity10,
    Capacity16,
    LbaStatus,
    Read,
    Write,
    WriteVerify,
    Verify,
    OrWrite,
    CompareAndWrite,
    WriteSame,
    WriteAtomic,
    Unmap,
    PreFetch,
    SyncCache,
    DefectData,
    ReportOpcodes,
    ReportTmfs,
    ReportPortGroups,
    SetPortGroups,
    ExtendedCopy,
    CopyStatus,
    CopyParameters,
    CopyFailure,
    PopulateToken,
    WriteUsingToken,
    TokenInformation,
}

/// What stands between a command and its being done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate {
    /// A pending unit attention condition is reported instead.
    pub(crate) attention: bool,
    /// What it does to others; `None`: persistent reservations never forbid it.
    pub(crate) access: Option<Access>,
    /// Whether a RESERVE(6) of another nexus forbids it.
    pub(crate) reserve6: bool,
    /// It needs the medium.
    pub(crate) ready: bool,
    /// It works through port groups of any state.
    pub(crate) any_state: bool,
    /// It needs to be allowed to write.
    pub(crate) writes: bool,
}

/// Done whatever the state.
const ALWAYS: Gate =
    Gate { attention: false, access: None, reserve6: false, ready: false, any_state: true, writes: false };
/// Looks at the state of the logical unit, not at its medium.
const LOOK: Gate = Gate { attention: true, reserve6: true, ..ALWAYS };
/// Decided by the owner of the state.
const OWNER: Gate = Gate { attention: true, ..ALWAYS };
/// Needs the medium, and is allowed to all.
const MEDIUM: Gate = Gate { ready: true, any_state: false, ..LOOK };
/// Sees or changes what belongs to those who hold a reservation, not the blocks.
const PARAMETERS: Gate = Gate { access: Some(Access::Write), ..LOOK };
/// Reads blocks.
const READS: Gate = Gate { access: Some(Access::Read), ..MEDIUM };
/// Needs the rights of a writer, changes nothing.
const SYNCS: Gate = Gate { access: Some(Access::Write), ..MEDIUM };
/// Writes blocks.
const WRITES: Gate = Gate { writes: true, ..SYNCS };

/// One command.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) opcode: Opcode,
    /// The service action, where the operation code has some.
    pub(crate) action: Option<u8>,
    pub(crate) kind: Kind,
    pub(crate) gate: Gate,
    /// CDB USAGE DATA: bits that count. As long as the CDB.
    pub(crate) usage: &'static [u8],
}

const fn plain(opcode: Opcode, kind: Kind, gate: Gate, usage: &'static [u8]) -> Entry {
    Entry { opcode, action: None, kind, gate, usage }
}

const fn action(opcode: Opcode, action: u8, kind: Kind, gate: Gate, usage: &'static [u8]) -> Entry {
    Entry { opcode, action: Some(action), kind, gate, usage }
}

const F: u8 = 0xff;

/// All commands, by operation code and service action.
pub(crate) const TABLE: &[Entry] = &[
    plain(Opcode::TEST_UNIT_READY, Kind::TestUnitReady, MEDIUM, &[0x00, 0, 0, 0, 0, 0]),
    plain(Opcode::REQUEST_SENSE, Kind::RequestSense, ALWAYS, &[0x03, 1, 0, 0, F, 0]),
    plain(Opcode::READ_6, Kind::Read, READS, &[0x08, 0x1f, F, F, F, 0]),
    plain(Opcode::WRITE_6, Kind::Write, WRITES, &[0x0a, 0x1f, F, F, F, 0]),
    plain(Opcode::INQUIRY, Kind::Inquiry, ALWAYS, &[0x12, 1, F, F, F, 0]),
    plain(Opcode::MODE_SELECT_6, Kind::ModeSelect, PARAMETERS, &[0x15, 0x11, 0, 0, F, 0]),
    plain(Opcode::RESERVE_6, Kind::Reserve6, OWNER, &[0x16, 0, 0, 0, 0, 0]),
    plain(Opcode::RELEASE_6, Kind::Release6, OWNER, &[0x17, 0, 0, 0, 0, 0]),
    plain(Opcode::MODE_SENSE_6, Kind::ModeSense, PARAMETERS, &[0x1a, 0x08, F, F, F, 0]),
    plain(Opcode::START_STOP_UNIT, Kind::StartStop, PARAMETERS, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0]),
    plain(Opcode::PREVENT_ALLOW_MEDIUM_REMOVAL, Kind::PreventAllow, OWNER, &[0x1e, 0, 0, 0, 3, 0]),
    plain(Opcode::READ_CAPACITY_10, Kind::Capacity10, MEDIUM, &[0x25, 0, F, F, F, F, 0, 0, 1, 0]),
    plain(Opcode::READ_10, Kind::Read, READS, &[0x28, 0x18, F, F, F, F, 0, F, F, 0]),
    plain(Opcode::WRITE_10, Kind::Write, WRITES, &[0x2a, 0x18, F, F, F, F, 0, F, F, 0]),
    plain(Opcode::WRITE_AND_VERIFY_10, Kind::WriteVerify, WRITES, &[0x2e, 0x16, F, F, F, F, 0, F, F, 0]),
    plain(Opcode::VERIFY_10, Kind::Verify, READS, &[0x2f, 0x16, F, F, F, F, 0, F, F, 0]),
    plain(Opcode::PRE_FETCH_10, Kind::PreFetch, READS, &[0x34, 0x02, F, F, F, F, 0, F, F, 0]),
    plain(Opcode::SYNCHRONIZE_CACHE_10, Kind::SyncCache, SYNCS, &[0x35, 0x02, F, F, F, F, 0, F, F, 0]),
    plain(Opcode::READ_DEFECT_DATA_10, Kind::DefectData, READS, &[0x37, 0, 0x1f, 0, 0, 0, 0, F, F, 0]),
    plain(Opcode::WRITE_SAME_10, Kind::WriteSame, WRITES, &[0x41, 0x08, F, F, F, F, 0, F, F, 0]),
    plain(Opcode::UNMAP, Kind::Unmap, WRITES, &[0x42, 0, 0, 0, 0, 0, 0, F, F, 0]),
    plain(Opcode::MODE_SELECT_10, Kind::ModeSelect, PARAMETERS, &[0x55, 0x11, 0, 0, 0, 0, 0, F, F, 0]),
    plain(Opcode::MODE_SENSE_10, Kind::ModeSense, PARAMETERS, &[0x5a, 0x18, F, F, 0, 0, 0, F, F, 0]),
    pr_in(PrIn::READ_KEYS, &[0x5e, 0x00, 0, 0, 0, 0, 0, F, F, 0]),
    pr_in(PrIn::READ_RESERVATION, &[0x5e, 0x01, 0, 0, 0, 0, 0, F, F, 0]),
    pr_in(PrIn::REPORT_CAPABILITIES, &[0x5e, 0x02, 0, 0, 0, 0, 0, F, F, 0]),
    pr_in(PrIn::READ_FULL_STATUS, &[0x5e, 0x03, 0, 0, 0, 0, 0, F, F, 0]),
    pr_out(PrOut::REGISTER, &[0x5f, 0x00, 0, 0, 0, F, F, F, F, 0]),
    pr_out(PrOut::RESERVE, &[0x5f, 0x01, F, 0, 0, F, F, F, F, 0]),
    pr_out(PrOut::RELEASE, &[0x5f, 0x02, F, 0, 0, F, F, F, F, 0]),
    pr_out(PrOut::CLEAR, &[0x5f, 0x03, 0, 0, 0, F, F, F, F, 0]),
    pr_out(PrOut::PREEMPT, &[0x5f, 0x04, F, 0, 0, F, F, F, F, 0]),
    pr_out(PrOut::PREEMPT_AND_ABORT, &[0x5f, 0x05, F, 0, 0, F, F, F, F, 0]),
    pr_out(PrOut::REGISTER_AND_IGNORE_EXISTING_KEY, &[0x5f, 0x06, 0, 0, 0, F, F, F, F, 0]),
    pr_out(PrOut::REGISTER_AND_MOVE, &[0x5f, 0x07, 0, 0, 0, F, F, F, F, 0]),
    copy_out(
        CopyOut::EXTENDED_COPY_LID1,
        Kind::ExtendedCopy,
        &[0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    copy_out(
        CopyOut::POPULATE_TOKEN,
        Kind::PopulateToken,
        &[0x83, 0x10, 0, 0, 0, 0, F, F, F, F, F, F, F, F, 0, 0],
    ),
    copy_out(
        CopyOut::WRITE_USING_TOKEN,
        Kind::WriteUsingToken,
        &[0x83, 0x11, 0, 0, 0, 0, F, F, F, F, F, F, F, F, 0, 0],
    ),
    copy_in(
        CopyIn::RECEIVE_COPY_STATUS_LID1,
        Kind::CopyStatus,
        &[0x84, 0x00, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    copy_in(
        CopyIn::RECEIVE_COPY_OPERATING_PARAMETERS,
        Kind::CopyParameters,
        &[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    copy_in(
        CopyIn::RECEIVE_COPY_FAILURE_DETAILS_LID1,
        Kind::CopyFailure,
        &[0x84, 0x04, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    copy_in(
        CopyIn::RECEIVE_ROD_TOKEN_INFORMATION,
        Kind::TokenInformation,
        &[0x84, 0x07, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    plain(Opcode::READ_16, Kind::Read, READS, RW16_READ),
    plain(
        Opcode::COMPARE_AND_WRITE,
        Kind::CompareAndWrite,
        WRITES,
        &[0x89, 0x18, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0],
    ),
    plain(Opcode::WRITE_16, Kind::Write, WRITES, &[0x8a, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    plain(Opcode::ORWRITE_16, Kind::OrWrite, WRITES, &[0x8b, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    plain(
        Opcode::WRITE_AND_VERIFY_16,
        Kind::WriteVerify,
        WRITES,
        &[0x8e, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(Opcode::VERIFY_16, Kind::Verify, READS, &[0x8f, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    plain(Opcode::PRE_FETCH_16, Kind::PreFetch, READS, &[0x90, 2, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    plain(
        Opcode::SYNCHRONIZE_CACHE_16,
        Kind::SyncCache,
        SYNCS,
        &[0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(
        Opcode::WRITE_SAME_16,
        Kind::WriteSame,
        WRITES,
        &[0x93, 0x09, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(
        Opcode::WRITE_ATOMIC_16,
        Kind::WriteAtomic,
        WRITES,
        &[0x9c, 0x18, F, F, F, F, F, F, F, F, 0, 0, F, F, 0, 0],
    ),
    action(
        Opcode::SERVICE_ACTION_IN_16,
        Sai16::READ_CAPACITY_16.0,
        Kind::Capacity16,
        MEDIUM,
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    action(
        Opcode::SERVICE_ACTION_IN_16,
        Sai16::GET_LBA_STATUS.0,
        Kind::LbaStatus,
        READS,
        &[0x9e, 0x12, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(Opcode::REPORT_LUNS, Kind::ReportLuns, ALWAYS, &[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 0]),
    maintenance_in(
        MaintenanceIn::REPORT_TARGET_PORT_GROUPS,
        Kind::ReportPortGroups,
        &[0xa3, 0x2a, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    maintenance_in(
        MaintenanceIn::REPORT_SUPPORTED_OPERATION_CODES,
        Kind::ReportOpcodes,
        &[0xa3, 0x0c, 0x87, F, F, F, F, F, F, F, 0, 0],
    ),
    maintenance_in(
        MaintenanceIn::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS,
        Kind::ReportTmfs,
        &[0xa3, 0x0d, 0x80, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    action(
        Opcode::MAINTENANCE_OUT,
        MaintenanceOut::SET_TARGET_PORT_GROUPS.0,
        Kind::SetPortGroups,
        PARAMETERS,
        &[0xa4, 0x0a, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    plain(Opcode::READ_12, Kind::Read, READS, &[0xa8, 0x18, F, F, F, F, F, F, F, F, 0, 0]),
    plain(Opcode::WRITE_12, Kind::Write, WRITES, &[0xaa, 0x18, F, F, F, F, F, F, F, F, 0, 0]),
    plain(
        Opcode::WRITE_AND_VERIFY_12,
        Kind::WriteVerify,
        WRITES,
        &[0xae, 0x16, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(Opcode::VERIFY_12, Kind::Verify, READS, &[0xaf, 0x16, F, F, F, F, F, F, F, F, 0, 0]),
    plain(Opcode::READ_DEFECT_DATA_12, Kind::DefectData, READS, &[0xb7, 0x1f, 0, 0, 0, 0, F, F, F, F, 0, 0]),
];

const RW16_READ: &[u8] = &[0x88, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0];

const fn pr_in(service_action: PrIn, usage: &'static [u8]) -> Entry {
    action(Opcode::PERSISTENT_RESERVE_IN, service_action.0, Kind::PrIn, LOOK, usage)
}

const fn pr_out(service_action: PrOut, usage: &'static [u8]) -> Entry {
    action(Opcode::PERSISTENT_RESERVE_OUT, service_action.0, Kind::PrOut, OWNER, usage)
}

const fn copy_out(service_action: CopyOut, kind: Kind, usage: &'static [u8]) -> Entry {
    // Which logical units it writes is in its parameter list; they are checked one by one.
    let gate = Gate { attention: true, ready: true, any_state: false, ..ALWAYS };
    action(Opcode::THIRD_PARTY_COPY_OUT, service_action.0, kind, gate, usage)
}

const fn copy_in(service_action: CopyIn, kind: Kind, usage: &'static [u8]) -> Entry {
    action(Opcode::THIRD_PARTY_COPY_IN, service_action.0, kind, OWNER, usage)
}

const fn maintenance_in(service_action: MaintenanceIn, kind: Kind, usage: &'static [u8]) -> Entry {
    action(Opcode::MAINTENANCE_IN, service_action.0, kind, LOOK, usage)
}

/// Whether that logical unit has the command at all.
pub(crate) fn is_there(entry: &Entry, config: &LuConfig) -> bool {
    match entry.kind {
        Kind::Unmap => config.is_thin(),
        Kind::WriteAtomic => config.limits.atomic_blocks_max > 0,
        Kind::PreventAllow => config.removable,
        _ => true,
    }
}

/// The place in [`TABLE`] of the first entry with an operation code, plus 1; 0: there is none.
const FIRST: [u8; 256] = {
    assert!(TABLE.len() < 256);
    let mut first = [0_u8; 256];
    let mut index = TABLE.len();
    while index > 0 {
        index -= 1;
        #[expect(
            clippy::indexing_slicing,
            clippy::cast_possible_truncation,
            reason = "index < TABLE.len() < 256"
        )]
        {
            first[TABLE[index].opcode.0 as usize] = index as u8 + 1;
        }
    }
    first
};

/// Finds out what a CDB is.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE, or INVALID FIELD IN CDB for an unknown service action.
#[inline]
pub(crate) fn find(cdb: &[u8]) -> Result<&'static Entry, Sense> {
    let invalid_opcode = Sense::illegal(Asc::INVALID_OPCODE);
    let (opcode, byte1) = match cdb {
        [opcode, byte1, ..] => (*opcode, *byte1),
        _ => return Err(invalid_opcode),
    };
    let first = FIRST.get(usize::from(opcode)).copied().unwrap_or(0);
    let from = usize::from(first).checked_sub(1).ok_or(invalid_opcode)?;
    let of_opcode = TABLE.get(from..).unwrap_or(&[]);
    let entry = of_opcode
        .iter()
        .take_while(|entry| entry.opcode.0 == opcode)
        .find(|entry| entry.action.is_none_or(|action| action == byte1 & SERVICE_ACTION_MASK))
        .ok_or(Sense::cdb(1))?;
    if cdb.len() < entry.usage.len() {
        return Err(invalid_opcode);
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_usage_data_begin_with_the_operation_code() {
        for entry in TABLE {
            assert_eq!(entry.usage[0], entry.opcode.0);
            let expected = match entry.opcode.0 >> 5 {
                0 => 6,
                1 | 2 => 10,
                5 => 12,
                _ => 16,
            };
            assert_eq!(entry.usage.len(), expected, "{:?}", entry.opcode);
            if let Some(action) = entry.action {
                assert_eq!(entry.usage[1] & 0x1f, action);
            }
        }
        for pair in TABLE.windows(2) {
            let key = |entry: &Entry| (entry.opcode.0, entry.action);
            assert!(key(&pair[0]) < key(&pair[1]), "{:?}", pair[1].opcode);
        }
    }

    #[test]
    fn every_entry_is_found_by_its_own_usage_data() {
        for entry in TABLE {
            assert!(std::ptr::eq(find(entry.usage).unwrap(), entry));
            assert!(find(&entry.usage[..entry.usage.len() - 1]).is_err());
        }
        assert_eq!(find(&[0x01, 0, 0, 0, 0, 0]).unwrap_err().asc, Asc::INVALID_OPCODE);
        assert_eq!(find(&[0x5e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap_err(), Sense::cdb(1));
        assert!(find(&[]).is_err());
    }
}
