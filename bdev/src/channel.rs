//! A core's way to a bdev.

mod front;
mod parent;

use penstock_reactor::{Rest, Tick};

use crate::io::{Io, Op};
pub use front::BdevChannel;

/// The queue was full; the I/O comes back untouched.
#[derive(Debug)]
pub struct Busy(pub Box<Io>);

/// What a bdev can do, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Bit `1 << op` for every operation that the module itself does. Compare, compare-and-write, write zeroes and copy
    /// that it does not do are made of reads and writes above it.
    pub native_ops: u16,
    /// Blocks of one I/O at most; larger ones are split above the module. 0: any number.
    pub io_blocks_max: u32,
    /// An I/O with data, or a copy, that crosses a multiple of so many blocks is split above the module; unmap and write
    /// zeroes are not. 0: no boundary.
    pub boundary_blocks: u32,
    /// The length, in blocks, at which it works best. 0: unknown.
    pub optimal_blocks: u32,
    /// Writes are volatile until a flush or with FUA.
    pub write_cache: bool,
    /// Unmapped blocks read as zeroes.
    pub unmap_zeroes: bool,
    /// A read may come without buffers: it gets them from its core's pool when it is done, not when it is submitted. Where
    /// a read is a copy, few buffers then go round, and they stay in the core's cache.
    pub late_buffers: bool,
}

impl Caps {
    /// Native operations as a bit set.
    #[must_use]
    pub const fn ops(ops: &[Op]) -> u16 {
        let (mut set, mut index) = (0, 0);
        while index < ops.len() {
            #[expect(clippy::indexing_slicing, reason = "index < len")]
            let op = ops[index];
            set |= 1 << op as u8;
            index += 1;
        }
        set
    }

    /// Whether the module does `op` itself.
    #[inline]
    #[must_use]
    pub const fn has(&self, op: Op) -> bool {
        self.native_ops & (1 << op as u8) != 0
    }

    /// Whether `op` can be done, by the module itself or by what stands in for it above: resets, compares, writes of
    /// zeroes and copies made of reads and writes, flushes where nothing is volatile.
    #[inline]
    #[must_use]
    pub const fn supports(&self, op: Op) -> bool {
        let (read, write) = (self.has(Op::Read), self.has(Op::Write));
        self.has(op)
            || match op {
                Op::Reset => true,
                Op::Compare => read,
                Op::CompareAndWrite | Op::Copy => read && write,
                Op::WriteZeroes => write,
                Op::Flush => !self.write_cache,
                Op::Read | Op::Write | Op::Unmap => false,
            }
    }

    /// What a filter says that passes everything on to a bdev with these: all that can be done is native, and the bdev
    /// below splits for itself.
    #[must_use]
    pub fn of_filter(&self) -> Self {
        let supported = Op::ALL.into_iter().filter(|op| self.supports(*op) && *op != Op::Reset);
        let native_ops = supported.fold(0, |set, op| set | (1 << op as u8));
        Self { native_ops, io_blocks_max: 0, boundary_blocks: 0, late_buffers: false, ..*self }
    }
}

/// What a module implements: one core's queue to its device. Never leaves its reactor.
///
/// It is handed only operations of its [`Caps::native_ops`] (never a reset), in range, with buffers of the right length, within
/// `io_blocks_max` and `boundary_blocks`, on a device that is not removed.
pub trait Channel {
    /// Takes `io`, or hands it back when the queue is full. Never completes it before returning.
    ///
    /// # Errors
    /// [`Busy`], with the I/O.
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy>;

    /// Appends at most `budget` ended I/Os, with their status, to `done`; returns how many.
    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize;

    /// Tries to end the I/O `tag` early. It completes out of `poll` in any case, aborted or not. Returns whether the
    /// abort was taken on.
    fn abort(&mut self, _tag: u64) -> bool {
        false
    }

    /// Ends what can be ended early of everything under way: part of a reset, and of the bdev's removal. All of it
    /// completes out of `poll`. The default suits channels whose I/Os always end by themselves.
    fn reset(&mut self) {}

    /// Whether the core may sleep while I/Os are under way: the default suits channels whose completions come without a
    /// wake-up.
    fn rest(&self, _now: Tick) -> Rest {
        Rest::Never
    }
}

#[cfg(test)]
mod tests;
