//! A file in memory as memory of this process: what is there is copied by the core itself, without a system call.
//!
//! Such a mapping is dangerous: a page that the file has no room for, or that lies beyond its end, is a signal (SIGBUS) and
//! no error; and a look at a hole makes a page of it. So the mapping is watched by a userfaultfd, which makes a signal of
//! each missing page instead of making the page, and the one instruction that copies is known to the signal's handler: the
//! copy ends early, and whoever wanted it makes the system call, which knows what holes, ends and full disks are. Without
//! userfaultfd (a sandbox may forbid it) there is no mapping, and every I/O is a system call.
//!
//! Invariant: the mapping's bytes are touched by [`copy`] alone, and no reference to them is ever made; other processes
//! and cores write them at any time.

use std::arch::global_asm;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use rustix::mm::UserfaultfdFlags;

/// The part of the address space that is kept for a file that grows.
const GROWTH_FACTOR: usize = 4;

global_asm!(
    ".pushsection .text.penstock_bdev_copy, \"ax\", @progbits",
    ".globl penstock_bdev_copy, penstock_bdev_copy_move, penstock_bdev_copy_end",
    ".type penstock_bdev_copy, @function",
    "penstock_bdev_copy:",
    "mov rcx, rdx",
    "penstock_bdev_copy_move:",
    "rep movsb",
    "penstock_bdev_copy_end:",
    "mov rax, rcx",
    "ret",
    ".size penstock_bdev_copy, . - penstock_bdev_copy",
    ".popsection",
);

unsafe extern "C" {
    /// Copies `len` bytes; returns how many it has not, as a page of theirs is not to be had.
    fn penstock_bdev_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
    /// The instruction that copies.
    fn penstock_bdev_copy_move();
    /// Where it goes on after it.
    fn penstock_bdev_copy_end();
}

/// A file's bytes, mapped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Watches the mapping for as long as it is open.
    _watch: OwnedFd,
}

// SAFETY: the mapping belongs to this value until it is dropped; whichever thread touches it goes through raw copies that
// tolerate each other.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a file of `bytes` bytes, and room for more.
    ///
    /// # Errors
    /// Where the system does not allow it.
    pub(super) fn new(file: &File, bytes: u64, read_only: bool) -> io::Result<Self> {
        catch_signals()?;
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?.next_multiple_of(4096);
        let watch = watch()?;
        let map = |len| {
            let protection = if read_only { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
            // SAFETY: a new mapping at an address of the system's choice touches no memory that there is.
            let base = unsafe {
                libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
            };
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok((NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?, len))
        };
        let roomy = bytes.checked_mul(GROWTH_FACTOR).and_then(|len| map(len).ok());
        let (base, len) = match roomy {
            Some(mapped) => mapped,
            None => map(bytes)?,
        };
        let mapping = Self { base, len, _watch: watch };
        mapping.register()?;
        Ok(mapping)
    }

    /// Has the watch see every missing page.
    fn register(&self) -> io::Result<()> {
        /// `UFFDIO_REGISTER`, and `UFFDIO_REGISTER_MODE_MISSING`.
        const REGISTER: libc::Ioctl = 0xc020_aa00;
        const MISSING: u64 = 1;
        // struct uffdio_register: start, len, mode, ioctls.
        let address = u64::try_from(self.base.addr().get()).map_err(io::Error::other)?;
        let mut wanted = [address, u64::try_from(self.len).map_err(io::Error::other)?, MISSING, 0];
        // SAFETY: the request reads and writes these four words; the range is the mapping just made.
        let result = unsafe { libc::ioctl(self._watch.as_raw_fd(), REGISTER, wanted.as_mut_ptr()) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Copies bytes from `at` on out of the file; false where not all of them could be: they must be read.
    #[inline]
    pub(super) fn read(&self, at: u64, to: &mut [u8]) -> bool {
        let Some(from) = self.at(at, to.len()) else { return false };
        // SAFETY: both ranges are mapped, one by this value, the other as a slice outside of it; what is not to be had of
        // them ends the copy.
        let left = unsafe { penstock_bdev_copy(to.as_mut_ptr(), from, to.len()) };
        left == 0
    }

    /// Copies bytes into the file, from `at` on; false where not all of them could be: they must be written.
    #[inline]
    pub(super) fn write(&self, at: u64, from: &[u8]) -> bool {
        let Some(to) = self.at(at, from.len()) else { return false };
        // SAFETY: as for `read`.
        let left = unsafe { penstock_bdev_copy(to, from.as_ptr(), from.len()) };
        left == 0
    }

    /// Asks the core to fetch the beginning of a piece that is needed soon.
    #[inline]
    pub(super) fn prefetch(&self, at: u64) {
        const LINES: usize = 8;
        const LINE_BYTES: usize = 64;
        let Some(first) = self.at(at, LINES * LINE_BYTES) else { return };
        for line in 0..LINES {
            let address = first.wrapping_add(LINE_BYTES * line).cast_const();
            // SAFETY: a prefetch has no effect but on speed, whatever the address.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast()) };
        }
    }

    #[inline]
    fn at(&self, at: u64, len: usize) -> Option<*mut u8> {
        let at = usize::try_from(at).ok()?;
        let is_inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        is_inside.then(|| self.base.as_ptr().wrapping_add(at))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nobody can reach it any more.
        let _unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A userfaultfd that makes signals of missing pages.
fn watch() -> io::Result<OwnedFd> {
    /// `UFFDIO_API`, `UFFD_API`, `UFFD_FEATURE_SIGBUS` of linux/userfaultfd.h.
    const API: libc::Ioctl = 0xc018_aa3f;
    const VERSION: u64 = 0xaa;
    const SIGNALS: u64 = 1 << 7;
    /// `UFFD_USER_MODE_ONLY`: what a process without privileges may have.
    const USER_MODE_ONLY: u32 = 1;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    // SAFETY: it watches nothing yet.
    let watch = unsafe { rustix::mm::userfaultfd(flags) }?;
    // struct uffdio_api: api, features, ioctls.
    let mut wanted = [VERSION, SIGNALS, 0];
    // SAFETY: the request reads and writes these three words.
    let result = unsafe { libc::ioctl(watch.as_raw_fd(), API, wanted.as_mut_ptr()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(watch) }
}

/// Who had SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Has the signal of a copy that cannot go on end the copy; all others go where they went before.
fn catch_signals() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let before = set_action(None)?;
    if BEFORE.set(before).is_err() {
        return Ok(());
    }
    // SAFETY: zeroes are a valid `sigaction`.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
    ours.sa_sigaction = handler as libc::sighandler_t;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    set_action(Some(&ours)).map(drop)
}

/// What is done at SIGBUS now; with `action`, this from now on.
fn set_action(action: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    // SAFETY: zeroes are a valid `sigaction`.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    let action = action.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both point to such structures, or to none.
    let result = unsafe { libc::sigaction(libc::SIGBUS, action, &raw mut before) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(before) }
}

/// Only async-signal-safe things are done here: it looks at the interrupted thread's registers, and may set them.
extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let copying = penstock_bdev_copy_move as *const () as i64;
    let (at, end) = (libc::REG_RIP.unsigned_abs() as usize, penstock_bdev_copy_end as *const () as i64);
    let context_of = context.cast::<libc::ucontext_t>();
    // SAFETY: the system hands over the context of the interrupted thread, which waits for this handler.
    let registers = unsafe { &mut (*context_of).uc_mcontext.gregs };
    if let Some(instruction) = registers.get_mut(at).filter(|found| **found == copying) {
        *instruction = end;
        return;
    }
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_IGN => {}
        libc::SIG_DFL => {
            // It happens again, and then ends the process as it would have.
            set_action(Some(before)).ok();
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever set the flag gave a function of this type.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without the flag it is a function of this type.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_there_is_copied_and_what_is_not_is_refused_and_stays_a_hole() {
        let path = format!("/dev/shm/penstock-mapping-{}", std::process::id());
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(64 << 10).unwrap();
        file.write_all_at(&[7; 8192], 8192).unwrap();
        let mapping = match Mapping::new(&file, 64 << 10, false) {
            Ok(mapping) => mapping,
            Err(error) => return assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        };
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        let before = blocks();
        let mut bytes = vec![0; 4096];
        assert!(mapping.read(8192 + 512, &mut bytes) && bytes == [7; 4096]);
        assert!(mapping.write(12288, &[8; 4096]));
        let mut read = vec![0; 4096];
        file.read_exact_at(&mut read, 12288).unwrap();
        assert_eq!(read, [8; 4096]);
        // A hole; half a hole; beyond the end; beyond the mapping.
        for at in [0, 14336, 65536, 1 << 40] {
            assert!(!mapping.read(at, &mut bytes), "{at}");
            assert!(!mapping.write(at, &bytes), "{at}");
        }
        assert_eq!(blocks(), before, "a hole has become a page");
        // The file grows, and becomes shorter, under the mapping.
        file.set_len(128 << 10).unwrap();
        file.write_all_at(&[9; 4096], 68 << 10).unwrap();
        assert!(mapping.read(68 << 10, &mut bytes) && bytes == [9; 4096]);
        file.set_len(4096).unwrap();
        assert!(!mapping.read(8192, &mut bytes));
    }
}
