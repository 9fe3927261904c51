//! What one nexus does to the others: reservations, unit attentions, port groups, the medium.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod bench;

use std::rc::Rc;
use std::sync::Arc;

use bench::{Bench, INVALID_CDB, pr_in, pr_out, rw10, rw16};
use penstock_bdev::reservation::{HostId, RegistrantId, ReservationType, Reservations};
use penstock_scsi::{Control, Nexus, Seal, Step, Task, iscsi_transport_id};
use penstock_spec::scsi::report::AccessState;

const TUR: [u8; 6] = [0; 6];
const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
/// REGISTER AND IGNORE EXISTING KEY.
const REGISTER: u8 = 6;
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

fn out(bench: &mut Bench, nexus: usize, action: u8, kind: u8, key: u64, action_key: u64) -> bench::Outcome {
    let (cdb, list) = pr_out(action, kind, key, action_key, 0);
    bench.run(nexus, 0, &cdb, &list)
}

fn read(bench: &mut Bench, nexus: usize) -> u8 {
    bench.run(nexus, 0, &rw10(0x28, 0, 0, 1), &[]).status
}

fn write(bench: &mut Bench, nexus: usize) -> u8 {
    bench.run(nexus, 0, &rw10(0x2a, 0, 0, 1), &[0; 512]).status
}

#[test]
fn each_type_keeps_out_whom_it_should() {
    // Type, and whether another registrant and a stranger may read and write.
    let rights = [
        (1, [true, false, true, false]),
        (3, [false, false, false, false]),
        (5, [true, true, true, false]),
        (6, [true, true, false, false]),
        (7, [true, true, true, false]),
        (8, [true, true, false, false]),
    ];
    for (kind, [registrant_reads, registrant_writes, stranger_reads, stranger_writes]) in rights {
        let mut bench = Bench::new(1, 2);
        out(&mut bench, 0, REGISTER, 0, 0, 11).good();
        out(&mut bench, 1, REGISTER, 0, 0, 22).good();
        out(&mut bench, 0, 1, kind, 11, 0).good();
        let reservation = bench.run(1, 0, &pr_in(1), &[]).good();
        let key = if kind >= 7 { 0 } else { 11 };
        assert_eq!(reservation[8..16], u64::to_be_bytes(key));
        assert_eq!((reservation.len(), reservation[21]), (24, kind));
        assert_eq!((read(&mut bench, 0), write(&mut bench, 0)), (0, 0));
        let status = |may: bool| if may { 0 } else { 0x18 };
        assert_eq!(read(&mut bench, 1), status(registrant_reads), "type {kind}");
        assert_eq!(write(&mut bench, 1), status(registrant_writes), "type {kind}");
        out(&mut bench, 1, 0, 0, 22, 0).good();
        assert_eq!(read(&mut bench, 1), status(stranger_reads), "type {kind}");
        assert_eq!(write(&mut bench, 1), status(stranger_writes), "type {kind}");
        // What is always allowed.
        for cdb in [&TUR[..], &[0x12, 0, 0, 0, 96, 0], &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &pr_in(0)] {
            bench.run(1, 0, cdb, &[]).good();
        }
        bench.run(1, 0, &[0x1a, 0, 0x3f, 0, 255, 0], &[]).conflict();
        out(&mut bench, 0, 2, kind, 11, 0).good();
        assert_eq!((read(&mut bench, 1), write(&mut bench, 1)), (0, 0));
        assert_eq!(bench.run(1, 0, &pr_in(1), &[]).good().len(), 8);
    }
}

#[test]
fn a_holder_who_unregisters_releases_what_is_not_shared() {
    for kind in TYPES {
        let mut bench = Bench::new(1, 3);
        out(&mut bench, 0, REGISTER, 0, 0, 11).good();
        out(&mut bench, 1, REGISTER, 0, 0, 22).good();
        out(&mut bench, 0, 1, kind, 11, 0).good();
        out(&mut bench, 0, 0, 0, 11, 0).good();
        let still = bench.run(0, 0, &pr_in(1), &[]).good().len() == 24;
        assert_eq!(still, kind >= 7, "type {kind}");
        // The other registrant is told where it loses rights; nobody else is.
        let told = bench.run(1, 0, &TUR, &[]).sense;
        assert_eq!(told, matches!(kind, 5 | 6).then_some((6, 0x2a04)), "type {kind}");
        bench.run(0, 0, &TUR, &[]).good();
        bench.run(2, 0, &TUR, &[]).good();
    }
}

#[test]
fn keys_generations_and_full_status_are_reported() {
    let mut bench = Bench::new(1, 2);
    assert_eq!(bench.run(0, 0, &pr_in(0), &[]).good(), [0; 8]);
    out(&mut bench, 0, REGISTER, 0, 0, 0x1122_3344_5566_7788).good();
    out(&mut bench, 1, 0, 0, 0, 2).good();
    let keys = bench.run(1, 0, &pr_in(0), &[]).good();
    assert_eq!(keys[..8], [0, 0, 0, 2, 0, 0, 0, 16]);
    assert_eq!(keys[8..], [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 0, 0, 0, 0, 2]);
    // ADDITIONAL LENGTH does not shrink with the allocation length.
    assert_eq!(bench.run(0, 0, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[]).good(), keys[..8]);
    // A wrong key is a conflict, also for one's own.
    out(&mut bench, 0, 0, 0, 0, 5).conflict();
    out(&mut bench, 0, 1, 1, 5, 0).conflict();
    out(&mut bench, 0, 1, 3, 0x1122_3344_5566_7788, 0).good();
    let status = bench.run(0, 0, &pr_in(3), &[]).good();
    assert_eq!(
        usize::try_from(u32::from_be_bytes(status[4..8].try_into().unwrap())).unwrap() + 8,
        status.len()
    );
    assert_eq!((status[16 + 4], status[16 + 5], status[8 + 19]), (1, 3, 1));
    assert_eq!(status[32..36], [0x45, 0, 0, 36]);
    assert_eq!(&status[36..72], b"iqn.2024-01.host:0,i,0x000203040500\0");
    assert_eq!(bench.run(0, 0, &pr_in(2), &[]).good(), [0, 8, 1, 0x80, 0xea, 1, 0, 0]);
    for action in 4..32 {
        assert_eq!(bench.run(0, 0, &pr_in(action), &[]).status, 2);
    }
    // CLEAR counts once, and tells the others.
    out(&mut bench, 0, 3, 0, 0x1122_3344_5566_7788, 0).good();
    bench.run(1, 0, &TUR, &[]).check(6, 0x2a03);
    assert_eq!(bench.run(0, 0, &pr_in(0), &[]).good(), [0, 0, 0, 3, 0, 0, 0, 0]);
}

#[test]
fn preempt_and_abort_names_whose_commands_are_to_be_aborted() {
    let mut bench = Bench::new(1, 3);
    for nexus in 0..3 {
        out(&mut bench, nexus, REGISTER, 0, 0, 10 + nexus as u64).good();
    }
    out(&mut bench, 0, 1, 5, 10, 0).good();
    let (cdb, list) = pr_out(5, 3, 11, 10, 0);
    let mut task = Task::new();
    let mut padded = [0; 16];
    padded[..10].copy_from_slice(&cdb);
    let command = penstock_scsi::Command { cdb: padded, lun: 0, data_out_bytes: 24 };
    let step = task.start(&mut bench.nexuses[1], &command, bench.now);
    assert_eq!(step, Step::Data { bytes: 24 });
    let step = task.data_out(&mut bench.nexuses[1], bench::sg(&list, 24));
    assert!(matches!(step, Step::Control { .. }));
    let reply = bench.control(1, 0, &task.take_control());
    assert_eq!(reply.aborted, [bench.nexuses[0].id().clone()]);
    assert_eq!(task.replied(&reply), Step::Done);
    bench.run(0, 0, &TUR, &[]).check(6, 0x2a05);
    bench.run(2, 0, &TUR, &[]).check(6, 0x2a04);
    bench.run(1, 0, &TUR, &[]).good();
    assert_eq!((read(&mut bench, 0), read(&mut bench, 2)), (0x18, 0x18));
}

#[test]
fn register_and_move_gives_the_reservation_to_a_port_by_its_name() {
    let mut bench = Bench::new(1, 2);
    out(&mut bench, 0, REGISTER, 0, 0, 10).good();
    out(&mut bench, 0, 1, 1, 10, 0).good();
    let id = iscsi_transport_id("iqn.2024-01.host:1", Some([0, 2, 3, 4, 5, 1]));
    let mut list = vec![0; 24];
    list[..8].copy_from_slice(&10_u64.to_be_bytes());
    list[8..16].copy_from_slice(&20_u64.to_be_bytes());
    list[17] = 0x02;
    list[19] = 1;
    list[23] = id.len() as u8;
    list.extend_from_slice(&id);
    let cdb = [0x5f, 7, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
    bench.run(0, 0, &cdb, &list).good();
    assert_eq!((write(&mut bench, 0), write(&mut bench, 1)), (0x18, 0));
    out(&mut bench, 1, 2, 1, 20, 0).good();
    for cut in 0..list.len() {
        let cdb = [0x5f, 7, 0, 0, 0, 0, 0, 0, cut as u8, 0];
        assert_ne!(bench.run(0, 0, &cdb, &list[..cut]).status, 0);
    }
}

#[test]
fn what_persists_is_saved_before_the_answer_or_refused() {
    let mut bench = Bench::new(1, 1);
    let (cdb, list) = pr_out(REGISTER, 0, 0, 77, 1);
    bench.store.borrow_mut().1 = true;
    bench.run(0, 0, &cdb, &list).check(5, 0x5504);
    assert_eq!(bench.run(0, 0, &pr_in(0), &[]).good(), [0; 8]);
    bench.store.borrow_mut().1 = false;
    bench.run(0, 0, &cdb, &list).good();
    out(&mut bench, 0, 1, 3, 77, 0).good();
    let uuid = bench.owners[0].view().config.descriptor.shared().uuid();
    let saved = bench.store.borrow().0[&uuid].clone();
    let restored = Reservations::restored(&saved).view();
    assert_eq!(restored.kind(), Some(ReservationType::ExclusiveAccess));
    assert_eq!(restored.key_of(bench.nexuses[0].id()), Some(77));
    // Capabilities: PTPL_A.
    assert_eq!(bench.run(0, 0, &pr_in(2), &[]).good()[3], 0x81);
    out(&mut bench, 0, REGISTER, 0, 0, 77).good();
    assert!(bench.store.borrow().0.is_empty());
    // SPEC_I_PT and ALL_TG_PT are not offered.
    for flags in [4, 8] {
        let (cdb, list) = pr_out(REGISTER, 0, 0, 1, flags);
        bench.run(0, 0, &cdb, &list).check(5, 0x2600);
    }
    bench.run(0, 0, &cdb, &list[..23]).check(5, 0x1a00);
}

#[test]
fn a_host_that_came_by_another_protocol_is_kept_out_and_keeps_out() {
    let mut bench = Bench::new(1, 1);
    let host = RegistrantId { host: HostId::Nvme([5; 16]), port: 0 };
    let reservations = Rc::clone(&bench.reservations[0]);
    let effects = reservations.borrow_mut().register(&host, None, 5, None).unwrap();
    bench.owners[0].reservations_changed(&effects);
    let effects = reservations.borrow_mut().reserve(&host, 5, ReservationType::ExclusiveAccess).unwrap();
    bench.owners[0].reservations_changed(&effects);
    bench.publish(0);
    assert_eq!(read(&mut bench, 0), 0x18);
    bench.run(0, 0, &RESERVE, &[]).conflict();
    out(&mut bench, 0, REGISTER, 0, 0, 6).good();
    out(&mut bench, 0, 4, 1, 6, 5).good();
    assert_eq!((read(&mut bench, 0), write(&mut bench, 0)), (0, 0));
    assert_eq!(reservations.borrow().view().key_of(&host), None);
    assert!(bench.run(0, 0, &pr_in(3), &[]).good().len() > 8);
}

#[test]
fn reserve_6_keeps_others_out_until_release_reset_or_loss() {
    let mut bench = Bench::new(1, 2);
    bench.run(0, 0, &RESERVE, &[]).good();
    bench.run(0, 0, &RESERVE, &[]).good();
    bench.run(1, 0, &RESERVE, &[]).conflict();
    bench.run(1, 0, &RELEASE, &[]).good();
    bench.run(1, 0, &TUR, &[]).conflict();
    bench.run(1, 0, &[0x1a, 0, 0x3f, 0, 255, 0], &[]).conflict();
    bench.run(1, 0, &pr_in(0), &[]).conflict();
    out(&mut bench, 1, REGISTER, 0, 0, 1).conflict();
    assert_eq!((read(&mut bench, 1), read(&mut bench, 0)), (0x18, 0));
    bench.run(1, 0, &[0x12, 0, 0, 0, 96, 0], &[]).good();
    bench.run(1, 0, &[3, 0, 0, 0, 18, 0], &[]).good();
    bench.run(0, 0, &RELEASE, &[]).good();
    bench.run(1, 0, &RESERVE, &[]).good();
    bench.control(1, 0, &Control::NexusLost);
    bench.run(0, 0, &RESERVE, &[]).good();
    bench.control(1, 0, &Control::Reset);
    for nexus in 0..2 {
        bench.run(nexus, 0, &TUR, &[]).check(6, 0x2900);
        bench.run(nexus, 0, &TUR, &[]).good();
    }
    bench.run(1, 0, &RESERVE, &[]).good();
}

#[test]
fn attentions_wait_for_commands_that_report_them() {
    let mut bench = Bench::new(2, 0);
    bench.add_nexus(1);
    // These neither report nor clear.
    bench.run(0, 0, &[0x12, 0, 0, 0, 96, 0], &[]).good();
    bench.run(0, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]).good();
    bench.run(0, 0, &TUR, &[]).check(6, 0x2900);
    bench.run(0, 0, &TUR, &[]).good();
    // REQUEST SENSE tells it as data.
    assert_eq!(
        bench.run(0, 1, &[3, 0, 0, 0, 252, 0], &[]).good()[2..14],
        [6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0]
    );
    let none = bench.run(0, 1, &[3, 1, 0, 0, 252, 0], &[]).good();
    assert_eq!(none, [0x72, 0, 0, 0, 0, 0, 0, 0]);
    // A LUN more.
    let views: Vec<_> = bench.owners.iter().map(|owner| Arc::clone(owner.view())).collect();
    bench.nexuses[0].apply_luns(&[(0, views[0].clone())]);
    bench.run(0, 0, &TUR, &[]).check(6, 0x3f0e);
    bench.run(0, 1, &TUR, &[]).check(5, 0x2500);
    bench.nexuses[0].apply_luns(&[(0, views[0].clone()), (9, views[1].clone())]);
    let luns = bench.run(0, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]).good();
    assert_eq!((luns.len(), luns[17]), (24, 9));
    // REPORT LUNS was enough; the new one has its own to tell.
    bench.run(0, 0, &TUR, &[]).good();
    bench.run(0, 9, &TUR, &[]).check(6, 0x2900);
}

#[test]
fn a_nexus_that_missed_too_many_events_is_told_of_a_reset() {
    let mut bench = Bench::new(1, 2);
    for _ in 0..100 {
        let id = bench.nexuses[0].id().clone();
        for swp in [true, false] {
            let modes = penstock_scsi::ModeValues { swp, d_sense: false };
            bench.owners[0].handle(&id, &Control::ModeSelect(modes));
        }
    }
    bench.publish(0);
    bench.run(1, 0, &TUR, &[]).check(6, 0x2900);
    bench.run(1, 0, &TUR, &[]).good();
}

#[test]
fn port_groups_are_reported_set_and_obeyed() {
    let mut bench = Bench::with(1, 2, 512, |config| {
        config.groups.push(penstock_scsi::PortGroup {
            id: 2,
            state: AccessState::STANDBY,
            preferred: true,
            ports: vec![2, 3],
        });
    });
    let rtpg = |alloc: u8, format: u8| [0xa3, 0x0a | format << 5, 0, 0, 0, 0, 0, 0, 0, alloc, 0, 0];
    let all = bench.run(0, 0, &rtpg(255, 0), &[]).good();
    let expected = [
        0, 0, 0, 28, 0, 0xcf, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1, 0x82, 0xcf, 0, 2, 0, 2, 0, 2, 0, 0, 0, 2, 0, 0,
        0, 3,
    ];
    assert_eq!(all, expected);
    assert_eq!(bench.run(0, 0, &rtpg(8, 0), &[]).good(), all[..8]);
    assert_eq!(bench.run(0, 0, &rtpg(255, 1), &[]).good()[..8], [0, 0, 0, 32, 0x10, 0, 0, 0]);
    let id = iscsi_transport_id("iqn.2024-01.host:9", None);
    let mut nexus = Nexus::new(&id, 2, Seal::new([7; 16]));
    nexus.apply_luns(&[(0, Arc::clone(bench.owners[0].view()))]);
    bench.nexuses.push(nexus);
    bench.run(2, 0, &rw10(0x28, 0, 0, 1), &[]).check(6, 0x2900);
    bench.run(2, 0, &rw10(0x28, 0, 0, 1), &[]).check(2, 0x040b);
    bench.run(2, 0, &TUR, &[]).check(2, 0x040b);
    bench.run(2, 0, &rtpg(255, 0), &[]).good();
    bench.run(2, 0, &[0x12, 0, 0, 0, 96, 0], &[]).good();
    let stpg = [0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0];
    bench.run(2, 0, &stpg, &[0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 1]).good();
    bench.run(2, 0, &rw10(0x28, 0, 0, 1), &[]).good();
    bench.run(0, 0, &TUR, &[]).check(6, 0x2a06);
    assert_eq!(bench.run(0, 0, &rtpg(255, 0), &[]).good()[4..10], [1, 0xcf, 0, 1, 0, 1]);
    bench.run(0, 0, &stpg, &[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1]).check(5, 0x2600);
    bench.run(0, 0, &stpg, &[0, 0, 0, 0, 0x0f, 0, 0, 1, 0, 0, 0, 1]).check(5, 0x2600);
    bench.run(0, 0, &stpg, &[0, 0, 0, 0, 0, 0, 0]).check(5, 0x1a00);
    for (state, asc) in [(3, 0x040c), (0x0e, 0x0412)] {
        bench.owners[0].set_access_states(&[(1, AccessState(state))]);
        bench.publish(0);
        bench.clear_attentions(0, 0);
        bench.run(0, 0, &rw10(0x2a, 0, 0, 1), &[0; 512]).check(2, asc);
    }
}

#[test]
fn a_removable_medium_is_ejected_unless_somebody_prevents_it() {
    let mut bench = Bench::with(1, 2, 512, |config| config.removable = true);
    let load = |start: u8| [0x1b, 0, 0, 0, 2 | start, 0];
    let prevent = |prevent: u8| [0x1e, 0, 0, 0, prevent, 0];
    bench.run(0, 0, &prevent(1), &[]).good();
    for nexus in 0..2 {
        bench.run(nexus, 0, &load(0), &[]).check(5, 0x5302);
    }
    bench.run(0, 0, &TUR, &[]).good();
    bench.control(0, 0, &Control::NexusLost);
    bench.run(1, 0, &load(0), &[]).good();
    let medium = [
        TUR.to_vec(),
        rw10(0x28, 0, 0, 1).to_vec(),
        rw10(0x2a, 0, 0, 1).to_vec(),
        rw10(0x35, 2, 0, 1).to_vec(),
        rw10(0x34, 2, 0, 1).to_vec(),
        rw16(0x8b, 0, 0, 1).to_vec(),
        rw16(0x9e, 0x10, 0, 15).to_vec(),
        rw16(0x9e, 0x12, 0, 24).to_vec(),
        rw16(0x93, 0, 0, 1).to_vec(),
        vec![0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
    ];
    for cdb in medium {
        let outcome = bench.run(0, 0, &cdb, &[0; 512]);
        outcome.check(2, 0x3a00);
    }
    bench.run(0, 0, &prevent(1), &[]).good();
    bench.run(0, 0, &load(1), &[]).check(5, 0x5302);
    bench.run(0, 0, &prevent(0), &[]).good();
    for power_condition in 1..16 {
        bench.run(0, 0, &[0x1b, 1, 0, 0, 2 | power_condition << 4, 0], &[]).good();
    }
    bench.run(0, 0, &load(1), &[]).good();
    bench.run(0, 0, &TUR, &[]).good();
    bench.run(1, 0, &TUR, &[]).check(6, 0x2800);
    let mut fixed = Bench::new(1, 1);
    fixed.run(0, 0, &prevent(1), &[]).check(5, 0x2000);
}

#[test]
fn the_naca_bit_is_refused() {
    let mut bench = Bench::new(1, 1);
    bench.run(0, 0, &[0, 0, 0, 0, 0, 4], &[]).check(INVALID_CDB.0, INVALID_CDB.1);
}
