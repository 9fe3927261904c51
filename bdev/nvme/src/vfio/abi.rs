//! The kernel's interface: numbers and structures of linux/vfio.h and linux/iommufd.h, and the one call that takes them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(';', n)`.
const fn request(number: u64) -> u64 {
    (b';' as u64) << 8 | number
}

pub(super) const GET_API_VERSION: u64 = request(100);
pub(super) const CHECK_EXTENSION: u64 = request(101);
pub(super) const SET_IOMMU: u64 = request(102);
pub(super) const GROUP_GET_STATUS: u64 = request(103);
pub(super) const GROUP_SET_CONTAINER: u64 = request(104);
pub(super) const GROUP_GET_DEVICE_FD: u64 = request(106);
pub(super) const DEVICE_GET_REGION_INFO: u64 = request(108);
pub(super) const DEVICE_SET_IRQS: u64 = request(110);
pub(super) const IOMMU_GET_INFO: u64 = request(112);
pub(super) const IOMMU_MAP_DMA: u64 = request(113);
pub(super) const IOMMU_UNMAP_DMA: u64 = request(114);
pub(super) const DEVICE_BIND_IOMMUFD: u64 = request(118);
pub(super) const DEVICE_ATTACH_IOMMUFD_PT: u64 = request(119);
pub(super) const IOAS_ALLOC: u64 = request(0x81);
pub(super) const IOAS_IOVA_RANGES: u64 = request(0x84);
pub(super) const IOAS_MAP: u64 = request(0x85);
pub(super) const IOAS_UNMAP: u64 = request(0x86);

pub(super) const API_VERSION: i32 = 0;
pub(super) const TYPE1V2_IOMMU: u64 = 3;
pub(super) const NOIOMMU_IOMMU: u64 = 8;
pub(super) const GROUP_VIABLE: u32 = 1;
pub(super) const REGION_MMAP: u32 = 4;
pub(super) const PCI_BAR0: u32 = 0;
pub(super) const PCI_CONFIG: u32 = 7;
pub(super) const PCI_REQ_IRQ: u32 = 4;
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
pub(super) const IRQ_SET_EVENTFD: u32 = 1 << 2 | 1 << 5;
pub(super) const MAP_READ_WRITE: u32 = 1 | 2;
pub(super) const IOMMU_INFO_CAPS: u32 = 2;
pub(super) const CAP_IOVA_RANGE: u16 = 1;
/// Fixed address, writable, readable.
pub(super) const IOAS_MAP_FLAGS: u32 = 1 | 2 | 4;

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct GroupStatus {
    pub(super) argsz: u32,
    pub(super) flags: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct RegionInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) cap_offset: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct DmaMap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) vaddr: u64,
    pub(super) iova: u64,
    pub(super) size: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct DmaUnmap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iova: u64,
    pub(super) size: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasUnmap {
    pub(super) size: u32,
    pub(super) ioas_id: u32,
    pub(super) iova: u64,
    pub(super) length: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IrqSet {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) start: u32,
    pub(super) count: u32,
    pub(super) eventfd: i32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BindIommufd {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iommufd: i32,
    pub(super) out_devid: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct AttachPt {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) pt_id: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasAlloc {
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) out_ioas_id: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasMap {
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) ioas_id: u32,
    pub(super) reserved: u32,
    pub(super) user_va: u64,
    pub(super) length: u64,
    pub(super) iova: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IovaRange {
    pub(super) start: u64,
    pub(super) last: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IoasRanges {
    pub(super) size: u32,
    pub(super) ioas_id: u32,
    pub(super) num_iovas: u32,
    pub(super) reserved: u32,
    pub(super) allowed_iovas: u64,
    pub(super) out_iova_alignment: u64,
}

const _: () =
    assert!(size_of::<RegionInfo>() == 32 && size_of::<DmaMap>() == 32 && size_of::<IrqSet>() == 24);
const _: () = assert!(size_of::<DmaUnmap>() == 24 && size_of::<IoasUnmap>() == 24);
const _: () =
    assert!(size_of::<BindIommufd>() == 16 && size_of::<AttachPt>() == 12 && size_of::<IoasAlloc>() == 12);
const _: () =
    assert!(size_of::<IoasMap>() == 40 && size_of::<IoasRanges>() == 32 && size_of::<IovaRange>() == 16);

/// The length of a structure, for its own first word.
pub(super) fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0)
}

/// A request whose argument is a number.
pub(super) fn call(fd: BorrowedFd<'_>, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: the requests that are called so take numbers, or no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

/// A request whose argument is a structure that begins with its own length.
pub(super) fn call_with<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: each request is called with its own structure; the kernel writes no more than the length in it says.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

/// As [`call_with`], for what is longer than a structure: `buffer` begins with its own length.
pub(super) fn call_with_bytes(fd: BorrowedFd<'_>, request: u64, buffer: &mut [u64]) -> io::Result<i32> {
    // SAFETY: as in `call_with`; the length that the buffer begins with is its own.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, buffer.as_mut_ptr()) })
}

/// A request whose argument is a text.
pub(super) fn call_with_text(fd: BorrowedFd<'_>, request: u64, text: &std::ffi::CStr) -> io::Result<i32> {
    // SAFETY: the kernel reads up to the terminating zero.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, text.as_ptr()) })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
