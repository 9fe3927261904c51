//! The operating system's side: what needs `unsafe` or a system call, behind safe functions.

pub mod affinity;
pub mod cores;
pub(crate) mod epoll;
pub mod fence;
pub mod numa;
pub(crate) mod sockopt;
pub mod tsc;
pub mod wake;
