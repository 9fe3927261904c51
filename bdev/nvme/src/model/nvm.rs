//! The model's I/O commands.

use penstock_spec::nvme::nvm::{CopyCmd, CopyControl, CopyRange0, DsmCmd, DsmRange, RwCmd};
use penstock_spec::nvme::{Cqe, Fuse, NvmOpcode, Psdt, Sgl, SglDescriptor, Sqe, Status};
use zerocopy::FromBytes;

use super::Inner;
use super::admin::prps;

const PAGE: u64 = 4096;

impl Inner {
    /// Does an I/O command.
    pub(super) fn nvm(&mut self, sqe: &Sqe) -> Cqe {
        let status = match (sqe.fuse(), self.first_half.take()) {
            (Fuse::First, _) => {
                // Judged with the second; the compare's own answer is found again then.
                let status = self.command(sqe);
                self.first_half = Some(*sqe);
                status
            }
            (Fuse::Second, Some(first)) => {
                if self.command(&first).is_success() {
                    self.command(sqe)
                } else {
                    Status::ABORTED_FAILED_FUSED
                }
            }
            (Fuse::Second, None) => Status::ABORTED_MISSING_FUSED,
            (_, Some(_)) => Status::ABORTED_MISSING_FUSED,
            (_, None) => self.command(sqe),
        };
        if status.sct() == penstock_spec::nvme::status::Sct::MEDIA && !status.is(Status::COMPARE_FAILURE) {
            self.media_errors += 1;
        }
        Cqe::new(0, 0, status)
    }

    fn command(&mut self, sqe: &Sqe) -> Status {
        let Some(ns) = self.namespaces.get(&sqe.nsid.get()) else {
            return Status::INVALID_NAMESPACE_OR_FORMAT;
        };
        let (block, nsze) = (ns.block_bytes(), ns.identify.nsze.get());
        match NvmOpcode(sqe.opc) {
            NvmOpcode::FLUSH => {
                self.flushes += 1;
                Status::SUCCESS
            }
            NvmOpcode::DATASET_MANAGEMENT => self.deallocate(DsmCmd::from_sqe(sqe), block, nsze),
            NvmOpcode::COPY => self.copy(CopyCmd::from_sqe(sqe), block, nsze),
            opcode => {
                let cmd = RwCmd::from_sqe(sqe);
                let (lba, blocks) = (cmd.slba.get(), u64::from(cmd.len_blocks()));
                if lba.checked_add(blocks).is_none_or(|end| end > nsze) {
                    return Status::LBA_OUT_OF_RANGE;
                }
                if let Some((bad, status)) = self.faults.bad_block
                    && (lba..lba + blocks).contains(&bad)
                {
                    return status;
                }
                let at = usize::try_from(lba).unwrap_or(0) * block;
                let len = usize::try_from(blocks).unwrap_or(0) * block;
                self.move_data(opcode, sqe, at, len)
            }
        }
    }

    fn move_data(&mut self, opcode: NvmOpcode, sqe: &Sqe, at: usize, len: usize) -> Status {
        let mdts = u32::from(self.identify.mdts);
        let has_data = matches!(opcode, NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE);
        if has_data && mdts > 0 && len > 4096 << mdts {
            return Status::INVALID_FIELD;
        }
        let pieces = if has_data { self.pieces(sqe, len) } else { Ok(Vec::new()) };
        let pieces = match pieces {
            Ok(pieces) => pieces,
            Err(status) => return status,
        };
        let nsid = sqe.nsid.get();
        let mut bytes = vec![0; len];
        if opcode == NvmOpcode::READ {
            if let Some(ns) = self.namespaces.get(&nsid) {
                bytes.copy_from_slice(&ns.data[at..at + len]);
            }
            return self.scatter(&pieces, &bytes);
        }
        if !self.gather(&pieces, &mut bytes) {
            return Status::DATA_TRANSFER_ERROR;
        }
        let fua = RwCmd::from_sqe(sqe).control().fua();
        let Some(ns) = self.namespaces.get_mut(&nsid) else { return Status::INVALID_NAMESPACE_OR_FORMAT };
        let blocks = &mut ns.data[at..at + len];
        match opcode {
            NvmOpcode::WRITE => {
                self.fua_writes += u64::from(fua);
                blocks.copy_from_slice(&bytes);
            }
            NvmOpcode::WRITE_ZEROES => blocks.fill(0),
            NvmOpcode::COMPARE if blocks != bytes.as_slice() => return Status::COMPARE_FAILURE,
            NvmOpcode::COMPARE | NvmOpcode::VERIFY => {}
            _ => return Status::INVALID_OPCODE,
        }
        Status::SUCCESS
    }

    fn deallocate(&mut self, cmd: &DsmCmd, block: usize, nsze: u64) -> Status {
        let (at, _) = prps(cmd.as_sqe());
        for index in 0..u64::from(cmd.ranges()) {
            let mut bytes = [0; 16];
            self.memory.read(at + index * 16, &mut bytes);
            let Ok(range) = DsmRange::read_from_bytes(&bytes) else { return Status::INTERNAL_ERROR };
            let (lba, blocks) = (range.slba.get(), u64::from(range.len_blocks.get()));
            if lba.checked_add(blocks).is_none_or(|end| end > nsze) {
                return Status::LBA_OUT_OF_RANGE;
            }
            let at = usize::try_from(lba).unwrap_or(0) * block;
            let len = usize::try_from(blocks).unwrap_or(0) * block;
            if let Some(ns) = self.namespaces.get_mut(&cmd.nsid.get()) {
                ns.data[at..at + len].fill(0);
            }
        }
        Status::SUCCESS
    }

    fn copy(&mut self, cmd: &CopyCmd, block: usize, nsze: u64) -> Status {
        let (at, _) = prps(cmd.as_sqe());
        let ranges = u64::from(CopyControl(cmd.cdw12.get()).nr0()) + 1;
        let mut to = cmd.sdlba.get();
        for index in 0..ranges {
            let mut bytes = [0; 32];
            self.memory.read(at + index * 32, &mut bytes);
            let Ok(range) = CopyRange0::read_from_bytes(&bytes) else { return Status::INTERNAL_ERROR };
            let (from, blocks) = (range.slba.get(), u64::from(range.nlb0.get()) + 1);
            let Some(ns) = self.namespaces.get_mut(&cmd.nsid.get()) else { return Status::INTERNAL_ERROR };
            if blocks > u64::from(ns.identify.mssrl.get()) {
                return Status::COMMAND_SIZE_LIMIT_EXCEEDED;
            }
            if from + blocks > nsze || to + blocks > nsze {
                return Status::LBA_OUT_OF_RANGE;
            }
            let place = |lba: u64| usize::try_from(lba).unwrap_or(0) * block;
            ns.data.copy_within(place(from)..place(from + blocks), place(to));
            to += blocks;
        }
        Status::SUCCESS
    }

    /// Where a command's `len` bytes are: addresses and lengths.
    fn pieces(&mut self, sqe: &Sqe, len: usize) -> Result<Vec<(u64, usize)>, Status> {
        if sqe.psdt() != Psdt::Prp {
            return self.sgl_pieces(sqe, len);
        }
        let (first, second) = prps(sqe);
        let mut left = u64::try_from(len).unwrap_or(0);
        let mut pieces = Vec::new();
        let mut push = |at: u64, left: &mut u64, first: bool| {
            if !first && !at.is_multiple_of(PAGE) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
            let piece = (*left).min(PAGE - at % PAGE);
            pieces.push((at, usize::try_from(piece).unwrap_or(0)));
            *left -= piece;
            Ok(())
        };
        push(first, &mut left, true)?;
        if left > 0 && left <= PAGE {
            push(second, &mut left, false)?;
        }
        let mut entry = second;
        while left > 0 {
            let mut word = [0; 8];
            self.memory.read(entry, &mut word);
            push(u64::from_le_bytes(word), &mut left, false)?;
            entry += 8;
        }
        Ok(pieces)
    }

    fn sgl_pieces(&mut self, sqe: &Sqe, len: usize) -> Result<Vec<(u64, usize)>, Status> {
        let block = |descriptor: &SglDescriptor| match descriptor.parse() {
            Ok(Sgl::DataBlock { addr, len, .. }) => Ok((addr, usize::try_from(len).unwrap_or(0))),
            _ => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        };
        let pieces = match sqe.sgl() {
            Ok(Sgl::Segment { addr, len, last: true, .. }) => {
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
                self.memory.read(addr, &mut bytes);
                let each = |bytes| SglDescriptor::read_from_bytes(bytes).map_err(|_| Status::INTERNAL_ERROR);
                bytes.chunks_exact(16).map(|bytes| block(&each(bytes)?)).collect::<Result<Vec<_>, _>>()?
            }
            _ => vec![block(&sqe.sgl1)?],
        };
        let total: usize = pieces.iter().map(|(_, len)| len).sum();
        if total == len { Ok(pieces) } else { Err(Status::DATA_SGL_LENGTH_INVALID) }
    }

    fn scatter(&mut self, pieces: &[(u64, usize)], bytes: &[u8]) -> Status {
        let mut at = 0;
        for (address, len) in pieces {
            if !self.memory.write(*address, &bytes[at..at + len]) {
                return Status::DATA_TRANSFER_ERROR;
            }
            at += len;
        }
        Status::SUCCESS
    }

    fn gather(&mut self, pieces: &[(u64, usize)], bytes: &mut [u8]) -> bool {
        let mut at = 0;
        for (address, len) in pieces {
            if !self.memory.read(*address, &mut bytes[at..at + len]) {
                return false;
            }
            at += len;
        }
        true
    }
}
