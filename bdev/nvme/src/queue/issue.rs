//! From an I/O to the command, or the fused pair of commands, that does it.

use penstock_bdev::{Io, IoFlags, Op};
use penstock_reactor::Tick;
use penstock_reactor::mem::{BUF_BYTES_MAX, Buf};
use penstock_spec::nvme::nvm::{CopyRange0, DsmRange, RwControl};
use penstock_spec::nvme::{Fuse, NvmOpcode, Sqe};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::slot::{SlotState, cid_of};
use super::{IoQueue, NsParams};
use crate::command;
use crate::data::{LIST_BYTES, PointerList, Unaligned, point};
use crate::dma::{DmaBuf, Translator};

/// Lists in one piece of memory.
const LISTS_PER_BUF: usize = BUF_BYTES_MAX / LIST_BYTES;
/// Source ranges of one Copy at most: what a list has room for.
pub(crate) const COPY_RANGES_MAX: usize = LIST_BYTES / CopyRange0::LEN;

/// A page for each of `count` commands.
pub(super) fn lists(count: usize, translator: &mut Translator) -> Option<Vec<DmaBuf>> {
    let lens = (0..count).step_by(LISTS_PER_BUF).map(|first| (count - first).min(LISTS_PER_BUF) * LIST_BYTES);
    lens.map(|len| DmaBuf::new(len, translator)).collect()
}

/// Which of a command's buffers, in bytes.
#[derive(Debug, Clone, Copy)]
struct Part {
    at: usize,
    len: usize,
}

impl IoQueue {
    /// Gives the command of slot `index` to the controller. False where there is no memory or no room for it just now.
    #[inline]
    pub(super) fn issue(&mut self, index: u16, now: Tick) -> bool {
        let slot = self.slot(index);
        let end = slot.end;
        let Some(io) = &slot.io else { return true };
        let (op, lba, blocks, flags, src_lba) = (io.op, io.lba.0, io.blocks, io.flags, io.src_lba.0);
        let ns = self.end_mut(end).ns;
        let fua = RwControl(0).with_fua(flags.contains(IoFlags::FUA));
        let len = usize::try_from(u64::from(blocks) << ns.block_shift).unwrap_or(usize::MAX);
        let all = Part { at: 0, len };
        match op {
            Op::Read => {
                self.with_data(index, command::rw(NvmOpcode::READ, ns.nsid, lba, blocks, fua), all, now)
            }
            Op::Write => {
                self.with_data(index, command::rw(NvmOpcode::WRITE, ns.nsid, lba, blocks, fua), all, now)
            }
            Op::Compare => {
                self.with_data(index, command::rw(NvmOpcode::COMPARE, ns.nsid, lba, blocks, fua), all, now)
            }
            Op::CompareAndWrite => self.fused(index, ns, now),
            Op::WriteZeroes => {
                let deallocate = ns.deallocates_zeroes && !flags.contains(IoFlags::KEEP_ALLOCATED);
                let control = fua.with_deac(deallocate);
                self.give(index, command::rw(NvmOpcode::WRITE_ZEROES, ns.nsid, lba, blocks, control), now)
            }
            Op::Flush | Op::Reset => self.give(index, command::flush(ns.nsid), now),
            Op::Unmap => {
                let range =
                    DsmRange { len_blocks: U32::new(blocks), slba: U64::new(lba), ..DsmRange::default() };
                self.with_list(index, command::deallocate(ns.nsid), range.as_bytes(), 0, now)
            }
            Op::Copy => self.copy(index, ns, (lba, src_lba, blocks), flags.contains(IoFlags::FUA), now),
        }
    }

    /// A command whose data is the part `part` of the I/O's buffers.
    #[inline]
    fn with_data(&mut self, index: u16, sqe: Sqe, part: Part, now: Tick) -> bool {
        match self.pointed(index, index, sqe, part) {
            Some(sqe) => self.give(index, sqe, now),
            None => false,
        }
    }

    /// `sqe` with pointers to a part of the data of the I/O in `owner`, by the list of `index`.
    #[inline]
    fn pointed(&mut self, index: u16, owner: u16, sqe: Sqe, part: Part) -> Option<Sqe> {
        if self.find_segments(owner, part).is_err() {
            self.bounce(owner)?;
            self.find_segments(owner, part).ok()?;
        }
        let rules = self.rules.pointers;
        if let Ok(sqe) =
            point(sqe, self.segments.iter().copied(), rules, &mut list_of(&mut self.lists, index)?)
        {
            return Some(sqe);
        }
        self.bounce(owner)?;
        self.find_segments(owner, part).ok()?;
        point(sqe, self.segments.iter().copied(), rules, &mut list_of(&mut self.lists, index)?).ok()
    }

    /// Lists where the part is for the device.
    #[inline]
    fn find_segments(&mut self, owner: u16, part: Part) -> Result<(), Unaligned> {
        let Self { slots, segments, translator, .. } = self;
        segments.clear();
        let slot = slots.get(usize::from(owner)).ok_or(Unaligned)?;
        if let Some(bounce) = &slot.bounce {
            let iova = translator.translate(bounce).ok_or(Unaligned)?;
            segments.push((iova + u64::try_from(part.at).unwrap_or(0), part.len));
            return Ok(());
        }
        let (mut skip, mut left) = (part.at, part.len);
        for buf in slot.io.iter().flat_map(|io| io.data.iter()) {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let len = (buf.len() - skip).min(left);
            if len == 0 {
                break;
            }
            let iova = translator.translate(buf).ok_or(Unaligned)?;
            segments.push((iova + u64::try_from(skip).unwrap_or(0), len));
            (skip, left) = (0, left - len);
        }
        if left == 0 { Ok(()) } else { Err(Unaligned) }
    }

    /// Moves the data of the I/O in `owner` to one buffer that the device reaches; `None` where there is none just now.
    #[cold]
    fn bounce(&mut self, owner: u16) -> Option<()> {
        let slot = self.slots.get_mut(usize::from(owner))?;
        let io = slot.io.as_ref()?;
        let mut buf = Buf::alloc(io.data.len_bytes())?;
        self.translator.translate(&buf)?;
        if io.op != Op::Read {
            io.data.copy_out(0, &mut buf);
        }
        slot.bounce = Some(buf);
        self.stats.bounced.add(1);
        Some(())
    }

    /// A command whose data is `bytes`, put into its list at `at`.
    fn with_list(&mut self, index: u16, sqe: Sqe, bytes: &[u8], at: usize, now: Tick) -> bool {
        let Some(list) = list_of(&mut self.lists, index) else { return false };
        let first = list.index * LIST_BYTES;
        list.memory.put(first + at, bytes);
        let iova = list.memory.iova() + u64::try_from(first).unwrap_or(0);
        self.give(index, command::with_prps(sqe, iova, 0), now)
    }

    fn copy(
        &mut self,
        index: u16,
        ns: NsParams,
        (lba, mut src, mut left): (u64, u64, u32),
        fua: bool,
        now: Tick,
    ) -> bool {
        let Some(list) = list_of(&mut self.lists, index) else { return false };
        let first = list.index * LIST_BYTES;
        let mut ranges = 0;
        while left > 0 && ranges < COPY_RANGES_MAX {
            let blocks = left.min(ns.copy_range_blocks.max(1));
            let range = CopyRange0 {
                slba: U64::new(src),
                nlb0: U16::new(u16::try_from(blocks - 1).unwrap_or(u16::MAX)),
                ..CopyRange0::default()
            };
            list.memory.put(first + ranges * CopyRange0::LEN, range.as_bytes());
            (src, left, ranges) = (src + u64::from(blocks), left - blocks, ranges + 1);
        }
        let iova = list.memory.iova() + u64::try_from(first).unwrap_or(0);
        self.give(index, command::with_prps(command::copy(ns.nsid, lba, ranges, fua), iova, 0), now)
    }

    /// Compare and Write, fused (NVM Command Set 3.3.1): next to each other in the queue, the compare first.
    fn fused(&mut self, index: u16, ns: NsParams, now: Tick) -> bool {
        if self.ring.room() < 2 {
            return false;
        }
        let Some(second) = self.free.pop() else { return false };
        let pair = self.slot(index).io.as_ref().and_then(|io| fused_parts(io, ns));
        let pair = pair.and_then(|(compare, write, half)| {
            let first = self.pointed(index, index, compare, Part { at: 0, len: half })?;
            Some((first, self.pointed(second, index, write, Part { at: half, len: half })?))
        });
        let Some((compare, write)) = pair else {
            self.free.push(second);
            return false;
        };
        let end = self.slot(index).end;
        self.slot(index).mate = Some(second);
        let slot = self.slot(second);
        slot.mate = Some(index);
        slot.end = end;
        slot.abandoned = false;
        self.give(index, compare, now) && self.give(second, write, now)
    }

    /// Puts the command into the ring.
    #[inline]
    pub(super) fn give(&mut self, index: u16, mut sqe: Sqe, now: Tick) -> bool {
        if self.ring.room() == 0 {
            return false;
        }
        let slot = self.slot(index);
        if slot.state != SlotState::Difference {
            slot.state = SlotState::InDevice;
        }
        slot.since = now;
        slot.abort_asked = false;
        sqe.cid = U16::new(cid_of(index, slot.generation));
        self.ring.push(&sqe);
        self.in_device += 1;
        self.stats.commands.add(1);
        self.stats.in_device.set(u64::try_from(self.in_device).unwrap_or(0));
        true
    }

    /// Gives the controller a read of the blocks that a compare of slot `index` found to differ, into `buf`.
    pub(super) fn issue_difference_read(&mut self, index: u16, buf: Buf, now: Tick) -> bool {
        let slot = self.slot(index);
        let Some(io) = &slot.io else { return false };
        let (lba, blocks, end) = (io.lba.0, io.blocks, slot.end);
        let part = Part { at: 0, len: buf.len() };
        slot.bounce = Some(buf);
        slot.state = SlotState::Difference;
        slot.next_generation();
        let nsid = self.end_mut(end).ns.nsid;
        let sqe = command::rw(NvmOpcode::READ, nsid, lba, blocks, RwControl(0));
        match self.pointed(index, index, sqe, part) {
            Some(sqe) => self.give(index, sqe, now),
            None => false,
        }
    }
}

/// The two commands of a compare-and-write, and the length of each one's data in bytes.
fn fused_parts(io: &Io, ns: NsParams) -> Option<(Sqe, Sqe, usize)> {
    let fua = RwControl(0).with_fua(io.flags.contains(IoFlags::FUA));
    let half = usize::try_from(u64::from(io.blocks) << ns.block_shift).ok()?;
    let mut compare = command::rw(NvmOpcode::COMPARE, ns.nsid, io.lba.0, io.blocks, RwControl(0));
    let mut write = command::rw(NvmOpcode::WRITE, ns.nsid, io.lba.0, io.blocks, fua);
    compare.set_fuse(Fuse::First);
    write.set_fuse(Fuse::Second);
    Some((compare, write, half))
}

/// The list of slot `index`.
#[inline]
fn list_of(lists: &mut [DmaBuf], index: u16) -> Option<PointerList<'_>> {
    let index = usize::from(index);
    let memory = lists.get_mut(index / LISTS_PER_BUF)?;
    Some(PointerList { memory, index: index % LISTS_PER_BUF })
}
