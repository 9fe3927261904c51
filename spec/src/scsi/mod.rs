//! SCSI: the commands of a direct access block device and their data (SAM-5, SPC-4/5, SBC-3/4).
//!
//! All fields are big-endian. A CDB is viewed as the structure of its layout ([`cdb`]); the layouts are shared by
//! many commands, and what byte 1 means depends on the operation code.

pub mod block;
pub mod cdb;
pub mod copy;
pub mod inquiry;
pub mod mode;
pub mod opcode;
pub mod report;
pub mod reservation;
pub mod sense;
