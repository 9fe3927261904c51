//! What a pool's lanes do in the background: their budget, and where they are.

use super::{FabricError, Pool};
use crate::lane::{BackgroundOptions, BackgroundProgress, Job};

/// Where the background of a pool is.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolBackground {
    /// What each lane may have.
    pub options: BackgroundOptions,
    /// Lanes that mark, that compact, and that encode.
    pub marking: u64,
    /// See `marking`.
    pub compacting: u64,
    /// See `marking`.
    pub encoding: u64,
    /// Lanes that wait for their share.
    pub waiting: u64,
    /// So much is done, in nodes or egroups …
    pub done: u64,
    /// … of so much, where it is known.
    pub total: u64,
    /// Jobs that have come to their end since the pool was opened.
    pub finished: u64,
    /// Microseconds that they took, about.
    pub busy_us: u64,
    /// Bytes that bypassed the log since the pool was opened.
    pub bypassed_bytes: u64,
}

impl Pool {
    /// Changes the budget of all lanes, and from how many blocks on writes bypass the log; what is `None` stays.
    ///
    /// # Errors
    /// [`FabricError`] when the pool is closed.
    pub async fn set_background(
        &self,
        share_percent: Option<u8>,
        paused: Option<bool>,
        bypass_blocks: Option<u32>,
    ) -> Result<(), FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        self.at_lanes(lanes, move |_, seat, _| async move {
            let lane = seat.lane();
            let (before, _) = lane.background_progress();
            lane.set_background(BackgroundOptions {
                share_percent: share_percent.unwrap_or(before.share_percent),
                paused: paused.unwrap_or(before.paused),
            });
            if let Some(blocks) = bypass_blocks {
                lane.set_bypass_blocks(blocks);
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Where the background is.
    ///
    /// # Errors
    /// [`FabricError`] when the pool is closed.
    pub async fn background(&self) -> Result<PoolBackground, FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let each = self.at_lanes(lanes, |_, seat, _| async move {
            let lane = seat.lane();
            Ok((lane.background_progress(), lane.bypassed_blocks()))
        });
        let mut all = PoolBackground::default();
        for ((options, progress), bypassed) in each.await? {
            all.options = options;
            all.add(&progress);
            all.bypassed_bytes += bypassed * crate::id::BLOCK_BYTES as u64;
        }
        Ok(all)
    }
}

impl PoolBackground {
    fn add(&mut self, progress: &BackgroundProgress) {
        match progress.job {
            Job::Idle => {}
            Job::Mark => self.marking += 1,
            Job::Compact => self.compacting += 1,
            Job::Encode => self.encoding += 1,
        }
        if progress.job != Job::Idle {
            self.done += progress.done;
            self.total += progress.total;
        }
        self.waiting += u64::from(progress.waiting);
        self.finished += progress.finished;
        self.busy_us += progress.units;
    }
}
