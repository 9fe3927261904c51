//! Where connections come in.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};

use super::{SocketOptions, TcpSocket, socket};
use crate::error::ReactorError;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// Connections that died before they were accepted and are passed over in one call.
const ABORTED_MAX: usize = 16;

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpListener(OwnedFd);

impl TcpListener {
    /// Listens on `address`; port 0 takes a free one. An IPv6 address takes IPv6 connections only.
    ///
    /// With `share_port`, several listeners (one per reactor) may listen on the same address, and the kernel spreads
    /// connections over them; without it a second listener is an error. Connections inherit `options` from the listener.
    ///
    /// # Errors
    /// [`ReactorError::Socket`] when the address is taken, not this machine's, or not allowed.
    pub fn bind(
        address: SocketAddr,
        options: &SocketOptions,
        share_port: bool,
    ) -> Result<Self, ReactorError> {
        let failed = |source: Errno| ReactorError::socket("listen on", address, source);
        let fd = socket::stream_socket(address).map_err(failed)?;
        // A port whose last connections still linger may be taken again at once.
        sockopt::set_socket_reuseaddr(&fd, true).map_err(failed)?;
        if share_port {
            sockopt::set_socket_reuseport(&fd, true).map_err(failed)?;
        }
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true).map_err(failed)?;
        }
        socket::no_pacing_within_the_machine(&fd, address);
        let refused = |source| ReactorError::socket("set the options of the listener on", address, source);
        options.apply(fd.as_fd()).map_err(refused)?;
        rustix::net::bind(&fd, &address).map_err(failed)?;
        rustix::net::listen(&fd, BACKLOG).map_err(failed)?;
        Ok(Self(fd))
    }

    /// Takes the next connection and the peer's address; `None` when there is none.
    ///
    /// # Errors
    /// When the process or the system has no descriptors or memory left: the connection keeps waiting, and the listener
    /// stays ready, so pause it in the group ([`super::Interest::NONE`]) and try later.
    pub fn accept(&self) -> io::Result<Option<(TcpSocket, SocketAddr)>> {
        for _ in 0..ABORTED_MAX {
            match rustix::net::acceptfrom_with(&self.0, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok((fd, Some(peer))) => {
                    let peer = SocketAddr::try_from(peer).map_err(io::Error::from)?;
                    return Ok(Some((TcpSocket::accepted(fd), peer)));
                }
                Err(Errno::AGAIN) => return Ok(None),
                // Errors of the connection, not of the listener (accept(2), "Error handling").
                Ok((_, None)) | Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::BADF)) => {
                    return Err(errno.into());
                }
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// The address, with the port that port 0 became.
    ///
    /// # Errors
    /// Never for a listener that was bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        rustix::net::getsockname(&self.0)?.try_into().map_err(io::Error::from)
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
