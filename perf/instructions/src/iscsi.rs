//! I/Os from the polled initiator of `penstock-perf` to our iSCSI target over a loopback connection, both in this thread.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use penstock_bdev::reservation::{PersistedReservations, ReservationStore, Reservations};
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_iscsi::Sessions;
use penstock_iscsi::config::{
    InitiatorGroup, IscsiOptions, LunConfig, PortalGroup, TRANSFER_BYTES_MAX, TargetConfig,
};
use penstock_iscsi::group::{Common, GroupCell, Peers};
use penstock_perf::iscsi::IscsiTarget;
use penstock_reactor::Reactor;
use penstock_reactor::clock::VirtualClock;
use penstock_scsi::{Limits, LuConfig, LuId, LuOwner, Seal};
use uuid::Uuid;

use crate::{Load, drive};

const NAME: &str = "iqn.2026-11.io.penstock:instructions";

/// Nobody reserves anything here.
#[derive(Debug)]
struct NoReservations;

impl ReservationStore for NoReservations {
    fn save(&mut self, _bdev: Uuid, _state: Option<&PersistedReservations>) -> std::io::Result<()> {
        Ok(())
    }

    fn load(&mut self, _bdev: Uuid) -> std::io::Result<Option<PersistedReservations>> {
        Ok(None)
    }
}

#[expect(clippy::disallowed_methods, reason = "no reactor's thread: it turns one by hand")]
pub(crate) fn run(
    reactor: &mut Reactor,
    hand: &VirtualClock,
    bdev: Arc<dyn Bdev>,
    load: Load,
) -> anyhow::Result<()> {
    let addr = serve(reactor, bdev)?;
    // Logging in blocks, so it has a thread of its own while this one turns the target.
    let connecting = std::thread::spawn(move || {
        let mut target = IscsiTarget::connect(&format!("{addr}/{NAME}/0"))?;
        target.open_session(load.queue_depth)
    });
    while !connecting.is_finished() {
        // Listeners are looked at now and then only: time goes on until all is set up.
        hand.advance_ns(100_000);
        reactor.turn();
        // Valgrind runs one thread at a time, and this one would keep its turn.
        std::thread::sleep(Duration::from_micros(100));
    }
    let Ok(connected) = connecting.join() else { bail!("the connecting thread panicked") };
    drive(&mut connected?, load, || {
        reactor.turn();
    })
}

/// Exports `bdev` on the reactor; returns where. Nobody answers requests to the owner: reads and writes make none.
fn serve(reactor: &Reactor, bdev: Arc<dyn Bdev>) -> anyhow::Result<SocketAddr> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let common = Common {
        options: Arc::new(IscsiOptions::default()),
        peers: Peers::new(vec![reactor.cx().handle()]),
        sessions: Arc::new(Sessions::default()),
        control: Arc::new(|_| ()),
        seal: Seal::new([1; 16]),
    };
    let mut lu = LuConfig::new(LuId(1), Descriptor::unregistered(bdev, OpenMode::ReadWrite), NAME);
    lu.limits = Limits { transfer_bytes_max: TRANSFER_BYTES_MAX, ..Limits::default() };
    let reservations = Rc::new(RefCell::new(Reservations::default()));
    let owner = LuOwner::new(Arc::new(lu), reservations, Rc::new(RefCell::new(NoReservations)));
    let portals = PortalGroup { tag: 1, portals: vec![addr], private: false };
    let maps = vec![(portals, InitiatorGroup::any(1))];
    let cell = GroupCell::start(reactor.cx(), common, 0)?;
    cell.apply_lu(reactor.cx(), owner.view(), &[], Box::new(|| ()));
    cell.apply(&Arc::new(TargetConfig::new(NAME.parse()?, maps, vec![LunConfig::new(0, LuId(1))])));
    Ok(cell.listen(addr, 1)?)
}
