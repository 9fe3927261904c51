//! What containers say of compression, told to the lanes, which forget it when they are closed.
//!
//! A delay is a minimum: lanes look through whole egroups, which hold data of several vdisks, so what is older than the longest delay
//! of a pool's containers is encoded. Time is counted in looks of [`Fabric::look_after`](super::Fabric::look_after).

use std::collections::VecDeque;

use super::recover::lanes_of;
use super::{CodecNote, CompressionNote, FabricError, Pool};
use crate::codec::{Codec, Compression};
use crate::id::ShardId;

/// Marks that are kept at most: a delay is met to a part in so many of it.
const MARKS_MAX: u64 = 64;
/// Seconds of a delay at most: 30 days.
pub const DELAY_MAX_S: u64 = 30 * 24 * 3600;

/// Where each lane's egroups ended some time ago.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Seconds that were counted.
    now: u64,
    /// When, and the mark of each lane; the oldest first.
    taken: VecDeque<(u64, Vec<u64>)>,
}

impl Marks {
    /// Counts a second; says whether marks are to be taken now.
    fn tick(&mut self, delay_s: u64) -> bool {
        self.now += 1;
        let period = (delay_s / MARKS_MAX).max(1);
        self.taken.back().is_none_or(|(last, _)| self.now - last >= period)
    }

    /// The newest marks that are so old; they and older ones are forgotten.
    fn due(&mut self, delay_s: u64) -> Option<Vec<u64>> {
        let mut due = None;
        while self.taken.front().is_some_and(|(at, _)| self.now - at >= delay_s) {
            due = self.taken.pop_front().map(|(_, marks)| marks);
        }
        due
    }
}

impl From<CodecNote> for Codec {
    fn from(codec: CodecNote) -> Self {
        match codec {
            CodecNote::Lz4 => Self::Lz4,
            CodecNote::Zstd => Self::Zstd,
        }
    }
}

fn policy(note: Option<CompressionNote>) -> Compression {
    note.map_or_else(Compression::default, |note| Compression {
        codec: note.codec.into(),
        inline: note.delay_s.is_none(),
    })
}

impl Pool {
    /// Tells the lanes what becomes of the data of a container's vdisks from now on.
    pub(super) async fn compress_container(&self, container: u64) -> Result<(), FabricError> {
        let vdisks: Vec<u64> = {
            let catalog = self.catalog.borrow();
            let of = catalog.vdisks.iter().filter(|(_, vdisk)| vdisk.container == container);
            of.map(|(number, _)| *number).collect()
        };
        for vdisk in vdisks {
            self.compress_vdisk(vdisk).await?;
        }
        Ok(())
    }

    /// Tells the lanes of all vdisks: they are open anew.
    pub(super) async fn compress_all(&self) -> Result<(), FabricError> {
        let containers: Vec<u64> = {
            let catalog = self.catalog.borrow();
            let of = catalog.containers.iter().filter(|(_, note)| note.compression.is_some());
            of.map(|(number, _)| *number).collect()
        };
        for container in containers {
            self.compress_container(container).await?;
        }
        Ok(())
    }

    /// Tells the lanes of one vdisk.
    pub(super) async fn compress_vdisk(&self, number: u64) -> Result<(), FabricError> {
        let (policy, note) = {
            let catalog = self.catalog.borrow();
            let Some(vdisk) = catalog.vdisks.get(&number) else { return Ok(()) };
            let container = catalog.containers.get(&vdisk.container);
            (policy(container.and_then(|container| container.compression)), vdisk.clone())
        };
        let shards: Vec<(u16, ShardId)> = note.shards(number).collect();
        self.at_lanes(lanes_of(&note), move |lane, seat, _| {
            let of_lane = shards.iter().filter(|(of, _)| *of == lane);
            of_lane.for_each(|(_, shard)| seat.lane().set_compression(*shard, policy));
            async { Ok(()) }
        })
        .await
        .map(drop)
    }

    /// Lets the background encode what is old enough; to be called once a second.
    pub(super) async fn compress_old(&self) -> Result<(), FabricError> {
        let delay_s = {
            let catalog = self.catalog.borrow();
            let notes = catalog.containers.values().filter_map(|note| note.compression);
            notes.map(|note| note.delay_s.unwrap_or(0)).max()
        };
        let Some(delay_s) = delay_s else { return Ok(()) };
        let take = self.marks.borrow_mut().tick(delay_s);
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        if take {
            let taken =
                self.at_lanes(lanes.clone(), |_, seat, _| async move { Ok(seat.lane().egroup_mark()) });
            let taken = taken.await?;
            let mut marks = self.marks.borrow_mut();
            let now = marks.now;
            marks.taken.push_back((now, taken));
        }
        let due = self.marks.borrow_mut().due(delay_s);
        let Some(due) = due else { return Ok(()) };
        self.at_lanes(lanes, move |lane, seat, _| {
            let mark = due.get(usize::from(lane)).copied();
            async move {
                mark.into_iter().for_each(|mark| seat.lane().compress(mark));
                Ok(())
            }
        })
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_due_after_the_delay_and_are_few() {
        let mut marks = Marks::default();
        let mut most = 0;
        let mut last = None;
        for second in 1..2000_u64 {
            if marks.tick(640) {
                let now = marks.now;
                marks.taken.push_back((now, vec![second]));
            }
            most = most.max(marks.taken.len());
            if let Some(due) = marks.due(640) {
                let age = second - due[0];
                assert!((640..660).contains(&age), "{age} s after it was written");
                last = Some(second);
            }
        }
        assert!(most <= 66 && last > Some(1980), "{most} marks, the last due at {last:?}");
        let mut now = Marks::default();
        assert!(now.tick(0));
        now.taken.push_back((1, vec![9]));
        assert_eq!(now.due(0), Some(vec![9]));
    }
}
