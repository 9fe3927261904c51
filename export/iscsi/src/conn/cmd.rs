//! The commands of one session: a slab of slots.
//!
//! ```text
//!   Free (─► Early) ─► NeedData ─► TransferIn ─┐        ┌─► Ordered ─┐
//!     │   (out of buffers)          ▼        │            ▼
//!     └──────────────────────────► task ─────┼─► Busy ─► Executing ─► task …
//!     └─► NeedBuffer ─────────────► task ────┴─► Control ───────────► task ─► answer ─► TransferOut ─► Free
//! ```
//!
//! Who moves a command on: Early: commands on other connections; NeedData, NeedBuffer: the group's queue of those who wait for buffers; TransferIn: the
//! socket; Ordered: the end of an older command; Busy: the group's queue of the channel; Executing: the bdev; Control:
//! the owner of the logical unit; TransferOut: the socket.

use penstock_bdev::{Io, Sg};
use penstock_reactor::Tick;
use penstock_reactor::mem::BUF_BYTES_MAX;
use penstock_reactor::net::SlotData;
use penstock_scsi::{Command, LuId, Task};
use penstock_spec::iscsi::{DIGEST_LEN, TAG_NONE};

use crate::digest::pieces_digest;

/// Where a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CmdState {
    /// No command.
    Free,
    /// Commands before it have not come yet.
    Early,
    /// Out of buffers for data to the target.
    NeedData,
    /// Out of buffers for data to the initiator.
    NeedBuffer,
    /// Its data are coming.
    TransferIn,
    /// Its I/O waits for older commands (task attributes).
    Ordered,
    /// The bdev's queue is full.
    Busy,
    /// The bdev has its I/O.
    Executing,
    /// The owner of the logical unit has its request.
    Control,
    /// Its data are in the send queue.
    TransferOut,
}

/// One command.
#[derive(Debug)]
pub(crate) struct Cmd {
    pub(crate) state: CmdState,
    pub(crate) itt: u32,
    pub(crate) lun: u64,
    pub(crate) lu: LuId,
    /// Age: counts the commands of the session.
    pub(crate) seq: u64,
    /// Task attribute ORDERED.
    pub(crate) ordered: bool,
    /// Task attribute HEAD OF QUEUE.
    pub(crate) head: bool,
    /// It counts in the command window.
    pub(crate) numbered: bool,
    /// R: data to the initiator are expected.
    pub(crate) read: bool,
    /// Expected Data Transfer Length, in bytes.
    pub(crate) edtl: u32,
    /// Bytes of data that the task waits for.
    pub(crate) want: u32,
    /// Bytes of data that have come, wanted or not.
    pub(crate) have: u32,
    /// Unsolicited Data-Out is still to come.
    pub(crate) unsolicited: bool,
    /// Bytes that were asked for by R2T, or came unasked.
    pub(crate) r2t_to: u32,
    /// R2Ts out.
    pub(crate) r2ts: u16,
    /// R2TSN of the next R2T.
    pub(crate) r2t_sn: u32,
    /// R2TSN of the sequence that comes now, where it begins and its next DataSN.
    pub(crate) sequence: u32,
    pub(crate) sequence_at: u32,
    pub(crate) data_sn: u32,
    /// A PDU of its data came with a wrong digest.
    pub(crate) bad_digest: bool,
    /// It is to end without an answer.
    pub(crate) aborted: bool,
    /// When its turn came.
    pub(crate) began: Tick,
    /// The command itself, while it waits for its turn.
    pub(crate) early: Option<Box<Command>>,
    /// Bytes of buffers that it holds.
    pub(crate) buffered: u32,
    /// Data from the initiator.
    pub(crate) data: Sg,
    /// Data for the initiator.
    pub(crate) blocks: Sg,
    pub(crate) task: Task,
    /// Its I/O, while it waits to be submitted.
    pub(crate) io: Option<Box<Io>>,
}

impl Cmd {
    fn new() -> Self {
        Self {
            state: CmdState::Free,
            itt: 0,
            lun: 0,
            lu: LuId(0),
            seq: 0,
            ordered: false,
            head: false,
            numbered: false,
            read: false,
            edtl: 0,
            want: 0,
            have: 0,
            unsolicited: false,
            r2t_to: 0,
            r2ts: 0,
            r2t_sn: 0,
            sequence: 0,
            sequence_at: 0,
            data_sn: 0,
            bad_digest: false,
            aborted: false,
            began: Tick::ZERO,
            early: None,
            buffered: 0,
            data: Sg::new(),
            blocks: Sg::new(),
            task: Task::new(),
            io: None,
        }
    }

    /// Its data for the initiator from `at` on, as many as lie together.
    #[inline]
    fn out_from(&self, at: u32) -> Option<&[u8]> {
        let (buffer, at) = place(at);
        self.blocks.iter().nth(buffer)?.get(at..)
    }

    /// The digest of `len` bytes of its data for the initiator, from `at` on, with their padding.
    pub(crate) fn out_digest(&self, at: u32, len: u32, pad: usize) -> [u8; DIGEST_LEN] {
        pieces_digest(Pieces { of: &self.blocks, at, left: len }, pad)
    }

    /// Room for data from the initiator, from `at` on: cut to what is wanted, and to what lies together.
    #[inline]
    pub(crate) fn room(&mut self, at: u32, len: u32) -> Option<&mut [u8]> {
        let len = at.checked_add(len)?.min(self.want).checked_sub(at)?;
        let (buffer, at) = place(at);
        let room = self.data.iter_mut().nth(buffer)?.get_mut(at..)?;
        let len = room.len().min(len as usize);
        room.get_mut(..len)
    }

    /// Puts `bytes` of the initiator's data at `at`; what is beyond that which is wanted goes nowhere.
    #[inline]
    pub(crate) fn put(&mut self, mut at: u32, mut bytes: &[u8]) {
        while let Ok(len @ 1..) = u32::try_from(bytes.len())
            && let Some(room) = self.room(at, len).filter(|room| !room.is_empty())
        {
            let (now, later) = bytes.split_at(room.len());
            room.copy_from_slice(now);
            at += u32::try_from(now.len()).unwrap_or(0);
            bytes = later;
        }
    }

    /// The digest of `len` bytes of the initiator's data at `at`, with their padding; `None` where not all were kept.
    pub(crate) fn came_digest(&self, at: u32, len: u32, pad: usize) -> Option<[u8; DIGEST_LEN]> {
        let kept = at.checked_add(len)? <= self.want && !self.data.is_empty();
        kept.then(|| pieces_digest(Pieces { of: &self.data, at, left: len }, pad))
    }

    /// Whether it has neither ended nor been answered.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        !matches!(self.state, CmdState::Free | CmdState::TransferOut)
    }

    /// Whether somebody outside of the connection will come back to it.
    #[inline]
    pub(crate) fn is_out(&self) -> bool {
        matches!(self.state, CmdState::Executing | CmdState::Control)
    }
}

/// In which buffer byte `at` of a command's data is, and where there: all buffers but the last are as long as can be.
#[inline]
fn place(at: u32) -> (usize, usize) {
    let at = at as usize;
    (at / BUF_BYTES_MAX, at % BUF_BYTES_MAX)
}

/// A part of a command's data, buffer by buffer.
struct Pieces<'a> {
    of: &'a Sg,
    at: u32,
    left: u32,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (buffer, at) = place(self.at);
        let piece = self.of.iter().nth(buffer)?.get(at..)?;
        let piece = piece.get(..self.left as usize).unwrap_or(piece);
        let len = u32::try_from(piece.len()).ok().filter(|len| *len > 0)?;
        self.at += len;
        self.left -= len;
        Some(piece)
    }
}

/// Which command of which connection: what a bdev I/O carries as its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CmdId {
    pub(crate) conn: u32,
    pub(crate) slot: u16,
}

impl CmdId {
    /// As a tag.
    #[inline]
    pub(crate) fn tag(self) -> u64 {
        (u64::from(self.conn) << 16) | u64::from(self.slot)
    }

    /// From a tag.
    #[inline]
    pub(crate) fn from_tag(tag: u64) -> Self {
        let conn = u32::try_from(tag >> 16).unwrap_or(u32::MAX);
        Self { conn, slot: u16::try_from(tag & 0xffff).unwrap_or(0) }
    }
}

/// The slots. The one freed last is used next: it is the warmest.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    cmds: Vec<Cmd>,
    free: Vec<u16>,
    /// Initiator Task Tags of the commands without an answer, by slot, else [`TAG_NONE`]: looked through once per PDU,
    /// so they lie together.
    tags: Vec<u32>,
    /// Slots from here on were never taken.
    used_to: usize,
}

impl SlotData for Slab {
    #[inline]
    fn bytes_from(&self, slot: u16, at: u32) -> &[u8] {
        self.get(slot).and_then(|cmd| cmd.out_from(at)).unwrap_or_default()
    }
}

impl Slab {
    /// `len` free slots.
    pub(crate) fn new(len: u16) -> Self {
        Self {
            cmds: (0..len).map(|_| Cmd::new()).collect(),
            free: (0..len).rev().collect(),
            tags: vec![TAG_NONE; usize::from(len)],
            used_to: 0,
        }
    }

    /// Free slots.
    #[inline]
    pub(crate) fn free_len(&self) -> usize {
        self.free.len()
    }

    /// A slot; `None` when all are taken.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<u16> {
        let slot = self.free.pop()?;
        let cmd = self.cmds.get_mut(usize::from(slot))?;
        cmd.want = 0;
        cmd.have = 0;
        cmd.unsolicited = false;
        cmd.r2t_to = 0;
        cmd.r2ts = 0;
        cmd.r2t_sn = 0;
        cmd.sequence = 0;
        cmd.sequence_at = 0;
        cmd.data_sn = 0;
        cmd.bad_digest = false;
        cmd.aborted = false;
        cmd.early = None;
        cmd.buffered = 0;
        Some(slot)
    }

    /// Gives a slot the tag by which [`Self::find`] finds it; `None`: it has been answered.
    #[inline]
    pub(crate) fn set_tag(&mut self, slot: u16, itt: Option<u32>) {
        if let Some(tag) = self.tags.get_mut(usize::from(slot)) {
            *tag = itt.unwrap_or(TAG_NONE);
            self.used_to = self.used_to.max(usize::from(slot) + 1);
        }
    }

    /// Frees a slot whose task has ended; returns the bytes of buffers that it held.
    #[inline]
    pub(crate) fn release(&mut self, slot: u16) -> u32 {
        let Some(cmd) = self.cmds.get_mut(usize::from(slot)) else { return 0 };
        assert!(cmd.state != CmdState::Free, "slot {slot} freed twice");
        cmd.state = CmdState::Free;
        cmd.data.clear();
        cmd.blocks.clear();
        cmd.task.release_data();
        self.free.push(slot);
        std::mem::take(&mut cmd.buffered)
    }

    /// The slot.
    #[inline]
    pub(crate) fn get(&self, slot: u16) -> Option<&Cmd> {
        self.cmds.get(usize::from(slot))
    }

    /// The slot.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u16) -> Option<&mut Cmd> {
        self.cmds.get_mut(usize::from(slot))
    }

    /// The slots that hold a command.
    pub(crate) fn used(&self) -> impl Iterator<Item = (u16, &Cmd)> {
        (0..).zip(&self.cmds).filter(|(_, cmd)| cmd.state != CmdState::Free)
    }

    /// The slot of the unanswered command with this tag.
    #[inline]
    pub(crate) fn find(&self, itt: u32) -> Option<u16> {
        if itt == TAG_NONE {
            return None;
        }
        let tags = self.tags.get(..self.used_to).unwrap_or_default();
        tags.iter().position(|tag| *tag == itt).and_then(|slot| u16::try_from(slot).ok())
    }
}
