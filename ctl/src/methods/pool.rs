//! Methods about pools and containers.

use std::rc::Rc;

use penstock_fabric::format::superblock::Tier;
use penstock_fabric::node::{
    AddDisk, CodecNote, CompressionNote, ContainerOptions, DELAY_MAX_S, FabricError, NewPool, Pool,
};
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
        /// Copies of everything, each on another disk: 1 or 2. Default: 2 where there are two disks or more, else 1.
        copies: Option<u8>,
        /// Its identity. Default: a random one.
        uuid: Option<Uuid>,
        /// Whether disks of another pool are taken too. Default: false.
        force: Option<bool>,
    }
}

params! {
    /// Of methods that look at one pool.
    OfPool {
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
    }
}

params! {
    /// Of `pool_add_disk`.
    PoolAddDisk {
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
        /// Name of the bdev. What is on it is lost.
        bdev: String,
        /// Its kind: ssd or hdd. Default: ssd.
        tier: Option<String>,
        /// Copies of everything from now on, 1 or 2; what has fewer gets the others in the background. Default: as it is.
        copies: Option<u8>,
        /// Whether a disk of another pool is taken, or one that was of this pool before. Default: false.
        force: Option<bool>,
    }
}

params! {
    /// Of `pool_remove_disk`.
    PoolRemoveDisk {
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
        /// Name of the bdev, or the disk's UUID as `pool_list` has it.
        disk: String,
    }
}

params! {
    /// Of `pool_set_repair_rate`.
    PoolRepairRate {
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
        /// MiB per second that copies are written with at most, until the pool is opened again; 0: as fast as can be.
        mib_per_s: u64,
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
        /// Copies of everything: as many as the pool has.
        replication_factor: Option<u8>,
        /// Compression of what is written from now on: off, lz4 or zstd. Default: off, or as it is.
        compression: Option<String>,
        /// With compression: seconds that data lie as they are before they are compressed in the background, up to 2592000; the longest
        /// delay of a pool's containers holds for all that have one. Default: none, they are compressed when they are written.
        compression_delay_s: Option<u64>,
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
        .add(
            "pool_get_stats",
            Kind::Read,
            "How full a pool is, in bytes; above_percent: the threshold of 80, 90, 95 that it is above; how far its copies are made.",
            stats,
        )
        .add(
            "pool_get_usage",
            Kind::Read,
            "Who uses a pool's space, exactly, by the maps: each vdisk and snapshot alone and with others, and what thin \
             provisioning, sharing and compression save.",
            usage,
        )
        .add(
            "pool_add_disk",
            Kind::Change,
            "Adds a disk to a pool: what lacks copies gets them there.",
            add_disk,
        )
        .add(
            "pool_remove_disk",
            Kind::Change,
            "Begins to move everything from a disk to the others of its pool, also over restarts; the disk is blank and free when \
             pool_list does not have it any more.",
            remove_disk,
        )
        .add(
            "pool_set_repair_rate",
            Kind::Change,
            "Changes how fast copies are made of what was on lost or leaving disks; 256 MiB/s when a pool is opened.",
            set_repair_rate,
        )
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

fn tier(method: &str, tier: Option<&str>) -> Result<Tier, RpcError> {
    match tier {
        None | Some("ssd") => Ok(Tier::Ssd),
        Some("hdd") => Ok(Tier::Hdd),
        Some(other) => Err(RpcError::invalid_params(format!("{method}: tier is {other:?}; give ssd or hdd"))),
    }
}

async fn add_disk(app: Rc<App>, params: PoolAddDisk) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    let tier = tier("pool_add_disk", params.tier.as_deref())?;
    let force = params.force.unwrap_or(false);
    let add = AddDisk { bdev: params.bdev, tier, force, copies: params.copies };
    app.fabric.add_disk(&pool, &add).await?;
    Ok(Value::Bool(true))
}

async fn remove_disk(app: Rc<App>, params: PoolRemoveDisk) -> Result<Value, RpcError> {
    app.fabric.pool(params.pool.as_deref())?.remove_disk(&params.disk).await?;
    Ok(Value::Bool(true))
}

async fn set_repair_rate(app: Rc<App>, params: PoolRepairRate) -> Result<Value, RpcError> {
    app.fabric.pool(params.pool.as_deref())?.set_repair_rate(params.mib_per_s).await?;
    Ok(Value::Bool(true))
}

async fn create(app: Rc<App>, params: PoolCreate) -> Result<Value, RpcError> {
    let tier = tier("pool_create", params.tier.as_deref())?;
    let defaults = PoolOptions::default();
    let segments = params.log_mib.map_or(defaults.segments, |mib| mib / 4);
    let region_blocks = params.region_mib.map_or(defaults.region_blocks, |mib| mib.saturating_mul(256));
    let lanes = params.lanes.unwrap_or(defaults.lanes);
    let copies = params.copies.unwrap_or(if params.bdevs.len() > 1 { 2 } else { 1 });
    let new = NewPool {
        name: params.name,
        uuid: params.uuid.unwrap_or_else(Uuid::new_v4),
        bdevs: params.bdevs,
        tier,
        options: PoolOptions { lanes, segments, region_blocks, copies, ..defaults },
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
    let repair = pool.repair_progress().await?;
    // Egroups are counted encoded, what maps refer to decoded.
    let dead = u128::from(usage.decoded.saturating_sub(usage.live));
    let garbage = u128::from(usage.used) * dead / u128::from(usage.decoded.max(1));
    Ok(json!({
        "name": pool.name(),
        "capacity_bytes": usage.capacity,
        "free_bytes": usage.free,
        "used_bytes": usage.used,
        "decoded_bytes": usage.decoded,
        "live_bytes": usage.live,
        "garbage_bytes": u64::try_from(garbage).unwrap_or(u64::MAX),
        "undrained_bytes": usage.undrained,
        "mapped_bytes": usage.mapped,
        "used_percent": usage.percent(),
        "above_percent": pool.warned_percent(),
        "log_segments_used": usage.log_segments.0,
        "log_segments": usage.log_segments.1,
        "full_lanes": usage.full_lanes,
        "failed_lanes": usage.failed_lanes,
        "checksum_errors": usage.checksum_errors,
        "copies_to_make": repair.todo,
        "copies_made": repair.moved,
        "copies_mended": repair.mended,
        "reads_from_other_copy": repair.fallbacks,
        "egroups_lost": repair.lost,
        "copies_stuck": repair.stuck,
    }))
}

async fn usage(app: Rc<App>, params: OfPool) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    Ok(pool.describe_usage().await?)
}

async fn delete(app: Rc<App>, params: PoolDelete) -> Result<Value, RpcError> {
    app.fabric.delete_pool(&params.name, params.force.unwrap_or(false)).await?;
    Ok(Value::Bool(true))
}

/// What is asked for that there is.
fn options(pool: &Pool, params: &Container) -> Result<ContainerOptions, RpcError> {
    let there = pool.copies();
    if let Some(copies) = params.replication_factor.filter(|copies| *copies != there) {
        let message = format!("replication_factor is {copies}; all containers of this pool have its {there}");
        return Err(RpcError::invalid_params(message));
    }
    let codec = match params.compression.as_deref() {
        None if params.compression_delay_s.is_some() => {
            let message = "compression_delay_s goes with compression; give lz4 or zstd too";
            return Err(RpcError::invalid_params(message.to_owned()));
        }
        None => None,
        Some("off") if params.compression_delay_s.is_none() => Some(None),
        Some("lz4") => Some(Some(CodecNote::Lz4)),
        Some("zstd") => Some(Some(CodecNote::Zstd)),
        Some(other) => {
            let message = format!("compression is {other:?}; give off (without a delay), lz4 or zstd");
            return Err(RpcError::invalid_params(message));
        }
    };
    if let Some(delay_s) = params.compression_delay_s.filter(|delay_s| *delay_s > DELAY_MAX_S) {
        let message = format!("compression_delay_s is {delay_s}; give up to {DELAY_MAX_S}");
        return Err(RpcError::invalid_params(message));
    }
    let delay_s = params.compression_delay_s;
    let compression = codec.map(|codec| codec.map(|codec| CompressionNote { codec, delay_s }));
    Ok(ContainerOptions { limit: params.limit_bytes, reserve: params.reserved_bytes, compression })
}

async fn container_create(app: Rc<App>, params: Container) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    let options = options(&pool, &params)?;
    app.fabric.create_container(&pool, &params.name, &options).await?;
    Ok(json!(params.name))
}

async fn container_update(app: Rc<App>, params: Container) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    let options = options(&pool, &params)?;
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
