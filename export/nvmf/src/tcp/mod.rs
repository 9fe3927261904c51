//! NVMe over TCP (NVM Express TCP Transport Specification): the sans-IO machine of one connection.
//!
//! ```text
//!   bytes ──► Conn::receive ── capsule ──► Sink::judge ──► buffer ──► (R2T, H2CData) ──► Sink::execute
//!   bytes ◄── SendQueue::gather ◄── headers, payload by reference ◄── Conn::respond ◄── completion
//! ```
//!
//! A [`Conn`](conn::Conn) knows PDUs, digests, slots and buffers. What a command means is its `Sink`'s affair.

pub(crate) mod conn;
mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod machine;
mod params;
mod pdu_rx;
pub(crate) mod req;

pub use params::{C2hSuccess, TcpParams};

#[cfg(test)]
pub(crate) mod tests;
