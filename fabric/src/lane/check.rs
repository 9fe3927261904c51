//! Checking a lane without opening it: nothing is written, everything is looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::checkpoint::{self, Checkpoint};
use super::open::Recovery;
use super::{LaneError, LaneOptions, LanePlace, Owner};
use crate::codec::{Codec, Coder};
use crate::egroup::{Header, ReadError, piece, read_header, read_piece, verify};
use crate::flow::{DiskError, Flow};
use crate::format::egroup::{KIND_DATA, KIND_NODE};
use crate::format::{Magic, Prefix};
use crate::fsck::{Finding, Findings};
use crate::id::{BLOCK_BYTES, DiskNo, EgroupId, ExtentNo, ShardId, VBlock};
use crate::map::{NodeRef, Page};
use crate::state::{Egroup, State};

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
}

/// Reads checkpoint and log.
///
/// # Errors
/// [`LaneError`], as opening it would.
pub(crate) async fn find(flow: &Flow, place: &LanePlace) -> Result<Found, LaneError> {
    let (checkpoint, damaged_checkpoints) = checkpoint::read(flow, place).await?;
    let lane = place.log.lane;
    let checkpoint = checkpoint.ok_or(LaneError::NoCheckpoint { lane, damaged: damaged_checkpoints })?;
    let (recovery, end) = Recovery::run(flow, place, &LaneOptions::default(), &checkpoint).await?;
    let undrained = recovery.undrained();
    let (state, records) = recovery.into_state();
    Ok(Found { checkpoint, state, damaged_checkpoints, torn: end.torn, records, undrained })
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

    fn at(&self, disk: DiskNo) -> DiskNo {
        self.place.disks.get(usize::from(disk.0)).map_or(disk, |disk| disk.at)
    }

    async fn header(&mut self, id: EgroupId, egroup: &Egroup) -> Result<&Header, ReadError> {
        if !self.headers.contains_key(&id) {
            let header = read_header(self.flow, &self.owner(), id, egroup, self.at(egroup.disk)).await?;
            self.headers.insert(id, header);
        }
        self.headers.get(&id).ok_or(ReadError::Missing { id, extent: ExtentNo(0) })
    }

    /// Reads a node that a map refers to.
    pub(crate) async fn node(
        &mut self,
        egroups: &BTreeMap<EgroupId, Egroup>,
        node: NodeRef,
    ) -> Result<Page, ReadError> {
        let missing = ReadError::Missing { id: node.egroup, extent: node.extent };
        let egroup = *egroups.get(&node.egroup).ok_or(missing)?;
        let (flow, owner, at) = (self.flow, self.owner(), self.at(egroup.disk));
        let header = self.header(node.egroup, &egroup).await?;
        let piece = piece(&egroup, header, node.extent, 0, 1).ok_or(missing)?;
        let bytes = read_piece(flow, node.egroup, header, node.extent, &piece, at).await?;
        let damaged = |_| ReadError::Checksum { id: node.egroup, extent: node.extent };
        Page::parse(&owner.node_identity(&node), node.crc, &bytes).map_err(damaged)
    }

    /// A node of which nobody says what it must be, with its level.
    pub(crate) async fn any_node(
        &mut self,
        id: EgroupId,
        egroup: &Egroup,
        extent: ExtentNo,
    ) -> Option<(NodeRef, u8)> {
        let (flow, owner, at) = (self.flow, self.owner(), self.at(egroup.disk));
        let header = self.header(id, egroup).await.ok()?;
        let piece = piece(egroup, header, extent, 0, 1)?;
        let bytes = read_piece(flow, id, header, extent, &piece, at).await.ok()?;
        let crc = Prefix::parse(Magic::NODE, &bytes).ok()?.crc.get();
        let node = NodeRef { egroup: id, extent, crc };
        let page = Page::parse(&owner.node_identity(&node), crc, &bytes).ok()?;
        Some((node, page.level()))
    }

    /// Whether an extent is sound: its blocks fit their checksums and can be decoded.
    pub(crate) async fn extent_is_sound(
        &mut self,
        id: EgroupId,
        egroup: &Egroup,
        extent: ExtentNo,
    ) -> Result<bool, ReadError> {
        let (flow, at) = (self.flow, self.at(egroup.disk));
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
