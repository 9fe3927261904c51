//! What the end-to-end tests stand on: Linux guests with a kernel NVMe/TCP initiator, the daemon under test, and the
//! kernel's own target as the yardstick of the harness itself.
//!
//! `cargo xtask test` installs what this needs (see its `deps` module) and builds the programs under test;
//! the tests themselves are in `tests/tests`, one file for each kind of trouble.

pub mod daemon;
pub mod guest;
pub mod initiator;
pub mod iscsi;
pub mod net;
pub mod paths;
pub mod process;
pub mod relay;
pub mod rpc;
pub mod scenario;
pub mod target;
pub mod wait;
