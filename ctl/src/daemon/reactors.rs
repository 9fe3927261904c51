//! The reactors' beginning and end.

use std::time::Duration;

use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorHandle, ReactorId, Started};

use crate::daemon::DaemonError;

/// All reactors of the daemon.
#[derive(Debug)]
pub struct Reactors {
    started: Vec<Started>,
}

impl Reactors {
    /// Starts one reactor for each entry of `cores`.
    ///
    /// # Errors
    /// Whatever one could not be started with; those that were are stopped again.
    pub fn start(cores: &[Option<u32>], mode: PollMode, clock: &Clock) -> Result<Self, DaemonError> {
        let mut reactors = Self { started: Vec::with_capacity(cores.len()) };
        for (id, core) in (0..).map(ReactorId).zip(cores) {
            let seed = uuid::Uuid::new_v4().as_u64_pair().0;
            match Reactor::start(ReactorConfig { id, core: *core, mode, clock: clock.clone(), seed }) {
                Ok(started) => reactors.started.push(started),
                Err(error) => {
                    reactors.ask_to_stop();
                    return Err(error.into());
                }
            }
        }
        Ok(reactors)
    }

    /// How to reach them, in order.
    #[must_use]
    pub fn handles(&self) -> Vec<ReactorHandle> {
        self.started.iter().map(|started| started.handle.clone()).collect()
    }

    /// Stops them and waits until all have ended; false where one did not within `limit`.
    pub async fn stop(self, limit: Duration) -> bool {
        self.ask_to_stop();
        let joined = tokio::task::spawn_blocking(move || {
            self.started.into_iter().map(|started| started.join.join()).filter(Result::is_err).count()
        });
        match tokio::time::timeout(limit, joined).await {
            Ok(Ok(0)) => true,
            Ok(_) => {
                tracing::error!("a reactor ended with a panic");
                false
            }
            Err(_) => false,
        }
    }

    fn ask_to_stop(&self) {
        self.started.iter().for_each(|started| started.handle.stop());
    }
}
