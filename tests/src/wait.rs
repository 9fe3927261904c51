//! Waiting for what another process does, with a limit.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `look` until it gives a value, and returns that.
///
/// # Errors
/// `look`'s own, at once; or that nothing came within `limit`.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("nothing within {limit:?}");
        }
        std::thread::sleep(INTERVAL);
    }
}
