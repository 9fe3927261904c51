//! A bdev whose writes reach the one below late, whatever becomes of those who wait for them: they cannot be aborted.

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_bdev::{
    Bdev, BdevChannel, BdevError, Busy, Caps, Channel, Descriptor, Io, Op, Registry, Shared, SharedConfig,
};
use penstock_reactor::{Cx, Rest, Tick};
use serde_json::{Value, json};
use uuid::Uuid;

#[derive(Debug)]
pub struct Late {
    shared: Arc<Shared>,
    base: Descriptor,
    delay_ns: u64,
}

impl Late {
    /// Registers "late" on `base`.
    pub fn create(registry: &Registry, base: &str, delay_ns: u64) {
        let base = registry.claim(base, "late").unwrap();
        let below = base.shared();
        let config = SharedConfig {
            name: "late".to_owned(),
            uuid: Uuid::from_u128(99),
            product: "late",
            blocks: below.blocks(),
            block_bytes: below.block_bytes(),
            physical_block_bytes: below.physical_block_bytes(),
            caps: Caps::of_filter(below.caps()),
        };
        let shared = Shared::over(below, config).unwrap();
        registry.register(Arc::new(Self { shared, base, delay_ns }), &[]).unwrap();
    }
}

impl Bdev for Late {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(LateChannel {
            base: self.base.channel(cx)?,
            delay_ns: self.delay_ns,
            held: VecDeque::new(),
        }))
    }

    fn driver_specific(&self) -> Value {
        json!({})
    }

    fn config(&self) -> (&'static str, Value) {
        ("", json!({}))
    }
}

struct LateChannel {
    base: BdevChannel,
    delay_ns: u64,
    held: VecDeque<(Tick, Box<Io>)>,
}

impl Channel for LateChannel {
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        if io.op != Op::Write {
            return self.base.submit(io, now);
        }
        self.held.push_back((now.plus_ns(self.delay_ns), io));
        Ok(())
    }

    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        while self.held.front().is_some_and(|(due, _)| *due <= now)
            && let Some((due, io)) = self.held.pop_front()
        {
            if let Err(Busy(io)) = self.base.submit(io, now) {
                self.held.push_front((due, io));
                break;
            }
        }
        self.base.poll(now, budget, done)
    }

    fn rest(&self, _now: Tick) -> Rest {
        Rest::Never
    }
}
