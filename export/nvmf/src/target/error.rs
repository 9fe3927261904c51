//! What can go wrong when the target is configured.

use penstock_bdev::BdevError;
use penstock_reactor::ReactorError;
use penstock_security::tls::TlsError;
use penstock_spec::nvmf::NqnError;

use crate::transport_options::OptionError;

/// Errors of the target's methods. Each says what, which object, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// There is no such subsystem.
    #[error("there is no subsystem {nqn}; nvmf_get_subsystems lists them")]
    NoSubsystem {
        /// Its name.
        nqn: String,
    },
    /// There is no such target.
    #[error("there is no target {name}; the only one is \"nvmf_tgt\"")]
    NoTarget {
        /// Its name.
        name: String,
    },
    /// The subsystem exists.
    #[error("a subsystem {nqn} exists already; delete it first or choose another name")]
    SubsystemExists {
        /// Its name.
        nqn: String,
    },
    /// The transport exists.
    #[error("transport TCP exists already; its options are fixed while the daemon runs")]
    TransportExists,
    /// No transport was created.
    #[error("there is no transport {trtype}; create it with nvmf_create_transport first")]
    NoTransport {
        /// Which.
        trtype: String,
    },
    /// A transport option that cannot be.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A name that is none.
    #[error("{parameter} {name:?} is not a valid NQN")]
    Nqn {
        /// Which parameter.
        parameter: &'static str,
        /// What was given.
        name: String,
        /// What is wrong with it.
        #[source]
        source: NqnError,
    },
    /// A parameter that makes no sense.
    #[error("{parameter} is {value}; it must be {allowed}")]
    Invalid {
        /// Which parameter.
        parameter: &'static str,
        /// What was given.
        value: String,
        /// What is possible.
        allowed: String,
    },
    /// There is no such thing in the subsystem.
    #[error("subsystem {nqn} has no {what}")]
    Missing {
        /// The subsystem.
        nqn: String,
        /// What is missing: "namespace 3", "host …", "listener …".
        what: String,
    },
    /// It is there already.
    #[error("subsystem {nqn} has {what} already")]
    Present {
        /// The subsystem.
        nqn: String,
        /// What is there.
        what: String,
    },
    /// A limit is reached.
    #[error("{what} of {owner} are at their limit of {max}; remove one first")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// Whose.
        owner: String,
        /// The limit.
        max: usize,
    },
    /// The subsystem reports no ANA states.
    #[error("subsystem {nqn} has no ANA reporting; create it with \"ana_reporting\": true")]
    NoAna {
        /// The subsystem.
        nqn: String,
    },
    /// The discovery subsystem has none of that.
    #[error("the discovery subsystem cannot {what}")]
    Discovery {
        /// What was asked of it.
        what: &'static str,
    },
    /// The bdev cannot be had.
    #[error("namespace on bdev {name} of subsystem {nqn}")]
    Bdev {
        /// The bdev.
        name: String,
        /// The subsystem.
        nqn: String,
        /// What the bdev's side says.
        #[source]
        source: BdevError,
    },
    /// The bdev's reservations are not known, so that nobody may use it.
    #[error("the reservations of bdev {bdev} cannot be read")]
    Reservations {
        /// Its UUID.
        bdev: String,
        /// What the storage says.
        #[source]
        source: std::io::Error,
    },
    /// A reactor cannot use the bdev; the namespace was not added.
    #[error(
        "namespace {nsid} on bdev {name} was not added to subsystem {nqn}: a reactor cannot open it ({reason})"
    )]
    Channel {
        /// The bdev.
        name: String,
        /// The namespace.
        nsid: u32,
        /// The subsystem.
        nqn: String,
        /// Which reactor, and what the bdev's side says.
        reason: String,
    },
    /// There is no TLS.
    #[error("keys for TLS and secure listeners cannot be used")]
    Tls(#[from] TlsError),
    /// Too much waits for the thread of authentication.
    #[error("the keys for TLS could not be changed: too many hosts authenticate themselves; try again")]
    Crowded,
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
}
