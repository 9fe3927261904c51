//! Blocks of egroups in memory: what was read from disks and verified, by egroup, extent and block.
//!
//! ```text
//!   insert ─► single-touch (FIFO) ── touched again ─► multi-touch (FIFO with a second chance) ─► out
//!      ▲            └── not touched again ─► out, its key remembered for a while ─┐
//!      └──────────────── comes back while remembered: straight to multi-touch ◄───┘
//! ```
//!
//! A block of an extent never changes and keeps its name through every generation of its egroup, so nothing here is ever stale,
//! and a snapshot or clone finds what another vdisk has read. A scan passes through the single-touch pool, an eighth of the memory, and
//! leaves the rest alone.
//!
//! Invariants: memory is bounded and set from outside; after [`BlockCache::set_blocks`] nothing allocates; every used slot is in
//! one list and in one chain of the table.

use crate::id::{BLOCK_BYTES, EgroupId, ExtentNo, count32, index};

/// Blocks that memory is taken in: 1 MiB.
const CHUNK_BLOCKS: usize = 256;
/// One block in so many is for what was touched once.
const SINGLE_SHARE: usize = 8;
/// Touches that are counted at most: so many rounds a block of the multi-touch pool survives without another.
const TOUCHES_MAX: u8 = 3;
const NONE: u32 = u32::MAX;

/// A block of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockKey {
    egroup: u64,
    extent: u32,
}

impl BlockKey {
    /// Block `block` of extent `extent` of `egroup`.
    #[inline]
    #[must_use]
    pub fn new(egroup: EgroupId, extent: ExtentNo, block: u8) -> Self {
        Self { egroup: egroup.0, extent: u32::from(extent.0) << 8 | u32::from(block) }
    }

    #[inline]
    fn hash(self) -> u64 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = self.egroup.wrapping_mul(ODD);
        let mixed = (mixed ^ mixed >> 32 ^ u64::from(self.extent)).wrapping_mul(ODD);
        mixed ^ mixed >> 32
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    Free,
    Single,
    Multi,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    key: BlockKey,
    /// The next of its chain in the table.
    chain: u32,
    before: u32,
    after: u32,
    pool: Pool,
    touches: u8,
}

const EMPTY: Slot = Slot {
    key: BlockKey { egroup: 0, extent: 0 },
    chain: NONE,
    before: NONE,
    after: NONE,
    pool: Pool::Free,
    touches: 0,
};

/// A list of slots, the oldest first.
#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
    len: usize,
}

const NO_SLOTS: List = List { first: NONE, last: NONE, len: 0 };

/// What a cache has done and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Blocks that it may hold.
    pub blocks_max: u64,
    /// Blocks that were touched once.
    pub single_blocks: u64,
    /// Blocks that were touched again.
    pub multi_blocks: u64,
    /// Lookups that found their block among those that were touched once …
    pub single_hits: u64,
    /// … and among those that were touched again.
    pub multi_hits: u64,
    /// Lookups that did not find it.
    pub misses: u64,
    /// Blocks that came back while they were still remembered: a larger cache would have had them.
    pub ghost_hits: u64,
    /// Blocks that gave way.
    pub evictions: u64,
}

/// Memory of so many blocks, aligned as copies like it; the system backs it as it is used.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    begin: usize,
}

impl Chunk {
    fn new() -> Self {
        let bytes = vec![0; (CHUNK_BLOCKS + 1) * BLOCK_BYTES];
        let begin = bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self { bytes, begin }
    }

    fn block(&self, number: usize) -> Option<&[u8]> {
        let at = self.begin + number * BLOCK_BYTES;
        self.bytes.get(at..at + BLOCK_BYTES)
    }

    fn block_mut(&mut self, number: usize) -> Option<&mut [u8]> {
        let at = self.begin + number * BLOCK_BYTES;
        self.bytes.get_mut(at..at + BLOCK_BYTES)
    }
}

/// Blocks in memory.
#[derive(Debug)]
pub struct BlockCache {
    memory: Vec<Chunk>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// First slot of each chain; as many as a power of two.
    table: Vec<u32>,
    single: List,
    multi: List,
    /// Fingerprints of what was evicted after one touch; what comes later overwrites them.
    ghosts: Vec<u32>,
    stats: CacheStats,
}

impl BlockCache {
    /// A cache of `blocks` blocks of 4 KiB, rounded up to 256 of them; 0: none.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        let mut cache = Self {
            memory: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            table: Vec::new(),
            single: NO_SLOTS,
            multi: NO_SLOTS,
            ghosts: Vec::new(),
            stats: CacheStats::default(),
        };
        cache.set_blocks(blocks);
        cache
    }

    /// Changes its size. What it has stays, as far as there is room.
    pub fn set_blocks(&mut self, blocks: usize) {
        let chunks = blocks.div_ceil(CHUNK_BLOCKS).min(index(NONE) / CHUNK_BLOCKS);
        let blocks = chunks * CHUNK_BLOCKS;
        for slot in blocks..self.slots.len() {
            let slot = count32(slot);
            if self.slot(slot).pool != Pool::Free {
                self.unlink(slot);
                self.unchain(slot);
                self.stats.evictions += 1;
            }
        }
        let before = self.slots.len().min(blocks);
        self.slots.resize(blocks, EMPTY);
        self.free.retain(|slot| index(*slot) < blocks);
        self.free.reserve(blocks - self.free.len());
        self.free.extend((count32(before)..count32(blocks)).rev());
        self.memory.resize_with(chunks, Chunk::new);
        self.stats.blocks_max = blocks as u64;
        let table = if blocks == 0 { 0 } else { (blocks * 2).next_power_of_two() };
        self.ghosts = vec![0; table / 2];
        self.table = vec![NONE; table];
        for slot in 0..count32(blocks) {
            if self.slot(slot).pool != Pool::Free {
                self.chain(slot);
            }
        }
    }

    /// What it has done and has.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            single_blocks: self.single.len as u64,
            multi_blocks: self.multi.len as u64,
            ..self.stats
        }
    }

    /// Whether a block is there; that does not count as a touch.
    #[inline]
    #[must_use]
    pub fn contains(&self, key: BlockKey) -> bool {
        self.find(key).is_some()
    }

    /// A block, if it is there.
    #[inline]
    pub fn get(&mut self, key: BlockKey) -> Option<&[u8]> {
        let Some(slot) = self.find(key) else {
            self.stats.misses += 1;
            return None;
        };
        let found = self.slot_mut(slot);
        found.touches = (found.touches + 1).min(TOUCHES_MAX);
        match found.pool {
            Pool::Multi => self.stats.multi_hits += 1,
            _ => self.stats.single_hits += 1,
        }
        self.memory.get(index(slot) / CHUNK_BLOCKS)?.block(index(slot) % CHUNK_BLOCKS)
    }

    /// Counts lookups that were not tried, as one before them told that they would be in vain.
    pub fn count_misses(&mut self, blocks: u64) {
        self.stats.misses += blocks;
    }

    /// Takes a block in; others give way.
    pub fn insert(&mut self, key: BlockKey, bytes: &[u8]) {
        if self.slots.is_empty() || self.find(key).is_some() {
            return;
        }
        let Some(slot) = self.free.pop().or_else(|| self.evict()) else { return };
        let room = self.memory.get_mut(index(slot) / CHUNK_BLOCKS);
        if let Some(room) = room.and_then(|chunk| chunk.block_mut(index(slot) % CHUNK_BLOCKS)) {
            room.copy_from_slice(bytes);
        }
        let pool = if self.take_ghost(key) { Pool::Multi } else { Pool::Single };
        *self.slot_mut(slot) = Slot { key, ..EMPTY };
        self.chain(slot);
        self.link(slot, pool);
    }

    /// Frees a slot.
    fn evict(&mut self) -> Option<u32> {
        let single_max = self.slots.len() / SINGLE_SHARE;
        // Every step takes a touch away or moves a block to the other pool, once.
        for _ in 0..=self.slots.len() * (2 + usize::from(TOUCHES_MAX)) {
            let from_single = self.single.len > single_max || self.multi.len == 0;
            let slot = if from_single { self.single.first } else { self.multi.first };
            if slot == NONE {
                return None;
            }
            self.unlink(slot);
            let found = self.slot_mut(slot);
            if found.touches > 0 {
                found.touches = if from_single { 0 } else { found.touches - 1 };
                self.link(slot, Pool::Multi);
                continue;
            }
            let key = found.key;
            self.unchain(slot);
            if from_single {
                self.add_ghost(key);
            }
            self.stats.evictions += 1;
            return Some(slot);
        }
        None
    }

    fn ghost_place(&self, key: BlockKey) -> (usize, u32) {
        let hash = key.hash();
        let place = usize::try_from(hash >> 32).unwrap_or(0) & (self.ghosts.len() - 1);
        // The lower half of the hash; 0 stands for nothing.
        (place, u32::try_from(hash & 0xffff_ffff).unwrap_or(1).max(1))
    }

    fn add_ghost(&mut self, key: BlockKey) {
        let (place, print) = self.ghost_place(key);
        if let Some(ghost) = self.ghosts.get_mut(place) {
            *ghost = print;
        }
    }

    fn take_ghost(&mut self, key: BlockKey) -> bool {
        let (place, print) = self.ghost_place(key);
        let Some(ghost) = self.ghosts.get_mut(place).filter(|ghost| **ghost == print) else { return false };
        *ghost = 0;
        self.stats.ghost_hits += 1;
        true
    }

    #[inline]
    fn find(&self, key: BlockKey) -> Option<u32> {
        let mut slot = *self.table.get(self.head(key))?;
        while slot != NONE {
            let found = self.slot(slot);
            if found.key == key {
                return Some(slot);
            }
            slot = found.chain;
        }
        None
    }

    #[inline]
    fn head(&self, key: BlockKey) -> usize {
        usize::try_from(key.hash()).unwrap_or(0) & self.table.len().wrapping_sub(1)
    }

    fn chain(&mut self, slot: u32) {
        let head = self.head(self.slot(slot).key);
        if let Some(first) = self.table.get_mut(head) {
            let next = std::mem::replace(first, slot);
            self.slot_mut(slot).chain = next;
        }
    }

    fn unchain(&mut self, slot: u32) {
        let Slot { key, chain, .. } = *self.slot(slot);
        let head = self.head(key);
        let mut at = self.table.get(head).copied().unwrap_or(NONE);
        if at == slot {
            if let Some(first) = self.table.get_mut(head) {
                *first = chain;
            }
            return;
        }
        while self.slot(at).chain != slot {
            at = self.slot(at).chain;
        }
        self.slot_mut(at).chain = chain;
    }

    fn list(&mut self, pool: Pool) -> &mut List {
        match pool {
            Pool::Single => &mut self.single,
            Pool::Multi => &mut self.multi,
            Pool::Free => panic!("a free slot is in no list"),
        }
    }

    /// Appends a slot to a pool.
    fn link(&mut self, slot: u32, pool: Pool) {
        let list = self.list(pool);
        let last = std::mem::replace(&mut list.last, slot);
        list.len += 1;
        if last == NONE {
            list.first = slot;
        } else {
            self.slot_mut(last).after = slot;
        }
        let found = self.slot_mut(slot);
        (found.pool, found.before, found.after) = (pool, last, NONE);
    }

    /// Takes a slot out of its pool.
    fn unlink(&mut self, slot: u32) {
        let Slot { before, after, pool, .. } = *self.slot(slot);
        let list = self.list(pool);
        list.len -= 1;
        if before == NONE {
            list.first = after;
        }
        if after == NONE {
            list.last = before;
        }
        if before != NONE {
            self.slot_mut(before).after = after;
        }
        if after != NONE {
            self.slot_mut(after).before = before;
        }
        self.slot_mut(slot).pool = Pool::Free;
    }

    #[inline]
    fn slot(&self, slot: u32) -> &Slot {
        match self.slots.get(index(slot)) {
            Some(slot) => slot,
            None => panic!("the cache has no slot {slot}"),
        }
    }

    #[inline]
    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        match self.slots.get_mut(index(slot)) {
            Some(slot) => slot,
            None => panic!("the cache has no slot {slot}"),
        }
    }
}

#[cfg(test)]
mod tests;
