//! Hosts that stop, and hosts that talk rubbish: they hurt nobody else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::guest::{Guest, HOST, Kernel};
use penstock_tests::initiator::{Connect, Host, Queue, pdu};
use penstock_tests::process::{Signal, timed};
use penstock_tests::target::{Backend, Penstock, Target};

const MIB: u64 = 1 << 20;

/// The median time of a 4 KiB read, over `count` of them.
fn median_read(host: &mut Host, count: u64) -> Result<Duration> {
    let mut times =
        (0..count).map(|at| Ok(host.io.read(1, at % 128, 8, 512)?.1)).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("no reads")
}

#[test]
fn a_host_that_stops_reading_is_held_to_its_limits_and_disturbs_nobody() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let mut good = Host::connect(target.port(), target.nqn())?;
    median_read(&mut good, 500)?;
    let before = target.daemon().process().resident_bytes()?;
    let mut silent = Vec::new();
    for _ in 0..8 {
        let mut host = Host::connect(target.port(), target.nqn())?;
        for _ in 0..120 {
            host.io.submit_read(1, 0, 256, 512)?;
        }
        silent.push(host);
    }
    let slowed = median_read(&mut good, 2000)?;
    ensure!(slowed < Duration::from_millis(5), "a read takes {slowed:?} beside hosts that do not read");
    let grown = target.daemon().process().resident_bytes()?.saturating_sub(before);
    ensure!(grown < 128 * MIB, "8 hosts that do not read took {} MiB", grown / MIB);
    drop(silent);
    Ok(())
}

#[test]
fn a_host_that_never_sends_the_data_it_announced_disturbs_nobody() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let mut good = Host::connect(target.port(), target.nqn())?;
    median_read(&mut good, 500)?;
    let before = target.daemon().process().resident_bytes()?;
    let mut silent = Vec::new();
    for _ in 0..8 {
        let mut host = Host::connect(target.port(), target.nqn())?;
        for _ in 0..120 {
            host.io.announce_write(1, 0, 256, 512)?;
        }
        silent.push(host);
    }
    let slowed = median_read(&mut good, 2000)?;
    ensure!(slowed < Duration::from_millis(5), "a read takes {slowed:?} beside hosts that send no data");
    let grown = target.daemon().process().resident_bytes()?.saturating_sub(before);
    ensure!(grown < 128 * MIB, "8 hosts that send no data took {} MiB", grown / MIB);
    Ok(())
}

#[test]
fn a_host_silent_past_its_keep_alive_time_is_let_go() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let mut admin = Queue::open(target.port())?;
    admin.initialize()?;
    let keep_alive = Duration::from_secs(2);
    let controller = admin.connect(&Connect { keep_alive, ..Connect::admin(target.nqn()) })?;
    admin.enable()?;
    let mut io = Queue::open(target.port())?;
    io.initialize()?;
    io.connect(&Connect::io(target.nqn(), controller, 1))?;
    let (said, time) = timed(|| io.receive());
    ensure!(said.is_err(), "the silent host was told {said:?}");
    // Ten seconds is the receive's own limit: an error by then would not be the target's hanging up.
    ensure!((2..8).contains(&time.as_secs()), "the silent host was let go after {time:?}, not two seconds");
    Ok(())
}

#[test]
fn a_stopped_linux_host_disturbs_nobody_and_goes_on_when_let() -> Result<()> {
    let mut target = Penstock::start(Backend::Uring, 512)?;
    target.add_namespace(1, 64 * MIB)?;
    let mut guest = Guest::boot(Kernel::Linux6_12, &[])?;
    let (port, nqn) = (target.port(), target.nqn().to_owned());
    guest.run(&format!(
        "modprobe nvme-tcp
         nvme connect -t tcp -a {HOST} -s {port} -n {nqn} --nr-io-queues=2 --keep-alive-tmo=5 --reconnect-delay=1
         eventually 10 ns 1"
    ))?;
    let fio = guest.start(
        "fio --name=stopped --filename=$(ns 1) --size=16m --rw=randrw --bs=64k --iodepth=32 --ioengine=libaio --direct=1 \
             --time_based --runtime=12 --verify=crc32c --verify_fatal=1",
    )?;
    std::thread::sleep(Duration::from_secs(3));
    guest.signal(Signal::Stop)?;
    // Longer than its keep-alive time: the target has let it go, and it must connect again by itself.
    let mut good = Host::connect(port, &nqn)?;
    for _ in 0..10 {
        let time = median_read(&mut good, 200)?;
        ensure!(time < Duration::from_millis(5), "a read takes {time:?} beside a stopped host");
        std::thread::sleep(Duration::from_secs(1));
    }
    guest.signal(Signal::Cont)?;
    let report = guest.finish(fio, Duration::from_secs(120))?;
    ensure!(report.contains("err= 0"), "fio ended with an error:\n{report}");
    Ok(())
}

#[test]
fn a_peer_that_talks_rubbish_loses_its_connection_and_nothing_else_happens() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 * MIB)?;
    let mut good = Host::connect(target.port(), target.nqn())?;
    let mut numbers = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200_u32 {
        let mut bad = Queue::open(target.port())?;
        if round % 2 == 0 {
            bad.initialize()?;
        }
        let rubbish: Vec<u8> = (0..64)
            .flat_map(|_| {
                numbers =
                    numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                numbers.to_be_bytes()
            })
            .collect();
        // A type that no host may send, or that is none; the rest is chance.
        let kind = [0x01, 0x05, 0x07, 0x09, 0x0a, 0xff][round as usize % 6];
        drop(bad.send(&[&[kind], &rubbish[1..]].concat()));
        let said = bad.receive().with_context(|| format!("round {round}, PDU type {kind:#04x}"))?;
        ensure!(said.kind == pdu::C2H_TERM_REQ, "round {round}: type {kind:#04x} was answered with {said:?}");
        good.io.read(1, 0, 8, 512)?;
    }
    ensure!(target.daemon().process().is_running()?, "the daemon is gone");
    Ok(())
}
