//! The place of one I/O under way.

use penstock_bdev::Io;
use penstock_reactor::Tick;
use penstock_spec::nvme::Cqe;

/// Where an I/O is.
#[derive(Debug)]
pub(super) enum State {
    /// No I/O. `submit` moves it on.
    Free,
    /// Its command is with a path's queue pair, and so is the I/O. A completion, or the path's loss, moves it on.
    OnPath,
    /// It waits for a path, for room on one, or for its time. `turn` moves it on.
    Parked(Box<Io>),
    /// A fused pair, whose halves come back one by one. The second completion moves it on.
    Fused {
        /// The I/O, when the compare is back.
        io: Option<Box<Io>>,
        compare: Option<Cqe>,
        write: Option<Cqe>,
    },
    /// A compare found a difference: the blocks are being read. A completion moves it on.
    ReadBack(Box<Io>),
}

/// One I/O.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) state: State,
    pub(super) end: usize,
    /// The issuer's word for the I/O, as it is out of reach while a queue pair has it.
    pub(super) tag: u64,
    /// Index of the path that has it.
    pub(super) path: usize,
    pub(super) cid: u16,
    pub(super) tries: u8,
    /// Its owner wants it to end.
    pub(super) abandoned: bool,
    /// An abort of its command was asked for because it took too long.
    pub(super) timed_out: bool,
    /// When its command was sent.
    pub(super) since: Tick,
    /// Parked: not before this.
    pub(super) due: Tick,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            state: State::Free,
            end: 0,
            tag: 0,
            path: 0,
            cid: 0,
            tries: 0,
            abandoned: false,
            timed_out: false,
            since: Tick::ZERO,
            due: Tick::ZERO,
        }
    }

    pub(super) fn begin(&mut self, end: usize, tag: u64) {
        *self = Self { end, tag, ..Self::new() };
    }

    /// Whether a queue pair has a command of it.
    pub(super) fn is_on_path(&self) -> bool {
        matches!(self.state, State::OnPath | State::Fused { .. } | State::ReadBack(_))
    }
}

/// Which of a request's commands: what a completion is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    FusedCompare,
    FusedWrite,
    ReadBack,
}

/// What is given to the queue pair to know a command by.
#[inline]
pub(super) fn user_of(index: u16, part: Part) -> u64 {
    let part = match part {
        Part::Whole => 0,
        Part::FusedCompare => 1,
        Part::FusedWrite => 2,
        Part::ReadBack => 3,
    };
    part << 16 | u64::from(index)
}

/// The reverse of [`user_of`].
#[inline]
pub(super) fn of_user(user: u64) -> (u16, Part) {
    let index = u16::try_from(user & 0xffff).unwrap_or(u16::MAX);
    let part = match user >> 16 {
        0 => Part::Whole,
        1 => Part::FusedCompare,
        2 => Part::FusedWrite,
        _ => Part::ReadBack,
    };
    (index, part)
}
