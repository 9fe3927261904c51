//! TLS on the connections of the target: what a connection's bytes go through between its socket and its machine.
//!
//! ```text
//!   plain:  socket ◄──────────────────────────────► machine
//!   TLS:    socket ◄── ring ◄── session ◄── stage ◄ machine     (one record of 16 KiB at most at a time)
//! ```
//!
//! A handshake is computed by the worker: the session goes there by value with the bytes that have come and comes back, and
//! the connection is not read meanwhile. Data are encrypted and decrypted on the reactor, without allocations.

mod link;
mod psks;

pub(crate) use link::Wire;
pub(crate) use psks::Psks;
