//! What remote controllers are attached with, and what can go wrong with them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use penstock_bdev::BdevError;
use penstock_nvme_tcp::blocking::BlockingError;
use penstock_nvme_tcp::{AuthConfig, TlsKey};
use penstock_spec::nvmf::Nqn;

/// Seconds of any limit at most: about 34 years.
const SECONDS_MAX: u32 = 1 << 30;

/// What happens when a path is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossOptions {
    /// After so many seconds without a connection the path is given up; -1: never, 0: after one attempt.
    pub ctrlr_loss_timeout_sec: i32,
    /// Between attempts to connect, in seconds; 0 only where there is but one.
    pub reconnect_delay_sec: u32,
    /// After so many seconds without a connection I/O does not wait for the path any more; 0: it waits until the path is
    /// given up.
    pub fast_io_fail_timeout_sec: u32,
}

impl Default for LossOptions {
    fn default() -> Self {
        Self { ctrlr_loss_timeout_sec: 600, reconnect_delay_sec: 2, fast_io_fail_timeout_sec: 0 }
    }
}

impl LossOptions {
    /// What does not go together, and what would.
    ///
    /// # Errors
    /// The parameter's name and the problem.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let (loss, delay, fail) =
            (self.ctrlr_loss_timeout_sec, self.reconnect_delay_sec, self.fast_io_fail_timeout_sec);
        let problem = |name, problem: String| Err((name, problem));
        if loss < -1 || u32::try_from(loss).is_ok_and(|loss| loss > SECONDS_MAX) {
            return problem("ctrlr_loss_timeout_sec", format!("is {loss}; it must be -1 to {SECONDS_MAX}"));
        }
        let limit = u32::try_from(loss).unwrap_or(SECONDS_MAX);
        if loss != 0 && delay == 0 {
            let text = "is 0, and ctrlr_loss_timeout_sec is not; give both, or neither".to_owned();
            return problem("reconnect_delay_sec", text);
        }
        if delay > limit {
            return problem(
                "reconnect_delay_sec",
                format!("is {delay}, above ctrlr_loss_timeout_sec ({loss})"),
            );
        }
        if fail > 0 && (fail < delay || fail > limit) {
            let text = format!(
                "is {fail}; it must be between reconnect_delay_sec ({delay}) and ctrlr_loss_timeout_sec ({loss})"
            );
            return problem("fast_io_fail_timeout_sec", text);
        }
        Ok(())
    }

    /// `None`: never.
    pub(super) fn loss_ns(&self) -> Option<u64> {
        u64::try_from(self.ctrlr_loss_timeout_sec).ok().map(|seconds| seconds * 1_000_000_000)
    }

    /// `None`: not before the path is given up.
    pub(super) fn fast_io_fail_ns(&self) -> Option<u64> {
        let seconds = u64::from(self.fast_io_fail_timeout_sec);
        (seconds > 0).then(|| seconds * 1_000_000_000)
    }

    pub(super) fn reconnect_delay_ns(&self) -> u64 {
        u64::from(self.reconnect_delay_sec) * 1_000_000_000
    }
}

/// What a further address under a name that is taken becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MultipathMode {
    /// An error.
    Disable,
    /// An address that the first path goes to when it cannot reach its own.
    Failover,
    /// A path of its own, connected at once.
    #[default]
    Multipath,
}

/// What a remote controller is attached with.
#[derive(Debug, Clone)]
pub struct TcpAttach {
    /// Its name; bdevs are named by it, `n` and the NSID.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The subsystem.
    pub subnqn: Nqn,
    /// Who we say we are; of a further path: as the first one, where not given.
    pub hostnqn: Option<Nqn>,
    /// The host's identifier; made of the NQN where not given.
    pub hostid: Option<[u8; 16]>,
    /// Digests of headers.
    pub hdgst: bool,
    /// Digests of data.
    pub ddgst: bool,
    /// Submission queue flow control.
    pub sq_flow_control: bool,
    /// Secrets for DH-HMAC-CHAP.
    pub auth: Option<Arc<AuthConfig>>,
    /// The key for TLS; without one a controller that insists on TLS after an authentication gets it.
    pub tls: Option<TlsKey>,
    /// I/O queues to ask for at least.
    pub num_io_queues: Option<u16>,
    /// Limit of each step of connecting.
    pub connect_timeout: Duration,
    /// What a further address becomes.
    pub multipath: MultipathMode,
    /// What happens when it is lost.
    pub loss: LossOptions,
    /// A path that cannot be connected at once is tried again as if it had been lost: for the daemon's own start.
    pub keep_trying: bool,
    /// The call's parameters, to attach it again; host NQN and identifier are added.
    pub params: serde_json::Value,
}

/// Errors of attaching and detaching remote controllers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TcpError {
    /// No such controller, path or namespace.
    #[error("there is no NVMe/TCP controller {name}; bdev_nvme_get_controllers lists them")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// It has no such path.
    #[error("NVMe/TCP controller {name} has no path to {what}; bdev_nvme_get_controllers lists them")]
    NoPath {
        /// The controller.
        name: String,
        /// Which path.
        what: String,
    },
    /// The name is taken, and no further path is wanted.
    #[error("an NVMe controller {name} exists already and multipath is disabled; choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// It has the path.
    #[error("NVMe/TCP controller {name} has a path to {address} already")]
    PathTaken {
        /// The controller.
        name: String,
        /// Where the path leads.
        address: SocketAddr,
    },
    /// A parameter does not make sense.
    #[error("NVMe/TCP controller {name}: {parameter} {problem}")]
    Invalid {
        /// The controller.
        name: String,
        /// Which parameter.
        parameter: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// There are as many as can be.
    #[error("NVMe/TCP controller {name}: there are {max} {what} already, which is the most")]
    Full {
        /// The name.
        name: String,
        /// Of what.
        what: &'static str,
        /// How many.
        max: usize,
    },
    /// It could not be connected.
    #[error("NVMe/TCP controller {name}: cannot connect to {address}: {why}")]
    Connect {
        /// The controller.
        name: String,
        /// Where it should be.
        address: SocketAddr,
        /// Why.
        why: BlockingError,
    },
    /// It gives fewer queues than there are reactors.
    #[error(
        "NVMe/TCP controller {name}: {address} grants {granted} I/O queues, and each of {reactors} reactors needs one; \
         raise the target's limit (max_io_qpairs_per_ctrlr) or run fewer reactors"
    )]
    Queues {
        /// The controller.
        name: String,
        /// Where it is.
        address: SocketAddr,
        /// Queues granted.
        granted: u16,
        /// Reactors.
        reactors: u16,
    },
    /// The new path does not lead to the same namespaces.
    #[error("NVMe/TCP controller {name}: namespace {nsid} of the new path: {why}")]
    Differs {
        /// The controller.
        name: String,
        /// The namespace.
        nsid: u32,
        /// What differs.
        why: String,
    },
    /// A reactor did not take its queue.
    #[error("NVMe/TCP controller {name}: reactor {reactor} did not take its queue")]
    Reactor {
        /// The controller.
        name: String,
        /// Which reactor.
        reactor: u32,
    },
    /// Its thread did not start, or ended.
    #[error("NVMe/TCP controller {name}: its thread did not come up")]
    Thread {
        /// The controller.
        name: String,
    },
    /// It did not come back from its reset.
    #[error("NVMe/TCP controller {name}: {problem}")]
    Reset {
        /// The controller.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A bdev of it could not be registered.
    #[error(transparent)]
    Bdev(#[from] BdevError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(loss: i32, delay: u32, fail: u32) -> LossOptions {
        LossOptions {
            ctrlr_loss_timeout_sec: loss,
            reconnect_delay_sec: delay,
            fast_io_fail_timeout_sec: fail,
        }
    }

    #[test]
    fn limits_of_a_lost_path_are_in_order() {
        for (loss, delay, fail) in [(0, 0, 0), (-1, 1, 0), (-1, 1, 5), (10, 2, 0), (10, 2, 2), (10, 10, 10)] {
            assert_eq!(of(loss, delay, fail).check(), Ok(()), "{loss} {delay} {fail}");
        }
        for (loss, delay, fail) in
            [(-2, 1, 0), (0, 1, 0), (-1, 0, 0), (5, 6, 0), (10, 2, 1), (10, 2, 11), (0, 0, 3)]
        {
            assert!(of(loss, delay, fail).check().is_err(), "{loss} {delay} {fail}");
        }
        assert_eq!(LossOptions::default().check(), Ok(()));
        assert_eq!((of(-1, 1, 0).loss_ns(), of(0, 0, 0).loss_ns()), (None, Some(0)));
    }
}
