//! Completion Queue Entry (Base 4.2 "Completion Queue Entry").

use zerocopy::little_endian::{U16, U32, U64};

use super::status::Status;

wire! {
    /// Completion Queue Entry, 16 bytes (Base, Figure "Common Completion Queue Entry Layout").
    pub struct Cqe[16] {
        /// Command specific, dword 0.
        pub dw0 @ 0: U32,
        /// Command specific, dword 1.
        pub dw1 @ 4: U32,
        /// SQ Head Pointer (SQHD); reserved where SQ flow control is disabled.
        pub sqhd @ 8: U16,
        /// SQ Identifier; reserved over fabrics.
        pub sqid @ 10: U16,
        /// Command Identifier of the command that this completes.
        pub cid @ 12: U16,
        /// Phase tag (reserved over fabrics) and Status; read it with [`Cqe::status`].
        pub status_raw @ 14: U16,
    }
}

impl Cqe {
    /// A completion of `cid` with `status` and nothing else.
    #[inline]
    #[must_use]
    pub fn new(cid: u16, sqhd: u16, status: Status) -> Self {
        Self {
            sqhd: U16::new(sqhd),
            cid: U16::new(cid),
            status_raw: U16::new(status.to_bits()),
            ..Self::default()
        }
    }

    /// This completion with command specific dword 0.
    #[inline]
    #[must_use]
    pub fn with_dw0(mut self, dw0: u32) -> Self {
        self.dw0 = U32::new(dw0);
        self
    }

    /// This completion with both command specific dwords, little-endian: dword 0 is the lower half.
    #[inline]
    #[must_use]
    pub fn with_result(mut self, value: u64) -> Self {
        let result: [U32; 2] = zerocopy::transmute!(U64::new(value));
        [self.dw0, self.dw1] = result;
        self
    }

    /// Dwords 0 and 1 as one 64-bit value (Property Get's VALUE).
    #[inline]
    #[must_use]
    pub fn result(&self) -> u64 {
        u64::from(self.dw0.get()) | (u64::from(self.dw1.get()) << 32)
    }

    /// The status word, phase tag included.
    #[inline]
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_bits(self.status_raw.get())
    }
}
