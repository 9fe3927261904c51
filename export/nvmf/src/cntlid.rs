//! Which controller identifiers of a subsystem are taken: one bit each, shared by all reactors without a lock.
//!
//! An identifier is claimed by the reactor on which the controller is made and released when it is gone. The search
//! begins behind the last one given out, so that a number that a host still remembers is not used again at once.

use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use penstock_spec::nvmf::connect::CNTLID_MAX;

/// Bits for 0..=[`CNTLID_MAX`].
const WORDS: usize = (CNTLID_MAX as usize + 1).div_ceil(64);

/// Set of the controller identifiers in use.
pub struct ControllerIds {
    words: Box<[AtomicU64]>,
    next: AtomicU16,
}

impl fmt::Debug for ControllerIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Default for ControllerIds {
    fn default() -> Self {
        Self::new()
    }
}

impl ControllerIds {
    /// None taken.
    #[must_use]
    pub fn new() -> Self {
        Self { words: (0..WORDS).map(|_| AtomicU64::new(0)).collect(), next: AtomicU16::new(0) }
    }

    /// Takes a free identifier of `min..=max`; `None` where all are taken.
    #[must_use]
    pub fn claim(&self, min: u16, max: u16) -> Option<u16> {
        let max = max.min(CNTLID_MAX);
        if min > max {
            return None;
        }
        let span = u32::from(max - min) + 1;
        let from = self.next.load(Ordering::Relaxed).clamp(min, max);
        for step in 0..span {
            let offset = (u32::from(from - min) + step) % span;
            let cntlid = min.saturating_add(u16::try_from(offset).unwrap_or(0));
            if self.claim_exactly(cntlid) {
                self.next.store(if cntlid == max { min } else { cntlid + 1 }, Ordering::Relaxed);
                return Some(cntlid);
            }
        }
        None
    }

    /// Gives an identifier back.
    pub fn release(&self, cntlid: u16) {
        let (word, bit) = place(cntlid);
        if let Some(word) = self.words.get(word) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Identifiers in use, in increasing order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=CNTLID_MAX).filter(|cntlid| {
            let (word, bit) = place(*cntlid);
            self.words.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
        })
    }

    fn claim_exactly(&self, cntlid: u16) -> bool {
        let (word, bit) = place(cntlid);
        self.words.get(word).is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }
}

fn place(cntlid: u16) -> (usize, u64) {
    (usize::from(cntlid / 64), 1 << (cntlid % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_not_given_out_again_at_once() {
        let ids = ControllerIds::new();
        assert_eq!(ids.claim(1, 3), Some(1));
        ids.release(1);
        assert_eq!(ids.claim(1, 3), Some(2));
        assert_eq!(ids.claim(1, 3), Some(3));
        assert_eq!(ids.claim(1, 3), Some(1));
        assert_eq!(ids.claim(1, 3), None);
        assert_eq!(ids.iter().collect::<Vec<_>>(), [1, 2, 3]);
        ids.release(2);
        assert_eq!(ids.claim(1, 3), Some(2));
        assert_eq!(ids.claim(CNTLID_MAX, u16::MAX), Some(CNTLID_MAX));
        assert_eq!(ids.claim(CNTLID_MAX, u16::MAX), None);
    }
}
