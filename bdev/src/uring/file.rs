//! The file or block device under a uring bdev.

use std::array;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use penstock_reactor::mem::Buf;
use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fallocate, futimens};
use rustix::io::Errno;

use super::mapped::Mapping;
use super::{queue, runs};
use crate::bdev::Run;
use crate::io::{Io, IoFlags, IoStatus, Op};

/// How a file is to be opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    pub(super) read_only: bool,
    /// Without the page cache, where the file system can.
    pub(super) direct: bool,
    /// Made with so many bytes where it does not exist.
    pub(super) create_bytes: Option<u64>,
    pub(super) block_bytes: Option<u32>,
    /// Polled for where the device can.
    pub(super) polled: bool,
    /// Mapped where it lies in memory and the system allows it.
    pub(super) mapped: bool,
}

/// The usual block of a file system; a power of two, at least as long as any block of a bdev.
const FILE_BLOCK_BYTES: u32 = 4096;
/// How often, and how long apart, a locked file is tried again.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Buffers of one system call at most.
const VECTOR_LEN: usize = 32;

/// An open file, shared by the channels of all cores.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    pub(super) block_bytes: u32,
    pub(super) physical_block_bytes: u32,
    /// What the file system or device likes best.
    pub(super) optimal_bytes: u32,
    /// O_DIRECT: offsets, lengths and addresses are multiples of a block.
    pub(super) direct: bool,
    pub(super) is_block_device: bool,
    pub(super) read_only: bool,
    /// Holes can be punched.
    pub(super) can_punch: bool,
    /// A flush failed: what was written before may be lost, and a second flush would not tell (the kernel reports a
    /// failed write-back once). Nothing is written any more until the file is opened again.
    failed: AtomicBool,
    /// Its reads and writes are polled for, by a ring of their own.
    polled: AtomicBool,
    /// The file's pages are all there is: it lies in memory, as on tmpfs.
    pub(super) in_memory: bool,
    /// Its bytes.
    pub(super) mapping: Option<Mapping>,
    /// Flushes and durable writes that were asked of the system, for tests and people.
    pub(super) syncs: AtomicU64,
}

impl Disk {
    /// Opens and examines `path`, and locks it against other daemons.
    pub(super) fn open(path: &Path, opening: Opening) -> io::Result<Self> {
        if let Some(bytes) = opening.create_bytes.filter(|_| !opening.read_only) {
            create(path, bytes)?;
        }
        let direct_file = if opening.direct { open(path, opening.read_only, true).ok() } else { None };
        let mut file = match direct_file {
            Some(file) => file,
            None => open(path, opening.read_only, false)?,
        };
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("it is neither a regular file nor a block device"));
        }
        if !opening.read_only {
            if kind.is_block_device() && queue::is_write_protected(&file)? {
                let why = "the device is write-protected: make the bdev readonly";
                return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, why));
            }
            lock(&file)?;
        }
        let sector = queue::sector_bytes(&file, kind.is_block_device());
        let block_bytes = opening.block_bytes.unwrap_or(sector);
        let mut direct = opening.direct && is_direct(&file);
        if direct && !takes_blocks_of(&file, block_bytes) {
            if kind.is_block_device() && block_bytes < sector {
                return Err(io::Error::other(format!(
                    "its sectors have {sector} bytes: use that block size"
                )));
            }
            // The file system wants larger units than the bdev's blocks: through the page cache, then.
            let buffered = open(path, opening.read_only, false)?;
            if !opening.read_only {
                file.unlock()?;
                lock(&buffered)?;
            }
            (file, direct) = (buffered, false);
        }
        // A file has no physical blocks: the file system takes its sectors as they are, and only likes its own blocks better.
        let physical = if kind.is_block_device() { queue::physical_bytes(&file) } else { block_bytes };
        let physical = physical.max(block_bytes).next_multiple_of(block_bytes);
        let mut disk = Self {
            block_bytes,
            physical_block_bytes: physical,
            optimal_bytes: physical.max(FILE_BLOCK_BYTES),
            direct,
            is_block_device: kind.is_block_device(),
            read_only: opening.read_only,
            can_punch: true,
            failed: AtomicBool::new(false),
            polled: AtomicBool::new(direct && opening.polled && queue::is_polled(&file)),
            in_memory: is_in_memory(path),
            mapping: None,
            syncs: AtomicU64::new(0),
            file,
        };
        if opening.mapped && disk.in_memory {
            disk.mapping = Mapping::new(&disk.file, disk.bytes()?, disk.read_only).ok();
        }
        if !disk.is_block_device && !disk.read_only {
            // Beyond the end there is nothing to lose: only whether the file system can do it shows.
            let end = disk.bytes()?.next_multiple_of(4096);
            disk.can_punch = disk.allocate(PUNCH, end, 4096).is_ok();
        }
        Ok(disk)
    }

    /// Its length in bytes, as of now.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        // The offset belongs to nobody else: all I/O names its own.
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Which of the blocks `first..blocks` have storage; a block device does not tell.
    pub(super) fn runs(&self, first: u64, blocks: u64, runs_max: usize) -> Option<Vec<Run>> {
        if self.is_block_device {
            return None;
        }
        runs::of(&self.file, u64::from(self.block_bytes), first, blocks, runs_max)
    }

    /// Gives a regular file another length.
    pub(super) fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether nothing may be written any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// To be told of every flush or durable write that failed.
    pub(super) fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether a failed `io` leaves it unknown what is durable.
    pub(super) fn loses_trust(io: &Io) -> bool {
        io.op == Op::Flush || (io.op.is_write() && io.flags.contains(IoFlags::FUA))
    }

    /// Whether reads and writes may be polled for.
    pub(super) fn is_polled(&self) -> bool {
        self.polled.load(Ordering::Relaxed)
    }

    pub(super) fn set_polled(&self, polled: bool) {
        self.polled.store(polled, Ordering::Relaxed);
    }

    pub(super) fn allocate(&self, flags: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(&self.file, flags, at, len)?)
    }

    /// Does `io` with plain system calls.
    pub(super) fn execute(&self, io: &mut Io) -> IoStatus {
        if self.refuses(io) {
            return IoStatus::WriteError;
        }
        let result = self.try_execute(io);
        self.conclude(io, result)
    }

    /// Whether `io` may not be done any more.
    pub(super) fn refuses(&self, io: &Io) -> bool {
        self.has_failed() && (io.op.is_write() || io.op == Op::Flush)
    }

    /// The end of an `io` of which everything but its durability was tried.
    pub(super) fn conclude(&self, io: &Io, result: io::Result<()>) -> IoStatus {
        if let Err(error) = result {
            let status = status_of(error.raw_os_error().unwrap_or(0), io.op);
            if Self::loses_trust(io) && !self.only_lacked_room(status) {
                self.set_failed();
            }
            return status;
        }
        if !Self::loses_trust(io) {
            return IoStatus::Success;
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if self.mapping.is_some() {
            // Nobody else tells the file of its changes.
            let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
            let times = Timestamps { last_access: at(UTIME_OMIT), last_modification: at(UTIME_NOW) };
            futimens(&self.file, &times).ok();
        }
        match self.file.sync_data() {
            Ok(()) => IoStatus::Success,
            Err(error) => {
                self.set_failed();
                status_of(error.raw_os_error().unwrap_or(0), io.op)
            }
        }
    }

    /// Whether a write that ended with `status` only found no room: directly written blocks, and pages that are all there
    /// is, get theirs at once, so nothing else is lost. What goes through the page cache gets it later, and then earlier
    /// writes may be lost too.
    pub(super) fn only_lacked_room(&self, status: IoStatus) -> bool {
        status == IoStatus::NoSpace && (self.direct || self.in_memory)
    }

    fn try_execute(&self, io: &mut Io) -> io::Result<()> {
        let at = self.offset(io.lba.0);
        match io.op {
            Op::Read => self.read(io, at),
            Op::Write => self.write(io, at),
            Op::Unmap | Op::WriteZeroes => self.make_zero(io, 0, io.blocks),
            Op::Flush => Ok(()),
            Op::Compare | Op::CompareAndWrite | Op::Copy | Op::Reset => {
                Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
        }
    }

    /// Where a block begins, in bytes.
    pub(super) fn offset(&self, lba: u64) -> u64 {
        lba.saturating_mul(u64::from(self.block_bytes))
    }

    fn read(&self, io: &mut Io, mut at: u64) -> io::Result<()> {
        if let (1, Some(only)) = (io.data.segments(), io.data.iter_mut().next()) {
            return self.file.read_exact_at(only, at);
        }
        let mut bufs = io.data.iter_mut().peekable();
        while bufs.peek().is_some() {
            let mut list: [_; VECTOR_LEN] =
                array::from_fn(|_| IoSliceMut::new(bufs.next().map_or(&mut [], |buf| &mut **buf)));
            let mut left = &mut list[..];
            while !left.is_empty() {
                let count = match rustix::io::preadv(&self.file, left, at) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                at += u64::try_from(count).unwrap_or(0);
                IoSliceMut::advance_slices(&mut left, count);
            }
        }
        Ok(())
    }

    fn write(&self, io: &Io, mut at: u64) -> io::Result<()> {
        if let (1, Some(only)) = (io.data.segments(), io.data.iter().next()) {
            return self.file.write_all_at(only, at);
        }
        let mut bufs = io.data.iter().peekable();
        while bufs.peek().is_some() {
            let mut list: [_; VECTOR_LEN] =
                array::from_fn(|_| IoSlice::new(bufs.next().map_or(&[], |buf| &**buf)));
            let mut left = &mut list[..];
            while !left.is_empty() {
                let count = match rustix::io::pwritev(&self.file, left, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                at += u64::try_from(count).unwrap_or(0);
                IoSlice::advance_slices(&mut left, count);
            }
        }
        Ok(())
    }

    /// Makes `blocks` of the blocks of `io`, from its `first` on, zero.
    pub(super) fn make_zero(&self, io: &Io, first: u32, blocks: u32) -> io::Result<()> {
        let at = self.offset(io.lba.0.saturating_add(u64::from(first)));
        let len = self.offset(u64::from(blocks));
        let (best, second) = zeroing_modes(io, self.is_block_device);
        self.allocate(best, at, len).or_else(|error| {
            if is_unsupported(error.raw_os_error()) { self.allocate(second, at, len) } else { Err(error) }
        })
    }
}

/// Whether a file lies in memory alone (tmpfs, ramfs), or would, if it is not there yet. A device's node does not: that
/// devtmpfs is a tmpfs says nothing of the device.
pub(super) fn is_in_memory(path: &Path) -> bool {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return false;
    }
    let found = rustix::fs::statfs(path).or_else(|_| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        rustix::fs::statfs(parent.unwrap_or_else(|| Path::new(".")))
    });
    // The field's type differs between architectures.
    found.is_ok_and(|found| {
        IN_MEMORY.iter().any(|magic| u64::try_from(found.f_type).is_ok_and(|kind| kind == *magic))
    })
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// How to make blocks zero, and how else where the file system or device cannot do that. Holes read as zeroes.
pub(super) fn zeroing_modes(io: &Io, is_block_device: bool) -> (FallocateFlags, FallocateFlags) {
    let keep = io.op == Op::WriteZeroes && io.flags.contains(IoFlags::KEEP_ALLOCATED);
    // A block device's kernel driver writes zeroes where it cannot do better; that suits a write of zeroes.
    if keep || (is_block_device && io.op == Op::WriteZeroes) { (ZERO, PUNCH) } else { (PUNCH, ZERO) }
}

pub(super) fn is_unsupported(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// How an I/O ended that the system refused with `errno`; 0: it ended before the last byte.
pub(super) fn status_of(errno: i32, op: Op) -> IoStatus {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoStatus::NoSpace,
        libc::EOPNOTSUPP | libc::ENOSYS => IoStatus::Unsupported,
        libc::EROFS | libc::EPERM | libc::EACCES | libc::EBADF => IoStatus::WriteProtected,
        libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM => IoStatus::Gone,
        libc::ETIMEDOUT => IoStatus::TimedOut,
        libc::ECANCELED => IoStatus::Aborted,
        libc::EILSEQ => IoStatus::ChecksumError,
        libc::EINVAL => IoStatus::Internal,
        _ if op == Op::Read => IoStatus::ReadError,
        _ => IoStatus::WriteError,
    }
}

/// Locks a file against other daemons.
///
/// A process that was killed keeps the lock for a moment: its io_uring ends in the background, and until then a write
/// of it may still reach the file. So the lock is a fence as well, and worth waiting for.
#[expect(
    clippy::disallowed_methods,
    reason = "on the control thread, for 2 s at most, and only after a kill"
)]
fn lock(file: &File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("another bdev or process has locked it"))
}

fn open(path: &Path, read_only: bool, direct: bool) -> io::Result<File> {
    let flags = libc::O_CLOEXEC | if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
}

/// Makes a file of `bytes` zero bytes that takes no room yet; one that exists stays as it is.
fn create(path: &Path, bytes: u64) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            file.set_len(bytes)?;
            file.sync_all()?;
            // The name is durable only with its directory.
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_direct(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::DIRECT))
}

/// Whether the file system reads single blocks without the page cache: some want larger ones.
fn takes_blocks_of(file: &File, block_bytes: u32) -> bool {
    let len = usize::try_from(block_bytes).unwrap_or(usize::MAX);
    let Some(mut buf) = Buf::alloc(len) else { return false };
    file.read_at(&mut buf, u64::from(block_bytes)).is_ok()
}
