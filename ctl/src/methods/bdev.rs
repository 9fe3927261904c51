//! Methods that look at any bdev.

use std::rc::Rc;
use std::time::Duration;

use penstock_bdev::qos::limits_json;
use penstock_bdev::{Bdev, BdevError, Op};
use serde_json::{Map, Value, json};

use crate::daemon::App;
use crate::params;
use crate::rpc::error::errno;
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

/// Between looks for a bdev that is waited for.
const LOOK_PERIOD: Duration = Duration::from_millis(20);
/// What the layer above every module makes of reads and writes, where the module does not do it itself.
const EMULATED: [Op; 4] = [Op::WriteZeroes, Op::Compare, Op::CompareAndWrite, Op::Copy];

params! {
    /// Of `bdev_get_bdevs`.
    GetBdevs {
        /// Name, alias or UUID of one bdev. Default: all.
        name: Option<String>,
        /// With name: milliseconds to wait for it to appear. Default: 0.
        timeout: Option<u64>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "bdev_get_bdevs",
            Kind::Read,
            "Bdevs: geometry, abilities, who has them, what their modules say.",
            get_bdevs,
        )
        .add(
            "bdev_wait_for_examine",
            Kind::Read,
            "Answers true when every bdev has been examined for being a disk of a pool.",
            wait_for_examine,
        );
}

async fn wait_for_examine(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    app.fabric.examined().await;
    Ok(Value::Bool(true))
}

async fn get_bdevs(app: Rc<App>, params: GetBdevs) -> Result<Value, RpcError> {
    let Some(name) = params.name else {
        return app.registry.list().iter().map(|bdev| describe(&app, &**bdev)).collect();
    };
    let timeout_ms = params.timeout.unwrap_or(0);
    let found = tokio::time::timeout(Duration::from_millis(timeout_ms), appears(&app, &name)).await;
    let bdev = match found {
        Ok(bdev) => bdev,
        Err(_) => app.registry.find(&name).map_err(|error| match timeout_ms {
            0 => RpcError::from(error),
            ms => RpcError::new(-i64::from(errno::NODEV), format!("{error}; {ms} ms have passed")),
        })?,
    };
    Ok(Value::Array(vec![describe(&app, &*bdev)?]))
}

async fn appears(app: &App, name: &str) -> std::sync::Arc<dyn Bdev> {
    loop {
        if let Ok(bdev) = app.registry.find(name) {
            return bdev;
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

fn describe(app: &App, bdev: &dyn Bdev) -> Result<Value, RpcError> {
    let shared = bdev.shared();
    let caps = shared.caps();
    let owner = app.registry.claimed_by(shared.name())?;
    let users = app.registry.users(shared.name())?;
    let supported = |op: &Op| caps.has(*op) || EMULATED.contains(op);
    let mut io_types: Map<String, Value> =
        Op::ALL.iter().map(|op| (op.name().to_owned(), json!(supported(op)))).collect();
    io_types.insert("abort".to_owned(), json!(true));
    let mut value = json!({
        "name": shared.name(),
        "aliases": app.registry.aliases(shared.name())?,
        "product_name": shared.product(),
        "block_size": shared.block_bytes(),
        "physical_block_size": shared.info().physical_block_bytes,
        "num_blocks": shared.blocks(),
        "uuid": shared.uuid().to_string(),
        "optimal_io_boundary": caps.boundary_blocks,
        "assigned_rate_limits": limits_json(shared),
        "claimed": owner.is_some(),
        "users": users,
        "zoned": false,
        "write_cache": caps.write_cache,
        "supported_io_types": io_types,
        "driver_specific": bdev.driver_specific(),
    });
    if let (Some(owner), Some(members)) = (owner, value.as_object_mut()) {
        members.insert("claim_type".to_owned(), json!("exclusive_write"));
        members.insert("claimed_by".to_owned(), json!(owner));
    }
    Ok(value)
}

/// The bdevs of these names, or all.
pub(crate) fn named(app: &App, names: Option<&[String]>) -> Result<Vec<std::sync::Arc<dyn Bdev>>, BdevError> {
    match names {
        None => Ok(app.registry.list()),
        Some(names) => names.iter().map(|name| app.registry.find(name)).collect(),
    }
}
