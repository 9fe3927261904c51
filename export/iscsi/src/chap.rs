//! CHAP (RFC 1994, RFC 7143 12.1.3): the security stage of a login, from AuthMethod to the proofs.
//!
//! ```text
//!   Offered ── AuthMethod=None ─────────────────────────────────────────────────────► Passed
//!      └────── AuthMethod=CHAP ──► Algorithm ── CHAP_A ──► Response ── CHAP_N, CHAP_R ──┘
//! ```
//!
//! Invariants: a challenge is used once; nothing tells an unknown user from a wrong proof; a challenge that comes back
//! is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use penstock_spec::iscsi::LoginStatus;
use penstock_spec::iscsi::text::{Pair, number};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;

use crate::auth::AuthPolicy;
use crate::login::say;

/// Bytes of our challenges.
pub(crate) const CHALLENGE_LEN: usize = 32;
/// Bytes of a challenge at most (12.1.3).
const CHALLENGE_BYTES_MAX: usize = 1024;

/// The digest of a proof, as CHAP_A counts them (13.6 of the IANA registry).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3 = 8,
}

impl Algorithm {
    fn of(number: u32) -> Option<Self> {
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha3].into_iter().find(|known| *known as u32 == number)
    }

    /// The proof: the digest of identifier, secret and challenge.
    fn proof(self, id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
        fn digest<D: Digest>(id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
            let digest = D::new().chain_update([id]).chain_update(secret.as_bytes()).chain_update(challenge);
            digest.finalize().to_vec()
        }
        match self {
            Self::Md5 => digest::<Md5>(id, secret, challenge),
            Self::Sha1 => digest::<Sha1>(id, secret, challenge),
            Self::Sha256 => digest::<Sha256>(id, secret, challenge),
            Self::Sha3 => digest::<Sha3_256>(id, secret, challenge),
        }
    }
}

#[derive(Debug)]
enum State {
    /// Waits for AuthMethod, or for the initiator to go on without.
    Offered,
    /// CHAP was agreed on: waits for CHAP_A.
    Algorithm,
    /// Waits for the proof.
    Response { algorithm: Algorithm, id: u8, challenge: [u8; CHALLENGE_LEN] },
    /// The initiator has proved itself, or need not.
    Passed,
}

/// The authentication of one login.
#[derive(Debug)]
pub(crate) struct Chap {
    policy: AuthPolicy,
    state: State,
}

impl Chap {
    pub(crate) fn new(policy: AuthPolicy) -> Self {
        Self { policy, state: State::Offered }
    }

    /// Whether the login may not leave the security stage yet.
    pub(crate) fn is_under_way(&self) -> bool {
        matches!(self.state, State::Algorithm | State::Response { .. })
    }

    /// The initiator leaves the security stage, or never was in it.
    ///
    /// # Errors
    /// It had to prove itself.
    pub(crate) fn leave(&self) -> Result<(), LoginStatus> {
        match self.state {
            State::Passed => Ok(()),
            State::Offered if !self.policy.required => Ok(()),
            _ => Err(LoginStatus::AUTHENTICATION_FAILURE),
        }
    }

    /// Takes the keys of one request of the security stage; `random` is fresh for each call.
    ///
    /// # Errors
    /// The status to refuse the login with.
    pub(crate) fn request(
        &mut self,
        pairs: &[Pair<'_>],
        random: impl FnOnce() -> Option<[u8; CHALLENGE_LEN + 1]>,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        let find = |key: &str| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value);
        let expected: &[&str] = match self.state {
            State::Offered => &["AuthMethod"],
            State::Algorithm => &["CHAP_A"],
            State::Response { .. } => &["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"],
            State::Passed => &[],
        };
        if pairs.iter().any(|pair| is_auth_key(pair.key) && !expected.contains(&pair.key)) {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        match self.state {
            State::Offered => match find("AuthMethod") {
                Some(offers) => self.choose(offers, out),
                None => Ok(()),
            },
            State::Algorithm => {
                let offers = find("CHAP_A").ok_or(LoginStatus::MISSING_PARAMETER)?;
                let known = offers.split(',').find_map(|offer| number(offer).and_then(Algorithm::of));
                let algorithm = known.ok_or(LoginStatus::AUTHENTICATION_FAILURE)?;
                let random = random().ok_or(LoginStatus::TARGET_ERROR)?;
                let (id, challenge) = random.split_first().ok_or(LoginStatus::TARGET_ERROR)?;
                let challenge =
                    <[u8; CHALLENGE_LEN]>::try_from(challenge).map_err(|_| LoginStatus::TARGET_ERROR)?;
                say(out, "CHAP_A", &(algorithm as u32).to_string());
                say(out, "CHAP_I", &id.to_string());
                say(out, "CHAP_C", &hex(&challenge));
                self.state = State::Response { algorithm, id: *id, challenge };
                Ok(())
            }
            State::Response { algorithm, id, challenge } => {
                let user = find("CHAP_N").ok_or(LoginStatus::MISSING_PARAMETER)?;
                let proof = find("CHAP_R").ok_or(LoginStatus::MISSING_PARAMETER)?;
                let asked = match (find("CHAP_I"), find("CHAP_C")) {
                    (Some(id), Some(challenge)) => Some((id, challenge)),
                    (None, None) => None,
                    _ => return Err(LoginStatus::MISSING_PARAMETER),
                };
                self.prove(algorithm, (id, &challenge), (user, proof), asked, out)?;
                self.state = State::Passed;
                Ok(())
            }
            State::Passed => Ok(()),
        }
    }

    /// The first of the initiator's methods that may be.
    fn choose(&mut self, offers: &str, out: &mut Vec<u8>) -> Result<(), LoginStatus> {
        let may = |offer: &&str| match *offer {
            "CHAP" => !self.policy.disabled && !self.policy.secrets.is_empty(),
            "None" => !self.policy.required,
            _ => false,
        };
        let chosen = offers.split(',').find(may).ok_or(LoginStatus::AUTHENTICATION_FAILURE)?;
        say(out, "AuthMethod", chosen);
        self.state = if chosen == "CHAP" { State::Algorithm } else { State::Passed };
        Ok(())
    }

    fn prove(
        &self,
        algorithm: Algorithm,
        (id, challenge): (u8, &[u8]),
        (user, proof): (&str, &str),
        asked: Option<(&str, &str)>,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        let failed = LoginStatus::AUTHENTICATION_FAILURE;
        let given = binary(proof, CHALLENGE_BYTES_MAX).ok_or(LoginStatus::INITIATOR_ERROR)?;
        let secret = self.policy.secret_of(user);
        // The same work for a user who is not known.
        let wanted = algorithm.proof(id, secret.map_or("", |secret| secret.secret.reveal()), challenge);
        let same = same(&given, &wanted);
        let secret = secret.filter(|_| same).ok_or(failed)?;
        let Some((their_id, their_challenge)) = asked else {
            return if self.policy.mutual { Err(failed) } else { Ok(()) };
        };
        let their_id = number(their_id).and_then(|id| u8::try_from(id).ok());
        let their_id = their_id.ok_or(LoginStatus::INITIATOR_ERROR)?;
        let theirs = binary(their_challenge, CHALLENGE_BYTES_MAX).filter(|theirs| !theirs.is_empty());
        let theirs = theirs.ok_or(LoginStatus::INITIATOR_ERROR)?;
        // Our own challenge sent back (9.2.1): whoever does so wants us to compute its answer.
        if theirs == challenge {
            return Err(failed);
        }
        let (name, secret) = secret.mutual.as_ref().ok_or(failed)?;
        say(out, "CHAP_N", name);
        say(out, "CHAP_R", &hex(&algorithm.proof(their_id, secret.reveal(), &theirs)));
        Ok(())
    }
}

/// Whether a key belongs to the authentication.
pub(crate) fn is_auth_key(key: &str) -> bool {
    matches!(key, "AuthMethod" | "CHAP_A" | "CHAP_I" | "CHAP_C" | "CHAP_N" | "CHAP_R")
}

/// A comparison whose time does not depend on where the difference is.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        // Writing into a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// A binary value (6.1): hexadecimal after `0x`, base64 after `0b`. `None` where it is none, or longer than `max`.
fn binary(value: &str, max: usize) -> Option<Vec<u8>> {
    let (form, digits) = value.split_at_checked(2)?;
    let bytes = match form {
        "0x" | "0X" => {
            let nibble =
                |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let nibbles: Vec<u8> = digits.as_bytes().iter().map(nibble).collect::<Option<_>>()?;
            // An odd number of digits lacks the first zero.
            let (head, pairs) = nibbles.split_at(nibbles.len() % 2);
            let pairs =
                pairs.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit));
            head.iter().copied().chain(pairs).collect()
        }
        "0b" | "0B" => STANDARD.decode(digits).ok()?,
        _ => return None,
    };
    Some(bytes).filter(|bytes: &Vec<u8>| bytes.len() <= max)
}

#[cfg(test)]
mod tests;
