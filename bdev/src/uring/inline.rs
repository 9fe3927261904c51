//! One core's way to a file that lies in memory (tmpfs, ramfs): it copies by itself, out of the mapped file and into it, or
//! by plain system calls.
//!
//! Nothing there waits for a device, so an I/O is a copy, as for `malloc`. Such file systems do not know of I/O that must
//! not wait; so io_uring would hand each of them to a kernel thread, which costs several times what the copy costs. As with
//! any memory that is not locked, a page that the system has swapped out takes as long as the swap device does.

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_reactor::Tick;

use super::file::Disk;
use crate::channel::{Busy, Channel};
use crate::io::{Io, IoStatus, Op};

/// I/Os of one channel under way at most.
const QUEUE_LEN: usize = 1024;
/// Bytes copied in one call of `poll` at most, so that it keeps its core well below 1 ms.
const POLL_BYTES_MAX: usize = 1 << 20;
/// Bytes made zero in one call of `poll` at most, likewise.
const ZERO_BYTES_MAX: u32 = 4 << 20;

/// System calls made at most, after copies that met a hole, before the next copy is tried.
const CALLS_MAX: u32 = 64;

/// I/Os are done in `poll`, in the order of their submission.
pub(super) struct InlineChannel {
    disk: Arc<Disk>,
    queue: VecDeque<Box<Io>>,
    /// Blocks of the first one that are zero already.
    zeroed: u32,
    /// I/Os that are done by system calls before the next copy is tried,
    calls: u32,
    /// and how many there were the last time: doubled by each hole, as a copy that meets one costs a signal, and halved
    /// by each copy.
    calls_last: u32,
}

impl InlineChannel {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, queue: VecDeque::with_capacity(QUEUE_LEN), zeroed: 0, calls: 0, calls_last: 0 }
    }

    /// Tries to do a read or write by copies; false where it is all to be done by system calls.
    #[inline]
    fn copy(&mut self, io: &mut Io) -> bool {
        let Some(mapping) = &self.disk.mapping else { return false };
        if self.calls > 0 {
            self.calls -= 1;
            return false;
        }
        let mut at = self.disk.offset(io.lba.0);
        let mut next = |len: usize| {
            let here = at;
            at = at.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
            here
        };
        let copied = match io.op {
            Op::Read => io.data.iter_mut().all(|buf| mapping.read(next(buf.len()), buf)),
            Op::Write => io.data.iter().all(|buf| mapping.write(next(buf.len()), buf)),
            _ => return false,
        };
        if copied {
            self.calls_last /= 2;
        } else {
            self.calls_last = (self.calls_last * 2 + 1).min(CALLS_MAX);
            self.calls = self.calls_last;
        }
        copied
    }

    #[inline]
    fn execute(&mut self, io: &mut Io) -> IoStatus {
        if self.disk.refuses(io) {
            return IoStatus::WriteError;
        }
        if self.copy(io) { self.disk.conclude(io, Ok(())) } else { self.disk.execute(io) }
    }

    /// Does what fits in one turn of a range that is to be made zero; how it ended, if it has.
    fn make_zero(&mut self, io: &Io) -> Option<IoStatus> {
        if self.disk.refuses(io) {
            return Some(IoStatus::WriteError);
        }
        let piece = (io.blocks - self.zeroed).min((ZERO_BYTES_MAX / self.disk.block_bytes).max(1));
        let result = self.disk.make_zero(io, self.zeroed, piece);
        self.zeroed += piece;
        if result.is_ok() && self.zeroed < io.blocks {
            return None;
        }
        self.zeroed = 0;
        Some(self.disk.conclude(io, result))
    }
}

impl Channel for InlineChannel {
    #[inline]
    fn submit(&mut self, io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        if self.queue.len() == QUEUE_LEN {
            return Err(Busy(io));
        }
        self.queue.push_back(io);
        Ok(())
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let (mut count, mut bytes) = (0, 0);
        while count < budget && bytes < POLL_BYTES_MAX {
            let Some(mut io) = self.queue.pop_front() else { break };
            if let (Some(next), Some(mapping)) = (self.queue.front(), &self.disk.mapping) {
                mapping.prefetch(self.disk.offset(next.lba.0));
            }
            if matches!(io.op, Op::Unmap | Op::WriteZeroes) {
                bytes = POLL_BYTES_MAX;
                let Some(status) = self.make_zero(&io) else {
                    self.queue.push_front(io);
                    break;
                };
                io.status = status;
            } else {
                bytes += io.data.len_bytes();
                io.status = self.execute(&mut io);
            }
            done.push(io);
            count += 1;
        }
        count
    }
}
