//! Commands about the blocks as a whole: READ CAPACITY, GET LBA STATUS, READ DEFECT DATA.

use penstock_spec::scsi::block::{
    Capacity10, Capacity16, DefectHdr10, DefectHdr12, LBPME, LBPRZ, LbaStatus, LbaStatusHdr,
};
use penstock_spec::scsi::sense::Asc;

use super::put;
use crate::config::LuConfig;
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

/// GET LBA STATUS data. Which blocks are mapped, a bdev does not tell; "mapped or unknown" is said of all.
pub(crate) fn lba_status(config: &LuConfig, lba: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
    let blocks = config.info().blocks;
    let left = blocks.checked_sub(lba).filter(|left| *left > 0);
    let left = left.ok_or(Sense::illegal(Asc::LBA_OUT_OF_RANGE))?;
    put(out, &LbaStatusHdr { len: 20.into(), ..LbaStatusHdr::default() });
    let blocks = u32::try_from(left).unwrap_or(u32::MAX).into();
    put(out, &LbaStatus { lba: lba.into(), blocks, ..LbaStatus::default() });
    Ok(())
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
