//! Commands that are several I/Os, one after the other: Dataset Management, Copy, a flush of all namespaces.
//!
//! Each end of an I/O comes back to [`Sink::execute`](crate::tcp::conn::Sink::execute), which begins the next here.

use penstock_bdev::{IoFlags, Lba, Op};
use penstock_spec::nvme::Status;

use super::core::{Core, NO_CHAN};
use crate::io_cmd;
use crate::tcp::conn::Exec;
use crate::tcp::req::{Req, ReqId, ReqKind};

const NO_NAMESPACE: Exec = Exec::Done(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());

impl Core {
    /// The next range of a Dataset Management command. What goes beyond DMRSL and DMSL is left as it is: deallocation is
    /// advice, and a host that knows the limits keeps within them.
    pub(super) fn next_range(&mut self, id: ReqId, req: &mut Req) -> Exec {
        let ReqKind::Ranges { chan, count, mut next, mut left } = req.kind else {
            return Exec::Done(Status::INTERNAL_ERROR);
        };
        let Some(known) = self.chan(chan) else { return NO_NAMESPACE };
        let data = req.data(0, req.len).unwrap_or_default();
        if next == 0
            && let Err(status) = io_cmd::check_dsm(data, count, &known.geometry)
        {
            return Exec::Done(status);
        }
        let (mut lba, mut blocks) = (Lba(0), 0);
        while blocks == 0 && next < count && left > 0 {
            let Some(range) = io_cmd::dsm_range(data, next) else {
                return Exec::Done(Status::DATA_TRANSFER_ERROR);
            };
            (lba, blocks) = (range.0, range.1.min(left));
            next += 1;
        }
        if blocks == 0 {
            return Exec::Done(Status::SUCCESS);
        }
        left -= blocks;
        req.kind = ReqKind::Ranges { chan, count, next, left };
        // The data stays with the request in an I/O of its own kind: an unmap has no use for buffers.
        if let Some(io) = req.io.as_mut() {
            io.set(id.tag(), Op::Unmap, IoFlags::NONE, lba, blocks);
        }
        self.submit(chan, id, req)
    }

    /// The next range of a Copy command.
    pub(super) fn next_copy(&mut self, id: ReqId, req: &mut Req) -> Exec {
        let ReqKind::Copy { chan, count, next, to, flags } = req.kind else {
            return Exec::Done(Status::INTERNAL_ERROR);
        };
        let Some(known) = self.chan(chan) else { return NO_NAMESPACE };
        let data = req.data(0, req.len).unwrap_or_default();
        if next == 0
            && let Err(fault) = io_cmd::check_copy(data, count, to, &known.geometry)
        {
            req.result = fault.range;
            return Exec::Done(fault.status);
        }
        if next == count {
            req.result = 0;
            return Exec::Done(Status::SUCCESS);
        }
        let Some((from, blocks)) = io_cmd::copy_range(data, next) else {
            return Exec::Done(Status::DATA_TRANSFER_ERROR);
        };
        // What a failure says: the lowest range that was not copied.
        req.result = next.into();
        let after = Lba(to.0.saturating_add(blocks.into()));
        req.kind = ReqKind::Copy { chan, count, next: next + 1, to: after, flags };
        if let Some(io) = req.io.as_mut() {
            io.set(id.tag(), Op::Copy, flags, to, blocks);
            io.src_lba = from;
        }
        self.submit(chan, id, req)
    }

    /// A flush of the next namespace.
    pub(super) fn next_flush(&mut self, subsystem: u32, id: ReqId, req: &mut Req) -> Exec {
        let ReqKind::FlushAll { next } = req.kind else { return Exec::Done(Status::INTERNAL_ERROR) };
        let found = self.subsystem(subsystem).and_then(|subsystem| {
            (next..=u32::try_from(subsystem.chans.len()).unwrap_or(0))
                .find(|nsid| subsystem.chan(*nsid) != NO_CHAN)
        });
        let Some(nsid) = found else { return Exec::Done(Status::SUCCESS) };
        let chan = self.subsystem(subsystem).map_or(NO_CHAN, |subsystem| subsystem.chan(nsid));
        req.kind = ReqKind::FlushAll { next: nsid + 1 };
        let mut io = req.io.take().unwrap_or_else(|| self.spare_io());
        io.set(id.tag(), Op::Flush, IoFlags::NONE, Lba(0), 0);
        req.io = Some(io);
        self.submit(chan, id, req)
    }
}
