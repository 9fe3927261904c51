//! What was written and is not in the maps yet: the newest version of each block, by tables.
//!
//! Writes go to the active table. When it is large enough, or where a snapshot is taken, it is frozen: no write changes it any more, and
//! the drain moves it to egroups as a whole. A lookup asks the tables from the newest to the oldest, then the map.

use penstock_reactor::hash::FixedMap;

use crate::format::egroup::EXTENT_BLOCKS_MAX;
use crate::id::{BLOCK_BYTES, EgroupId, ExtentNo, Lsn, ShardId, VBlock, count32, index};
use crate::map::Target;

/// A zero of at most so many blocks is kept block by block; a longer one as a range.
pub(super) const ZERO_CELLS_MAX: u64 = 16;
/// Ranges of one table at most; every lookup looks at all of them.
pub(super) const RANGES_MAX: usize = 64;

/// A block of memory per block of data: one piece, aligned as copies like it, that the system backs as it is used.
#[derive(Debug, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    /// Where the first block begins.
    begin: usize,
    /// Blocks in that piece; those with numbers from here on are in `more`.
    blocks: usize,
    more: Vec<Box<[u8; BLOCK_BYTES]>>,
    free: Vec<u32>,
    /// Where blocks are that are in egroups already, and their free places; their slots have [`STORED`].
    stored: Vec<Target>,
    stored_free: Vec<u32>,
}

/// A slot with this bit is no memory but says where the block is stored.
const STORED: u32 = 1 << 31;
/// Blocks that are in egroups already, as a multiple of the blocks of memory.
const STORED_PER_BLOCK: u32 = 4;

/// A block's number in an extent of at most 16.
fn small(at: usize) -> u8 {
    u8::try_from(at).unwrap_or(u8::MAX)
}

/// Whether a slot is a block of memory.
fn in_memory(slot: u32) -> bool {
    slot & STORED == 0
}

impl Arena {
    pub(super) fn new(blocks: u32) -> Self {
        // What was given back last is used first, so what is never needed is never touched.
        let free = (0..blocks).rev().collect();
        let bytes = vec![0; (index(blocks) + 1) * BLOCK_BYTES];
        let begin = bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        let nowhere = Target { egroup: EgroupId::NONE, extent: ExtentNo(0), first: 0 };
        let stored = vec![nowhere; index(blocks * STORED_PER_BLOCK)];
        let stored_free = (0..count32(stored.len())).rev().collect();
        Self { bytes, begin, blocks: index(blocks), more: Vec::new(), free, stored, stored_free }
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// As [`Self::take`], with more memory where there is none: when a log is replayed, all of it finds room.
    pub(super) fn take_or_grow(&mut self) -> u32 {
        self.take().unwrap_or_else(|| {
            self.more.push(Box::new([0; BLOCK_BYTES]));
            count32(self.blocks + self.more.len() - 1)
        })
    }

    pub(super) fn give(&mut self, slot: u32) {
        if in_memory(slot) {
            self.free.push(slot);
        } else {
            self.stored_free.push(slot & !STORED);
        }
    }

    /// How many blocks more that are in egroups have room.
    pub(super) fn stored_room(&self) -> usize {
        self.stored_free.len()
    }

    /// A slot that says where a block is; there is always one, as whoever runs a lane looks before, and a log that is replayed has what it needs.
    pub(super) fn take_stored(&mut self, target: Target) -> u32 {
        let place = self.stored_free.pop().unwrap_or_else(|| {
            self.stored.push(target);
            count32(self.stored.len() - 1)
        });
        if let Some(room) = self.stored.get_mut(index(place)) {
            *room = target;
        }
        place | STORED
    }

    /// Where the block of a slot is, when it is not in memory.
    #[inline]
    pub(super) fn stored(&self, slot: u32) -> Option<Target> {
        if in_memory(slot) { None } else { self.stored.get(index(slot & !STORED)).copied() }
    }

    /// How many of the first of `cells`, which are in order, go into one extent, or are in one already: where.
    pub(super) fn run_of(&self, cells: &[(u64, Cell)]) -> (usize, Option<Target>) {
        let Some((block, cell)) = cells.first() else { return (0, None) };
        let target = cell.slot.and_then(|slot| self.stored(slot));
        let follows = |(at, (next, other)): &(usize, &(u64, Cell))| {
            let expected = target.map(|target| Target { first: target.first + small(*at), ..target });
            *next == block + *at as u64
                && other.slot.is_some() == cell.slot.is_some()
                && other.slot.and_then(|slot| self.stored(slot)) == expected
        };
        (cells.iter().enumerate().take(EXTENT_BLOCKS_MAX).take_while(follows).count().max(1), target)
    }

    #[inline]
    pub(super) fn block(&self, slot: u32) -> &[u8] {
        let slot = index(slot);
        let at = self.begin + slot * BLOCK_BYTES;
        match slot.checked_sub(self.blocks) {
            None => self.bytes.get(at..at + BLOCK_BYTES).unwrap_or_default(),
            Some(more) => self.more.get(more).map_or(&[], |block| &block[..]),
        }
    }

    #[inline]
    pub(super) fn block_mut(&mut self, slot: u32) -> &mut [u8] {
        let slot = index(slot);
        let at = self.begin + slot * BLOCK_BYTES;
        match slot.checked_sub(self.blocks) {
            None => self.bytes.get_mut(at..at + BLOCK_BYTES).unwrap_or_default(),
            Some(more) => self.more.get_mut(more).map_or(&mut [], |block| &mut block[..]),
        }
    }
}

/// The newest version of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) lsn: Lsn,
    /// Where its contents are (a slot of the arena); `None`: it is zero and needs no space.
    pub(super) slot: Option<u32>,
}

/// Blocks that are zero, unless written later.
#[derive(Debug, Clone, Copy)]
pub(super) struct ZeroRange {
    pub(super) shard: ShardId,
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) lsn: Lsn,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    cells: FixedMap<(ShardId, u64), Cell>,
    ranges: Vec<ZeroRange>,
    /// Egroups whose blocks came into this table as they are, and the records that told of them.
    direct: Vec<(Lsn, EgroupId)>,
    /// Frozen: all records up to here are in this table or an older one.
    pub(super) end: Lsn,
    /// The snapshots that were taken when it was frozen.
    pub(super) snapshots: Vec<(ShardId, u64)>,
    /// Blocks of memory that it holds.
    pub(super) slots: usize,
}

impl Table {
    /// A table with room for `cells` cells without allocating.
    pub(super) fn with_room(cells: usize) -> Self {
        let mut table = Self::default();
        table.cells.reserve(cells);
        table.ranges.reserve(RANGES_MAX);
        table.direct.reserve(RANGES_MAX);
        table
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.ranges.is_empty() && self.direct.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(super) fn has_room_for_range(&self) -> bool {
        self.ranges.len() < RANGES_MAX
    }

    /// Notes that `block` is in `slot`; gives a slot that it had before back.
    #[inline]
    pub(super) fn put(&mut self, shard: ShardId, block: u64, lsn: Lsn, slot: Option<u32>, arena: &mut Arena) {
        let old = self.cells.insert((shard, block), Cell { lsn, slot }).and_then(|old| old.slot);
        self.slots += usize::from(slot.is_some_and(in_memory));
        if let Some(old) = old {
            arena.give(old);
            self.slots -= usize::from(in_memory(old));
        }
    }

    /// Notes that an egroup has come, the blocks of which are put afterwards.
    pub(super) fn put_direct(&mut self, lsn: Lsn, egroup: EgroupId) {
        self.direct.push((lsn, egroup));
    }

    /// Egroups whose blocks came into this table as they are.
    pub(super) fn direct(&self) -> impl Iterator<Item = EgroupId> {
        self.direct.iter().map(|(_, egroup)| *egroup)
    }

    pub(super) fn put_range(&mut self, range: ZeroRange) {
        self.ranges.push(range);
    }

    /// Notes that blocks are zero, by cells or by a range.
    pub(super) fn zero(&mut self, shard: ShardId, block: VBlock, blocks: u64, lsn: Lsn, arena: &mut Arena) {
        let end = block.0.saturating_add(blocks);
        if blocks > ZERO_CELLS_MAX {
            return self.put_range(ZeroRange { shard, first: block.0, end, lsn });
        }
        (block.0..end).for_each(|block| self.put(shard, block, lsn, None, arena));
    }

    /// The newest version of a block in this table.
    #[inline]
    pub(super) fn get(&self, shard: ShardId, block: u64) -> Option<Cell> {
        let cell = self.cells.get(&(shard, block)).copied();
        if self.ranges.is_empty() {
            return cell;
        }
        let covers = |range: &&ZeroRange| range.shard == shard && (range.first..range.end).contains(&block);
        let zero = self.ranges.iter().filter(covers).map(|range| Cell { lsn: range.lsn, slot: None });
        cell.into_iter().chain(zero).max_by_key(|cell| cell.lsn)
    }

    /// The shards and blocks with cells that no later range covers, in order.
    pub(super) fn sorted(&self) -> Vec<(ShardId, u64, Cell)> {
        let current = |(&(shard, block), cell): (&(ShardId, u64), &Cell)| {
            let newest = self.get(shard, block)?;
            (newest.lsn == cell.lsn).then_some((shard, block, *cell))
        };
        let mut cells: Vec<_> = self.cells.iter().filter_map(current).collect();
        cells.sort_unstable_by_key(|(shard, block, _)| (*shard, *block));
        cells
    }

    pub(super) fn ranges(&self) -> &[ZeroRange] {
        &self.ranges
    }

    /// Forgets everything up to `lsn`.
    pub(super) fn forget(&mut self, lsn: Lsn, arena: &mut Arena) {
        let slots = &mut self.slots;
        self.cells.retain(|_, cell| {
            let keep = cell.lsn > lsn;
            if let (false, Some(slot)) = (keep, cell.slot) {
                arena.give(slot);
                *slots -= usize::from(in_memory(slot));
            }
            keep
        });
        self.direct.retain(|(of, _)| *of > lsn);
        self.ranges.retain(|range| range.lsn > lsn);
    }

    /// Forgets everything and keeps its room.
    pub(super) fn clear(&mut self, arena: &mut Arena) {
        self.forget(Lsn(u64::MAX), arena);
        self.snapshots.clear();
        self.end = Lsn(0);
    }

    /// Forgets what a shard has up to `lsn`.
    pub(super) fn forget_shard(&mut self, shard: ShardId, lsn: Lsn, arena: &mut Arena) {
        let slots = &mut self.slots;
        self.cells.retain(|(of, _), cell| {
            let keep = *of != shard || cell.lsn > lsn;
            if let (false, Some(slot)) = (keep, cell.slot) {
                arena.give(slot);
                *slots -= usize::from(in_memory(slot));
            }
            keep
        });
        self.ranges.retain(|range| range.shard != shard || range.lsn > lsn);
    }
}
