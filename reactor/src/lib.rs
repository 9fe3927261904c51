//! The loop of one core, and all that a core owns.
//!
//! A [`Reactor`] is one pinned OS thread. It runs, turn after turn: messages from other cores (its bounded
//! mailbox), the tasks of its own executor, due timers, and its [`Poller`]s. What it owns is `!Send`; another
//! core is reached by a message through a [`ReactorHandle`]. Nothing here knows of disks or protocols.
//!
//! ```text
//!   other threads ──ReactorHandle::send──► mailbox ─┐
//!   wakers ──────────────────────────────► tasks  ──┤
//!   clock ───────────────────────────────► timers ──┼─► one turn ──► busy / idle accounting ──► sleep or again
//!   devices, sockets ────────────────────► pollers ─┘
//! ```

pub mod clock;
pub mod hash;
pub mod mem;
pub mod net;
pub mod rng;
pub mod stat;
pub mod sys;
pub mod trace;

mod cx;
mod doorbell;
mod error;
mod msg;
mod poller;
mod reactor;
mod reactors;
mod task;
mod timer;

pub use clock::{Clock, Tick};
pub use cx::{Cx, PollerId};
pub use error::ReactorError;
pub use msg::{PollMode, ReactorHandle, ReactorId};
pub use poller::{Poller, Rest};
pub use reactor::{Reactor, ReactorConfig, Started};
pub use reactors::{Answers, Reactors};
pub use task::TASKS_MAX;

/// Where [`doorbell`] takes its atomics from.
mod atomics {
    pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
}
