//! A submission queue and its completion queue (Base 3.3.1, 4.2.4), with their doorbells.
//!
//! ```text
//!   push ─► tail ──bell()──► doorbell          completions: entry at head with the phase expected ─► pop ─► head
//!           (several pushes, one doorbell)                  (several pops, one doorbell)
//! ```
//!
//! Invariants: an entry between the controller's head and our tail is not written again; a completion is taken once, in
//! order, only with the phase that this pass has; a doorbell is written at most once per call of [`Ring::bell`].

use std::sync::Arc;

use penstock_spec::nvme::{Cqe, Sqe};

use crate::dma::{DmaBuf, ShadowBell, Translator};
use crate::register::{Registers, doorbell};

/// Entries of one queue at most.
pub const ENTRIES_MAX: u16 = 1024;
/// Entries of one queue at least.
pub const ENTRIES_MIN: u16 = 2;

/// What a completion says that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// A submission queue head outside of what was submitted.
    #[error(
        "a completion of queue {qid} moves the submission queue's head to {sqhd}, where nothing was submitted"
    )]
    Head {
        /// The queue.
        qid: u16,
        /// SQHD.
        sqhd: u16,
    },
    /// Another submission queue than the one that is served by this completion queue.
    #[error("queue {qid} has a completion of queue {sqid}")]
    Queue {
        /// The queue.
        qid: u16,
        /// SQID.
        sqid: u16,
    },
    /// A command that is not with the controller.
    #[error("queue {qid} has a completion of command {cid:#06x}, which the controller does not have")]
    Command {
        /// The queue.
        qid: u16,
        /// CID.
        cid: u16,
    },
}

#[derive(Debug)]
struct Bell {
    offset: u32,
    shadow: Option<ShadowBell>,
    /// The value that it was rung with.
    rung: u16,
}

impl Bell {
    /// Tells the controller of `value`, if it does not know.
    #[inline]
    fn ring(&mut self, registers: &dyn Registers, value: u16) -> bool {
        if value == self.rung {
            return false;
        }
        let wanted = self.shadow.as_ref().is_none_or(|shadow| shadow.ring(self.rung, value));
        self.rung = value;
        if wanted {
            registers.write32(self.offset, u32::from(value));
        }
        wanted
    }
}

/// Where a queue pair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlace {
    /// Its number.
    pub qid: u16,
    /// Entries of each queue.
    pub entries: u16,
    /// The device's addresses of the submission and the completion queue.
    pub iovas: (u64, u64),
}

/// A queue pair's memory and indexes. It knows nothing of what the commands are for.
#[derive(Debug)]
pub struct Ring {
    qid: u16,
    entries: u16,
    sq: DmaBuf,
    cq: DmaBuf,
    tail: u16,
    /// Up to where the controller has fetched, as far as it has told.
    sq_head: u16,
    cq_head: u16,
    phase: bool,
    sq_bell: Bell,
    cq_bell: Bell,
    registers: Arc<dyn Registers>,
    /// Doorbell registers written.
    pub doorbells: u64,
}

impl Ring {
    /// An empty queue pair of `entries` entries; `None` where there is no memory for it.
    #[must_use]
    pub fn new(
        qid: u16,
        entries: u16,
        dstrd: u8,
        registers: Arc<dyn Registers>,
        translator: &mut Translator,
    ) -> Option<Self> {
        let entries = entries.clamp(ENTRIES_MIN, ENTRIES_MAX);
        let bell = |is_cq| Bell { offset: doorbell(qid, is_cq, dstrd), shadow: None, rung: 0 };
        Some(Self {
            qid,
            entries,
            sq: DmaBuf::new(usize::from(entries) * Sqe::LEN, translator)?,
            cq: DmaBuf::new(usize::from(entries) * Cqe::LEN, translator)?,
            tail: 0,
            sq_head: 0,
            cq_head: 0,
            phase: true,
            sq_bell: bell(false),
            cq_bell: bell(true),
            registers,
            doorbells: 0,
        })
    }

    /// Its number.
    #[must_use]
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Entries of each queue; one fewer commands fit.
    #[must_use]
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// What the controller must know to create it.
    #[must_use]
    pub fn place(&self) -> RingPlace {
        RingPlace { qid: self.qid, entries: self.entries, iovas: self.iovas() }
    }

    /// The device's addresses of the submission and the completion queue.
    #[must_use]
    pub fn iovas(&self) -> (u64, u64) {
        (self.sq.iova(), self.cq.iova())
    }

    /// From now on the doorbells (submission, completion) have shadows, or none.
    pub fn set_shadows(&mut self, shadows: Option<(ShadowBell, ShadowBell)>) {
        (self.sq_bell.shadow, self.cq_bell.shadow) = shadows.unzip();
    }

    /// Makes both queues empty, as a controller that was reset sees them. It must have stopped.
    pub fn rewind(&mut self) {
        self.sq.clear();
        self.cq.clear();
        (self.tail, self.sq_head, self.cq_head, self.phase) = (0, 0, 0, true);
        (self.sq_bell.rung, self.cq_bell.rung) = (0, 0);
    }

    /// How many more commands fit.
    #[inline]
    #[must_use]
    pub fn room(&self) -> u16 {
        self.entries - 1 - self.span(self.sq_head, self.tail)
    }

    /// Writes a command; the controller learns of it by [`Self::bell`].
    ///
    /// # Panics
    /// Where there is no [`Self::room`].
    #[inline]
    pub fn push(&mut self, sqe: &Sqe) {
        assert!(self.room() > 0, "the caller looked for room");
        self.sq.put_sqe(self.tail, sqe);
        self.tail = self.next(self.tail);
    }

    /// Tells the controller of what was pushed and popped, each by one doorbell at most.
    #[inline]
    pub fn bell(&mut self) {
        let sq = self.sq_bell.ring(&*self.registers, self.tail);
        let cq = self.cq_bell.ring(&*self.registers, self.cq_head);
        self.doorbells += u64::from(sq) + u64::from(cq);
    }

    /// Whether a doorbell is owed.
    #[must_use]
    pub fn wants_bell(&self) -> bool {
        self.sq_bell.rung != self.tail || self.cq_bell.rung != self.cq_head
    }

    /// The next completion.
    ///
    /// # Errors
    /// [`Garbage`]: the controller does not keep to the protocol; nothing it says of this queue can be relied on.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Cqe>, Garbage> {
        let Some(cqe) = self.cq.cqe(self.cq_head, self.phase) else { return Ok(None) };
        let (sqhd, sqid) = (cqe.sqhd.get(), cqe.sqid.get());
        if sqid != self.qid {
            return Err(Garbage::Queue { qid: self.qid, sqid });
        }
        if sqhd >= self.entries || self.span(self.sq_head, sqhd) > self.span(self.sq_head, self.tail) {
            return Err(Garbage::Head { qid: self.qid, sqhd });
        }
        self.sq_head = sqhd;
        self.cq_head = self.next(self.cq_head);
        if self.cq_head == 0 {
            self.phase = !self.phase;
        }
        Ok(Some(cqe))
    }

    #[inline]
    fn next(&self, index: u16) -> u16 {
        let next = index + 1;
        if next == self.entries { 0 } else { next }
    }

    /// Entries from `from` to `to`, around the end.
    #[inline]
    fn span(&self, from: u16, to: u16) -> u16 {
        if to >= from { to - from } else { self.entries - from + to }
    }
}
