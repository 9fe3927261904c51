//! NVMe devices driven from user space.
//!
//! ```text
//!   control thread          a thread per controller              reactors
//!   bdev_nvme_attach ─────► Admin: bring-up, events, health,     IoQueue (one queue pair a core)
//!   bdevs, registry  ◄───── aborts, resets ─────────────────────► pause, rewind, resume, end
//!                                 │ Registers, DmaBuf                 │ doorbells, phases
//!                                 └───────────── device ──────────────┘   VFIO, or a model of one
//! ```
//!
//! The machines ([`ring`], [`queue`], [`data`], [`admin`]) know nothing of VFIO: they are given registers, memory and the
//! time, and run against [`model`] as they do against a device.

pub mod admin;
pub mod bdev;
pub mod command;
pub mod controller;
pub mod controllers;
pub mod data;
pub mod device;
pub mod dma;
mod event;
pub mod hotplug;
#[expect(
    clippy::indexing_slicing,
    reason = "a model for tests: what does not fit in it is a mistake in the test"
)]
pub mod model;
pub mod options;
pub mod pci;
pub mod queue;
pub mod register;
pub mod ring;
pub mod status;
pub mod tcp;
pub mod vfio;

pub use controllers::{NvmeControllers, NvmeError, PcieAttach};
