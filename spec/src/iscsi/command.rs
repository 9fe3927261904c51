//! SCSI Command and Response, Task Management (RFC 7143, 11.3 to 11.6).

use zerocopy::big_endian::{U32, U64};

pdu! {
    /// SCSI Command (11.3).
    pub struct ScsiCommandHdr: request {
        /// F, R, W and the task attribute: see [`ScsiCommandHdr::FINAL`] and the following.
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN.
        pub lun @ 8: U64;
        /// Expected Data Transfer Length, in bytes.
        pub edtl @ 20: U32;
        /// CDB; a longer one goes on in an extended CDB AHS.
        pub cdb @ 32: [u8; 16],
    }
}

impl ScsiCommandHdr {
    /// F: no unsolicited Data-Out follows.
    pub const FINAL: u8 = 0x80;
    /// R: data to the initiator are expected.
    pub const READ: u8 = 0x40;
    /// W: data to the target are expected.
    pub const WRITE: u8 = 0x20;

    /// ATTR: 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
    #[inline]
    #[must_use]
    pub const fn attr(&self) -> u8 {
        self.flags & 7
    }
}

/// AHSType of an extended CDB (11.2.2.3).
pub const AHS_EXTENDED_CDB: u8 = 1;
/// AHSType of a bidirectional read's expected length (11.2.2.4).
pub const AHS_BIDI_READ_LEN: u8 = 2;

pdu! {
    /// SCSI Response (11.4).
    pub struct ScsiResponseHdr: response {
        /// 0x80 and the residual flags.
        pub flags @ 1: u8,
        /// iSCSI service response: 0 completed at the target, 1 target failure.
        pub response @ 2: u8,
        /// SCSI status.
        pub status @ 3: u8;
        /// Zero.
        pub rsvd8 @ 8: U64;
        /// SNACK Tag.
        pub snack_tag @ 20: U32;
        /// ExpDataSN: how many Data-In and R2T PDUs were sent for the command.
        pub exp_data_sn @ 36: U32,
        /// Residual count of a bidirectional read.
        pub bidi_residual @ 40: U32,
        /// Residual count, in bytes.
        pub residual @ 44: U32,
    }
}

impl ScsiResponseHdr {
    /// O: the command had more data than were expected.
    pub const OVERFLOW: u8 = 0x04;
    /// U: the command had less data than were expected.
    pub const UNDERFLOW: u8 = 0x02;
}

pdu! {
    /// Task Management Function Request (11.5).
    pub struct TaskMgmtReqHdr: request {
        /// 0x80 and the function.
        pub function @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN.
        pub lun @ 8: U64;
        /// Referenced Task Tag: the task to be aborted.
        pub ref_itt @ 20: U32;
        /// RefCmdSN: CmdSN of the task to be aborted.
        pub ref_cmd_sn @ 32: U32,
        /// ExpDataSN (reassign only).
        pub exp_data_sn @ 36: U32,
        /// Zero.
        pub rsvd40 @ 40: U64,
    }
}

codes! {
    /// Function of a task management request (11.5.1).
    pub struct TmfFunction(u8) {
        ABORT_TASK = 1, "ABORT TASK";
        ABORT_TASK_SET = 2, "ABORT TASK SET";
        CLEAR_ACA = 3, "CLEAR ACA";
        CLEAR_TASK_SET = 4, "CLEAR TASK SET";
        LOGICAL_UNIT_RESET = 5, "LOGICAL UNIT RESET";
        TARGET_WARM_RESET = 6, "TARGET WARM RESET";
        TARGET_COLD_RESET = 7, "TARGET COLD RESET";
        TASK_REASSIGN = 8, "TASK REASSIGN";
    }
}

impl TaskMgmtReqHdr {
    /// The function.
    #[must_use]
    pub const fn function(&self) -> TmfFunction {
        TmfFunction(self.function & 0x7f)
    }
}

pdu! {
    /// Task Management Function Response (11.6).
    pub struct TaskMgmtRespHdr: response {
        /// 0x80.
        pub flags @ 1: u8,
        /// Response.
        pub response @ 2: TmfResponse,
        /// Zero.
        pub rsvd3 @ 3: u8;
        /// Zero.
        pub rsvd8 @ 8: U64;
        /// Zero.
        pub rsvd20 @ 20: U32;
        /// Zero.
        pub rsvd36 @ 36: [u8; 12],
    }
}

codes! {
    /// Response to a task management request (11.6.1).
    pub struct TmfResponse(u8) {
        COMPLETE = 0, "Function complete";
        NO_TASK = 1, "Task does not exist";
        NO_LUN = 2, "LUN does not exist";
        STILL_ALLEGIANT = 3, "Task still allegiant";
        NO_REASSIGN = 4, "Task allegiance reassignment not supported";
        NOT_SUPPORTED = 5, "Task management function not supported";
        NOT_AUTHORIZED = 6, "Function authorization failed";
        REJECTED = 255, "Function rejected";
    }
}
