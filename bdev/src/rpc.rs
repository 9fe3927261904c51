//! What the RPC methods of all modules have in common: names, UUIDs, sizes in MiB, methods that act on any bdev.

use serde::Deserialize;
use uuid::Uuid;

use crate::error::BdevError;
use crate::registry::Registry;

const MIB: u64 = 1 << 20;

/// Parameters of `bdev_null_resize` and its like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeOptions {
    /// Which bdev.
    pub name: String,
    /// Its new length in MiB.
    pub new_size: u64,
}

/// Parameters of methods that only name a bdev: `bdev_*_delete`, `bdev_*_rescan`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameOptions {
    /// Which bdev.
    pub name: String,
}

/// Gives a bdev another length: `bdev_null_resize` and its like.
///
/// # Errors
/// As [`Registry::resize`]; [`BdevError::Invalid`] for a length that is no whole number of blocks.
pub fn resize(registry: &Registry, options: &ResizeOptions) -> Result<(), BdevError> {
    let block_bytes = u64::from(registry.find(&options.name)?.shared().block_bytes());
    let blocks = options.new_size.checked_mul(MIB).map(|bytes| bytes / block_bytes);
    let Some(blocks) = blocks.filter(|blocks| *blocks > 0) else {
        let problem = format!("is {}; it must be 1 or more, in MiB", options.new_size);
        return Err(BdevError::Invalid { name: options.name.clone(), parameter: "new_size", problem });
    };
    registry.resize(&options.name, Some(blocks)).map(drop)
}

/// Looks whether a device has got another length: `bdev_uring_rescan`, `bdev_aio_rescan`.
///
/// # Errors
/// As [`Registry::resize`].
pub fn rescan(registry: &Registry, options: &NameOptions) -> Result<(), BdevError> {
    registry.resize(&options.name, None).map(drop)
}

/// Deletes a bdev of the kind `product`: `bdev_*_delete`. A removal that has begun goes on without the caller.
///
/// # Errors
/// As [`Registry::remove`]; [`BdevError::WrongKind`] when the bdev is of another kind.
pub async fn delete(
    registry: &Registry,
    options: &NameOptions,
    product: &'static str,
) -> Result<(), BdevError> {
    let actual = registry.find(&options.name)?.shared().product();
    if actual != product {
        return Err(BdevError::WrongKind { name: options.name.clone(), actual, wanted: product });
    }
    registry.remove(&options.name).await
}

/// `name`, or the first of `prefix` with a number that is free.
pub(crate) fn name_or(registry: &Registry, name: Option<String>, prefix: &str) -> String {
    name.unwrap_or_else(|| {
        let mut numbered = (0_u64..).map(|number| format!("{prefix}{number}"));
        numbered.find(|name| registry.find(name).is_err()).unwrap_or_default()
    })
}

/// The UUID in `text`, or a random one.
pub(crate) fn uuid_or_random(name: &str, text: Option<&str>) -> Result<Uuid, BdevError> {
    let Some(text) = text else { return Ok(Uuid::new_v4()) };
    Uuid::try_parse(text).map_err(|error| BdevError::Invalid {
        name: name.to_owned(),
        parameter: "uuid",
        problem: format!("{text:?} is no UUID: {error}"),
    })
}

/// Refuses what asks for metadata or protection information.
pub(crate) fn no_metadata(name: &str, md_size: u32, dif_type: i32) -> Result<(), BdevError> {
    let refuse = |parameter, value: String| {
        let problem =
            format!("is {value}; metadata and protection information are not supported: leave it 0");
        Err(BdevError::Invalid { name: name.to_owned(), parameter, problem })
    };
    match (md_size, dif_type) {
        (0, 0) => Ok(()),
        (0, _) => refuse("dif_type", dif_type.to_string()),
        _ => refuse("md_size", md_size.to_string()),
    }
}
