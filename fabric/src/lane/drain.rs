//! Draining: the oldest frozen table into egroups and maps, and the record that makes it so.
//!
//! Nothing that is written here is referred to before that record; when something fails on the way, the space is given back
//! and the table stays.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use penstock_reactor::mem::Buf;
use zerocopy::little_endian::U64;

use super::table::{Cell, ZeroRange};
use super::{Core, Lane, WorkError};
use crate::codec::Codec;
use crate::egroup::{Builder, Header, Piece, ReadError, piece, read_header, read_piece};
use crate::format::checkpoint::{MetaKind, MetaOp};
use crate::format::egroup::{KIND_DATA, KIND_NODE};
use crate::id::{BLOCK_BYTES, DiskNo, EgroupId, ExtentNo, Generation, Lsn, ShardId, VBlock};
use crate::map::{Edit, Miss, NodeRef, Page, Root, Target};
use crate::state::{Egroup, Place, egroup_op, shard_op, snapshot_op};

/// Nodes of one egroup at most; the header part of so many extents leaves room for them.
const NODES_PER_EGROUP: u16 = 1000;

/// Blocks that are zeroed on a full disk before the next attempt to free them, at most.
const ZEROES_WANTED_MAX: u64 = 1024;

/// What a drain has made so far.
pub(super) struct Drain {
    data: Option<Builder>,
    nodes: Option<Builder>,
    /// Where the next node goes.
    next_node: (EgroupId, u16),
    pub(super) written: Vec<(EgroupId, Egroup)>,
    pages: Vec<(NodeRef, Page)>,
    maps: Vec<NewMap>,
}

/// A map that a drain has made.
struct NewMap {
    shard: ShardId,
    /// How often the shard had been reverted when this began.
    reverts: u64,
    root: Root,
    /// The change of the number of mapped blocks.
    mapped: i64,
    /// What it does not refer to any more and nobody else does.
    dead: BTreeMap<EgroupId, u64>,
    /// What it refers to of egroups that were written past the log.
    stored: BTreeMap<EgroupId, u64>,
}

/// The space of an egroup is not given to anybody else while this lives.
pub(super) struct Pin<'a>(&'a Lane, EgroupId);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.0.borrow_mut().unpin(self.1);
    }
}

/// What is to be drained of one shard.
struct Work {
    shard: ShardId,
    ranges: Vec<ZeroRange>,
    cells: Vec<(u64, Cell)>,
}

/// All that is to be drained of a table.
struct TableWork {
    work: Vec<Work>,
    /// The last LSN in it.
    end: Lsn,
    /// The snapshots that were taken behind that.
    snapshots: Vec<(ShardId, u64)>,
    /// Egroups whose blocks came as they are.
    direct: Vec<EgroupId>,
}

impl Lane {
    /// Drains the oldest frozen table, if there is one. Returns whether there was.
    pub(super) async fn drain(&self) -> Result<bool, WorkError> {
        let Some(TableWork { work, end, snapshots, direct }) = self.0.borrow().oldest_table() else {
            return Ok(false);
        };
        let mut drain = Drain::new();
        let outcome = self.drain_all(&mut drain, work).await;
        if let Err(error) = outcome {
            self.0.borrow_mut().give_up(&drain);
            return Err(error);
        }
        let turn = self.lock().await;
        let ops = self.0.borrow().drain_ops(&drain, end, &snapshots, &direct);
        if let Err(error) = self.commit(&turn, ops).await {
            // Where the record was not even appended, nobody will refer to what was written. Else it is unknown whether it is
            // durable: the space stays taken until the lane is opened again.
            if matches!(error, WorkError::AreaFull { .. }) {
                self.0.borrow_mut().give_up(&drain);
            }
            return Err(error);
        }
        let mut core = self.0.borrow_mut();
        core.tables.pop_drained();
        for (node, page) in drain.pages {
            core.nodes.insert(node.key(), page);
        }
        core.wake();
        Ok(true)
    }

    /// Applies zeroes to the maps ahead of the data before them, when there is no room for those: the space is what the data
    /// need. Tables shadow the maps, so nobody sees a difference; what a snapshot will be made of is left alone.
    pub(super) async fn drain_zeroes(&self) -> Result<(), WorkError> {
        let work = {
            let mut core = self.0.borrow_mut();
            core.zeroed_blocks = 0;
            core.zeroes_wanted = (core.zeroes_wanted * 2).min(ZEROES_WANTED_MAX);
            core.all_zeroes()
        };
        if work.is_empty() {
            return Ok(());
        }
        let mut drain = Drain::new();
        let outcome = self.drain_all(&mut drain, work).await;
        if let Err(error) = outcome {
            self.0.borrow_mut().give_up(&drain);
            return Err(error);
        }
        let turn = self.lock().await;
        let ops = self.0.borrow().drain_ops(&drain, Lsn(0), &[], &[]);
        self.commit(&turn, ops).await?;
        let mut core = self.0.borrow_mut();
        for (node, page) in drain.pages {
            core.nodes.insert(node.key(), page);
        }
        Ok(())
    }

    async fn drain_all(&self, drain: &mut Drain, work: Vec<Work>) -> Result<(), WorkError> {
        for work in work {
            self.drain_shard(drain, work).await?;
        }
        for (builder, for_state) in [(drain.data.take(), false), (drain.nodes.take(), true)] {
            if let Some(builder) = builder {
                self.write_egroup(drain, builder, for_state).await?;
            }
        }
        self.flush(drain).await
    }

    /// Makes durable what was written. What a disk does not keep is on another one only.
    pub(super) async fn flush(&self, drain: &mut Drain) -> Result<(), WorkError> {
        let disks: BTreeSet<DiskNo> =
            drain.written.iter().flat_map(|(_, egroup)| egroup.places()).map(|place| place.disk).collect();
        for disk in disks {
            let at = self.0.borrow().at(disk);
            let flushed = self.1.flush(at).await;
            let Err(error) = flushed else { continue };
            let mut core = self.0.borrow_mut();
            for (_, egroup) in &mut drain.written {
                let kept: Vec<Place> = egroup.places().filter(|place| place.disk != disk).collect();
                let Some(kept) = egroup.with_places(&kept) else {
                    core.log.fail(error.status);
                    return Err(error.into());
                };
                *egroup = kept;
            }
            core.suspect(disk);
            core.repair.restart();
        }
        Ok(())
    }

    async fn drain_shard(&self, drain: &mut Drain, work: Work) -> Result<(), WorkError> {
        let found = {
            let core = self.0.borrow();
            let reverts = core.reverts.get(&work.shard).copied().unwrap_or(0);
            core.state.shards.get(&work.shard).map(|shard| (shard.root, shard.alone_from, reverts))
        };
        // Deleted meanwhile.
        let Some((root, alone_from, reverts)) = found else { return Ok(()) };
        let mut edit = Edit::new(root);
        for range in &work.ranges {
            self.replace(&mut edit, range.first, range.end - range.first, None).await?;
        }
        let mut cells = work.cells.as_slice();
        let mut all_stored: BTreeMap<EgroupId, u64> = BTreeMap::new();
        while let Some((block, cell)) = cells.first().copied() {
            let (run, stored) = self.0.borrow().tables.arena.run_of(cells);
            let (now, later) = cells.split_at(run);
            cells = later;
            let target = match (cell.slot, stored) {
                (None, _) => None,
                (Some(_), None) => Some(self.add_extent(drain, work.shard, block, now).await?),
                (Some(_), Some(target)) => {
                    *all_stored.entry(target.egroup).or_insert(0) += run as u64;
                    self.breathe(1).await;
                    Some(target)
                }
            };
            self.replace(&mut edit, block, run as u64, target).await?;
        }
        let mut dead = BTreeMap::new();
        for one in edit.take_dead().into_iter().filter(|one| one.egroup.serial() >= alone_from) {
            *dead.entry(one.egroup).or_insert(0) += one.blocks;
        }
        let mapped = edit.mapped();
        let root = self.store_map(drain, work.shard, edit).await?;
        drain.maps.push(NewMap { shard: work.shard, reverts, root, mapped, dead, stored: all_stored });
        Ok(())
    }

    async fn add_extent(
        &self,
        drain: &mut Drain,
        shard: ShardId,
        block: u64,
        cells: &[(u64, Cell)],
    ) -> Result<Target, WorkError> {
        if drain.data.as_ref().is_some_and(|builder| !builder.has_room(cells.len()))
            && let Some(full) = drain.data.take()
        {
            self.write_egroup(drain, full, false).await?;
        }
        let mut builder = match drain.data.take() {
            Some(builder) => builder,
            None => Builder::new(self.next_egroup()?),
        };
        let target = Target { egroup: builder.id, extent: builder.next_extent(), first: 0 };
        builder.reserve().await;
        self.0.borrow_mut().push_cells(&mut builder, (shard, VBlock(block)), cells);
        drain.data = Some(builder);
        self.breathe(cells.len()).await;
        Ok(target)
    }

    /// Changes a map, reading the nodes that are missing.
    async fn replace(
        &self,
        edit: &mut Edit,
        mut block: u64,
        mut blocks: u64,
        mut target: Option<Target>,
    ) -> Result<(), WorkError> {
        while blocks > 0 {
            let outcome = edit.replace(&self.0.borrow().nodes, VBlock(block), blocks, target);
            match outcome {
                Err(Miss(node)) => drop(self.node(node).await?),
                Ok(done) => {
                    (block, blocks) = (block + done, blocks - done);
                    if let Some(target) = &mut target {
                        target.first += u8::try_from(done).unwrap_or(0);
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps the space of an egroup for as long as the guard lives.
    pub(super) fn pinned(&self, id: EgroupId) -> Pin<'_> {
        self.0.borrow_mut().pin(id);
        Pin(self, id)
    }

    /// Reads a node into the cache.
    pub(super) async fn node(&self, node: NodeRef) -> Result<Page, ReadError> {
        let missing = ReadError::Missing { id: node.egroup, extent: node.extent };
        let (owner, egroup) = {
            let core = self.0.borrow();
            (core.owner, core.state.egroups.get(&node.egroup).copied().ok_or(missing)?)
        };
        let _pin = self.pinned(node.egroup);
        let header = self.header(node.egroup, &egroup).await?;
        let (_, bytes) = self.extent(node.egroup, &egroup, &header, node.extent, 1).await?;
        let damaged = |_| ReadError::Checksum { id: node.egroup, extent: node.extent };
        let page = Page::parse(&owner.node_identity(&node), node.crc, &bytes).map_err(damaged)?;
        self.0.borrow_mut().nodes.insert(node.key(), page.clone());
        Ok(page)
    }

    /// The header part of an egroup, by way of the cache, of a copy that is sound.
    pub(super) async fn header(&self, id: EgroupId, egroup: &Egroup) -> Result<Rc<Header>, ReadError> {
        let (owner, copies, cached) = {
            let core = self.0.borrow();
            (core.owner, core.live(egroup), core.cached_header(id, egroup.generation))
        };
        if let Some(header) = cached {
            return Ok(header);
        }
        let _pin = self.pinned(id);
        let (mut why, mut bad) = (ReadError::Missing { id, extent: ExtentNo(0) }, Vec::new());
        for (place, at) in copies {
            match read_header(&self.1, &owner, id, &egroup.seen_at(place), at).await {
                Ok(header) => {
                    let header = Rc::new(header);
                    let mut core = self.0.borrow_mut();
                    core.headers.insert(id, (egroup.generation, Rc::clone(&header)));
                    bad.into_iter().for_each(|disk| core.note_bad(id, disk));
                    return Ok(header);
                }
                Err(error) => {
                    why = error;
                    bad.push(place.disk);
                }
            }
        }
        Err(why)
    }

    /// The first `blocks` blocks of an extent, as they are stored, of a copy that is sound.
    pub(super) async fn extent(
        &self,
        id: EgroupId,
        egroup: &Egroup,
        header: &Header,
        extent: ExtentNo,
        blocks: u64,
    ) -> Result<(Piece, Buf), ReadError> {
        let copies = self.0.borrow().live(egroup);
        let (mut why, mut bad) = (ReadError::Missing { id, extent }, Vec::new());
        for (place, at) in copies {
            let Some(piece) = piece(&egroup.seen_at(place), header, extent, 0, blocks) else { break };
            match read_piece(&self.1, id, header, extent, &piece, at).await {
                Ok(bytes) => {
                    let mut core = self.0.borrow_mut();
                    bad.into_iter().for_each(|disk| core.note_bad(id, disk));
                    return Ok((piece, bytes));
                }
                Err(error) => {
                    why = error;
                    bad.push(place.disk);
                }
            }
        }
        Err(why)
    }

    /// Gives the changed nodes of a map their places and puts them into egroups.
    async fn store_map(&self, drain: &mut Drain, shard: ShardId, edit: Edit) -> Result<Root, WorkError> {
        // The places first, as many as there are: they are numbers only.
        let mut places = Vec::with_capacity(edit.dirty());
        for _ in 0..edit.dirty() {
            if drain.next_node.1 == 0 {
                drain.next_node.0 = self.next_egroup()?;
            }
            places.push(NodeRef { egroup: drain.next_node.0, extent: ExtentNo(drain.next_node.1), crc: 0 });
            drain.next_node.1 = (drain.next_node.1 + 1) % NODES_PER_EGROUP;
        }
        let owner = self.0.borrow().owner;
        let mut places = places.into_iter();
        let (mut firsts, mut made) = (Vec::new(), Vec::new());
        let root = edit.store(
            &mut |first| {
                let Some(node) = places.next() else { panic!("a map has more changed nodes than it said") };
                firsts.push(first);
                (node, owner.node_identity(&node))
            },
            &mut |node, page| made.push((node, page)),
        );
        assert!(places.next().is_none(), "a map has fewer changed nodes than it said");
        for ((node, page), first) in made.into_iter().zip(firsts) {
            self.add_node(drain, shard, first, &node, &page).await?;
            drain.pages.push((node, page));
        }
        Ok(root)
    }

    async fn add_node(
        &self,
        drain: &mut Drain,
        shard: ShardId,
        first: VBlock,
        node: &NodeRef,
        page: &Page,
    ) -> Result<(), WorkError> {
        if drain.nodes.as_ref().is_some_and(|builder| builder.id != node.egroup)
            && let Some(full) = drain.nodes.take()
        {
            self.write_egroup(drain, full, true).await?;
        }
        let builder = drain.nodes.get_or_insert_with(|| Builder::new(node.egroup));
        assert_eq!(builder.next_extent(), node.extent, "a node gets another place than it was given");
        builder.reserve().await;
        builder.push((shard, first), KIND_NODE, [page.bytes()].into_iter());
        Ok(())
    }

    async fn write_egroup(
        &self,
        drain: &mut Drain,
        builder: Builder,
        for_state: bool,
    ) -> Result<(), WorkError> {
        self.write_generation(drain, builder, Generation(1), for_state).await
    }

    /// Writes a generation of an egroup to new space.
    pub(super) async fn write_generation(
        &self,
        drain: &mut Drain,
        builder: Builder,
        generation: Generation,
        for_state: bool,
    ) -> Result<(), WorkError> {
        let (id, blocks) = (builder.id, builder.total_blocks());
        let (spots, copies, owner) = {
            let mut core = self.0.borrow_mut();
            let wanted = core.copies_now();
            let spots = core.take_space(id, blocks as u64, for_state, wanted, &[]);
            (spots.ok_or(WorkError::NoSpace)?, core.place.copies, core.owner)
        };
        let written = builder.write(&self.1, &owner, generation, copies, &spots).await;
        let mut core = self.0.borrow_mut();
        match written {
            Ok((egroup, failures)) => {
                let on = |at: DiskNo| spots.iter().find(|spot| spot.at == at).map(|spot| spot.disk);
                for disk in failures.iter().filter_map(|failure| on(failure.disk)) {
                    core.suspect(disk);
                    core.repair.restart();
                }
                drain.written.push((id, egroup));
                Ok(())
            }
            Err(error) => {
                core.log.fail(error.status);
                Err(error.into())
            }
        }
    }

    fn next_egroup(&self) -> Result<EgroupId, WorkError> {
        let mut core = self.0.borrow_mut();
        let id = EgroupId::new(core.owner.lane, core.state.next_egroup)
            .ok_or(WorkError::AreaFull { area: "index" })?;
        // So many that every one is in the next checkpoint.
        if core.state.egroups.len() as u64 >= core.ops_max() {
            return Err(WorkError::AreaFull { area: "index" });
        }
        core.state.next_egroup += 1;
        Ok(id)
    }
}

impl Drain {
    pub(super) fn new() -> Self {
        Self {
            data: None,
            nodes: None,
            next_node: (EgroupId::NONE, 0),
            written: Vec::new(),
            pages: Vec::new(),
            maps: Vec::new(),
        }
    }
}

impl Core {
    /// Adds blocks to an egroup, encoded where the shard wants it and it pays.
    fn push_cells(&mut self, builder: &mut Builder, owner: (ShardId, VBlock), cells: &[(u64, Cell)]) {
        let arena = &self.tables.arena;
        let blocks = cells.iter().map(|(_, cell)| cell.slot.map_or(&[][..], |slot| arena.block(slot)));
        let policy = self.policies.get(&owner.0).copied().unwrap_or_default();
        let coder = self.coder.as_mut().filter(|_| policy.compression.inline);
        if let Some(coder) = coder.filter(|_| policy.compression.codec != Codec::Raw) {
            let len = cells.len() * BLOCK_BYTES;
            for (room, bytes) in coder.input(len).chunks_exact_mut(BLOCK_BYTES).zip(blocks.clone()) {
                room.copy_from_slice(bytes);
            }
            if let Some(stored) = coder.encode(policy.compression.codec, len) {
                return builder.push_coded(owner, policy.compression.codec, cells.len(), stored);
            }
        }
        builder.push(owner, KIND_DATA, blocks);
    }

    /// The header part of that generation, if it is in memory.
    pub(super) fn cached_header(&self, id: EgroupId, generation: Generation) -> Option<Rc<Header>> {
        let (of, header) = self.headers.get(&id)?;
        (*of == generation).then(|| Rc::clone(header))
    }

    fn oldest_table(&self) -> Option<TableWork> {
        let table = self.tables.frozen.front()?;
        let mut work: BTreeMap<ShardId, Work> = BTreeMap::new();
        for range in table.ranges() {
            entry(&mut work, range.shard).ranges.push(*range);
        }
        for (shard, block, cell) in table.sorted() {
            entry(&mut work, shard).cells.push((block, cell));
        }
        let (snapshots, direct) = (table.snapshots.clone(), table.direct().collect());
        Some(TableWork { work: work.into_values().collect(), end: table.end, snapshots, direct })
    }

    /// The zeroes of all tables up to the first snapshot.
    fn all_zeroes(&self) -> Vec<Work> {
        let mut work: BTreeMap<ShardId, Work> = BTreeMap::new();
        for table in self.tables.frozen.iter().chain([&self.tables.active]) {
            for range in table.ranges() {
                entry(&mut work, range.shard).ranges.push(*range);
            }
            for (shard, block, cell) in table.sorted().into_iter().filter(|(_, _, cell)| cell.slot.is_none())
            {
                entry(&mut work, shard).cells.push((block, cell));
            }
            if !table.snapshots.is_empty() {
                break;
            }
        }
        work.into_values().collect()
    }

    /// Gives the space back of a drain that did not come to its end.
    pub(super) fn give_up(&mut self, drain: &Drain) {
        for (id, egroup) in &drain.written {
            self.release(*id, egroup.space());
        }
    }

    fn drain_ops(
        &self,
        drain: &Drain,
        end: Lsn,
        snapshots: &[(ShardId, u64)],
        direct: &[EgroupId],
    ) -> Vec<MetaOp> {
        let mut ops: Vec<MetaOp> = drain.written.iter().map(|(id, egroup)| egroup_op(*id, egroup)).collect();
        // What a revert has made void meanwhile is garbage, and what it replaced is not.
        let valid = |map: &&NewMap| map.reverts == self.reverts.get(&map.shard).copied().unwrap_or(0);
        let mut dead: BTreeMap<EgroupId, u64> = BTreeMap::new();
        for (id, blocks) in drain.maps.iter().filter(valid).flat_map(|map| &map.dead) {
            *dead.entry(*id).or_insert(0) += blocks;
        }
        for (id, dead) in &dead {
            let Some(egroup) = self.state.egroups.get(id) else { continue };
            assert!(
                egroup.live >= *dead,
                "egroup {id} has {} live blocks, and {dead} of them die",
                egroup.live
            );
            let live = egroup.live - dead;
            ops.push(match live {
                0 => MetaOp::of(MetaKind::EgroupDrop, id.0),
                _ => MetaOp { c: U64::new(live), ..MetaOp::of(MetaKind::EgroupLive, id.0) },
            });
        }
        ops.extend(self.direct_ops(direct, drain.maps.iter().filter(valid).map(|map| &map.stored)));
        let mut shards: BTreeMap<ShardId, (Root, i64)> = BTreeMap::new();
        for map in drain.maps.iter().filter(valid) {
            shards.insert(map.shard, (map.root, map.mapped));
        }
        for (id, _) in snapshots {
            if let Some(shard) = self.state.shards.get(id) {
                shards.entry(*id).or_insert((shard.root, 0));
            }
        }
        for (id, (root, mapped)) in shards {
            // Deleted meanwhile: what was drained of it is garbage.
            let Some(shard) = self.state.shards.get(&id) else { continue };
            let mapped = shard.mapped.saturating_add_signed(mapped);
            let mut alone_from = shard.alone_from;
            for (_, number) in snapshots.iter().filter(|(of, _)| *of == id) {
                if shard.snapshots.contains_key(number) {
                    ops.push(snapshot_op(id, *number, root, mapped));
                    // From here on the snapshot shares all that there is.
                    alone_from = self.state.next_egroup;
                }
            }
            ops.push(shard_op(id, root, mapped, alone_from));
        }
        if end > Lsn(0) {
            ops.push(MetaOp { a: U64::new(end.0), ..MetaOp::of(MetaKind::Drained, 0) });
        }
        ops
    }

    /// What is needed of egroups that were written past the log, now that maps refer to them.
    fn direct_ops<'a>(
        &self,
        direct: &[EgroupId],
        stored: impl Iterator<Item = &'a BTreeMap<EgroupId, u64>>,
    ) -> Vec<MetaOp> {
        let mut live: BTreeMap<EgroupId, u64> = direct.iter().map(|id| (*id, 0)).collect();
        for (id, blocks) in stored.flatten() {
            *live.entry(*id).or_insert(0) += blocks;
        }
        let known = live.iter().filter_map(|(id, live)| Some((id, *live, self.state.egroups.get(id)?)));
        let changed = known.filter(|(_, live, egroup)| egroup.live != *live);
        let op = |(id, live, _): (&EgroupId, u64, &Egroup)| match live {
            0 => MetaOp::of(MetaKind::EgroupDrop, id.0),
            _ => MetaOp { c: U64::new(live), ..MetaOp::of(MetaKind::EgroupLive, id.0) },
        };
        changed.map(op).collect()
    }

    /// Ops that a checkpoint has room for.
    pub(super) fn ops_max(&self) -> u64 {
        let blocks = u64::from(self.place.checkpoint_blocks()) - 1;
        // Regions, shards and snapshots need some of it.
        blocks * 64 / 8 * 7
    }
}

fn entry(work: &mut BTreeMap<ShardId, Work>, shard: ShardId) -> &mut Work {
    work.entry(shard).or_insert_with(|| Work { shard, ranges: Vec::new(), cells: Vec::new() })
}
