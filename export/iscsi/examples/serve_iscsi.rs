//! Serves a malloc (or null, or uring) bdev over iSCSI, without the daemon.
//!
//! `cargo run --release -p penstock-iscsi --example serve_iscsi -- 127.0.0.1:3260 [malloc|null] [MIB] [REACTORS] [SECONDS]`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::too_many_lines,
    reason = "an example"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::null::Null;
use penstock_bdev::reservation::{PersistedReservations, ReservationStore, Reservations};
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_iscsi::Sessions;
use penstock_iscsi::config::{
    InitiatorGroup, IscsiOptions, LunConfig, PortalGroup, TRANSFER_BYTES_MAX, TargetConfig,
};
use penstock_iscsi::group::{Common, GroupCell, Peers};
use penstock_iscsi::host::LuHost;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId};
use penstock_scsi::{Limits, LuConfig, LuId, LuOwner, Seal};
use uuid::Uuid;

/// Reservations that survive until the process ends.
#[derive(Debug, Default)]
struct InMemory(BTreeMap<Uuid, PersistedReservations>);

impl ReservationStore for InMemory {
    fn save(&mut self, bdev: Uuid, state: Option<&PersistedReservations>) -> std::io::Result<()> {
        match state {
            Some(state) => self.0.insert(bdev, state.clone()),
            None => self.0.remove(&bdev),
        };
        Ok(())
    }

    fn load(&mut self, bdev: Uuid) -> std::io::Result<Option<PersistedReservations>> {
        Ok(self.0.get(&bdev).cloned())
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |at: usize, default: &str| args.get(at).cloned().unwrap_or_else(|| default.to_owned());
    let addr: SocketAddr = arg(1, "127.0.0.1:3260").parse().unwrap();
    let mib: u64 = arg(3, "256").parse().unwrap();
    let reactors: u32 = arg(4, "1").parse().unwrap();
    let seconds: u64 = arg(5, "60").parse().unwrap();
    let uuid = Uuid::from_u128(0x0001_0002_0003_4004_8005_0006_0007_0008);
    let bdev: Arc<dyn Bdev> = if arg(2, "malloc") == "null" {
        Null::new("Null0", uuid, mib << 11, 512).unwrap()
    } else {
        let options =
            format!(r#"{{"name":"Malloc0","uuid":"{uuid}","num_blocks":{},"block_size":512}}"#, mib << 11);
        let options: MallocOptions = serde_json::from_str(&options).unwrap();
        Malloc::new("Malloc0", &options).unwrap()
    };
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
    let (requests, incoming) = mpsc::channel();
    let common = Common {
        options: Arc::new(IscsiOptions::default()),
        peers: Arc::clone(&peers),
        sessions: Arc::new(Sessions::default()),
        control: Arc::new(move |request| requests.send(request).unwrap()),
        seal: Seal::new(Uuid::new_v4().into_bytes()),
    };
    let name = "iqn.2026-11.io.penstock:serve";
    let mut lu = LuConfig::new(LuId(1), Descriptor::unregistered(bdev, OpenMode::ReadWrite), name);
    lu.limits = Limits { transfer_bytes_max: TRANSFER_BYTES_MAX, ..Limits::default() };
    let owner = LuOwner::new(
        Arc::new(lu),
        Rc::new(RefCell::new(Reservations::default())),
        Rc::new(RefCell::new(InMemory::default())),
    );
    let portals = PortalGroup { tag: 1, portals: vec![addr], private: false };
    let maps = vec![(portals, InitiatorGroup::any(1))];
    let luns = vec![LunConfig::new(0, LuId(1))];
    let target = Arc::new(TargetConfig::new(name.parse().unwrap(), maps, luns));
    for (index, reactor) in started.iter().enumerate() {
        let common = common.clone();
        reactor.handle.send(move |cx| drop(GroupCell::start(cx, common, index).unwrap())).unwrap();
    }
    let mut host = LuHost::new(peers);
    host.add(owner);
    for (index, reactor) in started.iter().enumerate() {
        let target = Arc::clone(&target);
        reactor
            .handle
            .send(move |cx| {
                let cell = GroupCell::of(cx).unwrap();
                cell.apply(&target);
                if index == 0 {
                    println!("iscsi://{}/{}/0", cell.listen(addr, 1).unwrap(), target.name);
                }
            })
            .unwrap();
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    while let Ok(request) = incoming.recv_timeout(end.saturating_duration_since(Instant::now())) {
        if let Some(changed) = host.handle(&request) {
            futures_executor::block_on(changed.answer);
        }
    }
    for reactor in started {
        reactor.handle.stop();
        reactor.join.join().unwrap();
    }
}
