//! The keys for TLS that a target knows, by their identities. They live on the worker's thread, where handshakes are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use penstock_security::psk::TlsPsk;
use penstock_security::tls::PskStore;

/// Generated keys kept at most; the oldest goes first, and its host has to authenticate itself again.
const GENERATED_MAX: usize = 65_536;

/// All keys.
#[derive(Debug, Default)]
pub(crate) struct Psks {
    configured: BTreeMap<Vec<u8>, Arc<TlsPsk>>,
    generated: BTreeMap<Vec<u8>, Arc<TlsPsk>>,
    /// Their identities, in the order in which they were made.
    order: VecDeque<Vec<u8>>,
}

impl Psks {
    /// The keys of the configuration as it is now.
    pub(crate) fn configure(&mut self, psks: Vec<TlsPsk>) {
        let entry = |psk: TlsPsk| (psk.identity.clone().into_bytes(), Arc::new(psk));
        self.configured = psks.into_iter().map(entry).collect();
    }

    /// A key that an authentication has made, and the one that it replaces.
    pub(crate) fn generated(&mut self, psk: TlsPsk, replaces: Option<&str>) {
        if let Some(identity) = replaces {
            self.generated.remove(identity.as_bytes());
        }
        if self.order.len() >= GENERATED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.generated.remove(&oldest);
        }
        let identity = psk.identity.clone().into_bytes();
        self.order.push_back(identity.clone());
        self.generated.insert(identity, Arc::new(psk));
    }

    /// Forgets the generated keys that `which` is true of.
    pub(crate) fn forget(&mut self, which: impl Fn(&TlsPsk) -> bool) {
        self.generated.retain(|_, psk| !which(psk));
    }
}

impl PskStore for Psks {
    fn find(&self, identity: &[u8]) -> Option<Arc<TlsPsk>> {
        self.configured.get(identity).or_else(|| self.generated.get(identity)).cloned()
    }
}
