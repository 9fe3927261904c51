//! What can be set on a connection.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::sockopt;

use crate::sys::sockopt::{set_busy_poll, set_priority};

/// When the kernel asks a silent peer whether it is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe; whole seconds.
    pub idle: Duration,
    /// Time between probes; whole seconds.
    pub interval: Duration,
    /// Unanswered probes after which the connection is dead.
    pub probes: u32,
}

/// Options of a connection. The default is what the data path wants: no delay, the rest as the system has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// Send small segments at once (`TCP_NODELAY`).
    pub nodelay: bool,
    /// Probe a silent peer.
    pub keepalive: Option<Keepalive>,
    /// How long sent data may stay unacknowledged before the connection is dead (`TCP_USER_TIMEOUT`).
    pub user_timeout: Option<Duration>,
    /// The kernel's send buffer, in bytes; `None` leaves it to the kernel's own tuning.
    pub send_buffer_bytes: Option<usize>,
    /// The kernel's receive buffer, in bytes; `None` leaves it to the kernel's own tuning.
    pub recv_buffer_bytes: Option<usize>,
    /// How long a receive polls the network card's queue, in microseconds (`SO_BUSY_POLL`). Nothing on loopback.
    pub busy_poll_us: Option<u32>,
    /// The queueing discipline's priority, 0..=6 (`SO_PRIORITY`).
    pub priority: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: None,
            user_timeout: None,
            send_buffer_bytes: None,
            recv_buffer_bytes: None,
            busy_poll_us: None,
            priority: None,
        }
    }
}

impl SocketOptions {
    /// Sets all of them. The buffers' sizes should be set before the connection is made: the window's scale is fixed then.
    pub(super) fn apply(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(fd, self.nodelay)?;
        if let Some(keepalive) = self.keepalive {
            sockopt::set_tcp_keepidle(fd, keepalive.idle.max(Duration::from_secs(1)))?;
            sockopt::set_tcp_keepintvl(fd, keepalive.interval.max(Duration::from_secs(1)))?;
            sockopt::set_tcp_keepcnt(fd, keepalive.probes)?;
            sockopt::set_socket_keepalive(fd, true)?;
        }
        if let Some(timeout) = self.user_timeout {
            sockopt::set_tcp_user_timeout(fd, u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))?;
        }
        if let Some(bytes) = self.send_buffer_bytes {
            sockopt::set_socket_send_buffer_size(fd, bytes)?;
        }
        if let Some(bytes) = self.recv_buffer_bytes {
            sockopt::set_socket_recv_buffer_size(fd, bytes)?;
        }
        if let Some(us) = self.busy_poll_us {
            set_busy_poll(fd, us)?;
        }
        if let Some(priority) = self.priority {
            set_priority(fd, priority)?;
        }
        Ok(())
    }
}
