//! Which blocks of a file have storage, as the file system tells (SEEK_DATA, SEEK_HOLE).

use std::fs::File;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::bdev::Run;

/// Up to `runs_max` runs of the blocks `first..blocks`. A block counts as allocated where any byte of it is; `None` where
/// the file system does not tell. The file's offset is moved about.
pub(super) fn of(
    file: &File,
    block_bytes: u64,
    first: u64,
    blocks: u64,
    runs_max: usize,
) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |blocks: u64, allocated: bool| {
        if blocks == 0 {
            return true;
        }
        if let Some(last) = runs.last_mut().filter(|last| last.allocated == allocated) {
            last.blocks += blocks;
            return true;
        }
        let has_room = runs.len() < runs_max;
        if has_room {
            runs.push(Run { blocks, allocated });
        }
        has_room
    };
    let mut at = first;
    // Each round has a hole and data; where all rounds merge, the file is odd, and what is known suffices.
    for _ in 0..runs_max {
        if at >= blocks {
            break;
        }
        let from = at.checked_mul(block_bytes)?;
        let data = match seek(file, SeekFrom::Data(from)) {
            Ok(byte) => byte,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => blocks.checked_mul(block_bytes)?,
            Err(_) => return None,
        };
        let data_block = (data / block_bytes).clamp(at, blocks);
        if !add(data_block - at, false) || data_block == blocks {
            break;
        }
        let hole = seek(file, SeekFrom::Hole(data.max(from))).ok()?;
        let hole_block = hole.div_ceil(block_bytes).clamp(data_block, blocks);
        if !add(hole_block - data_block, true) {
            break;
        }
        at = hole_block;
    }
    Some(runs)
}
