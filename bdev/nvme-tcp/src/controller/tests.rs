//! Goal: the bring-up against a target in memory, its failures, keep-alive and events in virtual time.

use penstock_spec::nvme::event::{EventType, NoticeEvent};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::{Cqe, Status};

use super::*;
use crate::fake_target::{Choices, FakeTarget};

const MS: u64 = 1_000_000;

fn config(kato_ms: u32) -> ControllerConfig {
    let nqn = "nqn.2026-11.io.penstock:t".parse().unwrap();
    let admin = QpairConfig { kato_ms, ..QpairConfig::admin([1; 16], nqn, nqn) };
    ControllerConfig { admin, io_queues: 4, step_timeout_ns: 5_000 * MS }
}

/// Runs both sides until they are silent; returns the events.
fn settle(controller: &mut Controller, target: &mut FakeTarget, now_ns: u64) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        while let Some(event) = controller.poll(now_ns) {
            events.push(event);
        }
        let bytes: Vec<u8> = controller.tx_slices().flatten().copied().collect();
        target.feed(&bytes);
        controller.tx_consume(bytes.len());
        if bytes.is_empty() && target.output.is_empty() {
            return events;
        }
        let output = std::mem::take(&mut target.output);
        if controller.recv(&output).is_err() {
            events.extend(controller.poll(now_ns));
            return events;
        }
    }
}

fn live(kato_ms: u32, choices: Choices) -> (Controller, FakeTarget) {
    let mut controller = Controller::new(config(kato_ms));
    let mut target = FakeTarget::new(choices, 64);
    let events = settle(&mut controller, &mut target, 0);
    assert!(matches!(events[..], [Event::Live]), "{events:?}");
    (controller, target)
}

#[test]
fn a_controller_comes_up_and_tells_what_it_can() {
    let (controller, target) = live(0, Choices { ioccsz: 260, ..Choices::default() });
    assert_eq!(controller.cntlid(), 7);
    assert_eq!(controller.io_queues(), 2);
    assert_eq!(controller.transfer_bytes_max(), Some(128 << 10));
    assert_eq!(controller.vs().to_string(), "2.1.0");
    assert_eq!(target.aers.len(), 3);
    let io = controller.io_qpair(1, 1024);
    assert_eq!((io.depth, io.in_capsule_max, io.cntlid), (64, 4096, 7));
    assert_eq!(controller.next_timer_ns(), None);
}

#[test]
fn a_slow_controller_is_waited_for_and_a_dead_one_is_given_up() {
    let mut controller = Controller::new(config(0));
    let mut target = FakeTarget::new(Choices { ready_after: 3, ..Choices::default() }, 64);
    assert!(settle(&mut controller, &mut target, 0).is_empty());
    let mut now = 0;
    let mut events = Vec::new();
    while events.is_empty() {
        now = controller.next_timer_ns().unwrap();
        events = settle(&mut controller, &mut target, now);
    }
    assert!(matches!(events[..], [Event::Live]));
    assert_eq!(now, 30 * MS);
    let mut controller = Controller::new(config(0));
    assert!(controller.poll(0).is_none());
    let error = controller.poll(5_000 * MS).unwrap();
    assert!(matches!(error, Event::Lost(ControllerError::Timeout { what: "Connect", limit_ms: 5_000 })));
}

#[test]
fn keep_alives_are_sent_at_half_the_timeout_and_missed_ones_are_fatal() {
    let (mut controller, mut target) = live(1_000, Choices::default());
    for i in 1..=4 {
        assert_eq!(controller.next_timer_ns(), Some(i * 500 * MS));
        assert!(settle(&mut controller, &mut target, i * 500 * MS).is_empty());
        assert_eq!(u64::from(target.keep_alives), i);
    }
    assert!(controller.poll(2_500 * MS).is_none());
    assert!(controller.poll(3_000 * MS).is_none());
    let lost = controller.poll(3_500 * MS).unwrap();
    assert!(matches!(lost, Event::Lost(ControllerError::Timeout { what: "Keep Alive", .. })));
    assert!(controller.poll(4_000 * MS).is_none());
}

#[test]
fn events_are_told_and_their_requests_renewed() {
    let (mut controller, mut target) = live(0, Choices::default());
    let cid = target.aers.remove(0);
    let result =
        EventResult::new(EventType::NOTICE, NoticeEvent::NS_ATTRIBUTE_CHANGED.0, Lid::CHANGED_NS_LIST);
    target.respond(Cqe::new(cid, 0, Status::SUCCESS).with_dw0(result.0));
    let events = settle(&mut controller, &mut target, 0);
    assert!(matches!(events[..], [Event::Async(got)] if got == result));
    assert_eq!(target.aers.len(), 3);
}

#[test]
fn shutting_down_waits_for_the_controller() {
    let (mut controller, mut target) = live(0, Choices::default());
    controller.shut_down(0);
    let events = settle(&mut controller, &mut target, 0);
    assert!(matches!(events[..], [Event::ShutDown]), "{events:?}");
    let sqe = command::keep_alive();
    assert!(controller.submit(sqe, Transfer::None, 1, None).is_err());
}

#[test]
fn a_capsule_size_below_the_standard_is_not_accepted() {
    let mut controller = Controller::new(config(0));
    let mut target = FakeTarget::new(Choices { ioccsz: 3, ..Choices::default() }, 64);
    let events = settle(&mut controller, &mut target, 0);
    assert!(matches!(events[..], [Event::Lost(ControllerError::Unusable { what: "IOCCSZ", value: 3 })]));
}

#[test]
fn every_notice_is_asked_for_and_a_refusal_is_lived_with() {
    let (_, target) = live(0, Choices::default());
    assert_eq!(target.event_config, 0x8000_0b00);
    live(0, Choices { event_config_status: Status::FEATURE_NOT_CHANGEABLE, ..Choices::default() });
}
