//! Compaction: egroups that are mostly dead are written again without what nobody needs, as their next generation.
//!
//! A transform: the egroup keeps its id and its extents their numbers, so no map changes; the index is switched by the
//! record, and the old space is free when the last read of it has ended.

use super::collect::Marks;
use super::drain::Drain;
use super::{Lane, WorkError};
use crate::egroup::{Builder, piece, read_piece};
use crate::id::{BLOCK_BYTES, EgroupId, ExtentNo, Generation};
use crate::state::{Egroup, egroup_op};

/// Sixteenths of an egroup that are dead when it is worth writing it again.
const DEAD_MIN: u64 = 8;
/// The same, when there is no room for anything else.
const DEAD_MIN_FULL: u64 = 1;
/// Egroups that one record switches at most.
const EGROUPS_MAX: usize = 32;

impl Lane {
    /// Writes egroups again of which half or more is dead; when `room` is wanted, all that give any.
    pub(super) async fn compact(&self, marks: &Marks, room: bool) -> Result<(), WorkError> {
        let dead_min = if room { DEAD_MIN_FULL } else { DEAD_MIN };
        let mut victims: Vec<(EgroupId, Egroup)> = {
            let core = self.0.borrow();
            let egroups = core.state.egroups.iter().map(|(id, egroup)| (*id, *egroup));
            let is_worth = |(_, egroup): &(EgroupId, Egroup)| {
                let blocks = u64::from(egroup.blocks - egroup.header_blocks);
                egroup.live * 16 <= blocks * (16 - dead_min)
            };
            egroups.filter(is_worth).collect()
        };
        // Those that give most come first.
        victims.sort_by_key(|(_, egroup)| egroup.live * 1024 / u64::from(egroup.blocks));
        let mut left = victims.as_slice();
        while !left.is_empty() {
            let mut drain = Drain::new();
            while let Some(((id, egroup), later)) = left.split_first() {
                match self.transform(&mut drain, *id, egroup, marks, dead_min).await {
                    Ok(()) => left = later,
                    // What is written so far frees more than it took; then there is room for this one.
                    Err(error) if error.is_lack_of_room() && !drain.written.is_empty() => break,
                    Err(error) => {
                        self.0.borrow_mut().give_up(&drain);
                        return Err(error);
                    }
                }
                if drain.written.len() == EGROUPS_MAX {
                    break;
                }
            }
            if drain.written.is_empty() {
                continue;
            }
            self.flush(&drain).await?;
            let turn = self.lock().await;
            let ops = drain.written.iter().map(|(id, egroup)| egroup_op(*id, egroup)).collect();
            self.commit(&turn, ops).await?;
        }
        Ok(())
    }

    /// Writes the next generation of an egroup, with its live extents only; nothing where that would not be smaller.
    async fn transform(
        &self,
        drain: &mut Drain,
        id: EgroupId,
        egroup: &Egroup,
        marks: &Marks,
        dead_min: u64,
    ) -> Result<(), WorkError> {
        let header = self.header(id, egroup).await?;
        let at = self.0.borrow().at(egroup.disk);
        let mut builder = Builder::new(id);
        for number in 0..header.extents() {
            let Ok(extent) = u16::try_from(number).map(ExtentNo) else { break };
            let Some(entry) = header.extent(extent) else { break };
            if !marks.contains_key(&(id, extent)) {
                builder.push_dead(&entry);
                continue;
            }
            let whole = piece(egroup, &header, extent, 0, u64::from(entry.blocks));
            let missing = crate::egroup::ReadError::Missing { id, extent };
            let bytes = read_piece(&self.1, id, &header, extent, &whole.ok_or(missing)?, at).await?;
            builder.reserve().await;
            builder.push(entry.owner(), entry.kind, bytes.chunks_exact(BLOCK_BYTES));
        }
        // Live extents keep their dead blocks: there may be less to gain than it seemed.
        if builder.total_blocks() as u64 * 32 > u64::from(egroup.blocks) * (32 - dead_min) {
            return Ok(());
        }
        self.write_generation(drain, builder, Generation(egroup.generation.0 + 1), true).await?;
        if let Some((_, written)) = drain.written.last_mut() {
            written.live = egroup.live;
        }
        Ok(())
    }
}
