//! The exchange itself: message sizes, what is owed on a connection, when a side ends.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};

use penstock_reactor::rng::Rng;
use penstock_reactor::{Clock, Tick};

use crate::args::{Case, Op};

/// A command capsule: 8 bytes of header, 64 of command.
const REQUEST_BYTES: usize = 72;
/// A response capsule, or the header of C2HData.
const RESPONSE_BYTES: usize = 24;
/// Messages sent by one call at most.
const BATCH_MAX: usize = 128;
/// Bytes that one receive takes at most.
pub(crate) const RECV_BYTES: usize = 256 << 10;

static HEAD: [u8; REQUEST_BYTES] = [0x5a; REQUEST_BYTES];

/// What one side receives and sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side {
    in_bytes: usize,
    head: &'static [u8],
    payload_bytes: usize,
    memory: &'static [u8],
}

impl Side {
    pub(crate) fn server(case: Case, memory: &'static [u8]) -> Self {
        let (written, read) = payloads(case);
        let head = HEAD.get(..RESPONSE_BYTES).unwrap_or(&HEAD);
        Self { in_bytes: REQUEST_BYTES + written, head, payload_bytes: read, memory }
    }

    pub(crate) fn client(case: Case, memory: &'static [u8]) -> Self {
        let (written, read) = payloads(case);
        Self { in_bytes: RESPONSE_BYTES + read, head: &HEAD, payload_bytes: written, memory }
    }

    fn out_bytes(&self) -> usize {
        self.head.len() + self.payload_bytes
    }
}

fn payloads(case: Case) -> (usize, usize) {
    match case.op {
        Op::Read => (0, case.block_bytes),
        Op::Write => (case.block_bytes, 0),
    }
}

/// One connection's account.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Bytes received of a message that is not whole.
    got: usize,
    /// Messages to send.
    owed: usize,
    /// Bytes of the first of them that are sent.
    sent: usize,
    rng: Rng,
}

impl Flow {
    pub(crate) fn new(owed: u32, seed: u64) -> Self {
        Self { got: 0, owed: usize::try_from(owed).unwrap_or(usize::MAX), sent: 0, rng: Rng::seeded(seed) }
    }

    /// Takes `len` received bytes; each whole message is answered by one. How many there were.
    pub(crate) fn received(&mut self, len: usize, side: &Side) -> u64 {
        self.got += len;
        let messages = self.got / side.in_bytes;
        self.got %= side.in_bytes;
        self.owed += messages;
        u64::try_from(messages).unwrap_or(0)
    }

    /// Takes `len` sent bytes off what is owed.
    pub(crate) fn sent(&mut self, len: usize, side: &Side) {
        self.sent += len;
        self.owed -= self.sent / side.out_bytes();
        self.sent %= side.out_bytes();
    }

    pub(crate) fn owes(&self) -> bool {
        self.owed > 0
    }

    /// Puts what is owed into `pieces`.
    pub(crate) fn fill(&mut self, side: &Side, pieces: &mut Vec<IoSlice<'static>>) {
        pieces.clear();
        let mut skip = self.sent;
        for _ in 0..self.owed.min(BATCH_MAX) {
            push(pieces, side.head, &mut skip);
            if side.payload_bytes > 0 {
                push(pieces, self.payload(side), &mut skip);
            }
        }
    }

    fn payload(&mut self, side: &Side) -> &'static [u8] {
        let blocks = u64::try_from(side.memory.len() / side.payload_bytes).unwrap_or(1);
        let at = usize::try_from(self.rng.below(blocks)).unwrap_or(0) * side.payload_bytes;
        side.memory.get(at..at + side.payload_bytes).unwrap_or(&HEAD)
    }
}

fn push(pieces: &mut Vec<IoSlice<'static>>, bytes: &'static [u8], skip: &mut usize) {
    let rest = bytes.get(*skip..).unwrap_or_default();
    *skip -= bytes.len() - rest.len();
    if !rest.is_empty() {
        pieces.push(IoSlice::new(rest));
    }
}

/// Counts what a side has received, and says when it ends.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    stop: &'a AtomicBool,
    clock: Clock,
    from: Tick,
    until: Tick,
    counted: u64,
}

impl<'a> Meter<'a> {
    /// Ends when `stop` is set.
    pub(crate) fn until_stopped(stop: &'a AtomicBool) -> Self {
        Self { stop, clock: Clock::system(), from: Tick::NEVER, until: Tick::NEVER, counted: 0 }
    }

    /// Ends `time_ms` after the warm-up.
    pub(crate) fn timed(stop: &'a AtomicBool, warm_up_ms: u64, time_ms: u64) -> Self {
        let clock = Clock::system();
        let from = clock.now().plus_ns(warm_up_ms * 1_000_000);
        Self { stop, clock, from, until: from.plus_ns(time_ms * 1_000_000), counted: 0 }
    }

    /// Counts what one turn has received; false at the end.
    pub(crate) fn turn(&mut self, messages: u64) -> bool {
        let now = self.clock.now();
        if now >= self.from {
            self.counted += messages;
        }
        now < self.until && !self.stop.load(Ordering::Relaxed)
    }

    /// Messages received after the warm-up.
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }
}
