//! Finite-field Diffie-Hellman over the groups of RFC 7919, in constant time.
//!
//! An exponentiation takes from one millisecond (2048 bits) to tens of them (8192 bits): never on a reactor.

mod prime;

use std::sync::OnceLock;

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use zeroize::{Zeroize, Zeroizing};

/// A Diffie-Hellman group of DH-HMAC-CHAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DhGroup {
    /// No Diffie-Hellman exchange.
    Null,
    /// ffdhe2048.
    Ffdhe2048,
    /// ffdhe3072.
    Ffdhe3072,
    /// ffdhe4096.
    Ffdhe4096,
    /// ffdhe6144.
    Ffdhe6144,
    /// ffdhe8192.
    Ffdhe8192,
}

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DhError {
    /// The peer's value has the wrong length for its group.
    #[error("the peer's Diffie-Hellman value has {len} bytes, not {expected} as its group's")]
    Length {
        /// How many it has.
        len: usize,
        /// How many it must have.
        expected: usize,
    },
    /// The peer's value is 0, 1, p − 1 or above: the shared secret would be one that anybody knows.
    #[error("the peer's Diffie-Hellman value is out of range")]
    Range,
    /// The system has no random numbers.
    #[error("the system's random number generator failed")]
    Random,
}

impl DhGroup {
    /// All of them, the strongest first.
    pub const ALL: [Self; 6] =
        [Self::Ffdhe8192, Self::Ffdhe6144, Self::Ffdhe4096, Self::Ffdhe3072, Self::Ffdhe2048, Self::Null];

    /// Its number in NVMe (Base 8.3.5.5.3, Figure "DH-HMAC-CHAP Diffie-Hellman group identifiers").
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 1,
            Self::Ffdhe3072 => 2,
            Self::Ffdhe4096 => 3,
            Self::Ffdhe6144 => 4,
            Self::Ffdhe8192 => 5,
        }
    }

    /// The group of that number.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.id() == id)
    }

    /// Its name, as SPDK has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ffdhe2048 => "ffdhe2048",
            Self::Ffdhe3072 => "ffdhe3072",
            Self::Ffdhe4096 => "ffdhe4096",
            Self::Ffdhe6144 => "ffdhe6144",
            Self::Ffdhe8192 => "ffdhe8192",
        }
    }

    /// The group of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a value of the group; 0 for [`Self::Null`].
    #[must_use]
    pub const fn value_len(self) -> usize {
        self.numbers().0 / 8
    }

    /// Bits of the prime, X of its formula, bytes of a secret exponent (RFC 7919 appendix A asks for 225 to 400 bits).
    const fn numbers(self) -> (usize, u64, usize) {
        match self {
            Self::Null => (0, 0, 0),
            Self::Ffdhe2048 => (2048, 560_316, 32),
            Self::Ffdhe3072 => (3072, 2_625_351, 40),
            Self::Ffdhe4096 => (4096, 5_736_041, 48),
            Self::Ffdhe6144 => (6144, 15_705_020, 48),
            Self::Ffdhe8192 => (8192, 10_965_728, 56),
        }
    }

    fn bits(self) -> u32 {
        u32::try_from(self.numbers().0).unwrap_or(0)
    }

    /// What exponentiations need of the group; computed once.
    fn params(self) -> Option<&'static BoxedMontyParams> {
        static PARAMS: [OnceLock<Option<BoxedMontyParams>>; 6] = [const { OnceLock::new() }; 6];
        let (bits, x, _) = self.numbers();
        let slot = PARAMS.get(usize::from(self.id()))?;
        let made = slot.get_or_init(|| {
            let prime = if bits == 0 { return None } else { prime::prime(bits, x) };
            let prime = BoxedUint::from_be_slice(&prime, self.bits()).ok()?;
            Some(BoxedMontyParams::new_vartime(Option::<Odd<BoxedUint>>::from(Odd::new(prime))?))
        });
        made.as_ref()
    }

    /// `base` to the power of `exponent`.
    fn power(self, base: BoxedUint, exponent: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let params = self.params()?;
        let bits = u32::try_from(exponent.len().checked_mul(8)?).ok()?;
        let mut exponent = BoxedUint::from_be_slice(exponent, bits).ok()?;
        let mut result = BoxedMontyForm::new(base, params).pow(&exponent).retrieve();
        exponent.zeroize();
        let mut bytes = result.to_be_bytes();
        result.zeroize();
        let copy = Zeroizing::new(bytes.to_vec());
        bytes.zeroize();
        Some(copy)
    }
}

/// One side's values of an exchange.
#[derive(Debug)]
pub struct DhKey {
    group: DhGroup,
    exponent: crate::hash::Bytes,
    public: Vec<u8>,
}

impl DhKey {
    /// A fresh pair of values. Empty for [`DhGroup::Null`].
    ///
    /// # Errors
    /// [`DhError::Random`].
    pub fn generate(group: DhGroup) -> Result<Self, DhError> {
        let (_, _, len) = group.numbers();
        let exponent = crate::hash::Bytes::random(len).map_err(|_| DhError::Random)?;
        Ok(Self::with_exponent(group, exponent))
    }

    fn with_exponent(group: DhGroup, exponent: crate::hash::Bytes) -> Self {
        let public = if group == DhGroup::Null {
            None
        } else {
            let one = BoxedUint::one_with_precision(group.bits());
            group.power(one.wrapping_add(&one), exponent.as_slice())
        };
        let public = public.map(|bytes| bytes.to_vec()).unwrap_or_default();
        Self { group, exponent, public }
    }

    /// Its group.
    #[must_use]
    pub const fn group(&self) -> DhGroup {
        self.group
    }

    /// The value for the peer, big-endian, as long as the prime.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret, big-endian, as long as the prime; empty for [`DhGroup::Null`].
    ///
    /// # Errors
    /// The peer's value is none of the group.
    pub fn shared(&self, peer: &[u8]) -> Result<Zeroizing<Vec<u8>>, DhError> {
        let (len, expected) = (peer.len(), self.group.value_len());
        if len != expected {
            return Err(DhError::Length { len, expected });
        }
        let Some(params) = self.group.params() else { return Ok(Zeroizing::default()) };
        let value = BoxedUint::from_be_slice(peer, self.group.bits()).map_err(|_| DhError::Range)?;
        let one = BoxedUint::one_with_precision(self.group.bits());
        let last = params.modulus().as_ref().wrapping_sub(&one);
        if value <= one || value >= last {
            return Err(DhError::Range);
        }
        self.group.power(value, self.exponent.as_slice()).ok_or(DhError::Range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;

    #[test]
    fn the_primes_are_those_of_rfc_7919() {
        let digests = [
            (DhGroup::Ffdhe2048, "9cd3b7f336872f46c09428d1bbc19877"),
            (DhGroup::Ffdhe3072, "0eaf67db3a839156d5013494a5318a77"),
            (DhGroup::Ffdhe4096, "4648414224ac881b3d0dc59b466f96d0"),
            (DhGroup::Ffdhe6144, "227ac9066b3ddd9e193670cda2388fa8"),
            (DhGroup::Ffdhe8192, "770b14efaf6f049929c523113b3fa99a"),
        ];
        for (group, digest) in digests {
            let (bits, x, _) = group.numbers();
            let prime = prime::prime(bits, x);
            let hash = Hash::Sha256.digest(&prime);
            let hex: String = hash.as_slice()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((prime.len(), hex.as_str()), (group.value_len(), digest), "{}", group.name());
        }
    }

    #[test]
    fn both_sides_get_the_same_secret() {
        for group in [DhGroup::Ffdhe2048, DhGroup::Ffdhe3072, DhGroup::Null] {
            let (one, other) = (DhKey::generate(group).unwrap(), DhKey::generate(group).unwrap());
            let (a, b) = (one.shared(other.public()).unwrap(), other.shared(one.public()).unwrap());
            assert!(*a == *b && a.len() == group.value_len(), "{}", group.name());
        }
    }

    #[test]
    fn small_powers_are_right_and_padded() {
        let key = DhKey::with_exponent(DhGroup::Ffdhe2048, crate::hash::Bytes::new(&[0, 10]));
        let mut expected = vec![0; 256];
        expected[254] = 4;
        assert_eq!(key.public(), expected);
    }

    #[test]
    fn values_that_give_the_secret_away_are_refused() {
        let key = DhKey::generate(DhGroup::Ffdhe2048).unwrap();
        let (bits, x, _) = DhGroup::Ffdhe2048.numbers();
        let prime = prime::prime(bits, x);
        let mut below = prime.clone();
        below[255] -= 1;
        let mut one = vec![0; 256];
        one[255] = 1;
        for bad in [vec![0; 256], one, prime, below, vec![0xff; 256]] {
            assert_eq!(key.shared(&bad), Err(DhError::Range));
        }
        assert_eq!(key.shared(&[2; 255]), Err(DhError::Length { len: 255, expected: 256 }));
        let mut two = vec![0; 256];
        two[255] = 2;
        assert!(key.shared(&two).is_ok());
    }
}
