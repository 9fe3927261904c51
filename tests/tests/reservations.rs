//! Reservations and the daemon's life: what a host wanted to persist is there after a `kill -9`, and nothing else is.
#![expect(clippy::indexing_slicing, reason = "a test: its structures have the lengths that it asked for")]

use anyhow::{Context, Result, ensure};
use penstock_tests::initiator::{Host, Queue};
use penstock_tests::target::{Backend, Penstock, Target};

const MIB: u64 = 1 << 20;
const KEY: u64 = 0x1122_3344_5566_7788;
const EXCLUSIVE_ACCESS: u32 = 2;
const REPORT_BYTES: usize = 4096;

/// A command of reservations with its two keys in the capsule; its status.
fn reserve(queue: &mut Queue, opcode: u8, dw10: u32, first: u64, second: u64) -> Result<u16> {
    let mut command = [0; 64];
    command[..2].copy_from_slice(&[opcode, 0x40]);
    command[4] = 1;
    command[32] = 16;
    command[39] = 0x01;
    command[40..44].copy_from_slice(&dw10.to_le_bytes());
    queue.submit(&mut command, &[first.to_le_bytes(), second.to_le_bytes()].concat())?;
    Ok(queue.completion()?.status)
}

/// What a Reservation Report says.
#[derive(Debug, PartialEq)]
struct Report {
    kind: u8,
    persists: bool,
    /// Each registrant's key, and whether it holds the reservation.
    registrants: Vec<(u64, bool)>,
}

fn report(queue: &mut Queue) -> Result<Report> {
    let mut command = [0; 64];
    command[..2].copy_from_slice(&[0x0e, 0x40]);
    command[4] = 1;
    command[32..36].copy_from_slice(&u32::try_from(REPORT_BYTES)?.to_le_bytes());
    command[39] = 0x5a;
    command[40..44].copy_from_slice(&u32::try_from(REPORT_BYTES / 4 - 1)?.to_le_bytes());
    command[44] = 1;
    queue.submit(&mut command, &[])?;
    let data = queue.receive_read()?;
    ensure!(data.len() == REPORT_BYTES, "a report of {} bytes", data.len());
    let count = u16::from_le_bytes([data[5], data[6]]);
    let key = |one: &[u8]| anyhow::Ok(u64::from_le_bytes(one[8..16].try_into().context("a key")?));
    let registrants = data[64..].chunks_exact(64).take(count.into());
    let registrants = registrants.map(|one| Ok((key(one)?, one[2] == 1))).collect::<Result<_>>()?;
    Ok(Report { kind: data[4], persists: data[9] == 1, registrants })
}

#[test]
fn what_is_to_persist_is_there_after_a_kill_and_nothing_else_is() -> Result<()> {
    let mut target = Penstock::start(Backend::Uring, 4096)?;
    target.add_namespace(1, 16 * MIB)?;
    for persist in [true, false] {
        let change = if persist { 3 } else { 2 };
        let mut host = Host::connect(target.port(), target.nqn())?;
        let registered = reserve(&mut host.io, 0x0d, 8 | 2 | change << 30, 0, KEY)?;
        ensure!(registered == 0, "registering: status {registered:#06x}");
        let acquired = reserve(&mut host.io, 0x11, EXCLUSIVE_ACCESS << 8, KEY, 0)?;
        ensure!(acquired == 0, "acquiring: status {acquired:#06x}");
        let before = report(&mut host.io)?;
        let held = Report { kind: 2, persists: persist, registrants: vec![(KEY, true)] };
        ensure!(before == held, "before the kill: {before:x?}");
        drop(host);
        target.daemon().kill()?;
        target.daemon().restart()?;
        let mut host = Host::connect(target.port(), target.nqn())?;
        let after = report(&mut host.io)?;
        let nothing = Report { kind: 0, persists: false, registrants: Vec::new() };
        let expected = if persist { held } else { nothing };
        ensure!(after == expected, "after the kill: {after:x?}, not {expected:x?}");
    }
    Ok(())
}
