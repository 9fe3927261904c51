//! Reading: tables, then the map, then the cache, then the device, verified.
//!
//! ```text
//!   advance ─► in a table: copied ─┐
//!      ▲  ├──► a hole: zeroes ─────┤
//!      │  ├──► in the cache: copied ─┼─► all blocks there ─► what was seen is durable ─► done
//!      │  └──► Node / Header / Data: one device read ─► complete ─┘
//! ```
//!
//! A read asks again from the tables on whenever it goes on, so that what was drained meanwhile is found where it is now. While a device read is
//! under way its egroup is pinned: the space is not given to anybody else before the read is back.

use std::rc::Rc;

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_reactor::mem::Buf;

use super::Core;
use crate::cache::BlockKey;
use crate::codec::Codec;
use crate::egroup::{Header, Piece, parse_header, piece, verify};
use crate::flow::{DiskIo, Flow};
use crate::format::egroup::EXTENT_BLOCKS_MAX;
use crate::id::{BLOCK_BYTES, DiskNo, EgroupId, ExtentNo, Lsn, ShardId, VBlock, index};
use crate::map::{Found, Miss, NodeRef, Page, Root, Target, lookup};
use crate::state::Egroup;

/// Tags of device reads of the read machine; batches of the log are numbered far below.
pub(super) const READ_TAG: u64 = 1 << 62;

static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What a read waits for; the completion of its device read moves it on.
#[derive(Debug)]
enum Wait {
    /// Nothing: it goes on in the next turn (a buffer was missing).
    Turn,
    /// A node of the map.
    Node { node: NodeRef, header: Rc<Header>, piece: Piece },
    /// The header part of an egroup, of a copy that was there when it was asked for.
    Header(EgroupId, Egroup),
    /// Blocks.
    Data { id: EgroupId, extent: ExtentNo, header: Rc<Header>, piece: Piece },
    /// That what it saw becomes durable.
    Durable,
}

/// A host's read.
#[derive(Debug)]
pub(super) struct Read {
    io: Box<Io>,
    shard: ShardId,
    snapshot: Option<u64>,
    /// Blocks that are there.
    done: u64,
    /// The newest record that it saw.
    seen: Lsn,
    wait: Wait,
    /// The egroup and the disk of the copy that is being read.
    from: (EgroupId, DiskNo),
    /// Copies of that egroup that were tried and are bad.
    bad: [Option<DiskNo>; 2],
}

enum Cached {
    Copied,
    Missing(u64),
}

/// What the tables say of a block.
enum Tabled {
    Copied,
    /// It is in an egroup already.
    Stored(Found),
    /// The same, and the record that says so is on its way.
    NotDurable,
    Nothing,
}

enum Next {
    Done,
    Wait(Wait),
    Failed(IoStatus),
}

impl Core {
    /// Takes a read.
    ///
    /// # Errors
    /// The I/O, when as many are under way as may be.
    pub(super) fn submit_read(
        &mut self,
        shard: ShardId,
        snapshot: Option<u64>,
        io: Box<Io>,
    ) -> Result<(), Box<Io>> {
        let Some(slot) = self.free_reads.pop() else { return Err(io) };
        let from = (EgroupId::NONE, DiskNo(0));
        let read =
            Read { io, shard, snapshot, done: 0, seen: Lsn(0), wait: Wait::Turn, from, bad: [None; 2] };
        self.advance(slot, read);
        Ok(())
    }

    /// Goes on with reads that wait for a buffer or for durability.
    pub(super) fn turn_reads(&mut self) {
        for _ in 0..self.waiting_reads.len() {
            let Some(slot) = self.waiting_reads.pop_front() else { break };
            if let Some(read) = self.reads.get_mut(index(slot)).and_then(Option::take) {
                self.advance(slot, read);
            }
        }
    }

    /// Takes back a device read.
    pub(super) fn complete_read(&mut self, mut io: DiskIo) {
        let slot = u32::try_from(io.io.tag & !READ_TAG).unwrap_or(u32::MAX);
        let Some(mut read) = self.reads.get_mut(index(slot)).and_then(Option::take) else {
            panic!("a device read came back that nobody waits for")
        };
        let (status, buf) = (io.io.status, io.io.data.take_single());
        self.read_ios.push(io.io);
        let outcome = match (status, buf) {
            (IoStatus::Success, Some(buf)) => self.take_in(&mut read, buf),
            (status, _) => {
                self.unpin_wait(&read.wait);
                if status == IoStatus::Gone {
                    self.suspect(read.from.1);
                }
                Err(IoStatus::ReadError)
            }
        };
        match outcome {
            Ok(()) => {
                self.count_bad(&mut read);
                self.advance(slot, read);
            }
            Err(status) if self.has_another(&mut read) => {
                debug_assert_ne!(status, IoStatus::Success);
                read.wait = Wait::Turn;
                self.advance(slot, read);
            }
            Err(status) => self.end_read(slot, read, status),
        }
    }

    /// Remembers that the copy that was read is bad; whether there is one that is not known to be.
    fn has_another(&mut self, read: &mut Read) -> bool {
        let (id, disk) = read.from;
        if let Some(room) = read.bad.iter_mut().find(|place| place.is_none()) {
            *room = Some(disk);
        }
        let egroup = self.state.egroups.get(&id);
        egroup.is_some_and(|egroup| {
            egroup.places().any(|place| self.is_there(place.disk) && !read.bad.contains(&Some(place.disk)))
        })
    }

    /// Something could be read: what could not before is a copy to be mended.
    fn count_bad(&mut self, read: &mut Read) {
        for disk in std::mem::take(&mut read.bad).into_iter().flatten() {
            self.note_bad(read.from.0, disk);
        }
    }

    fn take_in(&mut self, read: &mut Read, buf: Buf) -> Result<(), IoStatus> {
        self.unpin_wait(&read.wait);
        match std::mem::replace(&mut read.wait, Wait::Turn) {
            Wait::Header(id, egroup) => {
                // Transformed or dropped meanwhile: it is looked up again.
                if self.state.egroups.get(&id).is_none_or(|now| now.generation != egroup.generation) {
                    return Ok(());
                }
                match parse_header(&self.owner, id, &egroup, buf) {
                    Ok(header) => self.headers.insert(id, (egroup.generation, Rc::new(header))),
                    Err(error) => return Err(self.damaged(error.status())),
                }
            }
            Wait::Node { node, header, piece } => {
                let sound = verify(&header, &piece, &buf);
                let page = Page::parse(&self.owner.node_identity(&node), node.crc, &buf);
                match page {
                    Ok(page) if sound => self.nodes.insert(node.key(), page),
                    _ => return Err(self.damaged(IoStatus::ChecksumError)),
                }
            }
            Wait::Data { id, extent, header, piece } => {
                if !verify(&header, &piece, &buf) {
                    return Err(self.damaged(IoStatus::ChecksumError));
                }
                if !self.take_in_data(read, (id, extent), &piece, &buf) {
                    return Err(self.damaged(IoStatus::ChecksumError));
                }
            }
            Wait::Turn | Wait::Durable => panic!("a read that waits for no device got something from it"),
        }
        Ok(())
    }

    /// Takes the disk blocks of a piece to the host and into the cache; false where they cannot be decoded.
    fn take_in_data(&mut self, read: &mut Read, of: (EgroupId, ExtentNo), piece: &Piece, buf: &[u8]) -> bool {
        let Some(stored) = piece.stored(buf) else { return false };
        let at = usize::try_from(read.done).unwrap_or(usize::MAX) * BLOCK_BYTES;
        // An extent that is encoded comes as a whole.
        let (first, bytes) = match piece.codec() {
            Codec::Raw => (piece.first, stored),
            codec => {
                let len = usize::from(piece.entry.blocks) * BLOCK_BYTES;
                let Some(decoded) = self.coder.get_or_insert_default().decode(codec, stored, len) else {
                    return false;
                };
                (0, decoded)
            }
        };
        let skip = usize::from(piece.first - first) * BLOCK_BYTES;
        let wanted = bytes.get(skip..skip + usize::from(piece.blocks) * BLOCK_BYTES).unwrap_or_default();
        read.io.data.copy_in(at, wanted);
        read.done += u64::from(piece.blocks);
        for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            self.cache.insert(BlockKey::new(of.0, of.1, block), bytes);
        }
        true
    }

    fn damaged(&mut self, status: IoStatus) -> IoStatus {
        self.checksum_errors += 1;
        status
    }

    fn unpin_wait(&mut self, wait: &Wait) {
        match wait {
            Wait::Header(id, _) | Wait::Data { id, .. } => self.unpin(*id),
            Wait::Node { node, .. } => self.unpin(node.egroup),
            Wait::Turn | Wait::Durable => {}
        }
    }

    fn advance(&mut self, slot: u32, mut read: Read) {
        match self.next(slot, &mut read) {
            Next::Done => self.end_read(slot, read, IoStatus::Success),
            Next::Failed(status) => self.end_read(slot, read, status),
            Next::Wait(wait) => {
                if matches!(wait, Wait::Turn | Wait::Durable) {
                    self.waiting_reads.push_back(slot);
                }
                read.wait = wait;
                if let Some(place) = self.reads.get_mut(index(slot)) {
                    *place = Some(read);
                }
            }
        }
    }

    fn end_read(&mut self, slot: u32, mut read: Read, status: IoStatus) {
        read.io.status = status;
        self.done.push_back(read.io);
        self.free_reads.push(slot);
    }

    /// Goes on until something must be waited for.
    fn next(&mut self, slot: u32, read: &mut Read) -> Next {
        let Some(root) = self.root_for(read) else { return Next::Failed(IoStatus::Gone) };
        let Some(root) = root else { return Next::Failed(IoStatus::NotReady) };
        while read.done < u64::from(read.io.blocks) {
            let block = VBlock(read.io.lba.0 + read.done);
            let (found, tabled) = match self.look_in_tables(read) {
                Tabled::Copied => continue,
                Tabled::NotDurable if self.log.failed().is_some() => {
                    return Next::Failed(IoStatus::ReadError);
                }
                Tabled::NotDurable => return Next::Wait(Wait::Durable),
                Tabled::Stored(found) => (Ok(found), true),
                Tabled::Nothing => (lookup(&self.nodes, root, block), false),
            };
            match found {
                Err(Miss(node)) => return self.fetch_node(slot, read, node),
                Ok(Found::Hole { blocks }) => {
                    let blocks = self.not_in_tables(read, blocks.max(1));
                    for _ in 0..blocks {
                        let at = usize::try_from(read.done).unwrap_or(usize::MAX) * BLOCK_BYTES;
                        read.io.data.copy_in(at, &ZEROES);
                        read.done += 1;
                    }
                }
                Ok(Found::Run { egroup, extent, first, blocks }) => {
                    let blocks = if tabled { blocks } else { self.not_in_tables(read, blocks) };
                    match self.copy_from_cache(read, (egroup, extent, first), blocks) {
                        Cached::Copied => {}
                        Cached::Missing(blocks) => {
                            return self.fetch_data(slot, read, (egroup, extent), first, blocks);
                        }
                    }
                }
            }
        }
        if read.seen < self.log.durable_end().lsn {
            return Next::Done;
        }
        // What is not durable yet has not happened; a host that saw it would see it vanish in a power cut.
        if self.log.failed().is_some() {
            Next::Failed(IoStatus::ReadError)
        } else {
            Next::Wait(Wait::Durable)
        }
    }

    /// The map to read from; `Some(None)`: the snapshot is being made.
    fn root_for(&self, read: &Read) -> Option<Option<Root>> {
        let shard = self.state.shards.get(&read.shard)?;
        match read.snapshot {
            None => Some(Some(shard.root)),
            Some(number) => shard.snapshots.get(&number).map(|snapshot| snapshot.root),
        }
    }

    /// What the tables have of the next block: it is copied, or it is stored and so many behind it are.
    fn look_in_tables(&self, read: &mut Read) -> Tabled {
        if read.snapshot.is_some() {
            return Tabled::Nothing;
        }
        let block = read.io.lba.0 + read.done;
        let Some(cell) = self.tables.get(read.shard, block) else { return Tabled::Nothing };
        if let Some(target) = cell.slot.and_then(|slot| self.tables.arena.stored(slot)) {
            // Only then the lane knows where the egroup is.
            if cell.lsn >= self.log.durable_end().lsn {
                return Tabled::NotDurable;
            }
            let follows = |at: &u64| {
                let next = self.tables.get(read.shard, block + at).and_then(|cell| cell.slot);
                let expected = u8::try_from(*at).map(|at| Target { first: target.first + at, ..target });
                next.and_then(|slot| self.tables.arena.stored(slot)) == expected.ok()
            };
            let left = (u64::from(read.io.blocks) - read.done).min(EXTENT_BLOCKS_MAX as u64);
            let blocks = 1 + (1..left).take_while(follows).count() as u64;
            read.seen = read.seen.max(cell.lsn);
            let Target { egroup, extent, first } = target;
            return Tabled::Stored(Found::Run { egroup, extent, first, blocks });
        }
        let bytes = cell.slot.map_or(&ZEROES[..], |slot| self.tables.arena.block(slot));
        let at = usize::try_from(read.done).unwrap_or(usize::MAX) * BLOCK_BYTES;
        read.io.data.copy_in(at, bytes);
        read.done += 1;
        read.seen = read.seen.max(cell.lsn);
        Tabled::Copied
    }

    /// Copies what the cache has of the run that begins at `from`; or says how many blocks it lacks before the next that it has.
    fn copy_from_cache(&mut self, read: &mut Read, from: (EgroupId, ExtentNo, u8), blocks: u64) -> Cached {
        let (egroup, extent, first) = from;
        let end = first.saturating_add(u8::try_from(blocks).unwrap_or(u8::MAX));
        for block in first..end {
            let Some(bytes) = self.cache.get(BlockKey::new(egroup, extent, block)) else {
                if block > first {
                    return Cached::Copied;
                }
                let behind = (block + 1..end)
                    .take_while(|block| !self.cache.contains(BlockKey::new(egroup, extent, *block)));
                let behind = behind.count() as u64;
                self.cache.count_misses(behind);
                return Cached::Missing(1 + behind);
            };
            let at = usize::try_from(read.done).unwrap_or(usize::MAX) * BLOCK_BYTES;
            read.io.data.copy_in(at, bytes);
            read.done += 1;
        }
        Cached::Copied
    }

    /// How many of the next `blocks` blocks are in no table, the first of them being none.
    fn not_in_tables(&self, read: &Read, blocks: u64) -> u64 {
        let blocks = blocks.min(u64::from(read.io.blocks) - read.done);
        if read.snapshot.is_some() {
            return blocks;
        }
        let first = read.io.lba.0 + read.done;
        let found = (1..blocks).find(|at| self.tables.get(read.shard, first + at).is_some());
        found.unwrap_or(blocks)
    }

    /// The copy of an egroup to read from: of those that are not known to be bad, in turn.
    fn copy_of(&self, slot: u32, read: &Read, id: EgroupId) -> Option<(Egroup, Egroup)> {
        let egroup = self.state.egroups.get(&id)?;
        let bad = if read.from.0 == id { read.bad } else { [None; 2] };
        let mut sound = egroup
            .places()
            .filter(|place| self.is_there(place.disk) && !bad.contains(&Some(place.disk)))
            .map(|place| egroup.seen_at(place));
        let first = sound.next()?;
        let copy = sound.next().filter(|_| slot % 2 == 1).unwrap_or(first);
        Some((*egroup, copy))
    }

    fn fetch_node(&mut self, slot: u32, read: &mut Read, node: NodeRef) -> Next {
        let Some((egroup, copy)) = self.copy_of(slot, read, node.egroup) else {
            return self.no_copy(node.egroup);
        };
        let Some(header) = self.cached_header(node.egroup, egroup.generation) else {
            return self.fetch_header(slot, read, node.egroup);
        };
        let Some(piece) = piece(&copy, &header, node.extent, 0, 1) else {
            return Next::Failed(IoStatus::Internal);
        };
        let wait = Wait::Node { node, header, piece };
        self.fetch(slot, read, (node.egroup, copy.disk), (piece.at.0, 1), wait)
    }

    fn fetch_header(&mut self, slot: u32, read: &mut Read, id: EgroupId) -> Next {
        let Some((_, copy)) = self.copy_of(slot, read, id) else {
            return self.no_copy(id);
        };
        let what = (copy.first.0, copy.header_blocks);
        self.fetch(slot, read, (id, copy.disk), what, Wait::Header(id, copy))
    }

    fn fetch_data(
        &mut self,
        slot: u32,
        read: &mut Read,
        (id, extent): (EgroupId, ExtentNo),
        first: u8,
        blocks: u64,
    ) -> Next {
        debug_assert!(blocks <= EXTENT_BLOCKS_MAX as u64);
        let Some((egroup, copy)) = self.copy_of(slot, read, id) else {
            return self.no_copy(id);
        };
        let Some(header) = self.cached_header(id, egroup.generation) else {
            return self.fetch_header(slot, read, id);
        };
        let piece = piece(&copy, &header, extent, first, blocks);
        let Some(piece) = piece else { return Next::Failed(IoStatus::Internal) };
        let what = (piece.at.0, piece.disk_blocks);
        self.fetch(slot, read, (id, copy.disk), what, Wait::Data { id, extent, header, piece })
    }

    /// What a read of an egroup gets of which no copy is there.
    fn no_copy(&self, id: EgroupId) -> Next {
        let known = self.state.egroups.contains_key(&id);
        Next::Failed(if known { IoStatus::ReadError } else { IoStatus::Internal })
    }

    fn fetch(
        &mut self,
        slot: u32,
        read: &mut Read,
        from: (EgroupId, DiskNo),
        (first, blocks): (u64, u32),
        wait: Wait,
    ) -> Next {
        let Some(buf) = Buf::alloc(index(blocks) * BLOCK_BYTES) else { return Next::Wait(Wait::Turn) };
        if read.from.0 != from.0 {
            read.bad = [None; 2];
        }
        read.from = from;
        let mut io = self.read_ios.pop().unwrap_or_else(Io::boxed);
        io.set(READ_TAG | u64::from(slot), Op::Read, IoFlags::NONE, Lba(first), blocks);
        io.data.push(buf);
        Flow::push(&self.flow, DiskIo { disk: self.at(from.1), io });
        self.pin(from.0);
        Next::Wait(wait)
    }
}
