//! The keys of one host with one subsystem.

use std::fmt;

use penstock_security::chap::Keys;
use penstock_security::psk::ConfiguredPsk;

/// Names of keys in the keyring: all that is shown or saved of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyNames {
    /// Of the pre-shared key for TLS.
    pub psk: Option<String>,
    /// Of the host's secret.
    pub dhchap_key: Option<String>,
    /// Of the controller's.
    pub dhchap_ctrlr_key: Option<String>,
}

/// The keys themselves, as they were when they were named.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HostKeys {
    /// Their names.
    pub names: KeyNames,
    /// For authentication: a host that has them must authenticate itself.
    pub chap: Option<Keys>,
    /// For TLS: a host that has it must come by TLS.
    pub psk: Option<ConfiguredPsk>,
}

impl HostKeys {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chap.is_none() && self.psk.is_none()
    }
}

impl fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.names.fmt(f)
    }
}
