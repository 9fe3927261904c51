//! io_uring: one ring per side, a multishot receive per connection into a ring of provided buffers, one sendmsg per
//! connection in flight; deferred task work, a single issuer, registered files.
//!
//! The only unsafe code of this program. It keeps to one rule: whatever the kernel has an address of (buffers, message
//! headers, slices) is allocated before the ring is used, stays where it is, and lives until the ring is closed.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, bail, ensure};
use io_uring::types::{BufRingEntry, CancelBuilder, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use penstock_reactor::net::TcpSocket;

use crate::exchange::{Flow, Meter, Side};

const GROUP: u16 = 0;
const BUF_BYTES: u32 = 64 << 10;
const SEND: u64 = 1 << 32;

/// Buffers that the kernel receives into, and the ring through which it learns of them.
struct BufRing {
    entries: *mut BufRingEntry,
    layout: Layout,
    bufs: Vec<u8>,
    mask: u16,
    tail: u16,
}

impl BufRing {
    fn new(connections: usize) -> anyhow::Result<Self> {
        let len = (2 * connections).next_power_of_two().clamp(16, 1024);
        let layout = Layout::from_size_align(len * size_of::<BufRingEntry>(), 4096)?;
        // SAFETY: the layout's size is not zero.
        let entries = unsafe { alloc_zeroed(layout) }.cast::<BufRingEntry>();
        ensure!(!entries.is_null(), "no memory for {len} buffers");
        let bufs = vec![0; len * usize::try_from(BUF_BYTES)?];
        let mut ring = Self { entries, layout, bufs, mask: u16::try_from(len - 1)?, tail: 0 };
        for bid in 0..=ring.mask {
            ring.give(bid);
        }
        Ok(ring)
    }

    /// Lets the kernel have buffer `bid` (again).
    fn give(&mut self, bid: u16) {
        let offset = usize::from(bid) * BUF_BYTES as usize;
        let address = self.bufs.as_mut_ptr().wrapping_add(offset);
        // SAFETY: the index is below the number of entries; the kernel reads an entry only once the tail has passed it.
        let entry = unsafe { self.entries.add(usize::from(self.tail & self.mask)) };
        // SAFETY: as above; the entries are initialised (all zero) and nobody else refers to this one now.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address.expose_provenance() as u64);
        entry.set_len(BUF_BYTES);
        entry.set_bid(bid);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the initialised first entry of the ring, page-aligned.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail is an aligned u16 that we and the kernel access atomically only.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufRing {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the io_uring that knew of it is closed before.
        unsafe { dealloc(self.entries.cast(), self.layout) };
    }
}

struct Conn {
    flow: Flow,
    pieces: Vec<IoSlice<'static>>,
    header: Box<libc::msghdr>,
    sending: bool,
}

/// A side's ring and connections. The ring is dropped, and with it all that is under way, before what it points to.
struct Driver<'a> {
    ring: IoUring,
    bufs: BufRing,
    conns: Vec<Conn>,
    side: &'a Side,
    zero_copy: bool,
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        // Closing the ring cancels in the background: the kernel must be done with the buffers before they go.
        self.ring.submitter().register_sync_cancel(None, CancelBuilder::any()).ok();
    }
}

/// Runs one side to its end.
pub(crate) fn drive(
    sockets: &[TcpSocket],
    side: &Side,
    owed: u32,
    zero_copy: bool,
    meter: &mut Meter<'_>,
) -> anyhow::Result<()> {
    let mut driver = Driver::new(sockets, side, owed, zero_copy)?;
    for key in 0..driver.conns.len() {
        driver.receive(key)?;
        driver.send(key)?;
    }
    let mut messages = 0;
    while meter.turn(messages) {
        messages = driver.turn()?;
    }
    Ok(())
}

impl<'a> Driver<'a> {
    fn new(sockets: &[TcpSocket], side: &'a Side, owed: u32, zero_copy: bool) -> anyhow::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(8192)
            .build(2048)
            .context("cannot make an io_uring; is it allowed here (sysctl kernel.io_uring_disabled)?")?;
        let bufs = BufRing::new(sockets.len())?;
        // SAFETY: the ring of buffers is page-aligned, holds `mask + 1` entries, and outlives the io_uring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                bufs.entries.expose_provenance() as u64,
                bufs.mask + 1,
                GROUP,
                0,
            )
        }?;
        let fds: Vec<RawFd> = sockets.iter().map(|socket| socket.as_fd().as_raw_fd()).collect();
        ring.submitter().register_files(&fds)?;
        let conn = |seed| Conn {
            flow: Flow::new(owed, seed),
            pieces: Vec::new(),
            // SAFETY: all zero is a valid msghdr: no name, no slices, no control data.
            header: Box::new(unsafe { std::mem::zeroed() }),
            sending: false,
        };
        let conns = (1..).map(conn).take(sockets.len()).collect();
        Ok(Self { ring, bufs, conns, side, zero_copy })
    }

    /// One look at the ring; how many messages became whole.
    fn turn(&mut self) -> anyhow::Result<u64> {
        let mut submission = self.ring.submission();
        let wants_kernel = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        submission.sync();
        drop(submission);
        if wants_kernel {
            self.ring.submit_and_wait(0)?;
        }
        let mut messages = 0;
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            messages += self.complete(&entry)?;
        }
        Ok(messages)
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> anyhow::Result<u64> {
        if cqueue::notif(entry.flags()) {
            return Ok(0);
        }
        let (key, result) = (usize::try_from(entry.user_data() & !SEND)?, entry.result());
        let Some(conn) = self.conns.get_mut(key) else { bail!("a completion of connection {key}") };
        if entry.user_data() & SEND != 0 {
            ensure!(result >= 0, "sending failed: {}", std::io::Error::from_raw_os_error(-result));
            conn.sending = false;
            conn.flow.sent(usize::try_from(result)?, self.side);
            self.send(key)?;
            return Ok(0);
        }
        if !cqueue::more(entry.flags()) {
            self.receive(key)?;
        }
        if result == -libc::ENOBUFS {
            return Ok(0);
        }
        ensure!(result > 0, "receiving failed: {}", std::io::Error::from_raw_os_error(-result));
        if let Some(bid) = cqueue::buffer_select(entry.flags()) {
            self.bufs.give(bid);
        }
        let Some(conn) = self.conns.get_mut(key) else { return Ok(0) };
        let messages = conn.flow.received(usize::try_from(result)?, self.side);
        self.send(key)?;
        Ok(messages)
    }

    fn receive(&mut self, key: usize) -> anyhow::Result<()> {
        let receive = opcode::RecvMulti::new(Fixed(u32::try_from(key)?), GROUP).build();
        self.push(&receive.user_data(u64::try_from(key)?))
    }

    /// Sends what is owed on a connection, where nothing is under way.
    fn send(&mut self, key: usize) -> anyhow::Result<()> {
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        if conn.sending || !conn.flow.owes() {
            return Ok(());
        }
        conn.sending = true;
        conn.flow.fill(self.side, &mut conn.pieces);
        // IoSlice is promised to have iovec's layout.
        conn.header.msg_iov = conn.pieces.as_mut_ptr().cast();
        conn.header.msg_iovlen = conn.pieces.len();
        let (fd, header) = (Fixed(u32::try_from(key)?), &raw const *conn.header);
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).unsigned_abs();
        let send = if self.zero_copy {
            opcode::SendMsgZc::new(fd, header).flags(flags).build()
        } else {
            opcode::SendMsg::new(fd, header).flags(flags).build()
        };
        self.push(&send.user_data(u64::try_from(key)? | SEND))
    }

    fn push(&mut self, entry: &squeue::Entry) -> anyhow::Result<()> {
        loop {
            // SAFETY: what the entry points to is owned by `self.conns` and stays until its completion has come.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }
}
