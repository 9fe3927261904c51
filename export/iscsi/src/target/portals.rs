//! Portal groups: where the target is reached.

use std::net::SocketAddr;

use penstock_reactor::{ReactorError, ReactorId};

use super::{AuthChoice, NewPortalGroup, Target, TargetError};
use crate::config::{GROUPS_MAX, PORTALS_MAX, PortalGroup};
use crate::group::GroupCell;

/// A portal group.
#[derive(Debug, Clone)]
pub(super) struct PortalGroupState {
    pub(super) portals: Vec<SocketAddr>,
    pub(super) private: bool,
    /// Whether its portals are listened on.
    pub(super) started: bool,
    /// Authentication of discovery there; `None`: as everywhere.
    pub(super) auth: Option<AuthChoice>,
}

impl PortalGroupState {
    /// As reactors know it.
    pub(super) fn config(&self, tag: u16) -> PortalGroup {
        PortalGroup { tag, portals: self.portals.clone(), private: self.private }
    }
}

pub(super) fn pg_tag(tag: u32) -> Result<u16, TargetError> {
    let fits = u16::try_from(tag).ok().filter(|tag| *tag > 0);
    fits.ok_or_else(|| TargetError::invalid("tag", tag, "1 to 65535"))
}

impl Target {
    /// `iscsi_create_portal_group`: listens on its portals unless that has to wait.
    ///
    /// # Errors
    /// A tag or an address that is taken or cannot be; then nothing is listened on.
    pub async fn create_portal_group(&self, new: &NewPortalGroup) -> Result<(), TargetError> {
        let tag = pg_tag(new.tag)?;
        let portals = new.portals.iter().map(super::Portal::addr).collect::<Result<Vec<_>, _>>()?;
        self.check_new_portals(tag, &portals)?;
        let group = PortalGroupState { portals, private: new.private, started: false, auth: None };
        self.0.state.borrow_mut().portal_groups.insert(tag, group);
        self.start().await?;
        if new.wait {
            return Ok(());
        }
        let listening = self.listen(tag).await;
        if listening.is_err() {
            self.0.state.borrow_mut().portal_groups.remove(&tag);
        }
        listening
    }

    /// `iscsi_start_portal_group`: listens on its portals if that was left to wait.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; an address that is taken: then it listens on none.
    pub async fn start_portal_group(&self, tag: u32) -> Result<(), TargetError> {
        let group = self.portal_group(tag)?;
        if group.started { Ok(()) } else { self.listen(pg_tag(tag)?).await }
    }

    /// `iscsi_delete_portal_group`: targets are not reached by it any more; its connections end.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; [`TargetError::TimedOut`] when connections do not end.
    pub async fn delete_portal_group(&self, tag: u32) -> Result<(), TargetError> {
        let group = self.portal_group(tag)?;
        let tag = pg_tag(tag)?;
        let affected = {
            let mut state = self.0.state.borrow_mut();
            state.portal_groups.remove(&tag);
            let mut affected = Vec::new();
            for (name, node) in &mut state.nodes {
                let before = node.maps.len();
                node.maps.retain(|(pg, _)| *pg != tag);
                node.redirects.remove(&tag);
                if node.maps.len() < before {
                    affected.push(*name);
                }
            }
            affected
        };
        self.unlisten(&group.portals).await?;
        let mut answers = self.publish_discovery();
        for name in affected {
            answers.extend(self.publish_node(&name));
            self.update_ports(&name);
        }
        answers.extend(self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.disconnect_portal_group(cx, tag);
            }
        }));
        self.all(answers, "delete a portal group").await?;
        let what = format!("the connections by portal group {tag}");
        self.wait_until(&what, move |cell| !cell.has_connection(None, Some(tag))).await
    }

    /// `iscsi_portal_group_set_auth`: authentication of discovery by this portal group.
    ///
    /// # Errors
    /// [`TargetError::Missing`], a choice that makes no sense.
    pub async fn portal_group_set_auth(&self, tag: u32, choice: AuthChoice) -> Result<(), TargetError> {
        self.portal_group(tag)?;
        self.check_auth(choice)?;
        if let Some(group) = self.0.state.borrow_mut().portal_groups.get_mut(&pg_tag(tag)?) {
            group.auth = Some(choice);
        }
        self.all(self.publish_discovery(), "set the authentication of a portal group").await.map(drop)
    }

    pub(super) fn portal_group(&self, tag: u32) -> Result<PortalGroupState, TargetError> {
        let state = self.0.state.borrow();
        let group = u16::try_from(tag).ok().and_then(|tag| state.portal_groups.get(&tag));
        group.cloned().ok_or_else(|| TargetError::no_portal_group(tag))
    }

    fn check_new_portals(&self, tag: u16, portals: &[SocketAddr]) -> Result<(), TargetError> {
        let state = self.0.state.borrow();
        if state.portal_groups.contains_key(&tag) {
            return Err(TargetError::Exists { what: format!("portal group {tag}") });
        }
        if state.portal_groups.len() >= GROUPS_MAX {
            return Err(TargetError::Full { what: "portal groups".to_owned(), max: GROUPS_MAX });
        }
        if portals.is_empty() {
            return Err(TargetError::invalid("portals", "empty", "a list with one address at least"));
        }
        let known: Vec<SocketAddr> =
            state.portal_groups.values().flat_map(|group| group.portals.iter().copied()).collect();
        if known.len() + portals.len() > PORTALS_MAX {
            return Err(TargetError::Full { what: "portals".to_owned(), max: PORTALS_MAX });
        }
        for (at, addr) in portals.iter().enumerate() {
            let twice = portals.iter().take(at).any(|other| other == addr);
            if addr.port() != 0 && (twice || known.contains(addr)) {
                return Err(TargetError::Exists { what: format!("a portal {addr}") });
            }
        }
        Ok(())
    }

    /// Listens on all portals of a group, or on none.
    async fn listen(&self, tag: u16) -> Result<(), TargetError> {
        let wanted = self.portal_group(tag.into())?.portals;
        let mut got = Vec::new();
        for addr in wanted {
            match self.listen_on(addr, tag).await {
                Ok(addr) => got.push(addr),
                Err(error) => {
                    self.unlisten(&got).await?;
                    return Err(error);
                }
            }
        }
        let affected = {
            let mut state = self.0.state.borrow_mut();
            if let Some(group) = state.portal_groups.get_mut(&tag) {
                group.portals = got;
                group.started = true;
            }
            let uses = |node: &super::Node| node.maps.iter().any(|(pg, _)| *pg == tag);
            let affected = state.nodes.iter().filter(|(_, node)| uses(node)).map(|(name, _)| *name);
            affected.collect::<Vec<_>>()
        };
        // Discovery shows the ports that were picked.
        for name in affected {
            self.all(self.publish_node(&name), "tell of a portal group").await?;
        }
        Ok(())
    }

    async fn listen_on(&self, wanted: SocketAddr, tag: u16) -> Result<SocketAddr, TargetError> {
        let what = format!("listen on {wanted} (portal group {tag})");
        let at = usize::from(tag) % self.0.reactors.len().max(1);
        let Some(handle) = self.0.reactors.get(at) else {
            return Err(TargetError::reactor(what)(ReactorError::Gone { reactor: ReactorId(0) }));
        };
        let listening = handle
            .call(move |cx| match GroupCell::of(cx) {
                Some(cell) => cell.listen(wanted, tag),
                None => Err(ReactorError::Gone { reactor: cx.id() }),
            })
            .await;
        listening.and_then(|addr| addr).map_err(TargetError::reactor(what))
    }

    async fn unlisten(&self, portals: &[SocketAddr]) -> Result<(), TargetError> {
        let portals = portals.to_vec();
        let closed = self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                for addr in &portals {
                    cell.unlisten(*addr);
                }
            }
        });
        self.all(closed, "stop listening").await.map(drop)
    }
}
