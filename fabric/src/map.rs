//! The block map of a shard: a copy-on-write B+tree from blocks of the vdisk to blocks of extents.
//!
//! ```text
//!   Root ─► inner node ─► leaf: runs (block, blocks) → (egroup, extent, first block in it)
//! ```
//!
//! Nodes are blocks in egroups; a [`NodeCache`] keeps some in memory. Nothing here does I/O: what meets a node that is not in
//! the cache says so ([`Miss`]) and has changed nothing; whoever drives it reads the node and tries again. Changes
//! are made on copies ([`Edit`]); [`Edit::store`] gives these their places and the shard a new root. The old root stays what it was, so
//! a snapshot is a copy of the root.
//!
//! Invariants: a leaf's runs are in order, do not overlap, and lie in the range that the leaf covers; a run is inside of one
//! extent; neighbours that continue each other are one run, unless a leaf ends between them; no node but an empty root is empty.

mod edit;
mod page;

use crate::clock::Clock;
use crate::id::{EgroupId, ExtentNo, VBlock};

pub use edit::{Dead, Edit, Target};
pub use page::Page;

/// Where a stored node is, and its CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeRef {
    /// The egroup.
    pub egroup: EgroupId,
    /// The extent in it.
    pub extent: ExtentNo,
    /// The CRC in the node's prefix.
    pub crc: u32,
}

impl NodeRef {
    /// What a cache knows it by.
    #[must_use]
    pub fn key(&self) -> (EgroupId, ExtentNo) {
        (self.egroup, self.extent)
    }
}

/// Stored nodes in memory (4 KiB each).
pub type NodeCache = Clock<(EgroupId, ExtentNo), Page>;

/// Nodes that a cache needs room for at least: a path of every level, several times.
pub const NODES_MIN: usize = 64;

/// A map: its root node and that node's level; `None` is the empty map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Root {
    /// The root node.
    pub node: Option<NodeRef>,
    /// Its level; a leaf has 0.
    pub level: u8,
}

/// A node that must be read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miss(pub NodeRef);

/// What the map says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It and the `blocks - 1` after it are there.
    Run {
        /// The egroup.
        egroup: EgroupId,
        /// The extent in it.
        extent: ExtentNo,
        /// The block in the extent.
        first: u8,
        /// How many follow each other there, this one included.
        blocks: u64,
    },
    /// It and the `blocks - 1` after it are nowhere; perhaps more.
    Hole {
        /// How many.
        blocks: u64,
    },
}

/// Looks a block up.
///
/// # Errors
/// [`Miss`] when a node is not in the cache.
pub fn lookup(cache: &NodeCache, root: Root, block: VBlock) -> Result<Found, Miss> {
    let Some(mut node) = root.node else { return Ok(Found::Hole { blocks: u64::MAX - block.0 }) };
    let mut high = u64::MAX;
    for _ in 0..root.level {
        let page = cache.get(&node.key()).ok_or(Miss(node))?;
        let at = page.child_of(block);
        if let Some(next) = page.inner(at + 1) {
            high = high.min(next.block.get());
        }
        node = page.inner(at).and_then(|entry| entry.stored()).ok_or(Miss(node))?;
    }
    let page = cache.get(&node.key()).ok_or(Miss(node))?;
    Ok(page.find(block, high))
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "small numbers of a test")]
mod tests;
