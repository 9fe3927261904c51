use penstock_bdev::reservation::{HostId, Notice, RegistrantId, Reservations};
use penstock_spec::nvme::feature::ReservationNotificationMask;
use penstock_spec::nvme::log::ReservationLogType;
use penstock_spec::nvme::reservation::{RegistrantExtended, ReportDw11, ReservationStatusHdr};
use penstock_spec::nvme::{Sqe, Status};
use proptest::prelude::*;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::*;
use crate::config::Nsid;

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
const CONFLICT: Status = Status::RESERVATION_CONFLICT.with_dnr();

fn nvme(number: u8) -> RegistrantId {
    RegistrantId { host: HostId::Nvme([number; 16]), port: 0 }
}

fn sqe(opcode: NvmOpcode, dw10: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode.0, 1);
    sqe.cdw10 = U32::new(dw10);
    sqe
}

fn keys(first: u64, second: u64) -> Vec<u8> {
    [first.to_le_bytes(), second.to_le_bytes()].concat()
}

fn parse(opcode: NvmOpcode, dw10: u32, first: u64, second: u64) -> Result<ReservationCommand, Status> {
    ReservationCommand::parse(&sqe(opcode, dw10), &keys(first, second))
}

#[test]
fn every_field_of_a_register_in_and_out_of_range() {
    let register = |dw10| parse(NvmOpcode::RESERVATION_REGISTER, dw10, 1, 2);
    assert_eq!(register(0), Ok(ReservationCommand::Register { new_key: 2, ptpl: None }));
    assert_eq!(register(1), Ok(ReservationCommand::Unregister { key: Some(1), ptpl: None }));
    assert_eq!(register(2), Ok(ReservationCommand::Replace { key: Some(1), new_key: 2, ptpl: None }));
    assert_eq!(register(2 | 8), Ok(ReservationCommand::Replace { key: None, new_key: 2, ptpl: None }));
    for action in 3..8 {
        assert_eq!(register(action), Err(INVALID_FIELD));
    }
    let ptpl = |cptpl: u32| match register(cptpl << 30) {
        Ok(ReservationCommand::Register { ptpl, .. }) => Ok(ptpl),
        other => Err(other),
    };
    assert_eq!((ptpl(0), ptpl(2), ptpl(3)), (Ok(None), Ok(Some(false)), Ok(Some(true))));
    assert_eq!(ptpl(1), Err(Err(INVALID_FIELD)));
    for action in [0, 2] {
        assert_eq!(parse(NvmOpcode::RESERVATION_REGISTER, action, 1, 0), Err(INVALID_FIELD), "no key 0");
    }
    assert!(parse(NvmOpcode::RESERVATION_REGISTER, 1, 1, 0).is_ok());
}

#[test]
fn every_field_of_acquire_and_release_in_and_out_of_range() {
    for (code, kind) in TYPES {
        let dw10 = u32::from(code.0) << 8;
        let acquire = |action| parse(NvmOpcode::RESERVATION_ACQUIRE, dw10 | action, 1, 2);
        assert_eq!(acquire(0), Ok(ReservationCommand::Acquire { key: 1, kind }));
        for (action, abort) in [(1, false), (2, true)] {
            assert_eq!(acquire(action), Ok(ReservationCommand::Preempt { key: 1, victim: 2, kind, abort }));
        }
        let release = parse(NvmOpcode::RESERVATION_RELEASE, dw10, 1, 0);
        assert_eq!(release, Ok(ReservationCommand::Release { key: 1, kind }));
    }
    assert_eq!(
        parse(NvmOpcode::RESERVATION_RELEASE, 1, 1, 0),
        Ok(ReservationCommand::Clear { key: 1 }),
        "clear has no type"
    );
    for opcode in [NvmOpcode::RESERVATION_ACQUIRE, NvmOpcode::RESERVATION_RELEASE] {
        for dw10 in [0x108, 0x000, 0x700, 0xff00, 0x103, 0x107] {
            assert_eq!(parse(opcode, dw10, 1, 2), Err(INVALID_FIELD), "{opcode} {dw10:#x}");
        }
        let short = ReservationCommand::parse(&sqe(opcode, 0x100), &[0; 7]);
        assert_eq!(short, Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()));
    }
}

#[test]
fn registering_replacing_and_unregistering_go_by_the_keys() {
    let mut machine = Reservations::new();
    let (a, b) = (nvme(1), nvme(2));
    let mut run = |host: &RegistrantId, command: ReservationCommand| {
        let mut next = machine.clone();
        let done = command.apply(&mut next, host, false).map(drop);
        if done.is_ok() {
            machine = next;
        }
        (done, machine.key_of(host))
    };
    let register = |new_key| ReservationCommand::Register { new_key, ptpl: None };
    let replace = |key, new_key| ReservationCommand::Replace { key, new_key, ptpl: None };
    let unregister = |key| ReservationCommand::Unregister { key, ptpl: None };
    assert_eq!(run(&a, unregister(None)), (Err(CONFLICT), None));
    assert_eq!(run(&a, replace(Some(0), 9)), (Err(CONFLICT), None));
    assert_eq!(run(&a, register(5)), (Ok(()), Some(5)));
    assert_eq!(run(&a, register(5)), (Ok(()), Some(5)), "the same key again");
    assert_eq!(run(&a, register(6)), (Err(CONFLICT), Some(5)));
    assert_eq!(run(&a, replace(Some(4), 6)), (Err(CONFLICT), Some(5)));
    assert_eq!(run(&a, replace(Some(5), 6)), (Ok(()), Some(6)));
    assert_eq!(run(&a, replace(None, 7)), (Ok(()), Some(7)));
    assert_eq!(run(&b, replace(None, 8)), (Ok(()), Some(8)), "with IEKEY it registers");
    assert_eq!(run(&a, unregister(Some(1))), (Err(CONFLICT), Some(7)));
    assert_eq!(run(&a, unregister(Some(7))), (Ok(()), None));
    assert_eq!(run(&b, unregister(None)), (Ok(()), None));
}

#[test]
fn persistence_is_refused_where_there_is_no_place_for_it() {
    let mut machine = Reservations::new();
    let host = nvme(1);
    for command in [
        ReservationCommand::Register { new_key: 1, ptpl: Some(true) },
        ReservationCommand::Replace { key: None, new_key: 1, ptpl: Some(true) },
        ReservationCommand::Persist(true),
    ] {
        assert_eq!(command.apply(&mut machine, &host, false).unwrap_err(), INVALID_FIELD, "{command:?}");
        command.apply(&mut machine, &host, true).unwrap();
        assert!(machine.to_persist().is_some());
        ReservationCommand::Persist(false).apply(&mut machine, &host, false).unwrap();
        assert!(machine.to_persist().is_none());
    }
}

#[test]
fn a_report_has_all_registrants_whatever_protocol_they_speak_and_is_cut_where_the_host_says() {
    let mut machine = Reservations::new();
    let scsi = RegistrantId { host: HostId::Scsi(Arc::from(&b"iqn"[..])), port: 1 };
    machine.register(&nvme(3), None, 33, Some(true)).unwrap();
    machine.register(&scsi, None, 44, None).unwrap();
    machine.reserve(&nvme(3), 33, ReservationType::ExclusiveAccessRegistrantsOnly).unwrap();
    let view = machine.view();
    let mut out = Vec::new();
    let eds = ReportDw11(0).with_eds(true);
    report(&view, eds, 4096, &mut out).unwrap();
    let (head, _) = ReservationStatusHdr::ref_from_prefix(&out).unwrap();
    assert_eq!((head.gen_.get(), head.rtype, head.regstrnt.get(), head.ptpls), (2, 4, 2, 1));
    assert_eq!(out.len(), 64 + 2 * 64);
    let told: Vec<_> = out[64..]
        .chunks_exact(64)
        .map(|bytes| RegistrantExtended::ref_from_bytes(bytes).unwrap())
        .map(|one| (one.cntlid.get(), one.rcsts, one.rkey.get(), one.hostid == [3; 16]))
        .collect();
    assert_eq!(told, [(0xffff, 1, 33, true), (0xffff, 0, 44, false)]);
    report(&view, eds, 100, &mut out).unwrap();
    assert_eq!(out.len(), 100);
    let error = report(&view, ReportDw11(0), 4096, &mut out).unwrap_err();
    assert_eq!(error, Status::HOST_ID_INCONSISTENT_FORMAT.with_dnr());
}

#[test]
fn notices_come_in_order_are_counted_and_can_be_masked() {
    let mut notices = Notices::default();
    assert_eq!(notices.page().log_type, ReservationLogType::EMPTY);
    assert!(notices.add(Nsid(1), Notice::RegistrationPreempted));
    assert!(notices.add(Nsid(2), Notice::ReservationReleased));
    notices.set_mask(Nsid(1), ReservationNotificationMask(u32::MAX));
    assert_eq!(notices.mask(Nsid(1)).0, 0b1110);
    for notice in [Notice::RegistrationPreempted, Notice::ReservationReleased, Notice::ReservationPreempted] {
        assert!(!notices.add(Nsid(1), notice));
    }
    let page = notices.page();
    assert_eq!((page.count.get(), page.nsid.get(), page.available), (1, 1, 1));
    assert_eq!(page.log_type, ReservationLogType::REGISTRATION_PREEMPTED);
    assert!(notices.was_read());
    let page = notices.page();
    assert_eq!((page.count.get(), page.nsid.get(), page.available), (2, 2, 0));
    assert!(!notices.was_read() && !notices.was_read());
    for _ in 0..1000 {
        notices.add(Nsid(2), Notice::ReservationPreempted);
    }
    let page = notices.page();
    assert_eq!((page.count.get(), page.available), (1002 - 255, 255), "the oldest went");
}

/// What a command of each kind may do, as the standard's table has it.
fn table(kind: ReservationType, holder: bool, registrant: bool, access: Access) -> bool {
    use ReservationType as T;
    match kind {
        _ if holder => true,
        T::WriteExclusive => access == Access::Read,
        T::ExclusiveAccess => false,
        T::WriteExclusiveRegistrantsOnly | T::WriteExclusiveAllRegistrants => {
            registrant || access == Access::Read
        }
        T::ExclusiveAccessRegistrantsOnly | T::ExclusiveAccessAllRegistrants => registrant,
    }
}

proptest! {
    /// Hosts send anything in any order. A naive model of who is registered with what and who holds says the same.
    #[test]
    fn whatever_hosts_send_the_machine_keeps_to_the_standards_rules(
        steps in proptest::collection::vec((1_u8..4, 0_usize..4, any::<u32>(), 0_u64..4, 0_u64..4), 1..60),
    ) {
        let opcodes = [
            NvmOpcode::RESERVATION_REGISTER,
            NvmOpcode::RESERVATION_ACQUIRE,
            NvmOpcode::RESERVATION_RELEASE,
            NvmOpcode::RESERVATION_ACQUIRE,
        ];
        let mut machine = Reservations::new();
        for (host, which, dw10, first, second) in steps {
            let host = nvme(host);
            let dw10 = dw10 & 0xc000_070b;
            let Ok(command) = parse(opcodes[which], dw10, first, second) else { continue };
            let before = machine.view();
            let mut next = machine.clone();
            let done = command.apply(&mut next, &host, true);
            let Ok(effects) = done else { continue };
            machine = next;
            let view = machine.view();
            let (was, is) = (before.key_of(&host), view.key_of(&host));
            match command {
                ReservationCommand::Register { new_key, .. } | ReservationCommand::Replace { new_key, .. } => {
                    prop_assert_eq!(is, Some(new_key));
                    prop_assert_eq!(&view.holder, &before.holder);
                }
                ReservationCommand::Unregister { .. } => prop_assert!(was.is_some() && is.is_none()),
                ReservationCommand::Acquire { key, kind } => {
                    prop_assert!(was == Some(key) && view.kind() == Some(kind) && view.standing(&host).holder);
                }
                ReservationCommand::Preempt { key, victim, abort, .. } => {
                    prop_assert!(was == Some(key) && is == Some(key));
                    prop_assert!(view.registrants.iter().all(|(id, key)| *id == host || (victim != 0 && *key != victim)));
                    prop_assert!(abort || effects.aborted.is_empty());
                    prop_assert!(effects.aborted.iter().all(|id| *id != host && view.key_of(id).is_none()));
                }
                ReservationCommand::Release { key, .. } => prop_assert!(was == Some(key)),
                ReservationCommand::Clear { .. } => prop_assert!(view.registrants.is_empty() && view.holder.is_none()),
                ReservationCommand::Persist(_) => {}
            }
            prop_assert!(effects.notices.iter().all(|(id, _)| *id != host), "nobody is told of its own deeds");
            for other in (1..5).map(nvme) {
                let standing = view.standing(&other);
                for access in [Access::Read, Access::Write] {
                    let may = view.kind().is_none_or(|kind| {
                        table(kind, standing.holder, view.key_of(&other).is_some(), access)
                    });
                    prop_assert_eq!(view.allows(standing, access), may);
                }
            }
        }
    }
}
