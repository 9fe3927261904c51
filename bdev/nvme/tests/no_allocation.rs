//! No I/O allocates memory once the queue has been filled: counted by the allocator itself, around the driver alone.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_nvme::admin::{Admin, Waiter};
use penstock_nvme::dma::Translator;
use penstock_nvme::model::Model;
use penstock_nvme::queue::{IoQueue, NsParams, OnTimeout, QueueRules};
use penstock_nvme::register::Registers;
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: forwards to `System` unchanged; the counter has no effect on the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.try_with(|count| count.set(count.get() + 1)).ok();
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System.alloc` with this `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

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

const DEPTH: u64 = 128;

fn queue(model: &Arc<Model>) -> IoQueue {
    let registers: Arc<dyn Registers> = Arc::<Model>::clone(model);
    let mut time = Passing(0, Arc::clone(model));
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
    IoQueue::new(ring, admin.translator(), rules, Box::new(|_| true), Arc::default()).unwrap()
}

#[test]
fn ios_in_a_steady_state_allocate_nothing() {
    let model = Model::new();
    let mut queue = queue(&model);
    let ns = NsParams { nsid: 1, block_shift: 9, copy_range_blocks: 64, deallocates_zeroes: true };
    let end = queue.open(ns);
    let mut done = Vec::with_capacity(1024);
    let mut waiting: Vec<Box<Io>> = (0..DEPTH)
        .map(|tag| {
            let op = [Op::Read, Op::Write, Op::Compare, Op::Unmap][usize::try_from(tag % 4).unwrap()];
            let mut io = Io::boxed();
            // Some in one page, some in many, some in pieces that only descriptors can name.
            let blocks = [8, 64, 3, 8][usize::try_from(tag / 4 % 4).unwrap()];
            io.set(tag, op, IoFlags::NONE, Lba(tag * 4), blocks);
            if op.data_factor() > 0 {
                let pieces = if blocks == 3 { 3 } else { 1 };
                for _ in 0..pieces {
                    io.data.push(Buf::zeroed(usize::try_from(blocks / pieces).unwrap() * 512).unwrap());
                }
            }
            io
        })
        .collect();
    let (mut ended, mut counted) = (0, 0);
    for round in 0..200_u64 {
        let now = Tick::from_ns(round * 1000);
        let before = ALLOCATIONS.get();
        for io in waiting.drain(..) {
            queue.submit(end, io, now).unwrap();
        }
        queue.turn(now);
        let between = ALLOCATIONS.get() - before;
        model.step();
        let before = ALLOCATIONS.get();
        queue.turn(now);
        queue.take_ended(end, usize::MAX, &mut done);
        if round > 20 {
            counted += between + ALLOCATIONS.get() - before;
        }
        ended += done.len();
        assert!(done.iter().all(|io| io.status == IoStatus::Success));
        waiting.append(&mut done);
    }
    assert_eq!((ended, counted), (200 * usize::try_from(DEPTH).unwrap(), 0));
}
