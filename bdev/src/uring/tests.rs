use std::os::unix::fs::FileExt;
use std::path::Path;

use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};

use super::*;
use crate::channel::BdevChannel;
use crate::descriptor::{Descriptor, OpenMode};
use crate::io::{Io, IoFlags, IoStatus, Lba};

const ENGINES: [Engine; 3] = [Engine::IoUring, Engine::Threads, Engine::Inline];

/// A file that is gone after the test.
struct TempFile(PathBuf);

impl TempFile {
    /// Where the engine can be used.
    fn new(name: &str, engine: Engine) -> Self {
        let dir = if engine == Engine::Inline { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let path = dir.join(format!("penstock-{}-{name}", std::process::id()));
        std::fs::remove_file(&path).ok();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn options(path: &Path, engine: Engine, block_size: u32) -> UringOptions {
    let value = json!({
        "name": "u0", "filename": path, "block_size": block_size, "create_size_mib": 8, "engine": engine,
    });
    serde_json::from_value(value).unwrap()
}

struct Bench {
    reactor: Reactor,
    channel: BdevChannel,
    bdev: Arc<Uring>,
}

impl Bench {
    fn new(path: &Path, engine: Engine, block_size: u32) -> Self {
        let (clock, _hand) = Clock::simulated();
        let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
        let reactor = Reactor::new(&config).unwrap();
        let bdev = Uring::new(options(path, engine, block_size)).unwrap();
        let descriptor = Descriptor::unregistered(bdev.clone(), OpenMode::ReadWrite);
        let channel = descriptor.channel(reactor.cx()).unwrap();
        Self { reactor, channel, bdev }
    }

    fn finish(&mut self, count: usize) -> Vec<Box<Io>> {
        let mut done = Vec::new();
        while done.len() < count {
            self.reactor.turn();
            self.channel.poll(Tick::ZERO, 16, &mut done);
        }
        done
    }

    fn run(&mut self, op: Op, flags: IoFlags, lba: u64, bufs: Vec<Buf>, blocks: u32) -> Box<Io> {
        let mut io = Io::boxed();
        io.set(9, op, flags, Lba(lba), blocks);
        io.data = bufs.into_iter().collect();
        self.channel.submit(io, Tick::ZERO).unwrap();
        self.finish(1).pop().unwrap()
    }
}

fn filled(len: usize, byte: u8) -> Buf {
    let mut buf = Buf::alloc(len).unwrap();
    buf.fill(byte);
    buf
}

#[test]
fn what_is_written_is_in_the_file_and_read_back_by_all_engines() {
    for engine in ENGINES {
        let file = TempFile::new("write-read", engine);
        let mut bench = Bench::new(&file.0, engine, 512);
        let bufs = vec![filled(512, 1), filled(4096, 2), filled(512, 3)];
        let io = bench.run(Op::Write, IoFlags::NONE, 3, bufs, 10);
        assert_eq!(io.status, IoStatus::Success, "{engine:?}");
        assert_eq!(bench.run(Op::Flush, IoFlags::NONE, 0, vec![], 0).status, IoStatus::Success);
        let io = bench.run(Op::Read, IoFlags::NONE, 2, vec![filled(6144, 9)], 12);
        let mut expected = [vec![0; 512], vec![1; 512], vec![2; 4096], vec![3; 512]].concat();
        expected.resize(6144, 0);
        let mut read = vec![0; 6144];
        io.data.copy_out(0, &mut read);
        assert_eq!((io.status, &read), (IoStatus::Success, &expected), "{engine:?}");
        let mut in_file = vec![0; 6144];
        std::fs::File::open(&file.0).unwrap().read_exact_at(&mut in_file, 1024).unwrap();
        assert_eq!(in_file, expected);
    }
}

#[test]
fn zeroes_and_holes_read_as_zeroes() {
    for engine in ENGINES {
        let file = TempFile::new("zeroes", engine);
        let mut bench = Bench::new(&file.0, engine, 4096);
        for (op, flags) in [
            (Op::WriteZeroes, IoFlags::NONE),
            (Op::WriteZeroes, IoFlags::KEEP_ALLOCATED),
            (Op::WriteZeroes, IoFlags::FUA),
            (Op::Unmap, IoFlags::NONE),
        ] {
            bench.run(Op::Write, IoFlags::NONE, 0, vec![filled(16384, 7)], 4);
            assert_eq!(bench.run(op, flags, 1, vec![], 2).status, IoStatus::Success, "{engine:?} {op:?}");
            let io = bench.run(Op::Read, IoFlags::NONE, 0, vec![filled(16384, 9)], 4);
            let mut read = vec![0; 16384];
            io.data.copy_out(0, &mut read);
            assert_eq!(read, [vec![7; 4096], vec![0; 8192], vec![7; 4096]].concat(), "{engine:?} {op:?}");
        }
    }
}

#[test]
fn a_write_with_fua_and_a_flush_reach_the_medium() {
    for engine in ENGINES {
        let file = TempFile::new("fua", engine);
        let mut bench = Bench::new(&file.0, engine, 4096);
        bench.run(Op::Write, IoFlags::NONE, 0, vec![filled(4096, 1)], 1);
        assert_eq!(bench.bdev.syncs(), 0, "{engine:?}");
        bench.run(Op::Write, IoFlags::FUA, 0, vec![filled(4096, 2)], 1);
        assert_eq!(bench.bdev.syncs(), 1, "{engine:?}");
        bench.run(Op::Flush, IoFlags::NONE, 0, vec![], 0);
        assert_eq!(bench.bdev.syncs(), 2, "{engine:?}");
    }
}

#[test]
fn misaligned_buffers_are_taken() {
    for engine in ENGINES {
        let file = TempFile::new("misaligned", engine);
        let mut bench = Bench::new(&file.0, engine, 512);
        let cut = || vec![filled(100, 1), filled(412, 2)];
        assert_eq!(bench.run(Op::Write, IoFlags::NONE, 8, cut(), 1).status, IoStatus::Success);
        let io = bench.run(Op::Read, IoFlags::NONE, 8, vec![filled(412, 0), filled(100, 0)], 1);
        let mut read = vec![0; 512];
        io.data.copy_out(0, &mut read);
        assert_eq!(read, [vec![1; 100], vec![2; 412]].concat(), "{engine:?}");
    }
}

#[test]
fn a_grown_file_makes_a_longer_bdev_and_a_cut_one_fails_reads() {
    for engine in ENGINES {
        let file = TempFile::new("resize", engine);
        let mut bench = Bench::new(&file.0, engine, 512);
        let image = std::fs::File::options().write(true).open(&file.0).unwrap();
        image.set_len(16 << 20).unwrap();
        assert_eq!(bench.bdev.resize(None).unwrap(), 32768);
        assert_eq!(bench.bdev.resize(Some(8192)).unwrap(), 8192);
        assert_eq!(image.metadata().unwrap().len(), 4 << 20);
        let io = bench.run(Op::Read, IoFlags::NONE, 8190, vec![filled(2048, 0)], 4);
        assert_eq!(io.status, IoStatus::ReadError, "{engine:?}: the bdev was not told of its new length");
    }
}

#[test]
fn a_failed_flush_ends_all_writing() {
    for engine in ENGINES {
        let file = TempFile::new("failed", engine);
        let mut bench = Bench::new(&file.0, engine, 512);
        bench.bdev.disk.set_failed();
        for (op, bufs, blocks) in
            [(Op::Write, vec![filled(512, 1)], 1), (Op::Flush, vec![], 0), (Op::Unmap, vec![], 1)]
        {
            assert_eq!(bench.run(op, IoFlags::NONE, 0, bufs, blocks).status, IoStatus::WriteError);
        }
        let io = bench.run(Op::Read, IoFlags::NONE, 0, vec![filled(512, 1)], 1);
        assert_eq!(io.status, IoStatus::Success, "{engine:?}");
    }
}

#[test]
fn hundreds_of_ios_come_back_once_each() {
    for engine in ENGINES {
        let file = TempFile::new("many", engine);
        let mut bench = Bench::new(&file.0, engine, 512);
        for tag in 0..300 {
            let mut io = Io::boxed();
            io.set(tag, if tag % 2 == 0 { Op::Write } else { Op::Read }, IoFlags::NONE, Lba(tag), 1);
            io.data.push(filled(512, 5));
            bench.channel.submit(io, Tick::ZERO).unwrap();
        }
        let mut tags: Vec<_> = bench.finish(300).iter().map(|io| (io.tag, io.status)).collect();
        tags.sort_by_key(|(tag, _)| *tag);
        assert_eq!(tags, (0..300).map(|tag| (tag, IoStatus::Success)).collect::<Vec<_>>());
    }
}

#[test]
fn a_device_that_is_not_polled_after_all_is_done_by_the_ordinary_ring() {
    let file = TempFile::new("unpolled", Engine::IoUring);
    let (clock, _hand) = Clock::simulated();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let reactor = Reactor::new(&config).unwrap();
    let bdev = Uring::new(options(&file.0, Engine::IoUring, 512)).unwrap();
    assert_eq!(
        bdev.driver_specific()["uring"]["iopoll"],
        false,
        "the tests' file system is on no polled device"
    );
    bdev.disk.set_polled(true);
    let descriptor = Descriptor::unregistered(bdev.clone(), OpenMode::ReadWrite);
    let channel = descriptor.channel(reactor.cx()).unwrap();
    let mut bench = Bench { reactor, channel, bdev };
    // Nor does the kernel poll for every write: the file system has more to do after some.
    for op in [Op::Write, Op::Read] {
        for tag in 0..200 {
            let mut io = Io::boxed();
            io.set(tag, op, IoFlags::NONE, Lba(tag), 1);
            io.data.push(filled(512, if op == Op::Write { u8::try_from(tag).unwrap() } else { 255 }));
            bench.channel.submit(io, Tick::ZERO).unwrap();
        }
        for io in bench.finish(200) {
            assert_eq!(io.status, IoStatus::Success);
            assert_eq!(u64::from(io.data.iter().next().unwrap()[0]), io.tag);
        }
    }
    assert!(!bench.bdev.disk.is_polled());
}

#[test]
fn polling_that_the_device_cannot_do_is_refused_by_name() {
    for engine in ENGINES {
        let file = TempFile::new("iopoll", engine);
        let wanted = UringOptions { iopoll: Some(true), ..options(&file.0, engine, 512) };
        let error = Uring::new(wanted).unwrap_err().to_string();
        assert!(error.contains("iopoll") && error.contains("nvme.poll_queues"), "{error}");
    }
}

#[test]
fn a_file_serves_one_writer_only() {
    let file = TempFile::new("locked", Engine::IoUring);
    let first = Uring::new(options(&file.0, Engine::IoUring, 512)).unwrap();
    let error = Uring::new(options(&file.0, Engine::Threads, 512)).unwrap_err();
    assert!(
        matches!(&error, BdevError::Os { source, .. } if source.to_string().contains("locked")),
        "{error}"
    );
    drop(first);
    Uring::new(options(&file.0, Engine::Threads, 512)).unwrap();
}

/// Keeps one I/O under way, and allows its core to sleep meanwhile.
struct OneAtATime {
    channel: BdevChannel,
    done: Vec<Box<Io>>,
    left: u32,
    tell: std::sync::mpsc::Sender<IoStatus>,
}

impl penstock_reactor::Poller for OneAtATime {
    fn poll(&mut self, _cx: &Cx, now: Tick) -> usize {
        let count = self.channel.poll(now, 8, &mut self.done);
        if let Some(mut io) = self.done.pop() {
            assert_eq!(io.status, IoStatus::Success);
            self.left -= 1;
            if self.left == 0 {
                self.tell.send(io.status).unwrap();
                return count;
            }
            io.op = if self.left.is_multiple_of(2) { Op::Read } else { Op::Write };
            self.channel.submit(io, now).unwrap();
        }
        count
    }

    fn rest(&mut self, now: Tick) -> penstock_reactor::Rest {
        self.channel.rest(now)
    }
}

#[test]
fn a_completion_wakes_a_sleeping_core() {
    for engine in ENGINES {
        let file = TempFile::new("sleep", engine);
        let bdev = Uring::new(options(&file.0, engine, 4096)).unwrap();
        let mode = PollMode::Adaptive { spin_ns: 0 };
        let clock = Clock::system();
        let config = ReactorConfig { id: ReactorId(0), core: None, mode, clock, seed: 1 };
        let started = Reactor::start(config).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let open = move |cx: &Cx| {
            let descriptor = Descriptor::unregistered(bdev, OpenMode::ReadWrite);
            let mut channel = descriptor.channel(cx).unwrap();
            let mut io = Io::boxed();
            io.set(1, Op::Write, IoFlags::FUA, Lba(0), 1);
            io.data.push(filled(4096, 1));
            channel.submit(io, cx.now()).unwrap();
            let done = Vec::new();
            cx.add_poller("one at a time", Box::new(OneAtATime { channel, done, left: 100, tell }));
        };
        started.handle.send(open).unwrap();
        let ended = told.recv_timeout(std::time::Duration::from_secs(30));
        assert_eq!(ended, Ok(IoStatus::Success), "{engine:?}");
        started.handle.stop();
        started.join.join().unwrap();
    }
}

/// Memory that was mapped after the ring was set up used to stay unregistered until the next channel was opened.
#[test]
fn an_arena_that_is_mapped_later_is_registered_when_its_first_io_has_gone() {
    let file = TempFile::new("arena", Engine::IoUring);
    let mut bench = Bench::new(&file.0, Engine::IoUring, 4096);
    let before = ring::Ring::registered_arenas(bench.reactor.cx());
    let known: Vec<usize> = penstock_reactor::mem::arenas().iter().map(|arena| arena.base).collect();
    if before == 0 {
        // Memory may not be locked here: nothing is ever registered, and I/O goes on without.
        return assert_eq!(
            bench.run(Op::Read, IoFlags::NONE, 0, vec![filled(4096, 0)], 1).status,
            IoStatus::Success
        );
    }
    let mut held = Vec::new();
    let later = loop {
        // As it is done before memory is short, the tests beside this one do not notice.
        penstock_reactor::mem::maintain().unwrap();
        let Some(buf) = Buf::alloc(1 << 20) else { continue };
        let base = buf.as_ptr().addr() & !(penstock_reactor::mem::ARENA_BYTES - 1);
        if !known.contains(&base) {
            break buf;
        }
        held.push(buf);
        assert!(held.len() < 4096, "no arena was added");
    };
    let io = bench.run(Op::Write, IoFlags::NONE, 0, vec![later], 256);
    assert_eq!(io.status, IoStatus::Success);
    bench.reactor.turn();
    assert_eq!(ring::Ring::registered_arenas(bench.reactor.cx()), before + 1);
    let mut io = io;
    io.set(1, Op::Write, IoFlags::NONE, Lba(0), 256);
    bench.channel.submit(io, Tick::ZERO).unwrap();
    assert_eq!(bench.finish(1).pop().unwrap().status, IoStatus::Success, "by the registered memory");
}

#[test]
fn it_tells_which_blocks_have_storage() {
    let file = TempFile::new("runs", Engine::IoUring);
    let mut bench = Bench::new(&file.0, Engine::IoUring, 512);
    let runs = |bench: &Bench, first, max| {
        let runs = bench.bdev.allocation(first, max).unwrap();
        runs.iter().map(|run| (run.blocks, run.allocated)).collect::<Vec<_>>()
    };
    assert_eq!(runs(&bench, 0, 8), [(16384, false)]);
    for lba in [0, 8, 1024] {
        let io = bench.run(Op::Write, IoFlags::FUA, lba, vec![filled(4096, 1)], 8);
        assert_eq!(io.status, IoStatus::Success);
    }
    assert_eq!(runs(&bench, 0, 8), [(16, true), (1008, false), (8, true), (15352, false)]);
    assert_eq!(runs(&bench, 3, 2), [(13, true), (1008, false)], "as many as asked for, from there on");
    let io = bench.run(Op::Unmap, IoFlags::NONE, 0, Vec::new(), 8);
    assert_eq!(io.status, IoStatus::Success);
    assert_eq!(runs(&bench, 1, 2), [(7, false), (8, true)]);
    assert_eq!(runs(&bench, 16384, 2), []);
}

#[test]
fn a_file_in_memory_needs_no_ring_and_no_other_is_done_inline() {
    let in_memory = TempFile::new("in-memory", Engine::Inline);
    let unsaid = |file: &TempFile| UringOptions { engine: None, ..options(&file.0, Engine::Threads, 512) };
    assert_eq!(Uring::new(unsaid(&in_memory)).unwrap().engine, Engine::Inline);
    let error = Uring::new(options(Path::new("/sys/penstock"), Engine::Inline, 512)).unwrap_err().to_string();
    assert!(error.contains("engine") && error.contains("tmpfs"), "{error}");
}

/// Making a large range zero frees many pages: a core that did it at once would stop for long.
#[test]
fn a_large_range_in_memory_is_made_zero_piece_by_piece_and_ends_once() {
    let file = TempFile::new("large-range", Engine::Inline);
    let wanted = UringOptions { create_size_mib: Some(64), ..options(&file.0, Engine::Inline, 4096) };
    let disk = Arc::clone(&Uring::new(wanted).unwrap().disk);
    let mut channel = inline::InlineChannel::new(Arc::clone(&disk));
    let mut done = Vec::new();
    for (tag, op, blocks) in [(0, Op::Write, 1), (1, Op::Unmap, 16384), (2, Op::Read, 1)] {
        let mut io = Io::boxed();
        io.set(tag, op, IoFlags::NONE, Lba(if blocks == 1 { 16383 } else { 0 }), blocks);
        if blocks == 1 {
            io.data.push(filled(4096, 7));
        }
        channel.submit(io, Tick::ZERO).unwrap();
    }
    let mut turns = 0;
    while done.len() < 3 {
        channel.poll(Tick::ZERO, 16, &mut done);
        turns += 1;
    }
    assert!(turns > 8, "{turns} turns");
    let tags: Vec<_> = done.iter().map(|io| (io.tag, io.status)).collect();
    assert_eq!(tags, [(0, IoStatus::Success), (1, IoStatus::Success), (2, IoStatus::Success)]);
    assert!(done.pop().unwrap().data.iter().all(|buf| buf.iter().all(|byte| *byte == 0)));
}

/// The node of a device is on devtmpfs, which the kernel calls a tmpfs: devices were taken for files in memory.
#[test]
fn a_device_is_not_taken_for_a_file_in_memory() {
    assert!(!super::file::is_in_memory(std::path::Path::new("/dev/null")));
}
