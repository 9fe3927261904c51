//! SHA-2, HMAC and HKDF as the protocols use them (RFC 2104, RFC 5869, RFC 8446 section 7.1).

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The longest hash, in bytes.
pub const HASH_LEN_MAX: usize = 64;

/// A hash function of the SHA-2 family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// At most [`HASH_LEN_MAX`] secret bytes: a hash, a MAC, a key. Wiped when dropped; equality takes the same time
/// whatever differs.
#[derive(Clone, Default)]
pub struct Bytes {
    buf: Zeroizing<Vec<u8>>,
}

impl Bytes {
    /// A copy of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { buf: Zeroizing::new(bytes.to_vec()) }
    }

    /// `len` bytes from the system's random number generator.
    ///
    /// # Errors
    /// The system has none.
    pub fn random(len: usize) -> Result<Self, getrandom::Error> {
        let mut bytes = Self { buf: Zeroizing::new(vec![0; len]) };
        getrandom::fill(&mut bytes.buf)?;
        Ok(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.buf
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Whether they are `other`; takes the same time wherever they differ.
    #[must_use]
    pub fn matches(&self, other: &[u8]) -> bool {
        self.buf.ct_eq(other).into()
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.buf)
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} secret bytes]", self.buf.len())
    }
}

impl Hash {
    /// All of them, the strongest first.
    pub const ALL: [Self; 3] = [Self::Sha512, Self::Sha384, Self::Sha256];

    /// Length of a hash, in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Never.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Its number in NVMe: of DH-HMAC-CHAP, of secrets, of PSKs (Base 8.3.5.5.3, Figure "DH-HMAC-CHAP hash function
    /// identifiers").
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha384 => 2,
            Self::Sha512 => 3,
        }
    }

    /// The hash of that number.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Sha256),
            2 => Some(Self::Sha384),
            3 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Its name, as SPDK has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The hash of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name().eq_ignore_ascii_case(name))
    }

    /// The hash of `data`.
    #[must_use]
    pub fn digest(self, data: &[u8]) -> Bytes {
        match self {
            Self::Sha256 => Bytes::new(&Sha256::digest(data)),
            Self::Sha384 => Bytes::new(&Sha384::digest(data)),
            Self::Sha512 => Bytes::new(&Sha512::digest(data)),
        }
    }

    /// HMAC with `key` over the parts, one after the other.
    #[must_use]
    pub fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Bytes {
        match self {
            Self::Sha256 => hmac::<Hmac<Sha256>>(key, parts),
            Self::Sha384 => hmac::<Hmac<Sha384>>(key, parts),
            Self::Sha512 => hmac::<Hmac<Sha512>>(key, parts),
        }
    }

    /// HKDF-Extract without salt: a key of no bytes is, to HMAC, one of zeroes.
    #[must_use]
    pub fn extract(self, input: &[u8]) -> Bytes {
        self.hmac(&[], &[input])
    }

    /// HKDF-Expand to the length of one hash: one round is enough.
    #[must_use]
    pub fn expand(self, prk: &Bytes, info: &[&[u8]]) -> Bytes {
        let mut parts = info.to_vec();
        parts.push(&[1]);
        self.hmac(prk.as_slice(), &parts)
    }

    /// HKDF-Expand-Label of TLS 1.3 to the length of one hash. `label` without "tls13 ". `None`: label or context are
    /// longer than 255 bytes.
    #[must_use]
    pub fn expand_label(self, prk: &Bytes, label: &str, context: &[u8]) -> Option<Bytes> {
        let len = u16::try_from(self.len()).ok()?.to_be_bytes();
        let label_len = u8::try_from(label.len().checked_add(6)?).ok()?;
        let context_len = u8::try_from(context.len()).ok()?;
        Some(self.expand(prk, &[&len, &[label_len], b"tls13 ", label.as_bytes(), &[context_len], context]))
    }
}

fn hmac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Bytes {
    // HMAC takes keys of any length.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Bytes::default() };
    for part in parts {
        mac.update(part);
    }
    Bytes::new(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &Bytes) -> String {
        bytes.as_slice().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_vectors_of_rfc_4231_hold() {
        let key = [0x0b; 20];
        let tag = |hash: Hash| hex(&hash.hmac(&key, &[b"Hi ", b"There"]));
        assert_eq!(tag(Hash::Sha256), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        assert_eq!(
            tag(Hash::Sha384),
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6"
        );
        assert!(
            tag(Hash::Sha512).starts_with("87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde")
        );
    }

    #[test]
    fn the_third_vector_of_rfc_5869_holds() {
        let prk = Hash::Sha256.extract(&[0x0b; 22]);
        assert_eq!(hex(&prk), "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04");
        let okm = Hash::Sha256.expand(&prk, &[]);
        assert_eq!(hex(&okm), "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
    }

    #[test]
    fn secret_bytes_do_not_show_and_compare_as_they_are() {
        let bytes = Bytes::new(b"hunter2");
        assert_eq!(format!("{bytes:?}"), "[7 secret bytes]");
        assert!(bytes.matches(b"hunter2") && !bytes.matches(b"hunter3") && !bytes.matches(b"hunter"));
    }
}
