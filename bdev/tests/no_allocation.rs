//! No I/O allocates memory once the queues have been filled: counted by the allocator itself.
#![expect(clippy::unwrap_used, reason = "a test")]

use penstock_bdev::malloc::Malloc;
use penstock_bdev::null::Null;
use penstock_bdev::qos::QosLimits;
use penstock_bdev::split::Split;
use penstock_bdev::uring::Uring;
use penstock_bdev::{BdevChannel, Io, IoFlags, IoStatus, Lba, Op, OpenMode, Registry};
use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use serde_json::{Value, json};

const QUEUE_DEPTH: u64 = 32;

fn options<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Does `count` I/Os of `blocks` blocks with a full queue, and as many again; returns the allocations of the latter.
fn allocations(reactor: &mut Reactor, channel: &mut BdevChannel, count: u64, blocks: u32) -> u64 {
    let bytes = usize::try_from(blocks * channel.shared().block_bytes()).unwrap();
    let mut done = Vec::with_capacity(1024);
    let mut now = Tick::ZERO;
    for tag in 0..QUEUE_DEPTH {
        let mut io = Io::boxed();
        let op = if tag % 2 == 0 { Op::Read } else { Op::Write };
        io.set(tag, op, IoFlags::NONE, Lba(tag * u64::from(blocks)), blocks);
        io.data.push(Buf::zeroed(bytes).unwrap());
        channel.submit(io, now).unwrap();
    }
    let mut before = 0;
    let mut ended = 0;
    while ended < 2 * count {
        now = now.plus_ns(1000);
        reactor.turn();
        channel.poll(now, 16, &mut done);
        for io in done.drain(..) {
            assert_eq!(io.status, IoStatus::Success);
            ended += 1;
            if ended == count {
                before = penstock_allocations::count();
            }
            channel.submit(io, now).unwrap();
        }
    }
    let counted = penstock_allocations::count() - before;
    while channel.in_flight() > 0 {
        reactor.turn();
        channel.poll(now.plus_ns(1 << 40), 16, &mut done);
    }
    counted
}

#[test]
fn ios_in_a_steady_state_allocate_nothing() {
    let (clock, _hand) = Clock::simulated();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let mut reactor = Reactor::new(&config).unwrap();
    let registry = Registry::new();
    let null = json!({"name": "null", "num_blocks": 100_000, "block_size": 512});
    Null::create(&registry, &options(null)).unwrap();
    let malloc = json!({"name": "malloc", "num_blocks": 20_000, "block_size": 512, "optimal_io_boundary": 8});
    Malloc::create(&registry, options(malloc)).unwrap();
    Split::create(&registry, &options(json!({"base_bdev": "malloc", "split_count": 2}))).unwrap();
    let path = std::env::temp_dir().join(format!("penstock-noalloc-{}", std::process::id()));
    let uring = json!({"name": "uring", "filename": path, "block_size": 4096, "create_size_mib": 8});
    Uring::create(&registry, options(uring)).unwrap();
    std::fs::remove_file(&path).unwrap();
    let limits = QosLimits { rw_ios: 500_000, ..QosLimits::default() };
    for (name, blocks, limits) in [
        ("null", 8, QosLimits::default()),
        ("uring", 1, QosLimits::default()),
        // A part of it; longer I/Os are split at the boundaries of the bdev below.
        ("mallocp1", 8, QosLimits::default()),
        ("mallocp1", 20, QosLimits::default()),
        ("mallocp1", 20, limits),
    ] {
        let descriptor = registry.open(name, OpenMode::ReadWrite, "test").unwrap();
        descriptor.shared().set_qos_limits(limits);
        let mut channel = descriptor.channel(reactor.cx()).unwrap();
        let counted = allocations(&mut reactor, &mut channel, 5000, blocks);
        assert_eq!(counted, 0, "{name}, {blocks} blocks, {limits:?}");
    }
}
