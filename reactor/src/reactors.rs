//! All reactors of a daemon, spoken to together by the control thread.

use std::ops::Deref;
use std::time::Duration;

use futures_channel::oneshot;

use crate::cx::Cx;
use crate::error::ReactorError;
use crate::msg::{ReactorHandle, ReactorId};

/// How often [`Reactors::wait_until`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The reactors that serve one thing, say a target. Derefs to their handles.
#[derive(Debug, Clone)]
pub struct Reactors(Vec<ReactorHandle>);

impl Reactors {
    /// These reactors together.
    #[must_use]
    pub fn new(handles: Vec<ReactorHandle>) -> Self {
        Self(handles)
    }

    /// Sends `run` to all of them before it returns, so that the order of changes is that of the calls. A reactor that cannot
    /// be told is logged, and an error in the answers.
    pub fn tell<R: Send + 'static>(&self, run: impl Fn(&Cx) -> R + Clone + Send + 'static) -> Answers<R> {
        let tell = |handle: &ReactorHandle| {
            let (answer, answered) = oneshot::channel();
            let run = run.clone();
            let sent = handle.send_patiently(move |cx| drop(answer.send(run(cx))));
            if let Err(error) = &sent {
                tracing::error!(reactor = %handle.id(), %error, "a message of the control thread is lost");
            }
            Answer { from: handle.id(), answered: sent.map(|()| answered) }
        };
        Answers(self.0.iter().map(tell).collect())
    }

    /// Waits until `done` holds on every reactor, one after the other; `false` when it did not within `limit` on one of them.
    ///
    /// # Errors
    /// As [`ReactorHandle::call_async`].
    pub async fn wait_until(
        &self,
        limit: Duration,
        done: impl Fn(&Cx) -> bool + Clone + Send + 'static,
    ) -> Result<bool, ReactorError> {
        for handle in &self.0 {
            let done = done.clone();
            let look = move |cx: Cx| async move {
                let end = cx.now().plus(limit);
                while !done(&cx) {
                    if cx.now() >= end {
                        return false;
                    }
                    cx.sleep(LOOK_EVERY).await;
                }
                true
            };
            if !handle.call_async(look).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Deref for Reactors {
    type Target = [ReactorHandle];

    fn deref(&self) -> &[ReactorHandle] {
        &self.0
    }
}

#[derive(Debug)]
struct Answer<R> {
    from: ReactorId,
    answered: Result<oneshot::Receiver<R>, ReactorError>,
}

/// What reactors will answer to one or more [`Reactors::tell`]. May be dropped: what was sent runs all the same.
#[derive(Debug)]
pub struct Answers<R>(Vec<Answer<R>>);

impl<R> Default for Answers<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R> Answers<R> {
    /// Waits for these answers too.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Waits for all, and returns them in the order of sending.
    ///
    /// # Errors
    /// That of the first reactor that was not reached or stopped before it answered.
    pub async fn all(self) -> Result<Vec<R>, ReactorError> {
        let mut all = Vec::with_capacity(self.0.len());
        for Answer { from, answered } in self.0 {
            all.push(answered?.await.map_err(|_| ReactorError::Gone { reactor: from })?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::clock::Clock;
    use crate::msg::PollMode;
    use crate::reactor::{Reactor, ReactorConfig, Started};

    fn two() -> (Vec<Started>, Reactors) {
        let start = |id| {
            let clock = Clock::system();
            let config =
                ReactorConfig { id: ReactorId(id), core: None, mode: PollMode::ADAPTIVE, clock, seed: 1 };
            Reactor::start(config).unwrap()
        };
        let started: Vec<_> = [4, 5].map(start).into();
        let reactors = Reactors::new(started.iter().map(|started| started.handle.clone()).collect());
        (started, reactors)
    }

    #[test]
    fn the_answers_of_several_tellings_are_all_waited_for() {
        let (_started, reactors) = two();
        let mut answers = reactors.tell(|cx| cx.id().0);
        answers.extend(reactors.tell(|cx| cx.id().0 * 10));
        assert_eq!(block_on(answers.all()).unwrap(), [4, 5, 40, 50]);
    }

    #[test]
    fn a_reactor_that_is_gone_is_named() {
        let (mut started, reactors) = two();
        let gone = started.pop().unwrap();
        gone.handle.stop();
        gone.join.join().unwrap();
        let error = block_on(reactors.tell(Cx::id).all()).unwrap_err();
        assert!(matches!(error, ReactorError::Gone { reactor: ReactorId(5) }), "{error}");
    }

    #[test]
    fn waiting_ends_at_its_limit() {
        let (_started, reactors) = two();
        assert!(block_on(reactors.wait_until(Duration::MAX, |_| true)).unwrap());
        assert!(
            !block_on(reactors.wait_until(Duration::from_millis(3), |cx| cx.id() == ReactorId(4))).unwrap()
        );
    }
}
