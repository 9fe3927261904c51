//! In-band authentication of a queue that is connected (Base 8.3.5.5): Authentication Send and Receive, one after the other,
//! until the controller believes the host.
//!
//! Exponentiations are computed where the bytes come in: milliseconds for each queue. A driver on a reactor brings its
//! queues up on another thread.

use std::sync::Arc;

use penstock_security::chap::{
    HostConfig, HostError, HostSide, HostStep, Keys, Parties, Policy, SecureChannel,
};
use penstock_security::dh::DhGroup;
use penstock_security::hash::{Bytes, Hash};
use penstock_security::psk::TlsPsk;
use penstock_spec::nvme::{AdminOpcode, Cqe, FabricsType, Sqe, Status};
use penstock_spec::nvmf::auth::{AuthCmd, SECP_NVME};
use zerocopy::little_endian::U32;

use super::slot::SlotState;
use super::{Qpair, QpairState, SLOT_MASK, Transfer};
use crate::error::QpairError;
use crate::payload::Payload;

/// What a host authenticates itself with.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The secrets; with the controller's, the controller must prove itself too.
    pub keys: Keys,
    /// What is offered.
    pub policy: Policy,
}

/// A transaction under way.
#[derive(Debug)]
pub(super) struct Auth {
    side: HostSide,
    /// The slot of its command.
    pub(super) slot: usize,
    /// The message that is sent, or comes.
    pub(super) message: Vec<u8>,
    receiving: bool,
}

impl Auth {
    /// `channel`: a key for TLS is to be made. The hash without a cipher suite and the exchange without a secret make none, and
    /// are not offered then.
    pub(super) fn new(config: &super::QpairConfig, auth: &Arc<AuthConfig>, channel: bool) -> Box<Self> {
        let mut policy = auth.policy.clone();
        if channel {
            policy.hashes.retain(|hash| *hash != Hash::Sha512);
            policy.groups.retain(|group| *group != DhGroup::Null);
        }
        let host = HostConfig {
            parties: Parties { host: config.hostnqn, subsystem: config.subnqn },
            keys: auth.keys.clone(),
            policy,
            channel: if channel { SecureChannel::NEW_TLS_PSK } else { SecureChannel::NONE },
        };
        // One transaction at a time on each queue: any identifier will do.
        let side = HostSide::new(host, config.qid.wrapping_add(1));
        Box::new(Self { side, slot: usize::MAX, message: Vec::new(), receiving: false })
    }

    /// Data of an Authentication Receive have come.
    pub(super) fn take(&mut self, at: usize, bytes: &[u8]) {
        let place = at.checked_add(bytes.len()).and_then(|end| self.message.get_mut(at..end));
        if let Some(place) = place.filter(|_| self.receiving) {
            place.copy_from_slice(bytes);
        }
    }
}

impl<B: Payload> Qpair<B> {
    /// Sends the next command of the transaction, or ends it.
    pub(super) fn auth_next(&mut self) -> Result<(), QpairError> {
        let Some(auth) = self.auth.as_mut() else { return Ok(()) };
        let (fctype, transfer) = match auth.side.step() {
            HostStep::Send(message) => {
                auth.message = message;
                (FabricsType::AUTHENTICATION_SEND, Transfer::Write(len_of(&auth.message)))
            }
            HostStep::Receive(len) => {
                auth.message = vec![0; len];
                (FabricsType::AUTHENTICATION_RECEIVE, Transfer::Read(len_of(&auth.message)))
            }
            HostStep::Over(Ok(key)) => {
                let terms = *auth.side.terms();
                self.auth = None;
                if terms.channel != SecureChannel::NONE {
                    return Err(self.secure_channel(key, terms.hash));
                }
                self.state = QpairState::Live;
                return Ok(());
            }
            HostStep::Over(Err(error)) => return Err(QpairError::Authentication(error)),
            HostStep::Work(job) => {
                auth.side.worked(job.run());
                return self.auth_next();
            }
        };
        auth.receiving = matches!(transfer, Transfer::Read(_));
        // All slots are free but the ones of this: nothing else is submitted yet.
        let Some(index) = self.free.pop() else { return Ok(()) };
        auth.slot = usize::from(index);
        let message = std::mem::take(&mut auth.message);
        let len = transfer.len_bytes();
        let in_capsule = matches!(transfer, Transfer::Write(len) if len <= self.config.in_capsule_max);
        self.take_slot(index, transfer, in_capsule, 0, None);
        let cid = self.slots.0.get(usize::from(index)).map_or(0, |slot| slot.cid);
        let cmd = AuthCmd {
            opc: AdminOpcode::FABRICS.0,
            flags: Sqe::FLAGS_FABRICS,
            cid: cid.into(),
            fctype: fctype.0,
            spsp0: 1,
            spsp1: 1,
            secp: SECP_NVME,
            len_bytes: U32::new(len),
            ..AuthCmd::default()
        };
        self.push_capsule(*cmd.as_sqe(), usize::from(index), Some(&message));
        if let Some(auth) = self.auth.as_mut() {
            auth.message = message;
        }
        Ok(())
    }

    /// The authentication was to make a key for TLS: this connection has done its work.
    fn secure_channel(&mut self, key: Option<Bytes>, hash: Hash) -> QpairError {
        let (host, subsystem) = (&self.config.hostnqn, &self.config.subnqn);
        let made = key.and_then(|key| TlsPsk::generated(&key, hash, host, subsystem));
        let Some(made) = made else {
            return QpairError::Authentication(HostError::Message("without what a key for TLS is made of"));
        };
        self.made = Some(Arc::new(made));
        QpairError::SecureChannel
    }

    /// A command of the transaction is through.
    pub(super) fn auth_done(&mut self, cqe: &Cqe) -> Result<(), QpairError> {
        let Some(auth) = self.auth.as_mut() else { return Ok(()) };
        let mut complete = true;
        if let Some(slot) = self.slots.0.get_mut(auth.slot) {
            // Room for the longest message was given; a target may send no more than the message that it has (SPDK's).
            complete = !auth.receiving || slot.moved_bytes > 0;
            complete &= !slot.ddgst_failed;
            slot.state = SlotState::Free;
            self.free.push(slot.cid & SLOT_MASK);
        }
        let status = if complete { cqe.status() } else { Status::TRANSIENT_TRANSPORT_ERROR };
        if !status.is_success() {
            return Err(QpairError::AuthenticationCommand { qid: self.config.qid, status });
        }
        if auth.receiving {
            let message = std::mem::take(&mut auth.message);
            if let Some(job) = auth.side.received(&message) {
                auth.side.worked(job.run());
            }
        }
        self.auth_next()
    }
}

fn len_of(message: &[u8]) -> u32 {
    u32::try_from(message.len()).unwrap_or(0)
}
