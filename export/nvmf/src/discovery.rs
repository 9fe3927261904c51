//! The discovery log page: what one host can reach (Base 5.2.13.3.1).
//!
//! Only subsystems that allow the host are in it. A listener at "any address" is shown with the address at which the
//! host has reached the discovery service. The generation counter is the target's: it grows with every visible change.

use std::net::{IpAddr, SocketAddr};

use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::connect::{ADMIN_QUEUE_ENTRIES_MIN, CNTLID_DYNAMIC};
use penstock_spec::nvmf::discovery::{
    AdrFam, DiscoveryLogEntry, DiscoveryLogHdr, EFlags, SecType, SubType, TReq,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use crate::config::{DiscoveryConfig, DiscoveryFilter, ListenerConfig, Referral};

/// TREQ.SC: a secure channel is required.
const SECURE_CHANNEL_REQUIRED: u8 = 1;
/// TREQ.SC: a secure channel is not required.
const SECURE_CHANNEL_NOT_REQUIRED: u8 = 2;

/// The entries for `host`, whose discovery connection ends at `local`.
#[must_use]
pub fn entries(config: &DiscoveryConfig, host: &Nqn, local: SocketAddr) -> Vec<DiscoveryLogEntry> {
    let asqsz = config.admin_queue_entries;
    let mut list = Vec::new();
    // The service itself: where it has listeners of its own, or else where the host has found it.
    let own = EFlags(0).with_dupretinfo(true).with_epcsd(true);
    let here = ListenerConfig::tcp(0, local);
    let own_listeners =
        if config.listeners.is_empty() { std::slice::from_ref(&here) } else { &config.listeners };
    let shown = |listener: &&ListenerConfig| is_shown(config.filter, listener.addr, local);
    for listener in own_listeners.iter().filter(shown) {
        let nqn = config.nqn.unwrap_or_else(Nqn::discovery);
        list.push(entry(listener, &nqn, SubType::CURRENT_DISCOVERY, own, asqsz, local));
    }
    for subsystem in config.subsystems.iter().filter(|subsystem| subsystem.allows(host)) {
        for listener in subsystem.listeners.iter().filter(shown) {
            list.push(entry(listener, &subsystem.nqn, SubType::NVM, EFlags(0), asqsz, local));
        }
    }
    let told = |referral: &&Referral| referral.allow_any_host || referral.hosts.contains(host);
    list.extend(config.referrals.iter().filter(told).map(referral_entry));
    list
}

/// Whether the filter lets a host see a listener that has reached the service at `local`.
fn is_shown(filter: DiscoveryFilter, addr: SocketAddr, local: SocketAddr) -> bool {
    let (ip, here) = (addr.ip().to_canonical(), local.ip().to_canonical());
    let address = !filter.address || ip == here || (ip.is_unspecified() && (ip.is_ipv6() || here.is_ipv4()));
    address && (!filter.svcid || addr.port() == local.port())
}

/// Another service: its port is not one of this target's, and its queues are as small as they may be.
fn referral_entry(referral: &Referral) -> DiscoveryLogEntry {
    let listener = ListenerConfig::tcp(0, referral.addr);
    let subtype = SubType::DISCOVERY;
    let asqsz = ADMIN_QUEUE_ENTRIES_MIN;
    let mut entry = entry(&listener, &referral.subnqn, subtype, EFlags(0), asqsz, referral.addr);
    if referral.secure_channel {
        entry.treq = TReq(0).with_secure_channel(SECURE_CHANNEL_REQUIRED).0;
        if let Some(sectype) = entry.tsas.first_mut() {
            *sectype = SecType::TLS13.0;
        }
    }
    entry
}

/// The log page: header and entries.
#[must_use]
pub fn log_page(config: &DiscoveryConfig, host: &Nqn, local: SocketAddr) -> Vec<u8> {
    let entries = entries(config, host, local);
    let mut header = DiscoveryLogHdr::default();
    header.genctr = U64::new(config.genctr);
    header.numrec = U64::new(u64::try_from(entries.len()).unwrap_or(0));

    let mut page = header.as_bytes().to_vec();
    page.extend_from_slice(entries.as_bytes());
    page
}

fn entry(
    listener: &ListenerConfig,
    nqn: &Nqn,
    subtype: SubType,
    eflags: EFlags,
    asqsz: u16,
    local: SocketAddr,
) -> DiscoveryLogEntry {
    let ip = shown_address(listener.addr.ip(), local.ip());
    let mut entry = DiscoveryLogEntry::default();
    entry.trtype = listener.trtype;
    entry.adrfam = if ip.is_ipv4() { AdrFam::IPV4 } else { AdrFam::IPV6 };
    entry.subtype = subtype;
    let channel = if listener.secure { SECURE_CHANNEL_REQUIRED } else { SECURE_CHANNEL_NOT_REQUIRED };
    entry.treq = TReq(0).with_secure_channel(channel).0;
    entry.portid = U16::new(listener.portid);
    entry.cntlid = U16::new(CNTLID_DYNAMIC);
    entry.asqsz = U16::new(asqsz);
    entry.eflags = U16::new(eflags.0);
    entry.subnqn = nqn.to_field();

    if let Some(sectype) = entry.tsas.first_mut() {
        *sectype = if listener.secure { SecType::TLS13.0 } else { SecType::NONE.0 };
    }
    // Both fit: an address has at most 45 characters, a port 5.
    let fits = entry.set_traddr(&ip.to_string()) && entry.set_trsvcid(&listener.addr.port().to_string());
    debug_assert!(fits, "an address fits into TRADDR");
    entry
}

/// An unspecified address is of no use to a host: the one that it has come by is.
fn shown_address(listens_on: IpAddr, local: IpAddr) -> IpAddr {
    let local = local.to_canonical();
    match listens_on {
        IpAddr::V4(ip) if ip.is_unspecified() && local.is_ipv4() => local,
        // A socket on the IPv6 any-address takes IPv4 connections too.
        IpAddr::V6(ip) if ip.is_unspecified() => local,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{HostConfig, SubsystemConfig, SubsystemKind};
    use penstock_spec::nvmf::discovery::TrType;
    use zerocopy::FromBytes;

    fn nqn(name: &str) -> Nqn {
        format!("nqn.2026-11.io.penstock:{name}").parse().unwrap()
    }

    fn listener(portid: u16, addr: &str) -> ListenerConfig {
        ListenerConfig::tcp(portid, addr.parse().unwrap())
    }

    fn config() -> DiscoveryConfig {
        let mut open = SubsystemConfig::new(nqn("open"), SubsystemKind::Nvm);
        open.allow_any_host = true;
        open.listeners = vec![listener(1, "0.0.0.0:4420"), listener(2, "[fd00::1]:4421")];
        let mut closed = SubsystemConfig::new(nqn("closed"), SubsystemKind::Nvm);
        closed.hosts.insert(nqn("friend"), HostConfig { nqn: nqn("friend"), keys: None });
        closed.listeners = vec![listener(1, "0.0.0.0:4420")];
        let subsystems = vec![Arc::new(open), Arc::new(closed)];
        DiscoveryConfig { genctr: 7, subsystems, admin_queue_entries: 128, ..DiscoveryConfig::default() }
    }

    #[test]
    fn a_host_sees_what_it_is_allowed_to_and_where_it_can_reach_it() {
        let local = "192.0.2.9:4420".parse().unwrap();
        let names = |host: &str| {
            let list = entries(&config(), &nqn(host), local);
            list.iter()
                .map(|e| (e.subsystem().unwrap().to_string(), e.traddr().unwrap().to_owned()))
                .collect::<Vec<_>>()
        };
        let stranger = names("stranger");
        assert_eq!(stranger.len(), 3);
        assert_eq!(stranger[0], (Nqn::discovery().to_string(), "192.0.2.9".to_owned()));
        assert_eq!(stranger[1], (nqn("open").to_string(), "192.0.2.9".to_owned()));
        assert_eq!(stranger[2], (nqn("open").to_string(), "fd00::1".to_owned()));
        assert_eq!(names("friend").len(), 4);
    }

    #[test]
    fn the_page_has_a_header_and_entries_as_the_standard_lays_them_out() {
        let page = log_page(&config(), &nqn("stranger"), "127.0.0.1:8009".parse().unwrap());
        assert_eq!(page.len(), 4 * 1024);
        let header = DiscoveryLogHdr::ref_from_bytes(&page[..1024]).unwrap();
        assert_eq!((header.genctr.get(), header.numrec.get(), header.recfmt.get()), (7, 3, 0));
        let own = DiscoveryLogEntry::ref_from_bytes(&page[1024..2048]).unwrap();
        assert_eq!(
            (own.subtype, own.eflags.get(), own.trsvcid()),
            (SubType::CURRENT_DISCOVERY, 3, Some("8009"))
        );
        let first = DiscoveryLogEntry::ref_from_bytes(&page[2048..3072]).unwrap();
        assert_eq!((first.trtype, first.adrfam, first.subtype), (TrType::TCP, AdrFam::IPV4, SubType::NVM));
        assert_eq!((first.cntlid.get(), first.asqsz.get(), first.portid.get()), (0xffff, 128, 1));
        assert_eq!((first.treq, first.tsas[0], first.eflags.get()), (2, 0, 0));
        let second = DiscoveryLogEntry::ref_from_bytes(&page[3072..]).unwrap();
        assert_eq!(second.adrfam, AdrFam::IPV6);
    }

    fn shown(config: &DiscoveryConfig, host: &str, local: &str) -> Vec<(SubType, String, String, u8, u8)> {
        let list = entries(config, &nqn(host), local.parse().unwrap());
        let show = |e: &DiscoveryLogEntry| {
            let addr = format!("{}:{}", e.traddr().unwrap(), e.trsvcid().unwrap());
            (e.subtype, e.subsystem().unwrap().to_string(), addr, e.treq, e.tsas[0])
        };
        list.iter().map(show).collect()
    }

    #[test]
    fn a_referral_is_told_to_those_who_may_know_it() {
        let mut config = config();
        let mut add = |name: &str, secure_channel, allow_any_host, hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| nqn(host)).collect();
            let addr = "198.51.100.7:8009".parse().unwrap();
            config.referrals.push(Referral {
                addr,
                subnqn: nqn(name),
                secure_channel,
                allow_any_host,
                hosts,
            });
        };
        add("all", false, true, &[]);
        add("some", true, false, &["friend"]);
        let of = |host| -> Vec<_> {
            let all = shown(&config, host, "192.0.2.9:8009");
            all.into_iter().filter(|one| one.0 == SubType::DISCOVERY).collect()
        };
        let addr = "198.51.100.7:8009".to_owned();
        assert_eq!(of("stranger"), [(SubType::DISCOVERY, nqn("all").to_string(), addr.clone(), 2, 0)]);
        assert_eq!(of("friend")[1], (SubType::DISCOVERY, nqn("some").to_string(), addr, 1, 2));
        assert_eq!(of("friend").len(), 2);
    }

    #[test]
    fn a_filter_leaves_out_what_lies_elsewhere() {
        let mut config = config();
        config.filter = DiscoveryFilter { address: true, ..DiscoveryFilter::default() };
        let names = |config: &_, local| -> Vec<String> {
            shown(config, "stranger", local).into_iter().map(|one| one.2).collect()
        };
        assert_eq!(names(&config, "192.0.2.9:8009"), ["192.0.2.9:8009", "192.0.2.9:4420"]);
        assert_eq!(names(&config, "[fd00::1]:8009"), ["fd00::1:8009", "fd00::1:4421"]);
        config.filter = DiscoveryFilter { svcid: true, ..DiscoveryFilter::default() };
        assert_eq!(names(&config, "192.0.2.9:4421"), ["192.0.2.9:4421", "fd00::1:4421"]);
        config.filter.address = true;
        assert_eq!(names(&config, "192.0.2.9:4421"), ["192.0.2.9:4421"]);
    }

    #[test]
    fn a_service_with_a_name_of_its_own_is_listed_by_it() {
        let mut config = config();
        config.nqn = Some(nqn("discovery"));
        let own = &shown(&config, "stranger", "192.0.2.9:8009")[0];
        assert_eq!((own.0, own.1.as_str()), (SubType::CURRENT_DISCOVERY, nqn("discovery").as_str()));
    }
}
