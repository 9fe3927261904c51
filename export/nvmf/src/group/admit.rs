//! Listening, accepting, handing connections to the least loaded reactor, and closing them.

use std::net::SocketAddr;

use penstock_reactor::net::{Interest, SocketOptions, TcpListener, TcpSocket};
use penstock_reactor::{ReactorError, Tick};

use super::{Entry, Group, GroupCell, LISTENERS_MAX, Listener, STUCK_NS};
use crate::qpair::Link;
use crate::tcp::conn::{Conn, ConnState};

/// Connections accepted per turn.
const ACCEPT_BUDGET: usize = 64;

/// The key of a connection in the socket group.
pub(super) fn key_of(index: u32) -> u32 {
    index.saturating_add(u32::try_from(LISTENERS_MAX).unwrap_or(0))
}

impl Group {
    fn socket_options(&self) -> SocketOptions {
        let priority = self.core.params.sock_priority;
        SocketOptions { priority: (priority > 0).then_some(priority), ..SocketOptions::default() }
    }

    pub(super) fn listen(&mut self, addr: SocketAddr, portid: u16) -> Result<SocketAddr, ReactorError> {
        let full =
            |kind: std::io::ErrorKind| ReactorError::Os { what: "add a listener", source: kind.into() };
        let free = self.listeners.iter().position(Option::is_none).unwrap_or(self.listeners.len());
        if free >= LISTENERS_MAX {
            return Err(full(std::io::ErrorKind::QuotaExceeded));
        }
        let sock = TcpListener::bind(addr, &self.socket_options(), false)?;
        let backlog = i32::try_from(self.core.params.backlog).unwrap_or(i32::MAX);
        rustix::net::listen(&sock, backlog)
            .map_err(|errno| ReactorError::Os { what: "set a listener's backlog", source: errno.into() })?;
        let addr = sock.local_addr().map_err(|source| ReactorError::Os { what: "ask for a port", source })?;
        let key = u32::try_from(free).unwrap_or(u32::MAX);
        self.sockets
            .add(&sock, key, Interest::READ)
            .map_err(|source| ReactorError::Os { what: "watch a listener", source })?;
        if free == self.listeners.len() {
            self.listeners.push(None);
        }
        if let Some(slot) = self.listeners.get_mut(free) {
            *slot = Some(Listener { sock, addr, portid, paused: false });
        }
        tracing::info!(%addr, portid, "listening");
        Ok(addr)
    }

    pub(super) fn unlisten(&mut self, portid: u16) -> bool {
        let found = self.listeners.iter().position(|slot| slot.as_ref().is_some_and(|l| l.portid == portid));
        found.is_some_and(|at| self.close_listener(at))
    }

    pub(super) fn close_listener(&mut self, at: usize) -> bool {
        let Some(listener) = self.listeners.get_mut(at).and_then(Option::take) else { return false };
        self.sockets.remove(&listener.sock, u32::try_from(at).unwrap_or(u32::MAX));
        tracing::info!(addr = %listener.addr, "listening no more");
        true
    }

    pub(super) fn accept(&mut self, key: u32, now: Tick) -> usize {
        let mut accepted = 0;
        while accepted < ACCEPT_BUDGET {
            let Some(listener) = self.listeners.get_mut(key as usize).and_then(Option::as_mut) else { break };
            let portid = listener.portid;
            match listener.sock.accept() {
                Ok(Some((sock, _))) => {
                    accepted += 1;
                    self.hand_over(sock, portid, now);
                }
                Ok(None) => break,
                Err(error) => {
                    // Out of descriptors: the next scan tries again.
                    tracing::warn!(addr = %listener.addr, %error, "cannot accept");
                    listener.paused = true;
                    self.sockets.set_interest(&listener.sock, key, Interest::NONE).ok();
                    break;
                }
            }
        }
        accepted
    }

    /// Listeners that had to pause listen again.
    pub(super) fn resume_listeners(&mut self) {
        for (listener, key) in self.listeners.iter_mut().zip(0..) {
            if let Some(listener) = listener.as_mut().filter(|listener| listener.paused) {
                listener.paused = false;
                self.sockets.set_interest(&listener.sock, key, Interest::READ).ok();
            }
        }
    }

    fn hand_over(&mut self, sock: TcpSocket, portid: u16, now: Tick) {
        let to = self.peers.least_loaded();
        self.peers.add_load(to, true);
        if to == self.index {
            self.adopt(sock, portid, now);
            return;
        }
        let Some(handle) = self.peers.handles.get(to) else { return };
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
            sock.set_options(&options).and_then(|()| self.sockets.add(&sock, key_of(index), Interest::READ))
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
            sock,
            conn: Conn::new(index, Link::New),
            serial: self.serial,
            portid,
            deadline: now.plus_ns(self.core.params.connect_timeout_ns),
            half_open: true,
            dirty: false,
            moved: now,
            wants_write: false,
            paused: false,
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
        self.sockets.remove(&entry.sock, key_of(index));
        // The peer learns of it now, not when the last I/O is back.
        entry.sock.shutdown(std::net::Shutdown::Both).ok();
        entry.conn.close(&mut self.core);
        self.core.forget_conn(index);
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
        self.resume_listeners();
        let starved = !self.core.starved.is_empty();
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(entry) = self.entry_mut(index) else { continue };
            let dead = matches!(&entry.conn.link, Link::Io(queue) if !queue.shared.is_alive());
            let stuck = starved && entry.conn.owed_by_peer() && now.ns_since(entry.moved) > STUCK_NS;
            if stuck {
                tracing::warn!(peer = ?entry.sock.peer_addr(), "a host keeps buffers and does not go on: closed");
            }
            if dead || stuck || now >= entry.deadline || entry.conn.state() == ConnState::Closed {
                self.close(index);
            }
        }
        self.tick_associations(now);
    }
}
