//! Devices that come: every NVMe function that vfio-pci is given is attached by itself, where that is asked for.
//!
//! Invariants: a function that was detached, or did not come up, is left alone until it has left vfio-pci once; a
//! controller that came by itself is in no saved configuration, as it may not be there next time.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::controllers::{NvmeControllers, PcieAttach};
use crate::pci::{CLASS_NVME, PciAddress, PciFunction};
use crate::vfio::IommuMode;

/// Between two looks, where nothing is said.
pub const PERIOD_DEFAULT: Duration = Duration::from_millis(100);
/// The longest period.
pub const PERIOD_MAX: Duration = Duration::from_secs(10);
/// Names of what comes begin so, as SPDK's do; a number follows.
pub const NAME_PREFIX: &str = "HotInNvme";

/// What is known of devices that come.
#[derive(Debug, Default)]
pub(crate) struct Hotplug {
    /// Between two looks; `None`: nobody looks.
    period: Option<Duration>,
    /// Somebody is looking.
    watched: bool,
    left_alone: BTreeSet<PciAddress>,
    /// Names of those that came by themselves.
    names: BTreeSet<String>,
}

impl Hotplug {
    /// Whether that controller came by itself.
    pub(crate) fn brought(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// A controller was detached.
    pub(crate) fn forget(&mut self, name: &str, address: &str) {
        self.names.remove(name);
        self.left_alone.extend(address.parse::<PciAddress>());
    }
}

impl NvmeControllers {
    /// How often is looked for devices; `None`: never.
    #[must_use]
    pub fn hotplug_period(&self) -> Option<Duration> {
        self.hotplug().borrow().period
    }

    /// Sets it, and takes what is there already. From then on [`NvmeControllers::watch_devices`] is to run where `true`
    /// is returned.
    pub async fn set_hotplug(&self, period: Option<Duration>) -> bool {
        let start = {
            let mut hotplug = self.hotplug().borrow_mut();
            hotplug.period = period.map(|period| period.min(PERIOD_MAX));
            let start = period.is_some() && !hotplug.watched;
            hotplug.watched |= start;
            start
        };
        if start {
            self.attach_new_devices().await;
        }
        start
    }

    /// Looks for devices until it is switched off. `sleep` waits on the control thread.
    pub async fn watch_devices<F: Future<Output = ()>>(self, sleep: impl Fn(Duration) -> F) {
        while let Some(period) = self.hotplug_period() {
            sleep(period).await;
            if self.hotplug_period().is_some() {
                self.attach_new_devices().await;
            }
        }
        self.hotplug().borrow_mut().watched = false;
    }

    async fn attach_new_devices(&self) {
        let there = functions_of_vfio();
        self.hotplug().borrow_mut().left_alone.retain(|address| there.contains(address));
        for address in there {
            if self.has_address(&address.to_string()) || self.hotplug().borrow().left_alone.contains(&address)
            {
                continue;
            }
            let is_free = |name: &String| self.find(name).is_err();
            let mut names = (0_u32..).map(|number| format!("{NAME_PREFIX}{number}"));
            let Some(name) = names.find(is_free) else { return };
            // Before it is attached: its bdevs may be saved as soon as they are there.
            self.hotplug().borrow_mut().names.insert(name.clone());
            let params = PcieAttach {
                name: name.clone(),
                traddr: address.to_string(),
                num_io_queues: None,
                iommu: IommuMode::Auto,
            };
            if let Err(error) = self.attach_pcie(params).await {
                tracing::warn!(%address, %error, "an NVMe device came and cannot be attached");
                self.hotplug().borrow_mut().forget(&name, &address.to_string());
            }
        }
    }
}

/// NVMe functions that vfio-pci has.
fn functions_of_vfio() -> Vec<PciAddress> {
    let Ok(entries) = fs::read_dir("/sys/bus/pci/drivers/vfio-pci") else { return Vec::new() };
    let addresses = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_nvme = |address: &PciAddress| {
        PciFunction::find(*address).and_then(|function| function.class()) == Some(CLASS_NVME)
    };
    let mut found: Vec<PciAddress> = addresses.filter(is_nvme).collect();
    found.sort_unstable();
    found
}
