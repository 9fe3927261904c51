//! Layouts of CDBs. Several commands share one; byte 1 is read by [`RwFlags`] or as a service action.

use zerocopy::big_endian::{U16, U32, U64};

/// The longest CDB that a device server here takes.
pub const CDB_BYTES_MAX: usize = 16;

/// SERVICE ACTION: bits 4:0 of byte 1.
pub const SERVICE_ACTION_MASK: u8 = 0x1f;

/// NACA: bit 2 of the CONTROL byte (SAM-5 5.2).
pub const CONTROL_NACA: u8 = 0x04;

bits! {
    /// Byte 1 of the commands that move blocks (SBC-3 5).
    pub struct RwFlags(u8) {
        ndob / with_ndob: bool @ 0, 1, "No Data-Out Buffer (WRITE SAME(16)); obsolete RELADR elsewhere";
        fua_nv / with_fua_nv: bool @ 1, 1, "obsolete FUA_NV (reads and writes)";
        bytchk / with_bytchk: u8 @ 1, 2, "Byte Check (VERIFY, WRITE AND VERIFY)";
        immed / with_immed: bool @ 1, 1, "Immediate (SYNCHRONIZE CACHE, PRE-FETCH)";
        fua / with_fua: bool @ 3, 1, "Force Unit Access";
        unmap / with_unmap: bool @ 3, 1, "Unmap (WRITE SAME)";
        anchor / with_anchor: bool @ 4, 1, "Anchor (WRITE SAME)";
        dpo / with_dpo: bool @ 4, 1, "Disable Page Out";
        protect / with_protect: u8 @ 5, 3, "RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT";
    }
}

wire! {
    /// READ(6), WRITE(6) (SBC-3 5.15).
    pub struct Rw6[6] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// LOGICAL BLOCK ADDRESS, bits 20:16 (in bits 4:0).
        pub lba_high @ 1: u8,
        /// LOGICAL BLOCK ADDRESS, bits 15:0.
        pub lba_low @ 2: U16,
        /// TRANSFER LENGTH in blocks; 0 means 256.
        pub len @ 4: u8,
        /// CONTROL.
        pub control @ 5: u8,
    }
}

impl Rw6 {
    /// The whole LBA: 21 bits.
    #[must_use]
    pub fn lba(&self) -> u64 {
        (u64::from(self.lba_high & 0x1f) << 16) | u64::from(self.lba_low.get())
    }

    /// Length in blocks, 1..=256.
    #[must_use]
    pub fn len_blocks(&self) -> u32 {
        if self.len == 0 { 256 } else { u32::from(self.len) }
    }
}

wire! {
    /// READ(10), WRITE(10), VERIFY(10), WRITE SAME(10), SYNCHRONIZE CACHE(10), … (SBC-3 5.16).
    pub struct Rw10[10] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// See [`RwFlags`].
        pub flags @ 1: u8,
        /// LOGICAL BLOCK ADDRESS.
        pub lba @ 2: U32,
        /// GROUP NUMBER.
        pub group @ 6: u8,
        /// TRANSFER LENGTH in blocks.
        pub len @ 7: U16,
        /// CONTROL.
        pub control @ 9: u8,
    }
}

wire! {
    /// READ(12), WRITE(12), VERIFY(12), … (SBC-3 5.17).
    pub struct Rw12[12] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// See [`RwFlags`].
        pub flags @ 1: u8,
        /// LOGICAL BLOCK ADDRESS.
        pub lba @ 2: U32,
        /// TRANSFER LENGTH in blocks.
        pub len @ 6: U32,
        /// GROUP NUMBER.
        pub group @ 10: u8,
        /// CONTROL.
        pub control @ 11: u8,
    }
}

wire! {
    /// READ(16), WRITE(16), VERIFY(16), ORWRITE(16), WRITE SAME(16), … (SBC-3 5.18).
    pub struct Rw16[16] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// See [`RwFlags`].
        pub flags @ 1: u8,
        /// LOGICAL BLOCK ADDRESS.
        pub lba @ 2: U64,
        /// TRANSFER LENGTH in blocks.
        pub len @ 10: U32,
        /// GROUP NUMBER.
        pub group @ 14: u8,
        /// CONTROL.
        pub control @ 15: u8,
    }
}

wire! {
    /// COMPARE AND WRITE (SBC-3 5.4).
    pub struct CompareAndWrite[16] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// See [`RwFlags`].
        pub flags @ 1: u8,
        /// LOGICAL BLOCK ADDRESS.
        pub lba @ 2: U64,
        rsvd10 @ 10: [u8; 3],
        /// NUMBER OF LOGICAL BLOCKS; the data are twice as many.
        pub len @ 13: u8,
        /// GROUP NUMBER.
        pub group @ 14: u8,
        /// CONTROL.
        pub control @ 15: u8,
    }
}

wire! {
    /// WRITE ATOMIC(16) (SBC-4 5.48).
    pub struct WriteAtomic16[16] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// See [`RwFlags`].
        pub flags @ 1: u8,
        /// LOGICAL BLOCK ADDRESS.
        pub lba @ 2: U64,
        /// ATOMIC BOUNDARY in blocks.
        pub boundary @ 10: U16,
        /// TRANSFER LENGTH in blocks.
        pub len @ 12: U16,
        /// GROUP NUMBER.
        pub group @ 14: u8,
        /// CONTROL.
        pub control @ 15: u8,
    }
}

wire! {
    /// INQUIRY (SPC-4 6.6).
    pub struct Inquiry[6] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// EVPD (bit 0).
        pub evpd @ 1: u8,
        /// PAGE CODE.
        pub page @ 2: u8,
        /// ALLOCATION LENGTH.
        pub alloc @ 3: U16,
        /// CONTROL.
        pub control @ 5: u8,
    }
}

wire! {
    /// MODE SENSE(6), MODE SELECT(6), REQUEST SENSE, START STOP UNIT and other six-byte CDBs.
    pub struct Basic6[6] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// Flags.
        pub flags @ 1: u8,
        /// PC (bits 7:6) and PAGE CODE (MODE SENSE).
        pub page @ 2: u8,
        /// SUBPAGE CODE (MODE SENSE); POWER CONDITION MODIFIER (START STOP UNIT).
        pub subpage @ 3: u8,
        /// ALLOCATION or PARAMETER LIST LENGTH; POWER CONDITION, NO_FLUSH, LOEJ, START; PREVENT.
        pub len @ 4: u8,
        /// CONTROL.
        pub control @ 5: u8,
    }
}

wire! {
    /// MODE SENSE(10), MODE SELECT(10), UNMAP, PERSISTENT RESERVE IN, SANITIZE and other ten-byte CDBs.
    pub struct Basic10[10] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// Flags or SERVICE ACTION.
        pub flags @ 1: u8,
        /// PC and PAGE CODE (MODE SENSE); SCOPE and TYPE (PERSISTENT RESERVE OUT); defect list flags.
        pub page @ 2: u8,
        /// SUBPAGE CODE (MODE SENSE).
        pub subpage @ 3: u8,
        rsvd4 @ 4: u8,
        /// Upper half of PARAMETER LIST LENGTH (PERSISTENT RESERVE OUT); GROUP NUMBER at offset 6 (UNMAP).
        pub len_high @ 5: U16,
        /// ALLOCATION or PARAMETER LIST LENGTH.
        pub len @ 7: U16,
        /// CONTROL.
        pub control @ 9: u8,
    }
}

wire! {
    /// MAINTENANCE IN/OUT, REPORT LUNS, READ DEFECT DATA(12): twelve-byte CDBs.
    pub struct Basic12[12] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// SERVICE ACTION.
        pub service_action @ 1: u8,
        /// SELECT REPORT (REPORT LUNS); RCTD and REPORTING OPTIONS (REPORT SUPPORTED OPERATION CODES).
        pub options @ 2: u8,
        /// REQUESTED OPERATION CODE.
        pub requested_opcode @ 3: u8,
        /// REQUESTED SERVICE ACTION.
        pub requested_action @ 4: U16,
        /// ALLOCATION or PARAMETER LIST LENGTH.
        pub len @ 6: U32,
        rsvd10 @ 10: u8,
        /// CONTROL.
        pub control @ 11: u8,
    }
}

wire! {
    /// SERVICE ACTION IN(16): READ CAPACITY(16), GET LBA STATUS.
    pub struct ServiceActionIn16[16] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// SERVICE ACTION.
        pub service_action @ 1: u8,
        /// LOGICAL BLOCK ADDRESS.
        pub lba @ 2: U64,
        /// ALLOCATION LENGTH.
        pub alloc @ 10: U32,
        /// Flags.
        pub flags @ 14: u8,
        /// CONTROL.
        pub control @ 15: u8,
    }
}

wire! {
    /// Third-party Copy OUT and IN.
    pub struct Copy16[16] {
        /// OPERATION CODE.
        pub opcode @ 0: u8,
        /// SERVICE ACTION.
        pub service_action @ 1: u8,
        /// LIST IDENTIFIER of LID1 commands (byte 2), of RECEIVE ROD TOKEN INFORMATION (all four).
        pub list_id_in @ 2: U32,
        /// LIST IDENTIFIER of POPULATE TOKEN and WRITE USING TOKEN.
        pub list_id_out @ 6: U32,
        /// PARAMETER LIST or ALLOCATION LENGTH.
        pub len @ 10: U32,
        /// GROUP NUMBER.
        pub group @ 14: u8,
        /// CONTROL.
        pub control @ 15: u8,
    }
}
