//! What is configured, as immutable snapshots that reactors share.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use penstock_bdev::Sg;
use penstock_reactor::mem::BUF_BYTES_MAX;
use penstock_reactor::stat::Histogram;
use penstock_scsi::LuId;
use penstock_spec::iscsi::IscsiName;

use crate::auth::AuthPolicy;

/// Target nodes of one process at most.
pub const TARGETS_MAX: usize = 1024;
/// Portals at most.
pub const PORTALS_MAX: usize = 256;
/// Portal groups, initiator groups and authentication groups at most, of each.
pub const GROUPS_MAX: usize = 1024;
/// Initiators, and networks, of one initiator group at most.
pub const INITIATORS_MAX: usize = 1024;
/// Secrets of one authentication group at most.
pub const SECRETS_MAX: usize = 1024;
/// Maps of one target node at most.
pub const MAPS_MAX: usize = 256;
/// Bytes that one command moves at most: MAXIMUM TRANSFER LENGTH. Its data lie in buffers of [`BUF_BYTES_MAX`] bytes.
pub const TRANSFER_BYTES_MAX: u32 = 8 << 20;

const _: () = assert!(
    TRANSFER_BYTES_MAX as usize <= BUF_BYTES_MAX * (Sg::SEGMENTS_MAX / 4),
    "what a command reads, writes and compares fits into one list of buffers"
);

/// Settings of the target, the same on all reactors; names as in SPDK's `iscsi_set_options` where it has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiOptions {
    /// Commands of one session under way at most: the command window.
    pub max_queue_depth: u16,
    /// FirstBurstLength that is offered, in bytes.
    pub first_burst_length: u32,
    /// MaxBurstLength that is offered, in bytes.
    pub max_burst_length: u32,
    /// MaxRecvDataSegmentLength that is declared, in bytes.
    pub max_recv_data_segment_length: u32,
    /// MaxOutstandingR2T that is offered.
    pub max_r2t_per_connection: u16,
    /// Whether immediate data are taken.
    pub immediate_data: bool,
    /// DefaultTime2Wait, in seconds.
    pub default_time2wait: u16,
    /// DefaultTime2Retain, in seconds.
    pub default_time2retain: u16,
    /// How long an initiator may be silent before it is asked whether it is still there, in seconds; 0: never asked.
    pub nop_in_interval: u16,
    /// How long the answer may take, in seconds.
    pub nop_timeout: u16,
    /// How long a login may take, in seconds.
    pub login_timeout: u16,
    /// Sessions of the process at most.
    pub max_sessions: u32,
    /// Connections of one session at most: MaxConnections that is offered.
    pub max_connections_per_session: u16,
    /// Bytes in data buffers that the connections of one reactor may hold at once.
    pub buffer_bytes_max: u64,
    /// Connections of one reactor at most.
    pub connections_max: u32,
    /// Of those, connections whose login is not over at most.
    pub half_open_max: u32,
}

impl Default for IscsiOptions {
    fn default() -> Self {
        Self {
            max_queue_depth: 128,
            first_burst_length: 64 << 10,
            max_burst_length: 1 << 20,
            max_recv_data_segment_length: 256 << 10,
            max_r2t_per_connection: 4,
            immediate_data: true,
            default_time2wait: 2,
            default_time2retain: 0,
            nop_in_interval: 30,
            nop_timeout: 60,
            login_timeout: 15,
            max_sessions: 4096,
            max_connections_per_session: 2,
            buffer_bytes_max: 256 << 20,
            connections_max: 4096,
            half_open_max: 512,
        }
    }
}

const _: () = {
    let defaults = 64 << 10 <= 1 << 20;
    assert!(defaults, "FirstBurstLength is at most MaxBurstLength");
};

/// One line of an initiator group: whom it is about, and whether they may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitiatorRule {
    /// The name; [`None`] is any.
    pub name: Option<IscsiName>,
    /// They may not.
    pub deny: bool,
}

impl InitiatorRule {
    /// Any initiator may come.
    pub const ANY: Self = Self { name: None, deny: false };
}

/// Which initiators may come from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitiatorGroup {
    /// Its tag.
    pub tag: u32,
    /// Names; the first that fits counts.
    pub initiators: Vec<InitiatorRule>,
    /// Networks; [`None`] is any.
    pub netmasks: Vec<Option<Netmask>>,
}

impl InitiatorGroup {
    /// Any initiator from anywhere.
    #[must_use]
    pub fn any(tag: u32) -> Self {
        Self { tag, initiators: vec![InitiatorRule::ANY], netmasks: vec![None] }
    }

    /// Whether an initiator of that name and address is one of it; `None`: the group does not name it.
    #[must_use]
    pub fn verdict(&self, name: &IscsiName, addr: IpAddr) -> Option<bool> {
        let rule = self.initiators.iter().find(|rule| rule.name.is_none_or(|known| known == *name))?;
        if rule.deny {
            return Some(false);
        }
        self.netmasks.iter().any(|mask| mask.is_none_or(|mask| mask.contains(addr))).then_some(true)
    }

    /// Whether an initiator of that name and address is one of it.
    #[must_use]
    pub fn admits(&self, name: &IscsiName, addr: IpAddr) -> bool {
        self.verdict(name, addr) == Some(true)
    }
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Netmask {
    /// Any address of it.
    pub addr: IpAddr,
    /// Bits that all addresses of it share.
    pub prefix: u8,
}

impl Netmask {
    /// Whether the address is in the network. An IPv4 address mapped into IPv6 is an IPv4 address.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        let bits = |addr: IpAddr| match addr.to_canonical() {
            IpAddr::V4(addr) => (32, u128::from(u32::from(addr)) << 96),
            IpAddr::V6(addr) => (128, u128::from(addr)),
        };
        let ((family, mine), (other, theirs)) = (bits(self.addr), bits(addr));
        let shift = 128_u32.saturating_sub(self.prefix.into());
        family == other && (mine ^ theirs).checked_shr(shift).unwrap_or(0) == 0
    }
}

/// A portal group as a target shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalGroup {
    /// TargetPortalGroupTag: 1..=65535.
    pub tag: u16,
    /// Addresses listened on.
    pub portals: Vec<SocketAddr>,
    /// Discovery does not tell of it: initiators get there by redirection.
    pub private: bool,
}

/// A logical unit of a target node.
#[derive(Debug, Clone)]
pub struct LunConfig {
    /// LOGICAL UNIT NUMBER: 0..=16383.
    pub lun: u16,
    /// Which.
    pub lu: LuId,
    /// Only initiators of these groups see it; empty: all do.
    pub seen_by: Vec<Arc<InitiatorGroup>>,
}

impl LunConfig {
    /// A logical unit that every initiator of the target sees.
    #[must_use]
    pub fn new(lun: u16, lu: LuId) -> Self {
        Self { lun, lu, seen_by: Vec::new() }
    }

    /// Whether that initiator sees it.
    #[must_use]
    pub fn is_seen_by(&self, name: &IscsiName, addr: IpAddr) -> bool {
        self.seen_by.is_empty() || self.seen_by.iter().any(|group| group.admits(name, addr))
    }
}

/// Authentication of discovery sessions.
#[derive(Debug, Clone, Default)]
pub struct DiscoveryConfig {
    /// Where a portal group says nothing else.
    pub auth: AuthPolicy,
    /// By portal group.
    pub by_portal_group: BTreeMap<u16, AuthPolicy>,
}

impl DiscoveryConfig {
    /// What holds at a portal group.
    #[must_use]
    pub fn auth_at(&self, tpgt: u16) -> &AuthPolicy {
        self.by_portal_group.get(&tpgt).unwrap_or(&self.auth)
    }
}

/// A target node as of one generation.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// Its name.
    pub name: IscsiName,
    /// TargetAlias; empty: none.
    pub alias: String,
    /// Portal groups with the initiators that they serve, the first match counts.
    pub maps: Vec<(PortalGroup, InitiatorGroup)>,
    /// LUNs and their logical units, in order.
    pub luns: Vec<LunConfig>,
    /// Who has to prove what.
    pub auth: AuthPolicy,
    /// Commands of one session under way at most; the options' limit holds too.
    pub queue_depth: u16,
    /// Sessions without header digests are refused.
    pub header_digest: bool,
    /// Sessions without data digests are refused.
    pub data_digest: bool,
    /// Where logins at a portal group are sent, by its tag.
    pub redirects: BTreeMap<u16, SocketAddr>,
    /// How long its commands take, where somebody wants to know.
    pub latencies: Option<Arc<Latencies>>,
}

/// How long the commands of a target have taken, in nanoseconds, from the turn in which a command began to the turn in
/// which it was answered; each reactor counts for itself.
#[derive(Debug)]
pub struct Latencies(Box<[Histogram]>);

impl Latencies {
    /// For so many reactors.
    #[must_use]
    pub fn new(reactors: usize) -> Self {
        Self((0..reactors).map(|_| Histogram::new()).collect())
    }

    /// All reactors' counts, as of now.
    #[must_use]
    pub fn total(&self) -> Histogram {
        let total = Histogram::new();
        self.0.iter().for_each(|one| total.merge(one));
        total
    }

    /// Counts a command of that reactor.
    #[inline]
    pub(crate) fn record(&self, reactor: usize, latency_ns: u64) {
        if let Some(mine) = self.0.get(reactor) {
            mine.record(latency_ns);
        }
    }
}

impl TargetConfig {
    /// A target that asks nobody for anything.
    #[must_use]
    pub fn new(name: IscsiName, maps: Vec<(PortalGroup, InitiatorGroup)>, luns: Vec<LunConfig>) -> Self {
        Self {
            name,
            alias: String::new(),
            maps,
            luns,
            auth: AuthPolicy::default(),
            queue_depth: u16::MAX,
            header_digest: false,
            data_digest: false,
            redirects: BTreeMap::new(),
            latencies: None,
        }
    }

    /// Whether that initiator may log in at that portal group: the first map of it that names the initiator counts.
    #[must_use]
    pub fn admits(&self, tpgt: u16, name: &IscsiName, addr: IpAddr) -> bool {
        let mut maps = self.maps.iter().filter(|(portals, _)| portals.tag == tpgt);
        maps.find_map(|(_, group)| group.verdict(name, addr)).unwrap_or(false)
    }

    /// Portals that the initiator is shown, with their tags.
    pub fn portals_for<'a>(
        &'a self,
        name: &'a IscsiName,
        addr: IpAddr,
    ) -> impl Iterator<Item = (u16, SocketAddr)> + 'a {
        let first = |at: usize, tag: u16| !self.maps.iter().take(at).any(|(portals, _)| portals.tag == tag);
        let maps = self.maps.iter().enumerate().filter(move |(at, (portals, _))| {
            !portals.private && first(*at, portals.tag) && self.admits(portals.tag, name, addr)
        });
        maps.flat_map(|(_, (portals, _))| portals.portals.iter().map(|addr| (portals.tag, *addr)))
    }

    /// Relative target port identifier of a portal group: its tag.
    #[must_use]
    pub fn port_of(&self, tpgt: u16) -> u16 {
        tpgt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks_cut_addresses_at_their_prefix() {
        let mask = Netmask { addr: "10.1.0.0".parse().unwrap(), prefix: 16 };
        let has = |mask: &Netmask, addr: &str| mask.contains(addr.parse().unwrap());
        assert!(has(&mask, "10.1.255.1") && has(&mask, "::ffff:10.1.2.3"));
        assert!(!has(&mask, "10.2.0.1") && !has(&mask, "::1"));
        let any4 = Netmask { addr: "0.0.0.0".parse().unwrap(), prefix: 0 };
        assert!(has(&any4, "192.0.2.1") && !has(&any4, "2001:db8::1"));
        let host6 = Netmask { addr: "2001:db8::1".parse().unwrap(), prefix: 128 };
        assert!(has(&host6, "2001:db8::1") && !has(&host6, "2001:db8::2"));
    }

    #[test]
    fn the_first_rule_that_names_an_initiator_counts() {
        let (good, bad): (IscsiName, IscsiName) =
            ("iqn.2026-11.h:good".parse().unwrap(), "iqn.2026-11.h:bad".parse().unwrap());
        let addr = "192.0.2.1".parse().unwrap();
        let but = InitiatorGroup {
            tag: 1,
            initiators: vec![InitiatorRule { name: Some(bad), deny: true }, InitiatorRule::ANY],
            netmasks: vec![None],
        };
        let portals =
            PortalGroup { tag: 1, portals: vec!["192.0.2.9:3260".parse().unwrap()], private: false };
        let maps = vec![(portals.clone(), but), (portals.clone(), InitiatorGroup::any(2))];
        let mut target = TargetConfig::new("iqn.2026-11.t:1".parse().unwrap(), maps, Vec::new());
        assert!(target.admits(1, &good, addr) && !target.admits(1, &bad, addr));
        assert!(!target.admits(2, &good, addr));
        assert_eq!(target.portals_for(&good, addr).count(), 1);
        assert_eq!(target.portals_for(&bad, addr).count(), 0);
        target.maps[0].0.private = true;
        target.maps[1].0.private = true;
        assert_eq!(target.portals_for(&good, addr).count(), 0);
    }
}
