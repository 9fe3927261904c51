//! Listening, accepting, handing connections to the least loaded reactor, and closing them.

use std::net::SocketAddr;

use penstock_reactor::net::{Interest, SocketOptions, TcpSocket, conn_key};
use penstock_reactor::{ReactorError, Tick};

use super::{Entry, Group, GroupCell, STUCK_NS};
use crate::qpair::Link;
use crate::tcp::conn::{Conn, ConnState};
use crate::tls::Wire;

/// Connections accepted per turn.
const ACCEPT_BUDGET: usize = 64;

impl Group {
    fn socket_options(&self) -> SocketOptions {
        let priority = self.core.params.sock_priority;
        SocketOptions { priority: (priority > 0).then_some(priority), ..SocketOptions::default() }
    }

    pub(super) fn listen(&mut self, addr: SocketAddr, portid: u16) -> Result<SocketAddr, ReactorError> {
        let backlog = Some(self.core.params.backlog);
        let options = self.socket_options();
        self.listeners.listen(&mut self.sockets, addr, &options, backlog, portid)
    }

    pub(super) fn unlisten(&mut self, portid: u16) -> bool {
        self.listeners.close(&mut self.sockets, |_, known| known == portid)
    }

    pub(super) fn accept(&mut self, key: u32, now: Tick) -> usize {
        let mut accepted = 0;
        while accepted < ACCEPT_BUDGET
            && let Some((sock, _, portid)) = self.listeners.accept(&mut self.sockets, key)
        {
            accepted += 1;
            self.hand_over(sock, portid, now);
        }
        accepted
    }

    fn hand_over(&mut self, sock: TcpSocket, portid: u16, now: Tick) {
        let to = self.peers.least_loaded();
        self.peers.add_load(to, true);
        if to == self.index {
            self.adopt(sock, portid, now);
            return;
        }
        let Some(handle) = self.peers.handle(to) else { return };
        let sent = handle.send(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.0.borrow_mut().adopt(sock, portid, cx.now());
            }
        });
        if let Err(error) = sent {
            self.peers.add_load(to, false);
            tracing::warn!(%error, "a connection is dropped");
        }
    }

    /// Takes a connection in.
    pub(super) fn adopt(&mut self, sock: TcpSocket, portid: u16, now: Tick) {
        if self.half_open >= self.core.params.half_open_max {
            self.drop_oldest_half_open();
        }
        let open = self.entries.len() - self.free.len();
        let full = open >= self.core.params.connections_max as usize || self.draining;
        let index = match self.free.pop() {
            Some(index) => index,
            None => u32::try_from(self.entries.len()).unwrap_or(u32::MAX),
        };
        let options = self.socket_options();
        let added = if full {
            Err(std::io::ErrorKind::QuotaExceeded.into())
        } else {
            sock.set_options(&options).and_then(|()| self.sockets.add(&sock, conn_key(index), Interest::READ))
        };
        if index as usize == self.entries.len() {
            self.entries.push(None);
            self.dirty.reserve(self.entries.len());
        }
        if let Err(error) = added {
            self.core.stats.refused += 1;
            self.free.push(index);
            self.peers.add_load(self.index, false);
            tracing::debug!(%error, "a connection is refused");
            return;
        }
        self.serial += 1;
        self.half_open += 1;
        let entry = Entry {
            wire: Wire::new(sock, conn_key(index)),
            conn: Conn::new(index, Link::New),
            serial: self.serial,
            portid,
            auth: None,
            deadline: now.plus_ns(self.core.params.connect_timeout_ns),
            half_open: true,
            dirty: false,
            moved: now,
            ending: false,
            winding_up: false,
            gone: false,
        };
        if let Some(slot) = self.entries.get_mut(index as usize) {
            *slot = Some(Box::new(entry));
        }
    }

    /// Makes room among the half-open connections: a flood of them must not keep out who really wants to connect, and
    /// that is over in a moment.
    #[cold]
    fn drop_oldest_half_open(&mut self) {
        let half_open = (0..).zip(&self.entries).filter_map(|(index, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.half_open && !entry.gone)?;
            Some((entry.serial, index))
        });
        if let Some((_, index)) = half_open.min() {
            self.core.stats.refused += 1;
            self.close(index);
        }
    }

    /// A connection has got through its Connect.
    pub(super) fn established(&mut self, index: u32) {
        let Some(entry) = self.entry_mut(index) else { return };
        entry.deadline = Tick::NEVER;
        if std::mem::take(&mut entry.half_open) {
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
        if std::mem::take(&mut entry.half_open) {
            self.half_open = self.half_open.saturating_sub(1);
        }
        // The peer learns of it now, not when the last I/O is back.
        entry.wire.close(&mut self.sockets);
        entry.conn.close(&mut self.core);
        self.core.forget_conn(index);
        // The sooner they end, the sooner the host may have another controller.
        self.core.abort_all(index, &entry.conn);
        self.peers.add_load(self.index, false);
        if entry.conn.error().is_some() {
            self.core.stats.terminated += 1;
        }
        if let Link::Admin { controller } = entry.conn.link {
            self.end_association(controller as usize);
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
        if let Link::Io(queue) = entry.conn.link {
            self.left(&queue);
            self.sweep_subsystems();
        }
    }

    /// Time-outs: connections that never connect, terminated ones whose peer does not close, dead associations.
    pub(super) fn scan(&mut self, now: Tick) {
        self.listeners.resume(&mut self.sockets);
        let starved = !self.core.starved.is_empty();
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(entry) = self.entry_mut(index) else { continue };
            let dead = matches!(&entry.conn.link, Link::Io(queue) if !queue.shared.is_alive() || queue.shared.is_forsaken(now));
            let stuck = starved && entry.conn.owed_by_peer() && now.ns_since(entry.moved) > STUCK_NS;
            if stuck {
                tracing::warn!(peer = ?entry.wire.sock().peer_addr(), "a host keeps buffers and does not go on: closed");
            }
            if now >= entry.deadline && !entry.winding_up && entry.is_locked() {
                let auth = entry.auth.as_deref();
                let (host, state) =
                    (auth.map(|auth| auth.parties.host), auth.map(|auth| auth.side.state_name()));
                tracing::warn!(?host, ?state, "a host takes too long to authenticate itself: closed");
            }
            if dead || stuck || now >= entry.deadline || entry.conn.state() == ConnState::Closed {
                self.close(index);
            }
        }
        self.tick_associations(now);
        if self.has_fences() {
            self.look_at_fences();
        }
    }
}
