//! Lanes on a reactor over real bdevs: of 512 and of 4096 bytes, in memory and in a file; data are there after a restart.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::sync::Arc;

use penstock_bdev::malloc::Malloc;
use penstock_bdev::uring::Uring;
use penstock_bdev::{Bdev, Descriptor, Io, IoFlags, IoStatus, Lba, Op, OpenMode, Registry};
use penstock_fabric::driver::{Channels, LaneDriver};
use penstock_fabric::flow::Flow;
use penstock_fabric::format::superblock::Tier;
use penstock_fabric::id::{BLOCK_BYTES, LaneNo, ShardId};
use penstock_fabric::lane::{self, Lane, LaneOptions, LanePlace};
use penstock_fabric::pool::{self, NewDisk, Pool, PoolOptions};
use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use serde_json::json;
use uuid::Uuid;

const SHARD: ShardId = ShardId(1 << 16);
const POOL: PoolOptions =
    PoolOptions { lanes: 2, segment_blocks: 1024, segments: 8, region_blocks: 4096, copies: 1 };

struct Node {
    reactor: Reactor,
    disks: Vec<Descriptor>,
}

impl Node {
    fn new(disks: Vec<Arc<dyn Bdev>>) -> Self {
        let (clock, _hand) = Clock::simulated();
        let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
        let open = |bdev| Descriptor::unregistered(bdev, OpenMode::ReadWrite);
        Self { reactor: Reactor::new(&config).unwrap(), disks: disks.into_iter().map(open).collect() }
    }

    fn channels(&self) -> Channels {
        Channels::new(self.disks.iter().map(|disk| disk.channel(self.reactor.cx()).unwrap()))
    }

    /// Runs a control flow over channels of its own.
    fn run<T: 'static>(&mut self, flow: &Flow, future: impl Future<Output = T> + 'static) -> T {
        let mut channels = self.channels();
        let (sender, receiver) = std::sync::mpsc::channel();
        let task = async move { sender.send(future.await).unwrap() };
        self.reactor.cx().spawn(task).unwrap().detach();
        loop {
            self.reactor.turn();
            channels.turn(flow, Tick::ZERO);
            if let Some(outcome) = receiver.try_iter().next() {
                return outcome;
            }
        }
    }

    fn create(&mut self) {
        let flow = Flow::new();
        let disk = |(at, blocks)| NewDisk {
            at,
            uuid: Uuid::from_u128(1 + u128::from(at.0)),
            blocks,
            tier: Tier::Ssd,
        };
        let disks: Vec<NewDisk> = self.channels().plugged().into_iter().map(disk).collect();
        let mouth = flow.clone();
        let made =
            self.run(&flow, async move { pool::create(&mouth, Uuid::from_u128(9), &disks, &POOL).await });
        made.unwrap();
        for lane in 0..POOL.lanes {
            let (place, mouth) = (self.place(LaneNo(lane)), flow.clone());
            self.run(&flow, async move { lane::format(&mouth, &place).await }).unwrap();
        }
    }

    fn place(&mut self, lane: LaneNo) -> LanePlace {
        let flow = Flow::new();
        let (mouth, plugged) = (flow.clone(), self.channels().plugged());
        let pool: Pool = self.run(&flow, async move { pool::open(&mouth, &plugged).await }).unwrap();
        pool.place(lane, &pool.regions()).unwrap()
    }

    /// Opens a lane and lets it run on the reactor.
    fn start(&mut self, lane: LaneNo) -> Lane {
        let (flow, place) = (Flow::new(), self.place(lane));
        let mouth = flow.clone();
        let opened = self.run(&flow, async move {
            Lane::open(&mouth, &place, &LaneOptions { table_blocks: 4096, ..LaneOptions::default() }, 5).await
        });
        let (lane, _) = opened.unwrap();
        let driver = LaneDriver::new(lane.clone(), self.channels());
        self.reactor.cx().add_poller("lane", Box::new(driver));
        let background = lane.clone();
        let background =
            async move { background.background().await.unwrap_or_else(|error| panic!("{error}")) };
        self.reactor.cx().spawn(background).unwrap().detach();
        lane
    }

    /// Does an I/O and waits for it.
    fn io(&mut self, lane: &Lane, op: Op, block: u64, blocks: u32, fill: u8) -> Box<Io> {
        let mut io = Io::boxed();
        io.set(1, op, IoFlags::NONE, Lba(block), blocks);
        if matches!(op, Op::Read | Op::Write) {
            let mut buf = Buf::alloc(usize::try_from(blocks).unwrap() * BLOCK_BYTES).unwrap();
            buf.fill(fill);
            io.data.push(buf);
        }
        let mut waiting = Some(io);
        loop {
            if let Some(io) = waiting.take() {
                waiting = lane.submit(SHARD, None, io).err();
            }
            self.reactor.turn();
            if let Some(io) = lane.poll() {
                assert_eq!(io.status, IoStatus::Success, "{op:?} of block {block}");
                return io;
            }
        }
    }

    fn check(&mut self, lane: &Lane, block: u64, blocks: u32, expected: u8) {
        let io = self.io(lane, Op::Read, block, blocks, 0xee);
        let mut bytes = vec![0; usize::try_from(blocks).unwrap() * BLOCK_BYTES];
        io.data.copy_out(0, &mut bytes);
        assert!(
            bytes.iter().all(|byte| *byte == expected),
            "block {block} is {} and not {expected}",
            bytes[0]
        );
    }
}

fn malloc(number: u128, block_size: u64) -> Arc<dyn Bdev> {
    let options = json!({
        "name": format!("m{number}"), "num_blocks": (384_u64 << 20) / block_size, "block_size": block_size,
        "uuid": Uuid::from_u128(number).to_string(),
    });
    Malloc::new(&format!("m{number}"), &serde_json::from_value(options).unwrap()).unwrap()
}

fn writes_are_read_again_after_a_restart(disks: &[Arc<dyn Bdev>]) {
    let mut node = Node::new(disks.to_vec());
    node.create();
    let lane = node.start(LaneNo(1));
    let (create, flow) = (lane.clone(), Flow::new());
    node.run(&flow, async move { create.create_shard(SHARD).await }).unwrap();
    let value = |block: u64| u8::try_from(block % 251 + 1).unwrap();
    // More than tables and log hold: it is drained and the log goes round.
    for block in (0..24_000_u64).step_by(64) {
        node.io(&lane, Op::Write, block, 64, value(block));
    }
    node.io(&lane, Op::WriteZeroes, 640, 64, 0);
    node.io(&lane, Op::Flush, 0, 0, 0);
    assert!(lane.usage().used_blocks > 15_000, "{:?}", lane.usage());
    drop(lane);
    // Without any farewell, as after kill -9.
    let mut node = Node::new(disks.to_vec());
    let lane = node.start(LaneNo(1));
    for block in (0..24_000_u64).step_by(64) {
        node.check(&lane, block, 64, if block == 640 { 0 } else { value(block) });
    }
    node.check(&lane, 30_000, 8, 0);
}

#[test]
fn a_lane_lives_on_two_disks_in_memory_of_different_block_lengths() {
    writes_are_read_again_after_a_restart(&[malloc(1, 512), malloc(2, 4096)]);
}

#[test]
fn a_lane_lives_in_a_file() {
    let path = std::env::temp_dir().join(format!("penstock-fabric-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().set_len(512 << 20).unwrap();
    let registry = Registry::new();
    let options = json!({ "name": "f0", "filename": path, "block_size": 512 });
    Uring::create(&registry, serde_json::from_value(options).unwrap()).unwrap();
    let disk = registry.find("f0").unwrap();
    std::fs::remove_file(&path).unwrap();
    writes_are_read_again_after_a_restart(&[disk]);
}
