//! I/Os to the PCIe driver's queue pair, over the model of a controller. The driver's side alone is counted, not the model.

use anyhow::{bail, ensure};
use penstock_bdev::{Busy, Io};
use penstock_nvme::model::{Model, ModelNs};
use penstock_nvme::queue::{IoQueue, NsParams};
use penstock_perf::worker::Device;
use penstock_reactor::Tick;

use crate::{BLOCK_BYTES, BLOCKS, Load, drive};

/// Of [`BLOCK_BYTES`].
const BLOCK_SHIFT: u8 = 12;
const _: () = assert!(BLOCK_BYTES == 1 << BLOCK_SHIFT);

struct Driver {
    queue: IoQueue,
    end: usize,
}

impl Device for Driver {
    #[inline(never)]
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        self.queue.submit(self.end, io, now)
    }

    #[inline(never)]
    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        self.queue.turn(now);
        self.queue.take_ended(self.end, budget, done)
    }

    #[inline(never)]
    fn flush_queue(&mut self) {
        self.queue.turn(Tick::ZERO);
    }
}

pub(crate) fn run(kind: &str, load: Load) -> anyhow::Result<()> {
    ensure!(load.queue_depth < 256, "a queue depth of this layer is 1 to 255");
    if kind != "model" {
        bail!("unknown controller {kind}: it is model");
    }
    let model = Model::new();
    model.inner().namespaces.insert(1, ModelNs::new(1, BLOCKS, BLOCK_SHIFT));
    let mut queue = model.io_queue()?;
    let end = queue.open(NsParams {
        nsid: 1,
        block_shift: BLOCK_SHIFT.into(),
        copy_range_blocks: 64,
        deallocates_zeroes: true,
    });
    drive(&mut Driver { queue, end }, load, || {
        model.step();
    })
}
