//! Submission queue entries that hosts send, ready made; CID and SGL are set by `submit`.

use penstock_spec::nvme::feature::Fid;
use penstock_spec::nvme::identify::{Cns, IdentifyCmd};
use penstock_spec::nvme::log::{GetLogPageCmd, Lid};
use penstock_spec::nvme::nvm::{DsmAttributes, DsmCmd, RwCmd, RwControl};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::{AdminOpcode, FabricsType, NvmOpcode, Sqe};
use penstock_spec::nvmf::connect::DisconnectCmd;
use penstock_spec::nvmf::property::{PropertyGetCmd, PropertySetCmd, PropertySize};
use zerocopy::little_endian::{U16, U32, U64};

/// Identify. The data has 4096 bytes.
#[must_use]
pub fn identify(cns: Cns, nsid: u32, csi: Csi) -> Sqe {
    let cmd = IdentifyCmd {
        opc: AdminOpcode::IDENTIFY.0,
        flags: Sqe::FLAGS_FABRICS,
        nsid: U32::new(nsid),
        cns,
        csi,
        ..IdentifyCmd::default()
    };
    *cmd.as_sqe()
}

/// Get Log Page of `len_bytes` (a multiple of 4, not 0) from `off_bytes` (a multiple of 4) on.
#[must_use]
pub fn get_log_page(lid: Lid, nsid: u32, off_bytes: u64, len_bytes: u32) -> Sqe {
    let [n0, n1, n2, n3] = (len_bytes / 4).saturating_sub(1).to_le_bytes();
    let cmd = GetLogPageCmd {
        opc: AdminOpcode::GET_LOG_PAGE.0,
        flags: Sqe::FLAGS_FABRICS,
        nsid: U32::new(nsid),
        lid,
        numdl: U16::from_bytes([n0, n1]),
        numdu: U16::from_bytes([n2, n3]),
        lpo: U64::new(off_bytes),
        ..GetLogPageCmd::default()
    };
    *cmd.as_sqe()
}

/// Set Features without data.
#[must_use]
pub fn set_features(fid: Fid, nsid: u32, cdw11: u32) -> Sqe {
    let cdw10 = U32::new(u32::from(fid.0));
    Sqe { cdw10, cdw11: U32::new(cdw11), ..Sqe::new(AdminOpcode::SET_FEATURES.0, nsid) }
}

/// Get Features, the current value.
#[must_use]
pub fn get_features(fid: Fid, nsid: u32) -> Sqe {
    Sqe { cdw10: U32::new(u32::from(fid.0)), ..Sqe::new(AdminOpcode::GET_FEATURES.0, nsid) }
}

/// Keep Alive.
#[must_use]
pub fn keep_alive() -> Sqe {
    Sqe::new(AdminOpcode::KEEP_ALIVE.0, 0)
}

/// Asynchronous Event Request.
#[must_use]
pub fn async_event_request() -> Sqe {
    Sqe::new(AdminOpcode::ASYNC_EVENT_REQUEST.0, 0)
}

/// Abort of command `cid` of queue `sqid`.
#[must_use]
pub fn abort(sqid: u16, cid: u16) -> Sqe {
    let cdw10 = U32::new((u32::from(cid) << 16) | u32::from(sqid));
    Sqe { cdw10, ..Sqe::new(AdminOpcode::ABORT.0, 0) }
}

/// Property Get.
#[must_use]
pub fn property_get(ofst: u32, size: PropertySize) -> Sqe {
    let cmd = PropertyGetCmd {
        opc: AdminOpcode::FABRICS.0,
        flags: Sqe::FLAGS_FABRICS,
        fctype: FabricsType::PROPERTY_GET.0,
        attrib: size.attrib(),
        ofst: U32::new(ofst),
        ..PropertyGetCmd::default()
    };
    *cmd.as_sqe()
}

/// Property Set of a 4-byte property.
#[must_use]
pub fn property_set(ofst: u32, value: u32) -> Sqe {
    let cmd = PropertySetCmd {
        opc: AdminOpcode::FABRICS.0,
        flags: Sqe::FLAGS_FABRICS,
        fctype: FabricsType::PROPERTY_SET.0,
        attrib: PropertySize::Four.attrib(),
        ofst: U32::new(ofst),
        value: U64::new(u64::from(value)),
        ..PropertySetCmd::default()
    };
    *cmd.as_sqe()
}

/// Disconnect: deletes the I/O queue that it is sent on.
#[must_use]
pub fn disconnect() -> Sqe {
    let cmd = DisconnectCmd {
        opc: AdminOpcode::FABRICS.0,
        flags: Sqe::FLAGS_FABRICS,
        fctype: FabricsType::DISCONNECT.0,
        ..DisconnectCmd::default()
    };
    *cmd.as_sqe()
}

/// Read, Write, Compare, Write Zeroes or Verify of `len_blocks` (1..=65536, else brought into it).
#[inline]
#[must_use]
pub fn rw(opcode: NvmOpcode, nsid: u32, slba: u64, len_blocks: u32, control: RwControl) -> Sqe {
    let nlb0 = len_blocks.saturating_sub(1).min(u32::from(u16::MAX));
    let cmd = RwCmd {
        opc: opcode.0,
        flags: Sqe::FLAGS_FABRICS,
        nsid: U32::new(nsid),
        slba: U64::new(slba),
        nlb0: U16::new(u16::try_from(nlb0).unwrap_or(u16::MAX)),
        control: U16::new(control.0),
        ..RwCmd::default()
    };
    *cmd.as_sqe()
}

/// Read.
#[inline]
#[must_use]
pub fn read(nsid: u32, slba: u64, len_blocks: u32) -> Sqe {
    rw(NvmOpcode::READ, nsid, slba, len_blocks, RwControl(0))
}

/// Write, with Force Unit Access if asked for.
#[inline]
#[must_use]
pub fn write(nsid: u32, slba: u64, len_blocks: u32, fua: bool) -> Sqe {
    rw(NvmOpcode::WRITE, nsid, slba, len_blocks, RwControl(0).with_fua(fua))
}

/// Write Zeroes; `deallocate` lets the controller free the blocks.
#[must_use]
pub fn write_zeroes(nsid: u32, slba: u64, len_blocks: u32, deallocate: bool) -> Sqe {
    rw(NvmOpcode::WRITE_ZEROES, nsid, slba, len_blocks, RwControl(0).with_deac(deallocate))
}

/// Flush.
#[must_use]
pub fn flush(nsid: u32) -> Sqe {
    Sqe::new(NvmOpcode::FLUSH.0, nsid)
}

/// Dataset Management, Deallocate, of `ranges` (1..=256, else brought into it) ranges.
#[must_use]
pub fn deallocate(nsid: u32, ranges: u16) -> Sqe {
    let cmd = DsmCmd {
        opc: NvmOpcode::DATASET_MANAGEMENT.0,
        flags: Sqe::FLAGS_FABRICS,
        nsid: U32::new(nsid),
        nr0: u8::try_from(ranges.saturating_sub(1)).unwrap_or(u8::MAX),
        attributes: U32::new(DsmAttributes(0).with_ad(true).0),
        ..DsmCmd::default()
    };
    *cmd.as_sqe()
}
