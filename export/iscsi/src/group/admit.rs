//! Listening, accepting, handing connections to the least loaded reactor, time-outs, and closing.

use std::net::SocketAddr;

use penstock_reactor::net::{Interest, Link, SocketOptions, TcpSocket, conn_key};
use penstock_reactor::{ReactorError, Tick};

use super::core::Core;
use super::read::CLOSE_GRACE_NS;
use super::{Entry, Group, GroupCell, STUCK_NS};
use crate::conn::{Conn, ConnState};

/// Connections accepted per turn.
const ACCEPT_BUDGET: usize = 64;
/// How long initiators have for a logout that they are asked for, in seconds.
pub(super) const LOGOUT_SECONDS: u16 = 3;
pub(super) const SECOND_NS: u64 = 1_000_000_000;

impl Core {
    /// When a silent initiator is to be asked whether it is still there.
    pub(super) fn ping_at(&self) -> Tick {
        match self.common.options.nop_in_interval {
            0 => Tick::NEVER,
            seconds => self.now.plus_ns(u64::from(seconds) * SECOND_NS),
        }
    }
}

impl Group {
    pub(super) fn listen(&mut self, addr: SocketAddr, tpgt: u16) -> Result<SocketAddr, ReactorError> {
        self.listeners.listen(&mut self.sockets, addr, &SocketOptions::default(), None, tpgt)
    }

    pub(super) fn unlisten(&mut self, addr: SocketAddr) -> bool {
        self.listeners.close(&mut self.sockets, |known, _| known == addr)
    }

    pub(super) fn accept(&mut self, key: u32, now: Tick) -> usize {
        let mut accepted = 0;
        while accepted < ACCEPT_BUDGET
            && let Some((sock, peer, tpgt)) = self.listeners.accept(&mut self.sockets, key)
        {
            accepted += 1;
            self.hand_over(sock, peer, tpgt, now);
        }
        accepted
    }

    fn hand_over(&mut self, sock: TcpSocket, peer: SocketAddr, tpgt: u16, now: Tick) {
        let peers = &self.core.common.peers;
        let to = peers.least_loaded();
        peers.add_load(to, true);
        if to == self.core.index {
            self.adopt(sock, peer, tpgt, &[], now);
            return;
        }
        let Some(handle) = peers.handle(to) else { return };
        let sent = handle.send(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.0.borrow_mut().adopt(sock, peer, tpgt, &[], cx.now());
            }
        });
        if let Err(error) = sent {
            peers.add_load(to, false);
            tracing::warn!(%error, "a connection is dropped");
        }
    }

    /// A connection's session lives on another reactor: it goes there, with what has come.
    #[cold]
    pub(super) fn move_away(&mut self, index: u32, to: usize, bytes: Vec<u8>) {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::take) else { return };
        self.core.forget_conn(index);
        self.half_open = self.half_open.saturating_sub(u32::from(entry.half_open));
        // Its place may still be in the list of those to be flushed, which passes over free ones.
        self.free.push(index);
        let (peer, tpgt) = (entry.conn.addr, entry.conn.tpgt);
        let sock = entry.link.into_sock(&mut self.sockets);
        let peers = &self.core.common.peers;
        peers.add_load(self.core.index, false);
        let Some(handle) = peers.handle(to) else { return };
        peers.add_load(to, true);
        let sent = handle.send(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.0.borrow_mut().adopt(sock, peer, tpgt, &bytes, cx.now());
            }
        });
        if let Err(error) = sent {
            peers.add_load(to, false);
            tracing::warn!(%error, "a connection is dropped");
        }
    }

    /// Takes a connection in, on which `bytes` have come already.
    fn adopt(&mut self, sock: TcpSocket, peer: SocketAddr, tpgt: u16, bytes: &[u8], now: Tick) {
        let options = &self.core.common.options;
        let open = self.entries.len() - self.free.len();
        let full = open >= options.connections_max as usize
            || self.half_open >= options.half_open_max
            || self.draining;
        let deadline = now.plus_ns(u64::from(options.login_timeout) * SECOND_NS);
        let index = match self.free.pop() {
            Some(index) => index,
            None => u32::try_from(self.entries.len()).unwrap_or(u32::MAX),
        };
        let added = if full {
            Err(std::io::ErrorKind::QuotaExceeded.into())
        } else {
            sock.set_options(&SocketOptions::default())
                .and_then(|()| self.sockets.add(&sock, conn_key(index), Interest::READ))
        };
        if index as usize == self.entries.len() {
            self.entries.push(None);
            self.core.serials.push(0);
            self.dirty.reserve(self.entries.len());
        }
        if let Err(error) = added {
            self.core.stats.refused += 1;
            self.free.push(index);
            self.core.common.peers.add_load(self.core.index, false);
            tracing::debug!(%error, "a connection is refused");
            return;
        }
        self.serial += 1;
        self.half_open += 1;
        if let Some(serial) = self.core.serials.get_mut(index as usize) {
            *serial = self.serial;
        }
        self.core.stats.accepted += 1;
        let mut conn = Conn::new(index, peer, tpgt);
        conn.local = sock.local_addr().unwrap_or(conn.local);
        let entry = Entry {
            link: Link::new(sock, conn_key(index)),
            conn,
            serial: self.serial,
            deadline,
            moved: now,
            half_open: true,
            dirty: false,
            winding_up: false,
            gone: false,
        };
        if let Some(slot) = self.entries.get_mut(index as usize) {
            *slot = Some(Box::new(entry));
        }
        if !bytes.is_empty() {
            self.core.now = now;
            if let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) {
                entry.conn.receive(bytes, &mut self.core);
            }
            self.note_login(index);
            self.touch(index);
        }
    }

    /// A login may be over by now.
    pub(super) fn note_login(&mut self, index: u32) {
        let interval = self.core.ping_at();
        let Some(entry) = self.entry_mut(index) else { return };
        if entry.half_open && entry.conn.state() == ConnState::Full {
            entry.half_open = false;
            entry.deadline = interval;
            self.half_open = self.half_open.saturating_sub(1);
        }
    }

    /// Closes a connection now. What the bdevs have of it comes back later; until then its place stays taken.
    pub(super) fn close(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if entry.gone {
            return;
        }
        entry.gone = true;
        self.core.stats.note_refusal(entry.conn.refused);
        if std::mem::take(&mut entry.half_open) {
            self.half_open = self.half_open.saturating_sub(1);
        }
        // The peer learns of it now, not when the last I/O is back.
        entry.link.close(&mut self.sockets);
        entry.conn.close(&mut self.core);
        self.core.forget_conn(index);
        let common = &self.core.common;
        common.peers.add_load(self.core.index, false);
        if let Some(session) = entry.conn.session.clone() {
            self.core.left(index, &session);
        }
        self.reap(index);
    }

    /// Frees the place of a closed connection when nothing of it is under way.
    pub(super) fn reap(&mut self, index: u32) {
        let Some(entry) = self.entries.get(index as usize).and_then(Option::as_ref) else { return };
        if !entry.gone || entry.conn.out() > 0 || entry.dirty {
            return;
        }
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::take) else { return };
        self.free.push(index);
        // Only when nothing of the session is under way may another take its name.
        if let Some(session) = entry.conn.session.as_ref().filter(|session| session.members().is_empty()) {
            let rest = self
                .entries
                .iter()
                .flatten()
                .any(|other| other.conn.session.as_ref().is_some_and(|other| other.tsih == session.tsih));
            if !rest {
                self.core.common.sessions.leave(&session.key, session.tsih);
            }
        }
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.listeners.close_all(&mut self.sockets);
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            self.wind_up(index);
        }
    }

    /// Asks the initiator of a session to log out, and ends the session if it does not; ends what is none yet.
    pub(super) fn wind_up(&mut self, index: u32) {
        let grace = self.core.now.plus_ns(u64::from(LOGOUT_SECONDS) * SECOND_NS);
        let Some(entry) = self.entry_mut(index).filter(|entry| !entry.gone) else { return };
        if entry.conn.state() != ConnState::Full {
            return self.close(index);
        }
        if !entry.winding_up {
            entry.conn.push_logout_request(LOGOUT_SECONDS);
            entry.winding_up = true;
            entry.deadline = grace;
            self.touch(index);
        }
    }

    /// Ends a connection whose time is over; where it has a session, the initiator is told first.
    fn time_out(&mut self, index: u32) {
        let grace = self.core.now.plus_ns(CLOSE_GRACE_NS);
        let Some(entry) = self.entry_mut(index) else { return };
        if entry.conn.state() != ConnState::Full {
            return self.close(index);
        }
        if entry.winding_up {
            // It did not log out when asked to.
            entry.conn.push_session_drop();
        } else {
            entry.conn.push_connection_drop();
        }
        entry.conn.end();
        entry.winding_up = true;
        entry.deadline = grace;
        self.touch(index);
    }

    /// Time-outs: logins that never end, silent initiators, peers that do not close.
    pub(super) fn scan(&mut self, now: Tick) {
        self.listeners.resume(&mut self.sockets);
        let starved = !self.core.starved.is_empty();
        let (interval, timeout) =
            (self.core.ping_at(), u64::from(self.core.common.options.nop_timeout) * SECOND_NS);
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(entry) = self.entry_mut(index).filter(|entry| !entry.gone) else { continue };
            let stuck = starved && now.ns_since(entry.moved) > STUCK_NS && entry.conn.is_owed_by_peer();
            if stuck {
                tracing::warn!(peer = %entry.conn.addr, "an initiator keeps buffers and does not go on: closed");
                self.close(index);
                continue;
            }
            let heard = std::mem::take(&mut entry.conn.heard);
            if entry.conn.state() == ConnState::Closed {
                self.close(index);
                continue;
            }
            let quiet = entry.conn.state() == ConnState::Full && !entry.winding_up;
            if quiet && heard && !entry.conn.ping_out {
                entry.deadline = interval;
            } else if now >= entry.deadline {
                if quiet && !entry.conn.ping_out {
                    entry.conn.push_ping();
                    entry.deadline = now.plus_ns(timeout);
                    self.touch(index);
                } else {
                    tracing::debug!(peer = %entry.conn.addr, "an iSCSI connection is timed out");
                    let in_time = entry.winding_up;
                    self.core.stats.timed_out += u64::from(!in_time);
                    self.time_out(index);
                }
            } else if quiet
                && !entry.conn.ping_out
                && entry.deadline == Tick::NEVER
                && interval != Tick::NEVER
            {
                entry.deadline = interval;
            }
        }
    }
}
