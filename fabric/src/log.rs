//! The log of a lane: what is acknowledged is here until it is in an egroup; changes of the lane's state are here until they
//! are in a checkpoint.
//!
//! ```text
//!   append ─► open batch ── turn ─► one device write ─► durable, in order ─► acknowledged
//!                                                            │
//!   segments  [oldest … needed for replay … ][current][ free … ] ◄── trim, after a checkpoint
//! ```
//!
//! A log may be on several disks, its homes, each of which gets every batch, byte by byte the same.
//!
//! Invariants: batches become durable in order, whatever order the disks complete them in, and when every home has them: one that fails is
//! waited for until somebody has said, durably, that it is out ([`Log::drop_home`]); a record is acknowledged only when
//! every record before it is durable; the last [`RESERVE_SEGMENTS`] segments are for changes of state, so that draining and
//! deleting go on when the log is full; after a failed write the log takes nothing more until it is opened again.

mod append;
mod replay;

use std::collections::VecDeque;

use penstock_bdev::IoStatus;
use penstock_reactor::mem::Buf;
use uuid::Uuid;

pub use append::{AppendError, Record};
pub use replay::{Lacking, LogEnd, ReplayError, mend, replay};

use crate::format::log::{HEADER_BLOCKS_MAX, RECORDS_MAX, RecordHeader};
use crate::format::{ANY_DISK, Identity, Magic};
use crate::id::{BLOCK_BYTES, BatchNo, DiskBlock, DiskNo, LaneNo, Lsn, SegmentNo};

/// Device writes of one log under way at most.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Segments that only changes of state may begin.
pub const RESERVE_SEGMENTS: u64 = 2;
/// Disks that have a log at most: two, and a third while one of them is replaced.
pub const HOMES_MAX: usize = 3;
/// The tag of a batch's copy for another home has this bit beside the batch's number.
const COPY_TAG: u64 = 1 << 61;
/// Bytes of a buffer for headers: a segment's and a batch's.
const HEADERS_BYTES: usize = (1 + HEADER_BLOCKS_MAX) * BLOCK_BYTES;

/// Where the disks that have a log are plugged in; the first of them has it as long as any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Homes([Option<DiskNo>; HOMES_MAX]);

impl Homes {
    /// One disk.
    #[must_use]
    pub const fn one(at: DiskNo) -> Self {
        Self([Some(at), None, None])
    }

    /// The disks.
    pub fn iter(&self) -> impl Iterator<Item = DiskNo> + use<> {
        self.0.into_iter().flatten()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// Whether that disk is one of them.
    #[must_use]
    pub fn contains(&self, at: DiskNo) -> bool {
        self.0.contains(&Some(at))
    }

    /// Adds one, unless it is there. False: there is no room.
    pub fn add(&mut self, at: DiskNo) -> bool {
        if self.contains(at) {
            return true;
        }
        let room = self.0.iter_mut().find(|place| place.is_none());
        room.map(|room| *room = Some(at)).is_some()
    }

    /// Takes one away.
    pub fn remove(&mut self, at: DiskNo) {
        let mut left = Self::default();
        for other in self.iter().filter(|other| *other != at) {
            left.add(other);
        }
        *self = left;
    }
}

impl FromIterator<DiskNo> for Homes {
    /// The first [`HOMES_MAX`] of them.
    fn from_iter<T: IntoIterator<Item = DiskNo>>(disks: T) -> Self {
        let mut homes = Self::default();
        for at in disks {
            homes.add(at);
        }
        homes
    }
}

/// Where a lane's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// The pool.
    pub pool: Uuid,
    /// The lane.
    pub lane: LaneNo,
    /// Where the disks are plugged in that have it.
    pub homes: Homes,
    /// First block of the lane's log area, the same on every disk.
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
        Identity { magic, pool: self.pool, disk: ANY_DISK, lane: self.lane, address: block.0, sequence }
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

/// A batch on its way to the disks.
#[derive(Debug)]
struct InFlight {
    batch: BatchNo,
    /// Where the log goes on behind it.
    after: LogPosition,
    /// Homes that have it to write.
    waiting: Homes,
    /// Homes that did not write it; it counts when they are homes no more.
    failed: Homes,
}

impl InFlight {
    fn is_durable(&self) -> bool {
        self.waiting.count() == 0 && self.failed.count() == 0
    }
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
    /// Lists of records whose batches are under way, empty.
    lists: Vec<Vec<RecordHeader>>,
    /// Homes that failed: nothing more is sent there.
    suspects: Homes,
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
            ios: (0..BATCHES_IN_FLIGHT_MAX * HOMES_MAX).map(|_| penstock_bdev::Io::boxed()).collect(),
            kept: Vec::with_capacity(BATCHES_IN_FLIGHT_MAX),
            lists: Vec::with_capacity(BATCHES_IN_FLIGHT_MAX),
            suspects: Homes::default(),
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

    /// Homes that failed and are waited for.
    #[must_use]
    pub fn suspects(&self) -> Homes {
        self.suspects
    }

    /// The disks that have it.
    #[must_use]
    pub fn homes(&self) -> Homes {
        self.place.homes
    }

    /// Does without a home: the pool's other disks say durably that it is out, or the log is not wanted there any more. Without any
    /// home the log has failed.
    pub fn drop_home(&mut self, at: DiskNo) {
        self.place.homes.remove(at);
        self.suspects.remove(at);
        for batch in &mut self.in_flight {
            batch.failed.remove(at);
            batch.waiting.remove(at);
        }
        if self.place.homes.count() == 0 {
            self.failed.get_or_insert(IoStatus::Gone);
        }
        self.retire();
    }

    /// Sends batches to one more disk from now on; returns where the first is that it gets. `None`: there is no room for more homes.
    pub fn add_home(&mut self, at: DiskNo) -> Option<LogPosition> {
        self.place.homes.add(at).then_some(self.next)
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
        // What came before the oldest one that is kept was needed by nobody.
        let begin = self.begins.iter().rev().find(|begin| begin.lsn <= lsn).or(self.begins.front());
        begin.copied().unwrap_or(durable)
    }

    /// Lets segments before `oldest` be written again: a durable checkpoint does not need them.
    pub fn trim(&mut self, oldest: SegmentNo) {
        assert!(oldest <= self.durable.segment, "a segment is trimmed that is not durable yet");
        self.oldest = self.oldest.max(oldest);
        self.begins.retain(|begin| begin.segment >= oldest);
    }
}
