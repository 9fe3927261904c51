//! A socket that blocks, with TLS on it or without, and the machine that it serves.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_security::psk::TlsPsk;
use penstock_security::tls::{Progress, RECORD_BYTES_MAX, Session, TlsError};

use super::BlockingError;
use crate::controller::Controller;
use crate::error::QpairError;
use crate::payload::Payload;
use crate::qpair::Qpair;
use crate::tls::{NoKeys, Tls, seal};

/// Pieces of one gathering write.
const IOVECS_MAX: usize = 64;
const RX_BUF_LEN: usize = 256 << 10;
/// How long one read or write waits for the other direction's sake.
const TURN: Duration = Duration::from_millis(2);

/// What a socket needs of a machine.
pub(super) trait Wire {
    fn pieces(&self) -> impl Iterator<Item = &[u8]>;
    fn sent(&mut self, n: usize);
    fn received(&mut self, bytes: &[u8]) -> Result<(), QpairError>;
    fn disconnected(&mut self);
}

impl<B: Payload> Wire for Qpair<B> {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.tx_slices()
    }

    fn sent(&mut self, n: usize) {
        self.tx_consume(n);
    }

    fn received(&mut self, bytes: &[u8]) -> Result<(), QpairError> {
        self.recv(bytes)
    }

    fn disconnected(&mut self) {
        self.close();
    }
}

impl Wire for Controller {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.tx_slices()
    }

    fn sent(&mut self, n: usize) {
        self.tx_consume(n);
    }

    fn received(&mut self, bytes: &[u8]) -> Result<(), QpairError> {
        self.recv(bytes)
    }

    fn disconnected(&mut self) {
        Controller::disconnected(self);
    }
}

/// A socket and its read buffer.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    session: Option<Box<Session>>,
    addr: SocketAddr,
    timeout: Duration,
    buf: Box<[u8]>,
    /// The next record's data.
    stage: Box<[u8]>,
    origin: Instant,
}

impl Link {
    /// Connects, and secures the connection where there are keys in `tls`.
    pub(super) fn open(
        addr: SocketAddr,
        timeout: Duration,
        tls: Option<&Tls>,
    ) -> Result<Self, BlockingError> {
        let mut link = Self::plain(addr, timeout)?;
        let Some(tls) = tls else { return Ok(link) };
        for (index, psk) in tls.psks.iter().enumerate() {
            if index > 0 {
                link = Self::plain(addr, timeout)?;
            }
            match link.secure(tls, psk) {
                Err(BlockingError::Tls { .. }) if index + 1 < tls.psks.len() => {}
                outcome => return outcome.map(|()| link),
            }
        }
        Ok(link)
    }

    fn plain(addr: SocketAddr, timeout: Duration) -> Result<Self, BlockingError> {
        let io = |source| BlockingError::Io { addr, source };
        let stream = TcpStream::connect_timeout(&addr, timeout).map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        stream.set_read_timeout(Some(TURN)).map_err(io)?;
        stream.set_write_timeout(Some(TURN)).map_err(io)?;
        let buf = vec![0; RX_BUF_LEN].into_boxed_slice();
        Ok(Self { stream, session: None, addr, timeout, buf, stage: Box::default(), origin: now() })
    }

    /// Does the handshake.
    fn secure(&mut self, tls: &Tls, psk: &Arc<TlsPsk>) -> Result<(), BlockingError> {
        let (addr, limit) = (self.addr, self.timeout);
        let failed = |source| BlockingError::Tls { addr, source };
        let mut session = Session::client(&tls.context, Arc::clone(psk)).map_err(failed)?;
        let deadline = self.deadline();
        loop {
            let progress = session.handshake(&NoKeys);
            let sent = drain(&mut self.stream, &mut session);
            if progress.map_err(failed)? == Progress::Done && matches!(sent, Ok(true)) {
                self.stage = vec![0; RECORD_BYTES_MAX].into_boxed_slice();
                self.session = Some(Box::new(session));
                return Ok(());
            }
            if now() >= deadline {
                return Err(BlockingError::Timeout { addr, limit });
            }
            // A target that does not know the key, or no TLS, closes the connection.
            let closed = |why: &str| failed(TlsError::Failed(format!("the target {why}")));
            sent.map_err(|error| closed(&format!("closed the connection ({error})")))?;
            match self.stream.read(session.net_space()) {
                Ok(0) => return Err(closed("closed the connection")),
                Ok(len) => session.net_came(len),
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(closed(&format!("closed the connection ({error})"))),
            }
        }
    }

    /// The key in use.
    pub(super) fn psk(&self) -> Option<Arc<TlsPsk>> {
        self.session.as_ref()?.psk().cloned()
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    pub(super) fn into_parts(self) -> (TcpStream, Option<Box<Session>>) {
        (self.stream, self.session)
    }

    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn deadline(&self) -> Instant {
        now() + self.timeout
    }

    /// Sends what there is, then reads once.
    pub(super) fn turn(&mut self, machine: &mut impl Wire, deadline: Instant) -> Result<(), BlockingError> {
        let (addr, limit) = (self.addr, self.timeout);
        if now() >= deadline {
            return Err(BlockingError::Timeout { addr, limit });
        }
        let io = |source| BlockingError::Io { addr, source };
        self.send(machine).map_err(io)?;
        let space = match &mut self.session {
            Some(session) => session.net_space(),
            None => &mut *self.buf,
        };
        match self.stream.read(space) {
            Ok(0) => {
                machine.disconnected();
                Err(io(ErrorKind::UnexpectedEof.into()))
            }
            Ok(n) => {
                let result = self.received(machine, n);
                if result.is_err() {
                    // The H2CTermReq, if there is one; the connection is over either way.
                    drop(self.send(machine));
                }
                result
            }
            Err(error) if is_retry(&error) => Ok(()),
            Err(error) => Err(io(error)),
        }
    }

    /// Gives the machine `n` bytes that were read, decrypted where they are not plain.
    fn received(&mut self, machine: &mut impl Wire, n: usize) -> Result<(), BlockingError> {
        let addr = self.addr;
        let Some(session) = &mut self.session else {
            return Ok(machine.received(self.buf.get(..n).unwrap_or_default())?);
        };
        session.net_came(n);
        while let Some(len) =
            session.read(&mut self.buf).map_err(|source| BlockingError::Tls { addr, source })?
        {
            if len == 0 {
                machine.disconnected();
                return Err(BlockingError::Io { addr, source: ErrorKind::UnexpectedEof.into() });
            }
            machine.received(self.buf.get(..len).unwrap_or_default())?;
        }
        Ok(())
    }

    fn send(&mut self, machine: &mut impl Wire) -> io::Result<()> {
        if self.session.is_some() {
            return self.send_sealed(machine);
        }
        loop {
            let pieces: Vec<_> = machine.pieces().take(IOVECS_MAX).map(IoSlice::new).collect();
            if pieces.is_empty() {
                return Ok(());
            }
            match self.stream.write_vectored(&pieces) {
                Ok(n) => machine.sent(n),
                Err(error) if is_retry(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn send_sealed(&mut self, machine: &mut impl Wire) -> io::Result<()> {
        let Some(session) = &mut self.session else { return Ok(()) };
        loop {
            let written = seal(session, &mut self.stage, machine.pieces())?;
            machine.sent(written);
            if !drain(&mut self.stream, session)? || written == 0 {
                return Ok(());
            }
        }
    }
}

/// Sends what is in the ring; whether all of it is gone.
fn drain(stream: &mut TcpStream, session: &mut Session) -> io::Result<bool> {
    while !session.net_bytes().is_empty() {
        match stream.write(session.net_bytes()) {
            Ok(len) => session.net_sent(len),
            Err(error) if is_retry(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[expect(clippy::disallowed_methods, reason = "this driver owns its thread and is no part of a reactor")]
pub(super) fn now() -> Instant {
    Instant::now()
}
