//! `delay`: a slow device. An I/O goes to the bdev below at once and comes back no earlier than the latency set for its
//! kind; one in a hundred takes the 99th percentile's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_reactor::rng::Rng;
use penstock_reactor::{Cx, Rest, Tick};
use serde::Deserialize;
use serde_json::json;

use crate::bdev::{Bdev, Run, Shared};
use crate::channel::{BdevChannel, Busy, Channel};
use crate::descriptor::Descriptor;
use crate::error::BdevError;
use crate::io::{Io, Op};
use crate::passthru::shared_over;
use crate::registry::Registry;

/// I/Os held at most per kind of latency; the bdev below is not asked for more.
const HELD_LEN: usize = 1024;
/// One I/O in so many (per mille: 10) takes the 99th percentile's latency.
const SLOW_PER_MILLE: u32 = 10;
const NS_PER_US: u64 = 1000;

/// Parameters of `bdev_delay_create`; latencies in microseconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelayOptions {
    /// Its name.
    pub name: String,
    /// The bdev below.
    pub base_bdev_name: String,
    /// Latency of most reads.
    pub avg_read_latency: u64,
    /// Latency of one read in a hundred.
    pub p99_read_latency: u64,
    /// Latency of most writes.
    pub avg_write_latency: u64,
    /// Latency of one write in a hundred.
    pub p99_write_latency: u64,
    /// Its identity; a random one where none is given.
    pub uuid: Option<String>,
}

/// Which latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum LatencyType {
    /// Of most reads.
    AvgRead,
    /// Of one read in a hundred.
    P99Read,
    /// Of most writes.
    AvgWrite,
    /// Of one write in a hundred.
    P99Write,
}

/// Parameters of `bdev_delay_update_latency`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelayUpdateOptions {
    /// Which delay bdev.
    pub delay_bdev_name: String,
    /// Which latency.
    pub latency_type: LatencyType,
    /// Its new value in microseconds.
    pub latency_us: u64,
}

/// Latencies in microseconds, by [`LatencyType`]; changed live.
type Latencies = [AtomicU64; 4];

/// A slow device.
#[derive(Debug)]
pub struct Delay {
    shared: Arc<Shared>,
    base: Descriptor,
    latencies: Arc<Latencies>,
}

impl Delay {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "delay";

    /// Makes and registers one: `bdev_delay_create`. Returns its name.
    ///
    /// # Errors
    /// As [`Registry::claim`] and [`Registry::register`].
    pub fn create(registry: &Registry, options: &DelayOptions) -> Result<String, BdevError> {
        let base = registry.claim(&options.base_bdev_name, Self::PRODUCT)?;
        let shared = shared_over(&base, &options.name, Self::PRODUCT, options.uuid.as_deref())?;
        let latencies = [
            options.avg_read_latency,
            options.p99_read_latency,
            options.avg_write_latency,
            options.p99_write_latency,
        ];
        let latencies = Arc::new(latencies.map(AtomicU64::new));
        registry.register(Arc::new(Self { shared, base, latencies }), &[])?;
        Ok(options.name.clone())
    }

    /// Changes a latency: `bdev_delay_update_latency`.
    ///
    /// # Errors
    /// [`BdevError::NotFound`]; [`BdevError::WrongKind`] when the bdev is no delay.
    pub fn update(registry: &Registry, options: &DelayUpdateOptions) -> Result<(), BdevError> {
        let bdev = registry.find(&options.delay_bdev_name)?;
        let any: &dyn std::any::Any = &*bdev;
        let Some(delay) = any.downcast_ref::<Self>() else {
            let actual = bdev.shared().product();
            let name = options.delay_bdev_name.clone();
            return Err(BdevError::WrongKind { name, actual, wanted: Self::PRODUCT });
        };
        if let Some(latency) = delay.latencies.get(options.latency_type as usize) {
            latency.store(options.latency_us, Ordering::Relaxed);
        }
        Ok(())
    }

    fn latency_us(&self, which: LatencyType) -> u64 {
        self.latencies.get(which as usize).map_or(0, |latency| latency.load(Ordering::Relaxed))
    }
}

impl Bdev for Delay {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(DelayChannel {
            base: self.base.channel(cx)?,
            latencies: Arc::clone(&self.latencies),
            held: std::array::from_fn(|_| VecDeque::with_capacity(HELD_LEN)),
            held_count: 0,
            back: Vec::with_capacity(HELD_LEN),
            rng: Rng::seeded(cx.with_rng(Rng::next_u64)),
            hurry: false,
        }))
    }

    fn allocation(&self, first: u64, runs_max: usize) -> Option<Vec<Run>> {
        self.base.allocation(first, runs_max)
    }

    fn driver_specific(&self) -> serde_json::Value {
        let (_, mut params) = self.config();
        if let Some(params) = params.as_object_mut() {
            params.remove("uuid");
        }
        json!({ "delay": params })
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        let params = json!({
            "name": self.shared.name(),
            "base_bdev_name": self.base.shared().name(),
            "uuid": self.shared.uuid().to_string(),
            "avg_read_latency": self.latency_us(LatencyType::AvgRead),
            "p99_read_latency": self.latency_us(LatencyType::P99Read),
            "avg_write_latency": self.latency_us(LatencyType::AvgWrite),
            "p99_write_latency": self.latency_us(LatencyType::P99Write),
        });
        ("bdev_delay_create", params)
    }

    fn base(&self) -> Option<&Descriptor> {
        Some(&self.base)
    }

    fn blocks_over(&self, base_blocks: u64) -> Option<u64> {
        Some(base_blocks)
    }
}

struct DelayChannel {
    base: BdevChannel,
    latencies: Arc<Latencies>,
    /// I/Os that are back and wait for their time, by [`LatencyType`]; those of one latency are due in order.
    held: [VecDeque<(Tick, Box<Io>)>; 4],
    held_count: usize,
    back: Vec<Box<Io>>,
    rng: Rng,
    /// What is held goes back at once: a reset or a removal.
    hurry: bool,
}

impl DelayChannel {
    fn hold(&mut self, io: Box<Io>) {
        let slow = self.rng.chance(SLOW_PER_MILLE);
        let which = match (io.op, slow) {
            (op, true) if op.is_write() => LatencyType::P99Write,
            (op, false) if op.is_write() => LatencyType::AvgWrite,
            (_, true) => LatencyType::P99Read,
            (_, false) => LatencyType::AvgRead,
        };
        let latency_us = match (io.op, self.latencies.get(which as usize)) {
            (Op::Flush, _) | (_, None) => 0,
            (_, Some(latency)) => latency.load(Ordering::Relaxed),
        };
        let due = io.submitted.plus_ns(latency_us.saturating_mul(NS_PER_US));
        if let Some(queue) = self.held.get_mut(which as usize) {
            queue.push_back((due, io));
            self.held_count += 1;
        }
    }
}

impl Channel for DelayChannel {
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        if self.base.in_flight() + self.held_count >= HELD_LEN {
            return Err(Busy(io));
        }
        self.base.submit(io, now)
    }

    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let mut back = std::mem::take(&mut self.back);
        self.base.poll(now, budget, &mut back);
        back.drain(..).for_each(|io| self.hold(io));
        self.back = back;
        let before = done.len();
        for queue in &mut self.held {
            while done.len() - before < budget
                && queue.front().is_some_and(|(due, _)| *due <= now || self.hurry)
                && let Some((_, io)) = queue.pop_front()
            {
                done.push(io);
            }
        }
        let count = done.len() - before;
        self.held_count -= count;
        self.hurry &= self.held_count > 0 || self.base.in_flight() > 0;
        count
    }

    fn abort(&mut self, tag: u64) -> bool {
        self.base.abort(tag)
    }

    fn reset(&mut self) {
        self.hurry = true;
        self.base.abort_all();
    }

    fn rest(&self, now: Tick) -> Rest {
        let due = self.held.iter().filter_map(|queue| queue.front().map(|(due, _)| *due)).min();
        match (self.base.rest(now), due) {
            (Rest::Never, _) => Rest::Never,
            (_, Some(_)) if self.hurry => Rest::Never,
            (Rest::Until(at), Some(due)) => Rest::Until(at.min(due)),
            (Rest::UntilWoken, Some(due)) => Rest::Until(due),
            (rest, None) => rest,
        }
    }
}
