//! Commands about the blocks as a whole: READ CAPACITY, GET LBA STATUS, READ DEFECT DATA.

use penstock_bdev::Run;
use penstock_spec::scsi::block::{
    Capacity10, Capacity16, DefectHdr10, DefectHdr12, LBPME, LBPRZ, LbaStatus, LbaStatusHdr,
};
use penstock_spec::scsi::sense::Asc;

use super::put;
use crate::config::LuConfig;
use crate::lu::Control;
use crate::sense::{Fault, Sense};

/// READ CAPACITY(10) data. `pmi` and `lba` are obsolete and have to be 0.
pub(crate) fn capacity10(config: &LuConfig, lba: u32, pmi: bool, out: &mut Vec<u8>) -> Result<(), Fault> {
    if lba != 0 || pmi {
        return Err(Sense::cdb(if pmi { 8 } else { 2 }).into());
    }
    let info = config.info();
    let last_lba = u32::try_from(info.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    put(out, &Capacity10 { last_lba: last_lba.into(), block_bytes: info.block_bytes.into() });
    Ok(())
}

/// READ CAPACITY(16) data.
pub(crate) fn capacity16(config: &LuConfig, out: &mut Vec<u8>) {
    let info = config.info();
    let exponent = (info.physical_block_bytes / info.block_bytes).max(1).ilog2();
    let mut flags = if config.is_thin() { LBPME } else { 0 };
    if config.unmapped_reads_zero() {
        flags |= LBPRZ;
    }
    put(
        out,
        &Capacity16 {
            last_lba: info.blocks.saturating_sub(1).into(),
            block_bytes: info.block_bytes.into(),
            exponents: u8::try_from(exponent).unwrap_or(0) & 0x0f,
            lowest_aligned: flags.into(),
            ..Capacity16::default()
        },
    );
}

/// Descriptors of one GET LBA STATUS at most.
const RUNS_MAX: u32 = 256;

/// What GET LBA STATUS asks of whom knows which blocks have storage: as many descriptors as there is room for.
pub(crate) fn lba_status_asked(config: &LuConfig, first: u64, room_bytes: u32) -> Result<Control, Fault> {
    if first >= config.info().blocks {
        return Err(Sense::illegal(Asc::LBA_OUT_OF_RANGE).into());
    }
    let runs_max = (room_bytes.saturating_sub(8) / 16).clamp(1, RUNS_MAX);
    Ok(Control::Allocation { first, runs_max: usize::try_from(runs_max).unwrap_or(1) })
}

/// GET LBA STATUS data: mapped (or it is not known), or deallocated.
pub(crate) fn lba_status(first: u64, runs: &[Run], out: &mut Vec<u8>) {
    /// PROVISIONING STATUS.
    const DEALLOCATED: u8 = 1;
    let mut descriptors = Vec::new();
    let mut lba = first;
    for run in runs {
        let blocks = u32::try_from(run.blocks).unwrap_or(u32::MAX);
        let status = if run.allocated { 0 } else { DEALLOCATED };
        put(
            &mut descriptors,
            &LbaStatus { lba: lba.into(), blocks: blocks.into(), status, ..LbaStatus::default() },
        );
        lba += u64::from(blocks);
        if u64::from(blocks) < run.blocks {
            // The next descriptor would not begin where this one ends.
            break;
        }
    }
    // PARAMETER DATA LENGTH counts from the byte behind itself on.
    let len = u32::try_from(descriptors.len()).unwrap_or(0) + 4;
    put(out, &LbaStatusHdr { len: len.into(), ..LbaStatusHdr::default() });
    out.append(&mut descriptors);
}

/// READ DEFECT DATA: there are no defects to tell of. `lists`: PLIST, GLIST and format as asked.
pub(crate) fn defect_data(lists: u8, long: bool, out: &mut Vec<u8>) {
    let format = lists & 0x1f;
    if long {
        put(out, &DefectHdr12 { format, ..DefectHdr12::default() });
    } else {
        put(out, &DefectHdr10 { format, ..DefectHdr10::default() });
    }
}
