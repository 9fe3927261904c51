//! The controller's side of one queue's authentication.
//!
//! Whatever a host sends, and in whatever order, ends in a message for it: a wrong one in AUTH_Failure1, which it gets
//! by its next Authentication Receive, and after which the connection is to be closed.

use penstock_spec::nvmf::auth::{
    AUTH_FAILURE, AUTH_IDS_MAX, AuthFailure, AuthFailureReason as Reason, AuthId, AuthMessageHdr,
    AuthNegotiate, AuthProtocol, AuthType, DhchapChallenge, DhchapReply, DhchapSuccess1, DhchapSuccess2,
    PROTOCOL_DH_HMAC_CHAP, SecureChannel,
};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::job::{Challenge, Done, Job, Outcome, Verified, Verify, Work};
use super::{Keys, Parties, Policy, Terms};
use crate::dh::DhGroup;
use crate::hash::{Bytes, Hash};

/// Where a transaction is. What moves it on is the host's next command, or the result of a job.
#[derive(Debug)]
enum State {
    /// AUTH_Negotiate is to come.
    Negotiate,
    /// The host is to fetch its challenge.
    Agreed,
    /// The challenge is being made.
    Challenging,
    /// The reply is to come.
    Reply(Challenge),
    /// The reply is being verified.
    Verifying,
    /// The host is to fetch the outcome.
    Success1(Verified),
    /// The host is to say whether it believes the controller.
    Success2 { generated: Option<Bytes> },
    /// The host is to fetch the failure.
    Failure1(Reason),
    /// The host is proven.
    Authenticated,
    /// The connection is to be closed.
    Failed,
}

/// What became of a command.
#[derive(Debug)]
pub enum Step {
    /// Authentication Send: taken, with success.
    Taken,
    /// Authentication Receive: its data.
    Message(Vec<u8>),
    /// The command waits for a job; give its result to [`ControllerSide::worked`].
    Work(Job),
    /// The command came while another one waits: Command Sequence Error.
    Busy,
}

/// What the owner of a queue must know of its authentication.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The host is proven, once what was just answered has left.
    Authenticated {
        /// What was agreed on.
        hash: Hash,
        /// The key for TLS that was made, and whether it replaces one.
        generated: Option<(Bytes, SecureChannel)>,
    },
    /// The connection is to be closed, once what was just answered has left.
    Failed {
        /// Why.
        reason: Reason,
        /// Whether it was the host that did not believe the controller.
        by_host: bool,
    },
}

/// The controller's side; see the module.
#[derive(Debug)]
pub struct ControllerSide {
    parties: Parties,
    /// The secure channel that this queue's connection can be followed by.
    channel: SecureChannel,
    state: State,
    terms: Terms,
    event: Option<Event>,
}

impl ControllerSide {
    /// A transaction that is to begin. `channel`: what a host may ask for beside [`SecureChannel::NONE`].
    #[must_use]
    pub fn new(parties: Parties, channel: SecureChannel) -> Self {
        let none = SecureChannel::NONE;
        let terms = Terms { hash: Hash::Sha256, group: DhGroup::Null, channel: none, t_id: 0 };
        Self { parties, channel, state: State::Negotiate, terms, event: None }
    }

    /// What has happened since the last call.
    pub fn take_event(&mut self) -> Option<Event> {
        self.event.take()
    }

    /// Whether the transaction is over, well or not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Authenticated | State::Failed)
    }

    /// What has been agreed on, once it has.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Its state, for people.
    #[must_use]
    pub const fn state_name(&self) -> &'static str {
        match self.state {
            State::Negotiate => "negotiate",
            State::Agreed | State::Challenging => "challenge",
            State::Reply(_) | State::Verifying => "reply",
            State::Success1(_) => "success1",
            State::Success2 { .. } => "success2",
            State::Failure1(_) => "failure1",
            State::Authenticated => "completed",
            State::Failed => "error",
        }
    }

    /// An Authentication Send has brought `message`.
    pub fn send(&mut self, message: &[u8], policy: &Policy, keys: Option<&Keys>) -> Step {
        if matches!(self.state, State::Challenging | State::Verifying) {
            return Step::Busy;
        }
        match self.take(message, policy, keys) {
            Ok(Some(job)) => Step::Work(job),
            Ok(None) => Step::Taken,
            Err(reason) => {
                self.state = State::Failure1(reason);
                Step::Taken
            }
        }
    }

    /// An Authentication Receive wants a message of at most `len` bytes.
    pub fn receive(&mut self, len: usize) -> Step {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Agreed => {
                self.state = State::Challenging;
                Step::Work(Job(Work::Challenge { terms: self.terms }))
            }
            State::Success1(verified) => self.success1(verified, len),
            State::Failure1(reason) => self.failure1(reason),
            state @ (State::Challenging | State::Verifying) => {
                self.state = state;
                Step::Busy
            }
            _ => self.failure1(Reason::INCORRECT_MESSAGE),
        }
    }

    /// A job that a command waits for is done. `len`: as given to [`Self::receive`]. The step is never [`Step::Work`].
    pub fn worked(&mut self, done: Done, len: usize) -> Step {
        match (std::mem::replace(&mut self.state, State::Failed), done.0) {
            (State::Challenging, Outcome::Challenge(Ok(challenge))) => self.challenge(challenge, len),
            (State::Verifying, Outcome::Verified(Ok(verified))) => {
                self.state = State::Success1(verified);
                Step::Taken
            }
            (State::Verifying, Outcome::Verified(Err(reason))) => {
                self.state = State::Failure1(reason);
                Step::Taken
            }
            (State::Challenging, _) => self.failure1(Reason::FAILED),
            (state, _) => {
                self.state = state;
                Step::Busy
            }
        }
    }

    fn take(&mut self, message: &[u8], policy: &Policy, keys: Option<&Keys>) -> Result<Option<Job>, Reason> {
        let Ok((hdr, _)) = AuthMessageHdr::ref_from_prefix(message) else {
            return Err(Reason::INCORRECT_PAYLOAD);
        };
        match (hdr.auth_type, hdr.auth_id, std::mem::replace(&mut self.state, State::Failed)) {
            (AuthType::COMMON, AuthId::NEGOTIATE, State::Negotiate) => {
                self.terms.t_id = hdr.t_id.get();
                self.negotiate(message, policy)?;
                self.state = State::Agreed;
                Ok(None)
            }
            (AuthType::DH_HMAC_CHAP, AuthId::REPLY, State::Reply(challenge)) => {
                self.check_transaction(hdr)?;
                let job = self.reply(message, challenge, keys)?;
                self.state = State::Verifying;
                Ok(Some(job))
            }
            (AuthType::DH_HMAC_CHAP, AuthId::SUCCESS2, State::Success2 { generated }) => {
                self.check_transaction(hdr)?;
                if message.len() != DhchapSuccess2::LEN {
                    return Err(Reason::INCORRECT_PAYLOAD);
                }
                self.authenticated(generated);
                Ok(None)
            }
            (AuthType::COMMON, AuthId::FAILURE2, State::Success2 { .. }) => {
                self.check_transaction(hdr)?;
                let failure = AuthFailure::read_from_bytes(message).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
                self.event = Some(Event::Failed { reason: failure.rce, by_host: true });
                Ok(None)
            }
            _ => Err(Reason::INCORRECT_MESSAGE),
        }
    }

    fn check_transaction(&self, hdr: &AuthMessageHdr) -> Result<(), Reason> {
        if hdr.t_id.get() == self.terms.t_id { Ok(()) } else { Err(Reason::INCORRECT_PAYLOAD) }
    }

    fn negotiate(&mut self, message: &[u8], policy: &Policy) -> Result<(), Reason> {
        let (head, rest) = AuthNegotiate::read_from_prefix(message).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
        let protocols = <[AuthProtocol]>::ref_from_bytes(rest).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
        if protocols.len() != usize::from(head.napd) || protocols.is_empty() {
            return Err(Reason::INCORRECT_PAYLOAD);
        }
        let concatenated = head.sc_c != SecureChannel::NONE;
        if concatenated && head.sc_c != self.channel {
            return Err(Reason::CONCATENATION_MISMATCH);
        }
        let protocol = protocols.iter().find(|protocol| protocol.authid == PROTOCOL_DH_HMAC_CHAP);
        let protocol = protocol.ok_or(Reason::PROTOCOL_UNUSABLE)?;
        let (halen, dhlen) = (usize::from(protocol.halen), usize::from(protocol.dhlen));
        if halen > AUTH_IDS_MAX || dhlen > AUTH_IDS_MAX {
            return Err(Reason::INCORRECT_PAYLOAD);
        }
        let hashes = protocol.hashes.get(..halen).unwrap_or_default();
        let groups = protocol.dhgroups.get(..dhlen).unwrap_or_default();
        // The strongest of those that both can; a key for TLS needs a hash of a cipher suite, and an exchange.
        let hash = Hash::ALL.into_iter().find(|hash| {
            let fits = !concatenated || *hash != Hash::Sha512;
            fits && policy.hashes.contains(hash) && hashes.contains(&hash.id())
        });
        let group = DhGroup::ALL.into_iter().find(|group| {
            let fits = !concatenated || *group != DhGroup::Null;
            fits && policy.groups.contains(group) && groups.contains(&group.id())
        });
        self.terms.channel = head.sc_c;
        self.terms.hash = hash.ok_or(Reason::HASH_UNUSABLE)?;
        self.terms.group = group.ok_or(Reason::DHGROUP_UNUSABLE)?;
        Ok(())
    }

    fn challenge(&mut self, challenge: Challenge, len: usize) -> Step {
        let Terms { hash, group, t_id, .. } = self.terms;
        let hl = u8::try_from(hash.len()).unwrap_or(0);
        let dhv = challenge.dh.public();
        let head = DhchapChallenge {
            hdr: AuthMessageHdr::new(AuthType::DH_HMAC_CHAP, AuthId::CHALLENGE, t_id),
            hl,
            hash_id: hash.id(),
            dhg_id: group.id(),
            dhvlen: U16::new(u16::try_from(dhv.len()).unwrap_or(0)),
            seqnum: U32::new(challenge.seqnum),
            ..DhchapChallenge::default()
        };
        let message = [head.as_bytes(), challenge.value.as_slice(), dhv].concat();
        if message.len() > len {
            return self.failure1(Reason::INCORRECT_PAYLOAD);
        }
        self.state = State::Reply(challenge);
        Step::Message(message)
    }

    fn reply(&self, message: &[u8], challenge: Challenge, keys: Option<&Keys>) -> Result<Job, Reason> {
        let (head, rest) = DhchapReply::read_from_prefix(message).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
        let (hl, dhvlen) = (self.terms.hash.len(), usize::from(head.dhvlen.get()));
        let whole = rest.len() == 2 * hl + dhvlen;
        if usize::from(head.hl) != hl || !whole || dhvlen != self.terms.group.value_len() {
            return Err(Reason::INCORRECT_PAYLOAD);
        }
        let (response, rest) = rest.split_at_checked(hl).ok_or(Reason::INCORRECT_PAYLOAD)?;
        let (c2, host_value) = rest.split_at_checked(hl).ok_or(Reason::INCORRECT_PAYLOAD)?;
        let concatenated = self.terms.channel != SecureChannel::NONE;
        let host_challenge = match (head.cvalid, head.seqnum.get()) {
            (0, _) if !concatenated => None,
            // Sequence number 0: the challenge serves the key for TLS, the controller need not prove itself.
            (1, seqnum) if seqnum != 0 || concatenated => Some((Bytes::new(c2), seqnum)),
            _ => return Err(Reason::INCORRECT_PAYLOAD),
        };
        let verify = Verify {
            terms: self.terms,
            parties: self.parties,
            keys: keys.ok_or(Reason::FAILED)?.clone(),
            challenge,
            response: Bytes::new(response),
            host_challenge,
            host_value: host_value.to_vec(),
        };
        Ok(Job(Work::Verify(Box::new(verify))))
    }

    fn success1(&mut self, verified: Verified, len: usize) -> Step {
        let head = DhchapSuccess1 {
            hdr: AuthMessageHdr::new(AuthType::DH_HMAC_CHAP, AuthId::SUCCESS1, self.terms.t_id),
            // Linux wants the length in any case.
            hl: u8::try_from(self.terms.hash.len()).unwrap_or(0),
            rvalid: u8::from(verified.response.is_some()),
            ..DhchapSuccess1::default()
        };
        let response = verified.response.as_ref().map(Bytes::as_slice).unwrap_or_default();
        let message = [head.as_bytes(), response].concat();
        if message.len() > len {
            return self.failure1(Reason::INCORRECT_PAYLOAD);
        }
        if verified.response.is_some() {
            self.state = State::Success2 { generated: verified.generated };
        } else {
            self.authenticated(verified.generated);
        }
        Step::Message(message)
    }

    fn failure1(&mut self, reason: Reason) -> Step {
        self.state = State::Failed;
        self.event = Some(Event::Failed { reason, by_host: false });
        let failure = AuthFailure {
            hdr: AuthMessageHdr::new(AuthType::COMMON, AuthId::FAILURE1, self.terms.t_id),
            rc: AUTH_FAILURE,
            rce: reason,
        };
        Step::Message(failure.as_bytes().to_vec())
    }

    fn authenticated(&mut self, generated: Option<Bytes>) {
        self.state = State::Authenticated;
        let (hash, channel) = (self.terms.hash, self.terms.channel);
        let generated = generated.map(|key| (key, channel));
        self.event = Some(Event::Authenticated { hash, generated });
    }
}
