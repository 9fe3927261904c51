//! The part of the NVMe methods that is about remote controllers, and the methods about their paths.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use penstock_nvme::controller::Identity;
use penstock_nvme::tcp::{
    AuthConfig, DiskShared, LossOptions, MultipathMode, MultipathOptions, Nqn, PathCondition, PathReport,
    Policy, Selector, TcpAttach, TcpError, TlsKey, trid,
};
use penstock_nvmf::auth::KeyNames;
use penstock_security::chap;
use penstock_security::tls::Context;
use serde_json::{Map, Value, json};

use super::{Attach, Detach, NvmeError};
use crate::daemon::App;
use crate::methods::keyring::host_keys;
use crate::params;
use crate::rpc::error::{INTERNAL_ERROR, errno};
use crate::rpc::{Kind, RpcError, Table};

const ATTACH: &str = "bdev_nvme_attach_controller";
const PORT: u16 = 4420;
const CONNECT_TIMEOUT_US: u64 = 10_000_000;
/// Ten minutes.
const CONNECT_TIMEOUT_US_MAX: u64 = 600_000_000;

params! {
    /// Of `bdev_nvme_get_io_paths`.
    GetIoPaths {
        /// Name of one bdev. Default: all.
        name: Option<String>,
    }
}

params! {
    /// Of `bdev_nvme_set_preferred_path`.
    SetPreferredPath {
        /// Name of the bdev.
        name: String,
        /// ID of the controller that the path leads to.
        cntlid: u16,
    }
}

params! {
    /// Of `bdev_nvme_set_multipath_policy`.
    SetMultipathPolicy {
        /// Name of the bdev.
        name: String,
        /// active_passive or active_active.
        policy: String,
        /// Active-active: round_robin or queue_depth. Default: round_robin.
        selector: Option<String>,
        /// With round_robin: I/Os by one path before the next one's turn, 1 or more. Default: 1.
        rr_min_io: Option<u32>,
    }
}

pub(super) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "bdev_nvme_get_io_paths",
            Kind::Read,
            "Paths of remote NVMe bdevs on each reactor: whether they are connected, accessible and in use.",
            get_io_paths,
        )
        .add(
            "bdev_nvme_set_preferred_path",
            Kind::Act,
            "Makes a path the one that a bdev's I/O takes while it is among the best; until the next start.",
            set_preferred_path,
        )
        .add(
            "bdev_nvme_set_multipath_policy",
            Kind::Change,
            "Sets how a bdev's I/O is spread over paths that are equally good.",
            set_multipath_policy,
        );
}

impl From<TcpError> for RpcError {
    fn from(error: TcpError) -> Self {
        let message = crate::rpc::error::chain(&error);
        let code = match error {
            TcpError::NameTaken { .. } | TcpError::PathTaken { .. } => errno::EXIST,
            TcpError::NotFound { .. } | TcpError::NoPath { .. } => errno::NODEV,
            TcpError::Full { .. } => errno::NOSPC,
            TcpError::Invalid { .. } => return Self::invalid_params(message),
            TcpError::Bdev(error) => return error.into(),
            _ => errno::IO,
        };
        Self::new(-i64::from(code), message)
    }
}

/// Parameters that mean nothing for PCIe.
pub(super) fn refuse_for_pcie(params: &Attach) -> Result<(), RpcError> {
    let given = [
        ("adrfam", params.adrfam.is_some()),
        ("trsvcid", params.trsvcid.is_some()),
        ("subnqn", params.subnqn.is_some()),
        ("hostnqn", params.hostnqn.is_some()),
        ("hostid", params.hostid.is_some()),
        ("hdgst", params.hdgst == Some(true)),
        ("ddgst", params.ddgst == Some(true)),
        ("fabrics_connect_timeout_us", params.fabrics_connect_timeout_us.unwrap_or(0) != 0),
        ("ctrlr_loss_timeout_sec", params.ctrlr_loss_timeout_sec.unwrap_or(0) != 0),
        ("reconnect_delay_sec", params.reconnect_delay_sec.unwrap_or(0) != 0),
        ("fast_io_fail_timeout_sec", params.fast_io_fail_timeout_sec.unwrap_or(0) != 0),
        ("dhchap_key", params.dhchap_key.is_some()),
        ("dhchap_ctrlr_key", params.dhchap_ctrlr_key.is_some()),
        ("disable_sq_flow_control", params.disable_sq_flow_control == Some(true)),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => {
            Err(RpcError::invalid_params(format!("{ATTACH}: {name} is of TCP; leave it out for PCIe")))
        }
        None => Ok(()),
    }
}

/// The address that traddr, trsvcid and adrfam name.
fn address(
    method: &str,
    traddr: &str,
    trsvcid: Option<&str>,
    adrfam: Option<&str>,
) -> Result<SocketAddr, RpcError> {
    let invalid = |problem: String| RpcError::invalid_params(format!("{method}: {problem}"));
    let ip: IpAddr = traddr
        .parse()
        .map_err(|_| invalid(format!("traddr {traddr:?} is no IP address; give 192.0.2.1 or 2001:db8::1")))?;
    let fits = match adrfam.map(str::to_ascii_lowercase).as_deref() {
        None => true,
        Some("ipv4") => ip.is_ipv4(),
        Some("ipv6") => ip.is_ipv6(),
        Some(_) => return Err(invalid(format!("adrfam {adrfam:?} is neither IPv4 nor IPv6"))),
    };
    if !fits {
        return Err(invalid(format!("traddr {traddr} is not of the family {}", adrfam.unwrap_or_default())));
    }
    let port = match trsvcid {
        None => PORT,
        Some(text) => match text.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(invalid(format!("trsvcid {text:?} is no port; give 1 to 65535"))),
        },
    };
    Ok(SocketAddr::new(ip, port))
}

fn nqn(what: &str, text: &str) -> Result<Nqn, RpcError> {
    Nqn::parse(text.as_bytes())
        .map_err(|error| RpcError::invalid_params(format!("{ATTACH}: {what} {text:?}: {error}")))
}

pub(super) async fn attach(app: Rc<App>, params: Attach) -> Result<Value, RpcError> {
    let invalid = |problem: String| RpcError::invalid_params(format!("{ATTACH}: {problem}"));
    if params.iommu.is_some() {
        return Err(invalid("iommu is of PCIe; leave it out for TCP".to_owned()));
    }
    if let Ok(local) = app.nvme.find(&params.name) {
        let address = local.address().to_owned();
        return Err(NvmeError::NameTaken { name: params.name, address }.into());
    }
    let address = address(ATTACH, &params.traddr, params.trsvcid.as_deref(), params.adrfam.as_deref())?;
    let subnqn =
        params.subnqn.as_deref().ok_or_else(|| invalid("subnqn is missing; TCP needs it".to_owned()))?;
    let subnqn = nqn("subnqn", subnqn)?;
    let multipath = match params.multipath.as_deref() {
        None | Some("multipath") => MultipathMode::Multipath,
        Some("failover") => MultipathMode::Failover,
        Some("disable") => MultipathMode::Disable,
        Some(other) => {
            return Err(invalid(format!("multipath {other:?} is none of disable, failover, multipath")));
        }
    };
    let connect_us = params.fabrics_connect_timeout_us.unwrap_or(CONNECT_TIMEOUT_US);
    if !(1000..=CONNECT_TIMEOUT_US_MAX).contains(&connect_us) {
        let problem = format!(
            "fabrics_connect_timeout_us is {connect_us}; it must be 1000 to {CONNECT_TIMEOUT_US_MAX}"
        );
        return Err(invalid(problem));
    }
    let options = app.nvme.options();
    let loss = LossOptions {
        ctrlr_loss_timeout_sec: params.ctrlr_loss_timeout_sec.unwrap_or(options.loss.ctrlr_loss_timeout_sec),
        reconnect_delay_sec: params.reconnect_delay_sec.unwrap_or(options.loss.reconnect_delay_sec),
        fast_io_fail_timeout_sec: params
            .fast_io_fail_timeout_sec
            .unwrap_or(options.loss.fast_io_fail_timeout_sec),
    };
    let hostnqn = params.hostnqn.as_deref().map(|text| nqn("hostnqn", text)).transpose()?;
    let hostid = params.hostid.as_deref().map(uuid::Uuid::parse_str).transpose();
    let hostid = hostid.map_err(|error| invalid(format!("hostid is no UUID: {error}")))?;
    let (auth, tls) = keys(&app, &params)?;
    let names = app
        .remote
        .attach(
            TcpAttach {
                auth,
                tls,
                params: saved(&params, address),
                name: params.name,
                address,
                subnqn,
                hostnqn,
                hostid: hostid.map(uuid::Uuid::into_bytes),
                hdgst: params.hdgst.unwrap_or(false),
                ddgst: params.ddgst.unwrap_or(false),
                sq_flow_control: !params.disable_sq_flow_control.unwrap_or(true),
                num_io_queues: params.num_io_queues,
                connect_timeout: Duration::from_micros(connect_us),
                multipath,
                loss,
                keep_trying: app.is_restoring(),
            },
            &options,
        )
        .await?;
    Ok(json!(names))
}

/// What the host authenticates itself with, and what its connections are secured with.
fn keys(app: &App, params: &Attach) -> Result<(Option<Arc<AuthConfig>>, Option<TlsKey>), RpcError> {
    let names = KeyNames {
        psk: params.psk.clone(),
        dhchap_key: params.dhchap_key.clone(),
        dhchap_ctrlr_key: params.dhchap_ctrlr_key.clone(),
    };
    let keys = host_keys(app, names)?;
    let auth = keys.chap.map(|keys| Arc::new(AuthConfig { keys, policy: chap::Policy::default() }));
    let tls = keys.psk.map(|psk| {
        let context = Context::new().map_err(|error| RpcError::of(INTERNAL_ERROR, &error))?;
        Ok::<_, RpcError>(TlsKey { context: Arc::new(context), psk })
    });
    Ok((auth, tls.transpose()?))
}

/// What was given, to be given again.
fn saved(params: &Attach, address: SocketAddr) -> Value {
    let all = [
        ("name", json!(params.name)),
        ("trtype", json!("TCP")),
        ("adrfam", json!(if address.is_ipv4() { "IPv4" } else { "IPv6" })),
        ("traddr", json!(address.ip().to_string())),
        ("trsvcid", json!(address.port().to_string())),
        ("subnqn", json!(params.subnqn)),
        ("num_io_queues", json!(params.num_io_queues)),
        ("hdgst", json!(params.hdgst)),
        ("ddgst", json!(params.ddgst)),
        ("fabrics_connect_timeout_us", json!(params.fabrics_connect_timeout_us)),
        ("multipath", json!(params.multipath)),
        ("ctrlr_loss_timeout_sec", json!(params.ctrlr_loss_timeout_sec)),
        ("reconnect_delay_sec", json!(params.reconnect_delay_sec)),
        ("fast_io_fail_timeout_sec", json!(params.fast_io_fail_timeout_sec)),
        ("dhchap_key", json!(params.dhchap_key)),
        ("dhchap_ctrlr_key", json!(params.dhchap_ctrlr_key)),
        ("psk", json!(params.psk)),
        ("disable_sq_flow_control", json!(params.disable_sq_flow_control)),
    ];
    let given = all.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(given.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

pub(super) async fn detach(app: Rc<App>, params: Detach) -> Result<Value, RpcError> {
    const METHOD: &str = "bdev_nvme_detach_controller";
    let disk = app.remote.find(&params.name)?;
    if let Some(other) = params.subnqn.as_deref().filter(|nqn| *nqn != disk.subnqn().as_str()) {
        let message = format!("{METHOD}: {} is of {}, not of {other}", params.name, disk.subnqn().as_str());
        return Err(RpcError::new(-i64::from(errno::NODEV), message));
    }
    drop(disk);
    let trsvcid = params.trsvcid.as_deref();
    let path = match params.traddr.as_deref() {
        Some(traddr) => Some(address(METHOD, traddr, trsvcid, params.adrfam.as_deref())?),
        None if trsvcid.is_some() => {
            return Err(RpcError::invalid_params(format!("{METHOD}: trsvcid goes with traddr")));
        }
        None => None,
    };
    app.remote.detach(&params.name, path).await?;
    Ok(Value::Bool(true))
}

/// What the controller behind the first path that was ever connected is, and where.
pub(super) fn identity_of(disk: &DiskShared) -> Option<(Identity, String)> {
    disk.reports().into_iter().find_map(|(_, report)| {
        Some((report.identity?, report.addresses.first().map(ToString::to_string).unwrap_or_default()))
    })
}

pub(super) fn describe(disk: &DiskShared) -> Value {
    let paths: Vec<Value> = disk.reports().iter().map(|(_, report)| path(disk, report)).collect();
    json!({"name": disk.name(), "ctrlrs": paths})
}

fn path(disk: &DiskShared, report: &PathReport) -> Value {
    let namespaces: Vec<Value> = report
        .namespaces
        .iter()
        .map(|(nsid, ns)| match ns {
            Ok(ns) => json!({
                "nsid": nsid,
                "bdev": penstock_nvme::bdev::NvmeBdev::name_of(disk.name(), *nsid),
                "block_size": ns.block_bytes,
                "num_blocks": ns.blocks,
                "uuid": ns.uuid.to_string(),
                "ana_state": report.ana_state(*nsid),
            }),
            Err(refusal) => json!({"nsid": nsid, "refused": refusal.to_string()}),
        })
        .collect();
    let mut addresses = report.addresses.iter().map(|address| trid(*address, disk.subnqn()));
    let mut one = json!({
        "state": report.condition.name(),
        "trid": addresses.next(),
        "alternate_trids": addresses.collect::<Vec<_>>(),
        "cntlid": report.identity.as_ref().map_or(0, |identity| identity.cntlid),
        "host": {"nqn": disk.hostnqn().as_str()},
        "ctrlr_data": report.identity,
        "namespaces": namespaces,
        "connects": report.connects,
        "aborts": report.aborts,
        "commands": report.stats.commands.read(),
        "retries": report.stats.retries.read(),
        "rerouted": report.stats.rerouted.read(),
        "timeouts": report.stats.timeouts.read(),
    });
    if let (PathCondition::Reconnecting(why) | PathCondition::Failed(why), Some(members)) =
        (&report.condition, one.as_object_mut())
    {
        members.insert("failure".to_owned(), json!(why));
    }
    one
}

async fn get_io_paths(app: Rc<App>, params: GetIoPaths) -> Result<Value, RpcError> {
    let paths = app.remote.io_paths(params.name.as_deref()).await?;
    let mut groups: Vec<Value> = Vec::new();
    for reactor in &app.reactors {
        let of_reactor = paths.iter().filter(|path| path.reactor == reactor.id().0);
        let list: Vec<Value> = of_reactor
            .map(|path| {
                json!({
                    "bdev_name": path.bdev,
                    "cntlid": path.cntlid,
                    "current": path.current,
                    "connected": path.connected,
                    "accessible": path.accessible,
                    "ana_state": path.ana_state,
                    "transport": path.trid,
                })
            })
            .collect();
        groups.push(json!({"thread": format!("reactor_{}", reactor.id().0), "io_paths": list}));
    }
    Ok(json!({ "poll_groups": groups }))
}

async fn set_preferred_path(app: Rc<App>, params: SetPreferredPath) -> Result<Value, RpcError> {
    app.remote.set_preferred_path(&params.name, params.cntlid).await?;
    Ok(Value::Bool(true))
}

async fn set_multipath_policy(app: Rc<App>, params: SetMultipathPolicy) -> Result<Value, RpcError> {
    let invalid =
        |problem: String| RpcError::invalid_params(format!("bdev_nvme_set_multipath_policy: {problem}"));
    let policy = match params.policy.as_str() {
        "active_passive" => Policy::ActivePassive,
        "active_active" => Policy::ActiveActive,
        other => {
            return Err(invalid(format!("policy {other:?} is neither active_passive nor active_active")));
        }
    };
    let selector = match params.selector.as_deref() {
        None | Some("round_robin") => Selector::RoundRobin,
        Some("queue_depth") => Selector::QueueDepth,
        Some(other) => {
            return Err(invalid(format!("selector {other:?} is neither round_robin nor queue_depth")));
        }
    };
    if params.rr_min_io == Some(0) {
        return Err(invalid("rr_min_io is 0; it must be 1 or more".to_owned()));
    }
    let rr_min_io = params.rr_min_io.unwrap_or(1);
    let preferred = app.remote.multipath_options(&params.name)?.preferred;
    let options = MultipathOptions { policy, selector, rr_min_io, preferred };
    app.remote.set_multipath_options(&params.name, options).await?;
    Ok(Value::Bool(true))
}
