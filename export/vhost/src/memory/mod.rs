//! Guest memory: which addresses of the guest are where in this process.
//!
//! ```text
//!   control thread:  SET_MEM_TABLE, ADD/REM_MEM_REG ─► GuestMap (immutable, Arc) ──► every queue of the session
//!   reactor:         Held (a queue's own copy of the table, Rc) ─► Window (the parts of a ring)
//!                                                               └► Loan  (buffers of one request, lent to its Io)
//! ```
//!
//! Invariants: a mapping lives as long as anything that points into it: a table holds its mappings, a [`Window`] the
//! mapping that it lies in, a [`Loan`] the whole table by which it was made. So a table can be exchanged at any time; the
//! old one goes with the last request that was made by it. The guest writes this memory whenever it likes: nothing is
//! read from it twice and believed to be the same, and no reference to it exists but the buffers that a device fills or
//! takes as it would by DMA. All unsafe code of the package is in this module.

mod dirty;
mod loan;
mod map;
mod window;

pub(crate) use dirty::DirtyLog;
pub(crate) use loan::Loan;
pub(crate) use map::Held;
pub use map::MemoryError;
pub(crate) use map::{GuestMap, REGIONS_MAX, Region};
pub(crate) use window::Window;
