//! Failed commands of I/O queues, on their way to the error log of their controller.
//!
//! Only commands that fail come here. What fails faster than the messages go is left out: the log keeps the newest few
//! anyway, and a host that sends rubbish must not fill the mailboxes.

use std::sync::Arc;

use penstock_bdev::{Io, Op};
use penstock_spec::nvme::{NvmOpcode, Sqe, Status};

use super::Group;
use super::core::{Core, NO_CHAN};
use super::join::Msg;
use crate::controller::{CommandError, CtrlShared};
use crate::qpair::{IoQueue, Link};
use crate::tcp::req::{Dir, Req, ReqKind};

/// Failures of one turn that are told at most.
const FAILURES_MAX: usize = 64;
/// With so many messages waiting for other reactors, failures are not told.
const OUTBOX_MAX: usize = 256;

/// A failed command and the controller that it belongs to.
#[derive(Debug)]
pub(crate) struct Failure {
    owner: usize,
    controller: u32,
    shared: Arc<CtrlShared>,
    error: CommandError,
}

impl Core {
    /// A command of an I/O queue is refused before anything was done.
    #[cold]
    pub(super) fn refused(&mut self, queue: &IoQueue, sqe: &Sqe, status: Status) {
        let has_lba = matches!(
            NvmOpcode(sqe.opc),
            NvmOpcode::READ
                | NvmOpcode::WRITE
                | NvmOpcode::COMPARE
                | NvmOpcode::WRITE_ZEROES
                | NvmOpcode::VERIFY
                | NvmOpcode::COPY
        );
        let lba = u64::from(sqe.cdw10.get()) | (u64::from(sqe.cdw11.get()) << 32);
        let (opc, nsid, lba) = (sqe.opc, sqe.nsid.get(), if has_lba { lba } else { 0 });
        self.note(queue, CommandError { sqid: queue.qid, cid: sqe.cid.get(), opc, nsid, lba, status });
    }

    /// A command of an I/O queue has failed. `io`: where it failed.
    #[cold]
    pub(super) fn failed(&mut self, link: &Link, req: &Req, io: Option<&Io>, status: Status) {
        let Link::Io(queue) = link else { return };
        let (opcode, chan) = match req.kind {
            ReqKind::Io { chan } if req.dir == Dir::None && io.is_some_and(|io| io.op == Op::Read) => {
                (NvmOpcode::VERIFY, chan)
            }
            ReqKind::Io { chan } => (io.map_or(NvmOpcode(0), |io| opcode(io.op)), chan),
            ReqKind::Ranges { chan, .. } => (NvmOpcode::DATASET_MANAGEMENT, chan),
            ReqKind::Copy { chan, .. } => (NvmOpcode::COPY, chan),
            _ => (NvmOpcode::FLUSH, NO_CHAN),
        };
        let nsid = self.subsystem(queue.subsystem).and_then(|subsystem| subsystem.nsid_of(chan)).unwrap_or(0);
        let lba = io.map_or(0, |io| io.lba.0);
        self.note(queue, CommandError { sqid: queue.qid, cid: req.cid, opc: opcode.0, nsid, lba, status });
    }

    fn note(&mut self, queue: &IoQueue, error: CommandError) {
        if self.failures.len() < FAILURES_MAX {
            let IoQueue { owner, controller, .. } = *queue;
            self.failures.push(Failure { owner, controller, shared: Arc::clone(&queue.shared), error });
        }
    }
}

impl Group {
    /// Tells the controllers of the failures since the last call.
    #[cold]
    pub(super) fn tell_failures(&mut self) {
        for Failure { owner, controller, shared, error } in std::mem::take(&mut self.core.failures) {
            if self.outbox.len() < OUTBOX_MAX {
                self.post(owner, Msg::Failed { controller, shared, error });
            }
        }
    }

    /// A command of an I/O queue of a controller of this reactor has failed.
    pub(super) fn failed(&mut self, controller: u32, shared: &Arc<CtrlShared>, error: &CommandError) {
        let found = self.associations.get_mut(controller as usize).and_then(Option::as_mut);
        if let Some(association) = found.filter(|a| Arc::ptr_eq(a.controller.shared(), shared)) {
            association.controller.record_error(error);
        }
    }
}

/// The command that such an I/O comes from.
fn opcode(op: Op) -> NvmOpcode {
    match op {
        Op::Read => NvmOpcode::READ,
        Op::Write => NvmOpcode::WRITE,
        Op::Flush => NvmOpcode::FLUSH,
        Op::Unmap => NvmOpcode::DATASET_MANAGEMENT,
        Op::WriteZeroes => NvmOpcode::WRITE_ZEROES,
        Op::Compare => NvmOpcode::COMPARE,
        Op::CompareAndWrite => NvmOpcode::WRITE,
        _ => NvmOpcode(0),
    }
}
