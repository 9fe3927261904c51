//! One core's way through the rules.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use penstock_reactor::rng::Rng;
use penstock_reactor::{Rest, Tick};

use super::{InjectErrorType, Rule, Rules};
use crate::channel::{BdevChannel, Busy, Channel};
use crate::io::{Io, IoStatus, Op};

/// I/Os that hang or wait at most.
const HELD_LEN: usize = 1024;

/// An I/O below whose data are to be changed: recognised by where it lies in memory, which is its own until it is back.
#[derive(Debug, Clone, Copy)]
struct Corruption {
    address: usize,
    offset: u64,
    value: u8,
}

pub(super) struct InjectChannel {
    base: BdevChannel,
    rules: Arc<Rules>,
    rng: Rng,
    /// This channel's copy of the rules, of `generation`.
    list: Vec<Arc<Rule>>,
    generation: u64,
    hung: Vec<Box<Io>>,
    failed: Vec<Box<Io>>,
    corruptions: Vec<Corruption>,
}

impl InjectChannel {
    pub(super) fn new(base: BdevChannel, rules: Arc<Rules>, rng: Rng) -> Self {
        let (list, corruptions) = (Vec::new(), Vec::with_capacity(HELD_LEN));
        let (hung, failed) = (Vec::with_capacity(HELD_LEN), Vec::with_capacity(HELD_LEN));
        Self { base, rules, rng, list, generation: 0, hung, failed, corruptions }
    }

    /// Looks for changed rules; what hung goes on once nothing is to hang any more.
    fn update_rules(&mut self, now: Tick) {
        let generation = self.rules.generation.load(Ordering::Acquire);
        if generation == self.generation {
            return;
        }
        // Held by the control thread just now: the next I/O or poll looks again.
        let Ok(list) = self.rules.list.try_lock() else { return };
        self.generation = self.rules.generation.load(Ordering::Acquire);
        self.list.clone_from(&list);
        drop(list);
        if self.list.is_empty() {
            while let Some(io) = self.hung.pop() {
                if let Err(Busy(io)) = self.base.submit(io, now) {
                    self.fail(io, IoStatus::Aborted);
                }
            }
        }
    }

    fn fail(&mut self, mut io: Box<Io>, status: IoStatus) {
        io.status = status;
        self.failed.push(io);
    }

    /// The first rule that strikes, if any.
    fn rule_for(&mut self, io: &Io) -> Option<Arc<Rule>> {
        let under_way = self.base.in_flight() + self.hung.len() + self.failed.len();
        let under_way = u64::try_from(under_way).unwrap_or(u64::MAX);
        self.list.iter().find(|rule| rule.strikes(io, under_way, &mut self.rng)).cloned()
    }

    fn corrupt_later(&mut self, io: &mut Io, rule: &Rule) {
        let (offset, value) = (rule.options.corrupt_offset, rule.options.corrupt_value);
        if io.op != Op::Read {
            flip(io, offset, value);
        }
        self.corruptions.push(Corruption { address: std::ptr::from_ref(io).addr(), offset, value });
    }
}

impl Channel for InjectChannel {
    fn submit(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Busy> {
        self.update_rules(now);
        if self.hung.len() + self.failed.len() + self.corruptions.len() >= HELD_LEN {
            return Err(Busy(io));
        }
        let Some(rule) = self.rule_for(&io) else { return self.base.submit(io, now) };
        match rule.options.error_type {
            InjectErrorType::Failure | InjectErrorType::NvmeFailure => {
                let status = rule.status(io.op);
                self.fail(io, status);
                Ok(())
            }
            InjectErrorType::Pending => {
                self.hung.push(io);
                Ok(())
            }
            InjectErrorType::Nomem => Err(Busy(io)),
            InjectErrorType::CorruptData => {
                self.corrupt_later(&mut io, &rule);
                self.base.submit(io, now).map_err(|Busy(mut io)| {
                    if let Some(corruption) = self.corruptions.pop()
                        && io.op != Op::Read
                    {
                        flip(&mut io, corruption.offset, corruption.value);
                    }
                    Busy(io)
                })
            }
        }
    }

    fn poll(&mut self, now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        self.update_rules(now);
        let before = done.len();
        let failed = self.failed.len().min(budget);
        done.extend(self.failed.drain(..failed));
        let from_base = done.len();
        self.base.poll(now, budget - failed, done);
        if !self.corruptions.is_empty() {
            for io in done.iter_mut().skip(from_base) {
                let address = std::ptr::from_ref(&**io).addr();
                if let Some(at) = self.corruptions.iter().position(|other| other.address == address) {
                    // A read's data go up changed; a write's buffer becomes again what it was.
                    let Corruption { offset, value, .. } = self.corruptions.swap_remove(at);
                    flip(io, offset, value);
                }
            }
        }
        done.len() - before
    }

    fn abort(&mut self, tag: u64) -> bool {
        let Some(at) = self.hung.iter().position(|io| io.tag == tag) else { return self.base.abort(tag) };
        let io = self.hung.swap_remove(at);
        self.fail(io, IoStatus::Aborted);
        true
    }

    fn reset(&mut self) {
        while let Some(io) = self.hung.pop() {
            self.fail(io, IoStatus::Aborted);
        }
        self.base.abort_all();
    }

    fn rest(&self, now: Tick) -> Rest {
        // Cleared rules are found by polling: with something hung, the core looks now and then.
        const LOOK_NS: u64 = 1_000_000;
        match self.base.rest(now) {
            _ if !self.failed.is_empty() => Rest::Never,
            Rest::UntilWoken if !self.hung.is_empty() => Rest::Until(now.plus_ns(LOOK_NS)),
            rest => rest,
        }
    }
}

/// Changes one byte of an I/O's data, where it is that long.
fn flip(io: &mut Io, offset: u64, value: u8) {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut byte = [0];
    if at < io.data.len_bytes() && io.data.copy_out(at, &mut byte) == 1 {
        byte.iter_mut().for_each(|byte| *byte ^= value);
        io.data.copy_in(at, &byte);
    }
}
