//! The place of one command.

use penstock_bdev::Io;
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;
use penstock_spec::nvme::Cqe;

use crate::ring::ENTRIES_MAX;

/// Bits of a CID that are the slot's number.
const INDEX_BITS: u16 = 10;
const INDEX_MASK: u16 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u16 = u16::MAX >> INDEX_BITS;
// There are fewer slots than entries, so no CID is FFFFh, which the error log uses for "none".
const _: () = assert!(ENTRIES_MAX <= 1 << INDEX_BITS);

/// Where a command is; who moves it on is in the module's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum SlotState {
    #[default]
    Free,
    /// To be given to the controller from then on.
    Waiting(Tick),
    InDevice,
    /// Through, but the other half of the fused pair is not.
    HalfDone,
    /// A read is with the controller that will tell where a compare failed.
    Difference,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    /// Which use of the slot this is.
    pub(super) generation: u16,
    /// The I/O; `None` in the second half of a fused pair.
    pub(super) io: Option<Box<Io>>,
    pub(super) end: usize,
    /// When the controller got it.
    pub(super) since: Tick,
    /// Where its data is instead of the I/O's buffers.
    pub(super) bounce: Option<Buf>,
    /// The slot of the other half.
    pub(super) mate: Option<u16>,
    /// How this half ended.
    pub(super) status: Cqe,
    pub(super) tries: u8,
    /// It took too long and its abort was asked for.
    pub(super) abort_asked: bool,
    /// Nobody wants it done any more: it is not tried again.
    pub(super) abandoned: bool,
}

impl Slot {
    pub(super) fn begin(&mut self, io: Box<Io>, end: usize) {
        self.io = Some(io);
        self.end = end;
        self.tries = 0;
        self.abandoned = false;
    }

    pub(super) fn release(&mut self) {
        self.state = SlotState::Free;
        self.io = None;
        self.bounce = None;
        self.mate = None;
        self.next_generation();
    }

    /// The next command in this slot has another CID.
    pub(super) fn next_generation(&mut self) {
        self.generation = (self.generation + 1) & GENERATION_MASK;
    }

    pub(super) fn is_in_device(&self) -> bool {
        matches!(self.state, SlotState::InDevice | SlotState::Difference)
    }
}

pub(super) fn cid_of(index: u16, generation: u16) -> u16 {
    (generation & GENERATION_MASK) << INDEX_BITS | index
}

pub(super) fn index_of(cid: u16) -> u16 {
    cid & INDEX_MASK
}
