//! Who must prove itself, with what, and how.

use std::sync::Arc;

use penstock_reactor::Answers;
use penstock_security::chap::Policy;
use penstock_security::tls::Context;
use penstock_spec::nvmf::Nqn;

use super::{Target, TargetError, parse_nqn};
use crate::auth::HostKeys;
use crate::group::{GroupCell, TlsSettings};

impl Target {
    /// `nvmf_set_config`: which hash functions and Diffie-Hellman groups hosts may authenticate themselves with, in all
    /// subsystems, from the next authentication on.
    ///
    /// # Errors
    /// [`TargetError::Invalid`] for an empty list; what a reactor says.
    pub async fn set_auth_policy(&self, policy: Policy) -> Result<(), TargetError> {
        let lists = [("dhchap_digests", policy.hashes.len()), ("dhchap_dhgroups", policy.groups.len())];
        if let Some((parameter, _)) = lists.into_iter().find(|(_, len)| *len == 0) {
            let allowed = "a list of at least one".to_owned();
            return Err(TargetError::Invalid { parameter, value: "empty".to_owned(), allowed });
        }
        let policy = Arc::new(policy);
        self.0.state.borrow_mut().auth_policy = Arc::clone(&policy);
        let mut answers = Answers::default();
        for nqn in self.subsystem_names() {
            let changed = self.change(&nqn, |config| {
                config.auth_policy = Arc::clone(&policy);
                Ok(())
            });
            answers.extend(changed?.1);
        }
        self.all(answers, "change the policy of authentication").await.map(drop)
    }

    /// The policy in force.
    #[must_use]
    pub fn auth_policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.state.borrow().auth_policy)
    }

    /// Makes TLS possible, if it is not yet, and tells the reactors which portals want it.
    ///
    /// # Errors
    /// [`TargetError::Tls`]; what a reactor says.
    pub(super) async fn enable_tls(&self) -> Result<(), TargetError> {
        let settings = {
            let mut state = self.0.state.borrow_mut();
            let context = match &state.tls {
                Some(context) => Arc::clone(context),
                None => Arc::new(Context::new()?),
            };
            state.tls = Some(Arc::clone(&context));
            Arc::new(TlsSettings { context, secure: state.secure_portids.clone() })
        };
        let told = self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.set_tls(&settings);
            }
        });
        self.all(told, "enable TLS").await.map(drop)
    }

    /// Gives the worker the keys of the configuration as it is now.
    pub(super) fn publish_psks(&self) -> Result<(), TargetError> {
        let state = self.0.state.borrow();
        if state.tls.is_none() {
            return Ok(());
        }
        let mut psks = Vec::new();
        for config in state.subsystems.values() {
            for host in config.hosts.values() {
                let psk = host.keys.as_ref().and_then(|keys| keys.psk.as_ref());
                psks.extend(psk.into_iter().flat_map(|psk| psk.tls_psks(&host.nqn, &config.nqn)));
            }
        }
        if self.0.worker.change_psks(move |known| known.configure(psks)) {
            Ok(())
        } else {
            Err(TargetError::Crowded)
        }
    }

    /// Forgets the keys that a host has made by authentications.
    pub(super) fn forget_psks(&self, subsystem: Nqn, host: Nqn) {
        // Too much waits: they are of no use to a host that is not let in any more.
        self.0.worker.change_psks(move |known| known.forget(|psk| psk.is_for(&host, Some(&subsystem))));
    }

    /// `nvmf_subsystem_set_keys`: other secrets for a host, or none, from its next authentication on; connections stay.
    /// The host's key for TLS is not touched.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; what a reactor says.
    pub async fn set_keys(&self, nqn: &str, host: &str, new: HostKeys) -> Result<(), TargetError> {
        let host = parse_nqn("host", host)?;
        let name = self.subsystem(nqn)?.nqn;
        let ((), answers) = self.change(&name, |config| {
            let missing = || TargetError::Missing { nqn: name.to_string(), what: format!("host {host}") };
            let entry = config.hosts.get_mut(&host).ok_or_else(missing)?;
            let mut keys = entry.keys.as_deref().cloned().unwrap_or_default();
            keys.chap = new.chap;
            keys.names.dhchap_key = new.names.dhchap_key;
            keys.names.dhchap_ctrlr_key = new.names.dhchap_ctrlr_key;
            entry.keys = (!keys.is_empty()).then(|| Arc::new(keys));
            Ok(())
        })?;
        self.forget_psks(name, host);
        self.all(answers, "change a host's keys").await.map(drop)
    }
}
