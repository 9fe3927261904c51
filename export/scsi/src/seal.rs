//! A keyed checksum, so that what was handed out can be told from what was made up: SipHash-2-4 with 128 bits of output
//! (Aumasson and Bernstein, 2012).

/// A secret and what is sealed with it.
#[derive(Clone)]
pub struct Seal {
    key: [u64; 2],
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// A seal with that secret: random, the same on all reactors of a process (and on all nodes that are to take each
    /// other's tokens).
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        let word = |off: usize| {
            let bytes = key.get(off..off + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_le_bytes(bytes.unwrap_or([0; 8]))
        };
        Self { key: [word(0), word(8)] }
    }

    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(&self, bytes: &[u8]) -> [u8; 16] {
        let [k0, k1] = self.key;
        let mut state = State {
            v0: k0 ^ 0x736f_6d65_7073_6575,
            v1: k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            v2: k0 ^ 0x6c79_6765_6e65_7261,
            v3: k1 ^ 0x7465_6462_7974_6573,
        };
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            state.absorb(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        let len = u64::try_from(bytes.len() & 0xff).unwrap_or(0);
        state.absorb(u64::from_le_bytes(last) | (len << 56));
        let mut out = [0; 16];
        state.v2 ^= 0xee;
        let low = state.squeeze();
        state.v1 ^= 0xdd;
        let high = state.squeeze();
        for (to, from) in out.iter_mut().zip(low.to_le_bytes().into_iter().chain(high.to_le_bytes())) {
            *to = from;
        }
        out
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    fn squeeze(&mut self) -> u64 {
        for _ in 0..4 {
            self.round();
        }
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_siphash_2_4_128_as_published() {
        let key: [u8; 16] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let seal = Seal::new(key);
        let expected_empty =
            [0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93];
        assert_eq!(seal.of(&[]), expected_empty);
        let expected_one =
            [0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45];
        assert_eq!(seal.of(&[0]), expected_one);
        assert_ne!(seal.of(&[0; 9]), seal.of(&[0; 10]));
    }
}
