//! Who must prove itself, with what, and how.

use std::sync::Arc;

use penstock_security::chap::Policy;

use super::{Target, TargetError, parse_nqn};
use crate::auth::HostKeys;

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
        let mut answers = Vec::new();
        for nqn in self.subsystem_names() {
            let changed = self.change(&nqn, |config| {
                config.auth_policy = Arc::clone(&policy);
                Ok(())
            });
            answers.extend(changed?.1);
        }
        for answer in answers {
            let answer = answer.map_err(TargetError::reactor("change the policy of authentication"))?;
            // A reactor that is gone has nobody to authenticate.
            answer.await.ok();
        }
        Ok(())
    }

    /// The policy in force.
    #[must_use]
    pub fn auth_policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.state.borrow().auth_policy)
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
        self.all(answers, "change a host's keys").await.map(drop)
    }
}
