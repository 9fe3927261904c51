//! What a connection has to send: headers in a ring of bytes, blocks where the command has them.
//!
//! An item is a run of header bytes and, after it, data of at most one command. Headers of items without data join the
//! item before, so that a turn's responses are one piece. All is bounded by the commands' slots; a connection with too
//! many unsent bytes is not read.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::cmd::Slab;

/// Pieces given to one send at most.
pub(crate) const PIECES_MAX: usize = 64;
/// Sent header bytes are thrown away from here on.
const COMPACT_BYTES: usize = 16 << 10;

#[derive(Debug, Clone, Copy)]
struct Item {
    hdr_left: u32,
    data_at: u32,
    data_left: u32,
    slot: u16,
    /// The slot is to be freed when this is sent.
    ends: bool,
}

/// The send queue of one connection.
#[derive(Debug, Default)]
pub(crate) struct TxQueue {
    hdrs: Vec<u8>,
    hdrs_sent: usize,
    items: VecDeque<Item>,
}

impl TxQueue {
    /// Whether there is nothing to send.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Header bytes that wait.
    #[inline]
    pub(crate) fn hdr_bytes(&self) -> usize {
        self.hdrs.len() - self.hdrs_sent
    }

    /// Appends header bytes.
    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8]) {
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

    /// Appends bytes `at..at + len` of a command's blocks, after the header just pushed; `ends`: then the slot is free.
    #[inline]
    pub(crate) fn push_data(&mut self, slot: u16, at: u32, len: u32, ends: bool) {
        match self.items.back_mut() {
            Some(last) if last.data_left == 0 && !last.ends => {
                *last = Item { data_at: at, data_left: len, slot, ends, ..*last };
            }
            _ => self.items.push_back(Item { hdr_left: 0, data_at: at, data_left: len, slot, ends }),
        }
    }

    /// Puts what is to be sent into `pieces`; returns how many pieces and bytes that are.
    pub(crate) fn gather<'a>(
        &'a self,
        slab: &'a Slab,
        pieces: &mut [IoSlice<'a>; PIECES_MAX],
    ) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        let mut hdr_at = self.hdrs_sent;
        let mut put = |piece: &'a [u8]| {
            if piece.is_empty() {
                return true;
            }
            let Some(to) = pieces.get_mut(count) else { return false };
            *to = IoSlice::new(piece);
            count += 1;
            bytes += piece.len();
            true
        };
        for item in &self.items {
            let hdr_end = hdr_at + item.hdr_left as usize;
            let hdr = self.hdrs.get(hdr_at..hdr_end).unwrap_or_default();
            hdr_at = hdr_end;
            if !put(hdr) {
                break;
            }
            if item.data_left > 0 {
                let data = slab.get(item.slot).and_then(|cmd| cmd.out(item.data_at, item.data_left));
                if !put(data.unwrap_or_default()) {
                    break;
                }
            }
        }
        (count, bytes)
    }

    /// The first `sent` bytes are with the kernel; `free` is called for each slot whose last data is among them.
    pub(crate) fn sent(&mut self, mut sent: usize, mut free: impl FnMut(u16)) {
        while let Some(item) = self.items.front_mut() {
            let hdr = sent.min(item.hdr_left as usize);
            sent -= hdr;
            self.hdrs_sent += hdr;
            item.hdr_left -= u32::try_from(hdr).unwrap_or(0);
            let data = sent.min(item.data_left as usize);
            sent -= data;
            let step = u32::try_from(data).unwrap_or(0);
            item.data_left -= step;
            item.data_at += step;
            if item.hdr_left > 0 || item.data_left > 0 {
                break;
            }
            if item.ends {
                free(item.slot);
            }
            self.items.pop_front();
        }
        debug_assert!(sent == 0, "more sent than there was");
        if self.items.is_empty() {
            self.hdrs.clear();
            self.hdrs_sent = 0;
        } else if self.hdrs_sent > COMPACT_BYTES {
            self.hdrs.drain(..self.hdrs_sent);
            self.hdrs_sent = 0;
        }
    }

    /// Throws everything away.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.hdrs = Vec::new();
        self.hdrs_sent = 0;
    }
}
