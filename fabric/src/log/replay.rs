//! Reading the log again: batch after batch from where the checkpoint says, up to the torn end.
//!
//! The end is where the next batch is not, or is not whole. That is the torn end of a power cut unless something knows
//! better: a later batch that says this one was durable, a checkpoint that includes what came behind it, or one that begins within a
//! segment of which nothing is there. Then the log is damaged, which is reported and never passed over.

use std::collections::BTreeSet;

use penstock_reactor::mem::Buf;

use super::{LogPlace, LogPosition};
use crate::flow::{DiskError, Flow};
use crate::format::log::{
    BATCH_HEADER_BYTES, BatchHeader, HEADER_BLOCKS_MAX, RECORD_BYTES, RecordHeader, SegmentHeader,
};
use crate::format::{FormatError, Magic, Prefix, take};
use crate::id::{BLOCK_BYTES, BatchNo, DiskBlock, DiskNo, LaneNo, Lsn, SegmentNo, count32, index};

/// Blocks that the search behind the end reads at once.
const SEARCH_BLOCKS: u32 = 256;

/// Why a log cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The disk failed.
    #[error("log: {0}")]
    Disk(#[from] DiskError),
    /// An acknowledged batch is damaged.
    #[error(
        "log of lane {}: batch {} (LSN {} and later) at block {} of its disk was durable and is damaged ({source}): \
         acknowledged writes are lost with it; take them from a replica, or accept the loss with penstock rescue",
        lane.0, batch.0, lsn.0, at.0
    )]
    Damaged {
        /// The lane.
        lane: LaneNo,
        /// The batch.
        batch: BatchNo,
        /// Its first record.
        lsn: Lsn,
        /// Where it should be.
        at: DiskBlock,
        /// What is there instead.
        #[source]
        source: FormatError,
    },
    /// A newer program wrote it.
    #[error("log of lane {}: {source}", lane.0)]
    Format {
        /// The lane.
        lane: LaneNo,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
}

/// Where a log ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// Where the segments that were read begin (the first: where reading began).
    pub begins: Vec<LogPosition>,
    /// Behind the last whole batch.
    pub position: LogPosition,
    /// Whether something was cut off there: remains of a batch that was never acknowledged.
    pub torn: bool,
    /// What homes lack of it; [`mend`] gives it to them.
    pub lacking: Vec<Lacking>,
}

/// A part of a log that one home has and another has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// Who has it …
    pub from: DiskNo,
    /// … and who has not, both by where they are plugged in.
    pub to: DiskNo,
    /// Where it is.
    pub first: DiskBlock,
    /// How much.
    pub blocks: u32,
}

/// Gives homes what they lack; returns when that is durable.
///
/// # Errors
/// What a disk says.
pub async fn mend(flow: &Flow, lacking: &[Lacking]) -> Result<(), DiskError> {
    for part in lacking {
        let (mut at, end) = (part.first.0, part.first.0 + u64::from(part.blocks));
        while at < end {
            let count = u32::try_from(end - at).unwrap_or(u32::MAX).min(SEARCH_BLOCKS);
            let buf = flow.read(part.from, DiskBlock(at), count).await?;
            flow.write(part.to, DiskBlock(at), buf).await?;
            at += u64::from(count);
        }
    }
    for home in lacking.iter().map(|part| part.to).collect::<BTreeSet<DiskNo>>() {
        flow.flush(home).await?;
    }
    Ok(())
}

/// Reads the log from `from` on and shows every record, in order. `at_least` is the first LSN that may be missing: all
/// before it are known to have been durable.
///
/// # Errors
/// [`ReplayError`].
pub async fn replay(
    flow: &Flow,
    place: &LogPlace,
    from: LogPosition,
    at_least: Lsn,
    mut visit: impl FnMut(Lsn, &RecordHeader, &[u8]),
) -> Result<LogEnd, ReplayError> {
    let mut position = from;
    let mut begins = if from.block > 0 { vec![from] } else { Vec::new() };
    let mut lacking = Vec::new();
    loop {
        match next_batch(flow, place, position, &mut lacking).await? {
            Ok((header, at, headers, payloads)) => {
                let segment = SegmentNo(header.segment.get());
                if begins.last().is_none_or(|begin| begin.segment != segment) {
                    begins.push(LogPosition { segment, block: 1, ..position });
                }
                show(&header, &headers, payloads.as_deref().unwrap_or_default(), &mut visit);
                position = after(&header, at, place);
            }
            Err((FormatError::Version { found, known }, _)) => {
                let source = FormatError::Version { found, known };
                return Err(ReplayError::Format { lane: place.lane, source });
            }
            Err((source, at)) => {
                let (mut known, mut torn) = (false, false);
                for home in place.homes.iter() {
                    let (home_knows, home_torn) = search(flow, place, home, position.batch).await?;
                    (known, torn) = (known || home_knows, torn || home_torn);
                }
                let gone = position == from && is_gone(flow, place, from).await?;
                if known || gone || position.lsn < at_least {
                    let (batch, lsn) = (position.batch, position.lsn);
                    return Err(ReplayError::Damaged { lane: place.lane, batch, lsn, at, source });
                }
                // What the ring had there before is no torn batch.
                let remains = matches!(source, FormatError::Magic | FormatError::Stale);
                return Ok(LogEnd { begins, position, torn: torn || !remains, lacking });
            }
        }
    }
}

type Found = (BatchHeader, DiskBlock, Buf, Option<Buf>);

/// The batch that continues the log at `position`: there, or at the beginning of the next segment; of any home that has it whole.
async fn next_batch(
    flow: &Flow,
    place: &LogPlace,
    position: LogPosition,
    lacking: &mut Vec<Lacking>,
) -> Result<Result<Found, (FormatError, DiskBlock)>, DiskError> {
    let here = DiskBlock(place.segment_first(position.segment).0 + u64::from(position.block.max(1)));
    let mut why = FormatError::Magic;
    if position.block > 0 && position.block < place.segment_blocks {
        match any_home(flow, place, position, (position.segment, position.block), lacking).await? {
            Ok(found) => return Ok(Ok(found)),
            Err(error) => why = error,
        }
    }
    let segment = SegmentNo(position.segment.0 + u64::from(position.block > 0));
    match any_home(flow, place, position, (segment, 1), lacking).await? {
        Ok(found) => Ok(Ok(found)),
        Err(error) => Ok(Err((if why == FormatError::Magic { error } else { why }, here))),
    }
}

/// Whether reading was to begin within a segment whose header is not there: it was durable before the checkpoint that says so, so this
/// is no power cut.
async fn is_gone(flow: &Flow, place: &LogPlace, from: LogPosition) -> Result<bool, DiskError> {
    if from.block == 0 {
        return Ok(false);
    }
    let first = place.segment_first(from.segment);
    for home in place.homes.iter() {
        let there = match flow.read(home, first, 1).await {
            Ok(buf) => Prefix::check(&place.identity(Magic::SEGMENT, first, from.segment.0), &buf).is_ok(),
            // The other homes say what it would say.
            Err(_) if place.homes.count() > 1 => false,
            Err(error) => return Err(error),
        };
        if there {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The batch at a place, of the first home that has it whole; homes that have not are noted. Where none has, the worst that is wrong.
async fn any_home(
    flow: &Flow,
    place: &LogPlace,
    position: LogPosition,
    (segment, block): (SegmentNo, u32),
    lacking: &mut Vec<Lacking>,
) -> Result<Result<Found, FormatError>, DiskError> {
    let (mut found, mut without) = (None, Vec::new());
    let mut why = None;
    for home in place.homes.iter() {
        let outcome = match batch_at(flow, place, home, position, segment, block).await {
            Ok(outcome) => outcome,
            // What one home cannot read another may have.
            Err(_) if place.homes.count() > 1 => Err(FormatError::Short),
            Err(error) => return Err(error),
        };
        match outcome {
            Ok(batch) => drop(found.get_or_insert((home, batch))),
            Err(error) => {
                without.push(home);
                let worse = !matches!(error, FormatError::Magic | FormatError::Stale);
                if worse || why.is_none() {
                    why = Some(error);
                }
            }
        }
    }
    let Some((from, batch)) = found else { return Ok(Err(why.unwrap_or(FormatError::Magic))) };
    let begins = u32::from(block == 1);
    let (first, blocks) = (DiskBlock(batch.1.0 - u64::from(begins)), batch.0.blocks() + begins);
    lacking.extend(without.into_iter().map(|to| Lacking { from, to, first, blocks }));
    Ok(Ok(batch))
}

async fn begins_with(
    flow: &Flow,
    place: &LogPlace,
    home: DiskNo,
    segment: SegmentNo,
    batch: BatchNo,
) -> Result<bool, DiskError> {
    let first = place.segment_first(segment);
    let buf = flow.read(home, first, 1).await?;
    let sound = Prefix::check(&place.identity(Magic::SEGMENT, first, segment.0), &buf).is_ok();
    Ok(sound && take::<SegmentHeader>(&buf, 0).is_ok_and(|header| header.first_batch.get() == batch.0))
}

/// The batch at block `block` of `segment` on a home, whole and sound and the very one that continues the log, or why not.
async fn batch_at(
    flow: &Flow,
    place: &LogPlace,
    home: DiskNo,
    position: LogPosition,
    segment: SegmentNo,
    block: u32,
) -> Result<Result<Found, FormatError>, DiskError> {
    let at = DiskBlock(place.segment_first(segment).0 + u64::from(block));
    let room = place.segment_blocks - block;
    let mut headers = flow.read(home, at, room.min(count32(HEADER_BLOCKS_MAX))).await?;
    let checked = Prefix::check(&place.identity(Magic::BATCH, at, position.batch.0), &headers);
    let header = match checked.and_then(|_| BatchHeader::parse(&headers)) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    if header.chain.get() != position.chain
        || header.first_lsn.get() != position.lsn.0
        || header.segment.get() != segment.0
    {
        return Ok(Err(FormatError::Stale));
    }
    let crosses = position.block == 0 || segment != position.segment;
    if crosses && !begins_with(flow, place, home, segment, position.batch).await? {
        return Ok(Err(FormatError::Magic));
    }
    if header.blocks() > room {
        return Ok(Err(FormatError::Field { field: "blocks" }));
    }
    headers.set_len(index(header.header_blocks.get()) * BLOCK_BYTES);
    let payloads = match header.payload_blocks.get() {
        0 => None,
        blocks => {
            let first = DiskBlock(at.0 + u64::from(header.header_blocks.get()));
            Some(flow.read(home, first, blocks).await?)
        }
    };
    let bytes = payloads.as_deref().unwrap_or_default();
    for number in 0..index(header.records.get()) {
        let record = take::<RecordHeader>(&headers, BATCH_HEADER_BYTES + number * RECORD_BYTES);
        if let Err(error) = record.and_then(|record| record.payload(bytes).map(drop)) {
            return Ok(Err(error));
        }
    }
    Ok(Ok((header, at, headers, payloads)))
}

fn show(
    header: &BatchHeader,
    headers: &[u8],
    payloads: &[u8],
    visit: &mut impl FnMut(Lsn, &RecordHeader, &[u8]),
) {
    for number in 0..header.records.get() {
        let record = take::<RecordHeader>(headers, BATCH_HEADER_BYTES + index(number) * RECORD_BYTES);
        let lsn = Lsn(header.first_lsn.get() + u64::from(number));
        // Checked when the batch was read.
        let Ok(record) = record else { continue };
        if let Ok(payload) = record.payload(payloads) {
            visit(lsn, &record, payload);
        }
    }
}

fn after(header: &BatchHeader, at: DiskBlock, place: &LogPlace) -> LogPosition {
    let segment = SegmentNo(header.segment.get());
    let block = u32::try_from(at.0 - place.segment_first(segment).0).unwrap_or(u32::MAX);
    LogPosition {
        segment,
        block: block + header.blocks(),
        batch: BatchNo(header.prefix.sequence.get() + 1),
        lsn: Lsn(header.first_lsn.get() + u64::from(header.records.get())),
        chain: header.prefix.crc.get(),
    }
}

/// Looks through the whole log area of a home for batches from `batch` on: whether one of them knows that `batch` was durable, and
/// whether there are any.
async fn search(
    flow: &Flow,
    place: &LogPlace,
    home: DiskNo,
    batch: BatchNo,
) -> Result<(bool, bool), DiskError> {
    let blocks = u64::from(place.segment_blocks) * u64::from(place.segments);
    let (mut at, mut any) = (0, false);
    while at < blocks {
        let count = u32::try_from(blocks - at).unwrap_or(u32::MAX).min(SEARCH_BLOCKS);
        let first = DiskBlock(place.first.0 + at);
        let buf = match flow.read(home, first, count).await {
            Ok(buf) => buf,
            // The other homes say what it would say.
            Err(_) if place.homes.count() > 1 => return Ok((false, any)),
            Err(error) => return Err(error),
        };
        for (number, bytes) in (0_u64..).zip(buf.chunks(BLOCK_BYTES)) {
            let prefix = take::<Prefix>(bytes, 0).ok();
            let candidate = prefix.is_some_and(|prefix| {
                prefix.magic == Magic::BATCH.0
                    && prefix.sequence.get() >= batch.0
                    && prefix.address.get() == first.0 + number
            });
            if candidate
                && let Some(header) = header_at(flow, place, home, DiskBlock(first.0 + number)).await?
            {
                any = true;
                if header.durable.get() >= batch.0 {
                    return Ok((true, true));
                }
            }
        }
        at += u64::from(count);
    }
    Ok((false, any))
}

async fn header_at(
    flow: &Flow,
    place: &LogPlace,
    home: DiskNo,
    at: DiskBlock,
) -> Result<Option<BatchHeader>, DiskError> {
    let end = place.first.0 + u64::from(place.segment_blocks) * u64::from(place.segments);
    let room = u32::try_from(end - at.0).unwrap_or(u32::MAX);
    let buf = flow.read(home, at, room.min(count32(HEADER_BLOCKS_MAX))).await?;
    let Ok(header) = BatchHeader::parse(&buf) else { return Ok(None) };
    let ours = header.prefix.is_at(&place.identity(Magic::BATCH, at, 0)).is_ok();
    Ok(ours.then_some(header))
}
