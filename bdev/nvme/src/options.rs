//! What can be chosen: for all controllers (`bdev_nvme_set_options`).

use serde::{Deserialize, Serialize};

use crate::queue::{OnTimeout, TRIES_MAX};
use crate::ring::{ENTRIES_MAX, ENTRIES_MIN};
use crate::tcp::LossOptions;

/// What happens to a command that takes too long, as the RPC names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutAction {
    /// It is waited for.
    None,
    /// The controller is reset.
    Reset,
    /// It is aborted; where that does not end it either, the controller is reset.
    Abort,
}

impl From<TimeoutAction> for OnTimeout {
    fn from(action: TimeoutAction) -> Self {
        match action {
            TimeoutAction::None => Self::Nothing,
            TimeoutAction::Reset => Self::Reset,
            TimeoutAction::Abort => Self::Abort,
        }
    }
}

/// For controllers attached from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvmeOptions {
    /// What happens to a command that takes longer than `timeout_us`.
    pub action_on_timeout: TimeoutAction,
    /// How long an I/O command may take, in microseconds; 0: for ever.
    pub timeout_us: u64,
    /// How long an admin command may take, in microseconds.
    pub timeout_admin_us: u64,
    /// Between looks for events and at the controller's state, in microseconds.
    pub nvme_adminq_poll_period_us: u64,
    /// Commands of one I/O queue at once.
    pub io_queue_requests: u32,
    /// Times that an I/O is tried again.
    pub bdev_retry_count: u8,
    /// Remote: after so many milliseconds without a sign of life each side takes the other for dead; 0: never.
    pub keep_alive_timeout_ms: u32,
    /// Remote: what happens when a path is lost, where its attach does not say.
    pub loss: LossOptions,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        Self {
            action_on_timeout: TimeoutAction::Abort,
            timeout_us: 30_000_000,
            timeout_admin_us: 30_000_000,
            nvme_adminq_poll_period_us: 10_000,
            io_queue_requests: 255,
            bdev_retry_count: 3,
            keep_alive_timeout_ms: 10_000,
            loss: LossOptions::default(),
        }
    }
}

impl NvmeOptions {
    /// What is out of range, and what would be in it.
    ///
    /// # Errors
    /// The parameter's name and the problem.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let range = |name, value: u64, min: u64, max: u64| {
            let is_in = (min..=max).contains(&value);
            if is_in { Ok(()) } else { Err((name, format!("is {value}; it must be {min} to {max}"))) }
        };
        if self.timeout_us != 0 {
            range("timeout_us", self.timeout_us, 1000, 3_600_000_000)?;
        }
        range("timeout_admin_us", self.timeout_admin_us, 10_000, 3_600_000_000)?;
        range("nvme_adminq_poll_period_us", self.nvme_adminq_poll_period_us, 100, 1_000_000)?;
        let requests = (u64::from(ENTRIES_MIN) - 1, u64::from(ENTRIES_MAX) - 1);
        range("io_queue_requests", self.io_queue_requests.into(), requests.0, requests.1)?;
        range("bdev_retry_count", self.bdev_retry_count.into(), 0, TRIES_MAX.into())?;
        if self.keep_alive_timeout_ms != 0 {
            range("keep_alive_timeout_ms", self.keep_alive_timeout_ms.into(), 100, 3_600_000)?;
        }
        self.loss.check()
    }
}
