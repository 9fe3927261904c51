//! Goal: two hosts that fight over reservations get what the standard says, on every queue of every reactor.
//! Method: our own initiator against a target of two reactors over loopback; the control thread is the test's own.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test makes bytes of small numbers, may panic, and waits on threads of its own"
)]

mod bench;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Duration;

use bench::{BLOCKS, Bench, Io, connect};
use futures_channel::oneshot;
use futures_executor::block_on;
use penstock_nvme_tcp::blocking::BlockingController;
use penstock_nvme_tcp::controller::Event;
use penstock_nvme_tcp::{Transfer, command};
use penstock_spec::nvme::feature::Fid;
use penstock_spec::nvme::identify::{Cns, IdentifyController, IdentifyNamespace};
use penstock_spec::nvme::log::{Lid, ReservationLogType, ReservationNotificationLog};
use penstock_spec::nvme::nvm::{CopyCmd, RwControl};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::reservation::{RegistrantExtended, ReservationStatusHdr};
use penstock_spec::nvme::{Fuse, NvmOpcode, Sqe, Status};
use serde_json::json;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

const KEY_A: u64 = 0xa;
const KEY_B: u64 = 0xb;
const TYPES: [u8; 6] = [1, 2, 3, 4, 5, 6];

/// Runs hosts on a thread of their own while this one is the control thread.
fn serve<R: Send>(bench: &Bench, hosts: impl FnOnce(SocketAddr) -> R + Send) -> R {
    let addr = bench.addr;
    let (done, over) = oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let result = hosts(addr);
            drop(done);
            result
        });
        let (mut served, mut over) = (pin!(bench.target.look_after_reservations()), over);
        block_on(std::future::poll_fn(|cx| {
            assert!(served.as_mut().poll(cx).is_pending());
            std::pin::Pin::new(&mut over).poll(cx).map(drop)
        }));
        thread.join().unwrap()
    })
}

/// A host with two queues, which are on different reactors or not, as it happens.
struct Host {
    controller: BlockingController,
    queues: Vec<Io>,
}

impl Host {
    fn new(addr: SocketAddr, number: u8) -> Self {
        let controller = connect(addr, number);
        let queues = (1..=2).map(|qid| controller.open_io(qid, 16).unwrap()).collect();
        Self { controller, queues }
    }

    fn io(&mut self) -> &mut Io {
        &mut self.queues[0]
    }

    fn reserve(&mut self, opcode: NvmOpcode, dw10: u32, first: u64, second: u64) -> Status {
        let mut sqe = Sqe::new(opcode.0, 1);
        sqe.cdw10 = U32::new(dw10);
        let data = [first.to_le_bytes(), second.to_le_bytes()].concat();
        self.io().execute(sqe, Transfer::Write(16), Some(data)).unwrap().status()
    }

    fn register(&mut self, key: u64) -> Status {
        self.reserve(NvmOpcode::RESERVATION_REGISTER, 0, 0, key)
    }

    fn unregister(&mut self) -> Status {
        self.reserve(NvmOpcode::RESERVATION_REGISTER, 1 | 8, 0, 0)
    }

    fn acquire(&mut self, key: u64, kind: u8) -> Status {
        self.reserve(NvmOpcode::RESERVATION_ACQUIRE, u32::from(kind) << 8, key, 0)
    }

    fn preempt(&mut self, key: u64, victim: u64, kind: u8, abort: bool) -> Status {
        let action = if abort { 2 } else { 1 };
        self.reserve(NvmOpcode::RESERVATION_ACQUIRE, u32::from(kind) << 8 | action, key, victim)
    }

    fn release(&mut self, key: u64, kind: u8) -> Status {
        self.reserve(NvmOpcode::RESERVATION_RELEASE, u32::from(kind) << 8, key, 0)
    }

    fn clear(&mut self, key: u64) -> Status {
        self.reserve(NvmOpcode::RESERVATION_RELEASE, 1, key, 0)
    }

    /// Generation, type, and of each registrant: host, key, whether it holds.
    fn report(&mut self) -> (u32, u8, Vec<(u8, u64, bool)>) {
        let mut sqe = Sqe::new(NvmOpcode::RESERVATION_REPORT.0, 1);
        (sqe.cdw10, sqe.cdw11) = (U32::new(1023), U32::new(1));
        let done = self.io().execute(sqe, Transfer::Read(4096), Some(vec![1; 4096])).unwrap();
        assert!(done.status().is_success(), "{}", done.status());
        let data = done.payload.unwrap();
        let (head, _) = ReservationStatusHdr::ref_from_prefix(&data).unwrap();
        let registrants = data[64..].chunks_exact(64).take(head.regstrnt.get().into());
        let registrants = registrants.map(|bytes| RegistrantExtended::ref_from_bytes(bytes).unwrap());
        let all = registrants.map(|one| (one.hostid[0], one.rkey.get(), one.rcsts == 1)).collect();
        (head.gen_.get(), head.rtype, all)
    }

    fn notice(&mut self) -> (u64, ReservationLogType, u8) {
        let sqe = command::get_log_page(Lid::RESERVATION_NOTIFICATION, 0, 0, 64);
        let data = self.controller.read("the notices", sqe, 64).unwrap();
        let page = ReservationNotificationLog::ref_from_bytes(&data).unwrap();
        (page.count.get(), page.log_type, page.available)
    }

    /// The status of one command of each kind, on every queue: those that read, and those that write.
    fn try_all(&mut self) -> (Vec<Status>, Vec<Status>) {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for io in &mut self.queues {
            let mut run =
                |sqe, transfer, data: Option<Vec<u8>>| io.execute(sqe, transfer, data).unwrap().status();
            let rw = |opcode, len| command::rw(opcode, 1, 0, len, RwControl(0));
            let (in_4k, out_4k) = (Transfer::Read(4096), Transfer::Write(4096));
            reads.push(run(rw(NvmOpcode::READ, 8), in_4k, Some(vec![0; 4096])));
            reads.push(run(rw(NvmOpcode::COMPARE, 8), out_4k, Some(vec![0; 4096])));
            reads.push(run(rw(NvmOpcode::VERIFY, 8), Transfer::None, None));
            writes.push(run(rw(NvmOpcode::WRITE, 8), out_4k, Some(vec![0; 4096])));
            writes.push(run(rw(NvmOpcode::WRITE, 64), Transfer::Write(32_768), Some(vec![0; 32_768])));
            writes.push(run(rw(NvmOpcode::WRITE_ZEROES, 8), Transfer::None, None));
            writes.push(run(command::deallocate(1, 1), out_4k, Some(vec![0; 4096])));
            let mut hint = command::deallocate(1, 1);
            hint.cdw11 = U32::new(1);
            writes.push(run(hint, out_4k, Some(vec![0; 4096])));
            writes.push(run(command::flush(1), Transfer::None, None));
            writes.push(run(command::flush(u32::MAX), Transfer::None, None));
            let mut copy = *CopyCmd::from_sqe(&Sqe::new(NvmOpcode::COPY.0, 1));
            copy.sdlba = U64::new(100);
            writes.push(run(*copy.as_sqe(), Transfer::Write(32), Some(vec![0; 32])));
            let fused = [(NvmOpcode::COMPARE, Fuse::First), (NvmOpcode::WRITE, Fuse::Second)];
            for (opcode, fuse) in fused {
                let mut sqe = rw(opcode, 8);
                sqe.set_fuse(fuse);
                io.submit(sqe, out_4k, u64::from(fuse == Fuse::Second), Some(vec![0; 4096])).unwrap();
            }
            for _ in fused {
                let done = io.wait().unwrap();
                if done.user == 1 {
                    writes.push(done.status());
                }
            }
        }
        (reads, writes)
    }
}

fn all_so(statuses: &[Status], allowed: bool) -> bool {
    statuses.iter().all(|status| {
        if allowed { status.is_success() } else { *status == Status::RESERVATION_CONFLICT.with_dnr() }
    })
}

#[test]
fn all_six_types_are_enforced_on_every_command_of_every_queue() {
    let bench = Bench::new(json!({}));
    serve(&bench, |addr| {
        let (mut a, mut b, mut c) = (Host::new(addr, 1), Host::new(addr, 2), Host::new(addr, 3));
        assert!(a.register(KEY_A).is_success() && b.register(KEY_B).is_success());
        for kind in TYPES {
            assert!(a.acquire(KEY_A, kind).is_success(), "{kind}");
            let excludes_reads = matches!(kind, 2 | 4 | 6);
            let registrants_may = kind > 2;
            for (host, reads, writes) in [
                (&mut a, true, true),
                (&mut b, registrants_may || !excludes_reads, registrants_may),
                (&mut c, !excludes_reads, false),
            ] {
                let (read, wrote) = host.try_all();
                assert!(all_so(&read, reads), "type {kind}: reads {reads}: {read:?}");
                assert!(all_so(&wrote, writes), "type {kind}: writes {writes}: {wrote:?}");
            }
            let holders = if kind > 4 { 2 } else { 1 };
            let (_, told, registrants) = c.report();
            assert_eq!((told, registrants.iter().filter(|one| one.2).count()), (kind, holders));
            assert!(a.release(KEY_A, kind).is_success());
            let (read, wrote) = c.try_all();
            assert!(all_so(&read, true) && all_so(&wrote, true), "released");
        }
    });
}

#[test]
fn keys_types_and_registrations_are_checked_and_the_generation_counts() {
    let bench = Bench::new(json!({}));
    serve(&bench, |addr| {
        let (mut a, mut b) = (Host::new(addr, 1), Host::new(addr, 2));
        let conflict = Status::RESERVATION_CONFLICT;
        assert!(a.acquire(KEY_A, 1).is(conflict), "not registered");
        assert!(a.register(0).is(Status::INVALID_FIELD));
        assert!(a.register(KEY_A).is_success() && b.register(KEY_B).is_success());
        assert!(a.register(7).is(conflict), "another key needs a replace");
        assert!(a.acquire(7, 1).is(conflict), "wrong key");
        assert!(
            a.acquire(KEY_A, 7).is(Status::INVALID_FIELD) && a.acquire(KEY_A, 0).is(Status::INVALID_FIELD)
        );
        assert!(a.acquire(KEY_A, 1).is_success() && a.acquire(KEY_A, 1).is_success(), "again");
        assert!(a.acquire(KEY_A, 2).is(conflict) && b.acquire(KEY_B, 1).is(conflict));
        assert!(a.release(KEY_A, 2).is(Status::INVALID_FIELD), "another type");
        assert!(b.release(KEY_B, 1).is_success(), "holds nothing: nothing happens");
        assert_eq!(b.report(), (2, 1, vec![(1, KEY_A, true), (2, KEY_B, false)]));
        assert!(b.preempt(KEY_B, 0x77, 1, false).is(conflict), "nobody has that key");
        assert!(b.preempt(KEY_B, 0, 1, false).is(Status::INVALID_FIELD));
        assert!(b.preempt(KEY_B, KEY_A, 3, false).is_success());
        assert_eq!(b.report(), (3, 3, vec![(2, KEY_B, true)]));
        assert!(a.release(KEY_A, 3).is(conflict), "not registered any more");
        assert!(b.unregister().is_success());
        assert_eq!(b.report(), (4, 0, vec![]));
        let persist = b.reserve(NvmOpcode::RESERVATION_REGISTER, 3 << 30, 0, KEY_B);
        assert!(persist.is(Status::INVALID_FIELD), "there is no place to persist in");
        let mut report = Sqe::new(NvmOpcode::RESERVATION_REPORT.0, 1);
        report.cdw10 = U32::new(15);
        let done = b.io().execute(report, Transfer::Read(64), Some(vec![0; 64])).unwrap().status();
        assert!(done.is(Status::HOST_ID_INCONSISTENT_FORMAT), "without EDS");
        (report.cdw10, report.cdw11) = (U32::new(16), U32::new(1));
        let done = b.io().execute(report, Transfer::Read(64), Some(vec![0; 64])).unwrap().status();
        assert!(done.is(Status::DATA_SGL_LENGTH_INVALID));
        report.nsid = U32::new(9);
        let done = b.io().execute(report, Transfer::Read(68), Some(vec![0; 68])).unwrap().status();
        assert!(done.is(Status::INVALID_FIELD), "no such namespace: {done}");
    });
}

#[test]
fn hosts_are_told_what_they_lost_unless_they_mask_it() {
    let bench = Bench::new(json!({}));
    serve(&bench, |addr| {
        let (mut a, mut b) = (Host::new(addr, 1), Host::new(addr, 2));
        assert!(a.register(KEY_A).is_success() && b.register(KEY_B).is_success());
        assert_eq!(b.notice(), (0, ReservationLogType::EMPTY, 0));
        // Released, of a shared type; then preempted.
        assert!(a.acquire(KEY_A, 3).is_success() && a.release(KEY_A, 3).is_success());
        assert!(a.preempt(KEY_A, KEY_B, 3, false).is_success());
        let event = b.controller.next_event(Duration::from_secs(10)).unwrap();
        let Event::Async(result) = event else { panic!("{event:?}") };
        assert_eq!(result.0 & 0x00ff_ffff, 0x0080_0006);
        assert_eq!(b.notice(), (1, ReservationLogType::RESERVATION_RELEASED, 1));
        assert_eq!(b.notice(), (2, ReservationLogType::REGISTRATION_PREEMPTED, 0));
        assert_eq!(b.notice(), (0, ReservationLogType::EMPTY, 0));
        assert!(b.register(KEY_B).is_success() && a.clear(KEY_A).is_success());
        assert_eq!(b.notice(), (3, ReservationLogType::RESERVATION_PREEMPTED, 0));
        let mask = command::set_features(Fid::RESERVATION_NOTIFICATION_MASK, 1, 0b1000);
        assert!(b.controller.execute(mask, Transfer::None, None).unwrap().status().is_success());
        let get = command::get_features(Fid::RESERVATION_NOTIFICATION_MASK, 1);
        assert_eq!(b.controller.execute(get, Transfer::None, None).unwrap().cqe.dw0.get(), 0b1000);
        assert!(a.register(KEY_A).is_success() && b.register(KEY_B).is_success());
        assert!(a.clear(KEY_A).is_success());
        assert_eq!(b.notice(), (0, ReservationLogType::EMPTY, 0));
        assert_eq!(a.notice(), (0, ReservationLogType::EMPTY, 0), "nobody is told of its own deeds");
    });
}

/// While host B writes as fast as it can, A preempts it: from the answer on nothing of B is written any more.
#[test]
fn from_the_answer_to_a_preempt_and_abort_on_nothing_of_the_loser_is_written() {
    let bench = Bench::new(json!({}));
    serve(&bench, |addr| {
        let mut a = Host::new(addr, 1);
        assert!(a.register(KEY_A).is_success());
        for round in 0..20_u64 {
            let mut b = Host::new(addr, 2);
            assert!(b.register(KEY_B).is_success() && b.acquire(KEY_B, 2).is_success());
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for io in &mut b.queues {
                    let stop = &stop;
                    scope.spawn(move || {
                        let (mut refused, mut under_way) = (0, 0);
                        while refused < 100 && !stop.load(Ordering::Relaxed) {
                            while under_way < 8 {
                                let sqe = command::write(1, 0, 8, false);
                                io.submit(sqe, Transfer::Write(4096), 0, Some(vec![0xbb; 4096])).unwrap();
                                under_way += 1;
                            }
                            let status = io.wait().unwrap().status();
                            under_way -= 1;
                            refused += u32::from(status.is(Status::RESERVATION_CONFLICT));
                        }
                        assert!(refused > 0 || stop.load(Ordering::Relaxed));
                    });
                }
                std::thread::sleep(Duration::from_millis(round % 7));
                assert!(a.preempt(KEY_A, KEY_B, 2, true).is_success());
                let mark = vec![round as u8; 4096];
                let write = command::write(1, 0, 8, false);
                let wrote = a.io().execute(write, Transfer::Write(4096), Some(mark.clone())).unwrap();
                assert!(wrote.status().is_success());
                std::thread::sleep(Duration::from_millis(5));
                let read = command::read(1, 0, 8);
                let back = a.io().execute(read, Transfer::Read(4096), Some(vec![0; 4096])).unwrap();
                assert!(back.payload.unwrap() == mark, "round {round}: the loser wrote after the answer");
                stop.store(true, Ordering::Relaxed);
            });
            assert!(a.release(KEY_A, 2).is_success());
        }
    });
}

/// What the loser has in a bdev that hangs holds the answer up until it is gone.
#[test]
fn preempt_and_abort_waits_for_what_the_loser_has_under_way() {
    let bench = Bench::new(json!({}));
    bench.inject(json!({ "io_type": "write", "error_type": "pending", "num": 1 }));
    let answered = AtomicBool::new(false);
    serve(&bench, |addr| {
        let (mut a, mut b) = (Host::new(addr, 1), Host::new(addr, 2));
        assert!(a.register(KEY_A).is_success() && b.register(KEY_B).is_success());
        assert!(b.acquire(KEY_B, 1).is_success());
        let sqe = command::write(1, 0, 8, false);
        b.io().submit(sqe, Transfer::Write(4096), 0, Some(vec![0xbb; 4096])).unwrap();
        // Its queue is driven by waiting for it.
        std::thread::scope(|scope| {
            let io = &mut b.queues[0];
            let waiter = scope.spawn(move || io.wait().unwrap().status());
            std::thread::sleep(Duration::from_millis(100));
            assert!(a.preempt(KEY_A, KEY_B, 1, true).is_success());
            answered.store(true, Ordering::Relaxed);
            let status = waiter.join().unwrap();
            assert!(status.is(Status::ABORTED_BY_REQUEST), "{status}");
        });
    });
    assert!(answered.load(Ordering::Relaxed));
}

#[test]
fn identify_tells_of_reservations_what_is_there() {
    let bench = Bench::new(json!({}));
    serve(&bench, |addr| {
        let mut a = Host::new(addr, 1);
        let data =
            a.controller.read("id-ctrl", command::identify(Cns::CONTROLLER, 0, Csi::NVM), 4096).unwrap();
        let id = IdentifyController::ref_from_bytes(&data).unwrap();
        assert!(id.oncs.get() & (1 << 5) != 0 && id.fuses.get() == 1);
        let data = a.controller.read("id-ns", command::identify(Cns::NAMESPACE, 1, Csi::NVM), 4096).unwrap();
        let id = IdentifyNamespace::ref_from_bytes(&data).unwrap();
        assert_eq!(id.rescap, 0xfe, "all but PTPL");
        assert_eq!(id.nsze.get(), BLOCKS);
        let set = command::set_features(Fid::RESERVATION_PERSISTENCE, 1, 1);
        let status = a.controller.execute(set, Transfer::None, None).unwrap().status();
        assert!(status.is(Status::INVALID_FIELD), "{status}");
    });
}
