//! The daemon in a guest, on the guest's own NVMe device: reads and writes are polled for where the kernel has queues for
//! that, and only there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::guest::{Guest, Kernel, Machine};
use penstock_tests::paths::Scratch;

const MIB: u64 = 1 << 20;

/// A guest with an NVMe device of 64 MiB, and the daemon with that device as a bdev, exported to the guest itself.
fn start(kernel: Kernel, kernel_argument: &str, scratch: &Scratch) -> Result<Guest> {
    let image = scratch.join("nvme.img");
    std::fs::File::create(&image)?.set_len(64 * MIB)?;
    let drive = format!("file={},if=none,id=d0,format=raw,cache=none,aio=io_uring", image.display());
    let mut guest = Machine::new(kernel)
        .kernel_argument(kernel_argument)
        .arguments(["-drive", &drive, "-device", "nvme,drive=d0,serial=POLLED"])
        .program("penstockd")?
        .program("penstock")?
        .boot()?;
    guest.run(
        "eventually 20 test -b /dev/nvme0n1
         penstockd --socket /run/p.sock --cores 0 >/run/penstockd.log 2>&1 &
         eventually 20 penstock --socket /run/p.sock status
         export PENSTOCK_SOCKET=/run/p.sock
         penstock bdev create uring disk0 /dev/nvme0n1
         penstock nvmf create nqn.2026-11.io.penstock:polled --any-host --listen 127.0.0.1:4420 --ns disk0
         modprobe nvme-tcp
         nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.io.penstock:polled -i 1
         eventually 20 test -b /dev/nvme1n1",
    )?;
    Ok(guest)
}

fn says_iopoll(guest: &mut Guest) -> Result<bool> {
    let told = guest.run("penstock --socket /run/p.sock rpc bdev_get_bdevs '{\"name\":\"disk0\"}'")?;
    let at = told.find("\"iopoll\":").with_context(|| format!("no `iopoll` in {told}"))?;
    Ok(told.get(at..at + 16).is_some_and(|word| word.contains("true")))
}

/// Interrupts of the local device's I/O queues so far.
fn interrupts(guest: &mut Guest) -> Result<u64> {
    let text = guest.run(
        "awk '/nvme0q[1-9]/ { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }' /proc/interrupts",
    )?;
    Ok(text.trim().parse()?)
}

fn verified_ios(guest: &mut Guest) -> Result<()> {
    guest.run_for(
        Duration::from_secs(120),
        "fio --name=polled --filename=/dev/nvme1n1 --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=16 \
             --size=16m --verify=crc32c --verify_fatal=1 --group_reporting --output-format=terse >/run/fio.out",
    )?;
    Ok(())
}

#[test]
fn reads_and_writes_of_a_device_with_polled_queues_raise_no_interrupts() -> Result<()> {
    for kernel in [Kernel::Linux6_1, Kernel::Linux6_12] {
        let scratch = Scratch::new()?;
        let mut guest = start(kernel, "nvme.poll_queues=1", &scratch)?;
        ensure!(says_iopoll(&mut guest)?, "{kernel:?}: the device is not polled");
        let before = interrupts(&mut guest)?;
        verified_ios(&mut guest)?;
        let raised = interrupts(&mut guest)? - before;
        // Thousands of reads and writes; flushes and the kernel's own looks at the device go the ordinary way.
        ensure!(raised < 100, "{kernel:?}: {raised} interrupts");
        // Without I/O the core sleeps in spite of its polled ring.
        guest.run("sleep 2; pid=$(pidof penstockd); set -- $(cut -d' ' -f14,15 /proc/$pid/stat); a=$(($1 + $2)); sleep 5; set -- $(cut -d' ' -f14,15 /proc/$pid/stat); used=$(($1 + $2 - a)); test $used -lt 100 || { echo \"$used ticks of 500 used when idle\"; exit 1; }")?;
    }
    Ok(())
}

#[test]
fn a_device_without_polled_queues_is_waited_for() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut guest = start(Kernel::Linux6_12, "nvme.poll_queues=0", &scratch)?;
    ensure!(!says_iopoll(&mut guest)?, "a device without polled queues is polled");
    let before = interrupts(&mut guest)?;
    verified_ios(&mut guest)?;
    ensure!(interrupts(&mut guest)? > before, "no interrupts: how did the I/O end?");
    let refused = guest.try_run(
        "penstock --socket /run/p.sock rpc bdev_uring_create '{\"name\":\"x\",\"filename\":\"/run/image\",\"create_size_mib\":8,\"iopoll\":true}'",
        Duration::from_secs(20),
    )?;
    ensure!(refused.code != 0 && refused.text.contains("iopoll"), "{}", refused.text);
    Ok(())
}
