//! Pre-shared keys of TLS: configured, retained and generated ones, and the identities that hosts name them by
//! (TCP transport 3.6.1.3 to 3.6.1.5).
//!
//! ```text
//! configured (NVMeTLSkey-1:hh:base64:) ──HKDF, "HostNQN"──► retained ─┐
//!                                                                     ├──HKDF, "nvme-tls-psk"──► TLS PSK
//! DH-HMAC-CHAP with secure channel concatenation ──HMAC──► generated ─┘
//! ```
//!
//! One configured key has several identities: of version 0 (`NVMe0R01 host subsystem`) and 1 (with a digest of the key
//! after it), and those that old host software makes of keys by leaving out length bytes in HKDF's labels. A target
//! knows all of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use penstock_spec::nvmf::Nqn;
use zeroize::Zeroizing;

use crate::hash::{Bytes, Hash};
use crate::secret::{SecretError, interchange, parse_interchange};

/// The longest identity, in bytes: prefix, two names and the digest of SHA-384.
pub const IDENTITY_LEN_MAX: usize = 8 + 1 + 223 + 1 + 223 + 1 + 64;

/// A key that an operator has configured on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredPsk {
    key: Bytes,
    hash: Option<Hash>,
}

/// Where a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PskKind {
    /// Made from a configured key.
    Retained,
    /// Made by DH-HMAC-CHAP.
    Generated,
}

/// A key for TLS, ready to be used, and the identity that it goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPsk {
    /// The identity.
    pub identity: String,
    /// The key.
    pub key: Bytes,
    /// The hash of its cipher suite: SHA-256 goes with AES-128-GCM, SHA-384 with AES-256-GCM.
    pub hash: Hash,
    /// Where it comes from.
    pub kind: PskKind,
}

/// How HKDF's labels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Labels {
    /// As the standard has it.
    Standard,
    /// Without their length bytes, and the length of the result in the wrong byte order: libnvme before 1.16.
    Old,
}

impl ConfiguredPsk {
    /// Reads the interchange format; white space around it does not matter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let (id, key) = parse_interchange(text, "NVMeTLSkey-1:", "NVMeTLSkey-1:hh:<base64>:")?;
        let hash = match id {
            0 => None,
            1 => Some(Hash::Sha256),
            2 => Some(Hash::Sha384),
            id => return Err(SecretError::Hash { id }),
        };
        if key.len() != 32 && key.len() != 48 {
            return Err(SecretError::Length { len: key.len(), allowed: "32 and 48" });
        }
        if hash.is_some_and(|hash| hash.len() != key.len()) {
            return Err(SecretError::Length { len: key.len(), allowed: "as many as its hash has" });
        }
        Ok(Self { key, hash })
    }

    /// A fresh one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate(hash: Hash) -> Result<Self, getrandom::Error> {
        let hash = if hash == Hash::Sha512 { Hash::Sha384 } else { hash };
        Ok(Self { key: Bytes::random(hash.len())?, hash: Some(hash) })
    }

    /// The interchange format.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        interchange("NVMeTLSkey-1:", self.hash.map_or(0, Hash::id), &self.key)
    }

    /// The hash of the cipher suite that the key is for: by its length.
    #[must_use]
    pub fn cipher_hash(&self) -> Hash {
        if self.key.len() == 48 { Hash::Sha384 } else { Hash::Sha256 }
    }

    /// The key that a host uses with a subsystem, by the identity of `version` 0 or 1 (anything above is taken as 1).
    #[must_use]
    pub fn tls_psk(&self, host: &Nqn, subsystem: &Nqn, version: u8) -> Option<TlsPsk> {
        self.derived(host, subsystem, version, Labels::Standard)
    }

    /// All identities by which a host may name the key to a subsystem, with the key for each.
    #[must_use]
    pub fn tls_psks(&self, host: &Nqn, subsystem: &Nqn) -> Vec<TlsPsk> {
        let forms = [(1, Labels::Standard), (0, Labels::Standard), (1, Labels::Old)];
        let mut all: Vec<TlsPsk> = Vec::new();
        for (version, labels) in forms {
            let psk = self.derived(host, subsystem, version, labels);
            // Without a hash there is nothing to leave the lengths out of: both digests are the same.
            all.extend(psk.filter(|psk| all.iter().all(|known| known.identity != psk.identity)));
        }
        all
    }

    fn derived(&self, host: &Nqn, subsystem: &Nqn, version: u8, labels: Labels) -> Option<TlsPsk> {
        let retained = match self.hash {
            None => self.key.clone(),
            Some(hash) => labelled(hash, labels, &self.key, "HostNQN", host.as_str().as_bytes())?,
        };
        derive(&retained, self.cipher_hash(), PskKind::Retained, host, subsystem, version, labels)
    }
}

impl TlsPsk {
    /// Whether its identity names that host and that subsystem, or any where none is given.
    #[must_use]
    pub fn is_for(&self, host: &Nqn, subsystem: Option<&Nqn>) -> bool {
        let names = self.identity.get(9..).and_then(|names| names.strip_prefix(host.as_str()));
        let Some(rest) = names.and_then(|rest| rest.strip_prefix(' ')) else { return false };
        let Some(subsystem) = subsystem else { return true };
        rest.strip_prefix(subsystem.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    /// The key that a DH-HMAC-CHAP transaction has made: `generated` is its result, made with `hash`. `None` for SHA-512,
    /// which goes with no cipher suite.
    #[must_use]
    pub fn generated(generated: &Bytes, hash: Hash, host: &Nqn, subsystem: &Nqn) -> Option<Self> {
        derive(generated, hash, PskKind::Generated, host, subsystem, 1, Labels::Standard)
    }
}

fn derive(
    input: &Bytes,
    hash: Hash,
    kind: PskKind,
    host: &Nqn,
    subsystem: &Nqn,
    version: u8,
    labels: Labels,
) -> Option<TlsPsk> {
    if hash == Hash::Sha512 {
        return None;
    }
    let letter = if kind == PskKind::Retained { 'R' } else { 'G' };
    let id = hash.id();
    let names = format!("{} {}", host.as_str(), subsystem.as_str());
    let (identity, context) = if version == 0 {
        let identity = format!("NVMe0{letter}{id:02} {names}");
        (identity.clone(), identity)
    } else {
        let text = format!("{names} NVMe-over-Fabrics");
        let digest = STANDARD.encode(hash.hmac(input.as_slice(), &[text.as_bytes()]).as_slice());
        (format!("NVMe1{letter}{id:02} {names} {digest}"), format!("{id:02} {digest}"))
    };
    let key = labelled(hash, labels, input, "nvme-tls-psk", context.as_bytes())?;
    Some(TlsPsk { identity, key, hash, kind })
}

/// HKDF-Extract and HKDF-Expand-Label. `None` where a label is too long for the standard's form.
fn labelled(hash: Hash, labels: Labels, input: &Bytes, label: &str, context: &[u8]) -> Option<Bytes> {
    let prk = hash.extract(input.as_slice());
    match labels {
        Labels::Standard => hash.expand_label(&prk, label, context),
        Labels::Old => {
            let len = u16::try_from(hash.len()).ok()?.to_le_bytes();
            Some(hash.expand(&prk, &[&len, b"tls13 ", label.as_bytes(), context]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys and identities that libnvme tests itself with.
    const KEY_256: &str = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:";
    const KEY_384: &str =
        "NVMeTLSkey-1:02:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwP/w0S89ELi3W2LxIcLXVsDn8kXZQ==:";

    fn names() -> (Nqn, Nqn) {
        (Nqn::parse(b"nqn.psk-test-host").unwrap_or_else(|_| host()), Nqn::discovery())
    }

    fn host() -> Nqn {
        Nqn::parse(b"nqn.2026-11.io.penstock:host").unwrap()
    }

    fn digest_of(text: &str, host: &str, subsystem: &str, labels: Labels) -> String {
        let psk = ConfiguredPsk::parse(text).unwrap();
        let hash = psk.cipher_hash();
        let retained = labelled(hash, labels, &psk.key, "HostNQN", host.as_bytes()).unwrap();
        let text = format!("{host} {subsystem} NVMe-over-Fabrics");
        STANDARD.encode(hash.hmac(retained.as_slice(), &[text.as_bytes()]).as_slice())
    }

    #[test]
    fn the_digests_of_identities_are_libnvmes() {
        let digest = |key, labels| digest_of(key, "nqn.psk-test-host", "nqn.psk-test-subsys", labels);
        assert_eq!(digest(KEY_256, Labels::Standard), "iSbjiStwJ/1TrTvDlt2fjFmzvsytOJelidNnA+X5lEU=");
        assert_eq!(
            digest(KEY_384, Labels::Standard),
            "QhW2+Rp6RzHlNtCslyRxMnwJ11tKKhz8JCAQpQ+XUD8f9td1VeH5h53yz2wKJG1a"
        );
        assert_eq!(digest(KEY_256, Labels::Old), "66GuqV08TsAGII39teWUfwQwizjv06Jy8jOcX3NAAzM=");
        assert_eq!(
            digest(KEY_384, Labels::Old),
            "RsKmYJ3nAn1ApjjMloJFbAkLPivONDAX/xW327YBUsn2eGShXSjCZvBaOxscLqmz"
        );
    }

    #[test]
    fn the_interchange_format_is_read_and_written() {
        for text in [KEY_256, KEY_384, "NVMeTLSkey-1:00:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"] {
            assert_eq!(*ConfiguredPsk::parse(text).unwrap().to_text(), text);
        }
        let swapped = KEY_256.replace("-1:01", "-1:02");
        assert!(matches!(ConfiguredPsk::parse(&swapped), Err(SecretError::Length { .. })));
        let unknown = KEY_256.replace("-1:01", "-1:03");
        assert_eq!(ConfiguredPsk::parse(&unknown), Err(SecretError::Hash { id: 3 }));
        assert!(ConfiguredPsk::parse(&KEY_256.replace("NVMeTLSkey", "DHHC")).is_err());
        for hash in Hash::ALL {
            let psk = ConfiguredPsk::generate(hash).unwrap();
            assert_eq!(ConfiguredPsk::parse(&psk.to_text()).unwrap(), psk);
        }
    }

    #[test]
    fn a_target_knows_all_identities_of_a_key() {
        let (_, subsystem) = names();
        let psks = ConfiguredPsk::parse(KEY_384).unwrap().tls_psks(&host(), &subsystem);
        let starts: Vec<_> = psks.iter().map(|psk| psk.identity.split(' ').next().unwrap()).collect();
        assert_eq!(starts, ["NVMe1R02", "NVMe0R02", "NVMe1R02"]);
        assert!(psks.iter().all(|psk| psk.key.len() == 48 && psk.identity.len() <= IDENTITY_LEN_MAX));
        assert_ne!(psks[0].key, psks[2].key);
        let plain = "NVMeTLSkey-1:00:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:";
        assert_eq!(ConfiguredPsk::parse(plain).unwrap().tls_psks(&host(), &subsystem).len(), 2);
    }

    #[test]
    fn a_generated_key_has_an_identity_of_its_own() {
        let (_, subsystem) = names();
        let input = Bytes::new(&[7; 48]);
        let psk = TlsPsk::generated(&input, Hash::Sha384, &host(), &subsystem).unwrap();
        assert!(psk.identity.starts_with("NVMe1G02 ") && psk.key.len() == 48);
        assert!(TlsPsk::generated(&input, Hash::Sha512, &host(), &subsystem).is_none());
    }
}
