//! Opening a lane: checkpoint, then the log behind it, then what is free.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use penstock_bdev::Io;
use penstock_reactor::hash::FixedMap;

use super::checkpoint::Checkpoint;
use super::commit::ops_of;
use super::tables::Tables;
use super::{Core, Home, Lane, LaneOptions, LanePlace, checkpoint};
use crate::alloc::Free;
use crate::cache::BlockCache;
use crate::codec::{Codec, Coder};
use crate::egroup::{HEADERS_MIN, HeaderCache, Owner};
use crate::flow::{DiskError, Flow};
use crate::format::checkpoint::{MetaKind, MetaOp};
use crate::format::log::{RECORD_CONTINUED, RECORD_MORE, RecordHeader, RecordKind};
use crate::format::superblock::DiskState;
use crate::id::{BLOCK_BYTES, DiskNo, EgroupId, LaneNo, Lsn, ShardId, index};
use crate::log::{Lacking, Log, LogEnd, ReplayError, mend, replay};
use crate::map::{NODES_MIN, NodeCache};
use crate::state::{State, StateError};

/// Why a lane cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// A disk failed.
    #[error("lane: {0}")]
    Disk(#[from] DiskError),
    /// No checkpoint is sound.
    #[error("lane {}: neither checkpoint is sound ({damaged} damaged); rebuild it with penstock rescue", lane.0)]
    NoCheckpoint {
        /// The lane.
        lane: LaneNo,
        /// Slots with a damaged checkpoint.
        damaged: usize,
    },
    /// The log cannot be replayed.
    #[error(transparent)]
    Log(#[from] ReplayError),
    /// Checkpoint and log do not fit each other.
    #[error("lane {}: {source}", lane.0)]
    State {
        /// The lane.
        lane: LaneNo,
        /// What does not fit.
        #[source]
        source: StateError,
    },
    /// Two egroups have the same space, or one is outside of the lane's regions.
    #[error("lane {}: the space of egroup {egroup} is not the lane's, or another's too; run penstock fsck", lane.0)]
    Space {
        /// The lane.
        lane: LaneNo,
        /// The egroup.
        egroup: EgroupId,
    },
    /// A region is another lane's.
    #[error("lane {}: region {region} of disk {} is another lane's; run penstock fsck", lane.0, disk.0)]
    Region {
        /// The lane.
        lane: LaneNo,
        /// The disk.
        disk: DiskNo,
        /// The region.
        region: u32,
    },
    /// No memory for buffers.
    #[error("lane {}: there are no buffers for its log; give the daemon more memory", lane.0)]
    NoBuffers {
        /// The lane.
        lane: LaneNo,
    },
}

/// What opening found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenReport {
    /// Records that were read from the log.
    pub records: u64,
    /// The log had a torn end, which was cut off.
    pub torn: bool,
    /// Checkpoint slots that were damaged.
    pub damaged_checkpoints: usize,
    /// Batches and checkpoints that one of several homes had not, and has again.
    pub mended: usize,
}

/// A state that is being rebuilt.
pub(super) struct Recovery {
    state: State,
    tables: Tables,
    group: Vec<MetaOp>,
    records: u64,
    shard_lsns: FixedMap<ShardId, u64>,
    error: Option<StateError>,
    coder: Coder,
}

impl Lane {
    /// Opens a lane. All lanes of a pool are opened before the first of them is written to, so that each has its
    /// regions. `life` is a random number.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn open(
        flow: &Flow,
        place: &LanePlace,
        options: &LaneOptions,
        life: u64,
    ) -> Result<(Self, OpenReport), LaneError> {
        let lane = place.log.lane;
        let checkpoint::FoundCheckpoint { newest, damaged: damaged_checkpoints, lacking } =
            checkpoint::read(flow, place).await?;
        let Some(found) = newest else {
            return Err(LaneError::NoCheckpoint { lane, damaged: damaged_checkpoints });
        };
        let (recovery, end) = Recovery::run(flow, place, options, &found).await?;
        mend_homes(flow, place, &end.lacking, &found, &lacking).await?;
        let Recovery { state, tables, records, shard_lsns, .. } = recovery;
        let free = free_space(place, &state)?;
        let write_cache = place.has_write_cache();
        let mended = end.lacking.len() + lacking.len();
        let log =
            Log::open(place.log, end.position, found.replay_from.segment, life, write_cache, end.begins);
        let log = log.ok_or(LaneError::NoBuffers { lane })?;
        let core = Core {
            owner: Owner { pool: place.log.pool, lane },
            place: place.clone(),
            flow: flow.clone(),
            disks: place.disks.clone(),
            log,
            state,
            free,
            unrecorded: Vec::new(),
            tables,
            nodes: NodeCache::new(options.nodes.max(NODES_MIN)),
            headers: HeaderCache::new(options.headers.max(HEADERS_MIN)),
            cache: BlockCache::new(options.cache_blocks),
            reads: (0..options.reads).map(|_| None).collect(),
            waiting_reads: VecDeque::with_capacity(index(options.reads)),
            free_reads: (0..options.reads).rev().collect(),
            read_ios: (0..options.reads).map(|_| Io::boxed()).collect(),
            bypass: super::bypass::Bypass::new(options.bypass_blocks),
            acks: VecDeque::with_capacity(super::ACKS_MAX),
            done: VecDeque::with_capacity(super::ACKS_MAX + index(options.reads)),
            pins: FixedMap::default(),
            doomed: Vec::new(),
            waiters: Vec::new(),
            committing: false,
            full: false,
            checkpoint: found.number,
            replay_batch: found.replay_from.batch,
            repair: super::repair::Repair::default(),
            want_checkpoint: false,
            shard_lsns,
            checksum_errors: 0,
            want_collect: false,
            want_settle: false,
            zeroed_blocks: 0,
            zeroes_wanted: 1,
            policies: FixedMap::default(),
            coder: None,
            scrub: super::scrub::Scrub::default(),
            reverts: FixedMap::default(),
            held: 0,
            space_wanted: 0,
            space: None,
            encode_from: 0,
            encode_until: 0,
            submitted: 0,
            budget: super::budget::Budget::default(),
            worked: 0,
            collected: Lsn(0),
            checkpointed: found.state_lsn,
        };
        let lane = Self(Rc::new(RefCell::new(core)), flow.clone());
        lane.0.borrow_mut().repair.restart();
        Ok((lane, OpenReport { records, torn: end.torn, damaged_checkpoints, mended }))
    }
}

impl Recovery {
    /// The state of the checkpoint, and what the log says behind it.
    pub(super) async fn run(
        flow: &Flow,
        place: &LanePlace,
        options: &LaneOptions,
        found: &Checkpoint,
    ) -> Result<(Self, LogEnd), LaneError> {
        let lane = place.log.lane;
        let mut state = State::new();
        for op in &found.ops {
            state.apply(op).map_err(|source| LaneError::State { lane, source })?;
        }
        (state.lsn, state.drained) = (found.state_lsn, found.drained);
        state.next_egroup = state.next_egroup.max(found.next_egroup);
        let mut recovery = Self {
            state,
            tables: Tables::new(options.table_blocks.max(1024)),
            group: Vec::new(),
            records: 0,
            shard_lsns: FixedMap::default(),
            error: None,
            coder: Coder::new(),
        };
        let at_least = Lsn(found.state_lsn.max(found.drained).0 + 1);
        let visit = |lsn, header: &RecordHeader, payload: &[u8]| recovery.visit(lsn, header, payload);
        let end = replay(flow, &place.log, found.replay_from, at_least, visit).await?;
        match recovery.error {
            Some(source) => Err(LaneError::State { lane, source }),
            None => Ok((recovery, end)),
        }
    }

    /// The state, and how many records were read.
    pub(super) fn into_state(self) -> (State, u64) {
        (self.state, self.records)
    }

    fn visit(&mut self, lsn: Lsn, header: &RecordHeader, payload: &[u8]) {
        self.records += 1;
        let (shard, block) = (header.shard(), header.block());
        match header.kind() {
            Ok(RecordKind::Meta) => return self.visit_ops(lsn, header.flags, payload),
            Ok(RecordKind::Write | RecordKind::Zero | RecordKind::Direct) => {
                let last = self.shard_lsns.entry(shard).or_insert(0);
                *last = header.shard_lsn.get().max(*last);
            }
            Err(_) => return,
        }
        if header.kind() == Ok(RecordKind::Direct) {
            return self.visit_direct(lsn, shard, payload);
        }
        // In the maps already, or of a shard that was deleted later.
        if lsn <= self.state.drained || !self.state.shards.contains_key(&shard) {
            return;
        }
        let tables = &mut self.tables;
        if header.kind() == Ok(RecordKind::Zero) {
            return tables.active.zero(shard, block, header.blocks.get(), lsn, &mut tables.arena);
        }
        let payload = if header.codec == Codec::Raw as u8 {
            payload
        } else {
            match self.coder.decode(Codec::Lz4, payload, index(header.decoded_bytes.get())) {
                Some(payload) => payload,
                None => {
                    self.error.get_or_insert(StateError { kind: header.kind, id: shard.0 });
                    return;
                }
            }
        };
        for (at, bytes) in payload.chunks_exact(BLOCK_BYTES).enumerate() {
            let slot = tables.arena.take_or_grow();
            tables.arena.block_mut(slot).copy_from_slice(bytes);
            tables.active.put(shard, block.0 + at as u64, lsn, Some(slot), &mut tables.arena);
        }
    }

    /// An egroup that was written past the log.
    fn visit_direct(&mut self, lsn: Lsn, shard: ShardId, payload: &[u8]) {
        let ops: Vec<MetaOp> = ops_of(payload).collect();
        let mut egroup = EgroupId::NONE;
        for op in ops.iter().filter(|op| op.kind() != Ok(MetaKind::Stored)) {
            if op.kind() == Ok(MetaKind::Egroup) {
                egroup = EgroupId(op.id.get());
            }
            if lsn > self.state.lsn
                && let Err(error) = self.state.apply(op)
            {
                self.error.get_or_insert(error);
            }
        }
        self.state.lsn = self.state.lsn.max(lsn);
        if lsn <= self.state.drained {
            return;
        }
        if self.state.shards.contains_key(&shard) {
            self.tables.put_stored(shard, egroup, lsn, &ops);
        } else {
            // The drain will find that nobody needs it.
            self.tables.active.put_direct(lsn, egroup);
        }
    }

    /// Egroups that no map refers to yet.
    pub(super) fn undrained(&self) -> std::collections::BTreeSet<EgroupId> {
        self.tables.direct()
    }

    fn visit_ops(&mut self, lsn: Lsn, flags: u8, payload: &[u8]) {
        if flags & RECORD_CONTINUED == 0 {
            // What came before has no end: it never took effect.
            self.group.clear();
        }
        self.group.extend(ops_of(payload));
        if flags & RECORD_MORE != 0 {
            return;
        }
        let ops = std::mem::take(&mut self.group);
        for op in ops.iter().filter(|op| op.kind() == Ok(MetaKind::Revert)) {
            // Also where the checkpoint has it: it may not have what was in the tables then.
            self.tables.forget_shard(ShardId(op.id.get()), lsn);
        }
        if lsn > self.state.lsn {
            for op in &ops {
                if let Err(error) = self.state.apply(op) {
                    self.error.get_or_insert(error);
                }
                if op.kind() == Ok(MetaKind::ShardDrop) {
                    self.tables.forget_shard(ShardId(op.id.get()), lsn);
                    self.shard_lsns.remove(&ShardId(op.id.get()));
                }
            }
            self.state.lsn = lsn;
            self.tables.forget(self.state.drained);
        }
        let taken = ops.iter().filter(|op| op.kind() == Ok(MetaKind::SnapshotTake));
        let taken: Vec<(ShardId, u64)> = taken.map(|op| (ShardId(op.id.get()), op.b.get())).collect();
        if !taken.is_empty() && lsn > self.state.drained {
            self.tables.freeze_always(lsn);
            if let Some(table) = self.tables.frozen.back_mut() {
                table.snapshots = taken;
            }
        }
    }
}

/// Gives homes the batches and the checkpoint that they lack: from here on any of them alone would do again.
async fn mend_homes(
    flow: &Flow,
    place: &LanePlace,
    batches: &[Lacking],
    checkpoint: &Checkpoint,
    homes: &[Home],
) -> Result<(), DiskError> {
    mend(flow, batches).await?;
    for home in homes {
        checkpoint::write_home(flow, place, home, checkpoint).await?;
    }
    Ok(())
}

/// What the lane's egroups leave of its regions.
fn free_space(place: &LanePlace, state: &State) -> Result<Vec<Free>, LaneError> {
    let lane = place.log.lane;
    let mut free = vec![Free::default(); place.disks.len()];
    let state_of = |disk: DiskNo| place.disks.get(usize::from(disk.0)).map(|disk| disk.state);
    for (disk, region) in &state.regions {
        // Of a disk that is not there nothing is to be had.
        if state_of(*disk) == Some(DiskState::Out) {
            continue;
        }
        let wrong = LaneError::Region { lane, disk: *disk, region: *region };
        let Some(owner) = place.disks.get(usize::from(disk.0)) else { return Err(wrong) };
        if !owner.regions.claim(*region, lane) {
            return Err(wrong);
        }
        let (first, blocks) = owner.regions.blocks(*region);
        if let Some(free) = free.get_mut(usize::from(disk.0)) {
            free.give(first, blocks);
        }
    }
    for (id, egroup) in &state.egroups {
        for copy in egroup.places().filter(|copy| state_of(copy.disk) != Some(DiskState::Out)) {
            let free = free.get_mut(usize::from(copy.disk.0));
            if !free.is_some_and(|free| free.take_at(copy.first, u64::from(egroup.blocks))) {
                return Err(LaneError::Space { lane, egroup: *id });
            }
        }
    }
    // On one that leaves nothing new is put.
    for (free, disk) in free.iter_mut().zip(&place.disks) {
        if disk.state != DiskState::In {
            *free = Free::default();
        }
    }
    Ok(free)
}
