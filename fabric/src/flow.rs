//! The mouth of a lane: I/O that wants to go to disks comes out of here, and goes back in when done.
//!
//! Machines of the data path push [`DiskIo`]s and get them back by tag. Control flows (open, drain, checkpoint) are `async`
//! and wait for theirs with [`Flow::io`]. Whoever drives the lane moves what [`Flow::take_out`] gives to the disks' channels
//! and hands what they end to the lane. Nothing here knows of a clock, a thread or a device.
//!
//! Invariants: an I/O that was taken out comes back once; a flow that is dropped while its I/O is under way leaves the slot to
//! be cleaned by the completion.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_reactor::mem::Buf;

use crate::id::{BLOCK_BYTES, DiskBlock, DiskNo, count32, index};

/// An I/O of a control flow has this bit in its tag; the others are the lane's machines'.
pub(crate) const FLOW_TAG: u64 = 1 << 63;
/// I/Os of control flows under way in one lane at most.
pub const FLOW_IOS_MAX: usize = 256;

/// An I/O for a disk of the pool. Its LBA and length count blocks of [`BLOCK_BYTES`], whatever the disk's own are.
#[derive(Debug)]
pub struct DiskIo {
    /// Which disk.
    pub disk: DiskNo,
    /// What to do.
    pub io: Box<Io>,
}

#[derive(Debug)]
enum Slot {
    Free,
    Waiting(Option<Waker>),
    /// The flow that waited was dropped.
    Abandoned,
    Done(Box<Io>),
}

#[derive(Debug, Default)]
struct Inner {
    out: VecDeque<DiskIo>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    spare: Vec<Box<Io>>,
    waiting_for_slot: VecDeque<Waker>,
}

/// A handle to the mouth of one lane; clones share it. Stays on its reactor.
#[derive(Debug, Clone, Default)]
pub struct Flow(Rc<RefCell<Inner>>);

/// What a control flow's I/O did not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("disk {} failed to {} {blocks} blocks at {}: {status:?}", disk.0, op.name(), block.0)]
pub struct DiskError {
    /// Which disk.
    pub disk: DiskNo,
    /// What was asked of it.
    pub op: Op,
    /// Where.
    pub block: DiskBlock,
    /// How much.
    pub blocks: u32,
    /// What it said.
    pub status: IoStatus,
}

impl Flow {
    /// A mouth without I/O.
    #[must_use]
    pub fn new() -> Self {
        let slots = (0..FLOW_IOS_MAX).map(|_| Slot::Free).collect();
        let free = (0..count32(FLOW_IOS_MAX)).rev().collect();
        let inner = Inner { slots, free, out: VecDeque::with_capacity(2 * FLOW_IOS_MAX), ..Inner::default() };
        Self(Rc::new(RefCell::new(inner)))
    }

    /// The next I/O for a disk.
    #[must_use]
    pub fn take_out(&self) -> Option<DiskIo> {
        self.0.borrow_mut().out.pop_front()
    }

    /// Puts back what a disk did not take (`Busy`): it is the next to be taken out.
    pub fn put_back(&self, io: DiskIo) {
        self.0.borrow_mut().out.push_front(io);
    }

    /// Sends an I/O of a machine on its way.
    pub(crate) fn push(&self, io: DiskIo) {
        self.0.borrow_mut().out.push_back(io);
    }

    /// Takes back an ended I/O of a control flow; returns any other.
    pub(crate) fn complete(&self, io: DiskIo) -> Option<DiskIo> {
        if io.io.tag & FLOW_TAG == 0 {
            return Some(io);
        }
        let mut inner = self.0.borrow_mut();
        let number = u32::try_from(io.io.tag & !FLOW_TAG).unwrap_or(u32::MAX);
        let Some(slot) = inner.slots.get_mut(index(number)) else {
            panic!("an I/O with a foreign tag came back")
        };
        match std::mem::replace(slot, Slot::Free) {
            Slot::Waiting(waker) => {
                *slot = Slot::Done(io.io);
                waker.into_iter().for_each(Waker::wake);
            }
            Slot::Abandoned => inner.give_slot(number, io.io),
            Slot::Free | Slot::Done(_) => panic!("an I/O of a disk came back twice"),
        }
        None
    }

    /// Does one I/O. The buffer comes back with the outcome.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn io(
        &self,
        disk: DiskNo,
        op: Op,
        block: DiskBlock,
        blocks: u32,
        buf: Option<Buf>,
    ) -> Result<Option<Buf>, DiskError> {
        let (number, mut io) = poll_fn(|cx| self.0.borrow_mut().poll_slot(cx.waker())).await;
        io.set(FLOW_TAG | u64::from(number), op, IoFlags::NONE, Lba(block.0), blocks);
        io.data.clear();
        buf.into_iter().for_each(|buf| io.data.push(buf));
        self.push(DiskIo { disk, io });
        let mut guard = Guard { flow: self, number, done: false };
        let (status, buf) = poll_fn(|cx| self.0.borrow_mut().poll_done(number, cx.waker())).await;
        guard.done = true;
        if status == IoStatus::Success { Ok(buf) } else { Err(DiskError { disk, op, block, blocks, status }) }
    }

    /// Reads `blocks` blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn read(&self, disk: DiskNo, block: DiskBlock, blocks: u32) -> Result<Buf, DiskError> {
        let buf = buffer(index(blocks) * BLOCK_BYTES).await;
        let buf = self.io(disk, Op::Read, block, blocks, Some(buf)).await?;
        buf.ok_or(DiskError { disk, op: Op::Read, block, blocks, status: IoStatus::Internal })
    }

    /// Writes whole blocks; they are durable after the next flush.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn write(&self, disk: DiskNo, block: DiskBlock, buf: Buf) -> Result<(), DiskError> {
        let blocks = count32(buf.len() / BLOCK_BYTES);
        self.io(disk, Op::Write, block, blocks, Some(buf)).await.map(drop)
    }

    /// Makes all writes that have completed durable.
    ///
    /// # Errors
    /// What the disk says. A flush is never tried again: what it should have kept may be gone.
    pub async fn flush(&self, disk: DiskNo) -> Result<(), DiskError> {
        self.io(disk, Op::Flush, DiskBlock(0), 0, None).await.map(drop)
    }
}

/// A buffer of `len` bytes, as soon as there is one.
///
/// # Panics
/// Beyond the largest buffer: a bug of the caller.
pub(crate) async fn buffer(len: usize) -> Buf {
    assert!(len <= penstock_reactor::mem::BUF_BYTES_MAX, "no buffer has {len} bytes");
    poll_fn(|cx| match Buf::alloc(len) {
        Some(buf) => Poll::Ready(buf),
        None => {
            // Buffers come back without a word: look again in the next turn.
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// Waits for all of `futures`; the outcomes are in their order.
pub(crate) async fn all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<Pin<Box<_>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut missing = false;
        for (future, done) in running.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(outcome) => *done = Some(outcome),
                Poll::Pending => missing = true,
            }
        }
        if missing { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

impl Inner {
    fn poll_slot(&mut self, waker: &Waker) -> Poll<(u32, Box<Io>)> {
        let Some(number) = self.free.pop() else {
            self.waiting_for_slot.push_back(waker.clone());
            return Poll::Pending;
        };
        if let Some(slot) = self.slots.get_mut(index(number)) {
            *slot = Slot::Waiting(None);
        }
        Poll::Ready((number, self.spare.pop().unwrap_or_else(Io::boxed)))
    }

    fn poll_done(&mut self, number: u32, waker: &Waker) -> Poll<(IoStatus, Option<Buf>)> {
        let Some(slot) = self.slots.get_mut(index(number)) else { return Poll::Pending };
        match std::mem::replace(slot, Slot::Free) {
            Slot::Done(mut io) => {
                let outcome = (io.status, io.data.take_single());
                self.give_slot(number, io);
                Poll::Ready(outcome)
            }
            _ => {
                *slot = Slot::Waiting(Some(waker.clone()));
                Poll::Pending
            }
        }
    }

    fn give_slot(&mut self, number: u32, mut io: Box<Io>) {
        io.data.clear();
        self.spare.push(io);
        self.free.push(number);
        if let Some(waker) = self.waiting_for_slot.pop_front() {
            waker.wake();
        }
    }
}

/// Lets a slot go whose flow does not wait any more.
struct Guard<'a> {
    flow: &'a Flow,
    number: u32,
    done: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut inner = self.flow.0.borrow_mut();
        let Some(slot) = inner.slots.get_mut(index(self.number)) else { return };
        match std::mem::replace(slot, Slot::Abandoned) {
            Slot::Done(io) => {
                *slot = Slot::Free;
                inner.give_slot(self.number, io);
            }
            Slot::Waiting(_) | Slot::Abandoned | Slot::Free => {}
        }
    }
}
