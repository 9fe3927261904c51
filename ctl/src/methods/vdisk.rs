//! Methods about vdisks and their snapshots.

use std::rc::Rc;

use penstock_fabric::node::{NewVdisk, Resize, SnapshotRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::daemon::App;
use crate::params;
use crate::rpc::{Kind, RpcError, Table};

/// Ranges of one answer of `vdisk_diff` at most.
const RANGES_MAX: u32 = 65_536;

params! {
    /// Of `vdisk_create`.
    VdiskCreate {
        /// Name of the new vdisk, and of its bdev.
        name: String,
        /// Its length in bytes, a multiple of 4096, up to 2^63.
        bytes: u64,
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
        /// Its container. Default: default.
        container: Option<String>,
        /// Length of a logical block in bytes: 512 or 4096. Default: 512.
        block_size: Option<u32>,
        /// Shards, each served by one reactor. Default: one for each lane of the pool.
        shards: Option<u16>,
        /// Its identity. Default: a random one.
        uuid: Option<Uuid>,
    }
}

params! {
    /// Of `vdisk_delete`.
    VdiskDelete {
        /// Name or UUID of the vdisk.
        name: String,
        /// Whether its snapshots go with it. Default: false.
        snapshots: Option<bool>,
        /// Whether it goes although somebody has it open. Default: false.
        force: Option<bool>,
    }
}

params! {
    /// Of `vdisk_resize`.
    VdiskResize {
        /// Name or UUID of the vdisk.
        name: String,
        /// Its new length in bytes, a multiple of 4096.
        bytes: u64,
        /// Whether it may become shorter; what is behind the new end is lost. Default: false.
        shrink: Option<bool>,
    }
}

params! {
    /// Of `vdisk_rename`.
    VdiskRename {
        /// Name or UUID of the vdisk; nobody may have it open.
        name: String,
        /// Its new name.
        new_name: String,
    }
}

params! {
    /// Of `vdisk_get`.
    VdiskGet {
        /// Name or UUID of one vdisk. Default: all.
        name: Option<String>,
    }
}

params! {
    /// Of `vdisk_snapshot`.
    Snapshot {
        /// Names or UUIDs of vdisks of one pool; several are taken at one moment.
        vdisks: Vec<String>,
        /// Name of the snapshot, among each vdisk's.
        name: String,
    }
}

params! {
    /// Of methods that name a snapshot.
    OfSnapshot {
        /// Name or UUID of the vdisk.
        vdisk: String,
        /// Name or UUID of the snapshot.
        snapshot: String,
    }
}

params! {
    /// Of methods that look at one vdisk.
    OfVdisk {
        /// Name or UUID of the vdisk.
        vdisk: String,
    }
}

params! {
    /// Of `vdisk_clone`.
    CloneOf {
        /// Name or UUID of the vdisk.
        vdisk: String,
        /// Name or UUID of its snapshot.
        snapshot: String,
        /// Name of the new vdisk.
        name: String,
        /// Its identity. Default: a random one.
        uuid: Option<Uuid>,
    }
}

params! {
    /// Of `vdisk_diff`.
    Diff {
        /// Name or UUID of the vdisk.
        vdisk: String,
        /// The earlier snapshot. Default: none, so that all that is mapped differs.
        from: Option<String>,
        /// The later snapshot.
        to: String,
        /// The byte to begin at. Default: 0.
        start: Option<u64>,
        /// Ranges to answer at most. Default: 65536, the most.
        max: Option<u32>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add("vdisk_create", Kind::Change, "Makes a thin vdisk in a pool; answers its UUID.", create)
        .add("vdisk_delete", Kind::Change, "Deletes a vdisk.", delete)
        .add("vdisk_resize", Kind::Change, "Gives a vdisk another length.", resize)
        .add("vdisk_rename", Kind::Change, "Gives a vdisk that nobody has open another name.", rename)
        .add("vdisk_get", Kind::Read, "The vdisks: length, what they map, state.", get)
        .add(
            "vdisk_why",
            Kind::Read,
            "Why a vdisk is as it is: its state, and for each cause what shows it and what helps.",
            why,
        )
        .add(
            "vdisk_snapshot",
            Kind::Change,
            "Takes a snapshot of one or more vdisks at one moment; answers the snapshots' UUIDs.",
            snapshot,
        )
        .add("vdisk_snapshot_list", Kind::Read, "A vdisk's snapshots, the oldest first.", snapshot_list)
        .add("vdisk_snapshot_delete", Kind::Change, "Deletes a snapshot; clones of it stay.", snapshot_delete)
        .add(
            "vdisk_snapshot_show",
            Kind::Change,
            "Shows a snapshot as a bdev that is only read; answers its name.",
            snapshot_show,
        )
        .add("vdisk_snapshot_hide", Kind::Change, "Takes a snapshot's bdev away again.", snapshot_hide)
        .add("vdisk_clone", Kind::Change, "Makes a vdisk that begins as a snapshot; answers its UUID.", clone)
        .add(
            "vdisk_revert",
            Kind::Change,
            "Makes a vdisk that nobody has open what one of its snapshots is.",
            revert,
        )
        .add(
            "vdisk_diff",
            Kind::Read,
            "The ranges that differ between two snapshots, in bytes, by the maps alone.",
            diff,
        );
}

async fn create(app: Rc<App>, params: VdiskCreate) -> Result<Value, RpcError> {
    let pool = app.fabric.pool(params.pool.as_deref())?;
    let new = NewVdisk {
        name: params.name,
        uuid: params.uuid.unwrap_or_else(Uuid::new_v4),
        bytes: params.bytes,
        block: params.block_size.unwrap_or(512),
        container: params.container.unwrap_or_else(|| "default".to_owned()),
        shards: params.shards,
    };
    app.fabric.create_vdisk(&pool, &new).await?;
    Ok(json!(new.uuid.to_string()))
}

async fn delete(app: Rc<App>, params: VdiskDelete) -> Result<Value, RpcError> {
    let uuid = app.fabric.vdisk(&params.name)?.2.uuid;
    let (snapshots, force) = (params.snapshots.unwrap_or(false), params.force.unwrap_or(false));
    app.fabric.delete_vdisk(&params.name, snapshots, force).await?;
    app.baselines.borrow_mut().forget(uuid);
    app.histograms.borrow_mut().remove(&uuid);
    Ok(Value::Bool(true))
}

async fn resize(app: Rc<App>, params: VdiskResize) -> Result<Value, RpcError> {
    let resize = Resize { bytes: params.bytes, shrink: params.shrink.unwrap_or(false) };
    app.fabric.resize_vdisk(&params.name, resize).await?;
    Ok(Value::Bool(true))
}

async fn rename(app: Rc<App>, params: VdiskRename) -> Result<Value, RpcError> {
    app.fabric.rename_vdisk(&params.name, &params.new_name).await?;
    Ok(Value::Bool(true))
}

async fn get(app: Rc<App>, params: VdiskGet) -> Result<Value, RpcError> {
    if let Some(name) = &params.name {
        let (pool, number, _) = app.fabric.vdisk(name)?;
        return Ok(Value::Array(pool.describe_vdisks(Some(number)).await?));
    }
    let mut all = Vec::new();
    for pool in app.fabric.pools() {
        all.extend(pool.describe_vdisks(None).await?);
    }
    Ok(Value::Array(all))
}

async fn why(app: Rc<App>, params: OfVdisk) -> Result<Value, RpcError> {
    Ok(app.fabric.why(&params.vdisk).await?)
}

async fn snapshot(app: Rc<App>, params: Snapshot) -> Result<Value, RpcError> {
    let request = SnapshotRequest { vdisks: params.vdisks, name: params.name };
    let made = app.fabric.snapshot(&request).await?;
    Ok(made.iter().map(|uuid| Value::String(uuid.to_string())).collect())
}

async fn snapshot_list(app: Rc<App>, params: OfVdisk) -> Result<Value, RpcError> {
    let (pool, number, _) = app.fabric.vdisk(&params.vdisk)?;
    Ok(Value::Array(pool.describe_snapshots(number)))
}

async fn snapshot_delete(app: Rc<App>, params: OfSnapshot) -> Result<Value, RpcError> {
    app.fabric.delete_snapshot(&params.vdisk, &params.snapshot).await?;
    Ok(Value::Bool(true))
}

async fn snapshot_show(app: Rc<App>, params: OfSnapshot) -> Result<Value, RpcError> {
    Ok(json!(app.fabric.show_snapshot(&params.vdisk, &params.snapshot).await?))
}

async fn snapshot_hide(app: Rc<App>, params: OfSnapshot) -> Result<Value, RpcError> {
    app.fabric.unshow_snapshot(&params.vdisk, &params.snapshot).await?;
    Ok(Value::Bool(true))
}

async fn clone(app: Rc<App>, params: CloneOf) -> Result<Value, RpcError> {
    let uuid = params.uuid.unwrap_or_else(Uuid::new_v4);
    app.fabric.clone_vdisk(&params.vdisk, &params.snapshot, &params.name, uuid).await?;
    Ok(json!(uuid.to_string()))
}

async fn revert(app: Rc<App>, params: OfSnapshot) -> Result<Value, RpcError> {
    app.fabric.revert_vdisk(&params.vdisk, &params.snapshot).await?;
    Ok(Value::Bool(true))
}

async fn diff(app: Rc<App>, params: Diff) -> Result<Value, RpcError> {
    let max = params.max.unwrap_or(RANGES_MAX).clamp(1, RANGES_MAX);
    let (from, start) = (params.from.as_deref(), params.start.unwrap_or(0));
    let max = usize::try_from(max).unwrap_or(1);
    let (ranges, next) = app.fabric.diff(&params.vdisk, from, &params.to, start, max).await?;
    let range = |range: &penstock_fabric::lane::Changed| json!({"offset": range.first, "bytes": range.blocks, "zero": range.zero});
    Ok(json!({"ranges": ranges.iter().map(range).collect::<Vec<_>>(), "next": next}))
}
