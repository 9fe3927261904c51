//! I/Os from our initiator to our target over a loopback connection, both in this thread: loopback delivers what is sent
//! before the call returns, so the steps are the same in every run.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_nvme_tcp::blocking::BlockingController;
use penstock_nvme_tcp::controller::ControllerConfig;
use penstock_nvme_tcp::{Qpair, QpairConfig};
use penstock_nvmf::TransportOptions;
use penstock_nvmf::config::{ListenerConfig, NamespaceConfig, Nsid, SubsystemConfig, SubsystemKind};
use penstock_nvmf::group::{GroupCell, Peers};
use penstock_perf::remote::{IoPayload, Queue, Remote};
use penstock_reactor::Reactor;
use penstock_reactor::clock::VirtualClock;
use penstock_reactor::net::{SocketOptions, TcpSocket};
use penstock_spec::nvmf::Nqn;
use uuid::Uuid;

use crate::{BLOCK_BYTES, BLOCKS, Load, drive};

const NQN: &str = "nqn.2026-11.io.penstock:instructions";
const TIMEOUT: Duration = Duration::from_secs(120);
/// I/O queues of one controller here at most.
const QUEUES_MAX: u16 = 64;

type Connection = (Qpair<IoPayload>, TcpStream);

#[expect(clippy::disallowed_methods, reason = "no reactor's thread: it turns one by hand")]
pub(crate) fn run(
    reactor: &mut Reactor,
    hand: &VirtualClock,
    bdev: Arc<dyn Bdev>,
    load: Load,
    idle_connections: u16,
) -> anyhow::Result<()> {
    let addr = serve(reactor, bdev)?;
    let depth = u16::try_from(load.queue_depth)?;
    // Connecting blocks, so it has a thread of its own while this one turns the target.
    let connecting = std::thread::spawn(move || connect(addr, depth, idle_connections));
    while !connecting.is_finished() {
        // Listeners are looked at now and then only: time goes on until all is set up.
        hand.advance_ns(100_000);
        reactor.turn();
        // Valgrind runs one thread at a time, and this one would keep its turn.
        std::thread::sleep(Duration::from_micros(100));
    }
    let Ok(connected) = connecting.join() else { bail!("the connecting thread panicked") };
    let (mut connections, _controllers) = connected?;
    let (qpair, stream) = connections.pop().context("no I/O queue")?;
    let socket = TcpSocket::from_fd(OwnedFd::from(stream), &SocketOptions::default())?;
    let mut remote = Remote::new(vec![Queue::new(qpair, socket)], 1, BLOCK_BYTES);
    drive(&mut remote, load, || {
        reactor.turn();
    })
}

/// Exports `bdev` on the reactor; returns where.
fn serve(reactor: &Reactor, bdev: Arc<dyn Bdev>) -> anyhow::Result<SocketAddr> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = SubsystemConfig::new(Nqn::parse(NQN.as_bytes())?, SubsystemKind::Nvm);
    config.allow_any_host = true;
    let namespace = NamespaceConfig {
        nsid: Nsid(1),
        descriptor: Descriptor::unregistered(bdev, OpenMode::ReadWrite),
        blocks: BLOCKS,
        block_bytes: BLOCK_BYTES,
        uuid: Uuid::from_u128(1),
        nguid: [1; 16],
        eui64: [0; 8],
        anagrpid: 1,
    };
    config.namespaces.insert(Nsid(1), namespace);
    let peers = Peers::new(vec![reactor.cx().handle()]);
    let cell = GroupCell::start(reactor.cx(), &Arc::new(TransportOptions::default()), peers, 0)?;
    let bound = cell.listen(addr, 1)?;
    config.listeners.push(ListenerConfig::tcp(1, bound));
    cell.apply(reactor.cx(), &Arc::new(config));
    Ok(bound)
}

/// Opens `idle` I/O queues of `depth` and one more, the last, over as many controllers as that takes.
fn connect(
    addr: SocketAddr,
    depth: u16,
    idle: u16,
) -> anyhow::Result<(Vec<Connection>, Vec<BlockingController>)> {
    let (mut connections, mut controllers) = (Vec::new(), Vec::new());
    let mut left = idle.checked_add(1).context("too many connections")?;
    while left > 0 {
        let hostid = Uuid::new_v4();
        let hostnqn = Nqn::parse(format!("nqn.2014-08.org.nvmexpress:uuid:{hostid}").as_bytes())?;
        let mut admin = QpairConfig::admin(hostid.into_bytes(), hostnqn, Nqn::parse(NQN.as_bytes())?);
        admin.sq_flow_control = false;
        let io_queues = left.min(QUEUES_MAX);
        let step_timeout_ns = u64::try_from(TIMEOUT.as_nanos())?;
        let config = ControllerConfig { admin, io_queues, step_timeout_ns };
        let controller = BlockingController::connect(addr, config, TIMEOUT)?;
        for qid in 1..=io_queues {
            let (qpair, stream, _) = controller.open_io(qid, depth)?.into_parts();
            connections.push((qpair, stream));
        }
        controllers.push(controller);
        left -= io_queues;
    }
    Ok((connections, controllers))
}
