//! A controller's registers (Base 3.1.4; PCIe transport 3.1.2), behind a trait: a BAR, or the model of one.

use std::fmt::Debug;

/// Offsets of the registers that only memory-based controllers have; the others are in `penstock_spec::nvmf::property`.
pub mod offset {
    pub use penstock_spec::nvmf::property::offset::{CAP, CC, CRTO, CSTS, NSSR, VS};

    /// Interrupt Mask Set, 4 bytes.
    pub const INTMS: u32 = 0x0c;
    /// Admin Queue Attributes, 4 bytes: sizes of the admin queues, 0's based; submission (11:0), completion (27:16).
    pub const AQA: u32 = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes.
    pub const ASQ: u32 = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes.
    pub const ACQ: u32 = 0x30;
    /// The first doorbell.
    pub const DOORBELLS: u32 = 0x1000;
}

/// What every register of a device that is gone reads as.
pub const GONE: u32 = u32::MAX;

/// Access to a controller's registers. A write is not moved before earlier writes to memory.
pub trait Registers: Send + Sync + Debug {
    /// Reads 4 bytes; [`GONE`] where there is nothing (any more).
    fn read32(&self, offset: u32) -> u32;

    /// Writes 4 bytes; goes nowhere where there is nothing.
    fn write32(&self, offset: u32, value: u32);

    /// Reads 8 bytes as two times 4, the lower half first.
    fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset.saturating_add(4))) << 32
    }

    /// Writes 8 bytes as two times 4, the lower half first.
    fn write64(&self, offset: u32, value: u64) {
        self.write32(offset, u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0));
        self.write32(offset.saturating_add(4), u32::try_from(value >> 32).unwrap_or(0));
    }
}

/// Offset of a queue's doorbell: its submission queue's tail, or its completion queue's head. `dstrd` is CAP.DSTRD.
#[must_use]
pub fn doorbell(qid: u16, is_completion: bool, dstrd: u8) -> u32 {
    let index = u32::from(qid) * 2 + u32::from(is_completion);
    offset::DOORBELLS + (index << (2 + u32::from(dstrd & 0xf)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_are_where_the_stride_says() {
        assert_eq!(doorbell(0, false, 0), 0x1000);
        assert_eq!(doorbell(0, true, 0), 0x1004);
        assert_eq!(doorbell(3, true, 0), 0x101c);
        assert_eq!(doorbell(1, false, 4), 0x1080);
    }
}
