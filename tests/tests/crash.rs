//! `kill -9` of the daemon under I/O: nothing that was acknowledged is lost, and hosts see a pause, not an error.
//!
//! `PENSTOCK_KILLS=50` kills so often.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use penstock_tests::guest::{Guest, HOST, Kernel};
use penstock_tests::initiator::Host;
use penstock_tests::target::{Backend, Penstock, Target};
use penstock_tests::wait;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// One block's content: its address and the write's number, over and over.
fn pattern(lba: u64, number: u64) -> Vec<u8> {
    [lba, number].map(u64::to_le_bytes).concat().repeat(BLOCK / 16)
}

/// What may be in a block: the last acknowledged write, or any that was sent after it.
#[derive(Debug, Default)]
struct Written {
    acknowledged: u64,
    sent: Vec<u64>,
}

/// Keeps 32 writes in flight until the daemon is gone; notes in `blocks` which were sent and which acknowledged.
fn write_until_cut_off(
    host: &mut Host,
    blocks: &mut BTreeMap<u64, Written>,
    number: &mut u64,
    acknowledged: &AtomicU64,
) {
    let mut in_flight: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    loop {
        while in_flight.len() < 32 {
            *number += 1;
            // An odd multiplier visits every block in an order that is none; a block in flight is passed over, as the
            // order of two writes to it would be open.
            let lba = number.wrapping_mul(2_654_435_761) % 4096;
            if in_flight.values().any(|(busy, _)| *busy == lba) {
                continue;
            }
            blocks.entry(lba).or_default().sent.push(*number);
            match host.io.submit_write(1, lba, &pattern(lba, *number)) {
                Ok(cid) => in_flight.insert(cid, (lba, *number)),
                Err(_) => return,
            };
        }
        let Ok(done) = host.io.completion() else { return };
        let Some((lba, written)) = in_flight.remove(&done.cid).filter(|_| done.status == 0) else {
            return;
        };
        let block = blocks.entry(lba).or_default();
        block.acknowledged = written;
        block.sent.retain(|number| *number > written);
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often to kill, where `PENSTOCK_KILLS` does not say.
fn kills(usual: u64) -> Result<u64> {
    std::env::var("PENSTOCK_KILLS")
        .map_or(Ok(usual), |text| text.parse().context("PENSTOCK_KILLS is no number"))
}

fn what_was_acknowledged_is_there_after_kills(backend: Backend) -> Result<()> {
    let mut target = Penstock::start(backend, 4096)?;
    target.add_namespace(1, 16 * MIB)?;
    let mut blocks = BTreeMap::new();
    let mut number = 0;
    for round in 0..kills(5)? {
        let mut host = Host::connect(target.port(), target.nqn())?;
        let acknowledged = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| write_until_cut_off(&mut host, &mut blocks, &mut number, &acknowledged));
            let enough = 400 + 170 * (round % 8);
            let wrote = wait::until(Duration::from_secs(30), || {
                Ok((acknowledged.load(Ordering::Relaxed) >= enough).then_some(()))
            });
            target.daemon().kill()?;
            wrote.context("the daemon acknowledges too few writes")
        })?;
        if backend == Backend::Vdisk {
            target.fsck().with_context(|| format!("round {round}"))?;
        }
        target.daemon().restart()?;
        let mut host = Host::connect(target.port(), target.nqn())?;
        for (lba, written) in &mut blocks {
            let (found, _) = host.io.read(1, *lba, 1, 4096)?;
            let mut allowed = written.sent.clone();
            allowed.push(written.acknowledged);
            let kept = allowed
                .into_iter()
                .find(|number| found == if *number == 0 { vec![0; BLOCK] } else { pattern(*lba, *number) });
            let Some(kept) = kept else {
                bail!("round {round}: block {lba} begins {:02x?}, not one of {written:?}", found.get(..16));
            };
            *written = Written { acknowledged: kept, sent: Vec::new() };
        }
    }
    Ok(())
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_after_it() -> Result<()> {
    what_was_acknowledged_is_there_after_kills(Backend::Uring)
}

#[test]
fn what_a_vdisk_acknowledged_before_a_kill_is_there_after_it_and_its_pool_is_clean() -> Result<()> {
    what_was_acknowledged_is_there_after_kills(Backend::Vdisk)
}

fn a_host_sees_a_pause_and_no_error(kernel: Kernel, backend: Backend) -> Result<()> {
    let mut target = Penstock::start(backend, 512)?;
    target.add_namespace(1, 64 * MIB)?;
    let mut guest = Guest::boot(kernel, &[])?;
    let (port, nqn) = (target.port(), target.nqn());
    guest.run(&format!(
        "modprobe nvme-tcp
         nvme connect -t tcp -a {HOST} -s {port} -n {nqn} --nr-io-queues=2 --reconnect-delay=1 --ctrl-loss-tmo=120
         eventually 10 ns 1"
    ))?;
    let mut left = kills(2)?;
    while left > 0 {
        let fio = guest.start(&format!(
            "fio --name=crash --filename=$(ns 1) --size=48m --rw=randwrite --bsrange=4k-64k --iodepth=16 --ioengine=libaio \
                 --direct=1 --rate=4m --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed={left}"
        ))?;
        // A run of fio takes about as long as two kills, and its verification.
        for round in 0..left.min(2) {
            std::thread::sleep(Duration::from_secs(3));
            ensure!(guest.is_running(&fio)?, "fio ended before the daemon was killed");
            target.daemon().kill()?;
            wait::until(Duration::from_secs(20), || {
                let state = guest.run("cat /sys/class/nvme/nvme*/state")?;
                Ok((state.trim() == "connecting").then_some(()))
            })?;
            if backend == Backend::Vdisk {
                target.fsck().with_context(|| format!("{left} kills before the end, {round}"))?;
            }
            target.daemon().restart()?;
        }
        left = left.saturating_sub(2);
        let report = guest.finish(fio, Duration::from_secs(240))?;
        ensure!(report.contains("err= 0"), "fio ended with an error:\n{report}");
    }
    guest.run("nvme disconnect-all")?;
    Ok(())
}

#[test]
fn linux_6_1_sees_a_pause_and_no_error_when_the_daemon_is_killed_under_io() -> Result<()> {
    a_host_sees_a_pause_and_no_error(Kernel::Linux6_1, Backend::Uring)
}

#[test]
fn linux_6_12_sees_a_pause_and_no_error_when_the_daemon_is_killed_under_io() -> Result<()> {
    a_host_sees_a_pause_and_no_error(Kernel::Linux6_12, Backend::Uring)
}

#[test]
fn linux_6_12_verifies_a_vdisk_through_kills_and_its_pool_is_clean_after_each() -> Result<()> {
    a_host_sees_a_pause_and_no_error(Kernel::Linux6_12, Backend::Vdisk)
}
