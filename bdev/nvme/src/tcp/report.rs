//! What the control side knows of a path, and how a path's thread is asked for something.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use futures_channel::oneshot;
use penstock_reactor::stat::Counter;
use penstock_spec::nvme::log::Lid;

use super::seat::PathNs;
use crate::admin::Found;
use crate::controller::Identity;

/// Requests that wait for one path's thread at most.
pub(super) const ASKS_MAX: usize = 4096;

/// What is asked of a path's thread.
#[derive(Debug)]
pub(super) enum PathAsk {
    /// A reactor lost its connection.
    Lost { generation: u64, why: String },
    /// A command had no answer, and its abort brought none.
    Silence { generation: u64, ms: u64 },
    /// A command is to be aborted.
    Abort { generation: u64, qid: u16, cid: u16 },
    /// A namespace's state by this path is not what was thought.
    AnaChanged,
    /// A namespace is not there by this path.
    NamespacesChanged,
    /// Read so many bytes of a log page.
    Log { lid: Lid, len: usize, answer: oneshot::Sender<Result<Box<[u8]>, String>> },
    /// Connect it anew; answers why it did not come back at once.
    Reset(oneshot::Sender<Result<(), String>>),
    /// Another address to try where this one fails.
    AddAddress(SocketAddr),
    /// Not this one any more.
    RemoveAddress(SocketAddr),
    /// Take it from the reactors and say good-bye to the controller.
    Detach(oneshot::Sender<()>),
}

/// The way to a path's thread; does not block.
#[derive(Debug, Clone)]
pub(super) struct PathAsker(SyncSender<PathAsk>);

impl PathAsker {
    pub(super) fn new(sender: SyncSender<PathAsk>) -> Self {
        Self(sender)
    }

    /// Returns whether it was taken: not where the thread has too much to do, or has ended.
    pub(super) fn ask(&self, ask: PathAsk) -> bool {
        self.0.try_send(ask).is_ok()
    }
}

/// Counters of one path, of all reactors.
#[derive(Debug, Default)]
pub struct PathStats {
    /// Commands given to the target.
    pub commands: Counter,
    /// Commands tried again on the path because of their status.
    pub retries: Counter,
    /// I/Os that left the path for another one, or to wait.
    pub rerouted: Counter,
    /// Commands that took too long.
    pub timeouts: Counter,
}

/// How a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathCondition {
    /// It is being connected for the first time.
    Connecting,
    /// It serves.
    Live,
    /// It is lost, and why; it is being connected again. I/O waits for it.
    Reconnecting(String),
    /// As before, but I/O does not wait for it any more.
    Failed(String),
    /// It was lost for too long, or is being detached.
    Gone,
}

impl PathCondition {
    /// Its name in RPC answers, SPDK's.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Live => "enabled",
            Self::Connecting | Self::Reconnecting(_) => "resetting",
            Self::Failed(_) => "failed",
            Self::Gone => "deleting",
        }
    }
}

/// What is known of a path now.
#[derive(Debug, Clone)]
pub struct PathReport {
    /// How it is.
    pub condition: PathCondition,
    /// Where it leads: the address in use, then those to try where it fails.
    pub addresses: Vec<SocketAddr>,
    /// What the controller is, as Identify told; `None` before the first connection.
    pub identity: Option<Identity>,
    /// Its namespaces, as they were when it was last connected; those that are no bdevs with the reason.
    pub namespaces: Vec<Found>,
    /// Their states by this path.
    pub(super) states: Vec<PathNs>,
    /// Times that it was connected.
    pub connects: u64,
    /// Commands aborted.
    pub aborts: u64,
    /// Its counters.
    pub stats: Arc<PathStats>,
}

impl PathReport {
    /// A namespace's state by this path, as SPDK names it.
    #[must_use]
    pub fn ana_state(&self, nsid: u32) -> &'static str {
        self.states.iter().find(|ns| ns.nsid == nsid).map_or("unknown", |ns| super::disk::ana_name(ns.ana))
    }
}
