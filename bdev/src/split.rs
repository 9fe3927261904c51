//! `split`: equal parts of a bdev, each a bdev. Addresses are moved on the way down and back on the way up.

use std::sync::Arc;

use penstock_reactor::{Cx, Rest, Tick};
use serde::Deserialize;
use serde_json::json;

use crate::bdev::{Bdev, Run, Shared, SharedConfig};
use crate::channel::{BdevChannel, Busy, Channel};
use crate::descriptor::Descriptor;
use crate::error::BdevError;
use crate::io::{Io, Lba};
use crate::registry::Registry;

const MIB: u64 = 1 << 20;
/// Parts of one bdev at most.
const PARTS_MAX: u32 = 1024;

/// Parameters of `bdev_split_create`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitOptions {
    /// The bdev to be split.
    pub base_bdev: String,
    /// How many parts.
    pub split_count: u32,
    /// Length of a part in MiB; 0: as long as they can be.
    #[serde(default)]
    pub split_size_mb: u64,
}

/// Parameters of `bdev_split_delete`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitDeleteOptions {
    /// The bdev whose parts are to go.
    pub base_bdev: String,
}

/// One part.
#[derive(Debug)]
pub struct Split {
    shared: Arc<Shared>,
    base: Descriptor,
    options: SplitOptions,
    index: u32,
    offset: u64,
}

impl Split {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "Split Disk";

    /// Makes and registers the parts: `bdev_split_create`. Returns their names, `<base>p0` and so on.
    ///
    /// # Errors
    /// As [`Registry::claim`]; [`BdevError::Invalid`] where the parts do not fit; [`BdevError::Exists`] where one of
    /// the names is taken, and then no part is made.
    pub fn create(registry: &Registry, options: &SplitOptions) -> Result<Vec<String>, BdevError> {
        let base = registry.claim(&options.base_bdev, Self::PRODUCT)?;
        let blocks = part_blocks(base.shared(), options)?;
        let names: Vec<_> = (0..options.split_count).map(|i| format!("{}p{i}", options.base_bdev)).collect();
        if let Some(name) = names.iter().find(|name| registry.find(name).is_ok()) {
            return Err(BdevError::Exists { name: name.clone() });
        }
        for (name, index) in names.iter().zip(0_u32..) {
            let below = base.shared();
            // A part is the same disk again after a restart.
            let uuid = uuid::Uuid::new_v5(&below.uuid(), name.as_bytes());
            let config = SharedConfig {
                name: name.clone(),
                product: Self::PRODUCT,
                uuid,
                block_bytes: below.block_bytes(),
                physical_block_bytes: below.physical_block_bytes(),
                blocks,
                caps: below.caps().of_filter(),
            };
            let shared = Shared::over(below, config)?;
            let offset = blocks * u64::from(index);
            let part = Self { shared, base: base.clone(), options: options.clone(), index, offset };
            registry.register(Arc::new(part), &[])?;
        }
        Ok(names)
    }

    /// Removes all parts of a bdev: `bdev_split_delete`.
    ///
    /// # Errors
    /// [`BdevError::NotFound`] where there is no such bdev, or it has no parts; as [`Registry::remove`].
    pub async fn delete(registry: &Registry, options: &SplitDeleteOptions) -> Result<(), BdevError> {
        let base = Arc::clone(registry.find(&options.base_bdev)?.shared());
        let is_part = |bdev: &Arc<dyn Bdev>| {
            bdev.shared().product() == Self::PRODUCT
                && bdev.base().is_some_and(|below| Arc::ptr_eq(below.shared(), &base))
        };
        let parts = registry.list().into_iter().filter(is_part);
        let names: Vec<_> = parts.map(|part| part.shared().name().to_owned()).collect();
        if names.is_empty() {
            return Err(BdevError::NotFound { name: format!("{}p0", options.base_bdev) });
        }
        for name in names {
            registry.remove(&name).await?;
        }
        Ok(())
    }
}

fn part_blocks(base: &Shared, options: &SplitOptions) -> Result<u64, BdevError> {
    let invalid =
        |parameter, problem| Err(BdevError::Invalid { name: options.base_bdev.clone(), parameter, problem });
    if !(1..=PARTS_MAX).contains(&options.split_count) {
        let problem = format!("is {}; it must be 1 to {PARTS_MAX}", options.split_count);
        return invalid("split_count", problem);
    }
    let most = base.blocks() / u64::from(options.split_count);
    let wanted = options.split_size_mb.saturating_mul(MIB) / u64::from(base.block_bytes());
    // Parts begin where the base's own boundaries are.
    let unit = u64::from(base.caps().boundary_blocks.max(1));
    let blocks = if wanted == 0 { most / unit * unit } else { wanted };
    if blocks == 0 || blocks > most {
        let problem = format!("asks for parts of {blocks} blocks; {most} are there for each");
        return invalid("split_size_mb", problem);
    }
    Ok(blocks)
}

impl Bdev for Split {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(SplitChannel { base: self.base.channel(cx)?, offset: self.offset }))
    }

    fn allocation(&self, first: u64, runs_max: usize) -> Option<Vec<Run>> {
        let mut runs = self.base.allocation(self.offset.checked_add(first)?, runs_max)?;
        // What follows belongs to other parts.
        let mut left = self.shared.blocks().saturating_sub(first);
        for run in &mut runs {
            run.blocks = run.blocks.min(left);
            left -= run.blocks;
        }
        runs.retain(|run| run.blocks > 0);
        Some(runs)
    }

    fn driver_specific(&self) -> serde_json::Value {
        json!({ "split": { "base_bdev": self.options.base_bdev, "offset_blocks": self.offset } })
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        if self.index > 0 {
            return ("", json!({}));
        }
        let params = json!({
            "base_bdev": self.options.base_bdev,
            "split_count": self.options.split_count,
            "split_size_mb": self.options.split_size_mb,
        });
        ("bdev_split_create", params)
    }

    fn base(&self) -> Option<&Descriptor> {
        Some(&self.base)
    }
}

struct SplitChannel {
    base: BdevChannel,
    offset: u64,
}

impl Channel for SplitChannel {
    fn submit(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Busy> {
        io.lba = Lba(io.lba.0.wrapping_add(self.offset));
        io.src_lba = Lba(io.src_lba.0.wrapping_add(self.offset));
        self.base.submit(io, now).map_err(|Busy(mut io)| {
            self.move_back(&mut io);
            Busy(io)
        })
    }

    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let before = done.len();
        let count = self.base.poll(now, budget, done);
        done.iter_mut().skip(before).for_each(|io| self.move_back(io));
        count
    }

    fn abort(&mut self, tag: u64) -> bool {
        self.base.abort(tag)
    }

    fn reset(&mut self) {
        self.base.abort_all();
    }

    fn rest(&self, now: Tick) -> Rest {
        self.base.rest(now)
    }
}

impl SplitChannel {
    /// Flushes and resets have no address; theirs wraps there and back.
    fn move_back(&self, io: &mut Io) {
        io.lba = Lba(io.lba.0.wrapping_sub(self.offset));
        io.src_lba = Lba(io.src_lba.0.wrapping_sub(self.offset));
    }
}
