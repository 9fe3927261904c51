//! The parameter list of UNMAP (SBC-3 5.28.2).

use penstock_spec::scsi::block::{RangeDescriptor, UnmapHdr};
use penstock_spec::scsi::sense::Asc;
use zerocopy::FromBytes;

use super::len16;
use crate::config::LuConfig;
use crate::sense::{Fault, Sense};

/// A range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
}

/// Range descriptors, one after another; what is left of the last one does not count.
pub(crate) fn ranges(bytes: &[u8]) -> impl Iterator<Item = Range> {
    bytes.chunks_exact(RangeDescriptor::LEN).filter_map(|chunk| {
        let range = RangeDescriptor::ref_from_bytes(chunk).ok()?;
        Some(Range { lba: range.lba.get(), blocks: range.blocks.get() })
    })
}

/// Whether a range is on a disk of so many blocks.
pub(crate) fn fits(range: Range, device_blocks: u64) -> bool {
    range.lba.checked_add(u64::from(range.blocks)).is_some_and(|end| end <= device_blocks)
}

/// Reads the list: the ranges that are not empty, all of them on the disk and within the limits.
pub(crate) fn parse(list: &[u8], config: &LuConfig) -> Result<Vec<Range>, Fault> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let length_error = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let (hdr, rest) = UnmapHdr::ref_from_prefix(list).map_err(|_| length_error)?;
    let wanted = usize::from(hdr.descriptors_len.get());
    let descriptors = rest.get(..wanted.min(rest.len())).unwrap_or(&[]);
    if wanted > rest.len() {
        return Err(length_error.into());
    }
    let count = descriptors.len() / RangeDescriptor::LEN;
    if count > usize::from(config.limits.unmap_descriptors_max) {
        return Err(Sense::list(2).into());
    }
    let device_blocks = config.info().blocks;
    let mut total = 0_u64;
    let mut found = Vec::with_capacity(count);
    for (index, range) in ranges(descriptors).enumerate() {
        if !fits(range, device_blocks) {
            return Err(Sense::illegal(Asc::LBA_OUT_OF_RANGE).with_information(range.lba).into());
        }
        total += u64::from(range.blocks);
        if total > u64::from(config.limits.unmap_blocks_max) {
            return Err(Sense::list(len16(UnmapHdr::LEN + index * RangeDescriptor::LEN + 8)).into());
        }
        if range.blocks > 0 {
            found.push(range);
        }
    }
    Ok(found)
}
