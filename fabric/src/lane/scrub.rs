//! Scrubbing: every extent of every egroup is read and compared with its checksum, again and again, at a rate.
//!
//! The lane has no clock: whoever drives it says what time it is ([`Lane::tick`]). With a rate of 0 scrubbing pauses where it is.

use penstock_reactor::Tick;

use super::{Core, Lane, WorkError};
use crate::codec::Codec;
use crate::egroup::{ReadError, piece, read_header, verify};
use crate::id::{BLOCK_BYTES, DiskNo, EgroupId, ExtentNo, index};
use crate::state::Egroup;

/// Seconds of its rate that a scrub may make up for at once, in nanoseconds.
const BURST_NS: u64 = 100_000_000;
/// What is found damaged is remembered up to so many extents.
pub const DAMAGED_MAX: usize = 256;

/// Where a scrub is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubProgress {
    /// Blocks of 4 KiB per second; 0: it pauses.
    pub rate: u64,
    /// Egroups of this pass that are done …
    pub done: u64,
    /// … and all that there were when it began.
    pub total: u64,
    /// Passes that have come to their end.
    pub passes: u64,
    /// Blocks that were read.
    pub blocks: u64,
    /// Extents that are damaged, of all passes …
    pub errors: u64,
    /// … and which the first of this pass are.
    pub damaged: Vec<(EgroupId, ExtentNo)>,
}

/// The state of a scrub.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    progress: ScrubProgress,
    now: Tick,
    /// Blocks that may be read now; below zero: they have been read ahead of time.
    tokens: i64,
    /// Somebody waits for more.
    starved: bool,
}

impl Lane {
    /// Says what time it is.
    pub fn tick(&self, now: Tick) {
        let mut core = self.0.borrow_mut();
        if core.scrub.tick(now) {
            core.wake();
        }
        core.tick_budget(now);
        core.tick_repair(now);
    }

    /// Whether something waits for time to pass.
    #[must_use]
    pub fn wants_tick(&self) -> bool {
        let core = self.0.borrow();
        (core.scrub.starved && core.scrub.progress.rate > 0) || core.budget_waits() || core.repair_starves()
    }

    /// Changes how fast [`Self::scrub`] goes, in blocks of 4 KiB per second; 0 lets it pause.
    pub fn set_scrub_rate(&self, rate: u64) {
        let mut core = self.0.borrow_mut();
        core.scrub.progress.rate = rate;
        core.wake();
    }

    /// Where the scrub is.
    #[must_use]
    pub fn scrub_progress(&self) -> ScrubProgress {
        self.0.borrow().scrub.progress.clone()
    }

    /// Reads and verifies everything once. One at a time per lane; it may be dropped at any point. Returns how many extents are damaged.
    ///
    /// # Errors
    /// [`WorkError::Failed`] when the lane fails.
    pub async fn scrub(&self) -> Result<u64, WorkError> {
        let (mut next, before) = {
            let mut core = self.0.borrow_mut();
            let total = core.state.egroups.len() as u64;
            let progress = &mut core.scrub.progress;
            (progress.done, progress.total) = (0, total);
            progress.damaged.clear();
            (EgroupId(0), progress.errors)
        };
        loop {
            let found = {
                let core = self.0.borrow();
                core.state.egroups.range(next..).next().map(|(id, egroup)| (*id, *egroup))
            };
            let Some((id, egroup)) = found else { break };
            next = EgroupId(id.0 + 1);
            self.scrub_egroup(id, &egroup).await?;
            self.0.borrow_mut().scrub.progress.done += 1;
        }
        let mut core = self.0.borrow_mut();
        core.scrub.progress.passes += 1;
        Ok(core.scrub.progress.errors - before)
    }

    async fn scrub_egroup(&self, id: EgroupId, egroup: &Egroup) -> Result<(), WorkError> {
        // Also where it is dropped or moved meanwhile: these blocks are its until the guard is gone.
        let _pin = self.pinned(id);
        let copies = self.0.borrow().live(egroup);
        for (place, at) in &copies {
            let errors = self.0.borrow().scrub.progress.errors;
            self.scrub_copy(id, &egroup.seen_at(*place), *at).await?;
            let mut core = self.0.borrow_mut();
            if core.scrub.progress.errors > errors && copies.len() > 1 {
                core.note_bad(id, place.disk);
            }
        }
        Ok(())
    }

    async fn scrub_copy(&self, id: EgroupId, egroup: &Egroup, at: DiskNo) -> Result<(), WorkError> {
        let owner = self.0.borrow().owner;
        self.scrub_budget(egroup.header_blocks).await?;
        let header = match read_header(&self.1, &owner, id, egroup, at).await {
            Ok(header) => header,
            Err(error) => return self.scrub_found(id, ExtentNo(0), &error),
        };
        for extent in (0..header.extents()).filter_map(|extent| u16::try_from(extent).ok().map(ExtentNo)) {
            let Some(entry) = header.extent(extent).filter(|entry| entry.blocks > 0) else { continue };
            let missing = ReadError::Missing { id, extent };
            let Some(whole) = piece(egroup, &header, extent, 0, u64::from(entry.blocks)) else {
                self.scrub_found(id, extent, &missing)?;
                continue;
            };
            self.scrub_budget(whole.disk_blocks).await?;
            match self.1.read(at, whole.at, whole.disk_blocks).await {
                Ok(bytes) if verify(&header, &whole, &bytes) && self.decodes(&whole, &bytes) => {}
                Ok(_) => self.scrub_found(id, extent, &ReadError::Checksum { id, extent })?,
                Err(source) => self.scrub_found(id, extent, &ReadError::Disk { id, source })?,
            }
            while let Err(error) = self.aside(index(whole.disk_blocks)).await {
                if error != WorkError::Paused {
                    return Err(error);
                }
                self.wait(|core| (!core.is_paused() || core.log.failed().is_some()).then_some(())).await;
            }
        }
        Ok(())
    }

    fn decodes(&self, whole: &crate::egroup::Piece, bytes: &[u8]) -> bool {
        let len = usize::from(whole.entry.blocks) * BLOCK_BYTES;
        let Some(stored) = whole.stored(bytes) else { return false };
        let mut core = self.0.borrow_mut();
        whole.codec() == Codec::Raw
            || core.coder.get_or_insert_default().decode(whole.codec(), stored, len).is_some()
    }

    fn scrub_found(&self, id: EgroupId, extent: ExtentNo, error: &ReadError) -> Result<(), WorkError> {
        let mut core = self.0.borrow_mut();
        if let Some(status) = core.log.failed() {
            return Err(WorkError::Failed(status));
        }
        core.checksum_errors += u64::from(!matches!(error, ReadError::Disk { .. }));
        let progress = &mut core.scrub.progress;
        progress.errors += 1;
        if progress.damaged.len() < DAMAGED_MAX {
            progress.damaged.push((id, extent));
        }
        Ok(())
    }

    /// Waits until so many blocks may be read.
    async fn scrub_budget(&self, blocks: u32) -> Result<(), WorkError> {
        self.wait(|core: &mut Core| {
            if let Some(status) = core.log.failed() {
                return Some(Err(WorkError::Failed(status)));
            }
            core.scrub.take(blocks).then_some(Ok(()))
        })
        .await
    }
}

impl Scrub {
    /// Lets time pass; true: somebody who waits may go on.
    fn tick(&mut self, now: Tick) -> bool {
        if !self.starved {
            self.now = now;
            return false;
        }
        let passed = now.ns_since(self.now).min(BURST_NS);
        let earned = i64::try_from(u128::from(passed) * u128::from(self.progress.rate) / 1_000_000_000);
        let earned = earned.unwrap_or(i64::MAX);
        // Less than a block stays in the time.
        if earned == 0 {
            return false;
        }
        self.now = now;
        self.tokens = self.tokens.saturating_add(earned);
        self.tokens > 0
    }

    fn take(&mut self, blocks: u32) -> bool {
        self.starved = self.tokens <= 0 || self.progress.rate == 0;
        if self.starved {
            return false;
        }
        self.tokens -= i64::from(blocks);
        self.progress.blocks += u64::from(blocks);
        true
    }
}
