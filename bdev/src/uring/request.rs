//! One I/O on its way through the ring: which submission comes next, and what a completion means.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use io_uring::{opcode, squeue, types};
use penstock_reactor::mem::{ARENA_BYTES, Buf};

use super::file::{Disk, is_unsupported, status_of, zeroing_modes};
use crate::io::{Io, IoFlags, IoStatus, Op};

/// Where the kernel finds the file: among the registered ones, or by descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) enum FileRef {
    Registered(u32),
    Descriptor(i32),
}

/// What to do after a completion.
pub(super) enum Next {
    Ended(IoStatus),
    /// Submit what [`Request::entry`] says now.
    Again,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Reading or writing; `done` bytes have been.
    Transfer { done: usize },
    /// Making blocks zero, by the first or the second way.
    Zero { second_way: bool },
    /// Making durable.
    Sync,
}

/// An I/O that the kernel has, or is about to get. Owns all memory that the kernel was told of.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) io: Box<Io>,
    disk: Arc<Disk>,
    file: FileRef,
    step: Step,
    len_bytes: usize,
    /// Takes the place of buffers that are not aligned as the file system wants.
    bounce: Option<Buf>,
    /// Where the arena begins that its buffer is from, if the ring does not know it yet.
    new_arena: Option<usize>,
}

impl Request {
    /// What to do for `io`; the I/O back where there is no memory to do it just now.
    pub(super) fn new(io: Box<Io>, disk: &Arc<Disk>, file: FileRef) -> Result<Self, Box<Io>> {
        let step = match io.op {
            Op::Unmap | Op::WriteZeroes => Step::Zero { second_way: false },
            Op::Flush => Step::Sync,
            _ => Step::Transfer { done: 0 },
        };
        let len_bytes = io.data.len_bytes();
        let mut bounce = None;
        if disk.direct && !is_aligned(&io, usize::try_from(disk.block_bytes).unwrap_or(4096)) {
            let Some(mut buf) = Buf::alloc(len_bytes) else { return Err(io) };
            if io.op == Op::Write {
                io.data.copy_out(0, &mut buf);
            }
            bounce = Some(buf);
        }
        Ok(Self { io, disk: Arc::clone(disk), file, step, len_bytes, bounce, new_arena: None })
    }

    /// Its device is not polled after all: for this I/O, which goes on by another ring, and for those to come.
    pub(super) fn do_not_poll(&mut self) {
        self.disk.set_polled(false);
        self.file = FileRef::Descriptor(self.disk.fd());
    }

    /// The arena of its buffer, if the ring did not know it.
    pub(super) fn take_new_arena(&mut self) -> Option<usize> {
        self.new_arena.take()
    }

    /// The submission of the present step. `iovecs` is this request's own until it has ended; `arenas` are the
    /// addresses of the registered memory, in order of their index.
    pub(super) fn entry(&mut self, iovecs: &mut Vec<libc::iovec>, arenas: &[usize]) -> squeue::Entry {
        match self.file {
            FileRef::Registered(index) => self.entry_on(types::Fixed(index), iovecs, arenas),
            FileRef::Descriptor(fd) => self.entry_on(types::Fd(fd), iovecs, arenas),
        }
    }

    fn entry_on<F: Into<Target>>(
        &mut self,
        file: F,
        iovecs: &mut Vec<libc::iovec>,
        arenas: &[usize],
    ) -> squeue::Entry {
        let file = file.into();
        let at = self.io.lba.0.saturating_mul(u64::from(self.disk.block_bytes));
        match self.step {
            Step::Transfer { done } => self.transfer(file, at, done, iovecs, arenas),
            Step::Zero { second_way } => {
                let (first, second) = zeroing_modes(&self.io, self.disk.is_block_device);
                let mode = if second_way { second } else { first };
                let mode = i32::try_from(mode.bits()).unwrap_or(0);
                let len = u64::from(self.io.blocks) * u64::from(self.disk.block_bytes);
                match file {
                    Target::Fixed(file) => opcode::Fallocate::new(file, len).offset(at).mode(mode).build(),
                    Target::Fd(file) => opcode::Fallocate::new(file, len).offset(at).mode(mode).build(),
                }
            }
            Step::Sync => {
                self.disk.syncs.fetch_add(1, Ordering::Relaxed);
                let flags = types::FsyncFlags::DATASYNC;
                match file {
                    Target::Fixed(file) => opcode::Fsync::new(file).flags(flags).build(),
                    Target::Fd(file) => opcode::Fsync::new(file).flags(flags).build(),
                }
            }
        }
    }

    fn transfer(
        &mut self,
        file: Target,
        at: u64,
        done: usize,
        iovecs: &mut Vec<libc::iovec>,
        arenas: &[usize],
    ) -> squeue::Entry {
        let at = at.saturating_add(u64::try_from(done).unwrap_or(0));
        let is_write = self.io.op == Op::Write;
        let durable = is_write && self.io.flags.contains(IoFlags::FUA);
        if durable {
            self.disk.syncs.fetch_add(1, Ordering::Relaxed);
        }
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        iovecs.clear();
        match &mut self.bounce {
            Some(buf) => add_iovec(iovecs, buf, done),
            None => {
                let mut skip = done;
                for buf in self.io.data.iter_mut() {
                    add_iovec(iovecs, buf, skip);
                    skip = skip.saturating_sub(buf.len());
                }
            }
        }
        if let [only] = iovecs.as_slice() {
            let (address, len) = (only.iov_base, u32::try_from(only.iov_len).unwrap_or(u32::MAX));
            if let Some(index) = registered(arenas, address.addr(), only.iov_len) {
                let address = address.cast();
                return match (file, is_write) {
                    (Target::Fixed(file), true) => {
                        opcode::WriteFixed::new(file, address, len, index).offset(at).rw_flags(flags).build()
                    }
                    (Target::Fd(file), true) => {
                        opcode::WriteFixed::new(file, address, len, index).offset(at).rw_flags(flags).build()
                    }
                    (Target::Fixed(file), false) => {
                        opcode::ReadFixed::new(file, address, len, index).offset(at).build()
                    }
                    (Target::Fd(file), false) => {
                        opcode::ReadFixed::new(file, address, len, index).offset(at).build()
                    }
                };
            }
            let mut bufs = self.bounce.iter().chain(self.io.data.iter());
            if bufs.next().is_some_and(Buf::is_pooled) {
                self.new_arena = Some(address.addr() & !(ARENA_BYTES - 1));
            }
        }
        let (list, len) = (iovecs.as_ptr(), u32::try_from(iovecs.len()).unwrap_or(0));
        match (file, is_write) {
            (Target::Fixed(file), true) => {
                opcode::Writev::new(file, list, len).offset(at).rw_flags(flags).build()
            }
            (Target::Fd(file), true) => {
                opcode::Writev::new(file, list, len).offset(at).rw_flags(flags).build()
            }
            (Target::Fixed(file), false) => opcode::Readv::new(file, list, len).offset(at).build(),
            (Target::Fd(file), false) => opcode::Readv::new(file, list, len).offset(at).build(),
        }
    }

    /// What follows from the kernel's answer: bytes, or a negated errno.
    pub(super) fn advance(&mut self, result: i32) -> Next {
        let Ok(count) = usize::try_from(result) else { return self.refused(result.wrapping_neg()) };
        match self.step {
            Step::Transfer { done } => {
                let done = done + count;
                if done >= self.len_bytes {
                    return self.ended();
                }
                if count == 0 {
                    // The end of the file came before the end of the I/O: somebody made the file shorter.
                    return self.failed(status_of(0, self.io.op));
                }
                self.step = Step::Transfer { done };
                Next::Again
            }
            Step::Zero { .. } if self.io.flags.contains(IoFlags::FUA) => {
                self.step = Step::Sync;
                Next::Again
            }
            Step::Zero { .. } | Step::Sync => self.ended(),
        }
    }

    fn refused(&mut self, errno: i32) -> Next {
        match self.step {
            // Not done, nothing lost: the same again. A flush is never repeated.
            Step::Transfer { .. } | Step::Zero { .. } if matches!(errno, libc::EAGAIN | libc::EINTR) => {
                Next::Again
            }
            Step::Zero { second_way: false } if is_unsupported(Some(errno)) => {
                self.step = Step::Zero { second_way: true };
                Next::Again
            }
            _ => self.failed(status_of(errno, self.io.op)),
        }
    }

    fn failed(&mut self, status: IoStatus) -> Next {
        let before_any_change = matches!(status, IoStatus::Aborted | IoStatus::Unsupported);
        let no_room = matches!(self.step, Step::Transfer { .. }) && self.disk.only_lacked_room(status);
        if Disk::loses_trust(&self.io) && !before_any_change && !no_room {
            self.disk.set_failed();
        }
        Next::Ended(status)
    }

    fn ended(&mut self) -> Next {
        if let Some(buf) = self.bounce.take()
            && self.io.op == Op::Read
        {
            self.io.data.copy_in(0, &buf);
        }
        Next::Ended(IoStatus::Success)
    }
}

#[derive(Clone, Copy)]
enum Target {
    Fixed(types::Fixed),
    Fd(types::Fd),
}

impl From<types::Fixed> for Target {
    fn from(file: types::Fixed) -> Self {
        Self::Fixed(file)
    }
}

impl From<types::Fd> for Target {
    fn from(file: types::Fd) -> Self {
        Self::Fd(file)
    }
}

/// Adds what is left of `buf` after `skip` bytes, if anything.
fn add_iovec(iovecs: &mut Vec<libc::iovec>, buf: &mut Buf, skip: usize) {
    if skip < buf.len() {
        let iov_base = buf.as_mut_ptr().wrapping_add(skip).cast();
        iovecs.push(libc::iovec { iov_base, iov_len: buf.len() - skip });
    }
}

fn is_aligned(io: &Io, unit: usize) -> bool {
    io.data.iter().all(|buf| buf.as_ptr().addr().is_multiple_of(unit) && buf.len().is_multiple_of(unit))
}

/// The index of the registered arena that holds these bytes. Arenas are aligned to their size.
fn registered(arenas: &[usize], address: usize, len: usize) -> Option<u16> {
    let base = address & !(ARENA_BYTES - 1);
    let end = address.checked_add(len)?;
    if end > base + ARENA_BYTES {
        return None;
    }
    let index = arenas.iter().position(|arena| *arena == base)?;
    u16::try_from(index).ok()
}
