//! Log pages as the control side shows them.

use penstock_spec::nvme::Status;
use penstock_spec::nvme::log::health::{ErrorLogEntry, SmartLog};
use serde::Serialize;
use zerocopy::FromBytes;

use super::Health;

/// An entry of the error log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorEntry {
    /// The error's running number over the controller's life.
    pub error_count: u64,
    /// Submission queue of the command; 65535 where it was none.
    pub sqid: u16,
    /// Its identifier; 65535 where it was none.
    pub cid: u16,
    /// Its status.
    pub status: String,
    /// Where in the command: byte (7:0) and bit (10:8); 65535 where nowhere.
    pub parameter_error_location: u16,
    /// First block in error.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
}

/// The entries in use, the newest first.
pub(crate) fn errors_of(page: &[u8]) -> Vec<ErrorEntry> {
    let entries = page.as_chunks::<{ ErrorLogEntry::LEN }>().0.iter();
    let used = entries
        .filter_map(|bytes| ErrorLogEntry::ref_from_bytes(bytes).ok())
        .filter(|entry| entry.error_count.get() != 0);
    used.map(|entry| ErrorEntry {
        error_count: entry.error_count.get(),
        sqid: entry.sqid.get(),
        cid: entry.cid.get(),
        // Bit 0 is the phase tag's place.
        status: Status::from_bits(entry.status.get() & !1).to_string(),
        parameter_error_location: entry.parameter_error_location.get(),
        lba: entry.lba.get(),
        nsid: entry.nsid.get(),
    })
    .collect()
}

/// SMART / Health in numbers of their usual size.
pub(crate) fn health_of(log: &SmartLog) -> Health {
    // The counters have 128 bits; nobody has counted further than 64.
    let low = |bytes: [u8; 16]| u64::try_from(u128::from_le_bytes(bytes)).unwrap_or(u64::MAX);
    Health {
        critical_warning: log.critical_warning,
        temperature_celsius: i32::from(log.ctemp.get()) - 273,
        available_spare_percentage: log.avsp,
        available_spare_threshold_percentage: log.avspt,
        percentage_used: log.pused,
        data_units_read: low(log.data_units_read),
        data_units_written: low(log.data_units_written),
        host_read_commands: low(log.host_read_commands),
        host_write_commands: low(log.host_write_commands),
        controller_busy_time: low(log.controller_busy_time_min),
        power_cycles: low(log.power_cycles),
        power_on_hours: low(log.power_on_hours),
        unsafe_shutdowns: low(log.unsafe_shutdowns),
        media_errors: low(log.media_errors),
        num_err_log_entries: low(log.error_log_entries),
        warning_temperature_time_minutes: u64::from(log.wctemp_time_min.get()),
        critical_composite_temperature_time_minutes: u64::from(log.cctemp_time_min.get()),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn unused_entries_of_the_error_log_are_left_out() {
        let mut entry = ErrorLogEntry::default();
        entry.error_count.set(7);
        entry.lba.set(1 << 33);
        let mut page = entry.as_bytes().to_vec();
        page.extend_from_slice(&[0; ErrorLogEntry::LEN]);
        page.extend_from_slice(&[1; 30]);
        let found = errors_of(&page);
        assert_eq!((found.len(), found[0].error_count, found[0].lba), (1, 7, 1 << 33));
    }
}
