//! What differs between two maps: both are walked side by side, and what they share is skipped.

use super::{Lane, WorkError};
use crate::id::{ShardId, VBlock};
use crate::map::{NodeRef, Page, Root};

/// Blocks that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// The first.
    pub first: u64,
    /// How many.
    pub blocks: u64,
    /// They are zero in the later map.
    pub zero: bool,
}

/// A piece of both maps that is still to be compared.
struct Pair {
    old: Option<(NodeRef, u8)>,
    new: Option<(NodeRef, u8)>,
    low: u64,
    high: u64,
}

/// Where a block is, as far as a comparison goes.
type Place = Option<(u64, u16, u64)>;

impl Lane {
    /// The blocks from `start` on that differ between two snapshots of a shard, by their maps alone; `None` for `old` is
    /// the empty map. Stops after `max` ranges or so; returns where it stopped, if it did.
    ///
    /// # Errors
    /// [`WorkError::Shard`] when there is no such snapshot; [`WorkError::Read`].
    pub async fn diff(
        &self,
        shard: ShardId,
        old: Option<u64>,
        new: u64,
        start: u64,
        max: usize,
    ) -> Result<(Vec<Changed>, Option<u64>), WorkError> {
        if let Some(number) = old {
            self.snapshot_made(shard, number).await?;
        }
        self.snapshot_made(shard, new).await?;
        let old = match old {
            Some(number) => self.snapshot_root(shard, number)?,
            None => Root::default(),
        };
        let new = self.snapshot_root(shard, new)?;
        let node = |root: Root| root.node.map(|node| (node, root.level));
        let mut todo = vec![Pair { old: node(old), new: node(new), low: start, high: u64::MAX }];
        let mut found: Vec<Changed> = Vec::new();
        while let Some(pair) = todo.pop() {
            if pair.old == pair.new || pair.low >= pair.high {
                continue;
            }
            if found.len() >= max {
                return Ok((found, Some(pair.low)));
            }
            let level = |side: Option<(NodeRef, u8)>| side.map_or(0, |(_, level)| level);
            let (old_level, new_level) = (level(pair.old), level(pair.new));
            match (pair.old, pair.new) {
                (Some((node, _)), _) if old_level > 0 && old_level >= new_level => {
                    let page = self.page(node).await?;
                    let parts = children(&page, old_level, pair.low, pair.high);
                    todo.extend(parts.rev().map(|(old, low, high)| Pair { old, low, high, ..pair }));
                }
                (_, Some((node, _))) if new_level > 0 => {
                    let page = self.page(node).await?;
                    let parts = children(&page, new_level, pair.low, pair.high);
                    todo.extend(parts.rev().map(|(new, low, high)| Pair { new, low, high, ..pair }));
                }
                _ => {
                    let old = self.leaf(pair.old).await?;
                    let new = self.leaf(pair.new).await?;
                    compare(old.as_ref(), new.as_ref(), pair.low, pair.high, &mut found);
                }
            }
        }
        Ok((found, None))
    }

    fn snapshot_root(&self, shard: ShardId, number: u64) -> Result<Root, WorkError> {
        let core = self.0.borrow();
        let snapshot = core.state.shards.get(&shard).and_then(|shard| shard.snapshots.get(&number));
        let snapshot = snapshot.ok_or(WorkError::Shard { shard, problem: "there is no such snapshot" })?;
        snapshot.root.ok_or(WorkError::Shard { shard, problem: "the snapshot's map is not made yet" })
    }

    async fn leaf(&self, node: Option<(NodeRef, u8)>) -> Result<Option<Page>, WorkError> {
        Ok(match node {
            Some((node, _)) => Some(self.page(node).await?),
            None => None,
        })
    }

    /// A node, by way of the cache.
    pub(super) async fn page(&self, node: NodeRef) -> Result<Page, WorkError> {
        let cached = self.0.borrow().nodes.get(&node.key()).cloned();
        match cached {
            Some(page) => Ok(page),
            None => Ok(self.node(node).await?),
        }
    }
}

/// The children of an inner node in a range, each with its part of it.
fn children(
    page: &Page,
    level: u8,
    low: u64,
    high: u64,
) -> impl DoubleEndedIterator<Item = (Option<(NodeRef, u8)>, u64, u64)> {
    (0..page.count()).filter_map(move |at| {
        let first = if at == 0 { 0 } else { page.inner(at)?.block.get() };
        let end = page.inner(at + 1).map_or(u64::MAX, |next| next.block.get());
        let (from, to) = (first.max(low), end.min(high));
        (from < to).then(|| (page.child(at).map(|node| (node, level - 1)), from, to))
    })
}

/// Compares two leaves block range by block range.
fn compare(old: Option<&Page>, new: Option<&Page>, low: u64, high: u64, found: &mut Vec<Changed>) {
    let mut at = low;
    while at < high {
        let (old_place, old_end) = place(old, at);
        let (new_place, new_end) = place(new, at);
        let end = old_end.min(new_end).min(high);
        if old_place != new_place {
            let (blocks, zero) = (end - at, new_place.is_none());
            match found.last_mut() {
                Some(last) if last.first + last.blocks == at && last.zero == zero => last.blocks += blocks,
                _ => found.push(Changed { first: at, blocks, zero }),
            }
        }
        at = end;
    }
}

/// Where block `at` is in a leaf, and where the run or the hole that it is in ends.
fn place(page: Option<&Page>, at: u64) -> (Place, u64) {
    let Some(page) = page else { return (None, u64::MAX) };
    match page.find(VBlock(at), u64::MAX) {
        crate::map::Found::Run { egroup, extent, first, blocks } => {
            (Some((egroup.0, extent.0, u64::from(first))), at + blocks)
        }
        crate::map::Found::Hole { blocks } => (None, at.saturating_add(blocks.max(1))),
    }
}
