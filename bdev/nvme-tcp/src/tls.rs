//! TLS on a host's connections: its keys, and the way of a queue pair's bytes through it.

use std::io;
use std::sync::Arc;

use penstock_reactor::net::TcpSocket;
use penstock_security::psk::{ConfiguredPsk, TlsPsk};
use penstock_security::tls::{Context, PskStore, RECORD_BYTES_MAX, Session, TlsError};
use penstock_spec::nvmf::Nqn;

use crate::payload::Payload;
use crate::qpair::Qpair;

/// What a connection is secured with.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Settings that all connections share.
    pub context: Arc<Context>,
    /// The keys to try, in this order; a target may know one configured key by one of its identities only. None: the
    /// authentication makes one.
    pub psks: Vec<Arc<TlsPsk>>,
}

/// A configured key, with whichever subsystem it is used.
#[derive(Debug, Clone)]
pub struct TlsKey {
    /// Settings that all connections share.
    pub context: Arc<Context>,
    /// The key.
    pub psk: ConfiguredPsk,
}

impl TlsKey {
    /// What the connections of `host` to `subsystem` are secured with: the key by its identity of version 1, or 0.
    #[must_use]
    pub fn between(&self, host: &Nqn, subsystem: &Nqn) -> Tls {
        let psks = [1, 0].into_iter().filter_map(|version| self.psk.tls_psk(host, subsystem, version));
        Tls { context: Arc::clone(&self.context), psks: psks.map(Arc::new).collect() }
    }
}

/// A host's side looks nothing up.
#[derive(Debug)]
pub(crate) struct NoKeys;

impl PskStore for NoKeys {
    fn find(&self, _identity: &[u8]) -> Option<Arc<TlsPsk>> {
        None
    }
}

/// TLS, its handshake over, on a socket that is polled.
#[derive(Debug)]
pub struct Tunnel {
    session: Box<Session>,
    /// The next record's data.
    stage: Box<[u8]>,
}

impl Tunnel {
    /// Around a session whose handshake is over.
    #[must_use]
    pub fn new(session: Box<Session>) -> Self {
        Self { session, stage: vec![0; RECORD_BYTES_MAX].into_boxed_slice() }
    }

    /// Receives once and gives `qpair` everything that has come, through `room` where its place is not known. Whether
    /// anything came.
    ///
    /// # Errors
    /// The connection is over.
    pub fn receive<B: Payload>(
        &mut self,
        socket: &TcpSocket,
        qpair: &mut Qpair<B>,
        room: &mut [u8],
    ) -> io::Result<bool> {
        let mut came = None;
        let space = self.session.net_space();
        if !space.is_empty() {
            came = socket.recv(space)?;
            match came {
                Some(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Some(len) => self.session.net_came(len),
                None => {}
            }
        }
        let mut total = 0;
        while let Some(len) = self.deliver(qpair, room)? {
            total += len;
        }
        // A target whose send buffer holds one record sends the next when this one is acknowledged.
        if came.is_some() && (total == 0 || qpair.is_amid()) {
            socket.acknowledge();
        }
        Ok(came.is_some() || total > 0)
    }

    /// Decrypts one piece; its length, or `None` where no whole record is there.
    fn deliver<B: Payload>(&mut self, qpair: &mut Qpair<B>, room: &mut [u8]) -> io::Result<Option<usize>> {
        let broken = |error| io::Error::other(error);
        let (read, direct) = match qpair.rx_target() {
            Some(target) if !target.is_empty() => (self.session.read(target), true),
            _ => (self.session.read(room), false),
        };
        match read.map_err(|error: TlsError| io::Error::other(error))? {
            None => Ok(None),
            Some(0) => Err(io::ErrorKind::ConnectionReset.into()),
            Some(len) => {
                if direct {
                    qpair.rx_received(len).map_err(broken)?;
                } else {
                    qpair.recv(room.get(..len).unwrap_or_default()).map_err(broken)?;
                }
                Ok(Some(len))
            }
        }
    }

    /// Sends what `qpair` has, as far as the socket takes it; whether all of it is gone.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send<B: Payload>(&mut self, socket: &TcpSocket, qpair: &mut Qpair<B>) -> io::Result<bool> {
        loop {
            let written = seal(&mut self.session, &mut self.stage, qpair.tx_slices())?;
            qpair.tx_consume(written);
            while !self.session.net_bytes().is_empty() {
                match socket.send(self.session.net_bytes())? {
                    Some(len) if len > 0 => self.session.net_sent(len),
                    _ => return Ok(false),
                }
            }
            if written == 0 {
                return Ok(true);
            }
        }
    }

    /// Whether encrypted bytes wait for the socket.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        !self.session.net_bytes().is_empty()
    }

    /// Tells the peer that nothing more comes.
    pub fn close(&mut self, socket: &TcpSocket) {
        self.session.close();
        // Where the socket takes it not at once, its end says the same.
        if let Ok(Some(len)) = socket.send(self.session.net_bytes()) {
            self.session.net_sent(len);
        }
    }
}

/// Encrypts the beginning of `pieces` as one record, by way of `stage`; how many bytes, 0 where the ring has no room.
pub(crate) fn seal<'a>(
    session: &mut Session,
    stage: &mut [u8],
    pieces: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    let mut len = 0;
    for piece in pieces {
        let rest = stage.get_mut(len..).unwrap_or_default();
        let part = piece.len().min(rest.len());
        if part == 0 && !piece.is_empty() {
            break;
        }
        if let (Some(to), Some(from)) = (rest.get_mut(..part), piece.get(..part)) {
            to.copy_from_slice(from);
        }
        len += part;
    }
    let written = session.write(stage.get(..len).unwrap_or_default()).map_err(io::Error::other)?;
    Ok(written.unwrap_or(0))
}
