//! The uring bdev on real block devices: loop devices that each test makes, over files and over a file system that is full.
//!
//! Only root can make them: for other users these tests say so and do nothing; for root a device that cannot be made is a
//! failure.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use penstock_bdev::uring::Uring;
use penstock_bdev::{BdevChannel, BdevError, Io, IoFlags, IoStatus, Lba, Op, OpenMode, Registry};
use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use serde_json::json;

const ENGINES: [&str; 2] = ["io_uring", "threads"];
const MIB: u64 = 1 << 20;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can make loop devices");
    }
    root
}

fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output =
        output.unwrap_or_else(|error| panic!("cannot start {program} (needed by this test): {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?} failed, though this is root: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A directory that is gone after the test, perhaps with a small file system in it.
struct Dir {
    path: PathBuf,
    mounted: bool,
}

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("penstock-block-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self { path, mounted: false }
    }

    /// With a file system that has room for `kib` KiB.
    fn of_kib(kib: u32) -> Self {
        let mut dir = Self::new();
        let size = format!("size={kib}k");
        tool("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", dir.path.to_str().unwrap()]);
        dir.mounted = true;
        dir
    }

    /// A sparse file of `mib` MiB in it.
    fn image(&self, mib: u64) -> PathBuf {
        let path = self.path.join("image");
        File::create(&path).unwrap().set_len(mib * MIB).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if self.mounted {
            Command::new("umount").arg("-l").arg(&self.path).status().ok();
        }
        std::fs::remove_dir_all(&self.path).ok();
    }
}

/// A loop device that is gone after the test.
struct Loop(String);

impl Loop {
    fn new(image: &Path, options: &[&str]) -> Self {
        let image = image.to_str().unwrap();
        Self(tool("losetup", &[&["-f", "--show"], options, &[image]].concat()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").args(["-d", &self.0]).status().ok();
    }
}

struct Bench {
    // In this order: the channel goes before its ring.
    channel: BdevChannel,
    reactor: Reactor,
    registry: Registry,
    block_bytes: u32,
}

impl Bench {
    fn try_new(mut params: serde_json::Value) -> Result<Self, BdevError> {
        params["name"] = "u0".into();
        let registry = Registry::new();
        Uring::create(&registry, serde_json::from_value(params).unwrap())?;
        let (clock, _hand) = Clock::simulated();
        let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
        let reactor = Reactor::new(&config).unwrap();
        let descriptor = registry.open("u0", OpenMode::ReadWrite, "test")?;
        let block_bytes = descriptor.shared().block_bytes();
        let channel = descriptor.channel(reactor.cx())?;
        Ok(Self { channel, reactor, registry, block_bytes })
    }

    fn new(device: &str, engine: &str) -> Self {
        Self::try_new(json!({"filename": device, "engine": engine})).unwrap()
    }

    fn specific(&self, key: &str) -> serde_json::Value {
        self.registry.find("u0").unwrap().driver_specific()["uring"][key].clone()
    }

    fn run(&mut self, op: Op, flags: IoFlags, lba: u64, blocks: u32, fill: u8) -> Box<Io> {
        let mut io = Io::boxed();
        io.set(1, op, flags, Lba(lba), blocks);
        if op.data_factor() > 0 {
            let mut buf = Buf::alloc(usize::try_from(blocks * self.block_bytes).unwrap()).unwrap();
            buf.fill(fill);
            io.data.push(buf);
        }
        self.channel.submit(io, Tick::ZERO).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            self.reactor.turn();
            self.channel.poll(Tick::ZERO, 1, &mut done);
        }
        done.pop().unwrap()
    }

    fn status(&mut self, op: Op, lba: u64, blocks: u32, fill: u8) -> IoStatus {
        self.run(op, IoFlags::NONE, lba, blocks, fill).status
    }

    /// Whether all bytes of these blocks are `byte`, through the bdev.
    fn reads(&mut self, lba: u64, blocks: u32, byte: u8) -> bool {
        let io = self.run(Op::Read, IoFlags::NONE, lba, blocks, !byte);
        assert_eq!(io.status, IoStatus::Success);
        io.data.iter().all(|buf| buf.iter().all(|read| *read == byte))
    }
}

fn bytes_of(image: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(image).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

#[test]
fn a_block_device_is_read_and_written_with_its_own_block_size() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        for (options, block_bytes) in [
            (&["--direct-io=on", "--sector-size", "4096"][..], 4096),
            (&["--sector-size", "4096"], 4096),
            (&["--sector-size", "512"], 512),
        ] {
            let dir = Dir::new();
            let image = dir.image(16);
            let device = Loop::new(&image, options);
            let mut bench = Bench::new(&device.0, engine);
            let shared = bench.registry.find("u0").unwrap().shared().info();
            assert_eq!((shared.block_bytes, shared.blocks), (block_bytes, 16 * MIB / u64::from(block_bytes)));
            assert!(shared.physical_block_bytes >= block_bytes);
            assert_eq!(bench.specific("direct"), json!(engine == "io_uring"), "{engine} {options:?}");
            assert_eq!(bench.status(Op::Write, 5, 7, 0x5a), IoStatus::Success);
            assert!(bench.reads(5, 7, 0x5a) && bench.reads(4, 1, 0) && bench.reads(12, 1, 0));
            // A write with FUA, and after a flush all writes, are in what lies below the device.
            let (at, len) = (5 * u64::from(block_bytes), usize::try_from(7 * block_bytes).unwrap());
            assert_eq!(bench.status(Op::Flush, 0, 0, 0), IoStatus::Success);
            assert_eq!(bytes_of(&image, at, len), vec![0x5a; len]);
            assert_eq!(bench.run(Op::Write, IoFlags::FUA, 5, 7, 0x33).status, IoStatus::Success);
            assert_eq!(bytes_of(&image, at, len), vec![0x33; len], "{engine} {options:?}");
            // The last block is there, one more is not.
            let last = shared.blocks - 1;
            assert_eq!(bench.status(Op::Write, last, 1, 1), IoStatus::Success);
            assert_eq!(bench.status(Op::Write, last, 2, 1), IoStatus::OutOfRange);
        }
    }
}

#[test]
fn discarded_and_zeroed_blocks_of_a_device_read_as_zeroes_and_their_neighbours_stay() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        for options in [&["--direct-io=on", "--sector-size", "4096"][..], &[]] {
            let dir = Dir::new();
            let image = dir.image(16);
            let device = Loop::new(&image, options);
            let mut bench = Bench::new(&device.0, engine);
            let blocks = 32768 / bench.block_bytes;
            for (op, flags) in [
                (Op::Unmap, IoFlags::NONE),
                (Op::WriteZeroes, IoFlags::NONE),
                (Op::WriteZeroes, IoFlags::KEEP_ALLOCATED),
                (Op::WriteZeroes, IoFlags::FUA),
            ] {
                let third = u64::from(blocks);
                assert_eq!(bench.status(Op::Write, 0, 3 * blocks, 7), IoStatus::Success);
                assert_eq!(bench.status(Op::Flush, 0, 0, 0), IoStatus::Success);
                let io = bench.run(op, flags, third, blocks, 0);
                assert_eq!(io.status, IoStatus::Success, "{engine} {op:?} {flags:?}");
                assert!(bench.reads(0, blocks, 7) && bench.reads(2 * third, blocks, 7));
                assert!(bench.reads(third, blocks, 0), "{engine} {op:?} {flags:?}");
                assert_eq!(bench.status(Op::Flush, 0, 0, 0), IoStatus::Success);
                let expected = [vec![7; 32768], vec![0; 32768], vec![7; 32768]].concat();
                assert_eq!(bytes_of(&image, 0, 98304), expected, "{engine} {op:?} {flags:?}");
            }
        }
    }
}

#[test]
fn a_device_that_grows_is_found_longer_by_a_rescan() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let dir = Dir::new();
        let image = dir.image(8);
        let device = Loop::new(&image, &[]);
        let mut bench = Bench::new(&device.0, engine);
        File::options().write(true).open(&image).unwrap().set_len(16 * MIB).unwrap();
        tool("losetup", &["-c", &device.0]);
        let end = 16 * MIB / 512;
        assert_eq!(bench.status(Op::Write, end - 1, 1, 3), IoStatus::OutOfRange);
        assert_eq!(bench.registry.resize("u0", None).unwrap(), end);
        assert_eq!(bench.status(Op::Write, end - 1, 1, 3), IoStatus::Success);
        assert!(bench.reads(end - 1, 1, 3));
        let refused = bench.registry.resize("u0", Some(100)).unwrap_err();
        assert!(matches!(refused, BdevError::Unsupported { .. }), "{refused}");
    }
}

#[test]
fn a_device_that_is_read_only_is_served_for_reading_only() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let dir = Dir::new();
        let image = dir.image(8);
        File::options().write(true).open(&image).unwrap().write_all_at(&[9; 512], 512).unwrap();
        let device = Loop::new(&image, &["-r"]);
        let refused = Bench::try_new(json!({"filename": device.0, "engine": engine})).map(drop).unwrap_err();
        let reason = std::error::Error::source(&refused).unwrap().to_string();
        assert!(reason.contains("write-protected"), "{reason}");
        let params = json!({"filename": device.0, "engine": engine, "readonly": true});
        let mut bench = Bench::try_new(params).unwrap();
        assert!(bench.reads(1, 1, 9));
        for op in [Op::Write, Op::WriteZeroes, Op::Unmap] {
            let status = bench.status(op, 1, 1, 1);
            assert!(matches!(status, IoStatus::WriteProtected | IoStatus::Unsupported), "{op:?}: {status:?}");
        }
        assert!(bench.reads(1, 1, 9));
    }
}

#[test]
fn blocks_smaller_than_the_devices_sectors_are_refused_and_larger_ones_taken() {
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let image = dir.image(8);
    let device = Loop::new(&image, &["--sector-size", "4096"]);
    let params = json!({"filename": device.0, "engine": "io_uring", "block_size": 512});
    let refused = Bench::try_new(params).map(drop).unwrap_err();
    let reason = std::error::Error::source(&refused).unwrap().to_string();
    assert!(reason.contains("4096"), "{reason}");
    drop(device);
    let device = Loop::new(&image, &["--sector-size", "512"]);
    let params = json!({"filename": device.0, "engine": "io_uring", "block_size": 4096});
    let mut bench = Bench::try_new(params).unwrap();
    assert_eq!(bench.status(Op::Write, 3, 2, 4), IoStatus::Success);
    assert!(bench.reads(3, 2, 4));
}

#[test]
fn a_file_on_a_full_file_system_has_no_space_for_new_blocks_and_serves_the_others() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let dir = Dir::of_kib(1024);
        let image = dir.image(16);
        let mut bench = Bench::new(image.to_str().unwrap(), engine);
        assert_eq!(bench.status(Op::Write, 0, 512, 1), IoStatus::Success);
        let statuses: Vec<_> = (1..8).map(|at| bench.status(Op::Write, at * 512, 512, 2)).collect();
        assert_eq!(statuses.last(), Some(&IoStatus::NoSpace), "{engine}: {statuses:?}");
        if bench.specific("direct") == json!(true) {
            let durable = bench.run(Op::Write, IoFlags::FUA, 3584, 512, 2).status;
            assert_eq!(durable, IoStatus::NoSpace, "{engine}: nothing but this write is lost");
        }
        assert_eq!(bench.status(Op::Write, 0, 512, 3), IoStatus::Success, "{engine}: it has its blocks");
        assert_eq!(bench.status(Op::Flush, 0, 0, 0), IoStatus::Success);
        assert!(bench.reads(0, 512, 3));
        assert_eq!(bench.specific("failed"), json!(false));
    }
}

/// Writes that the kernel had taken are lost when it flushes them: the loop device's file has no room.
#[test]
fn a_flush_that_fails_ends_all_writing_until_the_device_is_opened_again() {
    if !is_root() {
        return;
    }
    let dir = Dir::of_kib(1024);
    let image = dir.image(16);
    let device = Loop::new(&image, &[]);
    let mut bench = Bench::new(&device.0, "threads");
    for at in 0..4 {
        assert_eq!(bench.status(Op::Write, at * 2048, 2048, 1), IoStatus::Success, "into the page cache");
    }
    let status = bench.status(Op::Flush, 0, 0, 0);
    assert!(matches!(status, IoStatus::WriteError | IoStatus::NoSpace), "{status:?}");
    assert_eq!(bench.specific("failed"), json!(true));
    for op in [Op::Write, Op::Flush, Op::WriteZeroes] {
        let blocks = u32::from(op != Op::Flush);
        assert_eq!(bench.status(op, 0, blocks, 2), IoStatus::WriteError, "{op:?}");
    }
    assert_eq!(bench.status(Op::Read, 0, 1, 0), IoStatus::Success);
    drop(bench);
    let mut bench = Bench::new(&device.0, "threads");
    assert_eq!(bench.status(Op::Write, 0, 1, 2), IoStatus::Success);
    assert_eq!(bench.specific("failed"), json!(false));
}

/// Written directly, a block gets its place or its write fails, and that is all. Through the page cache (threads open the
/// device so), writes that were taken before are lost with it, and nothing more may be written.
#[test]
fn a_durable_write_that_fails_ends_all_writing_unless_it_only_lacked_room() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let dir = Dir::of_kib(1024);
        let image = dir.image(16);
        let device = Loop::new(&image, &[]);
        let mut bench = Bench::new(&device.0, engine);
        let direct = bench.specific("direct") == json!(true);
        let wanted = if direct { IoStatus::NoSpace } else { IoStatus::WriteError };
        let statuses: Vec<_> =
            (0..4).map(|at| bench.run(Op::Write, IoFlags::FUA, at * 2048, 2048, 1).status).collect();
        assert_eq!(statuses.last(), Some(&wanted), "{engine}: {statuses:?}");
        assert_eq!(bench.specific("failed"), json!(!direct), "{engine}");
        let again = if direct { IoStatus::Success } else { IoStatus::WriteError };
        assert_eq!(bench.run(Op::Write, IoFlags::FUA, 0, 512, 2).status, again, "{engine}");
    }
}
