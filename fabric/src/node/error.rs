//! What the control side of pools and vdisks refuses with.

use penstock_bdev::BdevError;
use penstock_reactor::ReactorError;
use uuid::Uuid;

use crate::lane::{LaneError, WorkError};
use crate::pool::PoolError;

/// Why something was not done with a pool, a container, a vdisk or a snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// There is none of that name.
    #[error("there is no {what} {name}; {list} lists them")]
    NotFound {
        /// Kind of object.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// The method that lists them.
        list: &'static str,
    },
    /// The name is taken.
    #[error("{what} {name} exists already; choose another name")]
    Exists {
        /// Kind of object.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Something still needs it.
    #[error("{what} {name} is in use by {users}; {remedy}")]
    InUse {
        /// Kind of object.
        what: &'static str,
        /// The name.
        name: String,
        /// Who needs it.
        users: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A parameter does not make sense.
    #[error("{what} {name}: {problem}")]
    Invalid {
        /// Kind of object.
        what: &'static str,
        /// Which one.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// There are several pools, and none was named.
    #[error("there are {count} pools; say which")]
    WhichPool {
        /// How many.
        count: usize,
    },
    /// A bdev below or above.
    #[error(transparent)]
    Bdev(#[from] BdevError),
    /// A reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// The pool's disks.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// No disk is there that has a lane's log.
    #[error("lane {lane}: no disk that has its log is there; plug in the missing disks")]
    NoHome {
        /// The lane.
        lane: u16,
    },
    /// A lane that was to be opened.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// A lane.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// What the pool's notes say makes no sense.
    #[error("pool {pool}: note {id:016x} cannot be read: {problem}; run penstock fsck")]
    Note {
        /// The pool.
        pool: Uuid,
        /// The note.
        id: u64,
        /// What is wrong.
        problem: String,
    },
}
