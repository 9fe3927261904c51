//! A namespace of an NVMe controller that this process drives itself, by VFIO.

use std::sync::Arc;

use anyhow::Context as _;
use futures_executor::block_on;
use penstock_bdev::{Descriptor, OpenMode};
use penstock_nvme::bdev::NvmeBdev;
use penstock_nvme::controller::{Controller, ControllerConfig, attach};
use penstock_nvme::device::Device;
use penstock_nvme::options::NvmeOptions;
use penstock_nvme::pci::PciAddress;
use penstock_nvme::vfio::{IommuMode, VfioDevice};
use penstock_reactor::{Clock, ReactorHandle};

/// The controller and one of its namespaces.
#[derive(Debug)]
pub struct PcieTarget {
    descriptor: Descriptor,
    controller: Arc<Controller>,
}

impl PcieTarget {
    /// Attaches the controller of `ADDRESS[?nsid=N]`, with a queue pair for each of the reactors.
    ///
    /// # Errors
    /// When vfio-pci has no such device, it does not come up, or its namespace cannot be a bdev.
    pub fn attach(rest: &str, reactors: &[ReactorHandle]) -> anyhow::Result<Self> {
        let usage = "a target is pcie:ADDRESS[?nsid=N], as in pcie:0000:5e:00.0";
        let (address, nsid) = match rest.split_once("?nsid=") {
            Some((address, nsid)) => (address, nsid.parse().context(usage)?),
            None => (rest, 1),
        };
        let address: PciAddress = address.parse().context(usage)?;
        let config = ControllerConfig {
            name: "nvme0".to_owned(),
            address: address.to_string(),
            reactors: reactors.to_vec(),
            clock: Clock::system(),
            options: NvmeOptions::default(),
            io_queues_max: None,
        };
        let open = move || {
            VfioDevice::open(address, IommuMode::Auto).map(|device| Box::new(device) as Box<dyn Device>)
        };
        let controller = block_on(attach(config, open, Box::new(|_| {})))?;
        let report = controller.report();
        let found = report.namespaces.iter().find(|(other, _)| *other == nsid);
        let (_, namespace) = found.with_context(|| format!("{address} has no active namespace {nsid}"))?;
        let namespace =
            namespace.as_ref().map_err(|refusal| anyhow::anyhow!("namespace {nsid}: {refusal}"))?;
        let bdev = NvmeBdev::new(Arc::clone(&controller), namespace)?;
        Ok(Self { descriptor: Descriptor::unregistered(bdev, OpenMode::ReadWrite), controller })
    }

    /// The namespace, to open channels on.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Shuts the controller down and gives the device back. Nobody may have a channel any more.
    pub fn detach(self) {
        drop(self.descriptor);
        block_on(self.controller.detach());
    }
}
