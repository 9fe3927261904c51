//! The device's side of memory, for a model of one in this process: it reads and writes by address, as DMA does.
//!
//! Only what lies in an arena of the pools is reached; arenas live as long as the process, so no address is ever wild.

use std::ptr;

use penstock_reactor::mem;

/// Memory as a model of a device sees it. Its addresses are this process's.
#[derive(Debug, Default)]
pub struct PeerMemory {
    arenas: Vec<(usize, usize)>,
}

impl PeerMemory {
    /// Copies `to.len()` bytes from `iova`; false, and nothing copied, where that is no memory for data.
    pub fn read(&mut self, iova: u64, to: &mut [u8]) -> bool {
        let Some(from) = self.find(iova, to.len()) else { return false };
        // SAFETY: `find` has checked that the range lies in an arena, which is mapped for ever; the driver tolerates the
        // device's reads, as with DMA.
        unsafe { ptr::copy_nonoverlapping(ptr::with_exposed_provenance(from), to.as_mut_ptr(), to.len()) };
        true
    }

    /// Copies `from` to `iova`; false, and nothing copied, where that is no memory for data.
    pub fn write(&mut self, iova: u64, from: &[u8]) -> bool {
        let Some(to) = self.find(iova, from.len()) else { return false };
        // SAFETY: as in `read`; where the device writes, the driver looks only after the completion.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), ptr::with_exposed_provenance_mut(to), from.len()) };
        true
    }

    fn find(&mut self, iova: u64, len: usize) -> Option<usize> {
        let address = usize::try_from(iova).ok()?;
        let end = address.checked_add(len)?;
        let holds = |arena: &&(usize, usize)| arena.0 <= address && end <= arena.0 + arena.1;
        if self.arenas.iter().find(holds).is_none() {
            self.arenas = mem::arenas().iter().map(|arena| (arena.base, arena.len)).collect();
        }
        self.arenas.iter().find(holds).map(|_| address)
    }
}
