//! WRITE SAME (SBC-3 5.41, 5.42; 4.7.3.4.4 for UNMAP).

use penstock_bdev::{IoFlags, Op, Sg};
use penstock_spec::scsi::opcode::Opcode;

use super::blocks::CHUNK_BYTES;
use super::job::Job;
use super::{Fault, Sense, Step, Task};
use crate::nexus::Nexus;

impl Task {
    pub(super) fn begin_write_same(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let (rw, config) = (self.rw()?, self.config(nexus)?);
        let ndob = self.cdb.first() == Some(&Opcode::WRITE_SAME_16.0) && rw.flags.ndob();
        // ANCHOR: ANC_SUP is clear. UNMAP: LBPWS is set for thin disks only.
        if rw.flags.anchor() || (rw.flags.unmap() && !config.is_thin()) {
            return Err(Sense::cdb(1).into());
        }
        self.take_range(rw, config, config.limits.write_same_blocks_max)?;
        if rw.blocks == 0 {
            // WSNZ: "until the end" is not offered.
            let byte = if self.cdb.first() == Some(&Opcode::WRITE_SAME_10.0) { 7 } else { 10 };
            return Err(Sense::cdb(byte).into());
        }
        let unmap = rw.flags.unmap();
        self.job = Job::WriteSame { unmap, chunk: 0 };
        if ndob {
            return self.zero(nexus, unmap);
        }
        self.want_exactly(config.info().block_bytes)
    }

    /// The blocks become zeroes. What may be unmapped may be unmapped: it reads the same.
    fn zero(&mut self, nexus: &Nexus, unmap: bool) -> Result<Step, Fault> {
        self.flags = if unmap { IoFlags::NONE } else { IoFlags::KEEP_ALLOCATED };
        self.zero_next(nexus)
    }

    /// Goes on with the block that is to be written again and again. Other contents than zeroes are written whatever
    /// UNMAP says: unmapped blocks would not read as they.
    pub(super) fn on_same_block(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let Job::WriteSame { unmap, .. } = self.job else { return Err(super::blocks::internal()) };
        if self.data.iter().all(|buf| buf.iter().all(|byte| *byte == 0)) {
            return self.zero(nexus, unmap);
        }
        let block_bytes = self.config(nexus)?.info().block_bytes;
        let chunk = self.blocks.min(CHUNK_BYTES / block_bytes);
        self.job = Job::WriteSame { unmap, chunk };
        Ok(Step::Buffers { bytes: chunk.saturating_mul(block_bytes) })
    }

    /// Fills the buffers with the block and writes them.
    pub(super) fn write_same_filled(&mut self, nexus: &Nexus, mut buffers: Sg) -> Result<Step, Fault> {
        let Job::WriteSame { chunk, .. } = self.job else { return Err(super::blocks::internal()) };
        let block_len = usize::try_from(self.config(nexus)?.info().block_bytes).unwrap_or(0);
        let mut block = [0_u8; 4096];
        self.data.copy_out(0, &mut block);
        let block = block.get(..block_len).unwrap_or(&[]);
        for index in 0..usize::try_from(chunk).unwrap_or(0) {
            buffers.copy_in(index * block_len, block);
        }
        Ok(self.submit(self.lu, Op::Write, self.lba, chunk, buffers))
    }

    /// Writes the same buffers further on, or ends.
    pub(super) fn write_same_again(&mut self, data: Sg) -> Result<Step, Fault> {
        let Job::WriteSame { unmap, chunk } = self.job else { return Err(super::blocks::internal()) };
        if self.blocks == 0 {
            return Ok(Step::Done);
        }
        let next = self.blocks.min(chunk);
        let data = if next == chunk { data } else { shortened(data, chunk, next) };
        self.job = Job::WriteSame { unmap, chunk: next };
        Ok(self.submit(self.lu, Op::Write, self.lba, next, data))
    }
}

/// The first `next` of `chunk` equal parts of `data`.
pub(super) fn shortened(mut data: Sg, chunk: u32, next: u32) -> Sg {
    let parts = |len: usize| len / usize::try_from(chunk).unwrap_or(1).max(1);
    let mut left = parts(data.len_bytes()) * usize::try_from(next).unwrap_or(0);
    let mut short = Sg::new();
    while let Some(mut buf) = data.pop_front() {
        if left == 0 {
            break;
        }
        buf.set_len(buf.len().min(left));
        left -= buf.len();
        short.push(buf);
    }
    short
}
