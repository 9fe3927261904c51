//! A namespace as a bdev.

use std::sync::Arc;

use penstock_bdev::{Bdev, BdevError, Channel, Shared, SharedConfig};
use penstock_reactor::Cx;
use serde_json::{Value, json};

use crate::admin::Namespace;
use crate::controller::Controller;
use crate::queue::NsParams;

/// A namespace of a controller.
#[derive(Debug)]
pub struct NvmeBdev {
    shared: Arc<Shared>,
    controller: Arc<Controller>,
    params: NsParams,
}

impl NvmeBdev {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "NVMe disk";

    /// The bdev of a namespace, named by its controller.
    ///
    /// # Errors
    /// As [`Shared::new`].
    pub fn new(controller: Arc<Controller>, ns: &Namespace) -> Result<Arc<Self>, BdevError> {
        let shared = Shared::new(SharedConfig {
            name: Self::name_of(controller.name(), ns.nsid),
            product: Self::PRODUCT,
            uuid: ns.uuid,
            block_bytes: ns.block_bytes,
            physical_block_bytes: ns.physical_block_bytes,
            blocks: ns.blocks,
            caps: ns.caps,
        })?;
        Ok(Arc::new(Self { shared, controller, params: ns.params }))
    }

    /// The name of a namespace's bdev.
    #[must_use]
    pub fn name_of(controller: &str, nsid: u32) -> String {
        format!("{controller}n{nsid}")
    }

    /// Its controller.
    #[must_use]
    pub fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }
}

impl Bdev for NvmeBdev {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        self.controller.open(cx, self.params, self.shared.name())
    }

    fn driver_specific(&self) -> Value {
        let report = self.controller.report();
        let identity = report.identity;
        json!({ "nvme": [{
            "controller": self.controller.name(),
            "pci_address": self.controller.address(),
            "trid": { "trtype": "PCIe", "traddr": self.controller.address() },
            "ctrlr_data": {
                "cntlid": identity.cntlid,
                "vendor_id": identity.vendor_id,
                "model_number": identity.model_number,
                "serial_number": identity.serial_number,
                "firmware_revision": identity.firmware_revision,
                "subnqn": identity.subnqn,
            },
            "vs": { "nvme_version": identity.version },
            "ns_data": { "id": self.params.nsid },
            "state": report.state.name(),
        }] })
    }

    fn config(&self) -> (&'static str, Value) {
        // It comes with its controller.
        ("", Value::Null)
    }

    fn health(&self) -> Option<Value> {
        self.controller.health().and_then(|health| serde_json::to_value(health).ok())
    }

    fn resize(&self, blocks: Option<u64>) -> Result<u64, BdevError> {
        let name = self.shared.name().to_owned();
        if blocks.is_some() {
            return Err(BdevError::Unsupported {
                name,
                product: Self::PRODUCT,
                what: "resizing this device",
            });
        }
        Ok(self.controller.namespace(self.params.nsid).map_or_else(|| self.shared.blocks(), |ns| ns.blocks))
    }
}
