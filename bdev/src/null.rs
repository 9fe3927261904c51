//! `null`: takes everything, stores nothing. What remains is the cost of the layers above it.

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_reactor::{Cx, Tick};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::bdev::{Bdev, Shared, SharedConfig};
use crate::channel::{Busy, Caps, Channel};
use crate::error::BdevError;
use crate::io::{Io, IoStatus, Op};
use crate::registry::Registry;
use crate::rpc;

/// I/Os of one channel under way at most.
const QUEUE_LEN: usize = 4096;

/// Parameters of `bdev_null_create`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NullOptions {
    /// Its name.
    pub name: String,
    /// Length in blocks.
    pub num_blocks: u64,
    /// Length of a logical block in bytes: 512 or 4096.
    pub block_size: u32,
    /// Length of a physical block in bytes.
    pub physical_block_size: Option<u32>,
    /// Its identity; a random one where none is given.
    pub uuid: Option<String>,
    /// Bytes of metadata per block: 0, as there is no support for it.
    #[serde(default)]
    pub md_size: u32,
    /// Type of protection information: 0.
    #[serde(default)]
    pub dif_type: i32,
    /// Where protection information would be; without meaning.
    pub dif_is_head_of_md: Option<bool>,
    /// Format of protection information; without meaning.
    pub dif_pi_format: Option<u32>,
}

/// A bdev without a device. Reads leave the buffers as they are.
#[derive(Debug)]
pub struct Null {
    shared: Arc<Shared>,
}

impl Null {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "Null disk";

    /// A null bdev of `blocks` blocks of `block_bytes` bytes.
    ///
    /// # Errors
    /// As [`Shared::new`].
    pub fn new(name: &str, uuid: Uuid, blocks: u64, block_bytes: u32) -> Result<Arc<Self>, BdevError> {
        Self::with_physical(name, uuid, blocks, block_bytes, block_bytes)
    }

    /// Makes and registers one: `bdev_null_create`. Returns its name.
    ///
    /// # Errors
    /// As [`Shared::new`] and [`Registry::register`].
    pub fn create(registry: &Registry, options: &NullOptions) -> Result<String, BdevError> {
        let name = &options.name;
        rpc::no_metadata(name, options.md_size, options.dif_type)?;
        let uuid = rpc::uuid_or_random(name, options.uuid.as_deref())?;
        let physical = options.physical_block_size.unwrap_or(options.block_size);
        let bdev = Self::with_physical(name, uuid, options.num_blocks, options.block_size, physical)?;
        registry.register(bdev, &[])?;
        Ok(name.clone())
    }

    fn with_physical(
        name: &str,
        uuid: Uuid,
        blocks: u64,
        block_bytes: u32,
        physical_block_bytes: u32,
    ) -> Result<Arc<Self>, BdevError> {
        let caps = Caps {
            native_ops: Caps::ops(&[Op::Read, Op::Write, Op::Flush, Op::Unmap, Op::WriteZeroes, Op::Reset]),
            io_blocks_max: 0,
            boundary_blocks: 0,
            optimal_blocks: 0,
            write_cache: false,
            unmap_zeroes: false,
            late_buffers: false,
        };
        let shared = Shared::new(SharedConfig {
            name: name.to_owned(),
            product: Self::PRODUCT,
            uuid,
            block_bytes,
            physical_block_bytes,
            blocks,
            caps,
        })?;
        Ok(Arc::new(Self { shared }))
    }
}

impl Bdev for Null {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(NullChannel { queue: VecDeque::with_capacity(QUEUE_LEN) }))
    }

    fn driver_specific(&self) -> serde_json::Value {
        json!({})
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        let shared = &self.shared;
        let params = json!({
            "name": shared.name(),
            "num_blocks": shared.blocks(),
            "block_size": shared.block_bytes(),
            "physical_block_size": shared.physical_block_bytes(),
            "uuid": shared.uuid().to_string(),
        });
        ("bdev_null_create", params)
    }

    fn resize(&self, blocks: Option<u64>) -> Result<u64, BdevError> {
        Ok(blocks.unwrap_or_else(|| self.shared.blocks()))
    }
}

struct NullChannel {
    queue: VecDeque<Box<Io>>,
}

impl Channel for NullChannel {
    fn submit(&mut self, io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        if self.queue.len() == QUEUE_LEN {
            return Err(Busy(io));
        }
        self.queue.push_back(io);
        Ok(())
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let count = self.queue.len().min(budget);
        done.extend(self.queue.drain(..count).map(|mut io| {
            io.status = IoStatus::Success;
            io
        }));
        count
    }
}

#[cfg(test)]
mod tests {
    use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId};

    use super::*;
    use crate::descriptor::{Descriptor, OpenMode};
    use crate::io::{IoFlags, Lba};

    #[test]
    fn every_io_comes_back_once_with_its_tag_and_the_right_status() {
        let (clock, _hand) = Clock::simulated();
        let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
        let reactor = Reactor::new(&config).unwrap();
        let null = Null::new("n0", Uuid::from_u128(1), 1000, 512).unwrap();
        let descriptor = Descriptor::unregistered(null, OpenMode::ReadWrite);
        let mut channel = descriptor.channel(reactor.cx()).unwrap();
        for (tag, lba) in [(1, 0), (2, 992), (3, 993)] {
            let mut io = Io::boxed();
            io.set(tag, Op::Unmap, IoFlags::NONE, Lba(lba), 8);
            channel.submit(io, Tick::ZERO).unwrap();
        }
        assert_eq!(channel.in_flight(), 3);
        let mut done = Vec::new();
        while channel.poll(Tick::ZERO, 2, &mut done) > 0 {}
        let mut ended: Vec<_> = done.iter().map(|io| (io.tag, io.status)).collect();
        ended.sort_by_key(|(tag, _)| *tag);
        let expected = [(1, IoStatus::Success), (2, IoStatus::Success), (3, IoStatus::OutOfRange)];
        assert_eq!(ended, expected);
        assert_eq!(channel.in_flight(), 0);
    }
}
