//! The transmit queue: headers and digests in a byte ring, payloads by reference.
//!
//! ```text
//! segments  | Inline 72 | Payload cid 3, 0..4096 | Inline 100 | ...
//! ring          [head ....... used ............]
//! ```
//!
//! Inline segments take their bytes from the ring one after the other, so that neighbours merge: a batch
//! of reads is one piece however many commands it has.

use std::collections::VecDeque;

use super::slot::Slot;
use crate::payload::Payload;

/// One piece of the byte stream.
#[derive(Debug, Clone, Copy)]
enum Segment {
    /// The next `len` bytes of the ring.
    Inline { len: usize },
    /// Bytes of the payload of the command in slot `slot`.
    Payload { slot: usize, off: usize, len: usize },
}

/// What is to be sent, in order. Never grows.
#[derive(Debug)]
pub(super) struct TxQueue {
    ring: Box<[u8]>,
    head: usize,
    used: usize,
    segments: VecDeque<Segment>,
    segments_max: usize,
    len_bytes: usize,
}

impl TxQueue {
    pub(super) fn new(ring_bytes: usize, segments_max: usize) -> Self {
        Self {
            ring: vec![0; ring_bytes.next_power_of_two()].into_boxed_slice(),
            head: 0,
            used: 0,
            segments: VecDeque::with_capacity(segments_max),
            segments_max,
            len_bytes: 0,
        }
    }

    /// Whether that many inline bytes and segments can be pushed.
    #[inline]
    pub(super) fn has_room(&self, inline_bytes: usize, segments: usize) -> bool {
        self.ring.len() - self.used >= inline_bytes && self.segments_max - self.segments.len() >= segments
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Appends bytes that are copied. The caller has checked [`Self::has_room`].
    #[inline]
    pub(super) fn push_inline(&mut self, bytes: &[u8]) {
        assert!(self.has_room(bytes.len(), 1), "the caller checks for room");
        let mask = self.ring.len() - 1;
        let tail = (self.head + self.used) & mask;
        if let Some(place) = self.ring.get_mut(tail..tail + bytes.len()) {
            place.copy_from_slice(bytes);
        } else {
            let (first, second) = bytes.split_at(self.ring.len() - tail);
            copy(&mut self.ring, tail, first);
            copy(&mut self.ring, 0, second);
        }
        self.used += bytes.len();
        self.len_bytes += bytes.len();
        match self.segments.back_mut() {
            Some(Segment::Inline { len }) => *len += bytes.len(),
            _ => self.segments.push_back(Segment::Inline { len: bytes.len() }),
        }
    }

    /// Appends a range of a payload, by reference. The caller has checked [`Self::has_room`].
    #[inline]
    pub(super) fn push_payload(&mut self, slot: usize, off: usize, len: usize) {
        assert!(self.has_room(0, 1), "the caller checks for room");
        self.len_bytes += len;
        self.segments.push_back(Segment::Payload { slot, off, len });
    }

    /// Takes `n` sent bytes off the front; `done` is told of each payload segment that is through.
    pub(super) fn consume(&mut self, mut n: usize, mut done: impl FnMut(usize)) {
        assert!(n <= self.len_bytes, "{n} bytes reported as sent where {} were queued", self.len_bytes);
        self.len_bytes -= n;
        let mask = self.ring.len() - 1;
        while n > 0 {
            let Some(front) = self.segments.front_mut() else { break };
            let left = match front {
                Segment::Inline { len } => {
                    let take = n.min(*len);
                    self.head = (self.head + take) & mask;
                    self.used -= take;
                    *len -= take;
                    n -= take;
                    *len
                }
                Segment::Payload { slot, off, len } => {
                    let take = n.min(*len);
                    *off += take;
                    *len -= take;
                    n -= take;
                    if *len == 0 {
                        done(*slot);
                    }
                    *len
                }
            };
            if left == 0 {
                self.segments.pop_front();
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        (self.head, self.used, self.len_bytes) = (0, 0, 0);
    }
}

/// Copies `bytes` to `at`; the ring is known to have the place.
#[inline]
fn copy(ring: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = ring.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// The pieces of a transmit queue, in order: what one gathering write takes.
#[derive(Debug)]
pub struct TxSlices<'a, B> {
    queue: &'a TxQueue,
    slots: &'a [Slot<B>],
    index: usize,
    done: usize,
    ring_at: usize,
}

impl<'a, B> TxSlices<'a, B> {
    pub(super) fn new(queue: &'a TxQueue, slots: &'a [Slot<B>]) -> Self {
        Self { queue, slots, index: 0, done: 0, ring_at: queue.head }
    }
}

impl<'a, B: Payload> Iterator for TxSlices<'a, B> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let (piece, len) = match *self.queue.segments.get(self.index)? {
                Segment::Inline { len } => {
                    let n = (len - self.done).min(self.queue.ring.len() - self.ring_at);
                    let piece = self.queue.ring.get(self.ring_at..self.ring_at + n)?;
                    self.ring_at = (self.ring_at + n) & (self.queue.ring.len() - 1);
                    (piece, len)
                }
                Segment::Payload { slot, off, len } => {
                    let chunk = self.slots.get(slot)?.payload.as_ref()?.chunk(off + self.done);
                    (chunk.get(..chunk.len().min(len - self.done))?, len)
                }
            };
            self.done += piece.len();
            if self.done == len || piece.is_empty() {
                self.index += 1;
                self.done = 0;
            }
            if !piece.is_empty() {
                return Some(piece);
            }
        }
    }
}
