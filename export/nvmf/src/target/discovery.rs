//! The discovery service: referrals, what is shown, and its name.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use penstock_reactor::Answers;
use penstock_spec::nvmf::Nqn;
use serde_json::{Value, json};

use super::params::ListenAddress;
use super::{Target, TargetError, parse_nqn};
use crate::config::{DiscoveryFilter, REFERRAL_HOSTS_MAX, REFERRALS_MAX, Referral, SubsystemConfig};

/// `nvmf_discovery_add_referral`. Without `subnqn` it is the well-known discovery subsystem.
#[derive(Debug, Clone)]
pub struct ReferralParams {
    /// Where it is.
    pub address: ListenAddress,
    /// Its NQN.
    pub subnqn: Option<String>,
    /// Whether it wants TLS.
    pub secure_channel: bool,
    /// Whether every host is told of it.
    pub allow_any_host: bool,
    /// Hosts that are told of it otherwise.
    pub hosts: Vec<String>,
}

/// A change of who is told of a referral.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReferralHosts {
    /// One host more.
    Add(String),
    /// One host less.
    Remove(String),
    /// Everybody, or only the hosts on its list.
    AllowAny(bool),
}

impl Target {
    /// `nvmf_discovery_add_referral`: hosts that may see it are told. One that is there already is left as it is.
    ///
    /// # Errors
    /// An address or name that is none, [`TargetError::Full`].
    pub async fn add_referral(&self, params: &ReferralParams) -> Result<(), TargetError> {
        let addr = params.address.addr()?;
        let subnqn = referral_name(params.subnqn.as_deref())?;
        let hosts: BTreeSet<Nqn> =
            params.hosts.iter().map(|host| parse_nqn("hosts", host)).collect::<Result<_, _>>()?;
        let owner = || format!("the referral to {subnqn} at {addr}");
        if hosts.len() > REFERRAL_HOSTS_MAX {
            return Err(TargetError::Full { what: "hosts", owner: owner(), max: REFERRAL_HOSTS_MAX });
        }
        {
            let mut state = self.0.state.borrow_mut();
            if state.referrals.iter().any(|known| known.addr == addr && known.subnqn == subnqn) {
                return Ok(());
            }
            if state.referrals.len() >= REFERRALS_MAX {
                let owner = "the target".to_owned();
                return Err(TargetError::Full { what: "referrals", owner, max: REFERRALS_MAX });
            }
            let (secure_channel, allow_any_host) = (params.secure_channel, params.allow_any_host);
            state.referrals.push(Referral { addr, subnqn, secure_channel, allow_any_host, hosts });
        }
        self.all(self.publish_discovery(), "add a referral").await.map(drop)
    }

    /// `nvmf_discovery_remove_referral`.
    ///
    /// # Errors
    /// [`TargetError::Missing`].
    pub async fn remove_referral(
        &self,
        address: &ListenAddress,
        subnqn: Option<&str>,
    ) -> Result<(), TargetError> {
        let answers = self.with_referral(address, subnqn, |referrals, at| {
            referrals.remove(at);
            Ok(())
        })?;
        self.all(answers, "remove a referral").await.map(drop)
    }

    /// Changes who is told of a referral.
    ///
    /// # Errors
    /// [`TargetError::Missing`], [`TargetError::Present`], [`TargetError::Full`], a name that is none.
    pub async fn set_referral_hosts(
        &self,
        address: &ListenAddress,
        subnqn: Option<&str>,
        change: &ReferralHosts,
    ) -> Result<(), TargetError> {
        let answers = self.with_referral(address, subnqn, |referrals, at| {
            let Some(referral) = referrals.get_mut(at) else { return Ok(()) };
            let nqn = referral.subnqn.to_string();
            match change {
                ReferralHosts::AllowAny(allow) => referral.allow_any_host = *allow,
                ReferralHosts::Add(host) => {
                    if referral.hosts.len() >= REFERRAL_HOSTS_MAX {
                        let owner = format!("the referral to {nqn}");
                        return Err(TargetError::Full { what: "hosts", owner, max: REFERRAL_HOSTS_MAX });
                    }
                    if !referral.hosts.insert(parse_nqn("host", host)?) {
                        return Err(TargetError::Present { nqn, what: format!("host {host}") });
                    }
                }
                ReferralHosts::Remove(host) => {
                    if !referral.hosts.remove(&parse_nqn("host", host)?) {
                        return Err(TargetError::Missing { nqn, what: format!("host {host}") });
                    }
                }
            }
            Ok(())
        })?;
        self.all(answers, "change a referral").await.map(drop)
    }

    /// `nvmf_discovery_get_referrals`.
    #[must_use]
    pub fn get_referrals(&self) -> Value {
        self.0.state.borrow().referrals.iter().map(told).collect()
    }

    /// What of `nvmf_set_config` is for the discovery service: `discovery_filters`, and the unique NQN that it goes by
    /// beside the well-known one.
    ///
    /// # Errors
    /// A filter that there is not, a name that is none or another subsystem's.
    pub async fn set_discovery_config(
        &self,
        filters: Option<&str>,
        nqn: Option<&str>,
    ) -> Result<(), TargetError> {
        let filter = filters.map(parse_filters).transpose()?;
        let alias = match nqn {
            None => None,
            Some("") => Some(None),
            Some(name) => Some(Some(parse_nqn("discovery_nqn", name)?)),
        };
        if let Some(Some(alias)) = alias
            && self.0.state.borrow().subsystems.contains_key(&alias)
        {
            return Err(TargetError::SubsystemExists { nqn: alias.to_string() });
        }
        if let Some(filter) = filter {
            self.0.state.borrow_mut().filter = filter;
        }
        let mut answers = Answers::default();
        if let Some(alias) = alias {
            let ((), changed) = self.change(&Nqn::discovery(), |config| {
                config.alias = alias;
                Ok(())
            })?;
            answers.extend(changed);
        }
        answers.extend(self.publish_discovery());
        self.all(answers, "change the discovery service").await.map(drop)
    }

    /// Where the discovery service is reached, and its name there: what is published by mDNS. Without listeners of its own
    /// it is everywhere.
    #[must_use]
    pub fn discovery_service(&self) -> (Nqn, BTreeSet<SocketAddr>) {
        let state = self.0.state.borrow();
        let own = state.subsystems.get(&Nqn::discovery());
        let of = |config: &SubsystemConfig| config.listeners.iter().map(|listener| listener.addr).collect();
        let mut addrs: BTreeSet<SocketAddr> = own.map(|config| of(config)).unwrap_or_default();
        if addrs.is_empty() {
            addrs = state.portals.keys().copied().collect();
        }
        (own.and_then(|config| config.alias).unwrap_or_else(Nqn::discovery), addrs)
    }

    /// The calls that make the discovery service again.
    pub(super) fn discovery_calls(&self) -> Vec<(&'static str, Value)> {
        let state = self.0.state.borrow();
        let mut calls = Vec::new();
        let alias = state.subsystems.get(&Nqn::discovery()).and_then(|config| config.alias);
        if state.filter != DiscoveryFilter::default() || alias.is_some() {
            let mut params = json!({ "discovery_filters": filter_names(state.filter) });
            if let (Some(alias), Some(object)) = (alias, params.as_object_mut()) {
                object.insert("discovery_nqn".to_owned(), json!(alias.as_str()));
            }
            calls.push(("nvmf_set_config", params));
        }
        calls.extend(state.referrals.iter().map(|referral| ("nvmf_discovery_add_referral", told(referral))));
        calls
    }

    fn with_referral(
        &self,
        address: &ListenAddress,
        subnqn: Option<&str>,
        change: impl FnOnce(&mut Vec<Referral>, usize) -> Result<(), TargetError>,
    ) -> Result<Answers<()>, TargetError> {
        let addr = address.addr()?;
        let subnqn = referral_name(subnqn)?;
        {
            let mut state = self.0.state.borrow_mut();
            let found = state.referrals.iter().position(|one| one.addr == addr && one.subnqn == subnqn);
            let at = found.ok_or_else(|| TargetError::Missing {
                nqn: Nqn::discovery().to_string(),
                what: format!("referral to {subnqn} at {addr}"),
            })?;
            change(&mut state.referrals, at)?;
        }
        Ok(self.publish_discovery())
    }
}

fn referral_name(subnqn: Option<&str>) -> Result<Nqn, TargetError> {
    match subnqn {
        None | Some("") => Ok(Nqn::discovery()),
        Some(name) => parse_nqn("subnqn", name),
    }
}

fn told(referral: &Referral) -> Value {
    let hosts: Vec<&str> = referral.hosts.iter().map(Nqn::as_str).collect();
    json!({
        "address": ListenAddress::tcp(referral.addr),
        "secure_channel": referral.secure_channel,
        "subnqn": referral.subnqn.as_str(),
        "allow_any_host": referral.allow_any_host,
        "hosts": hosts,
    })
}

/// SPDK's names, with commas between; "match_any" stands for none.
fn parse_filters(text: &str) -> Result<DiscoveryFilter, TargetError> {
    let mut filter = DiscoveryFilter::default();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "match_any" => {}
            "transport" => filter.transport = true,
            "address" => filter.address = true,
            "svcid" => filter.svcid = true,
            other => {
                return Err(TargetError::Invalid {
                    parameter: "discovery_filters",
                    value: format!("{other:?}"),
                    allowed: "match_any, or some of transport, address, svcid".to_owned(),
                });
            }
        }
    }
    Ok(filter)
}

fn filter_names(filter: DiscoveryFilter) -> String {
    let names = [("transport", filter.transport), ("address", filter.address), ("svcid", filter.svcid)];
    let set: Vec<&str> = names.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    if set.is_empty() { "match_any".to_owned() } else { set.join(",") }
}
