//! Compaction: egroups that are mostly dead are written again without what nobody needs, as their next generation.
//!
//! A transform: the egroup keeps its id and its extents their numbers, so no map changes; the index is switched by the
//! record, and the old space is free when the last read of it has ended. Data are encoded the same way, some time after they were
//! written.

use super::collect::Marks;
use super::drain::Drain;
use super::{Core, Job, Lane, WorkError};
use crate::codec::Codec;
use crate::egroup::{Builder, ReadError};
use crate::format::egroup::{ExtentEntry, KIND_DATA};
use crate::id::{BLOCK_BYTES, EgroupId, ExtentNo, Generation};
use crate::state::{Egroup, egroup_op};

/// Sixteenths of an egroup that are dead when it is worth writing it again.
const DEAD_MIN: u64 = 8;
/// The same, when there is no room for anything else.
const DEAD_MIN_FULL: u64 = 1;
/// Egroups that one record switches at most.
const EGROUPS_MAX: usize = 32;

/// What a transform is to change.
enum Transform<'a> {
    /// Leave out what nobody refers to, if there are so many sixteenths of it.
    Compact(&'a Marks, u64),
    /// Encode what its shard wants to have encoded.
    Encode,
}

impl Transform<'_> {
    fn keeps(&self, id: EgroupId, extent: ExtentNo) -> bool {
        match self {
            Self::Compact(marks, _) => marks.contains_key(&(id, extent)),
            Self::Encode => true,
        }
    }

    fn encodes(&self, entry: &ExtentEntry) -> bool {
        matches!(self, Self::Encode) && entry.kind == KIND_DATA
    }

    /// Thirty-seconds of the egroup that must be gained.
    fn gain_min(&self) -> u64 {
        match self {
            Self::Compact(_, dead_min) => *dead_min,
            Self::Encode => 2,
        }
    }
}

impl Lane {
    /// Writes egroups again of which half or more is dead; when `room` is wanted, all that give any.
    pub(super) async fn compact(&self, marks: &Marks, room: bool) -> Result<(), WorkError> {
        let dead_min = if room { DEAD_MIN_FULL } else { DEAD_MIN };
        let mut victims: Vec<(EgroupId, Egroup)> = {
            let core = self.0.borrow();
            let egroups = core.state.egroups.iter().map(|(id, egroup)| (*id, *egroup));
            let is_worth = |(_, egroup): &(EgroupId, Egroup)| {
                egroup.live * 16 <= u64::from(egroup.decoded) * (16 - dead_min)
            };
            egroups.filter(is_worth).collect()
        };
        // Those that give most come first.
        victims.sort_by_key(|(_, egroup)| egroup.live * 1024 / u64::from(egroup.blocks));
        self.begin_job(Job::Compact, victims.len() as u64, room);
        let mut left = victims.as_slice();
        while !left.is_empty() {
            let mut drain = Drain::new();
            while let Some(((id, egroup), later)) = left.split_first() {
                match self.transform(&mut drain, *id, egroup, &Transform::Compact(marks, dead_min)).await {
                    Ok(()) => {
                        self.step_job();
                        left = later;
                    }
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
            self.switch(drain).await?;
        }
        Ok(())
    }

    /// Makes generations that were written those that the index knows.
    async fn switch(&self, mut drain: Drain) -> Result<(), WorkError> {
        if drain.written.is_empty() {
            return Ok(());
        }
        self.flush(&mut drain).await?;
        let turn = self.lock().await;
        let ops = drain.written.iter().map(|(id, egroup)| egroup_op(*id, egroup)).collect();
        self.commit(&turn, ops).await
    }

    /// The serial number that the next egroup gets: what is written from now on is not in an egroup below it.
    #[must_use]
    pub fn egroup_mark(&self) -> u64 {
        self.0.borrow().state.next_egroup
    }

    /// Asks the background to encode what shards want to have encoded ([`Self::set_compression`]) and is not, in egroups with
    /// serial numbers below `mark`. With the mark of some time ago, data are encoded after that delay.
    pub fn compress(&self, mark: u64) {
        let mut core = self.0.borrow_mut();
        core.encode_until = core.encode_until.max(mark.min(core.state.next_egroup));
        core.wake();
    }

    /// Encodes a few egroups.
    pub(super) async fn encode_some(&self) -> Result<(), WorkError> {
        let todo = {
            let core = self.0.borrow();
            core.encode_until.saturating_sub(core.encode_from)
        };
        self.begin_job(Job::Encode, todo, false);
        let outcome = self.encode_now().await;
        self.end_job(outcome.is_ok());
        // Where it was is where it goes on.
        if outcome == Err(WorkError::Paused) { Ok(()) } else { outcome }
    }

    async fn encode_now(&self) -> Result<(), WorkError> {
        let some: Vec<(EgroupId, Egroup)> = {
            let core = self.0.borrow();
            let (from, until) = (core.encode_from, core.encode_until);
            let wanted = |(id, _): &(&EgroupId, &Egroup)| (from..until).contains(&id.serial());
            core.state
                .egroups
                .iter()
                .filter(wanted)
                .take(EGROUPS_MAX)
                .map(|(id, egroup)| (*id, *egroup))
                .collect()
        };
        let mut drain = Drain::new();
        for (id, egroup) in &some {
            match self.transform(&mut drain, *id, egroup, &Transform::Encode).await {
                Ok(()) => self.step_job(),
                // It saves room some other time.
                Err(error) if error.is_lack_of_room() => break,
                Err(error) => {
                    self.0.borrow_mut().give_up(&drain);
                    return Err(error);
                }
            }
        }
        self.switch(drain).await?;
        let mut core = self.0.borrow_mut();
        core.encode_from = match some.last() {
            Some((id, _)) if some.len() == EGROUPS_MAX => id.serial() + 1,
            _ => core.encode_until,
        };
        Ok(())
    }

    /// Writes the next generation of an egroup, smaller; nothing where it would not be.
    async fn transform(
        &self,
        drain: &mut Drain,
        id: EgroupId,
        egroup: &Egroup,
        what: &Transform<'_>,
    ) -> Result<(), WorkError> {
        let header = self.header(id, egroup).await?;
        let mut builder = Builder::new(id);
        for number in 0..header.extents() {
            let Ok(extent) = u16::try_from(number).map(ExtentNo) else { break };
            let Some(entry) = header.extent(extent) else { break };
            if entry.blocks == 0 || !what.keeps(id, extent) {
                builder.push_dead(&entry);
                continue;
            }
            let missing = ReadError::Missing { id, extent };
            let (whole, bytes) = self.extent(id, egroup, &header, extent, u64::from(entry.blocks)).await?;
            builder.reserve().await;
            let stored = whole.stored(&bytes).ok_or(missing)?;
            match whole.codec() {
                Codec::Raw if what.encodes(&entry) => {
                    self.0.borrow_mut().push_encoded(&mut builder, &entry, stored);
                }
                Codec::Raw => builder.push(entry.owner(), entry.kind, stored.chunks_exact(BLOCK_BYTES)),
                codec => builder.push_coded(entry.owner(), codec, usize::from(entry.blocks), stored),
            }
            self.aside(usize::from(entry.blocks)).await?;
        }
        // Live extents keep their dead blocks, and not everything shrinks: there may be less to gain than it seemed.
        if builder.total_blocks() as u64 * 32 > u64::from(egroup.blocks) * (32 - what.gain_min()) {
            return Ok(());
        }
        self.write_generation(drain, builder, Generation(egroup.generation.0 + 1), true).await?;
        if let Some((_, written)) = drain.written.last_mut() {
            written.live = egroup.live;
        }
        Ok(())
    }
}

impl Core {
    /// Adds an extent that was stored as it is, encoded where its shard wants that and it pays.
    fn push_encoded(&mut self, builder: &mut Builder, entry: &ExtentEntry, bytes: &[u8]) {
        let owner = entry.owner();
        let policy = self.policies.get(&owner.0).copied().unwrap_or_default();
        if let (Some(coder), true) = (&mut self.coder, policy.compression.codec != Codec::Raw) {
            coder.input(bytes.len()).copy_from_slice(bytes);
            if let Some(stored) = coder.encode(policy.compression.codec, bytes.len()) {
                let blocks = usize::from(entry.blocks);
                return builder.push_coded(owner, policy.compression.codec, blocks, stored);
            }
        }
        builder.push(owner, entry.kind, bytes.chunks_exact(BLOCK_BYTES));
    }
}
