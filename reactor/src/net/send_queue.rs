//! What a connection has to send: headers copied into one run of bytes, data where their owner has them.
//!
//! ```text
//! items   | 72 bytes, then slot 3 from 0 on, 4096 | 100 bytes | slot 5 from 4096 on, 512 | ...
//! bytes   [ sent ... 72 | 100 ............ ]
//! ```
//!
//! An item is a run of header bytes and, after it, data of at most one slot. Headers of items without data join the item
//! before, so that a turn's responses are one piece. What a slot is, and where its data lie, only the owner knows
//! ([`SlotData`]); data must stay where they are until [`SendQueue::sent`] has taken them.

use std::collections::VecDeque;
use std::io::IoSlice;

/// Pieces given to one send at most.
pub const PIECES_MAX: usize = 64;
/// Sent header bytes are thrown away from here on.
const COMPACT_BYTES: usize = 16 << 10;

/// Where the data of slots lie.
pub trait SlotData {
    /// The bytes of the slot's data from `at` on that lie together, more than are wanted or not; empty where there are
    /// none.
    fn bytes_from(&self, slot: u16, at: u32) -> &[u8];
}

#[derive(Debug, Clone, Copy)]
struct Item {
    /// Header bytes still to send.
    hdr_left: u32,
    /// Where the data goes on in the slot's.
    data_at: u32,
    /// Bytes of data still to send.
    data_left: u32,
    /// Whose data.
    slot: u16,
    /// The owner is told when this is sent.
    ends: bool,
}

/// The send queue of one connection. Its owner bounds it: by slots, or by [`Self::has_room`].
#[derive(Debug)]
pub struct SendQueue {
    hdrs: Vec<u8>,
    hdrs_sent: usize,
    items: VecDeque<Item>,
    data_bytes: usize,
    hdr_bytes_max: usize,
    items_max: usize,
}

impl Default for SendQueue {
    fn default() -> Self {
        Self {
            hdrs: Vec::new(),
            hdrs_sent: 0,
            items: VecDeque::new(),
            data_bytes: 0,
            hdr_bytes_max: usize::MAX,
            items_max: usize::MAX,
        }
    }
}

impl SendQueue {
    /// A queue that has room for so many header bytes and items from the beginning, and never grows while its owner asks
    /// [`Self::has_room`] before it pushes.
    #[must_use]
    pub fn bounded(hdr_bytes_max: usize, items_max: usize) -> Self {
        Self {
            hdrs: Vec::with_capacity(hdr_bytes_max.saturating_add(COMPACT_BYTES)),
            items: VecDeque::with_capacity(items_max),
            hdr_bytes_max,
            items_max,
            ..Self::default()
        }
    }

    /// Whether so many header bytes and items (each with data or without) can be pushed into a bounded queue.
    #[inline]
    #[must_use]
    pub fn has_room(&self, hdr_bytes: usize, items: usize) -> bool {
        self.hdr_bytes_max - self.hdr_bytes() >= hdr_bytes && self.items_max - self.items.len() >= items
    }

    /// Whether there is nothing to send.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Header bytes that wait.
    #[inline]
    #[must_use]
    pub fn hdr_bytes(&self) -> usize {
        self.hdrs.len() - self.hdrs_sent
    }

    /// Bytes that wait, in all.
    #[inline]
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.hdr_bytes() + self.data_bytes
    }

    /// Appends header bytes, which are copied.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.hdrs.extend_from_slice(bytes);
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        match self.items.back_mut() {
            Some(last) if last.data_left == 0 && !last.ends => last.hdr_left += len,
            _ => {
                self.items.push_back(Item { hdr_left: len, data_at: 0, data_left: 0, slot: 0, ends: false });
            }
        }
    }

    /// Appends bytes `at..at + len` of a slot's data, after the header just pushed; `ends`: the owner is told when they
    /// are sent.
    #[inline]
    pub fn push_data(&mut self, slot: u16, at: u32, len: u32, ends: bool) {
        self.data_bytes += len as usize;
        match self.items.back_mut() {
            Some(last) if last.data_left == 0 && !last.ends => {
                *last = Item { data_at: at, data_left: len, slot, ends, ..*last };
            }
            _ => self.items.push_back(Item { hdr_left: 0, data_at: at, data_left: len, slot, ends }),
        }
    }

    /// What is to be sent, piece by piece.
    #[inline]
    pub fn pieces<'a, D: SlotData + ?Sized>(&'a self, data: &'a D) -> Pieces<'a, D> {
        Pieces {
            hdrs: self.hdrs.get(self.hdrs_sent..).unwrap_or_default(),
            items: self.items.iter(),
            data,
            slot: 0,
            at: 0,
            left: 0,
        }
    }

    /// Puts what is to be sent into `pieces`; returns how many pieces and bytes that are.
    #[inline]
    pub fn gather<'a, D: SlotData + ?Sized>(
        &'a self,
        data: &'a D,
        pieces: &mut [IoSlice<'a>; PIECES_MAX],
    ) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for (to, piece) in pieces.iter_mut().zip(self.pieces(data)) {
            *to = IoSlice::new(piece);
            count += 1;
            bytes += piece.len();
        }
        (count, bytes)
    }

    /// The first `sent` bytes are with the kernel; `done` is told each slot whose last data (`ends`) is among them.
    pub fn sent(&mut self, mut sent: usize, mut done: impl FnMut(u16)) {
        while let Some(item) = self.items.front_mut() {
            let hdr = sent.min(item.hdr_left as usize);
            sent -= hdr;
            self.hdrs_sent += hdr;
            item.hdr_left -= u32::try_from(hdr).unwrap_or(0);
            let data = sent.min(item.data_left as usize);
            sent -= data;
            self.data_bytes -= data;
            let step = u32::try_from(data).unwrap_or(0);
            item.data_left -= step;
            item.data_at += step;
            if item.hdr_left > 0 || item.data_left > 0 {
                break;
            }
            if item.ends {
                done(item.slot);
            }
            self.items.pop_front();
        }
        assert!(sent == 0, "{sent} bytes more were reported as sent than were queued");
        if self.items.is_empty() {
            self.hdrs.clear();
            self.hdrs_sent = 0;
        } else if self.hdrs_sent > COMPACT_BYTES {
            self.hdrs.drain(..self.hdrs_sent);
            self.hdrs_sent = 0;
        }
    }

    /// Throws everything away, keeping its room; `done` is told each slot whose last data was among it.
    pub fn clear(&mut self, mut done: impl FnMut(u16)) {
        for item in self.items.drain(..) {
            if item.ends {
                done(item.slot);
            }
        }
        self.hdrs.clear();
        self.hdrs_sent = 0;
        self.data_bytes = 0;
    }
}

/// The pieces of a send queue, in order: what one gathering write takes.
#[derive(Debug)]
pub struct Pieces<'a, D: ?Sized> {
    hdrs: &'a [u8],
    items: std::collections::vec_deque::Iter<'a, Item>,
    data: &'a D,
    slot: u16,
    at: u32,
    left: u32,
}

impl<'a, D: SlotData + ?Sized> Iterator for Pieces<'a, D> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            if self.left > 0 {
                let bytes = self.data.bytes_from(self.slot, self.at);
                let bytes = bytes.get(..self.left as usize).unwrap_or(bytes);
                let len = u32::try_from(bytes.len()).unwrap_or(0);
                if len == 0 {
                    // An owner whose data end early: the peer must not take what follows for data.
                    return None;
                }
                self.at += len;
                self.left -= len;
                return Some(bytes);
            }
            let item = self.items.next()?;
            (self.slot, self.at, self.left) = (item.slot, item.data_at, item.data_left);
            if item.hdr_left > 0 {
                let (hdr, rest) = self.hdrs.split_at_checked(item.hdr_left as usize)?;
                self.hdrs = rest;
                return Some(hdr);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slot n's data: bytes of value n, in pieces of ten.
    struct Tens;

    impl SlotData for Tens {
        fn bytes_from(&self, slot: u16, at: u32) -> &[u8] {
            const BYTES: [[u8; 10]; 3] = [[0; 10], [1; 10], [2; 10]];
            &BYTES[usize::from(slot)][at as usize % 10..]
        }
    }

    fn all(queue: &SendQueue) -> Vec<u8> {
        queue.pieces(&Tens).flatten().copied().collect()
    }

    fn queue() -> SendQueue {
        let mut queue = SendQueue::default();
        queue.push(b"one");
        queue.push(b"two");
        queue.push_data(1, 5, 12, false);
        queue.push(b"three");
        queue.push_data(2, 0, 4, true);
        queue.push(b"four");
        queue
    }

    #[test]
    fn neighbouring_headers_are_one_piece_and_data_come_in_theirs() {
        let queue = queue();
        let lens: Vec<usize> = queue.pieces(&Tens).map(<[u8]>::len).collect();
        assert_eq!(lens, [6, 5, 7, 5, 4, 4]);
        assert_eq!(queue.len_bytes(), lens.iter().sum());
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        assert_eq!(queue.gather(&Tens, &mut pieces), (6, 31));
    }

    #[test]
    fn what_is_sent_in_any_steps_is_the_same_bytes_and_tells_each_end_once() {
        let whole = all(&queue());
        for step in 1..=whole.len() {
            let (mut queue, mut got, mut ends) = (queue(), Vec::new(), Vec::new());
            while !queue.is_empty() {
                let now: Vec<u8> = all(&queue).into_iter().take(step).collect();
                queue.sent(now.len(), |slot| ends.push(slot));
                got.extend(now);
            }
            assert_eq!((got, ends, queue.len_bytes()), (whole.clone(), vec![2], 0), "{step}");
        }
    }

    #[test]
    fn a_bounded_queue_never_grows_and_says_when_it_is_full() {
        let mut queue = SendQueue::bounded(100, 2);
        let (hdrs, items) = (queue.hdrs.capacity(), queue.items.capacity());
        for _ in 0..10_000 {
            while queue.has_room(40, 1) {
                queue.push(&[7; 40]);
                queue.push_data(1, 0, 3, true);
            }
            queue.sent(41, |_| {});
        }
        assert!(!queue.has_room(100, 1));
        assert_eq!((queue.hdrs.capacity(), queue.items.capacity()), (hdrs, items));
    }

    #[test]
    fn throwing_away_tells_the_ends_too() {
        let (mut queue, mut ends) = (queue(), Vec::new());
        queue.clear(|slot| ends.push(slot));
        assert_eq!((ends, queue.is_empty(), queue.len_bytes()), (vec![2], true, 0));
    }
}
