//! A lane from what is on its disks, when checkpoint or log are lost: egroups by their headers, maps by their newest roots that are
//! whole or else by what the extents say whose they are, and what is left of the log on top.
//!
//! What cannot be known: what was deleted, unmapped or reverted after the newest map that is found may be there again; snapshots
//! are not found. Both are said in the report.

use std::collections::BTreeMap;

use super::check::{Reader, Walk, live_of};
use super::checkpoint::Checkpoint;
use super::{LanePlace, WorkError};
use crate::egroup::{Builder, Spot, rebuild};
use crate::flow::{DiskError, Flow};
use crate::format::checkpoint::{MetaKind, MetaOp};
use crate::format::egroup::{EGROUP_HEADER_BLOCKS_MAX, EgroupHeader, HeaderPart, KIND_DATA, KIND_NODE};
use crate::format::log::{BatchHeader, HEADER_BLOCKS_MAX, RecordHeader, RecordKind};
use crate::format::superblock::DiskState;
use crate::format::{Magic, Prefix, take};
use crate::fsck::{Finding, Findings};
use crate::id::{
    BLOCK_BYTES, BatchNo, DiskBlock, DiskNo, EgroupId, ExtentNo, Generation, Lsn, SegmentNo, ShardId, VBlock,
    count32,
};
use crate::log::{LogPosition, ReplayError};
use crate::map::{Edit, NODES_MIN, NodeCache, NodeRef, Root, Target};
use crate::state::{Egroup, State};

/// Blocks that are read at once.
const SCAN_BLOCKS: u32 = 256;

/// What was found of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rescued {
    /// Egroups whose headers are whole.
    pub egroups: u64,
    /// Shards whose newest map is whole.
    pub maps_found: u64,
    /// Shards whose maps were made again from extents.
    pub maps_made: u64,
    /// Records of the log that go on top.
    pub log_records: u64,
}

/// An extent that says whose it is.
#[derive(Debug, Clone, Copy)]
struct Extent {
    egroup: EgroupId,
    extent: ExtentNo,
    block: u64,
    blocks: u8,
}

/// All egroups of a lane by their headers.
#[derive(Default)]
struct Scan {
    /// All generations that are found.
    found: BTreeMap<EgroupId, Vec<Egroup>>,
    egroups: BTreeMap<EgroupId, Egroup>,
    data: BTreeMap<ShardId, Vec<Extent>>,
    /// The newest first: the CRC is in the node itself.
    nodes: BTreeMap<ShardId, Vec<(EgroupId, ExtentNo)>>,
}

/// Makes a state of what is there; returns it with the checkpoint that it belongs into.
pub(crate) async fn rescue(
    flow: &Flow,
    place: &LanePlace,
    findings: &mut Findings,
) -> Result<(Checkpoint, State, Rescued), WorkError> {
    let scan = scan(flow, place).await?;
    let mut rescued = Rescued { egroups: scan.egroups.len() as u64, ..Rescued::default() };
    let log = log_or_cut(flow, place, findings).await?;
    rescued.log_records = log.records;
    let mut state = State::new();
    let direct = log.direct.iter().map(|(_, op)| EgroupId(op.id.get()).serial());
    let newest = scan.egroups.keys().map(|id| id.serial()).chain(direct).max().unwrap_or(0);
    state.next_egroup = newest.max(log.newest_egroup) + 1;
    let mut reader = Reader::new(flow, place);
    let mut walk = Walk::default();
    let shards: std::collections::BTreeSet<ShardId> =
        scan.data.keys().chain(scan.nodes.keys()).copied().collect();
    let mut made: BTreeMap<ShardId, (Root, u64)> = BTreeMap::new();
    let mut lost = Vec::new();
    for shard in shards {
        match newest_map(&mut reader, &scan, shard, &mut walk).await {
            Some(found) => {
                rescued.maps_found += 1;
                made.insert(shard, found);
            }
            None => lost.push(shard),
        }
    }
    state.egroups = scan.egroups.clone();
    for shard in lost {
        let edit = map_of_extents(&mut reader, &scan, shard).await;
        let mapped = u64::try_from(edit.mapped()).unwrap_or(0);
        let root = write_map(flow, place, &mut state, shard, edit).await?;
        rescued.maps_made += 1;
        made.insert(shard, (root, mapped));
    }
    // What all the maps refer to, and nothing else.
    let mut walk = Walk::default();
    let egroups = state.egroups.clone();
    let mut reader = Reader::new(flow, place);
    for (shard, (root, _)) in &made {
        if let Some(node) = root.node {
            reader.walk(&egroups, node, &format!("shard {shard}"), &mut walk, findings).await;
        }
    }
    let live = live_of(&walk);
    let undrained = log.undrained();
    state.egroups.retain(|id, egroup| {
        let all = undrained.contains(id).then_some(u64::from(egroup.decoded));
        egroup.live = all.or(live.get(id).copied()).unwrap_or(0);
        egroup.live > 0
    });
    for (shard, (root, mapped)) in made {
        let entry = state.shards.entry(shard).or_default();
        (entry.root, entry.mapped, entry.alone_from) = (root, mapped, state.next_egroup);
    }
    log.apply(&mut state);
    state.regions = regions_of(place, &state);
    state.lsn = Lsn(log.end.lsn.0 - 1);
    state.drained = Lsn(log.drained);
    let checkpoint = Checkpoint {
        number: 1,
        ops: Vec::new(),
        state_lsn: state.lsn,
        drained: state.drained,
        replay_from: log.begin,
        next_egroup: state.next_egroup,
    };
    Ok((checkpoint, state, rescued))
}

/// The log, without what is behind damage in it.
async fn log_or_cut(flow: &Flow, place: &LanePlace, findings: &mut Findings) -> Result<LogFound, WorkError> {
    match find_log(flow, place).await? {
        Ok(log) => Ok(log),
        Err(batch) => {
            cut_log(flow, place, batch).await?;
            findings.add(Finding::damage(
                format!("lane {}: batch {} of its log is damaged", place.log.lane.0, batch.0),
                "it and what was written after it, and was not drained, is lost",
                "take it from a replica or a backup",
            ));
            find_log(flow, place).await?.map_err(|_| WorkError::AreaFull { area: "log" })
        }
    }
}

/// Looks at every block of all regions for headers of this lane's egroups.
async fn scan(flow: &Flow, place: &LanePlace) -> Result<Scan, DiskError> {
    let mut scan = Scan::default();
    for (number, disk) in (0_u16..).map(DiskNo).zip(&place.disks) {
        if disk.state == DiskState::Out {
            continue;
        }
        for region in 0..count32(disk.regions.len()) {
            if disk.regions.owner(region).is_some_and(|owner| owner != place.log.lane) {
                continue;
            }
            let (first, blocks) = disk.regions.blocks(region);
            let end = first.0 + blocks * u64::from(count32(disk.regions.len()) - region);
            let mut at = 0;
            while at < blocks {
                let count = u32::try_from(blocks - at).unwrap_or(u32::MAX).min(SCAN_BLOCKS);
                let buf = flow.read(disk.at, DiskBlock(first.0 + at), count).await?;
                for (block, bytes) in (first.0 + at..).zip(buf.chunks(BLOCK_BYTES)) {
                    if bytes.starts_with(&Magic::EGROUP.0) {
                        // An egroup may go on in the next region.
                        let room = u32::try_from(end - block).unwrap_or(u32::MAX);
                        take_header(flow, place, number, disk.at, (block, room), &mut scan).await?;
                    }
                }
                at += u64::from(count);
            }
        }
    }
    choose_generations(&Reader::new(flow, place), &mut scan).await;
    // Whose is what, of the newest generations.
    let mut reader = Reader::new(flow, place);
    for (id, egroup) in &scan.egroups {
        let Ok(header) = reader.header(*id, egroup).await else { continue };
        for extent in (0..header.extents()).filter_map(|extent| u16::try_from(extent).ok().map(ExtentNo)) {
            let Some(entry) = header.extent(extent).filter(|entry| entry.blocks > 0) else { continue };
            let (shard, block) = entry.owner();
            match entry.kind {
                KIND_DATA => {
                    let found = Extent { egroup: *id, extent, block: block.0, blocks: entry.blocks };
                    scan.data.entry(shard).or_default().push(found);
                }
                KIND_NODE => scan.nodes.entry(shard).or_default().push((*id, extent)),
                _ => {}
            }
        }
    }
    scan.nodes.values_mut().for_each(|nodes| nodes.sort_by_key(|node| std::cmp::Reverse(*node)));
    Ok(scan)
}

/// Of several generations the newest that is whole: one that was being written when power went may have its header only.
async fn choose_generations(reader: &Reader<'_>, scan: &mut Scan) {
    for (id, mut found) in std::mem::take(&mut scan.found) {
        found.sort_by_key(|egroup| std::cmp::Reverse(egroup.generation));
        let mut chosen = found.first().copied();
        for egroup in found.iter().filter(|_| found.len() > 1) {
            let copies = reader.copies(egroup);
            if rebuild(reader.flow, &reader.owner(), id, egroup, &copies).await.is_ok() {
                chosen = Some(*egroup);
                break;
            }
        }
        scan.egroups.extend(chosen.map(|egroup| (id, egroup)));
    }
}

/// Takes in a header at `block`, where it is one of this lane.
async fn take_header(
    flow: &Flow,
    place: &LanePlace,
    disk: DiskNo,
    at: DiskNo,
    (block, room): (u64, u32),
    scan: &mut Scan,
) -> Result<(), DiskError> {
    let blocks = room.min(count32(EGROUP_HEADER_BLOCKS_MAX));
    let bytes = flow.read(at, DiskBlock(block), blocks).await?;
    let lane = place.log.lane;
    let Ok(prefix) = Prefix::parse(Magic::EGROUP, &bytes) else { return Ok(()) };
    let id = EgroupId(prefix.sequence.get());
    let identity = crate::format::egroup::identity(place.log.pool, u32::from(disk.0), lane, id, block);
    let Ok(header) = take::<EgroupHeader>(&bytes, 0) else { return Ok(()) };
    let generation = Generation(header.generation.get());
    let Ok(part) = HeaderPart::parse(&identity, generation, bytes) else { return Ok(()) };
    let entries = (0..part.extents()).filter_map(|extent| part.extent(ExtentNo(u16::try_from(extent).ok()?)));
    let decoded: u32 = entries.map(|entry| u32::from(entry.blocks)).sum();
    let egroup = Egroup {
        generation,
        disk,
        first: DiskBlock(block),
        blocks: header.blocks.get(),
        header_blocks: header.header_blocks.get(),
        header_crc: part.header_crc(),
        decoded,
        live: u64::from(decoded),
        second: None,
        copies: place.copies,
    };
    if egroup.blocks > room {
        return Ok(());
    }
    let found = scan.found.entry(id).or_default();
    let same = |known: &&mut Egroup| place.copies > 1 && known.generation == generation && known.disk != disk;
    match found.iter_mut().find(same) {
        // Another copy of the same.
        Some(known) => known.second = egroup.places().next(),
        None => found.push(egroup),
    }
    Ok(())
}

/// The newest map of a shard all of which is there. Children are written before their parents, so a root is the last node of its drain.
async fn newest_map(
    reader: &mut Reader<'_>,
    scan: &Scan,
    shard: ShardId,
    walk: &mut Walk,
) -> Option<(Root, u64)> {
    let mut tried = 0;
    let mut egroup = None;
    for (id, extent) in scan.nodes.get(&shard)? {
        // One attempt in each egroup: nodes of one drain follow each other.
        if egroup.replace(*id) == Some(*id) {
            continue;
        }
        tried += 1;
        if tried > 8 {
            return None;
        }
        let at = scan.egroups.get(id)?;
        let Some((node, level)) = reader.any_node(*id, at, *extent).await else { continue };
        let mut quiet = Findings::default();
        let blocks = reader.walk(&scan.egroups, node, "", walk, &mut quiet).await;
        if let (Some(blocks), 0) = (blocks, quiet.count) {
            return Some((Root { node: Some(node), level }, blocks));
        }
    }
    None
}

/// A map of all extents of a shard that are sound, the newer over the older.
async fn map_of_extents(reader: &mut Reader<'_>, scan: &Scan, shard: ShardId) -> Edit {
    let mut edit = Edit::new(Root::default());
    let cache = NodeCache::new(NODES_MIN);
    let mut extents = scan.data.get(&shard).cloned().unwrap_or_default();
    extents.sort_by_key(|extent| (extent.egroup.serial(), extent.extent));
    for extent in extents {
        let Some(egroup) = scan.egroups.get(&extent.egroup) else { continue };
        if !matches!(reader.extent_is_sound(extent.egroup, egroup, extent.extent).await, Ok(true)) {
            continue;
        }
        let (mut block, mut left) = (extent.block, u64::from(extent.blocks));
        let mut target = Target { egroup: extent.egroup, extent: extent.extent, first: 0 };
        while left > 0 {
            // Nothing of it is stored, so no node is missing.
            let Ok(done) = edit.replace(&cache, VBlock(block), left, Some(target)) else { break };
            (block, left) = (block + done, left - done);
            target.first += u8::try_from(done).unwrap_or(0);
        }
    }
    edit
}

/// Writes the nodes of a map into egroups of their own, in space that nothing that was found has.
async fn write_map(
    flow: &Flow,
    place: &LanePlace,
    state: &mut State,
    shard: ShardId,
    edit: Edit,
) -> Result<Root, WorkError> {
    const NODES: u16 = 512;
    let owner = Reader::new(flow, place).owner();
    let (mut next, mut serial) = (0, state.next_egroup);
    let (mut firsts, mut nodes) = (Vec::new(), Vec::new());
    let root = edit.store(
        &mut |first| {
            firsts.push(first);
            let id = EgroupId::new(place.log.lane, serial).unwrap_or_default();
            let node = NodeRef { egroup: id, extent: ExtentNo(next), crc: 0 };
            next += 1;
            if next == NODES {
                (next, serial) = (0, serial + 1);
            }
            (node, owner.node_identity(&node))
        },
        &mut |node, page| nodes.push((node, page)),
    );
    state.next_egroup = serial + 1;
    let mut builder: Option<Builder> = None;
    for ((node, page), first) in nodes.iter().zip(firsts) {
        if let Some(full) = builder.take_if(|builder| builder.id != node.egroup) {
            write_builder(flow, place, state, full).await?;
        }
        let builder = builder.get_or_insert_with(|| Builder::new(node.egroup));
        builder.reserve().await;
        builder.push((shard, first), KIND_NODE, [page.bytes()].into_iter());
    }
    if let Some(last) = builder {
        write_builder(flow, place, state, last).await?;
    }
    Ok(root)
}

async fn write_builder(
    flow: &Flow,
    place: &LanePlace,
    state: &mut State,
    builder: Builder,
) -> Result<(), WorkError> {
    let (id, blocks) = (builder.id, builder.total_blocks() as u64);
    let owner = Reader::new(flow, place).owner();
    let mut spots: Vec<Spot> = Vec::new();
    for _ in 0..place.copies {
        let besides: Vec<DiskNo> = spots.iter().map(|spot| spot.disk).collect();
        let Some((disk, first)) = room_for(place, state, blocks, &besides) else { break };
        let at = place.disks.get(usize::from(disk.0)).map_or(disk, |disk| disk.at);
        spots.push(Spot { disk, at, first });
    }
    if spots.is_empty() {
        return Err(WorkError::NoSpace);
    }
    let (egroup, _) = builder.write(flow, &owner, Generation(1), place.copies, &spots).await?;
    for spot in &spots {
        flow.flush(spot.at).await?;
    }
    state.egroups.insert(id, egroup);
    Ok(())
}

/// Blocks next to each other that no egroup has, in regions that are the lane's or nobody's.
fn room_for(
    place: &LanePlace,
    state: &State,
    blocks: u64,
    besides: &[DiskNo],
) -> Option<(DiskNo, DiskBlock)> {
    let disks = (0_u16..).map(DiskNo).zip(&place.disks);
    for (number, disk) in
        disks.filter(|(number, disk)| disk.state == DiskState::In && !besides.contains(number))
    {
        for region in 0..count32(disk.regions.len()) {
            if disk.regions.owner(region).is_some_and(|owner| owner != place.log.lane) {
                continue;
            }
            let (first, len) = disk.regions.blocks(region);
            let spaces = state.egroups.values().flat_map(|egroup| {
                let of_disk = egroup.places().filter(|place| place.disk == number);
                of_disk.map(|place| (place.first.0, place.first.0 + u64::from(egroup.blocks)))
            });
            let overlaps = |(begin, end): &(u64, u64)| *begin < first.0 + len && *end > first.0;
            let mut taken: Vec<(u64, u64)> = spaces.filter(overlaps).collect();
            taken.sort_unstable();
            taken.push((first.0 + len, first.0 + len));
            let mut from = first.0;
            for (begin, end) in taken {
                if begin >= from + blocks {
                    return Some((number, DiskBlock(from)));
                }
                from = from.max(end);
            }
        }
    }
    None
}

/// The regions that the lane's egroups are in.
fn regions_of(place: &LanePlace, state: &State) -> std::collections::BTreeSet<(DiskNo, u32)> {
    let mut regions = std::collections::BTreeSet::new();
    for (egroup, copy) in
        state.egroups.values().flat_map(|egroup| egroup.places().map(move |copy| (egroup, copy)))
    {
        let Some(disk) = place.disks.get(usize::from(copy.disk.0)) else { continue };
        let overlaps = |region: &u32| {
            let (first, blocks) = disk.regions.blocks(*region);
            copy.first.0 < first.0 + blocks && copy.first.0 + u64::from(egroup.blocks) > first.0
        };
        let found = (0..count32(disk.regions.len())).filter(overlaps);
        regions.extend(found.map(|region| (copy.disk, region)));
    }
    regions
}

/// What is left of a log.
struct LogFound {
    begin: LogPosition,
    end: LogPosition,
    /// Data up to here are in maps.
    drained: u64,
    records: u64,
    newest_egroup: u64,
    ops: Vec<MetaOp>,
    /// Egroups that were written past the log, by the records that tell of them.
    direct: Vec<(Lsn, MetaOp)>,
}

impl LogFound {
    /// Egroups of which the log says where they belong.
    fn undrained(&self) -> std::collections::BTreeSet<EgroupId> {
        let later = self.direct.iter().filter(|(lsn, _)| lsn.0 > self.drained);
        later.map(|(_, op)| EgroupId(op.id.get())).collect()
    }

    /// What the log says of things that are in no egroup.
    fn apply(&self, state: &mut State) {
        // The log puts their blocks on top of the maps: they are needed whatever these say.
        for (_, op) in self.direct.iter().filter(|(lsn, _)| lsn.0 > self.drained) {
            if !state.egroups.contains_key(&EgroupId(op.id.get())) {
                let _applied = state.apply(op);
            }
        }
        for op in &self.ops {
            match op.kind() {
                Ok(MetaKind::Note | MetaKind::NoteDrop) => drop(state.apply(op)),
                Ok(MetaKind::Shard) => drop(state.shards.entry(ShardId(op.id.get())).or_default()),
                Ok(MetaKind::ShardDrop) => drop(state.shards.remove(&ShardId(op.id.get()))),
                _ => {}
            }
        }
    }
}

/// Batches that continue each other up to the newest, each with its block in its segment.
async fn newest_run(flow: &Flow, place: &LanePlace) -> Result<Vec<(BatchHeader, u32)>, DiskError> {
    let log = &place.log;
    let mut batches: BTreeMap<u64, (BatchHeader, u32)> = BTreeMap::new();
    for segment in 0..log.segments {
        for block in 1..log.segment_blocks {
            let at = DiskBlock(
                log.first.0 + u64::from(segment) * u64::from(log.segment_blocks) + u64::from(block),
            );
            let room = (log.segment_blocks - block).min(count32(HEADER_BLOCKS_MAX));
            for home in log.homes.iter() {
                let bytes = flow.read(home, at, room).await?;
                let Ok(header) = BatchHeader::parse(&bytes) else { continue };
                if header.prefix.is_at(&log.identity(Magic::BATCH, at, 0)).is_ok() {
                    batches.insert(header.prefix.sequence.get(), (header, block));
                }
            }
        }
    }
    let mut run: Vec<(BatchHeader, u32)> = Vec::new();
    for (_, (header, block)) in batches.into_iter().rev() {
        let continues = run.last().is_none_or(|(next, _)| {
            next.prefix.sequence.get() == header.prefix.sequence.get() + 1
                && next.chain.get() == header.prefix.crc.get()
        });
        if !continues {
            break;
        }
        run.push((header, block));
    }
    run.reverse();
    Ok(run)
}

/// The newest run of batches that continue each other, to the last one that is whole; or the first that is damaged.
async fn find_log(flow: &Flow, place: &LanePlace) -> Result<Result<LogFound, BatchNo>, DiskError> {
    let log = &place.log;
    let run = newest_run(flow, place).await?;
    let position = |header: &BatchHeader, block: u32| LogPosition {
        segment: SegmentNo(header.segment.get()),
        block,
        batch: BatchNo(header.prefix.sequence.get()),
        lsn: Lsn(header.first_lsn.get()),
        chain: header.chain.get(),
    };
    let Some((first, first_block)) = run.first() else {
        let begin = LogPosition::START;
        return Ok(Ok(LogFound {
            begin,
            end: begin,
            drained: begin.lsn.0 - 1,
            records: 0,
            newest_egroup: 0,
            ops: Vec::new(),
            direct: Vec::new(),
        }));
    };
    let begin = position(first, *first_block);
    let mut found = LogFound {
        begin,
        end: begin,
        drained: begin.lsn.0 - 1,
        records: 0,
        newest_egroup: 0,
        ops: Vec::new(),
        direct: Vec::new(),
    };
    let mut drained = begin.lsn.0 - 1;
    let visit = |lsn: Lsn, header: &RecordHeader, payload: &[u8]| {
        found.records += 1;
        if header.kind() == Ok(RecordKind::Direct) {
            let egroups = super::commit::ops_of(payload).filter(|op| op.kind() == Ok(MetaKind::Egroup));
            found.direct.extend(egroups.map(|op| (lsn, op)));
        }
        if header.kind() != Ok(RecordKind::Meta) {
            return;
        }
        for op in super::commit::ops_of(payload) {
            match op.kind() {
                Ok(MetaKind::Egroup) => {
                    found.newest_egroup = found.newest_egroup.max(EgroupId(op.id.get()).serial());
                }
                Ok(MetaKind::Drained) => drained = drained.max(op.a.get()),
                _ => {}
            }
            found.ops.push(op);
        }
    };
    match crate::log::replay(flow, log, begin, Lsn(0), visit).await {
        Ok(end) => {
            found.end = end.position;
            found.drained = drained;
            // The maps have what was drained; the room of that in the log is needed.
            let needed = run.iter().rev().find(|(header, _)| header.first_lsn.get() <= drained + 1);
            if let Some((header, block)) = needed {
                found.begin = position(header, *block);
            }
            Ok(Ok(found))
        }
        Err(ReplayError::Disk(error)) => Err(error),
        Err(ReplayError::Damaged { batch, .. }) => Ok(Err(batch)),
        Err(ReplayError::Format { .. }) => Ok(Err(begin.batch)),
    }
}

/// Cuts a log off before a batch: that one and all later ones are no batches any more.
pub(crate) async fn cut_log(flow: &Flow, place: &LanePlace, batch: BatchNo) -> Result<(), DiskError> {
    let log = &place.log;
    for home in log.homes.iter() {
        for block in 0..u64::from(log.segments) * u64::from(log.segment_blocks) {
            let at = DiskBlock(log.first.0 + block);
            let mut bytes = flow.read(home, at, 1).await?;
            let later = take::<Prefix>(&bytes, 0).is_ok_and(|prefix| {
                prefix.magic == Magic::BATCH.0
                    && prefix.sequence.get() >= batch.0
                    && prefix.address.get() == at.0
            });
            if later {
                bytes.fill(0);
                flow.write(home, at, bytes).await?;
            }
        }
        flow.flush(home).await?;
    }
    Ok(())
}
