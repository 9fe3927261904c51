//! What the kernel tells of the block device's queue under a file.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Whether the device that this is, or that holds it, has queues to poll (`nvme.poll_queues`, for one). What lies on no
/// single device (btrfs, an overlay, a network) has none.
pub(super) fn is_polled(file: &File) -> bool {
    let Ok(meta) = file.metadata() else { return false };
    let device = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
    let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's queue is its disk's.
    let told = fs::read_to_string(format!("{device}/queue/io_poll"))
        .or_else(|_| fs::read_to_string(format!("{device}/../queue/io_poll")));
    told.is_ok_and(|told| told.trim() == "1")
}

/// Length in bytes of the smallest unit of I/O.
pub(super) fn sector_bytes(file: &File, is_block_device: bool) -> u32 {
    if !is_block_device {
        return 512;
    }
    rustix::fs::ioctl_blksszget(file).unwrap_or(512)
}

/// Whether a block device takes no writes. It can be opened for writing all the same; only the writes fail.
pub(super) fn is_write_protected(device: &File) -> io::Result<bool> {
    /// `BLKROGET` of linux/fs.h.
    const BLKROGET: libc::Ioctl = 0x125e;
    let mut protected: libc::c_int = 0;
    // SAFETY: this request writes one int, to where it is told.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut protected) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(protected != 0) }
}

/// Length in bytes of the unit that the device writes without reading first.
pub(super) fn physical_bytes(file: &File) -> u32 {
    rustix::fs::ioctl_blkpbszget(file).unwrap_or(4096)
}
