//! Methods that make, change and delete bdevs: SPDK's names and parameters; the modules do the work.

use std::rc::Rc;

use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::null::{Null, NullOptions};
use penstock_bdev::qos::{self, QosOptions};
use penstock_bdev::rpc::{self, NameOptions, ResizeOptions};
use penstock_bdev::uring::{Uring, UringOptions};
use penstock_fabric::vdisk::Vdisk;
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

describe! {
    uring_create {
        /// Name of the new bdev.
        name: String,
        /// Path of the file or block device.
        filename: String,
        /// Length of a logical block in bytes: 512 or 4096. Default: the device's own.
        block_size: Option<u32>,
        /// Its identity. Default: a random one.
        uuid: Option<String>,
        /// Whether it is never written. Default: false.
        readonly: Option<bool>,
        /// A file that does not exist is made with so many MiB, all holes. Default: it must exist.
        create_size_mib: Option<u64>,
        /// io_uring, threads, or inline (for files in memory only: by the reactor itself). Default: inline on tmpfs and
        /// ramfs, io_uring where the kernel allows it, else threads.
        engine: Option<String>,
        /// Whether reads and writes are polled for, by a ring of their own, instead of waiting for interrupts. Default:
        /// where the device has polled queues.
        iopoll: Option<bool>,
        /// Unmap and write zeroes are always done where the file system can.
        fallocate: Option<bool>,
        /// Without meaning here.
        nowait: Option<bool>,
    }
}

describe! {
    qos_limit {
        /// Name, alias or UUID of the bdev.
        name: String,
        /// Reads and writes per second; 0: no ceiling. What is not given stays as it is.
        rw_ios_per_sec: Option<u64>,
        /// Reads per second.
        r_ios_per_sec: Option<u64>,
        /// Writes per second.
        w_ios_per_sec: Option<u64>,
        /// MiB read and written per second.
        rw_mbytes_per_sec: Option<u64>,
        /// MiB read per second.
        r_mbytes_per_sec: Option<u64>,
        /// MiB written per second.
        w_mbytes_per_sec: Option<u64>,
    }
}

#[expect(clippy::too_many_lines, reason = "a table, one entry a method")]
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
        )
        .add_described(
            "bdev_uring_create",
            Kind::Change,
            "Makes a bdev on a file or block device; answers its name.",
            uring_create(),
            create_uring,
        )
        .add_described(
            "bdev_uring_rescan",
            Kind::Change,
            "Looks what length the file or device has now.",
            name_only(),
            rescan,
        )
        .add_described(
            "bdev_uring_delete",
            Kind::Change,
            "Closes the file or device; what it holds stays.",
            name_only(),
            |app, options| delete(app, options, Uring::PRODUCT),
        )
        .add_described(
            "bdev_aio_create",
            Kind::Change,
            "As bdev_uring_create, under SPDK's other name.",
            uring_create(),
            create_uring,
        )
        .add_described("bdev_aio_rescan", Kind::Change, "As bdev_uring_rescan.", name_only(), rescan)
        .add_described(
            "bdev_aio_delete",
            Kind::Change,
            "As bdev_uring_delete.",
            name_only(),
            |app, options| delete(app, options, Uring::PRODUCT),
        )
        .add_described(
            "bdev_set_qos_limit",
            Kind::Change,
            "Sets ceilings of a bdev's I/O, shared fairly by its users.",
            qos_limit(),
            set_qos_limit,
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

pub(crate) async fn delete(
    app: Rc<App>,
    options: NameOptions,
    product: &'static str,
) -> Result<Value, RpcError> {
    let uuid = app.registry.find(&options.name)?.shared().uuid();
    rpc::delete(&app.registry, &options, product).await?;
    app.baselines.borrow_mut().forget(uuid);
    app.histograms.borrow_mut().remove(&uuid);
    Ok(Value::Bool(true))
}

async fn delete_any(app: Rc<App>, params: DeleteAny) -> Result<Value, RpcError> {
    let bdev = app.registry.find(&params.name)?;
    let (uuid, product) = (bdev.shared().uuid(), bdev.shared().product());
    drop(bdev);
    if matches!(product, Vdisk::PRODUCT | Vdisk::SNAPSHOT_PRODUCT) {
        let message = format!("{} is a {product}; use vdisk_delete or vdisk_snapshot_hide", params.name);
        return Err(RpcError::invalid_params(message));
    }
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

async fn create_uring(app: Rc<App>, options: UringOptions) -> Result<Value, RpcError> {
    Ok(json!(Uring::create(&app.registry, options)?))
}

async fn rescan(app: Rc<App>, options: NameOptions) -> Result<Value, RpcError> {
    rpc::rescan(&app.registry, &options)?;
    Ok(Value::Bool(true))
}

async fn set_qos_limit(app: Rc<App>, options: QosOptions) -> Result<Value, RpcError> {
    qos::set_limits(&app.registry, &options)?;
    Ok(Value::Bool(true))
}
