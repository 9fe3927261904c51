//! Egroups: put together in memory, written once; read extent by extent, every block of it verified.

use std::rc::Rc;

use penstock_bdev::{IoStatus, Op};
use penstock_reactor::mem::Buf;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};

use crate::clock::Clock;
use crate::codec::Codec;
use crate::crc::crc32c;
use crate::flow::{DiskError, Flow, all, buffer};
use crate::format::FormatError;
use crate::format::egroup::{
    EGROUP_BLOCKS_MAX, EXTENT_BLOCKS_MAX, EXTENTS_MAX, ExtentEntry, HeaderPart, KIND_DATA, SECTOR_BYTES,
    SECTORS_PER_BLOCK, header_blocks, identity, write_header,
};
use crate::id::{
    BLOCK_BYTES, DiskBlock, DiskNo, EgroupId, ExtentNo, Generation, LaneNo, ShardId, VBlock, count32, index,
};
use crate::state::{Egroup, Place};

/// Blocks of one device write at most.
const CHUNK_BLOCKS: usize = 256;
const CHUNK_BYTES: usize = CHUNK_BLOCKS * BLOCK_BYTES;

/// A checked header part.
pub type Header = HeaderPart<Buf>;

/// Header parts in memory (4 to 40 KiB each), with the generation that each is of.
pub type HeaderCache = Clock<EgroupId, (Generation, Rc<Header>)>;

/// Header parts that a cache needs room for at least.
pub const HEADERS_MIN: usize = 8;

/// Whose egroups they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The pool.
    pub pool: Uuid,
    /// The lane.
    pub lane: LaneNo,
}

/// What cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The disk failed.
    #[error("egroup {id}: {source}")]
    Disk {
        /// The egroup.
        id: EgroupId,
        /// What the disk said.
        #[source]
        source: DiskError,
    },
    /// The header part is not the one that was written.
    #[error("egroup {id}: the header at block {} of disk {}: {source}", at.first.0, at.disk.0)]
    Header {
        /// The egroup.
        id: EgroupId,
        /// Where it is.
        at: Egroup,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// The bytes are not those that were written.
    #[error("egroup {id}: extent {} does not fit its checksum", extent.0)]
    Checksum {
        /// The egroup.
        id: EgroupId,
        /// The extent.
        extent: ExtentNo,
    },
    /// There is no such egroup or extent.
    #[error("egroup {id}: there is no extent {}", extent.0)]
    Missing {
        /// The egroup.
        id: EgroupId,
        /// The extent.
        extent: ExtentNo,
    },
}

/// An egroup that is being put together.
#[derive(Debug)]
pub struct Builder {
    /// Its id.
    pub id: EgroupId,
    extents: Vec<ExtentEntry>,
    crcs: Vec<u32>,
    chunks: Vec<Buf>,
    /// Bytes of extents so far, a multiple of a sector.
    bytes: usize,
    /// Blocks of extents so far when decoded.
    decoded: usize,
}

impl Builder {
    /// An empty one.
    #[must_use]
    pub fn new(id: EgroupId) -> Self {
        Self { id, extents: Vec::new(), crcs: Vec::new(), chunks: Vec::new(), bytes: 0, decoded: 0 }
    }

    /// Whether an extent of `blocks` blocks more has room.
    #[must_use]
    pub fn has_room(&self, blocks: usize) -> bool {
        let header = header_blocks(self.extents.len() + 1, self.crcs.len() + blocks);
        self.extents.len() < EXTENTS_MAX && header + self.data_blocks() + blocks <= EGROUP_BLOCKS_MAX
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Blocks of extents, as they are stored.
    #[must_use]
    pub fn data_blocks(&self) -> usize {
        self.bytes.div_ceil(BLOCK_BYTES)
    }

    /// The number that the next extent gets.
    #[must_use]
    pub fn next_extent(&self) -> ExtentNo {
        ExtentNo(u16::try_from(self.extents.len()).unwrap_or(u16::MAX))
    }

    /// Makes sure that there is memory for an extent.
    pub async fn reserve(&mut self) {
        while self.chunks.len() * CHUNK_BLOCKS < self.data_blocks() + EXTENT_BLOCKS_MAX {
            self.chunks.push(buffer(CHUNK_BLOCKS * BLOCK_BYTES).await);
        }
    }

    /// Adds an extent, block by block.
    ///
    /// # Panics
    /// Without room or memory ([`Self::reserve`]), or for an extent of no or too many blocks: bugs of the caller.
    pub fn push<'a>(
        &mut self,
        owner: (ShardId, VBlock),
        kind: u8,
        blocks: impl ExactSizeIterator<Item = &'a [u8]>,
    ) {
        let count = blocks.len();
        assert!(
            (1..=EXTENT_BLOCKS_MAX).contains(&count) && self.has_room(count),
            "an extent of {count} blocks"
        );
        self.pad(BLOCK_BYTES);
        self.push_entry(owner, kind, Codec::Raw, count, count * BLOCK_BYTES);
        for bytes in blocks {
            self.put(bytes);
            self.crcs.push(crc32c(bytes));
        }
    }

    /// Adds an extent of data of `blocks` blocks that `codec` made `stored` of.
    ///
    /// # Panics
    /// As [`Self::push`].
    pub fn push_coded(&mut self, owner: (ShardId, VBlock), codec: Codec, blocks: usize, stored: &[u8]) {
        assert!(
            (1..=EXTENT_BLOCKS_MAX).contains(&blocks) && self.has_room(blocks),
            "an extent of {blocks} blocks"
        );
        self.push_entry(owner, KIND_DATA, codec, blocks, stored.len());
        self.put(stored);
        self.crcs.push(crc32c(stored));
        self.pad(SECTOR_BYTES);
    }

    fn push_entry(&mut self, owner: (ShardId, VBlock), kind: u8, codec: Codec, blocks: usize, stored: usize) {
        self.extents.push(ExtentEntry {
            shard: U64::new(owner.0.0),
            block: U64::new(owner.1.0),
            sector: U32::new(count32(self.bytes / SECTOR_BYTES)),
            stored_bytes: U32::new(count32(stored)),
            first_crc: U16::new(u16::try_from(self.crcs.len()).unwrap_or(u16::MAX)),
            blocks: u8::try_from(blocks).unwrap_or(u8::MAX),
            codec: codec as u8,
            kind,
            reserved: [0; 3],
        });
        self.decoded += blocks;
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let at = self.bytes % CHUNK_BYTES;
            let (now, later) = left.split_at(left.len().min(CHUNK_BYTES - at));
            let chunk = self.chunks.get_mut(self.bytes / CHUNK_BYTES);
            let room = chunk.and_then(|chunk| chunk.get_mut(at..at + now.len()));
            let Some(room) = room else { panic!("an egroup's chunks are too short") };
            room.copy_from_slice(now);
            self.bytes += now.len();
            left = later;
        }
    }

    /// Zeroes up to the next multiple of `unit` bytes.
    fn pad(&mut self, unit: usize) {
        const ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        let missing = self.bytes.next_multiple_of(unit) - self.bytes;
        self.put(ZEROES.get(..missing).unwrap_or_default());
    }

    /// Adds an extent that nobody needs any more: its number stays taken, its blocks are gone.
    pub fn push_dead(&mut self, entry: &ExtentEntry) {
        let (sector, first_crc, codec) = (U32::new(0), U16::new(0), Codec::Raw as u8);
        let stored_bytes = U32::ZERO;
        self.extents.push(ExtentEntry { sector, first_crc, codec, blocks: 0, stored_bytes, ..*entry });
    }

    /// Blocks in all.
    #[must_use]
    pub fn total_blocks(&self) -> usize {
        header_blocks(self.extents.len(), self.crcs.len()) + self.data_blocks()
    }

    /// Whether it has the very extents, with the same checksums at the same places, that `header` tells of.
    #[must_use]
    pub fn is_as(&self, header: &Header) -> bool {
        let shift = count32(header_blocks(self.extents.len(), self.crcs.len())) * SECTORS_PER_BLOCK;
        let crcs = |entry: &ExtentEntry| {
            let first = usize::from(entry.first_crc.get());
            let made = self.crcs.get(first..first + entry.crcs()).unwrap_or_default();
            made.iter().enumerate().all(|(at, crc)| header.crc(entry, at) == Some(*crc))
        };
        let same = |(number, entry): (usize, &ExtentEntry)| {
            let known = u16::try_from(number).ok().and_then(|number| header.extent(ExtentNo(number)));
            let mut made = *entry;
            if made.blocks > 0 {
                made.sector += shift;
            }
            known == Some(made) && crcs(entry)
        };
        self.extents.len() == index(header.extents()) && self.extents.iter().enumerate().all(same)
    }

    /// Writes a copy of it to each of `spots`. They are durable after the next flush there. Where some fail, the egroup is where it was
    /// written, and the failures are told.
    ///
    /// # Errors
    /// What the first disk says, when all fail; the space holds whatever it holds then.
    pub async fn write(
        mut self,
        flow: &Flow,
        owner: &Owner,
        generation: Generation,
        copies: u8,
        spots: &[Spot],
    ) -> Result<(Egroup, Vec<DiskError>), DiskError> {
        let header = header_blocks(self.extents.len(), self.crcs.len());
        self.pad(BLOCK_BYTES);
        let shift = count32(header) * SECTORS_PER_BLOCK;
        self.extents.iter_mut().filter(|extent| extent.blocks > 0).for_each(|extent| extent.sector += shift);
        let blocks = header + self.data_blocks();
        let mut writes: Vec<Writing> = Vec::with_capacity(spots.len());
        for spot in spots {
            let mut buf = buffer(header * BLOCK_BYTES).await;
            let identity = identity(owner.pool, u32::from(spot.disk.0), owner.lane, self.id, spot.first.0);
            let crc = write_header(&identity, generation, blocks, &self.extents, &self.crcs, &mut buf);
            writes.push(Writing { spot: *spot, crc, next: spot.first.0, buf: Some(buf), failed: None });
        }
        write_each(flow, &mut writes).await;
        let mut left = self.data_blocks();
        for mut chunk in std::mem::take(&mut self.chunks) {
            let count = left.min(CHUNK_BLOCKS);
            if count == 0 {
                break;
            }
            chunk.set_len(count * BLOCK_BYTES);
            for write in writes.iter_mut().skip(1).filter(|write| write.failed.is_none()) {
                let mut copy = buffer(chunk.len()).await;
                copy.copy_from_slice(&chunk);
                write.buf = Some(copy);
            }
            if let Some(first) = writes.first_mut().filter(|write| write.failed.is_none()) {
                first.buf = Some(chunk);
            }
            write_each(flow, &mut writes).await;
            left -= count;
        }
        let place = |write: &Writing| {
            let Spot { disk, first, .. } = write.spot;
            write.failed.is_none().then_some(Place { disk, first, header_crc: write.crc })
        };
        let places: Vec<Place> = writes.iter().filter_map(place).collect();
        let failures: Vec<DiskError> = writes.iter().filter_map(|write| write.failed).collect();
        let (Some(first), second) = (places.first(), places.get(1).copied()) else {
            return Err(failures.first().copied().unwrap_or(NOWHERE));
        };
        let egroup = Egroup {
            generation,
            disk: first.disk,
            first: first.first,
            blocks: count32(blocks),
            header_blocks: count32(header),
            header_crc: first.header_crc,
            decoded: count32(self.decoded),
            live: self.decoded as u64,
            second,
            copies,
        };
        Ok((egroup, failures))
    }
}

/// Where a copy of an egroup is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// The disk, by its number in the pool.
    pub disk: DiskNo,
    /// Where it is plugged in.
    pub at: DiskNo,
    /// The first block.
    pub first: DiskBlock,
}

/// What an egroup that is written to no disk says.
const NOWHERE: DiskError = DiskError {
    disk: DiskNo(u16::MAX),
    op: Op::Write,
    block: DiskBlock(0),
    blocks: 0,
    status: IoStatus::Internal,
};

/// A copy that is being written.
struct Writing {
    spot: Spot,
    crc: u32,
    next: u64,
    buf: Option<Buf>,
    failed: Option<DiskError>,
}

/// Writes what each has, at once.
async fn write_each(flow: &Flow, writes: &mut [Writing]) {
    let each = writes.iter_mut().filter_map(|write| {
        let buf = write.buf.take()?;
        Some(async move {
            let blocks = (buf.len() / BLOCK_BYTES) as u64;
            write.failed = flow.write(write.spot.at, DiskBlock(write.next), buf).await.err();
            write.next += blocks;
        })
    });
    drop(all(each).await);
}

/// Puts an egroup together again, each extent from a copy where it is sound. Returns it with the copies, by their place in
/// `copies`, in which something was not.
///
/// # Errors
/// [`ReadError`], when something is sound in none of them.
pub async fn rebuild(
    flow: &Flow,
    owner: &Owner,
    id: EgroupId,
    egroup: &Egroup,
    copies: &[(Place, DiskNo)],
) -> Result<(Builder, Vec<usize>), ReadError> {
    let missing = ReadError::Missing { id, extent: ExtentNo(0) };
    let (mut bad, mut found, mut why) = (Vec::new(), None, missing);
    for (number, (place, at)) in copies.iter().enumerate() {
        match read_header(flow, owner, id, &egroup.seen_at(*place), *at).await {
            Ok(header) => drop(found.get_or_insert(header)),
            Err(error) => {
                bad.push(number);
                why = error;
            }
        }
    }
    let header = found.ok_or(why)?;
    let mut builder = Builder::new(id);
    for extent in (0..header.extents()).filter_map(|extent| u16::try_from(extent).ok().map(ExtentNo)) {
        let Some(entry) = header.extent(extent) else { continue };
        if entry.blocks == 0 {
            builder.push_dead(&entry);
            continue;
        }
        let (mut sound, mut why) = (None, missing);
        for (number, (place, at)) in copies.iter().enumerate() {
            let whole = piece(&egroup.seen_at(*place), &header, extent, 0, u64::from(entry.blocks));
            let Some(whole) = whole else { continue };
            match read_piece(flow, id, &header, extent, &whole, *at).await {
                Ok(bytes) => drop(sound.get_or_insert((whole, bytes))),
                Err(error) => {
                    why = error;
                    if !bad.contains(&number) {
                        bad.push(number);
                    }
                }
            }
        }
        let (whole, bytes) = sound.ok_or(why)?;
        let stored = whole.stored(&bytes).ok_or(why)?;
        builder.reserve().await;
        match whole.codec() {
            Codec::Raw => builder.push(entry.owner(), entry.kind, stored.chunks_exact(BLOCK_BYTES)),
            codec => builder.push_coded(entry.owner(), codec, usize::from(entry.blocks), stored),
        }
    }
    if builder.is_as(&header) {
        return Ok((builder, bad));
    }
    Err(ReadError::Header { id, at: *egroup, source: FormatError::Field { field: "extents" } })
}

/// Where the blocks of a piece of an extent are on its disk, and what they must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Of which extent.
    pub entry: ExtentEntry,
    /// The first block on the disk …
    pub at: DiskBlock,
    /// … how many of them …
    pub disk_blocks: u32,
    /// … and bytes in the first of them before the extent: one that is encoded is read as a whole.
    lead: u16,
    /// The first block in the extent.
    pub first: u8,
    /// How many.
    pub blocks: u8,
}

/// Where blocks `first..first + blocks` of extent `extent` are.
#[must_use]
pub fn piece(egroup: &Egroup, header: &Header, extent: ExtentNo, first: u8, blocks: u64) -> Option<Piece> {
    let entry = header.extent(extent)?;
    let blocks = u8::try_from(blocks).ok()?;
    if u16::from(first) + u16::from(blocks) > u16::from(entry.blocks) || blocks == 0 {
        return None;
    }
    let sector = entry.sector.get();
    let begin = egroup.first.0 + u64::from(sector / SECTORS_PER_BLOCK);
    if entry.codec == Codec::Raw as u8 {
        let at = DiskBlock(begin + u64::from(first));
        return Some(Piece { entry, at, disk_blocks: u32::from(blocks), lead: 0, first, blocks });
    }
    let lead = index(sector % SECTORS_PER_BLOCK) * SECTOR_BYTES;
    let disk_blocks = count32((lead + index(entry.stored_bytes.get())).div_ceil(BLOCK_BYTES));
    let lead = u16::try_from(lead).ok()?;
    Some(Piece { entry, at: DiskBlock(begin), disk_blocks, lead, first, blocks })
}

impl Piece {
    /// How the extent is stored.
    #[must_use]
    pub fn codec(&self) -> Codec {
        Codec::of(self.entry.codec).unwrap_or_default()
    }

    /// The stored bytes among the disk blocks that were read: of a raw extent the blocks of the piece, else the whole extent.
    #[must_use]
    pub fn stored<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let len = match self.codec() {
            Codec::Raw => usize::from(self.blocks) * BLOCK_BYTES,
            _ => index(self.entry.stored_bytes.get()),
        };
        let lead = usize::from(self.lead);
        bytes.get(lead..lead + len)
    }
}

/// Whether `bytes` are the disk blocks of `piece`.
#[must_use]
pub fn verify(header: &Header, piece: &Piece, bytes: &[u8]) -> bool {
    let Some(stored) = piece.stored(bytes) else { return false };
    if piece.codec() != Codec::Raw {
        return header.crc(&piece.entry, 0) == Some(crc32c(stored));
    }
    let blocks = stored.chunks_exact(BLOCK_BYTES);
    blocks.len() == usize::from(piece.blocks)
        && (usize::from(piece.first)..)
            .zip(blocks)
            .all(|(at, block)| header.crc(&piece.entry, at) == Some(crc32c(block)))
}

/// The header part of `egroup`, from the bytes that were read.
///
/// # Errors
/// [`ReadError::Header`].
pub fn parse_header(owner: &Owner, id: EgroupId, egroup: &Egroup, bytes: Buf) -> Result<Header, ReadError> {
    let wrong = |source| ReadError::Header { id, at: *egroup, source };
    let identity = identity(owner.pool, u32::from(egroup.disk.0), owner.lane, id, egroup.first.0);
    let header = HeaderPart::parse(&identity, egroup.generation, bytes).map_err(wrong)?;
    if header.header_crc() != egroup.header_crc {
        return Err(wrong(FormatError::Stale));
    }
    Ok(header)
}

/// Reads and verifies the header part of `egroup`, which is plugged in at `at`.
///
/// # Errors
/// [`ReadError`].
pub async fn read_header(
    flow: &Flow,
    owner: &Owner,
    id: EgroupId,
    egroup: &Egroup,
    at: DiskNo,
) -> Result<Header, ReadError> {
    let bytes = flow.read(at, egroup.first, egroup.header_blocks).await;
    parse_header(owner, id, egroup, bytes.map_err(|source| ReadError::Disk { id, source })?)
}

/// Reads and verifies blocks of an extent whose header part is at hand; they are as they are stored ([`Piece::stored`]).
///
/// # Errors
/// [`ReadError`].
pub async fn read_piece(
    flow: &Flow,
    id: EgroupId,
    header: &Header,
    extent: ExtentNo,
    piece: &Piece,
    at: DiskNo,
) -> Result<Buf, ReadError> {
    let bytes =
        flow.read(at, piece.at, piece.disk_blocks).await.map_err(|source| ReadError::Disk { id, source })?;
    if verify(header, piece, &bytes) { Ok(bytes) } else { Err(ReadError::Checksum { id, extent }) }
}

impl ReadError {
    /// What a host is told.
    #[must_use]
    pub fn status(&self) -> IoStatus {
        match self {
            Self::Disk { source, .. } => {
                debug_assert_eq!(source.op, Op::Read);
                IoStatus::ReadError
            }
            Self::Header { .. } | Self::Checksum { .. } => IoStatus::ChecksumError,
            Self::Missing { .. } => IoStatus::Internal,
        }
    }
}
