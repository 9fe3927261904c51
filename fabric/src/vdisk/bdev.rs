//! The bdev of a vdisk, or of a snapshot that is shown as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_bdev::{Bdev, BdevError, Caps, Channel, Op, Shared, SharedConfig};
use penstock_reactor::Cx;
use serde_json::{Value, json};
use uuid::Uuid;

use super::channel::VdiskChannel;
use super::mesh::{Hub, Mesh};
use super::quota::Quota;
use super::{SECTORS, STRIPE_BLOCKS};
use crate::id::{BLOCK_BYTES, ShardId, count32};

/// Where a shard is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The reactor.
    pub reactor: u16,
    /// The desk there.
    pub desk: u32,
    /// The shard.
    pub shard: ShardId,
}

/// What a vdisk is.
#[derive(Debug, Clone)]
pub struct VdiskConfig {
    /// Its name as a bdev.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its length in bytes.
    pub bytes: u64,
    /// Bytes of a block: 512 or 4096.
    pub block_bytes: u32,
    /// Its pool, for people.
    pub pool: String,
    /// Its container, for people.
    pub container: String,
    /// What the writes of its container may.
    pub quota: Arc<Quota>,
    /// Its shards, in order.
    pub routes: Vec<Route>,
    /// A snapshot of them is shown, to be read.
    pub snapshot: Option<u64>,
}

/// What all cores' channels share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) routes: Vec<Route>,
    pub(super) snapshot: Option<u64>,
    /// Blocks of 512 bytes.
    pub(super) sectors: bool,
    pub(super) quota: Arc<Quota>,
}

/// A vdisk.
#[derive(Debug)]
pub struct Vdisk {
    shared: Arc<Shared>,
    core: Arc<Core>,
    mesh: Arc<Mesh>,
    /// The length that holds, in blocks: what the pool's notes say.
    blocks: AtomicU64,
    pool: String,
    container: String,
}

impl Vdisk {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "vdisk";
    /// What [`Shared::product`] says of a snapshot.
    pub const SNAPSHOT_PRODUCT: &'static str = "vdisk snapshot";

    /// The bdev of a vdisk.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a name, block length or size that no bdev has.
    pub fn new(config: VdiskConfig, mesh: &Arc<Mesh>) -> Result<Arc<Self>, BdevError> {
        let sectors = config.block_bytes == 512;
        let stripe = if sectors { STRIPE_BLOCKS * SECTORS } else { STRIPE_BLOCKS };
        let caps = Caps {
            native_ops: Caps::ops(&[Op::Read, Op::Write, Op::Unmap, Op::WriteZeroes]),
            io_blocks_max: 0,
            boundary_blocks: u32::try_from(stripe).unwrap_or(0),
            optimal_blocks: count32(BLOCK_BYTES) / config.block_bytes.max(1),
            // What is acknowledged is in the log, durable.
            write_cache: false,
            unmap_zeroes: true,
            late_buffers: false,
        };
        let blocks = config.bytes / u64::from(config.block_bytes.max(1));
        let shared = Shared::new(SharedConfig {
            name: config.name,
            product: if config.snapshot.is_some() { Self::SNAPSHOT_PRODUCT } else { Self::PRODUCT },
            uuid: config.uuid,
            block_bytes: config.block_bytes,
            physical_block_bytes: count32(BLOCK_BYTES),
            blocks,
            caps,
        })?;
        let (routes, snapshot, quota) = (config.routes, config.snapshot, config.quota);
        let core = Arc::new(Core { routes, snapshot, sectors, quota });
        let (pool, container, mesh) = (config.pool, config.container, Arc::clone(mesh));
        Ok(Arc::new(Self { shared, core, mesh, blocks: AtomicU64::new(blocks), pool, container }))
    }

    /// Says what length holds from now on; the registry's `resize` publishes it.
    pub fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }
}

impl Bdev for Vdisk {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(VdiskChannel::new(Arc::clone(&self.core), Hub::of(cx, &self.mesh))))
    }

    fn driver_specific(&self) -> Value {
        json!({ "vdisk": {
            "pool": self.pool,
            "container": self.container,
            "shards": self.core.routes.len(),
            "stripe_bytes": STRIPE_BLOCKS * BLOCK_BYTES as u64,
            "snapshot": self.core.snapshot.is_some(),
            "thin_provision": true,
        }})
    }

    fn config(&self) -> (&'static str, Value) {
        // It comes with its pool, which its disks bring.
        ("", Value::Null)
    }

    fn resize(&self, blocks: Option<u64>) -> Result<u64, BdevError> {
        let held = self.blocks.load(Ordering::Relaxed);
        if blocks.is_some_and(|blocks| blocks != held) {
            let (name, product) = (self.shared.name().to_owned(), self.shared.product());
            let what = "resizing this way; use vdisk_resize";
            return Err(BdevError::Unsupported { name, product, what });
        }
        Ok(held)
    }
}
