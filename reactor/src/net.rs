//! Sockets of the data path: non-blocking TCP, and the group in which a reactor polls its own.
//!
//! ```text
//!   TcpListener ──accept──► TcpSocket ──SocketGroup::add──► poll ──► Ready { key, .. } ──► recv / send
//!                                                    ▲                                        │
//!                                                    └────────── SocketGroup::note ◄──────────┘
//! ```
//!
//! The model is readiness with plain system calls; ARCHITECTURE.md tells what io_uring measured beside it. A socket is
//! owned by whoever holds the value and may be handed to another reactor; a [`SocketGroup`] keeps keys, not sockets.
//!
//! `MSG_ZEROCOPY` is not offered: the kernel must tell later that it is done with the pages, which costs a notice per
//! send, the buffers stay taken until the peer's acknowledgement, and on loopback the kernel copies anyway.

mod group;
mod link;
mod listener;
mod listeners;
mod options;
mod peers;
mod send_queue;
mod socket;

pub use group::{Interest, READY_MAX, Ready, SOCKETS_MAX, SocketGroup};
pub use link::{Link, Machine, Received, Sent};
pub use listener::TcpListener;
pub use listeners::{LISTENERS_MAX, Listeners, conn_key, conn_of};
pub use options::{Keepalive, SocketOptions};
pub use peers::Peers;
pub use send_queue::{PIECES_MAX, Pieces, SendQueue, SlotData};
pub use socket::{IOV_MAX, TcpSocket};

#[cfg(test)]
mod tests;
