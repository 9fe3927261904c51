//! Ceilings of a bdev's I/O: IOPS and bandwidth, shared by the channels of all reactors.
//!
//! Each ceiling is a clock that runs ahead by what was let through (the generic cell rate algorithm): an I/O may go when
//! the clock is not ahead of the time. It may lag by [`BURST_NS`] at most, which is the largest burst. So that a channel
//! that is polled more often gets no more, each counts what it got, and lets those go first that wait and got less.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use penstock_reactor::{Rest, Tick};
use serde::Deserialize;

use crate::bdev::Shared;
use crate::error::BdevError;
use crate::io::{Io, Op};
use crate::registry::Registry;

/// How much of unused time can be made up for.
const BURST_NS: u64 = 2_000_000;
/// How far a channel may get ahead of the one that got least, among those that wait.
const LEAD_NS: u64 = 500_000;
/// A channel that has not been polled for so long does not hold others back.
const ABSENT_NS: u64 = 20_000_000;
/// How often a reactor that would sleep looks whether an I/O may go.
const LOOK_NS: u64 = 500_000;
const NS_PER_S: u128 = 1_000_000_000;
const MIB: u64 = 1 << 20;

#[expect(
    clippy::disallowed_types,
    reason = "locked to open and close channels; reactors with I/Os only try it"
)]
type Mutex<T> = std::sync::Mutex<T>;

/// Ceilings per second; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QosLimits {
    /// Reads and writes.
    pub rw_ios: u64,
    /// Reads.
    pub r_ios: u64,
    /// Writes.
    pub w_ios: u64,
    /// Bytes read and written.
    pub rw_bytes: u64,
    /// Bytes read.
    pub r_bytes: u64,
    /// Bytes written.
    pub w_bytes: u64,
}

/// Parameters of `bdev_set_qos_limit`. What is not given stays as it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QosOptions {
    /// Which bdev.
    pub name: String,
    /// Reads and writes per second.
    pub rw_ios_per_sec: Option<u64>,
    /// Reads per second.
    pub r_ios_per_sec: Option<u64>,
    /// Writes per second.
    pub w_ios_per_sec: Option<u64>,
    /// MiB read and written per second.
    pub rw_mbytes_per_sec: Option<u64>,
    /// MiB read per second.
    pub r_mbytes_per_sec: Option<u64>,
    /// MiB written per second.
    pub w_mbytes_per_sec: Option<u64>,
}

/// Sets ceilings: `bdev_set_qos_limit`.
///
/// # Errors
/// [`BdevError::NotFound`].
pub fn set_limits(registry: &Registry, options: &QosOptions) -> Result<(), BdevError> {
    let bdev = registry.find(&options.name)?;
    let now = bdev.shared().qos_limits();
    let bytes = |mib: Option<u64>, now| mib.map_or(now, |mib| mib.saturating_mul(MIB));
    bdev.shared().set_qos_limits(QosLimits {
        rw_ios: options.rw_ios_per_sec.unwrap_or(now.rw_ios),
        r_ios: options.r_ios_per_sec.unwrap_or(now.r_ios),
        w_ios: options.w_ios_per_sec.unwrap_or(now.w_ios),
        rw_bytes: bytes(options.rw_mbytes_per_sec, now.rw_bytes),
        r_bytes: bytes(options.r_mbytes_per_sec, now.r_bytes),
        w_bytes: bytes(options.w_mbytes_per_sec, now.w_bytes),
    });
    Ok(())
}

/// The ceilings of a bdev, as `bdev_get_bdevs` and `bdev_set_qos_limit` name them.
#[must_use]
pub fn limits_json(shared: &Shared) -> serde_json::Value {
    let limits = shared.qos_limits();
    serde_json::json!({
        "rw_ios_per_sec": limits.rw_ios,
        "r_ios_per_sec": limits.r_ios,
        "w_ios_per_sec": limits.w_ios,
        "rw_mbytes_per_sec": limits.rw_bytes / MIB,
        "r_mbytes_per_sec": limits.r_bytes / MIB,
        "w_mbytes_per_sec": limits.w_bytes / MIB,
    })
}

/// One ceiling.
#[derive(Debug, Default)]
struct Ceiling {
    per_second: AtomicU64,
    /// The clock that runs ahead, in nanoseconds.
    clock_ns: AtomicU64,
}

impl Ceiling {
    /// How far `units` move the clock; 0 where there is no ceiling.
    fn cost_ns(&self, units: u64) -> u64 {
        let per_second = self.per_second.load(Ordering::Relaxed);
        if per_second == 0 {
            return 0;
        }
        u64::try_from(u128::from(units) * NS_PER_S / u128::from(per_second)).unwrap_or(u64::MAX)
    }

    fn is_open(&self, now: Tick) -> bool {
        self.per_second.load(Ordering::Relaxed) == 0 || self.clock_ns.load(Ordering::Relaxed) <= now.as_ns()
    }

    fn charge(&self, cost_ns: u64, now: Tick) {
        let earliest = now.as_ns().saturating_sub(BURST_NS);
        let advance = |clock: u64| Some(clock.max(earliest).saturating_add(cost_ns));
        self.clock_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance).ok();
    }
}

/// The ceilings of one bdev, and its channels.
#[derive(Debug, Default)]
pub(crate) struct Qos {
    rw_ios: Ceiling,
    r_ios: Ceiling,
    w_ios: Ceiling,
    rw_bytes: Ceiling,
    r_bytes: Ceiling,
    w_bytes: Ceiling,
    peers: Mutex<Vec<Arc<Peer>>>,
}

/// What a channel got, for the others to see.
#[derive(Debug, Default)]
struct Peer {
    waits: AtomicBool,
    got_ns: AtomicU64,
    seen_ns: AtomicU64,
}

impl Qos {
    pub(crate) fn limits(&self) -> QosLimits {
        let read = |ceiling: &Ceiling| ceiling.per_second.load(Ordering::Relaxed);
        QosLimits {
            rw_ios: read(&self.rw_ios),
            r_ios: read(&self.r_ios),
            w_ios: read(&self.w_ios),
            rw_bytes: read(&self.rw_bytes),
            r_bytes: read(&self.r_bytes),
            w_bytes: read(&self.w_bytes),
        }
    }

    pub(crate) fn set_limits(&self, limits: QosLimits) {
        let set = |ceiling: &Ceiling, per_second| {
            ceiling.per_second.store(per_second, Ordering::Relaxed);
            // What an old, lower ceiling owes is forgotten.
            ceiling.clock_ns.store(0, Ordering::Relaxed);
        };
        set(&self.rw_ios, limits.rw_ios);
        set(&self.r_ios, limits.r_ios);
        set(&self.w_ios, limits.w_ios);
        set(&self.rw_bytes, limits.rw_bytes);
        set(&self.r_bytes, limits.r_bytes);
        set(&self.w_bytes, limits.w_bytes);
    }

    /// Lets an I/O through if it may go now; returns what it cost.
    fn admit(&self, op: Op, bytes: u64, now: Tick) -> Option<u64> {
        let (ios, throughput) =
            if op.is_write() { (&self.w_ios, &self.w_bytes) } else { (&self.r_ios, &self.r_bytes) };
        let ceilings = [(&self.rw_ios, 1), (ios, 1), (&self.rw_bytes, bytes), (throughput, bytes)];
        if !ceilings.iter().all(|(ceiling, _)| ceiling.is_open(now)) {
            return None;
        }
        let mut most = 0;
        for (ceiling, units) in ceilings {
            let cost_ns = ceiling.cost_ns(units);
            if cost_ns > 0 {
                ceiling.charge(cost_ns, now);
            }
            most = most.max(cost_ns);
        }
        Some(most)
    }

    /// The least that a waiting channel got; `None` where it cannot be known just now, or nobody waits.
    fn least_ns(&self, now: Tick) -> Option<u64> {
        let peers = self.peers.try_lock().ok()?;
        let waiting = peers.iter().filter(|peer| {
            let seen = Tick::from_ns(peer.seen_ns.load(Ordering::Relaxed));
            peer.waits.load(Ordering::Relaxed) && now.ns_since(seen) < ABSENT_NS
        });
        waiting.map(|peer| peer.got_ns.load(Ordering::Relaxed)).min()
    }
}

/// Whether ceilings are for `op`.
#[inline]
pub(crate) fn is_limited(op: Op) -> bool {
    matches!(op, Op::Read | Op::Write | Op::Compare | Op::CompareAndWrite | Op::Copy)
}

/// The I/Os of one channel that wait for their ceiling, in order.
#[derive(Debug)]
pub(crate) struct QosQueue {
    waiting: VecDeque<Box<Io>>,
    peer: Arc<Peer>,
}

impl QosQueue {
    pub(crate) fn new(qos: &Qos, capacity: usize) -> Self {
        let peer = Arc::new(Peer::default());
        let mut peers = qos.peers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        peers.push(Arc::clone(&peer));
        Self { waiting: VecDeque::with_capacity(capacity), peer }
    }

    pub(crate) fn close(&self, qos: &Qos) {
        let mut peers = qos.peers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        peers.retain(|peer| !Arc::ptr_eq(peer, &self.peer));
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, io: Box<Io>, qos: &Qos, now: Tick) {
        if self.waiting.is_empty() {
            // Having been idle is no claim to more than the others get from now on.
            let got = self.peer.got_ns.load(Ordering::Relaxed);
            self.peer.got_ns.store(got.max(qos.least_ns(now).unwrap_or(0)), Ordering::Relaxed);
            self.peer.seen_ns.store(now.as_ns(), Ordering::Relaxed);
            self.peer.waits.store(true, Ordering::Relaxed);
        }
        self.waiting.push_back(io);
    }

    /// Takes the next I/O that may go now.
    pub(crate) fn pop(&mut self, shared: &Shared, now: Tick) -> Option<Box<Io>> {
        let qos = &shared.qos;
        let next = self.waiting.front()?;
        self.peer.seen_ns.store(now.as_ns(), Ordering::Relaxed);
        let got = self.peer.got_ns.load(Ordering::Relaxed);
        if got > qos.least_ns(now).unwrap_or(got).saturating_add(LEAD_NS) {
            return None;
        }
        let bytes = u64::from(next.blocks) * u64::from(shared.block_bytes());
        let cost_ns = qos.admit(next.op, bytes, now)?;
        self.peer.got_ns.store(got.saturating_add(cost_ns), Ordering::Relaxed);
        let io = self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.peer.waits.store(false, Ordering::Relaxed);
        }
        io
    }

    /// Takes all I/Os out, admitted or not.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Box<Io>> {
        self.peer.waits.store(false, Ordering::Relaxed);
        self.waiting.drain(..)
    }

    /// Takes the I/O `tag` out.
    pub(crate) fn remove(&mut self, tag: u64) -> Option<Box<Io>> {
        let at = self.waiting.iter().position(|io| io.tag == tag)?;
        let io = self.waiting.remove(at);
        self.peer.waits.store(!self.waiting.is_empty(), Ordering::Relaxed);
        io
    }

    /// Whether the core may sleep.
    pub(crate) fn rest(&self, now: Tick) -> Rest {
        if self.waiting.is_empty() { Rest::UntilWoken } else { Rest::Until(now.plus_ns(LOOK_NS)) }
    }
}
