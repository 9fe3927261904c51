//! Methods about NVMe controllers that are driven from user space: SPDK's names and parameters.

use std::rc::Rc;
use std::sync::Arc;

use penstock_nvme::controller::{Controller, ControllerState, Health};
use penstock_nvme::options::{NvmeOptions, TimeoutAction};
use penstock_nvme::vfio::IommuMode;
use penstock_nvme::{NvmeControllers, NvmeError, PcieAttach};
use serde_json::{Value, json};

use crate::daemon::App;
use crate::params;
use crate::rpc::error::errno;
use crate::rpc::param::Off;
use crate::rpc::{Kind, RpcError, Table};

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
        /// Of fabrics.
        keep_alive_timeout_ms: Option<Off>,
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
        /// Of fabrics.
        ctrlr_loss_timeout_sec: Option<Off>,
        /// Of fabrics.
        reconnect_delay_sec: Option<Off>,
        /// Of fabrics.
        fast_io_fail_timeout_sec: Option<Off>,
        /// Of multipath.
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
        /// Of fabrics.
        dhchap_digests: Option<Off>,
        /// Of fabrics.
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
        /// PCIe.
        trtype: String,
        /// The PCI address: 0000:5e:00.0.
        traddr: String,
        /// I/O queue pairs at most. Default: one for each reactor, as far as the device has so many.
        num_io_queues: Option<u16>,
        /// How the device reaches memory: auto, type1, iommufd, or noiommu, which lets it reach all of the machine's.
        /// Default: auto. Not SPDK's.
        iommu: Option<String>,
        /// Of fabrics.
        adrfam: Option<Off>,
        /// Of fabrics.
        trsvcid: Option<Off>,
        /// Of RDMA.
        priority: Option<Off>,
        /// Of fabrics.
        subnqn: Option<Off>,
        /// Of fabrics.
        hostnqn: Option<Off>,
        /// Of fabrics.
        hostaddr: Option<Off>,
        /// Of fabrics.
        hostsvcid: Option<Off>,
        /// Protection information: not supported.
        prchk_reftag: Option<Off>,
        /// Protection information: not supported.
        prchk_guard: Option<Off>,
        /// Of fabrics.
        hdgst: Option<Off>,
        /// Of fabrics.
        ddgst: Option<Off>,
        /// Of fabrics.
        fabrics_connect_timeout_us: Option<Off>,
        /// disable: another controller is never another path to the same bdev.
        multipath: Option<String>,
        /// Of fabrics.
        ctrlr_loss_timeout_sec: Option<Off>,
        /// Of fabrics.
        reconnect_delay_sec: Option<Off>,
        /// Of fabrics.
        fast_io_fail_timeout_sec: Option<Off>,
        /// Of fabrics.
        psk: Option<Off>,
        /// As many as there are namespaces.
        max_bdevs: Option<Off>,
        /// Of fabrics.
        dhchap_key: Option<Off>,
        /// Of fabrics.
        dhchap_ctrlr_key: Option<Off>,
        /// Namespaces of other command sets than NVM are no bdevs.
        allow_unrecognized_csi: Option<Off>,
        /// Of multipath.
        multipath_opts: Option<Off>,
        /// Of fabrics.
        disable_sq_flow_control: Option<Off>,
    }
}

params! {
    /// Of `bdev_nvme_detach_controller`.
    Detach {
        /// Name of the controller.
        name: String,
        /// PCIe; only a controller of that transport is detached.
        trtype: Option<String>,
        /// Only the controller at that address is detached.
        traddr: Option<String>,
        /// Of fabrics.
        adrfam: Option<Off>,
        /// Of fabrics.
        trsvcid: Option<Off>,
        /// Of fabrics.
        subnqn: Option<Off>,
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
        /// Of multipath.
        cntlid: Option<Off>,
    }
}

params! {
    /// Of `bdev_nvme_get_controller_health_info`.
    GetHealth {
        /// Name of the controller.
        name: String,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "bdev_nvme_set_options",
            Kind::Change,
            "Sets how NVMe controllers are driven that are attached from now on.",
            set_options,
        )
        .add(
            "bdev_nvme_attach_controller",
            Kind::Change,
            "Drives an NVMe controller from user space (VFIO) and makes bdevs of its namespaces; answers their names.",
            attach,
        )
        .add(
            "bdev_nvme_detach_controller",
            Kind::Change,
            "Deletes an NVMe controller's bdevs, shuts it down and gives the device back.",
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
        );
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
    if let Err((name, problem)) = options.check() {
        return invalid(name, &problem);
    }
    app.nvme.set_options(options);
    Ok(Value::Bool(true))
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
        })
    })
}

fn check_transport(method: &str, trtype: &str) -> Result<(), RpcError> {
    if trtype.eq_ignore_ascii_case("pcie") {
        return Ok(());
    }
    Err(RpcError::invalid_params(format!("{method}: trtype {trtype:?} is not supported; PCIe is")))
}

async fn attach(app: Rc<App>, params: Attach) -> Result<Value, RpcError> {
    const METHOD: &str = "bdev_nvme_attach_controller";
    check_transport(METHOD, &params.trtype)?;
    if let Some(other) = params.multipath.as_deref().filter(|mode| *mode != "disable") {
        let message = format!("{METHOD}: multipath {other:?} is not supported; leave it out");
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
    let controller = app.nvme.find(&params.name)?;
    if let Some(trtype) = &params.trtype {
        check_transport(METHOD, trtype)?;
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
    let all = match params.name {
        Some(name) => vec![app.nvme.find(&name)?],
        None => app.nvme.list(),
    };
    Ok(all.iter().map(describe).collect())
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
    let controller = app.nvme.find(&name)?;
    controller.reset().await.map_err(|problem| RpcError::from(NvmeError::Controller { name, problem }))?;
    Ok(Value::Bool(true))
}

async fn get_health(app: Rc<App>, params: GetHealth) -> Result<Value, RpcError> {
    let name = params.name;
    let controller = app.nvme.find(&name)?;
    let health: Health =
        controller.read_health().await.map_err(|problem| NvmeError::Controller { name, problem })?;
    let mut value = serde_json::to_value(health).map_err(|error| RpcError::internal(error.to_string()))?;
    let identity = controller.report().identity;
    if let Some(members) = value.as_object_mut() {
        for (name, text) in [
            ("model_number", identity.model_number),
            ("serial_number", identity.serial_number),
            ("firmware_revision", identity.firmware_revision),
            ("traddr", controller.address().to_owned()),
        ] {
            members.insert(name.to_owned(), json!(text));
        }
    }
    Ok(value)
}
