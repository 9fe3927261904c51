//! PCI addresses, and what the kernel says of a function in /sys/bus/pci.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Mass storage, non-volatile memory, NVMe I/O controller (PCI class code).
pub const CLASS_NVME: u32 = 0x01_0802;

/// A PCI function: domain, bus, device, function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

/// A text that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address; write it as 0000:5e:00.0")]
pub struct BadAddress(pub String);

impl FromStr for PciAddress {
    type Err = BadAddress;

    /// `DDDD:BB:DD.F`, the domain may be left out; SPDK's `DDDD.BB.DD.F` too.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let parts: Vec<&str> = text.split([':', '.']).collect();
        let number = |part: &str, max: u32| {
            let digits =
                !part.is_empty() && part.len() <= 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(part, 16).ok().filter(|number| digits && *number <= max).ok_or_else(bad)
        };
        let (domain, rest) = match parts.as_slice() {
            [domain, rest @ ..] if rest.len() == 3 => (number(domain, u32::MAX)?, rest),
            rest => (0, rest),
        };
        let [bus, device, function] = rest else { return Err(bad()) };
        let byte = |number: u32| u8::try_from(number).map_err(|_| bad());
        Ok(Self {
            domain,
            bus: byte(number(bus, 0xff)?)?,
            device: byte(number(device, 31)?)?,
            function: byte(number(function, 7)?)?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

/// What the kernel says of a function.
#[derive(Debug, Clone)]
pub struct PciFunction {
    dir: PathBuf,
}

impl PciFunction {
    /// The function at `address`; `None` where there is none.
    #[must_use]
    pub fn find(address: PciAddress) -> Option<Self> {
        let dir = Path::new("/sys/bus/pci/devices").join(address.to_string());
        dir.is_dir().then_some(Self { dir })
    }

    /// Its class code.
    #[must_use]
    pub fn class(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("class")).ok()?;
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    }

    /// The name of the driver that has it.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        link_name(&self.dir.join("driver"))
    }

    /// Its IOMMU group.
    #[must_use]
    pub fn iommu_group(&self) -> Option<String> {
        link_name(&self.dir.join("iommu_group"))
    }

    /// Its character device of VFIO, where the kernel has such.
    #[must_use]
    pub fn vfio_device(&self) -> Option<PathBuf> {
        let entry = fs::read_dir(self.dir.join("vfio-dev")).ok()?.next()?.ok()?;
        Some(Path::new("/dev/vfio/devices").join(entry.file_name()))
    }

    /// Its NUMA node.
    #[must_use]
    pub fn numa_node(&self) -> Option<usize> {
        fs::read_to_string(self.dir.join("numa_node")).ok()?.trim().parse().ok()
    }
}

fn link_name(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name().map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_usual_form_and_written_in_one() {
        for text in ["0000:5e:00.1", "5e:00.1", "0000.5e.00.1", "0:5E:0.1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), "0000:5e:00.1", "{text}");
        }
        for text in
            ["", "5e", "5e:00", "5e:20.0", "5e:00.8", "100:00.0", "0000:5e:00.1.2", "zz:00.0", "+1:00.0"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
