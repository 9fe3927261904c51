//! Target nodes: made, changed, deleted; their LUNs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use penstock_bdev::Shared;
use penstock_reactor::Answers;
use penstock_reactor::stat::Histogram;
use penstock_scsi::{Limits, LuConfig, LuId, LuOwner, PortGroup};
use penstock_spec::iscsi::IscsiName;
use penstock_spec::scsi::report::AccessState;

use super::params::address;
use super::portals::pg_tag;
use super::{AuthChoice, NewLun, NewTargetNode, State, Target, TargetError};
use crate::config::{Latencies, LunConfig, MAPS_MAX, TARGETS_MAX, TRANSFER_BYTES_MAX, TargetConfig};
use crate::group::GroupCell;

/// LUNs of one target node at most.
const LUNS_MAX: usize = 256;
/// TargetAlias has so many bytes at most (RFC 7143, 13.5).
const ALIAS_BYTES_MAX: usize = 255;
/// Commands of one session under way at most.
const QUEUE_DEPTH_MAX: u16 = 1024;

/// A LUN.
#[derive(Debug, Clone)]
pub(super) struct NodeLun {
    pub(super) lu: LuId,
    pub(super) bdev: Arc<Shared>,
    /// Tags of the initiator groups that see it; empty: all do.
    pub(super) seen_by: Vec<u32>,
}

/// A target node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) alias: String,
    /// Tags of portal groups and initiator groups, in order.
    pub(super) maps: Vec<(u16, u32)>,
    pub(super) luns: BTreeMap<u16, NodeLun>,
    pub(super) auth: AuthChoice,
    pub(super) queue_depth: u16,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// Where logins at a portal group are sent.
    pub(super) redirects: BTreeMap<u16, SocketAddr>,
    /// How long its commands take, where somebody wants to know.
    pub(super) latencies: Option<Arc<Latencies>>,
}

impl Node {
    /// One target port and one target port group for each portal group.
    fn port_groups(&self) -> Vec<PortGroup> {
        let mut tags: Vec<u16> = self.maps.iter().map(|(pg, _)| *pg).collect();
        tags.sort_unstable();
        tags.dedup();
        let group = |tag| PortGroup {
            id: tag,
            state: AccessState::ACTIVE_OPTIMIZED,
            preferred: false,
            ports: vec![tag],
        };
        tags.into_iter().map(group).collect()
    }
}

impl State {
    /// A target node as reactors know it.
    pub(super) fn target_config(&self, name: &IscsiName) -> Option<TargetConfig> {
        let node = self.nodes.get(name)?;
        let map = |(pg, ig): &(u16, u32)| {
            let portals = self.portal_groups.get(pg)?.config(*pg);
            Some((portals, (**self.initiator_groups.get(ig)?).clone()))
        };
        let group = |tag: &u32| self.initiator_groups.get(tag).cloned();
        let lun = |(lun, config): (&u16, &NodeLun)| LunConfig {
            lun: *lun,
            lu: config.lu,
            seen_by: config.seen_by.iter().filter_map(group).collect(),
        };
        Some(TargetConfig {
            name: *name,
            alias: node.alias.clone(),
            maps: node.maps.iter().filter_map(map).collect(),
            luns: node.luns.iter().map(lun).collect(),
            auth: self.policy(node.auth),
            queue_depth: node.queue_depth,
            header_digest: node.header_digest,
            data_digest: node.data_digest,
            redirects: node.redirects.clone(),
            latencies: node.latencies.clone(),
        })
    }
}

impl Target {
    /// `iscsi_create_target_node`.
    ///
    /// # Errors
    /// A name that is taken or none, groups that are not there, a bdev that cannot be had; then there is no target.
    pub async fn create_target_node(&self, new: &NewTargetNode) -> Result<(), TargetError> {
        let name = self.node_name(&new.name)?;
        self.check_auth(new.auth)?;
        if new.alias_name.len() > ALIAS_BYTES_MAX || new.alias_name.contains('\0') {
            let value = format!("{} bytes", new.alias_name.len());
            return Err(TargetError::invalid("alias_name", value, format!("up to {ALIAS_BYTES_MAX} bytes")));
        }
        if new.queue_depth == 0 || new.queue_depth > QUEUE_DEPTH_MAX {
            let allowed = format!("1 to {QUEUE_DEPTH_MAX}");
            return Err(TargetError::invalid("queue_depth", new.queue_depth, allowed));
        }
        let maps = self.check_maps(&new.pg_ig_maps, &[])?;
        let node = Node {
            alias: new.alias_name.clone(),
            maps,
            luns: BTreeMap::new(),
            auth: new.auth,
            queue_depth: new.queue_depth,
            header_digest: new.header_digest,
            data_digest: new.data_digest,
            redirects: BTreeMap::new(),
            latencies: None,
        };
        {
            let mut state = self.0.state.borrow_mut();
            if state.nodes.contains_key(&name) {
                return Err(TargetError::Exists { what: format!("target node {name}") });
            }
            if state.nodes.len() >= TARGETS_MAX {
                return Err(TargetError::Full { what: "target nodes".to_owned(), max: TARGETS_MAX });
            }
            state.nodes.insert(name, node);
        }
        self.start().await?;
        for lun in &new.luns {
            // Nobody can log in before all its LUNs are there: the reactors do not know it yet.
            if let Err(error) = self.add_lun_to(&name, lun, false).await {
                self.delete_target_node(name.as_str()).await?;
                return Err(error);
            }
        }
        self.all(self.publish_node(&name), "create a target node").await.map(drop)
    }

    /// `iscsi_delete_target_node`: its sessions end, its bdevs are let go.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; [`TargetError::TimedOut`] when sessions or I/O do not end.
    pub async fn delete_target_node(&self, name: &str) -> Result<(), TargetError> {
        let (name, node) = self.node(name)?;
        self.0.state.borrow_mut().nodes.remove(&name);
        let mut answers = self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.remove_target(cx, &name);
            }
        });
        self.all(std::mem::take(&mut answers), "delete a target node").await?;
        // Sessions use the LUNs until they are logged out.
        let what = format!("the sessions of target {name}");
        let ended = self.wait_until(&what, move |cell| !cell.has_connection(Some(&name), None)).await;
        let lus: Vec<LuId> = node.luns.values().map(|lun| lun.lu).collect();
        drop(node);
        for lu in &lus {
            answers.extend(self.let_go(*lu));
        }
        self.all(answers, "delete a target node").await?;
        ended?;
        let what = format!("the I/O of target {name}");
        self.wait_until(&what, move |cell| !lus.iter().any(|lu| cell.uses_lu(*lu))).await
    }

    /// `iscsi_target_node_add_lun`; returns its number. Initiators are told.
    ///
    /// # Errors
    /// A bdev that cannot be had, a number that is taken or cannot be; [`TargetError::Unusable`] when a reactor cannot
    /// use the bdev: then the LUN is gone again.
    pub async fn add_lun(&self, name: &str, new: &NewLun) -> Result<u16, TargetError> {
        let (name, _) = self.node(name)?;
        self.add_lun_to(&name, new, true).await
    }

    async fn add_lun_to(&self, name: &IscsiName, new: &NewLun, publish: bool) -> Result<u16, TargetError> {
        let (_, node) = self.node(name.as_str())?;
        let lun = free_lun(name, &node, new.lun_id)?;
        for tag in &new.ig_tags {
            self.initiator_group(*tag)?;
        }
        let owner = self.make_lu(name, &node, &new.bdev_name)?;
        let lu = owner.view().config.id;
        let bdev = Arc::clone(owner.view().config.descriptor.shared());
        // The reactors know the logical unit before the target that has it.
        self.0.host.borrow_mut().add(owner);
        if let Some(node) = self.0.state.borrow_mut().nodes.get_mut(name) {
            node.luns.insert(lun, NodeLun { lu, bdev, seen_by: new.ig_tags.clone() });
        }
        let what = "add a LUN";
        let looked = self.0.reactors.tell(move |cx| GroupCell::of(cx).and_then(|cell| cell.unusable(lu)));
        let mut answers = if publish { self.publish_node(name) } else { Answers::default() };
        let reason = self.all(looked, what).await?.into_iter().flatten().next();
        if let Some(reason) = reason {
            if let Some(node) = self.0.state.borrow_mut().nodes.get_mut(name) {
                node.luns.remove(&lun);
            }
            answers.extend(if publish { self.publish_node(name) } else { Answers::default() });
            answers.extend(self.let_go(lu));
            self.all(answers, what).await?;
            let (bdev, target) = (new.bdev_name.clone(), name.to_string());
            return Err(TargetError::Unusable { name: bdev, lun, target, reason });
        }
        self.all(answers, what).await?;
        Ok(lun)
    }

    fn make_lu(&self, name: &IscsiName, node: &Node, bdev_name: &str) -> Result<LuOwner, TargetError> {
        let target = name.to_string();
        let bdev = |source| TargetError::Bdev { name: bdev_name.to_owned(), target: target.clone(), source };
        let descriptor = self.0.registry.export(bdev_name, &format!("iSCSI target {name}")).map_err(bdev)?;
        let reservations = self.0.book.of(descriptor.shared().uuid()).map_err(|source| {
            TargetError::Reservations { name: bdev_name.to_owned(), target: target.clone(), source }
        })?;
        let id = {
            let mut state = self.0.state.borrow_mut();
            state.last_lu += 1;
            LuId(state.last_lu)
        };
        let mut config = LuConfig::new(id, descriptor, name.as_str());
        config.groups = node.port_groups();
        config.limits = limits(config.descriptor.shared().block_bytes());
        Ok(LuOwner::new(Arc::new(config), reservations, self.0.book.store()))
    }

    /// Takes a LUN away; initiators are told. Returns when none of its I/O is under way.
    ///
    /// # Errors
    /// [`TargetError::Missing`]; [`TargetError::TimedOut`] when I/O does not end.
    pub async fn remove_lun(&self, name: &str, lun: u16) -> Result<(), TargetError> {
        let (name, _) = self.node(name)?;
        let lu = self.change_lun(&name, lun, |luns| luns.remove(&lun).map(|lun| lun.lu))?;
        let mut answers = self.publish_node(&name);
        answers.extend(self.let_go(lu));
        self.all(answers, "remove a LUN").await?;
        let what = format!("the I/O of LUN {lun} of target {name}");
        self.wait_until(&what, move |cell| !cell.uses_lu(lu)).await
    }

    /// Shows a LUN to the initiators of these groups only, or to all where there are none.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub async fn set_lun_initiators(&self, name: &str, lun: u16, ig_tags: &[u32]) -> Result<(), TargetError> {
        let (name, _) = self.node(name)?;
        for tag in ig_tags {
            self.initiator_group(*tag)?;
        }
        self.change_lun(&name, lun, |luns| luns.get_mut(&lun).map(|lun| lun.seen_by = ig_tags.to_vec()))?;
        self.all(self.publish_node(&name), "set the initiators of a LUN").await.map(drop)
    }

    fn change_lun<R>(
        &self,
        name: &IscsiName,
        lun: u16,
        change: impl FnOnce(&mut BTreeMap<u16, NodeLun>) -> Option<R>,
    ) -> Result<R, TargetError> {
        let mut state = self.0.state.borrow_mut();
        let node = state.nodes.get_mut(name).ok_or_else(|| TargetError::no_target(name.as_str()))?;
        change(&mut node.luns).ok_or_else(|| TargetError::Missing {
            what: format!("LUN {lun} in target node {name}"),
            list: "iscsi_get_target_nodes",
        })
    }

    /// `iscsi_target_node_add_pg_ig_maps`.
    ///
    /// # Errors
    /// [`TargetError::Missing`], a map that is there already.
    pub async fn add_pg_ig_maps(&self, name: &str, maps: &[(u32, u32)]) -> Result<(), TargetError> {
        let (name, node) = self.node(name)?;
        let maps = self.check_maps(maps, &node.maps)?;
        if let Some(node) = self.0.state.borrow_mut().nodes.get_mut(&name) {
            node.maps.extend(maps);
        }
        self.update_ports(&name);
        self.all(self.publish_node(&name), "add maps to a target node").await.map(drop)
    }

    /// `iscsi_target_node_remove_pg_ig_maps`: initiators that may not come any more lose their sessions.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub async fn remove_pg_ig_maps(&self, name: &str, maps: &[(u32, u32)]) -> Result<(), TargetError> {
        let (name, node) = self.node(name)?;
        let mut left = node.maps;
        for (pg, ig) in maps {
            let at = left.iter().position(|(known, group)| u32::from(*known) == *pg && group == ig);
            let at = at.ok_or_else(|| TargetError::Missing {
                what: format!("map {pg}:{ig} in target node {name}"),
                list: "iscsi_get_target_nodes",
            })?;
            left.remove(at);
        }
        if let Some(node) = self.0.state.borrow_mut().nodes.get_mut(&name) {
            node.redirects.retain(|pg, _| left.iter().any(|(known, _)| known == pg));
            node.maps = left;
        }
        self.update_ports(&name);
        self.all(self.publish_node(&name), "remove maps from a target node").await.map(drop)
    }

    /// `iscsi_target_node_set_auth`: holds for sessions that begin from now on.
    ///
    /// # Errors
    /// [`TargetError::Missing`], a choice that makes no sense.
    pub async fn target_node_set_auth(&self, name: &str, choice: AuthChoice) -> Result<(), TargetError> {
        let (name, _) = self.node(name)?;
        self.check_auth(choice)?;
        if let Some(node) = self.0.state.borrow_mut().nodes.get_mut(&name) {
            node.auth = choice;
        }
        self.all(self.publish_node(&name), "set the authentication of a target node").await.map(drop)
    }

    /// `iscsi_target_node_set_redirect`: sends logins at a public portal group elsewhere, or takes them again.
    ///
    /// # Errors
    /// [`TargetError::Missing`], an address that makes no sense.
    pub async fn set_redirect(
        &self,
        name: &str,
        pg: u32,
        host: Option<&str>,
        port: Option<&str>,
    ) -> Result<(), TargetError> {
        let (name, node) = self.node(name)?;
        let group = self.portal_group(pg)?;
        let tag = pg_tag(pg)?;
        if !node.maps.iter().any(|(known, _)| *known == tag) {
            let what = format!("map of portal group {pg} in target node {name}");
            return Err(TargetError::Missing { what, list: "iscsi_get_target_nodes" });
        }
        let redirect = match (host, port) {
            (None, None) => None,
            (Some(host), Some(_)) => Some(address("redirect_host", host, "redirect_port", port)?),
            (Some(_), None) => return Err(TargetError::invalid("redirect_port", "left out", "there")),
            (None, Some(_)) => return Err(TargetError::invalid("redirect_host", "left out", "there")),
        };
        if let Some(addr) = redirect {
            if group.private {
                let allowed = "a public portal group: initiators are sent from there to private ones";
                return Err(TargetError::invalid("pg_tag", pg, allowed));
            }
            if addr.port() == 0 || addr.ip().is_unspecified() || group.portals.contains(&addr) {
                let allowed = format!("the address of a portal outside of portal group {pg}");
                return Err(TargetError::invalid("redirect_host", addr, allowed));
            }
        }
        if let Some(node) = self.0.state.borrow_mut().nodes.get_mut(&name) {
            match redirect {
                Some(addr) => node.redirects.insert(tag, addr),
                None => node.redirects.remove(&tag),
            };
        }
        self.all(self.publish_node(&name), "redirect a target node").await.map(drop)
    }

    /// `iscsi_enable_histogram`: begins to count how long a target's commands take, anew, or ends it.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub async fn enable_histogram(&self, name: &str, enable: bool) -> Result<(), TargetError> {
        let (name, _) = self.node(name)?;
        let reactors = self.0.common.peers.len();
        if let Some(node) = self.0.state.borrow_mut().nodes.get_mut(&name) {
            node.latencies = enable.then(|| Arc::new(Latencies::new(reactors)));
        }
        self.all(self.publish_node(&name), "count the latencies of a target node").await.map(drop)
    }

    /// `iscsi_get_histogram`: how long a target's commands have taken since that was asked for, in nanoseconds; `None`
    /// where it was not.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub fn histogram(&self, name: &str) -> Result<Option<Histogram>, TargetError> {
        let (_, node) = self.node(name)?;
        Ok(node.latencies.map(|latencies| latencies.total()))
    }

    /// `iscsi_target_node_request_logout`: asks initiators to log out, by one portal group or by all; those that do not
    /// are cut off. They may come again at once: to where a redirect sends them.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub async fn request_logout(&self, name: &str, pg: Option<u32>) -> Result<(), TargetError> {
        let (name, _) = self.node(name)?;
        let tag = pg.map(pg_tag).transpose()?;
        if let Some(pg) = pg {
            self.portal_group(pg)?;
        }
        let asked = self.0.reactors.tell(move |cx| {
            if let Some(cell) = GroupCell::of(cx) {
                cell.request_logout(cx, &name, tag);
            }
        });
        self.all(asked, "request a logout").await.map(drop)
    }

    /// Tells the logical units of a target node of its ports.
    pub(super) fn update_ports(&self, name: &IscsiName) {
        let Ok((_, node)) = self.node(name.as_str()) else { return };
        let groups = node.port_groups();
        for lun in node.luns.values() {
            self.0.host.borrow_mut().change(lun.lu, |owner| owner.set_groups(groups.clone()));
        }
    }

    /// The whole name of a target.
    fn node_name(&self, name: &str) -> Result<IscsiName, TargetError> {
        let typed = ["iqn.", "eui.", "naa."].iter().any(|kind| name.to_ascii_lowercase().starts_with(kind));
        let whole = match typed {
            true => name.to_owned(),
            false => format!("{}:{name}", self.0.state.borrow().options.node_base),
        };
        whole.parse().map_err(|source| TargetError::Name { parameter: "name", name: whole.clone(), source })
    }

    fn node(&self, name: &str) -> Result<(IscsiName, Node), TargetError> {
        let whole = self.node_name(name).map_err(|_| TargetError::no_target(name))?;
        let node = self.0.state.borrow().nodes.get(&whole).cloned();
        node.map(|node| (whole, node)).ok_or_else(|| TargetError::no_target(name))
    }

    /// Whether the groups of new maps are there and the maps are not.
    fn check_maps(&self, maps: &[(u32, u32)], known: &[(u16, u32)]) -> Result<Vec<(u16, u32)>, TargetError> {
        let mut checked: Vec<(u16, u32)> = Vec::new();
        for (pg, ig) in maps {
            self.portal_group(*pg)?;
            self.initiator_group(*ig)?;
            let map = (pg_tag(*pg)?, *ig);
            if known.contains(&map) || checked.contains(&map) {
                return Err(TargetError::Exists { what: format!("map {pg}:{ig}") });
            }
            checked.push(map);
        }
        if known.len() + checked.len() > MAPS_MAX {
            return Err(TargetError::Full { what: "maps of the target node".to_owned(), max: MAPS_MAX });
        }
        Ok(checked)
    }
}

/// What one command may ask for. COMPARE AND WRITE has as much again to compare with.
fn limits(block_bytes: u32) -> Limits {
    let default = Limits::default();
    let blocks = TRANSFER_BYTES_MAX / 2 / block_bytes.max(1);
    let compare_and_write_blocks_max =
        u8::try_from(blocks).unwrap_or(u8::MAX).min(default.compare_and_write_blocks_max);
    Limits { transfer_bytes_max: TRANSFER_BYTES_MAX, compare_and_write_blocks_max, ..default }
}

/// The LUN asked for, or the first that is free.
fn free_lun(name: &IscsiName, node: &Node, wanted: Option<u16>) -> Result<u16, TargetError> {
    if node.luns.len() >= LUNS_MAX {
        return Err(TargetError::Full { what: format!("LUNs of target node {name}"), max: LUNS_MAX });
    }
    let Some(wanted) = wanted else {
        let free = (0..16_384).find(|lun| !node.luns.contains_key(lun));
        return free.ok_or(TargetError::Full { what: format!("LUNs of target node {name}"), max: LUNS_MAX });
    };
    if wanted > 16_383 {
        return Err(TargetError::invalid("lun_id", wanted, "0 to 16383"));
    }
    if node.luns.contains_key(&wanted) {
        return Err(TargetError::Exists { what: format!("LUN {wanted} of target node {name}") });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With blocks of 4 KiB, 255 blocks to compare and as many to write once waited for ever for a buffer of 2 MiB.
    #[test]
    fn the_data_of_every_command_fit_into_what_one_may_have() {
        for block_bytes in [512, 4096, 65_536] {
            let limits = limits(block_bytes);
            let compared = u32::from(limits.compare_and_write_blocks_max) * block_bytes * 2;
            assert!(compared > 0 && compared.max(limits.transfer_bytes_max) <= TRANSFER_BYTES_MAX);
        }
        assert_eq!(limits(512).compare_and_write_blocks_max, 255);
        assert_eq!(limits(4096).compare_and_write_blocks_max, 255);
        assert_eq!(limits(65_536).compare_and_write_blocks_max, 64);
    }
}
