//! Commands of the NVM command set, checked: a submission queue entry becomes a [`IoPlan`] or a [`Status`].
//!
//! Here NLB loses its 0's base, and nowhere else. A plan that comes out is in range, within the limits that Identify
//! tells, and its data length agrees with its SGL; what it needs beyond that is the transport's.

use penstock_bdev::{Caps, IoFlags, Lba, Op};
use penstock_spec::nvme::nvm::{DSM_RANGES_MAX, DsmAttributes, DsmCmd, DsmRange, RwCmd};
use penstock_spec::nvme::sgl::TcpSgl;
use penstock_spec::nvme::{Fuse, NSID_ALL, NvmOpcode, Psdt, Sqe, Status};
use zerocopy::FromBytes;

use crate::transport_options::{IO_SIZE_MAX, PAGE_BYTES, TransportOptions};

/// Write Zeroes of one command at most, in bytes (WZSL of CNS 06h).
pub const WRITE_ZEROES_LEN_MAX: u32 = 8 << 20;
/// WZSL: log2 of [`WRITE_ZEROES_LEN_MAX`] in pages.
pub const WZSL: u8 = 11;
/// Data of Dataset Management at most, in bytes.
pub const DSM_DATA_LEN_MAX: u32 = 4096;

const _: () = assert!((PAGE_BYTES as u64) << WZSL == WRITE_ZEROES_LEN_MAX as u64);
const _: () = assert!(DSM_RANGES_MAX * DsmRange::LEN == DSM_DATA_LEN_MAX as usize);
const _: () = assert!(DSM_DATA_LEN_MAX <= IO_SIZE_MAX);

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

/// What of the controller the checks look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimits {
    /// Data of one command at most, in bytes (MDTS).
    pub data_len_max: u32,
    /// The largest NSID.
    pub nsid_max: u32,
}

impl IoLimits {
    /// The limits that Identify Controller tells.
    #[must_use]
    pub const fn new(options: &TransportOptions, nsid_max: u32) -> Self {
        Self { data_len_max: options.max_io_size, nsid_max }
    }
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
}

impl Transfer {
    /// Length of the data in bytes.
    #[inline]
    #[must_use]
    pub const fn len_bytes(&self) -> u32 {
        match self {
            Self::None => 0,
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
    /// Dataset Management: once the data are there, [`dsm_ranges`] tells which blocks to unmap.
    Dsm {
        /// Ranges in the data.
        ranges: u16,
        /// Whether the blocks are to be deallocated; else the ranges are hints, and nothing is to be done.
        deallocate: bool,
        /// Data; may be longer than the ranges (hosts always send a page).
        transfer: Transfer,
    },
}

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();

/// Checks a command of an I/O queue. `ns` is the namespace of `sqe.nsid`, if it is active.
///
/// # Errors
/// The status to answer with; nothing is to be done and no data to be moved.
#[inline]
pub fn parse(sqe: &Sqe, ns: Option<&NsGeometry>, limits: &IoLimits) -> Result<IoPlan, Status> {
    if sqe.fuse() != Fuse::Normal {
        return Err(INVALID_FIELD);
    }
    let opcode = NvmOpcode(sqe.opc);
    if !is_supported(opcode) {
        return Err(Status::INVALID_OPCODE.with_dnr());
    }
    let Some(ns) = ns else { return without_namespace(opcode, sqe.nsid.get(), limits) };
    match opcode {
        NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => read_write(opcode, sqe, ns, limits),
        NvmOpcode::FLUSH => Ok(flush()),
        NvmOpcode::WRITE_ZEROES => write_zeroes(sqe, ns),
        _ => dataset_management(sqe, ns),
    }
}

/// I/O commands of this target.
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
        nsid if nsid != 0 && nsid <= limits.nsid_max => Err(INVALID_FIELD),
        _ => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
    }
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

fn write_zeroes(sqe: &Sqe, ns: &NsGeometry) -> Result<IoPlan, Status> {
    let cmd = RwCmd::from_sqe(sqe);
    let control = cmd.control();
    let blocks = cmd.len_blocks();
    if control.pract()
        || control.prchk() != 0
        || control.stc()
        || control.cetype() != 0
        || control.dtype() != 0
    {
        return Err(INVALID_FIELD);
    }
    if u64::from(blocks) * u64::from(ns.block_bytes) > u64::from(WRITE_ZEROES_LEN_MAX) {
        return Err(INVALID_FIELD);
    }
    let lba = in_range(cmd.slba.get(), u64::from(blocks), ns)?;
    let mut flags = if control.fua() { IoFlags::FUA } else { IoFlags::NONE };
    if !control.deac() {
        flags = flags.with(IoFlags::KEEP_ALLOCATED);
    }
    Ok(IoPlan::Io { op: Op::WriteZeroes, flags, lba, blocks, transfer: Transfer::None })
}

fn dataset_management(sqe: &Sqe, ns: &NsGeometry) -> Result<IoPlan, Status> {
    let cmd = DsmCmd::from_sqe(sqe);
    let sgl = data_sgl(sqe)?;
    let needed = u32::from(cmd.ranges()) * 16;
    if sgl.len() < needed || sgl.len() > DSM_DATA_LEN_MAX {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    // Deallocation is advice (NVM Command Set 3.3.3): a bdev that cannot unmap has nothing to do.
    let deallocate = DsmAttributes(cmd.attributes.get()).ad() && ns.caps.has(Op::Unmap);
    Ok(IoPlan::Dsm { ranges: cmd.ranges(), deallocate, transfer: Transfer::FromHost(sgl) })
}

/// The data pointer of a command that moves data: an SGL that NVMe/TCP can have.
#[inline]
fn data_sgl(sqe: &Sqe) -> Result<TcpSgl, Status> {
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

/// The blocks that a Dataset Management command names, all of them in range; empty ranges are left out.
///
/// # Errors
/// Data Transfer Error where `data` is shorter than `ranges`; LBA Out of Range where any range is, before any is used.
pub fn dsm_ranges(
    data: &[u8],
    ranges: u16,
    ns: &NsGeometry,
) -> Result<impl Iterator<Item = (Lba, u32)> + use<>, Status> {
    let mut checked: [(u64, u32); DSM_RANGES_MAX] = [(0, 0); DSM_RANGES_MAX];
    let mut rest = data;
    for slot in checked.iter_mut().take(usize::from(ranges)) {
        let (range, tail) = DsmRange::ref_from_prefix(rest).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        in_range(range.slba.get(), u64::from(range.len_blocks.get()), ns)?;
        *slot = (range.slba.get(), range.len_blocks.get());
        rest = tail;
    }
    let used = checked.into_iter().take(usize::from(ranges));
    Ok(used.filter(|(_, blocks)| *blocks > 0).map(|(slba, blocks)| (Lba(slba), blocks)))
}

#[cfg(test)]
mod tests;
