//! Secrets of DH-HMAC-CHAP in their representation `DHHC-1:hh:base64:` (Base 8.3.5.5.7).
//!
//! hh: how the secret is transformed before it is used: 00 not at all, 01 SHA-256, 02 SHA-384, 03 SHA-512. The base64
//! holds 32, 48 or 64 bytes of secret and their CRC-32 (the one of Ethernet), little-endian.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::hash::{Bytes, Hash};

/// What the transformation appends to the name.
const TRANSFORM_SEED: &[u8] = b"NVMe-over-Fabrics";
/// Lengths that a secret may have, in bytes.
const LENGTHS: [usize; 3] = [32, 48, 64];

/// Why a text is no secret. The text itself is never shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// Another format.
    #[error("it does not have the form {expected}")]
    Form {
        /// The form.
        expected: &'static str,
    },
    /// An unknown hash.
    #[error("its hash is {id:#04x}, which is none of those that the format knows")]
    Hash {
        /// The number of the hash.
        id: u8,
    },
    /// A part is no base64.
    #[error("its key is no base64")]
    Base64,
    /// A length that cannot be.
    #[error("its key has {len} bytes; {allowed} are possible")]
    Length {
        /// How many it has.
        len: usize,
        /// Which are possible.
        allowed: &'static str,
    },
    /// It was mistyped.
    #[error("its checksum does not match: it was changed or cut")]
    Checksum,
}

/// A secret of DH-HMAC-CHAP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    key: Bytes,
    transform: Option<Hash>,
}

impl Secret {
    /// Reads the representation; white space around it does not matter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let (id, key) = parse_interchange(text, "DHHC-1:", "DHHC-1:hh:<base64>:")?;
        let transform = match id {
            0 => None,
            id => Some(Hash::from_id(id).ok_or(SecretError::Hash { id })?),
        };
        if !LENGTHS.contains(&key.len()) {
            return Err(SecretError::Length { len: key.len(), allowed: "32, 48 and 64" });
        }
        if transform.is_some_and(|hash| hash.len() != key.len()) {
            return Err(SecretError::Length { len: key.len(), allowed: "as many as its hash has" });
        }
        Ok(Self { key, transform })
    }

    /// A fresh one, to be transformed by `transform`.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate(transform: Option<Hash>) -> Result<Self, getrandom::Error> {
        let key = Bytes::random(transform.map_or(32, Hash::len))?;
        Ok(Self { key, transform })
    }

    /// The representation.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        interchange("DHHC-1:", self.transform.map_or(0, Hash::id), &self.key)
    }

    /// The key that responses of `nqn`, whose secret it is, are computed with.
    #[must_use]
    pub fn transformed(&self, nqn: &str) -> Bytes {
        match self.transform {
            None => self.key.clone(),
            Some(hash) => hash.hmac(self.key.as_slice(), &[nqn.as_bytes(), TRANSFORM_SEED]),
        }
    }
}

/// Reads `<prefix>hh:<base64 of key and CRC-32>:`.
pub(crate) fn parse_interchange(
    text: &str,
    prefix: &str,
    expected: &'static str,
) -> Result<(u8, Bytes), SecretError> {
    let form = SecretError::Form { expected };
    let rest = text.trim().strip_prefix(prefix).ok_or(form)?;
    let (id, rest) = rest.split_once(':').ok_or(form)?;
    let digits = id.len() == 2 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = if digits { u8::from_str_radix(id, 16).map_err(|_| form)? } else { return Err(form) };
    let encoded = rest.strip_suffix(':').ok_or(form)?;
    let decoded = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| SecretError::Base64)?);
    let short = SecretError::Length { len: decoded.len().saturating_sub(4), allowed: "32, 48 and 64" };
    let (key, checksum) = decoded.split_last_chunk::<4>().ok_or(short)?;
    if u32::from_le_bytes(*checksum) != crc32(key) {
        return Err(SecretError::Checksum);
    }
    Ok((id, Bytes::new(key)))
}

/// Writes what [`parse_interchange`] reads.
pub(crate) fn interchange(prefix: &str, id: u8, key: &Bytes) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(key.as_slice().to_vec());
    bytes.extend_from_slice(&crc32(key.as_slice()).to_le_bytes());
    let encoded = Zeroizing::new(STANDARD.encode(&bytes));
    Zeroizing::new(format!("{prefix}{id:02x}:{}:", *encoded))
}

fn crc32(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes);
    u32::try_from(crc & u64::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the NVMe Base Specification's example, as nvme-cli prints it too.
    const SPEC: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

    #[test]
    fn the_text_of_a_secret_is_read_and_written() {
        let secret = Secret::parse(SPEC).unwrap();
        assert_eq!(*secret.to_text(), SPEC);
        assert_eq!(Secret::parse(&format!("{SPEC}\n")).unwrap(), secret);
        for hash in [None, Some(Hash::Sha256), Some(Hash::Sha384), Some(Hash::Sha512)] {
            let secret = Secret::generate(hash).unwrap();
            assert_eq!(Secret::parse(&secret.to_text()).unwrap(), secret);
        }
    }

    #[test]
    fn a_secret_is_transformed_with_its_owners_name() {
        let secret = Secret::parse(SPEC).unwrap();
        assert_eq!(secret.transformed("nqn.a"), secret.transformed("nqn.b"));
        let secret = Secret::generate(Some(Hash::Sha384)).unwrap();
        let key = secret.transformed("nqn.a");
        assert!(key.len() == 48 && key != secret.transformed("nqn.b"));
        assert_eq!(key, Hash::Sha384.hmac(secret.key.as_slice(), &[b"nqn.aNVMe-over-Fabrics"]));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        let form = SecretError::Form { expected: "DHHC-1:hh:<base64>:" };
        let body = "ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n";
        for (text, error) in [
            (String::new(), form),
            ("DHHC-1:00:".into(), form),
            (format!("DHHC-1:00:{body}"), form),
            (format!("DHHC-2:00:{body}:"), form),
            (format!("DHHC-1:+0:{body}:"), form),
            (format!("DHHC-1:000:{body}:"), form),
            (format!("DHHC-1:04:{body}:"), SecretError::Hash { id: 4 }),
            (format!("DHHC-1:00:{}:", body.replace('z', "?")), SecretError::Base64),
            (format!("DHHC-1:00:{}:", body.replace('z', "y")), SecretError::Checksum),
            ("DHHC-1:00:aaaa:".into(), SecretError::Length { len: 0, allowed: "32, 48 and 64" }),
            (
                format!("DHHC-1:02:{body}:"),
                SecretError::Length { len: 32, allowed: "as many as its hash has" },
            ),
        ] {
            assert_eq!(Secret::parse(&text), Err(error), "{text}");
        }
        assert!(!format!("{:?}", Secret::parse(SPEC)).contains("ia6z"));
    }
}
