//! The budget of work that can wait: collection, compaction, delayed compression, scrubbing.
//!
//! While hosts have I/O, such work gets a share of the core's time, in short slices; when none has come for a while, it has what it wants.
//! What makes room when there is none, and what the drain waits for, is not held back: the drain is the hosts' own work. The lane has no
//! clock: [`Lane::tick`] says what time it is, and where nobody does nothing is held back.

use penstock_reactor::Tick;

use super::{Core, Lane, WorkError};

/// A unit of work of about a microsecond, in nanoseconds.
const UNIT_NS: i64 = 1000;
/// Time that work may make up for at once, in nanoseconds: the length of a slice.
const BURST_NS: i64 = 64_000;
/// Hosts are quiet when nothing came from them for so long, in nanoseconds.
const QUIET_NS: u64 = 2_000_000;

/// What work that can wait may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundOptions {
    /// Percent of the core's time while hosts have I/O, 1 to 100.
    pub share_percent: u8,
    /// Whether it stops where it is.
    pub paused: bool,
}

impl Default for BackgroundOptions {
    /// A tenth.
    fn default() -> Self {
        Self { share_percent: 10, paused: false }
    }
}

/// A piece of work that can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Job {
    /// None.
    #[default]
    Idle,
    /// Counting what the maps refer to, in nodes; how many there are is not known before.
    Mark,
    /// Writing egroups again without what nobody needs, in egroups.
    Compact,
    /// Encoding egroups, in egroups.
    Encode,
}

/// Where the work that can wait is. A scrub has a progress of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackgroundProgress {
    /// What is being done.
    pub job: Job,
    /// So much of it is done …
    pub done: u64,
    /// … of so much; 0 where that is not known.
    pub total: u64,
    /// Jobs that have come to their end.
    pub finished: u64,
    /// Units of about a microsecond that such work took since the lane was opened, a scrub included.
    pub units: u64,
    /// It waits for its share, or until it may go on.
    pub waiting: bool,
}

/// The state of the budget.
#[derive(Debug, Default)]
pub(super) struct Budget {
    options: BackgroundOptions,
    progress: BackgroundProgress,
    now: Tick,
    ticked: bool,
    credit_ns: i64,
    /// When hosts last had something to do, and how many I/Os they had submitted then.
    busy_at: Tick,
    seen: u64,
    /// Somebody waits.
    waiting: bool,
    /// Room is wanted.
    urgent: bool,
}

impl Lane {
    /// Changes what work that can wait may have, from now on. It is not kept on disk.
    pub fn set_background(&self, options: BackgroundOptions) {
        let mut core = self.0.borrow_mut();
        core.budget.options = options;
        core.wake();
    }

    /// Where the work that can wait is, and what it may have.
    #[must_use]
    pub fn background_progress(&self) -> (BackgroundOptions, BackgroundProgress) {
        let core = self.0.borrow();
        let budget = &core.budget;
        (budget.options, BackgroundProgress { waiting: budget.waiting, ..budget.progress })
    }

    /// Lets others have the core after `units` units of work that can wait, for as long as the budget says.
    ///
    /// # Errors
    /// [`WorkError::Paused`]: it is to stop, and to be begun again when it may go on. [`WorkError::Failed`].
    pub(super) async fn aside(&self, units: usize) -> Result<(), WorkError> {
        self.0.borrow_mut().budget.spend(units);
        self.breathe(units).await;
        self.wait(|core| {
            if let Some(status) = core.log.failed() {
                return Some(Err(WorkError::Failed(status)));
            }
            core.may_go_on()
        })
        .await
    }

    /// Says what is being done, and how much of it there is.
    pub(super) fn begin_job(&self, job: Job, total: u64, urgent: bool) {
        let mut core = self.0.borrow_mut();
        core.budget.urgent = urgent;
        let progress = &mut core.budget.progress;
        (progress.job, progress.done, progress.total) = (job, 0, total);
    }

    /// Says that one more of what there is to be done is.
    pub(super) fn step_job(&self) {
        self.0.borrow_mut().budget.progress.done += 1;
    }

    /// Says that nothing is being done any more.
    pub(super) fn end_job(&self, finished: bool) {
        let mut core = self.0.borrow_mut();
        core.budget.urgent = false;
        core.budget.progress.job = Job::Idle;
        core.budget.progress.finished += u64::from(finished);
    }
}

impl Core {
    /// Lets time pass for those who wait for their share.
    pub(super) fn tick_budget(&mut self, now: Tick) {
        let under_way = !self.acks.is_empty()
            || self.free_reads.len() < self.reads.len()
            || self.bypass.held() > 0
            || self.budget.seen != self.submitted;
        self.budget.seen = self.submitted;
        self.budget.tick(now, under_way);
        if self.budget.waiting {
            self.wake();
        }
    }

    /// Whether work that can wait is stopped altogether.
    pub(super) fn is_paused(&self) -> bool {
        self.budget.options.paused
    }

    /// Whether somebody waits for time to pass.
    pub(super) fn budget_waits(&self) -> bool {
        self.budget.waiting
    }

    fn may_go_on(&mut self) -> Option<Result<(), WorkError>> {
        let drain_waits = !self.tables.frozen.is_empty();
        let budget = &mut self.budget;
        budget.waiting = false;
        if budget.urgent {
            return Some(Ok(()));
        }
        if budget.options.paused {
            return Some(Err(WorkError::Paused));
        }
        if drain_waits || budget.has_credit() {
            return Some(Ok(()));
        }
        budget.waiting = true;
        None
    }
}

impl Budget {
    fn tick(&mut self, now: Tick, under_way: bool) {
        let passed = i64::try_from(now.ns_since(self.now)).unwrap_or(BURST_NS).min(BURST_NS * 100);
        let earned = passed * i64::from(self.options.share_percent.clamp(1, 100)) / 100;
        self.credit_ns = (self.credit_ns + earned).min(BURST_NS);
        (self.now, self.ticked) = (now, true);
        if under_way {
            self.busy_at = now;
        }
    }

    fn spend(&mut self, units: usize) {
        let units = u64::try_from(units).unwrap_or(0);
        self.progress.units += units;
        let cost = i64::try_from(units).unwrap_or(0).saturating_mul(UNIT_NS);
        // What was done while hosts were quiet is not held against later work.
        self.credit_ns = self.credit_ns.saturating_sub(cost).max(-BURST_NS);
    }

    fn has_credit(&self) -> bool {
        !self.ticked || self.credit_ns > 0 || self.now.ns_since(self.busy_at) >= QUIET_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane of which time is told every 5 us, with work that takes what it gets; returns the part of the time it got, in percent.
    fn part(share_percent: u8, busy: bool) -> u64 {
        let mut budget =
            Budget { options: BackgroundOptions { share_percent, paused: false }, ..Budget::default() };
        let (mut worked, mut longest, mut now) = (0_u64, 0, 1_u64 << 40);
        let begin = now;
        while now < begin + 1_000_000_000 {
            now += 5000;
            budget.tick(Tick::from_ns(now), busy);
            let mut slice = 0;
            while budget.has_credit() && slice < 64 {
                budget.spend(8);
                slice += 8;
            }
            longest = longest.max(slice);
            worked += slice * 1000;
            now += slice * 1000;
        }
        assert!(longest <= 72, "a slice of {longest} us");
        worked * 100 / (now - begin)
    }

    #[test]
    fn work_that_can_wait_gets_its_share_while_hosts_are_busy_and_all_when_they_are_quiet() {
        assert!((9..=11).contains(&part(10, true)), "{}", part(10, true));
        assert!((45..=55).contains(&part(50, true)), "{}", part(50, true));
        assert!(part(10, false) > 85, "{}", part(10, false));
    }
}
