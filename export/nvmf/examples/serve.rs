//! Serves a malloc (or null) bdev over NVMe/TCP, without the daemon: for profiling the data path.
//!
//! `cargo run --release -p penstock-nvmf --example serve -- 127.0.0.1:4420 [malloc|null] [MIB] [REACTORS] [SECONDS]`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "an example"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::null::Null;
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_nvmf::TransportOptions;
use penstock_nvmf::config::{ListenerConfig, NamespaceConfig, Nsid, SubsystemConfig, SubsystemKind};
use penstock_nvmf::group::{GroupCell, Peers};
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId};
use uuid::Uuid;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |at: usize, default: &str| args.get(at).cloned().unwrap_or_else(|| default.to_owned());
    let addr: SocketAddr = arg(1, "127.0.0.1:4420").parse().unwrap();
    let mib: u64 = arg(3, "256").parse().unwrap();
    let reactors: u32 = arg(4, "1").parse().unwrap();
    let seconds: u64 = arg(5, "60").parse().unwrap();
    let uuid = Uuid::from_u128(1);
    let bdev: Arc<dyn Bdev> = if arg(2, "malloc") == "null" {
        Null::new("Null0", uuid, mib << 11, 512).unwrap()
    } else {
        let options = format!(r#"{{"name":"Malloc0","num_blocks":{},"block_size":512}}"#, mib << 11);
        let options: MallocOptions = serde_json::from_str(&options).unwrap();
        Malloc::new("Malloc0", &options).unwrap()
    };
    let mut config =
        SubsystemConfig::new("nqn.2026-11.io.penstock:serve".parse().unwrap(), SubsystemKind::Nvm);
    config.allow_any_host = true;
    config.listeners.push(ListenerConfig::tcp(1, addr));
    let namespace = NamespaceConfig {
        nsid: Nsid(1),
        descriptor: Descriptor::unregistered(bdev, OpenMode::ReadWrite),
        blocks: mib << 11,
        block_bytes: 512,
        uuid,
        nguid: [1; 16],
        eui64: [0; 8],
        anagrpid: 1,
    };
    config.namespaces.insert(Nsid(1), namespace);
    let config = Arc::new(config);
    let started: Vec<_> = (0..reactors)
        .map(|id| {
            let config = ReactorConfig {
                id: ReactorId(id),
                core: Some(id),
                mode: PollMode::ADAPTIVE,
                clock: Clock::system(),
                seed: u64::from(id),
            };
            Reactor::start(config).unwrap()
        })
        .collect();
    let peers = Peers::new(started.iter().map(|started| started.handle.clone()).collect());
    let options = Arc::new(TransportOptions::default());
    for (index, reactor) in started.iter().enumerate() {
        let (peers, options, config) = (Arc::clone(&peers), Arc::clone(&options), Arc::clone(&config));
        reactor
            .handle
            .send(move |cx| {
                let cell = GroupCell::start(cx, &options, peers, index).unwrap();
                cell.apply(cx, &config);
                if index == 0 {
                    println!("{} at {}", config.nqn, cell.listen(addr, 1).unwrap());
                }
            })
            .unwrap();
    }
    std::thread::sleep(Duration::from_secs(seconds));
    for reactor in started {
        let stats = reactor.handle.stats();
        println!(
            "reactor {}: {} turns, {} sleeps",
            reactor.handle.id(),
            stats.turns.read(),
            stats.sleeps.read()
        );
        reactor.handle.stop();
        reactor.join.join().unwrap();
    }
}
