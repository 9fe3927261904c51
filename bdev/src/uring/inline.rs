//! One core's way to a file that lies in memory (tmpfs, ramfs): plain system calls, by the core itself.
//!
//! Nothing there waits for a device, so a call is a copy, as for `malloc`. Such file systems do not know of I/O that must
//! not wait; so io_uring would hand each of them to a kernel thread, which costs twice what the copy costs. As with any
//! memory that is not locked, a page that the system has swapped out takes as long as the swap device does.

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

/// I/Os are done in `poll`, in the order of their submission.
pub(super) struct InlineChannel {
    disk: Arc<Disk>,
    queue: VecDeque<Box<Io>>,
    /// Blocks of the first one that are zero already.
    zeroed: u32,
}

impl InlineChannel {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, queue: VecDeque::with_capacity(QUEUE_LEN), zeroed: 0 }
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
            if matches!(io.op, Op::Unmap | Op::WriteZeroes) {
                bytes = POLL_BYTES_MAX;
                let Some(status) = self.make_zero(&io) else {
                    self.queue.push_front(io);
                    break;
                };
                io.status = status;
            } else {
                bytes += io.data.len_bytes();
                io.status = self.disk.execute(&mut io);
            }
            done.push(io);
            count += 1;
        }
        count
    }
}
