//! Free space: regions of a disk are handed to lanes, runs of blocks inside them to egroups.
//!
//! [`Regions`] is shared by all lanes of a disk and takes no lock: a region changes hands once per many MiB, by one
//! compare-and-swap. [`Free`] belongs to one lane. Neither is on disk: a lane's regions are in its state, and what is free in
//! them is what no egroup of the index occupies, so that nothing can leak over a restart.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::format::superblock::Layout;
use crate::id::{DiskBlock, LaneNo, index};

/// Blocks that only the state of the lane may use: map nodes of drains that free space, and egroups that are compacted.
pub const RESERVE_BLOCKS: u64 = 2048;

/// What all lanes share of one disk: who has which region of it, and whether it fails.
#[derive(Debug)]
pub struct Regions {
    /// The owner's lane plus one; 0: nobody.
    owners: Vec<AtomicU32>,
    layout: Layout,
    failing: AtomicBool,
}

impl Regions {
    /// All regions of a disk, nobody's yet.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let owners = (0..layout.regions()).map(|_| AtomicU32::new(0)).collect();
        Self { owners, layout, failing: AtomicBool::new(false) }
    }

    /// Says that the disk fails to keep what is written.
    pub fn fail(&self) {
        self.failing.store(true, Ordering::Release);
    }

    /// Whether it was said to fail.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Takes a region that is nobody's.
    pub fn take(&self, lane: LaneNo) -> Option<u32> {
        let mine = u32::from(lane.0) + 1;
        let free = |owner: &AtomicU32| {
            let taken = owner.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        };
        self.owners.iter().position(free).and_then(|region| u32::try_from(region).ok())
    }

    /// Says that `region` is `lane`'s, as the lane's state has it. False: it is another's, or there is no such region.
    pub fn claim(&self, region: u32, lane: LaneNo) -> bool {
        let mine = u32::from(lane.0) + 1;
        let Some(owner) = self.owners.get(index(region)) else { return false };
        match owner.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(owner) => owner == mine,
        }
    }

    /// Gives a region back that is `lane`'s. False: it is not.
    pub fn give(&self, region: u32, lane: LaneNo) -> bool {
        let mine = u32::from(lane.0) + 1;
        let owner = self.owners.get(index(region));
        owner
            .is_some_and(|owner| owner.compare_exchange(mine, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Of a disk that is not there: none.
    #[must_use]
    pub fn none(layout: Layout) -> Self {
        Self { owners: Vec::new(), layout, failing: AtomicBool::new(false) }
    }

    /// How many regions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Whose a region is.
    #[must_use]
    pub fn owner(&self, region: u32) -> Option<LaneNo> {
        let owner = self.owners.get(index(region))?.load(Ordering::Acquire);
        owner.checked_sub(1).and_then(|lane| u16::try_from(lane).ok()).map(LaneNo)
    }

    /// How many are nobody's.
    #[must_use]
    pub fn free(&self) -> usize {
        self.owners.iter().filter(|owner| owner.load(Ordering::Relaxed) == 0).count()
    }

    /// The blocks of a region: the first, and how many.
    #[must_use]
    pub fn blocks(&self, region: u32) -> (DiskBlock, u64) {
        (self.layout.region_first(region), u64::from(self.layout.region_blocks))
    }
}

/// The free blocks of one lane on one disk, as runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Free {
    /// First block → length; no two touch.
    runs: BTreeMap<u64, u64>,
    blocks: u64,
    /// Where the last run was taken: the search goes on there, so that writes go forward.
    cursor: u64,
}

impl Free {
    /// How many blocks are free.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = (DiskBlock, u64)> {
        self.runs.iter().map(|(first, blocks)| (DiskBlock(*first), *blocks))
    }

    /// Takes `blocks` blocks next to each other.
    pub fn take(&mut self, blocks: u64) -> Option<DiskBlock> {
        let fits = |(first, len): (&u64, &u64)| (*len >= blocks).then_some((*first, *len));
        let behind = self.runs.range(self.cursor..).find_map(fits);
        let (first, len) = behind.or_else(|| self.runs.range(..self.cursor).find_map(fits))?;
        self.runs.remove(&first);
        if len > blocks {
            self.runs.insert(first + blocks, len - blocks);
        }
        self.blocks -= blocks;
        self.cursor = first + blocks;
        Some(DiskBlock(first))
    }

    /// Takes exactly these blocks, as an index read from disk says. False: not all of them are free.
    pub fn take_at(&mut self, first: DiskBlock, blocks: u64) -> bool {
        let Some((&run, &len)) = self.runs.range(..=first.0).next_back() else { return false };
        let Some(end) = first.0.checked_add(blocks) else { return false };
        if blocks == 0 || end > run + len {
            return false;
        }
        self.runs.remove(&run);
        if first.0 > run {
            self.runs.insert(run, first.0 - run);
        }
        if run + len > end {
            self.runs.insert(end, run + len - end);
        }
        self.blocks -= blocks;
        true
    }

    /// Gives blocks back.
    ///
    /// # Panics
    /// When some of them are free already: the same space was in use twice.
    pub fn give(&mut self, first: DiskBlock, blocks: u64) {
        let (mut start, mut end) = (first.0, first.0 + blocks);
        if let Some((&run, &len)) = self.runs.range(..end).next_back() {
            assert!(run + len <= start, "blocks {start} to {end} are given back twice");
            if run + len == start {
                self.runs.remove(&run);
                start = run;
            }
        }
        if let Some(len) = self.runs.remove(&end) {
            end += len;
        }
        self.runs.insert(start, end - start);
        self.blocks += blocks;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 200;

    fn at(block: u64) -> usize {
        usize::try_from(block - 1000).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_taken_is_free_and_what_is_given_can_be_taken_again(
            steps in prop::collection::vec((any::<bool>(), 1..20_u64, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut free = Free::default();
            free.give(DiskBlock(1000), BLOCKS);
            let mut naive = [true; 200];
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (take, blocks, pick) in steps {
                if take {
                    let room = naive.split(|free| !free).any(|run| run.len() as u64 >= blocks);
                    let got = free.take(blocks);
                    prop_assert_eq!(got.is_some(), room);
                    let Some(first) = got else { continue };
                    for block in first.0..first.0 + blocks {
                        prop_assert!(std::mem::replace(&mut naive[at(block)], false));
                    }
                    taken.push((first.0, blocks));
                } else if !taken.is_empty() {
                    let (first, blocks) = taken.swap_remove(pick.index(taken.len()));
                    free.give(DiskBlock(first), blocks);
                    (first..first + blocks).for_each(|block| naive[at(block)] = true);
                }
                prop_assert_eq!(free.blocks(), naive.iter().filter(|free| **free).count() as u64);
                let mut rebuilt = Free::default();
                rebuilt.give(DiskBlock(1000), BLOCKS);
                for (first, blocks) in &taken {
                    prop_assert!(rebuilt.take_at(DiskBlock(*first), *blocks));
                    prop_assert!(!rebuilt.take_at(DiskBlock(*first), 1));
                }
                prop_assert_eq!(&rebuilt.runs, &free.runs);
            }
        }
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_free_blocks_back_is_a_bug() {
        let mut free = Free::default();
        free.give(DiskBlock(0), 10);
        free.give(DiskBlock(9), 2);
    }

    #[test]
    fn a_region_has_one_owner() {
        let layout = Layout {
            blocks: 40_000,
            lanes: 2,
            segment_blocks: 512,
            segments: 4,
            checkpoint_blocks: 64,
            region_blocks: 2048,
        };
        let regions = Regions::new(layout);
        let count = layout.regions();
        assert!(regions.claim(3, LaneNo(1)) && !regions.claim(3, LaneNo(0)) && regions.claim(3, LaneNo(1)));
        assert!(!regions.claim(count, LaneNo(0)));
        let taken: Vec<u32> = std::iter::from_fn(|| regions.take(LaneNo(0))).collect();
        assert_eq!(taken, (0..count).filter(|region| *region != 3).collect::<Vec<_>>());
        let (last, blocks) = regions.blocks(count - 1);
        assert!(last.0 + blocks + 256 <= layout.blocks);
    }
}
