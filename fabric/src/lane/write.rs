//! Taking I/O: writes and zeroes into log and table, acknowledgements when they are durable.

use penstock_bdev::{Io, IoStatus, Op};

use super::table::ZERO_CELLS_MAX;
use super::{ACKS_MAX, Core};
use crate::codec::{Codec, DECODED_MAX};
use crate::format::log::{PAYLOAD_BLOCKS_MAX, RecordKind};
use crate::id::{BLOCK_BYTES, Lsn, ShardId, VBlock, index};
use crate::log::{AppendError, Record};

/// Payloads that are not tried after many that did not shrink, at most.
const SKIPS_MAX: u32 = 64;

impl Core {
    pub(super) fn submit(
        &mut self,
        shard: ShardId,
        snapshot: Option<u64>,
        mut io: Box<Io>,
    ) -> Result<(), Box<Io>> {
        io.status = IoStatus::Pending;
        self.submitted += 1;
        if self.done.len() + self.acks.len() + self.bypass.held() >= ACKS_MAX {
            return Err(io);
        }
        if io.lba.0.checked_add(u64::from(io.blocks)).is_none() {
            return self.end(io, IoStatus::OutOfRange);
        }
        match io.op {
            Op::Read => self.submit_read(shard, snapshot, io),
            Op::Flush => {
                self.acks.push_back((Lsn(self.log.next_lsn().0 - 1), io));
                Ok(())
            }
            _ if !self.state.shards.contains_key(&shard) => self.end(io, IoStatus::Gone),
            _ if self.held > 0 => Err(io),
            _ if snapshot.is_some() => self.end(io, IoStatus::WriteProtected),
            Op::Write | Op::Unmap | Op::WriteZeroes
                if self.bypass.overlaps(shard, io.lba.0, u64::from(io.blocks)) =>
            {
                Err(io)
            }
            Op::Write if self.may_bypass(shard, &io) => {
                self.submit_bypass(shard, io);
                Ok(())
            }
            Op::Write => self.submit_logged(shard, io),
            Op::Unmap | Op::WriteZeroes => self.submit_zero(shard, io),
            Op::Compare | Op::CompareAndWrite | Op::Copy | Op::Reset => self.end(io, IoStatus::Unsupported),
        }
    }

    fn end(&mut self, mut io: Box<Io>, status: IoStatus) -> Result<(), Box<Io>> {
        io.status = status;
        self.done.push_back(io);
        Ok(())
    }

    /// Takes a write by way of the log.
    pub(super) fn submit_logged(&mut self, shard: ShardId, io: Box<Io>) -> Result<(), Box<Io>> {
        let blocks = index(io.blocks);
        if blocks == 0 || blocks > PAYLOAD_BLOCKS_MAX {
            return self.end(io, IoStatus::BadLength);
        }
        if !self.make_room(blocks, blocks) {
            return self.no_room(io);
        }
        let record = self.record(RecordKind::Write, shard, &io);
        let appended = self.append_write(&record, &io);
        let lsn = match appended {
            Ok(lsn) => lsn,
            Err(error) => return self.not_appended(io, error),
        };
        self.shard_lsns.insert(shard, record.shard_lsn);
        for at in 0..blocks {
            let Some(slot) = self.tables.arena.take() else {
                panic!("the tables have less room than they said")
            };
            io.data.copy_out(at * BLOCK_BYTES, self.tables.arena.block_mut(slot));
            let block = io.lba.0 + at as u64;
            self.tables.active.put(shard, block, lsn, Some(slot), &mut self.tables.arena);
        }
        self.acks.push_back((lsn, io));
        Ok(())
    }

    fn submit_zero(&mut self, shard: ShardId, io: Box<Io>) -> Result<(), Box<Io>> {
        let blocks = u64::from(io.blocks);
        if blocks == 0 {
            return self.end(io, IoStatus::Success);
        }
        let cells = if blocks <= ZERO_CELLS_MAX { index(io.blocks) } else { 0 };
        let room = self.make_room(0, cells);
        let long = blocks > ZERO_CELLS_MAX;
        if long && !self.tables.active.has_room_for_range() {
            self.freeze();
        }
        if !room || (long && !self.tables.active.has_room_for_range()) {
            return self.no_room(io);
        }
        let record = self.record(RecordKind::Zero, shard, &io);
        match self.log.append(&record, 0, |_| {}) {
            Ok(lsn) => {
                self.shard_lsns.insert(shard, record.shard_lsn);
                let tables = &mut self.tables;
                tables.active.zero(shard, VBlock(io.lba.0), blocks, lsn, &mut tables.arena);
                self.zeroed_blocks = self.zeroed_blocks.saturating_add(blocks);
                self.acks.push_back((lsn, io));
                if self.full {
                    self.wake();
                }
                Ok(())
            }
            Err(error) => self.not_appended(io, error),
        }
    }

    /// Appends the record of a write, its payload encoded where the shard wants that and it pays.
    fn append_write(&mut self, record: &Record, io: &Io) -> Result<Lsn, AppendError> {
        let bytes = index(io.blocks) * BLOCK_BYTES;
        let policy = self.policies.get_mut(&record.shard).filter(|policy| policy.compression.inline);
        if let (Some(policy), Some(coder), true) = (policy, &mut self.coder, bytes <= DECODED_MAX) {
            if policy.skip == 0 {
                io.data.copy_out(0, coder.input(bytes));
                if let Some(stored) = coder.encode(Codec::Lz4, bytes) {
                    policy.failures = 0;
                    let fill = |room: &mut [u8]| room.copy_from_slice(stored);
                    return self.log.append_coded(record, Codec::Lz4, bytes, stored.len(), fill);
                }
                // What does not shrink is rarely followed by what does.
                policy.failures = (policy.failures + 1).min(SKIPS_MAX.ilog2());
                policy.skip = 1 << policy.failures;
            }
            policy.skip -= 1;
        }
        self.log.append(record, bytes, |room| {
            io.data.copy_out(0, room);
        })
    }

    fn record(&self, kind: RecordKind, shard: ShardId, io: &Io) -> Record {
        let shard_lsn = self.shard_lsns.get(&shard).map_or(1, |last| last + 1);
        let (block, blocks) = (VBlock(io.lba.0), u64::from(io.blocks));
        Record { kind, flags: 0, shard, block, blocks, shard_lsn, epoch: 1 }
    }

    pub(super) fn make_room(&mut self, slots: usize, cells: usize) -> bool {
        let before = self.tables.frozen.len();
        let room = self.tables.make_room(slots, cells, Lsn(self.log.next_lsn().0 - 1));
        if self.tables.frozen.len() != before {
            self.wake();
        }
        room
    }

    /// Freezes the active table, if that is possible now.
    pub(super) fn freeze(&mut self) -> bool {
        let frozen = self.tables.freeze(Lsn(self.log.next_lsn().0 - 1));
        self.wake();
        frozen
    }

    /// No memory, or no log, is free: it will be when the drain is further, unless that has no room.
    fn no_room(&mut self, io: Box<Io>) -> Result<(), Box<Io>> {
        self.wake();
        if self.full { self.end(io, IoStatus::NoSpace) } else { Err(io) }
    }

    fn not_appended(&mut self, io: Box<Io>, error: AppendError) -> Result<(), Box<Io>> {
        match error {
            AppendError::Busy => Err(io),
            AppendError::Full => self.no_room(io),
            AppendError::Failed(_) => self.end(io, IoStatus::WriteError),
        }
    }

    /// Ends the writes and flushes whose records are durable, in order; all of them when the log has failed.
    pub(super) fn acknowledge(&mut self) {
        let durable = self.log.durable_end().lsn;
        self.apply_direct();
        while let Some((lsn, _)) = self.acks.front() {
            let status = match (*lsn < durable, self.log.failed()) {
                (true, _) => IoStatus::Success,
                (false, Some(_)) => IoStatus::WriteError,
                (false, None) => return,
            };
            let Some((_, mut io)) = self.acks.pop_front() else { return };
            io.status = status;
            self.done.push_back(io);
        }
    }
}
