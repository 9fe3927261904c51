//! Filters on top of bdevs, through the registry, as a user of the crate sees them.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use penstock_bdev::delay::Delay;
use penstock_bdev::inject::ErrorInjector;
use penstock_bdev::malloc::Malloc;
use penstock_bdev::passthru::Passthru;
use penstock_bdev::split::Split;
use penstock_bdev::{BdevChannel, BdevError, EventKind, Io, IoFlags, IoStatus, Lba, Op, OpenMode, Registry};
use penstock_reactor::mem::Buf;
use penstock_reactor::rng::Rng;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use serde_json::{Value, json};

fn options<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn with_malloc(blocks: u64) -> Registry {
    let registry = Registry::new();
    let params = json!({"name": "m0", "num_blocks": blocks, "block_size": 512});
    Malloc::create(&registry, options(params)).unwrap();
    registry
}

fn reactor() -> Reactor {
    let (clock, _hand) = Clock::simulated();
    Reactor::new(&ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 })
        .unwrap()
}

fn open(registry: &Registry, reactor: &Reactor, name: &str) -> BdevChannel {
    let descriptor = registry.open(name, OpenMode::ReadWrite, "test").unwrap();
    descriptor.channel(reactor.cx()).unwrap()
}

fn io(tag: u64, op: Op, lba: u64, blocks: u32, fill: u8) -> Box<Io> {
    let mut io = Io::boxed();
    io.set(tag, op, IoFlags::NONE, Lba(lba), blocks);
    if op.data_factor() > 0 {
        let mut buf = Buf::alloc(512 * usize::try_from(blocks).unwrap()).unwrap();
        buf.fill(fill);
        io.data.push(buf);
    }
    io
}

fn run_at(channel: &mut BdevChannel, io: Box<Io>, now: Tick) -> Option<Box<Io>> {
    channel.submit(io, now).unwrap();
    let mut done = Vec::new();
    (0..1000).find_map(|_| {
        channel.poll(now, 1, &mut done);
        done.pop()
    })
}

fn run(channel: &mut BdevChannel, io: Box<Io>) -> Box<Io> {
    run_at(channel, io, Tick::ZERO).unwrap()
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_stack_of_filters_agrees_with_a_disk_that_is_a_vector_and_leaves_its_neighbours_alone() {
    let registry = with_malloc(3000);
    let params = json!({"base_bdev": "m0", "split_count": 3});
    assert_eq!(Split::create(&registry, &options(params)).unwrap(), ["m0p0", "m0p1", "m0p2"]);
    let params = json!({"name": "pt", "base_bdev_name": "m0p1"});
    Passthru::create(&registry, &options(params)).unwrap();
    ErrorInjector::create(&registry, &options(json!({"base_name": "pt"}))).unwrap();
    let reactor = reactor();
    let mut channel = open(&registry, &reactor, "EE_pt");
    let mut disk = vec![0_u8; 1000];
    let mut rng = Rng::seeded(3);
    for step in 0..3000_u64 {
        let lba = rng.below(1000);
        let blocks = u32::try_from(1 + rng.below(8.min(1000 - lba))).unwrap();
        let fill = u8::try_from(rng.below(256)).unwrap();
        let range = usize::try_from(lba).unwrap()..usize::try_from(lba + u64::from(blocks)).unwrap();
        let op = [Op::Read, Op::Write, Op::WriteZeroes, Op::Compare][usize::try_from(rng.below(4)).unwrap()];
        let ended = run(&mut channel, io(step, op, lba, blocks, fill));
        assert_eq!((ended.tag, ended.lba), (step, Lba(lba)));
        match op {
            Op::Write => disk[range].fill(fill),
            Op::WriteZeroes => disk[range].fill(0),
            Op::Compare => {
                let equal = disk[range].iter().all(|byte| *byte == fill);
                assert_eq!(ended.status == IoStatus::Success, equal, "step {step}");
                assert_eq!(ended.status == IoStatus::Miscompare, !equal, "step {step}");
                continue;
            }
            _ => {
                let mut read = vec![0; 512 * range.len()];
                ended.data.copy_out(0, &mut read);
                for (block, byte) in read.chunks(512).zip(&disk[range]) {
                    assert!(block.iter().all(|read| read == byte), "step {step}");
                }
            }
        }
        assert_eq!(ended.status, IoStatus::Success);
    }
    for neighbour in ["m0p0", "m0p2"] {
        let mut channel = open(&registry, &reactor, neighbour);
        assert_eq!(run(&mut channel, io(1, Op::Compare, 0, 1000, 0)).status, IoStatus::Success);
        assert_eq!(run(&mut channel, io(1, Op::Read, 1000, 1, 0)).status, IoStatus::OutOfRange);
    }
    let refused = registry.open("pt", OpenMode::ReadWrite, "test");
    assert!(matches!(refused, Err(BdevError::Claimed { .. })), "a filter is its base's only writer");
}

#[test]
fn a_delayed_io_comes_back_when_its_time_has_come() {
    let registry = with_malloc(100);
    let params = json!({
        "name": "d0", "base_bdev_name": "m0", "avg_read_latency": 100, "p99_read_latency": 500,
        "avg_write_latency": 1000, "p99_write_latency": 1000,
    });
    Delay::create(&registry, &options(params)).unwrap();
    let reactor = reactor();
    let mut channel = open(&registry, &reactor, "d0");
    let mut done = Vec::new();
    let mut counts = [0; 3];
    for round in 0..1000_u64 {
        let start = Tick::from_ns(round * 10_000_000);
        channel.submit(io(1, Op::Read, 0, 1, 0), start).unwrap();
        for (us, count) in [99, 100, 500].into_iter().zip(&mut counts) {
            *count += channel.poll(start.plus_ns(us * 1000), 8, &mut done);
        }
    }
    assert_eq!(counts[0], 0);
    assert!((970..=999).contains(&counts[1]) && counts[1] + counts[2] == 1000, "{counts:?}");
    let params = json!({"delay_bdev_name": "d0", "latency_type": "avg_write", "latency_us": 0});
    Delay::update(&registry, &options(params)).unwrap();
    assert!(run_at(&mut channel, io(2, Op::Write, 0, 1, 0), Tick::ZERO).is_some());
}

fn inject(registry: &Registry, mut params: Value) {
    params.as_object_mut().unwrap().insert("name".into(), "EE_m0".into());
    ErrorInjector::inject(registry, &options(params)).unwrap();
}

fn with_injector() -> (Registry, Reactor, BdevChannel) {
    let registry = with_malloc(100);
    ErrorInjector::create(&registry, &options(json!({"base_name": "m0"}))).unwrap();
    let reactor = reactor();
    let channel = open(&registry, &reactor, "EE_m0");
    (registry, reactor, channel)
}

#[test]
fn injected_failures_strike_as_often_and_where_they_were_told() {
    let (registry, _reactor, mut channel) = with_injector();
    inject(
        &registry,
        json!({"io_type": "read", "error_type": "failure", "num": 2, "lba": 10, "num_blocks": 5}),
    );
    let mut read = |lba| run(&mut channel, io(1, Op::Read, lba, 2, 0)).status;
    assert_eq!([read(8), read(15)], [IoStatus::Success; 2]);
    assert_eq!([read(9), read(14)], [IoStatus::ReadError; 2]);
    assert_eq!(read(10), IoStatus::Success, "two were ordered");
    inject(
        &registry,
        json!({"io_type": "all", "error_type": "nvme_failure", "nvme_sct": 0, "nvme_sc": 0x81, "num": 1}),
    );
    assert_eq!(run(&mut channel, io(1, Op::Write, 0, 1, 0)).status, IoStatus::NoSpace);
    inject(
        &registry,
        json!({"io_type": "write", "error_type": "failure", "num": 9999, "rate_per_mille": 300}),
    );
    let failed =
        (0..1000).filter(|_| run(&mut channel, io(1, Op::Write, 0, 1, 0)).status != IoStatus::Success);
    let failed = failed.count();
    assert!((240..=360).contains(&failed), "{failed} of 1000 at 300 per mille");
}

#[test]
fn corrupted_bytes_are_those_that_were_told() {
    let (registry, _reactor, mut channel) = with_injector();
    let corrupt = json!({
        "io_type": "write", "error_type": "corrupt_data", "num": 1, "corrupt_offset": 600, "corrupt_value": 5,
    });
    inject(&registry, corrupt);
    let written = run(&mut channel, io(1, Op::Write, 0, 2, 7));
    assert!(written.data.iter().all(|buf| buf.iter().all(|byte| *byte == 7)), "the host's buffer is its own");
    let compared = run(&mut channel, io(1, Op::Compare, 0, 2, 7));
    assert_eq!((compared.status, compared.result), (IoStatus::Miscompare, 600));
}

#[test]
fn a_hung_io_goes_on_when_the_rules_are_cleared_and_ends_by_abort() {
    let (registry, _reactor, mut channel) = with_injector();
    inject(&registry, json!({"io_type": "all", "error_type": "pending", "num": 2}));
    for tag in [1, 2] {
        channel.submit(io(tag, Op::Read, 0, 1, 0), Tick::ZERO).unwrap();
    }
    let mut done = Vec::new();
    assert_eq!((0..100).map(|_| channel.poll(Tick::ZERO, 8, &mut done)).sum::<usize>(), 0);
    assert!(channel.abort(1));
    channel.poll(Tick::ZERO, 8, &mut done);
    inject(&registry, json!({"io_type": "clear", "error_type": "failure"}));
    for _ in 0..10 {
        channel.poll(Tick::ZERO, 8, &mut done);
    }
    let ended: Vec<_> = done.iter().map(|io| (io.tag, io.status)).collect();
    assert_eq!(ended, [(1, IoStatus::Aborted), (2, IoStatus::Success)]);
}

#[test]
fn a_removed_bdev_takes_its_filters_along_from_the_top() {
    let (registry, _reactor, mut channel) = with_injector();
    inject(&registry, json!({"io_type": "all", "error_type": "pending", "num": 2}));
    channel.submit(io(1, Op::Read, 0, 1, 0), Tick::ZERO).unwrap();
    let events = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&events);
    let _subscription = registry.subscribe(move |event| {
        seen.borrow_mut().push((event.kind, event.bdev.name().to_owned()));
    });
    let mut removal = Box::pin(registry.remove("m0"));
    assert!(poll_once(removal.as_mut()).is_pending());
    let mut done = Vec::new();
    for _ in 0..10 {
        channel.poll(Tick::ZERO, 8, &mut done);
    }
    assert_eq!((done.len(), channel.in_flight()), (1, 0), "what hung is back");
    drop(channel);
    assert!(poll_once(removal.as_mut()).is_ready());
    let expected = [
        (EventKind::Removing, "EE_m0"),
        (EventKind::Removing, "m0"),
        (EventKind::Removed, "EE_m0"),
        (EventKind::Removed, "m0"),
    ];
    let events: Vec<_> = events.borrow().iter().map(|(kind, name)| (*kind, name.clone())).collect();
    assert_eq!(events, expected.map(|(kind, name)| (kind, name.to_owned())));
    assert!(registry.list().is_empty());
}

#[test]
fn a_filter_grows_with_the_bdev_below() {
    let (registry, _reactor, mut channel) = with_injector();
    assert_eq!(run(&mut channel, io(1, Op::Read, 150, 1, 0)).status, IoStatus::OutOfRange);
    registry.resize("m0", Some(200)).unwrap();
    assert_eq!(run(&mut channel, io(1, Op::Read, 150, 1, 0)).status, IoStatus::Success);
}
