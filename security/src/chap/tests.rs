use penstock_spec::nvmf::auth::{AuthFailureReason as Reason, AuthId, AuthType};
use proptest::prelude::*;

use super::*;
use crate::dh::DhGroup;

fn parties() -> Parties {
    let nqn = |name: &str| Nqn::parse(format!("nqn.2026-11.io.penstock:{name}").as_bytes()).unwrap();
    Parties { host: nqn("host"), subsystem: nqn("disk") }
}

fn secret() -> Secret {
    Secret::generate(Some(Hash::Sha256)).unwrap()
}

fn keys(controller: bool) -> Keys {
    Keys { host: secret(), controller: controller.then(secret) }
}

fn host(keys: &Keys, hash: Hash, group: DhGroup, channel: SecureChannel) -> HostSide {
    let policy = Policy { hashes: vec![hash], groups: vec![group] };
    HostSide::new(HostConfig { parties: parties(), keys: keys.clone(), policy, channel }, 0x1234)
}

/// Both sides, to the end: what the host thinks, what the controller does.
fn run(
    mut host: HostSide,
    controller: &mut ControllerSide,
    keys: Option<&Keys>,
) -> (Result<Option<Bytes>, HostError>, Option<Event>) {
    let policy = Policy::default();
    for _ in 0..16 {
        match host.step() {
            HostStep::Send(message) => match controller.send(&message, &policy, keys) {
                Step::Work(job) => assert!(matches!(controller.worked(job.run(), 0), Step::Taken)),
                step => assert!(matches!(step, Step::Taken), "{step:?}"),
            },
            HostStep::Receive(len) => {
                let message = match controller.receive(len) {
                    Step::Work(job) => controller.worked(job.run(), len),
                    step => step,
                };
                let Step::Message(mut message) = message else { panic!("{message:?}") };
                message.resize(len, 0);
                if let Some(job) = host.received(&message) {
                    host.worked(job.run());
                }
            }
            HostStep::Work(_) => unreachable!("jobs come from received"),
            HostStep::Over(result) => return (result, controller.take_event()),
        }
    }
    panic!("no end")
}

fn controller() -> ControllerSide {
    ControllerSide::new(parties(), SecureChannel::NONE)
}

#[test]
fn a_host_proves_itself_with_every_hash_and_a_controller_too_where_it_is_asked_to() {
    for hash in Hash::ALL {
        for both in [false, true] {
            let keys = keys(both);
            let host = host(&keys, hash, DhGroup::Null, SecureChannel::NONE);
            let (result, event) = run(host, &mut controller(), Some(&keys));
            assert_eq!(result, Ok(None));
            assert_eq!(event, Some(Event::Authenticated { hash, generated: None }));
        }
    }
}

#[test]
fn a_group_adds_a_shared_secret() {
    let keys = keys(true);
    let host = host(&keys, Hash::Sha384, DhGroup::Ffdhe2048, SecureChannel::NONE);
    let mut controller = controller();
    let (result, event) = run(host, &mut controller, Some(&keys));
    assert_eq!(result, Ok(None));
    assert!(matches!(event, Some(Event::Authenticated { hash: Hash::Sha384, .. })));
    assert_eq!(controller.terms().group, DhGroup::Ffdhe2048);
}

#[test]
fn a_host_with_the_wrong_secret_is_refused() {
    let (right, wrong) = (keys(false), keys(false));
    let side = host(&wrong, Hash::Sha512, DhGroup::Null, SecureChannel::NONE);
    let (result, event) = run(side, &mut controller(), Some(&right));
    assert_eq!(result, Err(HostError::Refused(Reason::FAILED)));
    assert_eq!(event, Some(Event::Failed { reason: Reason::FAILED, by_host: false }));
    // A host whose secret is gone meanwhile is refused like one with a wrong one.
    let side = host(&right, Hash::Sha512, DhGroup::Null, SecureChannel::NONE);
    assert_eq!(run(side, &mut controller(), None).0, Err(HostError::Refused(Reason::FAILED)));
}

#[test]
fn a_host_finds_out_a_controller_with_the_wrong_secret() {
    let right = keys(true);
    let wrong = Keys { controller: Some(secret()), ..right.clone() };
    let side = host(&right, Hash::Sha256, DhGroup::Null, SecureChannel::NONE);
    let (result, event) = run(side, &mut controller(), Some(&wrong));
    assert_eq!(result, Err(HostError::Impostor));
    assert_eq!(event, Some(Event::Failed { reason: Reason::FAILED, by_host: true }));
    // A controller without a secret cannot pretend to have one.
    let none = Keys { controller: None, ..right.clone() };
    let side = host(&right, Hash::Sha256, DhGroup::Null, SecureChannel::NONE);
    assert_eq!(run(side, &mut controller(), Some(&none)).0, Err(HostError::Refused(Reason::FAILED)));
}

#[test]
fn concatenation_makes_the_same_key_on_both_sides_and_only_where_it_is_offered() {
    let channel = SecureChannel::NEW_TLS_PSK;
    for both in [false, true] {
        let keys = keys(both);
        let side = host(&keys, Hash::Sha384, DhGroup::Ffdhe2048, channel);
        let (result, event) = run(side, &mut ControllerSide::new(parties(), channel), Some(&keys));
        let generated = result.unwrap().unwrap();
        assert_eq!(generated.len(), 48);
        let expected = Event::Authenticated { hash: Hash::Sha384, generated: Some((generated, channel)) };
        assert_eq!(event, Some(expected));
    }
    let refused = |hash, group, offered| {
        let keys = keys(false);
        let side = host(&keys, hash, group, channel);
        run(side, &mut ControllerSide::new(parties(), offered), Some(&keys)).0.unwrap_err()
    };
    let mismatch = HostError::Refused(Reason::CONCATENATION_MISMATCH);
    assert_eq!(refused(Hash::Sha256, DhGroup::Ffdhe2048, SecureChannel::NONE), mismatch);
    assert_eq!(refused(Hash::Sha256, DhGroup::Ffdhe2048, SecureChannel::REPLACE_TLS_PSK), mismatch);
    assert_eq!(refused(Hash::Sha256, DhGroup::Null, channel), HostError::Refused(Reason::DHGROUP_UNUSABLE));
    assert_eq!(refused(Hash::Sha512, DhGroup::Ffdhe2048, channel), HostError::Refused(Reason::HASH_UNUSABLE));
}

/// A failure's reason, fetched as a host fetches it.
fn reason(controller: &mut ControllerSide) -> Reason {
    let Step::Message(message) = controller.receive(64) else { panic!("no message") };
    assert_eq!(&message[..2], &[AuthType::COMMON.0, AuthId::FAILURE1.0]);
    assert_eq!((message.len(), message[6]), (8, 1));
    assert!(controller.is_over());
    Reason(message[7])
}

/// A controller that waits for message `due` (1: Negotiate, 2: Reply, 3: Success2), and that message.
fn waiting_for(due: usize, keys: &Keys) -> (ControllerSide, Vec<u8>) {
    let mut host = host(keys, Hash::Sha256, DhGroup::Null, SecureChannel::NONE);
    let (mut controller, policy) = (controller(), Policy::default());
    let mut sent = 0;
    loop {
        match host.step() {
            HostStep::Send(message) => {
                sent += 1;
                if sent == due {
                    return (controller, message);
                }
                if let Step::Work(job) = controller.send(&message, &policy, Some(keys)) {
                    controller.worked(job.run(), 0);
                }
            }
            HostStep::Receive(len) => {
                let step = match controller.receive(len) {
                    Step::Work(job) => controller.worked(job.run(), len),
                    step => step,
                };
                let Step::Message(message) = step else { panic!("{step:?}") };
                if let Some(job) = host.received(&message) {
                    host.worked(job.run());
                }
            }
            step => panic!("{step:?}"),
        }
    }
}

#[test]
fn a_message_out_of_order_is_refused() {
    let keys = keys(true);
    let messages: Vec<Vec<u8>> = (1..=3).map(|due| waiting_for(due, &keys).1).collect();
    for due in 1..=3 {
        for (index, message) in messages.iter().enumerate() {
            let (mut controller, _) = waiting_for(due, &keys);
            if index + 1 != due {
                assert!(matches!(controller.send(message, &Policy::default(), Some(&keys)), Step::Taken));
                assert_eq!(reason(&mut controller), Reason::INCORRECT_MESSAGE, "{index} for {due}");
                let event = controller.take_event();
                assert!(matches!(event, Some(Event::Failed { by_host: false, .. })), "{event:?}");
            }
        }
    }
    // Receiving what is not there yet, and after the end.
    let mut early = controller();
    assert_eq!(reason(&mut early), Reason::INCORRECT_MESSAGE);
    let (mut late, _) = waiting_for(3, &keys);
    assert_eq!(reason(&mut late), Reason::INCORRECT_MESSAGE);
}

#[test]
fn each_wrong_field_has_its_reason() {
    let keys = keys(true);
    let cases: &[(usize, usize, u8, Reason)] = &[
        // Negotiate: concatenation, number of protocols, protocol, list lengths, hash, group.
        (1, 6, 1, Reason::CONCATENATION_MISMATCH),
        (1, 6, 2, Reason::CONCATENATION_MISMATCH),
        (1, 7, 0, Reason::INCORRECT_PAYLOAD),
        (1, 7, 2, Reason::INCORRECT_PAYLOAD),
        (1, 8, 2, Reason::PROTOCOL_UNUSABLE),
        (1, 10, 31, Reason::INCORRECT_PAYLOAD),
        (1, 10, 0, Reason::HASH_UNUSABLE),
        (1, 11, 31, Reason::INCORRECT_PAYLOAD),
        (1, 11, 0, Reason::DHGROUP_UNUSABLE),
        (1, 12, 9, Reason::HASH_UNUSABLE),
        (1, 42, 9, Reason::DHGROUP_UNUSABLE),
        // Reply: transaction, hash length, challenge valid, length of the DH value, response.
        (2, 4, 0x35, Reason::INCORRECT_PAYLOAD),
        (2, 6, 48, Reason::INCORRECT_PAYLOAD),
        (2, 8, 2, Reason::INCORRECT_PAYLOAD),
        (2, 10, 4, Reason::INCORRECT_PAYLOAD),
        (2, 16, 0, Reason::FAILED),
        // Success2: transaction.
        (3, 5, 0x13, Reason::INCORRECT_PAYLOAD),
    ];
    for (due, offset, value, expected) in cases {
        let (mut controller, mut message) = waiting_for(*due, &keys);
        if message[*offset] == *value {
            message[*offset] ^= 0xff;
        } else {
            message[*offset] = *value;
        }
        if let Step::Work(job) = controller.send(&message, &Policy::default(), Some(&keys)) {
            controller.worked(job.run(), 0);
        }
        assert_eq!(reason(&mut controller), *expected, "message {due}, byte {offset}");
    }
    let (mut controller, mut reply) = waiting_for(2, &keys);
    reply[12..16].fill(0);
    controller.send(&reply, &Policy::default(), Some(&keys));
    assert_eq!(reason(&mut controller), Reason::INCORRECT_PAYLOAD, "sequence number 0");
}

#[test]
fn a_room_too_small_for_a_message_ends_the_transaction() {
    let keys = keys(false);
    let (mut controller, message) = waiting_for(1, &keys);
    controller.send(&message, &Policy::default(), Some(&keys));
    let Step::Work(job) = controller.receive(47) else { panic!("no challenge") };
    let Step::Message(message) = controller.worked(job.run(), 47) else { panic!("no message") };
    assert_eq!(message[7], Reason::INCORRECT_PAYLOAD.0);
}

#[test]
fn a_command_while_another_waits_is_no_part_of_the_transaction() {
    let keys = keys(false);
    let (mut controller, message) = waiting_for(1, &keys);
    controller.send(&message, &Policy::default(), Some(&keys));
    let Step::Work(job) = controller.receive(64) else { panic!("no challenge") };
    assert!(matches!(controller.receive(64), Step::Busy));
    assert!(matches!(controller.send(&message, &Policy::default(), Some(&keys)), Step::Busy));
    assert!(matches!(controller.worked(job.run(), 64), Step::Message(_)));
}

#[test]
fn the_strongest_of_what_both_can_is_taken() {
    let keys = keys(false);
    let policy =
        Policy { hashes: vec![Hash::Sha256, Hash::Sha384], groups: vec![DhGroup::Null, DhGroup::Ffdhe3072] };
    let config = HostConfig {
        parties: parties(),
        keys: keys.clone(),
        policy: Policy::default(),
        channel: SecureChannel::NONE,
    };
    let HostStep::Send(message) = HostSide::new(config, 1).step() else { panic!("no message") };
    let mut controller = controller();
    controller.send(&message, &policy, Some(&keys));
    assert_eq!((controller.terms().hash, controller.terms().group), (Hash::Sha384, DhGroup::Ffdhe3072));
}

proptest! {
    #[test]
    fn no_bytes_make_a_controller_believe_a_host(
        due in 1_usize..=3,
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
        header in any::<bool>(),
    ) {
        let keys = keys(true);
        let (mut controller, message) = waiting_for(due, &keys);
        let mut bytes = garbage;
        if header && bytes.len() >= 6 {
            bytes[..6].copy_from_slice(&message[..6]);
        }
        if due != 3 || bytes != message {
            if let Step::Work(job) = controller.send(&bytes, &Policy::default(), Some(&keys)) {
                controller.worked(job.run(), 0);
            }
            let believed = matches!(controller.take_event(), Some(Event::Authenticated { .. }));
            // In the last message only type, transaction and length count.
            prop_assert!(!believed || (due == 3 && header && bytes.len() == 16));
        }
        prop_assert!(!matches!(controller.receive(0), Step::Taken));
    }
}
