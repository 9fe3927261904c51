//! `error`: a faulty device. Rules fail, hang or corrupt I/Os on their way to or from the bdev below, by operation,
//! number, address and rate.
//!
//! Rules are made on the control thread and copied by each channel when their generation changes; how often a rule may
//! still strike is counted for all channels together.

mod channel;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use penstock_reactor::Cx;
use penstock_reactor::rng::Rng;
use serde::Deserialize;
use serde_json::json;

use crate::bdev::{Bdev, Run, Shared};
use crate::channel::Channel;
use crate::descriptor::Descriptor;
use crate::error::BdevError;
use crate::io::{Io, IoStatus, Op};
use crate::passthru::shared_over;
use crate::registry::Registry;

/// Rules of one bdev at most.
const RULES_MAX: usize = 64;

#[expect(
    clippy::disallowed_types,
    reason = "locked by the control thread; reactors only try it when rules change"
)]
type Mutex<T> = std::sync::Mutex<T>;

/// Parameters of `bdev_error_create`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorOptions {
    /// The bdev below; the new one is named `EE_<base_name>`.
    pub base_name: String,
    /// Its identity; a random one where none is given.
    pub uuid: Option<String>,
}

/// Which I/Os.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectIoType {
    /// No more: forget all rules, let go what hangs.
    Clear,
    /// All of them.
    All,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Unmaps.
    Unmap,
    /// Flushes.
    Flush,
    /// Writes of zeroes.
    WriteZeroes,
    /// Compares.
    Compare,
}

/// What happens to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectErrorType {
    /// They fail.
    Failure,
    /// They fail as the NVMe status says.
    NvmeFailure,
    /// They hang, until the rules are cleared or the channel is reset.
    Pending,
    /// One byte of their data changes.
    CorruptData,
    /// They find the queue full.
    Nomem,
}

/// Parameters of `bdev_error_inject_error`; the last three are not SPDK's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectOptions {
    /// Which error bdev.
    pub name: String,
    /// Which I/Os.
    pub io_type: InjectIoType,
    /// What happens to them.
    pub error_type: InjectErrorType,
    /// NVMe status code type.
    #[serde(default)]
    pub nvme_sct: u32,
    /// NVMe status code.
    #[serde(default)]
    pub nvme_sc: u32,
    /// How many.
    pub num: Option<u32>,
    /// Only while so many are under way in the channel.
    #[serde(default)]
    pub queue_depth: u64,
    /// Which byte of the data changes.
    #[serde(default)]
    pub corrupt_offset: u64,
    /// What it is XORed with.
    #[serde(default)]
    pub corrupt_value: u8,
    /// Only those that touch the blocks from here on…
    pub lba: Option<u64>,
    /// …so many; to the end where it is not given.
    pub num_blocks: Option<u64>,
    /// Only so many of a thousand.
    pub rate_per_mille: Option<u32>,
}

/// One rule.
#[derive(Debug)]
struct Rule {
    options: InjectOptions,
    left: AtomicU32,
}

impl Rule {
    /// Whether it strikes `io` now; uses one stroke up.
    fn strikes(&self, io: &Io, under_way: u64, rng: &mut Rng) -> bool {
        let options = &self.options;
        let is_op = match options.io_type {
            InjectIoType::Clear => false,
            InjectIoType::All => io.op != Op::Reset,
            InjectIoType::Read => io.op == Op::Read,
            InjectIoType::Write => io.op == Op::Write,
            InjectIoType::Unmap => io.op == Op::Unmap,
            InjectIoType::Flush => io.op == Op::Flush,
            InjectIoType::WriteZeroes => io.op == Op::WriteZeroes,
            InjectIoType::Compare => io.op == Op::Compare,
        };
        let first = options.lba.unwrap_or(0);
        let end = options.num_blocks.map_or(u64::MAX, |blocks| first.saturating_add(blocks));
        let anywhere = options.lba.is_none() && options.num_blocks.is_none();
        let touches = anywhere
            || (io.op.has_range() && io.lba.0 < end && first < io.lba.0.saturating_add(u64::from(io.blocks)));
        if !is_op || !touches || under_way < options.queue_depth {
            return false;
        }
        if options.rate_per_mille.is_some_and(|rate| !rng.chance(rate)) {
            return false;
        }
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn status(&self, op: Op) -> IoStatus {
        match (self.options.error_type, op) {
            (InjectErrorType::NvmeFailure, _) => nvme_status(self.options.nvme_sct, self.options.nvme_sc),
            (_, Op::Read | Op::Compare) => IoStatus::ReadError,
            (_, op) if op.is_write() => IoStatus::WriteError,
            _ => IoStatus::Internal,
        }
    }
}

/// NVMe statuses (Base Specification, Status Code) that have a counterpart here; the others are internal errors.
fn nvme_status(sct: u32, sc: u32) -> IoStatus {
    match (sct, sc) {
        (0, 0x01) => IoStatus::Unsupported,
        (0, 0x07) => IoStatus::Aborted,
        (0, 0x80) => IoStatus::OutOfRange,
        (0, 0x81) => IoStatus::NoSpace,
        (0, 0x82) => IoStatus::NotReady,
        (0, 0x83) => IoStatus::ReservationConflict,
        (2, 0x80) => IoStatus::WriteError,
        (2, 0x81) => IoStatus::ReadError,
        (2, 0x82..=0x84) => IoStatus::ChecksumError,
        (2, 0x85) => IoStatus::Miscompare,
        _ => IoStatus::Internal,
    }
}

/// All rules of one bdev.
#[derive(Debug, Default)]
struct Rules {
    list: Mutex<Vec<Arc<Rule>>>,
    /// Changes with the list.
    generation: AtomicU64,
}

/// A faulty device.
#[derive(Debug)]
pub struct ErrorInjector {
    shared: Arc<Shared>,
    base: Descriptor,
    rules: Arc<Rules>,
}

impl ErrorInjector {
    /// What [`Shared::product`] says of it.
    pub const PRODUCT: &'static str = "Error Injection Disk";

    /// Makes and registers one: `bdev_error_create`. Returns its name.
    ///
    /// # Errors
    /// As [`Registry::claim`] and [`Registry::register`].
    pub fn create(registry: &Registry, options: &ErrorOptions) -> Result<String, BdevError> {
        let base = registry.claim(&options.base_name, Self::PRODUCT)?;
        let name = format!("EE_{}", options.base_name);
        let shared = shared_over(&base, &name, Self::PRODUCT, options.uuid.as_deref())?;
        registry.register(Arc::new(Self { shared, base, rules: Arc::default() }), &[])?;
        Ok(name)
    }

    /// Adds a rule, or clears them: `bdev_error_inject_error`.
    ///
    /// # Errors
    /// [`BdevError::NotFound`]; [`BdevError::WrongKind`] when the bdev is no error bdev; [`BdevError::Invalid`] for a
    /// corruption that changes nothing, and for too many rules.
    pub fn inject(registry: &Registry, options: &InjectOptions) -> Result<(), BdevError> {
        let bdev = registry.find(&options.name)?;
        let any: &dyn std::any::Any = &*bdev;
        let Some(injector) = any.downcast_ref::<Self>() else {
            let (name, actual) = (options.name.clone(), bdev.shared().product());
            return Err(BdevError::WrongKind { name, actual, wanted: Self::PRODUCT });
        };
        let invalid =
            |parameter, problem| Err(BdevError::Invalid { name: options.name.clone(), parameter, problem });
        if options.error_type == InjectErrorType::CorruptData && options.corrupt_value == 0 {
            return invalid("corrupt_value", "is 0, which changes nothing; give 1 to 255".to_owned());
        }
        let mut list = injector.rules.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if options.io_type == InjectIoType::Clear {
            list.clear();
        } else {
            list.retain(|rule| rule.left.load(Ordering::Relaxed) > 0);
            if list.len() >= RULES_MAX {
                return invalid("io_type", format!("would be rule {}; clear them first", RULES_MAX + 1));
            }
            let left = AtomicU32::new(options.num.unwrap_or(1));
            list.push(Arc::new(Rule { options: options.clone(), left }));
        }
        injector.rules.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

impl Bdev for ErrorInjector {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn open_channel(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let rng = Rng::seeded(cx.with_rng(Rng::next_u64));
        Ok(Box::new(channel::InjectChannel::new(self.base.channel(cx)?, Arc::clone(&self.rules), rng)))
    }

    fn allocation(&self, first: u64, runs_max: usize) -> Option<Vec<Run>> {
        self.base.allocation(first, runs_max)
    }

    fn driver_specific(&self) -> serde_json::Value {
        json!({ "error_disk": self.base.shared().name() })
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        let params =
            json!({ "base_name": self.base.shared().name(), "uuid": self.shared.uuid().to_string() });
        ("bdev_error_create", params)
    }

    fn base(&self) -> Option<&Descriptor> {
        Some(&self.base)
    }

    fn blocks_over(&self, base_blocks: u64) -> Option<u64> {
        Some(base_blocks)
    }
}
