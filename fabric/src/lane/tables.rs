//! All tables of a lane: the active one, the frozen ones, and their memory.

use std::collections::{BTreeSet, VecDeque};

use super::bypass::stored_blocks;
use super::table::{Arena, Cell, Table};
use crate::format::checkpoint::MetaOp;
use crate::id::{EgroupId, Lsn, ShardId, index};

/// Frozen tables that wait for the drain at most, while the lane runs.
pub(super) const FROZEN_MAX: usize = 3;
/// Cells of a table at most, as a multiple of its blocks of memory: zeroes need no memory.
const CELLS_PER_BLOCK: usize = 2;

#[derive(Debug)]
pub(super) struct Tables {
    pub(super) arena: Arena,
    pub(super) active: Table,
    /// The oldest first.
    pub(super) frozen: VecDeque<Table>,
    spare: Vec<Table>,
    /// Blocks of a table after which it is frozen.
    pub(super) table_slots: usize,
    cells_max: usize,
}

impl Tables {
    pub(super) fn new(blocks: u32) -> Self {
        let table_slots = index(blocks) / (FROZEN_MAX + 1);
        let cells_max = table_slots * CELLS_PER_BLOCK;
        Self {
            arena: Arena::new(blocks),
            active: Table::with_room(cells_max),
            frozen: VecDeque::with_capacity(FROZEN_MAX),
            spare: (0..FROZEN_MAX).map(|_| Table::with_room(cells_max)).collect(),
            table_slots,
            cells_max,
        }
    }

    /// The newest version of a block.
    #[inline]
    pub(super) fn get(&self, shard: ShardId, block: u64) -> Option<Cell> {
        let active = self.active.get(shard, block);
        active.or_else(|| self.frozen.iter().rev().find_map(|table| table.get(shard, block)))
    }

    /// Puts the blocks of an egroup that is written already into the active table: `ops` say which.
    pub(super) fn put_stored(&mut self, shard: ShardId, egroup: EgroupId, lsn: Lsn, ops: &[MetaOp]) {
        self.active.put_direct(lsn, egroup);
        for (block, target) in stored_blocks(egroup, ops) {
            let slot = self.arena.take_stored(target);
            self.active.put(shard, block, lsn, Some(slot), &mut self.arena);
        }
    }

    /// Blocks that one egroup may bring at most, so that it does not need a table for itself.
    pub(super) fn stored_max(&self) -> usize {
        self.cells_max / 2
    }

    /// Egroups that maps do not refer to yet, as their blocks wait for the drain.
    pub(super) fn direct(&self) -> BTreeSet<EgroupId> {
        self.frozen.iter().chain([&self.active]).flat_map(Table::direct).collect()
    }

    /// Blocks of memory in use.
    pub(super) fn slots(&self) -> usize {
        self.active.slots + self.frozen.iter().map(|table| table.slots).sum::<usize>()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty() && self.frozen.is_empty()
    }

    /// Whether the active table takes `slots` blocks of data and `cells` cells; freezes it first where it does not.
    pub(super) fn make_room(&mut self, slots: usize, cells: usize, end: Lsn) -> bool {
        let cells_max = self.cells_max;
        let fits = |table: &Table, max: usize| table.slots + slots <= max && table.len() + cells <= cells_max;
        if !fits(&self.active, self.table_slots) && !self.active.is_empty() {
            self.freeze(end);
        }
        // While the drain is behind, the active table may grow into what memory there is.
        fits(&self.active, usize::MAX) && self.arena.free() >= slots
    }

    pub(super) fn can_freeze(&self) -> bool {
        self.frozen.len() < FROZEN_MAX
    }

    /// Freezes the active table, if there may be one more frozen one: all records up to `end` are in it or in older ones.
    pub(super) fn freeze(&mut self, end: Lsn) -> bool {
        if !self.can_freeze() {
            return false;
        }
        let Some(fresh) = self.spare.pop() else { panic!("more tables than there are") };
        self.freeze_into(end, fresh);
        true
    }

    /// As [`Self::freeze`], however many there are: while a log is replayed.
    pub(super) fn freeze_always(&mut self, end: Lsn) {
        let fresh = self.spare.pop().unwrap_or_default();
        self.freeze_into(end, fresh);
    }

    fn freeze_into(&mut self, end: Lsn, fresh: Table) {
        let mut table = std::mem::replace(&mut self.active, fresh);
        table.end = end;
        self.frozen.push_back(table);
    }

    /// Forgets the oldest frozen table, which is drained.
    pub(super) fn pop_drained(&mut self) {
        let Some(mut table) = self.frozen.pop_front() else { panic!("no table was drained") };
        table.clear(&mut self.arena);
        if self.spare.len() + self.frozen.len() < FROZEN_MAX {
            self.spare.push(table);
        }
    }

    /// Forgets everything up to `lsn`, which is in the maps.
    pub(super) fn forget(&mut self, lsn: Lsn) {
        for table in self.frozen.iter_mut().chain([&mut self.active]) {
            table.forget(lsn, &mut self.arena);
        }
        while self.frozen.front().is_some_and(|table| table.end <= lsn) {
            self.pop_drained();
        }
    }

    /// Forgets what a shard has up to `lsn`.
    pub(super) fn forget_shard(&mut self, shard: ShardId, lsn: Lsn) {
        for table in self.frozen.iter_mut().chain([&mut self.active]) {
            table.forget_shard(shard, lsn, &mut self.arena);
        }
    }
}
