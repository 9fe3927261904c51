//! Virtual machines on the daemon's own node: QEMU with a disk by vhost-user-blk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::daemon::Daemon;
use penstock_tests::guest::{Guest, Kernel, Machine};
use penstock_tests::wait;
use serde_json::json;

const MIB: u64 = 1 << 20;
const CONTROLLER: &str = "vm0";

/// A daemon with a file of 64 MiB behind a controller.
fn daemon(block_bytes: u32) -> Result<Daemon> {
    let daemon = Daemon::start(2)?;
    let file = daemon.dir().join("disk.img");
    let disk = json!({"name": "disk", "filename": file, "block_size": block_bytes, "create_size_mib": 64});
    daemon.call("bdev_uring_create", disk)?;
    let controller = json!({"ctrlr": CONTROLLER, "dev_name": "disk", "packed_ring": true});
    daemon.call("vhost_create_blk_controller", controller)?;
    Ok(daemon)
}

/// A guest of this daemon's. `device` are further properties of the disk.
fn machine(daemon: &Daemon, kernel: Kernel, device: &str) -> Machine {
    let socket = daemon.dir().join(CONTROLLER);
    Machine::new(kernel).machine("q35,memory-backend=mem").memory_mib(512).modules(&["virtio_blk"]).arguments(
        [
            "-object".to_owned(),
            "memory-backend-memfd,id=mem,size=512M,share=on".to_owned(),
            "-chardev".to_owned(),
            format!("socket,id=vhost0,path={},reconnect-ms=200", socket.display()),
            "-device".to_owned(),
            format!("vhost-user-blk-pci,chardev=vhost0,{device}"),
        ],
    )
}

fn fio(name: &str, more: &str) -> String {
    format!(
        "fio --name={name} --filename=/dev/vda --size=48m --rw=randwrite --bsrange=4k-64k --iodepth=16 --ioengine=libaio \
             --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=7 {more}"
    )
}

fn is_verified(report: &str) -> Result<()> {
    ensure!(report.contains("err= 0"), "fio ended with an error:\n{report}");
    Ok(())
}

fn size_becomes(guest: &mut Guest, bytes: u64) -> Result<()> {
    guest.run(&format!("eventually 10 test $(blockdev --getsize64 /dev/vda) = {bytes}")).map(drop)
}

/// The one session of the controller.
fn session(daemon: &Daemon) -> Result<serde_json::Value> {
    let found = daemon.call("vhost_get_controllers", json!({"name": CONTROLLER}))?;
    Ok(found.pointer("/0/sessions/0").context("nobody is connected")?.clone())
}

/// Everything that a disk does, by a guest with these properties of its device.
fn works_as_a_disk(kernel: Kernel, block_bytes: u32, device: &str) -> Result<()> {
    let mut daemon = daemon(block_bytes)?;
    let mut guest = machine(&daemon, kernel, device).boot()?;
    guest.run("modprobe virtio_blk; eventually 10 test -b /dev/vda")?;
    let shown = guest.run(
        "cat /sys/block/vda/serial; echo; cat /sys/block/vda/queue/logical_block_size; ls /sys/block/vda/mq | wc -l
         cat /sys/block/vda/queue/write_cache",
    )?;
    let expected = ["disk".to_owned(), block_bytes.to_string(), "2".to_owned(), "write back".to_owned()];
    let found: Vec<&str> = shown.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    ensure!(found == expected, "the guest sees {found:?}, not {expected:?}");
    is_verified(&guest.run_for(Duration::from_secs(120), &fio("verify", ""))?)?;
    guest.run(
        "blkdiscard -o 0 -l 4M /dev/vda
         test $(head -c 4194304 /dev/vda | tr -d '\\0' | wc -c) = 0
         blkdiscard -z -o 8M -l 4M /dev/vda
         mkfs.ext4 -q /dev/vda; modprobe ext4 2>/dev/null || true; mount /dev/vda /mnt; head -c 9000000 /dev/urandom >/mnt/file
         sum=$(md5sum </mnt/file); umount /mnt; mount /dev/vda /mnt; test \"$(md5sum </mnt/file)\" = \"$sum\"; umount /mnt
         fsck.ext4 -fn /dev/vda",
    )?;
    daemon.call("penstock_bdev_resize", json!({"name": "disk", "bytes": 96 * MIB}))?;
    size_becomes(&mut guest, 96 * MIB)?;
    let queues = session(&daemon)?;
    let queues = queues.get("queues").and_then(|queues| queues.as_array()).context("no queues")?;
    ensure!(queues.len() == 2, "{queues:?}");
    let reactors: Vec<_> = queues.iter().filter_map(|queue| queue.get("reactor")).collect();
    ensure!(reactors.first() != reactors.get(1), "both queues are on one reactor: {queues:?}");
    // Idle: no turn, no interrupt.
    std::thread::sleep(Duration::from_secs(1));
    let before = daemon.process().cpu_time()?;
    std::thread::sleep(Duration::from_secs(2));
    let spent = daemon.process().cpu_time()? - before;
    ensure!(spent < Duration::from_millis(100), "an idle guest costs {spent:?} in 2 s");
    Ok(())
}

#[test]
fn linux_6_12_uses_two_split_queues() -> Result<()> {
    works_as_a_disk(Kernel::Linux6_12, 512, "num-queues=2")
}

#[test]
fn linux_6_1_uses_two_packed_queues_and_blocks_of_4096_bytes() -> Result<()> {
    works_as_a_disk(Kernel::Linux6_1, 4096, "num-queues=2,packed=on")
}
