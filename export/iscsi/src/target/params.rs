//! What the target's methods take, named as SPDK names it.

use std::net::{IpAddr, SocketAddr};

use penstock_spec::iscsi::{ISCSI_PORT, IscsiName};

use super::TargetError;
use crate::config::{InitiatorRule, IscsiOptions, Netmask};

/// The first part of the names of targets that are given without one.
const NODE_BASE: &str = "iqn.2026-11.io.penstock";

/// `iscsi_set_options`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The first part of the names of targets that are given without one.
    pub node_base: String,
    /// The others.
    pub iscsi: IscsiOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self { node_base: NODE_BASE.to_owned(), iscsi: IscsiOptions::default() }
    }
}

impl Options {
    /// Whether all values are in their ranges.
    pub(super) fn check(&self) -> Result<(), TargetError> {
        format!("{}:x", self.node_base).parse::<IscsiName>().map_err(|source| TargetError::Name {
            parameter: "node_base",
            name: self.node_base.clone(),
            source,
        })?;
        let o = &self.iscsi;
        let lengths = 512..=(1 << 24) - 1;
        let ranges = [
            ("max_queue_depth", u64::from(o.max_queue_depth), 1..=1024),
            ("first_burst_length", o.first_burst_length.into(), lengths.clone()),
            ("max_burst_length", o.max_burst_length.into(), lengths),
            ("max_recv_data_segment_length", o.max_recv_data_segment_length.into(), 8192..=(1 << 24) - 1),
            ("max_r2t_per_connection", o.max_r2t_per_connection.into(), 1..=256),
            ("default_time2wait", o.default_time2wait.into(), 0..=3600),
            ("default_time2retain", o.default_time2retain.into(), 0..=3600),
            ("nop_timeout", o.nop_timeout.into(), 1..=3600),
            ("nop_in_interval", o.nop_in_interval.into(), 0..=3600),
            ("login_timeout", o.login_timeout.into(), 1..=3600),
            ("max_sessions", o.max_sessions.into(), 1..=65_535),
            ("max_connections_per_session", o.max_connections_per_session.into(), 1..=64),
        ];
        for (parameter, value, range) in ranges {
            if !range.contains(&value) {
                let allowed = format!("{} to {}", range.start(), range.end());
                return Err(TargetError::invalid(parameter, value, allowed));
            }
        }
        if o.first_burst_length > o.max_burst_length {
            let allowed = format!("at most max_burst_length, {}", o.max_burst_length);
            return Err(TargetError::invalid("first_burst_length", o.first_burst_length, allowed));
        }
        Ok(())
    }
}

/// An address of a portal group.
#[derive(Debug, Clone)]
pub struct Portal {
    /// IP address; an IPv6 address may stand in brackets.
    pub host: String,
    /// Port; 0 picks a free one. Default: 3260.
    pub port: Option<String>,
}

impl Portal {
    pub(super) fn addr(&self) -> Result<SocketAddr, TargetError> {
        address("host", &self.host, "port", self.port.as_deref())
    }
}

/// An address from its two parts.
pub(super) fn address(
    host_parameter: &'static str,
    host: &str,
    port_parameter: &'static str,
    port: Option<&str>,
) -> Result<SocketAddr, TargetError> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let ip: IpAddr = bare.parse().map_err(|_| {
        TargetError::invalid(host_parameter, format!("{host:?}"), "an IPv4 address or an IPv6 address")
    })?;
    let port = match port {
        None => ISCSI_PORT,
        Some(text) => text.parse().map_err(|_| {
            TargetError::invalid(port_parameter, format!("{text:?}"), "a port: \"0\" to \"65535\"")
        })?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// `iscsi_create_portal_group`.
#[derive(Debug, Clone)]
pub struct NewPortalGroup {
    /// Its tag.
    pub tag: u32,
    /// Where it is reached.
    pub portals: Vec<Portal>,
    /// Discovery does not tell of it.
    pub private: bool,
    /// Listen only when it is started.
    pub wait: bool,
}

/// Who has to prove what, by group of secrets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuthChoice {
    /// No CHAP.
    pub disable_chap: bool,
    /// Nothing but CHAP.
    pub require_chap: bool,
    /// In both directions.
    pub mutual_chap: bool,
    /// The secrets; 0: none.
    pub chap_group: u32,
}

impl AuthChoice {
    pub(super) fn check(&self) -> Result<(), TargetError> {
        if self.disable_chap && self.require_chap {
            return Err(TargetError::invalid("require_chap", true, "false where disable_chap is true"));
        }
        if self.mutual_chap && !self.require_chap {
            return Err(TargetError::invalid("mutual_chap", true, "false unless require_chap is true"));
        }
        if self.require_chap && self.chap_group == 0 {
            let allowed = "an authentication group where require_chap is true, or nobody could log in";
            return Err(TargetError::invalid("chap_group", 0, allowed));
        }
        Ok(())
    }
}

/// A secret of an authentication group.
#[derive(Clone)]
pub struct NewSecret {
    /// Name of the initiator.
    pub user: String,
    /// Its secret.
    pub secret: String,
    /// Name of the target, for mutual authentication.
    pub muser: Option<String>,
    /// Its secret.
    pub msecret: Option<String>,
}

impl std::fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSecret").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A LUN.
#[derive(Debug, Clone)]
pub struct NewLun {
    /// The bdev: name, alias or UUID.
    pub bdev_name: String,
    /// Its number; `None`: the lowest that is free.
    pub lun_id: Option<u16>,
    /// Tags of the initiator groups that see it; empty: all do.
    pub ig_tags: Vec<u32>,
}

/// `iscsi_create_target_node`.
#[derive(Debug, Clone)]
pub struct NewTargetNode {
    /// Its name, with or without the first part.
    pub name: String,
    /// TargetAlias; empty: none.
    pub alias_name: String,
    /// Its LUNs.
    pub luns: Vec<NewLun>,
    /// Tags of portal groups and initiator groups.
    pub pg_ig_maps: Vec<(u32, u32)>,
    /// Commands of one session under way at most.
    pub queue_depth: u16,
    /// Who has to prove what.
    pub auth: AuthChoice,
    /// Refuse sessions without header digests.
    pub header_digest: bool,
    /// Refuse sessions without data digests.
    pub data_digest: bool,
}

/// A rule as SPDK writes it: a name, `ANY`, and `!` before either for those who may not come.
pub(super) fn rule_of(text: &str) -> Result<InitiatorRule, TargetError> {
    let (deny, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
    if matches!(rest, "ANY" | "ALL") {
        return Ok(InitiatorRule { name: None, deny });
    }
    let name = rest.parse().map_err(|source| TargetError::Name {
        parameter: "initiators",
        name: rest.to_owned(),
        source,
    })?;
    Ok(InitiatorRule { name: Some(name), deny })
}

pub(super) fn rule_text(rule: &InitiatorRule) -> String {
    let name = rule.name.map_or_else(|| "ANY".to_owned(), |name| name.to_string());
    if rule.deny { format!("!{name}") } else { name }
}

/// A network as SPDK writes it: `ANY`, `192.0.2.0/24`, `[2001:db8::]/32`, or one address.
pub(super) fn netmask_of(text: &str) -> Result<Option<Netmask>, TargetError> {
    if matches!(text, "ANY" | "ALL") {
        return Ok(None);
    }
    let bad = || {
        let allowed = "\"ANY\", or an address with or without the length of its network, like 192.0.2.0/24";
        TargetError::invalid("netmasks", format!("{text:?}"), allowed)
    };
    let (host, prefix) = text.split_once('/').map_or((text, None), |(host, bits)| (host, Some(bits)));
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let addr: IpAddr = bare.parse().map_err(|_| bad())?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Ok(bits), |bits| bits.parse::<u8>().map_err(|_| bad()))?;
    if prefix > bits {
        return Err(bad());
    }
    Ok(Some(Netmask { addr, prefix }))
}

pub(super) fn netmask_text(mask: Option<&Netmask>) -> String {
    match mask {
        None => "ANY".to_owned(),
        Some(Netmask { addr: IpAddr::V6(addr), prefix }) => format!("[{addr}]/{prefix}"),
        Some(Netmask { addr, prefix }) => format!("{addr}/{prefix}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_networks_are_read_as_they_are_written() {
        for text in ["ANY", "!ANY", "iqn.2026-11.h:1", "!iqn.2026-11.h:1"] {
            assert_eq!(rule_text(&rule_of(text).unwrap()), text);
        }
        for text in ["ANY", "192.0.2.0/24", "[2001:db8::]/32"] {
            assert_eq!(netmask_text(netmask_of(text).unwrap().as_ref()), text);
        }
        assert_eq!(netmask_text(netmask_of("192.0.2.1").unwrap().as_ref()), "192.0.2.1/32");
        for bad in ["", "nobody", "192.0.2.0/33", "::1/129", "192.0.2.0/", "192.0.2.0/-1"] {
            assert!(netmask_of(bad).is_err(), "{bad}");
        }
        assert!(rule_of("disk").is_err() && rule_of("").is_err());
    }

    #[test]
    fn addresses_have_a_family_and_a_port() {
        let addr = |host: &str, port: Option<&str>| address("host", host, "port", port).unwrap().to_string();
        assert_eq!(addr("[::1]", None), "[::1]:3260");
        assert_eq!(addr("127.0.0.1", Some("0")), "127.0.0.1:0");
        assert!(address("host", "localhost", "port", None).is_err());
        assert!(address("host", "::1", "port", Some("99999")).is_err());
    }

    #[test]
    fn the_defaults_are_in_their_ranges() {
        Options::default().check().unwrap();
        let mut options = Options::default();
        options.iscsi.first_burst_length = 2 << 20;
        assert!(options.check().unwrap_err().to_string().contains("max_burst_length"));
    }
}
