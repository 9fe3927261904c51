//! Commands of the NVM command set, checked: a submission queue entry becomes a [`IoPlan`] or a [`Status`].
//!
//! Here NLB loses its 0's base, and nowhere else. A plan that comes out is in range, within the limits that Identify
//! tells, and its data length agrees with its SGL; what it needs beyond that is the transport's.

mod limits;
mod ranges;

use penstock_bdev::{Caps, IoFlags, Lba, Op};
use penstock_spec::nvme::nvm::{CopyCmd, CopyControl, CopyRange0, DsmAttributes, DsmCmd, DsmRange, RwCmd};
use penstock_spec::nvme::sgl::TcpSgl;
use penstock_spec::nvme::{Fuse, NSID_ALL, NvmOpcode, Psdt, Sqe, Status};

pub use limits::{
    COPY_DATA_LEN_MAX, COPY_LEN_MAX, COPY_RANGES_MAX, DMRSL_DEFAULT, DSM_DATA_LEN_MAX, IoLimits,
    WZSL_DEFAULT, WZSL_MAX, copy_blocks_max,
};
pub use ranges::{CopyFault, check_copy, check_dsm, copy_range, dsm_range};

/// What of a namespace the checks look at; a copy that is as old as the command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NsGeometry {
    /// Length in blocks.
    pub blocks: u64,
    /// Length of a block in bytes.
    pub block_bytes: u32,
    /// What the bdev can do.
    pub caps: Caps,
}

/// Which way a command's data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    None,
    /// From the host: in the capsule, or fetched by R2T.
    FromHost(TcpSgl),
    /// To the host.
    ToHost(TcpSgl),
    /// Nowhere: the command needs a buffer of so many bytes, and no data moves.
    Scratch(u32),
}

impl Transfer {
    /// Length of the data in bytes.
    #[inline]
    #[must_use]
    pub const fn len_bytes(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Scratch(len) => *len,
            Self::FromHost(sgl) | Self::ToHost(sgl) => sgl.len(),
        }
    }
}

/// A checked command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoPlan {
    /// One bdev I/O on the namespace of the command.
    Io {
        /// What to do.
        op: Op,
        /// How.
        flags: IoFlags,
        /// First block.
        lba: Lba,
        /// Length in blocks; 0 for a flush.
        blocks: u32,
        /// Data, `blocks` long where there are any.
        transfer: Transfer,
    },
    /// A flush of every namespace of the subsystem.
    FlushAll,
    /// Dataset Management: once the data are there, [`check_dsm`] and [`dsm_range`] tell which blocks to unmap.
    Dsm {
        /// Ranges in the data.
        ranges: u16,
        /// Whether the blocks are to be deallocated; else the ranges are hints, and nothing is to be done.
        deallocate: bool,
        /// Data; may be longer than the ranges (hosts always send a page).
        transfer: Transfer,
    },
    /// Copy: once the data are there, [`check_copy`] and [`copy_range`] tell which blocks to copy where.
    Copy {
        /// Ranges in the data.
        ranges: u16,
        /// First block of the destination.
        to: Lba,
        /// How.
        flags: IoFlags,
        /// Data; may be longer than the ranges.
        transfer: Transfer,
    },
}

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();

/// Checks a command of an I/O queue. `ns` is the namespace of `sqe.nsid`, if it is active.
///
/// A command of a fused pair is checked as any other; that the two belong together is the queue's to see.
///
/// # Errors
/// The status to answer with; nothing is to be done and no data to be moved.
#[inline]
pub fn parse(sqe: &Sqe, ns: Option<&NsGeometry>, limits: &IoLimits) -> Result<IoPlan, Status> {
    let opcode = NvmOpcode(sqe.opc);
    if sqe.fuse() != Fuse::Normal && !may_be_fused(opcode, sqe.fuse()) {
        return Err(INVALID_FIELD);
    }
    if !is_supported(opcode) {
        return Err(Status::INVALID_OPCODE.with_dnr());
    }
    let Some(ns) = ns else { return without_namespace(opcode, sqe.nsid.get(), limits) };
    match opcode {
        NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => read_write(opcode, sqe, ns, limits),
        NvmOpcode::FLUSH => Ok(flush()),
        NvmOpcode::WRITE_ZEROES => write_zeroes(sqe, ns, limits),
        NvmOpcode::VERIFY => verify(sqe, ns, limits),
        NvmOpcode::COPY => copy(sqe, ns),
        _ => dataset_management(sqe, ns),
    }
}

/// Compare and Write is the one fused operation (FUSES).
#[cold]
fn may_be_fused(opcode: NvmOpcode, fuse: Fuse) -> bool {
    matches!((opcode, fuse), (NvmOpcode::COMPARE, Fuse::First) | (NvmOpcode::WRITE, Fuse::Second))
}

/// I/O commands of this target, but for those of reservations.
#[inline]
#[must_use]
pub const fn is_supported(opcode: NvmOpcode) -> bool {
    matches!(
        opcode,
        NvmOpcode::FLUSH
            | NvmOpcode::WRITE
            | NvmOpcode::READ
            | NvmOpcode::COMPARE
            | NvmOpcode::WRITE_ZEROES
            | NvmOpcode::DATASET_MANAGEMENT
            | NvmOpcode::VERIFY
            | NvmOpcode::COPY
    )
}

const fn flush() -> IoPlan {
    IoPlan::Io { op: Op::Flush, flags: IoFlags::NONE, lba: Lba(0), blocks: 0, transfer: Transfer::None }
}

/// Base 3.2.1: an invalid NSID is an invalid namespace, an inactive one an invalid field.
#[cold]
fn without_namespace(opcode: NvmOpcode, nsid: u32, limits: &IoLimits) -> Result<IoPlan, Status> {
    match nsid {
        NSID_ALL if opcode == NvmOpcode::FLUSH => Ok(IoPlan::FlushAll),
        nsid => Err(no_namespace(nsid, limits.nsid_max)),
    }
}

pub(crate) const fn no_namespace(nsid: u32, nsid_max: u32) -> Status {
    if nsid != 0 && nsid <= nsid_max { INVALID_FIELD } else { Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr() }
}

#[inline]
fn read_write(opcode: NvmOpcode, sqe: &Sqe, ns: &NsGeometry, limits: &IoLimits) -> Result<IoPlan, Status> {
    let cmd = RwCmd::from_sqe(sqe);
    let control = cmd.control();
    let blocks = cmd.len_blocks();
    let len = u64::from(blocks) * u64::from(ns.block_bytes);
    if control.pract() || control.prchk() != 0 || control.stc() || control.cetype() != 0 {
        return Err(INVALID_FIELD);
    }
    if len > u64::from(limits.data_len_max) {
        return Err(INVALID_FIELD);
    }
    let sgl = data_sgl(sqe)?;
    if u64::from(sgl.len()) != len {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    let lba = in_range(cmd.slba.get(), u64::from(blocks), ns)?;
    let (op, transfer) = match opcode {
        NvmOpcode::READ => (Op::Read, Transfer::ToHost(sgl)),
        NvmOpcode::WRITE if control.dtype() != 0 => return Err(INVALID_FIELD),
        NvmOpcode::WRITE => (Op::Write, Transfer::FromHost(sgl)),
        _ => (Op::Compare, Transfer::FromHost(sgl)),
    };
    let flags = if control.fua() { IoFlags::FUA } else { IoFlags::NONE };
    Ok(IoPlan::Io { op, flags, lba, blocks, transfer })
}

/// Whether a command without data asks for protection information or a directive, of which there are none.
fn has_extras(cmd: &RwCmd) -> bool {
    let control = cmd.control();
    control.pract() || control.prchk() != 0 || control.stc() || control.cetype() != 0
}

fn write_zeroes(sqe: &Sqe, ns: &NsGeometry, limits: &IoLimits) -> Result<IoPlan, Status> {
    let cmd = RwCmd::from_sqe(sqe);
    let control = cmd.control();
    let blocks = cmd.len_blocks();
    if has_extras(cmd) || control.dtype() != 0 {
        return Err(INVALID_FIELD);
    }
    if u64::from(blocks) * u64::from(ns.block_bytes) > limits.write_zeroes_len_max() {
        return Err(INVALID_FIELD);
    }
    let lba = in_range(cmd.slba.get(), u64::from(blocks), ns)?;
    let mut flags = if control.fua() { IoFlags::FUA } else { IoFlags::NONE };
    if !control.deac() {
        flags = flags.with(IoFlags::KEEP_ALLOCATED);
    }
    Ok(IoPlan::Io { op: Op::WriteZeroes, flags, lba, blocks, transfer: Transfer::None })
}

/// Verify reads the blocks and keeps nothing of them: what a device or a checksum has against them is the answer.
fn verify(sqe: &Sqe, ns: &NsGeometry, limits: &IoLimits) -> Result<IoPlan, Status> {
    let cmd = RwCmd::from_sqe(sqe);
    let blocks = cmd.len_blocks();
    let len = u64::from(blocks) * u64::from(ns.block_bytes);
    // VSL is MDTS.
    if has_extras(cmd) || cmd.control().dtype() != 0 || len > u64::from(limits.data_len_max) {
        return Err(INVALID_FIELD);
    }
    let lba = in_range(cmd.slba.get(), u64::from(blocks), ns)?;
    let len = u32::try_from(len).map_err(|_| INVALID_FIELD)?;
    let flags = if cmd.control().fua() { IoFlags::FUA } else { IoFlags::NONE };
    Ok(IoPlan::Io { op: Op::Read, flags, lba, blocks, transfer: Transfer::Scratch(len) })
}

fn dataset_management(sqe: &Sqe, ns: &NsGeometry) -> Result<IoPlan, Status> {
    let cmd = DsmCmd::from_sqe(sqe);
    let transfer = range_list(sqe, cmd.ranges(), DsmRange::LEN, DSM_DATA_LEN_MAX)?;
    // Deallocation is advice (NVM Command Set 3.3.3): a bdev that cannot unmap has nothing to do.
    let deallocate = DsmAttributes(cmd.attributes.get()).ad() && ns.caps.has(Op::Unmap);
    Ok(IoPlan::Dsm { ranges: cmd.ranges(), deallocate, transfer })
}

fn copy(sqe: &Sqe, ns: &NsGeometry) -> Result<IoPlan, Status> {
    let cmd = CopyCmd::from_sqe(sqe);
    let control = CopyControl(cmd.cdw12.get());
    let extras = [control.prinfor(), control.prinfow(), control.cetype(), control.dtype()];
    // Format 0h is the only one that OCFS offers.
    if control.desfmt() != 0 || extras.iter().any(|extra| *extra != 0) || control.stcr() || control.stcw() {
        return Err(INVALID_FIELD);
    }
    let ranges = u16::from(control.nr0()) + 1;
    let transfer = range_list(sqe, ranges, CopyRange0::LEN, COPY_DATA_LEN_MAX)?;
    let to = in_range(cmd.sdlba.get(), 1, ns)?;
    let flags = if control.fua() { IoFlags::FUA } else { IoFlags::NONE };
    Ok(IoPlan::Copy { ranges, to, flags, transfer })
}

/// The data of a command whose data are ranges. Hosts may send more than there are ranges: Linux sends a page.
fn range_list(sqe: &Sqe, ranges: u16, range_len: usize, len_max: u32) -> Result<Transfer, Status> {
    let sgl = data_sgl(sqe)?;
    let needed = usize::from(ranges) * range_len;
    let len = usize::try_from(sgl.len()).unwrap_or(usize::MAX);
    if len < needed || sgl.len() > len_max {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    Ok(Transfer::FromHost(sgl))
}

/// The data pointer of a command that moves data: an SGL that NVMe/TCP can have.
#[inline]
pub(crate) fn data_sgl(sqe: &Sqe) -> Result<TcpSgl, Status> {
    // There is no metadata, so that MPTR is not looked at; SGLS does not offer 10b.
    if sqe.psdt() != Psdt::SglMptrContiguous {
        return Err(INVALID_FIELD);
    }
    sqe.sgl1.parse_tcp().map_err(|error| error.status().with_dnr())
}

#[inline]
fn in_range(slba: u64, blocks: u64, ns: &NsGeometry) -> Result<Lba, Status> {
    match slba.checked_add(blocks) {
        Some(end) if end <= ns.blocks => Ok(Lba(slba)),
        _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
    }
}

#[cfg(test)]
mod tests;
