use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_reactor::mem::Buf;
use penstock_reactor::rng::Rng;
use penstock_reactor::{Clock, Cx, PollMode, Reactor, ReactorConfig, ReactorId};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::malloc::Malloc;
use crate::{Bdev, BdevError, Descriptor, IoFlags, IoStatus, Lba, OpenMode, Shared, SharedConfig};
use std::sync::Arc;

const BLOCKS: u64 = 256;
const BLOCK: usize = 512;

/// A small disk that does little by itself, is often busy, and answers in any order.
#[derive(Debug)]
struct Awkward {
    shared: Arc<Shared>,
    malloc: Arc<Malloc>,
    /// Never answers, unless it is reset.
    hangs: bool,
}

struct AwkwardChannel {
    inner: Box<dyn Channel>,
    held: Vec<Box<Io>>,
    rng: Rng,
    hangs: bool,
    ends_all: bool,
}

fn malloc() -> Arc<Malloc> {
    let options = json!({"num_blocks": BLOCKS, "block_size": BLOCK});
    Malloc::new("m", &serde_json::from_value(options).unwrap()).unwrap()
}

fn awkward(native: &[Op], io_blocks_max: u32, boundary_blocks: u32, hangs: bool) -> Arc<Awkward> {
    let caps = Caps {
        native_ops: Caps::ops(native),
        io_blocks_max,
        boundary_blocks,
        optimal_blocks: 0,
        write_cache: false,
        unmap_zeroes: true,
        late_buffers: false,
    };
    let shared = Shared::new(SharedConfig {
        name: "a".into(),
        product: "Awkward disk",
        uuid: Uuid::from_u128(1),
        block_bytes: 512,
        physical_block_bytes: 512,
        blocks: BLOCKS,
        caps,
    });
    Arc::new(Awkward { shared: shared.unwrap(), malloc: malloc(), hangs })
}

impl Bdev for Awkward {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let inner = self.malloc.open_channel(cx)?;
        let (hangs, rng) = (self.hangs, Rng::seeded(5));
        Ok(Box::new(AwkwardChannel { inner, held: Vec::new(), rng, hangs, ends_all: false }))
    }

    fn driver_specific(&self) -> serde_json::Value {
        json!({})
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        ("", json!({}))
    }
}

impl Channel for AwkwardChannel {
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        if self.held.len() > 12 || self.rng.chance(200) {
            return Err(Busy(io));
        }
        // Done at once, answered at some time.
        self.inner.submit(io, now)?;
        self.inner.poll(now, 1, &mut self.held);
        Ok(())
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let mut count = 0;
        while count < budget && !self.held.is_empty() && (self.ends_all || !self.hangs) {
            let at = usize::try_from(self.rng.below(self.held.len() as u64)).unwrap();
            done.push(self.held.swap_remove(at));
            count += 1;
            if self.rng.chance(500) {
                break;
            }
        }
        count
    }

    fn reset(&mut self) {
        self.ends_all = true;
        self.held.iter_mut().for_each(|io| io.status = IoStatus::Aborted);
    }
}

fn reactor(id: u32) -> Reactor {
    let (clock, _hand) = Clock::simulated();
    Reactor::new(&ReactorConfig { id: ReactorId(id), core: None, mode: PollMode::Busy, clock, seed: 1 })
        .unwrap()
}

/// Fills buffers of random lengths with random bytes.
fn random_data(rng: &mut Rng, mut len: usize, io: &mut Io) -> Vec<u8> {
    io.data.clear();
    let mut all = Vec::new();
    while len > 0 {
        let most = len.min(1 << 16) as u64;
        let count = usize::try_from(if rng.chance(300) { most } else { 1 + rng.below(most) }).unwrap();
        let mut buf = Buf::alloc(count).unwrap();
        // Few different values, so that compares come out equal now and then.
        let value = u8::try_from(rng.below(3)).unwrap();
        buf.fill(value);
        all.extend_from_slice(&buf);
        io.data.push(buf);
        len -= count;
    }
    all
}

fn run(channel: &mut BdevChannel, io: Box<Io>) -> Box<Io> {
    channel.submit(io, Tick::ZERO).unwrap();
    let mut done = Vec::new();
    for _ in 0..100_000 {
        if channel.poll(Tick::ZERO, 4, &mut done) > 0 {
            return done.pop().unwrap();
        }
    }
    panic!("an I/O was lost");
}

/// Runs random I/Os one after the other against a disk that is a vector.
fn agrees_with_a_vector(native: &[Op], io_blocks_max: u32, boundary: u32, seed: u64) {
    let reactor = reactor(0);
    let bdev = awkward(native, io_blocks_max, boundary, false);
    let mut channel = Descriptor::unregistered(bdev, OpenMode::ReadWrite).channel(reactor.cx()).unwrap();
    let mut disk = vec![0_u8; usize::try_from(BLOCKS).unwrap() * BLOCK];
    let mut rng = Rng::seeded(seed);
    for step in 0..800 {
        let op = Op::ALL[usize::try_from(rng.below(8)).unwrap()];
        let lba = rng.below(BLOCKS);
        let blocks = 1 + rng.below(64.min(BLOCKS - lba));
        let (at, len) = (usize::try_from(lba).unwrap() * BLOCK, usize::try_from(blocks).unwrap() * BLOCK);
        let mut io = Io::boxed();
        io.set(step, op, IoFlags::NONE, Lba(lba), u32::try_from(blocks).unwrap());
        let data = random_data(&mut rng, len * op.data_factor(), &mut io);
        let source = (lba + blocks + rng.below(BLOCKS)) % (BLOCKS - blocks + 1);
        io.src_lba = Lba(source);
        let io = run(&mut channel, io);
        let mut expected = IoStatus::Success;
        match op {
            Op::Read => {
                let mut read = vec![0; len];
                io.data.copy_out(0, &mut read);
                assert!(read == disk[at..at + len], "step {step} seed {seed}: {io:?}");
            }
            Op::Write => disk[at..at + len].copy_from_slice(&data),
            Op::Unmap | Op::WriteZeroes => disk[at..at + len].fill(0),
            Op::Compare | Op::CompareAndWrite => {
                let difference = disk[at..at + len].iter().zip(&data).position(|(a, b)| a != b);
                if let Some(difference) = difference {
                    expected = IoStatus::Miscompare;
                    assert_eq!(io.result, difference as u64, "step {step} seed {seed}");
                } else if op == Op::CompareAndWrite {
                    disk[at..at + len].copy_from_slice(&data[len..]);
                }
            }
            Op::Copy if source.abs_diff(lba) < blocks => expected = IoStatus::OutOfRange,
            Op::Copy => {
                let from = usize::try_from(source).unwrap() * BLOCK;
                disk.copy_within(from..from + len, at);
            }
            Op::Flush | Op::Reset => {}
        }
        assert_eq!(io.status, expected, "step {step} seed {seed} {op:?} at {lba}+{blocks}");
        assert_eq!(io.tag, step);
    }
}

#[test]
fn splitting_and_stand_ins_agree_with_a_disk_that_is_a_vector() {
    let all = [Op::Read, Op::Write, Op::Unmap, Op::WriteZeroes, Op::Compare, Op::Copy, Op::Flush];
    let few = [Op::Read, Op::Write, Op::Unmap];
    for seed in 0..4 {
        agrees_with_a_vector(&all, 0, 0, seed);
        agrees_with_a_vector(&all, 5, 0, seed);
        agrees_with_a_vector(&all, 0, 8, seed);
        agrees_with_a_vector(&few, 0, 0, seed);
        agrees_with_a_vector(&few, 7, 4, seed);
    }
}

#[test]
fn many_large_ios_at_once_come_back_once_each() {
    let reactor = reactor(0);
    let bdev = awkward(&[Op::Read, Op::Write], 3, 0, false);
    let mut channel = Descriptor::unregistered(bdev, OpenMode::ReadWrite).channel(reactor.cx()).unwrap();
    let mut done = Vec::new();
    for tag in 0..500 {
        let mut io = Io::boxed();
        let op = [Op::Read, Op::Write, Op::WriteZeroes, Op::Compare][usize::try_from(tag % 4).unwrap()];
        io.set(tag, op, IoFlags::NONE, Lba(tag % 200), 40);
        random_data(&mut Rng::seeded(tag), 40 * BLOCK * op.data_factor(), &mut io);
        channel.submit(io, Tick::ZERO).unwrap();
        channel.poll(Tick::ZERO, 2, &mut done);
    }
    for _ in 0..1_000_000 {
        if channel.in_flight() == 0 {
            break;
        }
        channel.poll(Tick::ZERO, 8, &mut done);
    }
    let mut tags: Vec<_> = done.iter().map(|io| io.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..500).collect::<Vec<_>>());
}

/// Hangs eight reads, four of them large, and two that wait.
fn hanging(channel: &mut BdevChannel) {
    for tag in 0..8 {
        let mut io = Io::boxed();
        let blocks = if tag % 2 == 0 { 1 } else { 30 };
        io.set(tag, Op::Read, IoFlags::NONE, Lba(0), blocks);
        io.data.push(Buf::alloc(usize::try_from(blocks).unwrap() * BLOCK).unwrap());
        let mut io = Some(io);
        for _ in 0..20 {
            let Some(again) = io.take() else { break };
            io = channel.submit(again, Tick::ZERO).err().map(|Busy(back)| back);
        }
    }
    let mut done = Vec::new();
    for _ in 0..100 {
        channel.poll(Tick::ZERO, 8, &mut done);
    }
    assert!(done.is_empty());
}

fn statuses(channel: &mut BdevChannel, count: usize) -> Vec<(u64, IoStatus)> {
    let mut done = Vec::new();
    for _ in 0..1000 {
        channel.poll(Tick::ZERO, 8, &mut done);
    }
    assert_eq!((done.len(), channel.in_flight()), (count, 0));
    let mut ended: Vec<_> = done.iter().map(|io| (io.tag, io.status)).collect();
    ended.sort_unstable_by_key(|(tag, _)| *tag);
    assert!(ended.windows(2).all(|pair| pair[0].0 < pair[1].0), "once each: {ended:?}");
    ended
}

#[test]
fn a_reset_ends_everything_before_itself_and_each_once() {
    let reactor = reactor(0);
    let bdev = awkward(&[Op::Read], 4, 0, true);
    let mut channel = Descriptor::unregistered(bdev, OpenMode::ReadWrite).channel(reactor.cx()).unwrap();
    hanging(&mut channel);
    let hung = channel.in_flight();
    let mut reset = Io::boxed();
    reset.set(100, Op::Reset, IoFlags::NONE, Lba(0), 0);
    channel.submit(reset, Tick::ZERO).unwrap();
    let ended = statuses(&mut channel, hung + 1);
    let (reset, aborted) = ended.split_last().unwrap();
    assert_eq!(*reset, (100, IoStatus::Success));
    assert!(aborted.iter().all(|(_, status)| *status == IoStatus::Aborted), "{aborted:?}");
}

#[test]
fn a_removed_bdev_gives_every_io_back() {
    let reactor = reactor(0);
    let bdev = awkward(&[Op::Read], 4, 0, true);
    let shared = Arc::clone(&bdev.shared);
    let mut channel = Descriptor::unregistered(bdev, OpenMode::ReadWrite).channel(reactor.cx()).unwrap();
    hanging(&mut channel);
    let hung = channel.in_flight();
    shared.set_removed();
    let mut late = Io::boxed();
    late.set(100, Op::Flush, IoFlags::NONE, Lba(0), 0);
    channel.submit(late, Tick::ZERO).unwrap();
    let ended = statuses(&mut channel, hung + 1);
    assert_eq!(ended.last(), Some(&(100, IoStatus::Gone)));
}

#[test]
fn an_aborted_io_that_waits_inside_ends_at_once() {
    let reactor = reactor(0);
    let bdev = awkward(&[Op::Read], 4, 0, true);
    bdev.shared.set_qos_limits(crate::qos::QosLimits { rw_ios: 1, ..Default::default() });
    let mut channel = Descriptor::unregistered(bdev, OpenMode::ReadWrite).channel(reactor.cx()).unwrap();
    for tag in 0..5 {
        let mut io = Io::boxed();
        io.set(tag, Op::Read, IoFlags::NONE, Lba(0), 1);
        io.data.push(Buf::alloc(BLOCK).unwrap());
        channel.submit(io, Tick::ZERO).unwrap();
    }
    assert!(channel.abort(4) && channel.abort(2));
    assert!(!channel.abort(2), "aborted once already");
    let mut done = Vec::new();
    channel.poll(Tick::ZERO, 8, &mut done);
    let ended: Vec<_> = done.iter().map(|io| (io.tag, io.status)).collect();
    assert_eq!(ended, [(4, IoStatus::Aborted), (2, IoStatus::Aborted)]);
}

/// Two cores count up in the same block by compare-and-write, while both write beside it: no count is lost.
#[test]
fn compare_and_write_is_atomic_across_reactors() {
    const ROUNDS: u64 = 300;
    let bdev = awkward(&[Op::Read, Op::Write], 0, 0, false);
    let successes = AtomicU64::new(0);
    let ended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for id in 0..2 {
            let (bdev, successes, ended) = (bdev.clone(), &successes, &ended);
            scope.spawn(move || {
                let mut reactor = reactor(id);
                let descriptor = Descriptor::unregistered(bdev, OpenMode::ReadWrite);
                let mut channel = descriptor.channel(reactor.cx()).unwrap();
                for round in 0..ROUNDS {
                    count_up(&mut reactor, &mut channel, round, successes);
                }
                // The other core's questions are to be answered until it has ended, too.
                ended.fetch_add(1, Ordering::SeqCst);
                while ended.load(Ordering::SeqCst) < 2 {
                    reactor.turn();
                }
            });
        }
    });
    let reactor = reactor(7);
    let mut channel = Descriptor::unregistered(bdev, OpenMode::ReadOnly).channel(reactor.cx()).unwrap();
    let mut io = Io::boxed();
    io.set(1, Op::Read, IoFlags::NONE, Lba(8), 1);
    io.data.push(Buf::alloc(BLOCK).unwrap());
    let mut bytes = [0; 8];
    run(&mut channel, io).data.copy_out(0, &mut bytes);
    let counted = successes.load(Ordering::SeqCst);
    assert_eq!(u64::from_le_bytes(bytes), counted);
    assert!(counted >= ROUNDS, "at least one of two succeeds in each round");
}

/// A lock waited for an answer of every other core, of idle ones too: where two cores had one processor between them, each
/// compare-and-write took a slice of its time, and two thousand of them minutes.
#[test]
fn compare_and_write_does_not_wait_for_cores_that_write_nothing() {
    if !penstock_reactor::sys::fence::every_core() {
        return;
    }
    let bdev = awkward(&[Op::Read, Op::Write], 0, 0, false);
    let (one, other) = (reactor(0), reactor(1));
    let descriptor = Descriptor::unregistered(bdev, OpenMode::ReadWrite);
    let mut channel = descriptor.channel(one.cx()).unwrap();
    let mut idle = descriptor.channel(other.cx()).unwrap();
    let io = |tag, op, bytes| {
        let mut io = Io::boxed();
        io.set(tag, op, IoFlags::NONE, Lba(8), 1);
        io.data.push(Buf::zeroed(bytes).unwrap());
        io
    };
    assert_eq!(run(&mut channel, io(1, Op::CompareAndWrite, 2 * BLOCK)).status, IoStatus::Success);
    // One that writes is waited for.
    idle.submit(io(2, Op::Write, BLOCK), Tick::ZERO).unwrap();
    channel.submit(io(3, Op::CompareAndWrite, 2 * BLOCK), Tick::ZERO).unwrap();
    let mut done = Vec::new();
    for _ in 0..1000 {
        assert_eq!(channel.poll(Tick::ZERO, 4, &mut done), 0, "the other core's write is under way");
    }
    while idle.poll(Tick::ZERO, 4, &mut done) == 0 {}
    let mut other = other;
    other.turn();
    while channel.poll(Tick::ZERO, 4, &mut done) == 0 {}
    let ended: Vec<_> = done.iter().map(|io| (io.tag, io.status)).collect();
    assert_eq!(ended, [(2, IoStatus::Success), (3, IoStatus::Success)]);
}

fn count_up(reactor: &mut Reactor, channel: &mut BdevChannel, round: u64, successes: &AtomicU64) {
    let mut run = |mut io: Box<Io>, data: &[u8]| {
        let mut buf = Buf::zeroed(data.len()).unwrap();
        buf.copy_from_slice(data);
        io.data.push(buf);
        channel.submit(io, Tick::ZERO).unwrap();
        let mut done = Vec::new();
        let mut turns = 0_u64;
        while channel.poll(Tick::ZERO, 4, &mut done) == 0 {
            reactor.turn();
            turns += 1;
            assert!(turns < 1_000_000_000, "stuck");
        }
        done.pop().unwrap()
    };
    let new = |op, lba| {
        let mut io = Io::boxed();
        io.set(round, op, IoFlags::NONE, Lba(lba), 1);
        io
    };
    let read = run(new(Op::Read, 8), &[0; BLOCK]);
    let mut block = [0; BLOCK];
    read.data.copy_out(0, &mut block);
    let count = u64::from_le_bytes(block[..8].try_into().unwrap());
    let mut both = [block, block].concat();
    both[BLOCK..BLOCK + 8].copy_from_slice(&(count + 1).to_le_bytes());
    let io = run(new(Op::CompareAndWrite, 8), &both);
    match io.status {
        IoStatus::Success => successes.fetch_add(1, Ordering::SeqCst),
        IoStatus::Miscompare => 0,
        other => panic!("{other:?}"),
    };
    assert_eq!(run(new(Op::Write, 9), &[0; BLOCK]).status, IoStatus::Success);
}

#[test]
fn ceilings_hold_and_are_shared_fairly() {
    let (clock, hand) = Clock::simulated();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let reactor = Reactor::new(&config).unwrap();
    let bdev = malloc();
    bdev.shared().set_qos_limits(crate::qos::QosLimits { rw_ios: 20_000, ..Default::default() });
    let descriptor = Descriptor::unregistered(bdev, OpenMode::ReadWrite);
    let mut channels: Vec<_> = (0..3).map(|_| descriptor.channel(reactor.cx()).unwrap()).collect();
    let mut counts = [0_usize; 3];
    let mut now = Tick::from_ns(1_000_000_000);
    for (index, channel) in channels.iter_mut().enumerate() {
        // One has far more to do than the others.
        for tag in 0..if index == 0 { 256 } else { 16 } {
            let mut io = Io::boxed();
            io.set(tag, Op::Read, IoFlags::NONE, Lba(0), 1);
            io.data.push(Buf::alloc(BLOCK).unwrap());
            channel.submit(io, now).unwrap();
        }
    }
    let mut done = Vec::new();
    for _ in 0..10_000 {
        now = now.plus(Duration::from_micros(20));
        hand.advance_to(now);
        for (channel, count) in channels.iter_mut().zip(&mut counts) {
            *count += channel.poll(now, 64, &mut done);
            for io in done.drain(..) {
                channel.submit(io, now).unwrap();
            }
        }
    }
    let total: usize = counts.iter().sum();
    assert!((3_990..=4_100).contains(&total), "20 000 per second for 0.2 s gave {total}");
    for count in counts {
        assert!((total / 3 - 60..=total / 3 + 60).contains(&count), "{counts:?}");
    }
}
