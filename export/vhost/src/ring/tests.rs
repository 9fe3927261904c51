use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::rc::Rc;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::driver::{DATA, Driver, GPA, USER};
use super::*;

fn read(addr: u64, len: u32) -> Segment {
    Segment { addr, len, writable: false }
}

fn write(addr: u64, len: u32) -> Segment {
    Segment { addr, len, writable: true }
}

fn inflight_file(packed: bool, size: u16) -> File {
    let file = memfd_create("inflight", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, u64::try_from(region_bytes(packed, size)).unwrap()).unwrap();
    File::from(file)
}

fn area(file: &File, packed: bool, size: u16) -> InflightArea {
    InflightArea::map(file.try_clone().unwrap(), 0, packed, size, 0).unwrap()
}

/// What happens next, in a test of chance.
#[derive(Debug, Clone)]
enum Step {
    Offer { segments: Vec<(u64, u32, bool)>, indirect: bool },
    Pop,
    Push { which: usize, written: u32 },
    TakeUsed,
    Sleep,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let segment = (0..0x1000_u64, 1..70_000_u32, any::<bool>());
    let offer = (proptest::collection::vec(segment, 1..6), any::<bool>())
        .prop_map(|(segments, indirect)| Step::Offer { segments, indirect });
    prop_oneof![
        4 => offer,
        4 => Just(Step::Pop),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(which, written)| Step::Push { which, written }),
        3 => Just(Step::TakeUsed),
        1 => Just(Step::Sleep),
        1 => Just(Step::Crash),
    ]
}

/// The device, a driver, and what must be so between them.
struct Model {
    driver: Driver,
    ring: Ring,
    held: Rc<Held>,
    chain: Chain,
    file: File,
    packed: bool,
    size: u16,
    /// Offered and not taken, by ID.
    offered: VecDeque<(u16, Vec<Segment>)>,
    /// Taken and not given back, in order.
    taken: Vec<(Head, Vec<Segment>)>,
    /// Given back and not seen by the driver: ID to bytes.
    used: VecDeque<(u16, u32)>,
}

impl Model {
    fn new(packed: bool, size: u16, event_idx: bool) -> Self {
        let driver = Driver::new(packed, size, event_idx);
        let file = inflight_file(packed, size);
        let mut setup = driver.setup();
        setup.inflight = Some(area(&file, packed, size));
        let ring = Ring::new(&driver.map, setup).unwrap();
        let held = Rc::new(Held::new(&driver.map));
        let chain = Chain::new();
        let (offered, taken, used) = (VecDeque::new(), Vec::new(), VecDeque::new());
        Self { driver, ring, held, chain, file, packed, size, offered, taken, used }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Offer { segments, indirect } => {
                let mut segments: Vec<Segment> = segments
                    .into_iter()
                    .map(|(at, len, writable)| Segment { addr: GPA + DATA + at, len, writable })
                    .collect();
                segments.sort_by_key(|segment| segment.writable);
                if let Some(id) = self.driver.offer(&segments, indirect) {
                    self.offered.push_back((id, segments));
                }
            }
            Step::Pop => self.pop(),
            Step::Push { which, written } => self.push(which, written),
            Step::TakeUsed => assert_eq!(self.driver.take_used(), self.used.pop_front()),
            Step::Sleep => self.sleep(),
            Step::Crash => self.crash(),
        }
    }

    fn pop(&mut self) {
        let found = self.ring.pop(&self.held, &mut self.chain).unwrap();
        let expected = self.offered.pop_front();
        assert_eq!(found, expected.is_some());
        if let Some((id, segments)) = expected {
            assert_eq!((self.chain.head.id, &self.chain.segments), (id, &segments));
            self.taken.push((self.chain.head, segments));
        }
    }

    /// Gives one back. A driver that waits for it is told.
    fn push(&mut self, which: usize, written: u32) {
        if self.taken.is_empty() {
            return;
        }
        let waits = self.used.is_empty();
        if waits {
            self.driver.set_interrupts(true);
        }
        let (head, _) = self.taken.remove(which % self.taken.len());
        self.ring.push(head, written);
        self.used.push_back((head.id, written));
        let told = self.ring.wants_signal();
        assert!(told || !waits, "a driver that waits is told");
        self.driver.set_interrupts(false);
    }

    /// The device sleeps only when it would be kicked for the next chain.
    fn sleep(&mut self) {
        self.driver.wants_kick();
        let has_work = self.ring.set_kicks(true);
        assert_eq!(has_work, !self.offered.is_empty());
        let segments = [read(GPA + DATA, 16), write(GPA + DATA, 1)];
        if let Some(id) = self.driver.offer(&segments, false) {
            self.offered.push_back((id, segments.to_vec()));
            assert!(has_work || self.driver.wants_kick(), "who sleeps is kicked");
        }
        self.ring.set_kicks(false);
    }

    /// The device forgets everything but the inflight region; what was taken comes again, in the same order.
    fn crash(&mut self) {
        let mut setup = self.driver.setup();
        setup.inflight = Some(area(&self.file, self.packed, self.size));
        self.ring = Ring::new(&self.driver.map, setup).unwrap();
        for (before, segments) in &mut self.taken {
            assert!(self.ring.pop(&self.held, &mut self.chain).unwrap());
            assert_eq!((self.chain.head.id, &self.chain.segments), (before.id, &*segments));
            *before = self.chain.head;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_driver_gets_back_what_it_offered_whatever_happens_in_between(
        packed: bool,
        event_idx: bool,
        order in 1..6_u32,
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut model = Model::new(packed, 1 << order, event_idx);
        for step in steps {
            model.run(step);
        }
    }

    #[test]
    fn a_packed_ring_need_not_be_a_power_of_two(
        size in 1..40_u16,
        event_idx: bool,
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut model = Model::new(true, size, event_idx);
        for step in steps {
            model.run(step);
        }
    }

    /// Bytes of chance in the place of the rings: a chain or an error, and always an end.
    #[test]
    fn rings_of_garbage_end_in_an_error_or_a_chain(
        packed: bool,
        order in 0..6_u32,
        seed in proptest::collection::vec(any::<u64>(), 1..64),
    ) {
        garbage(packed, 1 << order, &seed);
    }
}

fn garbage(packed: bool, size: u16, seed: &[u64]) {
    let driver = Driver::new(packed, size, true);
    for (at, word) in (0..0xc000).step_by(8).zip(seed.iter().cycle()) {
        driver.memory().store_u64(at, word.rotate_left(u32::try_from(at % 61).unwrap()));
    }
    let Ok(mut ring) = Ring::new(&driver.map, driver.setup()) else { return };
    let (held, mut chain) = (Held::new(&driver.map), Chain::new());
    for _ in 0..2 * usize::from(size) {
        match ring.pop(&held, &mut chain) {
            Ok(true) => ring.push(chain.head, 1),
            Ok(false) | Err(_) => break,
        }
        ring.wants_signal();
        ring.set_kicks(true);
    }
}

fn split_ring(size: u16) -> (Driver, Ring, Held, Chain) {
    let driver = Driver::new(false, size, false);
    let ring = Ring::new(&driver.map, driver.setup()).unwrap();
    let held = Held::new(&driver.map);
    (driver, ring, held, Chain::new())
}

fn descriptor(driver: &Driver, index: usize, addr: u64, len: u32, flags: u16, next: u16) {
    let at = 16 * index;
    driver.memory().store_u64(at, addr);
    driver.memory().store_u32(at + 8, len);
    driver.memory().store_u16(at + 12, flags, std::sync::atomic::Ordering::Relaxed);
    driver.memory().store_u16(at + 14, next, std::sync::atomic::Ordering::Relaxed);
}

fn make_available(driver: &Driver, head: u16, idx: u16) {
    driver.memory().store_u16(0x8004, head, std::sync::atomic::Ordering::Relaxed);
    driver.memory().store_u16(0x8002, idx, std::sync::atomic::Ordering::Release);
}

#[test]
fn a_loop_of_descriptors_is_found() {
    let (driver, mut ring, held, mut chain) = split_ring(8);
    descriptor(&driver, 0, GPA, 16, 1, 1);
    descriptor(&driver, 1, GPA, 16, 1, 0);
    make_available(&driver, 0, 1);
    assert_eq!(ring.pop(&held, &mut chain), Err(RingError::Loop { max: 8 }));
}

#[test]
fn numbers_beyond_the_table_are_found() {
    let (driver, mut ring, held, mut chain) = split_ring(8);
    make_available(&driver, 8, 1);
    assert_eq!(ring.pop(&held, &mut chain), Err(RingError::Descriptor { index: 8, size: 8 }));
    let (driver, mut ring, held, mut chain) = split_ring(8);
    descriptor(&driver, 0, GPA, 16, 1, 900);
    make_available(&driver, 0, 1);
    assert_eq!(ring.pop(&held, &mut chain), Err(RingError::Descriptor { index: 900, size: 8 }));
    let (driver, mut ring, held, mut chain) = split_ring(8);
    make_available(&driver, 0, 9);
    assert_eq!(ring.pop(&held, &mut chain), Err(RingError::AvailIndex { from: 0, to: 9, size: 8 }));
}

#[test]
fn wrong_indirect_tables_are_found() {
    let table = GPA + DATA;
    for (len, inner) in [(0, 0), (15, 0), (16 * 2000, 0), (16, 4)] {
        let (driver, mut ring, held, mut chain) = split_ring(8);
        descriptor(&driver, 0, table, len, 4, 0);
        descriptor(&driver, usize::try_from(DATA / 16).unwrap(), GPA, 16, inner, 0);
        make_available(&driver, 0, 1);
        let error = ring.pop(&held, &mut chain).unwrap_err();
        assert!(matches!(error, RingError::Indirect { .. }), "{len} {inner}: {error}");
    }
    // A loop inside a table; a table outside of memory.
    let (driver, mut ring, held, mut chain) = split_ring(8);
    descriptor(&driver, 0, table, 32, 4, 0);
    descriptor(&driver, usize::try_from(DATA / 16).unwrap(), GPA, 16, 1, 0);
    make_available(&driver, 0, 1);
    assert_eq!(ring.pop(&held, &mut chain), Err(RingError::Loop { max: 2 }));
    let (driver, mut ring, held, mut chain) = split_ring(8);
    descriptor(&driver, 0, u64::MAX - 8, 32, 4, 0);
    make_available(&driver, 0, 1);
    assert!(matches!(ring.pop(&held, &mut chain), Err(RingError::Memory { .. })));
}

#[test]
fn what_is_read_behind_what_is_written_is_refused() {
    for packed in [false, true] {
        let mut driver = Driver::new(packed, 8, false);
        let mut ring = Ring::new(&driver.map, driver.setup()).unwrap();
        driver.offer(&[write(GPA, 1), read(GPA, 16)], false).unwrap();
        assert_eq!(ring.pop(&Held::new(&driver.map), &mut Chain::new()), Err(RingError::Order));
    }
}

#[test]
fn rings_outside_of_memory_or_unaligned_are_no_rings() {
    for packed in [false, true] {
        let driver = Driver::new(packed, 8, false);
        for addr in [0, USER - 16, USER + (16 << 20) - 32, USER + 8, u64::MAX - 15] {
            let mut setup = driver.setup();
            setup.addresses.desc = addr;
            assert!(matches!(Ring::new(&driver.map, setup), Err(RingError::Memory { .. })), "{addr:#x}");
            let mut setup = driver.setup();
            setup.addresses.used = addr + 1;
            assert!(matches!(Ring::new(&driver.map, setup), Err(RingError::Memory { .. })), "{addr:#x}");
        }
    }
}

/// The crash is between the store that gives a chain back and the one that strikes it out.
#[test]
fn a_chain_that_was_given_back_at_the_crash_is_not_done_again() {
    for packed in [false, true] {
        let mut driver = Driver::new(packed, 8, false);
        let file = inflight_file(packed, 8);
        let mut setup = driver.setup();
        setup.inflight = Some(area(&file, packed, 8));
        let mut ring = Ring::new(&driver.map, setup).unwrap();
        let (held, mut chain) = (Held::new(&driver.map), Chain::new());
        let ids: Vec<u16> =
            (0..3).map(|_| driver.offer(&[read(GPA, 16), write(GPA, 1)], false).unwrap()).collect();
        let mut heads = Vec::new();
        while ring.pop(&held, &mut chain).unwrap() {
            heads.push(chain.head);
        }
        ring.push(heads[1], 1);
        // As if the last store had not come to be: the flag of the chain that was given back is set again.
        let again = area(&file, packed, 8);
        again.set_flag_for_test(packed, heads[1].noted_at);
        let mut setup = driver.setup();
        setup.inflight = Some(again);
        let mut ring = Ring::new(&driver.map, setup).unwrap();
        let mut found = Vec::new();
        while ring.pop(&held, &mut chain).unwrap() {
            found.push(chain.head.id);
        }
        assert_eq!(found, [ids[0], ids[2]], "packed: {packed}");
    }
}

#[test]
fn inflight_regions_of_garbage_are_refused_or_harmless() {
    for packed in [false, true] {
        for seed in 0..200_u64 {
            let mut driver = Driver::new(packed, 8, false);
            let file = inflight_file(packed, 8);
            let garbage = area(&file, packed, 8);
            garbage.fill_for_test(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut setup = driver.setup();
            setup.inflight = Some(garbage);
            let Ok(mut ring) = Ring::new(&driver.map, setup) else { continue };
            let (held, mut chain) = (Held::new(&driver.map), Chain::new());
            driver.offer(&[read(GPA, 16)], false);
            for _ in 0..20 {
                match ring.pop(&held, &mut chain) {
                    Ok(true) => ring.push(chain.head, 0),
                    _ => break,
                }
            }
        }
    }
}

#[test]
fn writes_to_the_ring_are_noted_in_the_log() {
    for packed in [false, true] {
        let mut driver = Driver::new(packed, 8, false);
        let mut ring = Ring::new(&driver.map, driver.setup()).unwrap();
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&file, 4096).unwrap();
        let log = Arc::new(DirtyLog::map(file, 0, 4096).unwrap());
        ring.set_log(Some(&log));
        driver.offer(&[read(GPA, 16), write(GPA, 1)], false).unwrap();
        let (held, mut chain) = (Held::new(&driver.map), Chain::new());
        assert!(ring.pop(&held, &mut chain).unwrap());
        assert!(!log.is_marked(GPA) && !log.is_marked(GPA + 0xa000));
        ring.push(chain.head, 1);
        assert_eq!((log.is_marked(GPA), log.is_marked(GPA + 0xa000)), (packed, !packed));
    }
}

/// `virtio-queue`'s own split queue, on the same memory, sees the same chains.
#[test]
fn a_split_ring_yields_what_the_crate_virtio_queue_yields() {
    use virtio_queue::{Queue, QueueT};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    let mut driver = Driver::new(false, 16, false);
    let mut ring = Ring::new(&driver.map, driver.setup()).unwrap();
    let mut expected = Vec::new();
    for count in 1..5_u32 {
        let mut segments: Vec<Segment> =
            (0..count).map(|at| read(GPA + DATA + u64::from(at) * 4096, 512 + at)).collect();
        segments.push(write(GPA + DATA, 1));
        driver.offer(&segments, count % 2 == 0).unwrap();
        expected.push(segments);
    }
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(GPA), 16 << 20)]).unwrap();
    for at in (0..0x4_0000).step_by(8) {
        memory
            .write_obj(driver.memory().load_u64(at), GuestAddress(GPA + u64::try_from(at).unwrap()))
            .unwrap();
    }
    let mut theirs = Queue::new(16).unwrap();
    theirs.try_set_desc_table_address(GuestAddress(GPA)).unwrap();
    theirs.try_set_avail_ring_address(GuestAddress(GPA + 0x8000)).unwrap();
    theirs.try_set_used_ring_address(GuestAddress(GPA + 0xa000)).unwrap();
    theirs.set_ready(true);
    let (held, mut chain) = (Held::new(&driver.map), Chain::new());
    for segments in expected {
        assert!(ring.pop(&held, &mut chain).unwrap());
        assert_eq!(chain.segments, segments);
        let found: Vec<Segment> = theirs
            .pop_descriptor_chain(&memory)
            .unwrap()
            .map(|one| Segment { addr: one.addr().0, len: one.len(), writable: one.is_write_only() })
            .collect();
        assert_eq!(found, segments);
    }
    assert!(!ring.pop(&held, &mut chain).unwrap() && theirs.pop_descriptor_chain(&memory).is_none());
}

#[test]
fn ids_of_chains_are_those_of_the_driver() {
    let mut seen = BTreeMap::new();
    let mut driver = Driver::new(true, 4, false);
    let mut ring = Ring::new(&driver.map, driver.setup()).unwrap();
    let (held, mut chain) = (Held::new(&driver.map), Chain::new());
    for round in 0..20_u32 {
        let id = driver.offer(&[read(GPA, 16), write(GPA, round)], round % 3 == 0).unwrap();
        assert!(ring.pop(&held, &mut chain).unwrap());
        ring.push(chain.head, round);
        assert_eq!(driver.take_used(), Some((id, round)));
        *seen.entry(id).or_insert(0) += 1;
    }
    assert_eq!(ring.base() & 0x7fff, ring.base() >> 16 & 0x7fff);
}
