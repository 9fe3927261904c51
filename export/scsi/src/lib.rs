//! SCSI disks on top of bdevs: a device server without I/O (SAM-5, SPC-4, SBC-3).
//!
//! A transport brings commands and data and takes answers; what is between is here, and nothing here knows a socket, a
//! clock or a queue.
//!
//! ```text
//!  control thread                         each reactor
//!  ──────────────                         ────────────
//!  LuOwner (one per logical unit)  view   Nexus (one per session)       Task (one per command under way)
//!    reservations, mode parameters, ────►   LUNs, unit attentions  ◄──── start(&mut nexus, command) ──► Step
//!    port groups, medium              ▲     rights, results of copies     data_out / buffers / completed / replied
//!         ▲                           │                                   answer(), data_in()
//!         └── Control (by message) ───┴── Reply ◄──────────────────────── Step::Control
//! ```
//!
//! # What a transport does
//!
//! - Makes a [`Nexus`] for each session, from its TransportID ([`iscsi_transport_id`]) and the relative identifier of its
//!   port, and gives it the LUNs that its initiator may see ([`Nexus::apply_luns`]). New views of a logical unit go to
//!   [`Nexus::apply_lu`]. When the session ends, [`Control::NexusLost`] goes to the owners of all its logical units.
//! - Runs each command by a [`Task`]: [`Task::start`], then whatever each [`Step`] asks for, until [`Step::Done`]:
//!   - [`Step::Data`]: collect that many bytes from the initiator (immediate, unsolicited, by R2T); what it sends beyond
//!     is thrown away. No data are asked for of a command that is refused.
//!   - [`Step::Buffers`]: wait for buffers if there are none; out of buffers is the transport's state, not an error.
//!   - [`Step::Submit`]: set the I/O's tag, submit it to this core's channel to that logical unit's bdev. A copy may
//!     name another logical unit than the command's.
//!   - [`Step::Control`]: send the request to the owner, with [`Nexus::id`]. The control thread calls
//!     [`LuOwner::handle`], publishes the new view if there is one to all reactors, *then* has the tasks of
//!     [`Reply::aborted`] aborted, *then* sends the reply. Other tasks of the session go on meanwhile.
//!   - [`Step::Done`]: send [`Task::data_in`], as much of it as is expected, then status and sense. The residual is the
//!     difference between [`Answer::transfer_bytes`] and what the initiator expected: more expected is an underflow,
//!     less an overflow. A command that was flagged the wrong way round (a read with W set) has its data left out.
//! - Aborts a task by [`penstock_bdev::BdevChannel::abort`] if its I/O is under way, and [`Task::abandon`] when it is
//!   back. A LUN reset is [`Control::Reset`] to the owner after all tasks of that logical unit were aborted.
//! - Begins tasks in the order that their attributes want ([`TaskSet`], one for each nexus and logical unit: TST 1).
//!
//! Commands are checked against the nexus's own copy of the [`LuView`]: no lock, no message. Reservations are
//! those of the bdev (`penstock_bdev::reservation`), so that a host that came by NVMe is kept out, too.
//!
//! # What is left out, and why
//!
//! - SANITIZE: no bdev promises that old data cannot be had back.
//! - GET LBA STATUS tells what the bdev knows (files do), and "mapped or unknown" of all blocks else.
//! - WRITE ATOMIC only where [`Limits::atomic_blocks_max`] says that the bdev promises it.
//! - Protection information, anchored blocks, saved mode pages, SPEC_I_PT and ALL_TG_PT: not offered, and said so.
#![forbid(unsafe_code)]

mod command;
mod config;
mod lu;
mod nexus;
mod order;
mod seal;
mod sense;
mod status;
mod task;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

pub use command::reserve::iscsi_transport_id;
pub use config::{Limits, LuConfig, LuId, PortGroup};
pub use lu::{Audience, Control, Event, LuOwner, LuView, ModeValues, PrCommand, Reply, SharedReservations};
pub use nexus::{LUNS_MAX, Nexus, lun_of, lun_to_wire};
pub use order::{Admission, TaskAttribute, TaskSet};
pub use seal::Seal;
pub use sense::{Fault, SENSE_BYTES_MAX, Sense, SenseBytes, Specific};
pub use status::{fault_of, io_status_of};
pub use task::{Answer, Command, DataIn, Step, Task};
