//! A controller's reset: everything stops, the controller starts anew, everything goes on.
//!
//! ```text
//!   queues pause ─► CC.EN=0 ─► queues rewind ─► bring-up, queues created ─► queues resume: what was under way is done again
//!                      │ does not stop: bus mastering off              │ fails too often
//!                      └──────────────────────────► failed: all I/O ends ◄┘
//!                                                     after a while it is tried again
//! ```

use penstock_bdev::IoStatus;

use super::ControllerState;
use super::thread::Keeper;
use crate::admin::{AdminError, Shadows, Waiter};

/// Attempts to bring a controller up again.
const ATTEMPTS: usize = 3;
/// A controller that needed so many resets ...
const RESETS_MAX: usize = 8;
/// ... within this time is given up.
const WINDOW_NS: u64 = 60_000_000_000;
/// A controller that was given up is tried again, as it may have been slow for a while only: after the reconnect delay,
/// then after twice as long each time, this long at most.
const RETRY_MAX_NS: u64 = 60_000_000_000;

/// When a controller that was given up is tried again.
#[derive(Debug)]
pub(super) struct Retry {
    first_ns: u64,
    next_ns: u64,
    due_ns: u64,
}

impl Retry {
    pub(super) fn new(first_ns: u64) -> Self {
        Self { first_ns, next_ns: first_ns, due_ns: 0 }
    }
}

impl Keeper {
    /// Resets the controller.
    ///
    /// # Errors
    /// Why it did not come back; then all its I/O has ended, or, where it is gone, its bdevs are going.
    pub(super) fn reset(&mut self, why: &str) -> Result<(), String> {
        self.with_report(|report| {
            report.state = ControllerState::Resetting;
            report.resets += 1;
        });
        self.on_queues(|queue, _| queue.revive());
        self.on_queues(|queue, _| queue.pause());
        let now_ns = self.time.now_ns();
        self.resets.retain(|at_ns| now_ns.saturating_sub(*at_ns) < WINDOW_NS);
        if self.resets.is_empty() && now_ns.saturating_sub(self.retry.due_ns) >= WINDOW_NS {
            self.retry.next_ns = self.retry.first_ns;
        }
        self.resets.push_back(now_ns);
        if self.resets.len() > RESETS_MAX {
            let problem =
                format!("{RESETS_MAX} resets within a minute did not help; the last was because {why}");
            return self.fail(problem);
        }
        let mut problem = String::new();
        for _ in 0..ATTEMPTS {
            match self.try_to_reset() {
                Ok(shadows) => {
                    self.resume(shadows);
                    tracing::info!(controller = self.name, "the NVMe controller serves again");
                    return Ok(());
                }
                Err(AdminError::Gone) => {
                    self.gone();
                    return Err("the device is gone".to_owned());
                }
                Err(error) => {
                    tracing::warn!(controller = self.name, %error, "the reset failed");
                    problem = error.to_string();
                }
            }
        }
        self.fail(problem)
    }

    /// Tries a controller that was given up again, when it is time.
    pub(super) fn retry(&mut self) {
        if self.time.now_ns() >= self.retry.due_ns {
            // Its resets are forgiven, so that it has a chance; the delay is not.
            self.resets.clear();
            drop(self.reset("it was given up a while ago"));
        }
    }

    fn try_to_reset(&mut self) -> Result<Vec<Shadows>, AdminError> {
        self.admin.stop(&mut self.time)?;
        self.on_queues(|queue, _| queue.rewind());
        self.admin.start(self.io_queues_wanted, &mut self.time)?;
        let needed = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        if self.admin.io_queues() < needed {
            let problem =
                format!("it gives {} I/O queues now, and had given {needed}", self.admin.io_queues());
            return Err(AdminError::Unusable(problem));
        }
        let places: Vec<_> = self.queues.iter().map(|(place, _)| *place).collect();
        places.into_iter().map(|place| self.admin.create(place, &mut self.time)).collect()
    }

    fn resume(&mut self, shadows: Vec<Shadows>) {
        self.with_report(|report| report.state = ControllerState::Live);
        let id = self.id;
        for ((_, reactor), shadows) in self.queues.iter().zip(shadows) {
            let resumed = self.on_reactor(reactor, move |cx| {
                super::seat::with_queue(cx, id, |queue, now| queue.resume(shadows, now));
            });
            if resumed.is_none() {
                tracing::error!(
                    controller = self.name,
                    reactor = reactor.id().0,
                    "a reactor does not answer"
                );
            }
        }
        let identity = self.identity();
        self.with_report(|report| report.identity = identity);
    }

    fn fail(&mut self, problem: String) -> Result<(), String> {
        if self.admin.stop(&mut self.time).is_err() {
            self.device.cut_off();
        }
        self.on_queues(|queue, _| queue.end_all(IoStatus::TimedOut));
        tracing::error!(
            controller = self.name,
            problem,
            "the NVMe controller is given up; it is tried again in {} s, or by bdev_nvme_reset_controller",
            self.retry.next_ns / 1_000_000_000
        );
        self.retry.due_ns = self.time.now_ns().saturating_add(self.retry.next_ns);
        self.retry.next_ns = self.retry.next_ns.saturating_mul(2).min(RETRY_MAX_NS);
        self.with_report(|report| report.state = ControllerState::Failed(problem.clone()));
        Err(problem)
    }
}
