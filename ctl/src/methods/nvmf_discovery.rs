//! Methods about the NVMe-oF discovery service: referrals, what it shows, its name, and its publication by mDNS.

use std::rc::Rc;

use penstock_nvmf::target::{ReferralHosts, ReferralParams};
use penstock_security::chap::Policy;
use penstock_security::dh::DhGroup;
use penstock_security::hash::Hash;
use serde_json::Value;

use crate::daemon::App;
use crate::methods::nvmf::{Address, OfTarget, check_target};
use crate::params;
use crate::rpc::param::Off;
use crate::rpc::{Kind, RpcError, Table};

params! {
    /// Of `nvmf_discovery_add_referral`.
    AddReferral {
        /// Where the other discovery service is.
        address: Address,
        /// Its NQN. Default: the well-known one.
        subnqn: Option<String>,
        /// Whether it wants TLS. Default: false.
        secure_channel: Option<bool>,
        /// Whether every host is told of it. Default: true, unless there are hosts.
        allow_any_host: Option<bool>,
        /// Hosts that are told of it.
        hosts: Option<Vec<String>>,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_discovery_remove_referral`.
    RemoveReferral {
        /// Where the other discovery service is.
        address: Address,
        /// Its NQN. Default: the well-known one.
        subnqn: Option<String>,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_discovery_referral_add_host` and `nvmf_discovery_referral_remove_host`.
    ReferralHost {
        /// Where the other discovery service is.
        address: Address,
        /// Its NQN. Default: the well-known one.
        subnqn: Option<String>,
        /// The host's NQN.
        host: String,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_discovery_referral_allow_any_host`.
    ReferralAnyHost {
        /// Where the other discovery service is.
        address: Address,
        /// Its NQN. Default: the well-known one.
        subnqn: Option<String>,
        /// Whether every host is told of it, or only those on its list.
        allow_any_host: bool,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Commands that are passed through to devices.
    Passthru {
        /// No command is passed through to a device.
        identify_ctrlr: Option<Off>,
    }
}

params! {
    /// Of `nvmf_set_config`.
    SetConfig {
        /// Which listeners the discovery service shows: those that agree with the one that the host has come by in these,
        /// with commas between: transport, address, svcid. Default: match_any, which are all.
        discovery_filters: Option<String>,
        /// The same, as it was called.
        discovery_filter: Option<String>,
        /// An NQN of its own that the discovery service goes by beside the well-known one; empty for none.
        discovery_nqn: Option<String>,
        /// Commands that are passed through to devices.
        admin_cmd_passthru: Option<Passthru>,
        /// All reactors serve.
        poll_groups_mask: Option<Off>,
        /// Hash functions of authentication: sha256, sha384, sha512. Default: all.
        dhchap_digests: Option<Vec<String>>,
        /// Diffie-Hellman groups of authentication: null, ffdhe2048, ffdhe3072, ffdhe4096, ffdhe6144, ffdhe8192. Default: all.
        dhchap_dhgroups: Option<Vec<String>>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "nvmf_set_config",
            Kind::Change,
            "Changes what the discovery service shows, its name, and what hosts may authenticate themselves with.",
            set_config,
        )
        .add(
            "nvmf_discovery_add_referral",
            Kind::Change,
            "Tells hosts of a discovery service elsewhere. One that is there already is left as it is.",
            add_referral,
        )
        .add(
            "nvmf_discovery_remove_referral",
            Kind::Change,
            "Tells hosts no more of a discovery service elsewhere.",
            remove_referral,
        )
        .add(
            "nvmf_discovery_get_referrals",
            Kind::Read,
            "The discovery services elsewhere that hosts are told of.",
            get_referrals,
        )
        .add(
            "nvmf_discovery_referral_add_host",
            Kind::Change,
            "Tells a host of a discovery service elsewhere.",
            referral_add_host,
        )
        .add(
            "nvmf_discovery_referral_remove_host",
            Kind::Change,
            "Tells a host no more of a discovery service elsewhere.",
            referral_remove_host,
        )
        .add(
            "nvmf_discovery_referral_allow_any_host",
            Kind::Change,
            "Tells every host of a discovery service elsewhere, or only those on its list.",
            referral_allow_any_host,
        )
        .add(
            "nvmf_publish_mdns_prr",
            Kind::Change,
            "Publishes the discovery service by mDNS, as _nvme-disc._tcp; listeners that come and go are followed.",
            publish_mdns,
        )
        .add("nvmf_stop_mdns_prr", Kind::Change, "Ends the publication by mDNS.", stop_mdns);
}

async fn set_config(app: Rc<App>, params: SetConfig) -> Result<Value, RpcError> {
    let mut policy = Policy::clone(&app.target.auth_policy());
    if let Some(names) = &params.dhchap_digests {
        policy.hashes = named("dhchap_digests", names, Hash::from_name)?;
    }
    if let Some(names) = &params.dhchap_dhgroups {
        policy.groups = named("dhchap_dhgroups", names, DhGroup::from_name)?;
    }
    if params.dhchap_digests.is_some() || params.dhchap_dhgroups.is_some() {
        app.target.set_auth_policy(policy).await?;
    }
    let filters = params.discovery_filters.or(params.discovery_filter);
    app.target.set_discovery_config(filters.as_deref(), params.discovery_nqn.as_deref()).await?;
    Ok(Value::Bool(true))
}

/// What the names of a list stand for, the first one that is unknown refused.
fn named<T>(parameter: &str, names: &[String], find: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, RpcError> {
    let one = |name: &String| {
        find(name).ok_or_else(|| {
            RpcError::invalid_params(format!(
                "{parameter}: {name:?} is unknown; `penstock docs rpc` lists them"
            ))
        })
    };
    names.iter().map(one).collect()
}

async fn add_referral(app: Rc<App>, params: AddReferral) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let hosts = params.hosts.unwrap_or_default();
    let referral = ReferralParams {
        address: params.address.into(),
        subnqn: params.subnqn,
        secure_channel: params.secure_channel.unwrap_or(false),
        allow_any_host: params.allow_any_host.unwrap_or(hosts.is_empty()),
        hosts,
    };
    app.target.add_referral(&referral).await?;
    Ok(Value::Bool(true))
}

async fn remove_referral(app: Rc<App>, params: RemoveReferral) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.target.remove_referral(&params.address.into(), params.subnqn.as_deref()).await?;
    Ok(Value::Bool(true))
}

async fn get_referrals(app: Rc<App>, params: OfTarget) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    Ok(app.target.get_referrals())
}

async fn referral_add_host(app: Rc<App>, params: ReferralHost) -> Result<Value, RpcError> {
    let change = ReferralHosts::Add(params.host);
    referral_hosts(&app, params.tgt_name, params.address, params.subnqn, change).await
}

async fn referral_remove_host(app: Rc<App>, params: ReferralHost) -> Result<Value, RpcError> {
    let change = ReferralHosts::Remove(params.host);
    referral_hosts(&app, params.tgt_name, params.address, params.subnqn, change).await
}

async fn referral_allow_any_host(app: Rc<App>, params: ReferralAnyHost) -> Result<Value, RpcError> {
    let change = ReferralHosts::AllowAny(params.allow_any_host);
    referral_hosts(&app, params.tgt_name, params.address, params.subnqn, change).await
}

async fn referral_hosts(
    app: &App,
    tgt_name: Option<String>,
    address: Address,
    subnqn: Option<String>,
    change: ReferralHosts,
) -> Result<Value, RpcError> {
    check_target(tgt_name.as_deref())?;
    app.target.set_referral_hosts(&address.into(), subnqn.as_deref(), &change).await?;
    Ok(Value::Bool(true))
}

async fn publish_mdns(app: Rc<App>, params: OfTarget) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.publish_mdns().map_err(|error| RpcError::internal(error.to_string()))?;
    Ok(Value::Bool(true))
}

async fn stop_mdns(app: Rc<App>, params: OfTarget) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.stop_mdns();
    Ok(Value::Bool(true))
}
