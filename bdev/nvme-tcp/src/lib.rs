//! An NVMe/TCP initiator (host) without I/O of its own.
//!
//! Everything here is a state machine: bytes that came from the socket, commands and the time go in; bytes
//! for the socket and completions come out. Whoever owns the socket drives it, be it a poller of a reactor
//! or a thread that blocks.
//!
//! - [`qpair::Qpair`]: one connection, one queue pair: ICReq, Connect, commands, data, completions.
//! - [`controller::Controller`]: the admin queue on top of a qpair: bring-up, keep-alive, events, shutdown.
//! - [`command`]: the submission queue entries that hosts send, ready made.
//! - [`tls`]: what a host secures its connections with, and TLS on a socket that is polled.
//! - [`blocking`]: a driver over `std::net::TcpStream` for tools and tests.
//!
//! # Invariants
//! - A command owns its payload from submission until its completion is polled; neither the target's
//!   behaviour nor a closed connection loses or doubles it.
//! - A payload is not handed back while the transmit queue still refers to it.
//! - Nothing is allocated after [`qpair::Qpair::new`] on the path of commands.
//! - Whatever a target sends is held against the commands outstanding; the first violation closes the
//!   connection with the H2CTermReq that the standard asks for.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::cast_possible_truncation, reason = "tests make bytes and lengths of small numbers")
)]

pub mod blocking;
pub mod command;
pub mod controller;
mod digest;
pub mod error;
#[cfg(test)]
mod fake_target;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod payload;
pub mod qpair;
pub mod tls;

pub use error::QpairError;
pub use payload::{Contiguous, Payload};
pub use qpair::{AuthConfig, Completion, Qpair, QpairConfig, QpairState, Transfer};
pub use tls::{Tls, TlsKey, Tunnel};
