//! A PCI function in user space, by VFIO: its registers, its way to memory, and the news that it is to be given back.
//!
//! Invariants: an [`AddressSpace`] lives as long as a device that is in it; the last device leaves it under the same lock
//! that others look for one by, since the kernel forgets a container's mappings with its last group; bus mastering is on
//! only while the value lives.

mod abi;
mod bar;
mod space;

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{pread, pwrite};

use crate::device::Device;
use crate::dma::Mappings;
use crate::pci::{CLASS_NVME, PciAddress, PciFunction};
use crate::register::Registers;
use bar::Bar;
use space::{AddressSpace, Backend};

/// PCI command register: memory space and bus master.
const PCI_COMMAND: u64 = 4;
const PCI_MEMORY_AND_MASTER: u16 = 0b110;

#[expect(
    clippy::disallowed_types,
    reason = "held by control threads only, while a device is opened or closed"
)]
type Lock<T> = std::sync::Mutex<T>;

/// Address spaces that devices are in.
static SPACES: Lock<Vec<Weak<AddressSpace>>> = Lock::new(Vec::new());

/// Which of the kernel's ways to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IommuMode {
    /// A group and a type 1 container; where there are no groups, iommufd.
    #[default]
    Auto,
    /// A group and a type 1 container.
    Type1,
    /// The device's own character device, and iommufd.
    Iommufd,
    /// Without an IOMMU: the device reaches all of the machine's memory.
    NoIommu,
}

/// Why a device cannot be driven from user space.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// No such function.
    #[error("there is no PCI device {address}; lspci -D lists them")]
    NoDevice {
        /// Its address.
        address: PciAddress,
    },
    /// Not an NVMe controller.
    #[error("PCI device {address} is of class {class:06x}, not an NVMe controller (010802)")]
    NotNvme {
        /// Its address.
        address: PciAddress,
        /// Its class.
        class: u32,
    },
    /// Another driver has it.
    #[error(
        "PCI device {address} is bound to {driver}, not to vfio-pci; penstock-hugepage-setup apply --bind {address} changes that"
    )]
    NotBound {
        /// Its address.
        address: PciAddress,
        /// The driver, or "no driver".
        driver: String,
    },
    /// No IOMMU group and no character device.
    #[error(
        "PCI device {address} has no IOMMU group: switch the IOMMU on (firmware, intel_iommu=on or amd_iommu=on); without one, allow iommu \"noiommu\" expressly"
    )]
    NoIommu {
        /// Its address.
        address: PciAddress,
    },
    /// Other functions of its group have drivers of their own.
    #[error(
        "IOMMU group {group} of PCI device {address} has other devices that are bound to drivers of the kernel; bind all of them to vfio-pci"
    )]
    NotViable {
        /// Its address.
        address: PciAddress,
        /// The group.
        group: String,
    },
    /// The kernel refused.
    #[error("PCI device {address}: cannot {what}")]
    Os {
        /// Its address.
        address: PciAddress,
        /// What was attempted.
        what: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// A PCI NVMe controller that this process has.
#[derive(Debug)]
pub struct VfioDevice {
    // Dropped in this order, under the lock.
    bar: Arc<Bar>,
    leave: OwnedFd,
    device: OwnedFd,
    config_offset: u64,
    _group: Option<OwnedFd>,
    space: Arc<AddressSpace>,
    command_before: u16,
}

/// Makes the kernel's refusal an error.
struct Context(PciAddress);

impl Context {
    fn os(&self, what: impl Into<String>) -> impl FnOnce(io::Error) -> VfioError {
        let (address, what) = (self.0, what.into());
        move |source| VfioError::Os { address, what, source }
    }
}

impl VfioDevice {
    /// Takes the function at `address`, maps memory for it and switches bus mastering on. Blocks: it maps all memory for
    /// data.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn open(address: PciAddress, mode: IommuMode) -> Result<Self, VfioError> {
        let function = PciFunction::find(address).ok_or(VfioError::NoDevice { address })?;
        if let Some(class) = function.class().filter(|class| *class != CLASS_NVME) {
            return Err(VfioError::NotNvme { address, class });
        }
        let driver = function.driver().unwrap_or_else(|| "no driver".to_owned());
        if driver != "vfio-pci" {
            return Err(VfioError::NotBound { address, driver });
        }
        let mut spaces = SPACES.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.retain(|space| space.strong_count() > 0);
        let known: Vec<Arc<AddressSpace>> = spaces.iter().filter_map(Weak::upgrade).collect();
        let by_group = match (mode, function.iommu_group()) {
            (IommuMode::Auto | IommuMode::Type1, Some(group)) => Some(group),
            (IommuMode::NoIommu, group) => Some(group.unwrap_or_default()),
            (IommuMode::Type1, None) => return Err(VfioError::NoIommu { address }),
            _ => None,
        };
        let (device, group, space) = match by_group {
            Some(group) => open_by_group(address, &group, mode == IommuMode::NoIommu, &known)?,
            None => {
                let path = function.vfio_device().ok_or(VfioError::NoIommu { address })?;
                open_by_iommufd(address, &path, &known)?
            }
        };
        if !known.iter().any(|other| Arc::ptr_eq(other, &space)) {
            spaces.push(Arc::downgrade(&space));
        }
        Self::set_up(address, device, group, space)
    }

    fn set_up(
        address: PciAddress,
        device: OwnedFd,
        group: Option<OwnedFd>,
        space: Arc<AddressSpace>,
    ) -> Result<Self, VfioError> {
        let context = Context(address);
        let config = region(&device, abi::PCI_CONFIG).map_err(context.os("find its configuration space"))?;
        let bar = region(&device, abi::PCI_BAR0).map_err(context.os("find its registers (BAR 0)"))?;
        if bar.flags & abi::REGION_MMAP == 0 || bar.size < 0x2000 {
            let problem = io::Error::other("they cannot be mapped");
            return Err(context.os("use its registers (BAR 0)")(problem));
        }
        let bar = Bar::map(device.as_fd(), bar.offset, bar.size)
            .map_err(context.os("map its registers (BAR 0)"))?;
        let leave = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| context.os("make an eventfd")(errno.into()))?;
        let mut irq = abi::IrqSet {
            argsz: abi::size_u32::<abi::IrqSet>(),
            flags: abi::IRQ_SET_EVENTFD,
            index: abi::PCI_REQ_IRQ,
            start: 0,
            count: 1,
            eventfd: leave.as_raw_fd(),
        };
        // Old kernels do not ask for a device back; then only its removal is seen.
        if let Err(error) = abi::call_with(device.as_fd(), abi::DEVICE_SET_IRQS, &mut irq) {
            tracing::debug!(%address, %error, "the kernel will not ask for the device back");
        }
        let mut command = [0; 2];
        pread(&device, &mut command, config.offset + PCI_COMMAND)
            .map_err(|errno| context.os("read its configuration space")(errno.into()))?;
        let before = u16::from_le_bytes(command);
        let this = Self {
            bar: Arc::new(bar),
            leave,
            device,
            config_offset: config.offset,
            _group: group,
            space,
            command_before: before & !PCI_MEMORY_AND_MASTER,
        };
        this.set_command(before | PCI_MEMORY_AND_MASTER)
            .map_err(context.os("switch its bus mastering on"))?;
        Ok(this)
    }

    fn set_command(&self, value: u16) -> io::Result<()> {
        pwrite(&self.device, &value.to_le_bytes(), self.config_offset + PCI_COMMAND)?;
        Ok(())
    }
}

impl Device for VfioDevice {
    fn registers(&self) -> Arc<dyn Registers> {
        Arc::<Bar>::clone(&self.bar)
    }

    fn mappings(&self) -> Arc<Mappings> {
        Arc::clone(&self.space.mappings)
    }

    fn cut_off(&mut self) {
        if let Err(error) = self.set_command(self.command_before | 0b10) {
            tracing::error!(%error, "bus mastering could not be switched off");
        }
    }

    fn is_wanted_back(&mut self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&self.leave, &mut count).is_ok()
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        // Memory space stays on: whoever still reads a register must find one.
        drop(self.set_command(self.command_before | 0b10));
        let _no_one_looks_for_a_space = SPACES.lock().unwrap_or_else(PoisonError::into_inner);
        // The descriptors close while the lock is held: a duplicate of none of them exists.
        let close = |fd: &mut OwnedFd| {
            if let Ok(null) = OpenOptions::new().read(true).open("/dev/null") {
                drop(std::mem::replace(fd, null.into()));
            }
        };
        close(&mut self.device);
        self._group.iter_mut().for_each(close);
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from)
}

/// A group's descriptor in a container: an old one that takes it, or a new one.
fn open_by_group(
    address: PciAddress,
    group: &str,
    without_iommu: bool,
    known: &[Arc<AddressSpace>],
) -> Result<(OwnedFd, Option<OwnedFd>, Arc<AddressSpace>), VfioError> {
    let context = Context(address);
    let name = if without_iommu { format!("noiommu-{group}") } else { group.to_owned() };
    let path = PathBuf::from("/dev/vfio").join(name);
    let fd = open(&path).map_err(context.os(format!("open {}", path.display())))?;
    let mut status = abi::GroupStatus { argsz: abi::size_u32::<abi::GroupStatus>(), flags: 0 };
    abi::call_with(fd.as_fd(), abi::GROUP_GET_STATUS, &mut status)
        .map_err(context.os("ask for its group's state"))?;
    if status.flags & abi::GROUP_VIABLE == 0 {
        return Err(VfioError::NotViable { address, group: group.to_owned() });
    }
    let joined = known.iter().find(|space| match &space.backend {
        Backend::Type1(container) => !without_iommu && joins(&fd, container),
        Backend::NoIommu(container) => without_iommu && joins(&fd, container),
        Backend::Iommufd { .. } => false,
    });
    let space = match joined {
        Some(space) => Arc::clone(space),
        None => new_container(&context, &fd, without_iommu)?,
    };
    let text = CString::new(address.to_string()).unwrap_or_default();
    let device = abi::call_with_text(fd.as_fd(), abi::GROUP_GET_DEVICE_FD, &text)
        .map_err(context.os("open the device in its group"))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let device = unsafe { OwnedFd::from_raw_fd(device) };
    Ok((device, Some(fd), space))
}

fn joins(group: &OwnedFd, container: &OwnedFd) -> bool {
    let mut container = container.as_raw_fd();
    abi::call_with(group.as_fd(), abi::GROUP_SET_CONTAINER, &mut container).is_ok()
}

fn new_container(
    context: &Context,
    group: &OwnedFd,
    without_iommu: bool,
) -> Result<Arc<AddressSpace>, VfioError> {
    let container =
        open(Path::new("/dev/vfio/vfio")).map_err(context.os("open /dev/vfio/vfio (modprobe vfio-pci)"))?;
    let kind = if without_iommu { abi::NOIOMMU_IOMMU } else { abi::TYPE1V2_IOMMU };
    let version = abi::call(container.as_fd(), abi::GET_API_VERSION, 0)
        .map_err(context.os("ask VFIO for its version"))?;
    let offers = abi::call(container.as_fd(), abi::CHECK_EXTENSION, kind).unwrap_or(0) > 0;
    if version != abi::API_VERSION || !offers {
        let problem = io::Error::other("this kernel's VFIO does not offer it (modprobe vfio_iommu_type1)");
        return Err(context.os("use a type 1 IOMMU")(problem));
    }
    let mut raw = container.as_raw_fd();
    abi::call_with(group.as_fd(), abi::GROUP_SET_CONTAINER, &mut raw)
        .map_err(context.os("put its group into a container"))?;
    abi::call(container.as_fd(), abi::SET_IOMMU, kind).map_err(context.os("set the container's IOMMU"))?;
    let backend = if without_iommu { Backend::NoIommu(container) } else { Backend::Type1(container) };
    AddressSpace::new(backend).map_err(context.os("map memory for it"))
}

fn open_by_iommufd(
    address: PciAddress,
    path: &Path,
    known: &[Arc<AddressSpace>],
) -> Result<(OwnedFd, Option<OwnedFd>, Arc<AddressSpace>), VfioError> {
    let context = Context(address);
    let device = open(path).map_err(context.os(format!("open {}", path.display())))?;
    let attach = |fd: &OwnedFd, ioas: u32| -> io::Result<()> {
        let mut bind = abi::BindIommufd {
            argsz: abi::size_u32::<abi::BindIommufd>(),
            flags: 0,
            iommufd: fd.as_raw_fd(),
            out_devid: 0,
        };
        abi::call_with(device.as_fd(), abi::DEVICE_BIND_IOMMUFD, &mut bind)?;
        let mut attach = abi::AttachPt { argsz: abi::size_u32::<abi::AttachPt>(), flags: 0, pt_id: ioas };
        abi::call_with(device.as_fd(), abi::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(drop)
    };
    let known = known.iter().find_map(|space| match &space.backend {
        Backend::Iommufd { fd, ioas } => Some((space, fd, *ioas)),
        _ => None,
    });
    if let Some((space, fd, ioas)) = known {
        attach(fd, ioas).map_err(context.os("attach it to an I/O address space"))?;
        return Ok((device, None, Arc::clone(space)));
    }
    let fd = open(Path::new("/dev/iommu")).map_err(context.os("open /dev/iommu"))?;
    let mut alloc = abi::IoasAlloc { size: abi::size_u32::<abi::IoasAlloc>(), flags: 0, out_ioas_id: 0 };
    abi::call_with(fd.as_fd(), abi::IOAS_ALLOC, &mut alloc)
        .map_err(context.os("make an I/O address space"))?;
    let ioas = alloc.out_ioas_id;
    attach(&fd, ioas).map_err(context.os("attach it to an I/O address space"))?;
    let space = AddressSpace::new(Backend::Iommufd { fd, ioas }).map_err(context.os("map memory for it"))?;
    Ok((device, None, space))
}

fn region(device: &OwnedFd, index: u32) -> io::Result<abi::RegionInfo> {
    let mut info =
        abi::RegionInfo { argsz: abi::size_u32::<abi::RegionInfo>(), index, ..abi::RegionInfo::default() };
    abi::call_with(device.as_fd(), abi::DEVICE_GET_REGION_INFO, &mut info)?;
    Ok(info)
}
