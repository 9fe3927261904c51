//! Methods about vhost-user controllers, with SPDK's names and parameters.

use std::rc::Rc;

use penstock_vhost::{CreateBlkController, VhostError};
use serde_json::Value;

use crate::daemon::App;
use crate::params;
use crate::rpc::error::{INVALID_PARAMS, bdev_code, errno};
use crate::rpc::param::Off;
use crate::rpc::{Kind, RpcError, Table};

params! {
    /// Of `vhost_create_blk_controller`.
    CreateBlk {
        /// Name of the controller; its socket has the same name, in the daemon's --vhost-dir.
        ctrlr: String,
        /// The bdev: name, alias or UUID.
        dev_name: String,
        /// The cores whose reactors may serve it, like 0x3 or [0,1]. Default: all reactors.
        cpumask: Option<String>,
        /// Whether the guest only reads. Default: false.
        readonly: Option<bool>,
        /// Whether packed queues are offered. Default: false.
        packed_ring: Option<bool>,
        /// The transport: vhost_user_blk, the only one.
        transport: Option<String>,
        /// What is under way survives the daemon with either kind of queue.
        packed_ring_recovery: Option<Off>,
    }
}

params! {
    /// Of methods that only name a controller.
    OfController {
        /// Name of the controller.
        ctrlr: String,
    }
}

params! {
    /// Of `vhost_get_controllers`.
    GetControllers {
        /// Only this controller. Default: all.
        name: Option<String>,
    }
}

params! {
    /// Of `vhost_controller_set_coalescing`.
    SetCoalescing {
        /// Name of the controller.
        ctrlr: String,
        /// The base of the delay in microseconds; 0: no delay. A delay is 5 ms at most.
        delay_base_us: u32,
        /// Requests per second and queue below which nothing is delayed.
        iops_threshold: u32,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "vhost_create_blk_controller",
            Kind::Change,
            "Makes a vhost-user-blk controller: a socket by which a virtual machine reaches a bdev.",
            create,
        )
        .add(
            "vhost_delete_controller",
            Kind::Change,
            "Deletes a controller to which no virtual machine is connected.",
            delete,
        )
        .add(
            "vhost_get_controllers",
            Kind::Read,
            "The controllers, who is connected, and what their queues do.",
            get_controllers,
        )
        .add(
            "vhost_controller_set_coalescing",
            Kind::Change,
            "Interrupts guests less often than at every completion, above a rate of requests.",
            set_coalescing,
        );
}

impl From<VhostError> for RpcError {
    fn from(error: VhostError) -> Self {
        let code = match &error {
            VhostError::Bdev { source, .. } => bdev_code(source),
            VhostError::Exists { .. } => -i64::from(errno::EXIST),
            VhostError::NotFound { .. } => -i64::from(errno::NODEV),
            VhostError::Busy { .. } => -i64::from(errno::BUSY),
            VhostError::Full { .. } => -i64::from(errno::NOSPC),
            VhostError::Invalid { .. } => INVALID_PARAMS,
            VhostError::Reservations { source, .. } | VhostError::Socket { source, .. } => {
                -i64::from(source.raw_os_error().unwrap_or(errno::IO))
            }
            _ => crate::rpc::error::INTERNAL_ERROR,
        };
        Self::of(code, &error)
    }
}

async fn create(app: Rc<App>, params: CreateBlk) -> Result<Value, RpcError> {
    app.vhost.create_blk_controller(&CreateBlkController {
        ctrlr: params.ctrlr,
        dev_name: params.dev_name,
        cpumask: params.cpumask,
        readonly: params.readonly.unwrap_or(false),
        packed_ring: params.packed_ring.unwrap_or(false),
        transport: params.transport,
    })?;
    Ok(Value::Bool(true))
}

async fn delete(app: Rc<App>, params: OfController) -> Result<Value, RpcError> {
    app.vhost.delete_controller(&params.ctrlr).await?;
    Ok(Value::Bool(true))
}

async fn get_controllers(app: Rc<App>, params: GetControllers) -> Result<Value, RpcError> {
    Ok(app.vhost.get_controllers(params.name.as_deref())?)
}

async fn set_coalescing(app: Rc<App>, params: SetCoalescing) -> Result<Value, RpcError> {
    app.vhost.controller_set_coalescing(&params.ctrlr, params.delay_base_us, params.iops_threshold)?;
    Ok(Value::Bool(true))
}
