//! A core's way to a bdev.

use std::sync::Arc;

use penstock_reactor::{ReactorId, Rest, Tick};

use crate::bdev::Shared;
use crate::descriptor::{Descriptor, OpenMode};
use crate::io::{Io, IoStatus, Op};
use crate::stat::ChannelStats;

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
    /// An I/O that crosses a multiple of so many blocks is split above the module. 0: no boundary.
    pub boundary_blocks: u32,
    /// The length, in blocks, at which it works best. 0: unknown.
    pub optimal_blocks: u32,
    /// Writes are volatile until a flush or with FUA.
    pub write_cache: bool,
    /// Unmapped blocks read as zeroes.
    pub unmap_zeroes: bool,
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
}

/// What a module implements: one core's queue to its device. Never leaves its reactor.
///
/// It is handed only operations of its [`Caps::native_ops`], in range, with buffers of the right length, within
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

    /// Whether the core may sleep while I/Os are under way: the default suits channels whose completions come without a
    /// wake-up.
    fn rest(&self, _now: Tick) -> Rest {
        Rest::Never
    }
}

/// A module's channel with everything that is the same for all of them: checks, statistics, state.
pub struct BdevChannel {
    inner: Box<dyn Channel>,
    shared: Arc<Shared>,
    stats: Arc<ChannelStats>,
    /// I/Os that ended before they reached the module.
    refused: Vec<Box<Io>>,
    in_flight: usize,
    descriptor: Descriptor,
}

impl std::fmt::Debug for BdevChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BdevChannel").field("bdev", &self.shared.name()).finish_non_exhaustive()
    }
}

impl BdevChannel {
    pub(crate) fn new(descriptor: Descriptor, inner: Box<dyn Channel>, reactor: ReactorId) -> Self {
        let shared = Arc::clone(descriptor.shared());
        let stats = shared.stats_of(reactor);
        Self { inner, shared, stats, refused: Vec::new(), in_flight: 0, descriptor }
    }

    /// Takes `io`. Whatever is wrong with it is said by its status, out of [`Self::poll`].
    ///
    /// # Errors
    /// [`Busy`], with the I/O untouched, when the device's queue is full: to be tried again after the next completion.
    #[inline]
    pub fn submit(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Busy> {
        io.submitted = now;
        io.status = IoStatus::Pending;
        if let Err(status) = self.check(&io) {
            io.status = status;
            self.refused.push(io);
        } else {
            self.inner.submit(io, now)?;
        }
        self.in_flight += 1;
        self.stats.in_flight.add(1);
        self.stats.in_flight_max.raise_to(self.stats.in_flight.read());
        Ok(())
    }

    /// Appends at most `budget` ended I/Os to `done`; returns how many.
    #[inline]
    pub fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let before = done.len();
        let from_refused = self.refused.len().min(budget);
        if from_refused > 0 {
            done.extend(self.refused.drain(..from_refused));
        }
        self.inner.poll(now, budget - from_refused, done);
        let ended = done.len() - before;
        for io in done.iter().skip(before) {
            assert!(io.status != IoStatus::Pending, "an I/O came back without a status");
            self.count(io, now);
        }
        self.in_flight -= ended;
        if ended > 0 {
            self.stats
                .in_flight
                .set(self.stats.in_flight.read().saturating_sub(u64::try_from(ended).unwrap_or(0)));
        }
        ended
    }

    /// Tries to end the I/O `tag` early; it comes out of [`Self::poll`] in any case.
    pub fn abort(&mut self, tag: u64) -> bool {
        self.inner.abort(tag)
    }

    /// I/Os under way.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the core may sleep as far as this channel goes.
    #[must_use]
    pub fn rest(&self, now: Tick) -> Rest {
        if !self.refused.is_empty() {
            return Rest::Never;
        }
        if self.in_flight == 0 { Rest::UntilWoken } else { self.inner.rest(now) }
    }

    /// Name, geometry, state and statistics of the bdev.
    #[inline]
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What cannot be passed to the module, and why.
    #[inline]
    fn check(&self, io: &Io) -> Result<(), IoStatus> {
        if self.shared.is_removed() {
            return Err(IoStatus::Gone);
        }
        if io.op.is_write() && self.descriptor.mode() == OpenMode::ReadOnly {
            return Err(IoStatus::WriteProtected);
        }
        if !self.shared.caps().has(io.op) {
            return Err(IoStatus::Unsupported);
        }
        if !io.op.has_range() {
            return Ok(());
        }
        let device_blocks = self.shared.blocks();
        let in_range =
            |first: u64| first.checked_add(u64::from(io.blocks)).is_some_and(|end| end <= device_blocks);
        if io.blocks == 0 || !in_range(io.lba.0) || (io.op == Op::Copy && !in_range(io.src_lba.0)) {
            return Err(IoStatus::OutOfRange);
        }
        let bytes = u64::from(io.blocks) * u64::from(self.shared.block_bytes());
        let wanted = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_mul(io.op.data_factor()));
        if wanted != Some(io.data.len_bytes()) && io.op.data_factor() > 0 {
            return Err(IoStatus::BadLength);
        }
        Ok(())
    }

    #[inline]
    fn count(&self, io: &Io, now: Tick) {
        let stats = self.stats.op(io.op);
        let latency_ns = now.ns_since(io.submitted);
        stats.ops.add(1);
        if io.status == IoStatus::Success {
            stats.bytes.add(u64::from(io.blocks) * u64::from(self.shared.block_bytes()));
        } else {
            stats.errors.add(1);
        }
        stats.latency_ns_sum.add(latency_ns);
        stats.latency_ns_max.raise_to(latency_ns);
        stats.latency_ns.record(latency_ns);
    }
}
