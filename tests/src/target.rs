//! What is under test: something that exports namespaces of one subsystem by NVMe/TCP on the host's 127.0.0.1.

mod nvmet;
mod penstock;

pub use nvmet::Nvmet;
pub use penstock::{Backend, Penstock, fsck, make_pool, make_pool_of};

use anyhow::Result;

/// A target with one subsystem, whose namespaces a test adds, removes and resizes while hosts are connected.
pub trait Target {
    /// The subsystem's NQN.
    fn nqn(&self) -> &str;

    /// The TCP port on the host's 127.0.0.1.
    fn port(&self) -> u16;

    /// Adds a namespace of `bytes`, all zero.
    ///
    /// # Errors
    /// Where the target refuses.
    fn add_namespace(&mut self, nsid: u32, bytes: u64) -> Result<()>;

    /// Changes the size of a namespace.
    ///
    /// # Errors
    /// Where the target refuses.
    fn resize_namespace(&mut self, nsid: u32, bytes: u64) -> Result<()>;

    /// Takes a namespace away.
    ///
    /// # Errors
    /// Where the target refuses.
    fn remove_namespace(&mut self, nsid: u32) -> Result<()>;
}
