//! Times: connections that say nothing, keep-alive timers of controllers of both kinds.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use penstock_tests::target::Target;

use crate::target;
use crate::wire::{DISCOVERY_NQN, HOST_NQN, Sqe, Wire, connect_data, connect_sqe, ic_req};

/// An enabled controller's admin queue with this keep-alive timeout.
fn admin(port: u16, nqn: &str, kato_ms: u32) -> Result<(Wire, u16)> {
    let mut wire = Wire::initialized(port)?;
    let answer = wire.execute(connect_sqe(0).dw(12, kato_ms), &connect_data(nqn, HOST_NQN, 0xffff))?;
    ensure!(answer.status == 0, "{answer:x?}");
    wire.enable()?;
    Ok((wire, u16::try_from(answer.dw0 & 0xffff)?))
}

/// How long it takes until the target hangs up.
fn until_closed(wire: &mut Wire) -> Result<Duration> {
    let begin = Instant::now();
    wire.is_closed()?;
    Ok(begin.elapsed())
}

#[test]
fn a_connection_that_does_not_connect_is_closed_at_every_stage() -> Result<()> {
    let target = target()?;
    let mut silent = Wire::open(target.port())?;
    let mut half = Wire::open(target.port())?;
    half.send(&ic_req(0, 0, 0, 0)[..60])?;
    let mut initialized = Wire::initialized(target.port())?;
    let mut capsule = Wire::initialized(target.port())?;
    let bytes = capsule.capsule(connect_sqe(0), &connect_data(target.nqn(), HOST_NQN, 0xffff));
    capsule.send(&bytes[..500])?;
    for wire in [&mut silent, &mut half, &mut initialized, &mut capsule] {
        ensure!(until_closed(wire)? < Duration::from_secs(13));
    }
    Ok(())
}

#[test]
fn a_keep_alive_timer_is_restarted_by_traffic_of_either_queue_and_runs_out_without() -> Result<()> {
    let target = target()?;
    let (mut admin, cntlid) = admin(target.port(), target.nqn(), 1_000)?;
    let mut io = Wire::initialized(target.port())?;
    io.connect(target.nqn(), 1, cntlid)?;
    for at in 0..6 {
        std::thread::sleep(Duration::from_millis(500));
        let sqe = [Sqe::new(0).nsid(1), Sqe::blocks(2, 0, 1).moves(512)][at % 2];
        ensure!(io.execute(sqe, &[])?.status == 0, "I/O keeps it alive");
    }
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(500));
        ensure!(admin.execute(Sqe::new(0x18), &[])?.status == 0, "Keep Alive does");
    }
    let time = until_closed(&mut admin)?;
    ensure!((900..5_000).contains(&time.as_millis()), "closed after {time:?}");
    io.is_closed()
}

#[test]
fn a_discovery_controller_takes_a_keep_alive_timeout_and_does_without() -> Result<()> {
    let target = target()?;
    let (mut with, _) = admin(target.port(), DISCOVERY_NQN, 1_000)?;
    let (mut without, _) = admin(target.port(), DISCOVERY_NQN, 0)?;
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(500));
        ensure!(with.execute(Sqe::new(0x18), &[])?.status == 0, "Keep Alive on a discovery controller");
    }
    let time = until_closed(&mut with)?;
    ensure!((900..5_000).contains(&time.as_millis()), "closed after {time:?}");
    ensure!(without.execute(Sqe::new(6).dw(10, 1).moves(4096), &[])?.status == 0);
    Ok(())
}
