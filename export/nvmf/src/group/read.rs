//! Bytes between sockets and machines, I/Os between machines and bdevs.

use penstock_bdev::{Io, IoStatus};
use penstock_reactor::Tick;
use penstock_reactor::net::{Ready, Received, conn_of};
use penstock_spec::nvme::Status;

use super::{DONE_BUDGET, Group, RX_TURN_BYTES};
use crate::qpair::Link;
use crate::status;
use crate::tcp::conn::ConnState;
use crate::tcp::req::{Dir, ReqId};

/// While so many bytes of data are expected, little is received beyond the buffer that they go to.
const BULK_BYTES: u64 = 32 << 10;
/// What is received then behind the buffer: the next header and a little data.
const BULK_RX_BYTES: usize = 4096;

impl Group {
    /// Receives from the sockets that are ready, within the turn's budget.
    #[inline]
    pub(super) fn read_sockets(&mut self, now: Tick) -> usize {
        if self.ready_at >= self.ready.len() {
            self.ready_at = 0;
            self.sockets.poll(&mut self.ready);
        }
        self.rx_left = RX_TURN_BYTES;
        let mut work = 0;
        while self.rx_left > 0
            && let Some(ready) = self.ready.get(self.ready_at).copied()
        {
            self.ready_at += 1;
            work += self.socket_ready(ready, now);
        }
        work
    }

    #[inline]
    fn socket_ready(&mut self, ready: Ready, now: Tick) -> usize {
        let Some(index) = conn_of(ready.key) else {
            return self.accept(ready.key, now);
        };
        if ready.writable {
            self.touch(index);
        }
        if !ready.readable {
            return usize::from(ready.writable);
        }
        if ready.broken && self.entry_mut(index).is_some_and(|entry| entry.wire.is_paused()) {
            self.close(index);
            return 1;
        }
        self.read(index)
    }

    /// Receives once from a connection and handles what came.
    #[inline]
    pub(super) fn read(&mut self, index: u32) -> usize {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return 0 };
        if entry.gone {
            return 0;
        }
        if entry.conn.state() == ConnState::New {
            match self.tls_first(index) {
                Some(_) => {}
                None => {
                    self.close(index);
                    return 1;
                }
            }
        }
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return 0 };
        if entry.wire.is_shaking() {
            return self.tls_shake(index);
        }
        let entry = &mut **entry;
        let bulk = entry.conn.r2t_left() >= BULK_BYTES;
        let limit = if bulk && !entry.wire.is_secure() { BULK_RX_BYTES } else { self.rx.len() };
        let room = self.rx.get_mut(..limit).unwrap_or_default();
        let len = match entry.wire.receive(&mut self.sockets, &mut entry.conn, room, &mut self.core) {
            Received::Bytes(len) => len,
            Received::Nothing => return 0,
            Received::End => {
                self.close(index);
                return 1;
            }
        };
        self.rx_left = self.rx_left.saturating_sub(len);
        entry.moved = self.core.now;
        if let Link::Io(queue) = &entry.conn.link {
            queue.shared.note_traffic();
        }
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(index);
        }
        1
    }

    /// Requests that found no buffer try again, in the order in which they came.
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

    /// Takes ended I/Os from the bdevs and answers their commands.
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
            entry.conn.execute(id.slot, &mut self.core);
            self.touch(id.conn);
        }
        self.done = done;
        self.again = again;
        work
    }

    #[inline]
    fn io_done(&mut self, io: Box<Io>) {
        let ReqId { conn: index, slot } = ReqId::from_tag(io.tag);
        let ended = io.status;
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if !entry.conn.io_back(slot, io, &mut self.core) {
            self.reap(index);
            return;
        }
        let Some(req) = entry.conn.req_mut(slot) else { return };
        let ok = ended == IoStatus::Success;
        if ok && req.kind.has_more() {
            entry.conn.execute(slot, &mut self.core);
        } else {
            self.core.stats.completed_nvme_io += 1;
            let data = if req.dir == Dir::ToHost { req.len } else { 0 };
            if !ok {
                return self.io_failed(ReqId { conn: index, slot }, ended);
            }
            entry.conn.respond(slot, Status::SUCCESS, 0, data, &mut self.core);
        }
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(index);
        }
    }

    /// An I/O has failed: its command is answered, and its controller learns of it.
    #[cold]
    fn io_failed(&mut self, id: ReqId, ended: IoStatus) {
        if ended == IoStatus::Aborted {
            self.abort_ended(id);
        }
        let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else { return };
        let status = status::to_nvme(ended);
        let entry = &mut **entry;
        if let Some(req) = entry.conn.slab().get(id.slot) {
            self.core.failed(&entry.conn.link, req, req.io.as_deref(), status);
        }
        let result = entry.conn.slab().get(id.slot).map_or(0, |req| req.result);
        entry.conn.respond(id.slot, status, result.into(), 0, &mut self.core);
        self.touch(id.conn);
    }

    /// Sends what the turn's work has left to be sent.
    #[inline]
    pub(super) fn flush(&mut self) {
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
            let closed = entry.conn.state() == ConnState::Closed;
            if broken || closed {
                self.close(index);
                continue;
            }
            if entry.conn.has_waiting() {
                entry.conn.retry_waiting(&mut self.core);
                if !entry.conn.tx.is_empty() && !entry.wire.is_blocked() {
                    entry.dirty = true;
                    self.later.push(index);
                }
            }
            entry.wire.resume(&mut self.sockets, entry.conn.wants_bytes());
        }
        self.dirty.clear();
        std::mem::swap(&mut self.dirty, &mut self.later);
    }

    /// Sends what a connection has; false when it is broken.
    #[inline]
    fn send(&mut self, index: u32) -> bool {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return true };
        let entry = &mut **entry;
        let Ok(sent) = entry.wire.send(&mut self.sockets, &mut entry.conn, &mut self.core) else {
            return false;
        };
        if sent.bytes > 0 {
            entry.moved = self.core.now;
        }
        let over = entry.ending || entry.conn.state() == ConnState::Terminating;
        if over {
            self.wind_up(index, sent.all);
        }
        true
    }

    /// A connection that is to end gets its last deadline; when everything is sent, the peer learns that it is.
    #[cold]
    fn wind_up(&mut self, index: u32, all_sent: bool) {
        let deadline = self.core.now.plus_ns(self.core.params.close_grace_ns);
        let Some(entry) = self.entry_mut(index) else { return };
        if !std::mem::replace(&mut entry.winding_up, true) {
            entry.deadline = deadline;
        }
        if all_sent {
            entry.wire.end();
        }
    }
}
