//! No I/O allocates memory once the queue has been filled: counted by the allocator itself, around the driver alone.

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_nvme::model::Model;
use penstock_nvme::queue::NsParams;
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;

const DEPTH: u64 = 128;

#[test]
fn ios_in_a_steady_state_allocate_nothing() {
    let model = Model::new();
    let mut queue = model.io_queue().unwrap();
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
        let before = penstock_allocations::count();
        for io in waiting.drain(..) {
            queue.submit(end, io, now).unwrap();
        }
        queue.turn(now);
        let between = penstock_allocations::count() - before;
        model.step();
        let before = penstock_allocations::count();
        queue.turn(now);
        queue.take_ended(end, usize::MAX, &mut done);
        if round > 20 {
            counted += between + penstock_allocations::count() - before;
        }
        ended += done.len();
        assert!(done.iter().all(|io| io.status == IoStatus::Success));
        waiting.append(&mut done);
    }
    assert_eq!((ended, counted), (200 * usize::try_from(DEPTH).unwrap(), 0));
}
