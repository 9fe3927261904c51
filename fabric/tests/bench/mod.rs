//! A lane on simulated disks, a workload, and an oracle that knows what each block may be.

#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod load;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_fabric::flow::{DiskIo, Flow};
use penstock_fabric::format::superblock::{DiskState, Superblock, Tier};
use penstock_fabric::id::{BLOCK_BYTES, DiskNo, LaneNo, ShardId};
use penstock_fabric::lane::{self, Lane, LaneError, LaneOptions, LanePlace, OpenReport, WorkError};
use penstock_fabric::pool::{self, NewDisk, PoolOptions};
use penstock_fabric::sim::{Actor, PowerCut, World};
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;
use penstock_reactor::rng::Rng;
use uuid::Uuid;

pub(crate) const OPTIONS: LaneOptions =
    LaneOptions { table_blocks: 1024, nodes: 64, headers: 8, reads: 16, cache_blocks: 256, bypass_blocks: 6 };

pub(crate) type Work = Pin<Box<dyn Future<Output = Result<(), WorkError>>>>;

/// What a stamp of 0 stands for: zeroes.
pub(crate) type Stamp = u64;

/// One version of a block.
#[derive(Debug, Clone, Copy)]
struct Version {
    stamp: Stamp,
    /// When it was acknowledged, or seen by a read that ended.
    sure_at: Option<u64>,
}

/// What blocks may be, by shard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Oracle {
    /// The versions of a block in the order of submission; what came before the newest sure one is forgotten.
    blocks: BTreeMap<(ShardId, u64), Vec<Version>>,
    /// Snapshots: the newest version of each block when it was taken, and whether it is sure to exist.
    pub snapshots: BTreeMap<(ShardId, u64), (BTreeMap<u64, Stamp>, bool)>,
    pub now: u64,
}

impl Oracle {
    fn write(&mut self, shard: ShardId, block: u64, stamp: Stamp) {
        let zero = Version { stamp: 0, sure_at: Some(0) };
        self.blocks
            .entry((shard, block))
            .or_insert_with(|| vec![zero])
            .push(Version { stamp, sure_at: None });
    }

    fn sure(&mut self, shard: ShardId, block: u64, stamp: Stamp) {
        let now = self.now;
        let versions = self.blocks.get_mut(&(shard, block));
        if let Some(version) =
            versions.and_then(|versions| versions.iter_mut().rev().find(|one| one.stamp == stamp))
        {
            version.sure_at.get_or_insert(now);
        }
    }

    /// Whether a read that began at `from` and ends now may see `stamp`.
    fn may_be(&self, shard: ShardId, block: u64, stamp: Stamp, from: u64) -> bool {
        let Some(versions) = self.blocks.get(&(shard, block)) else { return stamp == 0 };
        // The newest version that was sure before the read began, and all after it.
        let oldest =
            versions.iter().rposition(|version| version.sure_at.is_some_and(|at| at <= from)).unwrap_or(0);
        versions[oldest..].iter().any(|version| version.stamp == stamp)
    }

    /// What is sure to be there, as lines: shard, block, stamp; with a snapshot's number before them.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for ((shard, block), versions) in &self.blocks {
            text += &format!("- {} {block} {}\n", shard.0, versions.last().unwrap().stamp);
        }
        for ((shard, number), (blocks, _)) in &self.snapshots {
            for (block, stamp) in blocks {
                text += &format!("{number} {} {block} {stamp}\n", shard.0);
            }
        }
        text
    }

    /// The oracle that [`Self::to_text`] has written.
    pub(crate) fn from_text(text: &str) -> Self {
        let mut oracle = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            let (shard, block, stamp) = (ShardId(number(1)), number(2), number(3));
            if words[0] == "-" {
                oracle.blocks.insert((shard, block), vec![Version { stamp, sure_at: Some(0) }]);
            } else {
                let snapshot = oracle.snapshots.entry((shard, number(0))).or_insert((BTreeMap::new(), true));
                snapshot.0.insert(block, stamp);
            }
        }
        oracle
    }

    /// What is there now stays; what was lost never comes back.
    pub(crate) fn forget_lost(&mut self) {
        for versions in self.blocks.values_mut() {
            let newest = versions.iter().rposition(|version| version.sure_at.is_some()).unwrap_or(0);
            let newest = versions[newest];
            *versions = vec![newest];
        }
    }

    fn newest(&self, shard: ShardId) -> BTreeMap<u64, Stamp> {
        let of = self.blocks.iter().filter(|((of, _), _)| *of == shard);
        of.map(|((_, block), versions)| (*block, versions.last().unwrap().stamp)).collect()
    }

    pub(crate) fn take_snapshot(&mut self, shard: ShardId, number: u64) {
        self.snapshots.insert((shard, number), (self.newest(shard), false));
    }

    pub(crate) fn clone_of(&mut self, shard: ShardId, of: ShardId, number: u64) {
        let blocks = self.snapshots[&(of, number)].0.clone();
        // A shard that is reverted had others.
        self.blocks.retain(|(at, _), _| *at != shard);
        for (block, stamp) in blocks {
            self.blocks.insert((shard, block), vec![Version { stamp, sure_at: Some(0) }]);
        }
    }

    /// A shard may be what its snapshot is, from now on, and is sure to be when that is acknowledged.
    pub(crate) fn revert(&mut self, shard: ShardId, number: u64) -> BTreeMap<u64, Stamp> {
        let was = &self.snapshots[&(shard, number)].0;
        let now = self.newest(shard);
        let blocks: BTreeMap<u64, Stamp> = now
            .keys()
            .chain(was.keys())
            .map(|block| (*block, was.get(block).copied().unwrap_or(0)))
            .collect();
        for (block, stamp) in &blocks {
            self.write(shard, *block, *stamp);
        }
        blocks
    }

    /// A revert was acknowledged.
    pub(crate) fn reverted(&mut self, shard: ShardId, blocks: &BTreeMap<u64, Stamp>) {
        for (block, stamp) in blocks {
            self.sure(shard, *block, *stamp);
        }
    }

    /// The newest version of each block of a shard.
    pub(crate) fn head(&self, shard: ShardId) -> BTreeMap<u64, Stamp> {
        self.newest(shard)
    }

    pub(crate) fn forget_shard(&mut self, shard: ShardId) {
        self.blocks.retain(|(of, _), _| *of != shard);
        self.snapshots.retain(|(of, _), _| *of != shard);
    }
}

/// A lane, its background and what is under way.
pub(crate) struct Bench {
    pub lane: Lane,
    background: Option<Work>,
    /// The background has no turn while this is set.
    pub paused: bool,
    /// Control flows of the test.
    pub flows: Vec<Work>,
    pub flows_ended: Vec<Result<(), WorkError>>,
    pub oracle: Oracle,
    under_way: BTreeMap<u64, (ShardId, Option<u64>, u64)>,
    next_tag: u64,
    pub next_stamp: Stamp,
    /// Statuses other than success that are expected.
    pub tolerated: BTreeSet<u8>,
    pub statuses: BTreeMap<u8, u64>,
    pub background_error: Option<WorkError>,
    /// Snapshots that were cut in this turn, and those that were acknowledged.
    cuts: Rc<RefCell<Vec<(ShardId, u64)>>>,
    made: Rc<RefCell<Vec<(ShardId, u64)>>>,
}

impl Actor for Bench {
    fn take_out(&mut self) -> Option<DiskIo> {
        self.lane.take_out()
    }

    fn complete(&mut self, io: DiskIo) {
        self.lane.complete(io);
    }

    fn turn(&mut self) {
        self.lane.tick(Tick::from_ns(self.oracle.now * 1_000_000));
        self.lane.turn();
        let mut cx = Context::from_waker(Waker::noop());
        if let Some(background) = self.background.as_mut().filter(|_| !self.paused)
            && let Poll::Ready(outcome) = background.as_mut().poll(&mut cx)
        {
            self.background = None;
            self.background_error = outcome.err();
        }
        let mut at = 0;
        while at < self.flows.len() {
            match self.flows[at].as_mut().poll(&mut cx) {
                Poll::Ready(outcome) => {
                    self.flows_ended.push(outcome);
                    drop(self.flows.remove(at));
                }
                Poll::Pending => at += 1,
            }
        }
        // Nothing was submitted since the cut.
        for (shard, number) in self.cuts.take() {
            self.oracle.take_snapshot(shard, number);
        }
        for key in self.made.take() {
            self.oracle.snapshots.get_mut(&key).unwrap().1 = true;
        }
        self.lane.turn();
        self.oracle.now += 1;
        while let Some(io) = self.lane.poll() {
            self.ended(io);
        }
    }
}

impl Bench {
    fn ended(&mut self, io: Box<Io>) {
        let (shard, snapshot, from) =
            self.under_way.remove(&io.tag).expect("an I/O came back that was not under way");
        *self.statuses.entry(io.status as u8).or_insert(0) += 1;
        if io.status != IoStatus::Success {
            assert!(self.tolerated.contains(&(io.status as u8)), "{:?} ended with {:?}", io.op, io.status);
            return;
        }
        for at in 0..u64::from(io.blocks) {
            let block = io.lba.0 + at;
            match io.op {
                Op::Write => self.oracle.sure(shard, block, stamp_of(&io, at)),
                Op::WriteZeroes => self.oracle.sure(shard, block, 0),
                Op::Read => self.check_read(shard, snapshot, block, stamp_of(&io, at), from),
                _ => {}
            }
        }
    }

    fn check_read(&mut self, shard: ShardId, snapshot: Option<u64>, block: u64, stamp: Stamp, from: u64) {
        match snapshot {
            Some(number) => {
                let was = self.oracle.snapshots[&(shard, number)].0.get(&block).copied().unwrap_or(0);
                assert_eq!(stamp, was, "block {block} of snapshot {number} of shard {shard}");
            }
            None => {
                let fine = self.oracle.may_be(shard, block, stamp, from);
                let versions = self.oracle.blocks.get(&(shard, block));
                assert!(fine, "block {block} of shard {shard} is {stamp}, of {versions:?} since {from}");
                self.oracle.sure(shard, block, stamp);
            }
        }
    }

    /// Submits one I/O; false where there is no room.
    pub(crate) fn submit(
        &mut self,
        shard: ShardId,
        snapshot: Option<u64>,
        op: Op,
        block: u64,
        blocks: u32,
    ) -> bool {
        let mut io = Io::boxed();
        self.next_tag += 1;
        io.set(self.next_tag, op, IoFlags::NONE, Lba(block), blocks);
        if matches!(op, Op::Read | Op::Write) {
            let Some(buf) = Buf::zeroed(usize::try_from(blocks).unwrap() * BLOCK_BYTES) else { return false };
            io.data.push(buf);
        }
        for at in 0..u64::from(blocks) {
            match op {
                Op::Write => {
                    let bytes = block_of(self.next_stamp + 1 + at);
                    io.data.copy_in(usize::try_from(at).unwrap() * BLOCK_BYTES, &bytes);
                }
                Op::Read => {
                    io.data.copy_in(usize::try_from(at).unwrap() * BLOCK_BYTES, &[0xee; BLOCK_BYTES]);
                }
                _ => {}
            }
        }
        if self.lane.submit(shard, snapshot, io).is_err() {
            return false;
        }
        self.under_way.insert(self.next_tag, (shard, snapshot, self.oracle.now));
        for at in 0..u64::from(blocks) {
            match op {
                Op::Write => {
                    self.next_stamp += 1;
                    self.oracle.write(shard, block + at, self.next_stamp);
                }
                Op::WriteZeroes => self.oracle.write(shard, block + at, 0),
                _ => {}
            }
        }
        true
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.flows.is_empty()
    }

    pub(crate) fn flow(&mut self, make: impl FnOnce(Lane) -> Work) {
        let flow = make(self.lane.clone());
        self.flows.push(flow);
    }

    /// Begins to take snapshot `number` of `shards`.
    pub(crate) fn snapshot(&mut self, shards: &[ShardId], number: u64) {
        let keys: Vec<(ShardId, u64)> = shards.iter().map(|shard| (*shard, number)).collect();
        let (cuts, made, shards) = (Rc::clone(&self.cuts), Rc::clone(&self.made), shards.to_vec());
        self.flow(|lane| {
            Box::pin(async move {
                let cut = keys.clone();
                lane.snapshot(&shards, number, || cuts.borrow_mut().extend(cut)).await?;
                made.borrow_mut().extend(keys);
                Ok(())
            })
        });
    }

    /// Runs a control flow to its end.
    pub(crate) fn run(
        &mut self,
        world: &mut World,
        make: impl FnOnce(Lane) -> Work,
    ) -> Result<Result<(), WorkError>, PowerCut> {
        self.flow(make);
        self.quiesce(world)?;
        Ok(self.flows_ended.pop().unwrap())
    }

    /// Runs until nothing is under way.
    pub(crate) fn quiesce(&mut self, world: &mut World) -> Result<(), PowerCut> {
        let mut idle = 0;
        while !self.is_idle() {
            idle = if world.step(self)? { 0 } else { idle + 1 };
            assert!(
                idle < 1000,
                "{} I/Os and {} flows wait for nothing: {:?}",
                self.under_way.len(),
                self.flows.len(),
                self.lane.usage()
            );
        }
        Ok(())
    }

    /// Everything into egroups, a checkpoint.
    pub(crate) fn settle(&mut self, world: &mut World) -> Result<(), PowerCut> {
        self.flow(|lane| Box::pin(async move { lane.settle().await }));
        self.quiesce(world)
    }

    /// Reads everything that the oracle knows of and compares.
    pub(crate) fn read_all(&mut self, world: &mut World) {
        let blocks: Vec<(ShardId, u64)> = self.oracle.blocks.keys().copied().collect();
        for (shard, block) in blocks {
            while !self.submit(shard, None, Op::Read, block, 1) {
                world.step(self).unwrap();
            }
        }
        let snapshots: Vec<_> =
            self.oracle.snapshots.iter().map(|(key, (blocks, _))| (*key, blocks.clone())).collect();
        for ((shard, number), blocks) in snapshots {
            let wait = move |lane: Lane| -> Work {
                Box::pin(async move { lane.snapshot_made(shard, number).await })
            };
            self.run(world, wait).unwrap().unwrap();
            let last = blocks.keys().next_back().map_or(1, |last| last + 2);
            for block in 0..last {
                while !self.submit(shard, Some(number), Op::Read, block, 1) {
                    world.step(self).unwrap();
                }
            }
        }
        self.quiesce(world).unwrap();
    }

    /// No space leaks and none is used twice; what is live is what the maps say.
    pub(crate) fn check_space(&self, place: &LanePlace) {
        let state = self.lane.state();
        let mut free: BTreeMap<DiskNo, BTreeSet<u64>> = BTreeMap::new();
        for (disk, region) in &state.regions {
            if place.disks[usize::from(disk.0)].state != DiskState::In {
                continue;
            }
            let (first, blocks) = place.disks[usize::from(disk.0)].regions.blocks(*region);
            free.entry(*disk).or_default().extend(first.0..first.0 + blocks);
        }
        for (id, egroup) in &state.egroups {
            assert!(egroup.live > 0 && egroup.live <= u64::from(egroup.decoded), "egroup {id}: {egroup:?}");
            for copy in egroup.places() {
                let Some(free) = free.get_mut(&copy.disk) else { continue };
                for block in copy.first.0..copy.first.0 + u64::from(egroup.blocks) {
                    assert!(free.remove(&block), "block {block} is used twice");
                }
            }
        }
        for (disk, expected) in free {
            let runs = self.lane.free_runs(disk);
            let found: BTreeSet<u64> =
                runs.iter().flat_map(|(first, blocks)| first.0..first.0 + blocks).collect();
            assert_eq!(found, expected, "free blocks of disk {}", disk.0);
        }
    }
}

fn stamp_of(io: &Io, at: u64) -> Stamp {
    let mut bytes = [0; BLOCK_BYTES];
    io.data.copy_out(usize::try_from(at).unwrap() * BLOCK_BYTES, &mut bytes);
    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let even = bytes.chunks(8).all(|word| word == &bytes[..8]);
    assert!(even || bytes == block_of(stamp), "a block is half of one version and half of another");
    stamp
}

/// What is written with a stamp: every third is noise, the others are the stamp again and again.
fn block_of(stamp: Stamp) -> [u8; BLOCK_BYTES] {
    let mut noise = Rng::seeded(stamp);
    let mut bytes = [0; BLOCK_BYTES];
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        let noisy = stamp.is_multiple_of(3) && at > 0;
        word.copy_from_slice(&if noisy { noise.next_u64() } else { stamp }.to_le_bytes());
    }
    bytes
}

pub(crate) const POOL: PoolOptions =
    PoolOptions { lanes: 1, segment_blocks: 600, segments: 6, region_blocks: 2048, copies: 1 };

/// A new pool of `disks` disks with one lane.
pub(crate) fn format(world: &mut World, flow: &Flow, copies: u8) -> Vec<Superblock> {
    let new = world.plugged().into_iter().map(|(at, blocks)| {
        let uuid = Uuid::from_u128(100 + u128::from(at.0));
        NewDisk { at, uuid, blocks, tier: Tier::Ssd }
    });
    let new: Vec<NewDisk> = new.collect();
    let options = PoolOptions { copies, ..POOL };
    let superblocks =
        world.must(&mut flow.clone(), pool::create(flow, Uuid::from_u128(1), &new, &options)).unwrap();
    let place = place(&superblocks);
    world.must(&mut flow.clone(), lane::format(flow, &place)).unwrap();
    superblocks
}

pub(crate) fn place(superblocks: &[Superblock]) -> LanePlace {
    let disk = |(at, superblock): (u16, &Superblock)| NewDisk {
        at: DiskNo(at),
        uuid: superblock.disk,
        blocks: superblock.layout.blocks,
        tier: superblock.tier,
    };
    let disks: Vec<NewDisk> = (0..).zip(superblocks).map(disk).collect();
    let pool = pool::Pool::planned(&disks, superblocks);
    pool.place(LaneNo(0), &pool.regions()).unwrap()
}

/// Opens the lane again after whatever happened; the oracle keeps what is sure and what may be.
pub(crate) fn open(
    world: &mut World,
    place: &LanePlace,
    mut oracle: Oracle,
    stamp: Stamp,
) -> Result<(Bench, OpenReport), LaneError> {
    let flow = Flow::new();
    let life = world.rng.next_u64();
    let opened = world.must(&mut flow.clone(), Lane::open(&flow, place, &OPTIONS, life));
    let (lane, report) = opened?;
    {
        let state = lane.state();
        // A snapshot that was not acknowledged may be there or not.
        oracle.snapshots.retain(|(shard, number), (_, sure)| {
            let there = state.shards.get(shard).is_some_and(|shard| shard.snapshots.contains_key(number));
            assert!(there || !*sure, "snapshot {number} of shard {shard} is lost");
            *sure = there;
            there
        });
    }
    let worker = lane.clone();
    let background: Work = Box::pin(async move { worker.background().await });
    let bench = Bench {
        lane,
        background: Some(background),
        paused: false,
        flows: Vec::new(),
        flows_ended: Vec::new(),
        oracle,
        under_way: BTreeMap::new(),
        next_tag: 0,
        next_stamp: stamp,
        tolerated: BTreeSet::new(),
        statuses: BTreeMap::new(),
        background_error: None,
        cuts: Rc::default(),
        made: Rc::default(),
    };
    Ok((bench, report))
}
