//! The Connect command: every field of it and of its data; orders of it and of other commands.

use anyhow::{Context, Result, ensure};
use penstock_tests::target::Target;
use serde_json::json;

use crate::target;
use crate::wire::{
    Answer, DISCOVERY_NQN, HOST_NQN, Sqe, Wire, connect_data, connect_sqe, property_get, property_set, put,
};

/// Statuses (SCT and SC).
const SUCCESS: u16 = 0;
const INVALID_FIELD: u16 = 0x002;
const SEQUENCE_ERROR: u16 = 0x00c;
const DATA_SGL_LENGTH: u16 = 0x00f;
const INCOMPATIBLE_FORMAT: u16 = 0x180;
const INVALID_PARAMETERS: u16 = 0x182;
const INVALID_HOST: u16 = 0x184;

/// Dword 0 of a refused Connect: the offset of a field in the command.
const fn field(offset: u32) -> u32 {
    offset
}

/// The offset of a field in the data.
const fn data(offset: u32) -> u32 {
    1 << 16 | offset
}

/// What is wrong with a Connect, the command, its data, status, and dword 0 where the standard says it.
type Case = (&'static str, Sqe, Vec<u8>, u16, Option<u32>);

fn connect(port: u16, sqe: Sqe, data: &[u8]) -> Result<Answer> {
    Wire::initialized(port)?.execute(sqe, data)
}

fn try_all(port: u16, cases: Vec<Case>) -> Result<()> {
    for (what, sqe, data, status, dw0) in cases {
        let answer = connect(port, sqe, &data).with_context(|| what.to_owned())?;
        ensure!(answer.status == status, "{what}: {answer:x?} instead of {status:#x}");
        if let Some(dw0) = dw0 {
            ensure!(answer.dw0 == dw0, "{what}: dword 0 is {:#x} instead of {dw0:#x}", answer.dw0);
        }
    }
    Ok(())
}

#[test]
fn a_connect_of_an_admin_queue_is_checked_field_by_field() -> Result<()> {
    let target = target()?;
    let (port, nqn) = (target.port(), target.nqn());
    let good = || connect_sqe(0);
    let of = |nqn: &str| connect_data(nqn, HOST_NQN, 0xffff);
    let long = "nqn.2026-11.io.penstock:".to_owned() + &"x".repeat(300);
    let unterminated = {
        let mut bytes = of("");
        put(&mut bytes, 256, &long.as_bytes()[..256]);
        bytes
    };
    let cases: Vec<Case> = vec![
        ("a right one", good(), of(nqn), SUCCESS, None),
        ("the discovery service", good(), of(DISCOVERY_NQN), SUCCESS, None),
        ("no keep-alive timeout", good().dw(12, 0), of(nqn), SUCCESS, None),
        ("the longest keep-alive timeout", good().dw(12, u32::MAX), of(nqn), SUCCESS, None),
        ("two entries", good().dw(11, 1), of(nqn), SUCCESS, None),
        ("without SQ flow control", good().dw(11, 31 | 4 << 16), of(nqn), SUCCESS, None),
        ("RECFMT 1", good().dw(10, 1), of(nqn), INCOMPATIBLE_FORMAT, None),
        ("RECFMT FFFFh", good().dw(10, 0xffff), of(nqn), INCOMPATIBLE_FORMAT, None),
        ("SQSIZE 0", good().dw(11, 0), of(nqn), INVALID_PARAMETERS, Some(field(44))),
        ("SQSIZE FFFFh", good().dw(11, 0xffff), of(nqn), INVALID_PARAMETERS, Some(field(44))),
        ("a static controller", good(), connect_data(nqn, HOST_NQN, 1), INVALID_PARAMETERS, Some(data(16))),
        (
            "any static controller",
            good(),
            connect_data(nqn, HOST_NQN, 0xfffe),
            INVALID_PARAMETERS,
            Some(data(16)),
        ),
        (
            "a reserved CNTLID",
            good(),
            connect_data(nqn, HOST_NQN, 0xfff5),
            INVALID_PARAMETERS,
            Some(data(16)),
        ),
        (
            "an unknown subsystem",
            good(),
            of("nqn.2026-11.io.penstock:none"),
            INVALID_PARAMETERS,
            Some(data(256)),
        ),
        ("no subsystem", good(), of(""), INVALID_PARAMETERS, Some(data(256))),
        ("a SUBNQN without its zero", good(), unterminated, INVALID_PARAMETERS, Some(data(256))),
        (
            "a HOSTNQN that is none",
            good(),
            connect_data(nqn, "host", 0xffff),
            INVALID_PARAMETERS,
            Some(data(512)),
        ),
        ("1023 bytes", good().carries(1023), of(nqn)[..1023].to_vec(), DATA_SGL_LENGTH, None),
        ("no data", good().moves(0), Vec::new(), DATA_SGL_LENGTH, None),
        ("a key", good().sgl(0x40, 0, 1024), of(nqn), 0x011, None),
        ("a PRP", good().byte(1, 0), of(nqn), INVALID_FIELD, None),
        (
            "an I/O queue of no controller",
            connect_sqe(1),
            connect_data(nqn, HOST_NQN, 0x4242),
            INVALID_PARAMETERS,
            Some(data(16)),
        ),
    ];
    try_all(port, cases)
}

#[test]
fn connect_data_come_in_the_capsule_or_by_r2t() -> Result<()> {
    let target = target()?;
    for (host_digests, piece) in [(0, 4096), (3, 4096), (0, 4), (3, 100)] {
        let (mut admin, _) = Wire::initialized_with(target.port(), 0, host_digests)?;
        admin.piece = piece;
        let data = connect_data(target.nqn(), HOST_NQN, 0xffff);
        let answer = admin.execute_by_r2t(connect_sqe(0).moves(1024), &data)?;
        ensure!(answer.status == SUCCESS, "{answer:x?}");
        admin.enable()?;
        let (mut io, _) = Wire::initialized_with(target.port(), 0, host_digests)?;
        let data = connect_data(target.nqn(), HOST_NQN, u16::try_from(answer.dw0 & 0xffff)?);
        let answer = io.execute_by_r2t(connect_sqe(1).moves(1024), &data)?;
        ensure!(answer.status == SUCCESS, "{answer:x?}");
    }
    Ok(())
}

#[test]
fn a_connect_of_an_io_queue_is_checked_against_its_controller() -> Result<()> {
    let target = target()?;
    let (port, nqn) = (target.port(), target.nqn());
    let mut early = Wire::initialized(port)?;
    let cntlid = early.connect(nqn, 0, 0xffff)?;
    let answer = connect(port, connect_sqe(1), &connect_data(nqn, HOST_NQN, cntlid))?;
    ensure!(answer.status == SEQUENCE_ERROR, "before CC.EN: {answer:x?}");
    early.enable()?;

    let good = connect_data(nqn, HOST_NQN, cntlid);
    let other_host = connect_data(nqn, "nqn.2026-11.io.penstock:other", cntlid);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let cases = [
        ("a QID beyond what there may be", connect_sqe(0xffff), &good, INVALID_PARAMETERS, field(42)),
        ("SQSIZE 0", connect_sqe(1).dw(11, 0), &good, INVALID_PARAMETERS, field(44)),
        ("SQSIZE beyond MQES", connect_sqe(1).dw(11, 0xffff), &good, INVALID_PARAMETERS, field(44)),
        ("another HOSTNQN", connect_sqe(1), &other_host, INVALID_PARAMETERS, data(512)),
        ("another HOSTID", connect_sqe(1), &other_id, INVALID_PARAMETERS, data(0)),
        ("RECFMT 2", connect_sqe(1).dw(10, 1 << 16 | 2), &good, INCOMPATIBLE_FORMAT, 0),
    ];
    for (what, sqe, data, status, dw0) in cases {
        let answer = connect(port, sqe, data)?;
        ensure!((answer.status, answer.dw0) == (status, dw0), "{what}: {answer:x?}");
    }
    let mut io = Wire::initialized(port)?;
    io.connect(nqn, 1, cntlid)?;
    let again = connect(port, connect_sqe(1), &good)?;
    ensure!((again.status, again.dw0) == (INVALID_PARAMETERS, field(42)), "the same QID again: {again:x?}");
    let twice = io.execute(connect_sqe(2), &good)?;
    ensure!(twice.status == SEQUENCE_ERROR, "a second Connect on one connection: {twice:x?}");
    ensure!(io.execute(Sqe::new(0).nsid(1), &[])?.status == SUCCESS, "the queue works on");
    Ok(())
}

#[test]
fn a_connection_may_try_another_connect_after_one_that_was_refused() -> Result<()> {
    let target = target()?;
    let mut wire = Wire::initialized(target.port())?;
    for nqn in ["nqn.2026-11.io.penstock:none", ""] {
        let answer = wire.execute(connect_sqe(0), &connect_data(nqn, HOST_NQN, 0xffff))?;
        ensure!(answer.status == INVALID_PARAMETERS, "{answer:x?}");
    }
    wire.connect(target.nqn(), 0, 0xffff)?;
    wire.enable()
}

#[test]
fn a_host_that_is_not_on_the_list_is_refused_as_such() -> Result<()> {
    let mut target = target()?;
    let nqn = target.nqn().to_owned();
    let closed = json!({ "nqn": nqn, "allow_any_host": false });
    target.daemon().call("nvmf_subsystem_allow_any_host", closed)?;
    let answer = connect(target.port(), connect_sqe(0), &connect_data(&nqn, HOST_NQN, 0xffff))?;
    ensure!(answer.status == INVALID_HOST, "{answer:x?}");
    target.daemon().call("nvmf_subsystem_add_host", json!({ "nqn": nqn, "host": HOST_NQN }))?;
    let answer = connect(target.port(), connect_sqe(0), &connect_data(&nqn, HOST_NQN, 0xffff))?;
    ensure!(answer.status == SUCCESS, "{answer:x?}");
    Ok(())
}

#[test]
fn before_its_connect_a_connection_executes_nothing_else() -> Result<()> {
    let target = target()?;
    let mut wire = Wire::initialized(target.port())?;
    let commands = [
        ("Property Get", property_get(0x1c, false)),
        ("Property Set", property_set(0x14, 0x0046_0001)),
        ("Identify", Sqe::new(0x06).moves(4096).dw(10, 1)),
        ("Keep Alive", Sqe::new(0x18)),
        ("Read", Sqe::blocks(2, 0, 1).moves(512)),
        ("Disconnect", Sqe::fabrics(8)),
        ("a Fabrics command that is none", Sqe::fabrics(0x55)),
    ];
    for (what, sqe) in commands {
        let answer = wire.execute(sqe, &[]).with_context(|| what.to_owned())?;
        ensure!(answer.status == SEQUENCE_ERROR, "{what}: {answer:x?}");
    }
    wire.connect(target.nqn(), 0, 0xffff).map(drop)
}

#[test]
fn a_queue_is_disconnected_by_its_command_and_can_be_connected_again() -> Result<()> {
    let target = target()?;
    let (mut admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
    for _ in 0..3 {
        let mut io = Wire::initialized(target.port())?;
        io.connect(target.nqn(), 1, cntlid)?;
        let bad = io.execute(Sqe::fabrics(8).dw(10, 1), &[])?;
        ensure!(bad.status == INCOMPATIBLE_FORMAT, "RECFMT 1: {bad:x?}");
        let answer = io.execute(Sqe::fabrics(8), &[])?;
        ensure!(answer.status == SUCCESS, "{answer:x?}");
        io.is_closed()?;
    }
    let refused = admin.execute(Sqe::fabrics(8), &[])?;
    ensure!(refused.status != SUCCESS, "the admin queue is not disconnected so: {refused:x?}");
    Ok(())
}
