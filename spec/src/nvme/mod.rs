//! NVM Express Base Specification 2.x and NVM Command Set Specification 1.x.

pub mod command;
pub mod completion;
pub mod cross_reset;
pub mod event;
pub mod feature;
pub mod identify;
pub mod log;
pub mod nvm;
pub mod opcode;
pub mod reservation;
pub mod sgl;
pub mod status;

pub use command::{Fuse, Psdt, Sqe};
pub use completion::Cqe;
pub use opcode::{AdminOpcode, FabricsType, NvmOpcode};
pub use sgl::{Sgl, SglDescriptor, SglError};
pub use status::{Sct, Status};

/// The broadcast NSID: every namespace attached to the controller (Base 3.2.1.2).
pub const NSID_ALL: u32 = 0xffff_ffff;

/// The largest NSID that a namespace may have (Base 3.2.1.2: FFFFFFFEh and up are reserved).
pub const NSID_MAX: u32 = 0xffff_fffd;

/// The largest number of entries in an I/O queue that a Connect can ask for: SQSIZE is 16 bits, 0's based.
pub const QUEUE_ENTRIES_MAX: u32 = 65_536;
