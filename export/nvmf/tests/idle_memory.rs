//! Goal: hosts that are connected and silent cost little memory.
//! Method: the target in this process; plain sockets as hosts, so that what grows is the target's; resident pages counted.
//! Alone in its file, for it has its process to itself.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and waits on a thread of its own"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use penstock_bdev::null::Null;
use penstock_bdev::{Descriptor, OpenMode};
use penstock_nvmf::TransportOptions;
use penstock_nvmf::config::{ListenerConfig, NamespaceConfig, Nsid, SubsystemConfig, SubsystemKind};
use penstock_nvmf::group::{GroupCell, Peers};
use penstock_reactor::{Clock, Cx, PollMode, Reactor, ReactorConfig, ReactorHandle, ReactorId};
use penstock_spec::nvme::sgl::SglDescriptor;
use penstock_spec::nvme::{Cqe, FabricsType, NvmOpcode, Sqe};
use penstock_spec::nvme_tcp::{CapsuleCmdHdr, CapsuleRespHdr, CommonHdr, DigestFlags, IcReq, PduType};
use penstock_spec::nvmf::connect::{CNTLID_DYNAMIC, ConnectResult};
use penstock_spec::nvmf::{ConnectCmd, ConnectData, Nqn};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

const HOSTS: u8 = 64;
const IO_QUEUES: u16 = 8;
const ENTRIES: u16 = 128;
const GROWTH_MAX_KIB: usize = 256 << 10;

fn resident_kib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

fn call<R: Send + 'static>(handle: &ReactorHandle, run: impl FnOnce(&Cx) -> R + Send + 'static) -> R {
    let (answer, answered) = sync_channel(1);
    handle.send(move |cx| answer.send(run(cx)).unwrap()).unwrap();
    answered.recv_timeout(Duration::from_secs(20)).unwrap()
}

fn capsule(stream: &mut TcpStream, sqe: Sqe, data: &[u8]) -> Cqe {
    let plen = u32::try_from(72 + data.len()).unwrap();
    let pdo = if data.is_empty() { 0 } else { 72 };
    let header = CapsuleCmdHdr { ch: CommonHdr::new(PduType::CAPSULE_CMD, 0, 72, pdo, plen), sqe };
    stream.write_all(&[header.as_bytes(), data].concat()).unwrap();
    let mut answer = [0; 24];
    stream.read_exact(&mut answer).unwrap();
    let answer = CapsuleRespHdr::read_from_bytes(&answer).unwrap();
    assert!(answer.cqe.status().is_success(), "{:?}", answer.cqe.status());
    answer.cqe
}

/// A connected queue; returns its controller's identifier.
fn queue(addr: SocketAddr, host: u8, subnqn: Nqn, qid: u16, cntlid: u16) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(IcReq::new(0, DigestFlags(0), 1).as_bytes()).unwrap();
    stream.read_exact(&mut [0; 128]).unwrap();
    let hostnqn: Nqn = format!("nqn.2026-11.io.penstock:host{host}").parse().unwrap();
    let data = ConnectData::new([host; 16], cntlid, &subnqn, &hostnqn);
    let cmd = ConnectCmd {
        opc: NvmOpcode::FABRICS.0,
        flags: 0x40,
        cid: 1.into(),
        fctype: FabricsType::CONNECT.0,
        sgl1: SglDescriptor::in_capsule(0, 1024),
        qid: qid.into(),
        sqsize0: (ENTRIES - 1).into(),
        ..ConnectCmd::default()
    };
    let cqe = capsule(&mut stream, Sqe::read_from_bytes(cmd.as_bytes()).unwrap(), data.as_bytes());
    (stream, ConnectResult(cqe.dw0.get()).cntlid())
}

#[test]
fn sixty_four_hosts_with_eight_idle_queues_of_128_entries_cost_less_than_256_mib() {
    let mode = PollMode::Adaptive { spin_ns: 50_000 };
    let start = |id| {
        let config = ReactorConfig { id: ReactorId(id), core: None, mode, clock: Clock::system(), seed: 1 };
        Reactor::start(config).unwrap()
    };
    let reactors: Vec<_> = (0..2).map(start).collect();
    let peers = Peers::new(reactors.iter().map(|started| started.handle.clone()).collect());
    let options = Arc::new(TransportOptions::default());
    for (index, started) in reactors.iter().enumerate() {
        let (options, peers) = (Arc::clone(&options), Arc::clone(&peers));
        call(&started.handle, move |cx| drop(GroupCell::start(cx, &options, peers, index).unwrap()));
    }
    let any_port = "127.0.0.1:0".parse().unwrap();
    let first = &reactors.first().unwrap().handle;
    let addr = call(first, move |cx| GroupCell::of(cx).unwrap().listen(any_port, 1).unwrap());
    let subnqn: Nqn = "nqn.2026-11.io.penstock:idle".parse().unwrap();
    let mut config = SubsystemConfig::new(subnqn, SubsystemKind::Nvm);
    config.allow_any_host = true;
    config.listeners.push(ListenerConfig::tcp(1, addr));
    let null = Null::new("null", Uuid::from_u128(1), 1000, 512).unwrap();
    let namespace = NamespaceConfig {
        nsid: Nsid(1),
        descriptor: Descriptor::unregistered(null, OpenMode::ReadWrite),
        blocks: 1000,
        block_bytes: 512,
        uuid: Uuid::from_u128(1),
        nguid: [1; 16],
        eui64: [0; 8],
        anagrpid: 1,
    };
    config.namespaces.insert(Nsid(1), namespace);
    let config = Arc::new(config);
    for started in &reactors {
        let config = Arc::clone(&config);
        call(&started.handle, move |cx| GroupCell::of(cx).unwrap().apply(cx, &config));
    }

    let mut all = Vec::new();
    let mut before = 0;
    for host in 0..=HOSTS {
        let (mut admin, cntlid) = queue(addr, host, subnqn, 0, CNTLID_DYNAMIC);
        capsule(&mut admin, penstock_nvme_tcp::command::property_set(0x14, 0x0046_0001), &[]);
        all.push(admin);
        for qid in 1..=IO_QUEUES {
            all.push(queue(addr, host, subnqn, qid, cntlid).0);
        }
        // The first host pays for what all share.
        if host == 0 {
            before = resident_kib();
        }
    }
    let grown = resident_kib() - before;
    let connections = usize::from(HOSTS) * (usize::from(IO_QUEUES) + 1);
    println!("{grown} KiB for {connections} connections: {} bytes each", grown * 1024 / connections);
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB for {connections} connections");
    let live: u32 = reactors
        .iter()
        .map(|started| call(&started.handle, |cx| GroupCell::of(cx).unwrap().stats().current_io_qpairs))
        .sum();
    assert_eq!(live, u32::from(IO_QUEUES) * (u32::from(HOSTS) + 1));
    drop(all);
    for started in reactors {
        started.handle.stop();
        started.join.join().unwrap();
    }
}
