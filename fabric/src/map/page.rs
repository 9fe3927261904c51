//! The bytes of one node, and what can be done with them.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{Found, NodeRef};
use crate::format::node::{
    COUNT_AT, ENTRIES_AT, ENTRIES_MAX, ENTRY_BYTES, InnerEntry, LEVEL_AT, LEVELS_MAX, LeafEntry,
};
use crate::format::{FormatError, Identity, Prefix, put, seal, take};
use crate::id::{BLOCK_BYTES, EgroupId, ExtentNo, VBlock, count32};

/// A node, as it is on disk; a node that was changed has no sound prefix until it is stored.
#[derive(Debug, Clone)]
pub struct Page(Box<Bytes>);

/// Whole cache lines: pages are copied a lot.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Bytes([u8; BLOCK_BYTES]);

/// The egroup of a child that is not stored yet; its number is where the CRC would be.
const DIRTY: u64 = u64::MAX;

impl InnerEntry {
    /// The child, if it is stored.
    pub(super) fn stored(&self) -> Option<NodeRef> {
        let extent = ExtentNo(self.extent.get());
        (self.egroup.get() != DIRTY).then(|| NodeRef {
            egroup: EgroupId(self.egroup.get()),
            extent,
            crc: self.crc.get(),
        })
    }

    /// The child's number among the changed nodes.
    pub(super) fn dirty(&self) -> Option<u32> {
        (self.egroup.get() == DIRTY).then(|| self.crc.get())
    }

    /// An entry for a changed node.
    pub(super) fn to_dirty(block: u64, number: u32) -> Self {
        Self {
            block: U64::new(block),
            egroup: U64::new(DIRTY),
            extent: U16::ZERO,
            reserved: U16::ZERO,
            crc: U32::new(number),
        }
    }

    /// An entry for a stored node.
    pub(super) fn to_stored(block: u64, node: NodeRef) -> Self {
        Self {
            block: U64::new(block),
            egroup: U64::new(node.egroup.0),
            extent: U16::new(node.extent.0),
            reserved: U16::ZERO,
            crc: U32::new(node.crc),
        }
    }
}

impl LeafEntry {
    /// The block after the run.
    pub(super) fn end(&self) -> u64 {
        self.block.get() + u64::from(self.blocks)
    }

    /// The part of the run from `from` up to `to`, both inside of it.
    pub(super) fn part(&self, from: u64, to: u64) -> Self {
        let skip = u8::try_from(from - self.block.get()).unwrap_or(u8::MAX);
        let blocks = u8::try_from(to - from).unwrap_or(u8::MAX);
        Self { block: U64::new(from), first: self.first + skip, blocks, ..*self }
    }

    /// Whether `next` continues it.
    pub(super) fn continues(&self, next: &Self) -> bool {
        self.egroup == next.egroup
            && self.extent == next.extent
            && self.end() == next.block.get()
            && u16::from(self.first) + u16::from(self.blocks) == u16::from(next.first)
    }
}

impl Page {
    /// A node of `level` without entries.
    #[must_use]
    pub(super) fn empty(level: u8) -> Self {
        let mut page = Self(Box::new(Bytes([0; BLOCK_BYTES])));
        page.put_byte(LEVEL_AT, level);
        page
    }

    /// The node that `identity` names, in `bytes`, with the CRC that its parent knows.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(identity: &Identity, crc: u32, bytes: &[u8]) -> Result<Self, FormatError> {
        let prefix = Prefix::check(identity, bytes)?;
        if prefix.crc.get() != crc {
            return Err(FormatError::Stale);
        }
        let bytes: &[u8; BLOCK_BYTES] =
            bytes.get(..BLOCK_BYTES).and_then(|bytes| bytes.try_into().ok()).ok_or(FormatError::Short)?;
        let page = Self(Box::new(Bytes(*bytes)));
        let refuse = |field| Err(FormatError::Field { field });
        if prefix.covered.get() != count32(BLOCK_BYTES) || page.count() > ENTRIES_MAX || page.count() == 0 {
            return refuse("count");
        }
        if usize::from(page.level()) >= LEVELS_MAX {
            return refuse("level");
        }
        let mut last = 0;
        for at in 0..page.count() {
            let (from, to) = match page.level() {
                0 => page.leaf(at).map_or((0, 0), |run| {
                    (run.block.get(), run.block.get().saturating_add(run.blocks.into()))
                }),
                _ => page
                    .inner(at)
                    .map_or((0, 0), |child| (child.block.get(), child.block.get().saturating_add(1))),
            };
            if from < last || to <= from {
                return refuse("block");
            }
            last = to;
        }
        Ok(page)
    }

    /// Gives it a sound prefix as the structure `identity`; returns its CRC.
    pub(super) fn seal_as(&mut self, identity: &Identity) -> u32 {
        let (level, count) = (self.level(), self.count());
        put(&mut self.0.0[..], 0, &Prefix::new(identity, count32(BLOCK_BYTES)));
        self.put_byte(LEVEL_AT, level);
        self.set_count(count);
        // What removed entries left is not to be in the file.
        if let Some(unused) = self.0.0.get_mut(ENTRIES_AT + count * ENTRY_BYTES..) {
            unused.fill(0);
        }
        seal(&mut self.0.0[..]);
        take::<Prefix>(&self.0.0[..], 0).map_or(0, |prefix| prefix.crc.get())
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0.0[..]
    }

    /// A leaf has 0.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.0.0.get(LEVEL_AT).copied().unwrap_or(0)
    }

    /// How many entries.
    #[must_use]
    pub fn count(&self) -> usize {
        take::<U16>(&self.0.0[..], COUNT_AT).map_or(0, |count| usize::from(count.get()))
    }

    /// A leaf's entry.
    #[must_use]
    pub fn leaf(&self, at: usize) -> Option<LeafEntry> {
        self.entry(at)
    }

    /// An inner node's entry.
    #[must_use]
    pub fn inner(&self, at: usize) -> Option<InnerEntry> {
        self.entry(at)
    }

    /// An inner node's child.
    #[must_use]
    pub fn child(&self, at: usize) -> Option<NodeRef> {
        self.inner(at).and_then(|entry| entry.stored())
    }

    /// The first block of the first entry.
    pub(super) fn first_block(&self) -> u64 {
        self.key(0)
    }

    /// An inner node's entry that leads to `block`.
    pub(super) fn child_of(&self, block: VBlock) -> usize {
        self.not_after(block.0).saturating_sub(1)
    }

    /// What a leaf whose range ends at `high` says of `block`.
    pub(crate) fn find(&self, block: VBlock, high: u64) -> Found {
        let after = self.not_after(block.0);
        let run = after.checked_sub(1).and_then(|at| self.leaf(at));
        if let Some(run) = run.filter(|run| run.end() > block.0) {
            let part = run.part(block.0, run.end());
            let (egroup, extent) = (EgroupId(run.egroup.get()), ExtentNo(run.extent.get()));
            return Found::Run { egroup, extent, first: part.first, blocks: u64::from(part.blocks) };
        }
        let next = self.leaf(after).map_or(high, |next| next.block.get());
        Found::Hole { blocks: next.saturating_sub(block.0) }
    }

    /// How many entries begin at or before `block`.
    pub(super) fn not_after(&self, block: u64) -> usize {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) <= block { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Replaces the entries `from..to` by `new`.
    ///
    /// # Panics
    /// When there is no room: the caller splits first.
    pub(super) fn splice<T: IntoBytes + zerocopy::Immutable>(&mut self, from: usize, to: usize, new: &[T]) {
        let count = self.count();
        let after = count - (to - from) + new.len();
        assert!(after <= ENTRIES_MAX && from <= to && to <= count, "a node would have {after} entries");
        let at = |entry: usize| ENTRIES_AT + entry * ENTRY_BYTES;
        self.0.0.copy_within(at(to)..at(count), at(from + new.len()));
        for (number, entry) in new.iter().enumerate() {
            put(&mut self.0.0[..], at(from + number), entry);
        }
        self.set_count(after);
    }

    /// Moves the entries from `at` on to a new node.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let mut right = Self::empty(self.level());
        let moved: Vec<LeafEntry> = (at..self.count()).filter_map(|entry| self.leaf(entry)).collect();
        right.splice(0, 0, &moved);
        self.set_count(at);
        right
    }

    fn key(&self, at: usize) -> u64 {
        take::<U64>(&self.0.0[..], ENTRIES_AT + at * ENTRY_BYTES).map_or(0, U64::get)
    }

    fn entry<T: FromBytes>(&self, at: usize) -> Option<T> {
        if at >= self.count() { None } else { take(&self.0.0[..], ENTRIES_AT + at * ENTRY_BYTES).ok() }
    }

    fn put_byte(&mut self, at: usize, byte: u8) {
        if let Some(place) = self.0.0.get_mut(at) {
            *place = byte;
        }
    }

    fn set_count(&mut self, count: usize) {
        put(&mut self.0.0[..], COUNT_AT, &U16::new(u16::try_from(count).unwrap_or(u16::MAX)));
    }
}
