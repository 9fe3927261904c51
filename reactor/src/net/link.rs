//! A connection's socket, and how bytes get from it to its machine and back.
//!
//! Data of a request are received straight into their buffer where the machine has one ([`Machine::direct`]), and what
//! comes behind into a room that all connections of a reactor share: one system call for both. A machine that is full is
//! not read, and its peer is held back by the window.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;

use super::{PIECES_MAX, SocketGroup, TcpSocket};

/// The protocol machine of a connection, as its socket sees it. `S` is what the machine works with.
pub trait Machine<S> {
    /// Whether what comes can be received now.
    fn wants_bytes(&self) -> bool;
    /// Where the data that come next go, if that is known and worth it.
    fn direct(&mut self) -> Option<&mut [u8]>;
    /// How many bytes are worth taking into the shared room, where they are copied from: few of them where long data
    /// come one after another, so that nearly all are received straight into their buffers.
    fn room_bytes(&self) -> usize {
        usize::MAX
    }
    /// `len` bytes have come into [`Self::direct`].
    fn direct_came(&mut self, len: usize, with: &mut S);
    /// Handles bytes as they came.
    fn receive(&mut self, bytes: &[u8], with: &mut S);
    /// Whether the peer has more to send before there is anything to answer.
    fn is_amid(&self) -> bool {
        false
    }
    /// Whether there is something to send.
    fn has_unsent(&self) -> bool;
    /// Puts what is to be sent into `pieces`; returns how many pieces and bytes that are.
    fn gather<'a>(&'a self, pieces: &mut [IoSlice<'a>; PIECES_MAX]) -> (usize, usize);
    /// The first `len` bytes are with the kernel.
    fn sent(&mut self, len: usize, with: &mut S);
}

/// What a receive has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Nothing, or the machine is full.
    Nothing,
    /// So many bytes, which are handled.
    Bytes(usize),
    /// The connection is over.
    End,
}

/// What a send has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How many bytes went out.
    pub bytes: usize,
    /// Whether nothing is left.
    pub all: bool,
}

/// A connection's socket in its group.
#[derive(Debug)]
pub struct Link {
    sock: TcpSocket,
    key: u32,
    wants_write: bool,
    paused: bool,
}

impl Link {
    /// The socket that was added to its group under `key`, to be read.
    #[must_use]
    pub fn new(sock: TcpSocket, key: u32) -> Self {
        Self { sock, key, wants_write: false, paused: false }
    }

    /// The socket.
    #[must_use]
    pub fn sock(&self) -> &TcpSocket {
        &self.sock
    }

    /// Takes the socket out, to be handed to another group; it is in none any more.
    #[must_use]
    pub fn into_sock(self, sockets: &mut SocketGroup) -> TcpSocket {
        sockets.remove(&self.sock, self.key);
        self.sock
    }

    /// Whether it is not read, because its machine is full.
    #[inline]
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether it waits for room to send.
    #[inline]
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.wants_write
    }

    /// Receives once and handles what came; `room` bounds what is taken behind direct data.
    #[inline]
    pub fn receive<S, M: Machine<S>>(
        &mut self,
        sockets: &mut SocketGroup,
        machine: &mut M,
        room: &mut [u8],
        with: &mut S,
    ) -> Received {
        if !machine.wants_bytes() {
            self.paused = true;
            sockets.want_read(&self.sock, self.key, false).ok();
            return Received::Nothing;
        }
        let room_len = machine.room_bytes().min(room.len());
        let room = room.get_mut(..room_len).unwrap_or_default();
        let (received, direct) = match machine.direct() {
            Some(data) => {
                let len = data.len();
                (self.sock.recv_vectored(&mut [IoSliceMut::new(data), IoSliceMut::new(room)]), len)
            }
            None => (self.sock.recv(room), 0),
        };
        let len = match received {
            Ok(None) => {
                sockets.note(self.key, false);
                return Received::Nothing;
            }
            Ok(Some(len)) if len > 0 => len,
            _ => return Received::End,
        };
        sockets.note(self.key, true);
        if direct > 0 {
            machine.direct_came(len.min(direct), with);
        }
        if len > direct {
            machine.receive(room.get(..len - direct).unwrap_or_default(), with);
        }
        Received::Bytes(len)
    }

    /// Sends what the machine has, until the kernel takes no more.
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub fn send<S, M: Machine<S>>(
        &mut self,
        sockets: &mut SocketGroup,
        machine: &mut M,
        with: &mut S,
    ) -> io::Result<Sent> {
        let (mut blocked, mut total) = (false, 0);
        while machine.has_unsent() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let (count, bytes) = machine.gather(&mut pieces);
            let sent = match pieces.get(..count) {
                // What is queued is nowhere: the stream cannot go on.
                Some([]) | None => return Err(io::ErrorKind::InvalidData.into()),
                Some([piece]) => self.sock.send(piece)?,
                Some(pieces) => self.sock.send_vectored(pieces)?,
            };
            let len = sent.unwrap_or(0);
            if len > 0 {
                total += len;
                machine.sent(len, with);
            }
            if len < bytes {
                blocked = true;
                break;
            }
        }
        if blocked != self.wants_write {
            self.wants_write = blocked;
            sockets.want_write(&self.sock, self.key, blocked).ok();
        }
        Ok(Sent { bytes: total, all: !blocked })
    }

    /// Is read again, if it paused and its machine has room by now.
    #[inline]
    pub fn resume(&mut self, sockets: &mut SocketGroup, wants_bytes: bool) {
        if self.paused && wants_bytes {
            self.paused = false;
            sockets.want_read(&self.sock, self.key, true).ok();
        }
    }

    /// Tells the peer that nothing more comes.
    pub fn end(&self) {
        self.sock.shutdown(Shutdown::Write).ok();
    }

    /// Takes the socket out of its group and tells the peer at once.
    pub fn close(&self, sockets: &mut SocketGroup) {
        sockets.remove(&self.sock, self.key);
        self.sock.shutdown(Shutdown::Both).ok();
    }
}
