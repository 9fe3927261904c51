//! The two layouts of a virtqueue, as machines without I/O: guest memory in, chains of descriptors out, and back.
//!
//! A ring takes chains ([`Ring::pop`]) and gives them back used ([`Ring::push`]), in any order. It says whether the driver
//! wants to be told ([`Ring::wants_signal`]), and tells the driver whether it wants to be ([`Ring::set_kicks`]). Whatever the
//! driver writes into the ring leads to a chain or to a [`RingError`], never further: every index, length and count is
//! checked against the ring's size before it is used.

mod inflight;
mod packed;
mod split;

#[cfg(test)]
pub(crate) mod driver;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use penstock_spec::virtio::queue::DESCRIPTOR_BYTES;
use virtio_queue::desc::packed::Descriptor as PackedDescriptor;
use virtio_queue::desc::split::Descriptor as SplitDescriptor;
use vm_memory::ByteValued;

use crate::memory::{DirtyLog, GuestMap, Held, Window};
pub(crate) use inflight::{InflightArea, region_bytes};
pub(crate) use packed::PackedRing;
pub(crate) use split::SplitRing;

/// Entries of a queue at most.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// Descriptors of one chain at most, those of its indirect table counted.
pub(crate) const CHAIN_MAX: usize = 1024;
const _: () = assert!(QUEUE_SIZE_MAX as usize <= CHAIN_MAX);

/// What a driver did wrong with its ring. The device is broken then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The available index is further ahead than there are entries.
    #[error("the available index went from {from} to {to} in a ring of {size} entries")]
    AvailIndex {
        /// What was taken already.
        from: u16,
        /// What the ring says.
        to: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor's number is not below the size of its table.
    #[error("descriptor {index} in a table of {size}")]
    Descriptor {
        /// The number.
        index: u16,
        /// Entries of the table.
        size: u32,
    },
    /// More descriptors than a chain may have, which may be a loop.
    #[error("a chain of more than {max} descriptors")]
    Loop {
        /// How many it may have.
        max: usize,
    },
    /// An indirect table of no or a broken number of descriptors, too many, or inside another one.
    #[error("an indirect table of {len} bytes at {addr:#x} is not allowed there or is no table")]
    Indirect {
        /// Guest address of the table.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// Memory that the guest does not have.
    #[error("{len} bytes at guest address {addr:#x} are not all in the guest's memory")]
    Memory {
        /// Guest address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// What the device reads comes behind what it writes.
    #[error("a descriptor to be read follows one to be written")]
    Order,
    /// A chain without room for a header or a status byte.
    #[error("a request of {readable} bytes to be read and {writable} to be written is no block request")]
    Request {
        /// Bytes that the device may read.
        readable: u64,
        /// Bytes that the device may write.
        writable: u64,
    },
    /// More requests under way than the ring has entries.
    #[error("more than {size} requests under way")]
    TooMany {
        /// Entries of the ring.
        size: u16,
    },
    /// The inflight region says what cannot be.
    #[error("the inflight region is damaged")]
    Inflight,
}

/// One descriptor's worth of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    /// The device writes it.
    pub(crate) writable: bool,
}

/// Names a chain that was taken, until it is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Head {
    /// The driver's name of it: the number of its first descriptor (split), its buffer ID (packed).
    pub(crate) id: u16,
    /// Entries of the ring that it takes up (packed).
    pub(crate) entries: u16,
    /// Its entry of the inflight region (packed).
    pub(crate) noted_at: u16,
}

/// The chain that was taken last.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) segments: Vec<Segment>,
    pub(crate) head: Head,
}

impl Chain {
    pub(crate) fn new() -> Self {
        Self { segments: Vec::with_capacity(CHAIN_MAX), head: Head::default() }
    }

    pub(crate) fn readable(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| !segment.writable)
    }

    pub(crate) fn writable(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.writable)
    }

    fn push(&mut self, addr: u64, len: u32, writable: bool) -> Result<(), RingError> {
        if self.segments.len() >= CHAIN_MAX {
            return Err(RingError::Loop { max: CHAIN_MAX });
        }
        if !writable && self.segments.last().is_some_and(|before| before.writable) {
            return Err(RingError::Order);
        }
        self.segments.push(Segment { addr, len, writable });
        Ok(())
    }
}

/// Where the parts of a ring are, in the frontend's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RingAddresses {
    /// Descriptors.
    pub(crate) desc: u64,
    /// Available ring (split), driver event suppression (packed).
    pub(crate) avail: u64,
    /// Used ring (split), device event suppression (packed).
    pub(crate) used: u64,
}

/// What a ring is made of.
#[derive(Debug, Default)]
pub(crate) struct RingSetup {
    pub(crate) packed: bool,
    pub(crate) size: u16,
    pub(crate) addresses: RingAddresses,
    /// Where to go on, as `SET_VRING_BASE` says it.
    pub(crate) base: u32,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    pub(crate) inflight: Option<InflightArea>,
}

/// A virtqueue.
#[derive(Debug)]
pub(crate) enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Ring {
    /// The ring at these addresses; what the inflight region says is under way comes first.
    pub(crate) fn new(map: &GuestMap, setup: RingSetup) -> Result<Self, RingError> {
        if setup.packed {
            PackedRing::new(map, setup).map(Self::Packed)
        } else {
            SplitRing::new(map, setup).map(Self::Split)
        }
    }

    /// Takes the next chain into `chain`; false where there is none.
    #[inline]
    pub(crate) fn pop(&mut self, held: &Held, chain: &mut Chain) -> Result<bool, RingError> {
        match self {
            Self::Split(ring) => ring.pop(held, chain),
            Self::Packed(ring) => ring.pop(held, chain),
        }
    }

    /// Gives a chain back, `written` bytes of which were written.
    #[inline]
    pub(crate) fn push(&mut self, head: Head, written: u32) {
        match self {
            Self::Split(ring) => ring.push(head, written),
            Self::Packed(ring) => ring.push(head, written),
        }
    }

    /// Whether the driver wants to be told of what was given back since the last call.
    #[inline]
    pub(crate) fn wants_signal(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.wants_signal(),
            Self::Packed(ring) => ring.wants_signal(),
        }
    }

    /// Asks the driver to tell of new chains, or not to. Returns whether there are some now, which may have come unsaid.
    pub(crate) fn set_kicks(&mut self, wanted: bool) -> bool {
        match self {
            Self::Split(ring) => ring.set_kicks(wanted),
            Self::Packed(ring) => ring.set_kicks(wanted),
        }
    }

    /// Whether there is a chain to take.
    #[inline]
    pub(crate) fn has_work(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.has_work(),
            Self::Packed(ring) => ring.has_work(),
        }
    }

    /// Where it stands, as `GET_VRING_BASE` wants it; nothing is under way.
    pub(crate) fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.base(),
            Self::Packed(ring) => ring.base(),
        }
    }

    /// Finds the parts again in a table that has changed; false where they are not there any more.
    pub(crate) fn move_to(&mut self, map: &GuestMap) -> bool {
        match self {
            Self::Split(ring) => ring.move_to(map),
            Self::Packed(ring) => ring.move_to(map),
        }
    }

    /// Notes writes to the ring in `log` from now on.
    pub(crate) fn set_log(&mut self, log: Option<&Arc<DirtyLog>>) {
        match self {
            Self::Split(ring) => ring.set_log(log),
            Self::Packed(ring) => ring.set_log(log),
        }
    }
}

/// Whether the driver's event, at `event`, is among those from `old` (exclusive of it) up to `new` (VIRTIO 2.7.7.2).
pub(crate) fn event_reached(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Adds a table of descriptors to the chain. `linked`: it is a split queue's, whose entries name their successor; in a
/// packed one's all count, in order.
fn read_indirect(held: &Held, chain: &mut Chain, addr: u64, len: u32, linked: bool) -> Result<(), RingError> {
    let wrong = RingError::Indirect { addr, len };
    let bytes = usize::try_from(len).map_err(|_| wrong)?;
    if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR_BYTES) || bytes / DESCRIPTOR_BYTES > CHAIN_MAX {
        return Err(wrong);
    }
    let entries = bytes / DESCRIPTOR_BYTES;
    let mut next = 0;
    for _ in 0..entries {
        let at = addr.checked_add(u64::try_from(next * DESCRIPTOR_BYTES).unwrap_or(u64::MAX)).ok_or(wrong)?;
        let mut raw = [0; DESCRIPTOR_BYTES];
        if !held.read(at, &mut raw) {
            return Err(RingError::Memory { addr: at, len: 16 });
        }
        if !linked {
            let descriptor = packed_descriptor(&raw);
            if descriptor.refers_to_indirect_table() {
                return Err(wrong);
            }
            chain.push(descriptor.addr().0, descriptor.len(), descriptor.is_write_only())?;
            next += 1;
            continue;
        }
        let descriptor = split_descriptor(&raw);
        if descriptor.refers_to_indirect_table() {
            return Err(wrong);
        }
        chain.push(descriptor.addr().0, descriptor.len(), descriptor.is_write_only())?;
        if descriptor.has_next() {
            next = usize::from(descriptor.next());
            if next >= entries {
                let size = u32::try_from(entries).unwrap_or(u32::MAX);
                return Err(RingError::Descriptor { index: descriptor.next(), size });
            }
        } else {
            return Ok(());
        }
    }
    if linked { Err(RingError::Loop { max: entries }) } else { Ok(()) }
}

fn packed_descriptor(raw: &[u8; DESCRIPTOR_BYTES]) -> PackedDescriptor {
    let mut descriptor = PackedDescriptor::default();
    descriptor.as_mut_slice().copy_from_slice(raw);
    descriptor
}

fn split_descriptor(raw: &[u8; DESCRIPTOR_BYTES]) -> SplitDescriptor {
    let mut descriptor = SplitDescriptor::default();
    descriptor.as_mut_slice().copy_from_slice(raw);
    descriptor
}

fn window(map: &GuestMap, addr: u64, len: usize, align: usize) -> Result<Window, RingError> {
    let error = RingError::Memory { addr, len: u32::try_from(len).unwrap_or(u32::MAX) };
    map.window_at_user(addr, len, align).ok_or(error)
}
