//! Memory for data: aligned, bounded, taken and given back without a lock or a system call.
//!
//! ```text
//!   Buf::alloc ─► this thread's cache (a stack per size) ─► its NUMA node's buddy allocator (try-lock) ─► arenas
//! ```
//!
//! A buffer is 4 KiB to 1 MiB, a power of two, aligned to its size. Arenas are mapped at start-up and by
//! [`maintain`], on a control thread, never by a reactor: a thread that finds neither its cache nor its node with a
//! free buffer gets `None`, and the request waits ([`Buf::alloc`] is asked again when something was given back).

mod arena;
mod buddy;
mod buf;
mod node;
mod observer;

pub use arena::{ARENA_BYTES, Backing, Hugepages};
pub use buf::{BUF_BYTES_MAX, BUF_BYTES_MIN, Buf};
pub(crate) use node::never_wait;
pub use node::{ArenaInfo, MemConfig, MemStats, arenas, bind_thread_to_node, init, maintain, stats};
pub use observer::{ArenaObserver, Region, SharedRegion, observe, share};

/// Sizes of buffers: 4 KiB << order.
pub(crate) const ORDERS: usize = 9;
/// The smallest buffer, and the unit of the buddy allocator.
pub(crate) const PAGE_BYTES: usize = 4096;
