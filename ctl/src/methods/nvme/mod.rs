//! Methods about NVMe controllers that are driven from user space: SPDK's names and parameters.

mod remote;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use penstock_nvme::controller::{Controller, ControllerState, Health, Identity};
use penstock_nvme::hotplug;
use penstock_nvme::options::{NvmeOptions, TimeoutAction};
use penstock_nvme::vfio::IommuMode;
use penstock_nvme::{NvmeControllers, NvmeError, PcieAttach};
use serde_json::{Value, json};

use crate::daemon::App;
use crate::params;
use crate::rpc::error::errno;
use crate::rpc::param::Off;
use crate::rpc::{Kind, RpcError, Table};

/// Looking for devices more often helps nobody.
const HOTPLUG_PERIOD_MIN: Duration = Duration::from_millis(1);

params! {
    /// Of `bdev_nvme_set_options`.
    SetOptions {
        /// What happens to an I/O command that takes longer than timeout_us: none, reset (the controller), or abort, then
        /// reset. Default: abort.
        action_on_timeout: Option<String>,
        /// How long an I/O command may take, in microseconds; 0: for ever. Default: 30000000.
        timeout_us: Option<u64>,
        /// How long an admin command may take, in microseconds. Default: 30000000.
        timeout_admin_us: Option<u64>,
        /// Between looks for events and at the controller's state, in microseconds. Default: 10000.
        nvme_adminq_poll_period_us: Option<u64>,
        /// Commands of one I/O queue at once, 1 to 1023. Default: 255.
        io_queue_requests: Option<u32>,
        /// Times that an I/O is tried again, 0 to 100, after a reset or a status that passes by itself. Default: 3.
        bdev_retry_count: Option<u8>,
        /// I/O queues are polled every turn.
        nvme_ioq_poll_period_us: Option<Off>,
        /// Doorbells are always written once for all that a turn submits: true.
        delay_cmd_submit: Option<bool>,
        /// Remote controllers: after so many milliseconds without a sign of life each side takes the other for dead, 100 to
        /// 3600000; 0: never. Default: 10000.
        keep_alive_timeout_ms: Option<u32>,
        /// Arbitration: not supported.
        arbitration_burst: Option<Off>,
        /// Arbitration: not supported.
        low_priority_weight: Option<Off>,
        /// Arbitration: not supported.
        medium_priority_weight: Option<Off>,
        /// Arbitration: not supported.
        high_priority_weight: Option<Off>,
        /// Of fabrics.
        transport_retry_count: Option<Off>,
        /// Of RDMA.
        transport_ack_timeout: Option<Off>,
        /// A remote controller is given up after so many seconds without a connection; -1: never, 0: after one attempt.
        /// Default: 600.
        ctrlr_loss_timeout_sec: Option<i32>,
        /// Between attempts to connect to it, or to start a PCIe controller that was given up, in seconds. Default: 2.
        reconnect_delay_sec: Option<u32>,
        /// I/O does not wait for it any more after so many seconds without a connection; 0: until it is given up. Default: 0.
        fast_io_fail_timeout_sec: Option<u32>,
        /// A path that comes back is used again as soon as it is among the best.
        disable_auto_failback: Option<Off>,
        /// Namespaces without an identity always get one made of serial number and NSID.
        generate_uuids: Option<bool>,
        /// Of fabrics.
        transport_tos: Option<Off>,
        /// Errors are always counted.
        nvme_error_stat: Option<bool>,
        /// Of RDMA.
        rdma_srq_size: Option<Off>,
        /// Of multipath.
        io_path_stat: Option<Off>,
        /// Of SPDK's accel framework.
        allow_accel_sequence: Option<Off>,
        /// Of RDMA.
        rdma_max_cq_size: Option<Off>,
        /// Of RDMA.
        rdma_cm_event_timeout_ms: Option<Off>,
        /// All that there are are offered to a controller that asks for authentication.
        dhchap_digests: Option<Off>,
        /// All that there are are offered to a controller that asks for authentication.
        dhchap_dhgroups: Option<Off>,
        /// Of RDMA.
        rdma_umr_per_io: Option<Off>,
        /// Of fabrics.
        tcp_connect_timeout_ms: Option<Off>,
        /// Flushes always reach a device with a volatile write cache: true.
        enable_flush: Option<bool>,
        /// Of multipath.
        multipath_opts: Option<Off>,
    }
}

params! {
    /// Of `bdev_nvme_attach_controller`.
    Attach {
        /// Name of the controller; its bdevs are named by it, n and the NSID.
        name: String,
        /// PCIe or TCP.
        trtype: String,
        /// The PCI address (0000:5e:00.0), or the IP address.
        traddr: String,
        /// I/O queue pairs at most (PCIe; default: one for each reactor, as far as the device has so many), or to ask for at
        /// least (TCP; each reactor gets one in any case).
        num_io_queues: Option<u16>,
        /// PCIe: how the device reaches memory: auto, type1, iommufd, or noiommu, which lets it reach all of the machine's.
        /// Default: auto. Not SPDK's.
        iommu: Option<String>,
        /// TCP: IPv4 or IPv6. Default: by the address.
        adrfam: Option<String>,
        /// TCP: the port. Default: 4420.
        trsvcid: Option<String>,
        /// Of RDMA.
        priority: Option<Off>,
        /// TCP: NQN of the subsystem.
        subnqn: Option<String>,
        /// TCP: who we are. Default: as the first path of the controller; else made of hostid, or this daemon's own.
        hostnqn: Option<String>,
        /// TCP: the host's identifier, a UUID. Default: made of hostnqn. Not SPDK's.
        hostid: Option<String>,
        /// The address to connect from is the system's choice.
        hostaddr: Option<Off>,
        /// The port to connect from is the system's choice.
        hostsvcid: Option<Off>,
        /// Protection information: not supported.
        prchk_reftag: Option<Off>,
        /// Protection information: not supported.
        prchk_guard: Option<Off>,
        /// TCP: digests of headers. Default: false.
        hdgst: Option<bool>,
        /// TCP: digests of data. Default: false.
        ddgst: Option<bool>,
        /// TCP: limit of each step of connecting, in microseconds. Default: 10000000.
        fabrics_connect_timeout_us: Option<u64>,
        /// TCP: what it becomes where the name is taken: disable (an error), failover (an address that the controller goes to
        /// when it cannot reach its own), or multipath (a path of its own, connected at once). Default: multipath.
        multipath: Option<String>,
        /// TCP: as of bdev_nvme_set_options.
        ctrlr_loss_timeout_sec: Option<i32>,
        /// TCP: as of bdev_nvme_set_options.
        reconnect_delay_sec: Option<u32>,
        /// TCP: as of bdev_nvme_set_options.
        fast_io_fail_timeout_sec: Option<u32>,
        /// TCP: name of the pre-shared key (keyring_file_add_key) to secure all connections with by TLS. Default: none; where
        /// the controller wants TLS after an authentication, the key that this makes.
        psk: Option<String>,
        /// As many as there are namespaces.
        max_bdevs: Option<Off>,
        /// TCP: name of the key to authenticate this host by, where the controller asks for that.
        dhchap_key: Option<String>,
        /// TCP: name of the key that the controller has to authenticate itself by.
        dhchap_ctrlr_key: Option<String>,
        /// Namespaces of other command sets than NVM are no bdevs.
        allow_unrecognized_csi: Option<Off>,
        /// See bdev_nvme_set_multipath_policy.
        multipath_opts: Option<Off>,
        /// TCP: without it the controller may spare a message for each read. Default: true.
        disable_sq_flow_control: Option<bool>,
    }
}

params! {
    /// Of `bdev_nvme_detach_controller`.
    Detach {
        /// Name of the controller.
        name: String,
        /// PCIe or TCP; only a controller of that transport is detached.
        trtype: Option<String>,
        /// PCIe: only the controller at that address is detached. TCP: only the path to that address is.
        traddr: Option<String>,
        /// TCP: IPv4 or IPv6.
        adrfam: Option<String>,
        /// TCP: the port of the path. Default: 4420.
        trsvcid: Option<String>,
        /// TCP: only a controller of that subsystem is detached.
        subnqn: Option<String>,
        /// Of fabrics.
        hostaddr: Option<Off>,
        /// Of fabrics.
        hostsvcid: Option<Off>,
    }
}

params! {
    /// Of `bdev_nvme_get_controllers`.
    GetControllers {
        /// Name of one controller. Default: all.
        name: Option<String>,
    }
}

params! {
    /// Of `bdev_nvme_reset_controller`.
    ResetController {
        /// Name of the controller.
        name: String,
        /// TCP: only the path to the controller with that ID. Default: all paths.
        cntlid: Option<u16>,
    }
}

params! {
    /// Of `bdev_nvme_get_controller_health_info`.
    GetHealth {
        /// Name of the controller.
        name: String,
    }
}

params! {
    /// Of `bdev_nvme_get_controller_error_log`.
    GetErrors {
        /// Name of the controller.
        name: String,
    }
}

params! {
    /// Of `bdev_nvme_set_hotplug`.
    SetHotplug {
        /// NVMe devices that vfio-pci has, or is given, are attached by themselves; their names are HotInNvme0 and so on.
        enable: bool,
        /// Between two looks for devices, in microseconds, 1000 to 10000000; 0: the default. Default: 100000.
        period_us: Option<u64>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "bdev_nvme_set_hotplug",
            Kind::Change,
            "Attaches NVMe devices by themselves when vfio-pci is given them, or no more.",
            set_hotplug,
        )
        .add(
            "bdev_nvme_set_options",
            Kind::Change,
            "Sets how NVMe controllers are driven that are attached from now on.",
            set_options,
        )
        .add(
            "bdev_nvme_attach_controller",
            Kind::Change,
            "Drives an NVMe controller from user space (PCIe by VFIO, or remote by TCP), or adds a path to a remote one, and \
             makes bdevs of its namespaces; answers their names.",
            attach,
        )
        .add(
            "bdev_nvme_detach_controller",
            Kind::Change,
            "Deletes an NVMe controller's bdevs, shuts it down and gives the device back; or takes one path away.",
            detach,
        )
        .add(
            "bdev_nvme_get_controllers",
            Kind::Read,
            "NVMe controllers: what and how they are, their namespaces and queues, and their health.",
            get_controllers,
        )
        .add(
            "bdev_nvme_reset_controller",
            Kind::Act,
            "Resets an NVMe controller; I/O under way is done again.",
            reset_controller,
        )
        .add(
            "bdev_nvme_get_controller_health_info",
            Kind::Read,
            "Reads an NVMe controller's SMART / Health log now.",
            get_health,
        )
        .add(
            "bdev_nvme_get_controller_error_log",
            Kind::Read,
            "Reads an NVMe controller's error log now, the newest entry first. Not SPDK's.",
            get_errors,
        );
    remote::add(table);
}

impl From<NvmeError> for RpcError {
    fn from(error: NvmeError) -> Self {
        let code = match &error {
            NvmeError::NameTaken { .. } | NvmeError::AddressTaken { .. } => errno::EXIST,
            NvmeError::NotFound { .. } => errno::NODEV,
            NvmeError::Full { .. } => errno::NOSPC,
            NvmeError::Invalid { .. } | NvmeError::Address(_) => {
                return Self::invalid_params(crate::rpc::error::chain(&error));
            }
            _ => errno::IO,
        };
        Self::new(-i64::from(code), crate::rpc::error::chain(&error))
    }
}

async fn set_options(app: Rc<App>, params: SetOptions) -> Result<Value, RpcError> {
    let invalid = |name: &str, problem: &str| {
        Err(RpcError::invalid_params(format!("bdev_nvme_set_options: {name} {problem}")))
    };
    let mut options = app.nvme.options();
    match params.action_on_timeout.as_deref() {
        None => {}
        Some("none") => options.action_on_timeout = TimeoutAction::None,
        Some("reset") => options.action_on_timeout = TimeoutAction::Reset,
        Some("abort") => options.action_on_timeout = TimeoutAction::Abort,
        Some(other) => {
            return invalid("action_on_timeout", &format!("{other:?} is none of none, reset, abort"));
        }
    }
    let always = [
        ("delay_cmd_submit", params.delay_cmd_submit),
        ("generate_uuids", params.generate_uuids),
        ("nvme_error_stat", params.nvme_error_stat),
        ("enable_flush", params.enable_flush),
    ];
    for (name, given) in always {
        if given == Some(false) {
            return invalid(name, "cannot be switched off; leave it out");
        }
    }
    options.timeout_us = params.timeout_us.unwrap_or(options.timeout_us);
    options.timeout_admin_us = params.timeout_admin_us.unwrap_or(options.timeout_admin_us);
    options.nvme_adminq_poll_period_us =
        params.nvme_adminq_poll_period_us.unwrap_or(options.nvme_adminq_poll_period_us);
    options.io_queue_requests = params.io_queue_requests.unwrap_or(options.io_queue_requests);
    options.bdev_retry_count = params.bdev_retry_count.unwrap_or(options.bdev_retry_count);
    options.keep_alive_timeout_ms = params.keep_alive_timeout_ms.unwrap_or(options.keep_alive_timeout_ms);
    let loss = &mut options.loss;
    loss.ctrlr_loss_timeout_sec = params.ctrlr_loss_timeout_sec.unwrap_or(loss.ctrlr_loss_timeout_sec);
    loss.reconnect_delay_sec = params.reconnect_delay_sec.unwrap_or(loss.reconnect_delay_sec);
    loss.fast_io_fail_timeout_sec = params.fast_io_fail_timeout_sec.unwrap_or(loss.fast_io_fail_timeout_sec);
    if let Err((name, problem)) = options.check() {
        return invalid(name, &problem);
    }
    app.nvme.set_options(options);
    Ok(Value::Bool(true))
}

async fn set_hotplug(app: Rc<App>, params: SetHotplug) -> Result<Value, RpcError> {
    let period = match params.period_us {
        None | Some(0) => hotplug::PERIOD_DEFAULT,
        Some(us) => Duration::from_micros(us),
    };
    if !(HOTPLUG_PERIOD_MIN..=hotplug::PERIOD_MAX).contains(&period) {
        let us = period.as_micros();
        return Err(RpcError::invalid_params(format!(
            "bdev_nvme_set_hotplug: period_us is {us}; it must be 1000 to 10000000, or 0"
        )));
    }
    if app.nvme.set_hotplug(params.enable.then_some(period)).await {
        tokio::task::spawn_local(app.nvme.clone().watch_devices(tokio::time::sleep));
    }
    Ok(Value::Bool(true))
}

/// What `bdev_nvme_set_hotplug` would have to be called with; `None` where it is off.
pub(crate) fn hotplug_json(nvme: &NvmeControllers) -> Option<Value> {
    let period = nvme.hotplug_period()?;
    Some(json!({"enable": true, "period_us": u64::try_from(period.as_micros()).unwrap_or(u64::MAX)}))
}

/// What `bdev_nvme_set_options` would have to be called with; `None` where everything is as at the start.
pub(crate) fn options_json(nvme: &NvmeControllers) -> Option<Value> {
    let options = nvme.options();
    (options != NvmeOptions::default()).then(|| {
        json!({
            "action_on_timeout": options.action_on_timeout,
            "timeout_us": options.timeout_us,
            "timeout_admin_us": options.timeout_admin_us,
            "nvme_adminq_poll_period_us": options.nvme_adminq_poll_period_us,
            "io_queue_requests": options.io_queue_requests,
            "bdev_retry_count": options.bdev_retry_count,
            "keep_alive_timeout_ms": options.keep_alive_timeout_ms,
            "ctrlr_loss_timeout_sec": options.loss.ctrlr_loss_timeout_sec,
            "reconnect_delay_sec": options.loss.reconnect_delay_sec,
            "fast_io_fail_timeout_sec": options.loss.fast_io_fail_timeout_sec,
        })
    })
}

/// What a trtype names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Pcie,
    Tcp,
}

fn transport(method: &str, trtype: &str) -> Result<Transport, RpcError> {
    match trtype.to_ascii_lowercase().as_str() {
        "pcie" => Ok(Transport::Pcie),
        "tcp" => Ok(Transport::Tcp),
        _ => {
            let message = format!("{method}: trtype {trtype:?} is not supported; PCIe and TCP are");
            Err(RpcError::invalid_params(message))
        }
    }
}

async fn attach(app: Rc<App>, params: Attach) -> Result<Value, RpcError> {
    const METHOD: &str = "bdev_nvme_attach_controller";
    if transport(METHOD, &params.trtype)? == Transport::Tcp {
        return remote::attach(app, params).await;
    }
    remote::refuse_for_pcie(&params)?;
    if app.remote.find(&params.name).is_ok() {
        let name = params.name;
        return Err(NvmeError::NameTaken { name, address: "a remote one".to_owned() }.into());
    }
    if let Some(other) = params.multipath.as_deref().filter(|mode| *mode != "disable") {
        let message = format!("{METHOD}: multipath {other:?} is not supported for PCIe; leave it out");
        return Err(RpcError::invalid_params(message));
    }
    let iommu = match params.iommu.as_deref() {
        None | Some("auto") => IommuMode::Auto,
        Some("type1") => IommuMode::Type1,
        Some("iommufd") => IommuMode::Iommufd,
        Some("noiommu") => IommuMode::NoIommu,
        Some(other) => {
            let message = format!("{METHOD}: iommu {other:?} is none of auto, type1, iommufd, noiommu");
            return Err(RpcError::invalid_params(message));
        }
    };
    let (name, traddr, num_io_queues) = (params.name, params.traddr, params.num_io_queues);
    let names = app.nvme.attach_pcie(PcieAttach { name, traddr, num_io_queues, iommu }).await?;
    Ok(json!(names))
}

async fn detach(app: Rc<App>, params: Detach) -> Result<Value, RpcError> {
    const METHOD: &str = "bdev_nvme_detach_controller";
    let wanted = params.trtype.as_deref().map(|trtype| transport(METHOD, trtype)).transpose()?;
    if wanted != Some(Transport::Pcie) && app.remote.find(&params.name).is_ok() {
        return remote::detach(app, params).await;
    }
    let controller = app.nvme.find(&params.name)?;
    if wanted == Some(Transport::Tcp) {
        let message = format!("{METHOD}: {} is at {}, not remote", params.name, controller.address());
        return Err(RpcError::new(-i64::from(errno::NODEV), message));
    }
    if let Some(traddr) = &params.traddr {
        let wanted: penstock_nvme::pci::PciAddress = traddr.parse().map_err(NvmeError::from)?;
        if wanted.to_string() != controller.address() {
            let message =
                format!("{METHOD}: {} is at {}, not at {wanted}", params.name, controller.address());
            return Err(RpcError::new(-i64::from(errno::NODEV), message));
        }
    }
    drop(controller);
    app.nvme.detach(&params.name).await?;
    Ok(Value::Bool(true))
}

async fn get_controllers(app: Rc<App>, params: GetControllers) -> Result<Value, RpcError> {
    if let Some(name) = params.name {
        return match app.remote.find(&name) {
            Ok(disk) => Ok(json!([remote::describe(&disk)])),
            Err(_) => Ok(json!([describe(&app.nvme.find(&name)?)])),
        };
    }
    let local = app.nvme.list();
    let remote = app.remote.list();
    Ok(local.iter().map(describe).chain(remote.iter().map(|disk| remote::describe(disk))).collect())
}

fn describe(controller: &Arc<Controller>) -> Value {
    let report = controller.report();
    let namespaces: Vec<Value> = report
        .namespaces
        .iter()
        .map(|(nsid, ns)| match ns {
            Ok(ns) => json!({
                "nsid": nsid,
                "bdev": penstock_nvme::bdev::NvmeBdev::name_of(controller.name(), *nsid),
                "block_size": ns.block_bytes,
                "num_blocks": ns.blocks,
                "uuid": ns.uuid.to_string(),
                "write_protected": ns.write_protected,
            }),
            Err(refusal) => json!({"nsid": nsid, "refused": refusal.to_string()}),
        })
        .collect();
    let queues: Vec<Value> = controller
        .queue_stats()
        .iter()
        .zip(1..)
        .map(|(stats, qid)| {
            json!({
                "qid": qid,
                "commands": stats.commands.read(),
                "doorbells": stats.doorbells.read(),
                "in_flight": stats.in_device.read(),
                "bounced": stats.bounced.read(),
                "retries": stats.retries.read(),
                "replays": stats.replays.read(),
                "timeouts": stats.timeouts.read(),
            })
        })
        .collect();
    let mut one = json!({
        "state": report.state.name(),
        "trid": {"trtype": "PCIe", "traddr": controller.address()},
        "cntlid": report.identity.cntlid,
        "ctrlr_data": report.identity,
        "namespaces": namespaces,
        "queues": queues,
        "resets": report.resets,
        "aborts": report.aborts,
        "health": report.health,
    });
    if let (ControllerState::Failed(why), Some(members)) = (&report.state, one.as_object_mut()) {
        members.insert("failure".to_owned(), json!(why));
    }
    json!({"name": controller.name(), "ctrlrs": [one]})
}

async fn reset_controller(app: Rc<App>, params: ResetController) -> Result<Value, RpcError> {
    let name = params.name;
    if app.remote.find(&name).is_ok() {
        app.remote.reset(&name, params.cntlid).await?;
        return Ok(Value::Bool(true));
    }
    let controller = app.nvme.find(&name)?;
    if let Some(cntlid) = params.cntlid.filter(|cntlid| *cntlid != controller.report().identity.cntlid) {
        let message = format!("bdev_nvme_reset_controller: {name} is not controller {cntlid}");
        return Err(RpcError::new(-i64::from(errno::NODEV), message));
    }
    controller.reset().await.map_err(|problem| RpcError::from(NvmeError::Controller { name, problem }))?;
    Ok(Value::Bool(true))
}

async fn get_health(app: Rc<App>, params: GetHealth) -> Result<Value, RpcError> {
    let name = params.name;
    if let Ok(disk) = app.remote.find(&name) {
        let health = app.remote.read_health(&name).await?;
        return with_identity(health, remote::identity_of(&disk));
    }
    let controller = app.nvme.find(&name)?;
    let health: Health =
        controller.read_health().await.map_err(|problem| NvmeError::Controller { name, problem })?;
    let identity = controller.report().identity;
    with_identity(health, Some((identity, controller.address().to_owned())))
}

fn with_identity(health: Health, identity: Option<(Identity, String)>) -> Result<Value, RpcError> {
    let mut value = serde_json::to_value(health).map_err(|error| RpcError::internal(error.to_string()))?;
    if let (Some(members), Some((identity, traddr))) = (value.as_object_mut(), identity) {
        for (name, text) in [
            ("model_number", identity.model_number),
            ("serial_number", identity.serial_number),
            ("firmware_revision", identity.firmware_revision),
            ("traddr", traddr),
        ] {
            members.insert(name.to_owned(), json!(text));
        }
    }
    Ok(value)
}

async fn get_errors(app: Rc<App>, params: GetErrors) -> Result<Value, RpcError> {
    let name = params.name;
    let entries = if app.remote.find(&name).is_ok() {
        app.remote.read_errors(&name).await?
    } else {
        let controller = app.nvme.find(&name)?;
        controller.read_errors().await.map_err(|problem| NvmeError::Controller { name, problem })?
    };
    Ok(json!({ "entries": entries }))
}
