//! The log of a lane: what is acknowledged is here until it is in an egroup; changes of the lane's state are here until they
//! are in a checkpoint.
//!
//! ```text
//!   append ─► open batch ── turn ─► one device write ─► durable, in order ─► acknowledged
//!                                                            │
//!   segments  [oldest … needed for replay … ][current][ free … ] ◄── trim, after a checkpoint
//! ```
//!
//! Invariants: batches become durable in order, whatever order the disk completes them in; a record is acknowledged only when
//! every record before it is durable; the last [`RESERVE_SEGMENTS`] segments are for changes of state, so that draining and
//! deleting go on when the log is full; after a failed write the log takes nothing more until it is opened again.

mod append;
mod replay;

use std::collections::VecDeque;

use penstock_bdev::IoStatus;
use penstock_reactor::mem::Buf;
use uuid::Uuid;

pub use append::{AppendError, Record};
pub use replay::{LogEnd, ReplayError, replay};

use crate::format::log::{HEADER_BLOCKS_MAX, RECORDS_MAX, RecordHeader};
use crate::format::{Identity, Magic};
use crate::id::{BLOCK_BYTES, BatchNo, DiskBlock, DiskNo, LaneNo, Lsn, SegmentNo};

/// Device writes of one log under way at most.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Segments that only changes of state may begin.
pub const RESERVE_SEGMENTS: u64 = 2;
/// Bytes of a buffer for headers: a segment's and a batch's.
const HEADERS_BYTES: usize = (1 + HEADER_BLOCKS_MAX) * BLOCK_BYTES;

/// Where a lane's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// The pool.
    pub pool: Uuid,
    /// The lane.
    pub lane: LaneNo,
    /// The disk's number in the pool, which its structures carry.
    pub disk_no: DiskNo,
    /// Where the disk is plugged in.
    pub at: DiskNo,
    /// First block of the lane's log area.
    pub first: DiskBlock,
    /// Blocks of a segment.
    pub segment_blocks: u32,
    /// How many segments there are.
    pub segments: u32,
}

impl LogPlace {
    /// The first block of a segment.
    #[must_use]
    pub fn segment_first(&self, segment: SegmentNo) -> DiskBlock {
        let slot = segment.0 % u64::from(self.segments);
        DiskBlock(self.first.0 + slot * u64::from(self.segment_blocks))
    }

    /// What a structure of the log at `block` says of itself.
    #[must_use]
    pub(crate) fn identity(&self, magic: Magic, block: DiskBlock, sequence: u64) -> Identity {
        let disk = u32::from(self.disk_no.0);
        Identity { magic, pool: self.pool, disk, lane: self.lane, address: block.0, sequence }
    }
}

/// A place in the log between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// The segment of the next batch …
    pub segment: SegmentNo,
    /// … its block in the segment; 0: the segment is not begun.
    pub block: u32,
    /// The next batch.
    pub batch: BatchNo,
    /// Its first record.
    pub lsn: Lsn,
    /// CRC of the batch before.
    pub chain: u32,
}

impl LogPosition {
    /// Where the log of a new lane begins.
    pub const START: Self =
        Self { segment: SegmentNo(1), block: 0, batch: BatchNo(1), lsn: Lsn(1), chain: 0 };
}

/// The memory of one batch.
#[derive(Debug)]
struct Staging {
    headers: Buf,
    payload: Buf,
    payload_bytes: usize,
    records: Vec<RecordHeader>,
}

/// A batch on its way to the disk.
#[derive(Debug)]
struct InFlight {
    batch: BatchNo,
    /// Where the log goes on behind it.
    after: LogPosition,
    records: Vec<RecordHeader>,
    done: bool,
}

/// The writing side of a log.
#[derive(Debug)]
pub struct Log {
    place: LogPlace,
    life: u64,
    /// Writes need FUA to be durable.
    write_cache: bool,
    next: LogPosition,
    /// Records of the open batch and later get numbers from here on.
    next_lsn: Lsn,
    oldest: SegmentNo,
    durable: LogPosition,
    open: Option<Staging>,
    spare: Vec<Staging>,
    in_flight: VecDeque<InFlight>,
    /// Where each segment that is kept begins.
    begins: VecDeque<LogPosition>,
    ios: Vec<Box<penstock_bdev::Io>>,
    /// Payload buffers of batches under way that have no payload.
    kept: Vec<Buf>,
    failed: Option<IoStatus>,
}

impl Log {
    /// The writing side of a log that was replayed up to `end`. `oldest` is the first segment that replay needs, `begins`
    /// says where each from there on begins; `life` is a random number; `write_cache` is the disk's. `None` when there are no buffers just now.
    #[must_use]
    pub fn open(
        place: LogPlace,
        end: LogPosition,
        oldest: SegmentNo,
        life: u64,
        write_cache: bool,
        begins: Vec<LogPosition>,
    ) -> Option<Self> {
        let staging = || {
            let headers = Buf::zeroed(HEADERS_BYTES)?;
            let payload = Buf::zeroed(crate::format::log::PAYLOAD_BYTES_MAX)?;
            Some(Staging { headers, payload, payload_bytes: 0, records: Vec::with_capacity(RECORDS_MAX) })
        };
        let spare: Option<Vec<_>> = (0..=BATCHES_IN_FLIGHT_MAX).map(|_| staging()).collect();
        Some(Self {
            place,
            life,
            write_cache,
            next: end,
            next_lsn: end.lsn,
            oldest,
            durable: end,
            open: None,
            begins: begins.into(),
            spare: spare?,
            in_flight: VecDeque::with_capacity(BATCHES_IN_FLIGHT_MAX),
            ios: (0..BATCHES_IN_FLIGHT_MAX).map(|_| penstock_bdev::Io::boxed()).collect(),
            kept: Vec::with_capacity(BATCHES_IN_FLIGHT_MAX),
            failed: None,
        })
    }

    /// Every record below this one is durable.
    #[must_use]
    pub fn durable_end(&self) -> LogPosition {
        self.durable
    }

    /// The number that the next record gets.
    #[must_use]
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// The oldest segment that is kept.
    #[must_use]
    pub fn oldest(&self) -> SegmentNo {
        self.oldest
    }

    /// The segment that is being written.
    #[must_use]
    pub fn segment(&self) -> SegmentNo {
        self.next.segment
    }

    /// What made it fail; it takes no record any more.
    #[must_use]
    pub fn failed(&self) -> Option<IoStatus> {
        self.failed
    }

    /// Makes it take no record any more: something else that it counts on failed.
    pub fn fail(&mut self, status: IoStatus) {
        self.failed.get_or_insert(status);
    }

    /// Whether nothing waits and nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.open.is_none()
    }

    /// Segments in use, of all.
    #[must_use]
    pub fn segments_used(&self) -> (u64, u64) {
        (self.next.segment.0 - self.oldest.0 + 1, u64::from(self.place.segments))
    }

    /// Where a replay that needs the records from `lsn` on may begin: at the beginning of a segment, or at the durable end.
    #[must_use]
    pub fn replay_from(&self, lsn: Lsn) -> LogPosition {
        let durable = self.durable;
        if lsn >= durable.lsn {
            return durable;
        }
        self.begins.iter().rev().find(|begin| begin.lsn <= lsn).copied().unwrap_or(durable)
    }

    /// Lets segments before `oldest` be written again: a durable checkpoint does not need them.
    pub fn trim(&mut self, oldest: SegmentNo) {
        assert!(oldest <= self.durable.segment, "a segment is trimmed that is not durable yet");
        self.oldest = self.oldest.max(oldest);
        self.begins.retain(|begin| begin.segment >= oldest);
    }
}
