//! From an I/O to its command, and from a command's status to what becomes of the I/O.

use penstock_bdev::{Io, IoFlags, IoStatus, Op};
use penstock_nvme_tcp::{Transfer, command};
use penstock_spec::nvme::log::ana::AnaState;
use penstock_spec::nvme::nvm::{CopyRange0, DsmRange, RwControl};
use penstock_spec::nvme::status::Sct;
use penstock_spec::nvme::{Cqe, Fuse, NvmOpcode, Psdt, Sqe, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::payload::EXTRA_BYTES;
use crate::queue::NsParams;
use crate::status::{Verdict, judge};

/// A command and its data.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) sqe: Sqe,
    pub(super) transfer: Transfer,
    /// Sent in place of the I/O's buffers.
    pub(super) extra: Option<[u8; EXTRA_BYTES]>,
}

/// The command that does `io`; of a compare-and-write, the compare.
#[inline]
pub(super) fn command_of(io: &Io, ns: NsParams) -> Command {
    let (lba, blocks) = (io.lba.0, io.blocks);
    let len = blocks.checked_shl(ns.block_shift).unwrap_or(0);
    let fua = RwControl(0).with_fua(io.flags.contains(IoFlags::FUA));
    let plain = |sqe, transfer| Command { sqe, transfer, extra: None };
    let rw = |opcode, transfer| plain(command::rw(opcode, ns.nsid, lba, blocks, fua), transfer);
    match io.op {
        Op::Read => rw(NvmOpcode::READ, Transfer::Read(len)),
        Op::Write => rw(NvmOpcode::WRITE, Transfer::Write(len)),
        Op::Compare => rw(NvmOpcode::COMPARE, Transfer::Write(len)),
        Op::CompareAndWrite => {
            let mut sqe = command::rw(NvmOpcode::COMPARE, ns.nsid, lba, blocks, RwControl(0));
            sqe.set_fuse(Fuse::First);
            plain(sqe, Transfer::Write(len))
        }
        Op::WriteZeroes => {
            let deallocate = ns.deallocates_zeroes && !io.flags.contains(IoFlags::KEEP_ALLOCATED);
            let control = fua.with_deac(deallocate);
            plain(command::rw(NvmOpcode::WRITE_ZEROES, ns.nsid, lba, blocks, control), Transfer::None)
        }
        Op::Flush | Op::Reset => plain(command::flush(ns.nsid), Transfer::None),
        Op::Unmap => {
            let range = DsmRange { len_blocks: U32::new(blocks), slba: U64::new(lba), ..DsmRange::default() };
            with_extra(command::deallocate(ns.nsid, 1), range.as_bytes())
        }
        Op::Copy => {
            let nlb0 = U16::new(u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX));
            let range = CopyRange0 { slba: U64::new(io.src_lba.0), nlb0, ..CopyRange0::default() };
            let mut sqe = crate::command::copy(ns.nsid, lba, 1, io.flags.contains(IoFlags::FUA));
            sqe.set_psdt(Psdt::SglMptrContiguous);
            with_extra(sqe, range.as_bytes())
        }
    }
}

/// The second half of a compare-and-write.
pub(super) fn fused_write(io: &Io, ns: NsParams) -> Command {
    let fua = RwControl(0).with_fua(io.flags.contains(IoFlags::FUA));
    let mut sqe = command::rw(NvmOpcode::WRITE, ns.nsid, io.lba.0, io.blocks, fua);
    sqe.set_fuse(Fuse::Second);
    let len = io.blocks.checked_shl(ns.block_shift).unwrap_or(0);
    Command { sqe, transfer: Transfer::Write(len), extra: None }
}

/// A read of the blocks of `io`, to see where they differ.
pub(super) fn read_back(io: &Io, ns: NsParams) -> Command {
    let len = io.blocks.checked_shl(ns.block_shift).unwrap_or(0);
    Command { sqe: command::read(ns.nsid, io.lba.0, io.blocks), transfer: Transfer::Read(len), extra: None }
}

fn with_extra(sqe: Sqe, bytes: &[u8]) -> Command {
    let mut extra = [0; EXTRA_BYTES];
    if let Some(place) = extra.get_mut(..bytes.len()) {
        place.copy_from_slice(bytes);
    }
    let len = u32::try_from(bytes.len()).unwrap_or(0);
    Command { sqe, transfer: Transfer::Write(len), extra: Some(extra) }
}

/// What becomes of an I/O whose command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is through.
    Ended(IoStatus),
    /// The same command may succeed later on the same path; the number of the Command Retry Delay (0: none).
    Retry(u8, IoStatus),
    /// The namespace is in this state by this path; another path may serve.
    Ana(AnaState),
    /// Something between host and namespace failed; another path may serve, or this one later.
    Path,
    /// By this path there is no such namespace (any more).
    NoNamespace,
}

/// What `cqe` means for an I/O that does `op`.
#[inline]
pub(super) fn outcome(op: Op, cqe: &Cqe) -> Outcome {
    let status = cqe.status();
    if status.is_success() {
        return Outcome::Ended(IoStatus::Success);
    }
    failure(op, cqe, status)
}

#[cold]
fn failure(op: Op, cqe: &Cqe, status: Status) -> Outcome {
    const ANA: [(Status, AnaState); 3] = [
        (Status::ANA_PERSISTENT_LOSS, AnaState::PERSISTENT_LOSS),
        (Status::ANA_INACCESSIBLE, AnaState::INACCESSIBLE),
        (Status::ANA_TRANSITION, AnaState::CHANGE),
    ];
    if let Some((_, state)) = ANA.iter().find(|(code, _)| code.is(status)) {
        return Outcome::Ana(*state);
    }
    if status.sct() == Sct::PATH || Status::ABORTED_SQ_DELETION.is(status) {
        return Outcome::Path;
    }
    if Status::INVALID_NAMESPACE_OR_FORMAT.is(status) {
        return Outcome::NoNamespace;
    }
    match judge(op, cqe) {
        Verdict::Ended(status) => Outcome::Ended(status),
        Verdict::Retry(delay, meaning) => Outcome::Retry(delay, meaning),
    }
}

#[cfg(test)]
mod tests {
    use penstock_bdev::Lba;

    use super::*;

    const NS: NsParams =
        NsParams { nsid: 3, block_shift: 12, copy_range_blocks: 128, deallocates_zeroes: true };

    fn of(op: Op, flags: IoFlags) -> Command {
        let mut io = Io::boxed();
        io.set(1, op, flags, Lba(7), 16);
        io.src_lba = Lba(99);
        command_of(&io, NS)
    }

    #[test]
    fn each_operation_is_a_command_by_sgl_with_the_data_that_it_moves() {
        let cases = [
            (Op::Read, 0x02, Transfer::Read(65_536)),
            (Op::Write, 0x01, Transfer::Write(65_536)),
            (Op::Compare, 0x05, Transfer::Write(65_536)),
            (Op::CompareAndWrite, 0x05, Transfer::Write(65_536)),
            (Op::WriteZeroes, 0x08, Transfer::None),
            (Op::Flush, 0x00, Transfer::None),
            (Op::Unmap, 0x09, Transfer::Write(16)),
            (Op::Copy, 0x19, Transfer::Write(32)),
        ];
        for (op, opcode, transfer) in cases {
            let command = of(op, IoFlags::NONE);
            assert_eq!((command.sqe.opc, command.transfer, command.sqe.nsid.get()), (opcode, transfer, 3));
            assert_eq!(command.sqe.psdt(), Psdt::SglMptrContiguous, "{op:?}");
        }
        assert_ne!(of(Op::Write, IoFlags::FUA).sqe.cdw12, of(Op::Write, IoFlags::NONE).sqe.cdw12);
        let keep = of(Op::WriteZeroes, IoFlags::KEEP_ALLOCATED);
        assert_ne!(keep.sqe.cdw12, of(Op::WriteZeroes, IoFlags::NONE).sqe.cdw12);
    }

    #[test]
    fn statuses_of_the_path_send_an_io_elsewhere_and_others_end_it() {
        let of = |status| outcome(Op::Read, &Cqe::new(0, 0, status));
        assert_eq!(of(Status::ANA_INACCESSIBLE), Outcome::Ana(AnaState::INACCESSIBLE));
        assert_eq!(of(Status::ANA_TRANSITION.with_dnr()), Outcome::Ana(AnaState::CHANGE));
        assert_eq!(of(Status::ABORTED_BY_HOST), Outcome::Path);
        assert_eq!(of(Status::INTERNAL_PATH_ERROR), Outcome::Path);
        assert_eq!(of(Status::ABORTED_SQ_DELETION), Outcome::Path);
        assert_eq!(of(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()), Outcome::NoNamespace);
        assert_eq!(of(Status::UNRECOVERED_READ_ERROR), Outcome::Ended(IoStatus::ReadError));
        assert_eq!(of(Status::NAMESPACE_NOT_READY.with_crd(1)), Outcome::Retry(1, IoStatus::NotReady));
        assert_eq!(of(Status::NAMESPACE_NOT_READY.with_dnr()), Outcome::Ended(IoStatus::NotReady));
    }
}
