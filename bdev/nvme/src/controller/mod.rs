//! A controller as the daemon has it: what it is, how it is, and how to ask something of it.
//!
//! Each controller has a thread of its own ([`thread`]), which owns the device and the admin queue and may wait; the reactors
//! own the I/O queues ([`seat`]). They talk by messages only.

pub(crate) mod log;
mod reset;
pub(crate) mod seat;
#[cfg(test)]
mod tests;
mod thread;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use futures_channel::oneshot;
use penstock_bdev::BdevError;
use penstock_reactor::{Clock, ReactorHandle};
use serde::Serialize;

use crate::admin::{AdminError, Found, Namespace};
use crate::options::NvmeOptions;
use crate::queue::{NsParams, QueueStats, Trouble};
use crate::vfio::VfioError;
pub use log::ErrorEntry;
pub use thread::attach;

/// Requests that wait for one controller's thread, at most.
const ASKS_MAX: usize = 1024;

#[expect(clippy::disallowed_types, reason = "control side only: copied out and in")]
type Lock<T> = std::sync::Mutex<T>;

/// What a controller is attached with.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Its name; bdevs are named by it, `n` and the NSID.
    pub name: String,
    /// Where it is, for people.
    pub address: String,
    /// The reactors that will use it.
    pub reactors: Vec<ReactorHandle>,
    /// The reactors' clock.
    pub clock: Clock,
    /// How it is driven.
    pub options: NvmeOptions,
    /// I/O queue pairs at most; `None`: one for each reactor.
    pub io_queues_max: Option<u16>,
}

/// How a controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerState {
    /// It serves.
    Live,
    /// It is being reset; I/O waits.
    Resetting,
    /// It does not serve, and why; a reset may help.
    Failed(String),
    /// It was removed.
    Gone,
}

impl ControllerState {
    /// Its name in RPC answers.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Live => "enabled",
            Self::Resetting => "resetting",
            Self::Failed(_) => "failed",
            Self::Gone => "removed",
        }
    }
}

/// What the controller is, as Identify told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// PCI vendor, as four hexadecimal digits.
    pub vendor_id: String,
    /// Model.
    pub model_number: String,
    /// Serial number.
    pub serial_number: String,
    /// Firmware revision.
    pub firmware_revision: String,
    /// NQN of its subsystem.
    pub subnqn: String,
    /// Controller ID.
    pub cntlid: u16,
    /// Version of the standard.
    pub version: String,
    /// Largest transfer in bytes; 0: no limit.
    pub mdts_bytes: u64,
    /// I/O queue pairs in use.
    pub io_queues: u16,
    /// Entries of each.
    pub io_queue_entries: u16,
    /// Whether doorbells have shadows.
    pub shadow_doorbells: bool,
    /// Whether it takes lists of descriptors.
    pub sgl: bool,
}

/// SMART / Health, as of the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Health {
    /// Critical warnings, as bits.
    pub critical_warning: u8,
    /// In degrees Celsius.
    pub temperature_celsius: i32,
    /// Percent.
    pub available_spare_percentage: u8,
    /// Percent.
    pub available_spare_threshold_percentage: u8,
    /// Percent; may exceed 100.
    pub percentage_used: u8,
    /// Thousands of 512-byte units.
    pub data_units_read: u64,
    /// Thousands of 512-byte units.
    pub data_units_written: u64,
    /// Commands.
    pub host_read_commands: u64,
    /// Commands.
    pub host_write_commands: u64,
    /// Minutes.
    pub controller_busy_time: u64,
    /// Count.
    pub power_cycles: u64,
    /// Hours.
    pub power_on_hours: u64,
    /// Count.
    pub unsafe_shutdowns: u64,
    /// Count.
    pub media_errors: u64,
    /// Entries of the error log over its life.
    pub num_err_log_entries: u64,
    /// Minutes above the warning threshold.
    pub warning_temperature_time_minutes: u64,
    /// Minutes above the critical threshold.
    pub critical_composite_temperature_time_minutes: u64,
}

/// What is known of a controller now.
#[derive(Debug, Clone)]
pub struct Report {
    /// How it is.
    pub state: ControllerState,
    /// What it is.
    pub identity: Identity,
    /// Its health, if it could be read.
    pub health: Option<Health>,
    /// Its namespaces; those that are no bdevs with the reason.
    pub namespaces: Vec<Found>,
    /// Resets since it was attached.
    pub resets: u64,
    /// Commands aborted because they took too long, or were asked to.
    pub aborts: u64,
}

/// What happened to a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControllerEvent {
    /// Its namespaces are others, or of other lengths.
    Namespaces,
    /// It is gone, or wanted back: its bdevs have to go, then it is to be detached.
    Gone,
}

/// Tells the control side of an event; called on the controller's thread.
pub type OnEvent = Box<dyn Fn(ControllerEvent) + Send>;

/// Why a controller was not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The device could not be taken.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// The controller did not come up.
    #[error("NVMe controller {address}")]
    Admin {
        /// Where it is.
        address: String,
        /// Why.
        #[source]
        source: AdminError,
    },
    /// A reactor did not take its queue.
    #[error("NVMe controller {address}: reactor {reactor} did not take its queue")]
    Reactor {
        /// Where it is.
        address: String,
        /// Which reactor.
        reactor: u32,
    },
    /// Its thread did not start, or ended.
    #[error("NVMe controller {address}: its thread did not come up")]
    Thread {
        /// Where it is.
        address: String,
    },
}

/// What is asked of a controller's thread.
#[derive(Debug)]
enum Ask {
    Abort {
        qid: u16,
        cid: u16,
    },
    Trouble(Trouble),
    /// Reset it; answers why it did not come back.
    Reset(oneshot::Sender<Result<(), String>>),
    /// Read its health now.
    Health(oneshot::Sender<Result<Health, String>>),
    /// Read its error log.
    Errors(oneshot::Sender<Result<Vec<ErrorEntry>, String>>),
    /// Take it from the reactors and give the device back.
    Detach(oneshot::Sender<()>),
}

/// A controller. Dropping the last handle detaches it.
#[derive(Debug)]
pub struct Controller {
    id: u64,
    name: String,
    address: String,
    ask: SyncSender<Ask>,
    report: Lock<Report>,
    stats: Vec<Arc<QueueStats>>,
}

impl Controller {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What is known of it now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Its health, as of the last look.
    #[must_use]
    pub fn health(&self) -> Option<Health> {
        self.lock().health
    }

    /// One of its namespaces, as of now.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<Namespace> {
        let report = self.lock();
        let found = report.namespaces.iter().find(|(other, _)| *other == nsid);
        found.and_then(|(_, ns)| ns.as_ref().ok().cloned())
    }

    /// Counters of its I/O queues.
    #[must_use]
    pub fn queue_stats(&self) -> &[Arc<QueueStats>] {
        &self.stats
    }

    /// Resets it.
    ///
    /// # Errors
    /// Why it did not come back.
    pub async fn reset(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Reset(answer))?;
        answered.await.unwrap_or_else(|_| Err("it is being detached".to_owned()))
    }

    /// Reads its health.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn read_health(&self) -> Result<Health, String> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Health(answer))?;
        answered.await.unwrap_or_else(|_| Err("it is being detached".to_owned()))
    }

    /// Reads its error log, the newest first.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn read_errors(&self) -> Result<Vec<ErrorEntry>, String> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Errors(answer))?;
        answered.await.unwrap_or_else(|_| Err("it is being detached".to_owned()))
    }

    /// Gives the device back: shut down in good order, where it is there. All bdevs on it must be gone.
    pub async fn detach(&self) {
        let (answer, answered) = oneshot::channel();
        if self.ask(Ask::Detach(answer)).is_ok() && answered.await.is_err() {
            tracing::debug!(controller = self.name, "it was detached already");
        }
    }

    /// A channel of this core's to a namespace.
    ///
    /// # Errors
    /// [`BdevError::Os`] where the reactor has no way to the controller.
    pub(crate) fn open(
        &self,
        cx: &penstock_reactor::Cx,
        ns: NsParams,
        bdev: &str,
    ) -> Result<Box<dyn penstock_bdev::Channel>, BdevError> {
        seat::open(cx, self.id, ns).ok_or_else(|| BdevError::Os {
            name: bdev.to_owned(),
            what: format!("reach NVMe controller {} from reactor {}", self.name, cx.id()),
            source: std::io::ErrorKind::NotConnected.into(),
        })
    }

    fn ask(&self, ask: Ask) -> Result<(), String> {
        self.ask.try_send(ask).map_err(|error| match error {
            TrySendError::Full(_) => "it has too much to do; try again".to_owned(),
            TrySendError::Disconnected(_) => "it is being detached".to_owned(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
