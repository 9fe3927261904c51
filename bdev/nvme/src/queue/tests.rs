use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};

use penstock_bdev::{IoFlags, Lba};
use penstock_reactor::mem::Buf;
use penstock_spec::nvme::Status;
use proptest::prelude::*;

use super::*;
use crate::command;
use crate::model::Model;
use crate::register::{Registers, offset};

const BLOCK: usize = 512;

struct Bench {
    model: Arc<Model>,
    queue: IoQueue,
    end: usize,
    notices: Receiver<Notice>,
    now: Tick,
    done: Vec<Box<Io>>,
}

const NS: NsParams = NsParams { nsid: 1, block_shift: 9, copy_range_blocks: 64, deallocates_zeroes: true };

fn rules(sgl: bool) -> QueueRules {
    QueueRules {
        pointers: PointerRules { page_bytes: 4096, sgl_align: sgl.then_some(4) },
        timeout_ns: 1_000_000_000,
        on_timeout: OnTimeout::Abort,
        retries_max: 3,
        retry_delays_ns: [100_000_000, 0, 0],
    }
}

/// Makes queue 1 known to an enabled model, without an admin queue: as its create commands would.
fn create(model: &Model, ring: &Ring) {
    let (sq, cq) = ring.iovas();
    let mut inner = model.inner();
    for (sqe, at) in
        [(command::create_cq(1, ring.entries()), cq), (command::create_sq(1, ring.entries()), sq)]
    {
        let answer = inner.admin(&command::with_prps(sqe, at, 0)).unwrap();
        assert!(answer.status().is_success());
    }
}

impl Bench {
    fn new(entries: u16) -> Self {
        Self::with(entries, rules(true))
    }

    fn with(entries: u16, rules: QueueRules) -> Self {
        let model = Model::new();
        model.write32(offset::CC, 1);
        let mut translator = Translator::identity();
        let registers: Arc<dyn Registers> = Arc::<Model>::clone(&model);
        let ring = Ring::new(1, entries, 0, registers, &mut translator).unwrap();
        create(&model, &ring);
        let (sender, notices) = channel();
        let notify: Notify = Box::new(move |notice| sender.send(notice).is_ok());
        let mut queue = IoQueue::new(ring, translator, rules, notify, Arc::default()).unwrap();
        let end = queue.open(NS);
        Self { model, queue, end, notices, now: Tick::from_ns(1), done: Vec::new() }
    }

    fn io(tag: u64, op: Op, lba: u64, blocks: u32) -> Box<Io> {
        let mut io = Io::boxed();
        io.set(tag, op, IoFlags::NONE, Lba(lba), blocks);
        let bytes = op.data_factor() * usize::try_from(blocks).unwrap() * BLOCK;
        if bytes > 0 {
            io.data.push(Buf::zeroed(bytes).unwrap());
        }
        io
    }

    fn filled(tag: u64, op: Op, lba: u64, blocks: u32, byte: u8) -> Box<Io> {
        let mut io = Self::io(tag, op, lba, blocks);
        io.data.iter_mut().for_each(|buf| buf.fill(byte));
        io
    }

    fn submit(&mut self, io: Box<Io>) {
        self.queue.submit(self.end, io, self.now).unwrap();
    }

    fn turn(&mut self) {
        self.queue.turn(self.now);
        self.model.step();
        self.queue.turn(self.now);
        self.queue.take_ended(self.end, usize::MAX, &mut self.done);
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            self.now = self.now.plus_ns(10_000_000);
            self.turn();
        }
    }

    /// Ends so, as (tag, status), by tag.
    fn ended(&mut self) -> Vec<(u64, IoStatus)> {
        self.settle();
        let mut ended: Vec<_> = self.done.drain(..).map(|io| (io.tag, io.status)).collect();
        ended.sort_by_key(|(tag, _)| *tag);
        ended
    }

    fn run(&mut self, io: Box<Io>) -> Box<Io> {
        self.submit(io);
        self.settle();
        assert_eq!(self.done.len(), 1);
        self.done.pop().unwrap()
    }

    /// What a controller's reset comes to for its queue.
    fn reset(&mut self) {
        self.queue.pause();
        self.model.write32(offset::CC, 0);
        self.queue.rewind();
        self.model.write32(offset::CC, 1);
        create(&self.model, self.queue.ring());
        self.queue.resume(None, self.now);
    }
}

#[test]
fn what_was_written_is_read() {
    let mut bench = Bench::new(16);
    assert_eq!(bench.run(Bench::filled(1, Op::Write, 3, 2, 0xab)).status, IoStatus::Success);
    let read = bench.run(Bench::io(2, Op::Read, 3, 2));
    assert_eq!(read.status, IoStatus::Success);
    assert!(read.data.iter().all(|buf| buf.iter().all(|byte| *byte == 0xab)));
    assert_eq!(bench.run(Bench::io(3, Op::WriteZeroes, 4, 1)).status, IoStatus::Success);
    let read = bench.run(Bench::io(4, Op::Read, 3, 2));
    let mut bytes = vec![1; 2 * BLOCK];
    read.data.copy_out(0, &mut bytes);
    assert!(bytes[..BLOCK].iter().all(|byte| *byte == 0xab) && bytes[BLOCK..].iter().all(|byte| *byte == 0));
    assert_eq!(bench.run(Bench::io(5, Op::Unmap, 0, 8)).status, IoStatus::Success);
    assert_eq!(bench.run(Bench::io(6, Op::Flush, 0, 0)).status, IoStatus::Success);
    assert_eq!(bench.model.inner().flushes, 1);
    assert_eq!(bench.run(Bench::io(7, Op::Read, 1020, 8)).status, IoStatus::OutOfRange);
}

#[test]
fn force_unit_access_reaches_the_controller() {
    let mut bench = Bench::new(16);
    let mut io = Bench::io(1, Op::Write, 0, 1);
    io.flags = IoFlags::FUA;
    bench.run(io);
    bench.run(Bench::io(2, Op::Write, 0, 1));
    assert_eq!(bench.model.inner().fua_writes, 1);
}

#[test]
fn a_copy_longer_than_a_source_range_is_several_ranges() {
    let mut bench = Bench::new(16);
    bench.run(Bench::filled(1, Op::Write, 0, 200, 7));
    let mut io = Bench::io(2, Op::Copy, 500, 200);
    io.src_lba = Lba(0);
    assert_eq!(bench.run(io).status, IoStatus::Success);
    let read = bench.run(Bench::io(3, Op::Read, 500, 200));
    assert!(read.data.iter().all(|buf| buf.iter().all(|byte| *byte == 7)));
}

#[test]
fn a_miscompare_says_where() {
    let mut bench = Bench::new(16);
    bench.run(Bench::filled(1, Op::Write, 0, 4, 1));
    assert_eq!(bench.run(Bench::filled(2, Op::Compare, 0, 4, 1)).status, IoStatus::Success);
    let mut io = Bench::filled(3, Op::Compare, 0, 4, 1);
    io.data.copy_in(1000, &[9]);
    let io = bench.run(io);
    assert_eq!((io.status, io.result), (IoStatus::Miscompare, 1000));
}

#[test]
fn compare_and_write_is_a_fused_pair_that_writes_only_what_compared_equal() {
    let mut bench = Bench::new(16);
    let pair = |tag, compare: u8, write: u8| {
        let mut io = Bench::filled(tag, Op::CompareAndWrite, 5, 2, compare);
        io.data.copy_in(2 * BLOCK, &[write; 2 * BLOCK]);
        io
    };
    assert_eq!(bench.run(pair(1, 0, 5)).status, IoStatus::Success);
    let failed = bench.run(pair(2, 0, 6));
    assert_eq!((failed.status, failed.result), (IoStatus::Miscompare, 0));
    assert_eq!(bench.model.inner().namespaces[&1].data[5 * BLOCK], 5);
    assert_eq!(bench.run(pair(3, 5, 6)).status, IoStatus::Success);
    assert_eq!(bench.model.inner().namespaces[&1].data[7 * BLOCK - 1], 6);
    assert_eq!(bench.queue.under_way(), 0);
}

#[test]
fn a_full_queue_hands_the_io_back_and_no_command_is_lost_over_many_wraps() {
    let mut bench = Bench::new(8);
    bench.model.inner().faults.shuffle = 42;
    let (mut next, mut seen) = (0, BTreeMap::new());
    while seen.len() < 1000 {
        let mut io = Bench::io(next, Op::Read, next % 1000, 1);
        while next < 1000 {
            match bench.queue.submit(bench.end, io, bench.now) {
                Ok(()) => next += 1,
                Err(Busy(back)) => {
                    assert_eq!((back.tag, bench.queue.under_way()), (next, 7));
                    break;
                }
            }
            io = Bench::io(next, Op::Read, next % 1000, 1);
        }
        bench.turn();
        for io in bench.done.drain(..) {
            assert_eq!(io.status, IoStatus::Success);
            assert_eq!(seen.insert(io.tag, ()), None, "completed twice");
        }
    }
    assert_eq!(bench.queue.under_way(), 0);
}

#[test]
fn many_submissions_ring_one_doorbell() {
    let mut bench = Bench::new(64);
    for tag in 0..50 {
        bench.submit(Bench::io(tag, Op::Read, tag, 1));
    }
    let before = bench.model.inner().bells;
    bench.turn();
    // One for the submissions, one for the completions.
    assert_eq!(bench.model.inner().bells - before, 2);
    assert_eq!(bench.done.len(), 50);
}

#[test]
fn an_unaligned_buffer_is_moved_where_the_controller_takes_no_lists_of_descriptors() {
    for sgl in [true, false] {
        let mut bench = Bench::with(16, rules(sgl));
        let pieces = |byte: u8| {
            let mut io = Io::boxed();
            io.set(1, if byte == 0 { Op::Read } else { Op::Write }, IoFlags::NONE, Lba(8), 3);
            for _ in 0..3 {
                let mut buf = Buf::zeroed(BLOCK).unwrap();
                buf.fill(byte);
                io.data.push(buf);
            }
            io
        };
        assert_eq!(bench.run(pieces(0x5a)).status, IoStatus::Success);
        let read = bench.run(pieces(0));
        assert_eq!(read.status, IoStatus::Success);
        assert!(read.data.iter().all(|buf| buf.iter().all(|byte| *byte == 0x5a)));
        assert_eq!(bench.queue.stats.bounced.read(), if sgl { 0 } else { 2 });
    }
}

#[test]
fn memory_that_the_device_does_not_reach_is_moved() {
    let mut bench = Bench::new(16);
    let mut io = Io::boxed();
    io.set(1, Op::Write, IoFlags::NONE, Lba(0), 8);
    io.data.push(crate::dma::unreached(vec![7; 4096]));
    let io = bench.run(io);
    assert_eq!((io.status, bench.queue.stats.bounced.read()), (IoStatus::Success, 1));
    assert_eq!(bench.model.inner().namespaces[&1].data[4095], 7);
}

#[test]
fn errors_of_the_medium_are_told_as_such() {
    let mut bench = Bench::new(16);
    bench.model.inner().faults.bad_block = Some((9, Status::UNRECOVERED_READ_ERROR));
    assert_eq!(bench.run(Bench::io(1, Op::Read, 8, 4)).status, IoStatus::ReadError);
    bench.model.inner().faults.bad_block = Some((9, Status::WRITE_FAULT));
    assert_eq!(bench.run(Bench::io(2, Op::Write, 9, 1)).status, IoStatus::WriteError);
    assert_eq!(bench.run(Bench::io(3, Op::Read, 10, 1)).status, IoStatus::Success);
}

#[test]
fn what_passes_by_itself_is_tried_again_after_the_delay_that_the_controller_names() {
    let mut bench = Bench::new(16);
    bench.model.inner().faults.transient = Some((2, Status::NAMESPACE_NOT_READY.with_crd(1)));
    bench.submit(Bench::io(1, Op::Read, 0, 1));
    bench.turn();
    assert_eq!(bench.queue.in_device(), 0, "it waits for its delay");
    assert_eq!(bench.ended(), [(1, IoStatus::Success)]);
    bench.model.inner().faults.transient = Some((100, Status::NAMESPACE_NOT_READY));
    bench.submit(Bench::io(2, Op::Read, 0, 1));
    assert_eq!(bench.ended(), [(2, IoStatus::NotReady)]);
    assert_eq!(bench.model.inner().faults.transient.unwrap().0, 96, "three more tries");
}

#[test]
fn a_lost_completion_is_asked_for_by_an_abort_and_then_the_controller_is_reset_and_the_io_done_again() {
    let mut bench = Bench::new(16);
    bench.model.inner().faults.lost_completions = 1;
    bench.submit(Bench::filled(1, Op::Write, 0, 1, 3));
    bench.submit(Bench::io(2, Op::Read, 1, 1));
    assert_eq!(bench.ended(), [(2, IoStatus::Success)]);
    bench.now = bench.now.plus_ns(1_000_000_000);
    bench.turn();
    assert!(matches!(bench.notices.try_recv(), Ok(Notice::Abort { qid: 1, .. })));
    assert!(bench.notices.try_recv().is_err());
    bench.now = bench.now.plus_ns(1_000_000_000);
    bench.turn();
    assert!(matches!(bench.notices.try_recv(), Ok(Notice::Reset { why: Trouble::Silence { .. }, .. })));
    // Until then nothing more goes out.
    assert!(bench.queue.submit(bench.end, Bench::io(3, Op::Read, 1, 1), bench.now).is_err());
    bench.reset();
    assert_eq!(bench.ended(), [(1, IoStatus::Success)]);
    assert_eq!(bench.model.inner().namespaces[&1].data[0], 3);
}

#[test]
fn a_command_that_was_aborted_for_its_silence_is_done_again() {
    let mut bench = Bench::new(16);
    bench.model.inner().faults.silent = true;
    bench.submit(Bench::io(1, Op::Read, 0, 1));
    bench.turn();
    bench.now = bench.now.plus_ns(1_100_000_000);
    bench.turn();
    let Ok(Notice::Abort { cid, .. }) = bench.notices.try_recv() else { panic!("no abort was asked for") };
    bench.model.inner().faults.silent = false;
    assert!(bench.model.inner().admin(&command::abort(1, cid)).unwrap().status().is_success());
    assert_eq!(bench.ended(), [(1, IoStatus::Success)]);
}

#[test]
fn an_io_that_its_owner_aborts_ends_as_aborted_and_is_not_done_again() {
    let mut bench = Bench::new(16);
    bench.model.inner().faults.silent = true;
    bench.submit(Bench::io(1, Op::Read, 0, 1));
    bench.turn();
    assert!(!bench.queue.abort(bench.end, 77));
    assert!(bench.queue.abort(bench.end, 1));
    let Ok(Notice::Abort { cid, .. }) = bench.notices.try_recv() else { panic!("no abort was asked for") };
    bench.model.inner().admin(&command::abort(1, cid));
    assert_eq!(bench.ended(), [(1, IoStatus::Aborted)]);
    // One that a reset finds abandoned ends with it.
    bench.submit(Bench::io(2, Op::Read, 0, 1));
    bench.turn();
    bench.queue.abort_all(bench.end);
    bench.model.inner().faults.silent = false;
    bench.reset();
    assert_eq!(bench.ended(), [(2, IoStatus::Aborted)]);
}

#[test]
fn a_reset_does_again_what_may_be_done_again_and_ends_the_rest() {
    let mut bench = Bench::new(16);
    bench.model.inner().faults.silent = true;
    bench.submit(Bench::filled(1, Op::Write, 0, 1, 1));
    bench.submit(Bench::io(2, Op::Read, 0, 1));
    bench.submit(Bench::io(3, Op::CompareAndWrite, 7, 1));
    bench.turn();
    bench.model.inner().faults.silent = false;
    bench.reset();
    assert_eq!(bench.ended(), [(1, IoStatus::Success), (2, IoStatus::Success), (3, IoStatus::TimedOut)]);
    // Not for ever.
    bench.model.inner().faults.silent = true;
    bench.submit(Bench::io(4, Op::Read, 0, 1));
    for _ in 0..4 {
        bench.turn();
        bench.reset();
    }
    assert_eq!(bench.ended(), [(4, IoStatus::TimedOut)]);
    assert_eq!(bench.queue.under_way(), 0);
}

#[test]
fn a_device_that_is_gone_ends_everything_and_whatever_comes_later() {
    let mut bench = Bench::new(16);
    bench.model.inner().faults.silent = true;
    bench.submit(Bench::io(1, Op::Read, 0, 1));
    bench.submit(Bench::io(2, Op::CompareAndWrite, 0, 1));
    bench.turn();
    bench.queue.end_all(IoStatus::Gone);
    bench.submit(Bench::io(3, Op::Read, 0, 1));
    assert_eq!(bench.ended(), [(1, IoStatus::Gone), (2, IoStatus::Gone), (3, IoStatus::Gone)]);
    assert_eq!(bench.queue.under_way(), 0);
}

#[test]
fn garbage_makes_the_queue_stop_and_ask_for_a_reset() {
    let other_queue = |_: &mut Bench| {
        let mut cqe = Cqe::new(0, 0, Status::SUCCESS);
        cqe.sqid = 9.into();
        cqe
    };
    let unknown_command = |_: &mut Bench| {
        let mut cqe = Cqe::new(0x3ff, 0, Status::SUCCESS);
        cqe.sqid = 1.into();
        cqe
    };
    let done_before = |bench: &mut Bench| {
        bench.run(Bench::io(9, Op::Read, 0, 1));
        let mut cqe = Cqe::new(0, 0, Status::SUCCESS);
        cqe.sqid = 1.into();
        cqe
    };
    let cases: [&dyn Fn(&mut Bench) -> Cqe; 3] = [&other_queue, &unknown_command, &done_before];
    for make in cases {
        let mut bench = Bench::new(16);
        let garbage = make(&mut bench);
        bench.model.inner().faults.silent = true;
        bench.submit(Bench::io(1, Op::Read, 0, 1));
        bench.turn();
        bench.model.inner().faults.garbage = Some(garbage);
        bench.turn();
        assert!(bench.done.is_empty());
        assert!(matches!(bench.notices.try_recv(), Ok(Notice::Reset { why: Trouble::Garbage(_), .. })));
        bench.model.inner().faults.silent = false;
        bench.reset();
        assert_eq!(bench.ended(), [(1, IoStatus::Success)]);
    }
}

#[test]
fn a_head_where_nothing_was_submitted_is_garbage() {
    for head in [5, 16, u16::MAX] {
        let mut bench = Bench::new(16);
        bench.submit(Bench::io(1, Op::Read, 0, 1));
        bench.model.inner().faults.wrong_head = Some(head);
        bench.turn();
        assert!(
            matches!(bench.notices.try_recv(), Ok(Notice::Reset { why: Trouble::Garbage(_), .. })),
            "{head}"
        );
    }
}

#[test]
fn shadow_doorbells_save_the_registers() {
    let mut bench = Bench::new(64);
    let pages = Arc::new(crate::dma::ShadowPages::new(4096, 0, &mut Translator::identity()).unwrap());
    bench.model.inner().admin(&command::doorbell_buffers(pages.iovas.0, pages.iovas.1));
    bench.queue.ring.set_shadows(pages.bell(2).zip(pages.bell(3)));
    for round in 0..200 {
        bench.model.inner().faults.shuffle = round;
        for tag in 0..32 {
            bench.submit(Bench::io(tag, Op::Read, tag, 1));
        }
        bench.turn();
        assert_eq!(bench.done.len(), 32);
        bench.done.clear();
    }
    // The model updates its event index every step: each round wants its submission told, and its completions too.
    assert!(bench.model.inner().bells <= 400);
}

#[test]
fn a_closed_namespaces_ios_are_dropped_when_they_are_through() {
    let mut bench = Bench::new(16);
    let other = bench.queue.open(NsParams { nsid: 2, ..NS });
    assert_ne!(other, bench.end);
    bench.submit(Bench::io(1, Op::Read, 0, 1));
    bench.queue.close(bench.end);
    assert_ne!(bench.queue.open(NS), bench.end, "it still has I/O under way");
    bench.settle();
    assert_eq!((bench.queue.under_way(), bench.done.len()), (0, 0));
    assert_eq!(bench.queue.open(NS), bench.end);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any mix of I/Os, in whatever order they complete, with completions lost and resets between, leaves the disk as
    /// a plain array would be, and every I/O comes back once. I/Os under way do not overlap.
    #[test]
    fn a_queue_behaves_like_an_array(
        steps in proptest::collection::vec((0_u8..8, 0_u64..16, 1_u32..32, any::<u8>()), 1..120),
        seed in 1_u64..,
        sgl in any::<bool>(),
    ) {
        let mut bench = Bench::with(8, QueueRules { retries_max: TRIES_MAX, ..rules(sgl) });
        bench.model.inner().faults.shuffle = seed;
        let mut array = vec![0_u8; 1024 * BLOCK];
        let mut busy: BTreeMap<u64, (u64, u8)> = BTreeMap::new();
        let mut came = 0_u64;
        let mut expected = 0_u64;
        for (tag, (what, place, blocks, byte)) in steps.into_iter().enumerate() {
            let tag = u64::try_from(tag).unwrap();
            let lba = place * 64;
            let range = usize::try_from(lba).unwrap() * BLOCK..(usize::try_from(lba).unwrap() + usize::try_from(blocks).unwrap()) * BLOCK;
            if what == 7 && tag % 2 == 0 {
                bench.reset();
            }
            let is_free = !busy.contains_key(&place);
            if is_free {
                let io = match what {
                    0..=2 => Bench::io(tag, Op::Read, lba, blocks),
                    3 | 4 => Bench::filled(tag, Op::Write, lba, blocks, byte),
                    5 => Bench::io(tag, Op::WriteZeroes, lba, blocks),
                    _ => Bench::io(tag, Op::Unmap, lba, blocks),
                };
                let (op, want) = (io.op, array[range.start]);
                if bench.queue.submit(bench.end, io, bench.now).is_ok() {
                    busy.insert(place, (tag, want));
                    expected += 1;
                    match op {
                        Op::Write => array[range].fill(byte),
                        Op::WriteZeroes | Op::Unmap => array[range].fill(0),
                        _ => {}
                    }
                }
            }
            if byte % 3 == 0 {
                bench.turn();
            }
            for io in bench.done.drain(..) {
                prop_assert_eq!(io.status, IoStatus::Success);
                let place = io.lba.0 / 64;
                let (was, first) = busy.remove(&place).unwrap();
                prop_assert_eq!(was, io.tag);
                if io.op == Op::Read {
                    prop_assert_eq!(io.data.iter().next().unwrap()[0], first);
                }
                came += 1;
            }
        }
        bench.settle();
        came += u64::try_from(bench.done.len()).unwrap();
        prop_assert_eq!(came, expected);
        prop_assert_eq!(bench.queue.under_way(), 0);
        prop_assert!(bench.model.inner().namespaces[&1].data == array);
    }
}
