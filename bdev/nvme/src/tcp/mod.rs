//! Remote NVMe controllers over TCP, by the initiator of `penstock-nvme-tcp`: reconnect, and several paths with ANA.
//!
//! ```text
//!   control thread            a thread per path                     reactors
//!   TcpControllers ─────────► PathKeeper: connect, keep alive,      Hub: sockets of all paths, one queue pair each
//!   bdevs, registry ◄──────── events, ANA log, reconnect ─────────► Seat: route, requests, what waits for a path
//! ```
//!
//! A path is one controller of the subsystem, reached by one address (or by several, one after the other). Whatever a path
//! cannot do for reasons of its own goes to another one, or waits as long as one may come.

mod ana;
mod command;
mod controllers;
mod disk;
mod hub;
mod options;
mod payload;
mod report;
mod route;
mod scan;
mod seat;
mod thread;
mod wire;

pub use controllers::{IoPathView, PATH_DISKS_MAX, TcpControllers};
pub use disk::{DiskShared, RemoteBdev, trid};
pub use options::{LossOptions, MultipathMode, TcpAttach, TcpError};
pub use payload::IoPayload;
pub use penstock_nvme_tcp::{AuthConfig, TlsKey};
pub use penstock_spec::nvmf::Nqn;
pub use report::{PathCondition, PathReport, PathStats};
pub use route::{MultipathOptions, PATHS_MAX, Policy, Selector};
