//! What is configured, as immutable snapshots that reactors share.

use std::net::{IpAddr, SocketAddr};

use penstock_scsi::LuId;
use penstock_spec::iscsi::IscsiName;

/// Target nodes of one process at most.
pub const TARGETS_MAX: usize = 1024;
/// Portals at most.
pub const PORTALS_MAX: usize = 256;

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

/// Which initiators may come from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitiatorGroup {
    /// Its tag.
    pub tag: u32,
    /// Names; [`None`] is any.
    pub initiators: Vec<Option<IscsiName>>,
    /// Networks; [`None`] is any.
    pub netmasks: Vec<Option<Netmask>>,
}

impl InitiatorGroup {
    /// Whether an initiator of that name and address is one of it.
    #[must_use]
    pub fn admits(&self, name: &IscsiName, addr: IpAddr) -> bool {
        self.initiators.iter().any(|known| known.is_none_or(|known| known == *name))
            && self.netmasks.iter().any(|mask| mask.is_none_or(|mask| mask.contains(addr)))
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
    pub luns: Vec<(u16, LuId)>,
}

impl TargetConfig {
    /// Whether that initiator may log in at that portal group.
    #[must_use]
    pub fn admits(&self, tpgt: u16, name: &IscsiName, addr: IpAddr) -> bool {
        self.maps.iter().any(|(portals, group)| portals.tag == tpgt && group.admits(name, addr))
    }

    /// Portals that the initiator is shown, with their tags.
    pub fn portals_for<'a>(
        &'a self,
        name: &'a IscsiName,
        addr: IpAddr,
    ) -> impl Iterator<Item = (u16, SocketAddr)> + 'a {
        let maps = self.maps.iter().filter(move |(_, group)| group.admits(name, addr));
        maps.flat_map(|(portals, _)| portals.portals.iter().map(|addr| (portals.tag, *addr)))
    }

    /// Relative target port identifier of a portal group: its place among the target's, from 1.
    #[must_use]
    pub fn port_of(&self, tpgt: u16) -> u16 {
        let at = self.maps.iter().position(|(portals, _)| portals.tag == tpgt).unwrap_or(0);
        u16::try_from(at).unwrap_or(0).saturating_add(1)
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
}
