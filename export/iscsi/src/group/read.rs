//! Bytes between sockets and machines, I/Os between machines and bdevs.

use std::io::{IoSlice, IoSliceMut};
use std::net::Shutdown;

use penstock_bdev::Io;
use penstock_reactor::Tick;
use penstock_reactor::net::{PIECES_MAX, Ready};

use super::admit::key_of;
use super::{DONE_BUDGET, Group, LISTENERS_MAX};
use crate::conn::{CmdId, ConnState};

/// How long a connection that ends may take to send what it has and to be closed by its peer, in nanoseconds.
const CLOSE_GRACE_NS: u64 = 1_000_000_000;

impl Group {
    #[inline]
    pub(super) fn socket_ready(&mut self, ready: Ready, now: Tick) -> usize {
        let Some(index) = ready.key.checked_sub(u32::try_from(LISTENERS_MAX).unwrap_or(0)) else {
            return self.accept(ready.key, now);
        };
        if ready.writable {
            self.touch(index);
        }
        if !ready.readable {
            return usize::from(ready.writable);
        }
        if ready.broken && self.entry_mut(index).is_some_and(|entry| entry.paused) {
            self.close(index);
            return 1;
        }
        self.read(index)
    }

    /// Receives once from a connection and handles what came.
    #[inline]
    fn read(&mut self, index: u32) -> usize {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return 0 };
        if entry.gone {
            return 0;
        }
        if !entry.conn.wants_bytes() {
            entry.paused = true;
            self.sockets.want_read(&entry.sock, key_of(index), false).ok();
            return 0;
        }
        let room = &mut self.rx[..];
        let (received, direct) = match entry.conn.direct() {
            Some(data) => {
                let len = data.len();
                (entry.sock.recv_vectored(&mut [IoSliceMut::new(data), IoSliceMut::new(room)]), len)
            }
            None => (entry.sock.recv(room), 0),
        };
        let len = match received {
            Ok(None) => {
                self.sockets.note(key_of(index), false);
                return 0;
            }
            Ok(Some(len)) if len > 0 => len,
            _ => {
                self.close(index);
                return 1;
            }
        };
        self.sockets.note(key_of(index), true);
        if direct > 0 {
            entry.conn.direct_came(len.min(direct), &mut self.core);
        }
        if len > direct {
            let bytes = self.rx.get(..len - direct).unwrap_or_default();
            entry.conn.receive(bytes, &mut self.core);
        }
        if entry.half_open && entry.conn.state() == ConnState::Full {
            entry.half_open = false;
            entry.deadline = self.core.ping_at();
            self.half_open = self.half_open.saturating_sub(1);
        }
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(index);
        }
        1
    }

    /// Commands that found no buffer try again, in the order in which they came.
    pub(super) fn retry_starved(&mut self) -> usize {
        let waiting = self.core.starved.len();
        for done in 0..waiting {
            let Some(id) = self.core.starved.pop_front() else { return done };
            let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else {
                continue;
            };
            entry.conn.retry(id.slot, &mut self.core);
            if self.core.starved.back() == Some(&id) {
                // Still none: it keeps its place before the others.
                self.core.starved.pop_back();
                self.core.starved.push_front(id);
                return done;
            }
            entry.conn.resume(&mut self.core);
            self.touch(id.conn);
        }
        waiting
    }

    /// Takes ended I/Os from the bdevs and goes on with their commands.
    #[inline]
    pub(super) fn poll_bdevs(&mut self) -> usize {
        let mut done = std::mem::take(&mut self.done);
        let mut again = std::mem::take(&mut self.again);
        self.core.poll_chans(DONE_BUDGET, &mut done, &mut again);
        let work = done.len() + again.len();
        for io in done.drain(..) {
            self.io_done(io);
        }
        for id in again.drain(..) {
            let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else {
                continue;
            };
            entry.conn.resubmit(id.slot, &mut self.core);
            self.touch(id.conn);
        }
        self.done = done;
        self.again = again;
        work
    }

    #[inline]
    fn io_done(&mut self, io: Box<Io>) {
        let CmdId { conn: index, slot } = CmdId::from_tag(io.tag);
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return };
        entry.conn.io_back(slot, io, &mut self.core);
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Sends what the turn's work has left to be sent.
    #[inline]
    pub(super) fn flush(&mut self) {
        if !self.core.sweeps.is_empty() {
            self.abort_others();
        }
        let mut at = 0;
        while let Some(index) = self.dirty.get(at).copied() {
            at += 1;
            let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            entry.dirty = false;
            if entry.gone {
                self.reap(index);
                continue;
            }
            let broken = !self.send(index);
            let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            if broken || entry.conn.state() == ConnState::Closed {
                self.close(index);
                continue;
            }
            if entry.paused && entry.conn.wants_bytes() {
                entry.paused = false;
                self.sockets.want_read(&entry.sock, key_of(index), true).ok();
            }
        }
        self.dirty.clear();
    }

    /// Sends what a connection has; false when it is broken.
    #[inline]
    fn send(&mut self, index: u32) -> bool {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return true };
        let mut blocked = false;
        while !entry.conn.tx.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let (count, bytes) = entry.conn.tx.gather(entry.conn.slab(), &mut pieces);
            let sent = match pieces.get(..count) {
                Some([piece]) => entry.sock.send(piece),
                Some(pieces) => entry.sock.send_vectored(pieces),
                None => Ok(None),
            };
            let Ok(sent) = sent else { return false };
            let len = sent.unwrap_or(0);
            if len > 0 {
                entry.conn.sent(len, &mut self.core);
            }
            if len < bytes {
                blocked = true;
                break;
            }
        }
        if blocked != entry.wants_write {
            entry.wants_write = blocked;
            self.sockets.want_write(&entry.sock, key_of(index), blocked).ok();
        }
        if entry.conn.state() == ConnState::Ending {
            if !std::mem::replace(&mut entry.winding_up, true) {
                entry.deadline = self.core.now.plus_ns(CLOSE_GRACE_NS);
            }
            if !blocked {
                entry.sock.shutdown(Shutdown::Write).ok();
            }
        }
        true
    }
}
