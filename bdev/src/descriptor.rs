//! An open bdev.

use std::sync::Arc;

use penstock_reactor::Cx;

use crate::bdev::{Bdev, Run, Shared};
use crate::channel::BdevChannel;
use crate::error::BdevError;
use crate::registry::Open;

/// What a descriptor may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading; writes end with [`IoStatus::WriteProtected`](crate::IoStatus::WriteProtected).
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// An open bdev: made by the registry on the control thread, cloned to the reactors that use it, closed by dropping the
/// last clone (a [`BdevChannel`] holds one). The bdev is not deleted while one lives.
#[derive(Debug, Clone)]
pub struct Descriptor(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    // Dropped in this order: who hears of the end finds the bdev let go.
    bdev: Arc<dyn Bdev>,
    mode: OpenMode,
    /// Its end tells the registry.
    _open: Option<Open>,
}

impl Descriptor {
    /// A descriptor whose last clone ends `open`.
    pub(crate) fn counted(bdev: Arc<dyn Bdev>, mode: OpenMode, open: Open) -> Self {
        Self(Arc::new(Opened { bdev, mode, _open: Some(open) }))
    }

    /// A descriptor of a bdev that is in no registry: for tests and benches.
    #[must_use]
    pub fn unregistered(bdev: Arc<dyn Bdev>, mode: OpenMode) -> Self {
        Self(Arc::new(Opened { bdev, mode, _open: None }))
    }

    /// Name, geometry, state and statistics.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        self.0.bdev.shared()
    }

    /// What it may be used for.
    #[must_use]
    pub fn mode(&self) -> OpenMode {
        self.0.mode
    }

    /// Which blocks have storage, as [`Bdev::allocation`].
    #[must_use]
    pub fn allocation(&self, first: u64, runs_max: usize) -> Option<Vec<Run>> {
        self.0.bdev.allocation(first, runs_max)
    }

    /// Opens this core's channel.
    ///
    /// # Errors
    /// What the device says; [`BdevError::Removing`] when it is being removed.
    pub fn channel(&self, cx: &Cx) -> Result<BdevChannel, BdevError> {
        if self.shared().is_removed() {
            return Err(BdevError::Removing { name: self.shared().name().to_owned() });
        }
        let inner = self.0.bdev.open_channel(cx)?;
        Ok(BdevChannel::new(self.clone(), inner, cx))
    }

    /// As [`Self::channel`], whose I/O is not counted in the bdev's statistics: for looking what is on it.
    ///
    /// # Errors
    /// As there.
    pub fn uncounted_channel(&self, cx: &Cx) -> Result<BdevChannel, BdevError> {
        self.channel(cx).map(BdevChannel::uncounted)
    }
}
