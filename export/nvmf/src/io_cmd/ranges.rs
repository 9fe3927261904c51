//! The ranges that Dataset Management and Copy carry in their data.
//!
//! All of them are checked before the first is used: a command with one bad range does nothing.

use penstock_bdev::Lba;
use penstock_spec::nvme::Status;
use penstock_spec::nvme::nvm::{CopyRange0, DsmRange};
use zerocopy::FromBytes;

use super::limits::copy_blocks_max;
use super::{NsGeometry, in_range};

/// Why a Copy command is refused, and by which of its ranges: completion dword 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyFault {
    /// The status.
    pub status: Status,
    /// The lowest range that is not copied.
    pub range: u32,
}

/// Checks all ranges of a Dataset Management command.
///
/// # Errors
/// Data Transfer Error where `data` is shorter than `ranges`; LBA Out of Range where any range is.
pub fn check_dsm(data: &[u8], ranges: u16, ns: &NsGeometry) -> Result<(), Status> {
    (0..ranges).try_for_each(|index| {
        let (lba, blocks) = dsm_range(data, index).ok_or(Status::DATA_TRANSFER_ERROR)?;
        in_range(lba.0, blocks.into(), ns).map(drop)
    })
}

/// One range of a Dataset Management command: first block and length, which may be 0.
#[must_use]
pub fn dsm_range(data: &[u8], index: u16) -> Option<(Lba, u32)> {
    let rest = data.get(usize::from(index) * DsmRange::LEN..)?;
    let (range, _) = DsmRange::ref_from_prefix(rest).ok()?;
    Some((Lba(range.slba.get()), range.len_blocks.get()))
}

/// Checks all ranges of a Copy command to the blocks from `to` on.
///
/// # Errors
/// Command Size Limit Exceeded beyond MSSRL or MCL, LBA Out of Range, Overlapping I/O Range where a source lies in the
/// destination, Data Transfer Error where `data` is shorter than `ranges`.
pub fn check_copy(data: &[u8], ranges: u16, to: Lba, ns: &NsGeometry) -> Result<(), CopyFault> {
    let blocks_max = copy_blocks_max(ns.block_bytes);
    let mut total = 0_u32;
    for index in 0..ranges {
        let fault = |status: Status| CopyFault { status: status.with_dnr(), range: index.into() };
        let (from, blocks) = copy_range(data, index).ok_or(fault(Status::DATA_TRANSFER_ERROR))?;
        total = total.saturating_add(blocks);
        if total > blocks_max {
            return Err(fault(Status::COMMAND_SIZE_LIMIT_EXCEEDED));
        }
        in_range(from.0, blocks.into(), ns).map_err(fault)?;
        in_range(to.0, total.into(), ns).map_err(fault)?;
    }
    let end = to.0.saturating_add(total.into());
    for index in 0..ranges {
        let overlaps = copy_range(data, index)
            .is_some_and(|(from, blocks)| from.0 < end && to.0 < from.0.saturating_add(blocks.into()));
        if overlaps {
            return Err(CopyFault { status: Status::OVERLAPPING_IO_RANGE.with_dnr(), range: index.into() });
        }
    }
    Ok(())
}

/// One source range of a Copy command: first block and length.
#[must_use]
pub fn copy_range(data: &[u8], index: u16) -> Option<(Lba, u32)> {
    let rest = data.get(usize::from(index) * CopyRange0::LEN..)?;
    let (range, _) = CopyRange0::ref_from_prefix(rest).ok()?;
    Some((Lba(range.slba.get()), u32::from(range.nlb0.get()) + 1))
}
