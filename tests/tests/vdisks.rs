//! vdisks under what people put on them: a database in a guest through `kill -9` and a power cut, and more data than the pool has
//! room for, by every protocol.
//!
//! `PENSTOCK_KILLS=50` kills so often.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blkio::{Blkio, Blkioq, Completion, ReqFlags};
use penstock_tests::daemon::Daemon;
use penstock_tests::guest::{Guest, HOST, Kernel, Machine};
use penstock_tests::initiator::Host;
use penstock_tests::iscsi::{Disk, run};
use penstock_tests::process::Signal;
use penstock_tests::target::{Backend, Penstock, Target, fsck, make_pool};
use penstock_tests::{net, wait};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const NQN: &str = "nqn.2026-11.io.penstock:full";
/// Generic command status 81h, Do Not Retry.
const CAPACITY_EXCEEDED: u16 = 0x4081;
/// What a long write did not find room for in a log, so many writes of a block do not find either.
const SMALL_MAX: usize = 8192;
const LIMIT: Duration = Duration::from_secs(120);

/// One transaction after the other, each a row, the end of an old one, and a count; says which are done. A row's body follows
/// from its number, so that every one can be checked.
const TRANSACTIONS: &str = "
    cd /mnt; mkfifo /run/sql; touch /run/go
    sqlite3 bank.db </run/sql >/run/done 2>&1 &
    client=$!
    {
        echo '.timeout 60000'; echo 'pragma synchronous=full;'
        # A pipe holds 64 KiB: few statements wait in it when this is to end.
        i=$(cat /run/next); pad=$(printf '%4000s' x)
        while [ -e /run/go ]; do
            i=$((i + 1))
            echo \"/* $pad */ begin; insert into t values($i, printf('%.*c', 500 + $i % 3000, 'x') || $i); delete from t where id = $i - 500;
                  update n set n = $i; commit; select printf('%-512s', 'done $i');\"
        done
        echo $i >/run/next
    } >/run/sql
    wait $client; rm /run/sql; ! grep -v '^done ' /run/done";

/// The database is whole: its own check, every row what it must be, and none that was acknowledged missing.
const CHECK: &str = "
    cd /mnt
    sqlite3 bank.db \"pragma integrity_check; select 'n', n from n; select 'wrong', count(*) from t
        where body != printf('%.*c', 500 + id % 3000, 'x') || id;
        select 'gap', max(id) - min(id) + 1 - count(*) from t; select 'behind', (select n from n) - max(id) from t;\"";

fn connect(guest: &mut Guest, target: &Penstock) -> Result<()> {
    let (port, nqn) = (target.port(), target.nqn());
    guest.run(&format!(
        "modprobe nvme-tcp
         nvme connect -t tcp -a {HOST} -s {port} -n {nqn} --nr-io-queues=2 --reconnect-delay=1 --ctrl-loss-tmo=120
         eventually 10 ns 1"
    ))?;
    Ok(())
}

/// What the guest was last told is committed.
fn committed(guest: &mut Guest) -> Result<u64> {
    let line = guest.run("tail -n 1 /run/done | tr -d '\\0'")?;
    Ok(line.trim().strip_prefix("done ").and_then(|number| number.parse().ok()).unwrap_or(0))
}

/// Checks the database on the mounted file system; at least `committed` must be in it.
fn check_bank(guest: &mut Guest, committed: u64) -> Result<()> {
    let said = guest.run(CHECK)?;
    let number = said.lines().find_map(|line| line.strip_prefix("n|")).context("no count")?;
    let is_whole =
        ["ok", "wrong|0", "gap|0", "behind|0"].iter().all(|word| said.lines().any(|line| line == *word));
    ensure!(is_whole && number.parse::<u64>()? >= committed, "after {committed}, the database says:\n{said}");
    Ok(())
}

#[test]
fn a_database_on_a_vdisk_outlives_kills_of_the_daemon_and_a_power_cut_of_both() -> Result<()> {
    let kills: u64 = std::env::var("PENSTOCK_KILLS").map_or(Ok(3), |text| text.parse())?;
    let mut target = Penstock::start(Backend::Vdisk, 4096)?;
    target.add_namespace(1, 64 * MIB)?;
    let machine = Machine::new(Kernel::Linux6_12).tools(&["sqlite3"]);
    let mut guest = machine.boot()?;
    connect(&mut guest, &target)?;
    guest.run_for(
        LIMIT,
        "mkfs.ext4 -q -F $(ns 1); mount -t ext4 $(ns 1) /mnt; echo 0 >/run/next
         sqlite3 /mnt/bank.db 'pragma journal_mode=wal; create table t(id integer primary key, body text);
             create table n(n integer); insert into n values(0);'",
    )?;
    let mut known = 0;
    for kill in 0..kills {
        let job = guest.start(TRANSACTIONS)?;
        wait::until(LIMIT, || Ok((committed(&mut guest)? > known).then_some(())))
            .with_context(|| format!("no transaction is done before kill {kill}"))?;
        std::thread::sleep(Duration::from_millis(500 + 370 * (kill % 5)));
        target.daemon().kill()?;
        target.fsck().with_context(|| format!("kill {kill}"))?;
        target.daemon().restart()?;
        known = committed(&mut guest)?;
        wait::until(LIMIT, || Ok((committed(&mut guest)? > known).then_some(())))
            .with_context(|| format!("no transaction is done after kill {kill}"))?;
        guest.run("rm /run/go")?;
        guest.finish(job, LIMIT)?;
        known = committed(&mut guest)?;
        check_bank(&mut guest, known)?;
    }
    let job = guest.start(TRANSACTIONS)?;
    wait::until(LIMIT, || Ok((committed(&mut guest)? > known).then_some(())))?;
    std::thread::sleep(Duration::from_millis(700));
    known = committed(&mut guest)?;
    guest.signal(Signal::Kill)?;
    target.daemon().kill()?;
    drop((guest, job));
    target.fsck().context("after the power cut")?;
    target.daemon().restart()?;
    let mut guest = machine.boot()?;
    connect(&mut guest, &target)?;
    guest.run("mount -t ext4 $(ns 1) /mnt")?;
    check_bank(&mut guest, known)?;
    guest.run("umount /mnt; fsck.ext4 -f -n $(ns 1); nvme disconnect-all")?;
    target.daemon().stop()?;
    target.fsck().context("after the end").map(drop)
}

/// A command with one range of 512-byte blocks in its data, or without data.
fn nvme(host: &mut Host, opcode: u8, lba: u64, blocks: u32, data: &[u8]) -> Result<u16> {
    let mut command = [0; 64];
    let mut put = |at: usize, bytes: &[u8]| {
        let room = command.iter_mut().skip(at);
        room.zip(bytes).for_each(|(room, byte)| *room = *byte);
    };
    put(0, &[opcode, 0x40]);
    put(4, &1_u32.to_le_bytes());
    put(32, &u32::try_from(data.len())?.to_le_bytes());
    put(39, &[0x01]);
    if opcode == 0x09 {
        // One range; Attribute - Deallocate.
        put(44, &4_u32.to_le_bytes());
    } else {
        put(40, &lba.to_le_bytes());
        put(48, &(blocks - 1).to_le_bytes());
    }
    host.io.submit(&mut command, data)?;
    Ok(host.io.completion()?.status)
}

/// Deallocates MiBs by NVMe.
fn deallocate(host: &mut Host, first_mib: u64, mib: u32) -> Result<()> {
    let (lba, blocks) = (first_mib * 2048, mib * 2048);
    let range = [&[0; 4][..], &blocks.to_le_bytes(), &lba.to_le_bytes()].concat();
    let status = nvme(host, 0x09, lba, blocks, &range)?;
    ensure!(status == 0, "Dataset Management of {mib} MiB ended with {status:04x}");
    Ok(())
}

/// Writes blocks by vhost-user until one fails; the negated errno that libblkio makes of its status, or 0.
fn vhost_writes(disk: &Disk, offset: u64, most: usize) -> Result<i32> {
    let words = |error: blkio::Error| anyhow::anyhow!("{}", error.message());
    let mut device = Blkio::new("virtio-blk-vhost-user").map_err(words)?;
    let socket = disk.daemon.dir().join("vm");
    device.set_str("path", socket.to_str().context("a path of ASCII")?).map_err(words)?;
    device.connect().map_err(words)?;
    let mut started = device.start().map_err(words)?;
    let region = device.alloc_mem_region(4096).map_err(words)?;
    device.map_mem_region(&region).map_err(words)?;
    let queue: &mut Blkioq = started.queues.last_mut().context("no queue")?;
    for offset in (offset..).step_by(4096).take(most) {
        queue.write(offset, std::ptr::with_exposed_provenance(region.addr), 4096, 0, ReqFlags::empty());
        let mut completions = [std::mem::MaybeUninit::<Completion>::uninit()];
        ensure!(queue.do_io(&mut completions, 1, None, None).map_err(words)? == 1, "no completion");
        let [completion] = completions;
        // SAFETY: `do_io` has filled it.
        let ended = unsafe { completion.assume_init() }.ret;
        if ended != 0 {
            return Ok(ended);
        }
    }
    Ok(0)
}

/// Exports the iSCSI disk by NVMe/TCP and vhost-user too.
fn export(disk: &Disk) -> Result<Host> {
    let (daemon, port) = (&disk.daemon, net::free_port()?);
    daemon.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    daemon.call("nvmf_create_subsystem", json!({"nqn": NQN, "allow_any_host": true}))?;
    daemon.call("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "disk"}}))?;
    let address = json!({"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
    daemon.call("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address}))?;
    daemon.call("vhost_create_blk_controller", json!({"ctrlr": "vm", "dev_name": "disk"}))?;
    Host::connect(port, NQN)
}

/// Writes MiBs by iSCSI, random bytes that no compression shrinks; whether that succeeded, and what was said.
fn fill(disk: &Disk, mib: std::ops::Range<u64>) -> Result<(bool, String)> {
    let writes = mib.map(|mib| format!("write -P {} {mib}M 1M", 1 + mib % 255));
    let mut words = vec!["-f".to_owned(), "raw".to_owned(), "-t".to_owned(), "none".to_owned()];
    words.extend(writes.flat_map(|write| ["-c".to_owned(), write]));
    words.push(disk.url(1, 0, ""));
    run("qemu-io", &words.iter().map(String::as_str).collect::<Vec<_>>(), LIMIT)
}

fn stats(disk: &Disk) -> Result<Value> {
    disk.daemon.call("pool_get_stats", json!({}))
}

/// How many of the first MiBs are as they were written.
fn are_there(disk: &Disk, mib: std::ops::Range<u64>) -> Result<()> {
    let reads = mib.map(|mib| format!("read -P {} {mib}M 1M", 1 + mib % 255));
    let mut words = vec!["-f".to_owned(), "raw".to_owned(), "-r".to_owned()];
    words.extend(reads.flat_map(|read| ["-c".to_owned(), read]));
    words.push(disk.url(1, 0, ""));
    let (done, said) = run("qemu-io", &words.iter().map(String::as_str).collect::<Vec<_>>(), LIMIT)?;
    let wrong: Vec<&str> = said.lines().filter(|line| line.contains("ailed")).take(4).collect();
    ensure!(done && wrong.is_empty(), "{wrong:?}");
    Ok(())
}

#[test]
fn a_full_pool_says_so_by_every_protocol_reads_go_on_and_unmapping_or_deleting_brings_it_back() -> Result<()>
{
    const PROMISED: u64 = 512;
    let daemon = Daemon::start(2)?;
    make_pool(&daemon, 256)?;
    let params = json!({"name": "disk", "bytes": PROMISED * MIB, "block_size": 512});
    let mut disk = Disk::start_on(daemon, "vdisk_create", params)?;
    disk.daemon.call("vdisk_create", json!({"name": "other", "bytes": 32 * MIB}))?;
    let mut host = export(&disk)?;
    // iSCSI: until it is full. qemu-io goes on after a write that fails.
    let (done, said) = fill(&disk, 0..PROMISED)?;
    let first = said
        .lines()
        .filter(|line| line.starts_with("wrote ") || line.contains("failed"))
        .position(|line| line.contains("failed"));
    let first = first.with_context(|| format!("the pool takes more than it has:\n{said}"))? as u64;
    ensure!(!done && said.contains("No space left on device") && first > 64, "{first} MiB, then:\n{said}");
    let full = stats(&disk)?;
    ensure!(full["full_lanes"].as_u64() > Some(0), "{full}");
    // NVMe, vhost-user: the same.
    let mut statuses = Vec::new();
    while statuses.last().is_none_or(|status| *status == 0) && statuses.len() < SMALL_MAX {
        let lba = 400 * 2048 + statuses.len() as u64 * 8;
        statuses.push(nvme(&mut host, 0x01, lba, 8, &[7; 4096])?);
    }
    let last = statuses.last().copied();
    ensure!(last == Some(CAPACITY_EXCEEDED), "NVMe write {} ends with {last:04x?}", statuses.len());
    ensure!(vhost_writes(&disk, 450 * MIB, SMALL_MAX)? < 0, "vhost-user writes go on");
    are_there(&disk, 0..first)?;
    // Warned, once for each threshold.
    let notes = disk.daemon.call("notify_get_notifications", json!({"max": 4096}))?.to_string();
    ensure!(["pool_above_80", "pool_above_95"].iter().any(|kind| notes.contains(kind)), "{notes}");
    // Unmapping by NVMe.
    deallocate(&mut host, 32, u32::try_from(first)? - 32)?;
    deallocate(&mut host, 400, 112)?;
    wait::until(LIMIT, || Ok((nvme(&mut host, 0x01, 450 * 2048, 8, &[9; 4096])? == 0).then_some(())))
        .context("unmapping brings nothing back")?;
    let (done, said) = wait::until(LIMIT, || {
        let (done, said) = fill(&disk, 200..232)?;
        Ok((done && !said.contains("failed")).then_some((done, said)))
    })?;
    ensure!(done, "{said}");
    are_there(&disk, 0..32)?;
    are_there(&disk, 200..232)?;
    // Full again, and another vdisk goes.
    drop(fill(&disk, 32..first)?);
    drop(fill(&disk, 232..PROMISED)?);
    disk.daemon.call("vdisk_snapshot", json!({"vdisks": ["disk"], "name": "s"})).ok();
    disk.daemon.call("vdisk_delete", json!({"name": "other"}))?;
    disk.daemon.call("vdisk_snapshot_delete", json!({"vdisk": "disk", "snapshot": "s"})).ok();
    deallocate(&mut host, 232, 280)?;
    wait::until(LIMIT, || Ok((nvme(&mut host, 0x01, 450 * 2048, 8, &[9; 4096])? == 0).then_some(())))
        .context("the pool stays full")?;
    are_there(&disk, 0..32)?;
    drop(host);
    disk.daemon.stop()?;
    fsck(&disk.daemon).map(drop)
}
