//! Goal: whatever is done to a target under load, by its operator, its devices or its hosts, what is asked for happens,
//! everything is cleaned up, and other hosts notice nothing.
//! Method: the target as the daemon has it, on two reactors over loopback, with faulty bdevs and our own initiator.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test makes bytes of small numbers, may panic, and waits on a thread of its own"
)]

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use penstock_bdev::inject::{ErrorInjector, ErrorOptions, InjectOptions};
use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::null::Null;
use penstock_bdev::{Bdev, BdevError, Channel, Registry, Shared};
use penstock_nvme_tcp::blocking::{BlockingController, BlockingQpair};
use penstock_nvme_tcp::controller::ControllerConfig;
use penstock_nvme_tcp::{QpairConfig, Transfer, command};
use penstock_nvmf::target::{CreateSubsystem, ListenAddress, Namespace};
use penstock_nvmf::{Target, TargetError, TransportOptions};
use penstock_reactor::{Clock, Cx, PollMode, Reactor, ReactorConfig, ReactorId, Started};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::health::ErrorLogEntry;
use penstock_spec::nvme::{NvmOpcode, Status};
use penstock_spec::nvmf::Nqn;
use serde_json::{Value, json};
use uuid::Uuid;
use zerocopy::FromBytes;

const NQN: &str = "nqn.2026-11.io.penstock:hard";
const TIMEOUT: Duration = Duration::from_secs(20);
const BLOCKS: u64 = 65_536;

/// A target on two reactors; namespace 1 is the error bdev EE_M on the malloc bdev M.
struct Bench {
    target: Target,
    registry: Registry,
    reactors: Vec<Started>,
    addr: SocketAddr,
}

impl Bench {
    fn new(options: Value) -> Self {
        let clock = Clock::system();
        let start = |id| {
            let (clock, mode) = (clock.clone(), PollMode::Adaptive { spin_ns: 50_000 });
            Reactor::start(ReactorConfig { id: ReactorId(id), core: None, mode, clock, seed: 1 }).unwrap()
        };
        let reactors: Vec<_> = (0..2).map(start).collect();
        let registry = Registry::new();
        let malloc: MallocOptions =
            serde_json::from_value(json!({ "name": "M", "num_blocks": BLOCKS, "block_size": 512 })).unwrap();
        Malloc::create(&registry, malloc).unwrap();
        let faulty: ErrorOptions = serde_json::from_value(json!({ "base_name": "M" })).unwrap();
        ErrorInjector::create(&registry, &faulty).unwrap();
        let handles = reactors.iter().map(|reactor| reactor.handle.clone()).collect();
        let target = Target::new(handles, registry.clone());
        let addr = block_on(async {
            let options: TransportOptions = serde_json::from_value(options).unwrap();
            target.create_transport(options).await.unwrap();
            let subsystem = CreateSubsystem { allow_any_host: true, ..CreateSubsystem::named(NQN) };
            target.create_subsystem(&subsystem).await.unwrap();
            target.add_ns(NQN, &Namespace::on("EE_M")).await.unwrap();
            let any_port = ListenAddress::tcp("127.0.0.1:0".parse().unwrap());
            target.add_listener(NQN, &any_port).await.unwrap()
        });
        Self { target, registry, reactors, addr }
    }

    fn inject(&self, rule: Value) {
        let mut rule = rule;
        rule["name"] = json!("EE_M");
        let rule: InjectOptions = serde_json::from_value(rule).unwrap();
        ErrorInjector::inject(&self.registry, &rule).unwrap();
    }

    fn connect(&self) -> BlockingController {
        connect(self.addr, 1)
    }

    /// Sum of a counter over the reactors.
    fn sum(&self, counter: &str) -> u64 {
        let stats = block_on(self.target.get_stats()).unwrap();
        let groups = stats["poll_groups"].as_array().unwrap();
        groups.iter().map(|group| group[counter].as_u64().unwrap()).sum()
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            let stats = || block_on(self.target.get_stats()).unwrap();
            assert!(begin.elapsed() < TIMEOUT, "waited in vain: {what}: {}", stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_idle(&self) {
        self.wait_for("all connections are gone", |bench| {
            bench.sum("connections") + bench.sum("pending_bdev_io") == 0
        });
        assert_eq!(block_on(self.target.get_controllers(NQN)).unwrap_or(json!([])), json!([]));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for reactor in self.reactors.drain(..) {
            reactor.handle.stop();
            reactor.join.join().unwrap();
        }
    }
}

type Io = BlockingQpair<Vec<u8>>;

fn host(number: u8) -> ControllerConfig {
    let hostnqn: Nqn = format!("nqn.2026-11.io.penstock:host{number}").parse().unwrap();
    let admin =
        QpairConfig { kato_ms: 20_000, ..QpairConfig::admin([number; 16], hostnqn, NQN.parse().unwrap()) };
    ControllerConfig { admin, io_queues: 4, step_timeout_ns: 20_000_000_000 }
}

fn connect(addr: SocketAddr, number: u8) -> BlockingController {
    BlockingController::connect(addr, host(number), TIMEOUT).unwrap()
}

fn read(io: &mut Io, lba: u64, len: usize) -> Status {
    let sqe = command::read(1, lba, (len / 512) as u32);
    io.execute(sqe, Transfer::Read(len as u32), Some(vec![0; len])).unwrap().status()
}

/// A host with a controller and `queues` queues of 32 I/Os each, until it is told to stop or loses a connection.
struct Load {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    controller: BlockingController,
}

impl Load {
    fn new(addr: SocketAddr, number: u8, queues: u16) -> Self {
        let controller = connect(addr, number);
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let open = |qid| {
            let io: Io = controller.open_io(qid, 64).unwrap();
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || run(io, &stop, &done))
        };
        let threads = (1..=queues).map(open).collect();
        let load = Self { threads, stop, done, controller };
        load.goes_on(100);
        load
    }

    /// Waits for more I/Os to have come back.
    fn goes_on(&self, more: u64) {
        let (begin, before) = (Instant::now(), self.done.load(Ordering::Relaxed));
        while self.done.load(Ordering::Relaxed) < before + more {
            assert!(begin.elapsed() < TIMEOUT, "no I/O comes back");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until every queue has lost its connection.
    fn expect_lost(self) -> BlockingController {
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.controller
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.expect_lost());
    }
}

fn run(mut io: Io, stop: &AtomicBool, done: &AtomicU64) {
    let mut lba = 0;
    let mut under_way = 0;
    while !stop.load(Ordering::Relaxed) {
        while under_way < 32 {
            lba = (lba + 264) % (BLOCKS - 256);
            let len: u32 = if under_way % 4 == 0 { 131_072 } else { 4096 };
            let blocks = len / 512;
            let (sqe, transfer) = if under_way % 2 == 0 {
                (command::write(1, lba, blocks, false), Transfer::Write(len))
            } else {
                (command::read(1, lba, blocks), Transfer::Read(len))
            };
            if io.submit(sqe, transfer, 0, Some(vec![7; len as usize])).is_err() {
                return;
            }
            under_way += 1;
        }
        if io.wait().is_err() {
            return;
        }
        under_way -= 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
}

fn error_log(controller: &mut BlockingController) -> Vec<ErrorLogEntry> {
    let len = 64 * size_of::<ErrorLogEntry>();
    let sqe = command::get_log_page(Lid::ERROR_INFORMATION, u32::MAX, 0, len as u32);
    let data = controller.read("Get Log Page", sqe, len).unwrap();
    let all = <[ErrorLogEntry]>::ref_from_bytes(&data).unwrap();
    all.iter().copied().filter(|entry| entry.error_count.get() > 0).collect()
}

#[test]
fn what_fails_on_io_queues_of_any_reactor_stands_in_the_controllers_error_log() {
    let bench = Bench::new(json!({}));
    let mut controller = bench.connect();
    assert_eq!(error_log(&mut controller).len(), 0, "a start leaves nothing in it");
    let mut queues: Vec<Io> = (1..=2).map(|qid| controller.open_io(qid, 16).unwrap()).collect();
    for io in &mut queues {
        bench.inject(json!({ "io_type": "read", "error_type": "failure", "num": 1 }));
        assert!(!read(io, 5, 4096).is_success());
        assert!(read(io, BLOCKS, 512).is(Status::LBA_OUT_OF_RANGE));
        assert!(read(io, 0, 512).is_success());
    }
    let begin = Instant::now();
    let entries = loop {
        let entries = error_log(&mut controller);
        if entries.len() >= 4 || begin.elapsed() > TIMEOUT {
            break entries;
        }
    };
    assert_eq!(entries.len(), 4);
    for qid in 1..=2 {
        let of_queue: Vec<_> = entries.iter().filter(|entry| entry.sqid.get() == qid).collect();
        let lbas: Vec<u64> = of_queue.iter().map(|entry| entry.lba.get()).collect();
        assert_eq!(lbas, [BLOCKS, 5], "the newest first");
        assert!(of_queue.iter().all(|entry| entry.nsid.get() == 1 && entry.opc == NvmOpcode::READ.0));
    }
}

#[test]
fn an_abort_says_whether_its_command_was_aborted_and_waits_no_longer_than_it_may() {
    let bench = Bench::new(json!({ "abort_timeout_sec": 1 }));
    let mut controller = bench.connect();
    let mut queues: Vec<Io> = (1..=2).map(|qid| controller.open_io(qid, 16).unwrap()).collect();
    for (io, qid) in queues.iter_mut().zip(1..) {
        let cid = io.execute(command::flush(1), Transfer::None, None).unwrap().cqe.cid.get();
        bench.inject(json!({ "io_type": "flush", "error_type": "pending", "num": 1 }));
        io.submit(command::flush(1), Transfer::None, 0, None).unwrap();
        let writer = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| io.wait().unwrap());
            std::thread::sleep(Duration::from_millis(100));
            let near =
                (0..=u16::MAX).filter(|other| other & 15 == cid & 15 || *other < 64 || *other >> 4 == 0);
            let mut aborted = 0;
            for cid in near.take(4096) {
                let done = controller.execute(command::abort(qid, cid), Transfer::None, None).unwrap();
                aborted += u32::from(done.cqe.dw0.get() & 1 == 0);
                if aborted > 0 {
                    break;
                }
            }
            assert_eq!(aborted, 1);
            waiting.join().unwrap()
        });
        assert!(writer.status().is(Status::ABORTED_BY_REQUEST), "{:?}", writer.status());
    }
}

#[test]
fn the_backlog_of_a_listener_is_the_one_asked_for() {
    let bench = Bench::new(json!({ "acceptor_backlog": 77 }));
    let port = format!(":{:04X}", bench.addr.port());
    let inode = || {
        let tcp = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        tcp.lines().filter(|line| line.contains(&port) && line.contains(" 0A ")).count()
    };
    assert_eq!(inode(), 1);
    let output = std::process::Command::new("ss").args(["-ltnH"]).output();
    // Only `ss` shows it; where there is none, that it listens must do.
    let Ok(output) = output else { return };
    let text = String::from_utf8(output.stdout).unwrap();
    let local = bench.addr.to_string();
    let line = text.lines().find(|line| line.contains(&local)).unwrap();
    assert_eq!(line.split_whitespace().nth(2), Some("77"), "{line}");
}

/// Cannot be opened on reactor 1.
#[derive(Debug)]
struct Half(Arc<Null>);

impl Bdev for Half {
    fn shared(&self) -> &Arc<Shared> {
        self.0.shared()
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        if cx.id() == ReactorId(1) {
            return Err(BdevError::NotFound { name: "the other half".to_owned() });
        }
        self.0.open_channel(cx)
    }

    fn driver_specific(&self) -> Value {
        json!({})
    }

    fn config(&self) -> (&'static str, Value) {
        ("", json!({}))
    }
}

#[test]
fn a_namespace_that_some_reactor_cannot_open_is_not_added() {
    let bench = Bench::new(json!({}));
    let null = Null::new("half", Uuid::from_u128(3), 1000, 512).unwrap();
    bench.registry.register(Arc::new(Half(null)), &[]).unwrap();
    let mut controller = bench.connect();
    let error = block_on(bench.target.add_ns(NQN, &Namespace::on("half"))).unwrap_err();
    assert!(matches!(error, TargetError::Channel { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("half") && text.contains("reactor 1") && text.contains(NQN), "{text}");
    assert_eq!(bench.registry.claimed_by("half").unwrap(), None, "it is let go");
    assert_eq!(controller.active_namespaces().unwrap(), [1]);
}

#[test]
fn a_removed_listener_takes_along_who_came_by_it_and_nobody_else() {
    let bench = Bench::new(json!({}));
    let any_port = ListenAddress::tcp("127.0.0.1:0".parse().unwrap());
    let other = block_on(bench.target.add_listener(NQN, &any_port)).unwrap();
    let (first, second) = (Load::new(bench.addr, 1, 4), Load::new(other, 2, 4));
    block_on(bench.target.remove_listener(NQN, &ListenAddress::tcp(bench.addr))).unwrap();
    let controllers = block_on(bench.target.get_controllers(NQN)).unwrap();
    assert_eq!(controllers.as_array().unwrap().len(), 1, "{controllers}");
    assert_eq!(bench.sum("connections"), 5);
    let mut controller = first.expect_lost();
    assert!(controller.active_namespaces().is_err());
    second.goes_on(1000);
    second.stop();
    bench.wait_idle();
}

#[test]
fn under_load_a_namespace_goes_and_its_hosts_stay() {
    let bench = Bench::new(json!({}));
    let loads: Vec<_> = (1..=2).map(|number| Load::new(bench.addr, number, 4)).collect();
    for _ in 0..5 {
        block_on(bench.target.remove_ns(NQN, 1)).unwrap();
        assert_eq!(bench.registry.claimed_by("EE_M").unwrap(), None);
        loads.iter().for_each(|load| load.goes_on(200));
        block_on(bench.target.add_ns(NQN, &Namespace::on("EE_M"))).unwrap();
        loads.iter().for_each(|load| load.goes_on(200));
    }
    block_on(bench.registry.remove("M")).unwrap();
    assert!(bench.registry.find("EE_M").is_err());
    loads.iter().for_each(|load| load.goes_on(200));
    loads.into_iter().for_each(Load::stop);
    bench.wait_idle();
}

#[test]
fn under_load_a_subsystem_is_deleted_with_all_its_connections() {
    let bench = Bench::new(json!({}));
    let loads: Vec<_> = (1..=2).map(|number| Load::new(bench.addr, number, 4)).collect();
    block_on(bench.target.delete_subsystem(NQN)).unwrap();
    assert_eq!(bench.registry.claimed_by("EE_M").unwrap(), None);
    for load in loads {
        drop(load.expect_lost());
    }
    bench.wait_idle();
}

#[test]
fn under_load_a_controller_is_reset_again_and_again() {
    let bench = Bench::new(json!({}));
    let other = Load::new(bench.addr, 2, 2);
    for _ in 0..5 {
        let load = Load::new(bench.addr, 1, 4);
        let stop = Arc::clone(&load.stop);
        let cc = |enable: u32| command::property_set(0x14, 0x0046_0000 | enable);
        let mut load = load;
        load.controller.execute(cc(0), Transfer::None, None).unwrap();
        let mut controller = load.expect_lost();
        let begin = Instant::now();
        // CSTS.RDY goes when the last I/O queue is gone.
        let csts = |controller: &mut BlockingController| {
            let sqe = command::property_get(0x1c, penstock_spec::nvmf::property::PropertySize::Four);
            controller.execute(sqe, Transfer::None, None).unwrap().cqe.dw0.get()
        };
        while csts(&mut controller) & 1 == 1 {
            assert!(begin.elapsed() < TIMEOUT, "the reset does not end");
        }
        controller.execute(cc(1), Transfer::None, None).unwrap();
        let mut io: Io = controller.open_io(1, 4).unwrap();
        assert!(read(&mut io, 0, 4096).is_success());
        assert!(!stop.load(Ordering::Relaxed));
    }
    other.goes_on(100);
    other.stop();
    bench.wait_idle();
}

#[test]
fn a_queue_identifier_is_given_once_however_many_ask_at_the_same_time() {
    let bench = Bench::new(json!({}));
    let controller = bench.connect();
    for _ in 0..10 {
        let (config, won) = (controller.controller().io_qpair(1, 16), AtomicU64::new(0));
        let queues: Vec<Option<Io>> = std::thread::scope(|scope| {
            let ask = || scope.spawn(|| Io::open(bench.addr, config.clone(), TIMEOUT).ok());
            let asking: Vec<_> = (0..8).map(|_| ask()).collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        won.fetch_add(queues.iter().flatten().count() as u64, Ordering::Relaxed);
        assert_eq!(won.into_inner(), 1);
        drop(queues);
        bench.wait_for("the queue is free", |bench| bench.sum("connections") == 1);
    }
}

#[test]
fn a_host_that_stops_reading_holds_up_nobody_else() {
    let bench = Bench::new(json!({ "num_shared_buffers": 256 }));
    let stopped = connect(bench.addr, 9);
    let mut deaf: Vec<Io> = (1..=4).map(|qid| stopped.open_io(qid, 128).unwrap()).collect();
    let mut streams = Vec::new();
    for io in &mut deaf {
        for slot in 0..127 {
            let sqe = command::read(1, slot * 256, 256);
            io.submit(sqe, Transfer::Read(131_072), 0, Some(vec![0; 131_072])).unwrap();
        }
    }
    // All commands go out, and nothing is read.
    for io in deaf {
        let (mut qpair, mut stream, _) = io.into_parts();
        while qpair.tx_len_bytes() > 0 {
            let bytes: Vec<u8> = qpair.tx_slices().flat_map(<[u8]>::to_vec).collect();
            stream.write_all(&bytes).unwrap();
            qpair.tx_consume(bytes.len());
        }
        streams.push((qpair, stream));
    }
    let controller = bench.connect();
    let mut queues: Vec<Io> = (1..=2).map(|qid| controller.open_io(qid, 16).unwrap()).collect();
    let mut slowest = Duration::ZERO;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(8) {
        for io in &mut queues {
            let asked = Instant::now();
            assert!(read(io, 0, 131_072).is_success());
            slowest = slowest.max(asked.elapsed());
        }
    }
    // Nobody had to wait until the deaf host was thrown out.
    assert!(slowest < Duration::from_secs(1), "an I/O took {slowest:?}");
    drop((streams, stopped, queues, controller));
    bench.wait_idle();
}

/// Descriptors, and KiB in memory, of this process.
fn holdings() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (descriptors, pages * 4)
}

#[test]
#[ignore = "counts the descriptors and memory of its process: run it alone, with --ignored"]
fn a_thousand_connects_and_a_flood_of_half_open_connections_leave_nothing_behind() {
    let bench = Bench::new(json!({}));
    let round = |round: u8| {
        let controller = bench.connect();
        let _io: Io = controller.open_io(1, 128).unwrap();
        if round.is_multiple_of(3) {
            controller.shut_down().unwrap();
        }
    };
    let flood = || {
        let streams: Vec<_> = (0..600).map(|_| TcpStream::connect(bench.addr).unwrap()).collect();
        // Who is connected does not care, and who comes is let in.
        bench.wait_for("they are taken in", |bench| bench.sum("connections") >= 600);
        round(0);
        drop(streams);
        bench.wait_idle();
    };
    (0..100).for_each(&round);
    flood();
    let before = holdings();
    (0..1000_u32).for_each(|n| round(u8::try_from(n % 250).unwrap()));
    flood();
    bench.wait_idle();
    let after = holdings();
    assert!(after.0 <= before.0 + 2, "descriptors: {} before, {} after", before.0, after.0);
    assert!(after.1 < before.1 + 8192, "KiB in memory: {} before, {} after", before.1, after.1);
}

#[test]
fn a_target_that_sleeps_answers_the_first_connect_at_once() {
    let bench = Bench::new(json!({}));
    let mut seed = 7_u64;
    let mut times: Vec<Duration> = Vec::new();
    let rounds = std::env::var("WAKE_ROUNDS").map_or(8, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        bench.wait_idle();
        // Long enough to be asleep, in the middle of the time between two looks at the time-outs.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(300 + (seed >> 54)));
        let asked = Instant::now();
        let controller = bench.connect();
        let _io: Io = controller.open_io(1, 16).unwrap();
        times.push(asked.elapsed());
    }
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    // A lost wake-up would be found by the next look at the time-outs after 250 ms, or never. One that is slow may
    // have had no core.
    assert!(median < Duration::from_millis(100), "{times:?}");
    assert!(slowest < Duration::from_millis(500), "{times:?}");
}
