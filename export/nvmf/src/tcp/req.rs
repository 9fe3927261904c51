//! The commands of one connection: a slab of slots, one per entry of the submission queue.
//!
//! ```text
//!            capsule                       buffer              H2CData complete
//!   Free ───────────► NeedBuffer ─────────────────► TransferIn ─────────────┐
//!     ▲                  │ (read, no data)                                  ▼
//!     │                  └──────────────────────────────────────────────► Execute ──► Busy (bdev queue full) ─┐
//!     │                                                                     │ ▲                               │
//!     │                                                                     │ └───────────────────────────────┘
//!     │                                                                     ▼
//!     └──── TransferOut (data in the send queue) ◄──────────────────── Executing / Held
//! ```
//!
//! A command of a fused pair waits in Paired, between its data and Execute, until the other one is there too.
//!
//! Who moves a request on: NeedBuffer: the group's queue of those who wait for buffers; TransferIn: the socket; Paired: the other command; Busy:
//! the group's queue of the namespace's channel; Executing: the bdev's completion, or the group's queue of commands for
//! the controller; Held: an event of the controller; TransferOut: the socket.

use penstock_bdev::{Io, IoFlags, Lba};
use penstock_reactor::net::SlotData;
use penstock_spec::nvme::{Sqe, Status};

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReqState {
    /// No command.
    Free,
    /// Out of buffers.
    NeedBuffer,
    /// Its data is coming: in the capsule, or as answer to an R2T.
    TransferIn,
    /// Everything is here; the bdev's queue is full.
    Busy,
    /// Everything is here; the other command of its fused pair is not.
    Paired,
    /// The bdev or the controller has it.
    Executing,
    /// The controller holds it until an event (Asynchronous Event Request).
    Held,
    /// Its data is in the send queue.
    TransferOut,
}

/// Which way its data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dir {
    /// No data.
    None,
    /// From the host to the controller.
    FromHost,
    /// From the controller to the host.
    ToHost,
}

/// What a command is in a fused operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is in none.
    Alone,
    /// The first; the slot of the second, once that has come.
    First(Option<u16>),
    /// The second, and the slot of the first.
    Second(u16),
    /// The second, which carries out both; the slot of the first.
    Joined(u16),
    /// It was to be one of two, and the other fails; how it is answered when its data has come.
    Doomed(Status),
}

/// What kind of command it is: who executes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReqKind {
    /// The controller, or the queue pair itself (Fabrics commands).
    Control,
    /// One I/O of the group's channel `chan`.
    Io {
        /// The channel.
        chan: u32,
    },
    /// As many I/Os as the data has ranges, one after the other.
    Ranges {
        /// The channel.
        chan: u32,
        /// How many.
        count: u16,
        /// The next one.
        next: u16,
        /// Blocks that may still be unmapped.
        left: u32,
    },
    /// As many copies as the data has ranges, one after the other.
    Copy {
        /// The channel.
        chan: u32,
        /// How many.
        count: u16,
        /// The next one.
        next: u16,
        /// Where it goes.
        to: Lba,
        /// How.
        flags: IoFlags,
    },
    /// A flush of every namespace, one after the other.
    FlushAll {
        /// The next NSID.
        next: u32,
    },
    /// Nothing is to be done.
    Nothing,
}

impl ReqKind {
    /// The channel of a command that is for one namespace.
    pub(crate) const fn chan(self) -> Option<u32> {
        match self {
            Self::Io { chan } | Self::Ranges { chan, .. } | Self::Copy { chan, .. } => Some(chan),
            Self::Control | Self::FlushAll { .. } | Self::Nothing => None,
        }
    }

    /// Whether the end of one I/O may be the beginning of the next.
    #[inline]
    pub(crate) const fn has_more(self) -> bool {
        matches!(self, Self::Ranges { .. } | Self::Copy { .. } | Self::FlushAll { .. })
    }
}

/// One slot.
#[derive(Debug)]
pub(crate) struct Req {
    pub(crate) state: ReqState,
    pub(crate) dir: Dir,
    /// The data came with a wrong digest.
    pub(crate) bad_digest: bool,
    /// An R2T is out.
    pub(crate) r2t: bool,
    /// Where its data is (in the capsule, or in PDUs of its own).
    pub(crate) in_capsule: bool,
    pub(crate) cid: u16,
    /// Bytes of data.
    pub(crate) len: u32,
    /// Of those, bytes before the ones that the SGL describes: dropped when all are there.
    pub(crate) unused: u32,
    /// Bytes of data that have come.
    pub(crate) have: u32,
    /// Completion dword 0, where the command ends by itself.
    pub(crate) result: u32,
    pub(crate) kind: ReqKind,
    pub(crate) role: Role,
    /// Its I/O with its buffers, but while the bdev has it.
    pub(crate) io: Option<Box<Io>>,
    /// The command; only kept for [`ReqKind::Control`].
    pub(crate) sqe: Sqe,
}

impl Req {
    fn new() -> Self {
        Self {
            state: ReqState::Free,
            dir: Dir::None,
            bad_digest: false,
            r2t: false,
            in_capsule: false,
            cid: 0,
            len: 0,
            unused: 0,
            have: 0,
            result: 0,
            kind: ReqKind::Control,
            role: Role::Alone,
            io: None,
            sqe: Sqe::default(),
        }
    }

    /// Bytes `at..at + len` of its data, where they lie in one buffer.
    #[inline]
    pub(crate) fn data(&self, at: u32, len: u32) -> Option<&[u8]> {
        self.data_from(at)?.get(..len as usize)
    }

    /// As [`Self::data`], all that is there from `at` on.
    #[inline]
    fn data_from(&self, at: u32) -> Option<&[u8]> {
        self.io.as_ref()?.data.iter().next()?.get(at as usize..)
    }

    /// As [`Self::data`], to write to.
    #[inline]
    pub(crate) fn data_mut(&mut self, at: u32, len: u32) -> Option<&mut [u8]> {
        let (from, to) = (at as usize, (at as usize).checked_add(len as usize)?);
        self.io.as_mut()?.data.iter_mut().next()?.get_mut(from..to)
    }

    /// Keeps of its data what its SGL describes. Returns how many bytes that drops.
    #[cold]
    pub(crate) fn drop_unused(&mut self) -> u32 {
        let unused = std::mem::take(&mut self.unused);
        let Some(buf) = self.io.as_mut().and_then(|io| io.data.iter_mut().next()) else { return 0 };
        let Some(rest) = buf.len().checked_sub(unused as usize) else { return 0 };
        buf.copy_within(unused as usize.., 0);
        buf.set_len(rest);
        self.len -= unused;
        self.have -= unused;
        unused
    }

    /// Whether somebody outside of the connection will come back to it.
    pub(crate) fn is_out(&self) -> bool {
        self.state == ReqState::Executing && self.io.is_none() && self.kind != ReqKind::Control
    }
}

/// Which request of which connection: what a bdev I/O carries as its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReqId {
    /// Index of the connection in its group.
    pub(crate) conn: u32,
    /// Slot.
    pub(crate) slot: u16,
}

impl ReqId {
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

/// The slots of one connection. The one freed last is used next: it is the warmest.
#[derive(Debug)]
pub(crate) struct Slab {
    reqs: Vec<Req>,
    free: Vec<u16>,
    /// One bit per CID in use.
    cids: Box<[u64]>,
}

impl SlotData for Slab {
    #[inline]
    fn bytes_from(&self, slot: u16, at: u32) -> &[u8] {
        self.get(slot).and_then(|req| req.data_from(at)).unwrap_or_default()
    }
}

impl Slab {
    /// `len` free slots.
    pub(crate) fn new(len: u16) -> Self {
        let mut slab = Self { reqs: Vec::new(), free: Vec::new(), cids: Box::default() };
        slab.grow(len);
        slab
    }

    /// More slots, up to `len`.
    pub(crate) fn grow(&mut self, len: u16) {
        let have = u16::try_from(self.reqs.len()).unwrap_or(u16::MAX);
        let more = len.saturating_sub(have);
        self.reqs.reserve_exact(more.into());
        self.free.reserve_exact(usize::from(len) - self.free.len().min(usize::from(len)));
        self.reqs.extend((0..more).map(|_| Req::new()));
        self.free.extend((have..len).rev());
        if len > 1 && self.cids.is_empty() {
            self.cids = vec![0; 1024].into_boxed_slice();
        }
    }

    /// How many hold a command.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn used(&self) -> usize {
        self.reqs.len() - self.free.len()
    }

    /// A slot for a command; `None` when all are taken.
    #[inline]
    pub(crate) fn take(&mut self, cid: u16) -> Option<u16> {
        let slot = self.free.pop()?;
        if let Some(req) = self.reqs.get_mut(usize::from(slot)) {
            debug_assert!(req.state == ReqState::Free && req.io.is_none(), "a free slot is empty");
            req.cid = cid;
            req.bad_digest = false;
            req.r2t = false;
            req.in_capsule = false;
            req.len = 0;
            req.unused = 0;
            req.have = 0;
            req.result = 0;
            req.dir = Dir::None;
            req.kind = ReqKind::Control;
            req.role = Role::Alone;
        }
        if let Some(word) = self.cids.get_mut(usize::from(cid >> 6)) {
            *word |= 1 << (cid & 63);
        }
        Some(slot)
    }

    /// Whether a command with this CID is under way.
    #[inline]
    pub(crate) fn has_cid(&self, cid: u16) -> bool {
        self.cids.get(usize::from(cid >> 6)).is_some_and(|word| word & (1 << (cid & 63)) != 0)
    }

    /// The CID may be used again: its response is in the send queue.
    #[inline]
    pub(crate) fn end_cid(&mut self, cid: u16) {
        if let Some(word) = self.cids.get_mut(usize::from(cid >> 6)) {
            *word &= !(1 << (cid & 63));
        }
    }

    /// Frees a slot and returns the I/O that it held.
    #[inline]
    pub(crate) fn free(&mut self, slot: u16) -> Option<Box<Io>> {
        let req = self.reqs.get_mut(usize::from(slot))?;
        assert!(req.state != ReqState::Free, "slot {slot} freed twice");
        req.state = ReqState::Free;
        let io = req.io.take();
        self.free.push(slot);
        io
    }

    /// The slot.
    #[inline]
    pub(crate) fn get(&self, slot: u16) -> Option<&Req> {
        self.reqs.get(usize::from(slot))
    }

    /// The slot.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u16) -> Option<&mut Req> {
        self.reqs.get_mut(usize::from(slot))
    }

    /// The slots that hold a command.
    pub(crate) fn slots_used(&self) -> impl Iterator<Item = u16> + '_ {
        self.reqs.iter().zip(0_u16..).filter(|(req, _)| req.state != ReqState::Free).map(|(_, slot)| slot)
    }

    /// The slot of the command with this CID.
    pub(crate) fn find(&self, cid: u16) -> Option<u16> {
        self.slots_used().find(|slot| {
            self.get(*slot).is_some_and(|req| req.cid == cid && req.state != ReqState::TransferOut)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_gives_each_slot_once_and_knows_the_cids_under_way() {
        let mut slab = Slab::new(1);
        slab.grow(4);
        let slots: Vec<u16> = (10..14).map(|cid| slab.take(cid).unwrap()).collect();
        assert!(slab.take(99).is_none());
        for slot in &slots {
            slab.get_mut(*slot).unwrap().state = ReqState::Executing;
        }
        assert_eq!(slab.find(12), Some(slots[2]));
        assert!(slab.has_cid(13) && !slab.has_cid(14));
        slab.end_cid(13);
        assert!(slab.free(slots[3]).is_none());
        assert!(!slab.has_cid(13));
        assert_eq!((slab.used(), slab.take(13)), (3, Some(slots[3])));
    }

    #[test]
    fn a_tag_says_which_request() {
        let id = ReqId { conn: 70_000, slot: 1023 };
        assert_eq!(ReqId::from_tag(id.tag()), id);
    }
}
