//! Commands that move blocks.

use penstock_bdev::{IoFlags, IoStatus, Op, Sg};
use penstock_spec::scsi::cdb::{self, RwFlags};
use penstock_spec::scsi::sense::{Asc, SenseKey};

use super::job::{AfterWrite, Job, OrPhase};
use super::{Fault, Sense, Step, Task};
use crate::command::unmap::Range;
use crate::command::view;
use crate::config::LuConfig;
use crate::nexus::Nexus;
use crate::status::fault_of;

/// Bytes of one chunk of work that a task does with buffers of its own.
pub(super) const CHUNK_BYTES: u32 = 256 << 10;

/// Bytes that one I/O without data unmaps or zeroes at most. A slow bdev's other commands come in between, and an abort
/// has not long to wait.
const PIECE_BYTES: u32 = 32 << 20;

/// From so many bytes on, a read leaves its buffers to a bdev that has some: all of a queue's shorter ones fit into a cache.
const LATE_BYTES_MIN: u32 = 32 << 10;

/// How often an ORWRITE starts over when others write the same blocks meanwhile.
const OR_TRIES_MAX: u8 = 64;

/// Where, how much and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rw {
    pub(super) lba: u64,
    pub(super) blocks: u32,
    pub(super) flags: RwFlags,
}

impl Task {
    /// The fields that all commands of this kind have, whichever length their CDB has.
    #[inline]
    pub(super) fn rw(&self) -> Result<Rw, Fault> {
        let cdb = &self.cdb;
        Ok(match cdb.first().copied().unwrap_or(0) >> 5 {
            0 => {
                let cdb = view::<cdb::Rw6>(cdb)?;
                Rw { lba: cdb.lba(), blocks: cdb.len_blocks(), flags: RwFlags(0) }
            }
            1 | 2 => {
                let cdb = view::<cdb::Rw10>(cdb)?;
                Rw { lba: cdb.lba.get().into(), blocks: cdb.len.get().into(), flags: RwFlags(cdb.flags) }
            }
            5 => {
                let cdb = view::<cdb::Rw12>(cdb)?;
                Rw { lba: cdb.lba.get().into(), blocks: cdb.len.get(), flags: RwFlags(cdb.flags) }
            }
            _ => {
                let cdb = view::<cdb::Rw16>(cdb)?;
                Rw { lba: cdb.lba.get(), blocks: cdb.len.get(), flags: RwFlags(cdb.flags) }
            }
        })
    }

    /// Takes the range over, after the checks that all have in common: no protection information, blocks on the disk,
    /// no more than `blocks_max`.
    #[inline]
    pub(super) fn take_range(&mut self, rw: Rw, config: &LuConfig, blocks_max: u32) -> Result<(), Fault> {
        if rw.flags.protect() != 0 {
            return Err(Sense::cdb(1).into());
        }
        let device_blocks = config.descriptor.shared().blocks();
        let end = rw.lba.checked_add(u64::from(rw.blocks));
        if end.is_none_or(|end| end > device_blocks) {
            return Err(Sense::illegal(Asc::LBA_OUT_OF_RANGE).with_information(rw.lba).into());
        }
        if rw.blocks > blocks_max {
            let byte = match self.cdb.first().copied().unwrap_or(0) >> 5 {
                0 => 4,
                1 | 2 => 7,
                5 => 6,
                _ => 10,
            };
            return Err(Sense::cdb(byte).into());
        }
        self.lba = rw.lba;
        self.blocks = rw.blocks;
        Ok(())
    }

    /// `blocks` in bytes; within 32 bits, as [`Self::take_range`] bounded them.
    fn bytes_of(blocks: u32, config: &LuConfig) -> u32 {
        blocks.saturating_mul(config.descriptor.shared().block_bytes())
    }

    #[inline]
    pub(super) fn begin_read(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let (rw, config) = (self.rw()?, self.config(nexus)?);
        self.take_range(rw, config, config.transfer_blocks_max())?;
        if rw.blocks == 0 {
            return Ok(Step::Done);
        }
        let bytes = Self::bytes_of(rw.blocks, config);
        if rw.flags.fua() && rw.flags.0 != 0 {
            self.flags = IoFlags::FUA;
        }
        self.answer.transfer_bytes = u64::from(bytes);
        self.late_buffers = bytes >= LATE_BYTES_MIN && config.descriptor.shared().caps().late_buffers;
        self.job = Job::Read;
        Ok(Step::Buffers { bytes })
    }

    #[inline]
    pub(super) fn begin_write(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let rw = self.rw()?;
        self.take_write(nexus, rw, AfterWrite::Nothing)
    }

    pub(super) fn begin_write_verify(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let rw = self.rw()?;
        let then = match rw.flags.bytchk() {
            0 => AfterWrite::ReadBack,
            1 => AfterWrite::Compare,
            _ => return Err(Sense::cdb(1).into()),
        };
        // What is verified is what is on the medium.
        self.take_write(nexus, Rw { flags: rw.flags.with_fua(false), ..rw }, then)
    }

    pub(super) fn begin_write_atomic(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let cdb = *view::<cdb::WriteAtomic16>(&self.cdb)?;
        // Atomic boundaries are not offered.
        if cdb.boundary.get() != 0 {
            return Err(Sense::cdb(10).into());
        }
        let blocks = cdb.len.get();
        let rw = Rw { lba: cdb.lba.get(), blocks: blocks.into(), flags: RwFlags(cdb.flags) };
        let too_long = blocks > self.config(nexus)?.limits.atomic_blocks_max;
        let step = self.take_write(nexus, rw, AfterWrite::Nothing)?;
        // Half of an atomic write is none.
        if too_long || u64::from(self.data_out_bytes) < self.answer.transfer_bytes {
            return Err(Sense::cdb(12).into());
        }
        Ok(step)
    }

    /// A write of as many whole blocks as the initiator sends. Parts of blocks are not written.
    #[inline]
    fn take_write(&mut self, nexus: &Nexus, rw: Rw, then: AfterWrite) -> Result<Step, Fault> {
        let config = self.config(nexus)?;
        self.take_range(rw, config, config.transfer_blocks_max())?;
        let bytes = Self::bytes_of(rw.blocks, config);
        self.answer.transfer_bytes = u64::from(bytes);
        let block_bytes = config.descriptor.shared().block_bytes();
        let sent = bytes.min(self.data_out_bytes);
        if !sent.is_multiple_of(block_bytes) {
            return Err(Sense::illegal(Asc::INVALID_FIELD_IN_INFORMATION_UNIT).into());
        }
        if sent == 0 {
            return Ok(Step::Done);
        }
        self.blocks = sent / block_bytes;
        if rw.flags.fua() {
            self.flags = IoFlags::FUA;
        }
        self.job = Job::Write { then };
        Ok(Step::Data { bytes: sent })
    }

    /// Asks for exactly `bytes` bytes: a command that cannot make do with less.
    pub(super) fn want_exactly(&mut self, bytes: u32) -> Result<Step, Fault> {
        self.answer.transfer_bytes = u64::from(bytes);
        if self.data_out_bytes != bytes {
            return Err(Sense::illegal(Asc::INVALID_FIELD_IN_INFORMATION_UNIT).into());
        }
        Ok(if bytes == 0 { Step::Done } else { Step::Data { bytes } })
    }

    pub(super) fn begin_verify(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let (rw, config) = (self.rw()?, self.config(nexus)?);
        let compares = rw.flags.bytchk();
        let blocks_max = if compares == 1 { config.transfer_blocks_max() } else { u32::MAX };
        self.take_range(rw, config, blocks_max)?;
        if rw.blocks == 0 {
            return if compares == 2 { Err(Sense::cdb(1).into()) } else { Ok(Step::Done) };
        }
        let block_bytes = config.descriptor.shared().block_bytes();
        match compares {
            0 => self.verify_next(block_bytes, |chunk| Job::VerifyMedium { chunk }),
            1 => {
                self.job = Job::Compare;
                self.want_exactly(rw.blocks.saturating_mul(block_bytes))
            }
            3 => {
                self.job = Job::VerifySame { chunk: 0, done_bytes: 0 };
                self.want_exactly(block_bytes)
            }
            _ => Err(Sense::cdb(1).into()),
        }
    }

    /// Asks for buffers for the next chunk of a verification, or ends it.
    fn verify_next(&mut self, block_bytes: u32, job: impl FnOnce(u32) -> Job) -> Result<Step, Fault> {
        let chunk = self.blocks.min(CHUNK_BYTES / block_bytes);
        self.job = job(chunk);
        Ok(if chunk == 0 { Step::Done } else { Step::Buffers { bytes: chunk.saturating_mul(block_bytes) } })
    }

    pub(super) fn begin_compare_and_write(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let cdb = *view::<cdb::CompareAndWrite>(&self.cdb)?;
        let rw = Rw { lba: cdb.lba.get(), blocks: cdb.len.into(), flags: RwFlags(cdb.flags) };
        let config = self.config(nexus)?;
        self.take_range(rw, config, u32::MAX)?;
        // None of many blocks: the count has overflown, as hosts' do that ask for 256.
        let overflown = cdb.len == 0 && self.data_out_bytes > 0;
        if cdb.len > config.limits.compare_and_write_blocks_max || overflown {
            return Err(Sense::cdb(13).into());
        }
        if rw.flags.fua() {
            self.flags = IoFlags::FUA;
        }
        self.job = Job::CompareAndWrite;
        self.want_exactly(Self::bytes_of(rw.blocks, config).saturating_mul(2))
    }

    pub(super) fn begin_or_write(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let (rw, config) = (self.rw()?, self.config(nexus)?);
        // An I/O has as many blocks at most; the exchange carries old and new ones.
        self.take_range(rw, config, config.transfer_blocks_max())?;
        if rw.flags.fua() {
            self.flags = IoFlags::FUA;
        }
        self.job = Job::OrWrite { phase: OrPhase::Mask, tries: 0 };
        self.want_exactly(Self::bytes_of(rw.blocks, config))
    }

    pub(super) fn begin_pre_fetch(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let mut rw = self.rw()?;
        rw.flags = rw.flags.with_protect(0);
        // There is no cache to fetch into: GOOD, and not CONDITION MET, says that not all fits.
        let config = self.config(nexus)?;
        self.take_range(rw, config, u32::MAX)?;
        Ok(Step::Done)
    }

    pub(super) fn begin_sync(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let mut rw = self.rw()?;
        rw.flags = rw.flags.with_protect(0);
        let config = self.config(nexus)?;
        self.take_range(rw, config, u32::MAX)?;
        self.flush(nexus)
    }

    pub(super) fn on_data(&mut self, nexus: &mut Nexus) -> Result<Step, Fault> {
        match &mut self.job {
            Job::List => {
                let mut list = vec![0; self.data.len_bytes()];
                self.data.copy_out(0, &mut list);
                self.data.clear();
                self.on_list(nexus, &list)
            }
            Job::Write { .. } => Ok(self.submit_data(Op::Write)),
            Job::Compare => Ok(self.submit_data(Op::Compare)),
            Job::CompareAndWrite => Ok(self.submit_data(Op::CompareAndWrite)),
            Job::VerifySame { .. } => {
                let block_bytes = self.config(nexus)?.info().block_bytes;
                self.verify_next(block_bytes, |chunk| Job::VerifySame { chunk, done_bytes: 0 })
            }
            Job::OrWrite { phase, .. } => {
                *phase = OrPhase::OldBuffers;
                Ok(self.want_work())
            }
            Job::WriteSame { .. } => self.on_same_block(nexus),
            _ => Err(internal()),
        }
    }

    /// Asks for buffers as long as the data.
    fn want_work(&self) -> Step {
        Step::Buffers { bytes: u32::try_from(self.data.len_bytes()).unwrap_or(u32::MAX) }
    }

    fn submit_data(&mut self, op: Op) -> Step {
        let data = std::mem::take(&mut self.data);
        self.submit(self.lu, op, self.lba, self.blocks, data)
    }

    pub(super) fn on_buffers(&mut self, nexus: &mut Nexus, buffers: Sg) -> Result<Step, Fault> {
        match &mut self.job {
            Job::Read => Ok(self.submit(self.lu, Op::Read, self.lba, self.blocks, buffers)),
            Job::VerifyMedium { chunk } | Job::VerifySame { chunk, .. } => {
                let chunk = *chunk;
                Ok(self.submit(self.lu, Op::Read, self.lba, chunk, buffers))
            }
            Job::OrWrite { phase, .. } if *phase == OrPhase::OldBuffers => {
                *phase = OrPhase::Reading;
                Ok(self.submit(self.lu, Op::Read, self.lba, self.blocks, buffers))
            }
            Job::OrWrite { phase, .. } => {
                *phase = OrPhase::Exchanging;
                Ok(self.exchange(buffers))
            }
            Job::WriteSame { .. } => self.write_same_filled(nexus, buffers),
            Job::Copy(_) => self.copy_into(nexus, buffers),
            _ => Err(internal()),
        }
    }

    /// ORWRITE: submits the exchange of the old blocks, in `work`, for those with the mask's bits set.
    fn exchange(&mut self, mut new: Sg) -> Step {
        let mut at = 0;
        let (mut old, mut mask) = ([0_u8; 4096], [0_u8; 4096]);
        loop {
            let count = self.work.copy_out(at, &mut old);
            self.data.copy_out(at, &mut mask);
            if count == 0 {
                break;
            }
            old.iter_mut().zip(mask).for_each(|(byte, bits)| *byte |= bits);
            new.copy_in(at, old.get(..count).unwrap_or(&[]));
            at += count;
        }
        let mut both = std::mem::take(&mut self.work);
        while let Some(buf) = new.pop_front() {
            both.push(buf);
        }
        self.submit(self.lu, Op::CompareAndWrite, self.lba, self.blocks, both)
    }

    pub(super) fn on_completed(
        &mut self,
        nexus: &mut Nexus,
        data: Sg,
        status: IoStatus,
        result: u64,
    ) -> Result<Step, Fault> {
        if let Job::OrWrite { phase: phase @ OrPhase::Exchanging, tries } = &mut self.job
            && status == IoStatus::Miscompare
        {
            // Somebody else has written meanwhile: once more with what is there now.
            *tries += 1;
            if *tries >= OR_TRIES_MAX {
                return Err(Fault::BUSY);
            }
            *phase = OrPhase::OldBuffers;
            return Ok(self.want_work());
        }
        if matches!(self.job, Job::Copy(_)) {
            return self.on_copied(nexus, data, status);
        }
        if let Some(fault) = fault_of(status, result) {
            return Err(fault);
        }
        match &mut self.job {
            Job::Read => {
                self.data = data;
                self.has_blocks = true;
                Ok(Step::Done)
            }
            Job::Write { then } => {
                let then = *then;
                Ok(self.after_write(then, data))
            }
            Job::Compare | Job::CompareAndWrite | Job::ReadBack | Job::Last => Ok(Step::Done),
            Job::VerifyMedium { chunk } => {
                let chunk = *chunk;
                self.advance(chunk);
                let block_bytes = self.config(nexus)?.info().block_bytes;
                self.verify_next(block_bytes, |chunk| Job::VerifyMedium { chunk })
            }
            Job::VerifySame { chunk, done_bytes } => {
                let (chunk, done_bytes) = (*chunk, *done_bytes);
                self.compare_same(nexus, &data, chunk, done_bytes)
            }
            Job::OrWrite { phase, .. } if *phase == OrPhase::Reading => {
                *phase = OrPhase::NewBuffers;
                self.work = data;
                Ok(self.want_work())
            }
            Job::OrWrite { .. } => Ok(Step::Done),
            Job::WriteSame { chunk, .. } => {
                let chunk = *chunk;
                self.advance(chunk);
                self.write_same_again(data)
            }
            Job::Unmap { left } => {
                let left = std::mem::take(left);
                self.unmap_next(nexus, left)
            }
            Job::Zero { chunk } => {
                let chunk = *chunk;
                self.advance(chunk);
                self.zero_next(nexus)
            }
            _ => Err(internal()),
        }
    }

    fn after_write(&mut self, then: AfterWrite, data: Sg) -> Step {
        match then {
            AfterWrite::Nothing => Step::Done,
            AfterWrite::ReadBack => {
                // Into the buffers of the data: that it can be read is all that is asked.
                self.job = Job::ReadBack;
                self.submit(self.lu, Op::Read, self.lba, self.blocks, data)
            }
            AfterWrite::Compare => {
                self.job = Job::Compare;
                self.submit(self.lu, Op::Compare, self.lba, self.blocks, data)
            }
        }
    }

    /// Moves the range on by what was done.
    pub(super) fn advance(&mut self, blocks: u32) {
        self.lba += u64::from(blocks);
        self.blocks -= blocks.min(self.blocks);
    }

    /// VERIFY with BYTCHK 3: each block of the chunk is as the one that was sent.
    fn compare_same(
        &mut self,
        nexus: &Nexus,
        chunk_data: &Sg,
        chunk: u32,
        done_bytes: u64,
    ) -> Result<Step, Fault> {
        let block_bytes = self.config(nexus)?.info().block_bytes;
        let (mut expected, mut found) = ([0_u8; 4096], [0_u8; 4096]);
        let block_len = self.data.copy_out(0, &mut expected);
        let expected = expected.get(..block_len).unwrap_or(&[]);
        for index in 0..usize::try_from(chunk).unwrap_or(0) {
            let found = found.get_mut(..block_len).unwrap_or_default();
            chunk_data.copy_out(index * block_len, found);
            if let Some(at) = expected.iter().zip(found.iter()).position(|(a, b)| a != b) {
                let offset = done_bytes + u64::try_from(index * block_len + at).unwrap_or(0);
                let sense = Sense::new(SenseKey::MISCOMPARE, Asc::MISCOMPARE_DURING_VERIFY);
                return Err(sense.with_information(offset).into());
            }
        }
        self.advance(chunk);
        let done_bytes = done_bytes + u64::from(chunk) * u64::from(block_bytes);
        self.verify_next(block_bytes, |chunk| Job::VerifySame { chunk, done_bytes })
    }

    /// Submits the next piece of an UNMAP, or ends it.
    pub(super) fn unmap_next(&mut self, nexus: &Nexus, mut left: Vec<Range>) -> Result<Step, Fault> {
        let Some(range) = left.pop() else { return Ok(Step::Done) };
        let blocks = range.blocks.min(PIECE_BYTES / self.config(nexus)?.info().block_bytes);
        if blocks < range.blocks {
            left.push(Range { lba: range.lba + u64::from(blocks), blocks: range.blocks - blocks });
        }
        self.job = Job::Unmap { left };
        Ok(self.submit(self.lu, Op::Unmap, range.lba, blocks, Sg::new()))
    }

    /// Submits the next piece of a WRITE SAME of zeroes, or ends it.
    pub(super) fn zero_next(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let chunk = self.blocks.min(PIECE_BYTES / self.config(nexus)?.info().block_bytes);
        if chunk == 0 {
            return Ok(Step::Done);
        }
        self.job = Job::Zero { chunk };
        Ok(self.submit(self.lu, Op::WriteZeroes, self.lba, chunk, Sg::new()))
    }
}

/// A state that cannot be; told rather than hidden.
pub(super) fn internal() -> Fault {
    Sense::new(SenseKey::HARDWARE_ERROR, Asc::INTERNAL_TARGET_FAILURE).into()
}
