//! One worker: a poller that keeps a device's queue full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use penstock_bdev::{BdevChannel, Busy, Channel, Io, IoFlags, IoStatus, Lba, Op};
use penstock_reactor::mem::Buf;
use penstock_reactor::{Cx, Poller, Rest, Tick};

use crate::report::Totals;
use crate::verify::Verifier;
use crate::workload::Generator;

/// Completions taken per turn.
const BUDGET: usize = 256;

/// What a worker drives.
pub trait Device {
    /// Takes an I/O or hands it back.
    ///
    /// # Errors
    /// [`Busy`], with the I/O, when the queue is full.
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy>;
    /// Appends ended I/Os to `done`.
    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize;
    /// Sends what was submitted, for devices that gather it.
    fn flush_queue(&mut self) {}
}

impl Device for BdevChannel {
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        Self::submit(self, io, now)
    }

    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        Self::poll(self, now, budget, done)
    }
}

/// A channel without a bdev around it.
#[derive(Debug)]
pub struct Bare<C>(pub C);

impl<C: Channel> Device for Bare<C> {
    fn submit(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Busy> {
        io.submitted = now;
        self.0.submit(io, now)
    }

    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        self.0.poll(now, budget, done)
    }
}

/// What all workers and the main thread share.
#[derive(Debug, Default)]
pub struct Progress {
    /// I/Os ended so far, warm-up included.
    pub ended: AtomicU64,
    /// Set to end early.
    pub stop: AtomicBool,
}

/// What a worker is to do.
#[derive(Debug)]
pub struct Task {
    /// Which blocks and operations.
    pub load: Generator,
    /// Blocks of one I/O.
    pub blocks_per_io: u32,
    /// Bytes of one I/O.
    pub bytes_per_io: u64,
    /// I/Os in flight.
    pub queue_depth: u32,
    /// Write every piece once before the warm-up.
    pub prefill: bool,
    /// Nanoseconds before measuring.
    pub warm_up_ns: u64,
    /// Nanoseconds to measure.
    pub measured_ns: u64,
    /// Nanoseconds without I/O after completions.
    pub pause_ns: u64,
    /// I/Os to measure at most.
    pub ios_max: u64,
    /// Marks and checks data.
    pub verifier: Option<Verifier>,
    /// Where progress is shown.
    pub progress: Arc<Progress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing submitted yet.
    Start,
    /// Writing everything once, from this piece on.
    Prefill { next: u64 },
    /// Running, not counted until that time.
    WarmUp { until: Tick },
    /// Running and counted.
    Measure { since: Tick, until: Tick },
    /// Waiting for what is in flight.
    Drain,
    /// Reading back what was written, from this piece on.
    ReadBack { next: u64 },
    /// Told the main thread.
    Ended,
}

/// A worker. Reports [`Totals`] once, when it has ended.
pub struct Worker<D> {
    device: D,
    task: Task,
    phase: Phase,
    idle: Vec<Box<Io>>,
    done: Vec<Box<Io>>,
    in_flight: u32,
    /// Nothing is issued before that time.
    resume_at: Tick,
    totals: Totals,
    first_slot: u64,
    end_slot: u64,
    finished: Option<Box<dyn FnOnce(Totals)>>,
}

impl<D> std::fmt::Debug for Worker<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl<D: Device> Worker<D> {
    /// A worker on `device`; `finished` is called once with what came of it. `None` when there are no buffers.
    pub fn new(device: D, task: Task, slots: (u64, u64), finished: Box<dyn FnOnce(Totals)>) -> Option<Self> {
        let mut idle = Vec::new();
        for tag in 0..u64::from(task.queue_depth) {
            let mut io = Io::boxed();
            io.tag = tag;
            io.data.push(Buf::zeroed(usize::try_from(task.bytes_per_io).ok()?)?);
            idle.push(io);
        }
        let done = Vec::with_capacity(BUDGET);
        Some(Self {
            device,
            task,
            phase: Phase::Start,
            idle,
            done,
            in_flight: 0,
            resume_at: Tick::ZERO,
            totals: Totals::default(),
            first_slot: slots.0,
            end_slot: slots.0 + slots.1,
            finished: Some(finished),
        })
    }

    fn change_phase(&mut self, now: Tick) {
        let stop = self.task.progress.stop.load(Ordering::Relaxed);
        match self.phase {
            Phase::Start if self.task.prefill => self.phase = Phase::Prefill { next: self.first_slot },
            Phase::Prefill { next } if (next < self.end_slot || self.in_flight > 0) && !stop => {}
            Phase::Start | Phase::Prefill { .. } => {
                self.phase = Phase::WarmUp { until: now.plus_ns(self.task.warm_up_ns) };
            }
            Phase::WarmUp { until } if now >= until || stop => {
                self.phase = Phase::Measure { since: now, until: now.plus_ns(self.task.measured_ns) };
            }
            Phase::Measure { since, until } => {
                let ops: u64 = self.totals.ops.iter().sum();
                if now >= until || stop || ops >= self.task.ios_max {
                    self.totals.elapsed_ns = now.ns_since(since);
                    self.phase = Phase::Drain;
                }
            }
            Phase::Drain if self.in_flight == 0 => self.after_drain(),
            Phase::ReadBack { next } if next >= self.end_slot && self.in_flight == 0 => self.end(),
            Phase::WarmUp { .. } | Phase::Drain | Phase::ReadBack { .. } | Phase::Ended => {}
        }
    }

    fn after_drain(&mut self) {
        if self.task.verifier.is_some() {
            self.phase = Phase::ReadBack { next: self.first_slot };
        } else {
            self.end();
        }
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        if let Some(finished) = self.finished.take() {
            finished(std::mem::take(&mut self.totals));
        }
    }

    fn take_back(&mut self, mut io: Box<Io>, now: Tick) {
        self.in_flight -= 1;
        let is_read = io.op == Op::Read;
        if io.status != IoStatus::Success {
            let (op, lba, status) = (io.op, io.lba, io.status);
            self.totals.record_error(|| format!("{} at LBA {}: {status:?}", op.name(), lba.0));
        } else if matches!(self.phase, Phase::Measure { .. }) {
            self.totals.record(is_read, self.task.bytes_per_io, now.ns_since(io.submitted));
        }
        self.check(&mut io, is_read);
        self.idle.push(io);
    }

    fn check(&mut self, io: &mut Io, is_read: bool) {
        let Some(verifier) = &mut self.task.verifier else { return };
        let slot = io.lba.0 / u64::from(self.task.blocks_per_io);
        verifier.release(slot);
        let Some(data) = io.data.iter().next() else { return };
        if is_read
            && io.status == IoStatus::Success
            && let Err(mismatch) = verifier.check(slot, data)
        {
            self.totals.record_error(|| format!("wrong data: {mismatch:?}"));
        }
    }

    /// Issues I/Os until the queue is full; returns how many.
    fn fill(&mut self, now: Tick) -> usize {
        let mut issued = 0;
        while let Some(mut io) = self.idle.pop() {
            let Some((is_read, slot)) = self.next_step() else {
                self.idle.push(io);
                break;
            };
            let op = if is_read { Op::Read } else { Op::Write };
            let lba = Lba(slot * u64::from(self.task.blocks_per_io));
            let tag = io.tag;
            io.set(tag, op, IoFlags::NONE, lba, self.task.blocks_per_io);
            if let (Some(verifier), false) = (&mut self.task.verifier, is_read) {
                io.data.iter_mut().for_each(|data| verifier.fill(slot, data));
            }
            if let Err(Busy(io)) = self.device.submit(io, now) {
                self.totals.record_error(|| "the device's queue is shorter than the queue depth".into());
                self.task.progress.stop.store(true, Ordering::Relaxed);
                self.idle.push(io);
                break;
            }
            self.in_flight += 1;
            issued += 1;
        }
        issued
    }

    /// What to do next, if anything may be done now.
    fn next_step(&mut self) -> Option<(bool, u64)> {
        if let Phase::ReadBack { next } | Phase::Prefill { next } = &mut self.phase {
            let slot = *next;
            if slot >= self.end_slot {
                return None;
            }
            *next += 1;
            if let Some(verifier) = &mut self.task.verifier {
                verifier.claim(slot);
            }
            return Some((matches!(self.phase, Phase::ReadBack { .. }), slot));
        }
        if !matches!(self.phase, Phase::WarmUp { .. } | Phase::Measure { .. }) {
            return None;
        }
        let step = self.task.load.step();
        // Where another I/O is under way on that piece, leave it out this time.
        let is_free = self.task.verifier.as_mut().is_none_or(|verifier| verifier.claim(step.slot));
        is_free.then_some((step.is_read, step.slot))
    }
}

impl<D: Device> Poller for Worker<D> {
    fn poll(&mut self, _cx: &Cx, now: Tick) -> usize {
        let ended = self.device.poll(now, BUDGET, &mut self.done);
        let mut done = std::mem::take(&mut self.done);
        for io in done.drain(..) {
            self.take_back(io, now);
        }
        self.done = done;
        self.task.progress.ended.fetch_add(u64::try_from(ended).unwrap_or(0), Ordering::Relaxed);
        self.change_phase(now);
        if ended > 0 && self.task.pause_ns > 0 {
            self.resume_at = now.plus_ns(self.task.pause_ns);
        }
        let issued = if now >= self.resume_at { self.fill(now) } else { 0 };
        if issued > 0 {
            self.device.flush_queue();
        }
        ended + issued
    }

    fn rest(&mut self, _now: Tick) -> Rest {
        if self.phase == Phase::Ended { Rest::UntilWoken } else { Rest::Never }
    }
}
