//! Data that says where and when it was written, so that a lost, misplaced or torn write is seen.
//!
//! Every 512 bytes of a piece carry its number, its generation and the seed, then bytes that follow from them. The
//! verifier remembers each piece's generation (0: never written, not checked) and keeps two I/Os on one piece apart.

use penstock_reactor::rng::Rng;

const UNIT_BYTES: usize = 512;
const HEADER_BYTES: usize = 24;

/// What each piece should hold.
#[derive(Debug)]
pub struct Verifier {
    seed: u64,
    first: u64,
    generations: Vec<u32>,
    busy: Vec<bool>,
}

/// What was found instead of what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Which piece.
    pub slot: u64,
    /// Offset of the first wrong unit in it, in bytes.
    pub off_bytes: usize,
    /// Its generation as it should be.
    pub generation: u32,
    /// The unit's header as found: piece, generation, seed.
    pub found: [u64; 3],
}

impl Verifier {
    /// A verifier of the pieces `first .. first + slots`.
    #[must_use]
    pub fn new(seed: u64, first: u64, slots: u64) -> Self {
        let count = usize::try_from(slots).unwrap_or(usize::MAX);
        Self { seed, first, generations: vec![0; count], busy: vec![false; count] }
    }

    /// Takes a piece for one I/O; false when another is under way there.
    pub fn claim(&mut self, slot: u64) -> bool {
        let index = self.index(slot);
        self.busy.get_mut(index).is_some_and(|busy| !std::mem::replace(busy, true))
    }

    /// Gives a piece free again.
    pub fn release(&mut self, slot: u64) {
        let index = self.index(slot);
        if let Some(busy) = self.busy.get_mut(index) {
            *busy = false;
        }
    }

    /// Fills `data` for the next write of `slot`.
    pub fn fill(&mut self, slot: u64, data: &mut [u8]) {
        let index = self.index(slot);
        let Some(generation) = self.generations.get_mut(index) else { return };
        *generation = generation.wrapping_add(1).max(1);
        let generation = *generation;
        for (unit, bytes) in data.chunks_mut(UNIT_BYTES).enumerate() {
            write_unit(bytes, slot, generation, self.seed, unit);
        }
    }

    /// Checks what was read of `slot`.
    ///
    /// # Errors
    /// [`Mismatch`] with the first unit that is not as it was last written.
    pub fn check(&self, slot: u64, data: &[u8]) -> Result<(), Mismatch> {
        let generation = self.generations.get(self.index(slot)).copied().unwrap_or(0);
        if generation == 0 {
            return Ok(());
        }
        let mut wanted = [0; UNIT_BYTES];
        for (unit, bytes) in data.chunks(UNIT_BYTES).enumerate() {
            write_unit(&mut wanted, slot, generation, self.seed, unit);
            if wanted.get(..bytes.len()) != Some(bytes) {
                let mut found = [0; 3];
                for (word, bytes) in found.iter_mut().zip(bytes.chunks_exact(8)) {
                    *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
                }
                return Err(Mismatch { slot, off_bytes: unit * UNIT_BYTES, generation, found });
            }
        }
        Ok(())
    }

    fn index(&self, slot: u64) -> usize {
        usize::try_from(slot.wrapping_sub(self.first)).unwrap_or(usize::MAX)
    }
}

fn write_unit(bytes: &mut [u8], slot: u64, generation: u32, seed: u64, unit: usize) {
    let words = [slot, u64::from(generation), seed];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    let unit = u64::try_from(unit).unwrap_or(0);
    if let Some(rest) = bytes.get_mut(HEADER_BYTES..) {
        Rng::seeded(seed ^ slot.rotate_left(17) ^ u64::from(generation).rotate_left(43) ^ unit).fill(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_is_old_torn_or_misplaced_is_found() {
        let mut verifier = Verifier::new(5, 100, 10);
        let (mut old, mut new, mut other) = (vec![0; 4096], vec![0; 4096], vec![0; 4096]);
        assert_eq!(verifier.check(103, &old), Ok(()), "never written, not checked");
        verifier.fill(103, &mut old);
        verifier.fill(103, &mut new);
        verifier.fill(104, &mut other);
        assert_eq!(verifier.check(103, &new), Ok(()));
        assert_eq!(verifier.check(103, &old).unwrap_err().found, [103, 1, 5]);
        assert_eq!(verifier.check(103, &other).unwrap_err().found[0], 104);
        let torn = [&new[..1024], &old[1024..]].concat();
        assert_eq!(verifier.check(103, &torn).unwrap_err().off_bytes, 1024);
    }

    #[test]
    fn a_piece_is_used_by_one_io_at_a_time() {
        let mut verifier = Verifier::new(5, 0, 2);
        assert!(verifier.claim(1));
        assert!(!verifier.claim(1));
        verifier.release(1);
        assert!(verifier.claim(1));
        assert!(!verifier.claim(2), "not ours");
    }
}
