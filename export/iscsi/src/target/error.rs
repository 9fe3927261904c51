//! What can go wrong when the target is configured.

use std::io;

use penstock_bdev::BdevError;
use penstock_reactor::ReactorError;
use penstock_spec::iscsi::NameError;

/// Errors of the target's methods. Each says what, which object, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// There is no such thing.
    #[error("there is no {what}; {list} lists them")]
    Missing {
        /// What: "portal group 3".
        what: String,
        /// The method that lists what there is.
        list: &'static str,
    },
    /// It is there already.
    #[error("{what} is there already; delete it first or choose another name")]
    Exists {
        /// What: "portal group 3".
        what: String,
    },
    /// It is needed by something else.
    #[error("{what} is in use by {user}; change that first")]
    InUse {
        /// What: "authentication group 3".
        what: String,
        /// By what.
        user: String,
    },
    /// A name that is none.
    #[error("{parameter} {name:?} is not a valid iSCSI name")]
    Name {
        /// Which parameter.
        parameter: &'static str,
        /// What was given.
        name: String,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// A parameter that makes no sense.
    #[error("{parameter} is {value}; it must be {allowed}")]
    Invalid {
        /// Which parameter.
        parameter: &'static str,
        /// What was given; never a secret.
        value: String,
        /// What is possible.
        allowed: String,
    },
    /// A limit is reached.
    #[error("{what} are at their limit of {max}; remove one first")]
    Full {
        /// What there are too many of, and whose.
        what: String,
        /// The limit.
        max: usize,
    },
    /// The bdev cannot be had.
    #[error("LUN on bdev {name} of target {target}")]
    Bdev {
        /// The bdev.
        name: String,
        /// The target.
        target: String,
        /// What the bdev's side says.
        #[source]
        source: BdevError,
    },
    /// The bdev's reservations are not known.
    #[error("bdev {name} is not exported by target {target}: its reservations cannot be read")]
    Reservations {
        /// The bdev.
        name: String,
        /// The target.
        target: String,
        /// What the storage says.
        #[source]
        source: io::Error,
    },
    /// A reactor cannot use the bdev; the LUN was not added.
    #[error("LUN {lun} on bdev {name} was not added to target {target}: a reactor cannot open it ({reason})")]
    Unusable {
        /// The bdev.
        name: String,
        /// The LUN.
        lun: u16,
        /// The target.
        target: String,
        /// Which reactor, and what the bdev's side says.
        reason: String,
    },
    /// A reactor could not be reached, or refused.
    #[error("cannot {what}")]
    Reactor {
        /// What was attempted.
        what: String,
        /// What the reactor said.
        #[source]
        source: ReactorError,
    },
    /// Something did not end in time.
    #[error("{what} did not end within {seconds} s; it goes on in the background")]
    TimedOut {
        /// What.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
}

impl TargetError {
    pub(super) fn reactor(what: impl Into<String>) -> impl FnOnce(ReactorError) -> Self {
        let what = what.into();
        |source| Self::Reactor { what, source }
    }

    pub(super) fn no_target(name: &str) -> Self {
        Self::Missing { what: format!("target node {name}"), list: "iscsi_get_target_nodes" }
    }

    pub(super) fn no_portal_group(tag: u32) -> Self {
        Self::Missing { what: format!("portal group {tag}"), list: "iscsi_get_portal_groups" }
    }

    pub(super) fn no_initiator_group(tag: u32) -> Self {
        Self::Missing { what: format!("initiator group {tag}"), list: "iscsi_get_initiator_groups" }
    }

    pub(super) fn no_auth_group(tag: u32) -> Self {
        Self::Missing { what: format!("authentication group {tag}"), list: "iscsi_get_auth_groups" }
    }

    pub(super) fn invalid(parameter: &'static str, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self::Invalid { parameter, value: value.to_string(), allowed: allowed.into() }
    }
}
