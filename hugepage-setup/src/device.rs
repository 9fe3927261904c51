//! NVMe devices: which there are, who uses them, and how they change drivers.
//!
//! A device is only taken from its driver when nothing on any of its namespaces is in use: no file system mounted from the
//! disk or a partition of it, no swap, nothing built on it (LVM, RAID, dm-crypt), nobody who has it open exclusively. What
//! cannot be looked at counts as in use.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::Serialize;

use crate::Plan;
use crate::act::Step;
use crate::root::{Root, SetupError};

const PCI: &str = "/sys/bus/pci/devices";
const NVME_CLASS: &str = "0x010802";
/// PCI bridges do not count in a group: they need no driver change.
const BRIDGE_CLASS: &str = "0x0604";
const VFIO: &str = "vfio-pci";

/// How a device is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    Address(String),
    Serial(String),
    AllNvme,
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(serial) = text.strip_prefix("serial:").filter(|serial| !serial.is_empty()) {
            return Ok(Self::Serial(serial.to_owned()));
        }
        if text == "class:nvme" {
            return Ok(Self::AllNvme);
        }
        let full = if text.matches(':').count() == 1 { format!("0000:{text}") } else { text.to_owned() };
        let parts: Vec<&str> = full.split([':', '.']).collect();
        let hex =
            |part: &&str, len: usize| part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let [domain, bus, device, function] = parts.as_slice() else { return Err(bad(text)) };
        if hex(domain, 4) && hex(bus, 2) && hex(device, 2) && hex(function, 1) {
            return Ok(Self::Address(full.to_ascii_lowercase()));
        }
        Err(bad(text))
    }
}

fn bad(text: &str) -> String {
    format!("{text:?} is no device: name it by PCI address (0000:5e:00.0), serial:SERIAL or class:nvme")
}

/// An NVMe function.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Device {
    pub(crate) address: String,
    pub(crate) driver: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) numa_node: Option<i64>,
    pub(crate) iommu_group: Option<String>,
    /// Its block devices.
    pub(crate) disks: Vec<String>,
    /// Why it must stay where it is.
    pub(crate) in_use: Vec<String>,
}

/// All NVMe functions.
pub(crate) fn devices(root: &Root) -> Vec<Device> {
    let all = root.list(PCI);
    let is_nvme =
        |address: &String| root.text(&format!("{PCI}/{address}/class")).as_deref() == Some(NVME_CLASS);
    all.into_iter().filter(is_nvme).map(|address| look(root, address)).collect()
}

fn look(root: &Root, address: String) -> Device {
    let dir = format!("{PCI}/{address}");
    let controllers = root.list(&format!("{dir}/nvme"));
    let of =
        |file: &str| controllers.first().and_then(|name| root.text(&format!("{dir}/nvme/{name}/{file}")));
    let mut disks = BTreeSet::new();
    let mut in_use = Vec::new();
    for name in &controllers {
        disks.extend(namespaces(root, &format!("{dir}/nvme/{name}"), name));
    }
    for disk in &disks {
        in_use.extend(uses(root, disk));
    }
    Device {
        driver: root.link(&format!("{dir}/driver")),
        serial: of("serial"),
        model: of("model"),
        numa_node: root.text(&format!("{dir}/numa_node")).and_then(|text| text.parse().ok()),
        iommu_group: root.link(&format!("{dir}/iommu_group")),
        disks: disks.into_iter().collect(),
        in_use,
        address,
    }
}

/// The block devices of a controller: its own, or, with native multipath, those of its subsystem.
fn namespaces(root: &Root, dir: &str, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in root.list(dir) {
        let Some(rest) = entry.strip_prefix(name) else { continue };
        if rest.starts_with('n') {
            found.push(entry);
        } else if let Some((_, ns)) = rest.strip_prefix('c').and_then(|rest| rest.split_once('n')) {
            // nvme0c1n2 is a path to nvmeXn2, where X is the subsystem's number: any disk of that subsystem counts.
            for subsystem in root.list("/sys/class/nvme-subsystem") {
                let place = format!("/sys/class/nvme-subsystem/{subsystem}");
                if root.exists(&format!("{place}/{name}")) {
                    let disks = root.list(&place).into_iter();
                    found.extend(disks.filter(|disk| {
                        disk.starts_with("nvme") && disk.ends_with(&format!("n{ns}")) && !disk.contains('c')
                    }));
                }
            }
        }
    }
    found
}

/// Who uses a disk, or a partition of it.
fn uses(root: &Root, disk: &str) -> Vec<String> {
    let dir = format!("/sys/block/{disk}");
    if !root.exists(&dir) {
        return vec![format!("{disk} cannot be looked at ({dir} is missing)")];
    }
    let mut parts = vec![(disk.to_owned(), dir.clone())];
    let partitions = root.list(&dir).into_iter().filter(|name| name.starts_with(disk));
    parts.extend(partitions.map(|name| (name.clone(), format!("{dir}/{name}"))));
    let mounts = root.text("/proc/self/mountinfo").unwrap_or_default();
    let swaps = root.text("/proc/swaps").unwrap_or_default();
    let mut found = Vec::new();
    for (name, dir) in parts {
        let number = root.text(&format!("{dir}/dev")).unwrap_or_default();
        for line in mounts.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
            let is_it = words.get(2) == Some(&number.as_str()) || source == Some(&format!("/dev/{name}"));
            if is_it && !number.is_empty() {
                found.push(format!("{name} is mounted on {}", words.get(4).unwrap_or(&"?")));
            }
        }
        if swaps.lines().any(|line| line.split_whitespace().next() == Some(&format!("/dev/{name}"))) {
            found.push(format!("{name} is swap"));
        }
        for holder in root.list(&format!("{dir}/holders")) {
            let dm = root.text(&format!("/sys/block/{holder}/dm/name"));
            found.push(format!("{name} is held by {} (LVM, RAID, encryption)", dm.unwrap_or(holder)));
        }
        if found.is_empty() && root.is_real() {
            found.extend(is_open_elsewhere(&name));
        }
    }
    found
}

/// Exclusive use that leaves no other trace (a file system with several disks, another program).
fn is_open_elsewhere(name: &str) -> Option<String> {
    use rustix::fs::{Mode, OFlags, open};
    let path = format!("/dev/{name}");
    match open(&path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => None,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOMEDIUM) => None,
        Err(errno) => Some(format!("{name} cannot be opened exclusively ({errno}): somebody uses it")),
    }
}

fn select(root: &Root, selectors: &[Selector]) -> Result<Vec<(Device, bool)>, SetupError> {
    let all = devices(root);
    let mut chosen: Vec<(Device, bool)> = Vec::new();
    for selector in selectors {
        let (found, by_class): (Vec<&Device>, bool) = match selector {
            Selector::Address(address) => {
                (all.iter().filter(|device| device.address == *address).collect(), false)
            }
            Selector::Serial(serial) => {
                (all.iter().filter(|device| device.serial.as_deref() == Some(serial)).collect(), false)
            }
            Selector::AllNvme => (all.iter().collect(), true),
        };
        if found.is_empty() && !by_class {
            return Err(SetupError::Wish(format!("there is no NVMe device {selector:?}; status lists them")));
        }
        for device in found {
            if chosen.iter().all(|(other, _)| other.address != device.address) {
                chosen.push((device.clone(), by_class));
            }
        }
    }
    Ok(chosen)
}

pub(crate) fn plan_bind(root: &Root, selectors: &[Selector], plan: &mut Plan) -> Result<(), SetupError> {
    let chosen = select(root, selectors)?;
    let addresses: Vec<&str> = chosen.iter().map(|(device, _)| device.address.as_str()).collect();
    let mut steps = Vec::new();
    for (device, by_class) in &chosen {
        let address = &device.address;
        if device.driver.as_deref() == Some(VFIO) {
            continue;
        }
        if !device.in_use.is_empty() {
            let reason = format!("{address} is in use: {}", device.in_use.join("; "));
            // By class, those in use are passed over; by name, that is an answer.
            if *by_class {
                plan.advice.push(reason)
            } else {
                plan.refused.push(reason)
            }
            continue;
        }
        match &device.iommu_group {
            None => {
                plan.refused.push(format!(
                    "{address} has no IOMMU group: switch the IOMMU on (firmware; intel_iommu=on or amd_iommu=on)"
                ));
                continue;
            }
            Some(group) => {
                let others = others_in_group(root, group, &addresses);
                if !others.is_empty() {
                    plan.refused.push(format!(
                        "{address} shares IOMMU group {group} with {}: all of a group must be given away together",
                        others.join(", ")
                    ));
                    continue;
                }
            }
        }
        let dir = format!("{PCI}/{address}");
        let before =
            root.text(&format!("{dir}/driver_override")).filter(|old| old != "(null)").unwrap_or_default();
        steps.push(Step::write(format!("{dir}/driver_override"), VFIO, &before));
        if device.driver.is_some() {
            steps.push(Step::write(format!("{dir}/driver/unbind"), address, ""));
        }
        steps.push(Step::write("/sys/bus/pci/drivers_probe".to_owned(), address, ""));
    }
    if !steps.is_empty() {
        for (module, sign) in
            [(VFIO, "/sys/bus/pci/drivers/vfio-pci"), ("vfio_iommu_type1", "/sys/module/vfio_iommu_type1")]
        {
            if !root.exists(sign) {
                plan.steps.push(Step::Load { module: module.to_owned() });
            }
        }
    }
    plan.steps.extend(steps);
    Ok(())
}

/// Other functions of a group that have drivers of the kernel.
fn others_in_group(root: &Root, group: &str, chosen: &[&str]) -> Vec<String> {
    let members = root.list(&format!("/sys/kernel/iommu_groups/{group}/devices"));
    let stands_in_the_way = |address: &String| {
        let class = root.text(&format!("{PCI}/{address}/class")).unwrap_or_default();
        let driver = root.link(&format!("{PCI}/{address}/driver"));
        !chosen.contains(&address.as_str())
            && !class.starts_with(BRIDGE_CLASS)
            && driver.is_some_and(|name| name != VFIO)
    };
    members.into_iter().filter(stands_in_the_way).collect()
}

pub(crate) fn plan_unbind(root: &Root, selectors: &[Selector], plan: &mut Plan) -> Result<(), SetupError> {
    for (device, _) in select(root, selectors)? {
        if device.driver.as_deref() != Some(VFIO) {
            continue;
        }
        let dir = format!("{PCI}/{}", device.address);
        plan.steps.push(Step::write(format!("{dir}/driver/unbind"), &device.address, ""));
        plan.steps.push(Step::write(format!("{dir}/driver_override"), "\n", VFIO));
        plan.steps.push(Step::write("/sys/bus/pci/drivers_probe".to_owned(), &device.address, ""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::tree;

    const A: &str = "0000:05:00.0";

    /// A machine with one NVMe device of one disk with one partition, and what a test adds.
    fn machine(name: &str, more: &[(&str, &str)]) -> Root {
        let dir = format!("sys/bus/pci/devices/{A}");
        let mut files: Vec<(String, String)> = [
            ("class", "0x010802\n"),
            ("driver", "->../../../bus/pci/drivers/nvme"),
            ("iommu_group", "->../../../kernel/iommu_groups/7"),
            ("driver_override", "(null)\n"),
            ("numa_node", "0\n"),
            ("nvme/nvme0/serial", "SER0  \n"),
            ("nvme/nvme0/nvme0n1/size", "1\n"),
        ]
        .iter()
        .map(|(file, text)| (format!("{dir}/{file}"), (*text).to_owned()))
        .collect();
        files.extend([
            ("sys/block/nvme0n1/dev".to_owned(), "259:0\n".to_owned()),
            ("sys/block/nvme0n1/nvme0n1p1/dev".to_owned(), "259:1\n".to_owned()),
            (format!("sys/kernel/iommu_groups/7/devices/{A}"), String::new()),
        ]);
        let all = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).chain(more.iter().copied());
        tree(name, &all.collect::<Vec<_>>())
    }

    fn bind(root: &Root, selector: &str) -> Plan {
        let mut plan = Plan::default();
        plan_bind(root, &[selector.parse().unwrap()], &mut plan).unwrap();
        plan
    }

    #[test]
    fn an_idle_device_is_bound_by_address_serial_or_class() {
        let root = machine("idle", &[]);
        for selector in ["0000:05:00.0", "05:00.0", "serial:SER0", "class:nvme"] {
            let plan = bind(&root, selector);
            assert!(plan.refused.is_empty(), "{:?}", plan.refused);
            let shown: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
            assert_eq!(shown.len(), 5, "{shown:?}");
            assert_eq!(shown[0], "modprobe vfio-pci");
            assert!(shown[2].contains("driver_override") && shown[3].contains("unbind"), "{shown:?}");
        }
        let unknown = plan_bind(&root, &["0000:09:00.0".parse().unwrap()], &mut Plan::default());
        assert!(unknown.is_err());
    }

    #[test]
    fn a_device_in_use_is_never_touched() {
        type Files = &'static [(&'static str, &'static str)];
        let cases: [(&str, Files, &str); 5] = [
            (
                "mounted",
                &[("proc/self/mountinfo", "25 1 259:1 / /data rw - ext4 /dev/nvme0n1p1 rw\n")],
                "mounted on /data",
            ),
            (
                "btrfs",
                &[("proc/self/mountinfo", "25 1 0:45 / /data rw - btrfs /dev/nvme0n1 rw\n")],
                "mounted on /data",
            ),
            ("swap", &[("proc/swaps", "Filename\n/dev/nvme0n1p1 partition 8 0 -2\n")], "is swap"),
            (
                "lvm",
                &[("sys/block/nvme0n1/nvme0n1p1/holders/dm-0", ""), ("sys/block/dm-0/dm/name", "vg-lv\n")],
                "vg-lv",
            ),
            ("raid", &[("sys/block/nvme0n1/holders/md127", "")], "md127"),
        ];
        for (name, more, reason) in cases {
            let root = machine(name, more);
            let plan = bind(&root, A);
            assert!(plan.steps.is_empty() && plan.refused[0].contains(reason), "{name}: {:?}", plan.refused);
            let plan = bind(&root, "class:nvme");
            assert!(
                plan.steps.is_empty() && plan.refused.is_empty() && plan.advice[0].contains(reason),
                "{name}"
            );
        }
    }

    #[test]
    fn a_disk_that_cannot_be_looked_at_counts_as_in_use() {
        let root = machine("blind", &[]);
        std::fs::remove_dir_all(root.path("/sys/block/nvme0n1")).unwrap();
        assert!(bind(&root, A).refused[0].contains("cannot be looked at"));
    }

    #[test]
    fn a_multipath_disk_of_the_subsystem_counts() {
        let root = machine(
            "multipath",
            &[
                (&format!("sys/bus/pci/devices/{A}/nvme/nvme0/nvme0c0n1/x"), ""),
                ("sys/class/nvme-subsystem/nvme-subsys3/nvme0/x", ""),
                ("sys/class/nvme-subsystem/nvme-subsys3/nvme3n1/x", ""),
                ("sys/block/nvme3n1/dev", "259:9\n"),
                ("proc/self/mountinfo", "25 1 259:9 / / rw - ext4 /dev/root rw\n"),
            ],
        );
        assert!(bind(&root, A).refused[0].contains("nvme3n1 is mounted on /"));
    }

    #[test]
    fn a_group_with_others_is_explained_and_bridges_do_not_count() {
        let other = "sys/bus/pci/devices/0000:05:00.1";
        let members: &[(&str, &str)] = &[
            ("sys/kernel/iommu_groups/7/devices/0000:05:00.1", ""),
            (&format!("{other}/class"), "0x020000\n"),
            (&format!("{other}/driver"), "->../../../bus/pci/drivers/e1000"),
        ];
        let plan = bind(&machine("group", members), A);
        assert!(plan.refused[0].contains("IOMMU group 7 with 0000:05:00.1"), "{:?}", plan.refused);
        let bridge: &[(&str, &str)] = &[members[0], (&format!("{other}/class"), "0x060400\n"), members[2]];
        assert!(bind(&machine("bridge", bridge), A).refused.is_empty());
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for text in ["", "serial:", "class:x", "0000:05:00", "05:00.0.0", "0000:zz:00.0"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
