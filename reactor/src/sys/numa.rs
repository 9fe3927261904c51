//! Which cores and devices are near which memory.
//!
//! Read from `/sys`; with the feature `hwloc`, from hwloc, which knows more kinds of machines, and from `/sys` where
//! that fails. Nodes are counted 0, 1, … here without gaps; the kernel's own numbers, which may have some, stay inside.

use std::fs;
use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::cores::parse_core_list;

/// Nodes beyond this are ignored.
pub const NUMA_NODES_MAX: usize = 64;
const SYSFS: &str = "/sys";

#[derive(Debug, Clone, PartialEq, Eq)]
struct NumaNode {
    /// The kernel's number.
    number: u32,
    cores: Vec<u32>,
}

/// The nodes of a machine: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaTopology {
    nodes: Vec<NumaNode>,
}

impl NumaTopology {
    /// This machine's, read once.
    #[must_use]
    pub fn system() -> &'static Self {
        static SYSTEM: OnceLock<NumaTopology> = OnceLock::new();
        SYSTEM.get_or_init(|| from_hwloc().unwrap_or_else(|| Self::from_sysfs(Path::new(SYSFS))))
    }

    /// As a sysfs mounted at `root` tells; one node without cores where it tells nothing.
    #[must_use]
    pub fn from_sysfs(root: &Path) -> Self {
        let node = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            // A node of memory alone has an empty list.
            let list = fs::read_to_string(entry.path().join("cpulist")).ok()?;
            Some(NumaNode { number, cores: parse_core_list(&list).unwrap_or_default() })
        };
        let entries = fs::read_dir(root.join("devices/system/node"));
        Self::new(entries.into_iter().flatten().flatten().filter_map(node).collect())
    }

    fn new(mut nodes: Vec<NumaNode>) -> Self {
        nodes.sort_by_key(|node| node.number);
        nodes.truncate(NUMA_NODES_MAX);
        if nodes.is_empty() {
            nodes.push(NumaNode { number: 0, cores: Vec::new() });
        }
        Self { nodes }
    }

    /// How many nodes there are; at least 1.
    #[must_use]
    pub fn nodes_len(&self) -> usize {
        self.nodes.len()
    }

    /// The node of a core; the first where it is not known.
    #[must_use]
    pub fn node_of_core(&self, core: u32) -> usize {
        self.nodes.iter().position(|node| node.cores.contains(&core)).unwrap_or(0)
    }

    /// The cores of a node, in order.
    #[must_use]
    pub fn cores_of_node(&self, node: usize) -> &[u32] {
        self.nodes.get(node).map_or(&[], |node| &node.cores)
    }

    /// The node that a PCI device (`0000:3b:00.0`) is near; `None` where the machine does not say.
    #[must_use]
    pub fn node_of_pci(&self, address: &str) -> Option<usize> {
        self.node_of_pci_in(Path::new(SYSFS), address)
    }

    fn node_of_pci_in(&self, root: &Path, address: &str) -> Option<usize> {
        let valid = |byte: u8| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.';
        if address.is_empty() || address.starts_with('.') || !address.bytes().all(valid) {
            return None;
        }
        let file = root.join("bus/pci/devices").join(address).join("numa_node");
        // -1, which is no u32, stands for "no node".
        let number: u32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        self.nodes.iter().position(|node| node.number == number)
    }

    /// Asks the kernel to take the pages of a mapping, not touched yet, from `node` while that has some (mbind(2),
    /// `MPOL_PREFERRED`). Does nothing on a machine of one node.
    ///
    /// # Errors
    /// When the kernel refuses; the memory works all the same.
    pub(crate) fn prefer(&self, node: usize, base: NonNull<u8>, len: usize) -> io::Result<()> {
        const BITS: u32 = 64;
        const WORDS: usize = 16;
        if self.nodes.len() == 1 {
            return Ok(());
        }
        let number = self.nodes.get(node).ok_or(io::ErrorKind::NotFound)?.number;
        let mut mask = [0_u64; WORDS];
        let word = usize::try_from(number / BITS).ok().and_then(|word| mask.get_mut(word));
        *word.ok_or(io::ErrorKind::Unsupported)? = 1 << (number % BITS);
        let bits = WORDS * 64;
        // SAFETY: mbind changes no byte, only where pages to come are taken from; the mask has `bits` bits.
        let result = unsafe {
            libc::syscall(libc::SYS_mbind, base.as_ptr(), len, libc::MPOL_PREFERRED, mask.as_ptr(), bits, 0)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(feature = "hwloc")]
fn from_hwloc() -> Option<NumaTopology> {
    use hwlocality::object::types::ObjectType;

    let topology = hwlocality::Topology::new().ok()?;
    let node = |object: &hwlocality::object::TopologyObject| {
        let number = u32::try_from(object.os_index()?).ok()?;
        let near = object.cpuset()?;
        let cores = near.iter_set().filter_map(|core| u32::try_from(usize::from(core)).ok()).collect();
        Some(NumaNode { number, cores })
    };
    let nodes: Vec<NumaNode> = topology.objects_with_type(ObjectType::NUMANode).filter_map(node).collect();
    (!nodes.is_empty()).then(|| NumaTopology::new(nodes))
}

#[cfg(not(feature = "hwloc"))]
fn from_hwloc() -> Option<NumaTopology> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs of two nodes, the second of which the kernel calls 8, and two devices.
    fn sysfs(name: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("penstock-numa-{name}-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("devices/system/node/node0/cpulist", "0-1,4\n");
        write("devices/system/node/node8/cpulist", "2-3\n");
        write("devices/system/node/online", "0,8\n");
        write("bus/pci/devices/0000:3b:00.0/numa_node", "8\n");
        write("bus/pci/devices/0000:01:00.0/numa_node", "-1\n");
        root
    }

    #[test]
    fn nodes_cores_and_devices_are_found() {
        let root = sysfs("found");
        let topology = NumaTopology::from_sysfs(&root);
        assert_eq!(topology.nodes_len(), 2);
        assert_eq!((topology.cores_of_node(0), topology.cores_of_node(1)), (&[0, 1, 4][..], &[2, 3][..]));
        assert_eq!([0, 3, 4, 99].map(|core| topology.node_of_core(core)), [0, 1, 0, 0]);
        assert_eq!(topology.node_of_pci_in(&root, "0000:3b:00.0"), Some(1));
        assert_eq!(topology.node_of_pci_in(&root, "0000:01:00.0"), None);
        assert_eq!(topology.node_of_pci_in(&root, "../../../etc"), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_machine_that_tells_nothing_has_one_node() {
        let topology = NumaTopology::from_sysfs(Path::new("/nonexistent"));
        assert_eq!((topology.nodes_len(), topology.node_of_core(5)), (1, 0));
    }

    #[test]
    fn this_machines_cores_all_have_a_node() {
        let topology = NumaTopology::system();
        for core in super::super::affinity::allowed() {
            assert!(topology.node_of_core(core) < topology.nodes_len());
        }
    }

    #[cfg(feature = "hwloc")]
    #[test]
    fn hwloc_and_sysfs_agree() {
        assert_eq!(from_hwloc(), Some(NumaTopology::from_sysfs(Path::new(SYSFS))));
    }

    #[test]
    fn the_kernel_takes_our_mask() {
        // A machine of one node is asked as well here: node 0 exists everywhere.
        let mut topology = NumaTopology::system().clone();
        topology.nodes.push(NumaNode { number: 0, cores: Vec::new() });
        let prot = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let page = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, prot, rustix::mm::MapFlags::PRIVATE)
        };
        let base = NonNull::new(page.unwrap().cast::<u8>()).unwrap();
        match topology.prefer(0, base, 4096) {
            Ok(()) => {}
            // Kernels without NUMA, and sandboxes.
            Err(error) => {
                assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)), "mbind: {error}")
            }
        }
    }
}
