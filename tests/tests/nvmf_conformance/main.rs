//! Conformance of the NVMe/TCP target, over a socket, by a client that shares no code with it and can say anything: every
//! field of PDUs and commands in and out of range, orders of events, and times. The expected answers are those of the NVM Express
//! Base, NVM Command Set and TCP Transport Specifications; each table names what it goes through.
#![expect(
    clippy::indexing_slicing,
    reason = "a test: its structures have the lengths that it made or checked"
)]

mod admin;
mod connect;
mod crc;
mod data;
mod io;
mod pdus;
mod time;
mod wire;

use anyhow::Result;
use penstock_tests::target::{Backend, Penstock, Target};
use serde_json::json;

/// Blocks of the namespace.
const BLOCKS: u64 = 16_384;
/// Their size.
const BLOCK_BYTES: u32 = 512;

/// A target with one namespace of [`BLOCKS`], NSID 1.
fn target() -> Result<Penstock> {
    target_with(json!({}))
}

/// The same with options of the transport.
fn target_with(options: serde_json::Value) -> Result<Penstock> {
    let mut target = Penstock::start_with(Backend::Malloc, BLOCK_BYTES, options)?;
    target.add_namespace(1, BLOCKS * u64::from(BLOCK_BYTES))?;
    Ok(target)
}
