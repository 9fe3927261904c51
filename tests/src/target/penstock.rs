//! The daemon as a target: set up through its control socket, with SPDK's methods.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Target;
use crate::daemon::Daemon;
use crate::iscsi::must;
use crate::{net, paths};

/// All data of a pool of a few hundred MiB, read on a busy machine.
const FSCK_LIMIT: Duration = Duration::from_secs(60);

const NQN: &str = "nqn.2026-11.io.penstock:e2e";

/// What the namespaces lie on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Backend {
    /// The daemon's memory.
    Malloc,
    /// Sparse files, through io_uring.
    Uring,
    /// vdisks of a pool on one sparse file, [`Penstock::POOL_FILE`].
    Vdisk,
}

/// A daemon with one subsystem, open to every host.
#[derive(Debug)]
pub struct Penstock {
    daemon: Daemon,
    backend: Backend,
    block_bytes: u32,
    port: u16,
}

impl Penstock {
    /// Where the pool of [`Backend::Vdisk`] is, in the daemon's directory.
    pub const POOL_FILE: &str = "pool.img";

    /// Starts a daemon on two reactors and sets the subsystem up without a namespace.
    ///
    /// # Errors
    /// Where the daemon does not come up or refuses.
    pub fn start(backend: Backend, block_bytes: u32) -> Result<Self> {
        Self::start_with(backend, block_bytes, json!({}))
    }

    /// The same, with options of the transport.
    ///
    /// # Errors
    /// As [`Penstock::start`].
    pub fn start_with(backend: Backend, block_bytes: u32, mut options: Value) -> Result<Self> {
        let daemon = Daemon::start(2)?;
        if backend == Backend::Vdisk {
            make_pool(&daemon, 1024)?;
        }
        let port = net::free_port()?;
        let object = options.as_object_mut().context("the options are an object")?;
        object.insert("trtype".to_owned(), json!("TCP"));
        daemon.call("nvmf_create_transport", options)?;
        let subsystem = json!({"nqn": NQN, "allow_any_host": true, "serial_number": "PENSTOCKE2E"});
        daemon.call("nvmf_create_subsystem", subsystem)?;
        let address =
            json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
        daemon.call("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address}))?;
        Ok(Self { daemon, backend, block_bytes, port })
    }

    /// The daemon.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Looks at the pool of [`Backend::Vdisk`] with `penstock fsck`, data and all, while no daemon has it.
    ///
    /// # Errors
    /// Where it is not clean: what it said.
    pub fn fsck(&self) -> Result<String> {
        fsck(&self.daemon)
    }

    /// Where the bytes of a namespace on [`Backend::Uring`] lie.
    pub fn file(&self, nsid: u32) -> PathBuf {
        self.daemon.dir().join(format!("ns{nsid}.img"))
    }
}

/// Makes a pool of so many MiB, named pool, on [`Penstock::POOL_FILE`].
///
/// # Errors
/// Where the daemon refuses.
pub fn make_pool(daemon: &Daemon, mib: u64) -> Result<()> {
    let file = daemon.dir().join(Penstock::POOL_FILE);
    let disk = json!({"name": "pool-disk", "filename": file, "block_size": 4096, "create_size_mib": mib});
    daemon.call("bdev_uring_create", disk)?;
    make_pool_of(daemon, "pool-disk")
}

/// Makes a small pool, named pool, of a bdev.
///
/// # Errors
/// Where the daemon refuses.
pub fn make_pool_of(daemon: &Daemon, bdev: &str) -> Result<()> {
    let pool = json!({"name": "pool", "bdevs": [bdev], "lanes": 2, "log_mib": 16, "region_mib": 8});
    daemon.call("pool_create", pool).map(drop)
}

/// Looks at that pool with `penstock fsck`, data and all, while no daemon has it.
///
/// # Errors
/// Where it is not clean: what it said.
pub fn fsck(daemon: &Daemon) -> Result<String> {
    let (program, file) = (paths::program("penstock")?, daemon.dir().join(Penstock::POOL_FILE));
    let words = [&program, &file].map(|path| path.to_str().context("a path of ASCII"));
    let [program, file] = words;
    must(program?, &["fsck", "--data", file?], FSCK_LIMIT)
}

impl Target for Penstock {
    fn nqn(&self) -> &str {
        NQN
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn add_namespace(&mut self, nsid: u32, bytes: u64) -> Result<()> {
        let name = format!("ns{nsid}");
        match self.backend {
            Backend::Malloc => {
                let blocks = bytes / u64::from(self.block_bytes);
                let params = json!({"name": name, "num_blocks": blocks, "block_size": self.block_bytes});
                self.daemon.call("bdev_malloc_create", params)?;
            }
            Backend::Uring => {
                let file = self.file(nsid);
                File::create_new(&file)?.set_len(bytes)?;
                let params = json!({"name": name, "filename": file, "block_size": self.block_bytes});
                self.daemon.call("bdev_uring_create", params)?;
            }
            Backend::Vdisk => {
                let params = json!({"name": name, "bytes": bytes, "block_size": self.block_bytes});
                self.daemon.call("vdisk_create", params)?;
            }
        }
        let namespace = json!({"bdev_name": name, "nsid": nsid});
        self.daemon.call("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": namespace}))?;
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
            Backend::Vdisk => {
                self.daemon.call("vdisk_resize", json!({"name": name, "bytes": bytes}))?;
            }
        }
        Ok(())
    }

    fn remove_namespace(&mut self, nsid: u32) -> Result<()> {
        self.daemon.call("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": nsid}))?;
        let delete = match self.backend {
            Backend::Malloc => "bdev_malloc_delete",
            Backend::Uring => "bdev_uring_delete",
            Backend::Vdisk => "vdisk_delete",
        };
        self.daemon.call(delete, json!({"name": format!("ns{nsid}")}))?;
        Ok(())
    }
}
