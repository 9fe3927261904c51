//! Our NVMe driver in a guest: emulated controllers behind an emulated IOMMU, taken by VFIO, exported by NVMe/TCP to the
//! guest's own kernel, which verifies what it writes.
#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use penstock_tests::guest::{Guest, Kernel, Machine};
use penstock_tests::paths::Scratch;
use serde_json::json;

const LONG: Duration = Duration::from_secs(180);

fn disk(scratch: &Scratch, name: &str, mib: u64) -> String {
    let file = scratch.join(name);
    File::create(&file).unwrap().set_len(mib << 20).unwrap();
    file.display().to_string()
}

/// A machine with these devices behind the IOMMU.
fn machine_with(devices: Vec<String>) -> Result<Machine> {
    Machine::new(Kernel::Linux6_12)
        .machine("q35,kernel-irqchip=split")
        .kernel_argument("intel_iommu=on")
        .kernel_argument("iommu=nopt")
        // The IOMMU must be the first device.
        .arguments(["-device", "intel-iommu,intremap=on,caching-mode=on"])
        .arguments(devices)
        .modules(&["vfio-pci", "vfio_iommu_type1"])
        .program("penstock-hugepage-setup")
}

fn boot(devices: Vec<String>) -> Result<Guest> {
    let mut guest = machine_with(devices)?
        .program("penstockd")?
        .program("penstock")?
        .program("examples/vhost_bench")?
        .boot()?;
    guest.run(SETUP)?;
    Ok(guest)
}

/// Sees that a mounted device is refused, gives every NVMe device and some hugepages away, and starts the daemon.
const SETUP: &str = "
    eventually 20 sh -c 'ls -d /sys/bus/pci/devices/0000:00:05.0/nvme/nvme*/nvme*n*'
    disk=/dev/$(basename $(ls -d /sys/bus/pci/devices/0000:00:05.0/nvme/nvme*/nvme*n* | head -n 1) | sed 's,c[0-9]*n,n,')
    eventually 20 test -b $disk
    mkfs.ext4 -q $disk && mount $disk /mnt
    if penstock-hugepage-setup plan --bind 0000:00:05.0 >/run/refused; then cat /run/refused; exit 1; fi
    grep 'mounted on /mnt' /run/refused
    umount /mnt
    penstock-hugepage-setup apply --bind class:nvme --hugepages 2M=48
    [ $(readlink /sys/bus/pci/devices/0000:00:05.0/driver | sed 's,.*/,,') = nvme ] # a dry run
    penstock-hugepage-setup apply --bind class:nvme --hugepages 2M=48 --yes
    [ $(cat /proc/sys/vm/nr_hugepages) = 48 ]
    penstock-hugepage-setup status --json
    modprobe nvme-tcp
    penstockd --socket /run/p.sock --reactors 2 >/run/penstockd.log 2>&1 &
    echo $! >/run/penstockd.pid
    eventually 20 penstock --socket /run/p.sock rpc spdk_get_version '{}'";

fn rpc(method: &str, params: serde_json::Value) -> String {
    format!(
        "penstock --socket /run/p.sock rpc {method} '{params}' || {{ tail -n 30 /run/penstockd.log; exit 1; }}\n"
    )
}

/// Attaches the function with that serial number.
fn attach(guest: &mut Guest, name: &str, slot: &str) -> Result<String> {
    guest.run(&rpc("bdev_nvme_attach_controller", json!({"name": name, "trtype": "PCIe", "traddr": slot})))
}

/// Exports the bdevs as namespaces 1, 2, … and connects the guest's kernel to them.
fn export(guest: &mut Guest, bdevs: &[&str]) -> Result<()> {
    let nqn = "nqn.2026-11.io.penstock:vfio";
    let mut script = rpc("nvmf_create_transport", json!({"trtype": "TCP"}));
    script +=
        &rpc("nvmf_create_subsystem", json!({"nqn": nqn, "allow_any_host": true, "serial_number": "V"}));
    let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"});
    script += &rpc("nvmf_subsystem_add_listener", json!({"nqn": nqn, "listen_address": address}));
    for (bdev, nsid) in bdevs.iter().zip(1..) {
        let namespace = json!({"bdev_name": bdev, "nsid": nsid});
        script += &rpc("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}));
    }
    write!(
        script,
        "nvme connect -t tcp -a 127.0.0.1 -s 4420 -n {nqn} --nr-io-queues=2\neventually 20 ns {}",
        bdevs.len()
    )?;
    guest.run(&script)?;
    Ok(())
}

fn verify(nsid: u32, mib: u32, seed: u32) -> String {
    format!(
        "fio --name=v{nsid} --filename=$(ns {nsid}) --size={mib}m --rw=randwrite --bsrange=4k-256k --iodepth=16 \
         --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed={seed}\n"
    )
}

#[test]
fn a_controller_with_two_namespaces_of_both_block_lengths_serves_the_guests_own_kernel() -> Result<()> {
    let scratch = Scratch::new()?;
    let (first, second, third) = (disk(&scratch, "a", 64), disk(&scratch, "b", 64), disk(&scratch, "c", 64));
    let mut args = Vec::new();
    for (id, file) in [("a", &first), ("b", &second), ("c", &third)] {
        args.push("-drive".into());
        args.push(format!("file={file},if=none,id={id},format=raw,cache=none"));
    }
    // Another controller with small transfers, with a namespace that must be refused beside a good one.
    for device in [
        "nvme,id=n0,serial=S0,addr=5",
        "nvme-ns,drive=a,bus=n0,nsid=1,logical_block_size=512,physical_block_size=512",
        "nvme-ns,drive=b,bus=n0,nsid=2,logical_block_size=4096,physical_block_size=4096",
        "nvme,id=n1,serial=S1,addr=6,mdts=2",
        "nvme-ns,drive=c,bus=n1,nsid=1",
    ] {
        args.extend(["-device".to_owned(), device.to_owned()]);
    }
    args.extend(
        [
            "-blockdev",
            "null-co,node-name=pi,size=16777216",
            "-device",
            "nvme-ns,drive=pi,bus=n1,nsid=9,ms=8,pi=1",
        ]
        .map(str::to_owned),
    );
    let mut guest = boot(args)?;
    let names = attach(&mut guest, "Nvme0", "0000:00:05.0")?;
    assert!(names.contains("Nvme0n1") && names.contains("Nvme0n2"), "{names}");
    let names = attach(&mut guest, "Nvme1", "0000:00:06.0")?;
    assert!(names.contains("Nvme1n1") && !names.contains("Nvme1n9"), "{names}");
    let report = guest.run(&rpc("bdev_nvme_get_controllers", json!({"name": "Nvme1"})))?;
    assert!(report.contains("protection information"), "{report}");
    export(&mut guest, &["Nvme0n1", "Nvme0n2", "Nvme1n1"])?;
    let blocks =
        guest.run("for n in 1 2 3; do cat /sys/block/$(basename $(ns $n))/queue/logical_block_size; done")?;
    assert_eq!(blocks.split_whitespace().collect::<Vec<_>>(), ["512", "4096", "512"]);
    for nsid in 1..=3 {
        guest.run_for(LONG, &verify(nsid, 16, nsid))?;
    }
    guest.run_for(
        LONG,
        "dev=$(ns 2)
         blkdiscard -z -o 1m -l 3m $dev; blkdiscard -o 8m -l 1m $dev
         dd if=$dev bs=1M skip=1 count=3 iflag=direct 2>/dev/null | cmp -n 3145728 - /dev/zero
         mkfs.ext4 -q $dev && mount $dev /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=8 2>/dev/null
         sum=$(sha256sum </mnt/f); umount /mnt; mount $dev /mnt; [ \"$sum\" = \"$(sha256sum </mnt/f)\" ]; umount /mnt
         fsck.ext4 -fn $dev",
    )?;
    a_virtual_machines_memory_is_reached_in_place(&mut guest)?;
    // The bytes are on the disk's file, where the block length of the guest's export does not matter.
    guest.run("nvme disconnect-all; eventually 10 no_ns 1")?;
    guest.run_for(LONG, &rpc("bdev_nvme_detach_controller", json!({"name": "Nvme0"})))?;
    assert_eq!(guest.run(&rpc("bdev_nvme_get_controllers", json!({})))?.matches("S0").count(), 0);
    // And back again: the device is as usable as before.
    attach(&mut guest, "Again", "0000:00:05.0")?;
    guest.run("kill $(cat /run/penstockd.pid); eventually 20 sh -c '! kill -0 $(cat /run/penstockd.pid) 2>/dev/null'")?;
    let log = guest.run("cat /run/penstockd.log; ls /sys/bus/pci/drivers/vfio-pci")?;
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    assert!(Path::new(&first).exists());
    Ok(())
}

/// Commands that the controller was given, and how many of their data were copied.
fn commands_and_copies(guest: &mut Guest, name: &str) -> Result<(u64, u64)> {
    let report = guest.run(&rpc("bdev_nvme_get_controllers", json!({"name": name})))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let queues =
        report.pointer("/0/ctrlrs/0/queues").and_then(serde_json::Value::as_array).context("queues")?;
    let sum = |what: &str| queues.iter().filter_map(|queue| queue.get(what)?.as_u64()).sum();
    Ok((sum("commands"), sum("bounced")))
}

/// A client of vhost-user-blk shares memory with the daemon; the disk reads and writes there, and nothing is copied.
fn a_virtual_machines_memory_is_reached_in_place(guest: &mut Guest) -> Result<()> {
    let before = commands_and_copies(guest, "Nvme0")?;
    let mut script = rpc("vhost_create_blk_controller", json!({"ctrlr": "machine", "dev_name": "Nvme0n2"}));
    for kind in ["write", ""] {
        writeln!(script, "/usr/bin/examples/vhost_bench /run/machine 16 1 {kind}")?;
    }
    script += &rpc("vhost_delete_controller", json!({"ctrlr": "machine"}));
    guest.run_for(LONG, &script)?;
    let after = commands_and_copies(guest, "Nvme0")?;
    ensure!(
        after.0 > before.0 + 100 && after.1 == before.1,
        "from {before:?} to {after:?} (commands, copies)"
    );
    Ok(())
}

/// Gives QEMU a command of its machine protocol.
fn qmp(socket: &Path, command: &str, arguments: serde_json::Value) -> Result<()> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LONG))?;
    let mut stream = BufReader::new(stream);
    for said in [json!({"execute": "qmp_capabilities"}), json!({"execute": command, "arguments": arguments})]
    {
        writeln!(stream.get_mut(), "{said}")?;
        let mut line = String::new();
        // Greetings and events come between.
        while !line.contains("\"return\"") {
            line.clear();
            ensure!(stream.read_line(&mut line)? > 0, "QEMU hung up");
            ensure!(!line.contains("\"error\""), "QEMU refuses {said}: {line}");
        }
    }
    Ok(())
}

/// It comes as soon as vfio-pci is given it, and stays away once it was detached.
fn a_device_that_is_put_in_comes_by_itself(guest: &mut Guest, socket: &Path) -> Result<()> {
    guest.run(&rpc("bdev_nvme_set_hotplug", json!({"enable": true})))?;
    qmp(
        socket,
        "device_add",
        json!({"driver": "nvme", "drive": "n1", "serial": "PUT-IN", "bus": "rp1", "id": "hp1"}),
    )?;
    guest.run_for(
        LONG,
        "eventually 30 penstock-hugepage-setup apply --bind serial:PUT-IN --yes
         eventually 30 sh -c 'penstock --socket /run/p.sock rpc bdev_get_bdevs {} | grep -q HotInNvme0n1'
         ! penstock --socket /run/p.sock rpc save_config {} | grep -q HotInNvme0",
    )?;
    guest.run_for(LONG, &rpc("bdev_nvme_detach_controller", json!({"name": "HotInNvme0"})))?;
    guest.run("sleep 1; ! penstock --socket /run/p.sock rpc bdev_nvme_get_controllers {} | grep PUT-IN")?;
    Ok(())
}

#[test]
fn a_device_that_fails_is_reset_or_is_pulled_out_harms_only_its_own_io() -> Result<()> {
    let scratch = Scratch::new()?;
    let (bad, pulled, socket) =
        (disk(&scratch, "bad", 64), disk(&scratch, "pulled", 64), scratch.join("qmp"));
    let rules = scratch.join("blkdebug");
    // The block at 32 MiB cannot be read.
    std::fs::write(
        &rules,
        "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"65536\"\nonce = \"off\"\n",
    )?;
    let args = Vec::from([
        "-qmp".into(),
        format!("unix:{},server=on,wait=off", socket.display()),
        "-blockdev".into(),
        format!("driver=file,node-name=f0,filename={bad}"),
        "-blockdev".into(),
        format!("driver=blkdebug,node-name=d0,image=f0,config={}", rules.display()),
        "-blockdev".into(),
        "driver=raw,node-name=r0,file=d0".into(),
        "-device".into(),
        "nvme,drive=r0,serial=BAD,addr=5".into(),
        "-device".into(),
        "pcie-root-port,id=rp1,chassis=1,slot=1,addr=6".into(),
        "-drive".into(),
        format!("file={pulled},if=none,id=p0,format=raw,cache=none"),
        "-device".into(),
        "nvme,drive=p0,serial=PULLED,bus=rp1,id=hp0".into(),
        "-blockdev".into(),
        "null-co,node-name=n1,size=16777216".into(),
    ]);
    let mut guest = boot(args)?;
    let pulled_at = guest
        .run("for d in /sys/bus/pci/devices/*; do [ $(cat $d/class) = 0x010802 ] && echo ${d##*/}; done")?;
    let pulled_at = pulled_at.split_whitespace().find(|slot| *slot != "0000:00:05.0").unwrap().to_owned();
    attach(&mut guest, "Bad", "0000:00:05.0")?;
    attach(&mut guest, "Pulled", &pulled_at)?;
    export(&mut guest, &["Badn1", "Pulledn1"])?;

    // An error of the medium is that read's alone.
    let script = "dev=$(ns 1)
        if dd if=$dev of=/dev/null bs=4096 skip=8192 count=1 iflag=direct; then echo read; exit 1; fi
        dd if=$dev of=/dev/null bs=4096 skip=8200 count=1 iflag=direct";
    guest.run(script)?;

    // Resets under load.
    let job = guest.start(&verify(1, 16, 7))?;
    for _ in 0..5 {
        guest.run(&format!("sleep 0.3\n{}", rpc("bdev_nvme_reset_controller", json!({"name": "Bad"}))))?;
    }
    guest.finish(job, LONG)?;
    let report = guest.run(&rpc("bdev_nvme_get_controllers", json!({"name": "Bad"})))?;
    assert!(report.contains("\"resets\": 5") && report.contains("\"enabled\""), "{report}");

    // Pulled out while it is read from.
    let job = guest.start("fio --name=pull --filename=$(ns 2) --rw=randread --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --time_based --runtime=60 || true")?;
    guest.run("sleep 2")?;
    qmp(&socket, "device_del", json!({"id": "hp0"}))?;
    guest.run_for(
        LONG,
        "eventually 60 sh -c '! penstock --socket /run/p.sock rpc bdev_get_bdevs {} | grep -q Pulledn1'
         eventually 20 sh -c '! penstock --socket /run/p.sock rpc bdev_nvme_get_controllers {} | grep -q PULLED'",
    )?;
    guest.finish(job, LONG)?;
    guest.run_for(LONG, &verify(1, 8, 8))?;
    a_device_that_is_put_in_comes_by_itself(&mut guest, &socket)?;
    guest.run("nvme disconnect-all; kill $(cat /run/penstockd.pid); eventually 20 sh -c '! kill -0 $(cat /run/penstockd.pid) 2>/dev/null'")?;
    let log = guest.run("cat /run/penstockd.log")?;
    assert!(!log.contains("panicked"), "{log}");
    // What apply gave away, undo takes back: the kernel's driver has the device again.
    guest.run(
        "penstock-hugepage-setup undo --yes; eventually 20 test -e /sys/bus/pci/drivers/nvme/0000:00:05.0",
    )?;
    Ok(())
}

/// A command's answers per second, by fio in the guest.
fn fio_iops(guest: &mut Guest, disk: &str) -> Result<f64> {
    let said = guest.run_for(
        LONG,
        &format!(
            "fio --name=kernel --filename={disk} --readonly --rw=randread --bs=4k --iodepth=32 --ioengine=libaio \
             --direct=1 --time_based --runtime=4 --output-format=json"
        ),
    )?;
    let report: serde_json::Value = serde_json::from_str(&said)?;
    report.pointer("/jobs/0/read/iops").and_then(serde_json::Value::as_f64).context("fio's IOPS")
}

/// System calls of a whole run of so many reads.
fn system_calls(guest: &mut Guest, ios: u64) -> Result<u64> {
    let said = guest.run_for(
        LONG,
        &format!(
            "strace -f -c -U calls -o /run/calls penstock-perf pcie:0000:00:05.0 --qd 32 --ios {ios} --time 60 -q >/dev/null
             awk '$2 == \"total\" {{ print $1 }}' /run/calls"
        ),
    )?;
    Ok(said.trim().parse()?)
}

#[test]
fn polling_is_faster_than_the_kernels_driver_and_needs_no_system_call() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = disk(&scratch, "polled", 256);
    let args = Vec::from([
        "-drive".into(),
        format!("file={file},if=none,id=d,format=raw,cache=none,aio=io_uring"),
        "-device".into(),
        "nvme,drive=d,serial=POLLED,addr=5".into(),
    ]);
    let mut guest = machine_with(args)?.program("penstock-perf")?.tools(&["strace"]).boot()?;
    guest.run("eventually 20 test -b /dev/nvme0n1")?;
    let kernels = fio_iops(&mut guest, "/dev/nvme0n1")?;
    guest.run("penstock-hugepage-setup apply --bind serial:POLLED --hugepages 2M=64 --yes")?;
    let said = guest
        .run_for(LONG, "penstock-perf pcie:0000:00:05.0 --qd 32 --cores 1 --warmup 1 --time 4 --json -q")?;
    let report: serde_json::Value = serde_json::from_str(&said)?;
    let ours = report.get("iops").and_then(serde_json::Value::as_f64).context("our IOPS")?;
    println!("4 KiB random reads at queue depth 32: {ours:.0} polled, {kernels:.0} by the kernel's driver");
    ensure!(ours > kernels, "{ours} IOPS polled, {kernels} by the kernel's driver");
    let (once, twice) = (system_calls(&mut guest, 10_000)?, system_calls(&mut guest, 20_000)?);
    println!("system calls of 10,000 reads: {once}, of 20,000: {twice}");
    // The clock, the controller's own thread and the progress go on while the reads do.
    ensure!(twice < once + 500, "10,000 more reads took {} system calls more", twice - once);
    guest.run_for(
        LONG,
        "penstock-perf pcie:0000:00:05.0 --rw randwrite --qd 16 --bs 64k --size 32M --ios 2000 --verify -q",
    )?;
    guest.run("penstock-hugepage-setup undo --yes; eventually 20 test -b /dev/nvme0n1")?;
    Ok(())
}

#[test]
fn a_device_slower_than_its_time_limit_is_aborted_and_reset_and_then_serves_again() -> Result<()> {
    let scratch = Scratch::new()?;
    let (file, socket) = (disk(&scratch, "slow", 64), scratch.join("qmp"));
    let args = Vec::from([
        "-qmp".into(),
        format!("unix:{},server=on,wait=off", socket.display()),
        "-object".into(),
        "throttle-group,id=limits,x-iops-total=100000".into(),
        "-blockdev".into(),
        format!("driver=file,node-name=f0,filename={file}"),
        "-blockdev".into(),
        "driver=throttle,node-name=t0,throttle-group=limits,file=f0".into(),
        "-device".into(),
        "nvme,drive=t0,serial=SLOW,addr=5".into(),
    ]);
    let mut guest = boot(args)?;
    let limits = json!({"timeout_us": 500_000, "action_on_timeout": "abort", "bdev_retry_count": 3});
    guest.run(&rpc("bdev_nvme_set_options", limits))?;
    attach(&mut guest, "Slow", "0000:00:05.0")?;
    export(&mut guest, &["Slown1"])?;
    guest.run_for(LONG, &verify(1, 8, 1))?;

    // Sixteen commands at once, of which four are done in a second. What the host is told of them is the host's to judge.
    let throttle = |iops: u32| {
        qmp(
            &socket,
            "qom-set",
            json!({"path": "/objects/limits", "property": "limits", "value": {"iops-total": iops}}),
        )
    };
    throttle(4)?;
    let job = guest.start(
        "fio --name=slow --filename=$(ns 1) --offset=32m --size=16m --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio \
         --direct=1 --time_based --runtime=6 || true",
    )?;
    guest.finish(job, LONG)?;
    throttle(100_000)?;
    // A controller that was given up is tried again by itself.
    guest.run_for(
        LONG,
        "eventually 60 sh -c 'penstock --socket /run/p.sock rpc bdev_nvme_get_controllers {} | grep -q enabled' || {
             penstock --socket /run/p.sock rpc bdev_nvme_get_controllers {}; tail -n 30 /run/penstockd.log; exit 1; }",
    )?;
    let report = guest.run(&rpc("bdev_nvme_get_controllers", json!({"name": "Slow"})))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let count =
        |what: &str| report.pointer(&format!("/0/ctrlrs/0/{what}")).and_then(serde_json::Value::as_u64);
    println!("{:?} aborts, {:?} resets", count("aborts"), count("resets"));
    ensure!(count("aborts") > Some(0) || count("resets") > Some(0), "no limit was held: {report}");
    // What was there before is as it was, and the device serves as before.
    guest.run_for(LONG, &format!("{} --verify_only", verify(1, 8, 1).trim_end()))?;
    guest.run_for(LONG, &verify(1, 8, 2))?;
    let log = guest.run("cat /run/penstockd.log")?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}
