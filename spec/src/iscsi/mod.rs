//! iSCSI (RFC 7143): PDU headers, text keys, names; iSCSI Naming (RFC 3721, RFC 3980).
//!
//! ```text
//!   BHS (48 bytes) │ AHS… │ header digest? │ data, padded to 4 bytes │ data digest?
//! ```
//!
//! All fields are big-endian. A BHS is viewed as [`Bhs`] first, checked as [`CheckedBhs`], and only then as the
//! structure of its opcode.

pub mod command;
pub mod data;
pub mod header;
pub mod login;
pub mod name;
pub mod service;
pub mod text;

pub use command::{
    ScsiCommandHdr, ScsiResponseHdr, TaskMgmtReqHdr, TaskMgmtRespHdr, TmfFunction, TmfResponse,
};
pub use data::{DataInHdr, DataOutHdr, R2tHdr};
pub use header::{BHS_LEN, Bhs, BhsError, CheckedBhs, DIGEST_LEN, DataLen, Opcode, pad_len};
pub use login::{Isid, LoginReqHdr, LoginRespHdr, LoginStatus, Stage};
pub use name::{IscsiName, NameError};
pub use service::{
    AsyncEvent, AsyncHdr, LogoutReqHdr, LogoutRespHdr, NopInHdr, NopOutHdr, RejectHdr, RejectReason,
    TextReqHdr, TextRespHdr,
};

/// Port of iSCSI targets (RFC 7143, section 14).
pub const ISCSI_PORT: u16 = 3260;
/// A tag that names no task (RFC 7143, 11.2.1.8 and others).
pub const TAG_NONE: u32 = u32::MAX;
