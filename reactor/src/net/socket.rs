//! One TCP connection.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, sockopt,
};

use super::SocketOptions;
use crate::error::ReactorError;

/// Slices that one vectored call takes; further ones are left for the next call, as after a short send.
pub const IOV_MAX: usize = 1024;

/// A non-blocking TCP connection, closed when dropped.
///
/// Receiving and sending return `Ok(None)` where they would block, and `Ok(Some(0))` from a receive is the peer's
/// orderly end. Any `Err` is the end of the connection.
#[derive(Debug)]
pub struct TcpSocket(OwnedFd);

impl TcpSocket {
    /// Begins to connect to `address`; [`Self::finish_connect`] tells how it went, once the socket is writable.
    ///
    /// # Errors
    /// [`ReactorError::Socket`] when there are no descriptors left, an option is refused, or there is no way there.
    pub fn connect(address: SocketAddr, options: &SocketOptions) -> Result<Self, ReactorError> {
        let failed = |what| move |source: Errno| ReactorError::socket(what, address, source);
        let fd = stream_socket(address).map_err(failed("make a socket for"))?;
        no_pacing_within_the_machine(&fd, address);
        options.apply(fd.as_fd()).map_err(failed("set the options of a connection to"))?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(Self(fd)),
            Err(errno) => Err(failed("connect to")(errno)),
        }
    }

    /// Takes over a connected stream, of whatever origin, and makes it non-blocking.
    ///
    /// # Errors
    /// When the descriptor is no socket.
    pub fn from_fd(fd: OwnedFd, options: &SocketOptions) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        options.apply(fd.as_fd())?;
        Ok(Self(fd))
    }

    /// Whether the connection begun by [`Self::connect`] stands; `Ok(false)` while it is still under way.
    ///
    /// # Errors
    /// Why the peer could not be reached.
    pub fn finish_connect(&self) -> io::Result<bool> {
        sockopt::socket_error(&self.0)??;
        match rustix::net::getpeername(&self.0) {
            Ok(_) => Ok(true),
            Err(Errno::NOTCONN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Receives into `buf`; how many bytes came.
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let received = rustix::net::recv(&self.0, buf, RecvFlags::DONTWAIT);
        or_would_block(received.map(|(_, len)| len))
    }

    /// Receives into several buffers, in order; how many bytes came in all.
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub fn recv_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<Option<usize>> {
        let len = bufs.len().min(IOV_MAX);
        // The descriptor is non-blocking, so that the plain call, cheaper than recvmsg, does not wait either.
        or_would_block(rustix::io::readv(&self.0, bufs.get_mut(..len).unwrap_or_default()))
    }

    /// Sends `bytes`; how many of them the kernel took.
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub fn send(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        or_would_block(rustix::net::send(&self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
    }

    /// Sends several pieces, in order; how many bytes the kernel took in all.
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let pieces = pieces.get(..IOV_MAX).unwrap_or(pieces);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        or_would_block(rustix::net::sendmsg(&self.0, pieces, &mut SendAncillaryBuffer::default(), flags))
    }

    /// Acknowledges what has come at once, instead of waiting (40 ms) for something to send with it: the peer may have no room
    /// to send on before that.
    pub fn acknowledge(&self) {
        // Where it cannot be had, the acknowledgement comes late and nothing else is lost.
        sockopt::set_tcp_quickack(&self.0, true).ok();
    }

    /// Changes the options.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn set_options(&self, options: &SocketOptions) -> io::Result<()> {
        options.apply(self.0.as_fd()).map_err(Into::into)
    }

    /// Ends one or both directions in order: what was sent before still arrives.
    ///
    /// # Errors
    /// When it is not connected.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        rustix::net::shutdown(&self.0, how).map_err(Into::into)
    }

    /// Closes at once with a reset; what was sent and not yet acknowledged is lost.
    pub fn abort(self) {
        // Where lingering cannot be set the socket is closed in order instead.
        sockopt::set_socket_linger(&self.0, Some(Duration::ZERO)).ok();
    }

    /// Our address of the connection.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        rustix::net::getsockname(&self.0)?.try_into().map_err(io::Error::from)
    }

    /// The peer's address.
    ///
    /// # Errors
    /// It is not connected (any more).
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let peer = rustix::net::getpeername(&self.0)?.ok_or(io::ErrorKind::NotConnected)?;
        peer.try_into().map_err(io::Error::from)
    }

    pub(super) fn accepted(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for TcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<TcpSocket> for OwnedFd {
    fn from(socket: TcpSocket) -> Self {
        socket.0
    }
}

/// A new non-blocking TCP socket of `address`'s family.
pub(super) fn stream_socket(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
}

/// A congestion control that sends as soon as it may.
const UNPACED: &str = "reno";

/// Lets a socket of a loopback address send without pacing. Where the system's congestion control paces (BBR does), each
/// burst of a large answer waits for a timer, which costs a quarter of the core at full load; and between two programs of
/// one machine there is no queue to keep short. To be set before the connection is made: it is not undone later.
pub(super) fn no_pacing_within_the_machine(fd: &OwnedFd, address: SocketAddr) {
    if address.ip().to_canonical().is_loopback() {
        // A system without it keeps what it has: that is slower, and no more.
        sockopt::set_tcp_congestion(fd, UNPACED).ok();
    }
}

/// Nothing to receive, or no room to send, is no error; nor is an interruption, after which one tries again.
#[inline]
fn or_would_block(result: rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(len) => Ok(Some(len)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
