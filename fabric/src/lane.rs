//! A lane: the share of a pool that one reactor owns, with everything that is in it.
//!
//! ```text
//!   submit ─► log (durable) ─► acknowledged            background, one after the other:
//!      │                                                 drain       oldest frozen table → egroups, maps, commit
//!      └───► active table ─ freeze ─► frozen tables      checkpoint  state → index area, log trimmed
//!                                                        collect     mark from the roots, sweep
//! ```
//!
//! The data path ([`Lane::submit`], [`Lane::turn`], [`Lane::complete`], [`Lane::poll`]) is a machine without I/O: what it wants of
//! disks comes out of [`Lane::take_out`] and goes back by [`Lane::complete`]. [`Lane::background`] is a control flow, one for each lane.
//!
//! Invariants: a write is acknowledged when it and all before it are durable in the log; a table stays until its egroups, maps
//! and the record that says so are durable; the space of an egroup is given back after the record that drops it is durable and
//! the last read of it has ended; the state changes by durable records only, one group of ops after the other.

mod admin;
mod budget;
mod bypass;
pub(crate) mod check;
mod checkpoint;
mod collect;
mod commit;
mod compact;
mod diff;
mod disks;
mod drain;
mod open;
mod read;
mod repair;
pub(crate) mod rescue;
mod scrub;
mod space;
mod table;
mod tables;
mod write;

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use penstock_bdev::{Io, IoStatus};
use penstock_reactor::hash::FixedMap;
use uuid::Uuid;

pub use budget::{BackgroundOptions, BackgroundProgress, Job};
pub use checkpoint::format;
pub use commit::WorkError;
pub use diff::Changed;
pub use open::{LaneError, OpenReport};
pub use repair::RepairProgress;
pub use scrub::{DAMAGED_MAX, ScrubProgress};
pub use space::{ShardUse, SpaceUse, VersionUse};

use crate::alloc::{Free, Regions};
use crate::cache::{BlockCache, CacheStats};
use crate::codec::{Codec, Coder, Compression};
use crate::egroup::{HeaderCache, Owner};
use crate::flow::{DiskIo, Flow};
use crate::format::superblock::{DiskState, Layout, Tier};
use crate::format::{Identity, Magic};
use crate::id::{BatchNo, DiskBlock, DiskNo, EgroupId, LaneNo, Lsn, ShardId};
use crate::log::{Log, LogPlace};
use crate::map::{NodeCache, NodeRef};
use crate::state::{Gone, State};
use bypass::{Bypass, DIRECT_TAG};
use read::{READ_TAG, Read};
use tables::Tables;

/// Writes and flushes of one lane that wait to be acknowledged at most.
pub const ACKS_MAX: usize = 4096;

/// What a lane may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneOptions {
    /// Blocks of memory for what is not drained yet. At least 1024.
    pub table_blocks: u32,
    /// Nodes of block maps in memory (4 KiB each).
    pub nodes: usize,
    /// Header parts of egroups in memory (4 to 40 KiB each).
    pub headers: usize,
    /// Reads under way.
    pub reads: u32,
    /// Blocks of data in memory that were read from disks (4 KiB each, rounded up to 256 of them); 0: none.
    pub cache_blocks: usize,
    /// Writes of so many blocks or more bypass the log, where they come together to eight times as many; 0: none do.
    pub bypass_blocks: u32,
}

impl Default for LaneOptions {
    /// 64 MiB of tables, 32 MiB of nodes, 1024 headers, 512 reads, 64 MiB of data; writes of 64 KiB bypass the log.
    fn default() -> Self {
        let (nodes, headers) = (8192, 1024);
        Self { table_blocks: 16384, nodes, headers, reads: 512, cache_blocks: 16384, bypass_blocks: 16 }
    }
}

/// A disk of the pool, as a lane sees it.
#[derive(Debug, Clone)]
pub struct LaneDisk {
    /// Where it is plugged in.
    pub at: DiskNo,
    /// Who has which region of it.
    pub regions: Arc<Regions>,
    /// Writes are volatile until a flush or with FUA.
    pub write_cache: bool,
    /// Its kind.
    pub tier: Tier,
    /// What it is used for.
    pub state: DiskState,
}

impl LaneDisk {
    /// A disk that is in order.
    #[must_use]
    pub fn new(at: DiskNo, regions: Arc<Regions>, write_cache: bool, tier: Tier) -> Self {
        Self { at, regions, write_cache, tier, state: DiskState::In }
    }
}

/// A disk that has a lane's log and checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// The disk, by its number in the pool.
    pub disk: DiskNo,
    /// Where it is plugged in.
    pub at: DiskNo,
    /// How it is divided.
    pub layout: Layout,
}

/// Where a lane is.
#[derive(Debug, Clone)]
pub struct LanePlace {
    /// Its log.
    pub log: LogPlace,
    /// The disks that have its log and its checkpoints.
    pub homes: Vec<Home>,
    /// The pool's disks, by number.
    pub disks: Vec<LaneDisk>,
    /// Copies that there are to be of everything: 1 or 2.
    pub copies: u8,
}

impl LanePlace {
    /// Where `lane` of `pool` is, on disks that are all divided for it.
    ///
    /// # Panics
    /// Without a home: a bug of the caller.
    #[must_use]
    pub fn new(pool: Uuid, lane: LaneNo, homes: Vec<Home>, disks: Vec<LaneDisk>, copies: u8) -> Self {
        let Some(first) = homes.first() else { panic!("lane {} has no home", lane.0) };
        let log = LogPlace {
            pool,
            lane,
            homes: homes.iter().map(|home| home.at).collect(),
            first: first.layout.log_first(lane),
            segment_blocks: first.layout.segment_blocks,
            segments: first.layout.segments,
        };
        Self { log, homes, disks, copies }
    }

    /// Whether any home has a volatile cache.
    fn has_write_cache(&self) -> bool {
        let has_cache =
            |home: &Home| self.disks.get(usize::from(home.disk.0)).is_none_or(|disk| disk.write_cache);
        self.homes.iter().any(has_cache)
    }

    /// Blocks of a checkpoint's slot: of the smallest home.
    #[must_use]
    pub fn checkpoint_blocks(&self) -> u32 {
        self.homes.iter().map(|home| home.layout.checkpoint_blocks).min().unwrap_or(2)
    }
}

/// What becomes of a shard's data.
#[derive(Debug, Clone, Copy, Default)]
struct ShardPolicy {
    compression: Compression,
    /// Payloads of the log that are not tried, as many before them did not shrink …
    skip: u32,
    /// … in a row.
    failures: u32,
}

/// The data path's part of a lane.
#[derive(Debug)]
struct Core {
    owner: Owner,
    place: LanePlace,
    flow: Flow,
    disks: Vec<LaneDisk>,
    log: Log,
    state: State,
    /// By disk number.
    free: Vec<Free>,
    /// Regions that were taken and are in no durable record yet.
    unrecorded: Vec<(DiskNo, u32)>,
    tables: Tables,
    nodes: NodeCache,
    headers: HeaderCache,
    cache: BlockCache,
    reads: Vec<Option<Read>>,
    free_reads: Vec<u32>,
    /// Reads that go on in the next turn.
    waiting_reads: VecDeque<u32>,
    read_ios: Vec<Box<Io>>,
    acks: VecDeque<(Lsn, Box<Io>)>,
    bypass: Bypass,
    done: VecDeque<Box<Io>>,
    pins: FixedMap<EgroupId, u32>,
    /// Space of egroups that is not needed any more and still being read.
    doomed: Vec<(EgroupId, Gone)>,
    waiters: Vec<Waker>,
    committing: bool,
    /// The last drain found no room.
    full: bool,
    checkpoint: u64,
    /// A replay of that checkpoint begins with this batch.
    replay_batch: BatchNo,
    repair: repair::Repair,
    shard_lsns: FixedMap<ShardId, u64>,
    checksum_errors: u64,
    want_collect: bool,
    want_settle: bool,
    want_checkpoint: bool,
    /// What becomes of the shards' data, where that is not the default.
    policies: FixedMap<ShardId, ShardPolicy>,
    /// Where any of them wants to have data encoded, or something encoded has been read.
    coder: Option<Box<Coder>>,
    /// I/Os that hosts have submitted.
    submitted: u64,
    budget: budget::Budget,
    /// Units of background work since the data path last had its turn.
    worked: usize,
    scrub: scrub::Scrub,
    /// How often each shard was reverted.
    reverts: FixedMap<ShardId, u64>,
    /// Those who hold writes back.
    held: u32,
    /// How often somebody has asked who uses the space …
    space_wanted: u64,
    /// … and the answer to the first so many.
    space: Option<(u64, SpaceUse)>,
    /// Egroups with serial numbers from here …
    encode_from: u64,
    /// … up to here are looked through for what is to be encoded.
    encode_until: u64,
    /// The state when a lack of room last made it look for garbage.
    collected: Lsn,
    /// Blocks that were zeroed since zeroes were last freed ahead of their turn, and how many make it worth the next
    /// attempt: each that does not help doubles it (to 4 MiB at most), as each takes room in the log.
    zeroed_blocks: u64,
    zeroes_wanted: u64,
    /// The state up to here is in a durable checkpoint.
    checkpointed: Lsn,
}

/// How full a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Blocks of the lane's regions that nothing occupies.
    pub free_blocks: u64,
    /// Blocks that egroups occupy.
    pub used_blocks: u64,
    /// Blocks of data and nodes in these egroups when decoded.
    pub decoded_blocks: u64,
    /// Blocks of egroups that maps refer to, decoded (exact after a mark).
    pub live_blocks: u64,
    /// Blocks of memory that wait to be drained.
    pub undrained_blocks: u64,
    /// Segments of the log in use, and all.
    pub log_segments: (u64, u64),
    /// The last drain found no room: writes end with [`IoStatus::NoSpace`] when the log is full.
    pub full: bool,
    /// Structures and blocks that did not fit their checksums since the lane was opened.
    pub checksum_errors: u64,
}

/// A handle to a lane. Stays on its reactor.
#[derive(Debug, Clone)]
pub struct Lane(Rc<RefCell<Core>>, Flow);

impl Lane {
    /// Takes an I/O of a shard; LBA and length count blocks of 4 KiB. Reads, writes of up to 256 blocks, zeroes (unmap, write
    /// zeroes) and flushes. `snapshot`: a read of that snapshot.
    ///
    /// # Errors
    /// The I/O, when there is no room for it just now: to be tried again after a completion.
    pub fn submit(&self, shard: ShardId, snapshot: Option<u64>, io: Box<Io>) -> Result<(), Box<Io>> {
        self.0.borrow_mut().submit(shard, snapshot, io)
    }

    /// Sends what has come to the log, in one write, and goes on with what waited. To be called once per turn.
    pub fn turn(&self) {
        let mut core = self.0.borrow_mut();
        let core = &mut *core;
        core.log.turn(&self.1);
        core.turn_reads();
        core.turn_bypass();
        core.acknowledge();
    }

    /// The next I/O for a disk.
    #[must_use]
    pub fn take_out(&self) -> Option<DiskIo> {
        self.1.take_out()
    }

    /// Puts back what a disk did not take.
    pub fn put_back(&self, io: DiskIo) {
        self.1.put_back(io);
    }

    /// Takes back an I/O from a disk.
    pub fn complete(&self, io: DiskIo) {
        if let Some(io) = self.1.complete(io) {
            let mut core = self.0.borrow_mut();
            if io.io.tag & READ_TAG > 0 {
                // Nobody waits for that but its host; the space of an egroup that it gives back wakes others itself.
                return core.complete_read(io);
            }
            if io.io.tag & DIRECT_TAG > 0 {
                return core.complete_direct(io);
            }
            core.log.complete(io);
            core.suspect_homes();
            core.acknowledge();
            core.wake();
        }
    }

    /// The next I/O that ended.
    #[must_use]
    pub fn poll(&self) -> Option<Box<Io>> {
        self.0.borrow_mut().done.pop_front()
    }

    /// Whether nothing waits but for disks: no batch, no read without a buffer, no ended I/O.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        let core = self.0.borrow();
        let reads = core.free_reads.len() == core.reads.len();
        core.log.is_idle() && core.done.is_empty() && reads && core.acks.is_empty() && core.bypass.held() == 0
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let core = self.0.borrow();
        Usage {
            free_blocks: core.free_blocks(),
            used_blocks: core.state.used_blocks(),
            decoded_blocks: core.state.egroups.values().map(|egroup| u64::from(egroup.decoded)).sum(),
            live_blocks: core.state.egroups.values().map(|egroup| egroup.live).sum(),
            undrained_blocks: core.tables.slots() as u64,
            log_segments: core.log.segments_used(),
            full: core.full,
            checksum_errors: core.checksum_errors,
        }
    }

    /// Holds writes and zeroes back (`submit` hands them back) until [`Self::release_writes`] is called as often. A snapshot over several
    /// lanes is one cut when all of them are held before the first takes it and until the last has it; first
    /// [`Self::ready_to_cut`], so that it is short.
    pub fn hold_writes(&self) {
        self.0.borrow_mut().held += 1;
    }

    /// Takes them again.
    pub fn release_writes(&self) {
        let mut core = self.0.borrow_mut();
        core.held = core.held.saturating_sub(1);
    }

    /// Changes what becomes of a shard's data from now on. It is not kept on disk: whoever opens the lane says it again.
    pub fn set_compression(&self, shard: ShardId, compression: Compression) {
        let mut core = self.0.borrow_mut();
        if compression.codec == Codec::Raw {
            core.policies.remove(&shard);
            return;
        }
        core.coder.get_or_insert_default();
        core.encode_from = 0;
        core.policies.insert(shard, ShardPolicy { compression, ..ShardPolicy::default() });
    }

    /// Changes how many blocks of data are kept in memory.
    pub fn set_cache_blocks(&self, blocks: usize) {
        self.0.borrow_mut().cache.set_blocks(blocks);
    }

    /// Changes from how many blocks on a write may bypass the log; 0: none does.
    pub fn set_bypass_blocks(&self, blocks: u32) {
        self.0.borrow_mut().bypass.set_blocks_min(blocks);
    }

    /// Blocks that bypassed the log since the lane was opened.
    #[must_use]
    pub fn bypassed_blocks(&self) -> u64 {
        self.0.borrow().bypass.blocks()
    }

    /// What the cache of data has done.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.0.borrow().cache.stats()
    }

    /// What it knows.
    #[must_use]
    pub fn state(&self) -> Ref<'_, State> {
        Ref::map(self.0.borrow(), |core| &core.state)
    }

    /// The free runs of a disk, for checks.
    #[must_use]
    pub fn free_runs(&self, disk: DiskNo) -> Vec<(DiskBlock, u64)> {
        let core = self.0.borrow();
        core.free.get(usize::from(disk.0)).map(|free| free.runs().collect()).unwrap_or_default()
    }

    /// Why it takes no writes any more, if so.
    #[must_use]
    pub fn failed(&self) -> Option<IoStatus> {
        self.0.borrow().log.failed()
    }
}

impl Owner {
    /// What a node says of itself.
    pub(crate) fn node_identity(&self, node: &NodeRef) -> Identity {
        let (address, sequence) = (u64::from(node.extent.0), node.egroup.0);
        Identity { magic: Magic::NODE, pool: self.pool, disk: 0, lane: self.lane, address, sequence }
    }
}

impl Core {
    fn wake(&mut self) {
        self.waiters.drain(..).for_each(Waker::wake);
    }
}
