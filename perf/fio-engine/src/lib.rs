//! An external I/O engine for the stock fio: it drives what `penstock-perf` drives, polled, from fio's own buffers.
//!
//! ```text
//! fio --ioengine=external:target/release/libpenstock_fio.so --thread \
//!     --filename='nvme-tcp\://127.0.0.1\:4420/nqn.2026-11.io.penstock\:vdisk0' --rw=randread --iodepth=32 --name=t
//! ```
//!
//! [`target`] says what file names mean, docs/fio.md what of fio's options is honoured. The parts:
//!
//! ```text
//!   fio ── struct ioengine_ops ──► hooks (C's side: pointers) ──► job::Job (one for each fio job: devices, I/Os)
//!                abi: layouts                                        └─► penstock_perf::worker::Device
//! ```
//!
//! Invariants: nothing of fio's is looked at but the beginnings of three structs, whose layout is the same in all versions
//! of fio that accept the engine (interface 31, fio 3.30 to 3.33; others refuse it by its number). No I/O outlives fio's
//! buffers: they are not given back before everything under way has ended.
#![expect(
    clippy::disallowed_types,
    reason = "what jobs share is looked up as they begin and end, never per I/O"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test: what is missing is a failure"))]

mod abi;
mod hooks;
mod job;
mod target;
