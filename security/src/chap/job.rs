//! The slow parts of a transaction: exponentiations, and what follows from them.

use zeroize::Zeroizing;

use super::{AuthFailureReason, Keys, Parties, Role, Terms, next_seqnum};
use crate::dh::{DhError, DhGroup, DhKey};
use crate::hash::Bytes;

/// Something to be computed, on any thread.
#[derive(Debug)]
pub struct Job(pub(super) Work);

/// The result of a [`Job`], for the machine that has given it out.
#[derive(Debug)]
pub struct Done(pub(super) Outcome);

#[derive(Debug)]
pub(super) enum Work {
    /// The controller's challenge and its side of the exchange.
    Challenge { terms: Terms },
    /// Whether a host's reply is right, and the answer to its challenge.
    Verify(Box<Verify>),
    /// The host's reply.
    Reply(Box<Reply>),
}

#[derive(Debug)]
pub(super) enum Outcome {
    Challenge(Result<Challenge, DhError>),
    Verified(Result<Verified, AuthFailureReason>),
    Replied(Result<Replied, DhError>),
}

/// A challenge, and the secret half of its Diffie-Hellman value.
#[derive(Debug)]
pub(super) struct Challenge {
    pub(super) value: Bytes,
    pub(super) seqnum: u32,
    pub(super) dh: DhKey,
}

#[derive(Debug)]
pub(super) struct Verify {
    pub(super) terms: Terms,
    pub(super) parties: Parties,
    pub(super) keys: Keys,
    pub(super) challenge: Challenge,
    pub(super) response: Bytes,
    /// The host's challenge and its sequence number.
    pub(super) host_challenge: Option<(Bytes, u32)>,
    pub(super) host_value: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Verified {
    /// The controller's response, where the host has asked for it.
    pub(super) response: Option<Bytes>,
    /// The generated key for TLS.
    pub(super) generated: Option<Bytes>,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) terms: Terms,
    pub(super) parties: Parties,
    pub(super) keys: Keys,
    pub(super) challenge: Bytes,
    pub(super) seqnum: u32,
    pub(super) controller_value: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Replied {
    pub(super) response: Bytes,
    /// The host's challenge and its sequence number (0: for the key only).
    pub(super) host_challenge: Option<(Bytes, u32)>,
    pub(super) host_value: Vec<u8>,
    /// What the controller must answer.
    pub(super) expected: Option<Bytes>,
    pub(super) generated: Option<Bytes>,
}

impl Job {
    /// Whether it takes milliseconds: without a Diffie-Hellman group it takes some microseconds.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        let terms = match &self.0 {
            Work::Challenge { terms } => terms,
            Work::Verify(verify) => &verify.terms,
            Work::Reply(reply) => &reply.terms,
        };
        terms.group != DhGroup::Null
    }

    /// Computes it.
    #[must_use]
    pub fn run(self) -> Done {
        Done(match self.0 {
            Work::Challenge { terms } => Outcome::Challenge(challenge(&terms)),
            Work::Verify(verify) => Outcome::Verified(verify.run()),
            Work::Reply(reply) => Outcome::Replied(reply.run()),
        })
    }
}

fn challenge(terms: &Terms) -> Result<Challenge, DhError> {
    let value = Bytes::random(terms.hash.len()).map_err(|_| DhError::Random)?;
    Ok(Challenge { value, seqnum: next_seqnum(), dh: DhKey::generate(terms.group)? })
}

/// The session key: the hash of the shared secret.
fn session_key(terms: &Terms, shared: &Zeroizing<Vec<u8>>) -> Option<Bytes> {
    (terms.group != DhGroup::Null).then(|| terms.hash.digest(shared))
}

impl Verify {
    fn run(self) -> Result<Verified, AuthFailureReason> {
        let (terms, parties, dh) = (&self.terms, &self.parties, &self.challenge.dh);
        // A peer that sends our own values back proves nothing.
        let reflected = terms.group != DhGroup::Null && dh.public() == self.host_value;
        let same = self.host_challenge.as_ref().is_some_and(|(value, _)| *value == self.challenge.value);
        if reflected || same {
            return Err(AuthFailureReason::FAILED);
        }
        let shared = dh.shared(&self.host_value).map_err(|error| match error {
            DhError::Length { .. } => AuthFailureReason::INCORRECT_PAYLOAD,
            _ => AuthFailureReason::FAILED,
        })?;
        let session = session_key(terms, &shared);
        let (c1, s1) = (&self.challenge.value, self.challenge.seqnum);
        let expected = terms.response(Role::Host, &self.keys.host, parties, session.as_ref(), c1, s1);
        if expected != self.response {
            return Err(AuthFailureReason::FAILED);
        }
        let Some((c2, s2)) = &self.host_challenge else {
            return Ok(Verified { response: None, generated: None });
        };
        let generated = terms.generated(session.as_ref(), c1, c2);
        if *s2 == 0 {
            return Ok(Verified { response: None, generated });
        }
        let secret = self.keys.controller.as_ref().ok_or(AuthFailureReason::FAILED)?;
        let response = terms.response(Role::Controller, secret, parties, session.as_ref(), c2, *s2);
        Ok(Verified { response: Some(response), generated })
    }
}

impl Reply {
    fn run(self) -> Result<Replied, DhError> {
        let (terms, parties) = (&self.terms, &self.parties);
        let dh = DhKey::generate(terms.group)?;
        let shared = dh.shared(&self.controller_value)?;
        let session = session_key(terms, &shared);
        let response = terms.response(
            Role::Host,
            &self.keys.host,
            parties,
            session.as_ref(),
            &self.challenge,
            self.seqnum,
        );
        let mut replied = Replied {
            response,
            host_challenge: None,
            host_value: dh.public().to_vec(),
            expected: None,
            generated: None,
        };
        let concatenated = terms.channel != penstock_spec::nvmf::auth::SecureChannel::NONE;
        if self.keys.controller.is_none() && !concatenated {
            return Ok(replied);
        }
        let c2 = Bytes::random(terms.hash.len()).map_err(|_| DhError::Random)?;
        let mut s2 = 0;
        if let Some(secret) = &self.keys.controller {
            s2 = next_seqnum();
            let expected = terms.response(Role::Controller, secret, parties, session.as_ref(), &c2, s2);
            replied.expected = Some(expected);
        }
        replied.generated = terms.generated(session.as_ref(), &self.challenge, &c2);
        replied.host_challenge = Some((c2, s2));
        Ok(replied)
    }
}
