//! One bdev used by several reactors at once, each on a thread of its own. They take their steps together and share one
//! clock that is set by hand, so the figures do not depend on how busy the machine is.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::{Arc, Barrier};
use std::time::Duration;

use penstock_bdev::malloc::Malloc;
use penstock_bdev::qos::QosLimits;
use penstock_bdev::{Descriptor, Io, IoFlags, IoStatus, Lba, Op, OpenMode, Registry};
use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use serde_json::json;

const REACTORS: u32 = 4;
const STEP: Duration = Duration::from_micros(50);
const STEPS: u32 = 8_000;

/// Reads and writes as fast as it is let, `depth` at once; returns how many ended.
fn drive(id: u32, depth: u64, op: Op, descriptor: &Descriptor, together: &Barrier) -> usize {
    let (clock, hand) = Clock::simulated();
    let config = ReactorConfig { id: ReactorId(id), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let mut reactor = Reactor::new(&config).unwrap();
    let mut channel = descriptor.channel(reactor.cx()).unwrap();
    let mut now = Tick::from_ns(1_000_000_000);
    for tag in 0..depth {
        let mut io = Io::boxed();
        io.set(tag, op, IoFlags::NONE, Lba(u64::from(id)), 1);
        io.data.push(Buf::zeroed(4096).unwrap());
        channel.submit(io, now).unwrap();
    }
    let (mut count, mut done) = (0, Vec::new());
    together.wait();
    for _ in 0..STEPS {
        now = now.plus(STEP);
        hand.advance_to(now);
        reactor.turn();
        count += channel.poll(now, 64, &mut done);
        for io in done.drain(..) {
            assert_eq!(io.status, IoStatus::Success);
            channel.submit(io, now).unwrap();
        }
        together.wait();
    }
    count
}

/// What each reactor got through of a bdev with these ceilings; the first has far more to do than the others.
fn shares(limits: QosLimits, op: Op) -> Vec<usize> {
    let registry = Registry::new();
    let params = json!({"name": "m0", "num_blocks": 1000, "block_size": 4096});
    Malloc::create(&registry, serde_json::from_value(params).unwrap()).unwrap();
    let descriptor = registry.open("m0", OpenMode::ReadWrite, "test").unwrap();
    descriptor.shared().set_qos_limits(limits);
    let together = Arc::new(Barrier::new(usize::try_from(REACTORS).unwrap()));
    let start = |id: u32| {
        let (descriptor, together) = (descriptor.clone(), Arc::clone(&together));
        let depth = if id == 0 { 128 } else { 8 };
        std::thread::spawn(move || drive(id, depth, op, &descriptor, &together))
    };
    let threads: Vec<_> = (0..REACTORS).map(start).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn a_ceiling_holds_over_all_reactors_and_none_of_them_starves() {
    // For 0.4 s: 8000 I/Os, by number or by their 4 KiB each.
    let per_second = 20_000;
    for (limits, op) in [
        (QosLimits { rw_ios: per_second, ..QosLimits::default() }, Op::Read),
        (QosLimits { w_ios: per_second, ..QosLimits::default() }, Op::Write),
        (QosLimits { rw_bytes: per_second * 4096, ..QosLimits::default() }, Op::Write),
    ] {
        let counts = shares(limits, op);
        let total: usize = counts.iter().sum();
        assert!((7_800..=8_300).contains(&total), "{limits:?}: {total} in 0.4 s");
        for count in &counts {
            assert!((total / 4 * 9 / 10..=total / 4 * 11 / 10).contains(count), "{limits:?}: {counts:?}");
        }
    }
}
