//! Goal: a host with several paths to a subsystem is told which it may use, and what it is told is what happens.
//! Method: the target as the daemon has it, on two reactors over loopback, with two listeners and our own initiator.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test makes bytes of small numbers, may panic, and waits on a thread of its own"
)]

mod bench;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::{Duration, Instant};

use bench::{Bench, Io, NQN, TIMEOUT, connect, read, write};
use futures_executor::block_on;
use penstock_nvme_tcp::blocking::BlockingController;
use penstock_nvme_tcp::controller::Event;
use penstock_nvme_tcp::{Transfer, command};
use penstock_nvmf::target::{ListenAddress, Namespace};
use penstock_spec::nvme::event::{EventConfig, EventResult};
use penstock_spec::nvme::feature::Fid;
use penstock_spec::nvme::identify::{Cns, IdentifyController, IdentifyNamespace};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::ana::{AnaGroupDescriptor, AnaLogHdr, AnaState};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::{NSID_ALL, Status};
use serde_json::json;
use zerocopy::FromBytes;

fn identify(controller: &mut BlockingController) -> IdentifyController {
    let data = controller.read("Identify", command::identify(Cns::CONTROLLER, 0, Csi::NVM), 4096).unwrap();
    IdentifyController::read_from_bytes(&data).unwrap()
}

fn identify_namespace(controller: &mut BlockingController) -> IdentifyNamespace {
    let data = controller.read("Identify", command::identify(Cns::NAMESPACE, 1, Csi::NVM), 4096).unwrap();
    IdentifyNamespace::read_from_bytes(&data).unwrap()
}

/// Change count, and group and state of namespace 1.
fn ana_log(controller: &mut BlockingController) -> (u64, u32, AnaState) {
    let sqe = command::get_log_page(Lid::ANA, NSID_ALL, 0, 4096);
    let data = controller.read("Get Log Page", sqe, 4096).unwrap();
    let (header, rest) = AnaLogHdr::ref_from_prefix(&data).unwrap();
    assert_eq!(header.descriptors.get(), 1);
    let (group, rest) = AnaGroupDescriptor::ref_from_prefix(rest).unwrap();
    assert_eq!((group.nsids.get(), &rest[..4]), (1, &[1, 0, 0, 0][..]));
    (header.chgcnt.get(), group.agid.get(), group.state)
}

fn ask_for_events(controller: &mut BlockingController, config: EventConfig) {
    let sqe = command::set_features(Fid::ASYNC_EVENT_CONFIG, 0, config.0);
    assert!(controller.execute(sqe, Transfer::None, None).unwrap().status().is_success());
}

fn next_notice(controller: &mut BlockingController) -> EventResult {
    loop {
        if let Event::Async(result) = controller.next_event(TIMEOUT).unwrap() {
            return result;
        }
    }
}

#[test]
fn a_flip_of_a_path_is_told_and_holds_for_every_command_when_it_is_answered() {
    let bench = Bench::with(json!({}), json!({ "ana_reporting": true, "max_ana_groups": 4 }));
    let second = bench.listen();
    let mut controllers = [connect(bench.addr, 1), connect(second, 1)];
    let mut queues: Vec<Io> = controllers.iter().map(|one| one.open_io(1, 32).unwrap()).collect();
    let told = identify(&mut controllers[1]);
    assert_eq!((told.cmic & 8, told.anatt_s, told.anagrpmax.get(), told.nanagrpid.get()), (8, 10, 4, 4));
    assert_eq!(told.anacap, 0x1f);
    assert!(EventConfig(told.oaes.get()).ana_change());
    assert_eq!(identify_namespace(&mut controllers[1]).anagrpid.get(), 1);
    assert_eq!(ana_log(&mut controllers[1]), (0, 1, AnaState::OPTIMIZED));
    ask_for_events(&mut controllers[1], EventConfig(0).with_ana_change(true));
    let address = ListenAddress::tcp(second);
    let cases = [
        ("inaccessible", AnaState::INACCESSIBLE, Some(Status::ANA_INACCESSIBLE)),
        ("persistent_loss", AnaState::PERSISTENT_LOSS, Some(Status::ANA_PERSISTENT_LOSS)),
        ("change", AnaState::CHANGE, Some(Status::ANA_TRANSITION)),
        ("non_optimized", AnaState::NON_OPTIMIZED, None),
        ("optimized", AnaState::OPTIMIZED, None),
    ];
    for (count, (name, state, refused)) in (1..).zip(cases) {
        block_on(bench.target.set_ana_state(NQN, &address, name, None)).unwrap();
        assert_eq!(next_notice(&mut controllers[1]).0, 0x0c_03_02);
        let expected = refused.unwrap_or(Status::SUCCESS);
        let io = &mut queues[1];
        for status in [
            read(io, 0, 4096),
            write(io, 0, 4096),
            io.execute(command::flush(1), Transfer::None, None).unwrap().status(),
            io.execute(command::flush(NSID_ALL), Transfer::None, None).unwrap().status(),
            io.execute(command::write_zeroes(1, 0, 8, false), Transfer::None, None).unwrap().status(),
        ] {
            assert!(status.is(expected) && !status.dnr(), "{name}: {status}");
        }
        // The other path does not care.
        assert!(write(&mut queues[0], 0, 4096).is_success());
        let admin = &mut controllers[1];
        let feature = command::get_features(Fid::ERROR_RECOVERY, 1);
        assert!(admin.execute(feature, Transfer::None, None).unwrap().status().is(expected), "{name}");
        let nuse = identify_namespace(admin).nuse.get();
        let hidden = matches!(state, AnaState::INACCESSIBLE | AnaState::PERSISTENT_LOSS);
        assert_eq!(nuse == 0, hidden, "{name}");
        assert_eq!(ana_log(admin), (count, 1, state));
    }
}

#[test]
fn a_subsystem_without_ana_reporting_tells_nothing_and_takes_no_states() {
    let bench = Bench::new(json!({}));
    let mut controller = bench.connect();
    let told = identify(&mut controller);
    assert_eq!((told.cmic & 8, told.anatt_s, told.anacap, told.nanagrpid.get()), (0, 0, 0, 0));
    let sqe = command::get_log_page(Lid::ANA, NSID_ALL, 0, 4096);
    let data = vec![0; 4096].into_boxed_slice();
    let status = controller.execute(sqe, Transfer::Read(4096), Some(data)).unwrap().status();
    assert!(status.is(Status::INVALID_LOG_PAGE), "{status}");
    let address = ListenAddress::tcp(bench.addr);
    let error = block_on(bench.target.set_ana_state(NQN, &address, "optimized", None)).unwrap_err();
    assert!(error.to_string().contains("ana_reporting"), "{error}");
    let wrong = Namespace { anagrpid: Some(1), nsid: Some(2), ..Namespace::on("EE_M") };
    let error = block_on(bench.target.add_ns(NQN, &wrong)).unwrap_err();
    assert!(error.to_string().contains("ana_reporting"), "{error}");
}

#[test]
fn a_path_is_closed_only_when_no_bdev_has_its_commands_any_more() {
    let bench = Bench::with(json!({}), json!({ "ana_reporting": true }));
    let controller = bench.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    bench.inject(json!({ "io_type": "write", "error_type": "pending", "num": 1 }));
    io.submit(command::write(1, 0, 8, false), Transfer::Write(4096), 0, Some(vec![1; 4096])).unwrap();
    let waiting = std::thread::spawn(move || (io.wait().unwrap().status(), io));
    bench.wait_for("the write is with the bdev", |bench| bench.sum("pending_bdev_io") == 1);
    let address = ListenAddress::tcp(bench.addr);
    let begin = Instant::now();
    let mut flip = pin!(bench.target.set_ana_state(NQN, &address, "inaccessible", None));
    block_on(poll_fn(|cx| {
        if begin.elapsed() >= Duration::from_millis(300) {
            bench.release_pending();
        }
        std::thread::sleep(Duration::from_millis(5));
        cx.waker().wake_by_ref();
        flip.as_mut().poll(cx)
    }))
    .unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let (_, mut io) = waiting.join().unwrap();
    assert!(read(&mut io, 0, 512).is(Status::ANA_INACCESSIBLE));
    drop((io, controller));
    bench.wait_idle();
}

#[test]
fn with_ana_an_io_queue_must_come_by_its_controllers_port() {
    for (ana, allowed) in [(false, true), (true, false)] {
        let bench = Bench::with(json!({}), json!({ "ana_reporting": ana }));
        let second = bench.listen();
        let controller = bench.connect();
        let queue = bench::open_io_at(&controller, second, 1);
        assert_eq!(queue.is_ok(), allowed, "ana_reporting {ana}");
    }
}

#[test]
fn a_namespace_that_moves_to_another_group_takes_that_groups_state() {
    let bench = Bench::with(json!({}), json!({ "ana_reporting": true }));
    let mut controller = bench.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    ask_for_events(&mut controller, EventConfig(0).with_ana_change(true).with_ns_attribute(true));
    let address = ListenAddress::tcp(bench.addr);
    block_on(bench.target.set_ana_state(NQN, &address, "inaccessible", Some(5))).unwrap();
    assert!(read(&mut io, 0, 512).is_success());
    block_on(bench.target.set_ns_ana_group(NQN, 1, 5)).unwrap();
    assert!(read(&mut io, 0, 512).is(Status::ANA_INACCESSIBLE));
    assert_eq!(next_notice(&mut controller).0, 0x0c_03_02, "no attribute has changed but the group");
    assert_eq!(ana_log(&mut controller), (1, 5, AnaState::INACCESSIBLE));
    assert_eq!(identify_namespace(&mut controller).anagrpid.get(), 5);
    // It is saved as it is.
    let calls = bench.target.config_calls();
    let call = |method| calls.iter().find(|(known, _)| *known == method).unwrap().1.clone();
    assert_eq!(call("nvmf_subsystem_add_ns")["namespace"]["anagrpid"], 5);
    let set = call("nvmf_subsystem_listener_set_ana_state");
    assert_eq!((&set["ana_state"], &set["anagrpid"]), (&json!("inaccessible"), &json!(5)));
    let error = block_on(bench.target.set_ns_ana_group(NQN, 1, 33)).unwrap_err();
    assert!(error.to_string().contains("1 to 32"), "{error}");
}
