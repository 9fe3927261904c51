//! Initiator groups: who may come from where.

use std::sync::Arc;

use super::params::{netmask_of, rule_of, rule_text};
use super::{Target, TargetError};
use crate::config::{GROUPS_MAX, INITIATORS_MAX, InitiatorGroup};

impl Target {
    /// `iscsi_create_initiator_group`.
    ///
    /// # Errors
    /// A tag that is taken, a name or a network that is none.
    pub fn create_initiator_group(
        &self,
        tag: u32,
        initiators: &[String],
        netmasks: &[String],
    ) -> Result<(), TargetError> {
        if tag == 0 {
            return Err(TargetError::invalid("tag", tag, "1 or more"));
        }
        let mut group = InitiatorGroup { tag, initiators: Vec::new(), netmasks: Vec::new() };
        add(&mut group, initiators, netmasks)?;
        let mut state = self.0.state.borrow_mut();
        if state.initiator_groups.contains_key(&tag) {
            return Err(TargetError::Exists { what: format!("initiator group {tag}") });
        }
        if state.initiator_groups.len() >= GROUPS_MAX {
            return Err(TargetError::Full { what: "initiator groups".to_owned(), max: GROUPS_MAX });
        }
        state.initiator_groups.insert(tag, Arc::new(group));
        Ok(())
    }

    /// `iscsi_initiator_group_add_initiators`.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; what is there already; a name or a network that is none.
    pub async fn add_initiators(
        &self,
        tag: u32,
        initiators: &[String],
        netmasks: &[String],
    ) -> Result<(), TargetError> {
        let mut group = InitiatorGroup::clone(&*self.initiator_group(tag)?);
        add(&mut group, initiators, netmasks)?;
        self.replace_initiator_group(group).await
    }

    /// `iscsi_initiator_group_remove_initiators`: those who may not come any more lose their sessions.
    ///
    /// # Errors
    /// [`TargetError::Missing`], also of a name or a network that is not there.
    pub async fn remove_initiators(
        &self,
        tag: u32,
        initiators: &[String],
        netmasks: &[String],
    ) -> Result<(), TargetError> {
        let mut group = InitiatorGroup::clone(&*self.initiator_group(tag)?);
        let missing = |what: &str| TargetError::Missing {
            what: format!("{what} in initiator group {tag}"),
            list: "iscsi_get_initiator_groups",
        };
        for text in initiators {
            let rule = rule_of(text)?;
            let at = group.initiators.iter().position(|known| *known == rule).ok_or_else(|| missing(text))?;
            group.initiators.remove(at);
        }
        for text in netmasks {
            let mask = netmask_of(text)?;
            let at = group.netmasks.iter().position(|known| *known == mask).ok_or_else(|| missing(text))?;
            group.netmasks.remove(at);
        }
        self.replace_initiator_group(group).await
    }

    /// `iscsi_delete_initiator_group`: targets lose their maps to it, and its initiators their sessions.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; [`TargetError::InUse`] where only this group may see a LUN: it must not be shown to
    /// all by that.
    pub async fn delete_initiator_group(&self, tag: u32) -> Result<(), TargetError> {
        self.initiator_group(tag)?;
        let affected = {
            let mut state = self.0.state.borrow_mut();
            for (name, node) in &state.nodes {
                if let Some((lun, _)) = node.luns.iter().find(|(_, lun)| lun.seen_by.contains(&tag)) {
                    let user = format!("LUN {lun} of {name}, which only its initiators see");
                    return Err(TargetError::InUse { what: format!("initiator group {tag}"), user });
                }
            }
            state.initiator_groups.remove(&tag);
            let mut affected = Vec::new();
            for (name, node) in &mut state.nodes {
                let before = node.maps.len();
                node.maps.retain(|(_, ig)| *ig != tag);
                if node.maps.len() < before {
                    affected.push(*name);
                }
            }
            affected
        };
        for name in affected {
            self.update_ports(&name);
            self.all(self.publish_node(&name), "delete an initiator group").await?;
        }
        Ok(())
    }

    pub(super) fn initiator_group(&self, tag: u32) -> Result<Arc<InitiatorGroup>, TargetError> {
        let state = self.0.state.borrow();
        state.initiator_groups.get(&tag).cloned().ok_or_else(|| TargetError::no_initiator_group(tag))
    }

    /// Puts a new generation of an initiator group in, and tells the targets that have it.
    async fn replace_initiator_group(&self, group: InitiatorGroup) -> Result<(), TargetError> {
        let tag = group.tag;
        let affected = {
            let mut state = self.0.state.borrow_mut();
            state.initiator_groups.insert(tag, Arc::new(group));
            let uses = |node: &super::Node| {
                node.maps.iter().any(|(_, ig)| *ig == tag)
                    || node.luns.values().any(|lun| lun.seen_by.contains(&tag))
            };
            let affected = state.nodes.iter().filter(|(_, node)| uses(node)).map(|(name, _)| *name);
            affected.collect::<Vec<_>>()
        };
        for name in affected {
            self.all(self.publish_node(&name), "change an initiator group").await?;
        }
        Ok(())
    }
}

fn add(group: &mut InitiatorGroup, initiators: &[String], netmasks: &[String]) -> Result<(), TargetError> {
    let tag = group.tag;
    for text in initiators {
        let rule = rule_of(text)?;
        if group.initiators.contains(&rule) {
            let what = format!("{} in initiator group {tag}", rule_text(&rule));
            return Err(TargetError::Exists { what });
        }
        group.initiators.push(rule);
    }
    for text in netmasks {
        let mask = netmask_of(text)?;
        if group.netmasks.contains(&mask) {
            return Err(TargetError::Exists { what: format!("{text} in initiator group {tag}") });
        }
        group.netmasks.push(mask);
    }
    if group.initiators.len().max(group.netmasks.len()) > INITIATORS_MAX {
        return Err(TargetError::Full {
            what: format!("lines of initiator group {tag}"),
            max: INITIATORS_MAX,
        });
    }
    Ok(())
}
