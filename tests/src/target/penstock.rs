//! The daemon as a target: set up through its control socket, with SPDK's methods.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::Target;
use crate::daemon::Daemon;
use crate::net;

const NQN: &str = "nqn.2026-11.io.penstock:e2e";

/// What the namespaces lie on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Backend {
    /// The daemon's memory.
    Malloc,
    /// Sparse files, through io_uring.
    Uring,
}

/// A daemon with one subsystem, open to every host.
#[derive(Debug)]
pub struct Penstock {
    daemon: Daemon,
    backend: Backend,
    block_bytes: u32,
    port: u16,
    /// Namespaces by NSID, with their sizes in bytes.
    namespaces: BTreeMap<u32, u64>,
}

impl Penstock {
    /// Starts a daemon on two reactors and sets the subsystem up without a namespace.
    ///
    /// # Errors
    /// Where the daemon does not come up or refuses.
    pub fn start(backend: Backend, block_bytes: u32) -> Result<Self> {
        let daemon = Daemon::start(2)?;
        let target =
            Self { daemon, backend, block_bytes, port: net::free_port()?, namespaces: BTreeMap::new() };
        target.set_up()?;
        Ok(target)
    }

    /// The daemon.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Starts the daemon again after it was killed, on the same files and port, and sets it up as it was.
    ///
    /// # Errors
    /// As [`Penstock::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.restart()?;
        self.set_up()?;
        for (nsid, bytes) in &self.namespaces {
            self.attach(*nsid, *bytes)?;
        }
        Ok(())
    }

    /// Where the bytes of a namespace on [`Backend::Uring`] lie.
    pub fn file(&self, nsid: u32) -> PathBuf {
        self.daemon.dir().join(format!("ns{nsid}.img"))
    }

    fn set_up(&self) -> Result<()> {
        let daemon = &self.daemon;
        daemon.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
        let subsystem = json!({"nqn": NQN, "allow_any_host": true, "serial_number": "PENSTOCKE2E"});
        daemon.call("nvmf_create_subsystem", subsystem)?;
        let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": self.port.to_string()});
        daemon.call("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address}))?;
        Ok(())
    }

    fn attach(&self, nsid: u32, bytes: u64) -> Result<()> {
        let name = format!("ns{nsid}");
        match self.backend {
            Backend::Malloc => {
                let blocks = bytes / u64::from(self.block_bytes);
                let params = json!({"name": name, "num_blocks": blocks, "block_size": self.block_bytes});
                self.daemon.call("bdev_malloc_create", params)?;
            }
            Backend::Uring => {
                let params =
                    json!({"name": name, "filename": self.file(nsid), "block_size": self.block_bytes});
                self.daemon.call("bdev_uring_create", params)?;
            }
        }
        let namespace = json!({"bdev_name": name, "nsid": nsid});
        self.daemon.call("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": namespace}))?;
        Ok(())
    }
}

impl Target for Penstock {
    fn nqn(&self) -> &str {
        NQN
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn add_namespace(&mut self, nsid: u32, bytes: u64) -> Result<()> {
        if self.backend == Backend::Uring {
            File::create_new(self.file(nsid))?.set_len(bytes)?;
        }
        self.attach(nsid, bytes)?;
        self.namespaces.insert(nsid, bytes);
        Ok(())
    }

    fn resize_namespace(&mut self, nsid: u32, bytes: u64) -> Result<()> {
        let name = format!("ns{nsid}");
        match self.backend {
            Backend::Malloc => {
                self.daemon.call("bdev_malloc_resize", json!({"name": name, "new_size": bytes >> 20}))?;
            }
            Backend::Uring => {
                OpenOptions::new().write(true).open(self.file(nsid))?.set_len(bytes)?;
                self.daemon.call("bdev_uring_rescan", json!({"name": name}))?;
            }
        }
        self.namespaces.insert(nsid, bytes);
        Ok(())
    }

    fn remove_namespace(&mut self, nsid: u32) -> Result<()> {
        self.namespaces.remove(&nsid).with_context(|| format!("namespace {nsid} is not there"))?;
        self.daemon.call("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": nsid}))?;
        let delete = match self.backend {
            Backend::Malloc => "bdev_malloc_delete",
            Backend::Uring => "bdev_uring_delete",
        };
        self.daemon.call(delete, json!({"name": format!("ns{nsid}")}))?;
        Ok(())
    }
}
