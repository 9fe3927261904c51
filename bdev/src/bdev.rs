//! What a block device is to those who use it, and what all of them share.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use penstock_reactor::{Cx, ReactorId};
use uuid::Uuid;

use crate::channel::{Caps, Channel};
use crate::descriptor::Descriptor;
use crate::error::BdevError;
use crate::io::LEVELS_MAX;
use crate::lock::Locks;
use crate::qos::{Qos, QosLimits};
use crate::stat::ChannelStats;

/// Reactors that may have channels at most.
pub(crate) const REACTORS_MAX: usize = 256;

/// A kind of block device: the part that a module's author writes (see docs/bdev-module.md).
pub trait Bdev: Any + Send + Sync + fmt::Debug {
    /// Name, geometry, state and statistics.
    fn shared(&self) -> &Arc<Shared>;

    /// Opens this core's way to the device. Runs on the reactor, as part of a control flow; must not block.
    ///
    /// # Errors
    /// What the device says; the caller's open fails with it.
    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError>;

    /// The `driver_specific` part of `bdev_get_bdevs`: a JSON object.
    fn driver_specific(&self) -> serde_json::Value;

    /// The RPC that makes this bdev again: method and parameters. An empty method: the bdev comes with another one (a
    /// part of a split).
    fn config(&self) -> (&'static str, serde_json::Value);

    /// How its device is, where it tells (SMART / Health): a JSON object, part of `bdev_get_iostat`.
    fn health(&self) -> Option<serde_json::Value> {
        None
    }

    /// The bdev below, for a filter: it goes when that goes, and grows when that grows.
    fn base(&self) -> Option<&Descriptor> {
        None
    }

    /// A filter's length when the bdev below has `base_blocks`; `None` leaves it as it is.
    fn blocks_over(&self, _base_blocks: u64) -> Option<u64> {
        None
    }

    /// Which blocks from `first` on have storage: up to `runs_max` runs without gaps, at least one where `first` is on the
    /// device. `None`: it cannot tell. Runs on the control thread; writes under way may or may not be in it.
    fn allocation(&self, _first: u64, _runs_max: usize) -> Option<Vec<Run>> {
        None
    }

    /// Gives the device `blocks` blocks, or learns how many it has got by itself (`None`). Runs on the control thread.
    /// Returns the length that holds from now on; the registry publishes it.
    ///
    /// # Errors
    /// [`BdevError::Unsupported`] unless the module can; what the device says.
    fn resize(&self, _blocks: Option<u64>) -> Result<u64, BdevError> {
        let shared = self.shared();
        let (name, product) = (shared.name().to_owned(), shared.product());
        Err(BdevError::Unsupported { name, product, what: "resizing" })
    }
}

/// Blocks next to each other that have storage of their own, or have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub blocks: u64,
    /// Whether they have.
    pub allocated: bool,
}

/// Geometry and identity, fixed when a bdev is made (but for its size).
#[derive(Debug, Clone)]
pub struct SharedConfig {
    /// Its name, unique among names, aliases and UUIDs.
    pub name: String,
    /// What kind it is, for people: "Malloc disk".
    pub product: &'static str,
    /// Its identity.
    pub uuid: Uuid,
    /// Length of a logical block in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Length of a physical block in bytes, a multiple of `block_bytes`.
    pub physical_block_bytes: u32,
    /// Length in logical blocks.
    pub blocks: u64,
    /// What it can do and how much at once.
    pub caps: Caps,
}

/// Geometry as of now; a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BdevInfo {
    /// Length of a logical block in bytes.
    pub block_bytes: u32,
    /// Length of a physical block in bytes.
    pub physical_block_bytes: u32,
    /// Length in logical blocks.
    pub blocks: u64,
    /// What it can do and how much at once.
    pub caps: Caps,
    /// Its identity.
    pub uuid: Uuid,
}

/// The bdev is gone.
pub(crate) const GATE_REMOVED: u32 = 1;
/// There are ceilings.
pub(crate) const GATE_QOS: u32 = 2;
/// There are locked ranges.
pub(crate) const GATE_LOCKS: u32 = 4;

/// What the control side and all cores share of one bdev: read by every I/O, written rarely.
#[derive(Debug)]
pub struct Shared {
    config: SharedConfig,
    blocks: AtomicU64,
    /// What every I/O must look out for: the `GATE_` bits.
    gates: AtomicU32,
    /// How many bdevs it stands on.
    level: usize,
    pub(crate) locks: Locks,
    pub(crate) qos: Qos,
    stats: Box<[OnceLock<Arc<ChannelStats>>]>,
}

impl Shared {
    /// The shared part of a new bdev.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a block length other than 512 or 4096, a physical block that is no multiple of it, no
    /// blocks, or an empty name.
    pub fn new(config: SharedConfig) -> Result<Arc<Self>, BdevError> {
        Self::at_level(config, 0)
    }

    /// The shared part of a new filter on `base`.
    ///
    /// # Errors
    /// As [`Self::new`]; [`BdevError::Invalid`] where there would be more than [`LEVELS_MAX`] bdevs on each other.
    pub fn over(base: &Self, config: SharedConfig) -> Result<Arc<Self>, BdevError> {
        Self::at_level(config, base.level + 1)
    }

    fn at_level(config: SharedConfig, level: usize) -> Result<Arc<Self>, BdevError> {
        let invalid = |parameter, problem: String| {
            Err(BdevError::Invalid { name: config.name.clone(), parameter, problem })
        };
        if level >= LEVELS_MAX {
            let problem = format!("has {} bdevs below it already, which is the most", LEVELS_MAX - 1);
            return invalid("base_bdev_name", problem);
        }
        if config.name.is_empty() || config.name.len() > 255 {
            return invalid("name", "must have 1 to 255 bytes".into());
        }
        if !matches!(config.block_bytes, 512 | 4096) {
            return invalid("block_size", format!("is {}; it must be 512 or 4096", config.block_bytes));
        }
        if config.physical_block_bytes == 0 || !config.physical_block_bytes.is_multiple_of(config.block_bytes)
        {
            let problem =
                format!("is {}; it must be a multiple of the block size", config.physical_block_bytes);
            return invalid("physical_block_size", problem);
        }
        if config.blocks == 0 || config.blocks.checked_mul(u64::from(config.block_bytes)).is_none() {
            return invalid(
                "num_blocks",
                format!("is {}; the device would have no valid size", config.blocks),
            );
        }
        if config.caps.boundary_blocks != 0 && !config.caps.boundary_blocks.is_power_of_two() {
            let problem = format!("is {}; it must be 0 or a power of two", config.caps.boundary_blocks);
            return invalid("optimal_io_boundary", problem);
        }
        let blocks = AtomicU64::new(config.blocks);
        let stats = (0..REACTORS_MAX).map(|_| OnceLock::new()).collect();
        Ok(Arc::new(Self {
            config,
            blocks,
            gates: AtomicU32::new(0),
            level,
            locks: Locks::default(),
            qos: Qos::default(),
            stats,
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What kind it is.
    #[must_use]
    pub fn product(&self) -> &'static str {
        self.config.product
    }

    /// Its identity.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.config.uuid
    }

    /// Length of a logical block in bytes.
    #[inline]
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.config.block_bytes
    }

    /// Length of a physical block in bytes.
    #[must_use]
    pub fn physical_block_bytes(&self) -> u32 {
        self.config.physical_block_bytes
    }

    /// Length in logical blocks, as of now.
    #[inline]
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// What it can do and how much at once.
    #[inline]
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.config.caps
    }

    /// Geometry as of now.
    #[must_use]
    pub fn info(&self) -> BdevInfo {
        BdevInfo {
            block_bytes: self.config.block_bytes,
            physical_block_bytes: self.config.physical_block_bytes,
            blocks: self.blocks(),
            caps: self.config.caps,
            uuid: self.config.uuid,
        }
    }

    /// Whether it is gone: every further I/O ends with [`IoStatus::Gone`](crate::IoStatus::Gone).
    #[inline]
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.gates() & GATE_REMOVED != 0
    }

    /// The `GATE_` bits.
    #[inline]
    pub(crate) fn gates(&self) -> u32 {
        self.gates.load(Ordering::Relaxed)
    }

    pub(crate) fn set_gate(&self, gate: u32, on: bool) {
        if on {
            self.gates.fetch_or(gate, Ordering::SeqCst);
        } else {
            self.gates.fetch_and(!gate, Ordering::SeqCst);
        }
    }

    /// How many bdevs it stands on, at most.
    #[inline]
    pub(crate) fn level(&self) -> usize {
        self.level
    }

    /// The ceilings of its I/O.
    #[must_use]
    pub fn qos_limits(&self) -> QosLimits {
        self.qos.limits()
    }

    /// Sets the ceilings of its I/O, from now on.
    pub fn set_qos_limits(&self, limits: QosLimits) {
        self.qos.set_limits(limits);
        self.set_gate(GATE_QOS, limits != QosLimits::default());
    }

    /// Changes the length. The registry calls it and tells whoever has the bdev open.
    pub(crate) fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// Marks it gone. The registry calls it and tells whoever has the bdev open.
    pub(crate) fn set_removed(&self) {
        self.set_gate(GATE_REMOVED, true);
    }

    /// The counters of one reactor's channels.
    #[must_use]
    pub fn stats_of(&self, reactor: ReactorId) -> Arc<ChannelStats> {
        let slot = usize::try_from(reactor.0).ok().and_then(|index| self.stats.get(index));
        slot.map_or_else(Arc::default, |slot| Arc::clone(slot.get_or_init(Arc::default)))
    }

    /// The counters of all reactors that have had a channel.
    pub fn all_stats(&self) -> impl Iterator<Item = (ReactorId, &ChannelStats)> {
        self.stats.iter().enumerate().filter_map(|(index, slot)| {
            let reactor = ReactorId(u32::try_from(index).ok()?);
            slot.get().map(|stats| (reactor, &**stats))
        })
    }
}
