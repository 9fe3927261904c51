//! Checking a lane without opening it: nothing is written, everything is looked at.

use std::collections::{BTreeMap, BTreeSet};

use penstock_reactor::mem::Buf;

use super::checkpoint::{self, Checkpoint};
use super::open::Recovery;
use super::{LaneError, LaneOptions, LanePlace, Owner};
use crate::codec::{Codec, Coder};
use crate::egroup::{Header, ReadError, Spot, piece, read_header, read_piece, rebuild, verify};
use crate::flow::{DiskError, Flow};
use crate::format::egroup::{KIND_DATA, KIND_NODE};
use crate::format::superblock::DiskState;
use crate::format::{Magic, Prefix};
use crate::fsck::{Finding, Findings};
use crate::id::{BLOCK_BYTES, DiskNo, EgroupId, ExtentNo, ShardId, VBlock};
use crate::map::{NodeRef, Page};
use crate::state::{Egroup, Place, State};

/// What an offline look at a lane needs.
pub(crate) struct Reader<'a> {
    pub(crate) flow: &'a Flow,
    pub(crate) place: &'a LanePlace,
    headers: BTreeMap<EgroupId, Header>,
    coder: Coder,
}

/// What one map refers to.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Blocks of extents, and nodes, that were reached.
    pub(crate) marks: BTreeMap<(EgroupId, ExtentNo), u16>,
    /// Nodes that were looked at, with the blocks that the map below them has; `None`: something is missing there.
    nodes: BTreeMap<(EgroupId, ExtentNo), Option<u64>>,
}

/// A lane as its checkpoint and log have it.
pub(crate) struct Found {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) state: State,
    pub(crate) damaged_checkpoints: usize,
    pub(crate) torn: bool,
    pub(crate) records: u64,
    /// Egroups that no map refers to yet: the log does.
    pub(crate) undrained: BTreeSet<EgroupId>,
    /// Batches and checkpoints that are on one of several homes only.
    pub(crate) single: usize,
}

/// Reads checkpoint and log.
///
/// # Errors
/// [`LaneError`], as opening it would.
pub(crate) async fn find(flow: &Flow, place: &LanePlace) -> Result<Found, LaneError> {
    let checkpoint::FoundCheckpoint { newest, damaged: damaged_checkpoints, lacking } =
        checkpoint::read(flow, place).await?;
    let lane = place.log.lane;
    let checkpoint = newest.ok_or(LaneError::NoCheckpoint { lane, damaged: damaged_checkpoints })?;
    let (recovery, end) = Recovery::run(flow, place, &LaneOptions::default(), &checkpoint).await?;
    let undrained = recovery.undrained();
    let (state, records) = recovery.into_state();
    let single = end.lacking.len() + lacking.len();
    Ok(Found { checkpoint, state, damaged_checkpoints, torn: end.torn, records, undrained, single })
}

/// Writes the state as two new checkpoints, so that both slots are sound.
///
/// # Errors
/// What the disk says.
pub(crate) async fn write_state(
    flow: &Flow,
    place: &LanePlace,
    base: &Checkpoint,
    state: &State,
) -> Result<(), DiskError> {
    for more in 1..=2 {
        let checkpoint = Checkpoint {
            number: base.number + more,
            ops: state.to_ops(),
            state_lsn: state.lsn,
            drained: state.drained,
            replay_from: base.replay_from,
            next_egroup: state.next_egroup,
        };
        checkpoint::write(flow, place, &checkpoint).await?;
    }
    Ok(())
}

impl<'a> Reader<'a> {
    pub(crate) fn new(flow: &'a Flow, place: &'a LanePlace) -> Self {
        Self { flow, place, headers: BTreeMap::new(), coder: Coder::new() }
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner { pool: self.place.log.pool, lane: self.place.log.lane }
    }

    /// The copies of an egroup that are there, with where their disks are plugged in.
    pub(crate) fn copies(&self, egroup: &Egroup) -> Vec<(Place, DiskNo)> {
        let disks = &self.place.disks;
        let there = |place: Place| {
            let disk = disks.get(usize::from(place.disk.0)).filter(|disk| disk.state != DiskState::Out);
            disk.map(|disk| (place, disk.at))
        };
        egroup.places().filter_map(there).collect()
    }

    pub(crate) async fn header(&mut self, id: EgroupId, egroup: &Egroup) -> Result<&Header, ReadError> {
        let missing = ReadError::Missing { id, extent: ExtentNo(0) };
        if !self.headers.contains_key(&id) {
            let mut why = missing;
            for (place, at) in self.copies(egroup) {
                match read_header(self.flow, &self.owner(), id, &egroup.seen_at(place), at).await {
                    Ok(header) => {
                        self.headers.insert(id, header);
                        break;
                    }
                    Err(error) => why = error,
                }
            }
            return self.headers.get(&id).ok_or(why);
        }
        self.headers.get(&id).ok_or(missing)
    }

    /// The first blocks of an extent, as they are stored, of any copy that is sound.
    async fn extent(
        &mut self,
        id: EgroupId,
        egroup: &Egroup,
        extent: ExtentNo,
        blocks: u64,
    ) -> Result<Buf, ReadError> {
        let (flow, copies) = (self.flow, self.copies(egroup));
        let header = self.header(id, egroup).await?;
        let mut why = ReadError::Missing { id, extent };
        for (place, at) in copies {
            let Some(piece) = piece(&egroup.seen_at(place), header, extent, 0, blocks) else { break };
            match read_piece(flow, id, header, extent, &piece, at).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Reads a node that a map refers to.
    pub(crate) async fn node(
        &mut self,
        egroups: &BTreeMap<EgroupId, Egroup>,
        node: NodeRef,
    ) -> Result<Page, ReadError> {
        let missing = ReadError::Missing { id: node.egroup, extent: node.extent };
        let egroup = *egroups.get(&node.egroup).ok_or(missing)?;
        let bytes = self.extent(node.egroup, &egroup, node.extent, 1).await?;
        let damaged = |_| ReadError::Checksum { id: node.egroup, extent: node.extent };
        Page::parse(&self.owner().node_identity(&node), node.crc, &bytes).map_err(damaged)
    }

    /// A node of which nobody says what it must be, with its level.
    pub(crate) async fn any_node(
        &mut self,
        id: EgroupId,
        egroup: &Egroup,
        extent: ExtentNo,
    ) -> Option<(NodeRef, u8)> {
        let bytes = self.extent(id, egroup, extent, 1).await.ok()?;
        let crc = Prefix::parse(Magic::NODE, &bytes).ok()?.crc.get();
        let node = NodeRef { egroup: id, extent, crc };
        let page = Page::parse(&self.owner().node_identity(&node), crc, &bytes).ok()?;
        Some((node, page.level()))
    }

    /// Whether an extent of some copy is sound: its blocks fit their checksums and can be decoded.
    pub(crate) async fn extent_is_sound(
        &mut self,
        id: EgroupId,
        egroup: &Egroup,
        extent: ExtentNo,
    ) -> Result<bool, ReadError> {
        let mut outcome = Err(ReadError::Missing { id, extent });
        for (place, at) in self.copies(egroup) {
            outcome = self.copy_is_sound(id, &egroup.seen_at(place), extent, at).await;
            if outcome == Ok(true) {
                break;
            }
        }
        outcome
    }

    /// The same of one copy.
    async fn copy_is_sound(
        &mut self,
        id: EgroupId,
        egroup: &Egroup,
        extent: ExtentNo,
        at: DiskNo,
    ) -> Result<bool, ReadError> {
        let flow = self.flow;
        let header = self.header(id, egroup).await?;
        let missing = ReadError::Missing { id, extent };
        let entry = header.extent(extent).ok_or(missing)?;
        if entry.blocks == 0 {
            return Ok(true);
        }
        let whole = piece(egroup, header, extent, 0, u64::from(entry.blocks)).ok_or(missing)?;
        let bytes = flow
            .read(at, whole.at, whole.disk_blocks)
            .await
            .map_err(|source| ReadError::Disk { id, source })?;
        if !verify(header, &whole, &bytes) {
            return Ok(false);
        }
        let len = usize::from(entry.blocks) * BLOCK_BYTES;
        let stored = whole.stored(&bytes).unwrap_or_default();
        Ok(whole.codec() == Codec::Raw || self.coder.decode(whole.codec(), stored, len).is_some())
    }

    /// Looks at every copy of an egroup that has several, and writes those again that are bad when `repair` is wanted.
    ///
    /// # Errors
    /// What a disk says that is written to.
    pub(crate) async fn check_copies(
        &mut self,
        id: EgroupId,
        egroup: &Egroup,
        repair: bool,
        findings: &mut Findings,
    ) -> Result<(), DiskError> {
        let (flow, owner, copies) = (self.flow, self.owner(), self.copies(egroup));
        if copies.len() < 2 {
            return Ok(());
        }
        // What is whole in no copy has been told already.
        let Ok((builder, bad)) = rebuild(flow, &owner, id, egroup, &copies).await else { return Ok(()) };
        let bad: Vec<(Place, DiskNo)> =
            bad.into_iter().filter_map(|number| copies.get(number).copied()).collect();
        let spot = |(place, at): &(Place, DiskNo)| Spot { disk: place.disk, at: *at, first: place.first };
        let spots: Vec<Spot> = bad.iter().map(spot).collect();
        if spots.is_empty() {
            return Ok(());
        }
        for spot in &spots {
            let (disk, block) = (spot.disk.0, spot.first.0);
            let mut finding = Finding::repairable(
                format!("egroup {id}: its copy at block {block} of disk {disk} is damaged"),
                "another copy has everything",
                "a repair writes it again; so does a read of it, or a scrub",
            );
            finding.repaired = repair;
            findings.add(finding);
        }
        if repair {
            let (_, failures) = builder.write(flow, &owner, egroup.generation, egroup.copies, &spots).await?;
            failures.first().map_or(Ok(()), |error| Err(*error))?;
            for spot in &spots {
                flow.flush(spot.at).await?;
            }
        }
        Ok(())
    }

    /// Looks at all extents of an egroup.
    pub(crate) async fn check_egroup(&mut self, id: EgroupId, egroup: &Egroup, findings: &mut Findings) {
        let count = match self.header(id, egroup).await {
            Ok(header) => header.extents(),
            Err(error) => {
                return findings.add(Finding::damage(
                    error.to_string(),
                    "everything in this egroup is unreadable",
                    "take it from a replica or a backup; penstock rescue brings back what else is whole",
                ));
            }
        };
        for extent in (0..count).filter_map(|extent| u16::try_from(extent).ok().map(ExtentNo)) {
            let sound = self.extent_is_sound(id, egroup, extent).await;
            if !matches!(sound, Ok(true)) {
                let entry = self.headers.get(&id).and_then(|header| header.extent(extent));
                let whose = entry.map_or_else(String::new, |entry| {
                    let (shard, block) = entry.owner();
                    let what = if entry.kind == KIND_NODE { "a node of the map" } else { "data" };
                    format!(": {what} of shard {shard}, {} blocks from {}", entry.blocks, block.0)
                });
                let why =
                    sound.err().map_or_else(|| "does not fit its checksum".into(), |error| error.to_string());
                findings.add(Finding::damage(
                    format!("egroup {id}, extent {}{whose}: {why}", extent.0),
                    "reads of these blocks end with a checksum error; nothing else is touched",
                    "write the blocks again, or take them from a replica or a backup",
                ));
            }
        }
    }

    /// Goes through a map; returns how many blocks it has, `None` where a part of it is missing.
    pub(crate) async fn walk(
        &mut self,
        egroups: &BTreeMap<EgroupId, Egroup>,
        root: NodeRef,
        of: &str,
        walk: &mut Walk,
        findings: &mut Findings,
    ) -> Option<u64> {
        // Children before parents, each node once: first down, then up.
        let mut order = Vec::new();
        let mut todo = vec![root];
        let mut below: BTreeMap<(EgroupId, ExtentNo), Vec<NodeRef>> = BTreeMap::new();
        while let Some(node) = todo.pop() {
            if walk.nodes.contains_key(&node.key()) || below.contains_key(&node.key()) {
                continue;
            }
            let page = match self.node(egroups, node).await {
                Ok(page) => page,
                Err(error) => {
                    walk.nodes.insert(node.key(), None);
                    findings.add(Finding::damage(
                        format!("{of}: a node of its map: {error}"),
                        "the blocks below it cannot be found",
                        "penstock rescue rebuilds the map from the extents' headers",
                    ));
                    continue;
                }
            };
            walk.marks.insert(node.key(), 1);
            let mut children = Vec::new();
            let mut blocks = Some(0);
            for at in 0..page.count() {
                if page.level() > 0 {
                    children.extend(page.child(at));
                } else if let Some(run) = page.leaf(at) {
                    let sound = self.check_run(egroups, &run, of, walk, findings).await;
                    blocks = blocks.filter(|_| sound).map(|sum: u64| sum + u64::from(run.blocks));
                }
            }
            if page.level() == 0 {
                walk.nodes.insert(node.key(), blocks);
            } else {
                todo.extend(&children);
                below.insert(node.key(), children);
                order.push(node);
            }
        }
        for node in order.into_iter().rev() {
            let children = below.remove(&node.key()).unwrap_or_default();
            let sum = children.iter().map(|child| walk.nodes.get(&child.key()).copied().flatten()).sum();
            walk.nodes.insert(node.key(), sum);
        }
        walk.nodes.get(&root.key()).copied().flatten()
    }

    async fn check_run(
        &mut self,
        egroups: &BTreeMap<EgroupId, Egroup>,
        run: &crate::format::node::LeafEntry,
        of: &str,
        walk: &mut Walk,
        findings: &mut Findings,
    ) -> bool {
        let (id, extent) = (EgroupId(run.egroup.get()), ExtentNo(run.extent.get()));
        let entry = match egroups.get(&id) {
            Some(egroup) => self.header(id, egroup).await.ok().and_then(|header| header.extent(extent)),
            None => None,
        };
        let end = u16::from(run.first) + u16::from(run.blocks);
        let fine = entry.is_some_and(|entry| entry.kind == KIND_DATA && end <= u16::from(entry.blocks));
        if fine {
            *walk.marks.entry((id, extent)).or_insert(0) |= super::collect::blocks_of(run);
        } else {
            let block = VBlock(run.block.get());
            findings.add(Finding::damage(
                format!(
                    "{of}: {} blocks from {} are to be in egroup {id}, extent {}, and are not",
                    run.blocks, block.0, extent.0
                ),
                "reads of them end with an error",
                "write them again, or take them from a replica or a backup",
            ));
        }
        fine
    }
}

/// The roots of a state: of whom, the root, and how many blocks it is to have.
pub(crate) fn roots(state: &State) -> Vec<(String, NodeRef, u64)> {
    let mut roots = Vec::new();
    for (id, shard) in &state.shards {
        let of = |id: &ShardId| format!("shard {id}");
        roots.extend(shard.root.node.map(|node| (of(id), node, shard.mapped)));
        for (number, snapshot) in &shard.snapshots {
            let node = snapshot.root.and_then(|root| root.node);
            roots
                .extend(node.map(|node| (format!("snapshot {number} of shard {id}"), node, snapshot.mapped)));
        }
    }
    roots
}

/// How many blocks of each egroup are referred to.
pub(crate) fn live_of(walk: &Walk) -> BTreeMap<EgroupId, u64> {
    let mut live = BTreeMap::new();
    for ((id, _), blocks) in &walk.marks {
        *live.entry(*id).or_insert(0) += u64::from(blocks.count_ones());
    }
    live
}

/// Blocks of disks that egroups of several lanes, or twice of one, have.
pub(crate) fn overlaps(
    spaces: &BTreeSet<(DiskNo, u64, u64, EgroupId)>,
) -> Vec<(EgroupId, EgroupId, DiskNo, u64)> {
    let pairs = spaces.iter().zip(spaces.iter().skip(1));
    pairs
        .filter(|(one, next)| one.0 == next.0 && one.1 + one.2 > next.1)
        .map(|(one, next)| (one.3, next.3, next.0, next.1))
        .collect()
}
