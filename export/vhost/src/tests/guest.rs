//! A guest with one queue of a disk, and the reactor that serves it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::malloc::Malloc;
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_reactor::clock::VirtualClock;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId};
use penstock_spec::virtio::blk::{RequestType, Status};
use rustix::event::{EventfdFlags, eventfd};

use crate::coalesce::Coalescing;
use crate::exclusion::Exclusion;
use crate::ring::driver::{DATA, Driver, GPA};
use crate::ring::{RingSetup, Segment};
use crate::stats::QueueStats;
use crate::worker::{QueueKey, QueueStart, SessionShared, WorkerCell};

/// Bytes of memory that a request has for itself.
const PLACE: u64 = 0x1_0000;
const STATUS: u64 = 0x10;
const PAYLOAD: u64 = 0x1000;

pub(super) fn malloc(block_bytes: u32) -> Arc<dyn Bdev> {
    let options = serde_json::json!({"name": "m", "num_blocks": 4096, "block_size": block_bytes});
    Malloc::new("disk-of-a-guest", &serde_json::from_value(options).unwrap()).unwrap()
}

/// One reactor, time by hand.
pub(super) struct Host {
    pub(super) reactor: Reactor,
    pub(super) hand: VirtualClock,
    pub(super) worker: Rc<WorkerCell>,
    pub(super) descriptor: Descriptor,
    pub(super) coalescing: Arc<Coalescing>,
    pub(super) exclusion: Arc<Exclusion>,
    sessions: u64,
}

impl Host {
    pub(super) fn new(bdev: Arc<dyn Bdev>) -> Self {
        let (clock, hand) = Clock::simulated();
        let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
        let reactor = Reactor::new(&config).unwrap();
        let worker = WorkerCell::of(reactor.cx());
        let descriptor = Descriptor::unregistered(bdev, OpenMode::ReadWrite);
        Self {
            reactor,
            hand,
            worker,
            descriptor,
            coalescing: Arc::default(),
            exclusion: Arc::default(),
            sessions: 0,
        }
    }

    /// Turns, a microsecond each.
    pub(super) fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.hand.advance_ns(1000);
            self.reactor.turn();
        }
    }

    pub(super) fn guest(&mut self, packed: bool, size: u16) -> Guest {
        let driver = Driver::new(packed, size, true);
        let setup = driver.setup();
        self.guest_with(driver, setup, size)
    }

    fn guest_with(&mut self, driver: Driver, setup: RingSetup, size: u16) -> Guest {
        self.sessions += 1;
        let session = Arc::new(SessionShared::new(
            "test".to_owned(),
            Arc::clone(&self.coalescing),
            Arc::clone(&self.exclusion),
        ));
        let key = QueueKey { session: self.sessions, index: 0 };
        let fd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let (kick, call, err) = (fd(), fd(), fd());
        let stats = Arc::new(QueueStats::default());
        let start = QueueStart {
            key,
            session: Arc::clone(&session),
            descriptor: Some(self.descriptor.clone()),
            controller: 1,
            setup,
            size,
            map: Arc::clone(&driver.map),
            log: None,
            kick: Some(kick.try_clone().unwrap()),
            call: Some(call.try_clone().unwrap()),
            err: Some(err.try_clone().unwrap()),
            enabled: true,
            stats: Arc::clone(&stats),
        };
        self.worker.start(self.reactor.cx(), start).unwrap();
        Guest { driver, session, key, kick, call, err, stats, places: Vec::new() }
    }
}

/// The guest's side of a queue.
pub(super) struct Guest {
    pub(super) driver: Driver,
    pub(super) session: Arc<SessionShared>,
    pub(super) key: QueueKey,
    pub(super) kick: OwnedFd,
    pub(super) call: OwnedFd,
    pub(super) err: OwnedFd,
    pub(super) stats: Arc<QueueStats>,
    /// Which place the request of an ID has.
    places: Vec<u64>,
}

impl Guest {
    /// Where a place begins in the driver's memory.
    fn offset(place: u64) -> u64 {
        DATA + PLACE * place
    }

    /// Bytes at `at` of a place.
    fn write(&self, place: u64, at: u64, bytes: &[u8]) {
        for (index, word) in bytes.chunks(8).enumerate() {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            let to = usize::try_from(Self::offset(place) + at).unwrap() + 8 * index;
            self.driver.memory().store_u64(to, u64::from_le_bytes(whole));
        }
    }

    pub(super) fn payload(&self, place: u64, len: usize) -> Vec<u8> {
        let from = usize::try_from(Self::offset(place) + PAYLOAD).unwrap();
        let words = (0..len.div_ceil(8)).map(|word| self.driver.memory().load_u64(from + 8 * word));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(len);
        bytes
    }

    fn header(&self, place: u64, kind: RequestType, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.0.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(place, 0, &header);
        self.write(place, STATUS, &[0xff; 8]);
    }

    /// Offers a request whose data are `len` bytes; those that it sends are `data`.
    pub(super) fn submit(
        &mut self,
        place: u64,
        kind: RequestType,
        sector: u64,
        len: u32,
        data: &[u8],
    ) -> u16 {
        self.header(place, kind, sector);
        self.write(place, PAYLOAD, data);
        self.resubmit(place, len, data.is_empty())
    }

    /// Offers what a place holds.
    pub(super) fn resubmit(&mut self, place: u64, len: u32, fills: bool) -> u16 {
        let base = GPA + Self::offset(place);
        let header = Segment { addr: base, len: 16, writable: false };
        let half = len / 2 / 512 * 512;
        let data = |at: u32, len: u32| Segment { addr: base + PAYLOAD + u64::from(at), len, writable: fills };
        let status = Segment { addr: base + STATUS, len: 1, writable: true };
        // Data in two pieces where there is enough of them.
        let id = match (len, half) {
            (0, _) => self.driver.offer(&[header, status], place.is_multiple_of(2)),
            (_, 0) => self.driver.offer(&[header, data(0, len), status], place.is_multiple_of(2)),
            _ => self
                .driver
                .offer(&[header, data(0, half), data(half, len - half), status], place.is_multiple_of(2)),
        };
        let id = id.unwrap();
        if self.places.len() <= usize::from(id) {
            self.places.resize(usize::from(id) + 1, 0);
        }
        self.places[usize::from(id)] = place;
        id
    }

    /// The place of a request that has ended, and how it ended.
    pub(super) fn ended(&mut self) -> Option<(u64, Status, u32)> {
        let (id, written) = self.driver.take_used()?;
        let place = self.places[usize::from(id)];
        let at = usize::try_from(Self::offset(place) + STATUS).unwrap();
        let status = self.driver.memory().load_u64(at).to_le_bytes()[0];
        Some((place, Status(status), written))
    }

    /// Does one request.
    pub(super) fn run(
        &mut self,
        host: &mut Host,
        kind: RequestType,
        sector: u64,
        len: u32,
        data: &[u8],
    ) -> (Status, u32) {
        self.submit(0, kind, sector, len, data);
        for _ in 0..100 {
            host.turns(1);
            if let Some((_, status, written)) = self.ended() {
                return (status, written);
            }
        }
        panic!("a request does not end");
    }

    /// How often an eventfd was written since the last call.
    pub(super) fn count(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_le_bytes(count))
    }
}
