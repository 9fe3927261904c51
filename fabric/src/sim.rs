//! Simulated disks: everything a disk may do to a storage engine, from a seed.
//!
//! A [`SimDisk`] has a volatile write cache. A power cut keeps any subset of what was not flushed and of what was under
//! way, down to sectors. It can also lose a write that it acknowledged, put one elsewhere, let bits rot, fail, or stall. [`World`]
//! turns disks and futures by hand: no thread, no clock, so that a seed gives the same run every time; [`World::hash`] says
//! whether it did.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use penstock_bdev::{IoFlags, IoStatus, Op};
use penstock_reactor::rng::Rng;

use crate::flow::DiskIo;
use crate::id::{BLOCK_BYTES, DiskNo};

/// What a disk writes as a unit in a power cut.
const SECTOR_BYTES: usize = 512;

type Block = [u8; BLOCK_BYTES];

/// Mischief of a disk, each in so many of a thousand I/Os.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A write is acknowledged and never happens.
    pub lost: u32,
    /// A write lands on another block.
    pub misdirected: u32,
    /// A read ends with an error.
    pub read_error: u32,
    /// A write or flush ends with an error.
    pub write_error: u32,
}

/// A simulated disk.
#[derive(Debug)]
pub struct SimDisk {
    blocks: u64,
    /// What is on the medium.
    durable: BTreeMap<u64, Box<Block>>,
    /// What reads see: the medium and the cache over it.
    cached: BTreeMap<u64, Box<Block>>,
    queue: VecDeque<DiskIo>,
    /// Its mischief.
    pub faults: Faults,
    /// I/Os wait in the queue while this is set.
    pub stalled: bool,
    /// Reads wait in the queue while this is set.
    pub reads_stalled: bool,
    /// Writes are durable when they complete.
    pub write_through: bool,
    /// It does not answer any more: every I/O ends with [`IoStatus::Gone`].
    pub gone: bool,
}

impl SimDisk {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        Self {
            blocks,
            durable: BTreeMap::new(),
            cached: BTreeMap::new(),
            queue: VecDeque::new(),
            faults: Faults::default(),
            stalled: false,
            reads_stalled: false,
            write_through: false,
            gone: false,
        }
    }

    /// Its length in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// A block as a read sees it.
    #[must_use]
    pub fn peek(&self, block: u64) -> Block {
        let found = self.cached.get(&block).or_else(|| self.durable.get(&block));
        found.map_or([0; BLOCK_BYTES], |found| **found)
    }

    /// Puts bytes on the medium behind everybody's back.
    pub fn poke(&mut self, block: u64, bytes: &Block) {
        self.durable.insert(block, Box::new(*bytes));
        self.cached.remove(&block);
    }

    /// Flips a bit of a block.
    pub fn rot(&mut self, block: u64, bit: usize) {
        let mut bytes = self.peek(block);
        if let Some(byte) = bytes.get_mut(bit / 8 % BLOCK_BYTES) {
            *byte ^= 1 << (bit % 8);
        }
        self.poke(block, &bytes);
    }

    /// Takes an I/O.
    pub fn submit(&mut self, io: DiskIo) {
        self.queue.push_back(io);
    }

    /// Whether it has something to do.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.stalled && self.queue.iter().any(|io| self.may_end(io))
    }

    /// Ends one of the I/Os that wait.
    pub fn step(&mut self, rng: &mut Rng) -> Option<DiskIo> {
        if !self.is_ready() {
            return None;
        }
        let ready = self.queue.iter().filter(|io| self.may_end(io)).count();
        let pick = usize::try_from(rng.below(ready as u64)).unwrap_or(0);
        let ready = self.queue.iter().enumerate().filter(|(_, io)| self.may_end(io));
        let at = ready.map(|(at, _)| at).nth(pick)?;
        let mut io = self.queue.remove(at)?;
        io.io.status = self.execute(&mut io, rng);
        Some(io)
    }

    /// Power is cut and comes back: of what was not flushed and of what was under way, some sectors are there.
    pub fn cut(&mut self, rng: &mut Rng) {
        let mut unsure: Vec<(u64, Box<Block>)> = std::mem::take(&mut self.cached).into_iter().collect();
        for io in std::mem::take(&mut self.queue) {
            if io.io.op == Op::Write {
                unsure.extend(blocks_of(&io));
            }
        }
        // None, all, or each sector by itself.
        let mood = rng.below(4);
        for (block, bytes) in unsure {
            let mut now = self.peek(block);
            let whole = rng.chance(500);
            for (to, from) in now.chunks_mut(SECTOR_BYTES).zip(bytes.chunks(SECTOR_BYTES)) {
                let survives = match mood {
                    0 => false,
                    1 => true,
                    2 => whole,
                    _ => rng.chance(500),
                };
                if survives {
                    to.copy_from_slice(from);
                }
            }
            self.durable.insert(block, Box::new(now));
        }
    }

    fn may_end(&self, io: &DiskIo) -> bool {
        !self.reads_stalled || io.io.op != Op::Read
    }

    fn execute(&mut self, io: &mut DiskIo, rng: &mut Rng) -> IoStatus {
        let io = &mut *io.io;
        if self.gone {
            return IoStatus::Gone;
        }
        let inside = io.lba.0.checked_add(u64::from(io.blocks)).is_some_and(|end| end <= self.blocks);
        if !inside {
            return IoStatus::OutOfRange;
        }
        match io.op {
            Op::Read if rng.chance(self.faults.read_error) => IoStatus::ReadError,
            Op::Read => {
                for at in 0..u64::from(io.blocks) {
                    let bytes = self.peek(io.lba.0 + at);
                    let offset = usize::try_from(at).unwrap_or(0) * BLOCK_BYTES;
                    assert_eq!(io.data.copy_in(offset, &bytes), BLOCK_BYTES, "the buffers are too short");
                }
                IoStatus::Success
            }
            Op::Write | Op::Flush if rng.chance(self.faults.write_error) => IoStatus::WriteError,
            Op::Write if rng.chance(self.faults.lost) => IoStatus::Success,
            Op::Write => {
                let shift = if rng.chance(self.faults.misdirected) { 1 + rng.below(7) } else { 0 };
                let durable = self.write_through || io.flags.contains(IoFlags::FUA);
                for (at, bytes) in io_blocks(io) {
                    let at = (at + shift) % self.blocks;
                    if durable {
                        self.durable.insert(at, bytes);
                        self.cached.remove(&at);
                    } else {
                        self.cached.insert(at, bytes);
                    }
                }
                IoStatus::Success
            }
            Op::Flush => {
                self.durable.append(&mut self.cached);
                IoStatus::Success
            }
            _ => IoStatus::Unsupported,
        }
    }
}

fn blocks_of(io: &DiskIo) -> Vec<(u64, Box<Block>)> {
    io_blocks(&io.io)
}

fn io_blocks(io: &penstock_bdev::Io) -> Vec<(u64, Box<Block>)> {
    let block = |at: u64| {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let offset = usize::try_from(at).unwrap_or(0) * BLOCK_BYTES;
        assert_eq!(io.data.copy_out(offset, &mut bytes[..]), BLOCK_BYTES, "the buffers are too short");
        (io.lba.0 + at, bytes)
    };
    (0..u64::from(io.blocks)).map(block).collect()
}

/// What a world turns besides disks: something that has I/O for them.
pub trait Actor {
    /// The next I/O for a disk.
    fn take_out(&mut self) -> Option<DiskIo>;
    /// An I/O that ended.
    fn complete(&mut self, io: DiskIo);
    /// A turn without news.
    fn turn(&mut self) {}
}

impl Actor for crate::flow::Flow {
    fn take_out(&mut self) -> Option<DiskIo> {
        Self::take_out(self)
    }

    fn complete(&mut self, io: DiskIo) {
        let foreign = Self::complete(self, io);
        assert!(foreign.is_none(), "an I/O of a machine came back to a flow");
    }
}

/// Simulated disks and the chance that rules them.
#[derive(Debug)]
pub struct World {
    /// The disks, by number.
    pub disks: Vec<SimDisk>,
    /// All chance.
    pub rng: Rng,
    /// How many I/Os have ended.
    pub events: u64,
    /// When power goes: after so many I/Os.
    pub cut_at: Option<u64>,
    hash: u64,
}

/// Power was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerCut;

impl World {
    /// `count` disks of `blocks` blocks.
    #[must_use]
    pub fn new(seed: u64, count: usize, blocks: u64) -> Self {
        let disks = (0..count).map(|_| SimDisk::new(blocks)).collect();
        Self { disks, rng: Rng::seeded(seed), events: 0, cut_at: None, hash: seed }
    }

    /// A number that is the same for the same run.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash = self.hash;
        for disk in &self.disks {
            for (block, bytes) in disk.durable.iter().chain(&disk.cached) {
                hash = mix(mix(hash, *block), u64::from(crate::crc::crc32c(&bytes[..])));
            }
        }
        hash
    }

    /// Moves I/O out of `actor` to the disks and ends one. `Ok(false)`: there is nothing to do.
    ///
    /// # Errors
    /// [`PowerCut`] when it is time for that; the disks have lost what they lose.
    pub fn step(&mut self, actor: &mut dyn Actor) -> Result<bool, PowerCut> {
        actor.turn();
        while let Some(io) = actor.take_out() {
            match self.disks.get_mut(usize::from(io.disk.0)) {
                Some(disk) => disk.submit(io),
                None => {
                    let mut io = io;
                    io.io.status = IoStatus::Gone;
                    actor.complete(io);
                }
            }
        }
        if self.cut_at.is_some_and(|at| self.events >= at) {
            self.cut();
            return Err(PowerCut);
        }
        let ready: Vec<usize> =
            (0..self.disks.len()).filter(|at| self.disks.get(*at).is_some_and(SimDisk::is_ready)).collect();
        let pick = usize::try_from(self.rng.below(ready.len() as u64)).unwrap_or(0);
        let Some(disk) = ready.get(pick).and_then(|at| self.disks.get_mut(*at)) else { return Ok(false) };
        let Some(io) = disk.step(&mut self.rng) else { return Ok(false) };
        self.events += 1;
        self.hash = mix(
            self.hash,
            io.io.lba.0 ^ u64::from(io.io.blocks) << 48 ^ u64::from(io.disk.0) << 60 ^ io.io.op as u64,
        );
        actor.complete(io);
        Ok(true)
    }

    /// Power is cut now.
    pub fn cut(&mut self) {
        self.cut_at = None;
        for disk in &mut self.disks {
            disk.cut(&mut self.rng);
        }
    }

    /// Runs a control flow to its end.
    ///
    /// # Errors
    /// [`PowerCut`].
    ///
    /// # Panics
    /// When the future waits and no disk has anything to do: it would wait for ever.
    pub fn run<T>(&mut self, actor: &mut dyn Actor, future: impl Future<Output = T>) -> Result<T, PowerCut> {
        let mut future = pin!(future);
        let mut idle = 0;
        loop {
            if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Ok(outcome);
            }
            idle = if self.step(actor)? { 0 } else { idle + 1 };
            assert!(idle < 1000, "a control flow waits for nothing");
        }
    }

    /// As [`Self::run`], where power is not cut.
    ///
    /// # Panics
    /// When it is cut.
    pub fn must<T>(&mut self, actor: &mut dyn Actor, future: impl Future<Output = T>) -> T {
        let Ok(outcome) = self.run(actor, future) else { panic!("power was cut") };
        outcome
    }

    /// Where the disks are plugged in and how long they are.
    #[must_use]
    pub fn plugged(&self) -> Vec<(DiskNo, u64)> {
        (0..).map(DiskNo).zip(&self.disks).map(|(at, disk)| (at, disk.blocks())).collect()
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}
