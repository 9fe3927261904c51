//! Copies: within a bdev by its own copy, between bdevs by reads and writes, chunk by chunk.

use penstock_bdev::{IoFlags, IoStatus, Lba, Op, Sg};
use penstock_spec::scsi::opcode::CopyOut;
use penstock_spec::scsi::sense::{Asc, SenseKey};

use super::blocks::{CHUNK_BYTES, internal};
use super::job::{CopyEnd, CopyJob, Job};
use super::{Fault, Sense, Step, Task};
use crate::command::copy::{self, Extent};
use crate::command::token;
use crate::nexus::Nexus;
use crate::status::fault_of;

/// Bytes that one copy inside a bdev is asked for.
const COPY_BYTES: u32 = 4 << 20;

impl Task {
    pub(super) fn begin_copy(
        &mut self,
        nexus: &mut Nexus,
        extents: Vec<Extent>,
        end: CopyEnd,
    ) -> Result<Step, Fault> {
        let job = CopyJob { extents, at: 0, done: 0, chunk: 0, op: Op::Copy, total: 0, end };
        self.flags = IoFlags::NONE;
        self.copy_next(nexus, Box::new(job))
    }

    /// Begins the next chunk, or ends the copy.
    fn copy_next(&mut self, nexus: &mut Nexus, mut job: Box<CopyJob>) -> Result<Step, Fault> {
        while let Some(extent) = job.extents.get(job.at) {
            if job.done < extent.blocks {
                break;
            }
            job.at += 1;
            job.done = 0;
        }
        let Some(extent) = job.extents.get(job.at).copied() else {
            end_copy(nexus, &job, true);
            return Ok(Step::Done);
        };
        // The world may have changed since the first chunk.
        if let Err(fault) = copy::check(extent, nexus) {
            end_copy(nexus, &job, false);
            return Err(fault);
        }
        let block_bytes = nexus.lu_by_id(extent.target).map_or(512, |lu| lu.view.config.info().block_bytes);
        let left = extent.blocks - job.done;
        let target_lba = extent.target_lba + u64::from(job.done);
        let Some(source_lba) = extent.source_lba.map(|lba| lba + u64::from(job.done)) else {
            job.chunk = left;
            job.op = Op::WriteZeroes;
            self.job = Job::Copy(job);
            return Ok(self.submit(extent.target, Op::WriteZeroes, target_lba, left, Sg::new()));
        };
        let apart = extent.source == extent.target && source_lba.abs_diff(target_lba) >= u64::from(left);
        if apart {
            job.chunk = left.min(COPY_BYTES / block_bytes);
            job.op = Op::Copy;
            let chunk = job.chunk;
            self.job = Job::Copy(job);
            let step = self.submit(extent.target, Op::Copy, target_lba, chunk, Sg::new());
            if let Some(io) = &mut self.io {
                io.src_lba = Lba(source_lba);
            }
            return Ok(step);
        }
        job.chunk = left.min(CHUNK_BYTES / block_bytes);
        job.op = Op::Read;
        let bytes = job.chunk.saturating_mul(block_bytes);
        self.job = Job::Copy(job);
        Ok(Step::Buffers { bytes })
    }

    /// Reads a chunk of the source into `buffers`.
    pub(super) fn copy_into(&mut self, _nexus: &mut Nexus, buffers: Sg) -> Result<Step, Fault> {
        let Job::Copy(job) = &self.job else { return Err(internal()) };
        let extent = job.extents.get(job.at).copied().ok_or_else(internal)?;
        let lba = extent.source_lba.unwrap_or(0) + u64::from(job.done);
        let chunk = job.chunk;
        Ok(self.submit(extent.source, Op::Read, lba, chunk, buffers))
    }

    pub(super) fn on_copied(&mut self, nexus: &mut Nexus, data: Sg, status: IoStatus) -> Result<Step, Fault> {
        let Job::Copy(mut job) = std::mem::replace(&mut self.job, Job::None) else { return Err(internal()) };
        if let Some(fault) = fault_of(status, 0) {
            end_copy(nexus, &job, false);
            return Err(copy_fault(fault));
        }
        if job.op == Op::Read {
            let extent = job.extents.get(job.at).copied().ok_or_else(internal)?;
            let (lba, chunk) = (extent.target_lba + u64::from(job.done), job.chunk);
            job.op = Op::Write;
            self.job = Job::Copy(job);
            return Ok(self.submit(extent.target, Op::Write, lba, chunk, data));
        }
        job.done += job.chunk;
        job.total += u64::from(job.chunk);
        self.copy_next(nexus, job)
    }
}

/// A failed copy is COPY ABORTED, but for what the initiator has to know by its own key.
fn copy_fault(fault: Fault) -> Fault {
    match fault.sense {
        Some(sense) if sense.key != SenseKey::DATA_PROTECT => {
            Sense::new(SenseKey::COPY_ABORTED, Asc::COPY_TARGET_NOT_REACHABLE).into()
        }
        _ => fault,
    }
}

/// Holds the result for the commands that ask for it.
fn end_copy(nexus: &mut Nexus, job: &CopyJob, done: bool) {
    match job.end {
        CopyEnd::Lid1(Some(list_id)) => nexus.copies.hold(list_id, done, job.at, job.total),
        CopyEnd::Lid1(None) => {}
        CopyEnd::Token(list_id) => nexus.copies.hold_token(token::Outcome {
            list_id,
            action: CopyOut::WRITE_USING_TOKEN.0,
            done,
            blocks: job.total,
            token: None,
        }),
    }
}
