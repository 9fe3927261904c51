//! Goal: hosts use a target of real reactors over loopback, and whatever they do, it is cleaned up after them.
//! Method: our own initiator against groups on malloc and null bdevs; allocations are counted per thread.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test makes bytes of small numbers, may panic, and waits on a thread of its own"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_nvme_tcp::blocking::{BlockingController, BlockingQpair};
use penstock_nvme_tcp::controller::ControllerConfig;
use penstock_nvme_tcp::{QpairConfig, Transfer, command};
use penstock_nvmf::TransportOptions;
use penstock_nvmf::config::{ListenerConfig, NamespaceConfig, Nsid, SubsystemConfig, SubsystemKind};
use penstock_nvmf::group::{GroupCell, GroupStats, Peers};
use penstock_nvmf::tcp::TcpParams;
use penstock_reactor::{Clock, Cx, PollMode, Reactor, ReactorConfig, ReactorId, Started};
use penstock_spec::nvme::Status;
use penstock_spec::nvmf::Nqn;
use uuid::Uuid;
use zerocopy::IntoBytes;

const TIMEOUT: Duration = Duration::from_secs(10);
const BLOCKS: u64 = 32_768;

/// A target of one subsystem with one namespace.
struct Node {
    started: Vec<Started>,
    addr: SocketAddr,
    config: SubsystemConfig,
}

impl Node {
    fn new(reactors: u32, change: impl Fn(&mut TcpParams)) -> Self {
        let started: Vec<_> = (0..reactors)
            .map(|id| {
                let mode = PollMode::Adaptive { spin_ns: 50_000 };
                let clock = Clock::system();
                let config = ReactorConfig { id: ReactorId(id), core: None, mode, clock, seed: 1 };
                Reactor::start(config).unwrap()
            })
            .collect();
        let peers = Peers::new(started.iter().map(|started| started.handle.clone()).collect());
        let options = Arc::new(TransportOptions::default());
        let mut params = TcpParams::new(&options, started.len());
        change(&mut params);
        let mut node = Self {
            started,
            addr: "127.0.0.1:0".parse().unwrap(),
            config: SubsystemConfig::new(subnqn(), SubsystemKind::Nvm),
        };
        for index in 0..node.started.len() {
            let (peers, options, params) = (Arc::clone(&peers), Arc::clone(&options), params.clone());
            node.call(index, move |cx| {
                drop(GroupCell::start_with(cx, &options, params, peers, index).unwrap())
            });
        }
        node.addr =
            node.call(0, |cx| GroupCell::of(cx).unwrap().listen("127.0.0.1:0".parse().unwrap(), 1).unwrap());
        let options = format!(r#"{{"num_blocks":{BLOCKS},"block_size":512}}"#);
        let options: MallocOptions = serde_json::from_str(&options).unwrap();
        let bdev: Arc<dyn Bdev> = Malloc::new("M", &options).unwrap();
        let namespace = NamespaceConfig {
            nsid: Nsid(1),
            descriptor: Descriptor::unregistered(bdev, OpenMode::ReadWrite),
            blocks: BLOCKS,
            block_bytes: 512,
            uuid: Uuid::from_u128(7),
            nguid: [1; 16],
            eui64: [0; 8],
            anagrpid: 1,
        };
        let listener = ListenerConfig::tcp(1, node.addr);
        node.config.listeners.push(listener);
        node.config.allow_any_host = true;
        node.config.namespaces.insert(Nsid(1), namespace);
        node.apply();
        node
    }

    fn call<R: Send + 'static>(&self, index: usize, function: impl FnOnce(&Cx) -> R + Send + 'static) -> R {
        let (answer, answered) = sync_channel(1);
        self.started[index].handle.send(move |cx| answer.send(function(cx)).unwrap()).unwrap();
        answered.recv_timeout(TIMEOUT).unwrap()
    }

    fn apply(&mut self) {
        self.config.generation += 1;
        let config = Arc::new(self.config.clone());
        for index in 0..self.started.len() {
            let config = Arc::clone(&config);
            self.call(index, move |cx| GroupCell::of(cx).unwrap().apply(cx, &config));
        }
    }

    fn stats(&self) -> Vec<GroupStats> {
        (0..self.started.len())
            .map(|index| self.call(index, |cx| GroupCell::of(cx).unwrap().stats()))
            .collect()
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(&[GroupStats]) -> bool) {
        let begin = Instant::now();
        while !is_so(&self.stats()) {
            assert!(begin.elapsed() < TIMEOUT, "waited in vain: {what}: {:?}", self.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn connect(&self, digests: bool) -> BlockingController {
        BlockingController::connect(self.addr, host(digests), TIMEOUT).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for started in self.started.drain(..) {
            started.handle.stop();
            started.join.join().unwrap();
        }
    }
}

fn subnqn() -> Nqn {
    "nqn.2026-11.io.penstock:t".parse().unwrap()
}

fn host(digests: bool) -> ControllerConfig {
    let hostnqn: Nqn = "nqn.2026-11.io.penstock:host".parse().unwrap();
    let admin = QpairConfig {
        hdgst: digests,
        ddgst: digests,
        kato_ms: 10_000,
        ..QpairConfig::admin([7; 16], hostnqn, subnqn())
    };
    ControllerConfig { admin, io_queues: 4, step_timeout_ns: 10_000_000_000 }
}

type Io = BlockingQpair<Vec<u8>>;

fn write(io: &mut Io, lba: u64, data: Vec<u8>) -> Status {
    let blocks = (data.len() / 512) as u32;
    let transfer = Transfer::Write(data.len() as u32);
    io.execute(command::write(1, lba, blocks, false), transfer, Some(data)).unwrap().status()
}

fn read(io: &mut Io, lba: u64, len: usize) -> (Status, Vec<u8>) {
    let transfer = Transfer::Read(len as u32);
    let sqe = command::read(1, lba, (len / 512) as u32);
    let done = io.execute(sqe, transfer, Some(vec![0; len])).unwrap();
    (done.status(), done.payload.unwrap())
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8 ^ seed).collect()
}

#[test]
fn hosts_read_what_they_wrote_through_queues_on_all_reactors() {
    let node = Node::new(2, |_| ());
    for digests in [false, true] {
        let controller = node.connect(digests);
        let mut queues: Vec<Io> = (1..=4).map(|qid| controller.open_io(qid, 16).unwrap()).collect();
        let stats = node.stats();
        assert!(
            stats.iter().all(|stats| stats.current_io_qpairs + stats.current_admin_qpairs >= 2),
            "{stats:?}"
        );
        for (len, seed) in [(512, 1), (4096, 2), (8192, 3), (12_288, 4), (131_072, 5), (1 << 20, 6)] {
            let data = pattern(len, seed);
            let (first, rest) = queues.split_first_mut().unwrap();
            assert!(write(first, 8, data.clone()).is_success());
            for io in rest {
                let (status, back) = read(io, 8, len);
                assert!(status.is_success() && back == data, "{len} bytes");
            }
        }
        let (status, _) = read(&mut queues[0], BLOCKS, 512);
        assert!(status.is(Status::LBA_OUT_OF_RANGE));
        let flushed = queues[1].execute(command::flush(u32::MAX), Transfer::None, None).unwrap();
        assert!(flushed.status().is_success());
        drop(queues);
        controller.shut_down().unwrap();
    }
    node.wait_for("all connections are gone", |stats| stats.iter().all(|stats| stats.connections == 0));
}

#[test]
fn ranges_are_deallocated_one_after_the_other() {
    let node = Node::new(1, |_| ());
    let controller = node.connect(false);
    let mut io: Io = controller.open_io(1, 4).unwrap();
    assert!(write(&mut io, 0, pattern(65_536, 9)).is_success());
    let mut data = vec![0; 4096];
    for (index, (lba, blocks)) in [(0_u64, 8_u32), (40, 0), (64, 64)].into_iter().enumerate() {
        data[index * 16 + 4..index * 16 + 8].copy_from_slice(&blocks.to_le_bytes());
        data[index * 16 + 8..index * 16 + 16].copy_from_slice(&lba.to_le_bytes());
    }
    let done = io.execute(command::deallocate(1, 3), Transfer::Write(4096), Some(data)).unwrap();
    assert!(done.status().is_success(), "{:?}", done.status());
    let (_, back) = read(&mut io, 0, 65_536);
    let mut want = pattern(65_536, 9);
    want[..4096].fill(0);
    want[32_768..].fill(0);
    assert!(back == want);
}

#[test]
fn a_queue_identifier_or_another_hosts_controller_is_refused() {
    let node = Node::new(2, |_| ());
    let controller = node.connect(false);
    let first: Io = controller.open_io(1, 4).unwrap();
    assert!(controller.open_io::<Vec<u8>>(1, 4).is_err(), "QID 1 is taken");
    assert!(controller.open_io::<Vec<u8>>(200, 4).is_err(), "QID 200 is too large");
    drop(first);
    node.wait_for("queue 1 is free", |stats| {
        stats.iter().map(|stats| stats.current_io_qpairs).sum::<u32>() == 0
    });
    let _again: Io = controller.open_io(1, 4).unwrap();
    let open = |cntlid, hostid| {
        let QpairConfig { hostnqn, subnqn, .. } = host(false).admin;
        let config = QpairConfig { qid: 2, depth: 4, cntlid, ..QpairConfig::admin(hostid, hostnqn, subnqn) };
        BlockingQpair::<Vec<u8>>::open(node.addr, config, TIMEOUT)
    };
    assert!(open(0x7777, [7; 16]).is_err(), "no such controller");
    assert!(open(1, [8; 16]).is_err(), "another host's");
    open(1, [7; 16]).unwrap();
}

#[test]
fn a_host_that_is_not_allowed_any_more_loses_its_association() {
    let mut node = Node::new(2, |_| ());
    let controller = node.connect(false);
    let _io: Io = controller.open_io(1, 4).unwrap();
    node.config.allow_any_host = false;
    node.apply();
    node.wait_for("it is gone", |stats| stats.iter().all(|stats| stats.connections == 0));
    assert!(BlockingController::connect(node.addr, host(false), TIMEOUT).is_err());
}

#[test]
fn io_goes_on_or_ends_with_a_status_when_its_namespace_is_removed() {
    let mut node = Node::new(1, |_| ());
    let controller = node.connect(false);
    let mut io: Io = controller.open_io(1, 32).unwrap();
    for lba in 0..16 {
        let sqe = command::write(1, lba * 256, 256, false);
        io.submit(sqe, Transfer::Write(131_072), lba, Some(vec![1; 131_072])).unwrap();
    }
    node.config.namespaces.clear();
    node.apply();
    for _ in 0..16 {
        io.wait().unwrap();
    }
    let (status, _) = read(&mut io, 0, 512);
    assert!(status.is(Status::INVALID_FIELD), "{status:?}");
    assert!(node.call(0, |cx| GroupCell::of(cx).unwrap().is_drained()));
    let nqn = subnqn();
    node.call(0, move |cx| GroupCell::of(cx).unwrap().remove_subsystem(&nqn));
    node.wait_for("it is gone", |stats| stats[0].connections == 0);
    assert!(node.call(0, |cx| GroupCell::of(cx).unwrap().is_drained()));
}

#[test]
fn connections_that_never_connect_are_closed_and_too_many_are_refused() {
    let node = Node::new(1, |params| {
        params.half_open_max = 4;
        params.connect_timeout_ns = 2_000_000_000;
    });
    let mut streams: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect(node.addr).unwrap()).collect();
    node.wait_for("two are refused", |stats| stats[0].refused == 2 && stats[0].connections == 4);
    node.wait_for("the others time out", |stats| stats[0].connections == 0);
    for stream in &mut streams {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_flood_of_half_open_connections_keeps_nobody_out() {
    let node = Node::new(1, |params| params.half_open_max = 8);
    let _flood: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(node.addr).unwrap()).collect();
    node.wait_for("the oldest are closed", |stats| stats[0].refused == 92 && stats[0].connections == 8);
    let asked = Instant::now();
    let controller = node.connect(false);
    let mut io: Io = controller.open_io(1, 4).unwrap();
    assert!(write(&mut io, 0, pattern(512, 1)).is_success());
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[test]
fn rubbish_costs_its_connection_and_nothing_else() {
    let node = Node::new(1, |_| ());
    let controller = node.connect(false);
    let mut io: Io = controller.open_io(1, 4).unwrap();
    for seed in 0..20_u8 {
        let mut stream = TcpStream::connect(node.addr).unwrap();
        stream.write_all(&pattern(1000, seed)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert!(answer.is_empty() || answer[0] == 3, "a TermReq or nothing");
    }
    assert!(write(&mut io, 0, pattern(512, 1)).is_success());
    node.wait_for("they are gone", |stats| stats[0].connections == 2 && stats[0].terminated == 20);
}

#[test]
fn a_host_that_keeps_silent_loses_its_association_and_one_with_io_does_not() {
    let node = Node::new(2, |_| ());
    let mut config = host(false);
    config.admin.kato_ms = 2000;
    let silent = BlockingController::connect(node.addr, config, TIMEOUT).unwrap();
    let mut io: Io = silent.open_io(1, 4).unwrap();
    for _ in 0..30 {
        assert!(write(&mut io, 0, pattern(512, 1)).is_success(), "traffic keeps it alive");
        std::thread::sleep(Duration::from_millis(100));
    }
    node.wait_for("it is gone", |stats| stats.iter().all(|stats| stats.connections == 0));
}

#[test]
fn a_reset_controller_closes_its_io_queues_and_can_be_enabled_again() {
    let node = Node::new(2, |_| ());
    let mut controller = node.connect(false);
    let _first: Io = controller.open_io(1, 4).unwrap();
    let _second: Io = controller.open_io(2, 4).unwrap();
    let cc = |enable: u32| command::property_set(0x14, 0x0046_0000 | enable);
    controller.execute(cc(0), Transfer::None, None).unwrap();
    let queues = |stats: &[GroupStats]| stats.iter().map(|stats| stats.current_io_qpairs).sum::<u32>();
    node.wait_for("the queues are closed", |stats| queues(stats) == 0);
    controller.execute(cc(1), Transfer::None, None).unwrap();
    let mut again: Io = controller.open_io(1, 4).unwrap();
    assert!(write(&mut again, 0, pattern(512, 1)).is_success());
}

#[test]
fn an_abort_of_a_command_that_is_over_says_so() {
    let node = Node::new(2, |_| ());
    let mut controller = node.connect(false);
    let _io: Io = controller.open_io(1, 4).unwrap();
    for sqid in [0, 1, 9] {
        let done = controller.execute(command::abort(sqid, 77), Transfer::None, None).unwrap();
        assert_eq!(done.cqe.dw0.get() & 1, 1);
    }
}

#[test]
fn a_hundred_connects_and_disconnects_leave_nothing_behind() {
    let node = Node::new(2, |_| ());
    for round in 0..100 {
        let controller = node.connect(round % 2 == 0);
        let _io: Io = controller.open_io(1, 128).unwrap();
        if round % 3 == 0 {
            controller.shut_down().unwrap();
        }
    }
    node.wait_for("all are gone", |stats| {
        stats.iter().all(|stats| stats.connections == 0 && stats.pending_bdev_io == 0)
    });
    let controllers = node.call(0, |cx| {
        let mut count = 0;
        GroupCell::of(cx).unwrap().for_each_controller(|_, _| count += 1);
        count
    });
    assert_eq!((controllers, node.config.controller_ids.iter().count()), (0, 0));
}

#[test]
fn an_io_in_steady_state_allocates_nothing_on_the_reactor() {
    let node = Node::new(1, |_| ());
    let controller = node.connect(false);
    let mut io: Io = controller.open_io(1, 32).unwrap();
    let mut load = |rounds: u64| {
        for round in 0..rounds {
            for slot in 0..32 {
                let len = if slot % 8 == 0 { 65_536 } else { 4096 };
                let lba = (round * 32 + slot) * 8 % (BLOCKS - 256);
                let blocks = (len / 512) as u32;
                let (sqe, transfer) = if slot % 2 == 0 {
                    (command::write(1, lba, blocks, false), Transfer::Write(len as u32))
                } else {
                    (command::read(1, lba, blocks), Transfer::Read(len as u32))
                };
                io.submit(sqe, transfer, 0, Some(vec![3; len])).unwrap();
            }
            for _ in 0..32 {
                assert!(io.wait().unwrap().status().is_success());
            }
        }
    };
    load(50);
    let allocations = || node.call(0, |_| penstock_allocations::count());
    let before = allocations();
    load(50);
    let during = allocations() - before;
    assert!(during <= 2, "{during} allocations in 1600 I/Os");
}

#[test]
fn an_idle_node_sleeps() {
    let node = Node::new(1, |_| ());
    let controllers: Vec<_> = (0..8).map(|_| node.connect(false)).collect();
    let _queues: Vec<Io> = controllers.iter().map(|controller| controller.open_io(1, 128).unwrap()).collect();
    let stats = node.started[0].handle.clone();
    std::thread::sleep(Duration::from_millis(1200));
    let (turns, slept) = (stats.stats().turns.read(), stats.stats().sleep_ns.read());
    std::thread::sleep(Duration::from_millis(1500));
    let (turns, slept) = (stats.stats().turns.read() - turns, stats.stats().sleep_ns.read() - slept);
    assert!(slept > 900_000_000, "slept {slept} ns of 1.5 s in {turns} turns");
    drop(controllers);
    let icreq = penstock_spec::nvme_tcp::IcReq::new(0, penstock_spec::nvme_tcp::DigestFlags(0), 1);
    let mut stream = TcpStream::connect(node.addr).unwrap();
    stream.write_all(icreq.as_bytes()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.read_exact(&mut [0; 128]).unwrap();
}
