//! Bytes between sockets and machines, I/Os between machines and bdevs.

use penstock_bdev::Io;
use penstock_reactor::Tick;
use penstock_reactor::net::{Ready, Received, conn_of};

use super::{DONE_BUDGET, Group};
use crate::conn::{CmdId, ConnState};

/// How long a connection that ends may take to send what it has and to be closed by its peer, in nanoseconds.
pub(super) const CLOSE_GRACE_NS: u64 = 1_000_000_000;

impl Group {
    #[inline]
    pub(super) fn socket_ready(&mut self, ready: Ready, now: Tick) -> usize {
        let Some(index) = conn_of(ready.key) else {
            return self.accept(ready.key, now);
        };
        if ready.writable {
            self.touch(index);
        }
        if !ready.readable {
            return usize::from(ready.writable);
        }
        if ready.broken && self.entry_mut(index).is_some_and(|entry| entry.link.is_paused()) {
            self.close(index);
            return 1;
        }
        self.read(index, now)
    }

    /// Receives once from a connection and handles what came.
    #[inline]
    fn read(&mut self, index: u32, now: Tick) -> usize {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return 0 };
        if entry.gone {
            return 0;
        }
        let entry = &mut **entry;
        match entry.link.receive(&mut self.sockets, &mut entry.conn, &mut self.rx, &mut self.core) {
            Received::Bytes(_) => entry.moved = now,
            Received::Nothing => return 0,
            Received::End => {
                self.close(index);
                return 1;
            }
        }
        if entry.half_open {
            if let Some((to, bytes)) = entry.conn.take_moving() {
                self.move_away(index, to, bytes);
                return 1;
            }
            self.note_login(index);
        }
        let Some(entry) = self.entry_mut(index) else { return 1 };
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(index);
        }
        1
    }

    /// Commands that found no buffer try again, in the order in which they came.
    pub(super) fn retry_starved(&mut self) -> usize {
        let waiting = self.core.starved.len();
        self.core.serving_starved = true;
        let served = self.serve_starved(waiting);
        self.core.serving_starved = false;
        served
    }

    fn serve_starved(&mut self, waiting: usize) -> usize {
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
        self.run_asks();
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
            entry.link.resume(&mut self.sockets, entry.conn.wants_bytes());
        }
        self.dirty.clear();
    }

    /// Sends what a connection has; false when it is broken.
    #[inline]
    fn send(&mut self, index: u32) -> bool {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return true };
        let entry = &mut **entry;
        let Ok(sent) = entry.link.send(&mut self.sockets, &mut entry.conn, &mut self.core) else {
            return false;
        };
        if sent.bytes > 0 {
            entry.moved = self.core.now;
        }
        if entry.conn.state() == ConnState::Ending {
            if !std::mem::replace(&mut entry.winding_up, true) {
                entry.deadline = self.core.now.plus_ns(CLOSE_GRACE_NS);
            }
            if sent.all {
                entry.link.end();
            }
        }
        true
    }
}
