//! What the fuzz target does with the memory of a hostile guest; the corpus is replayed by the ordinary tests.

use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::Sg;
use penstock_spec::virtio::queue::packed;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::memory::{GuestMap, Held, Loan, Region};
use crate::request::{self, Geometry, Kind};
use crate::ring::{Chain, InflightArea, Ring, RingAddresses, RingSetup, region_bytes};

const GPA: u64 = 0x1000;
const USER: u64 = 0x5000_0000;
const MEMORY_BYTES: u64 = 64 << 10;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x1800;
/// Chains taken at most.
const CHAINS_MAX: usize = 64;

/// Memory of a guest, with its rings and, where a bit says so, its inflight region: the machine must take requests out of it
/// or call it broken, and always come to an end. The first bytes say which kind of ring.
pub fn ring(bytes: &[u8]) {
    let Some((&[flags, order, low, high], image)) = bytes.split_first_chunk::<4>() else { return };
    let is = |bit: u8| flags & 1 << bit != 0;
    let Ok(region) = Region::private(GPA, MEMORY_BYTES, USER) else { return };
    let Ok(map) = GuestMap::new(vec![region]).map(Arc::new) else { return };
    let len = usize::try_from(MEMORY_BYTES).unwrap_or(0);
    let Some(memory) = map.window(GPA, len, 8) else { return };
    for (at, word) in (0..len).step_by(8).zip(image.chunks(8)) {
        let mut whole = [0; 8];
        whole.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
        memory.store_u64(at, u64::from_le_bytes(whole));
    }
    let size = 1_u16 << (order % 8);
    let wrap = u32::from(packed::WRAP);
    let base = u32::from(u16::from_le_bytes([low, high]));
    let inflight = is(3).then(|| inflight(is(0), size, image)).flatten();
    let setup = RingSetup {
        packed: is(0),
        size,
        addresses: RingAddresses { desc: USER, avail: USER + AVAIL, used: USER + USED },
        base: if is(0) { base | wrap | wrap << 16 } else { base },
        event_idx: is(1),
        indirect: is(2),
        inflight,
    };
    let Ok(mut ring) = Ring::new(&map, setup) else { return };
    let geometry = Geometry { block_bytes: if is(4) { 4096 } else { 512 }, discards: true, zeroes: true };
    let (held, mut chain, mut list, mut loan) =
        (Rc::new(Held::new(&map)), Chain::new(), Sg::new(), Loan::default());
    for _ in 0..CHAINS_MAX {
        let Ok(true) = ring.pop(&held, &mut chain) else { break };
        loan.begin(&held);
        let parsed = request::parse(&chain, &loan, &mut list, geometry);
        if let Ok(parsed) = &parsed {
            if let Kind::Ranges { op, count } = parsed.kind {
                for index in 0..count {
                    request::range_at(&list, index, op, geometry).ok();
                }
            }
            assert!(held.write_byte(parsed.status_at, 0), "a status byte is in memory");
        }
        loan.end(&mut list);
        if parsed.is_err() {
            break;
        }
        ring.push(chain.head, 1);
        ring.wants_signal();
        ring.set_kicks(is(5));
    }
    ring.base();
}

fn inflight(packed: bool, size: u16, image: &[u8]) -> Option<InflightArea> {
    let bytes = region_bytes(packed, size);
    let file = memfd_create("inflight", MemfdFlags::CLOEXEC).ok()?;
    let image = image.get(image.len().saturating_sub(bytes)..).unwrap_or_default();
    rustix::io::pwrite(&file, image, 0).ok()?;
    ftruncate(&file, u64::try_from(bytes).ok()?).ok()?;
    InflightArea::map(File::from(file), 0, packed, size, 0).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_rings_passes() {
        let dir = format!("{}/../../fuzz/corpus/vhost_ring", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for file in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir}: {error}")) {
            super::ring(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }
}
