//! A remote subsystem as the daemon has it, by one or several paths; and its namespaces as bdevs.

use std::sync::Arc;

use penstock_bdev::{Bdev, BdevError, Channel, Shared, SharedConfig};
use penstock_reactor::Cx;
use penstock_spec::nvmf::Nqn;
use serde_json::{Value, json};

use super::hub;
use super::report::{PathCondition, PathReport};
use super::seat::SeatRules;
use crate::admin::{Namespace, Refusal};
use crate::bdev::NvmeBdev;
use crate::queue::NsParams;

#[expect(clippy::disallowed_types, reason = "control side only: copied out and in")]
type Lock<T> = std::sync::Mutex<T>;

/// What the control side, the paths' threads and the bdevs share of one remote subsystem.
#[derive(Debug)]
pub struct DiskShared {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) subnqn: Nqn,
    pub(super) hostnqn: Nqn,
    pub(super) hostid: [u8; 16],
    pub(super) rules: SeatRules,
    /// By number, in the order in which they were attached.
    paths: Lock<Vec<(u32, PathReport)>>,
}

impl DiskShared {
    pub(super) fn new(
        id: u64,
        name: String,
        (subnqn, hostnqn, hostid): (Nqn, Nqn, [u8; 16]),
        rules: SeatRules,
    ) -> Arc<Self> {
        Arc::new(Self { id, name, subnqn, hostnqn, hostid, rules, paths: Lock::default() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The subsystem.
    #[must_use]
    pub fn subnqn(&self) -> Nqn {
        self.subnqn
    }

    /// Who we are there.
    #[must_use]
    pub fn hostnqn(&self) -> Nqn {
        self.hostnqn
    }

    /// What is known of each path now.
    #[must_use]
    pub fn reports(&self) -> Vec<(u32, PathReport)> {
        self.lock().clone()
    }

    pub(super) fn add_path(&self, number: u32, report: PathReport) {
        self.lock().push((number, report));
    }

    pub(super) fn remove_path(&self, number: u32) {
        self.lock().retain(|(other, _)| *other != number);
    }

    pub(super) fn report(&self, number: u32) -> Option<PathReport> {
        self.lock().iter().find(|(other, _)| *other == number).map(|(_, report)| report.clone())
    }

    pub(super) fn with_report(&self, number: u32, change: impl FnOnce(&mut PathReport)) {
        if let Some((_, report)) = self.lock().iter_mut().find(|(other, _)| *other == number) {
            change(report);
        }
    }

    /// Why a namespace that path `number` found is not the one that the other paths have.
    pub(super) fn objection(&self, number: u32, ns: &Namespace) -> Option<Refusal> {
        let paths = self.lock();
        let others = paths
            .iter()
            .filter(|(other, report)| *other != number && report.condition == PathCondition::Live);
        let theirs = others
            .flat_map(|(_, report)| &report.namespaces)
            .filter(|(nsid, _)| *nsid == ns.nsid)
            .find_map(|(_, other)| other.as_ref().ok())?;
        let look = |ns: &Namespace| format!("{} with blocks of {} bytes", ns.uuid, ns.block_bytes);
        let same = (ns.uuid, ns.block_bytes, ns.caps) == (theirs.uuid, theirs.block_bytes, theirs.caps);
        (!same).then(|| Refusal::Differs { there: look(theirs), here: look(ns) })
    }

    /// All namespaces that are block devices by some path, in order; what the first live path says of each counts.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        let paths = self.lock();
        let mut all: Vec<Namespace> = Vec::new();
        for live in [true, false] {
            let of_kind = paths.iter().filter(|(_, report)| {
                (report.condition == PathCondition::Live) == live && report.condition != PathCondition::Gone
            });
            for ns in
                of_kind.flat_map(|(_, report)| &report.namespaces).filter_map(|(_, ns)| ns.as_ref().ok())
            {
                if all.iter().all(|other| other.nsid != ns.nsid) {
                    all.push(ns.clone());
                }
            }
        }
        all.sort_by_key(|ns| ns.nsid);
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u32, PathReport)>> {
        self.paths.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A namespace of a remote subsystem.
#[derive(Debug)]
pub struct RemoteBdev {
    shared: Arc<Shared>,
    disk: Arc<DiskShared>,
    params: NsParams,
}

impl RemoteBdev {
    /// The bdev of a namespace, named by its controller.
    ///
    /// # Errors
    /// As [`Shared::new`].
    pub(super) fn new(disk: Arc<DiskShared>, ns: &Namespace) -> Result<Arc<Self>, BdevError> {
        let shared = Shared::new(SharedConfig {
            name: NvmeBdev::name_of(&disk.name, ns.nsid),
            product: NvmeBdev::PRODUCT,
            uuid: ns.uuid,
            block_bytes: ns.block_bytes,
            physical_block_bytes: ns.physical_block_bytes,
            blocks: ns.blocks,
            caps: ns.caps,
        })?;
        Ok(Arc::new(Self { shared, disk, params: ns.params }))
    }

    /// Its subsystem.
    #[must_use]
    pub fn disk(&self) -> &Arc<DiskShared> {
        &self.disk
    }

    /// Its number there.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.params.nsid
    }
}

/// An address as SPDK's methods name it.
#[must_use]
pub fn trid(address: std::net::SocketAddr, subnqn: Nqn) -> Value {
    json!({
        "trtype": "TCP",
        "adrfam": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
        "subnqn": subnqn.as_str(),
    })
}

impl Bdev for RemoteBdev {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        hub::open(cx, self.disk.id, self.params, self.shared.name())
    }

    fn driver_specific(&self) -> Value {
        let path = |(_, report): (u32, PathReport)| {
            let state = report.states.iter().find(|ns| ns.nsid == self.params.nsid);
            let identity = report.identity;
            let address = report.addresses.first().copied();
            json!({
                "controller": self.disk.name,
                "trid": address.map(|address| trid(address, self.disk.subnqn)),
                "ctrlr_data": identity.as_ref().map(|identity| json!({
                    "cntlid": identity.cntlid,
                    "vendor_id": identity.vendor_id,
                    "model_number": identity.model_number,
                    "serial_number": identity.serial_number,
                    "firmware_revision": identity.firmware_revision,
                    "subnqn": identity.subnqn,
                })),
                "vs": { "nvme_version": identity.map(|identity| identity.version) },
                "ns_data": {
                    "id": self.params.nsid,
                    "ana_state": state.map(|ns| ana_name(ns.ana)),
                },
                "state": report.condition.name(),
            })
        };
        let paths: Vec<Value> = self.disk.reports().into_iter().map(path).collect();
        json!({ "nvme": paths })
    }

    fn config(&self) -> (&'static str, Value) {
        // It comes with its controller.
        ("", Value::Null)
    }

    fn resize(&self, blocks: Option<u64>) -> Result<u64, BdevError> {
        let name = self.shared.name().to_owned();
        if blocks.is_some() {
            return Err(BdevError::Unsupported {
                name,
                product: NvmeBdev::PRODUCT,
                what: "resizing this device",
            });
        }
        let namespaces = self.disk.namespaces();
        let ns = namespaces.iter().find(|ns| ns.nsid == self.params.nsid);
        Ok(ns.map_or_else(|| self.shared.blocks(), |ns| ns.blocks))
    }
}

/// A state as SPDK names it.
#[must_use]
pub(super) fn ana_name(state: penstock_spec::nvme::log::ana::AnaState) -> &'static str {
    use penstock_spec::nvme::log::ana::AnaState;
    match state {
        AnaState::OPTIMIZED => "optimized",
        AnaState::NON_OPTIMIZED => "non_optimized",
        AnaState::INACCESSIBLE => "inaccessible",
        AnaState::PERSISTENT_LOSS => "persistent_loss",
        AnaState::CHANGE => "change",
        _ => "unknown",
    }
}
