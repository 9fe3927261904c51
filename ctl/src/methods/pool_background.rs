//! Methods about the background work of pools.

use std::rc::Rc;

use serde_json::{Value, json};

use super::pool::OfPool;
use crate::daemon::App;
use crate::params;
use crate::rpc::error::INVALID_PARAMS;
use crate::rpc::{Kind, RpcError, Table};

/// Bytes of the largest write that one lane takes at once.
const BYPASS_BYTES_MAX: u32 = 1 << 20;
const BLOCK_BYTES: u32 = 4096;

params! {
    /// Of `pool_set_background`.
    PoolBackground {
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
        /// Percent of a core that work that can wait may have while hosts have I/O, 1 to 100 (10 at first). Default: as it is.
        share_percent: Option<u8>,
        /// Whether such work stops. Default: as it is.
        paused: Option<bool>,
        /// Writes of so many bytes or more may bypass the log, a multiple of 4096 up to 1048576 (65536 at first); 0: none. Default: as it is.
        bypass_bytes: Option<u32>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "pool_set_background",
            Kind::Change,
            "Changes what collection, compaction, delayed compression and scrubs of a pool may have, until it is closed.",
            set,
        )
        .add(
            "pool_get_background",
            Kind::Read,
            "What background work a pool is doing, how far it is, and what it may have.",
            get,
        );
}

async fn set(app: Rc<App>, params: PoolBackground) -> Result<Value, RpcError> {
    let invalid = |problem: String| Err(RpcError::new(INVALID_PARAMS, problem));
    if params.share_percent.is_some_and(|share| share == 0 || share > 100) {
        return invalid("share_percent must be 1 to 100; give paused to stop background work".into());
    }
    let fits = |bytes: u32| bytes.is_multiple_of(BLOCK_BYTES) && bytes <= BYPASS_BYTES_MAX;
    if let Some(bytes) = params.bypass_bytes.filter(|bytes| !fits(*bytes)) {
        return invalid(format!(
            "bypass_bytes is {bytes}; give a multiple of {BLOCK_BYTES} up to {BYPASS_BYTES_MAX}"
        ));
    }
    let pool = app.fabric.pool(params.pool.as_deref())?;
    let blocks = params.bypass_bytes.map(|bytes| bytes / BLOCK_BYTES);
    pool.set_background(params.share_percent, params.paused, blocks).await?;
    Ok(Value::Bool(true))
}

async fn get(app: Rc<App>, params: OfPool) -> Result<Value, RpcError> {
    let found = app.fabric.pool(params.pool.as_deref())?.background().await?;
    Ok(json!({
        "share_percent": found.options.share_percent,
        "paused": found.options.paused,
        "marking_lanes": found.marking,
        "compacting_lanes": found.compacting,
        "encoding_lanes": found.encoding,
        "waiting_lanes": found.waiting,
        "done": found.done,
        "total": found.total,
        "finished_jobs": found.finished,
        "busy_us": found.busy_us,
        "bypassed_bytes": found.bypassed_bytes,
    }))
}
