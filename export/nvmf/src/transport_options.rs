//! Options of a transport: SPDK's names of `nvmf_create_transport`, those that this target honours.
//!
//! An option that is not here is refused by its name, so that nobody believes in a setting without effect.

use serde::{Deserialize, Serialize};

/// Entries of an I/O queue at most.
pub const QUEUE_DEPTH_MAX: u16 = 1024;
/// I/O queue pairs of one controller at most.
pub const IO_QPAIRS_MAX: u16 = 128;
/// Entries of an admin queue: at least (Base 3.3.2.2) and at most.
pub const AQ_DEPTH_MIN: u16 = 32;
/// Entries of an admin queue at most.
pub const AQ_DEPTH_MAX: u16 = 4096;
/// In-capsule data of an I/O queue at most, in bytes.
pub const IN_CAPSULE_DATA_MAX: u32 = 64 << 10;
/// In-capsule data of the admin queue, in bytes (NVMe/TCP 3.3.1.1: always 8192).
pub const ADMIN_IN_CAPSULE_DATA: u32 = 8192;
/// Data of one I/O at most, in bytes.
pub const IO_SIZE_MAX: u32 = 1 << 20;
/// The unit of MDTS: the page of CAP.MPSMIN, in bytes.
pub const PAGE_BYTES: u32 = 4096;

const _: () = assert!(QUEUE_DEPTH_MAX as u32 <= 65_536);
const _: () = assert!(IO_SIZE_MAX.is_power_of_two() && IO_SIZE_MAX >= PAGE_BYTES);
const _: () = assert!(IN_CAPSULE_DATA_MAX <= IO_SIZE_MAX);
const _: () = assert!(IO_SIZE_MAX as usize <= crate::config::ADMIN_DATA_LEN_MAX);

/// Options of the TCP transport; fixed once it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransportOptions {
    /// Transport type: "TCP".
    pub trtype: String,
    /// Entries of an I/O queue that a host may ask for: 2..=[`QUEUE_DEPTH_MAX`].
    pub max_queue_depth: u16,
    /// I/O queue pairs of one controller: 1..=[`IO_QPAIRS_MAX`].
    pub max_io_qpairs_per_ctrlr: u16,
    /// In-capsule data of an I/O queue in bytes: a multiple of 16, at most [`IN_CAPSULE_DATA_MAX`].
    pub in_capsule_data_size: u32,
    /// Data of one I/O in bytes (MDTS): a power of two from 4096 to [`IO_SIZE_MAX`].
    pub max_io_size: u32,
    /// The unit in which `num_shared_buffers` counts, in bytes: a power of two from 4096 to `max_io_size`. An I/O takes
    /// one buffer of its own length.
    pub io_unit_size: u32,
    /// Entries of an admin queue: [`AQ_DEPTH_MIN`]..=[`AQ_DEPTH_MAX`].
    pub max_aq_depth: u16,
    /// Data that all connections of the target may hold in buffers at once, in `io_unit_size`, shared out evenly over
    /// the reactors; commands beyond that wait.
    pub num_shared_buffers: u32,
    /// Whether a read's last data PDU stands for its completion where the host allows it.
    pub c2h_success: bool,
    /// `SO_PRIORITY` of the sockets: 0..=6.
    pub sock_priority: u32,
    /// How long an Abort waits for the end of the command that it aborts, in seconds; then it says that nothing was
    /// aborted.
    pub abort_timeout_sec: u32,
    /// Connections that wait to be accepted, per listener: 1..=4096.
    pub acceptor_backlog: u32,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            trtype: "TCP".to_owned(),
            max_queue_depth: QUEUE_DEPTH_MAX,
            max_io_qpairs_per_ctrlr: IO_QPAIRS_MAX,
            in_capsule_data_size: 8192,
            max_io_size: IO_SIZE_MAX,
            io_unit_size: 128 << 10,
            max_aq_depth: 128,
            num_shared_buffers: 2048,
            c2h_success: true,
            sock_priority: 0,
            abort_timeout_sec: 1,
            acceptor_backlog: 512,
        }
    }
}

/// An option's value that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transport option {option} is {value}; it must be {allowed}")]
pub struct OptionError {
    /// Which option.
    pub option: &'static str,
    /// What was asked for.
    pub value: String,
    /// What is possible.
    pub allowed: String,
}

impl TransportOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// The first option whose value cannot be.
    pub fn check(&self) -> Result<(), OptionError> {
        let range = |option, value: u32, min: u32, max: u32| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(OptionError { option, value: value.to_string(), allowed: format!("{min} to {max}") })
        };
        if !self.trtype.eq_ignore_ascii_case("TCP") {
            let value = format!("{:?}", self.trtype);
            return Err(OptionError { option: "trtype", value, allowed: "\"TCP\"".to_owned() });
        }
        range("max_queue_depth", u32::from(self.max_queue_depth), 2, u32::from(QUEUE_DEPTH_MAX))?;
        let qpairs = u32::from(self.max_io_qpairs_per_ctrlr);
        range("max_io_qpairs_per_ctrlr", qpairs, 1, u32::from(IO_QPAIRS_MAX))?;
        range("in_capsule_data_size", self.in_capsule_data_size, 0, IN_CAPSULE_DATA_MAX)?;
        if !self.in_capsule_data_size.is_multiple_of(16) {
            let value = self.in_capsule_data_size.to_string();
            let allowed = "a multiple of 16".to_owned();
            return Err(OptionError { option: "in_capsule_data_size", value, allowed });
        }
        power_of_two("max_io_size", self.max_io_size, IO_SIZE_MAX)?;
        power_of_two("io_unit_size", self.io_unit_size, self.max_io_size)?;
        range(
            "max_aq_depth",
            u32::from(self.max_aq_depth),
            u32::from(AQ_DEPTH_MIN),
            u32::from(AQ_DEPTH_MAX),
        )?;
        let buffers_min = self.max_io_size / self.io_unit_size;
        range("num_shared_buffers", self.num_shared_buffers, buffers_min, 1 << 20)?;
        range("sock_priority", self.sock_priority, 0, 6)?;
        range("abort_timeout_sec", self.abort_timeout_sec, 0, 3600)?;
        range("acceptor_backlog", self.acceptor_backlog, 1, 4096)
    }

    /// MDTS of Identify Controller: log2 of `max_io_size` in pages.
    #[must_use]
    pub fn mdts(&self) -> u8 {
        u8::try_from((self.max_io_size / PAGE_BYTES).checked_ilog2().unwrap_or(0)).unwrap_or(0)
    }

    /// IOCCSZ of Identify Controller: SQE and in-capsule data in units of 16 bytes.
    #[must_use]
    pub fn ioccsz(&self) -> u32 {
        4 + self.in_capsule_data_size / 16
    }
}

fn power_of_two(option: &'static str, value: u32, max: u32) -> Result<(), OptionError> {
    if value.is_power_of_two() && (PAGE_BYTES..=max).contains(&value) {
        return Ok(());
    }
    let allowed = format!("a power of two from {PAGE_BYTES} to {max}");
    Err(OptionError { option, value: value.to_string(), allowed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_give_the_limits_that_hosts_see() {
        let options = TransportOptions::default();
        options.check().unwrap();
        assert_eq!(options.mdts(), 8);
        assert_eq!(options.ioccsz(), 516);
    }

    #[test]
    fn an_unknown_option_is_refused_by_its_name() {
        let text = r#"{"trtype":"TCP","zcopy":true}"#;
        let error = serde_json::from_str::<TransportOptions>(text).unwrap_err().to_string();
        assert!(error.contains("zcopy"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_its_name_with_what_is_possible() {
        let bad = |change: fn(&mut TransportOptions)| {
            let mut options = TransportOptions::default();
            change(&mut options);
            options.check().unwrap_err()
        };
        assert_eq!(bad(|o| o.max_io_size = 5000).option, "max_io_size");
        assert_eq!(bad(|o| o.io_unit_size = 2 << 20).option, "io_unit_size");
        assert_eq!(bad(|o| o.in_capsule_data_size = 8).option, "in_capsule_data_size");
        assert_eq!(bad(|o| o.max_queue_depth = 1).option, "max_queue_depth");
        assert_eq!(bad(|o| o.trtype = "RDMA".into()).option, "trtype");
        let text = bad(|o| o.max_aq_depth = 8).to_string();
        assert_eq!(text, "transport option max_aq_depth is 8; it must be 32 to 4096");
    }
}
