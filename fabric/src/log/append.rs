//! Writing: records into the open batch, the batch to the disk, completions into durability.

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_reactor::mem::Buf;
use zerocopy::little_endian::{U32, U64};

use super::{
    BATCHES_IN_FLIGHT_MAX, COPY_TAG, HOMES_MAX, InFlight, Log, LogPosition, RESERVE_SEGMENTS, Staging,
};
use crate::codec::Codec;
use crate::flow::{DiskIo, Flow};
use crate::format::log::{
    BATCH_HEADER_BYTES, BatchHeader, PAYLOAD_BYTES_MAX, RECORD_BYTES, RECORDS_MAX, RecordHeader, RecordKind,
    SegmentHeader, header_blocks,
};
use crate::format::{Magic, Prefix, put, seal, take};
use crate::id::{BLOCK_BYTES, BatchNo, DiskBlock, DiskNo, Lsn, SegmentNo, ShardId, VBlock, count32, index};

/// What a record says, but for its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: RecordKind,
    /// `RECORD_` bits.
    pub flags: u8,
    /// Of which shard; 0 for the lane itself.
    pub shard: ShardId,
    /// First block.
    pub block: VBlock,
    /// How many blocks.
    pub blocks: u64,
    /// Its number in its shard.
    pub shard_lsn: u64,
    /// The epoch of the shard's owner.
    pub epoch: u64,
}

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendError {
    /// The open batch is full and as many are under way as may be: to be tried again after a completion.
    Busy,
    /// No segment is free: to be tried again after a trim.
    Full,
    /// A write failed; the log must be opened again.
    Failed(IoStatus),
}

/// Room for a batch for homes but the first: headers and payload.
type Copies = [Option<(DiskNo, Buf, Option<Buf>)>; HOMES_MAX - 1];

impl Log {
    /// Appends a record; `fill` writes its payload of `payload_bytes` bytes. It goes to the disk with the next
    /// [`Self::turn`].
    ///
    /// # Errors
    /// [`AppendError`]; nothing has changed then.
    ///
    /// # Panics
    /// When the payload is larger than a batch: a bug of the caller.
    #[inline]
    pub fn append(
        &mut self,
        record: &Record,
        payload_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Lsn, AppendError> {
        self.append_coded(record, Codec::Raw, payload_bytes, payload_bytes, fill)
    }

    /// As [`Self::append`], of a payload that `codec` made `payload_bytes` of `decoded_bytes`.
    ///
    /// # Errors
    /// [`AppendError`]; nothing has changed then.
    ///
    /// # Panics
    /// When the payload is larger than a batch: a bug of the caller.
    #[inline]
    pub fn append_coded(
        &mut self,
        record: &Record,
        codec: Codec,
        decoded_bytes: usize,
        payload_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Lsn, AppendError> {
        assert!(payload_bytes <= PAYLOAD_BYTES_MAX, "a record of {payload_bytes} bytes");
        if let Some(status) = self.failed {
            return Err(AppendError::Failed(status));
        }
        let at = self.open.as_ref().map_or(0, |open| open.payload_bytes);
        let records = self.open.as_ref().map_or(0, |open| open.records.len());
        if records == RECORDS_MAX || at + payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(AppendError::Busy);
        }
        let blocks = header_blocks(records + 1) + (at + payload_bytes).div_ceil(BLOCK_BYTES);
        // What frees space goes on longer than what needs it, and what records that longest.
        let reserve = match record.kind {
            RecordKind::Write | RecordKind::Direct => RESERVE_SEGMENTS,
            RecordKind::Zero => RESERVE_SEGMENTS - 1,
            RecordKind::Meta => 0,
        };
        self.place_of(count32(blocks), reserve).ok_or(AppendError::Full)?;
        let Some(open) = self.open.take().or_else(|| self.spare.pop()) else { return Err(AppendError::Busy) };
        let lsn = self.next_lsn;
        self.next_lsn.0 += 1;
        self.open = Some(add(open, record, (codec, decoded_bytes), payload_bytes, fill));
        Ok(lsn)
    }

    /// Sends the open batch to the disk, if there is one and not too many are under way.
    #[inline]
    pub fn turn(&mut self, flow: &Flow) {
        if self.failed.is_some() || self.in_flight.len() == BATCHES_IN_FLIGHT_MAX {
            return;
        }
        let Some(open) = self.open.take() else { return };
        // Without buffers for the copies, or a home that works, it waits.
        match self.copies(&open) {
            Some(copies) => self.send(open, copies, flow),
            None => self.open = Some(open),
        }
    }

    /// Buffers for what homes but the first get of a batch: headers and payload.
    fn copies(&self, open: &Staging) -> Option<Copies> {
        // With a home that is waited for as the last one, nothing goes on.
        self.targets().next()?;
        let mut copies = Copies::default();
        for (room, at) in copies.iter_mut().zip(self.targets().skip(1)) {
            let headers = Buf::alloc((1 + header_blocks(open.records.len())) * BLOCK_BYTES)?;
            let payload = match open.payload_bytes.div_ceil(BLOCK_BYTES) {
                0 => None,
                blocks => Some(Buf::alloc(blocks * BLOCK_BYTES)?),
            };
            *room = Some((at, headers, payload));
        }
        Some(copies)
    }

    /// Homes that batches are sent to.
    fn targets(&self) -> impl Iterator<Item = DiskNo> + use<> {
        let suspects = self.suspects;
        self.place.homes.iter().filter(move |at| !suspects.contains(*at))
    }

    /// Takes back a batch that a disk has written, or has not.
    ///
    /// # Panics
    /// When it is none of this log's.
    pub fn complete(&mut self, mut io: DiskIo) {
        let (batch, is_copy) = (BatchNo(io.io.tag & !COPY_TAG), io.io.tag & COPY_TAG != 0);
        let found = self.in_flight.iter_mut().find(|in_flight| in_flight.batch == batch);
        if let Some(found) = found.filter(|found| found.waiting.contains(io.disk)) {
            found.waiting.remove(io.disk);
            if io.io.status != IoStatus::Success {
                found.failed.add(io.disk);
            }
        } else {
            // Of a disk that was given up meanwhile.
            assert!(
                !self.place.homes.contains(io.disk),
                "batch {} came back and is not under way, or twice",
                batch.0
            );
        }
        let is_home = self.place.homes.contains(io.disk);
        if io.io.status != IoStatus::Success && is_home {
            if self.targets().any(|at| at != io.disk) {
                self.suspects.add(io.disk);
            } else {
                self.failed.get_or_insert(io.io.status);
            }
        }
        if is_copy {
            io.io.data.clear();
        } else if let (Some(headers), Some(payload)) = (io.io.data.pop_front(), self.take_payload(&mut io)) {
            let records = self.lists.pop().unwrap_or_default();
            self.spare.push(Staging { headers, payload, payload_bytes: 0, records });
        }
        self.ios.push(io.io);
        self.retire();
    }

    /// Counts as durable what every home has.
    pub(super) fn retire(&mut self) {
        // What comes after a failed write is not there, whatever the disk says of it.
        while self.failed.is_none() && self.in_flight.front().is_some_and(InFlight::is_durable) {
            if let Some(first) = self.in_flight.pop_front() {
                self.durable = first.after;
            }
        }
        if self.failed.is_some() {
            self.in_flight.retain(|in_flight| in_flight.waiting.count() > 0);
        }
    }

    /// The payload's buffer: in the I/O, or kept aside where there was no payload.
    fn take_payload(&mut self, io: &mut DiskIo) -> Option<Buf> {
        io.io.data.pop_front().or_else(|| self.kept.pop())
    }

    /// Where a batch of `blocks` blocks would go.
    fn place_of(&self, blocks: u32, reserve: u64) -> Option<(SegmentNo, u32)> {
        let LogPosition { segment, block, .. } = self.next;
        // A segment's first block is its header.
        let fits = block + blocks.max(1) <= self.place.segment_blocks && block > 0;
        let segment = if fits || block == 0 { segment } else { SegmentNo(segment.0 + 1) };
        let free = segment.0 - self.oldest.0 + reserve < u64::from(self.place.segments);
        free.then_some((segment, if fits { block } else { 1 }))
    }

    fn send(&mut self, mut open: Staging, copies: Copies, flow: &Flow) {
        let Some(first_home) = self.targets().next() else { panic!("a log without a home has not failed") };
        let header_blocks = header_blocks(open.records.len());
        let payload_blocks = open.payload_bytes.div_ceil(BLOCK_BYTES);
        let blocks = count32(header_blocks + payload_blocks);
        // `append` has seen that there is room, of whatever kind the record was.
        let Some((segment, block)) = self.place_of(blocks, 0) else {
            panic!("a batch has no place in the log")
        };
        let begins = block == 1;
        if begins {
            self.begins.push_back(LogPosition { segment, block: 1, ..self.next });
        }
        let segment_first = self.place.segment_first(segment);
        let first = DiskBlock(segment_first.0 + u64::from(block));
        let lead = if begins { BLOCK_BYTES } else { 0 };
        open.headers.set_len(lead + header_blocks * BLOCK_BYTES);
        open.headers.fill(0);
        let crc = self.write_headers(&mut open, lead, first, segment);
        if begins {
            self.write_segment_header(&mut open.headers, segment);
        }
        if let Some(padding) = open.payload.get_mut(open.payload_bytes..payload_blocks * BLOCK_BYTES) {
            padding.fill(0);
        }
        if payload_blocks > 0 {
            open.payload.set_len(payload_blocks * BLOCK_BYTES);
        }
        let batch = self.next.batch;
        let (from, count) = (first.0 - u64::from(begins), blocks + u32::from(begins));
        let payload = open.payload.get(..payload_blocks * BLOCK_BYTES).unwrap_or_default();
        for (at, mut headers, room) in copies.into_iter().flatten() {
            headers.set_len(open.headers.len());
            headers.copy_from_slice(&open.headers);
            let mut io = self.batch_io(batch.0 | COPY_TAG, from, count);
            io.data.push(headers);
            if let Some(mut room) = room {
                room.copy_from_slice(payload);
                io.data.push(room);
            }
            flow.push(DiskIo { disk: at, io });
        }
        let mut io = self.batch_io(batch.0, from, count);
        io.data.push(open.headers);
        if payload_blocks > 0 {
            io.data.push(open.payload);
        } else {
            self.kept.push(open.payload);
        }
        let lsn = Lsn(self.next.lsn.0 + u64::from(count32(open.records.len())));
        open.records.clear();
        self.lists.push(open.records);
        self.next =
            LogPosition { segment, block: block + blocks, batch: BatchNo(batch.0 + 1), lsn, chain: crc };
        let waiting = self.targets().collect();
        self.in_flight.push_back(InFlight { batch, after: self.next, waiting, failed: self.suspects });
        flow.push(DiskIo { disk: first_home, io });
    }

    fn batch_io(&mut self, tag: u64, from: u64, blocks: u32) -> Box<Io> {
        let Some(mut io) = self.ios.pop() else { panic!("more batches under way than I/Os") };
        let flags = if self.write_cache { IoFlags::FUA } else { IoFlags::NONE };
        io.set(tag, Op::Write, flags, Lba(from), blocks);
        io
    }

    fn write_headers(&self, open: &mut Staging, lead: usize, first: DiskBlock, segment: SegmentNo) -> u32 {
        let records = open.records.len();
        let covered = BATCH_HEADER_BYTES + records * RECORD_BYTES;
        let identity = self.place.identity(Magic::BATCH, first, self.next.batch.0);
        let header = BatchHeader {
            prefix: Prefix::new(&identity, count32(covered)),
            first_lsn: U64::new(self.next.lsn.0),
            durable: U64::new(self.durable.batch.0 - 1),
            segment: U64::new(segment.0),
            chain: U32::new(self.next.chain),
            records: U32::new(count32(records)),
            header_blocks: U32::new(count32(header_blocks(records))),
            payload_blocks: U32::new(count32(open.payload_bytes.div_ceil(BLOCK_BYTES))),
            life: U64::new(self.life),
            reserved: [0; 16],
        };
        let Some(room) = open.headers.get_mut(lead..) else { panic!("no room for a batch's headers") };
        put(room, 0, &header);
        for (number, record) in open.records.iter().enumerate() {
            put(room, BATCH_HEADER_BYTES + number * RECORD_BYTES, record);
        }
        seal(room);
        take::<Prefix>(room, 0).map_or(0, |prefix| prefix.crc.get())
    }

    fn write_segment_header(&self, room: &mut [u8], segment: SegmentNo) {
        let identity = self.place.identity(Magic::SEGMENT, self.place.segment_first(segment), segment.0);
        let prefix = Prefix::new(&identity, count32(size_of::<SegmentHeader>()));
        let header = SegmentHeader { prefix, first_batch: U64::new(self.next.batch.0), reserved: U64::ZERO };
        put(room, 0, &header);
        seal(room);
    }
}

/// Adds a record to a batch that has room for it.
#[inline]
fn add(
    mut open: Staging,
    record: &Record,
    coded: (Codec, usize),
    bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Staging {
    open.payload.set_len(PAYLOAD_BYTES_MAX);
    let at = open.payload_bytes;
    let Some(payload) = open.payload.get_mut(at..at + bytes) else {
        panic!("a record does not fit its batch")
    };
    fill(payload);
    let mut header = RecordHeader {
        kind: record.kind as u8,
        flags: record.flags,
        codec: coded.0 as u8,
        reserved: 0,
        crc: U32::ZERO,
        shard: U64::new(record.shard.0),
        block: U64::new(record.block.0),
        blocks: U64::new(record.blocks),
        shard_lsn: U64::new(record.shard_lsn),
        epoch: U64::new(record.epoch),
        payload_at: U32::new(count32(at)),
        payload_bytes: U32::new(count32(bytes)),
        decoded_bytes: U32::new(count32(coded.1)),
        reserved2: U32::ZERO,
    };
    header.crc = U32::new(header.crc_with(payload));
    open.payload_bytes += bytes;
    open.records.push(header);
    debug_assert!(index(header.payload_at.get()) + bytes <= PAYLOAD_BYTES_MAX);
    open
}
