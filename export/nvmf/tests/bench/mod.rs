//! The target as the daemon has it, on two reactors over loopback; namespace 1 is the error bdev EE_M on the malloc bdev M.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod late;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use penstock_bdev::Registry;
use penstock_bdev::inject::{ErrorInjector, ErrorOptions, InjectOptions};
use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_nvme_tcp::blocking::{BlockingController, BlockingError, BlockingQpair};
use penstock_nvme_tcp::controller::ControllerConfig;
use penstock_nvme_tcp::{QpairConfig, Transfer, command};
use penstock_nvmf::target::{CreateSubsystem, ListenAddress, Namespace};
use penstock_nvmf::{Target, TransportOptions};
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Started};
use penstock_spec::nvme::Status;
use penstock_spec::nvmf::Nqn;
use serde_json::{Value, json};

pub const NQN: &str = "nqn.2026-11.io.penstock:paths";
pub const TIMEOUT: Duration = Duration::from_secs(20);
pub const BLOCKS: u64 = 65_536;

pub struct Bench {
    pub target: Target,
    pub registry: Registry,
    reactors: Vec<Started>,
    pub addr: SocketAddr,
}

impl Bench {
    /// With transport options.
    pub fn new(options: Value) -> Self {
        Self::with(options, json!({}))
    }

    /// With transport options and parameters of the subsystem.
    pub fn with(options: Value, subsystem: Value) -> Self {
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
        let mut subsystem = subsystem;
        subsystem["nqn"] = json!(NQN);
        subsystem["allow_any_host"] = json!(true);
        let subsystem: CreateSubsystem = serde_json::from_value(subsystem).unwrap();
        block_on(async {
            let options: TransportOptions = serde_json::from_value(options).unwrap();
            target.create_transport(options).await.unwrap();
            target.create_subsystem(&subsystem).await.unwrap();
            target.add_ns(NQN, &Namespace::on("EE_M")).await.unwrap();
        });
        let mut bench = Self { target, registry, reactors, addr: "127.0.0.1:0".parse().unwrap() };
        bench.addr = bench.listen();
        bench
    }

    /// One more listener.
    pub fn listen(&self) -> SocketAddr {
        let any_port = ListenAddress::tcp("127.0.0.1:0".parse().unwrap());
        block_on(self.target.add_listener(NQN, &any_port)).unwrap()
    }

    pub fn inject(&self, rule: Value) {
        let mut rule = rule;
        rule["name"] = json!("EE_M");
        let rule: InjectOptions = serde_json::from_value(rule).unwrap();
        ErrorInjector::inject(&self.registry, &rule).unwrap();
    }

    /// What hangs goes on.
    pub fn release_pending(&self) {
        self.inject(json!({ "io_type": "clear", "error_type": "failure" }));
    }

    pub fn connect(&self) -> BlockingController {
        connect(self.addr, 1)
    }

    /// Sum of a counter over the reactors.
    pub fn sum(&self, counter: &str) -> u64 {
        let stats = block_on(self.target.get_stats()).unwrap();
        let groups = stats["poll_groups"].as_array().unwrap();
        groups.iter().map(|group| group[counter].as_u64().unwrap()).sum()
    }

    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            let stats = || block_on(self.target.get_stats()).unwrap();
            assert!(begin.elapsed() < TIMEOUT, "waited in vain: {what}: {}", stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everybody is gone, and nothing of them is left.
    pub fn wait_idle(&self) {
        self.wait_for("all connections are gone", |bench| {
            bench.sum("connections") + bench.sum("pending_bdev_io") + bench.sum("buffer_bytes") == 0
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

pub type Io = BlockingQpair<Vec<u8>>;

pub fn host_to(number: u8, subnqn: &str) -> ControllerConfig {
    let hostnqn: Nqn = format!("nqn.2026-11.io.penstock:host{number}").parse().unwrap();
    let admin =
        QpairConfig { kato_ms: 20_000, ..QpairConfig::admin([number; 16], hostnqn, subnqn.parse().unwrap()) };
    ControllerConfig { admin, io_queues: 4, step_timeout_ns: 20_000_000_000 }
}

pub fn host(number: u8) -> ControllerConfig {
    host_to(number, NQN)
}

pub fn connect(addr: SocketAddr, number: u8) -> BlockingController {
    try_connect(addr, number).unwrap()
}

pub fn try_connect(addr: SocketAddr, number: u8) -> Result<BlockingController, BlockingError> {
    BlockingController::connect(addr, host(number), TIMEOUT)
}

/// An I/O queue by another address than its controller's.
pub fn open_io_at(controller: &BlockingController, addr: SocketAddr, qid: u16) -> Result<Io, BlockingError> {
    BlockingQpair::open(addr, controller.controller().io_qpair(qid, 16), TIMEOUT)
}

pub fn read(io: &mut Io, lba: u64, len: usize) -> Status {
    let sqe = command::read(1, lba, (len / 512) as u32);
    io.execute(sqe, Transfer::Read(len as u32), Some(vec![0; len])).unwrap().status()
}

pub fn write(io: &mut Io, lba: u64, len: usize) -> Status {
    let sqe = command::write(1, lba, (len / 512) as u32, false);
    io.execute(sqe, Transfer::Write(len as u32), Some(vec![1; len])).unwrap().status()
}

/// Sends what is queued and takes what has come, without waiting for an answer.
pub fn turn(io: &mut Io) -> Result<(), BlockingError> {
    io.turn_once()
}
