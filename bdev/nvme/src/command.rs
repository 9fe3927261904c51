//! Submission queue entries of a memory-based controller; CID and data pointer are set by the queue.

use penstock_spec::nvme::feature::Fid;
use penstock_spec::nvme::identify::{Cns, IdentifyCmd};
use penstock_spec::nvme::log::{GetLogPageCmd, Lid};
use penstock_spec::nvme::nvm::{CopyCmd, CopyControl, DsmAttributes, DsmCmd, RwCmd, RwControl};
use penstock_spec::nvme::{AdminOpcode, NvmOpcode, Sqe};
use zerocopy::little_endian::{U16, U32, U64};

fn plain(opc: u8, nsid: u32) -> Sqe {
    Sqe { opc, nsid: U32::new(nsid), ..Sqe::default() }
}

/// Identify; 4096 bytes of data.
#[must_use]
pub fn identify(cns: Cns, nsid: u32) -> Sqe {
    let cmd =
        IdentifyCmd { opc: AdminOpcode::IDENTIFY.0, nsid: U32::new(nsid), cns, ..IdentifyCmd::default() };
    *cmd.as_sqe()
}

/// Get Log Page of `len_bytes` (a multiple of 4, 4..=4096) from the beginning.
#[must_use]
pub fn get_log_page(lid: Lid, nsid: u32, len_bytes: u16) -> Sqe {
    let cmd = GetLogPageCmd {
        opc: AdminOpcode::GET_LOG_PAGE.0,
        nsid: U32::new(nsid),
        lid,
        numdl: U16::new((len_bytes / 4).saturating_sub(1)),
        ..GetLogPageCmd::default()
    };
    *cmd.as_sqe()
}

/// Set Features without data.
#[must_use]
pub fn set_features(fid: Fid, cdw11: u32) -> Sqe {
    let cdw10 = U32::new(u32::from(fid.0));
    Sqe { cdw10, cdw11: U32::new(cdw11), ..plain(AdminOpcode::SET_FEATURES.0, 0) }
}

/// Get Features, the current value.
#[must_use]
pub fn get_features(fid: Fid) -> Sqe {
    Sqe { cdw10: U32::new(u32::from(fid.0)), ..plain(AdminOpcode::GET_FEATURES.0, 0) }
}

/// Create I/O Completion Queue, contiguous, without interrupts. `entries` is not 0's based.
#[must_use]
pub fn create_cq(qid: u16, entries: u16) -> Sqe {
    let cdw10 = U32::new(u32::from(entries.saturating_sub(1)) << 16 | u32::from(qid));
    Sqe { cdw10, cdw11: U32::new(1), ..plain(AdminOpcode::CREATE_IO_CQ.0, 0) }
}

/// Create I/O Submission Queue, contiguous, whose completions go to the queue of the same number.
#[must_use]
pub fn create_sq(qid: u16, entries: u16) -> Sqe {
    let cdw10 = U32::new(u32::from(entries.saturating_sub(1)) << 16 | u32::from(qid));
    Sqe { cdw10, cdw11: U32::new(u32::from(qid) << 16 | 1), ..plain(AdminOpcode::CREATE_IO_SQ.0, 0) }
}

/// Asynchronous Event Request.
#[must_use]
pub fn async_event_request() -> Sqe {
    plain(AdminOpcode::ASYNC_EVENT_REQUEST.0, 0)
}

/// Abort of command `cid` of queue `sqid`.
#[must_use]
pub fn abort(sqid: u16, cid: u16) -> Sqe {
    let cdw10 = U32::new((u32::from(cid) << 16) | u32::from(sqid));
    Sqe { cdw10, ..plain(AdminOpcode::ABORT.0, 0) }
}

/// Doorbell Buffer Config: PRP1 has the shadow doorbells, PRP2 the event indexes.
#[must_use]
pub fn doorbell_buffers(shadow: u64, events: u64) -> Sqe {
    with_prps(plain(AdminOpcode::DOORBELL_BUFFER_CONFIG.0, 0), shadow, events)
}

/// The command with these PRP entries.
#[inline]
#[must_use]
pub fn with_prps(mut sqe: Sqe, prp1: u64, prp2: u64) -> Sqe {
    let words: [U64; 2] = [U64::new(prp1), U64::new(prp2)];
    sqe.sgl1 = zerocopy::transmute!(words);
    sqe
}

/// Read, Write, Compare, Write Zeroes or Verify of `len_blocks` (1..=65536, else brought into it).
#[inline]
#[must_use]
pub fn rw(opcode: NvmOpcode, nsid: u32, slba: u64, len_blocks: u32, control: RwControl) -> Sqe {
    let nlb0 = len_blocks.saturating_sub(1).min(u32::from(u16::MAX));
    let cmd = RwCmd {
        opc: opcode.0,
        nsid: U32::new(nsid),
        slba: U64::new(slba),
        nlb0: U16::new(u16::try_from(nlb0).unwrap_or(u16::MAX)),
        control: U16::new(control.0),
        ..RwCmd::default()
    };
    *cmd.as_sqe()
}

/// Flush.
#[must_use]
pub fn flush(nsid: u32) -> Sqe {
    plain(NvmOpcode::FLUSH.0, nsid)
}

/// Dataset Management, Deallocate, of one range.
#[must_use]
pub fn deallocate(nsid: u32) -> Sqe {
    let cmd = DsmCmd {
        opc: NvmOpcode::DATASET_MANAGEMENT.0,
        nsid: U32::new(nsid),
        attributes: U32::new(DsmAttributes(0).with_ad(true).0),
        ..DsmCmd::default()
    };
    *cmd.as_sqe()
}

/// Copy to `sdlba` of `ranges` (1..=256) source ranges of format 0.
#[must_use]
pub fn copy(nsid: u32, sdlba: u64, ranges: usize, fua: bool) -> Sqe {
    let nr0 = u8::try_from(ranges.saturating_sub(1)).unwrap_or(u8::MAX);
    let cmd = CopyCmd {
        opc: NvmOpcode::COPY.0,
        nsid: U32::new(nsid),
        sdlba: U64::new(sdlba),
        cdw12: U32::new(CopyControl(0).with_nr0(nr0).with_fua(fua).0),
        ..CopyCmd::default()
    };
    *cmd.as_sqe()
}
