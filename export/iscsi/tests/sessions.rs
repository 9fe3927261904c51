//! Sessions of several connections, their ends, and task management, over sockets on two reactors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod raw;

use std::time::{Duration, Instant};

use penstock_iscsi::config::IscsiOptions;
use penstock_spec::iscsi::{AsyncEvent, AsyncHdr, Opcode};
use raw::{BLOCK, Bench, Client, READ, SLOW, WRITE, pattern, rw10};
use zerocopy::{FromBytes, IntoBytes};

const FINAL: u8 = 0x80;

fn join(bench: &Bench, isid: u8, leading: &Client, cid: u16) -> Client {
    let mut client = Client::connect(bench.addr);
    client.cmd_sn = leading.cmd_sn;
    let (status, _) = client.login(isid, leading.tsih, cid, "");
    assert_eq!((status, client.tsih), (0, leading.tsih));
    client
}

fn async_of(client: &mut Client) -> AsyncHdr {
    let pdu = client.recv();
    assert_eq!(pdu.opcode(), Opcode::ASYNC, "{pdu:?}");
    AsyncHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap()
}

#[test]
fn connections_of_a_session_share_its_order_and_its_reactor() {
    let bench = Bench::new();
    let mut clients = vec![bench.session(1, "MaxConnections=3")];
    for cid in 1..3 {
        clients.push(join(&bench, 1, &clients[0], cid));
    }
    // Whatever reactor took them, they are together.
    assert!(bench.connections().contains(&3), "{:?}", bench.connections());
    let mut fourth = Client::connect(bench.addr);
    assert_eq!(fourth.login(1, clients[0].tsih, 9, "").0, 0x0206, "too many connections");
    // CmdSNs go round, in the order that is worst: the last first.
    let mut cmd_sn = clients[0].cmd_sn;
    for round in 0..50_u32 {
        let data = pattern(3 * BLOCK, round as u8);
        for at in [2_usize, 1, 0] {
            clients[at].cmd_sn = cmd_sn + at as u32;
            let bhs = clients[at].command_bhs(0, FINAL | WRITE, BLOCK as u32, &rw10(0x2a, round, 1));
            clients[at].send(bhs, &data[at * BLOCK..(at + 1) * BLOCK]);
            if at > 0 && round == 0 {
                clients[at].assert_silent();
            }
        }
        for client in &mut clients {
            let pdu = client.recv();
            assert_eq!((pdu.opcode(), pdu.status()), (Opcode::SCSI_RESPONSE, 0));
        }
        cmd_sn += 3;
    }
    for client in &mut clients {
        client.cmd_sn = cmd_sn;
        assert_eq!(client.ping().exp_cmd_sn(), cmd_sn);
    }
    // A connection is logged out by itself or by another.
    assert_eq!(clients[1].logout(1, 1), 0);
    assert!(clients[1].has_ended());
    assert_eq!(clients[0].logout(1, 1), 1, "it is not there any more");
    assert_eq!(clients[0].logout(2, 2), 2, "no recovery");
    assert_eq!(clients[0].logout(1, 2), 0);
    assert!(clients[2].has_ended());
    clients[0].cmd_sn = cmd_sn;
    assert_eq!(clients[0].command(READ, 512, &rw10(0x28, 0, 1), &[]).status, 0);
    let mut second = join(&bench, 1, &clients[0], 5);
    assert_eq!(second.logout(0, 0), 0);
    assert!(second.has_ended() && clients[0].has_ended(), "the session has ended");
    let mut late = Client::connect(bench.addr);
    assert_eq!(late.login(1, clients[0].tsih, 1, "").0, 0x020a, "no such session");
}

#[test]
fn an_ordered_command_waits_for_older_ones_of_other_connections() {
    let bench = Bench::new();
    let mut first = bench.session(1, "MaxConnections=2");
    let mut second = join(&bench, 1, &first, 1);
    let begun = Instant::now();
    let bhs = first.command_bhs(1, FINAL | READ | 1, 512, &rw10(0x28, 0, 1));
    let slow = bhs.itt.get();
    first.send(bhs, &[]);
    second.cmd_sn = first.cmd_sn;
    // ORDERED, to the same unit: a write, which is quick by itself.
    let bhs = second.command_bhs(1, FINAL | WRITE | 2, 512, &rw10(0x2a, 0, 1));
    second.send(bhs, &[7; 512]);
    assert_eq!(second.recv().status(), 0);
    assert!(begun.elapsed() >= SLOW, "{:?}", begun.elapsed());
    assert_eq!(first.finish(slow, &[]).data, [0; 512]);
}

#[test]
fn a_session_is_reinstated_only_when_nothing_of_the_old_one_is_under_way() {
    let bench = Bench::new();
    for _ in 0..4 {
        let mut old = bench.session(1, "");
        let begun = Instant::now();
        let bhs = old.command_bhs(1, FINAL | READ, 512, &rw10(0x28, 0, 1));
        old.send(bhs, &[]);
        std::thread::sleep(Duration::from_millis(30));
        let mut new = Client::connect(bench.addr);
        assert_eq!(new.login(1, 0, 0, "").0, 0);
        assert!(begun.elapsed() >= Duration::from_millis(20));
        assert!(old.has_ended());
        assert_ne!(new.tsih, old.tsih);
        assert_eq!(new.command(0, 0, &[0; 6], &[]).last.sense(), (6, 0x29, 0));
        assert_eq!(bench.connections().iter().sum::<usize>(), 1);
        drop(new);
        bench.wait("all is gone", |bench| bench.connections().iter().sum::<usize>() == 0);
    }
}

#[test]
fn a_connection_is_reinstated_within_its_session() {
    let bench = Bench::new();
    let mut first = bench.session(1, "MaxConnections=2");
    let mut second = join(&bench, 1, &first, 1);
    let mut again = join(&bench, 1, &first, 1);
    assert!(second.has_ended());
    again.cmd_sn = first.cmd_sn;
    assert_eq!(again.command(READ, 512, &rw10(0x28, 0, 1), &[]).status, 0);
    first.cmd_sn = again.cmd_sn;
    assert_eq!(first.command(READ, 512, &rw10(0x28, 0, 1), &[]).status, 0);
}

#[test]
fn resets_wait_for_the_commands_of_other_sessions_and_tell_them() {
    let bench = Bench::new();
    // LOGICAL UNIT RESET and TARGET WARM RESET.
    for function in [5, 6] {
        let (mut one, mut two) = (bench.session(1, ""), bench.session(2, ""));
        let bhs = two.command_bhs(1, FINAL | READ, 512, &rw10(0x28, 0, 1));
        two.send(bhs, &[]);
        std::thread::sleep(Duration::from_millis(30));
        one.tmf(function, 1, 0, 0);
        assert_eq!(one.recv().response(), 0);
        // Its command is aborted, without an answer; what is told first is the reset.
        let outcome = two.command_to(1, 0, 0, &[0; 6], &[]);
        assert_eq!(
            (outcome.status, outcome.last.sense().0, outcome.last.sense().1),
            (2, 6, 0x29),
            "{function}"
        );
        assert_eq!(two.command_to(1, 0, 0, &[0; 6], &[]).status, 0);
        assert_eq!((one.logout(0, 0), two.logout(0, 0)), (0, 0));
    }
}

#[test]
fn task_sets_are_aborted_and_cleared() {
    let bench = Bench::new();
    let (mut one, mut two) = (bench.session(1, ""), bench.session(2, ""));
    let slow = |client: &mut Client| {
        let bhs = client.command_bhs(1, FINAL | READ, 512, &rw10(0x28, 0, 1));
        client.send(bhs, &[]);
        bhs.itt.get()
    };
    // ABORT TASK: the one, and not the other.
    let (first, second) = (slow(&mut one), slow(&mut one));
    one.tmf(1, 1, first, one.cmd_sn - 2);
    // Both are under way equally long: the answer comes when the one is back.
    let mut came = [one.recv(), one.recv()];
    came.sort_by_key(|pdu| pdu.bhs.opcode);
    assert_eq!((came[0].response(), came[1].status(), came[1].bhs.itt.get()), (0, 0, second));
    one.tmf(1, 1, first, one.cmd_sn - 2);
    assert_eq!(one.recv().response(), 1, "it is not there any more");
    // ABORT TASK SET: the session's own.
    slow(&mut one);
    let other = slow(&mut two);
    one.tmf(2, 1, 0, 0);
    assert_eq!(one.recv().response(), 0);
    assert_eq!(two.finish(other, &[]).status, 0);
    // CLEAR TASK SET: all; whose commands were cleared is told.
    slow(&mut two);
    std::thread::sleep(Duration::from_millis(30));
    one.tmf(4, 1, 0, 0);
    assert_eq!(one.recv().response(), 0);
    assert_eq!(two.command_to(1, 0, 0, &[0; 6], &[]).last.sense(), (6, 0x2f, 0));
    assert_eq!(one.command_to(1, 0, 0, &[0; 6], &[]).status, 0);
    // CLEAR ACA and TASK REASSIGN are refused, an unknown unit is named so.
    for (function, lun, response) in [(3, 0, 5), (8, 0, 4), (5, 7, 2), (1, 7, 2), (77, 0, 5)] {
        one.tmf(function, lun, 0, 0);
        assert_eq!(one.recv().response(), response, "{function}");
    }
}

#[test]
fn a_cold_reset_ends_all_sessions_of_the_target() {
    let bench = Bench::new();
    let (mut one, mut two, mut three) = (bench.session(1, ""), bench.session(2, ""), bench.session(3, ""));
    one.tmf(7, 0, 0, 0);
    assert_eq!(one.recv().response(), 0);
    for client in [&mut one, &mut two, &mut three] {
        let event = async_of(client);
        assert_eq!((event.event, event.parameter2.get()), (AsyncEvent::SESSION_DROP, 2));
        assert!(client.has_ended());
    }
    assert_eq!(bench.session(1, "").command(0, 0, &[0; 6], &[]).status, 0);
}

#[test]
fn another_list_of_luns_is_told_unasked_and_asked() {
    let bench = Bench::new();
    let mut client = bench.session(1, "");
    bench.apply(&[(0, 1), (1, 2), (5, 1)]);
    let pdu = client.recv();
    let event = AsyncHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap();
    assert_eq!((pdu.opcode(), event.event), (Opcode::ASYNC, AsyncEvent::SCSI));
    assert_eq!((pdu.data[2] & 0x7f, pdu.data[4], pdu.data[14], pdu.data[15]), (0x70, 6, 0x3f, 0x0e));
    assert_eq!(client.command(0, 0, &[0; 6], &[]).last.sense(), (6, 0x3f, 0x0e));
    assert_eq!(client.command(0, 0, &[0; 6], &[]).status, 0);
}

#[test]
fn initiators_are_asked_to_log_out_and_cut_off_if_they_do_not() {
    let bench = Bench::new();
    let (mut good, mut bad) = (bench.session(1, ""), bench.session(2, ""));
    for at in 0..2 {
        bench.on(at, |cx, cell| cell.request_logout(cx, &raw::TARGET.parse().unwrap(), None));
    }
    for client in [&mut good, &mut bad] {
        let event = async_of(client);
        assert_eq!((event.event, event.parameter3.get()), (AsyncEvent::LOGOUT_REQUEST, 3));
    }
    assert_eq!(good.command(READ, 512, &rw10(0x28, 0, 1), &[]).status, 0, "there is time to finish");
    assert_eq!(good.logout(0, 0), 0);
    assert!(good.has_ended());
    assert_eq!(async_of(&mut bad).event, AsyncEvent::SESSION_DROP);
    assert!(bad.has_ended());
}

#[test]
fn a_silent_initiator_is_pinged_and_given_up() {
    let options = IscsiOptions { nop_in_interval: 1, nop_timeout: 1, ..IscsiOptions::default() };
    let bench = Bench::with(options);
    let mut client = bench.session(1, "");
    let ping = client.recv();
    assert_eq!((ping.opcode(), ping.bhs.itt.get()), (Opcode::NOP_IN, u32::MAX));
    // Who answers stays.
    let answer = penstock_spec::iscsi::Bhs {
        opcode: 0x40,
        flags: 0x80,
        itt: u32::MAX.into(),
        ttt: ping.bhs.ttt,
        cmd_sn: client.cmd_sn.into(),
        ..Default::default()
    };
    client.send(answer, &[]);
    let ping = client.recv();
    assert_eq!(ping.opcode(), Opcode::NOP_IN);
    let event = async_of(&mut client);
    assert_eq!(event.event, AsyncEvent::CONNECTION_DROP);
    assert!(client.has_ended());
}

#[test]
fn a_half_open_login_is_given_up_and_memory_comes_back() {
    let options = IscsiOptions { login_timeout: 1, ..IscsiOptions::default() };
    let bench = Bench::with(options);
    let mut idle = Client::connect(bench.addr);
    let mut half = Client::connect(bench.addr);
    half.send_bytes(&[0x43, 0x87, 0, 0]);
    assert!(idle.has_ended() && half.has_ended());
    bench.wait("all is gone", |bench| bench.connections().iter().sum::<usize>() == 0);
}
