//! What is driven.

use std::sync::Arc;

use anyhow::bail;
use penstock_bdev::null::Null;
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use uuid::Uuid;

use crate::args::Args;

const NULL_BLOCKS: u64 = 1 << 28;

/// An opened target.
#[derive(Debug)]
pub enum Target {
    /// A bdev of this process.
    Bdev(Descriptor),
}

impl Target {
    /// Opens what `args` names.
    ///
    /// # Errors
    /// When there is no such target, or it cannot be opened.
    pub fn open(args: &Args) -> anyhow::Result<Self> {
        let (kind, _rest) = args.target.split_once(':').unwrap_or((&args.target, ""));
        let bdev: Arc<dyn Bdev> = match kind {
            "null" => Null::new("null0", Uuid::from_u128(1), NULL_BLOCKS, 4096)?,
            _ => bail!("unknown target {}: --help lists them", args.target),
        };
        Ok(Self::Bdev(Descriptor::unregistered(bdev, OpenMode::ReadWrite)))
    }

    /// Bytes of a block, and how many blocks there are.
    #[must_use]
    pub fn geometry(&self) -> (u32, u64) {
        match self {
            Self::Bdev(descriptor) => (descriptor.shared().block_bytes(), descriptor.shared().blocks()),
        }
    }
}
