//! What drives the model without a thread: virtual time, and a queue pair of the driver's on it.

use std::sync::Arc;

use super::Model;
use crate::admin::{Admin, AdminError, Waiter};
use crate::dma::Translator;
use crate::queue::{IoQueue, OnTimeout, QueueRules};
use crate::register::Registers;

/// How long an admin command may take, in virtual time.
const ADMIN_TIMEOUT_NS: u64 = 1_000_000_000;
/// Entries of the queue pair.
const ENTRIES: u16 = 256;

/// Virtual time: it passes when somebody waits, and the model works then.
#[derive(Debug)]
pub struct ModelTime {
    now_ns: u64,
    model: Arc<Model>,
}

impl ModelTime {
    /// Begins at 0.
    #[must_use]
    pub fn new(model: &Arc<Model>) -> Self {
        Self { now_ns: 0, model: Arc::clone(model) }
    }
}

impl Waiter for ModelTime {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn wait(&mut self, ns: u64) {
        self.now_ns = self.now_ns.saturating_add(ns);
        self.model.step();
    }
}

impl Model {
    /// Brings the controller up with one I/O queue pair of 256 entries, which has no time limits.
    ///
    /// # Errors
    /// [`AdminError`], where the model was told to fail.
    pub fn io_queue(self: &Arc<Self>) -> Result<IoQueue, AdminError> {
        let registers: Arc<dyn Registers> = Arc::<Self>::clone(self);
        let mut time = ModelTime::new(self);
        let mut admin = Admin::new(registers, Translator::identity(), ADMIN_TIMEOUT_NS)?;
        admin.stop(&mut time)?;
        admin.start(1, &mut time)?;
        let mut ring = admin.ring(1, ENTRIES)?;
        let shadows = admin.create(ring.place(), &mut time)?;
        ring.set_shadows(shadows);
        let rules = QueueRules {
            pointers: admin.pointer_rules(),
            timeout_ns: 0,
            on_timeout: OnTimeout::Nothing,
            retries_max: 3,
            retry_delays_ns: admin.retry_delays_ns(),
        };
        IoQueue::new(ring, admin.translator(), rules, Box::new(|_| true), Arc::default())
            .ok_or(AdminError::Memory)
    }
}
