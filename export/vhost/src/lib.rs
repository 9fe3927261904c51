//! vhost-user-blk: block devices for virtual machines on the same node.
//!
//! ```text
//!   control thread                                         reactors
//!   ──────────────                                         ────────
//!   Vhost ─ Controller (socket, bdev) ─ Session (frontend)
//!                                          │ start, update, stop
//!                                          ▼
//!                                        Worker (one per reactor) ─ Disk (BdevChannel) ─ Queue ─ Ring (split, packed)
//!                                                                                          └ slots: request, Loan, Io
//! ```
//!
//! A hypervisor (QEMU, cloud-hypervisor) or a program that plays one (libblkio) connects to a controller's socket and
//! hands over its guest's memory and queues. From then on requests pass through shared memory alone: a reactor polls the
//! rings, and hands the guest's own memory to the bdev as the buffers of its I/O. The socket is served by the control
//! thread, as nothing that it carries is urgent.
//!
//! Invariants: a queue belongs to one reactor; a mapping of guest memory lives as long as an I/O into it; what a guest
//! does wrong breaks its own device and nothing else.

mod coalesce;
mod controller;
mod cpumask;
mod device;
mod error;
mod exclusion;
mod memory;
mod request;
mod ring;
mod session;
mod stats;
mod target;
mod worker;

/// What the fuzz target does; its corpus is replayed by the ordinary tests.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
mod tests;

pub use device::QUEUES_MAX;
pub use error::VhostError;
pub use memory::MemoryError;
pub use ring::{QUEUE_SIZE_MAX, RingError};
pub use session::SessionError;
pub use target::{CONTROLLERS_MAX, CreateBlkController, Vhost};
