//! Who uses the space: exactly, by the maps. A block counts for the snapshot or vdisk that alone refers to it.
//!
//! Every node and every block has a label: the one root that leads to it, the one shard all of whose roots lead to it, or all.
//! Labels only rise, so each node is visited three times at most, however many snapshots there are.

use std::collections::BTreeMap;

use super::{Lane, WorkError};
use crate::id::{EgroupId, ExtentNo, ShardId};
use crate::map::{NodeRef, Root};

/// The head or a snapshot of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VersionUse {
    /// Blocks that it refers to.
    pub mapped: u64,
    /// Blocks that nothing else refers to: what deleting it alone frees.
    pub exclusive: u64,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardUse {
    /// Blocks that it or its snapshots refer to and no other shard: what deleting it and its snapshots frees.
    pub exclusive: u64,
    /// The shard itself.
    pub head: VersionUse,
    /// Its snapshots whose maps are made.
    pub snapshots: BTreeMap<u64, VersionUse>,
}

/// Who uses the space of a lane, in blocks of 4 KiB when decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpaceUse {
    /// By shard.
    pub shards: BTreeMap<ShardId, ShardUse>,
    /// Blocks of data that anything refers to.
    pub data: u64,
    /// Blocks of these that more than one shard refers to.
    pub shared: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    /// The root of that number.
    Root(u32, ShardId),
    Shard(ShardId),
    All,
}

impl Label {
    fn shard(self) -> Option<ShardId> {
        match self {
            Self::Root(_, shard) | Self::Shard(shard) => Some(shard),
            Self::All => None,
        }
    }

    fn join(self, other: Self) -> Self {
        match (self.shard(), other.shard()) {
            _ if self == other => self,
            (Some(shard), Some(other)) if shard == other => Self::Shard(shard),
            _ => Self::All,
        }
    }
}

#[derive(Debug, Default)]
struct Labels {
    nodes: BTreeMap<(EgroupId, ExtentNo), Label>,
    /// Which blocks of an extent have which label.
    blocks: BTreeMap<(EgroupId, ExtentNo), Vec<(Label, u16)>>,
    todo: Vec<(NodeRef, Label)>,
}

impl Labels {
    fn add(&mut self, extent: (EgroupId, ExtentNo), blocks: u16, label: Label) {
        let parts = self.blocks.entry(extent).or_default();
        let mut new = blocks;
        let mut raised: Vec<(Label, u16)> = Vec::new();
        for (of, part) in parts.iter_mut() {
            let both = *part & blocks;
            new &= !both;
            let joined = of.join(label);
            if both != 0 && joined != *of {
                *part &= !both;
                raised.push((joined, both));
            }
        }
        for (label, blocks) in raised.into_iter().chain((new != 0).then_some((label, new))) {
            match parts.iter_mut().find(|(of, _)| *of == label) {
                Some((_, part)) => *part |= blocks,
                None => parts.push((label, blocks)),
            }
        }
        parts.retain(|(_, part)| *part != 0);
    }
}

impl Lane {
    /// Who uses the space, of what is drained. The background finds out between two other things that it does.
    ///
    /// # Errors
    /// [`WorkError::Failed`] when the lane fails meanwhile.
    pub async fn space_use(&self) -> Result<SpaceUse, WorkError> {
        let wanted = {
            let mut core = self.0.borrow_mut();
            core.space_wanted += 1;
            core.wake();
            core.space_wanted
        };
        self.wait(|core| match (&core.space, core.log.failed()) {
            (Some((made, space)), _) if *made >= wanted => Some(Ok(space.clone())),
            (_, Some(status)) => Some(Err(WorkError::Failed(status))),
            _ => None,
        })
        .await
    }

    /// Answers those who have asked up to now.
    pub(super) async fn find_space_use(&self) -> Result<(), WorkError> {
        let wanted = self.0.borrow().space_wanted;
        let roots = self.roots();
        let mut labels = Labels::default();
        for (number, (shard, _, root)) in (0..).zip(&roots) {
            labels.todo.extend(root.node.map(|node| (node, Label::Root(number, *shard))));
            while let Some((node, label)) = labels.todo.pop() {
                self.label(&mut labels, node, label).await?;
            }
        }
        let space = self.count(&roots, &labels);
        let mut core = self.0.borrow_mut();
        core.space = Some((wanted, space));
        core.wake();
        Ok(())
    }

    /// All maps: shard, snapshot, root.
    fn roots(&self) -> Vec<(ShardId, Option<u64>, Root)> {
        let core = self.0.borrow();
        let mut roots = Vec::new();
        for (id, shard) in &core.state.shards {
            roots.push((*id, None, shard.root));
            let made =
                shard.snapshots.iter().filter_map(|(number, snapshot)| Some((*number, snapshot.root?)));
            roots.extend(made.map(|(number, root)| (*id, Some(number), root)));
        }
        roots
    }

    async fn label(&self, labels: &mut Labels, node: NodeRef, label: Label) -> Result<(), WorkError> {
        let was = labels.nodes.get(&node.key()).copied();
        let now = was.map_or(label, |was| was.join(label));
        if was == Some(now) {
            return Ok(());
        }
        labels.nodes.insert(node.key(), now);
        let page = self.page(node).await?;
        for at in 0..page.count() {
            if page.level() > 0 {
                labels.todo.extend(page.child(at).map(|child| (child, now)));
            } else if let Some(run) = page.leaf(at) {
                let blocks = super::collect::blocks_of(&run);
                labels.add((EgroupId(run.egroup.get()), ExtentNo(run.extent.get())), blocks, now);
            }
        }
        self.breathe(page.count() / 8).await;
        Ok(())
    }

    fn count(&self, roots: &[(ShardId, Option<u64>, Root)], labels: &Labels) -> SpaceUse {
        let core = self.0.borrow();
        let mut space = SpaceUse::default();
        let mut by_label: BTreeMap<Label, u64> = BTreeMap::new();
        for (label, blocks) in labels.blocks.values().flatten() {
            *by_label.entry(*label).or_insert(0) += u64::from(blocks.count_ones());
        }
        space.data = by_label.values().sum();
        space.shared = by_label.get(&Label::All).copied().unwrap_or(0);
        for (number, (id, snapshot, _)) in (0..).zip(roots) {
            let exclusive = by_label.get(&Label::Root(number, *id)).copied().unwrap_or(0);
            let shard = space.shards.entry(*id).or_default();
            shard.exclusive += exclusive;
            let Some(state) = core.state.shards.get(id) else { continue };
            match snapshot {
                None => {
                    shard.exclusive += by_label.get(&Label::Shard(*id)).copied().unwrap_or(0);
                    shard.head = VersionUse { mapped: state.mapped, exclusive };
                }
                Some(number) => {
                    let mapped = state.snapshots.get(number).map_or(0, |snapshot| snapshot.mapped);
                    shard.snapshots.insert(*number, VersionUse { mapped, exclusive });
                }
            }
        }
        space
    }
}
