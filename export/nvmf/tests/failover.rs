//! Goal: a host that fails over never finds a write of its old controller behind one of the new: whatever ends a
//! controller, nothing of it reaches a namespace once its host has been told that it may go on.
//! Method: the target as the daemon has it, on two reactors over loopback, with hanging and slow bdevs and our own
//! initiator.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test makes bytes of small numbers, may panic, and waits on a thread of its own"
)]

mod bench;

use std::time::{Duration, Instant};

use bench::late::Late;
use bench::{Bench, Io, NQN, TIMEOUT, connect, host, read, try_connect, write};
use futures_executor::block_on;
use penstock_nvme_tcp::blocking::{BlockingController, BlockingError};
use penstock_nvme_tcp::controller::Event;
use penstock_nvme_tcp::{Transfer, command};
use penstock_nvmf::target::Namespace;
use penstock_spec::nvme::cross_reset::{
    CrossResetCmd, CrossResetEntry, CrossResetLogHdr, CrossResetStatus, LSP_REMOVE_COMPLETED,
};
use penstock_spec::nvme::event::EventConfig;
use penstock_spec::nvme::feature::Fid;
use penstock_spec::nvme::identify::{Cns, IdentifyController};
use penstock_spec::nvme::log::{GetLogPageCmd, Lid};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::{AdminOpcode, NSID_ALL, Sqe, Status};
use penstock_spec::nvmf::property::{Cap, Cc, Csts, NSSR_RESET, PropertySize, offset};
use serde_json::json;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U64};

fn identify(controller: &mut BlockingController) -> IdentifyController {
    let data = controller.read("Identify", command::identify(Cns::CONTROLLER, 0, Csi::NVM), 4096).unwrap();
    IdentifyController::read_from_bytes(&data).unwrap()
}

fn cross_reset(icid: u16, ciu: u8, cirn: u64) -> Sqe {
    let mut cmd = CrossResetCmd::default();
    cmd.opc = AdminOpcode::CROSS_CONTROLLER_RESET.0;
    cmd.flags = Sqe::FLAGS_FABRICS;
    (cmd.icid, cmd.ciu, cmd.cirn) = (U16::new(icid), ciu, U64::new(cirn));
    *cmd.as_sqe()
}

/// Status, and whether it is over already.
fn reset_by(controller: &mut BlockingController, impacted: &IdentifyController) -> (Status, bool) {
    let sqe = cross_reset(impacted.cntlid.get(), impacted.ciu, impacted.cirn.get());
    let done = controller.execute(sqe, Transfer::None, None).unwrap();
    (done.status(), done.cqe.dw0.get() & 1 != 0)
}

fn reset_log(controller: &mut BlockingController, lsp: u8) -> Vec<CrossResetEntry> {
    let sqe = command::get_log_page(Lid::CROSS_CONTROLLER_RESET, NSID_ALL, 0, 4096);
    let mut cmd = *GetLogPageCmd::from_sqe(&sqe);
    cmd.lsp_rae |= lsp;
    let data = controller.read("Get Log Page", *cmd.as_sqe(), 4096).unwrap();
    let (header, rest) = CrossResetLogHdr::ref_from_prefix(&data).unwrap();
    let len = usize::from(header.entries.get()) * CrossResetEntry::LEN;
    <[CrossResetEntry]>::ref_from_bytes(&rest[..len]).unwrap().to_vec()
}

fn set_events(controller: &mut BlockingController, config: EventConfig) {
    let sqe = command::set_features(Fid::ASYNC_EVENT_CONFIG, 0, config.0);
    assert!(controller.execute(sqe, Transfer::None, None).unwrap().status().is_success());
}

fn is_lost(io: &mut Io) -> bool {
    io.submit(command::flush(1), Transfer::None, 9, None).is_err() || io.wait().is_err()
}

/// Begins a write that the bdev has, and does not end.
fn write_slowly(bench: &Bench, io: &mut Io, byte: u8) {
    let data = vec![byte; 4096];
    io.submit(command::write(1, 0, 8, false), Transfer::Write(4096), 0, Some(data)).unwrap();
    // Sends what is queued; the answer does not come yet.
    let begin = Instant::now();
    while bench.sum("pending_bdev_io") == 0 {
        assert!(begin.elapsed() < TIMEOUT);
        drop(bench::turn(io));
    }
}

/// Namespace 1 is a bdev whose writes reach the malloc bdev so late.
fn slow(bench: &Bench, write_us: u64) {
    block_on(bench.target.remove_ns(NQN, 1)).unwrap();
    Late::create(&bench.registry, "EE_M", write_us * 1000);
    block_on(bench.target.add_ns(NQN, &Namespace::on("late"))).unwrap();
}

#[test]
fn a_new_controller_waits_for_the_writes_of_its_hosts_dead_ones() {
    for policy in ["allow", "replace", "reject"] {
        let bench = Bench::with(json!({}), json!({ "duplicate_host": policy }));
        slow(&bench, 600_000);
        let old = bench.connect();
        let mut io: Io = old.open_io(1, 16).unwrap();
        write_slowly(&bench, &mut io, 1);
        // The connections end, the write is with the bdev.
        drop((io, old));
        let asked = Instant::now();
        let new = bench.connect();
        assert_eq!(bench.sum("pending_bdev_io"), 0, "{policy}: told that it is connected too early");
        assert!(asked.elapsed() > Duration::from_millis(200), "{policy}: {:?}", asked.elapsed());
        // Another host does not wait.
        let asked = Instant::now();
        drop(connect(bench.addr, 2));
        assert!(asked.elapsed() < Duration::from_millis(300));
        drop(new);
        bench.wait_idle();
    }
}

#[test]
fn a_duplicate_host_is_let_in_refused_or_takes_the_place_of_the_old() {
    let bench = Bench::with(json!({}), json!({ "duplicate_host": "allow" }));
    let old = bench.connect();
    let mut io: Io = old.open_io(1, 16).unwrap();
    let new = bench.connect();
    assert!(read(&mut io, 0, 512).is_success());
    drop((old, new));

    let bench = Bench::with(json!({}), json!({ "duplicate_host": "reject" }));
    let second = bench.listen();
    let old = bench.connect();
    let mut io: Io = old.open_io(1, 16).unwrap();
    let error = try_connect(bench.addr, 1).unwrap_err();
    assert!(error.to_string().contains("Connect Controller Busy"), "{error}");
    // Another port is another path, another host another host.
    let others = [connect(second, 1), connect(bench.addr, 2)];
    assert!(read(&mut io, 0, 512).is_success());
    drop((io, old));
    let again = bench.connect();
    drop((again, others));

    let bench = Bench::with(json!({}), json!({ "duplicate_host": "replace" }));
    let second = bench.listen();
    let (old, other_path, other_host) = (bench.connect(), connect(second, 1), connect(bench.addr, 2));
    let mut queues: Vec<Io> =
        [&old, &other_path, &other_host].iter().map(|one| one.open_io(1, 16).unwrap()).collect();
    let new = bench.connect();
    assert!(is_lost(&mut queues[0]));
    assert!(read(&mut queues[1], 0, 512).is_success());
    assert!(read(&mut queues[2], 0, 512).is_success());
    drop((queues, old, other_path, other_host, new));
    bench.wait_idle();
}

#[test]
fn none_of_a_replaced_controllers_writes_reaches_the_bdev_behind_the_new_ones() {
    let bench = Bench::with(json!({}), json!({ "duplicate_host": "replace" }));
    slow(&bench, 300_000);
    for round in 0..3_u8 {
        let old = bench.connect();
        let mut queues: Vec<Io> = (1..=4).map(|qid| old.open_io(qid, 16).unwrap()).collect();
        for io in &mut queues {
            write_slowly(&bench, io, 0xaa);
        }
        // The old connections are still open, as those of a host that lost its network.
        let new = bench.connect();
        let mut io: Io = new.open_io(1, 16).unwrap();
        let sqe = command::write(1, 0, 8, false);
        let wrote = io.execute(sqe, Transfer::Write(4096), Some(vec![round; 4096])).unwrap();
        assert!(wrote.status().is_success());
        std::thread::sleep(Duration::from_millis(400));
        let back = io.execute(command::read(1, 0, 8), Transfer::Read(4096), Some(vec![0; 4096])).unwrap();
        assert_eq!(back.payload.unwrap(), vec![round; 4096], "a stale write came through");
        drop((queues, old));
    }
    bench.wait_idle();
}

#[test]
fn two_connects_of_a_host_at_once_leave_one_controller() {
    let bench = Bench::with(json!({}), json!({ "duplicate_host": "replace" }));
    for _ in 0..5 {
        let addr = bench.addr;
        let threads: Vec<_> = (0..6).map(|_| std::thread::spawn(move || try_connect(addr, 1))).collect();
        let all: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let controllers = block_on(bench.target.get_controllers(NQN)).unwrap();
        assert_eq!(controllers.as_array().unwrap().len(), 1, "{controllers}");
        drop(all);
    }
    bench.wait_idle();
}

#[test]
fn a_controller_tells_which_life_it_is_in() {
    let bench = Bench::new(json!({}));
    let (mut one, mut other) = (bench.connect(), bench.connect());
    let (first, second) = (identify(&mut one), identify(&mut other));
    assert_eq!((first.ccrl, first.cqt_ms.get()), (4, 5000));
    assert!(EventConfig(first.oaes.get()).cross_reset());
    assert!(first.ciu != 0 && second.ciu != 0);
    assert_ne!((first.ciu, first.cirn), (second.ciu, second.cirn));
    for en in [false, true] {
        let cc = Cc(0).with_en(en).with_iosqes(6).with_iocqes(4);
        let sqe = command::property_set(offset::CC, cc.0);
        assert!(one.execute(sqe, Transfer::None, None).unwrap().status().is_success());
    }
    let again = identify(&mut one);
    assert_eq!(again.ciu, if first.ciu == 255 { 1 } else { first.ciu + 1 });
    assert_ne!(again.cirn, first.cirn);
}

#[test]
fn a_host_ends_one_of_its_controllers_by_another() {
    let bench = Bench::new(json!({}));
    slow(&bench, 700_000);
    let second = bench.listen();
    let (mut impacted, mut source) = (bench.connect(), connect(second, 1));
    let instance = identify(&mut impacted);
    let mut io: Io = impacted.open_io(1, 16).unwrap();
    set_events(&mut source, EventConfig(0).with_cross_reset(true));

    // Not by another host, not by itself, not an instance that never was.
    let mut stranger = connect(bench.addr, 2);
    assert!(reset_by(&mut stranger, &instance).0.is(Status::INVALID_FIELD));
    assert!(reset_by(&mut impacted, &instance).0.is(Status::INVALID_FIELD));
    let mut older = instance;
    older.ciu = older.ciu.wrapping_sub(1).max(1);
    assert_eq!(reset_by(&mut source, &older), (Status::SUCCESS, true));
    assert!(read(&mut io, 0, 512).is_success());

    write_slowly(&bench, &mut io, 7);
    assert_eq!(reset_by(&mut source, &instance), (Status::SUCCESS, false));
    let log = reset_log(&mut source, 0);
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].icid.get(), log[0].ciu), (instance.cntlid.get(), instance.ciu));
    assert_eq!((log[0].acid.get(), log[0].ccrs, log[0].ccrf), (0xffff, CrossResetStatus::IN_PROGRESS, 3));
    // It is dead at once, and ended when its write is.
    assert!(is_lost(&mut io));
    assert!(reset_by(&mut source, &instance).0.is(Status::CROSS_RESET_IN_PROGRESS));
    loop {
        if let Event::Async(result) = source.next_event(TIMEOUT).unwrap() {
            assert_eq!(result.0, 0x1e_f4_02);
            break;
        }
    }
    assert_eq!(bench.sum("pending_bdev_io"), 0, "the host was told too early");
    let log = reset_log(&mut source, LSP_REMOVE_COMPLETED);
    assert_eq!(log[0].ccrs, CrossResetStatus::SUCCESSFUL);
    assert_eq!(reset_log(&mut source, 0).len(), 0);
    assert_eq!(reset_by(&mut source, &instance), (Status::SUCCESS, true));
    drop((impacted, source, stranger));
    bench.wait_idle();
}

#[test]
fn resets_under_way_have_a_limit() {
    let bench = Bench::new(json!({}));
    slow(&bench, 900_000);
    let mut source = connect(bench.listen(), 1);
    let mut instances = Vec::new();
    let mut keep = Vec::new();
    for _ in 0..5 {
        let mut impacted = bench.connect();
        let mut io: Io = impacted.open_io(1, 16).unwrap();
        io.submit(command::write(1, 0, 8, false), Transfer::Write(4096), 0, Some(vec![1; 4096])).unwrap();
        drop(bench::turn(&mut io));
        instances.push(identify(&mut impacted));
        keep.push((impacted, io));
    }
    bench.wait_for("all writes are with the bdev", |bench| bench.sum("pending_bdev_io") == 5);
    for instance in &instances[..4] {
        assert_eq!(reset_by(&mut source, instance), (Status::SUCCESS, false));
    }
    assert!(reset_by(&mut source, &instances[4]).0.is(Status::CROSS_RESET_LIMIT_EXCEEDED));
    assert_eq!(reset_log(&mut source, 0).len(), 4);
    drop((keep, source));
    bench.wait_idle();
}

fn csts(controller: &mut BlockingController) -> Csts {
    let sqe = command::property_get(offset::CSTS, PropertySize::Four);
    Csts(controller.execute(sqe, Transfer::None, None).unwrap().cqe.dw0.get())
}

fn set(controller: &mut BlockingController, ofst: u32, value: u32) -> Status {
    let sqe = command::property_set(ofst, value);
    controller.execute(sqe, Transfer::None, None).unwrap().status()
}

#[test]
fn a_subsystem_reset_resets_every_controller_and_says_so() {
    let bench = Bench::with(json!({}), json!({ "enable_nssr": true }));
    let mut hosts: Vec<_> = (1..=4).map(|number| connect(bench.addr, number)).collect();
    let mut queues: Vec<Io> = hosts.iter().map(|one| one.open_io(1, 16).unwrap()).collect();
    let sqe = command::property_get(offset::CAP, PropertySize::Eight);
    let cap = hosts[0].execute(sqe, Transfer::None, None).unwrap().cqe;
    assert!(Cap(u64::from(cap.dw0.get()) | u64::from(cap.dw1.get()) << 32).nssrs());
    assert!(set(&mut hosts[0], offset::NSSR, 1).is_success(), "any other value does nothing");
    assert!(queues.iter_mut().all(|io| read(io, 0, 512).is_success()));
    assert!(set(&mut hosts[0], offset::NSSR, NSSR_RESET).is_success());
    for (controller, io) in hosts.iter_mut().zip(&mut queues) {
        assert!(is_lost(io));
        let begin = Instant::now();
        while csts(controller).rdy() {
            assert!(begin.elapsed() < TIMEOUT);
        }
        assert!(csts(controller).nssro());
        let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);
        assert!(set(controller, offset::CC, cc.0).is_success());
        assert!(csts(controller).nssro() && csts(controller).rdy());
        assert!(set(controller, offset::CSTS, Csts(0).with_nssro(true).0).is_success());
        assert!(!csts(controller).nssro() && csts(controller).rdy());
        let mut io: Io = controller.open_io(1, 16).unwrap();
        assert!(read(&mut io, 0, 512).is_success());
    }
    drop((hosts, queues));
    bench.wait_idle();
    let bench = Bench::new(json!({}));
    assert!(set(&mut bench.connect(), offset::NSSR, NSSR_RESET).is(Status::INVALID_FIELD));
}

#[test]
fn a_silent_host_loses_its_controller_with_io_under_way_and_nothing_leaks() {
    let bench = Bench::new(json!({}));
    bench.inject(json!({ "io_type": "write", "error_type": "pending", "num": 3 }));
    let mut config = host(1);
    config.admin.kato_ms = 600;
    let controller = BlockingController::connect(bench.addr, config, TIMEOUT).unwrap();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    for user in 0..3 {
        let data = Some(vec![1; 131_072]);
        io.submit(command::write(1, 0, 256, false), Transfer::Write(131_072), user, data).unwrap();
    }
    while bench.sum("pending_bdev_io") < 3 {
        drop(bench::turn(&mut io));
    }
    // Neither queue says anything any more; what hangs is asked to end.
    bench.wait_idle();
    assert!(is_lost(&mut io));
    assert!(write(&mut bench.connect().open_io(1, 16).unwrap(), 0, 4096).is_success());
}

#[test]
fn a_reset_under_load_answers_or_closes_and_lets_the_queue_come_again() {
    let bench = Bench::new(json!({}));
    slow(&bench, 50_000);
    let mut controller = bench.connect();
    for round in 0..6_u8 {
        let mut io: Io = controller.open_io(1, 32).unwrap();
        for user in 0..20 {
            let data = Some(vec![1; 65_536]);
            io.submit(command::write(1, 0, 128, false), Transfer::Write(65_536), user, data).unwrap();
        }
        drop(bench::turn(&mut io));
        // The same number again, while the first is connected.
        let error: Result<Io, BlockingError> = controller.open_io(1, 32);
        assert!(error.is_err());
        if round % 2 == 0 {
            // CC.EN: RDY is 0 when the last command is over.
            assert!(set(&mut controller, offset::CC, 0).is_success());
            while csts(&mut controller).rdy() {}
        } else {
            let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4).with_shn(1 + round % 4 / 3);
            assert!(set(&mut controller, offset::CC, cc.0).is_success());
            while csts(&mut controller).shst() != 2 {}
            assert!(set(&mut controller, offset::CC, 0).is_success());
        }
        assert_eq!((bench.sum("pending_bdev_io"), bench.sum("buffer_bytes")), (0, 0));
        let mut answered = 0;
        while io.wait().is_ok() {
            answered += 1;
        }
        assert!(answered <= 20);
        let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);
        assert!(set(&mut controller, offset::CC, cc.0).is_success());
    }
    drop(controller);
    bench.wait_idle();
}
