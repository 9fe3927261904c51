//! The model's admin commands.

use penstock_spec::nvme::feature::{Fid, NumberOfQueues};
use penstock_spec::nvme::identify::controller::{OptionalAdmin, OptionalNvm, SglSupport, WriteCache};
use penstock_spec::nvme::identify::{Cns, IdentifyCmd, IdentifyController, IdentifyNamespace};
use penstock_spec::nvme::log::health::SmartLog;
use penstock_spec::nvme::log::{GetLogPageCmd, Lid};
use penstock_spec::nvme::{AdminOpcode, Cqe, Sqe, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::{Inner, Queue};

/// What the model says of itself.
pub(super) fn identify() -> Box<IdentifyController> {
    let mut identify = Box::new(IdentifyController::default());
    identify.vid = U16::new(0x1b36);
    identify.sn.copy_from_slice(b"MODEL0              ");
    identify.mn.copy_from_slice(b"Model of a controller                   ");
    identify.fr.copy_from_slice(b"1.0     ");
    identify.mdts = 7;
    identify.cntlid = U16::new(1);
    identify.oacs = U16::new(OptionalAdmin(0).with_dbcs(true).0);
    identify.acl0 = 3;
    identify.aerl0 = 3;
    identify.sqes = 0x66;
    identify.cqes = 0x44;
    identify.nn = U32::new(1024);
    let oncs = OptionalNvm(0).with_nvmcmps(true).with_nvmdsmsv(true).with_nvmwzsv(true);
    identify.oncs = U16::new(oncs.with_nvmvfys(true).with_nvmcpys(true).0);
    identify.fuses = U16::new(1);
    identify.vwc = WriteCache(0).with_present(true).0;
    identify.acwu0 = U16::new(u16::MAX);
    identify.cdfs = U16::new(1);
    identify.sgls = U32::new(SglSupport(0).with_support(1).0);
    identify.oaes = U32::new(1 << 8);
    identify.crdt[0] = U16::new(1);
    identify
}

impl Inner {
    /// Does an admin command; `None`: it is answered later.
    pub(crate) fn admin(&mut self, sqe: &Sqe) -> Option<Cqe> {
        let status = match AdminOpcode(sqe.opc) {
            AdminOpcode::IDENTIFY => self.identify_command(IdentifyCmd::from_sqe(sqe)),
            AdminOpcode::CREATE_IO_CQ => self.create(sqe, true),
            AdminOpcode::CREATE_IO_SQ => self.create(sqe, false),
            AdminOpcode::SET_FEATURES => return Some(self.set_features(sqe)),
            AdminOpcode::GET_FEATURES => return Some(Cqe::new(0, 0, Status::SUCCESS).with_dw0(1)),
            AdminOpcode::GET_LOG_PAGE => self.log_page(GetLogPageCmd::from_sqe(sqe)),
            AdminOpcode::ABORT => return Some(self.abort(sqe)),
            AdminOpcode::ASYNC_EVENT_REQUEST => return None,
            AdminOpcode::DOORBELL_BUFFER_CONFIG => {
                self.shadows = Some(prps(sqe));
                Status::SUCCESS
            }
            _ => Status::INVALID_OPCODE,
        };
        Some(Cqe::new(0, 0, status))
    }

    fn identify_command(&mut self, cmd: &IdentifyCmd) -> Status {
        let nsid = cmd.nsid.get();
        let (to, _) = prps(cmd.as_sqe());
        let mut page = [0; 4096];
        match cmd.cns {
            Cns::CONTROLLER => page.copy_from_slice(self.identify.as_bytes()),
            Cns::NAMESPACE => {
                let empty = IdentifyNamespace::default();
                let found = self.namespaces.get(&nsid).map_or(&empty, |ns| &*ns.identify);
                page.copy_from_slice(found.as_bytes());
            }
            Cns::ACTIVE_NS_LIST => {
                let listed = self.namespaces.keys().filter(|found| **found > nsid).take(1024);
                for (place, found) in page.chunks_exact_mut(4).zip(listed) {
                    place.copy_from_slice(&found.to_le_bytes());
                }
            }
            Cns::NS_ID_DESCRIPTORS => {
                let Some(ns) = self.namespaces.get(&nsid) else { return Status::INVALID_NAMESPACE_OR_FORMAT };
                page[..4].copy_from_slice(&[3, 16, 0, 0]);
                page[4..20].copy_from_slice(&ns.uuid);
                page[20..25].copy_from_slice(&[4, 1, 0, 0, ns.csi]);
            }
            _ => return Status::INVALID_FIELD,
        }
        self.memory.write(to, &page);
        Status::SUCCESS
    }

    fn create(&mut self, sqe: &Sqe, is_cq: bool) -> Status {
        let (qid, entries) = (sqe.cdw10.get() & 0xffff, (sqe.cdw10.get() >> 16) + 1);
        let (at, _) = prps(sqe);
        let limit = self.faults.queues_max.map_or(u32::MAX, u32::from);
        let queue = usize::try_from(qid).ok().and_then(|qid| self.queues.get_mut(qid));
        let Some(queue) = queue.filter(|_| qid > 0 && qid <= limit) else { return Status::INVALID_QUEUE_ID };
        if entries > u32::from(self.cap.mqes0()) + 1 || sqe.cdw11.get() & 1 == 0 {
            return Status::INVALID_QUEUE_SIZE;
        }
        let entries = u16::try_from(entries).unwrap_or(u16::MAX);
        if is_cq {
            *queue = Queue { cq: at, cq_entries: entries, phase: true, has_cq: true, ..Queue::default() };
        } else if queue.has_cq {
            (queue.sq, queue.sq_entries, queue.has_sq) = (at, entries, true);
        } else {
            return Status::COMPLETION_QUEUE_INVALID;
        }
        Status::SUCCESS
    }

    fn set_features(&mut self, sqe: &Sqe) -> Cqe {
        let ok = Cqe::new(0, 0, Status::SUCCESS);
        if sqe.cdw10.get() & 0xff != u32::from(Fid::NUMBER_OF_QUEUES.0) {
            return ok;
        }
        let most = self.faults.queues_max.unwrap_or(64) - 1;
        let asked = NumberOfQueues(sqe.cdw11.get());
        ok.with_dw0(NumberOfQueues(0).with_nsq0(asked.nsq0().min(most)).with_ncq0(asked.ncq0().min(most)).0)
    }

    fn log_page(&mut self, cmd: &GetLogPageCmd) -> Status {
        let (to, _) = prps(cmd.as_sqe());
        let mut page = vec![0; 4096];
        match cmd.lid {
            Lid::CHANGED_NS_LIST => {
                for (place, nsid) in page.chunks_exact_mut(4).zip(self.changed.drain(..)) {
                    place.copy_from_slice(&nsid.to_le_bytes());
                }
            }
            Lid::SMART_HEALTH => {
                let mut smart =
                    SmartLog { ctemp: U16::new(310), avsp: 100, avspt: 10, ..SmartLog::default() };
                smart.media_errors[..8].copy_from_slice(&self.media_errors.to_le_bytes());
                page[..512].copy_from_slice(smart.as_bytes());
            }
            Lid::ERROR_INFORMATION => {}
            _ => return Status::INVALID_LOG_PAGE,
        }
        let len = usize::try_from(cmd.len_bytes()).unwrap_or(0).min(page.len());
        self.memory.write(to, &page[..len]);
        Status::SUCCESS
    }

    fn abort(&mut self, sqe: &Sqe) -> Cqe {
        let word = sqe.cdw10.get();
        let not_found = Cqe::new(0, 0, Status::SUCCESS).with_dw0(1);
        if self.faults.deaf_to_aborts {
            return not_found;
        }
        let is_it = |pending: &&mut super::Pending| {
            u32::try_from(pending.qid).is_ok_and(|qid| qid == word & 0xffff)
                && u32::from(pending.sqe.cid.get()) == word >> 16
        };
        let Some(found) = self.pending.iter_mut().find(is_it) else { return not_found };
        found.held = false;
        found.cqe = Cqe::new(0, 0, Status::ABORTED_BY_REQUEST);
        self.aborted += 1;
        Cqe::new(0, 0, Status::SUCCESS)
    }
}

/// PRP1 and PRP2.
pub(super) fn prps(sqe: &Sqe) -> (u64, u64) {
    let [first, second]: [U64; 2] = zerocopy::transmute!(sqe.sgl1);
    (first.get(), second.get())
}
