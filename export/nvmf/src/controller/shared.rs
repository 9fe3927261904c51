//! What a controller shares with its I/O queues on other reactors: atomics only.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use penstock_bdev::reservation::{HostId, RegistrantId};
use penstock_reactor::Tick;
use penstock_spec::nvmf::Nqn;

use crate::transport_options::IO_QPAIRS_MAX;

/// Bits for queue identifiers 1..=[`IO_QPAIRS_MAX`]; bit 0 stands for the admin queue and is never set.
const WORDS: usize = IO_QPAIRS_MAX as usize / 64 + 1;

/// State of one controller that its I/O queues look at.
#[derive(Debug)]
pub struct CtrlShared {
    cntlid: u16,
    hostnqn: Nqn,
    /// Commands are not executed from then on, in nanoseconds of the reactors' clock.
    lease_ns: AtomicU64,
    host: RegistrantId,
    alive: AtomicBool,
    ready: AtomicBool,
    traffic: AtomicBool,
    queues: [AtomicU64; WORDS],
}

impl CtrlShared {
    /// A host's controller that lives and is not enabled.
    #[must_use]
    pub fn new(cntlid: u16, hostnqn: Nqn, hostid: [u8; 16]) -> Self {
        Self {
            cntlid,
            hostnqn,
            lease_ns: AtomicU64::new(u64::MAX),
            host: RegistrantId { host: HostId::Nvme(hostid), port: 0 },
            alive: AtomicBool::new(true),
            ready: AtomicBool::new(false),
            traffic: AtomicBool::new(false),
            queues: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    /// The controller's identifier.
    #[must_use]
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// Whether it is that host's.
    #[must_use]
    pub fn is_host(&self, hostnqn: &Nqn, hostid: [u8; 16]) -> bool {
        self.host.host == HostId::Nvme(hostid) && self.hostnqn == *hostnqn
    }

    /// Whether both are the same host's.
    #[must_use]
    pub fn has_host_of(&self, other: &Self) -> bool {
        self.host == other.host && self.hostnqn == other.hostnqn
    }

    /// Whether its host may have taken it for dead, so that nothing of it may be executed any more. The keep-alive timer
    /// tells the controller's own reactor a little later, or much later where that reactor stood still.
    #[inline]
    #[must_use]
    pub fn is_forsaken(&self, now: Tick) -> bool {
        now.as_ns() > self.lease_ns.load(Ordering::Relaxed)
    }

    pub(super) fn set_lease(&self, until: Tick) {
        self.lease_ns.store(until.as_ns(), Ordering::Relaxed);
    }

    /// The host, as reservations know it.
    #[inline]
    #[must_use]
    pub fn host(&self) -> &RegistrantId {
        &self.host
    }

    /// Whether the association exists; once false, for ever, and every connection of it is to be closed.
    #[inline]
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Ends the association.
    pub fn kill(&self) {
        self.ready.store(false, Ordering::Release);
        self.alive.store(false, Ordering::Release);
    }

    /// CC.EN, CSTS.RDY, and no shutdown: I/O queues may be connected and used.
    #[inline]
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready && self.is_alive(), Ordering::Release);
    }

    /// Says that a command has come; once per poll turn is enough.
    #[inline]
    pub fn note_traffic(&self) {
        if !self.traffic.load(Ordering::Relaxed) {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a command has come since the last call.
    pub(super) fn take_traffic(&self) -> bool {
        self.traffic.swap(false, Ordering::Relaxed)
    }

    /// Takes an I/O queue identifier; false where it is 0, too large, or connected already.
    #[must_use]
    pub fn claim_queue(&self, qid: u16) -> bool {
        let Some((word, bit)) = self.place(qid) else { return false };
        word.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Gives an I/O queue identifier back, once its connection is closed and none of its commands is under way.
    pub fn release_queue(&self, qid: u16) {
        if let Some((word, bit)) = self.place(qid) {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// I/O queues that are connected.
    #[must_use]
    pub fn queues(&self) -> u32 {
        self.queues.iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum()
    }

    /// Identifiers of the I/O queues that are connected, in increasing order.
    pub fn queue_ids(&self) -> impl Iterator<Item = u16> + '_ {
        let taken =
            |qid: u16| self.place(qid).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0);
        (1..=IO_QPAIRS_MAX).filter(move |qid| taken(*qid))
    }

    fn place(&self, qid: u16) -> Option<(&AtomicU64, u64)> {
        if qid == 0 || qid > IO_QPAIRS_MAX {
            return None;
        }
        let word = self.queues.get(usize::from(qid / 64))?;
        Some((word, 1 << (qid % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_identifier_is_taken_once() {
        let shared = CtrlShared::new(1, Nqn::discovery(), [1; 16]);
        for qid in 1..=IO_QPAIRS_MAX {
            assert!(shared.claim_queue(qid));
            assert!(!shared.claim_queue(qid));
        }
        assert!(!shared.claim_queue(0) && !shared.claim_queue(IO_QPAIRS_MAX + 1));
        assert_eq!(shared.queues(), u32::from(IO_QPAIRS_MAX));
        shared.release_queue(IO_QPAIRS_MAX);
        assert!(shared.claim_queue(IO_QPAIRS_MAX));
    }
}
