//! What a queue counts; written by its reactor, read by `vhost_get_controllers`.

use penstock_reactor::stat::Counter;

/// Counters of one queue since it was started.
#[derive(Debug, Default)]
pub(crate) struct QueueStats {
    /// Requests taken.
    pub(crate) requests: Counter,
    /// Of those that ended, not with success.
    pub(crate) errors: Counter,
    /// Of those, forbidden by a reservation.
    pub(crate) conflicts: Counter,
    /// Interrupts sent.
    pub(crate) signals: Counter,
    /// Times that the driver was asked to kick, as the core was about to sleep.
    pub(crate) arms: Counter,
}
