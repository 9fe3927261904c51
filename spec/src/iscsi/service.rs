//! Text, NOP, Logout, Asynchronous Message and Reject (RFC 7143, 11.9 to 11.11 and 11.14 to 11.19).

use zerocopy::big_endian::{U16, U32, U64};

pdu! {
    /// Text Request (11.10).
    pub struct TextReqHdr: request {
        /// F and C (0x40).
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN, as in the response whose tag it carries.
        pub lun @ 8: U64;
        /// Target Transfer Tag; all ones: a new exchange.
        pub ttt @ 20: U32;
        /// Zero.
        pub rsvd32 @ 32: [u8; 16],
    }
}

pdu! {
    /// Text Response (11.11).
    pub struct TextRespHdr: response {
        /// F and C (0x40).
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN.
        pub lun @ 8: U64;
        /// Target Transfer Tag: all ones with F.
        pub ttt @ 20: U32;
        /// Zero.
        pub rsvd36 @ 36: [u8; 12],
    }
}

/// C of a text PDU: the keys go on in the next one.
pub const TEXT_CONTINUE: u8 = 0x40;

pdu! {
    /// NOP-Out (11.18).
    pub struct NopOutHdr: request {
        /// 0x80.
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN.
        pub lun @ 8: U64;
        /// Target Transfer Tag of the NOP-In that this answers; else all ones.
        pub ttt @ 20: U32;
        /// Zero.
        pub rsvd32 @ 32: [u8; 16],
    }
}

pdu! {
    /// NOP-In (11.19).
    pub struct NopInHdr: response {
        /// 0x80.
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN.
        pub lun @ 8: U64;
        /// Target Transfer Tag, where an answer is wanted; else all ones.
        pub ttt @ 20: U32;
        /// Zero.
        pub rsvd36 @ 36: [u8; 12],
    }
}

pdu! {
    /// Logout Request (11.14).
    pub struct LogoutReqHdr: request {
        /// 0x80 and the reason: 0 close the session, 1 close the connection, 2 remove it for recovery.
        pub reason @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// Zero.
        pub rsvd8 @ 8: U64;
        /// CID of the connection to be closed.
        pub cid @ 20: U16,
        /// Zero.
        pub rsvd22 @ 22: U16;
        /// Zero.
        pub rsvd32 @ 32: [u8; 16],
    }
}

pdu! {
    /// Logout Response (11.15).
    pub struct LogoutRespHdr: response {
        /// 0x80.
        pub flags @ 1: u8,
        /// Response: 0 closed, 1 no such CID, 2 recovery not supported, 3 cleanup failed.
        pub response @ 2: u8,
        /// Zero.
        pub rsvd3 @ 3: u8;
        /// Zero.
        pub rsvd8 @ 8: U64;
        /// Zero.
        pub rsvd20 @ 20: U32;
        /// Zero.
        pub rsvd36 @ 36: U32,
        /// Time2Wait, in seconds.
        pub time2wait @ 40: U16,
        /// Time2Retain, in seconds.
        pub time2retain @ 42: U16,
        /// Zero.
        pub rsvd44 @ 44: U32,
    }
}

pdu! {
    /// Asynchronous Message (11.9).
    pub struct AsyncHdr: response {
        /// 0x80.
        pub flags @ 1: u8,
        /// Zero.
        pub rsvd2 @ 2: [u8; 2];
        /// LUN of a SCSI event.
        pub lun @ 8: U64;
        /// Zero.
        pub rsvd20 @ 20: U32;
        /// AsyncEvent.
        pub event @ 36: AsyncEvent,
        /// AsyncVCode.
        pub vcode @ 37: u8,
        /// Parameter1.
        pub parameter1 @ 38: U16,
        /// Parameter2.
        pub parameter2 @ 40: U16,
        /// Parameter3.
        pub parameter3 @ 42: U16,
        /// Zero.
        pub rsvd44 @ 44: U32,
    }
}

codes! {
    /// AsyncEvent (11.9.1).
    pub struct AsyncEvent(u8) {
        SCSI = 0, "SCSI asynchronous event";
        LOGOUT_REQUEST = 1, "Logout request";
        CONNECTION_DROP = 2, "Connection drop";
        SESSION_DROP = 3, "All connections dropped";
        NEGOTIATE = 4, "Parameter negotiation request";
        TASK_TERMINATION = 5, "Task termination";
        VENDOR = 255, "Vendor-specific event";
    }
}

pdu! {
    /// Reject (11.17); its data is the header that was rejected.
    pub struct RejectHdr: response {
        /// 0x80.
        pub flags @ 1: u8,
        /// Reason.
        pub reason @ 2: RejectReason,
        /// Zero.
        pub rsvd3 @ 3: u8;
        /// Zero.
        pub rsvd8 @ 8: U64;
        /// Zero.
        pub rsvd20 @ 20: U32;
        /// DataSN or R2TSN, where the reason concerns data.
        pub data_sn @ 36: U32,
        /// Zero.
        pub rsvd40 @ 40: U64,
    }
}

codes! {
    /// Reason of a Reject (11.17.1).
    pub struct RejectReason(u8) {
        DATA_DIGEST = 0x02, "Data (payload) digest error";
        SNACK = 0x03, "SNACK reject";
        PROTOCOL = 0x04, "Protocol error";
        NOT_SUPPORTED = 0x05, "Command not supported";
        IMMEDIATE = 0x06, "Immediate command rejected, too many immediate commands";
        TASK_IN_PROGRESS = 0x07, "Task in progress";
        INVALID_ACK = 0x08, "Invalid data ACK";
        INVALID_FIELD = 0x09, "Invalid PDU field";
        LONG_OPERATION = 0x0a, "Long op reject, can't generate Target Transfer Tag";
        LOGOUT = 0x0c, "Waiting for logout";
    }
}
