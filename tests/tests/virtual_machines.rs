//! Virtual machines on the daemon's own node: QEMU with a disk by vhost-user-blk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::daemon::Daemon;
use penstock_tests::guest::{Guest, Kernel, Machine};
use penstock_tests::process::Process;
use penstock_tests::{paths, wait};
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
    ensure!(spent < Duration::from_millis(40), "an idle guest costs {spent:?} in 2 s: over 2 % of a core");
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

/// `kill -9` of the daemon under I/O, twice: what was under way is done again from the inflight region.
fn sees_a_pause_and_no_error(kernel: Kernel, device: &str) -> Result<()> {
    let mut daemon = daemon(512)?;
    let mut guest = machine(&daemon, kernel, device).boot()?;
    guest.run("modprobe virtio_blk; eventually 10 test -b /dev/vda")?;
    let fio = guest.start(&fio("crash", "--rate=4m"))?;
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(3));
        ensure!(guest.is_running(&fio)?, "fio ended before the daemon was killed");
        daemon.kill()?;
        std::thread::sleep(Duration::from_millis(500));
        daemon.restart()?;
        wait::until(Duration::from_secs(20), || Ok(session(&daemon).ok()))?;
    }
    is_verified(&guest.finish(fio, Duration::from_secs(240))?)?;
    let log = guest.run("dmesg")?;
    ensure!(!log.contains("I/O error"), "the guest saw an error:\n{log}");
    Ok(())
}

#[test]
fn linux_6_12_sees_a_pause_and_no_error_when_the_daemon_is_killed_under_io() -> Result<()> {
    sees_a_pause_and_no_error(Kernel::Linux6_12, "num-queues=2")
}

#[test]
fn linux_6_1_with_packed_queues_sees_a_pause_and_no_error_when_the_daemon_is_killed_under_io() -> Result<()> {
    sees_a_pause_and_no_error(Kernel::Linux6_1, "num-queues=2,packed=on")
}

/// Two QEMUs, one daemon, one disk: the guest moves back and forth while fio verifies.
#[test]
fn a_guest_moves_between_two_hypervisors_under_io() -> Result<()> {
    let daemon = daemon(4096)?;
    let machine = machine(&daemon, Kernel::Linux6_12, "num-queues=2").movable();
    let mut guest = machine.boot()?;
    guest.run("modprobe virtio_blk; eventually 10 test -b /dev/vda")?;
    let fio = guest.start(&fio("moves", "--rate=3m"))?;
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(3));
        guest.migrate(&machine)?;
        ensure!(guest.is_running(&fio)?, "fio ended before the guest was moved");
    }
    is_verified(&guest.finish(fio, Duration::from_secs(240))?)?;
    // The old QEMUs have gone.
    wait::until(Duration::from_secs(20), || {
        let found = daemon.call("vhost_get_controllers", json!({"name": CONTROLLER}))?;
        Ok((found.pointer("/0/sessions/1").is_none()).then_some(()))
    })?;
    Ok(())
}

/// The firmware loads the disk's first sector and runs it: it says so on the serial port.
#[test]
fn the_firmware_boots_from_the_disk() -> Result<()> {
    /// `mov si,text; next: lodsb; test al,al; jz halt; mov dx,0x3f8; out dx,al; jmp next; halt: hlt; jmp halt; text:`
    const CODE: &[u8] =
        b"\xbe\x11\x7c\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5\xf4\xeb\xfdbooted from penstock\0";
    let daemon = daemon(512)?;
    let mut sector = CODE.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let file = std::fs::OpenOptions::new().write(true).open(daemon.dir().join("disk.img"))?;
    std::os::unix::fs::FileExt::write_all_at(&file, &sector, 0)?;
    let serial = daemon.dir().join("serial");
    let mut command = Process::command(paths::tool("qemu-system-x86_64")?)?;
    command.args(["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-m", "128"]);
    command.args(["-machine", "q35,memory-backend=mem"]);
    command.args(["-object", "memory-backend-memfd,id=mem,size=128M,share=on"]);
    command.arg("-chardev").arg(format!("socket,id=disk,path={}", daemon.dir().join(CONTROLLER).display()));
    command.args(["-device", "vhost-user-blk-pci,chardev=disk,bootindex=1"]);
    command.arg("-serial").arg(format!("file:{}", serial.display()));
    let _qemu = Process::start(command, "qemu-system-x86_64")?;
    wait::until(Duration::from_secs(60), || {
        let said = std::fs::read_to_string(&serial).unwrap_or_default();
        Ok(said.contains("booted from penstock").then_some(()))
    })
    .context("the firmware did not boot from the disk")
}

/// GRUB, kernel and root file system all come from the disk; the guest then lives on it, also over a `kill -9` of the daemon.
#[test]
fn an_operating_system_boots_from_the_disk_and_lives_on_it() -> Result<()> {
    let mut daemon = Daemon::start(2)?;
    let file = daemon.dir().join("disk.img");
    let disk = json!({"name": "disk", "filename": file, "block_size": 512, "create_size_mib": 1024});
    std::fs::File::create_new(&file)?.set_len(1024 * MIB)?;
    let machine = machine(&daemon, Kernel::Linux6_12, "num-queues=2,bootindex=1").boots_from_disk();
    machine.install(&file)?;
    daemon.call("bdev_uring_create", disk)?;
    daemon.call("vhost_create_blk_controller", json!({"ctrlr": CONTROLLER, "dev_name": "disk"}))?;
    let mut guest = machine.boot()?;
    let mounts = guest.run("grep ' / ' /proc/mounts")?;
    ensure!(mounts.contains("/dev/vda1 / ext4 rw"), "the root file system is\n{mounts}");
    let fio = guest.start(&fio("root", "--rate=6m").replace("/dev/vda", "/root/fio"))?;
    std::thread::sleep(Duration::from_secs(2));
    daemon.kill()?;
    daemon.restart()?;
    is_verified(&guest.finish(fio, Duration::from_secs(240))?)?;
    guest.run("echo kept >/root/file; sync; ! dmesg | grep 'I/O error\\|EXT4-fs error'")?;
    drop(guest);
    let mut guest = machine.boot()?;
    ensure!(guest.run("cat /root/file")?.contains("kept"), "what was written is gone after another boot");
    Ok(())
}
