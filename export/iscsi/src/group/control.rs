//! What the control thread asks of a reactor's group: new configurations, ends of sessions, and looks.

use std::net::SocketAddr;
use std::sync::Arc;

use penstock_reactor::Cx;
use penstock_scsi::LuId;
use penstock_spec::iscsi::{IscsiName, LoginStatus};

use super::{Group, GroupCell};
use crate::config::{DiscoveryConfig, IscsiOptions, TargetConfig};
use crate::conn::ConnState;

/// What a group has counted since it was started, and what it has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Connections now.
    pub connections: u64,
    /// Of those, connections whose login is not over.
    pub half_open: u64,
    /// Of those, connections that are ending.
    pub exiting: u64,
    /// Connections that were closed and wait for I/O.
    pub exited: u64,
    /// Connections that were taken in.
    pub accepted: u64,
    /// Connections that were turned away: a limit, or no descriptors.
    pub refused: u64,
    /// Logins that succeeded.
    pub logins: u64,
    /// Logins that were refused for any reason but those below.
    pub login_failures: u64,
    /// Logins without the proof that was asked for.
    pub auth_failures: u64,
    /// Logins that were sent elsewhere.
    pub redirects: u64,
    /// Connections that were closed because nothing came.
    pub timed_out: u64,
}

impl GroupStats {
    pub(super) fn note_refusal(&mut self, status: Option<LoginStatus>) {
        match status {
            None => {}
            Some(LoginStatus::AUTHENTICATION_FAILURE) => self.auth_failures += 1,
            Some(LoginStatus::MOVED_TEMPORARILY) => self.redirects += 1,
            Some(_) => self.login_failures += 1,
        }
    }
}

/// One connection, for those who ask.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Its place in the reactor's table.
    pub id: u32,
    /// Connection identifier.
    pub cid: u16,
    /// TSIH; 0 before the login is over.
    pub tsih: u16,
    /// TargetPortalGroupTag.
    pub tpgt: u16,
    /// Whether the login is over.
    pub full_feature: bool,
    /// Whether it is ending.
    pub exiting: bool,
    /// InitiatorName, once it is known.
    pub initiator: Option<IscsiName>,
    /// TargetName; `None`: not known yet, or a discovery session.
    pub target: Option<IscsiName>,
    /// The initiator's address.
    pub initiator_addr: SocketAddr,
    /// Ours.
    pub target_addr: SocketAddr,
}

impl GroupCell {
    /// Takes over a new generation of a target node; its sessions see its LUNs from now on. Sessions of initiators that
    /// it does not admit any more are ended.
    pub fn apply(&self, config: &Arc<TargetConfig>) {
        self.0.borrow_mut().apply(config);
    }

    /// Forgets a target node and ends its sessions.
    pub fn remove_target(&self, cx: &Cx, name: &IscsiName) {
        let mut group = self.0.borrow_mut();
        group.core.now = cx.now();
        group.core.remove_target(name);
        group.wind_up_where(|target, _| target == Some(*name));
    }

    /// Asks the initiators of a target's sessions to log out, at one portal group or at all.
    pub fn request_logout(&self, cx: &Cx, name: &IscsiName, tpgt: Option<u16>) {
        let mut group = self.0.borrow_mut();
        group.core.now = cx.now();
        group.wind_up_where(|target, at| target == Some(*name) && tpgt.is_none_or(|tpgt| tpgt == at));
    }

    /// Ends all connections that came by a portal group.
    pub fn disconnect_portal_group(&self, cx: &Cx, tpgt: u16) {
        let mut group = self.0.borrow_mut();
        group.core.now = cx.now();
        group.wind_up_where(|_, at| at == tpgt);
    }

    /// Takes over settings: they hold for sessions that begin from now on.
    pub fn set_options(&self, options: &Arc<IscsiOptions>) {
        self.0.borrow_mut().core.common.options = Arc::clone(options);
    }

    /// Takes over how discovery is authenticated.
    pub fn set_discovery(&self, discovery: &Arc<DiscoveryConfig>) {
        self.0.borrow_mut().core.set_discovery(discovery);
    }

    /// Forgets a logical unit; over when [`Self::uses_lu`] is false.
    pub fn remove_lu(&self, lu: LuId) {
        let mut group = self.0.borrow_mut();
        let mut again = Vec::new();
        group.core.remove_lu(lu, &mut again);
        group.again.extend(again);
    }

    /// Whether I/O of a logical unit may be under way.
    #[must_use]
    pub fn uses_lu(&self, lu: LuId) -> bool {
        self.0.borrow().core.uses_lu(lu)
    }

    /// Why this reactor cannot use a logical unit's bdev.
    #[must_use]
    pub fn unusable(&self, lu: LuId) -> Option<String> {
        self.0.borrow().core.unusable(lu)
    }

    /// Whether there is a connection to a target, or at a portal group.
    #[must_use]
    pub fn has_connection(&self, target: Option<&IscsiName>, tpgt: Option<u16>) -> bool {
        let group = self.0.borrow();
        let mut alive = group.entries.iter().flatten().filter(|entry| !entry.gone);
        alive.any(|entry| {
            let to = entry.conn.key.and_then(|key| key.target);
            target.is_none_or(|name| to == Some(*name)) && tpgt.is_none_or(|tpgt| tpgt == entry.conn.tpgt)
        })
    }

    /// All connections.
    #[must_use]
    pub fn connection_list(&self) -> Vec<ConnectionInfo> {
        let group = self.0.borrow();
        let alive = group.entries.iter().flatten().zip(0..).filter(|(entry, _)| !entry.gone);
        alive
            .map(|(entry, id)| {
                let conn = &entry.conn;
                ConnectionInfo {
                    id,
                    cid: conn.cid(),
                    tsih: conn.tsih,
                    tpgt: conn.tpgt,
                    full_feature: conn.state() == ConnState::Full,
                    exiting: entry.winding_up,
                    initiator: conn.key.map(|key| key.initiator),
                    target: conn.key.and_then(|key| key.target),
                    initiator_addr: conn.addr,
                    target_addr: conn.local,
                }
            })
            .collect()
    }

    /// What the group has counted.
    #[must_use]
    pub fn stats(&self) -> GroupStats {
        let group = self.0.borrow();
        let mut stats = group.core.stats;
        stats.half_open = group.half_open.into();
        for entry in group.entries.iter().flatten() {
            match (entry.gone, entry.winding_up) {
                (true, _) => stats.exited += 1,
                (false, true) => stats.exiting += 1,
                (false, false) => {}
            }
            stats.connections += u64::from(!entry.gone);
        }
        stats
    }
}

impl Group {
    fn apply(&mut self, config: &Arc<TargetConfig>) {
        self.core.set_target(config);
        for session in self.core.sessions.values().filter(|session| session.key.target == Some(config.name)) {
            session.set_latencies(config.latencies.as_ref(), self.core.index);
        }
        let mut told: Vec<u16> = Vec::new();
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { continue };
            let Some(key) = entry.conn.key.filter(|key| key.target == Some(config.name)) else { continue };
            let (tpgt, addr) = (entry.conn.tpgt, entry.conn.addr.ip());
            let luns = self.core.views_of(config, &key.initiator, addr);
            let first = !told.contains(&entry.conn.tsih) && !entry.gone;
            let session = entry.conn.session.clone().filter(|_| first);
            if let Some(session) = session
                && let Some(mut nexus) = session.nexus()
            {
                told.push(session.tsih);
                if nexus.apply_luns(&luns) && entry.conn.state() == ConnState::Full {
                    entry.conn.push_luns_changed(luns.first().map_or(0, |(lun, _)| *lun));
                    self.touch(index);
                }
            }
            if !config.admits(tpgt, &key.initiator, addr) {
                self.wind_up(index);
            }
        }
    }

    fn wind_up_where(&mut self, which: impl Fn(Option<IscsiName>, u16) -> bool) {
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(entry) = self.entries.get(index as usize).and_then(Option::as_ref) else { continue };
            if which(entry.conn.key.and_then(|key| key.target), entry.conn.tpgt) {
                self.wind_up(index);
            }
        }
    }
}
