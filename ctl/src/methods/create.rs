//! Methods that make, change and delete bdevs: SPDK's names and parameters; the modules do the work.

use std::rc::Rc;

use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::null::{Null, NullOptions};
use penstock_bdev::rpc::{self, NameOptions, ResizeOptions};
use serde_json::{Value, json};

use crate::daemon::App;
use crate::rpc::{Kind, RpcError, Table};
use crate::{describe, params};

describe! {
    name_only {
        /// Name of the bdev.
        name: String,
    }
}

describe! {
    resize {
        /// Name of the bdev.
        name: String,
        /// Its new length in MiB.
        new_size: u64,
    }
}

params! {
    /// Of `penstock_bdev_resize`.
    ResizeAny {
        /// Name, alias or UUID of the bdev.
        name: String,
        /// Its new length in bytes. Default: what its file or device has got by itself.
        bytes: Option<u64>,
    }
}

params! {
    /// Of `penstock_bdev_delete`.
    DeleteAny {
        /// Name, alias or UUID of the bdev.
        name: String,
    }
}

describe! {
    null_create {
        /// Name of the new bdev.
        name: String,
        /// Length in blocks.
        num_blocks: u64,
        /// Length of a logical block in bytes: 512 or 4096.
        block_size: u32,
        /// Length of a physical block in bytes, a multiple of block_size. Default: block_size.
        physical_block_size: Option<u32>,
        /// Its identity. Default: a random one.
        uuid: Option<String>,
        /// Metadata per block: 0.
        md_size: Option<u32>,
        /// Protection information: 0.
        dif_type: Option<i32>,
        /// Without meaning without metadata.
        dif_is_head_of_md: Option<bool>,
        /// Without meaning without metadata.
        dif_pi_format: Option<u32>,
    }
}

describe! {
    malloc_create {
        /// Name of the new bdev. Default: Malloc and a number.
        name: Option<String>,
        /// Length in blocks.
        num_blocks: u64,
        /// Length of a logical block in bytes: 512 or 4096.
        block_size: u32,
        /// Length of a physical block in bytes, a multiple of block_size. Default: block_size.
        physical_block_size: Option<u32>,
        /// Its identity. Default: a random one.
        uuid: Option<String>,
        /// I/O that crosses a multiple of so many blocks is split. Default: 0, never.
        optimal_io_boundary: Option<u32>,
        /// Metadata per block: 0.
        md_size: Option<u32>,
        /// Without meaning without metadata.
        md_interleave: Option<bool>,
        /// Protection information: 0.
        dif_type: Option<i32>,
        /// Without meaning without metadata.
        dif_is_head_of_md: Option<bool>,
        /// Without meaning without metadata.
        dif_pi_format: Option<u32>,
        /// NUMA node of its memory; -1: any. Default: -1.
        numa_id: Option<i32>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "penstock_bdev_delete",
            Kind::Change,
            "Deletes a bdev of any kind, and those that stand on it.",
            delete_any,
        )
        .add(
            "penstock_bdev_resize",
            Kind::Change,
            "Gives a bdev of any kind another length; answers it in bytes.",
            resize_any,
        )
        .add_described(
            "bdev_null_create",
            Kind::Change,
            "Makes a bdev that stores nothing; answers its name.",
            null_create(),
            create_null,
        )
        .add_described(
            "bdev_null_resize",
            Kind::Change,
            "Gives a null bdev another length.",
            resize(),
            resize_bdev,
        )
        .add_described(
            "bdev_null_delete",
            Kind::Change,
            "Deletes a null bdev.",
            name_only(),
            |app, options| delete(app, options, "Null disk"),
        )
        .add_described(
            "bdev_malloc_create",
            Kind::Change,
            "Makes a bdev in memory; answers its name.",
            malloc_create(),
            create_malloc,
        )
        .add_described(
            "bdev_malloc_resize",
            Kind::Change,
            "Gives a malloc bdev another length.",
            resize(),
            resize_bdev,
        )
        .add_described(
            "bdev_malloc_delete",
            Kind::Change,
            "Deletes a malloc bdev and what it holds.",
            name_only(),
            |app, options| delete(app, options, "Malloc disk"),
        );
}

async fn create_null(app: Rc<App>, options: NullOptions) -> Result<Value, RpcError> {
    Ok(json!(Null::create(&app.registry, &options)?))
}

async fn create_malloc(app: Rc<App>, options: MallocOptions) -> Result<Value, RpcError> {
    Ok(json!(Malloc::create(&app.registry, options)?))
}

async fn resize_bdev(app: Rc<App>, options: ResizeOptions) -> Result<Value, RpcError> {
    rpc::resize(&app.registry, &options)?;
    Ok(Value::Bool(true))
}

async fn delete(app: Rc<App>, options: NameOptions, product: &'static str) -> Result<Value, RpcError> {
    let uuid = app.registry.find(&options.name)?.shared().uuid();
    rpc::delete(&app.registry, &options, product).await?;
    app.baselines.borrow_mut().forget(uuid);
    app.histograms.borrow_mut().remove(&uuid);
    Ok(Value::Bool(true))
}

async fn delete_any(app: Rc<App>, params: DeleteAny) -> Result<Value, RpcError> {
    let uuid = app.registry.find(&params.name)?.shared().uuid();
    app.registry.remove(&params.name).await?;
    app.baselines.borrow_mut().forget(uuid);
    app.histograms.borrow_mut().remove(&uuid);
    Ok(Value::Bool(true))
}

async fn resize_any(app: Rc<App>, params: ResizeAny) -> Result<Value, RpcError> {
    let block_bytes = u64::from(app.registry.find(&params.name)?.shared().block_bytes());
    let blocks = params.bytes.map(|bytes| bytes / block_bytes);
    if blocks == Some(0) {
        let message = format!("penstock_bdev_resize: bytes must be at least {block_bytes}, one block");
        return Err(RpcError::invalid_params(message));
    }
    let blocks = app.registry.resize(&params.name, blocks)?;
    Ok(json!({"bytes": blocks.saturating_mul(block_bytes)}))
}
