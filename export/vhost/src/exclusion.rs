//! What reservations forbid the guests of a disk.
//!
//! A reservation is made by hosts that register (NVMe, SCSI). virtio-blk has no such command, so a guest is a host that is
//! never registered and never holds anything: what a reservation keeps from such hosts, by whichever protocol they come,
//! is kept from all guests of the disk alike.

use std::sync::atomic::{AtomicU8, Ordering};

use penstock_bdev::Op;
use penstock_bdev::reservation::{Access, ReservationView, Standing};

const READS: u8 = 1;
const WRITES: u8 = 2;

/// Set by the control thread, looked at before each I/O.
#[derive(Debug, Default)]
pub(crate) struct Exclusion(AtomicU8);

impl Exclusion {
    /// Takes over what the reservations are now.
    pub(crate) fn set(&self, reservations: &ReservationView) {
        let forbids = |access, bit| if reservations.allows(Standing::default(), access) { 0 } else { bit };
        let bits = forbids(Access::Read, READS) | forbids(Access::Write, WRITES);
        self.0.store(bits, Ordering::Relaxed);
    }

    /// Whether `op` is forbidden. A flush counts as a write, as it does by NVMe and SCSI.
    #[inline]
    pub(crate) fn forbids(&self, op: Op) -> bool {
        let bits = self.0.load(Ordering::Relaxed);
        bits != 0 && bits & if matches!(op, Op::Read | Op::Compare) { READS } else { WRITES } != 0
    }

    /// What is forbidden, in a word.
    pub(crate) fn name(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            0 => "nothing",
            WRITES => "writes",
            _ => "reads and writes",
        }
    }
}
