//! `model_reads TURNS`: at queue depth 128, so many times 128 reads of 4 KiB against the model, for counting the driver's
//! instructions; the model works outside of what is counted:
//!
//! ```text
//! cargo build --release -p penstock-nvme --example model_reads
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*driver_side*' model_reads 100
//! ```
//!
//! The difference of two runs, over the reads between them, is the cost of one.
#![expect(clippy::unwrap_used, reason = "a measurement: what fails ends it")]

use std::sync::Arc;

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_nvme::admin::{Admin, Waiter};
use penstock_nvme::dma::Translator;
use penstock_nvme::model::{Model, ModelNs};
use penstock_nvme::queue::{IoQueue, NsParams, OnTimeout, QueueRules};
use penstock_nvme::register::Registers;
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;

struct Passing(u64, Arc<Model>);

impl Waiter for Passing {
    fn now_ns(&mut self) -> u64 {
        self.0
    }

    fn wait(&mut self, ns: u64) {
        self.0 += ns;
        self.1.step();
    }
}

#[inline(never)]
fn driver_side_submits(queue: &mut IoQueue, end: usize, waiting: &mut Vec<Box<Io>>, now: Tick) {
    for mut io in waiting.drain(..) {
        let tag = io.tag;
        io.set(tag, Op::Read, IoFlags::NONE, Lba(tag * 8), 8);
        queue.submit(end, io, now).unwrap();
    }
    queue.turn(now);
}

#[inline(never)]
fn driver_side_completes(queue: &mut IoQueue, end: usize, done: &mut Vec<Box<Io>>, now: Tick) {
    queue.turn(now);
    queue.take_ended(end, 256, done);
}

fn main() {
    let turns: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100);
    let model = Model::new();
    model.inner().namespaces.insert(1, ModelNs::new(1, 2048, 9));
    let registers: Arc<dyn Registers> = Arc::<Model>::clone(&model);
    let mut time = Passing(0, Arc::clone(&model));
    let mut admin = Admin::new(registers, Translator::identity(), 1_000_000_000).unwrap();
    admin.stop(&mut time).unwrap();
    admin.start(1, &mut time).unwrap();
    let mut ring = admin.ring(1, 256).unwrap();
    let shadows = admin.create(ring.place(), &mut time).unwrap();
    ring.set_shadows(shadows);
    let rules = QueueRules {
        pointers: admin.pointer_rules(),
        timeout_ns: 0,
        on_timeout: OnTimeout::Nothing,
        retries_max: 3,
        retry_delays_ns: admin.retry_delays_ns(),
    };
    let notify = Box::new(|_| true);
    let mut queue = IoQueue::new(ring, admin.translator(), rules, notify, Arc::default()).unwrap();
    let ns = NsParams { nsid: 1, block_shift: 9, copy_range_blocks: 64, deallocates_zeroes: true };
    let end = queue.open(ns);
    let make = |tag| {
        let mut io = Io::boxed();
        io.tag = tag;
        io.data.push(Buf::zeroed(4096).unwrap());
        io
    };
    let mut waiting: Vec<Box<Io>> = (0..128).map(make).collect();
    let mut done = Vec::with_capacity(256);
    for round in 0..turns {
        let now = Tick::from_ns(round * 1000);
        driver_side_submits(&mut queue, end, &mut waiting, now);
        model.step();
        driver_side_completes(&mut queue, end, &mut done, now);
        assert!(done.iter().all(|io| io.status == IoStatus::Success));
        waiting.append(&mut done);
    }
    assert_eq!(waiting.len(), 128);
}
