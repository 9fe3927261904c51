//! What hosts cost: connections that come and go leave nothing behind, many idle ones are cheap.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::initiator::{Connect, Host, Queue};
use penstock_tests::target::{Backend, Penstock, Target};
use penstock_tests::wait;

const MIB: u64 = 1 << 20;

/// Connects and hangs up, each time in another way and at another point.
fn come_and_go(target: &Penstock, round: u32) -> Result<()> {
    let (port, nqn) = (target.port(), target.nqn());
    match round % 5 {
        0 => {
            let mut host = Host::connect(port, nqn)?;
            host.io.read(1, 0, 8, 512)?;
        }
        1 => {
            // Answers are under way, nobody will read them.
            let mut host = Host::connect(port, nqn)?;
            for _ in 0..8 {
                host.io.submit_read(1, 0, 256, 512)?;
            }
        }
        2 => drop(Queue::open(port)?),
        3 => {
            let mut queue = Queue::open(port)?;
            queue.initialize()?;
            let refused = queue.connect(&Connect::admin("nqn.2026-11.io.penstock:not-here"));
            ensure!(refused.is_err(), "the target took a host to a subsystem that it does not have");
        }
        _ => {
            let mut queue = Queue::open(port)?;
            queue.initialize()?;
            queue.connect(&Connect::admin(nqn))?;
            queue.send(&[0x04, 0, 72])?; // the beginning of a capsule
        }
    }
    Ok(())
}

#[test]
fn a_thousand_hosts_come_and_go_without_a_leak() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let files_before = target.daemon().process().open_files()?;
    for round in 0..250 {
        come_and_go(&target, round)?;
    }
    let bytes_before = target.daemon().process().resident_bytes()?;
    for round in 0..1000 {
        come_and_go(&target, round)?;
    }
    let files = |target: &mut Penstock| target.daemon().process().open_files();
    wait::until(Duration::from_secs(15), || Ok((files(&mut target)? <= files_before).then_some(())))?;
    let bytes = target.daemon().process().resident_bytes()?;
    ensure!(bytes < bytes_before + 2 * MIB, "1,000 hosts left {} bytes", bytes - bytes_before);
    Host::connect(target.port(), target.nqn())?.io.read(1, 0, 8, 512)?;
    Ok(())
}

/// Connects one host with this many I/O queues, and reads over each.
fn connect_queues(target: &Penstock, count: u16, entries: u16) -> Result<Vec<Queue>> {
    let mut admin = Queue::open(target.port())?;
    admin.initialize()?;
    let controller = admin.connect(&Connect::admin(target.nqn()))?;
    admin.enable()?;
    let mut queues = vec![admin];
    for qid in 1..=count {
        let mut io = Queue::open(target.port())?;
        io.initialize()?;
        io.connect(&Connect { entries, ..Connect::io(target.nqn(), controller, qid) })?;
        io.read(1, 0, 8, 512)?;
        queues.push(io);
    }
    Ok(queues)
}

#[test]
fn sixty_four_idle_hosts_of_eight_queues_take_less_than_256_mib() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let before = target.daemon().process().resident_bytes()?;
    let hosts = (0..64).map(|_| connect_queues(&target, 8, 128)).collect::<Result<Vec<_>>>()?;
    let grown = target.daemon().process().resident_bytes()?.saturating_sub(before);
    ensure!(grown < 256 * MIB, "{} idle hosts take {} MiB", hosts.len(), grown / MIB);
    Ok(())
}

#[test]
fn a_host_has_128_queues_of_1024_entries() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let mut queues = connect_queues(&target, 128, 1024)?;
    let last = queues.last_mut().context("no queue")?;
    for _ in 0..1023 {
        last.submit_read(1, 0, 1, 512)?;
    }
    for _ in 0..1023 {
        last.receive_read()?;
    }
    Ok(())
}

#[test]
fn an_idle_daemon_with_eight_hosts_uses_less_than_2_percent_of_a_core() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let hosts: Vec<Host> =
        (0..8).map(|_| Host::connect(target.port(), target.nqn())).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(2));
    let before = target.daemon().process().cpu_time()?;
    let span = Duration::from_secs(15);
    std::thread::sleep(span);
    let used = target.daemon().process().cpu_time()? - before;
    ensure!(used * 50 < span, "the idle daemon used {used:?} in {span:?}");
    drop(hosts);
    Ok(())
}
