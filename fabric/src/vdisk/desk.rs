//! The desk in front of a lane: takes requests from all cores, one after the other, and sends them back when they are done.
//!
//! ```text
//!   enqueue ─► queue ─► begin ─┬─► lane ─► completed ─► answered
//!                ▲             ├─► edges first (blocks of 512 bytes) ─► lane …
//!                │             ├─► retry: the lane had no room, or there was no buffer
//!                └── parked ◄──┘   the vdisk's gate is closed, or its blocks are locked by a read-modify-write
//! ```
//!
//! Invariants: a request is in exactly one of queue, parked, slots; while blocks are locked no other write to them is in the lane;
//! while a vdisk's gate is closed no write to it is handed to the lane, so what was acknowledged before is in a cut.

use std::cell::RefCell;
use std::collections::VecDeque;

use penstock_bdev::{Io, IoStatus, Lba, Op};

use super::SECTORS;
use super::edges::Edges;
use super::mesh::{Address, Hub, Request};
use crate::id::{ShardId, count32, index};
use crate::lane::Lane;

/// Requests of one desk that are begun at once at most.
const SLOTS_MAX: usize = 4096;

/// A request that has begun.
#[derive(Debug)]
struct Active {
    address: Address,
    /// The I/O, unless the lane has it.
    io: Option<Box<Io>>,
    /// What it was like when it came.
    tag: u64,
    op: Op,
    lba: u64,
    blocks: u32,
    /// What is to be done around it, where it is not whole blocks of 4 KiB.
    edges: Option<Edges>,
}

/// Blocks that a read-modify-write has for itself.
#[derive(Debug, Clone, Copy)]
struct Locked {
    slot: u32,
    shard: ShardId,
    first: u64,
    end: u64,
}

#[derive(Debug)]
struct Inner {
    queue: VecDeque<Request>,
    parked: VecDeque<Request>,
    slots: Vec<Option<Active>>,
    free: Vec<u32>,
    /// Slots whose I/O the lane did not take.
    retry: VecDeque<u32>,
    locked: Vec<Locked>,
    /// vdisks whose gates are closed.
    closed: Vec<u64>,
}

/// The desk of one lane.
#[derive(Debug)]
pub struct Desk(RefCell<Inner>);

impl Default for Desk {
    fn default() -> Self {
        Self(RefCell::new(Inner {
            queue: VecDeque::with_capacity(SLOTS_MAX),
            parked: VecDeque::with_capacity(SLOTS_MAX),
            slots: (0..SLOTS_MAX).map(|_| None).collect(),
            free: (0..count32(SLOTS_MAX)).rev().collect(),
            retry: VecDeque::with_capacity(SLOTS_MAX),
            locked: Vec::with_capacity(SLOTS_MAX),
            closed: Vec::new(),
        }))
    }
}

impl Desk {
    pub(super) fn enqueue(&self, request: Request) {
        self.0.borrow_mut().queue.push_back(request);
    }

    /// Closes a vdisk's gate: from now on no write to it reaches the lane.
    pub fn close_gate(&self, vdisk: u64) {
        self.0.borrow_mut().closed.push(vdisk);
    }

    /// Opens it again.
    pub fn open_gate(&self, vdisk: u64) {
        let mut inner = self.0.borrow_mut();
        inner.closed.retain(|closed| *closed != vdisk);
        inner.unpark();
    }

    /// Hands new and waiting requests to the lane; returns how many moved.
    pub fn push(&self, lane: &Lane, hub: &Hub) -> usize {
        let mut inner = self.0.borrow_mut();
        let mut count = 0;
        for _ in 0..inner.retry.len() {
            let Some(slot) = inner.retry.pop_front() else { break };
            if !inner.go_on(slot, lane, hub) {
                // Those behind it would overtake it, and find no room either.
                return count;
            }
            count += 1;
        }
        while let Some(request) = inner.queue.pop_front() {
            count += 1;
            if !inner.begin(request, lane, hub) {
                break;
            }
        }
        count
    }

    /// Takes what the lane has done; returns how many.
    pub fn pull(&self, lane: &Lane, hub: &Hub) -> usize {
        let mut count = 0;
        while let Some(io) = lane.poll() {
            count += 1;
            self.0.borrow_mut().completed(io, lane, hub);
        }
        count
    }

    /// Whether nothing waits here. What waits for a gate is woken by it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let inner = self.0.borrow();
        inner.queue.is_empty() && inner.retry.is_empty()
    }

    /// Whether no request is here or in the lane.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let inner = self.0.borrow();
        inner.queue.is_empty() && inner.parked.is_empty() && inner.free.len() == inner.slots.len()
    }

    /// Ends everything that waits: the pool is closed.
    pub fn give_up(&self, hub: &Hub) {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        for mut request in inner.queue.drain(..).chain(inner.parked.drain(..)) {
            request.io.status = IoStatus::Gone;
            hub.answer(request);
        }
        while let Some(slot) = inner.retry.pop_front() {
            inner.finish(slot, IoStatus::Gone, hub);
        }
    }
}

impl Inner {
    fn unpark(&mut self) {
        while let Some(request) = self.parked.pop_back() {
            self.queue.push_front(request);
        }
    }

    /// Begins a request; false when no further one can begin now.
    fn begin(&mut self, request: Request, lane: &Lane, hub: &Hub) -> bool {
        let (first, end) = block_range(&request);
        if request.io.op.is_write() && self.must_park(request.address.shard, first, end) {
            self.parked.push_back(request);
            return true;
        }
        let Some(slot) = self.free.pop() else {
            self.queue.push_front(request);
            return false;
        };
        let Request { mut io, address } = request;
        let edges = if address.sectors { Edges::of(&io) } else { None };
        if edges.is_some() && io.op.is_write() {
            self.locked.push(Locked { slot, shard: address.shard, first, end });
        }
        let (tag, op, lba, blocks) = (io.tag, io.op, io.lba.0, io.blocks);
        io.tag = u64::from(slot);
        if edges.is_none() {
            (io.lba, io.blocks) = (Lba(first), u32::try_from(end - first).unwrap_or(u32::MAX));
        }
        if let Some(place) = self.slots.get_mut(index(slot)) {
            *place = Some(Active { address, io: Some(io), tag, op, lba, blocks, edges });
        }
        self.go_on(slot, lane, hub)
    }

    fn must_park(&self, shard: ShardId, first: u64, end: u64) -> bool {
        let overlaps = |locked: &Locked| locked.shard == shard && locked.first < end && first < locked.end;
        (!self.closed.is_empty() && self.closed.contains(&shard.vdisk())) || self.locked.iter().any(overlaps)
    }

    /// Sends a slot's next I/O to the lane; false: it must be tried again later.
    fn go_on(&mut self, slot: u32, lane: &Lane, hub: &Hub) -> bool {
        let Some(active) = self.slots.get_mut(index(slot)).and_then(Option::as_mut) else { return true };
        let Some(mut io) = active.io.take() else { return true };
        let ready = active.edges.as_mut().map_or(Some(true), |edges| edges.prepare(&mut io));
        let refused = match ready {
            Some(true) => lane.submit(active.address.shard, active.address.snapshot, io).err(),
            Some(false) => {
                active.io = Some(io);
                self.finish(slot, IoStatus::Success, hub);
                return true;
            }
            // No buffer just now.
            None => Some(io),
        };
        active.io = refused;
        if active.io.is_none() {
            return true;
        }
        self.retry.push_front(slot);
        false
    }

    fn completed(&mut self, mut io: Box<Io>, lane: &Lane, hub: &Hub) {
        let slot = u32::try_from(io.tag).unwrap_or(u32::MAX);
        let Some(active) = self.slots.get_mut(index(slot)).and_then(Option::as_mut) else {
            panic!("an I/O came back that nobody waits for")
        };
        let status = io.status;
        let mut more = false;
        if let Some(edges) = &mut active.edges
            && status == IoStatus::Success
        {
            edges.take_in(&mut io);
            more = !edges.is_done();
        }
        active.io = Some(io);
        if more {
            self.go_on(slot, lane, hub);
        } else {
            self.finish(slot, status, hub);
        }
    }

    /// Sends a request back as it came.
    fn finish(&mut self, slot: u32, status: IoStatus, hub: &Hub) {
        let Some(mut active) = self.slots.get_mut(index(slot)).and_then(Option::take) else { return };
        let Some(mut io) = active.io.take() else { panic!("a request ends while the lane has its I/O") };
        self.free.push(slot);
        if let Some(edges) = active.edges.take() {
            edges.give_back(&mut io);
            if active.op.is_write() {
                self.locked.retain(|locked| locked.slot != slot);
                self.unpark();
            }
        }
        (io.tag, io.op, io.lba, io.blocks) = (active.tag, active.op, Lba(active.lba), active.blocks);
        io.status = status;
        hub.answer(Request { io, address: active.address });
    }
}

/// The blocks of 4 KiB that a request touches.
fn block_range(request: &Request) -> (u64, u64) {
    let (lba, blocks) = (request.io.lba.0, u64::from(request.io.blocks));
    let end = lba.saturating_add(blocks);
    if request.address.sectors { (lba / SECTORS, end.div_ceil(SECTORS)) } else { (lba, end) }
}
