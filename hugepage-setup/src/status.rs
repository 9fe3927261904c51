//! How it is now, and what would help.

use serde::Serialize;

use crate::device::{Device, devices};
use crate::pages;
use crate::root::Root;

/// Hugepages of one size on one node.
#[derive(Debug, Serialize)]
pub(crate) struct Pages {
    node: u32,
    size_kib: u64,
    total: u64,
    free: u64,
}

/// The whole.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    hugepages: Vec<Pages>,
    memlock: String,
    iommu: bool,
    vfio: bool,
    devices: Vec<Device>,
    advice: Vec<String>,
}

pub(crate) fn read(root: &Root) -> Status {
    let mut hugepages = Vec::new();
    for node in pages::nodes(root) {
        for size_kib in [2048, 1_048_576] {
            let file = pages::file(node, size_kib);
            let free = root.number(&file.replace("/nr_", "/free_"));
            if let (Some(total), Some(free)) = (root.number(&file), free) {
                hugepages.push(Pages { node, size_kib, total, free });
            }
        }
    }
    Status {
        hugepages,
        memlock: memlock(root),
        iommu: has_iommu(root),
        vfio: root.exists("/sys/bus/pci/drivers/vfio-pci"),
        devices: devices(root),
        advice: advice(root),
    }
}

fn has_iommu(root: &Root) -> bool {
    !root.list("/sys/kernel/iommu_groups").is_empty()
}

/// The limit of locked memory, as the kernel says it: a number of bytes or "unlimited".
fn memlock(root: &Root) -> String {
    let limits = root.text("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    line.and_then(|rest| rest.split_whitespace().next()).unwrap_or("unknown").to_owned()
}

/// What would help, in sentences.
pub(crate) fn advice(root: &Root) -> Vec<String> {
    let mut advice = Vec::new();
    if !has_iommu(root) {
        advice.push(
            "no IOMMU is in use: switch it on in the firmware, and boot with intel_iommu=on or amd_iommu=on"
                .to_owned(),
        );
    }
    let limit = memlock(root);
    if limit.parse::<u64>().is_ok_and(|bytes| bytes < 1 << 30) {
        advice.push(format!(
            "locked memory is limited to {limit} bytes here; memory for devices is locked: LimitMEMLOCK=infinity in the service's unit, or ulimit -l unlimited"
        ));
    }
    let line = root.text("/proc/cmdline").unwrap_or_default();
    if !line.contains("isolcpus=") && !line.contains("nohz_full=") {
        advice.push(
            "no cores are kept free for reactors: for steady latency boot with isolcpus=LIST nohz_full=LIST rcu_nocbs=LIST and irqaffinity=THE-OTHERS, where LIST is what penstockd --cores gets".to_owned(),
        );
    }
    advice
}

impl Status {
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for pages in &self.hugepages {
            let Pages { node, size_kib, total, free } = pages;
            text += &format!("node {node}: {total} hugepages of {} MiB, {free} free\n", size_kib / 1024);
        }
        let yes = |is: bool| if is { "yes" } else { "no" };
        text += &format!(
            "locked memory: {}\nIOMMU: {}\nvfio-pci: {}\n",
            self.memlock,
            yes(self.iommu),
            yes(self.vfio)
        );
        for device in &self.devices {
            text += &format!(
                "{} {} {} group {} driver {} disks {}\n",
                device.address,
                device.model.as_deref().unwrap_or("-"),
                device.serial.as_deref().unwrap_or("-"),
                device.iommu_group.as_deref().unwrap_or("-"),
                device.driver.as_deref().unwrap_or("-"),
                if device.disks.is_empty() { "-".to_owned() } else { device.disks.join(",") },
            );
            for reason in &device.in_use {
                text += &format!("  in use: {reason}\n");
            }
        }
        for advice in &self.advice {
            text += &format!("advice: {advice}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::tree;

    #[test]
    fn a_bare_machine_gets_all_the_advice_and_a_prepared_one_none() {
        let limits = "Max locked memory         8388608              8388608              bytes\n";
        let bare = tree("bare", &[("proc/self/limits", limits), ("proc/cmdline", "quiet\n")]);
        let found = advice(&bare);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[1].contains("8388608"));
        let ready = tree(
            "ready",
            &[
                (
                    "proc/self/limits",
                    "Max locked memory         unlimited            unlimited            bytes\n",
                ),
                ("proc/cmdline", "isolcpus=2-3\n"),
                ("sys/kernel/iommu_groups/0/type", "DMA\n"),
            ],
        );
        assert!(advice(&ready).is_empty());
        let status = read(&ready);
        assert!(status.text().contains("IOMMU: yes"));
    }
}
