//! Figures of one lane on one reactor over disks in memory: what the engine itself can do.
//!
//! `cargo run --release -p penstock-fabric --example lane -- [--seconds N] [--mib AREA] [--qd N] [CASE…]`, cases: `device` (the disk below,
//! alone), `write`, `cached`, `read`, `sequential`, `snapshot`, `background`, `restart`. On an otherwise idle machine; each case says what it measured.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for developers"
)]
#![expect(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "figures are rounded; it measures"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_bdev::malloc::Malloc;
use penstock_bdev::{Bdev, BdevChannel, Busy, Descriptor, Io, IoFlags, IoStatus, Lba, Op, OpenMode};
use penstock_fabric::driver::{Channels, LaneDriver};
use penstock_fabric::flow::Flow;
use penstock_fabric::format::superblock::Tier;
use penstock_fabric::id::{BLOCK_BYTES, LaneNo, ShardId};
use penstock_fabric::lane::{self, BackgroundOptions, Lane, LaneOptions, LanePlace, WorkError};
use penstock_fabric::pool::{self, NewDisk, PoolOptions};
use penstock_reactor::mem::Buf;
use penstock_reactor::rng::Rng;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use serde_json::json;
use uuid::Uuid;

const SHARD: ShardId = ShardId(1 << 16);
const POOL: PoolOptions =
    PoolOptions { lanes: 1, segment_blocks: 1024, segments: 64, region_blocks: 16384, copies: 1 };
/// Blocks of one I/O that touches the disk's memory for the first time.
const TOUCH_BLOCKS: u32 = 32;

/// What load goes to: a lane, or the disk itself.
trait Place {
    fn submit(&mut self, io: Box<Io>) -> Result<(), Box<Io>>;
    fn poll(&mut self, ended: &mut Vec<Box<Io>>);
}

impl Place for Lane {
    fn submit(&mut self, io: Box<Io>) -> Result<(), Box<Io>> {
        Self::submit(self, SHARD, None, io)
    }

    fn poll(&mut self, ended: &mut Vec<Box<Io>>) {
        ended.extend(std::iter::from_fn(|| Self::poll(self)));
    }
}

impl Place for BdevChannel {
    fn submit(&mut self, io: Box<Io>) -> Result<(), Box<Io>> {
        Self::submit(self, io, Tick::ZERO).map_err(|Busy(io)| io)
    }

    fn poll(&mut self, ended: &mut Vec<Box<Io>>) {
        Self::poll(self, Tick::ZERO, 256, ended);
    }
}

struct Node {
    reactor: Reactor,
    disk: Descriptor,
    bdev: Arc<dyn Bdev>,
    options: LaneOptions,
    depth: u64,
}

impl Node {
    fn new(bdev: Arc<dyn Bdev>, options: LaneOptions, depth: u64) -> Self {
        let config = ReactorConfig {
            id: ReactorId(0),
            core: None,
            mode: PollMode::Busy,
            clock: Clock::system(),
            seed: 1,
        };
        let disk = Descriptor::unregistered(Arc::clone(&bdev), OpenMode::ReadWrite);
        Self { reactor: Reactor::new(&config).unwrap(), disk, bdev, options, depth }
    }

    fn channels(&self) -> Channels {
        Channels::new(vec![Some(self.disk.channel(self.reactor.cx()).unwrap())])
    }

    /// Runs a control flow over a channel of its own.
    fn run<T: 'static>(&mut self, flow: &Flow, future: impl Future<Output = T> + 'static) -> T {
        let mut channels = self.channels();
        let (sender, receiver) = std::sync::mpsc::channel();
        self.reactor.cx().spawn(async move { sender.send(future.await).unwrap() }).unwrap().detach();
        loop {
            self.reactor.turn();
            channels.turn(flow, Tick::ZERO);
            if let Some(outcome) = receiver.try_iter().next() {
                return outcome;
            }
        }
    }

    fn place(&mut self) -> LanePlace {
        let flow = Flow::new();
        let (mouth, plugged) = (flow.clone(), self.channels().plugged());
        let pool = self.run(&flow, async move { pool::open(&mouth, &plugged).await }).unwrap();
        let mut place = pool.place(LaneNo(0), &pool.regions()).unwrap();
        place.disks[0].write_cache = false;
        place
    }

    fn create(&mut self) {
        let flow = Flow::new();
        let (at, blocks) = self.channels().plugged()[0];
        let disks = [NewDisk { at, uuid: Uuid::from_u128(1), blocks, tier: Tier::Ssd }];
        let mouth = flow.clone();
        self.run(&flow, async move { pool::create(&mouth, Uuid::from_u128(9), &disks, &POOL).await })
            .unwrap();
        let (place, mouth) = (self.place(), flow.clone());
        self.run(&flow, async move { lane::format(&mouth, &place).await }).unwrap();
    }

    /// Opens the lane and lets it run; how long opening took.
    fn start(&mut self) -> (Lane, Duration) {
        let (flow, place, options) = (Flow::new(), self.place(), self.options);
        let mouth = flow.clone();
        let begin = Instant::now();
        let (lane, report) =
            self.run(&flow, async move { Lane::open(&mouth, &place, &options, 5).await }).unwrap();
        let took = begin.elapsed();
        println!("opened in {took:.1?}: {} records replayed", report.records);
        let driver = LaneDriver::new(lane.clone(), self.channels());
        self.reactor.cx().add_poller("lane", Box::new(driver));
        let background = lane.clone();
        let background =
            async move { background.background().await.unwrap_or_else(|error| panic!("{error}")) };
        self.reactor.cx().spawn(background).unwrap().detach();
        (lane, took)
    }

    fn flow<T: 'static>(&mut self, future: impl Future<Output = Result<T, WorkError>> + 'static) -> T {
        self.run(&Flow::new(), future).unwrap()
    }

    /// Keeps the queue full until `until` says that it is enough; returns I/Os per second, and the longest that any I/O took.
    fn load(
        &mut self,
        place: &mut impl Place,
        op: Op,
        blocks: u32,
        mut next: impl FnMut() -> u64,
        mut until: impl FnMut(u64, Duration) -> bool,
    ) -> Found {
        let mut idle: Vec<Box<Io>> = Vec::new();
        let mut noise = Rng::seeded(7);
        let depth = usize::try_from(self.depth).unwrap();
        for tag in 0..self.depth {
            let mut io = Io::boxed();
            let mut buf = Buf::zeroed(usize::try_from(blocks).unwrap() * BLOCK_BYTES).unwrap();
            buf.chunks_mut(8).for_each(|word| word.copy_from_slice(&noise.next_u64().to_le_bytes()));
            io.data.push(buf);
            io.tag = tag;
            idle.push(io);
        }
        let (begin, mut count, mut ended) = (Instant::now(), 0_u64, Vec::new());
        let mut since = vec![begin; depth];
        let (mut turn, mut times, mut stop) = (begin, vec![0_u32; 100_000], None);
        while stop.is_none() || idle.len() < depth {
            while let Some(mut io) = idle.pop_if(|_| stop.is_none()) {
                let tag = io.tag;
                io.set(tag, op, IoFlags::NONE, Lba(next()), blocks);
                since[usize::try_from(tag).unwrap()] = turn;
                if let Err(io) = place.submit(io) {
                    idle.push(io);
                    break;
                }
            }
            self.reactor.turn();
            turn = Instant::now();
            place.poll(&mut ended);
            for io in ended.drain(..) {
                assert_eq!(io.status, IoStatus::Success);
                count += 1;
                // By 100 ns, up to 10 ms.
                let took = (turn - since[usize::try_from(io.tag).unwrap()]).as_nanos() / 100;
                times[usize::try_from(took).unwrap().min(99_999)] += 1;
                idle.push(io);
            }
            if stop.is_none() && until(count, turn - begin) {
                stop = Some(count as f64 / begin.elapsed().as_secs_f64());
            }
        }
        for _ in 0..1000 {
            self.reactor.turn();
        }
        let within = |part: u64| {
            let mut left = count * part / 1000;
            let at = times.iter().position(|some| {
                let found = left < u64::from(*some);
                left = left.saturating_sub(u64::from(*some));
                found
            });
            Duration::from_nanos(100 * at.unwrap_or(99_999) as u64)
        };
        let longest = times.iter().rposition(|some| *some > 0).unwrap_or(0) as u64;
        let [p50, p99, p999] = [500, 990, 999].map(within);
        Found { rate: stop.unwrap_or(0.0), p50, p99, p999, longest: Duration::from_nanos(100 * longest) }
    }

    /// What the disk does alone; all of its memory has been touched then.
    fn device(&mut self, time: Duration) {
        let mut channel = self.disk.channel(self.reactor.cx()).unwrap();
        let blocks = channel.shared().blocks() - u64::from(TOUCH_BLOCKS);
        let mut at = 0;
        let touch = || {
            at += u64::from(TOUCH_BLOCKS);
            (at - u64::from(TOUCH_BLOCKS)) % blocks
        };
        let all = blocks / u64::from(TOUCH_BLOCKS) + 1;
        self.load(&mut channel, Op::Write, TOUCH_BLOCKS, touch, |count, _| count >= all);
        let mut rng = Rng::seeded(3);
        for (op, len) in [(Op::Write, 1), (Op::Read, 1), (Op::Write, 32), (Op::Read, 32)] {
            let mut at = 0;
            let next = || {
                at += u64::from(len);
                if len == 1 { rng.below(blocks) } else { at % blocks }
            };
            let found = self.load(&mut channel, op, len, next, |_, now| now >= time);
            say(&format!("device {}", op.name()), u64::from(len), found);
        }
    }
}

/// What a load found; times are cut at 10 ms.
struct Found {
    rate: f64,
    p50: Duration,
    p99: Duration,
    p999: Duration,
    longest: Duration,
}

fn say(name: &str, blocks: u64, found: Found) {
    let Found { rate, p50, p99, p999, longest } = found;
    let mib = rate * blocks as f64 * 4096.0 / f64::from(1 << 20);
    println!(
        "{name:12} {rate:>10.0} I/Os per second of {blocks} blocks, {mib:.0} MiB/s; p50 {p50:.1?}, p99 {p99:.1?}, p99.9 {p999:.1?}, the longest {longest:.1?}"
    );
}

struct Bench {
    node: Node,
    lane: Lane,
    area: u64,
    time: Duration,
}

impl Bench {
    fn case(&mut self, name: &str) {
        let (area, time) = (self.area, self.time);
        let mut rng = Rng::seeded(1);
        let timed = move |_: u64, now: Duration| now >= time;
        match name {
            "fill" => {
                let mut at = 0;
                let next = || {
                    at += 16;
                    (at - 16) % area
                };
                self.say(name, 16, |this| {
                    this.node.load(&mut this.lane.clone(), Op::Write, 16, next, |done, _| done * 16 >= area)
                });
                let lane = self.lane.clone();
                self.node.flow(async move { lane.settle().await });
            }
            "write" => self.say(name, 1, |this| {
                this.node.load(&mut this.lane.clone(), Op::Write, 1, || rng.below(area), timed)
            }),
            "read" => {
                self.lane.set_cache_blocks(0);
                self.say(name, 1, |this| {
                    this.node.load(&mut this.lane.clone(), Op::Read, 1, || rng.below(area), timed)
                });
            }
            "cached" => {
                self.lane.set_cache_blocks(32768);
                let part = area.min(20_000);
                for _ in 0..3 {
                    let mut at = 0;
                    let next = || {
                        at += 1;
                        at % part
                    };
                    self.node.load(&mut self.lane.clone(), Op::Read, 1, next, |done, _| done > part);
                }
                self.say(name, 1, |this| {
                    this.node.load(&mut this.lane.clone(), Op::Read, 1, || rng.below(part), timed)
                });
                println!("          {:?}", self.lane.cache_stats());
            }
            "sequential" => {
                for op in [Op::Write, Op::Read] {
                    let mut at = 0;
                    let next = || {
                        at += 32;
                        at % (area - 32)
                    };
                    self.say(op.name(), 32, |this| {
                        this.node.load(&mut this.lane.clone(), op, 32, next, timed)
                    });
                }
            }
            "snapshot" => self.snapshot(),
            "background" => self.background(),
            "restart" => {
                let mut node = Node::new(Arc::clone(&self.node.bdev), self.node.options, self.node.depth);
                let (lane, _) = node.start();
                (self.node, self.lane) = (node, lane);
            }
            _ => println!("there is no case {name}"),
        }
        println!("          {:?}", self.lane.usage());
    }

    fn say(&mut self, name: &str, blocks: u64, run: impl FnOnce(&mut Self) -> Found) {
        say(name, blocks, run(self));
    }

    /// Reads, alone and beside collection and a scrub that never end, at several shares of the core.
    fn background(&mut self) {
        self.lane.set_cache_blocks(0);
        let (area, time) = (self.area, self.time);
        let load = |this: &mut Self, name: &str| {
            let mut rng = Rng::seeded(4);
            let timed = move |_: u64, now: Duration| now >= time;
            let (_, before) = this.lane.background_progress();
            this.say(name, 1, |this| {
                this.node.load(&mut this.lane.clone(), Op::Read, 1, || rng.below(area), timed)
            });
            let (_, after) = this.lane.background_progress();
            println!(
                "          background: {} us, {} jobs",
                after.units - before.units,
                after.finished - before.finished
            );
        };
        load(self, "alone");
        let scrub = self.lane.clone();
        self.lane.set_scrub_rate(u64::from(u32::MAX));
        let cx = self.node.reactor.cx().clone();
        cx.spawn(async move { while scrub.scrub().await.is_ok() {} }).unwrap().detach();
        for share_percent in [10, 50, 100] {
            self.lane.set_background(BackgroundOptions { share_percent, paused: false });
            self.lane.want_collect();
            load(self, &format!("share {share_percent}"));
        }
    }

    /// The longest stall of writes while a snapshot is taken.
    fn snapshot(&mut self) {
        let mut rng = Rng::seeded(2);
        let (area, mut lane, time) = (self.area, self.lane.clone(), self.time);
        let task = self.lane.clone();
        let mut taken = false;
        let cx = self.node.reactor.cx().clone();
        let Found { rate, longest, .. } = self.node.load(
            &mut lane,
            Op::Write,
            1,
            || rng.below(area),
            move |_, now| {
                if !std::mem::replace(&mut taken, now > time / 2) && taken {
                    let task = task.clone();
                    let snapshot = async move {
                        let begin = Instant::now();
                        task.snapshot(&[SHARD], 1, || {}).await.unwrap();
                        println!("snapshot acknowledged after {:.2?}", begin.elapsed());
                    };
                    cx.spawn(snapshot).unwrap().detach();
                }
                now >= time
            },
        );
        println!("snapshot   {rate:>10.0} writes per second, the longest took {longest:.1?}");
        let lane = self.lane.clone();
        self.node.flow(async move { lane.delete_snapshot(SHARD, 1).await });
    }
}

fn main() {
    let mut cases: Vec<String> = std::env::args().skip(1).collect();
    let mut option = |name: &str, default: u64| {
        let Some(at) = cases.iter().position(|word| word == name) else { return default };
        cases.remove(at);
        cases.remove(at).parse().unwrap()
    };
    let (seconds, mib, depth) = (option("--seconds", 5), option("--mib", 512), option("--qd", 128));
    if cases.is_empty() {
        cases = ["device", "write", "cached", "read", "sequential", "snapshot", "restart"]
            .map(String::from)
            .to_vec();
    }
    let blocks = mib * 256 * 3 + 200_000;
    let disk = json!({ "name": "m0", "num_blocks": blocks, "block_size": 4096 });
    let bdev: Arc<dyn Bdev> = Malloc::new("m0", &serde_json::from_value(disk).unwrap()).unwrap();
    let mut node = Node::new(bdev, LaneOptions::default(), depth);
    // Also for the first touch of its memory, which costs more than anything that is measured.
    let time = if cases.iter().any(|case| case == "device") { seconds } else { 0 };
    node.device(Duration::from_secs(time));
    node.create();
    let (lane, _) = node.start();
    let create = lane.clone();
    node.flow(async move { create.create_shard(SHARD).await });
    let mut bench = Bench { node, lane, area: mib * 256, time: Duration::from_secs(seconds) };
    bench.case("fill");
    for case in cases.iter().filter(|case| *case != "device") {
        bench.case(case);
    }
}
