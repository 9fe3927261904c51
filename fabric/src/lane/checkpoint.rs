//! Checkpoints: the whole state to the index area, so that the log can be trimmed.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{Core, Lane, LanePlace, WorkError};
use crate::crc::crc32c;
use crate::flow::{DiskError, Flow, buffer};
use crate::format::checkpoint::{CheckpointRoot, META_OP_BYTES, MetaOp};
use crate::format::{FormatError, Magic, Prefix, put, seal};
use crate::id::{BLOCK_BYTES, BatchNo, DiskBlock, Lsn, SegmentNo, count32, index};
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
        if checkpoint.ops.len().div_ceil(BLOCK_BYTES / META_OP_BYTES) + 1
            > index(place.layout.checkpoint_blocks)
        {
            return Err(WorkError::AreaFull { area: "index" });
        }
        let written = write(&self.1, &place, &checkpoint).await;
        let mut core = self.0.borrow_mut();
        if let Err(error) = written {
            core.log.fail(error.status);
            return Err(error.into());
        }
        core.checkpoint = checkpoint.number;
        core.checkpointed = checkpoint.state_lsn;
        core.log.trim(checkpoint.replay_from.segment);
        core.wake();
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

pub(super) async fn write(flow: &Flow, place: &LanePlace, checkpoint: &Checkpoint) -> Result<(), DiskError> {
    let at = place.log.at;
    let root_at = place.layout.checkpoint_first(place.log.lane, checkpoint.number % 2);
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
    let identity = place.log.identity(Magic::CHECKPOINT, root_at, checkpoint.number);
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

/// The newest sound checkpoint, and how many slots are damaged (an unused slot is not).
pub(super) async fn read(flow: &Flow, place: &LanePlace) -> Result<(Option<Checkpoint>, usize), DiskError> {
    let mut roots = Vec::new();
    let mut damaged = 0;
    for slot in 0..2 {
        let root_at = place.layout.checkpoint_first(place.log.lane, slot);
        let block = flow.read(place.log.at, root_at, 1).await?;
        let prefix = Prefix::parse(Magic::CHECKPOINT, &block);
        let ours = prefix.and_then(|prefix| prefix.is_at(&place.log.identity(Magic::CHECKPOINT, root_at, 0)));
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
        match read_body(flow, place, &root, root_at).await? {
            Some(checkpoint) => return Ok((Some(checkpoint), damaged)),
            None => damaged += 1,
        }
    }
    Ok((None, damaged))
}

async fn read_body(
    flow: &Flow,
    place: &LanePlace,
    root: &CheckpointRoot,
    root_at: DiskBlock,
) -> Result<Option<Checkpoint>, DiskError> {
    let room = u64::from(place.layout.checkpoint_blocks - 1) * (BLOCK_BYTES / META_OP_BYTES) as u64;
    let Some(count) = usize::try_from(root.ops.get()).ok().filter(|_| root.ops.get() <= room) else {
        return Ok(None);
    };
    let mut body = Vec::with_capacity(count * META_OP_BYTES);
    let mut next = root_at.0 + 1;
    while body.len() < count * META_OP_BYTES {
        let left = count * META_OP_BYTES - body.len();
        let blocks = left.min(CHUNK_BYTES).div_ceil(BLOCK_BYTES);
        let buf = flow.read(place.log.at, DiskBlock(next), count32(blocks)).await?;
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
