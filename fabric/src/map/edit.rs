//! Changing a map: on copies of the nodes that change, until they are stored under a new root.

use zerocopy::little_endian::{U16, U32, U64};

use super::{Miss, NodeCache, NodeRef, Page, Root};
use crate::format::Identity;
use crate::format::node::{ENTRIES_MAX, InnerEntry, LEVELS_MAX, LeafEntry};
use crate::id::{EgroupId, ExtentNo, VBlock, count32, index};

/// Where blocks are from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The egroup.
    pub egroup: EgroupId,
    /// The extent in it.
    pub extent: ExtentNo,
    /// The first block in the extent.
    pub first: u8,
}

/// What the map does not refer to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead {
    /// The egroup.
    pub egroup: EgroupId,
    /// How many of its blocks.
    pub blocks: u64,
}

#[derive(Debug, Clone, Copy)]
enum Link {
    Stored(NodeRef),
    Dirty(u32),
}

/// One step of the way from the root to a leaf.
#[derive(Debug, Clone, Copy)]
struct Step {
    link: Link,
    /// The entry of the node that leads on.
    at: usize,
}

/// A map that is being changed. It is given up by dropping it.
#[derive(Debug)]
pub struct Edit {
    root: Option<Link>,
    level: u8,
    dirty: Vec<Page>,
    free: Vec<u32>,
    dead: Vec<Dead>,
    /// Blocks mapped, more (or less) than before.
    mapped: i64,
}

impl Edit {
    /// Begins to change the map of `root`.
    #[must_use]
    pub fn new(root: Root) -> Self {
        let (dirty, free, dead) = (Vec::new(), Vec::new(), Vec::new());
        Self { root: root.node.map(Link::Stored), level: root.level, dirty, free, dead, mapped: 0 }
    }

    /// What was replaced, since this was last asked: runs and nodes.
    pub fn take_dead(&mut self) -> Vec<Dead> {
        std::mem::take(&mut self.dead)
    }

    /// By how many the number of mapped blocks changed.
    #[must_use]
    pub fn mapped(&self) -> i64 {
        self.mapped
    }

    /// Maps `blocks` blocks from `block` on to `target` (at most 255 of them, in one extent), or to nothing. Goes as far as one
    /// leaf does; returns how many blocks are done.
    ///
    /// # Errors
    /// [`Miss`]; nothing has changed then.
    pub fn replace(
        &mut self,
        cache: &NodeCache,
        block: VBlock,
        blocks: u64,
        target: Option<Target>,
    ) -> Result<u64, Miss> {
        if self.root.is_none() {
            if target.is_none() {
                return Ok(blocks);
            }
            let number = self.add(Page::empty(0));
            (self.root, self.level) = (Some(Link::Dirty(number)), 0);
        }
        loop {
            let (path, high) = self.descend(cache, block)?;
            let done = blocks.min(high - block.0);
            let end = block.0 + done;
            if target.is_none() && !self.touches(cache, &path, block.0, end) {
                return Ok(done);
            }
            self.copy_path(cache, &path);
            if self.split_one(block.0) {
                continue;
            }
            let new = target.map(|target| LeafEntry {
                block: U64::new(block.0),
                egroup: U64::new(target.egroup.0),
                extent: U16::new(target.extent.0),
                first: target.first,
                blocks: u8::try_from(done).unwrap_or(u8::MAX),
                reserved: U32::ZERO,
            });
            self.change_leaf(block.0, end, new);
            return Ok(done);
        }
    }

    /// Gives every changed node its place and returns the new root. `place` is handed a node's first block and says what it is from now
    /// on; `keep` is handed the node as it is to be stored. Children come before their parents.
    pub fn store(
        mut self,
        place: &mut impl FnMut(VBlock) -> (NodeRef, Identity),
        keep: &mut impl FnMut(NodeRef, Page),
    ) -> Root {
        let node = match self.root {
            Some(Link::Dirty(number)) => Some(self.store_node(number, place, keep)),
            Some(Link::Stored(node)) => Some(node),
            None => None,
        };
        Root { node, level: if node.is_some() { self.level } else { 0 } }
    }

    fn store_node(
        &mut self,
        number: u32,
        place: &mut impl FnMut(VBlock) -> (NodeRef, Identity),
        keep: &mut impl FnMut(NodeRef, Page),
    ) -> NodeRef {
        let mut page = self.take(number);
        if page.level() > 0 {
            for at in 0..page.count() {
                let Some(entry) = page.inner(at) else { continue };
                if let Some(child) = entry.dirty() {
                    let child = self.store_node(child, place, keep);
                    page.splice(at, at + 1, &[InnerEntry::to_stored(entry.block.get(), child)]);
                }
            }
        }
        let (mut node, identity) = place(VBlock(page.first_block()));
        node.crc = page.seal_as(&identity);
        keep(node, page);
        node
    }

    /// How many nodes have changed.
    #[must_use]
    pub fn dirty(&self) -> usize {
        self.dirty.len() - self.free.len()
    }

    fn page<'a>(&'a self, cache: &'a NodeCache, link: Link) -> Result<&'a Page, Miss> {
        match link {
            Link::Stored(node) => cache.get(&node.key()).ok_or(Miss(node)),
            Link::Dirty(number) => match self.dirty.get(index(number)) {
                Some(page) => Ok(page),
                None => panic!("there is no changed node {number}"),
            },
        }
    }

    /// The way to the leaf that covers `block`, and where that leaf's range ends.
    fn descend(&self, cache: &NodeCache, block: VBlock) -> Result<(Vec<Step>, u64), Miss> {
        let Some(mut link) = self.root else { panic!("an empty map has no leaf") };
        let (mut path, mut high) = (Vec::with_capacity(LEVELS_MAX), u64::MAX);
        loop {
            let page = self.page(cache, link)?;
            if page.level() == 0 {
                path.push(Step { link, at: 0 });
                return Ok((path, high));
            }
            let at = page.child_of(block);
            if let Some(next) = page.inner(at + 1) {
                high = high.min(next.block.get());
            }
            path.push(Step { link, at });
            link = match page.inner(at).map(|entry| (entry.stored(), entry.dirty())) {
                Some((Some(node), _)) => Link::Stored(node),
                Some((None, Some(number))) => Link::Dirty(number),
                _ => panic!("an inner node is empty"),
            };
        }
    }

    fn touches(&self, cache: &NodeCache, path: &[Step], from: u64, to: u64) -> bool {
        let leaf = path.last().and_then(|step| self.page(cache, step.link).ok());
        leaf.is_some_and(|leaf| {
            let begin = leaf.not_after(to - 1);
            begin.checked_sub(1).and_then(|at| leaf.leaf(at)).is_some_and(|run| run.end() > from)
        })
    }

    /// Replaces the stored nodes of a path by copies. All of them are in the cache: `descend` has been there.
    fn copy_path(&mut self, cache: &NodeCache, path: &[Step]) {
        let mut parent: Option<(u32, usize)> = None;
        for step in path {
            let number = match step.link {
                Link::Dirty(number) => number,
                Link::Stored(node) => {
                    let Some(page) = cache.get(&node.key()) else {
                        panic!("a node left the cache meanwhile")
                    };
                    let number = self.add(page.clone());
                    self.dead.push(Dead { egroup: node.egroup, blocks: 1 });
                    match parent {
                        None => self.root = Some(Link::Dirty(number)),
                        Some((parent, at)) => self.relink(parent, at, number),
                    }
                    number
                }
            };
            parent = Some((number, step.at));
        }
    }

    fn relink(&mut self, parent: u32, at: usize, child: u32) {
        let parent = self.dirty_page(parent);
        let block = parent.inner(at).map_or(0, |entry| entry.block.get());
        parent.splice(at, at + 1, &[InnerEntry::to_dirty(block, child)]);
    }

    /// The numbers of the changed nodes on the way to `block`, each with the entry that leads on.
    fn dirty_path(&self, block: u64) -> Vec<(u32, usize)> {
        let mut path = Vec::with_capacity(LEVELS_MAX);
        let mut next = match self.root {
            Some(Link::Dirty(number)) => Some(number),
            _ => None,
        };
        while let Some(number) = next {
            let Some(page) = self.dirty.get(index(number)) else { break };
            let at = if page.level() == 0 { 0 } else { page.child_of(VBlock(block)) };
            path.push((number, at));
            next = if page.level() == 0 { None } else { page.inner(at).and_then(|entry| entry.dirty()) };
        }
        path
    }

    /// Splits the topmost node on the way to `block` that could become too full; false: there is none.
    fn split_one(&mut self, block: u64) -> bool {
        // A leaf grows by two entries at most, an inner node by one.
        let path = self.dirty_path(block);
        let full =
            |number: u32| self.dirty.get(index(number)).is_some_and(|page| page.count() + 2 > ENTRIES_MAX);
        let Some(depth) = path.iter().position(|(number, _)| full(*number)) else { return false };
        let Some((number, _)) = path.get(depth).copied() else { return false };
        let page = self.dirty_page(number);
        let count = page.count();
        // Written in order, nodes stay nearly full.
        let behind = page.not_after(block) > count / 10 * 9;
        let right = page.split_off(if behind { count / 10 * 9 } else { count / 2 });
        let left_block = page.first_block();
        let right_block = right.first_block();
        let right = self.add(right);
        match depth.checked_sub(1).and_then(|above| path.get(above)) {
            Some((parent, at)) => {
                let entry = InnerEntry::to_dirty(right_block, right);
                self.dirty_page(*parent).splice(at + 1, at + 1, &[entry]);
            }
            None => {
                let mut root = Page::empty(self.level + 1);
                let entries =
                    [InnerEntry::to_dirty(left_block, number), InnerEntry::to_dirty(right_block, right)];
                root.splice(0, 0, &entries);
                self.level += 1;
                assert!(usize::from(self.level) < LEVELS_MAX, "a map has {} levels", self.level + 1);
                self.root = Some(Link::Dirty(self.add(root)));
            }
        }
        true
    }

    fn change_leaf(&mut self, from: u64, to: u64, new: Option<LeafEntry>) {
        let path = self.dirty_path(from);
        let Some((number, _)) = path.last().copied() else { panic!("a leaf was not copied") };
        let leaf = self.dirty_page(number);
        let mut first = leaf.not_after(from);
        if first.checked_sub(1).and_then(|at| leaf.leaf(at)).is_some_and(|run| run.end() > from) {
            first -= 1;
        }
        let last = leaf.not_after(to - 1).max(first);
        let old: Vec<LeafEntry> = (first..last).filter_map(|at| leaf.leaf(at)).collect();
        let left =
            old.first().filter(|run| run.block.get() < from).map(|run| run.part(run.block.get(), from));
        let right = old.last().filter(|run| run.end() > to).map(|run| run.part(to, run.end()));
        let (mut first, mut last) = (first, last);
        // Runs that continue each other become one.
        let neighbours = (first.checked_sub(1).and_then(|at| leaf.leaf(at)), leaf.leaf(last));
        let mut entries: Vec<LeafEntry> = Vec::with_capacity(5);
        if let (None, Some(before)) = (left, neighbours.0) {
            entries.push(before);
            first -= 1;
        }
        entries.extend(left.into_iter().chain(new).chain(right));
        if let (None, Some(after)) = (right, neighbours.1) {
            entries.push(after);
            last += 1;
        }
        entries.dedup_by(|next, run| {
            let one = run.continues(next);
            if one {
                run.blocks += next.blocks;
            }
            one
        });
        leaf.splice(first, last, &entries);
        let empty = leaf.count() == 0;
        for run in &old {
            let blocks = run.end().min(to) - run.block.get().max(from);
            self.dead.push(Dead { egroup: EgroupId(run.egroup.get()), blocks });
            self.mapped -= i64::try_from(blocks).unwrap_or(0);
        }
        self.mapped += new.map_or(0, |new| i64::from(new.blocks));
        if empty {
            self.remove_empty(&path);
        }
    }

    /// Takes an empty leaf away, and what becomes empty above it.
    fn remove_empty(&mut self, path: &[(u32, usize)]) {
        let mut above = path.iter().rev();
        if let Some((leaf, _)) = above.next() {
            self.take(*leaf);
        }
        for (number, at) in above {
            let page = self.dirty_page(*number);
            page.splice::<InnerEntry>(*at, *at + 1, &[]);
            if page.count() > 0 {
                return self.lower_root();
            }
            self.take(*number);
        }
        (self.root, self.level) = (None, 0);
    }

    /// A root with one child gives way to it.
    fn lower_root(&mut self) {
        while let Some(Link::Dirty(number)) = self.root {
            let page = self.dirty_page(number);
            let Some(only) = page.inner(0).filter(|_| page.level() > 0 && page.count() == 1) else { return };
            self.root = only.stored().map(Link::Stored).or(only.dirty().map(Link::Dirty));
            self.level -= 1;
            self.take(number);
        }
    }

    fn add(&mut self, page: Page) -> u32 {
        match self.free.pop() {
            Some(number) => {
                *self.dirty_page(number) = page;
                number
            }
            None => {
                self.dirty.push(page);
                count32(self.dirty.len() - 1)
            }
        }
    }

    fn take(&mut self, number: u32) -> Page {
        let page = std::mem::replace(self.dirty_page(number), Page::empty(0));
        self.free.push(number);
        page
    }

    fn dirty_page(&mut self, number: u32) -> &mut Page {
        match self.dirty.get_mut(index(number)) {
            Some(page) => page,
            None => panic!("there is no changed node {number}"),
        }
    }
}
