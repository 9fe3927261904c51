//! The listening sockets of one group.
//!
//! Their keys in the socket group are the first [`LISTENERS_MAX`]; connections have those behind ([`conn_key`]). One that
//! cannot accept for lack of descriptors pauses until [`Listeners::resume`].

use std::io;
use std::net::SocketAddr;

use super::{Interest, SocketGroup, SocketOptions, TcpListener, TcpSocket};
use crate::error::ReactorError;

/// Listeners of one group at most.
pub const LISTENERS_MAX: u32 = 256;

/// The key of connection number `index`.
#[inline]
#[must_use]
pub const fn conn_key(index: u32) -> u32 {
    index.saturating_add(LISTENERS_MAX)
}

/// The number of the connection with that key; `None`: it is a listener's.
#[inline]
#[must_use]
pub const fn conn_of(key: u32) -> Option<u32> {
    key.checked_sub(LISTENERS_MAX)
}

#[derive(Debug)]
struct Listener<T> {
    sock: TcpListener,
    addr: SocketAddr,
    tag: T,
    paused: bool,
}

/// Listening sockets, each with a tag of its owner's.
#[derive(Debug)]
pub struct Listeners<T>(Vec<Option<Listener<T>>>);

impl<T> Default for Listeners<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + std::fmt::Debug> Listeners<T> {
    /// Listens on `addr`, and returns the address with its real port. The kernel keeps `backlog` connections until they
    /// are accepted; `None`: as many as it keeps for any.
    ///
    /// # Errors
    /// [`ReactorError::Socket`] when the address cannot be had, [`ReactorError::Os`] when there are too many.
    pub fn listen(
        &mut self,
        sockets: &mut SocketGroup,
        addr: SocketAddr,
        options: &SocketOptions,
        backlog: Option<u32>,
        tag: T,
    ) -> Result<SocketAddr, ReactorError> {
        let free = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        let key = u32::try_from(free).ok().filter(|key| *key < LISTENERS_MAX);
        let Some(key) = key else {
            let source = io::ErrorKind::QuotaExceeded.into();
            return Err(ReactorError::Os { what: "add a listener", source });
        };
        let sock = TcpListener::bind(addr, options, false)?;
        if let Some(backlog) = backlog {
            let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
            rustix::net::listen(&sock, backlog).map_err(|errno| ReactorError::Os {
                what: "set a listener's backlog",
                source: errno.into(),
            })?;
        }
        let addr = sock.local_addr().map_err(|source| ReactorError::Os { what: "ask for a port", source })?;
        sockets
            .add(&sock, key, Interest::READ)
            .map_err(|source| ReactorError::Os { what: "watch a listener", source })?;
        if free == self.0.len() {
            self.0.push(None);
        }
        if let Some(slot) = self.0.get_mut(free) {
            *slot = Some(Listener { sock, addr, tag, paused: false });
        }
        tracing::info!(%addr, ?tag, "listening");
        Ok(addr)
    }

    /// Closes the first listener that `which` is true of; whether there was one. Its connections stay.
    pub fn close(&mut self, sockets: &mut SocketGroup, mut which: impl FnMut(SocketAddr, T) -> bool) -> bool {
        let mut found = self
            .0
            .iter_mut()
            .zip(0..)
            .filter(|(slot, _)| slot.as_ref().is_some_and(|listener| which(listener.addr, listener.tag)));
        let Some((listener, key)) = found.next().and_then(|(slot, key)| Some((slot.take()?, key))) else {
            return false;
        };
        sockets.remove(&listener.sock, key);
        tracing::info!(addr = %listener.addr, "listening no more");
        true
    }

    /// Closes all of them.
    pub fn close_all(&mut self, sockets: &mut SocketGroup) {
        while self.close(sockets, |_, _| true) {}
    }

    /// Takes the next connection of the listener with that key, with its peer's address and the listener's tag.
    pub fn accept(&mut self, sockets: &mut SocketGroup, key: u32) -> Option<(TcpSocket, SocketAddr, T)> {
        let listener = self.0.get_mut(key as usize)?.as_mut()?;
        match listener.sock.accept() {
            Ok(accepted) => accepted.map(|(sock, peer)| (sock, peer, listener.tag)),
            Err(error) => {
                tracing::warn!(addr = %listener.addr, %error, "cannot accept");
                listener.paused = true;
                sockets.set_interest(&listener.sock, key, Interest::NONE).ok();
                None
            }
        }
    }

    /// Those that had to pause accept again.
    pub fn resume(&mut self, sockets: &mut SocketGroup) {
        for (listener, key) in self.0.iter_mut().zip(0..) {
            if let Some(listener) = listener.as_mut().filter(|listener| listener.paused) {
                listener.paused = false;
                sockets.set_interest(&listener.sock, key, Interest::READ).ok();
            }
        }
    }

    /// Whether one pauses, so that [`Self::resume`] must be called in a while.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.iter().flatten().any(|listener| listener.paused)
    }
}
