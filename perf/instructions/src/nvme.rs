//! I/Os to the PCIe driver's queue pair, over the model of a controller. The driver's side alone is counted, not the model.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use penstock_bdev::{Busy, Io};
use penstock_nvme::admin::{Admin, Waiter};
use penstock_nvme::dma::Translator;
use penstock_nvme::model::{Model, ModelNs};
use penstock_nvme::queue::{IoQueue, NsParams, OnTimeout, QueueRules};
use penstock_nvme::register::Registers;
use penstock_perf::worker::Device;
use penstock_reactor::Tick;

use crate::{BLOCK_BYTES, BLOCKS, Load, drive};

/// Of [`BLOCK_BYTES`].
const BLOCK_SHIFT: u8 = 12;
const _: () = assert!(BLOCK_BYTES == 1 << BLOCK_SHIFT);

/// Time passes when somebody waits, and the controller then works.
struct Passing(u64, Arc<Model>);

impl Waiter for Passing {
    fn now_ns(&mut self) -> u64 {
        self.0
    }

    fn wait(&mut self, ns: u64) {
        self.0 += ns;
        self.1.step();
    }
}

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
    let registers: Arc<dyn Registers> = Arc::<Model>::clone(&model);
    let mut time = Passing(0, Arc::clone(&model));
    let mut admin = Admin::new(registers, Translator::identity(), 1_000_000_000)?;
    admin.stop(&mut time)?;
    admin.start(1, &mut time)?;
    let mut ring = admin.ring(1, 256)?;
    let shadows = admin.create(ring.place(), &mut time)?;
    ring.set_shadows(shadows);
    let rules = QueueRules {
        pointers: admin.pointer_rules(),
        timeout_ns: 0,
        on_timeout: OnTimeout::Nothing,
        retries_max: 3,
        retry_delays_ns: admin.retry_delays_ns(),
    };
    let mut queue = IoQueue::new(ring, admin.translator(), rules, Box::new(|_| true), Arc::default())
        .context("no memory for the queue pair")?;
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
