//! `passthru`: hands everything to the bdev below, unchanged. The smallest filter there can be, and the template for
//! authors of modules: docs/bdev-module.md walks through it.

use std::sync::Arc;

use penstock_reactor::{Cx, Rest, Tick};
use serde::Deserialize;
use serde_json::json;

use crate::bdev::{Bdev, Run, Shared, SharedConfig};
use crate::channel::{BdevChannel, Busy, Channel};
use crate::descriptor::Descriptor;
use crate::error::BdevError;
use crate::io::Io;
use crate::registry::Registry;
use crate::rpc;

/// Parameters of `bdev_passthru_create`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassthruOptions {
    /// Its name.
    pub name: String,
    /// The bdev below.
    pub base_bdev_name: String,
    /// Its identity; a random one where none is given.
    pub uuid: Option<String>,
}

/// A filter that changes nothing.
#[derive(Debug)]
pub struct Passthru {
    shared: Arc<Shared>,
    base: Descriptor,
}

impl Passthru {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "passthru";

    /// Makes and registers one: `bdev_passthru_create`. Returns its name.
    ///
    /// # Errors
    /// As [`Registry::claim`] and [`Registry::register`].
    pub fn create(registry: &Registry, options: &PassthruOptions) -> Result<String, BdevError> {
        let base = registry.claim(&options.base_bdev_name, Self::PRODUCT)?;
        let shared = shared_over(&base, &options.name, Self::PRODUCT, options.uuid.as_deref())?;
        registry.register(Arc::new(Self { shared, base }), &[])?;
        Ok(options.name.clone())
    }
}

/// The shared part of a filter that is as long as the bdev below and can do what that can.
pub(crate) fn shared_over(
    base: &Descriptor,
    name: &str,
    product: &'static str,
    uuid: Option<&str>,
) -> Result<Arc<Shared>, BdevError> {
    let below = base.shared();
    let config = SharedConfig {
        name: name.to_owned(),
        product,
        uuid: rpc::uuid_or_random(name, uuid)?,
        block_bytes: below.block_bytes(),
        physical_block_bytes: below.physical_block_bytes(),
        blocks: below.blocks(),
        caps: below.caps().of_filter(),
    };
    Shared::over(below, config)
}

impl Bdev for Passthru {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(PassthruChannel { base: self.base.channel(cx)? }))
    }

    fn allocation(&self, first: u64, runs_max: usize) -> Option<Vec<Run>> {
        self.base.allocation(first, runs_max)
    }

    fn driver_specific(&self) -> serde_json::Value {
        json!({ "passthru": {
            "name": self.shared.name(),
            "base_bdev_name": self.base.shared().name(),
        }})
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        let params = json!({
            "name": self.shared.name(),
            "base_bdev_name": self.base.shared().name(),
            "uuid": self.shared.uuid().to_string(),
        });
        ("bdev_passthru_create", params)
    }

    fn base(&self) -> Option<&Descriptor> {
        Some(&self.base)
    }

    fn blocks_over(&self, base_blocks: u64) -> Option<u64> {
        Some(base_blocks)
    }
}

struct PassthruChannel {
    base: BdevChannel,
}

impl Channel for PassthruChannel {
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        self.base.submit(io, now)
    }

    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        self.base.poll(now, budget, done)
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
