//! One core's way to a vdisk: which lane has the blocks, and back.
//!
//! Zeroes over several stripes are a parent with one child per shard; everything else is in one stripe (the front splits at
//! the boundary) and goes as it is.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::{Busy, Channel, Io, IoStatus, Lba, Op};
use penstock_reactor::{Rest, Tick};

use super::bdev::{Core, Route};
use super::mesh::{Address, Hub, Inbox, NO_PARENT, Request};
use super::quota::Verdict;
use super::{SECTORS, STRIPE_BLOCKS};
use crate::id::{count32, index};

/// Zeroes over several stripes under way at once at most.
const PARENTS_MAX: usize = 64;

/// Zeroes over several stripes.
#[derive(Debug)]
struct Parent {
    io: Box<Io>,
    /// Shards that have not been sent their part yet: the next one, and how many.
    next: usize,
    left: usize,
    out: u32,
    status: IoStatus,
}

/// A core's channel.
#[derive(Debug)]
pub(super) struct VdiskChannel {
    core: Arc<Core>,
    hub: Rc<Hub>,
    inbox: Rc<Inbox>,
    client: u32,
    parents: Vec<Option<Parent>>,
    /// Parents with parts that found no room.
    stalled: bool,
    spare: Vec<Box<Io>>,
    ended: VecDeque<Box<Io>>,
}

impl VdiskChannel {
    pub(super) fn new(core: Arc<Core>, hub: Rc<Hub>) -> Self {
        let inbox = Rc::new(Inbox::default());
        let client = hub.add_client(Rc::clone(&inbox));
        let parents = (0..PARENTS_MAX).map(|_| None).collect();
        let ended = VecDeque::with_capacity(PARENTS_MAX);
        Self { core, hub, inbox, client, parents, stalled: false, spare: Vec::new(), ended }
    }

    /// Blocks of the vdisk in a stripe.
    fn stripe(&self) -> u64 {
        if self.core.sectors { STRIPE_BLOCKS * SECTORS } else { STRIPE_BLOCKS }
    }

    fn route(&self, shard: usize) -> Route {
        match self.core.routes.get(shard) {
            Some(route) => *route,
            None => panic!("a vdisk without shards"),
        }
    }

    fn send(&self, shard: usize, io: Box<Io>, parent: u32) -> Result<(), Box<Io>> {
        let route = self.route(shard);
        let address = Address {
            shard: route.shard,
            snapshot: self.core.snapshot,
            sectors: self.core.sectors,
            desk: route.desk,
            from: 0,
            client: self.client,
            parent,
        };
        self.hub.send(route.reactor, Request { io, address }).map_err(|request| request.io)
    }

    fn shard_of(&self, lba: u64) -> usize {
        let shards = self.core.routes.len() as u64;
        usize::try_from((lba / self.stripe()) % shards).unwrap_or(0)
    }

    /// Zeroes: one part per shard that has blocks of them.
    fn submit_zeroes(&mut self, io: Box<Io>) -> Result<(), Box<Io>> {
        let shards = self.core.routes.len();
        let (first, last) = (io.lba.0 / self.stripe(), (io.lba.0 + u64::from(io.blocks) - 1) / self.stripe());
        let parts = usize::try_from(last - first + 1).unwrap_or(usize::MAX).min(shards);
        let next = self.shard_of(io.lba.0);
        if parts == 1 {
            return self.send(next, io, NO_PARENT);
        }
        let Some(at) = self.parents.iter().position(Option::is_none) else { return Err(io) };
        if let Some(slot) = self.parents.get_mut(at) {
            *slot = Some(Parent { io, next, left: parts, out: 0, status: IoStatus::Success });
        }
        self.go_on(at);
        Ok(())
    }

    /// Sends the parts of a parent that have room.
    fn go_on(&mut self, at: usize) {
        let shards = self.core.routes.len();
        while let Some(Some(parent)) = self.parents.get(at)
            && parent.left > 0
        {
            let (shard, op, flags) = (parent.next, parent.io.op, parent.io.flags);
            let (from, to) = (parent.io.lba.0, parent.io.lba.0 + u64::from(parent.io.blocks));
            // Parts of a block belong to its own shard alone.
            let unit = if self.core.sectors { SECTORS } else { 1 };
            let low = if shard == self.shard_of(from) { from } else { from.next_multiple_of(unit) };
            let high = if shard == self.shard_of(to - 1) { to } else { to / unit * unit };
            let mut part = self.spare.pop().unwrap_or_else(Io::boxed);
            let blocks = u32::try_from(high.saturating_sub(low)).unwrap_or(u32::MAX);
            part.set(0, op, flags, Lba(low), blocks);
            let sent = self.send(shard, part, count32(at));
            if let Err(part) = sent {
                self.spare.push(part);
                self.stalled = true;
                return;
            }
            if let Some(Some(parent)) = self.parents.get_mut(at) {
                (parent.next, parent.left, parent.out) =
                    ((shard + 1) % shards, parent.left - 1, parent.out + 1);
            }
        }
    }

    fn part_ended(&mut self, part: Box<Io>, at: usize) {
        let Some(slot) = self.parents.get_mut(at) else { return };
        let Some(parent) = slot else { return };
        parent.out -= 1;
        if part.status != IoStatus::Success && parent.status == IoStatus::Success {
            parent.status = part.status;
        }
        self.spare.push(part);
        if parent.out == 0
            && parent.left == 0
            && let Some(mut parent) = slot.take()
        {
            parent.io.status = parent.status;
            self.ended.push_back(parent.io);
        }
    }
}

impl Channel for VdiskChannel {
    fn submit(&mut self, mut io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        match io.op {
            op if op.is_write() && self.core.snapshot.is_some() => {
                io.status = IoStatus::WriteProtected;
                self.ended.push_back(io);
                Ok(())
            }
            Op::Write => {
                let blocks = u64::from(io.blocks);
                let blocks = if self.core.sectors { blocks.div_ceil(SECTORS) + 1 } else { blocks };
                match self.core.quota.ask(blocks) {
                    Verdict::Go => {}
                    Verdict::Wait => return Err(Busy(io)),
                    Verdict::Full => {
                        io.status = IoStatus::NoSpace;
                        self.ended.push_back(io);
                        return Ok(());
                    }
                }
                self.send(self.shard_of(io.lba.0), io, NO_PARENT).map_err(Busy)
            }
            Op::Unmap | Op::WriteZeroes => {
                self.core.quota.freed();
                self.submit_zeroes(io).map_err(Busy)
            }
            _ => self.send(self.shard_of(io.lba.0), io, NO_PARENT).map_err(Busy),
        }
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        if self.stalled {
            self.stalled = false;
            (0..PARENTS_MAX).for_each(|at| self.go_on(at));
        }
        let mut count = 0;
        while count < budget
            && let Some((io, parent)) = self.inbox.pop()
        {
            if parent == NO_PARENT {
                done.push(io);
                count += 1;
            } else {
                self.part_ended(io, index(parent));
            }
        }
        while count < budget
            && let Some(io) = self.ended.pop_front()
        {
            done.push(io);
            count += 1;
        }
        count
    }

    fn rest(&self, _now: Tick) -> Rest {
        // Answers from other cores ring; the core's own lanes do not let it sleep.
        if self.stalled || !self.inbox.is_empty() || !self.ended.is_empty() {
            Rest::Never
        } else {
            Rest::UntilWoken
        }
    }
}

impl Drop for VdiskChannel {
    fn drop(&mut self) {
        self.hub.remove_client(self.client);
    }
}
