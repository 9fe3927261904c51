//! `uring` (and `aio`, another name for it): files and block devices through io_uring.
//!
//! ```text
//!   UringChannel ─ submit ─► Ring (one or two per reactor: slots, registered memory and files) ─► one io_uring_enter a turn
//!        ▲                     │ completions: short ones go on, the rest
//!        └──── Ended queue ◄───┘
//! ```
//!
//! Writes are volatile until a flush (fdatasync) or with FUA (RWF_DSYNC). After a failed flush or durable write nothing
//! is written any more until the bdev is made anew: the kernel reports a failed write-back once, so a second flush that
//! succeeds means nothing. Where io_uring is forbidden, threads do the same with plain system calls; and for a file that
//! lies in memory (tmpfs) the core does so itself.

mod channel;
mod file;
mod inline;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod mapped;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "uring/unmapped.rs"]
mod mapped;
mod queue;
mod request;
mod ring;
mod runs;
mod threads;

use std::path::PathBuf;
use std::sync::Arc;

use penstock_reactor::Cx;
use penstock_reactor::mem::BUF_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bdev::{Bdev, Run, Shared, SharedConfig};
use crate::channel::{Caps, Channel};
use crate::error::BdevError;
use crate::io::Op;
use crate::registry::Registry;
use crate::rpc;
use file::{Disk, Opening};

/// Set to `threads`, it keeps every uring bdev from io_uring.
pub const ENGINE_VARIABLE: &str = "PENSTOCK_URING";

/// What does the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// io_uring.
    IoUring,
    /// Threads with plain system calls.
    Threads,
    /// The reactor itself, by copies from and to the mapped file, and by plain system calls where that does not go: for files
    /// in memory only, where nothing waits for a device.
    Inline,
}

/// Parameters of `bdev_uring_create` and `bdev_aio_create`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UringOptions {
    /// Its name.
    pub name: String,
    /// The file or block device.
    pub filename: PathBuf,
    /// Length of a block in bytes, 512 or 4096; the device's own where none is given.
    pub block_size: Option<u32>,
    /// Its identity; a random one where none is given.
    pub uuid: Option<String>,
    /// Never written.
    #[serde(default)]
    pub readonly: bool,
    /// A file that does not exist is made with so many MiB, all holes.
    pub create_size_mib: Option<u64>,
    /// Unless it is said here: inline for a file in memory, io_uring where it is allowed, threads else.
    pub engine: Option<Engine>,
    /// Whether reads and writes are polled for instead of waiting for the device's interrupt; where the device has
    /// polled queues unless it is said here.
    pub iopoll: Option<bool>,
    /// SPDK's aio: whether to unmap and write zeroes; always done where the file system can.
    pub fallocate: Option<bool>,
    /// SPDK's aio: without meaning here.
    pub nowait: Option<bool>,
}

/// A file or block device.
#[derive(Debug)]
pub struct Uring {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    options: UringOptions,
    engine: Engine,
}

impl Uring {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "URING bdev";

    /// Opens the file and registers a bdev on it: `bdev_uring_create`. Returns its name.
    ///
    /// # Errors
    /// [`BdevError::Os`] when the file cannot be opened or is in use; as [`Shared::new`] and [`Registry::register`].
    pub fn create(registry: &Registry, options: UringOptions) -> Result<String, BdevError> {
        let bdev = Self::new(options)?;
        let name = bdev.shared.name().to_owned();
        registry.register(bdev, &[])?;
        Ok(name)
    }

    /// A uring bdev that is in no registry.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn new(options: UringOptions) -> Result<Arc<Self>, BdevError> {
        let name = &options.name;
        let in_memory = file::is_in_memory(&options.filename);
        let engine = options.engine.unwrap_or_else(|| best_engine(in_memory));
        if engine == Engine::Inline && !in_memory {
            let problem =
                "is inline, but the file is on no tmpfs or ramfs: each I/O would stop all others of its core"
                    .to_owned();
            return Err(BdevError::Invalid { name: name.clone(), parameter: "engine", problem });
        }
        if let Some(bytes) = options.block_size.filter(|bytes| !matches!(bytes, 512 | 4096)) {
            let problem = format!("is {bytes}; it must be 512 or 4096");
            return Err(BdevError::Invalid { name: name.clone(), parameter: "block_size", problem });
        }
        let os = |source| BdevError::Os {
            name: name.clone(),
            what: format!("open {}", options.filename.display()),
            source,
        };
        let opening = Opening {
            read_only: options.readonly,
            direct: engine == Engine::IoUring,
            create_bytes: options.create_size_mib.map(|mib| mib.saturating_mul(1 << 20)),
            block_bytes: options.block_size,
            polled: engine == Engine::IoUring && options.iopoll != Some(false),
            mapped: engine == Engine::Inline,
        };
        let disk = Disk::open(&options.filename, opening).map_err(os)?;
        if options.iopoll == Some(true) && !disk.is_polled() {
            let problem = "is asked for, but the device has no polled queues, or is not opened by io_uring without the page \
                           cache; NVMe devices have them when the kernel is booted with nvme.poll_queues=N"
                .to_owned();
            return Err(BdevError::Invalid { name: name.clone(), parameter: "iopoll", problem });
        }
        let blocks = disk.bytes().map_err(os)? / u64::from(disk.block_bytes);
        let shared = Shared::new(SharedConfig {
            name: name.clone(),
            product: Self::PRODUCT,
            uuid: rpc::uuid_or_random(name, options.uuid.as_deref())?,
            block_bytes: disk.block_bytes,
            physical_block_bytes: disk.physical_block_bytes,
            blocks,
            caps: caps(&disk),
        })?;
        Ok(Arc::new(Self { shared, disk: Arc::new(disk), options, engine }))
    }

    /// Flushes and durable writes that were asked of the system so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.disk.syncs.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn caps(disk: &Disk) -> Caps {
    let mut native_ops = Caps::ops(&[Op::Read]);
    if !disk.read_only {
        native_ops |= Caps::ops(&[Op::Write, Op::Flush]);
        if disk.can_punch {
            native_ops |= Caps::ops(&[Op::Unmap, Op::WriteZeroes]);
        }
    }
    let io_bytes_max = u32::try_from(BUF_BYTES_MAX).unwrap_or(u32::MAX);
    Caps {
        native_ops,
        io_blocks_max: io_bytes_max / disk.block_bytes,
        boundary_blocks: 0,
        optimal_blocks: disk.optimal_bytes / disk.block_bytes,
        write_cache: true,
        unmap_zeroes: disk.can_punch,
        late_buffers: false,
    }
}

/// What suits the file, unless the kernel, a sandbox or the environment forbids it.
fn best_engine(in_memory: bool) -> Engine {
    if std::env::var_os(ENGINE_VARIABLE).is_some_and(|engine| engine == "threads") {
        Engine::Threads
    } else if in_memory {
        Engine::Inline
    } else if ring::is_allowed() {
        Engine::IoUring
    } else {
        Engine::Threads
    }
}

impl Bdev for Uring {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let disk = Arc::clone(&self.disk);
        match self.engine {
            Engine::Inline => return Ok(Box::new(inline::InlineChannel::new(disk))),
            Engine::Threads => return Ok(Box::new(threads::ThreadChannel::new(disk, cx.handle()))),
            Engine::IoUring => {}
        }
        let channel = channel::UringChannel::open(disk, cx).map_err(|source| BdevError::Os {
            name: self.shared.name().to_owned(),
            what: "set up io_uring on a reactor".to_owned(),
            source,
        })?;
        Ok(Box::new(channel))
    }

    fn driver_specific(&self) -> serde_json::Value {
        json!({ "uring": {
            "filename": self.options.filename,
            "engine": self.engine,
            "direct": self.disk.direct,
            "mapped": self.disk.mapping.is_some(),
            "readonly": self.disk.read_only,
            "iopoll": self.disk.is_polled(),
            "failed": self.disk.has_failed(),
        }})
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        let mut params = json!({
            "name": self.shared.name(),
            "filename": self.options.filename,
            "block_size": self.shared.block_bytes(),
            "uuid": self.shared.uuid().to_string(),
        });
        if let Some(params) = params.as_object_mut() {
            if self.options.readonly {
                params.insert("readonly".into(), true.into());
            }
            if let Some(iopoll) = self.options.iopoll {
                params.insert("iopoll".into(), iopoll.into());
            }
            if let Some(engine) = self.options.engine {
                params.insert("engine".into(), json!(engine));
            }
        }
        ("bdev_uring_create", params)
    }

    fn allocation(&self, first: u64, runs_max: usize) -> Option<Vec<Run>> {
        self.disk.runs(first, self.shared.blocks(), runs_max)
    }

    fn resize(&self, blocks: Option<u64>) -> Result<u64, BdevError> {
        let name = self.shared.name();
        let os = |source| BdevError::Os {
            name: name.to_owned(),
            what: format!("resize {}", self.options.filename.display()),
            source,
        };
        let block_bytes = u64::from(self.shared.block_bytes());
        if let Some(bytes) = blocks.and_then(|blocks| blocks.checked_mul(block_bytes)) {
            if self.disk.is_block_device || self.disk.read_only {
                let (name, product) = (name.to_owned(), Self::PRODUCT);
                return Err(BdevError::Unsupported { name, product, what: "resizing this device" });
            }
            self.disk.set_bytes(bytes).map_err(os)?;
        }
        let now = self.disk.bytes().map_err(os)? / block_bytes;
        if now == 0 {
            let problem = "would be 0: the file is empty now".to_owned();
            return Err(BdevError::Invalid { name: name.to_owned(), parameter: "new_size", problem });
        }
        Ok(now)
    }
}

#[cfg(test)]
mod tests;
