//! What a frontend has said of one queue, and whether it is served.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::ring::RingAddresses;
use crate::stats::QueueStats;

/// A queue as the frontend sets it up.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    pub(super) base: u32,
    pub(super) addresses: Option<RingAddresses>,
    /// The kick was set: the queue is to be served. Inside, `None`: it must be polled.
    pub(super) kick: Option<Option<OwnedFd>>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// The reactor that serves it.
    pub(super) serving: Option<usize>,
    pub(super) stats: Arc<QueueStats>,
}

/// A queue that is served, for reports.
#[derive(Debug, Clone)]
pub(crate) struct QueueView {
    pub(crate) index: u16,
    pub(crate) size: u16,
    /// Index of the reactor that serves it.
    pub(crate) reactor: usize,
    pub(crate) stats: Arc<QueueStats>,
}
