//! Pinning, checked.

use core_affinity::CoreId;

use crate::error::ReactorError;

/// Binds the calling thread to `core` and checks that it runs there.
///
/// # Errors
/// [`ReactorError::Pin`] when the core does not exist, is not in this process's allowed set, or the kernel refuses.
pub fn pin(core: u32) -> Result<(), ReactorError> {
    let id = usize::try_from(core).map_err(|_| ReactorError::Pin { core, allowed: allowed() })?;
    if !core_affinity::set_for_current(CoreId { id }) || current() != id {
        return Err(ReactorError::Pin { core, allowed: allowed() });
    }
    Ok(())
}

/// The cores that the calling thread may run on, in order: all of the process's, unless the thread was pinned.
#[must_use]
pub fn allowed() -> Vec<u32> {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    ids.into_iter().filter_map(|core| u32::try_from(core.id).ok()).collect()
}

fn current() -> usize {
    rustix::thread::sched_getcpu()
}
