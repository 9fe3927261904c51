//! Socket options that `rustix` does not know.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// `SO_BUSY_POLL`: how many microseconds a receive polls the network card's queue.
pub(crate) fn set_busy_poll(fd: BorrowedFd<'_>, us: u32) -> Result<()> {
    set(fd, libc::SO_BUSY_POLL, us)
}

/// `SO_PRIORITY`: the packet priority for the queueing discipline.
pub(crate) fn set_priority(fd: BorrowedFd<'_>, priority: u32) -> Result<()> {
    set(fd, libc::SO_PRIORITY, priority)
}

fn set(fd: BorrowedFd<'_>, option: libc::c_int, value: u32) -> Result<()> {
    let value = libc::c_int::try_from(value).map_err(|_| Errno::INVAL)?;
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel reads `len` bytes at the address of `value`, which lives past the call.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), len) };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}
