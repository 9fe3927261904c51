//! A block request: what a chain of descriptors asks for, and with which bytes of the guest's (VIRTIO 5.2.6).
//!
//! Any layout is taken: the header may be cut into pieces or share a descriptor with data, and so may the status byte.

use penstock_bdev::{IoFlags, IoStatus, Lba, Op, Sg};
use penstock_spec::virtio::blk::{Range, RequestHeader, RequestType, SECTOR_BYTES, Status};
use zerocopy::{FromBytes, IntoBytes};

use crate::memory::{Held, Loan};
use crate::ring::{Chain, RingError, Segment};

/// Segments of one request at most: `seg_max`.
pub(crate) const SEGMENTS_MAX: usize = 126;
/// Bytes of one segment at most: `size_max`.
pub(crate) const SEGMENT_BYTES_MAX: u32 = 64 << 10;
/// Bytes of one request at most, however they are cut; one request must not hold a core for long.
pub(crate) const REQUEST_BYTES_MAX: u32 = 8 << 20;
/// Ranges of one discard or write zeroes at most.
pub(crate) const RANGES_MAX: u32 = 16;
/// Sectors of one range at most: 2 GiB.
pub(crate) const RANGE_SECTORS_MAX: u32 = 4 << 20;
const RANGE_BYTES: usize = 16;
const HEADER_BYTES: usize = 16;
const _: () = assert!(SEGMENTS_MAX * SEGMENT_BYTES_MAX as usize <= REQUEST_BYTES_MAX as usize);
const _: () = assert!(SEGMENTS_MAX < Sg::SEGMENTS_MAX);

/// The disk's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Length of a block in bytes: 512 or 4096.
    pub(crate) block_bytes: u32,
    /// Ranges may be discarded.
    pub(crate) discards: bool,
    /// Ranges may be zeroed.
    pub(crate) zeroes: bool,
}

impl Geometry {
    /// Sectors as blocks, if they are whole ones.
    fn blocks(self, sectors: u64) -> Option<u64> {
        let per_block = u64::from((self.block_bytes / SECTOR_BYTES).max(1));
        sectors.is_multiple_of(per_block).then(|| sectors / per_block)
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To read or write; the buffers are in the list.
    Transfer {
        op: Op,
        lba: Lba,
        blocks: u32,
    },
    Flush,
    /// To unmap or zero so many ranges; their list is in the list.
    Ranges {
        op: Op,
        count: u32,
    },
    /// The name of the disk, into the list.
    Id,
    /// Nothing that can be done.
    Answer(Status),
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// Guest address of the status byte.
    pub(crate) status_at: u64,
    /// Bytes that the device writes, the status byte counted.
    pub(crate) writable: u32,
}

/// Reads the chain and lends its data to `list`. The loan has begun.
pub(crate) fn parse(
    chain: &Chain,
    loan: &Loan,
    list: &mut Sg,
    geometry: Geometry,
) -> Result<Request, RingError> {
    let Some(held) = loan.held() else { return Err(RingError::Order) };
    let sum = |segments: &mut dyn Iterator<Item = &Segment>| -> u64 {
        segments.map(|segment| u64::from(segment.len)).sum()
    };
    let (readable, writable) = (sum(&mut chain.readable()), sum(&mut chain.writable()));
    let mut header = [0; HEADER_BYTES];
    let broken = RingError::Request { readable, writable };
    if writable == 0 || !read_header(held, chain, &mut header)? {
        return Err(broken);
    }
    let last = chain.writable().filter(|segment| segment.len > 0).last().ok_or(broken)?;
    let status_at = last.addr.saturating_add(u64::from(last.len - 1));
    if !held.has_byte(status_at) {
        return Err(RingError::Memory { addr: status_at, len: 1 });
    }
    let header = RequestHeader::read_from_bytes(&header).unwrap_or_default();
    let (data_out, data_in) = (readable.saturating_sub(16), writable.saturating_sub(1));
    let too_long = data_out.max(data_in) > u64::from(REQUEST_BYTES_MAX)
        || chain.segments.len() > Sg::SEGMENTS_MAX - crate::memory::REGIONS_MAX;
    let kind = if too_long {
        Kind::Answer(Status::IOERR)
    } else {
        let data = Data { loan, chain, list, out: data_out, into: data_in };
        data.kind(RequestType(header.request_type.get()), header.sector.get(), geometry)?
    };
    let writable = match kind {
        Kind::Answer(_) => 1,
        _ => u32::try_from(writable).unwrap_or(u32::MAX),
    };
    Ok(Request { kind, status_at, writable })
}

/// False where the chain is shorter.
fn read_header(held: &Held, chain: &Chain, header: &mut [u8; HEADER_BYTES]) -> Result<bool, RingError> {
    let mut left: &mut [u8] = header;
    for segment in chain.readable() {
        let count = left.len().min(usize::try_from(segment.len).unwrap_or(usize::MAX));
        let (now, later) = left.split_at_mut(count);
        if !held.read(segment.addr, now) {
            return Err(RingError::Memory { addr: segment.addr, len: segment.len });
        }
        left = later;
        if left.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The data of a request.
struct Data<'a> {
    loan: &'a Loan,
    chain: &'a Chain,
    list: &'a mut Sg,
    out: u64,
    into: u64,
}

impl Data<'_> {
    fn kind(mut self, asked: RequestType, sector: u64, geometry: Geometry) -> Result<Kind, RingError> {
        let unsupported = Ok(Kind::Answer(Status::UNSUPP));
        match asked {
            RequestType::IN => self.transfer(Op::Read, sector, geometry),
            RequestType::OUT => self.transfer(Op::Write, sector, geometry),
            RequestType::FLUSH => Ok(Kind::Flush),
            RequestType::GET_ID => {
                self.lend(Op::Read)?;
                Ok(Kind::Id)
            }
            RequestType::DISCARD if geometry.discards => self.ranges(Op::Unmap),
            RequestType::WRITE_ZEROES if geometry.zeroes => self.ranges(Op::WriteZeroes),
            _ => unsupported,
        }
    }

    fn transfer(&mut self, op: Op, sector: u64, geometry: Geometry) -> Result<Kind, RingError> {
        let bytes = if op == Op::Read { self.into } else { self.out };
        if bytes == 0 {
            return Ok(Kind::Answer(Status::OK));
        }
        let block_bytes = u64::from(geometry.block_bytes);
        let (Some(lba), true) = (geometry.blocks(sector), bytes.is_multiple_of(block_bytes)) else {
            return Ok(Kind::Answer(Status::IOERR));
        };
        let Ok(blocks) = u32::try_from(bytes / block_bytes) else { return Ok(Kind::Answer(Status::IOERR)) };
        self.lend(op)?;
        Ok(Kind::Transfer { op, lba: Lba(lba), blocks })
    }

    fn ranges(&mut self, op: Op) -> Result<Kind, RingError> {
        let count = self.out / 16;
        if !self.out.is_multiple_of(16) || count == 0 || count > u64::from(RANGES_MAX) {
            return Ok(Kind::Answer(Status::IOERR));
        }
        self.lend(Op::Write)?;
        Ok(Kind::Ranges { op, count: u32::try_from(count).unwrap_or(0) })
    }

    /// Lends what the device fills (a read) without the status byte, or what it takes without the header.
    fn lend(&mut self, op: Op) -> Result<(), RingError> {
        let (mut skip, mut left) = if op == Op::Read { (0, self.into) } else { (16, self.out) };
        for segment in self.chain.segments.iter().filter(|segment| segment.writable == (op == Op::Read)) {
            let len = u64::from(segment.len);
            let skipped = len.min(skip);
            skip -= skipped;
            let count = (len - skipped).min(left);
            left -= count;
            let addr = segment.addr.saturating_add(skipped);
            let len = u32::try_from(count).unwrap_or(0);
            if !self.loan.lend(self.list, addr, len) {
                return Err(RingError::Memory { addr, len });
            }
        }
        Ok(())
    }
}

/// One range of a list, or how to answer where it is not allowed.
pub(crate) fn range_at(
    list: &Sg,
    index: u32,
    op: Op,
    geometry: Geometry,
) -> Result<(Lba, u32, IoFlags), Status> {
    let mut range = Range::default();
    let at = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(RANGE_BYTES);
    if list.copy_out(at, range.as_mut_bytes()) != RANGE_BYTES {
        return Err(Status::IOERR);
    }
    let flags = range.flags.get();
    if flags & !Range::UNMAP != 0 || (op == Op::Unmap && flags != 0) {
        return Err(Status::UNSUPP);
    }
    let sectors = range.num_sectors.get();
    if sectors == 0 || sectors > RANGE_SECTORS_MAX {
        return Err(Status::IOERR);
    }
    let lba = geometry.blocks(range.sector.get()).ok_or(Status::IOERR)?;
    let blocks = geometry.blocks(u64::from(sectors)).and_then(|blocks| u32::try_from(blocks).ok());
    let may_free = op == Op::Unmap || flags & Range::UNMAP != 0;
    let flags = if may_free { IoFlags::NONE } else { IoFlags::KEEP_ALLOCATED };
    Ok((Lba(lba), blocks.ok_or(Status::IOERR)?, flags))
}

/// How an I/O's end is told to the driver.
pub(crate) fn status_of(status: IoStatus) -> Status {
    match status {
        IoStatus::Success => Status::OK,
        IoStatus::Unsupported => Status::UNSUPP,
        IoStatus::Pending
        | IoStatus::Aborted
        | IoStatus::OutOfRange
        | IoStatus::BadLength
        | IoStatus::Miscompare
        | IoStatus::WriteProtected
        | IoStatus::NoSpace
        | IoStatus::ReadError
        | IoStatus::WriteError
        | IoStatus::ChecksumError
        | IoStatus::Gone
        | IoStatus::NotReady
        | IoStatus::ReservationConflict
        | IoStatus::TimedOut
        | IoStatus::Internal => Status::IOERR,
    }
}
