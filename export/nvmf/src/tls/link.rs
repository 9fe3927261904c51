//! A connection's socket, with TLS on it or without.

use std::io::{self, IoSlice};
use std::sync::Arc;

use penstock_reactor::net::{Link, Machine, PIECES_MAX, Received, Sent, SocketGroup, TcpSocket};
use penstock_security::psk::TlsPsk;
use penstock_security::tls::{RECORD_BYTES_MAX, Session, TlsError};

/// A connection's socket in its group.
#[derive(Debug)]
pub(crate) struct Wire {
    link: Link,
    key: u32,
    /// Not there on connections without TLS.
    tls: Option<Box<Tls>>,
}

/// What TLS adds to it.
#[derive(Debug)]
struct Tls {
    /// Not there while the worker computes its handshake.
    session: Option<Box<Session>>,
    /// The next record's data.
    stage: Box<[u8]>,
    wants_write: bool,
    paused: bool,
}

impl Wire {
    /// The socket that was added to its group under `key`, to be read; without TLS.
    pub(crate) fn new(sock: TcpSocket, key: u32) -> Self {
        Self { link: Link::new(sock, key), key, tls: None }
    }

    /// Puts TLS on a connection on which nothing was received.
    pub(crate) fn secure(&mut self, session: Session) {
        self.tls = Some(Box::new(Tls {
            session: Some(Box::new(session)),
            stage: vec![0; RECORD_BYTES_MAX].into_boxed_slice(),
            wants_write: false,
            paused: false,
        }));
    }

    /// The socket.
    pub(crate) fn sock(&self) -> &TcpSocket {
        self.link.sock()
    }

    /// Whether TLS is on it, be its handshake over or not.
    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether a handshake is under way.
    #[inline]
    pub(crate) fn is_shaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.session.as_ref().is_none_or(|session| !session.is_open()))
    }

    /// The key in use; `None` without TLS.
    pub(crate) fn psk(&self) -> Option<&Arc<TlsPsk>> {
        self.tls.as_ref()?.session.as_ref()?.psk()
    }

    /// Whether it is not read.
    pub(crate) fn is_paused(&self) -> bool {
        self.tls.as_ref().map_or_else(|| self.link.is_paused(), |tls| tls.paused)
    }

    /// Whether it waits for room to send.
    #[inline]
    pub(crate) fn is_blocked(&self) -> bool {
        self.tls.as_ref().map_or_else(|| self.link.is_blocked(), |tls| tls.wants_write)
    }

    /// As [`Link::receive`].
    #[inline]
    pub(crate) fn receive<S, M: Machine<S>>(
        &mut self,
        sockets: &mut SocketGroup,
        machine: &mut M,
        room: &mut [u8],
        with: &mut S,
    ) -> Received {
        if self.tls.is_some() {
            return self.receive_secure(sockets, machine, room, with);
        }
        self.link.receive(sockets, machine, room, with)
    }

    /// As [`Link::send`].
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub(crate) fn send<S, M: Machine<S>>(
        &mut self,
        sockets: &mut SocketGroup,
        machine: &mut M,
        with: &mut S,
    ) -> io::Result<Sent> {
        if self.tls.is_some() {
            return self.send_secure(sockets, machine, with);
        }
        self.link.send(sockets, machine, with)
    }

    /// As [`Link::resume`].
    #[inline]
    pub(crate) fn resume(&mut self, sockets: &mut SocketGroup, wants_bytes: bool) {
        match &self.tls {
            None => self.link.resume(sockets, wants_bytes),
            Some(tls) if tls.session.is_some() && wants_bytes => self.pause(sockets, false),
            Some(_) => {}
        }
    }

    /// Tells the peer that nothing more comes.
    pub(crate) fn end(&mut self) {
        if let Some(session) = self.tls.as_mut().and_then(|tls| tls.session.as_mut()) {
            session.close();
        }
        self.drain().ok();
        self.link.end();
    }

    /// As [`Link::close`].
    pub(crate) fn close(&self, sockets: &mut SocketGroup) {
        self.link.close(sockets);
    }

    /// Receives bytes of a handshake. The session, to be given to the worker, when some have come; it is not read until
    /// [`Self::shaken`].
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn shake(&mut self, sockets: &mut SocketGroup) -> io::Result<Option<Box<Session>>> {
        if self.fill(sockets)? == 0 {
            return Ok(None);
        }
        self.pause(sockets, true);
        Ok(self.tls.as_mut().and_then(|tls| tls.session.take()))
    }

    /// The worker has gone on with the handshake: what it takes is sent, and the peer is read again.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn shaken(&mut self, sockets: &mut SocketGroup, session: Box<Session>) -> io::Result<()> {
        let Some(tls) = self.tls.as_mut() else { return Ok(()) };
        tls.session = Some(session);
        self.drain()?;
        self.pause(sockets, false);
        Ok(())
    }

    fn pause(&mut self, sockets: &mut SocketGroup, paused: bool) {
        let Some(tls) = self.tls.as_mut() else { return };
        if tls.paused != paused {
            tls.paused = paused;
            sockets.want_read(self.link.sock(), self.key, !paused).ok();
        }
    }

    fn session(&mut self) -> Option<&mut Session> {
        self.tls.as_mut()?.session.as_deref_mut()
    }

    /// Receives into the ring once; how many bytes.
    fn fill(&mut self, sockets: &mut SocketGroup) -> io::Result<usize> {
        let Some(session) = self.tls.as_mut().and_then(|tls| tls.session.as_mut()) else { return Ok(0) };
        let space = session.net_space();
        if space.is_empty() {
            return Ok(0);
        }
        let came = self.link.sock().recv(space)?;
        sockets.note(self.key, came.is_some());
        match came {
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(len) => {
                session.net_came(len);
                Ok(len)
            }
            None => Ok(0),
        }
    }

    /// Sends what is in the ring; whether all of it is gone.
    fn drain(&mut self) -> io::Result<bool> {
        let Some(session) = self.tls.as_mut().and_then(|tls| tls.session.as_mut()) else { return Ok(true) };
        while !session.net_bytes().is_empty() {
            match self.link.sock().send(session.net_bytes())? {
                Some(len) if len > 0 => session.net_sent(len),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Everything that has come is decrypted and handled, so that nothing waits in the ring that no event would tell of.
    fn receive_secure<S, M: Machine<S>>(
        &mut self,
        sockets: &mut SocketGroup,
        machine: &mut M,
        room: &mut [u8],
        with: &mut S,
    ) -> Received {
        if !machine.wants_bytes() {
            self.pause(sockets, true);
            return Received::Nothing;
        }
        let came = self.fill(sockets);
        let mut total = 0;
        loop {
            let Some(session) = self.session() else { return Received::Nothing };
            let read = match machine.direct() {
                Some(data) => match session.read(data) {
                    Ok(Some(len)) if len > 0 => {
                        machine.direct_came(len, with);
                        total += len;
                        continue;
                    }
                    other => other,
                },
                None => session.read(room),
            };
            match read {
                Ok(Some(len)) if len > 0 => {
                    machine.receive(room.get(..len).unwrap_or_default(), with);
                    total += len;
                }
                Ok(None) => break,
                Ok(Some(_)) | Err(_) => return Received::End,
            }
        }
        // Hosts whose send buffer holds one record (SPDK's) send the next one when this one is acknowledged: without this they
        // wait for the kernel's delay at every record of a large write.
        if matches!(came, Ok(len) if len > 0) && (total == 0 || machine.is_amid()) {
            self.link.sock().acknowledge();
        }
        match came {
            Err(_) => Received::End,
            Ok(_) if total > 0 => Received::Bytes(total),
            // Parts of a record are no bytes of the machine's, but the connection lives.
            Ok(len) if len > 0 => Received::Bytes(len),
            Ok(_) => Received::Nothing,
        }
    }

    fn send_secure<S, M: Machine<S>>(
        &mut self,
        sockets: &mut SocketGroup,
        machine: &mut M,
        with: &mut S,
    ) -> io::Result<Sent> {
        let mut total = 0;
        let blocked = loop {
            let written = self.encrypt(machine, with)?;
            total += written;
            if !self.drain()? {
                break true;
            }
            if written == 0 {
                break false;
            }
        };
        if let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write != blocked) {
            tls.wants_write = blocked;
            sockets.want_write(self.link.sock(), self.key, blocked).ok();
        }
        Ok(Sent { bytes: total, all: !blocked })
    }

    /// Encrypts what the machine has, as far as the ring has room; how many bytes.
    fn encrypt<S, M: Machine<S>>(&mut self, machine: &mut M, with: &mut S) -> io::Result<usize> {
        let broken = |error: TlsError| io::Error::other(error);
        let Some(tls) = self.tls.as_mut() else { return Ok(0) };
        let Some(session) = tls.session.as_mut().filter(|session| session.is_open()) else { return Ok(0) };
        let mut total = 0;
        while machine.has_unsent() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let (count, _) = machine.gather(&mut pieces);
            let mut len = 0;
            for piece in pieces.get(..count).unwrap_or_default() {
                let rest = tls.stage.get_mut(len..).unwrap_or_default();
                let part = piece.len().min(rest.len());
                if let (Some(to), Some(from)) = (rest.get_mut(..part), piece.get(..part)) {
                    to.copy_from_slice(from);
                }
                len += part;
            }
            if len == 0 {
                // What is queued is nowhere: the stream cannot go on.
                return Err(io::ErrorKind::InvalidData.into());
            }
            let Some(written) = session.write(tls.stage.get(..len).unwrap_or_default()).map_err(broken)?
            else {
                break;
            };
            machine.sent(written, with);
            total += written;
        }
        Ok(total)
    }
}
