//! Every kind of request, guests that break the rules, and what happens to a queue while requests are under way.

use std::sync::Arc;

use penstock_bdev::Registry;
use penstock_bdev::delay::Delay;
use penstock_bdev::inject::{ErrorInjector, ErrorOptions};
use penstock_reactor::{Poller, Rest};
use penstock_spec::virtio::blk::{RequestType, Status};
use serde_json::json;

use super::guest::{Guest, Host, malloc};
use crate::memory::GuestMap;
use crate::ring::driver::{GPA, MEMORY_BYTES};
use crate::ring::{RingError, Segment};
use crate::worker::{Update, WorkerPoller};

fn pattern(len: usize) -> Vec<u8> {
    (0..=250_u8).cycle().take(len).collect()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_is_written_is_read_and_what_is_zeroed_is_zero() {
    for (packed, block_bytes) in [(false, 512), (true, 512), (false, 4096), (true, 4096)] {
        let mut host = Host::new(malloc(block_bytes));
        let mut guest = host.guest(packed, 16);
        let data = pattern(12288);
        assert_eq!(guest.run(&mut host, RequestType::OUT, 8, 12288, &data), (Status::OK, 1));
        assert_eq!(guest.run(&mut host, RequestType::IN, 8, 12288, &[]), (Status::OK, 12289));
        assert_eq!(guest.payload(0, 12288), data);
        let ranges = [range(8, 8, 0), range(24, 8, 0)].concat();
        assert_eq!(guest.run(&mut host, RequestType::DISCARD, 0, 32, &ranges), (Status::OK, 1));
        assert_eq!(guest.run(&mut host, RequestType::WRITE_ZEROES, 0, 16, &range(16, 8, 1)), (Status::OK, 1));
        assert_eq!(guest.run(&mut host, RequestType::FLUSH, 0, 0, &[]), (Status::OK, 1));
        assert_eq!(guest.run(&mut host, RequestType::IN, 8, 12288, &[]), (Status::OK, 12289));
        assert_eq!(guest.payload(0, 12288), [0; 12288], "packed: {packed}");
        assert_eq!(guest.run(&mut host, RequestType::GET_ID, 0, 20, &[]), (Status::OK, 21));
        assert_eq!(guest.payload(0, 20), b"disk-of-a-guest\0\0\0\0\0");
    }
}

#[test]
fn what_cannot_be_done_is_answered_and_the_queue_goes_on() {
    let mut host = Host::new(malloc(4096));
    let mut guest = host.guest(false, 16);
    let sectors = 4096 * 8;
    for (kind, sector, len, data) in [
        // Beyond the end; not whole blocks.
        (RequestType::IN, sectors, 4096, vec![]),
        (RequestType::IN, u64::MAX - 7, 4096, vec![]),
        (RequestType::IN, 1, 4096, vec![]),
        (RequestType::OUT, 0, 512, pattern(512)),
        (RequestType::OUT, sectors - 8, 8192, pattern(8192)),
        // Ranges: none, half of one, none of blocks, too many sectors, too many ranges.
        (RequestType::DISCARD, 0, 0, vec![]),
        (RequestType::DISCARD, 0, 24, vec![0; 24]),
        (RequestType::DISCARD, 0, 16, range(0, 0, 0)),
        (RequestType::WRITE_ZEROES, 0, 16, range(3, 8, 0)),
        (RequestType::WRITE_ZEROES, 0, 16, range(0, u32::MAX, 0)),
        (RequestType::WRITE_ZEROES, 0, 16 * 17, range(0, 8, 0).repeat(17)),
        (RequestType::WRITE_ZEROES, 0, 16, range(sectors, 8, 0)),
    ] {
        assert_eq!(
            guest.run(&mut host, kind, sector, len, &data).0,
            Status::IOERR,
            "{kind:?} {sector} {len}"
        );
    }
    for (kind, data) in [
        (RequestType(77), vec![0; 16]),
        (RequestType::SECURE_ERASE, range(0, 8, 0)),
        (RequestType::DISCARD, range(0, 8, 1)),
        (RequestType::WRITE_ZEROES, range(0, 8, 2)),
    ] {
        assert_eq!(guest.run(&mut host, kind, 0, 16, &data).0, Status::UNSUPP, "{kind:?}");
    }
    assert_eq!(guest.run(&mut host, RequestType::IN, 0, 4096, &[]).0, Status::OK);
    assert!(!guest.session.is_broken());
}

#[test]
fn a_guest_that_breaks_the_rules_breaks_its_own_device_and_nobody_elses() {
    for packed in [false, true] {
        let outside = GPA + MEMORY_BYTES;
        let status = Segment { addr: GPA, len: 1, writable: true };
        let header = Segment { addr: GPA, len: 16, writable: false };
        for chain in [
            vec![Segment { addr: outside, len: 16, writable: false }, status],
            vec![
                header,
                Segment { addr: outside - 1, len: 1, writable: true },
                Segment { addr: outside, len: 1, writable: true },
            ],
            vec![header, Segment { addr: u64::MAX, len: u32::MAX, writable: true }],
            vec![header],
            vec![Segment { addr: GPA, len: 15, writable: false }, status],
            vec![status],
        ] {
            let mut host = Host::new(malloc(512));
            let (mut good, mut bad) = (host.guest(packed, 8), host.guest(packed, 8));
            bad.submit(1, RequestType::IN, 0, 512, &[]);
            bad.driver.offer(&chain, false).unwrap();
            host.turns(3);
            assert!(bad.session.is_broken(), "{chain:?}");
            assert_eq!(Guest::count(&bad.err), 1);
            // It gets nothing more, whatever it does.
            while bad.ended().is_some() {}
            bad.driver.offer(&[header, status], false);
            host.turns(3);
            assert_eq!(bad.ended(), None);
            assert_eq!(good.run(&mut host, RequestType::IN, 0, 512, &[]), (Status::OK, 513));
            assert!(!good.session.is_broken() && Guest::count(&good.err) == 0);
            // It can be stopped all the same.
            let mut stopped = host.worker.stop(bad.key).unwrap();
            host.turns(2);
            assert!(matches!(stopped.try_recv(), Ok(Some(_))));
        }
    }
}

#[test]
fn more_requests_than_entries_are_against_the_rules() {
    let mut host = Host::new(malloc(512));
    let guest = host.guest(false, 4);
    for index in 0..5_u16 {
        guest.driver.memory().store_u16(0x8002, index * 5, std::sync::atomic::Ordering::Release);
        host.turns(1);
    }
    let error = guest.session.error().unwrap();
    assert!(matches!(error, RingError::AvailIndex { .. } | RingError::Request { .. }), "{error}");
}

/// A filter of 1 ms on a disk in memory.
fn slow() -> (Registry, Host) {
    let registry = Registry::new();
    registry.register(malloc(512), &[]).unwrap();
    let options = json!({
        "name": "slow", "base_bdev_name": "disk-of-a-guest", "avg_read_latency": 1000, "p99_read_latency": 1000,
        "avg_write_latency": 1000, "p99_write_latency": 1000,
    });
    Delay::create(&registry, &serde_json::from_value(options).unwrap()).unwrap();
    let host = Host::new(registry.find("slow").unwrap());
    (registry, host)
}

#[test]
fn memory_that_is_taken_away_stays_until_what_is_under_way_has_ended() {
    let (_registry, mut host) = slow();
    let mut guest = host.guest(true, 8);
    guest.submit(0, RequestType::IN, 0, 4096, &[]);
    host.turns(2);
    let old = Arc::downgrade(&guest.driver.map);
    let new = Arc::new(guest.driver.map.same());
    assert!(host.worker.update(guest.key, Update::Map(Arc::clone(&new))));
    guest.driver.map = new;
    assert!(old.upgrade().is_some(), "the request under way has it");
    host.turns(1200);
    assert_eq!(guest.ended(), Some((0, Status::OK, 4097)));
    assert!(old.upgrade().is_none(), "nobody has it any more");
    // Without the region of its ring, a queue cannot go on.
    assert!(host.worker.update(guest.key, Update::Map(Arc::new(GuestMap::default()))));
    assert!(guest.session.is_broken());
}

/// A guest used to see an I/O error where any other host would have tried again.
#[test]
fn a_disk_that_is_not_ready_is_asked_again_and_not_for_ever() {
    let registry = Registry::new();
    registry.register(malloc(512), &[]).unwrap();
    let options: ErrorOptions = serde_json::from_value(json!({"base_name": "disk-of-a-guest"})).unwrap();
    let name = ErrorInjector::create(&registry, &options).unwrap();
    let inject = |io_type, times| {
        let rule = json!({
            "name": name, "io_type": io_type, "error_type": "nvme_failure", "nvme_sct": 0, "nvme_sc": 0x82, "num": times,
        });
        ErrorInjector::inject(&registry, &serde_json::from_value(rule).unwrap()).unwrap();
    };
    let mut host = Host::new(registry.find(&name).unwrap());
    let mut guest = host.guest(false, 8);
    let mut poller = WorkerPoller::for_test(&host.worker);
    for (kind, data, times, answer, ms) in [
        (RequestType::OUT, pattern(512), 3, Status::OK, 30),
        (RequestType::DISCARD, [range(0, 8, 0), range(8, 8, 0)].concat(), 4, Status::OK, 40),
        (RequestType::OUT, pattern(512), 1_000_000, Status::IOERR, 30_000),
    ] {
        inject("clear", 0);
        inject("all", times);
        guest.submit(0, kind, 0, u32::try_from(data.len()).unwrap(), &data);
        let mut waited_ms = 0;
        let ended = loop {
            host.turns(5);
            if let Some(ended) = guest.ended() {
                break ended;
            }
            assert!(matches!(poller.rest(host.reactor.cx().now()), Rest::Until(_)), "the core may sleep");
            host.hand.advance_ns(10_000_000);
            waited_ms += 10;
        };
        assert_eq!(ended, (0, answer, 1), "{kind:?}");
        assert!((ms - 20..ms + 50).contains(&waited_ms), "{kind:?}: {waited_ms} ms");
    }
    assert_eq!(guest.stats.errors.read(), 1);
}

#[test]
fn a_queue_stops_when_what_is_under_way_has_ended() {
    let (_registry, mut host) = slow();
    let mut guest = host.guest(false, 8);
    guest.submit(0, RequestType::IN, 0, 512, &[]);
    host.turns(2);
    let mut stopped = host.worker.stop(guest.key).unwrap();
    guest.submit(1, RequestType::IN, 0, 512, &[]);
    host.turns(500);
    assert_eq!(stopped.try_recv(), Ok(None));
    host.turns(700);
    // It stands behind the first, and has not begun the second.
    assert_eq!(stopped.try_recv(), Ok(Some(1)));
    assert_eq!((guest.ended(), guest.ended()), (Some((0, Status::OK, 513)), None));
    assert!(!host.worker.update(guest.key, Update::Enabled(true)), "it is gone");
}

#[test]
fn a_disk_that_is_closed_ends_requests_with_errors() {
    let mut host = Host::new(malloc(512));
    let mut guest = host.guest(false, 8);
    assert_eq!(guest.run(&mut host, RequestType::IN, 0, 512, &[]).0, Status::OK);
    let mut closed = host.worker.close(1).unwrap();
    host.turns(2);
    assert_eq!(closed.try_recv(), Ok(Some(())));
    assert_eq!(guest.run(&mut host, RequestType::IN, 0, 512, &[]).0, Status::IOERR);
}

#[test]
fn interrupts_come_less_often_where_they_are_coalesced() {
    let signals = |delay_base_us| {
        let mut host = Host::new(malloc(512));
        host.coalescing.set(delay_base_us, 1000);
        let mut guest = host.guest(false, 32);
        guest.driver.set_interrupts(true);
        for _ in 0..50_000 {
            if guest.ended().is_none() {
                guest.submit(0, RequestType::IN, 0, 512, &[]);
            } else {
                guest.driver.set_interrupts(true);
            }
            host.turns(1);
        }
        guest.stats.signals.read()
    };
    let (often, seldom) = (signals(0), signals(100));
    // The first 10 ms pass before the rate is known.
    assert!(seldom * 4 < often && seldom > 5, "{seldom} of {often}");
}

/// The whole of sleep: no kick is asked for while the core is awake, one is before it sleeps, and work is not slept over.
#[test]
fn a_core_sleeps_only_when_it_will_be_woken() {
    for packed in [false, true] {
        let mut host = Host::new(malloc(512));
        let mut guest = host.guest(packed, 8);
        let mut poller = WorkerPoller::for_test(&host.worker);
        host.turns(2);
        guest.submit(0, RequestType::IN, 0, 512, &[]);
        assert!(!guest.driver.wants_kick(), "an awake core looks by itself");
        assert_eq!(poller.rest(host.reactor.cx().now()), Rest::Never, "there is work");
        host.turns(2);
        assert!(guest.ended().is_some());
        assert_eq!(poller.rest(host.reactor.cx().now()), Rest::UntilWoken);
        guest.submit(0, RequestType::IN, 0, 512, &[]);
        assert!(guest.driver.wants_kick(), "a sleeping core is woken");
        rustix::io::write(&guest.kick, &1_u64.to_le_bytes()).unwrap();
        host.turns(2);
        assert!(guest.ended().is_some());
        // A kick for nothing is cleared before the next sleep.
        host.turns(100);
        rustix::io::write(&guest.kick, &1_u64.to_le_bytes()).unwrap();
        assert_eq!(poller.rest(host.reactor.cx().now()), Rest::UntilWoken);
        assert_eq!(Guest::count(&guest.kick), 0);
        assert!(guest.stats.arms.read() >= 2 && Guest::count(&guest.call) > 0);
    }
}

/// A guest used to write to a disk that a host had reserved by NVMe or SCSI.
#[test]
fn what_a_reservation_keeps_from_hosts_that_are_not_registered_is_kept_from_guests() {
    use penstock_bdev::reservation::{HostId, RegistrantId, ReservationType, Reservations};
    let mut host = Host::new(malloc(512));
    let mut guest = host.guest(false, 16);
    let holder = RegistrantId { host: HostId::Nvme([1; 16]), port: 0 };
    let mut reservations = Reservations::new();
    reservations.register(&holder, None, 7, None).unwrap();
    let range = range(0, 8, 0);
    for kind in [None].into_iter().chain(ReservationType::ALL.map(Some)) {
        if let Some(kind) = kind {
            reservations.reserve(&holder, 7, kind).unwrap();
        }
        host.exclusion.set(&reservations.view());
        let ends = |may| if may { Status::OK } else { Status::IOERR };
        let reads = kind.is_none_or(|kind| !kind.excludes_reads());
        assert_eq!(guest.run(&mut host, RequestType::IN, 0, 512, &[]).0, ends(reads), "{kind:?}");
        for (change, data) in [
            (RequestType::OUT, pattern(512)),
            (RequestType::DISCARD, range.clone()),
            (RequestType::WRITE_ZEROES, range.clone()),
            (RequestType::FLUSH, vec![]),
        ] {
            let len = u32::try_from(data.len()).unwrap();
            assert_eq!(
                guest.run(&mut host, change, 0, len, &data).0,
                ends(kind.is_none()),
                "{kind:?} {change:?}"
            );
        }
        assert_eq!(guest.run(&mut host, RequestType::GET_ID, 0, 20, &[]).0, Status::OK);
        if let Some(kind) = kind {
            reservations.release(&holder, 7, kind).unwrap();
        }
    }
    assert_eq!(guest.stats.conflicts.read(), 6 * 4 + 3);
    host.exclusion.set(&reservations.view());
    assert_eq!(guest.run(&mut host, RequestType::OUT, 0, 512, &pattern(512)).0, Status::OK);
    assert!(!guest.session.is_broken());
}
