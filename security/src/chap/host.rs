//! The host's side of one queue's authentication.

use penstock_spec::nvmf::auth::{
    AUTH_FAILURE, AuthFailure, AuthFailureReason as Reason, AuthId, AuthMessageHdr, AuthNegotiate,
    AuthProtocol, AuthType, DhchapChallenge, DhchapReply, DhchapSuccess1, DhchapSuccess2,
    PROTOCOL_DH_HMAC_CHAP, SecureChannel,
};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::job::{Done, Job, Outcome, Replied, Reply, Work};
use super::{Keys, MESSAGE_LEN_MAX, Parties, Policy, Terms};
use crate::dh::{DhError, DhGroup};
use crate::hash::{Bytes, Hash};

/// What a host authenticates with.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Who is who.
    pub parties: Parties,
    /// The secrets; with the controller's, the controller must prove itself too.
    pub keys: Keys,
    /// What is offered.
    pub policy: Policy,
    /// Whether a key for TLS is to be made.
    pub channel: SecureChannel,
}

/// Why a host gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The controller does not believe the host.
    #[error("the controller refused the host: {0}; compare the secrets of both sides")]
    Refused(Reason),
    /// The controller's response is wrong: it does not know its secret.
    #[error("the controller could not prove itself: compare its secret on both sides, or it is another one")]
    Impostor,
    /// A message that makes no sense here.
    #[error("the controller sent a message that is wrong here ({0})")]
    Message(&'static str),
    /// The exchange is impossible.
    #[error("the Diffie-Hellman exchange failed: {0}")]
    Exchange(#[from] DhError),
}

/// What is to be done next.
#[derive(Debug)]
pub enum HostStep {
    /// Authentication Send of this message.
    Send(Vec<u8>),
    /// Authentication Receive of at most so many bytes; give what comes to [`HostSide::received`].
    Receive(usize),
    /// A job; give its result to [`HostSide::worked`].
    Work(Job),
    /// The transaction is over.
    Over(Result<Option<Bytes>, HostError>),
}

#[derive(Debug)]
enum State {
    Negotiate,
    Challenge,
    Working,
    Send(Box<Replied>),
    Outcome(Box<Replied>),
    Success2(Box<Replied>),
    Failure2(HostError),
    Over(Result<Option<Bytes>, HostError>),
}

/// The host's side: call [`Self::step`] whenever what it asked for before is done.
#[derive(Debug)]
pub struct HostSide {
    config: HostConfig,
    terms: Terms,
    state: State,
}

impl HostSide {
    /// A transaction that is to begin.
    #[must_use]
    pub fn new(config: HostConfig, t_id: u16) -> Self {
        let terms = Terms { hash: Hash::Sha256, group: DhGroup::Null, channel: config.channel, t_id };
        Self { config, terms, state: State::Negotiate }
    }

    /// What has been agreed on.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What is to be done next.
    pub fn step(&mut self) -> HostStep {
        let idle = State::Over(Err(HostError::Message("nothing")));
        match std::mem::replace(&mut self.state, idle) {
            State::Negotiate => {
                self.state = State::Challenge;
                HostStep::Send(self.negotiate())
            }
            State::Send(replied) => {
                let message = self.reply(&replied);
                self.state = State::Outcome(replied);
                HostStep::Send(message)
            }
            State::Success2(replied) => {
                let hdr = AuthMessageHdr::new(AuthType::DH_HMAC_CHAP, AuthId::SUCCESS2, self.terms.t_id);
                self.state = State::Over(Ok(replied.generated));
                HostStep::Send(DhchapSuccess2 { hdr, ..DhchapSuccess2::default() }.as_bytes().to_vec())
            }
            State::Failure2(error) => {
                let failure = AuthFailure {
                    hdr: AuthMessageHdr::new(AuthType::COMMON, AuthId::FAILURE2, self.terms.t_id),
                    rc: AUTH_FAILURE,
                    rce: Reason::FAILED,
                };
                self.state = State::Over(Err(error));
                HostStep::Send(failure.as_bytes().to_vec())
            }
            State::Over(result) => {
                self.state = State::Over(result.clone());
                HostStep::Over(result)
            }
            state => {
                self.state = state;
                HostStep::Receive(MESSAGE_LEN_MAX)
            }
        }
    }

    /// An Authentication Receive has brought `message`; what follows it in the buffer does not matter.
    pub fn received(&mut self, message: &[u8]) -> Option<Job> {
        let idle = State::Over(Err(HostError::Message("nothing")));
        let result = match std::mem::replace(&mut self.state, idle) {
            State::Challenge => self.challenged(message).map(Some),
            State::Outcome(replied) => self.outcome(message, replied).map(|()| None),
            state => {
                self.state = state;
                return None;
            }
        };
        result.unwrap_or_else(|error| {
            self.state = match error {
                HostError::Impostor => State::Failure2(error),
                error => State::Over(Err(error)),
            };
            None
        })
    }

    /// The job is done.
    pub fn worked(&mut self, done: Done) {
        self.state = match done.0 {
            Outcome::Replied(Ok(replied)) => State::Send(Box::new(replied)),
            Outcome::Replied(Err(error)) => State::Over(Err(error.into())),
            _ => State::Over(Err(HostError::Message("another machine's result"))),
        };
    }

    fn negotiate(&self) -> Vec<u8> {
        let policy = &self.config.policy;
        let hdr = AuthMessageHdr::new(AuthType::COMMON, AuthId::NEGOTIATE, self.terms.t_id);
        let mut protocol = AuthProtocol { authid: PROTOCOL_DH_HMAC_CHAP, ..AuthProtocol::default() };
        for (to, hash) in protocol.hashes.iter_mut().zip(&policy.hashes) {
            *to = hash.id();
            protocol.halen += 1;
        }
        for (to, group) in protocol.dhgroups.iter_mut().zip(&policy.groups) {
            *to = group.id();
            protocol.dhlen += 1;
        }
        let head = AuthNegotiate { hdr, sc_c: self.config.channel, napd: 1 };
        [head.as_bytes(), protocol.as_bytes()].concat()
    }

    fn challenged(&mut self, message: &[u8]) -> Result<Job, HostError> {
        self.check(message, AuthId::CHALLENGE)?;
        let wrong = HostError::Message("DH-HMAC-CHAP_Challenge");
        let (head, rest) = DhchapChallenge::read_from_prefix(message).map_err(|_| wrong)?;
        let hash = Hash::from_id(head.hash_id).filter(|hash| self.config.policy.hashes.contains(hash));
        let group = DhGroup::from_id(head.dhg_id).filter(|group| self.config.policy.groups.contains(group));
        self.terms.hash = hash.ok_or(HostError::Message("a hash that was not offered"))?;
        self.terms.group = group.ok_or(HostError::Message("a DH group that was not offered"))?;
        let (hl, dhvlen) = (self.terms.hash.len(), usize::from(head.dhvlen.get()));
        if usize::from(head.hl) != hl || head.seqnum.get() == 0 {
            return Err(wrong);
        }
        let (challenge, rest) = rest.split_at_checked(hl).ok_or(wrong)?;
        let controller_value = rest.get(..dhvlen).ok_or(wrong)?;
        self.state = State::Working;
        let reply = Reply {
            terms: self.terms,
            parties: self.config.parties,
            keys: self.config.keys.clone(),
            challenge: Bytes::new(challenge),
            seqnum: head.seqnum.get(),
            controller_value: controller_value.to_vec(),
        };
        Ok(Job(Work::Reply(Box::new(reply))))
    }

    fn reply(&self, replied: &Replied) -> Vec<u8> {
        let zeroes = Bytes::new(&vec![0; self.terms.hash.len()]);
        let (challenge, seqnum) = match &replied.host_challenge {
            Some((challenge, seqnum)) => (challenge, *seqnum),
            None => (&zeroes, 0),
        };
        let head = DhchapReply {
            hdr: AuthMessageHdr::new(AuthType::DH_HMAC_CHAP, AuthId::REPLY, self.terms.t_id),
            hl: u8::try_from(self.terms.hash.len()).unwrap_or(0),
            cvalid: u8::from(replied.host_challenge.is_some()),
            dhvlen: U16::new(u16::try_from(replied.host_value.len()).unwrap_or(0)),
            seqnum: U32::new(seqnum),
            ..DhchapReply::default()
        };
        [head.as_bytes(), replied.response.as_slice(), challenge.as_slice(), &replied.host_value].concat()
    }

    fn outcome(&mut self, message: &[u8], mut replied: Box<Replied>) -> Result<(), HostError> {
        self.check(message, AuthId::SUCCESS1)?;
        let wrong = HostError::Message("DH-HMAC-CHAP_Success1");
        let (head, rest) = DhchapSuccess1::read_from_prefix(message).map_err(|_| wrong)?;
        let Some(expected) = replied.expected.take() else {
            self.state = State::Over(Ok(replied.generated));
            return Ok(());
        };
        let response = rest.get(..self.terms.hash.len()).ok_or(wrong)?;
        if head.rvalid != 1 || !expected.matches(response) {
            return Err(HostError::Impostor);
        }
        self.state = State::Success2(replied);
        Ok(())
    }

    /// The message is of this transaction and the one that is due; AUTH_Failure1 may come instead of any.
    fn check(&self, message: &[u8], due: AuthId) -> Result<(), HostError> {
        let (hdr, _) =
            AuthMessageHdr::read_from_prefix(message).map_err(|_| HostError::Message("too short"))?;
        if hdr.t_id.get() != self.terms.t_id {
            return Err(HostError::Message("of another transaction"));
        }
        if (hdr.auth_type, hdr.auth_id) == (AuthType::COMMON, AuthId::FAILURE1) {
            let (failure, _) =
                AuthFailure::read_from_prefix(message).map_err(|_| HostError::Message("AUTH_Failure1"))?;
            return Err(HostError::Refused(failure.rce));
        }
        if (hdr.auth_type, hdr.auth_id) != (AuthType::DH_HMAC_CHAP, due) {
            return Err(HostError::Message("not the one that is due"));
        }
        Ok(())
    }
}
