//! Maps that iterate the same way in every run: `HashMap` with a fixed, fast hasher.
//!
//! For keys that a peer cannot choose freely (tags, ids, descriptors); keys from outside go into a `BTreeMap`.

use std::hash::{BuildHasherDefault, Hasher};

/// A hash map without random seed.
#[expect(clippy::disallowed_types, reason = "its hasher is fixed, so that it iterates the same way each run")]
pub type FixedMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FixedHasher>>;

/// Multiply-and-rotate hashing of machine words, after FxHash.
#[derive(Debug, Default, Clone, Copy)]
pub struct FixedHasher(u64);

const MULTIPLIER: u64 = 0x517c_c1b7_2722_0a95;

impl FixedHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(MULTIPLIER);
    }
}

impl Hasher for FixedHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0_u8; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.mix(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
