//! Methods about the NVMe-oF target, with SPDK's names and parameters; the target does the work.

use std::rc::Rc;

use penstock_nvmf::auth::KeyNames;
use penstock_nvmf::config::DuplicateHost;
use penstock_nvmf::target::{CreateSubsystem, ListenAddress, ListenOptions, Namespace, TargetError};
use penstock_nvmf::transport_options::TransportOptions;
use serde_json::{Value, json};

use crate::daemon::App;
use crate::methods::keyring::host_keys;
use crate::params;
use crate::rpc::error::{INTERNAL_ERROR, INVALID_PARAMS, INVALID_STATE, bdev_code, errno};
use crate::rpc::param::Off;
use crate::rpc::{Kind, RpcError, Table};

/// The one target's name.
const TARGET: &str = "nvmf_tgt";
/// What "discovery" stands for.
const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

params! {
    /// Of `nvmf_create_transport`.
    CreateTransport {
        /// Transport type: TCP.
        trtype: String,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
        /// Entries of an I/O queue that a host may ask for. Default: 1024.
        max_queue_depth: Option<u16>,
        /// I/O queues of one controller. Default: 128.
        max_io_qpairs_per_ctrlr: Option<u16>,
        /// Data that a command capsule may hold, in bytes. Default: 8192.
        in_capsule_data_size: Option<u32>,
        /// Data of one I/O, in bytes. Default: 1048576.
        max_io_size: Option<u32>,
        /// The unit in which num_shared_buffers counts, in bytes. Default: 131072.
        io_unit_size: Option<u32>,
        /// Entries of an admin queue. Default: 128.
        max_aq_depth: Option<u16>,
        /// Data that all connections may hold in buffers at once, in io_unit_size. Default: 2048.
        num_shared_buffers: Option<u32>,
        /// Whether a read's last data PDU stands for its completion. Default: true.
        c2h_success: Option<bool>,
        /// SO_PRIORITY of the sockets: 0 to 6. Default: 0.
        sock_priority: Option<u32>,
        /// Seconds that an Abort waits for the end of its command. Default: 1.
        abort_timeout_sec: Option<u32>,
        /// Connections that wait to be accepted, per listener. Default: 512.
        acceptor_backlog: Option<u32>,
        /// Buffers come from the reactors' own caches.
        buf_cache_size: Option<Off>,
        /// Buffers come from the reactors' own caches.
        iobuf_small_cache_size: Option<Off>,
        /// Buffers come from the reactors' own caches.
        iobuf_large_cache_size: Option<Off>,
        /// Data is never copied more than once anyway.
        zcopy: Option<Off>,
        /// RDMA only.
        num_cqe: Option<Off>,
        /// RDMA only.
        max_srq_depth: Option<Off>,
        /// RDMA only.
        no_srq: Option<Off>,
        /// There is no protection information.
        dif_insert_or_strip: Option<Off>,
        /// RDMA only.
        no_wr_batching: Option<Off>,
        /// Control messages have buffers of their own.
        control_msg_num: Option<Off>,
        /// vfio-user only.
        disable_mappable_bar0: Option<Off>,
        /// vfio-user only.
        disable_adaptive_irq: Option<Off>,
        /// vfio-user only.
        disable_shadow_doorbells: Option<Off>,
        /// Connections are taken as soon as they come.
        acceptor_poll_rate: Option<Off>,
        /// The kernel's own retransmission limits hold.
        ack_timeout: Option<Off>,
        /// RDMA only.
        data_wr_pool_size: Option<Off>,
        /// No command is passed through to a device.
        disable_command_passthru: Option<Off>,
        /// The keep-alive granularity is fixed.
        kas: Option<Off>,
        /// The smallest keep-alive timeout is fixed.
        min_kato: Option<Off>,
        /// No feature is hidden.
        masked_oncs: Option<Off>,
        /// No feature is hidden.
        masked_fuses: Option<Off>,
    }
}

params! {
    /// Of `nvmf_get_transports`.
    GetTransports {
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
        /// Only this type. Default: all.
        trtype: Option<String>,
    }
}

params! {
    /// Of `nvmf_get_subsystems`.
    GetSubsystems {
        /// Only this subsystem. Default: all.
        nqn: Option<String>,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of methods that look at the target.
    OfTarget {
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of methods that only name a subsystem.
    OfSubsystem {
        /// The subsystem.
        nqn: String,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_create_subsystem`.
    NewSubsystem {
        /// Its name.
        nqn: String,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
        /// Serial number: 1 to 20 printable ASCII characters. Default: zeroes.
        serial_number: Option<String>,
        /// Model number: 1 to 40 printable ASCII characters.
        model_number: Option<String>,
        /// The largest namespace ID. Default: 32.
        max_namespaces: Option<u32>,
        /// Whether every host may connect. Default: false.
        allow_any_host: Option<bool>,
        /// The smallest controller ID. Default: 1.
        min_cntlid: Option<u16>,
        /// The largest controller ID. Default: 65519.
        max_cntlid: Option<u16>,
        /// Whether Asymmetric Namespace Access is reported. Default: false.
        ana_reporting: Option<bool>,
        /// The largest ANA group ID. Default: max_namespaces.
        max_ana_groups: Option<u32>,
        /// There is no label.
        admin_label: Option<Off>,
        /// Blocks that one Dataset Management command deallocates at most (DMRSL); 0: no limit. Default: 2097152.
        dmrsl: Option<u32>,
        /// The longest Write Zeroes: log2 of its length in pages of 4096 bytes (WZSL); 0: no limit. Default: 11.
        wzsl: Option<u8>,
        /// No command is passed through to a device.
        passthrough: Option<Off>,
        /// Whether hosts may reset the whole subsystem (NSSR). Default: false.
        enable_nssr: Option<bool>,
        /// What happens when a host that has a controller connects another one at the same address: allow, reject (it is
        /// asked to try again) or replace (the old one ends first). Default: allow.
        duplicate_host: Option<DuplicateHost>,
        /// Command Quiesce Time that hosts are told (CQT): how long commands may go on after a controller has lost its
        /// host, in milliseconds. Default: 5000.
        command_quiesce_ms: Option<u16>,
    }
}

params! {
    /// A namespace.
    NewNamespace {
        /// The bdev: name, alias or UUID.
        bdev_name: String,
        /// Its namespace ID. Default: the first that is free.
        nsid: Option<u32>,
        /// NGUID: 32 hexadecimal digits. Default: from the UUID.
        nguid: Option<String>,
        /// EUI64: 16 hexadecimal digits. Default: none.
        eui64: Option<String>,
        /// Its UUID. Default: the bdev's.
        uuid: Option<String>,
        /// The file in which reservations persist that hosts want to persist through power loss. Default: none.
        ptpl_file: Option<String>,
        /// Its ANA group. Default: the one with the number of its namespace ID.
        anagrpid: Option<u32>,
        /// All namespaces are visible to all hosts of the subsystem.
        no_auto_visible: Option<Off>,
        /// There is no metadata.
        hide_metadata: Option<Off>,
    }
}

params! {
    /// Of `nvmf_subsystem_add_ns`.
    AddNs {
        /// The subsystem.
        nqn: String,
        /// The namespace.
        namespace: NewNamespace,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_subsystem_remove_ns`.
    RemoveNs {
        /// The subsystem.
        nqn: String,
        /// The namespace ID.
        nsid: u32,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// An address.
    Address {
        /// Transport type: TCP.
        trtype: String,
        /// Address family: IPv4 or IPv6. Default: that of traddr.
        adrfam: Option<String>,
        /// IP address.
        traddr: String,
        /// Port; 0 picks a free one. Default: 8009, the discovery port.
        trsvcid: Option<String>,
    }
}

params! {
    /// Of `nvmf_subsystem_add_listener`.
    AddListener {
        /// The subsystem, or "discovery".
        nqn: String,
        /// The address.
        listen_address: Address,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
        /// Whether nothing is talked there without TLS. Default: false (a host with a key may begin with TLS all the same).
        secure_channel: Option<bool>,
        /// The state of all ANA groups for hosts that come by it: optimized, non_optimized, inaccessible, persistent_loss
        /// or change. Default: optimized.
        ana_state: Option<String>,
        /// There is one implementation of sockets.
        sock_impl: Option<Off>,
        /// vfio-user only.
        numa_id: Option<Off>,
    }
}

params! {
    /// Of `nvmf_subsystem_remove_listener`.
    RemoveListener {
        /// The subsystem, or "discovery".
        nqn: String,
        /// The address.
        listen_address: Address,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_subsystem_add_host`.
    AddHost {
        /// The subsystem.
        nqn: String,
        /// The host's NQN.
        host: String,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
        /// Name of the pre-shared key that the host comes with by TLS; it is not let in without. Default: none.
        psk: Option<String>,
        /// Name of the secret that the host authenticates itself with (DH-HMAC-CHAP). Default: it need not.
        dhchap_key: Option<String>,
        /// Name of the secret that the controller authenticates itself with to hosts that ask for it.
        dhchap_ctrlr_key: Option<String>,
    }
}

params! {
    /// Of `nvmf_subsystem_set_keys`.
    SetKeys {
        /// The subsystem.
        nqn: String,
        /// The host's NQN.
        host: String,
        /// Name of the secret that the host authenticates itself with. Default: it need not any more.
        dhchap_key: Option<String>,
        /// Name of the secret that the controller authenticates itself with to hosts that ask for it.
        dhchap_ctrlr_key: Option<String>,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

params! {
    /// Of `nvmf_subsystem_remove_host`.
    RemoveHost {
        /// The subsystem.
        nqn: String,
        /// The host's NQN.
        host: String,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
        /// Its connections are closed at once.
        timeout_ms: Option<Off>,
    }
}

params! {
    /// Of `nvmf_subsystem_allow_any_host`.
    AllowAnyHost {
        /// The subsystem.
        nqn: String,
        /// Whether every host may connect, or only those on the list.
        allow_any_host: bool,
        /// The target: nvmf_tgt, the only one.
        tgt_name: Option<String>,
    }
}

#[expect(clippy::too_many_lines, reason = "a table, one entry a method")]
pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "nvmf_create_transport",
            Kind::Change,
            "Begins to serve NVMe/TCP; its options are then fixed.",
            create_transport,
        )
        .add("nvmf_get_transports", Kind::Read, "The transports and their options.", get_transports)
        .add(
            "nvmf_create_subsystem",
            Kind::Change,
            "Makes an NVM subsystem without namespaces and listeners.",
            create_subsystem,
        )
        .add(
            "nvmf_delete_subsystem",
            Kind::Change,
            "Deletes a subsystem; its hosts lose their connections.",
            delete_subsystem,
        )
        .add(
            "nvmf_get_subsystems",
            Kind::Read,
            "Subsystems with their listeners, hosts and namespaces.",
            get_subsystems,
        )
        .add(
            "nvmf_subsystem_add_ns",
            Kind::Change,
            "Adds a bdev as a namespace; answers its ID. Hosts are told.",
            add_ns,
        )
        .add(
            "nvmf_subsystem_remove_ns",
            Kind::Change,
            "Takes a namespace out of a subsystem. Hosts are told.",
            remove_ns,
        )
        .add(
            "nvmf_subsystem_add_listener",
            Kind::Change,
            "Lets hosts reach a subsystem at an address.",
            add_listener,
        )
        .add(
            "nvmf_subsystem_remove_listener",
            Kind::Change,
            "Ends that hosts reach a subsystem at an address.",
            remove_listener,
        )
        .add("nvmf_subsystem_get_listeners", Kind::Read, "Where a subsystem is reached.", get_listeners)
        .add("nvmf_subsystem_add_host", Kind::Change, "Lets a host connect to a subsystem.", add_host)
        .add(
            "nvmf_subsystem_set_keys",
            Kind::Change,
            "Changes the secrets of a host, from its next authentication on; it stays connected.",
            set_keys,
        )
        .add(
            "nvmf_subsystem_remove_host",
            Kind::Change,
            "Ends that a host may connect; it loses its connections.",
            remove_host,
        )
        .add(
            "nvmf_subsystem_allow_any_host",
            Kind::Change,
            "Lets every host connect to a subsystem, or only those on its list.",
            allow_any_host,
        )
        .add(
            "nvmf_subsystem_get_controllers",
            Kind::Read,
            "The controllers of a subsystem: who is connected.",
            get_controllers,
        )
        .add(
            "nvmf_subsystem_get_qpairs",
            Kind::Read,
            "The queue pairs of a subsystem's controllers.",
            get_qpairs,
        )
        .add("nvmf_get_stats", Kind::Read, "What the target does on each reactor.", get_stats)
        .add("nvmf_get_targets", Kind::Read, "Names of the targets: there is one.", get_targets);
}

impl From<TargetError> for RpcError {
    fn from(error: TargetError) -> Self {
        let code = match &error {
            TargetError::Bdev { source, .. } => bdev_code(source),
            TargetError::NoSubsystem { .. } | TargetError::NoTarget { .. } | TargetError::Missing { .. } => {
                -i64::from(errno::NODEV)
            }
            TargetError::SubsystemExists { .. }
            | TargetError::TransportExists
            | TargetError::Present { .. } => -i64::from(errno::EXIST),
            TargetError::NoTransport { .. } | TargetError::NoAna { .. } => INVALID_STATE,
            TargetError::Option(_) | TargetError::Nqn { .. } | TargetError::Invalid { .. } => INVALID_PARAMS,
            TargetError::Full { .. } => -i64::from(errno::NOSPC),
            _ => INTERNAL_ERROR,
        };
        Self::of(code, &error)
    }
}

pub(super) fn check_target(name: Option<&str>) -> Result<(), RpcError> {
    match name {
        None | Some(TARGET) => Ok(()),
        Some(other) => Err(TargetError::NoTarget { name: other.to_owned() }.into()),
    }
}

pub(super) fn subsystem_name(nqn: &str) -> &str {
    if nqn == "discovery" { DISCOVERY_NQN } else { nqn }
}

impl From<Address> for ListenAddress {
    fn from(address: Address) -> Self {
        Self {
            trtype: address.trtype,
            adrfam: address.adrfam,
            traddr: address.traddr,
            trsvcid: address.trsvcid,
        }
    }
}

async fn create_transport(app: Rc<App>, params: CreateTransport) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let default = TransportOptions::default();
    let options = TransportOptions {
        trtype: params.trtype.to_ascii_uppercase(),
        max_queue_depth: params.max_queue_depth.unwrap_or(default.max_queue_depth),
        max_io_qpairs_per_ctrlr: params.max_io_qpairs_per_ctrlr.unwrap_or(default.max_io_qpairs_per_ctrlr),
        in_capsule_data_size: params.in_capsule_data_size.unwrap_or(default.in_capsule_data_size),
        max_io_size: params.max_io_size.unwrap_or(default.max_io_size),
        io_unit_size: params.io_unit_size.unwrap_or(default.io_unit_size),
        max_aq_depth: params.max_aq_depth.unwrap_or(default.max_aq_depth),
        num_shared_buffers: params.num_shared_buffers.unwrap_or(default.num_shared_buffers),
        c2h_success: params.c2h_success.unwrap_or(default.c2h_success),
        sock_priority: params.sock_priority.unwrap_or(default.sock_priority),
        abort_timeout_sec: params.abort_timeout_sec.unwrap_or(default.abort_timeout_sec),
        acceptor_backlog: params.acceptor_backlog.unwrap_or(default.acceptor_backlog),
    };
    app.target.create_transport(options).await?;
    Ok(Value::Bool(true))
}

async fn get_transports(app: Rc<App>, params: GetTransports) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let all = app.target.get_transports();
    let Some(wanted) = params.trtype else { return Ok(all) };
    let found: Vec<Value> = all
        .as_array()
        .into_iter()
        .flatten()
        .filter(|one| {
            one.get("trtype").and_then(Value::as_str).is_some_and(|name| name.eq_ignore_ascii_case(&wanted))
        })
        .cloned()
        .collect();
    if found.is_empty() {
        return Err(RpcError::not_found(format!(
            "there is no transport {wanted:?}; create it with nvmf_create_transport"
        )));
    }
    Ok(Value::Array(found))
}

async fn create_subsystem(app: Rc<App>, params: NewSubsystem) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let mut new = CreateSubsystem::named(&params.nqn);
    new.serial_number = params.serial_number.unwrap_or(new.serial_number);
    new.model_number = params.model_number.unwrap_or(new.model_number);
    new.max_namespaces = params.max_namespaces.unwrap_or(new.max_namespaces);
    new.allow_any_host = params.allow_any_host.unwrap_or(new.allow_any_host);
    new.min_cntlid = params.min_cntlid.unwrap_or(new.min_cntlid);
    new.max_cntlid = params.max_cntlid.unwrap_or(new.max_cntlid);
    new.enable_nssr = params.enable_nssr.unwrap_or(false);
    new.duplicate_host = params.duplicate_host.unwrap_or_default();
    new.command_quiesce_ms = params.command_quiesce_ms.unwrap_or(new.command_quiesce_ms);
    new.ana_reporting = params.ana_reporting.unwrap_or(false);
    new.max_ana_groups = params.max_ana_groups;
    new.dmrsl = params.dmrsl.unwrap_or(new.dmrsl);
    new.wzsl = params.wzsl.unwrap_or(new.wzsl);
    app.target.create_subsystem(&new).await?;
    Ok(Value::Bool(true))
}

async fn delete_subsystem(app: Rc<App>, params: OfSubsystem) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.target.delete_subsystem(&params.nqn).await?;
    Ok(Value::Bool(true))
}

async fn get_subsystems(app: Rc<App>, params: GetSubsystems) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    Ok(app.target.get_subsystems(params.nqn.as_deref().map(subsystem_name))?)
}

async fn add_ns(app: Rc<App>, params: AddNs) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let mut new = Namespace::on(&params.namespace.bdev_name);
    new.nsid = params.namespace.nsid;
    new.nguid = params.namespace.nguid;
    new.ptpl_file = params.namespace.ptpl_file.map(std::path::PathBuf::from);
    new.eui64 = params.namespace.eui64;
    new.uuid = params.namespace.uuid;
    new.anagrpid = params.namespace.anagrpid;
    Ok(json!(app.target.add_ns(&params.nqn, &new).await?))
}

async fn remove_ns(app: Rc<App>, params: RemoveNs) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.target.remove_ns(&params.nqn, params.nsid).await?;
    Ok(Value::Bool(true))
}

async fn add_listener(app: Rc<App>, params: AddListener) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let options =
        ListenOptions { ana_state: params.ana_state, secure_channel: params.secure_channel.unwrap_or(false) };
    let nqn = subsystem_name(&params.nqn);
    app.target.add_listener_with(nqn, &params.listen_address.into(), &options).await?;
    Ok(Value::Bool(true))
}

async fn remove_listener(app: Rc<App>, params: RemoveListener) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.target.remove_listener(subsystem_name(&params.nqn), &params.listen_address.into()).await?;
    Ok(Value::Bool(true))
}

async fn get_listeners(app: Rc<App>, params: OfSubsystem) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    Ok(app.target.get_listeners(subsystem_name(&params.nqn))?)
}

async fn add_host(app: Rc<App>, params: AddHost) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let AddHost { nqn, host, psk, dhchap_key, dhchap_ctrlr_key, .. } = params;
    let keys = host_keys(&app, KeyNames { psk, dhchap_key, dhchap_ctrlr_key })?;
    app.target.add_host(&nqn, &host, keys).await?;
    Ok(Value::Bool(true))
}

async fn set_keys(app: Rc<App>, params: SetKeys) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let SetKeys { nqn, host, dhchap_key, dhchap_ctrlr_key, .. } = params;
    let keys = host_keys(&app, KeyNames { psk: None, dhchap_key, dhchap_ctrlr_key })?;
    app.target.set_keys(&nqn, &host, keys).await?;
    Ok(Value::Bool(true))
}

async fn remove_host(app: Rc<App>, params: RemoveHost) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.target.remove_host(&params.nqn, &params.host).await?;
    Ok(Value::Bool(true))
}

async fn allow_any_host(app: Rc<App>, params: AllowAnyHost) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    app.target.allow_any_host(&params.nqn, params.allow_any_host).await?;
    Ok(Value::Bool(true))
}

async fn get_controllers(app: Rc<App>, params: OfSubsystem) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    Ok(app.target.get_controllers(subsystem_name(&params.nqn)).await?)
}

async fn get_qpairs(app: Rc<App>, params: OfSubsystem) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    Ok(app.target.get_qpairs(subsystem_name(&params.nqn)).await?)
}

async fn get_stats(app: Rc<App>, params: OfTarget) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    Ok(app.target.get_stats().await?)
}

async fn get_targets(_app: Rc<App>, _params: crate::rpc::param::Nothing) -> Result<Value, RpcError> {
    Ok(json!([TARGET]))
}
