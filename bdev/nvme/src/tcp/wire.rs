//! A queue pair on its socket, polled by the reactor that it was given to.

use std::io::IoSlice;

use penstock_nvme_tcp::qpair::Rejected;
use penstock_nvme_tcp::{Completion, Payload as _, Qpair, QpairState, Transfer, Tunnel};
use penstock_reactor::net::{
    Interest, Link, Machine, PIECES_MAX, Received, SOCKETS_MAX, SocketGroup, TcpSocket,
};
use penstock_reactor::sys::wake::SleepSet;
use penstock_reactor::{ReactorError, net};
use penstock_spec::nvme::Sqe;

use super::payload::IoPayload;

/// Bytes that are received behind data whose place is known, at once.
const ROOM_BYTES: usize = 256 << 10;

/// Whose a socket is: the disk's number and the path's.
pub(super) type Owner = (u64, u32);

/// All sockets of one reactor.
#[derive(Debug)]
pub(super) struct Sockets {
    group: SocketGroup,
    /// By key.
    owners: Vec<Option<Owner>>,
    room: Box<[u8]>,
    pub(super) ready: Vec<net::Ready>,
}

impl Sockets {
    pub(super) fn new(sleep_set: &SleepSet) -> Result<Self, ReactorError> {
        Ok(Self {
            group: SocketGroup::new(sleep_set)?,
            owners: Vec::new(),
            room: vec![0; ROOM_BYTES].into_boxed_slice(),
            ready: Vec::with_capacity(net::READY_MAX),
        })
    }

    /// Looks which sockets are worth trying.
    pub(super) fn poll(&mut self) {
        self.group.poll(&mut self.ready);
    }

    pub(super) fn owner(&self, key: u32) -> Option<Owner> {
        *self.owners.get(usize::try_from(key).ok()?)?
    }

    fn add(&mut self, socket: &TcpSocket, owner: Owner) -> std::io::Result<u32> {
        let unused = self.owners.iter().position(Option::is_none).unwrap_or(self.owners.len());
        let key = u32::try_from(unused).ok().filter(|_| unused < SOCKETS_MAX);
        let key = key.ok_or(std::io::ErrorKind::QuotaExceeded)?;
        self.group.add(socket, key, Interest::READ)?;
        match self.owners.get_mut(unused) {
            Some(place) => *place = Some(owner),
            None => self.owners.push(Some(owner)),
        }
        Ok(key)
    }
}

/// The queue pair, as its socket sees it.
#[derive(Debug)]
struct Wire {
    qpair: Qpair<IoPayload>,
    broken: bool,
}

impl Machine<()> for Wire {
    fn wants_bytes(&self) -> bool {
        true
    }

    fn direct(&mut self) -> Option<&mut [u8]> {
        self.qpair.rx_target()
    }

    fn direct_came(&mut self, len: usize, (): &mut ()) {
        self.broken |= self.qpair.rx_received(len).is_err();
    }

    fn receive(&mut self, bytes: &[u8], (): &mut ()) {
        self.broken |= self.qpair.recv(bytes).is_err();
    }

    fn has_unsent(&self) -> bool {
        self.qpair.tx_len_bytes() > 0
    }

    fn gather<'a>(&'a self, pieces: &mut [IoSlice<'a>; PIECES_MAX]) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for (piece, slice) in pieces.iter_mut().zip(self.qpair.tx_slices()) {
            *piece = IoSlice::new(slice);
            count += 1;
            bytes += slice.len();
        }
        (count, bytes)
    }

    fn sent(&mut self, len: usize, (): &mut ()) {
        self.qpair.tx_consume(len);
    }
}

/// A connection of a path on one reactor.
#[derive(Debug)]
pub(super) struct Connection {
    link: Link,
    key: u32,
    wire: Wire,
    /// Not there on connections without TLS.
    tunnel: Option<Box<Tunnel>>,
    /// TLS waits for room to send.
    is_tunnel_blocked: bool,
    pub(super) qid: u16,
}

impl Connection {
    /// Takes over a queue pair that is live, with its socket.
    ///
    /// # Errors
    /// What the kernel says; the connection is closed then.
    pub(super) fn new(
        qpair: Qpair<IoPayload>,
        qid: u16,
        socket: TcpSocket,
        tunnel: Option<Tunnel>,
        sockets: &mut Sockets,
        owner: Owner,
    ) -> std::io::Result<Self> {
        let key = sockets.add(&socket, owner)?;
        let wire = Wire { qpair, broken: false };
        let tunnel = tunnel.map(Box::new);
        Ok(Self { link: Link::new(socket, key), key, wire, tunnel, is_tunnel_blocked: false, qid })
    }

    /// Receives what has come.
    #[inline]
    pub(super) fn receive(&mut self, sockets: &mut Sockets) {
        let Sockets { group, room, .. } = sockets;
        if let Some(tunnel) = &mut self.tunnel {
            match tunnel.receive(self.link.sock(), &mut self.wire.qpair, room) {
                Ok(came) => group.note(self.key, came),
                Err(_) => self.wire.broken = true,
            }
            return;
        }
        if self.link.receive(group, &mut self.wire, room, &mut ()) == Received::End {
            self.wire.broken = true;
        }
    }

    /// Sends what is queued, as far as the socket takes it.
    #[inline]
    pub(super) fn send(&mut self, sockets: &mut Sockets) {
        if self.tunnel.is_some() {
            return self.send_sealed(sockets);
        }
        if self.wire.has_unsent() && self.link.send(&mut sockets.group, &mut self.wire, &mut ()).is_err() {
            self.wire.broken = true;
        }
    }

    fn send_sealed(&mut self, sockets: &mut Sockets) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let Ok(all) = tunnel.send(self.link.sock(), &mut self.wire.qpair) else {
            self.wire.broken = true;
            return;
        };
        if self.is_tunnel_blocked == all {
            self.is_tunnel_blocked = !all;
            sockets.group.want_write(self.link.sock(), self.key, !all).ok();
        }
    }

    /// Whether the connection is over.
    #[inline]
    pub(super) fn is_broken(&self) -> bool {
        self.wire.broken
    }

    /// Whether there is something to send that the socket may take.
    pub(super) fn wants_to_send(&self) -> bool {
        match &self.tunnel {
            None => self.wire.has_unsent() && !self.link.is_blocked(),
            Some(_) => self.wire.has_unsent() && !self.is_tunnel_blocked,
        }
    }

    /// Why the queue pair closed, where it did so by itself.
    pub(super) fn why(&self) -> String {
        match self.wire.qpair.state() {
            QpairState::Closed(error) => error.to_string(),
            _ => "the connection was closed or reset".to_owned(),
        }
    }

    /// Room for so many commands.
    #[inline]
    pub(super) fn has_room(&self, commands: usize) -> bool {
        self.wire.qpair.outstanding() + commands <= self.wire.qpair.depth()
    }

    #[inline]
    pub(super) fn submit(
        &mut self,
        sqe: Sqe,
        transfer: Transfer,
        user: u64,
        payload: IoPayload,
    ) -> Result<u16, Rejected<IoPayload>> {
        debug_assert!(transfer == Transfer::None || payload.len_bytes() > 0, "data have a place");
        self.wire.qpair.submit(sqe, transfer, user, Some(payload))
    }

    #[inline]
    pub(super) fn poll(&mut self) -> Option<Completion<IoPayload>> {
        self.wire.qpair.poll()
    }

    /// Closes the socket, after a last word where there is one. What was under way comes out of [`Self::abandon`].
    pub(super) fn close(&mut self, sockets: &mut Sockets) {
        if let Some(mut tunnel) = self.tunnel.take() {
            tunnel.send(self.link.sock(), &mut self.wire.qpair).ok();
            tunnel.close(self.link.sock());
        } else if self.wire.has_unsent() {
            self.link.send(&mut sockets.group, &mut self.wire, &mut ()).ok();
        }
        self.link.close(&mut sockets.group);
        if let Some(owner) = usize::try_from(self.key).ok().and_then(|key| sockets.owners.get_mut(key)) {
            *owner = None;
        }
        self.wire.broken = true;
        self.wire.qpair.close();
    }

    /// After [`Self::close`]: the commands that will not complete any more, one by one.
    pub(super) fn abandon(&mut self) -> Option<Completion<IoPayload>> {
        self.wire.qpair.abandon()
    }
}
