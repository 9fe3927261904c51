//! Checkpoints: the whole state to the index area, so that the log can be trimmed.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{Core, Home, Lane, LanePlace, WorkError};
use crate::crc::crc32c;
use crate::flow::{DiskError, Flow, all, buffer};
use crate::format::checkpoint::{CheckpointRoot, META_OP_BYTES, MetaOp};
use crate::format::{FormatError, Identity, Magic, Prefix, put, seal};
use crate::id::{BLOCK_BYTES, BatchNo, DiskBlock, DiskNo, Lsn, SegmentNo, count32, index};
use crate::log::LogPosition;
use crate::state::State;

/// Bytes of one device write or read at most.
const CHUNK_BYTES: usize = 1 << 20;

/// A checkpoint, read or to be written.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(super) number: u64,
    pub(super) ops: Vec<MetaOp>,
    pub(super) state_lsn: Lsn,
    pub(super) drained: Lsn,
    pub(super) replay_from: LogPosition,
    pub(super) next_egroup: u64,
}

/// Makes the index area of a new lane: whatever was there is not a checkpoint of this pool.
///
/// # Errors
/// What the disk says.
pub async fn format(flow: &Flow, place: &LanePlace) -> Result<(), DiskError> {
    let state = State::new();
    let first = Checkpoint {
        number: 1,
        ops: Vec::new(),
        state_lsn: state.lsn,
        drained: state.drained,
        replay_from: LogPosition::START,
        next_egroup: state.next_egroup,
    };
    write(flow, place, &first).await
}

impl Lane {
    /// Writes a checkpoint of what is durable and trims the log.
    pub(super) async fn checkpoint(&self) -> Result<(), WorkError> {
        let (checkpoint, place) = {
            let turn = self.lock().await;
            let core = self.0.borrow();
            let made = (core.to_checkpoint(), core.place.clone());
            drop(core);
            drop(turn);
            made
        };
        if checkpoint.ops.len().div_ceil(BLOCK_BYTES / META_OP_BYTES) + 1 > index(place.checkpoint_blocks()) {
            return Err(WorkError::AreaFull { area: "index" });
        }
        self.write_homes(&place, &checkpoint).await?;
        let mut core = self.0.borrow_mut();
        core.checkpoint = checkpoint.number;
        core.checkpointed = checkpoint.state_lsn;
        core.replay_batch = checkpoint.replay_from.batch;
        core.log.trim(checkpoint.replay_from.segment);
        core.wake();
        Ok(())
    }

    /// Writes a checkpoint to every home; one that fails is waited for until it is out.
    async fn write_homes(&self, place: &LanePlace, checkpoint: &Checkpoint) -> Result<(), WorkError> {
        let write = async |home: &Home| (home.disk, write_home(&self.1, place, home, checkpoint).await);
        let written = all(place.homes.iter().map(write)).await;
        let failed: Vec<(DiskNo, DiskError)> =
            written.iter().filter_map(|(disk, outcome)| Some((*disk, outcome.err()?))).collect();
        if let (true, Some((_, error))) = (failed.len() == written.len(), failed.first()) {
            self.0.borrow_mut().log.fail(error.status);
            return Err((*error).into());
        }
        for (disk, _) in failed {
            self.0.borrow_mut().suspect(disk);
            self.wait(|core| match core.log.failed() {
                Some(status) => Some(Err(WorkError::Failed(status))),
                None => (!core.place.homes.iter().any(|home| home.disk == disk)).then_some(Ok(())),
            })
            .await?;
        }
        Ok(())
    }
}

impl Core {
    /// The state as it is now; no change is under way (the caller has the turn).
    fn to_checkpoint(&self) -> Checkpoint {
        // Where nothing waits to be drained, only changes of state behind this one are needed.
        let needed =
            if self.tables.is_empty() { self.state.lsn.max(self.state.drained) } else { self.state.drained };
        let needed = Lsn(needed.min(self.log.durable_end().lsn).0 + 1);
        Checkpoint {
            number: self.checkpoint + 1,
            ops: self.state.to_ops(),
            state_lsn: self.state.lsn,
            drained: self.state.drained,
            replay_from: self.log.replay_from(needed),
            next_egroup: self.state.next_egroup,
        }
    }
}

/// What a checkpoint at `root_at` of a home says of itself.
fn identity(place: &LanePlace, home: &Home, root_at: DiskBlock, number: u64) -> Identity {
    let (pool, lane) = (place.log.pool, place.log.lane);
    let (disk, address) = (u32::from(home.disk.0), root_at.0);
    Identity { magic: Magic::CHECKPOINT, pool, disk, lane, address, sequence: number }
}

pub(super) async fn write(flow: &Flow, place: &LanePlace, checkpoint: &Checkpoint) -> Result<(), DiskError> {
    for home in &place.homes {
        write_home(flow, place, home, checkpoint).await?;
    }
    Ok(())
}

pub(super) async fn write_home(
    flow: &Flow,
    place: &LanePlace,
    home: &Home,
    checkpoint: &Checkpoint,
) -> Result<(), DiskError> {
    let at = home.at;
    let root_at = home.layout.checkpoint_first(place.log.lane, checkpoint.number % 2);
    let body = checkpoint.ops.as_bytes();
    let mut next = root_at.0 + 1;
    for piece in body.chunks(CHUNK_BYTES) {
        let mut buf = buffer(piece.len().next_multiple_of(BLOCK_BYTES)).await;
        let (data, padding) = buf.split_at_mut(piece.len());
        data.copy_from_slice(piece);
        padding.fill(0);
        let blocks = buf.len() / BLOCK_BYTES;
        flow.write(at, DiskBlock(next), buf).await?;
        next += blocks as u64;
    }
    flow.flush(at).await?;
    let identity = identity(place, home, root_at, checkpoint.number);
    let from = &checkpoint.replay_from;
    let root = CheckpointRoot {
        prefix: Prefix::new(&identity, count32(size_of::<CheckpointRoot>())),
        ops: U64::new(checkpoint.ops.len() as u64),
        body_crc: U32::new(crc32c(body)),
        chain: U32::new(from.chain),
        state_lsn: U64::new(checkpoint.state_lsn.0),
        drained_lsn: U64::new(checkpoint.drained.0),
        segment: U64::new(from.segment.0),
        segment_block: U32::new(from.block),
        reserved: U32::ZERO,
        batch: U64::new(from.batch.0),
        lsn: U64::new(from.lsn.0),
        next_egroup: U64::new(checkpoint.next_egroup),
        reserved2: [0; 24],
    };
    let mut buf = buffer(BLOCK_BYTES).await;
    buf.fill(0);
    put(&mut buf, 0, &root);
    seal(&mut buf);
    flow.write(at, root_at, buf).await?;
    flow.flush(at).await
}

/// What was found of checkpoints.
pub(crate) struct FoundCheckpoint {
    /// The newest sound one.
    pub(crate) newest: Option<Checkpoint>,
    /// Slots that are damaged (an unused one is not).
    pub(crate) damaged: usize,
    /// Homes that lack it.
    pub(crate) lacking: Vec<Home>,
}

/// Looks for checkpoints at all homes.
pub(crate) async fn read(flow: &Flow, place: &LanePlace) -> Result<FoundCheckpoint, DiskError> {
    let mut found = FoundCheckpoint { newest: None, damaged: 0, lacking: Vec::new() };
    let mut numbers = Vec::new();
    for home in &place.homes {
        let (checkpoint, damaged) = match read_home(flow, place, home).await {
            Ok(read) => read,
            // What one home cannot read another may have.
            Err(_) if place.homes.len() > 1 => (None, 1),
            Err(error) => return Err(error),
        };
        found.damaged += damaged;
        numbers.push((*home, checkpoint.as_ref().map(|checkpoint| checkpoint.number)));
        let newest = found.newest.as_ref().map_or(0, |newest| newest.number);
        if let Some(newer) = checkpoint.filter(|checkpoint| checkpoint.number > newest) {
            found.newest = Some(newer);
        }
    }
    if let Some(newest) = &found.newest {
        let lacks = |(home, number): (Home, Option<u64>)| (number != Some(newest.number)).then_some(home);
        found.lacking = numbers.into_iter().filter_map(lacks).collect();
    }
    Ok(found)
}

async fn read_home(
    flow: &Flow,
    place: &LanePlace,
    home: &Home,
) -> Result<(Option<Checkpoint>, usize), DiskError> {
    let mut roots = Vec::new();
    let mut damaged = 0;
    for slot in 0..2 {
        let root_at = home.layout.checkpoint_first(place.log.lane, slot);
        let block = flow.read(home.at, root_at, 1).await?;
        let prefix = Prefix::parse(Magic::CHECKPOINT, &block);
        let ours = prefix.and_then(|prefix| prefix.is_at(&identity(place, home, root_at, 0)));
        match ours {
            Ok(()) => {
                roots.extend(CheckpointRoot::read_from_prefix(&block).ok().map(|(root, _)| (root, root_at)))
            }
            Err(FormatError::Magic | FormatError::Pool) => {}
            Err(_) => damaged += 1,
        }
    }
    roots.sort_by_key(|(root, _)| std::cmp::Reverse(root.prefix.sequence.get()));
    for (root, root_at) in roots {
        match read_body(flow, home, &root, root_at).await? {
            Some(checkpoint) => return Ok((Some(checkpoint), damaged)),
            None => damaged += 1,
        }
    }
    Ok((None, damaged))
}

async fn read_body(
    flow: &Flow,
    home: &Home,
    root: &CheckpointRoot,
    root_at: DiskBlock,
) -> Result<Option<Checkpoint>, DiskError> {
    let room = u64::from(home.layout.checkpoint_blocks - 1) * (BLOCK_BYTES / META_OP_BYTES) as u64;
    let Some(count) = usize::try_from(root.ops.get()).ok().filter(|_| root.ops.get() <= room) else {
        return Ok(None);
    };
    let mut body = Vec::with_capacity(count * META_OP_BYTES);
    let mut next = root_at.0 + 1;
    while body.len() < count * META_OP_BYTES {
        let left = count * META_OP_BYTES - body.len();
        let blocks = left.min(CHUNK_BYTES).div_ceil(BLOCK_BYTES);
        let buf = flow.read(home.at, DiskBlock(next), count32(blocks)).await?;
        body.extend_from_slice(buf.get(..left.min(buf.len())).unwrap_or_default());
        next += blocks as u64;
    }
    if crc32c(&body) != root.body_crc.get() {
        return Ok(None);
    }
    let replay_from = LogPosition {
        segment: SegmentNo(root.segment.get()),
        block: root.segment_block.get(),
        batch: BatchNo(root.batch.get()),
        lsn: Lsn(root.lsn.get()),
        chain: root.chain.get(),
    };
    Ok(Some(Checkpoint {
        number: root.prefix.sequence.get(),
        ops: super::commit::ops_of(&body).collect(),
        state_lsn: Lsn(root.state_lsn.get()),
        drained: Lsn(root.drained_lsn.get()),
        replay_from,
        next_egroup: root.next_egroup.get(),
    }))
}
