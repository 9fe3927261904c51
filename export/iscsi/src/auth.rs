//! Who has to prove what: secrets and policies of CHAP (RFC 1994, RFC 7143 12.1.3), as snapshots that reactors share.
//!
//! Invariants: a secret has 12 to 255 bytes (RFC 7143 9.2.1 asks for at least 96 bits); no secret that authenticates
//! an initiator authenticates the target, so that a reflected challenge proves nothing; no formatter shows a secret.

use std::fmt;
use std::sync::Arc;

/// Bytes of a secret at least.
pub const SECRET_BYTES_MIN: usize = 12;
/// Bytes of a secret, and of a user name, at most: both travel as text values.
pub const SECRET_BYTES_MAX: usize = 255;

/// A secret, which no formatter shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// A secret of 12 to 255 bytes; `None` if it has more or fewer.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&text.len()).then(|| Self(text.to_owned()))
    }

    /// The secret itself: for the digest, and for the file of the configuration.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// What one initiator proves, and what is proved to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// CHAP_N of the initiator.
    pub user: String,
    /// Its secret.
    pub secret: Password,
    /// CHAP_N and secret of the target, for mutual authentication.
    pub mutual: Option<(String, Password)>,
}

/// What is asked of an initiator.
#[derive(Debug, Clone, Default)]
pub struct AuthPolicy {
    /// CHAP is not offered.
    pub disabled: bool,
    /// Nothing but CHAP is taken.
    pub required: bool,
    /// The initiator must ask the target for a proof too.
    pub mutual: bool,
    /// The secrets by which initiators prove themselves.
    pub secrets: Arc<[Secret]>,
}

impl AuthPolicy {
    /// The secret of a user.
    #[must_use]
    pub fn secret_of(&self, user: &str) -> Option<&Secret> {
        self.secrets.iter().find(|secret| secret.user == user)
    }
}
