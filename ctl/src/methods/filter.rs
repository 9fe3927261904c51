//! Methods that make, change and delete filters: bdevs that stand on others.

use std::rc::Rc;

use penstock_bdev::delay::{Delay, DelayOptions, DelayUpdateOptions};
use penstock_bdev::inject::{ErrorInjector, ErrorOptions, InjectOptions};
use penstock_bdev::passthru::{Passthru, PassthruOptions};
use penstock_bdev::split::{Split, SplitDeleteOptions, SplitOptions};
use serde_json::{Value, json};

use crate::daemon::App;
use crate::describe;
use crate::methods::create::{delete, name_only};
use crate::rpc::{Kind, RpcError, Table};

describe! {
    passthru_create {
        /// Name of the new bdev.
        name: String,
        /// The bdev that it stands on.
        base_bdev_name: String,
        /// Its identity. Default: a random one.
        uuid: Option<String>,
    }
}

describe! {
    delay_create {
        /// Name of the new bdev.
        name: String,
        /// The bdev that it stands on.
        base_bdev_name: String,
        /// Latency of most reads, in microseconds.
        avg_read_latency: u64,
        /// Latency of one read in a hundred, in microseconds.
        p99_read_latency: u64,
        /// Latency of most writes, in microseconds.
        avg_write_latency: u64,
        /// Latency of one write in a hundred, in microseconds.
        p99_write_latency: u64,
        /// Its identity. Default: a random one.
        uuid: Option<String>,
    }
}

describe! {
    delay_update {
        /// Name of the delay bdev.
        delay_bdev_name: String,
        /// avg_read, p99_read, avg_write or p99_write.
        latency_type: String,
        /// The new latency in microseconds.
        latency_us: u64,
    }
}

describe! {
    error_create {
        /// The bdev that it stands on; the new one is named EE_ and that name.
        base_name: String,
        /// Its identity. Default: a random one.
        uuid: Option<String>,
    }
}

describe! {
    error_inject {
        /// Name of the error bdev.
        name: String,
        /// clear (forget all rules), all, read, write, unmap, flush, write_zeroes or compare.
        io_type: String,
        /// failure, nvme_failure, pending (hang until cleared or reset), corrupt_data or nomem.
        error_type: String,
        /// With nvme_failure: status code type. Default: 0.
        nvme_sct: Option<u32>,
        /// With nvme_failure: status code. Default: 0.
        nvme_sc: Option<u32>,
        /// How many I/Os. Default: 1.
        num: Option<u32>,
        /// Only while so many are under way in the channel. Default: 0.
        queue_depth: Option<u64>,
        /// With corrupt_data: which byte. Default: 0.
        corrupt_offset: Option<u64>,
        /// With corrupt_data: what it is XORed with, 1 to 255.
        corrupt_value: Option<u8>,
        /// Only I/Os that touch blocks from this one on. Not SPDK's.
        lba: Option<u64>,
        /// Only so many blocks from there. Not SPDK's.
        num_blocks: Option<u64>,
        /// Only so many of a thousand I/Os. Not SPDK's.
        rate_per_mille: Option<u32>,
    }
}

describe! {
    split_create {
        /// The bdev to be cut up.
        base_bdev: String,
        /// How many parts; they are named by the bdev, p and a number.
        split_count: u32,
        /// Length of a part in MiB. Default: as long as they can be.
        split_size_mb: Option<u64>,
    }
}

describe! {
    split_delete {
        /// The bdev whose parts are to go.
        base_bdev: String,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    let made = Kind::Change;
    table
        .add_described(
            "bdev_passthru_create",
            made,
            "Makes a filter that changes nothing; answers its name.",
            passthru_create(),
            create_passthru,
        )
        .add_described(
            "bdev_passthru_delete",
            made,
            "Deletes a passthru bdev.",
            name_only(),
            |app, options| delete(app, options, Passthru::PRODUCT),
        )
        .add_described(
            "bdev_delay_create",
            made,
            "Makes a filter that delays completions; answers its name.",
            delay_create(),
            create_delay,
        )
        .add_described(
            "bdev_delay_update_latency",
            made,
            "Changes a latency of a delay bdev.",
            delay_update(),
            update_delay,
        )
        .add_described("bdev_delay_delete", made, "Deletes a delay bdev.", name_only(), |app, options| {
            delete(app, options, Delay::PRODUCT)
        })
        .add_described(
            "bdev_error_create",
            made,
            "Makes a filter that can make I/O fail; answers its name.",
            error_create(),
            create_error,
        )
        .add_described(
            "bdev_error_inject_error",
            Kind::Act,
            "Lets I/Os of an error bdev fail, hang or go wrong; not part of the configuration.",
            error_inject(),
            inject,
        )
        .add_described("bdev_error_delete", made, "Deletes an error bdev.", name_only(), |app, options| {
            delete(app, options, ErrorInjector::PRODUCT)
        })
        .add_described(
            "bdev_split_create",
            made,
            "Cuts a bdev into parts of equal length; answers their names.",
            split_create(),
            create_split,
        )
        .add_described(
            "bdev_split_delete",
            made,
            "Deletes the parts of a bdev.",
            split_delete(),
            delete_split,
        );
}

async fn create_passthru(app: Rc<App>, options: PassthruOptions) -> Result<Value, RpcError> {
    Ok(json!(Passthru::create(&app.registry, &options)?))
}

async fn create_delay(app: Rc<App>, options: DelayOptions) -> Result<Value, RpcError> {
    Ok(json!(Delay::create(&app.registry, &options)?))
}

async fn update_delay(app: Rc<App>, options: DelayUpdateOptions) -> Result<Value, RpcError> {
    Delay::update(&app.registry, &options)?;
    Ok(Value::Bool(true))
}

async fn create_error(app: Rc<App>, options: ErrorOptions) -> Result<Value, RpcError> {
    Ok(json!(ErrorInjector::create(&app.registry, &options)?))
}

async fn inject(app: Rc<App>, options: InjectOptions) -> Result<Value, RpcError> {
    ErrorInjector::inject(&app.registry, &options)?;
    Ok(Value::Bool(true))
}

async fn create_split(app: Rc<App>, options: SplitOptions) -> Result<Value, RpcError> {
    Ok(json!(Split::create(&app.registry, &options)?))
}

async fn delete_split(app: Rc<App>, options: SplitDeleteOptions) -> Result<Value, RpcError> {
    Split::delete(&app.registry, &options).await?;
    Ok(Value::Bool(true))
}
