//! What a lane knows: its egroups, its regions, its shards and their snapshots. In memory as a whole; on disk as a checkpoint
//! and the changes behind it, both of them [`MetaOp`]s.
//!
//! Invariants: the state changes by [`State::apply`] only, with ops that are durable in the log; what it holds is what
//! [`State::to_ops`] says, no more: the free space is computed from it.

use std::collections::{BTreeMap, BTreeSet};

use zerocopy::little_endian::{U16, U32, U64};

use crate::format::FormatError;
use crate::format::checkpoint::{MetaKind, MetaOp, NOTE_PART_BYTES};
use crate::id::{DiskBlock, DiskNo, EgroupId, ExtentNo, Generation, Lsn, ShardId};
use crate::map::{NodeRef, Root};

/// Where an egroup is, and what of it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egroup {
    /// Which version.
    pub generation: Generation,
    /// The disk, by its number in the pool.
    pub disk: DiskNo,
    /// The first block.
    pub first: DiskBlock,
    /// Blocks in all.
    pub blocks: u32,
    /// Blocks of the header part.
    pub header_blocks: u32,
    /// The header's CRC.
    pub header_crc: u32,
    /// Blocks of data and nodes when decoded.
    pub decoded: u32,
    /// Blocks (decoded) that maps refer to: exactly, where no snapshot shares them; else at most.
    pub live: u64,
    /// Where its second copy is.
    pub second: Option<Place>,
    /// How many copies there are to be.
    pub copies: u8,
}

/// Where a copy of an egroup is. Copies differ in what their headers say of that, so each has its CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The disk, by its number in the pool.
    pub disk: DiskNo,
    /// The first block.
    pub first: DiskBlock,
    /// The header's CRC.
    pub header_crc: u32,
}

/// Space that nobody needs any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Blocks at each place.
    pub blocks: u32,
    /// The places.
    pub places: Vec<Place>,
}

impl Egroup {
    /// Where its copies are.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let first = Place { disk: self.disk, first: self.first, header_crc: self.header_crc };
        [Some(first), self.second].into_iter().flatten()
    }

    /// It, as its copy at `place` is.
    #[must_use]
    pub fn seen_at(&self, place: Place) -> Self {
        Self { disk: place.disk, first: place.first, header_crc: place.header_crc, ..*self }
    }

    /// It with its copies at these places, of which there is one at least.
    #[must_use]
    pub fn with_places(&self, places: &[Place]) -> Option<Self> {
        let (first, others) = places.split_first()?;
        Some(Self { second: others.first().copied(), ..self.seen_at(*first) })
    }

    /// Its space.
    #[must_use]
    pub fn space(&self) -> Gone {
        Gone { blocks: self.blocks, places: self.places().collect() }
    }

    /// Its space but for what `new` has of it.
    fn space_without(&self, new: &Self) -> Option<Gone> {
        let kept = |place: &Place| new.places().any(|new| (new.disk, new.first) == (place.disk, place.first));
        let places: Vec<Place> = self.places().filter(|place| !kept(place)).collect();
        (!places.is_empty()).then_some(Gone { blocks: self.blocks, places })
    }
}

/// A snapshot of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Its map; `None` while what came before it is being drained.
    pub root: Option<Root>,
    /// Blocks mapped.
    pub mapped: u64,
}

/// A shard: what its map is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shard {
    /// Its map.
    pub root: Root,
    /// Blocks mapped.
    pub mapped: u64,
    /// Egroups from this serial number on are referred to by no other map.
    pub alone_from: u64,
    /// Its snapshots.
    pub snapshots: BTreeMap<u64, Snapshot>,
}

/// What a lane knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The egroups.
    pub egroups: BTreeMap<EgroupId, Egroup>,
    /// The lane's regions.
    pub regions: BTreeSet<(DiskNo, u32)>,
    /// The shards.
    pub shards: BTreeMap<ShardId, Shard>,
    /// What those above the lane have it remember: bytes by number.
    pub notes: BTreeMap<u64, Vec<u8>>,
    /// Data up to here are in the maps.
    pub drained: Lsn,
    /// Changes up to here are in this state.
    pub lsn: Lsn,
    /// The serial number of the next egroup; never goes back.
    pub next_egroup: u64,
}

/// An op that does not fit the state: the log or the checkpoint has been written wrongly, or read from the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a change of kind {kind} of {id:016x} does not fit what is there; run penstock fsck")]
pub struct StateError {
    /// The op's kind.
    pub kind: u8,
    /// The op's object.
    pub id: u64,
}

impl State {
    /// The state of a new lane.
    #[must_use]
    pub fn new() -> Self {
        Self { next_egroup: 1, ..Self::default() }
    }

    /// Makes one change. Returns the space that is free now: of an egroup that it dropped, or of copies that were replaced.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn apply(&mut self, op: &MetaOp) -> Result<Option<Gone>, StateError> {
        let wrong = StateError { kind: op.kind, id: op.id.get() };
        let egroup = EgroupId(op.id.get());
        let shard = ShardId(op.id.get());
        match op.kind().map_err(|_: FormatError| wrong)? {
            MetaKind::Egroup => {
                self.next_egroup = self.next_egroup.max(egroup.serial() + 1);
                let new = egroup_of(op, wrong)?;
                let old = self.egroups.insert(egroup, new);
                return Ok(old.and_then(|old| old.space_without(&new)));
            }
            MetaKind::EgroupLive => self.egroups.get_mut(&egroup).ok_or(wrong)?.live = op.c.get(),
            MetaKind::EgroupDrop => {
                let dropped = self.egroups.remove(&egroup).ok_or(wrong)?;
                return Ok(Some(dropped.space()));
            }
            MetaKind::Region => {
                let region = u32::try_from(op.a.get()).map_err(|_| wrong)?;
                self.regions.insert((DiskNo(op.disk.get()), region));
            }
            MetaKind::RegionDrop => {
                let region = u32::try_from(op.a.get()).map_err(|_| wrong)?;
                if !self.regions.remove(&(DiskNo(op.disk.get()), region)) {
                    return Err(wrong);
                }
            }
            MetaKind::Shard => {
                let entry = self.shards.entry(shard).or_default();
                (entry.root, entry.mapped, entry.alone_from) = (root_of(op, wrong)?, op.c.get(), op.b.get());
            }
            MetaKind::ShardDrop => {
                let without = self.shards.get(&shard).is_some_and(|shard| shard.snapshots.is_empty());
                if !without {
                    return Err(wrong);
                }
                self.shards.remove(&shard);
            }
            MetaKind::Drained => self.drained = self.drained.max(Lsn(op.a.get())),
            MetaKind::SnapshotTake => {
                let snapshots = &mut self.shards.get_mut(&shard).ok_or(wrong)?.snapshots;
                if snapshots.contains_key(&op.b.get()) {
                    return Err(wrong);
                }
                snapshots.insert(op.b.get(), Snapshot { root: None, mapped: 0 });
            }
            MetaKind::Snapshot => {
                let snapshot = Snapshot { root: Some(root_of(op, wrong)?), mapped: op.c.get() };
                self.shards.get_mut(&shard).ok_or(wrong)?.snapshots.insert(op.b.get(), snapshot);
            }
            MetaKind::Revert => {
                let shard = self.shards.get_mut(&shard).ok_or(wrong)?;
                let snapshot = shard.snapshots.get(&op.b.get()).copied().ok_or(wrong)?;
                // From here on it shares all that there is with the snapshot.
                (shard.root, shard.mapped) = (snapshot.root.ok_or(wrong)?, snapshot.mapped);
                shard.alone_from = op.c.get();
            }
            MetaKind::SnapshotDrop => {
                let snapshots = &mut self.shards.get_mut(&shard).ok_or(wrong)?.snapshots;
                snapshots.remove(&op.b.get()).ok_or(wrong)?;
            }
            MetaKind::Note => self.apply_note(op).ok_or(wrong)?,
            MetaKind::Stored => return Err(wrong),
            MetaKind::NoteDrop => drop(self.notes.remove(&op.id.get()).ok_or(wrong)?),
        }
        Ok(None)
    }

    /// Takes in a part of a note. Parts come in order and in one group, so that nobody sees a note that is not whole.
    fn apply_note(&mut self, op: &MetaOp) -> Option<()> {
        let (number, bytes, text) = op.note_part()?;
        let at = number * NOTE_PART_BYTES;
        if number == 0 {
            self.notes.insert(op.id.get(), Vec::with_capacity(bytes));
        }
        let note = self.notes.get_mut(&op.id.get()).filter(|note| note.len() == at)?;
        let part = text.get(..bytes.checked_sub(at)?.min(NOTE_PART_BYTES))?;
        note.extend_from_slice(part);
        Some(())
    }

    /// Ops that make this state of that of a new lane. `drained`, `lsn` and `next_egroup` are not among them.
    #[must_use]
    pub fn to_ops(&self) -> Vec<MetaOp> {
        let mut ops = Vec::with_capacity(self.egroups.len() + self.regions.len() + self.shards.len());
        ops.extend(self.regions.iter().map(|(disk, region)| region_op(*disk, *region)));
        ops.extend(self.egroups.iter().map(|(id, egroup)| egroup_op(*id, egroup)));
        for (id, shard) in &self.shards {
            ops.push(shard_op(*id, shard.root, shard.mapped, shard.alone_from));
            for (number, snapshot) in &shard.snapshots {
                ops.push(match snapshot.root {
                    None => MetaOp { b: U64::new(*number), ..MetaOp::of(MetaKind::SnapshotTake, id.0) },
                    Some(root) => snapshot_op(*id, *number, root, snapshot.mapped),
                });
            }
        }
        ops.extend(self.notes.iter().flat_map(|(id, text)| MetaOp::note(*id, text)));
        ops
    }

    /// Blocks that the lane's egroups occupy, all copies together.
    #[must_use]
    pub fn used_blocks(&self) -> u64 {
        self.egroups.values().map(|egroup| u64::from(egroup.blocks) * egroup.places().count() as u64).sum()
    }
}

/// The op that tells of an egroup.
#[must_use]
pub fn egroup_op(id: EgroupId, egroup: &Egroup) -> MetaOp {
    MetaOp {
        disk: U16::new(egroup.disk.0),
        crc: U32::new(egroup.header_crc),
        a: U64::new(egroup.first.0),
        b: U64::new(u64::from(egroup.blocks) | u64::from(egroup.decoded) << 32),
        c: U64::new(egroup.live),
        d: U32::new(egroup.generation.0),
        e: U32::new(egroup.header_blocks),
        copies: if egroup.copies > 1 { egroup.copies } else { 0 },
        a2: U64::new(egroup.second.map_or(0, |second| second.first.0)),
        crc2: U32::new(egroup.second.map_or(0, |second| second.header_crc)),
        disk2: U16::new(egroup.second.map_or(0, |second| second.disk.0 + 1)),
        ..MetaOp::of(MetaKind::Egroup, id.0)
    }
}

/// The op that gives a region to the lane.
#[must_use]
pub fn region_op(disk: DiskNo, region: u32) -> MetaOp {
    MetaOp { disk: U16::new(disk.0), a: U64::new(u64::from(region)), ..MetaOp::of(MetaKind::Region, 0) }
}

/// The op that takes a region from the lane.
#[must_use]
pub fn region_drop_op(disk: DiskNo, region: u32) -> MetaOp {
    let a = U64::new(u64::from(region));
    MetaOp { disk: U16::new(disk.0), a, ..MetaOp::of(MetaKind::RegionDrop, 0) }
}

/// The op that tells of a shard.
#[must_use]
pub fn shard_op(id: ShardId, root: Root, mapped: u64, alone_from: u64) -> MetaOp {
    MetaOp {
        b: U64::new(alone_from),
        c: U64::new(mapped),
        ..with_root(MetaOp::of(MetaKind::Shard, id.0), root)
    }
}

/// The op that tells of a snapshot's map.
#[must_use]
pub fn snapshot_op(id: ShardId, number: u64, root: Root, mapped: u64) -> MetaOp {
    MetaOp {
        b: U64::new(number),
        c: U64::new(mapped),
        ..with_root(MetaOp::of(MetaKind::Snapshot, id.0), root)
    }
}

fn with_root(op: MetaOp, root: Root) -> MetaOp {
    let Some(node) = root.node else { return op };
    MetaOp {
        a: U64::new(node.egroup.0),
        crc: U32::new(node.crc),
        e: U32::new(u32::from(node.extent.0)),
        d: U32::new(u32::from(root.level)),
        ..op
    }
}

fn root_of(op: &MetaOp, wrong: StateError) -> Result<Root, StateError> {
    if op.a.get() == EgroupId::NONE.0 {
        return Ok(Root::default());
    }
    let extent = ExtentNo(u16::try_from(op.e.get()).map_err(|_| wrong)?);
    let level = u8::try_from(op.d.get()).map_err(|_| wrong)?;
    Ok(Root { node: Some(NodeRef { egroup: EgroupId(op.a.get()), extent, crc: op.crc.get() }), level })
}

fn egroup_of(op: &MetaOp, wrong: StateError) -> Result<Egroup, StateError> {
    let blocks = u32::try_from(op.b.get() & 0xffff_ffff).map_err(|_| wrong)?;
    if blocks == 0 || op.e.get() == 0 || op.e.get() > blocks {
        return Err(wrong);
    }
    // Version 1 knew of none that were encoded.
    let decoded = match u32::try_from(op.b.get() >> 32).map_err(|_| wrong)? {
        0 => blocks - op.e.get(),
        decoded => decoded,
    };
    let second = op.disk2.get().checked_sub(1).map(|disk| Place {
        disk: DiskNo(disk),
        first: DiskBlock(op.a2.get()),
        header_crc: op.crc2.get(),
    });
    if second.is_some_and(|second| second.disk.0 == op.disk.get()) {
        return Err(wrong);
    }
    Ok(Egroup {
        second,
        copies: op.copies.max(1),
        generation: Generation(op.d.get()),
        disk: DiskNo(op.disk.get()),
        first: DiskBlock(op.a.get()),
        blocks,
        header_blocks: op.e.get(),
        header_crc: op.crc.get(),
        decoded,
        live: op.c.get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egroup(first: u64) -> Egroup {
        Egroup {
            generation: Generation(1),
            disk: DiskNo(0),
            first: DiskBlock(first),
            blocks: 9,
            header_blocks: 1,
            header_crc: 5,
            decoded: 20,
            live: 8,
            second: (first > 99).then_some(Place { disk: DiskNo(3), first: DiskBlock(7), header_crc: 6 }),
            copies: 2,
        }
    }

    #[test]
    fn a_state_is_the_same_again_from_its_own_ops() {
        let root =
            Root { node: Some(NodeRef { egroup: EgroupId(7), extent: ExtentNo(3), crc: 9 }), level: 2 };
        let ops = [
            region_op(DiskNo(1), 4),
            egroup_op(EgroupId(7), &egroup(100)),
            egroup_op(EgroupId(8), &egroup(200)),
            shard_op(ShardId(5), root, 12, 6),
            MetaOp { b: U64::new(1), ..MetaOp::of(MetaKind::SnapshotTake, 5) },
            snapshot_op(ShardId(5), 2, root, 11),
            MetaOp { c: U64::new(3), ..MetaOp::of(MetaKind::EgroupLive, 8) },
        ];
        let text: Vec<u8> = (0..=255).cycle().take(700).collect();
        let notes = [MetaOp::note(1, &text), MetaOp::note(2, b""), MetaOp::note(3, &text[..96])];
        let ops: Vec<MetaOp> = ops.into_iter().chain(notes.into_iter().flatten()).collect();
        let mut state = State::new();
        ops.iter().for_each(|op| assert_eq!(state.apply(op), Ok(None)));
        let mut again = State::new();
        state.to_ops().iter().for_each(|op| assert_eq!(again.apply(op), Ok(None)));
        assert_eq!(state, again);
        assert_eq!(state.next_egroup, 9);
        assert_eq!(state.notes[&1], text);
        assert_eq!((state.notes[&2].len(), state.notes[&3].len()), (0, 96));
        MetaOp::note(1, b"shorter").iter().for_each(|op| assert_eq!(state.apply(op), Ok(None)));
        assert_eq!(state.notes[&1], b"shorter");
        let dropped = state.apply(&MetaOp::of(MetaKind::EgroupDrop, 7)).unwrap();
        assert_eq!(dropped, Some(egroup(100).space()));
        assert_eq!(state.apply(&region_drop_op(DiskNo(1), 4)), Ok(None));
        assert!(state.regions.is_empty() && state.apply(&region_drop_op(DiskNo(1), 4)).is_err());
    }

    #[test]
    fn a_copy_that_moves_frees_its_own_space_only() {
        let mut state = State::new();
        let was = egroup(100);
        state.apply(&egroup_op(EgroupId(7), &was)).unwrap();
        let kept = was.second.unwrap();
        let new = Place { disk: DiskNo(2), first: DiskBlock(55), header_crc: 1 };
        let moved = was.with_places(&[kept, new]).unwrap();
        let gone = state.apply(&egroup_op(EgroupId(7), &moved)).unwrap().unwrap();
        assert_eq!(gone, Gone { blocks: 9, places: vec![was.places().next().unwrap()] });
        assert_eq!(state.egroups[&EgroupId(7)], moved);
        assert_eq!(state.used_blocks(), 18);
        assert_eq!(state.apply(&egroup_op(EgroupId(7), &moved)), Ok(None));
        let twice = was.with_places(&[kept, kept]).unwrap();
        assert!(state.apply(&egroup_op(EgroupId(8), &twice)).is_err(), "both copies on one disk");
    }

    #[test]
    fn ops_that_do_not_fit_are_refused() {
        let mut state = State::new();
        for kind in [MetaKind::EgroupDrop, MetaKind::EgroupLive, MetaKind::ShardDrop, MetaKind::SnapshotTake]
        {
            assert!(state.apply(&MetaOp::of(kind, 3)).is_err());
        }
        let long = [7; 100];
        let parts = MetaOp::note(3, &long);
        assert!(state.apply(&parts[1]).is_err(), "a note without its beginning");
        assert!(state.apply(&MetaOp::of(MetaKind::NoteDrop, 4)).is_err());
        assert!(state.apply(&MetaOp { kind: 99, ..MetaOp::default() }).is_err());
        assert!(state.apply(&MetaOp::of(MetaKind::Egroup, 3)).is_err(), "an egroup without blocks");
        assert_eq!(state.egroups.len(), 0);
    }
}
