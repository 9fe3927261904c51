//! I/Os to a bdev of this process.

use std::sync::Arc;

use anyhow::bail;
use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::null::Null;
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_reactor::Reactor;
use uuid::Uuid;

use crate::{BLOCK_BYTES, BLOCKS, Load, drive};

/// A new bdev of the named kind.
pub(crate) fn open(kind: &str) -> anyhow::Result<Arc<dyn Bdev>> {
    Ok(match kind {
        "null" => Null::new("null0", Uuid::from_u128(1), BLOCKS, BLOCK_BYTES)?,
        "malloc" => {
            let options = serde_json::json!({ "num_blocks": BLOCKS, "block_size": BLOCK_BYTES });
            let options: MallocOptions = serde_json::from_value(options)?;
            Malloc::new("malloc0", &options)?
        }
        _ => bail!("unknown bdev {kind}: it is null or malloc"),
    })
}

pub(crate) fn run(reactor: &mut Reactor, bdev: Arc<dyn Bdev>, load: Load) -> anyhow::Result<()> {
    let mut channel = Descriptor::unregistered(bdev, OpenMode::ReadWrite).channel(reactor.cx())?;
    drive(&mut channel, load, || {})
}
