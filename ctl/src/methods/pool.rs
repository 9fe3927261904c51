//! Methods about pools and containers.

use std::rc::Rc;

use penstock_fabric::format::superblock::Tier;
use penstock_fabric::node::{ContainerOptions, FabricError, NewPool};
use penstock_fabric::pool::PoolOptions;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::daemon::App;
use crate::params;
use crate::rpc::error::{INVALID_PARAMS, bdev_code, errno};
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

params! {
    /// Of `pool_create`.
    PoolCreate {
        /// Name of the new pool.
        name: String,
        /// Names of the bdevs that it is made of. What is on them is lost.
        bdevs: Vec<String>,
        /// Their kind: ssd or hdd. Default: ssd.
        tier: Option<String>,
        /// Shares of the pool, each served by one reactor; at least as many as there will ever be reactors. Default: 16.
        lanes: Option<u16>,
        /// MiB of log of each share, a multiple of 4. Default: 64.
        log_mib: Option<u32>,
        /// MiB of the pieces by which the shares take space, 8 to 4096. Default: 64.
        region_mib: Option<u32>,
        /// Its identity. Default: a random one.
        uuid: Option<Uuid>,
        /// Whether disks of another pool are taken too. Default: false.
        force: Option<bool>,
    }
}

params! {
    /// Of `pool_get_stats`.
    OfPool {
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
    }
}

params! {
    /// Of `pool_delete`.
    PoolDelete {
        /// Name or UUID of the pool.
        name: String,
        /// Whether its vdisks go with it. Default: false.
        force: Option<bool>,
    }
}

params! {
    /// Of `container_create` and `container_update`.
    Container {
        /// Name of the container.
        name: String,
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
        /// Bytes that its vdisks may map at most; 0: no limit. Default: no limit, or as it is.
        limit_bytes: Option<u64>,
        /// Bytes that no other container may use. Default: 0, or as it is.
        reserved_bytes: Option<u64>,
        /// Copies of everything: 1.
        replication_factor: Option<u8>,
        /// Compression: off.
        compression: Option<String>,
    }
}

params! {
    /// Of `container_delete`.
    ContainerName {
        /// Name of the container.
        name: String,
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add("pool_create", Kind::Change, "Makes a pool of bdevs; answers its UUID.", create)
        .add(
            "pool_list",
            Kind::Read,
            "The pools, their disks, and disks of pools that are not complete.",
            list,
        )
        .add("pool_get_stats", Kind::Read, "How full a pool is, in bytes.", stats)
        .add(
            "pool_delete",
            Kind::Change,
            "Deletes a pool without vdisks: its disks are blank afterwards.",
            delete,
        )
        .add(
            "container_create",
            Kind::Change,
            "Makes a container, a policy that vdisks are made in.",
            container_create,
        )
        .add(
            "container_update",
            Kind::Change,
            "Changes a container; what is not given stays.",
            container_update,
        )
        .add("container_delete", Kind::Change, "Deletes a container without vdisks.", container_delete)
        .add("container_list", Kind::Read, "The containers of a pool, with what they map.", container_list);
}

impl From<FabricError> for RpcError {
    fn from(error: FabricError) -> Self {
        let code = match &error {
            FabricError::Bdev(source) => bdev_code(source),
            FabricError::NotFound { .. } => -i64::from(errno::NODEV),
            FabricError::Exists { .. } => -i64::from(errno::EXIST),
            FabricError::InUse { .. } => -i64::from(errno::BUSY),
            FabricError::Invalid { .. } | FabricError::WhichPool { .. } => INVALID_PARAMS,
            FabricError::Work(penstock_fabric::lane::WorkError::NoSpace) => -i64::from(errno::NOSPC),
            FabricError::Work(_) | FabricError::Lane(_) | FabricError::Pool(_) | FabricError::Note { .. } => {
                -i64::from(errno::IO)
            }
            _ => crate::rpc::error::INTERNAL_ERROR,
        };
        Self::of(code, &error)
    }
}

async fn create(app: Rc<App>, params: PoolCreate) -> Result<Value, RpcError> {
    let tier = match params.tier.as_deref() {
        None | Some("ssd") => Tier::Ssd,
        Some("hdd") => Tier::Hdd,
        Some(other) => {
            return Err(RpcError::invalid_params(format!("pool_create: tier is {other:?}; give ssd or hdd")));
        }
    };
    let defaults = PoolOptions::default();
    let segments = params.log_mib.map_or(defaults.segments, |mib| mib / 4);
    let region_blocks = params.region_mib.map_or(defaults.region_blocks, |mib| mib.saturating_mul(256));
    let lanes = params.lanes.unwrap_or(defaults.lanes);
    let new = NewPool {
        name: params.name,
        uuid: params.uuid.unwrap_or_else(Uuid::new_v4),
        bdevs: params.bdevs,
        tier,
        options: PoolOptions { lanes, segments, region_blocks, ..defaults },
        force: params.force.unwrap_or(false),
    };
    let pool = app.fabric.create_pool(&new).await?;
    Ok(json!(pool.uuid.to_string()))
}

async fn list(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let open = app.fabric.pools().into_iter().map(|pool| pool.describe());
    Ok(open.chain(app.fabric.incomplete()).collect())
}

async fn stats(app: Rc<App>, params: OfPool) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    let usage = pool.usage().await?;
    Ok(json!({
        "name": pool.name(),
        "capacity_bytes": usage.capacity,
        "free_bytes": usage.free,
        "used_bytes": usage.used,
        "live_bytes": usage.live,
        "garbage_bytes": usage.used.saturating_sub(usage.live),
        "undrained_bytes": usage.undrained,
        "mapped_bytes": usage.mapped,
        "used_percent": usage.percent(),
        "log_segments_used": usage.log_segments.0,
        "log_segments": usage.log_segments.1,
        "full_lanes": usage.full_lanes,
        "failed_lanes": usage.failed_lanes,
        "checksum_errors": usage.checksum_errors,
    }))
}

async fn delete(app: Rc<App>, params: PoolDelete) -> Result<Value, RpcError> {
    app.fabric.delete_pool(&params.name, params.force.unwrap_or(false)).await?;
    Ok(Value::Bool(true))
}

/// What is asked for that there is.
fn options(params: &Container) -> Result<ContainerOptions, RpcError> {
    if let Some(copies) = params.replication_factor.filter(|copies| *copies != 1) {
        let message = format!("replication_factor is {copies}; one node keeps 1 copy so far");
        return Err(RpcError::invalid_params(message));
    }
    if let Some(codec) = params.compression.as_deref().filter(|codec| *codec != "off") {
        return Err(RpcError::invalid_params(format!("compression is {codec:?}; there is only off so far")));
    }
    Ok(ContainerOptions { limit: params.limit_bytes, reserve: params.reserved_bytes })
}

async fn container_create(app: Rc<App>, params: Container) -> Result<Value, RpcError> {
    let options = options(&params)?;
    let pool = app.fabric.pool(params.pool.as_deref())?;
    app.fabric.create_container(&pool, &params.name, &options).await?;
    Ok(json!(params.name))
}

async fn container_update(app: Rc<App>, params: Container) -> Result<Value, RpcError> {
    let options = options(&params)?;
    let pool = app.fabric.pool(params.pool.as_deref())?;
    app.fabric.set_container(&pool, &params.name, &options).await?;
    Ok(Value::Bool(true))
}

async fn container_delete(app: Rc<App>, params: ContainerName) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    app.fabric.delete_container(&pool, &params.name).await?;
    Ok(Value::Bool(true))
}

async fn container_list(app: Rc<App>, params: OfPool) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    Ok(Value::Array(pool.describe_containers().await?))
}
