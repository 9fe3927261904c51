//! `malloc`: a disk in memory, shared by all cores.
//!
//! I/Os are copies, done in `poll` in the order of their submission; the next one's memory is fetched while one is
//! copied. Contents are lost with the bdev.

mod region;

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_reactor::mem::{BUF_BYTES_MAX, Buf};
use penstock_reactor::{Cx, Tick};
use serde::Deserialize;
use serde_json::json;

use crate::bdev::{Bdev, Shared, SharedConfig};
use crate::channel::{Busy, Caps, Channel};
use crate::error::BdevError;
use crate::io::{Io, IoStatus, Op};
use crate::registry::Registry;
use crate::rpc;
use region::Region;

/// I/Os of one channel under way at most.
const QUEUE_LEN: usize = 4096;
/// Bytes copied in one call of `poll` at most, so that it keeps its core well below 1 ms, and that what was read is still in
/// the core's cache when it is sent.
const POLL_BYTES_MAX: usize = 256 << 10;

/// Parameters of `bdev_malloc_create`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MallocOptions {
    /// Its name; `Malloc0`, `Malloc1`, … where none is given.
    pub name: Option<String>,
    /// Length in blocks.
    pub num_blocks: u64,
    /// Length of a logical block in bytes: 512 or 4096.
    pub block_size: u32,
    /// Length of a physical block in bytes.
    pub physical_block_size: Option<u32>,
    /// Its identity; a random one where none is given.
    pub uuid: Option<String>,
    /// I/Os that cross a multiple of so many blocks are split.
    #[serde(default)]
    pub optimal_io_boundary: u32,
    /// Bytes of metadata per block: 0, as there is no support for it.
    #[serde(default)]
    pub md_size: u32,
    /// Where metadata would be; without meaning.
    pub md_interleave: Option<bool>,
    /// Type of protection information: 0.
    #[serde(default)]
    pub dif_type: i32,
    /// Where protection information would be; without meaning.
    pub dif_is_head_of_md: Option<bool>,
    /// Format of protection information; without meaning.
    pub dif_pi_format: Option<u32>,
    /// NUMA node of the memory; the system chooses.
    pub numa_id: Option<i32>,
}

/// A disk in memory.
#[derive(Debug)]
pub struct Malloc {
    shared: Arc<Shared>,
    region: Arc<Region>,
}

impl Malloc {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "Malloc disk";

    /// Makes and registers one: `bdev_malloc_create`. Returns its name.
    ///
    /// # Errors
    /// As [`Shared::new`] and [`Registry::register`]; [`BdevError::Os`] without address space.
    pub fn create(registry: &Registry, options: MallocOptions) -> Result<String, BdevError> {
        let name = rpc::name_or(registry, options.name.clone(), "Malloc");
        registry.register(Self::new(&name, &options)?, &[])?;
        Ok(name)
    }

    /// A malloc bdev that is in no registry.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn new(name: &str, options: &MallocOptions) -> Result<Arc<Self>, BdevError> {
        rpc::no_metadata(name, options.md_size, options.dif_type)?;
        let caps = Caps {
            native_ops: Caps::ops(&[
                Op::Read,
                Op::Write,
                Op::Flush,
                Op::Unmap,
                Op::WriteZeroes,
                Op::Compare,
                Op::Copy,
                Op::Reset,
            ]),
            io_blocks_max: 0,
            boundary_blocks: options.optimal_io_boundary,
            optimal_blocks: 0,
            write_cache: false,
            unmap_zeroes: true,
            // What is split has to have its buffers before.
            late_buffers: options.optimal_io_boundary == 0,
        };
        let shared = Shared::new(SharedConfig {
            name: name.to_owned(),
            product: Self::PRODUCT,
            uuid: rpc::uuid_or_random(name, options.uuid.as_deref())?,
            block_bytes: options.block_size,
            physical_block_bytes: options.physical_block_size.unwrap_or(options.block_size),
            blocks: options.num_blocks,
            caps,
        })?;
        let bytes = usize::try_from(shared.blocks() * u64::from(shared.block_bytes())).unwrap_or(usize::MAX);
        let region = Region::map(bytes).map_err(|source| BdevError::Os {
            name: name.to_owned(),
            what: format!("map {bytes} bytes of memory"),
            source,
        })?;
        Ok(Arc::new(Self { shared, region: Arc::new(region) }))
    }
}

impl Bdev for Malloc {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(MallocChannel {
            region: Arc::clone(&self.region),
            block_bytes: usize::try_from(self.shared.block_bytes()).unwrap_or(usize::MAX),
            queue: VecDeque::with_capacity(QUEUE_LEN),
        }))
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
            "optimal_io_boundary": shared.caps().boundary_blocks,
        });
        ("bdev_malloc_create", params)
    }

    fn resize(&self, blocks: Option<u64>) -> Result<u64, BdevError> {
        let Some(blocks) = blocks else { return Ok(self.shared.blocks()) };
        let bytes = blocks.checked_mul(u64::from(self.shared.block_bytes()));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        if blocks == 0 || bytes.is_none_or(|bytes| bytes > self.region.len()) {
            let max = self.region.len() / usize::try_from(self.shared.block_bytes()).unwrap_or(usize::MAX);
            let problem = format!("is {blocks}; this bdev can have 1 to {max} blocks");
            return Err(BdevError::Invalid {
                name: self.shared.name().to_owned(),
                parameter: "new_size",
                problem,
            });
        }
        if let (Some(bytes), true) = (bytes, blocks > self.shared.blocks()) {
            // What an earlier, larger size left there is not to be seen again.
            let old = usize::try_from(self.shared.blocks()).unwrap_or(usize::MAX)
                * usize::try_from(self.shared.block_bytes()).unwrap_or(usize::MAX);
            self.region.free(old, bytes - old);
        }
        Ok(blocks)
    }
}

struct MallocChannel {
    region: Arc<Region>,
    block_bytes: usize,
    queue: VecDeque<Box<Io>>,
}

impl MallocChannel {
    /// Where blocks begin in memory. In range: the layer above has checked the LBA.
    #[inline]
    fn offset(&self, lba: u64) -> usize {
        usize::try_from(lba).unwrap_or(usize::MAX).saturating_mul(self.block_bytes)
    }

    /// Gives a read its buffers that came without; false where there are none just now.
    #[inline]
    fn has_buffers(&self, io: &mut Io) -> bool {
        if io.op != Op::Read || !io.data.is_empty() {
            return true;
        }
        let mut left = usize::try_from(io.blocks).unwrap_or(usize::MAX).saturating_mul(self.block_bytes);
        while left > 0 {
            let Some(buf) = Buf::alloc(left.min(BUF_BYTES_MAX)) else {
                io.data.clear();
                return false;
            };
            left -= buf.len();
            io.data.push(buf);
        }
        true
    }

    #[inline]
    fn execute(&self, io: &mut Io) -> IoStatus {
        let mut at = self.offset(io.lba.0);
        let len = usize::try_from(io.blocks).unwrap_or(usize::MAX).saturating_mul(self.block_bytes);
        match io.op {
            Op::Read => {
                for buf in io.data.iter_mut() {
                    self.region.read(at, buf);
                    at += buf.len();
                }
            }
            Op::Write => {
                for buf in io.data.iter() {
                    self.region.write(at, buf);
                    at += buf.len();
                }
            }
            Op::Compare => {
                let first = at;
                for buf in io.data.iter() {
                    if let Some(offset) = self.region.first_difference(at, buf) {
                        io.result = u64::try_from(at - first + offset).unwrap_or(u64::MAX);
                        return IoStatus::Miscompare;
                    }
                    at += buf.len();
                }
            }
            Op::Unmap => self.region.free(at, len),
            Op::WriteZeroes => self.region.zero(at, len),
            Op::Copy => self.region.copy(self.offset(io.src_lba.0), at, len),
            Op::Flush | Op::Reset => {}
            Op::CompareAndWrite => return IoStatus::Unsupported,
        }
        IoStatus::Success
    }
}

impl Channel for MallocChannel {
    #[inline]
    fn submit(&mut self, io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        if self.queue.len() == QUEUE_LEN {
            return Err(Busy(io));
        }
        self.queue.push_back(io);
        Ok(())
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let (mut count, mut bytes) = (0, 0);
        while count < budget && bytes < POLL_BYTES_MAX {
            let Some(mut io) = self.queue.pop_front() else { break };
            if !self.has_buffers(&mut io) {
                self.queue.push_front(io);
                break;
            }
            if let Some(next) = self.queue.front() {
                self.region.prefetch(self.offset(next.lba.0));
            }
            bytes += usize::try_from(io.blocks).unwrap_or(0).saturating_mul(self.block_bytes);
            io.status = self.execute(&mut io);
            done.push(io);
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests;
