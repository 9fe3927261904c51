//! What can go wrong on the control side.

use std::io;

/// Errors of creating, finding, opening and changing bdevs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BdevError {
    /// No such name, alias or UUID.
    #[error("there is no bdev {name}; bdev_get_bdevs lists them")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// The name, alias or UUID is taken.
    #[error("a bdev {name} exists already; choose another name or delete it first")]
    Exists {
        /// The name.
        name: String,
    },
    /// Somebody has it exclusively.
    #[error("bdev {name} is claimed by {owner}; remove it there first")]
    Claimed {
        /// The bdev.
        name: String,
        /// Who claimed it.
        owner: String,
    },
    /// Somebody has it open.
    #[error("bdev {name} is in use by {users}; remove it there first")]
    InUse {
        /// The bdev.
        name: String,
        /// Who has it open.
        users: String,
    },
    /// It is being removed.
    #[error("bdev {name} is being removed")]
    Removing {
        /// The bdev.
        name: String,
    },
    /// A parameter does not make sense.
    #[error("bdev {name}: {parameter} {problem}")]
    Invalid {
        /// The bdev.
        name: String,
        /// Which parameter.
        parameter: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The bdev cannot do that.
    #[error("bdev {name} ({product}) does not support {what}")]
    Unsupported {
        /// The bdev.
        name: String,
        /// What kind it is.
        product: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("bdev {name}: cannot {what}")]
    Os {
        /// The bdev.
        name: String,
        /// What was attempted, on what.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The bdev is of another kind than the method's.
    #[error("bdev {name} is a {actual}, not a {wanted}; use the method of its kind")]
    WrongKind {
        /// The bdev.
        name: String,
        /// What kind it is.
        actual: &'static str,
        /// What kind the method is for.
        wanted: &'static str,
    },
    /// There are as many as the registry takes.
    #[error("cannot add bdev {name}: there are {max} bdevs already; delete one first")]
    Full {
        /// The bdev.
        name: String,
        /// The bound.
        max: usize,
    },
    /// A reactor could not be reached or set up.
    #[error("bdev {name}")]
    Reactor {
        /// The bdev.
        name: String,
        /// What the reactor said.
        #[source]
        source: penstock_reactor::ReactorError,
    },
}
