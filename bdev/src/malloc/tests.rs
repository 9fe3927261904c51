use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId};

use super::*;
use crate::descriptor::{Descriptor, OpenMode};
use crate::io::{IoFlags, Lba};

fn options() -> MallocOptions {
    serde_json::from_value(json!({"name": "m0", "num_blocks": 1024, "block_size": 512})).unwrap()
}

fn run(channel: &mut crate::BdevChannel, mut io: Box<Io>) -> Box<Io> {
    io.tag = 1;
    channel.submit(io, Tick::ZERO).unwrap();
    let mut done = Vec::new();
    while channel.poll(Tick::ZERO, 8, &mut done) == 0 {}
    done.pop().unwrap()
}

#[test]
fn what_was_written_on_one_core_is_read_on_another() {
    let bdev = Malloc::new("m0", &options()).unwrap();
    let on_a_core = |id: u32, op: Op, fill: u8, bdev: Arc<Malloc>| {
        std::thread::spawn(move || {
            let (clock, _hand) = Clock::simulated();
            let config =
                ReactorConfig { id: ReactorId(id), core: None, mode: PollMode::Busy, clock, seed: 1 };
            let reactor = Reactor::new(&config).unwrap();
            let descriptor = Descriptor::unregistered(bdev, OpenMode::ReadWrite);
            let mut channel = descriptor.channel(reactor.cx()).unwrap();
            let mut io = Io::boxed();
            io.set(1, op, IoFlags::NONE, Lba(100), 16);
            for len in [512, 7680] {
                let mut buf = Buf::alloc(len).unwrap();
                buf.fill(fill);
                io.data.push(buf);
            }
            let io = run(&mut channel, io);
            assert_eq!(io.status, IoStatus::Success);
            let mut bytes = vec![0; 8192];
            assert_eq!(io.data.copy_out(0, &mut bytes), 8192);
            bytes
        })
        .join()
        .unwrap()
    };
    on_a_core(0, Op::Write, 0xa5, Arc::clone(&bdev));
    assert_eq!(on_a_core(1, Op::Read, 0, bdev), [0xa5; 8192]);
}

#[test]
fn unknown_parameters_and_metadata_are_refused_by_name() {
    let unknown = json!({"num_blocks": 8, "block_size": 512, "speed": 9});
    let error = serde_json::from_value::<MallocOptions>(unknown).unwrap_err();
    assert!(error.to_string().contains("speed"), "{error}");
    let error = Malloc::new("m0", &MallocOptions { md_size: 8, ..options() }).unwrap_err();
    assert!(error.to_string().contains("md_size"), "{error}");
}

#[test]
fn a_grown_disk_reads_zeroes_beyond_its_old_end() {
    let registry = Registry::new();
    let name = Malloc::create(&registry, MallocOptions { name: None, ..options() }).unwrap();
    assert_eq!(name, "Malloc0");
    assert_eq!(registry.resize(&name, Some(10)).unwrap(), 10);
    assert_eq!(registry.resize(&name, Some(2048)).unwrap(), 2048);
    assert_eq!(registry.find(&name).unwrap().shared().blocks(), 2048);
    assert!(matches!(registry.resize(&name, Some(1 << 40)), Err(BdevError::Invalid { .. })));
}

#[test]
fn a_read_may_come_without_buffers_and_a_write_may_not() {
    let (clock, _hand) = Clock::simulated();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let reactor = Reactor::new(&config).unwrap();
    let large = |boundary: u32| {
        let options = json!({"num_blocks": 8192, "block_size": 512, "optimal_io_boundary": boundary});
        let bdev = Malloc::new("m0", &serde_json::from_value(options).unwrap()).unwrap();
        Descriptor::unregistered(bdev, OpenMode::ReadWrite).channel(reactor.cx()).unwrap()
    };
    let without_buffers = |op: Op| {
        let mut io = Io::boxed();
        io.set(1, op, IoFlags::NONE, Lba(8), 3000);
        io
    };
    let mut channel = large(0);
    let mut write = without_buffers(Op::Write);
    write.data.push(Buf::zeroed(1 << 20).unwrap());
    write.data.push(Buf::zeroed((3000 * 512) - (1 << 20)).unwrap());
    write.data.iter_mut().for_each(|buf| buf.fill(0x5a));
    assert_eq!(run(&mut channel, write).status, IoStatus::Success);
    let io = run(&mut channel, without_buffers(Op::Read));
    assert_eq!((io.status, io.data.len_bytes(), io.data.segments()), (IoStatus::Success, 3000 * 512, 2));
    assert!(io.data.iter().all(|buf| buf.iter().all(|byte| *byte == 0x5a)));
    assert_eq!(run(&mut channel, without_buffers(Op::Write)).status, IoStatus::BadLength);
    // What would have to be split needs its buffers before.
    assert_eq!(run(&mut large(128), without_buffers(Op::Read)).status, IoStatus::BadLength);
}
