//! JSON-RPC 2.0 on a UNIX socket, as SPDK's client speaks it.
//!
//! ```text
//!   bytes ──Framer──► one JSON text ──Request──► Table ──► handler ──► Value or RpcError ──► bytes
//!            wire.rs                 request.rs    method.rs                       error.rs      server.rs
//! ```
//!
//! Requests come one after another with nothing between them, or white space; each may be a batch. What a client sends
//! is bounded ([`wire::REQUEST_BYTES_MAX`], [`wire::DEPTH_MAX`], [`wire::BATCH_MAX`]); a client that does not read its
//! answers is not read from, and loses its connection in the end. Rubbish is answered with an error that says what is
//! wrong, and ends the connection, because nothing says where the next request begins.

pub mod error;
pub mod method;
pub mod param;
pub mod server;
pub mod socket;
pub mod wire;

pub use error::RpcError;
pub use method::{Kind, Method, Table};
