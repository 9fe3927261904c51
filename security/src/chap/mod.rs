//! DH-HMAC-CHAP, both sides, without I/O (Base 8.3.5.5).
//!
//! ```text
//!   host                                        controller
//!   Negotiate (hashes, groups)  ──Auth Send──►  picks one of each
//!   C1, S1, g^x                 ◄─Auth Recv──   Challenge
//!   Reply (R1, C2, S2, g^y)     ──Auth Send──►  R1 right?
//!   R2                          ◄─Auth Recv──   Success1, or Failure1
//!   Success2, or Failure2       ──Auth Send──►  (only where the host has challenged the controller)
//! ```
//!
//! What takes long is a [`Job`]: it is run wherever there is time for it, and its [`Done`] is given back to the machine.

mod controller;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod host;
mod job;
#[cfg(test)]
mod tests;

pub use controller::{ControllerSide, Event, Step};
pub use host::{HostConfig, HostError, HostSide, HostStep};
pub use job::{Done, Job};
pub use penstock_spec::nvmf::auth::{AuthFailureReason, SecureChannel};

use std::sync::atomic::{AtomicU32, Ordering};

use penstock_spec::nvmf::Nqn;

use crate::dh::DhGroup;
use crate::hash::{Bytes, Hash};
use crate::secret::Secret;

/// The longest message, in bytes: a reply with two hashes and a value of the largest group.
pub const MESSAGE_LEN_MAX: usize = 16 + 2 * crate::hash::HASH_LEN_MAX + 1024;

/// The two who prove themselves to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parties {
    /// The host.
    pub host: Nqn,
    /// The subsystem that the controller belongs to.
    pub subsystem: Nqn,
}

/// What they prove themselves with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The host's secret.
    pub host: Secret,
    /// The controller's; without it a host that wants proof of the controller gets none.
    pub controller: Option<Secret>,
}

/// What may be agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Hash functions.
    pub hashes: Vec<Hash>,
    /// Diffie-Hellman groups.
    pub groups: Vec<DhGroup>,
}

impl Default for Policy {
    /// Everything.
    fn default() -> Self {
        Self { hashes: Hash::ALL.to_vec(), groups: DhGroup::ALL.to_vec() }
    }
}

/// What has been agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Hash function.
    pub hash: Hash,
    /// Diffie-Hellman group.
    pub group: DhGroup,
    /// Whether a key for TLS is made.
    pub channel: SecureChannel,
    /// Transaction identifier.
    pub t_id: u16,
}

/// Whose proof a response is.
#[derive(Debug, Clone, Copy)]
enum Role {
    Host,
    Controller,
}

impl Terms {
    /// The challenge as it enters a response: mixed with the session key where there is one.
    fn augmented(&self, session: Option<&Bytes>, challenge: &Bytes) -> Bytes {
        match session {
            Some(key) => self.hash.hmac(key.as_slice(), &[challenge.as_slice()]),
            None => challenge.clone(),
        }
    }

    /// The response of `role` to a challenge.
    fn response(
        &self,
        role: Role,
        secret: &Secret,
        parties: &Parties,
        session: Option<&Bytes>,
        challenge: &Bytes,
        seqnum: u32,
    ) -> Bytes {
        let (host, subsystem) = (parties.host.as_str(), parties.subsystem.as_str());
        let (label, own, other) = match role {
            Role::Host => ("HostHost", host, subsystem),
            Role::Controller => ("Controller", subsystem, host),
        };
        let key = secret.transformed(own);
        let challenge = self.augmented(session, challenge);
        self.hash.hmac(
            key.as_slice(),
            &[
                challenge.as_slice(),
                &seqnum.to_le_bytes(),
                &self.t_id.to_le_bytes(),
                &[self.channel.0],
                label.as_bytes(),
                own.as_bytes(),
                &[0],
                other.as_bytes(),
            ],
        )
    }

    /// The key for TLS that a transaction makes (Base 8.3.5.5.9).
    fn generated(&self, session: Option<&Bytes>, c1: &Bytes, c2: &Bytes) -> Option<Bytes> {
        if self.channel == SecureChannel::NONE {
            return None;
        }
        Some(self.hash.hmac(session?.as_slice(), &[c1.as_slice(), c2.as_slice()]))
    }
}

/// The next sequence number: never 0, from a random one on.
fn next_seqnum() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let mut start = [0; 4];
        // Without random numbers there are no challenges either; the start only makes numbers hard to guess.
        getrandom::fill(&mut start).ok();
        NEXT.compare_exchange(0, u32::from_le_bytes(start), Ordering::Relaxed, Ordering::Relaxed).ok();
    }
    match NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(1) {
        0 => NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
        seqnum => seqnum,
    }
}
