//! Authentication groups: the secrets by which initiators and the target prove themselves.

use super::{AuthChoice, NewSecret, State, Target, TargetError};
use crate::auth::{Password, SECRET_BYTES_MAX, SECRET_BYTES_MIN, Secret};
use crate::config::{GROUPS_MAX, SECRETS_MAX};

impl Target {
    /// `iscsi_create_auth_group`.
    ///
    /// # Errors
    /// A tag that is taken, a secret that cannot be.
    pub fn create_auth_group(&self, tag: u32, secrets: &[NewSecret]) -> Result<(), TargetError> {
        if tag == 0 {
            return Err(TargetError::invalid("tag", tag, "1 or more"));
        }
        let mut state = self.0.state.borrow_mut();
        if state.auth_groups.contains_key(&tag) {
            return Err(TargetError::Exists { what: format!("authentication group {tag}") });
        }
        if state.auth_groups.len() >= GROUPS_MAX {
            return Err(TargetError::Full { what: "authentication groups".to_owned(), max: GROUPS_MAX });
        }
        let mut group = Vec::new();
        for secret in secrets {
            add(&state, tag, &mut group, secret)?;
        }
        state.auth_groups.insert(tag, group);
        Ok(())
    }

    /// `iscsi_delete_auth_group`.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; [`TargetError::InUse`] where somebody has to prove himself by it.
    pub fn delete_auth_group(&self, tag: u32) -> Result<(), TargetError> {
        let mut state = self.0.state.borrow_mut();
        if !state.auth_groups.contains_key(&tag) {
            return Err(TargetError::no_auth_group(tag));
        }
        if let Some(user) = state.auth_user(tag) {
            return Err(TargetError::InUse { what: format!("authentication group {tag}"), user });
        }
        state.auth_groups.remove(&tag);
        Ok(())
    }

    /// `iscsi_auth_group_add_secret`.
    ///
    /// # Errors
    /// [`TargetError::Missing`], a secret that cannot be.
    pub async fn auth_group_add_secret(&self, tag: u32, secret: &NewSecret) -> Result<(), TargetError> {
        {
            let mut state = self.0.state.borrow_mut();
            let group = state.auth_groups.get(&tag).cloned();
            let mut group = group.ok_or_else(|| TargetError::no_auth_group(tag))?;
            add(&state, tag, &mut group, secret)?;
            state.auth_groups.insert(tag, group);
        }
        self.publish_secrets(tag).await
    }

    /// `iscsi_auth_group_remove_secret`: sessions that stand stay.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub async fn auth_group_remove_secret(&self, tag: u32, user: &str) -> Result<(), TargetError> {
        {
            let mut state = self.0.state.borrow_mut();
            let group = state.auth_groups.get_mut(&tag).ok_or_else(|| TargetError::no_auth_group(tag))?;
            let at = group.iter().position(|secret| secret.user == user).ok_or_else(|| {
                let what = format!("user {user:?} in authentication group {tag}");
                TargetError::Missing { what, list: "iscsi_get_auth_groups" }
            })?;
            group.remove(at);
        }
        self.publish_secrets(tag).await
    }

    /// Whether a choice makes sense and its group is there.
    pub(super) fn check_auth(&self, choice: AuthChoice) -> Result<(), TargetError> {
        choice.check()?;
        let known = self.0.state.borrow().auth_groups.contains_key(&choice.chap_group);
        if choice.chap_group != 0 && !known {
            return Err(TargetError::no_auth_group(choice.chap_group));
        }
        Ok(())
    }

    /// Tells the reactors of a group's secrets.
    async fn publish_secrets(&self, tag: u32) -> Result<(), TargetError> {
        let affected: Vec<_> = {
            let state = self.0.state.borrow();
            let nodes = state.nodes.iter().filter(|(_, node)| node.auth.chap_group == tag);
            nodes.map(|(name, _)| *name).collect()
        };
        let mut answers = self.publish_discovery();
        for name in affected {
            answers.extend(self.publish_node(&name));
        }
        self.all(answers, "change the secrets of an authentication group").await.map(drop)
    }
}

impl State {
    /// Who uses an authentication group.
    fn auth_user(&self, tag: u32) -> Option<String> {
        if self.discovery.chap_group == tag {
            return Some("discovery (iscsi_set_discovery_auth)".to_owned());
        }
        let mut groups = self.portal_groups.iter();
        if let Some((pg, _)) = groups.find(|(_, group)| group.auth.is_some_and(|auth| auth.chap_group == tag))
        {
            return Some(format!("portal group {pg}"));
        }
        let node = self.nodes.iter().find(|(_, node)| node.auth.chap_group == tag);
        node.map(|(name, _)| format!("target node {name}"))
    }
}

/// Adds a secret to what is to be group `tag`.
fn add(state: &State, tag: u32, group: &mut Vec<Secret>, new: &NewSecret) -> Result<(), TargetError> {
    let secret = secret_of(new)?;
    if group.iter().any(|known| known.user == secret.user) {
        let what = format!("user {:?} in authentication group {tag}", secret.user);
        return Err(TargetError::Exists { what });
    }
    if group.len() >= SECRETS_MAX {
        return Err(TargetError::Full {
            what: format!("secrets of authentication group {tag}"),
            max: SECRETS_MAX,
        });
    }
    group.push(secret);
    // What authenticates an initiator must not authenticate the target (RFC 7143, 9.2.1): a challenge could be sent
    // back to whoever made it.
    let others = state.auth_groups.iter().filter(|(other, _)| **other != tag).flat_map(|(_, group)| group);
    let all: Vec<&Secret> = others.chain(group.iter()).collect();
    let mut ours = all.iter().filter_map(|secret| secret.mutual.as_ref());
    if ours.any(|(_, ours)| all.iter().any(|secret| secret.secret == *ours)) {
        let allowed = "other secrets than any initiator's: a secret proves one side only";
        return Err(TargetError::invalid("msecret", "a secret of an initiator", allowed));
    }
    Ok(())
}

fn secret_of(new: &NewSecret) -> Result<Secret, TargetError> {
    let name = |parameter, text: &str| {
        let fits = !text.is_empty() && text.len() <= SECRET_BYTES_MAX && !text.contains('\0');
        let allowed = || format!("a name of 1 to {SECRET_BYTES_MAX} bytes");
        if fits {
            Ok(text.to_owned())
        } else {
            Err(TargetError::invalid(parameter, format!("{text:?}"), allowed()))
        }
    };
    let password = |parameter, text: &str| {
        let value = format!("a secret of {} bytes", text.len());
        let allowed = format!("a secret of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes");
        Password::new(text).ok_or(TargetError::Invalid { parameter, value, allowed })
    };
    let mutual = match (&new.muser, &new.msecret) {
        (Some(user), Some(secret)) => Some((name("muser", user)?, password("msecret", secret)?)),
        (None, None) => None,
        (Some(_), None) => return Err(TargetError::invalid("msecret", "left out", "there where muser is")),
        (None, Some(_)) => return Err(TargetError::invalid("muser", "left out", "there where msecret is")),
    };
    Ok(Secret { user: name("user", &new.user)?, secret: password("secret", &new.secret)?, mutual })
}
