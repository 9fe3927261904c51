//! How much one I/O command may ask for. What stands here, Identify tells (CNS 00h, 01h and 06h), and [`parse`] enforces.
//!
//! Limits other than MDTS keep a command that moves no data from taking longer than a host waits for it.
//!
//! [`parse`]: super::parse

use penstock_spec::nvme::nvm::{CopyRange0, DSM_RANGES_MAX, DsmRange};

use crate::transport_options::{IO_SIZE_MAX, PAGE_BYTES, TransportOptions};

/// WZSL unless configured: log2 of Write Zeroes' length at most, in pages.
pub const WZSL_DEFAULT: u8 = 11;
/// The largest WZSL that makes a difference: more than NLB can say of the largest block.
pub const WZSL_MAX: u8 = 16;
/// DMRSL and DMSL unless configured: blocks that one Dataset Management command deallocates at most.
pub const DMRSL_DEFAULT: u32 = 2 << 20;
/// Data of Dataset Management at most, in bytes.
pub const DSM_DATA_LEN_MAX: u32 = 4096;
/// Blocks that one Copy command copies at most, in bytes (MCL, MSSRL).
pub const COPY_LEN_MAX: u32 = 8 << 20;
/// Source ranges of one Copy command at most (MSRC plus one): as many as it can name.
pub const COPY_RANGES_MAX: u16 = 256;
/// Data of Copy at most, in bytes.
pub const COPY_DATA_LEN_MAX: u32 = 8192;

const _: () = assert!((PAGE_BYTES as u64) << WZSL_MAX >= 65_536 * 4096);
const _: () = assert!(DSM_RANGES_MAX * DsmRange::LEN == DSM_DATA_LEN_MAX as usize);
const _: () = assert!(COPY_RANGES_MAX as usize * CopyRange0::LEN == COPY_DATA_LEN_MAX as usize);
const _: () = assert!(DSM_DATA_LEN_MAX <= IO_SIZE_MAX && COPY_DATA_LEN_MAX <= IO_SIZE_MAX);
// MSSRL has 16 bits.
const _: () = assert!(COPY_LEN_MAX / 512 <= u16::MAX as u32);

/// What of the controller the checks look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimits {
    /// Data of one command at most, in bytes (MDTS, VSL).
    pub data_len_max: u32,
    /// The largest NSID.
    pub nsid_max: u32,
    /// Write Zeroes: log2 of the length at most, in pages; 0: no limit but NLB's.
    pub wzsl: u8,
    /// Dataset Management: blocks of a range, and of all ranges, at most; 0: no limit.
    pub dmrsl: u32,
}

impl IoLimits {
    /// The limits that Identify Controller tells unless the subsystem says otherwise.
    #[must_use]
    pub const fn new(options: &TransportOptions, nsid_max: u32) -> Self {
        Self { data_len_max: options.max_io_size, nsid_max, wzsl: WZSL_DEFAULT, dmrsl: DMRSL_DEFAULT }
    }

    /// Write Zeroes of one command at most, in bytes.
    #[inline]
    #[must_use]
    pub fn write_zeroes_len_max(&self) -> u64 {
        if self.wzsl == 0 { u64::MAX } else { u64::from(PAGE_BYTES) << self.wzsl.min(WZSL_MAX) }
    }

    /// Blocks that one Dataset Management command deallocates at most (DMSL).
    #[inline]
    #[must_use]
    pub const fn dsm_blocks_max(&self) -> u32 {
        if self.dmrsl == 0 { u32::MAX } else { self.dmrsl }
    }
}

/// Blocks that one Copy command copies at most: MCL and MSSRL.
#[must_use]
pub const fn copy_blocks_max(block_bytes: u32) -> u32 {
    COPY_LEN_MAX / block_bytes
}
