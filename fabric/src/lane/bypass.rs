//! Large writes past the log: their data go to an egroup of their own at once, and the log says only where.
//!
//! ```text
//!   submit ─► waiting ─ turn ─► enough for one shard: header and data to the disk ─ durable ─► a record in the log, cells in the
//!                │                                                                             active table ─► acknowledged
//!                └────────────► too little, and none under way: the log, as any other write
//! ```
//!
//! The hosts' buffers go to the disk as they are; the drain puts the blocks into the map and copies nothing.
//!
//! Invariants: nothing refers to the egroup before the record is appended, and that is after all of it is durable; one record tells of a
//! whole egroup, so that all its blocks are in one table, whose drain counts what of it is needed; while a write is here, no other write to its
//! blocks is taken, so what is submitted later is later in the log too.

use std::collections::VecDeque;

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_reactor::mem::Buf;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::{Core, Lane};
use crate::alloc::RESERVE_BLOCKS;
use crate::codec::Codec;
use crate::crc::crc32c;
use crate::egroup::Spot;
use crate::flow::{DiskIo, Flow};
use crate::format::checkpoint::{MetaKind, MetaOp};
use crate::format::egroup::{
    EGROUP_BLOCKS_MAX, EXTENT_BLOCKS_MAX, ExtentEntry, KIND_DATA, SECTORS_PER_BLOCK, header_blocks, identity,
    write_header,
};
use crate::format::log::RecordKind;
use crate::id::{
    BLOCK_BYTES, DiskBlock, DiskNo, EgroupId, ExtentNo, Generation, Lsn, ShardId, VBlock, count32, index,
};
use crate::log::{AppendError, Record};
use crate::map::Target;
use crate::state::{Egroup, egroup_op, region_op};

/// Device writes that bypass the log have this bit in their tags.
pub(super) const DIRECT_TAG: u64 = 1 << 60;
/// Egroups that are being written past the log at most.
const DIRECT_MAX: usize = 4;
/// Writes of one such egroup at most.
const IOS_MAX: usize = 64;
/// Writes that wait to be in one at most.
const WAITING_MAX: usize = 32;
/// An egroup is worth it from so many times the smallest write on that may bypass the log.
const GROUP_FACTOR: u64 = 8;
/// Regions that one record has room to name without memory of its own; more are hardly ever new at once.
const REGIONS_ROOM: usize = 16;
/// An egroup that is nowhere yet.
const NOWHERE: Egroup = Egroup {
    generation: Generation(1),
    disk: DiskNo(0),
    first: DiskBlock(0),
    blocks: 0,
    header_blocks: 0,
    header_crc: 0,
    decoded: 0,
    live: 0,
    second: None,
    copies: 1,
};
const _: () = assert!(IOS_MAX < 1 << 16 && DIRECT_MAX < 1 << 16);

/// Where an egroup that is written past the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// So many device writes are under way.
    Writing(u32),
    /// All of it is durable, or a write failed.
    Written,
    /// The log has its record.
    Recorded(Lsn),
}

/// An egroup that is written past the log.
#[derive(Debug)]
struct Direct {
    id: EgroupId,
    egroup: Egroup,
    shard: ShardId,
    /// The hosts' writes; their buffers are with the disk while they are being written.
    ios: Vec<Box<Io>>,
    stage: Stage,
    failed: bool,
    /// Regions that its record is to name.
    regions: Vec<(DiskNo, u32)>,
}

/// What bypasses the log.
#[derive(Debug)]
pub(super) struct Bypass {
    /// Writes of so many blocks or more; 0: none.
    blocks_min: u32,
    waiting: VecDeque<(ShardId, Box<Io>)>,
    directs: Vec<Option<Direct>>,
    spare: Vec<Direct>,
    disk_ios: Vec<Box<Io>>,
    extents: Vec<ExtentEntry>,
    crcs: Vec<u32>,
    ops: Vec<MetaOp>,
    /// Hosts' writes that are here.
    held: usize,
    /// Snapshots that are about to be taken: meanwhile no write bypasses the log, so that all that was submitted before is in them.
    cuts: u32,
    /// Blocks that were written past the log.
    blocks: u64,
}

impl Bypass {
    pub(super) fn new(blocks_min: u32) -> Self {
        let direct = || Direct {
            id: EgroupId::NONE,
            egroup: NOWHERE,
            shard: ShardId(0),
            ios: Vec::with_capacity(IOS_MAX),
            stage: Stage::Written,
            failed: false,
            regions: Vec::with_capacity(REGIONS_ROOM),
        };
        Self {
            blocks_min,
            waiting: VecDeque::with_capacity(WAITING_MAX),
            directs: (0..DIRECT_MAX).map(|_| None).collect(),
            spare: (0..DIRECT_MAX).map(|_| direct()).collect(),
            disk_ios: (0..DIRECT_MAX * (IOS_MAX + 1)).map(|_| Io::boxed()).collect(),
            extents: Vec::with_capacity(EGROUP_BLOCKS_MAX),
            crcs: Vec::with_capacity(EGROUP_BLOCKS_MAX),
            ops: Vec::with_capacity(1 + REGIONS_ROOM + IOS_MAX),
            held: 0,
            cuts: 0,
            blocks: 0,
        }
    }

    pub(super) fn set_blocks_min(&mut self, blocks: u32) {
        self.blocks_min = blocks;
    }

    /// Blocks that were written past the log since the lane was opened.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Hosts' writes that are here.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether an egroup is being written to a disk.
    pub(super) fn is_on(&self, disk: DiskNo) -> bool {
        self.directs.iter().flatten().any(|direct| direct.egroup.disk == disk)
    }

    /// Whether a write to some of these blocks is here.
    pub(super) fn overlaps(&self, shard: ShardId, first: u64, blocks: u64) -> bool {
        let touches = |of: ShardId, io: &Io| {
            of == shard && io.lba.0 < first.saturating_add(blocks) && first < io.lba.0 + u64::from(io.blocks)
        };
        let pending = |direct: &&Direct| !matches!(direct.stage, Stage::Recorded(_));
        self.held > 0
            && (self.waiting.iter().any(|(of, io)| touches(*of, io))
                || self
                    .directs
                    .iter()
                    .flatten()
                    .filter(pending)
                    .any(|direct| direct.ios.iter().any(|io| touches(direct.shard, io))))
    }

    fn group_min(&self) -> u64 {
        u64::from(self.blocks_min) * GROUP_FACTOR
    }

    fn give(&mut self, mut direct: Direct) {
        direct.ios.clear();
        direct.regions.clear();
        self.spare.push(direct);
    }
}

/// While it lives, no write begins to bypass the log.
pub(super) struct Cut<'a>(&'a Lane);

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.0.borrow_mut().bypass.cuts -= 1;
    }
}

impl Lane {
    /// Has all writes go by way of the log, and waits for those that do not.
    pub(super) async fn nothing_bypasses(&self) -> Cut<'_> {
        self.0.borrow_mut().bypass.cuts += 1;
        let cut = Cut(self);
        self.wait(|core| (core.bypass.held == 0).then_some(())).await;
        cut
    }
}

impl Core {
    /// Whether a write is to bypass the log.
    pub(super) fn may_bypass(&self, shard: ShardId, io: &Io) -> bool {
        let bypass = &self.bypass;
        let wanted = bypass.blocks_min > 0 && io.blocks >= bypass.blocks_min;
        wanted
            && bypass.cuts == 0
            // Its data have one copy.
            && self.place.copies < 2
            && index(io.blocks) <= self.tables.stored_max()
            && bypass.waiting.len() < WAITING_MAX
            && !self.full
            && self.log.failed().is_none()
            // Many small egroups are not for an index that is half full.
            && (self.state.egroups.len() as u64) < self.ops_max() / 2
            && self.policies.get(&shard).is_none_or(|policy| {
                policy.compression.codec == Codec::Raw || !policy.compression.inline
            })
            && io.data.len_bytes() == index(io.blocks) * BLOCK_BYTES
            && io.data.iter().all(|buf| buf.len() % BLOCK_BYTES == 0)
    }

    /// Takes a write that [`Self::may_bypass`] the log.
    pub(super) fn submit_bypass(&mut self, shard: ShardId, io: Box<Io>) {
        self.bypass.held += 1;
        self.bypass.waiting.push_back((shard, io));
    }

    /// Goes on with what bypasses the log; once per turn.
    pub(super) fn turn_bypass(&mut self) {
        if self.bypass.held == 0 {
            return;
        }
        for at in 0..DIRECT_MAX {
            let written = self.bypass.directs.get(at).and_then(Option::as_ref);
            if written.is_some_and(|direct| direct.stage == Stage::Written) {
                self.record_direct(at);
            }
        }
        while let Some((shard, _)) = self.bypass.waiting.front() {
            let shard = *shard;
            let of_shard = self.bypass.waiting.iter().filter(|(of, _)| *of == shard);
            let blocks: u64 = of_shard.map(|(_, io)| u64::from(io.blocks)).sum();
            let cut = self.bypass.cuts > 0;
            let started = !cut && blocks >= self.bypass.group_min() && self.start_direct(shard);
            if started {
                continue;
            }
            let busy = self.bypass.directs.iter().flatten().any(|direct| direct.stage != Stage::Written);
            // What is under way gives the next ones time to come together.
            if (busy && !cut) || !self.log_waiting() {
                break;
            }
        }
    }

    /// Sends the first that waits by way of the log; false where that has no room.
    fn log_waiting(&mut self) -> bool {
        let Some((shard, io)) = self.bypass.waiting.pop_front() else { return false };
        match self.submit_logged(shard, io) {
            Ok(()) => {
                self.bypass.held -= 1;
                self.wake();
                true
            }
            Err(io) => {
                self.bypass.waiting.push_front((shard, io));
                false
            }
        }
    }

    /// Begins an egroup of what waits of a shard; false where that is not possible now.
    fn start_direct(&mut self, shard: ShardId) -> bool {
        let Some(at) = self.bypass.directs.iter().position(Option::is_none) else { return false };
        let Some(id) = EgroupId::new(self.owner.lane, self.state.next_egroup) else { return false };
        let (mut blocks, mut extents, mut count) = (0, 0, 0);
        for (_, io) in self.bypass.waiting.iter().filter(|(of, _)| *of == shard).take(IOS_MAX) {
            let (more, parts) = (index(io.blocks), index(io.blocks).div_ceil(EXTENT_BLOCKS_MAX));
            let fits = header_blocks(extents + parts, blocks + more) + blocks + more <= EGROUP_BLOCKS_MAX;
            // All of it goes into one table.
            if !fits || blocks + more > self.tables.stored_max() {
                break;
            }
            (blocks, extents, count) = (blocks + more, extents + parts, count + 1);
        }
        let header = header_blocks(extents, blocks);
        // What is in memory needs space to be drained to, data and nodes: a pool that is nearly full takes all by way of the log.
        let needed = RESERVE_BLOCKS + (header + blocks + 2 * self.tables.slots()) as u64;
        while self.free_blocks() < needed {
            if self.take_any_region().is_none() {
                return false;
            }
        }
        let Some(buf) = Buf::alloc(header * BLOCK_BYTES).filter(|_| count > 0) else { return false };
        let spots = self.take_space(id, (header + blocks) as u64, false, 1, &[]);
        let Some(Spot { disk, first, .. }) = spots.and_then(|spots| spots.first().copied()) else {
            return false;
        };
        let Some(mut direct) = self.bypass.spare.pop() else {
            panic!("more egroups past the log than may be")
        };
        self.state.next_egroup += 1;
        for _ in 0..self.bypass.waiting.len() {
            let Some((of, io)) = self.bypass.waiting.pop_front() else { break };
            if of == shard && direct.ios.len() < count {
                direct.ios.push(io);
            } else {
                self.bypass.waiting.push_back((of, io));
            }
        }
        (direct.id, direct.shard, direct.failed) = (id, shard, false);
        direct.egroup = Egroup {
            disk,
            first,
            blocks: count32(header + blocks),
            header_blocks: count32(header),
            decoded: count32(blocks),
            live: blocks as u64,
            ..NOWHERE
        };
        self.write_direct(at, &mut direct, buf);
        if let Some(place) = self.bypass.directs.get_mut(at) {
            *place = Some(direct);
        }
        true
    }

    /// Sends header and data to the disk.
    fn write_direct(&mut self, at: usize, direct: &mut Direct, mut header: Buf) {
        let (extents, crcs) = (&mut self.bypass.extents, &mut self.bypass.crcs);
        extents.clear();
        crcs.clear();
        let mut next = direct.egroup.header_blocks;
        for io in &direct.ios {
            for part in (0..io.blocks).step_by(EXTENT_BLOCKS_MAX) {
                let blocks = (io.blocks - part).min(count32(EXTENT_BLOCKS_MAX));
                extents.push(ExtentEntry {
                    shard: U64::new(direct.shard.0),
                    block: U64::new(io.lba.0 + u64::from(part)),
                    sector: U32::new((next + part) * SECTORS_PER_BLOCK),
                    stored_bytes: U32::new(blocks * count32(BLOCK_BYTES)),
                    first_crc: U16::new(u16::try_from(crcs.len() + index(part)).unwrap_or(u16::MAX)),
                    blocks: u8::try_from(blocks).unwrap_or(u8::MAX),
                    codec: Codec::Raw as u8,
                    kind: KIND_DATA,
                    reserved: [0; 3],
                });
            }
            next += io.blocks;
            let blocks = io.data.iter().flat_map(|buf| buf.chunks_exact(BLOCK_BYTES));
            crcs.extend(blocks.map(crc32c));
        }
        let egroup = &mut direct.egroup;
        let who =
            identity(self.owner.pool, u32::from(egroup.disk.0), self.owner.lane, direct.id, egroup.first.0);
        egroup.header_crc =
            write_header(&who, egroup.generation, index(egroup.blocks), extents, crcs, &mut header);
        let Some(disk) = self.disks.get(usize::from(egroup.disk.0)) else {
            panic!("an egroup is on no disk")
        };
        let flags = if disk.write_cache { IoFlags::FUA } else { IoFlags::NONE };
        let (disk_at, mut block) = (disk.at, egroup.first.0 + u64::from(egroup.header_blocks));
        let tag = DIRECT_TAG | (at as u64) << 16;
        let mut send = |number: usize, first: u64, blocks: u32, data: &mut penstock_bdev::Sg| {
            let Some(mut io) = self.bypass.disk_ios.pop() else { panic!("more device writes than may be") };
            io.set(tag | number as u64, Op::Write, flags, Lba(first), blocks);
            std::mem::swap(&mut io.data, data);
            Flow::push(&self.flow, DiskIo { disk: disk_at, io });
        };
        let mut data = penstock_bdev::Sg::new();
        data.push(header);
        send(0, egroup.first.0, egroup.header_blocks, &mut data);
        for (number, io) in (1..).zip(&mut direct.ios) {
            send(number, block, io.blocks, &mut io.data);
            block += u64::from(io.blocks);
        }
        direct.stage = Stage::Writing(1 + count32(direct.ios.len()));
    }

    /// Takes back a device write.
    pub(super) fn complete_direct(&mut self, mut done: DiskIo) {
        let at = usize::try_from(done.io.tag >> 16 & 0xffff).unwrap_or(usize::MAX);
        let number = usize::try_from(done.io.tag & 0xffff).unwrap_or(usize::MAX);
        let direct = self.bypass.directs.get_mut(at).and_then(Option::as_mut);
        let Some(Direct { stage: Stage::Writing(left), failed, ios, .. }) = direct else {
            panic!("a write past the log came back that nobody waits for")
        };
        *left -= 1;
        *failed |= done.io.status != IoStatus::Success;
        match number.checked_sub(1).and_then(|number| ios.get_mut(number)) {
            Some(io) => std::mem::swap(&mut io.data, &mut done.io.data),
            None => done.io.data.clear(),
        }
        let all = *left == 0;
        self.bypass.disk_ios.push(done.io);
        if let Some(direct) = self.bypass.directs.get_mut(at).and_then(Option::as_mut).filter(|_| all) {
            direct.stage = Stage::Written;
            self.record_direct(at);
        }
    }

    /// Ends the writes of an egroup that nothing will refer to.
    fn give_up_direct(&mut self, at: usize, status: IoStatus) {
        let Some(mut direct) = self.bypass.directs.get_mut(at).and_then(Option::take) else { return };
        for mut io in direct.ios.drain(..) {
            io.status = status;
            self.done.push_back(io);
            self.bypass.held -= 1;
        }
        self.release(direct.id, direct.egroup.space());
        self.bypass.give(direct);
        self.wake();
    }

    /// Appends the record of an egroup that is durable, as soon as there is room for it.
    fn record_direct(&mut self, at: usize) {
        let Some(mut direct) = self.bypass.directs.get_mut(at).and_then(Option::take) else { return };
        let outcome = self.try_record(&mut direct);
        if let Some(place) = self.bypass.directs.get_mut(at) {
            *place = Some(direct);
        }
        if let Err(status) = outcome {
            self.give_up_direct(at, status);
        }
    }

    /// # Errors
    /// What the hosts are told when it is in vain.
    fn try_record(&mut self, direct: &mut Direct) -> Result<(), IoStatus> {
        if direct.failed {
            return Err(IoStatus::WriteError);
        }
        if !self.state.shards.contains_key(&direct.shard) {
            return Err(IoStatus::Gone);
        }
        let blocks = index(direct.egroup.decoded);
        if !self.make_room(0, blocks) || self.tables.arena.stored_room() < blocks {
            self.wake();
            return if self.full { Err(IoStatus::NoSpace) } else { Ok(()) };
        }
        direct.regions.clear();
        direct.regions.extend(&self.unrecorded);
        let mut ops = std::mem::take(&mut self.bypass.ops);
        ops.clear();
        ops.extend(direct.regions.iter().map(|(disk, region)| region_op(*disk, *region)));
        ops.push(egroup_op(direct.id, &direct.egroup));
        let mut extent = 0;
        for io in &direct.ios {
            let (b, c) = (U64::new(u64::from(io.blocks)), U64::new(extent));
            ops.push(MetaOp { b, c, ..MetaOp::of(MetaKind::Stored, io.lba.0) });
            extent += u64::from(io.blocks).div_ceil(EXTENT_BLOCKS_MAX as u64);
        }
        let (block, shard) = (VBlock(0), direct.shard);
        let shard_lsn = self.shard_lsns.get(&shard).map_or(1, |last| last + 1);
        let record =
            Record { kind: RecordKind::Direct, flags: 0, shard, block, blocks: 0, shard_lsn, epoch: 1 };
        let bytes = ops.as_bytes();
        let appended = self.log.append(&record, bytes.len(), |room| room.copy_from_slice(bytes));
        let outcome = match appended {
            Ok(lsn) => {
                self.shard_lsns.insert(shard, shard_lsn);
                self.tables.put_stored(shard, direct.id, lsn, &ops);
                self.bypass.blocks += blocks as u64;
                self.bypass.held -= direct.ios.len();
                self.acks.extend(direct.ios.drain(..).map(|io| (lsn, io)));
                direct.stage = Stage::Recorded(lsn);
                self.wake();
                Ok(())
            }
            Err(AppendError::Failed(_)) => Err(IoStatus::WriteError),
            Err(AppendError::Full) if self.full => Err(IoStatus::NoSpace),
            Err(AppendError::Full | AppendError::Busy) => {
                self.wake();
                Ok(())
            }
        };
        self.bypass.ops = ops;
        outcome
    }

    /// Takes egroups whose records are durable into the state, before anybody is told or reads from them.
    pub(super) fn apply_direct(&mut self) {
        let durable = self.log.durable_end().lsn;
        for at in 0..DIRECT_MAX {
            let Some(slot) = self.bypass.directs.get_mut(at) else { continue };
            let recorded =
                |direct: &mut Direct| matches!(direct.stage, Stage::Recorded(lsn) if lsn < durable);
            let Some(direct) = slot.take_if(recorded) else { continue };
            let Stage::Recorded(lsn) = direct.stage else { continue };
            self.unrecorded.retain(|region| !direct.regions.contains(region));
            self.state.regions.extend(&direct.regions);
            self.state.egroups.insert(direct.id, direct.egroup);
            self.state.lsn = self.state.lsn.max(lsn);
            self.bypass.give(direct);
        }
    }
}

/// The blocks that the ops of a [`RecordKind::Direct`] tell of, with where they are.
pub(super) fn stored_blocks(egroup: EgroupId, ops: &[MetaOp]) -> impl Iterator<Item = (u64, Target)> {
    let stored = ops.iter().filter(|op| op.kind() == Ok(MetaKind::Stored));
    stored.flat_map(move |op| {
        let per_extent = EXTENT_BLOCKS_MAX as u64;
        (0..op.b.get().min(EGROUP_BLOCKS_MAX as u64)).filter_map(move |number| {
            let extent = u16::try_from(op.c.get().checked_add(number / per_extent)?).ok()?;
            let first = u8::try_from(number % per_extent).ok()?;
            Some((op.id.get().checked_add(number)?, Target { egroup, extent: ExtentNo(extent), first }))
        })
    })
}
