//! What the functions cost that every I/O goes through. `cargo bench -p penstock-perf`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use penstock_bdev::null::Null;
use penstock_bdev::{Descriptor, Io, IoFlags, Lba, Op, OpenMode};
use penstock_perf::workload::{Generator, Pattern};
use penstock_reactor::mem::Buf;
use penstock_reactor::stat::Histogram;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use uuid::Uuid;

fn reactor() -> Reactor {
    let config =
        ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock: Clock::system(), seed: 1 };
    Reactor::new(&config).expect("descriptors are left")
}

fn reactor_costs(criterion: &mut Criterion) {
    let mut reactor = reactor();
    criterion.bench_function("reactor: an idle turn", |bencher| bencher.iter(|| reactor.turn()));
    let clock = Clock::system();
    criterion.bench_function("reactor: reading the clock", |bencher| bencher.iter(|| clock.now()));
    let histogram = Histogram::new();
    let mut value = 1;
    criterion.bench_function("reactor: recording a latency", |bencher| {
        bencher.iter(|| {
            value = value * 5 % 1_000_003;
            histogram.record(black_box(value));
        });
    });
    for bytes in [4096, 131_072] {
        let name = format!("reactor: taking and giving back {bytes} bytes");
        criterion.bench_function(&name, |bencher| bencher.iter(|| black_box(Buf::alloc(bytes))));
    }
}

fn bdev_costs(criterion: &mut Criterion) {
    let reactor = reactor();
    let null = Null::new("null0", Uuid::from_u128(1), 1 << 28, 4096).expect("a valid size");
    let descriptor = Descriptor::unregistered(null, OpenMode::ReadWrite);
    let mut channel = descriptor.channel(reactor.cx()).expect("null has no limits");
    let mut done = Vec::with_capacity(1);
    let mut spare = Io::boxed();
    spare.data.push(Buf::zeroed(4096).expect("memory is left"));
    let mut spare = Some(spare);
    criterion.bench_function("bdev: a read of null, submitted and polled", |bencher| {
        bencher.iter(|| {
            let Some(mut io) = spare.take() else { return };
            io.set(1, Op::Read, IoFlags::NONE, Lba(7), 1);
            channel.submit(io, Tick::ZERO).expect("one fits");
            channel.poll(Tick::ZERO, 1, &mut done);
            spare = done.pop();
        });
    });
}

fn load_costs(criterion: &mut Criterion) {
    let mut load = Generator::new(Pattern::RandRw, 70, 0, 1 << 20, 1);
    criterion.bench_function("perf: the next step of a random load", |bencher| bencher.iter(|| load.step()));
}

criterion_group!(benches, reactor_costs, bdev_costs, load_costs);
criterion_main!(benches);
