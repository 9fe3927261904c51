//! iSCSI and Linux guests: multipath through the loss of a path, a guest whose root file system is an iSCSI disk, a boot
//! loader that comes from one, and what sg3-utils make of the disk.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::guest::{Guest, HOST, Kernel, Machine};
use penstock_tests::iscsi::{Disk, IQN, must};
use penstock_tests::paths::{self, Scratch};
use penstock_tests::process::Process;
use penstock_tests::relay::Relay;
use penstock_tests::wait;

/// Everything is emulated, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(180);

/// What the kernel's initiator needs in a guest.
fn initiator() -> Machine {
    Machine::new(Kernel::Linux6_12)
        .modules(&["iscsi_tcp", "sd_mod", "sg", "crc32c_generic"])
        .tools(&["iscsid", "iscsiadm"])
}

/// Starts the initiator and logs in at `ports` of the host; the disks are there then, in that order.
fn log_in(guest: &mut Guest, ports: &[u16]) -> Result<()> {
    guest.run(
        "for module in iscsi_tcp sd_mod sg crc32c_generic; do modprobe $module 2>/dev/null || true; done
         mkdir -p /etc/iscsi /var/lib/iscsi /run/lock/iscsi
         echo InitiatorName=iqn.2026-11.h:guest >/etc/iscsi/initiatorname.iscsi
         printf '%s\\n' 'node.startup = manual' 'node.session.timeo.replacement_timeout = 2' \\
             'node.conn[0].timeo.noop_out_interval = 1' 'node.conn[0].timeo.noop_out_timeout = 2' >/etc/iscsi/iscsid.conf
         iscsid -f >/run/iscsid.log 2>&1 &
         eventually 10 iscsiadm -m session -P 0 || true",
    )?;
    for (port, name) in ports.iter().zip(["sda", "sdb"]) {
        guest.run(&format!(
            "iscsiadm -m node -o new -T {IQN} -p {HOST}:{port}
             iscsiadm -m node -T {IQN} -p {HOST}:{port} --login || {{ cat /run/iscsid.log; exit 1; }}
             eventually 20 test -b /dev/{name}"
        ))?;
    }
    Ok(())
}

#[test]
fn linux_multipath_follows_alua_and_goes_on_when_a_path_is_cut() -> Result<()> {
    let disk = Disk::malloc(64)?;
    let [one, other] = disk.ports;
    let relays = [Relay::to(one)?, Relay::to(other)?];
    let mut guest = initiator()
        .modules(&["dm-multipath", "dm-mod", "dm-service-time", "dm-round-robin"])
        .tools(&["multipathd", "multipath", "dmsetup", "udevadm", "sg_stpg", "sg_rtpg"])
        .files(&["/usr/lib/udev/scsi_id", "/usr/lib/udev/rules.d", "/lib/multipath"])
        .boot()?;
    guest.run(
        "for module in dm-mod dm-multipath dm-service-time dm-round-robin; do modprobe $module; done
         ln -s /usr/bin/udevadm /run/systemd-udevd; mkdir -p /run/udev /etc/multipath
         /run/systemd-udevd --daemon; udevadm trigger; udevadm settle
         printf '%s\\n' 'defaults {' ' find_multipaths no' ' user_friendly_names yes' ' polling_interval 1' \\
             ' max_polling_interval 2' ' path_grouping_policy group_by_prio' ' prio alua' ' hardware_handler \"0\"' \\
             ' failback immediate' ' no_path_retry 30' '}' >/etc/multipath.conf
         multipathd -d -s >/run/multipathd.log 2>&1 &",
    )?;
    log_in(&mut guest, &relays.each_ref().map(Relay::port))?;
    guest.run("eventually 30 test -b /dev/mapper/mpatha || { cat /run/multipathd.log; exit 1; }")?;
    // The second portal's group is not the best way any more, as an initiator says; the map's groups follow.
    guest.run(
        "sg_stpg --tp=1,2 --state=0,1 /dev/sda; sg_rtpg -d /dev/sdb
         both() { multipathd show maps topology >/run/top; grep -q prio=50 /run/top && grep -q prio=10 /run/top; }
         eventually 30 both || { cat /run/top /run/multipathd.log; exit 1; }",
    )?;
    let job = guest.start(
        "fio --name=mp --filename=/dev/mapper/mpatha --size=16m --rw=randrw --bs=4k --iodepth=8 --ioengine=libaio \\
             --direct=1 --time_based --runtime=30 --verify=crc32c --verify_fatal=1 --verify_backlog=64 --randseed=3",
    )?;
    relays[0].cut();
    let states = "states() { multipathd show paths format '%d %t' >/run/paths; ";
    guest
        .run(&format!("{states} grep -q 'sda.*failed' /run/paths; }}; eventually 40 states"))
        .context("the path that was cut is not failed")?;
    relays[0].heal();
    guest
        .run(&format!("{states} [ \"$(grep -c active /run/paths)\" = 2 ]; }}; eventually 40 states"))
        .context("the path that was healed is not taken again")?;
    let told = guest.finish(job, LIMIT)?;
    ensure!(told.contains("err= 0"), "I/O failed:\n{told}");
    Ok(())
}

#[test]
fn a_guest_runs_from_an_iscsi_disk() -> Result<()> {
    let disk = Disk::uring(512, 512)?;
    let drive = format!(
        "file={},if=none,id=i0,format=raw,cache=none,file.initiator-name=iqn.2026-11.h:vm",
        disk.url(1, 0, "")
    );
    let machine = || {
        let machine = Machine::new(Kernel::Linux6_12).modules(&["virtio_blk", "ext4"]);
        machine.arguments(["-drive", &drive, "-device", "virtio-blk-pci,drive=i0"])
    };
    let mut installer = machine().boot()?;
    installer.run_for(
        LIMIT,
        "for module in virtio_blk ext4; do modprobe $module || true; done; eventually 10 test -b /dev/vda
         mkfs.ext4 -q -F /dev/vda; mount -t ext4 /dev/vda /mnt
         cp -a /bin /sbin /lib /lib64 /usr /etc /init /mnt
         cd /mnt; mkdir -p dev proc sys run tmp root mnt var; cd /; umount /mnt; sync",
    )?;
    drop(installer);
    let mut guest = machine().kernel_argument("penstock.root=/dev/vda").boot()?;
    let mounts = guest.run("grep ' / ' /proc/mounts")?;
    ensure!(mounts.starts_with("/dev/vda / ext4"), "the root is elsewhere: {mounts}");
    guest.run_for(
        LIMIT,
        "fio --name=root --filename=/root/file --size=4m --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio \\
             --direct=1 --verify=crc32c --verify_fatal=1
         echo was here >/etc/mark; sync",
    )?;
    drop(guest);
    let mut again = machine().kernel_argument("penstock.root=/dev/vda").boot()?;
    ensure!(again.run("cat /etc/mark")?.trim() == "was here");
    Ok(())
}

/// A boot sector that writes to the first serial port what follows it, up to a zero, and halts.
const BOOT_SECTOR: &[u8] = &[
    0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xbe, 0x17, 0x7c, // mov si, 0x7c17
    0xfc, // cld
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz end
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xfa, // end: cli
    0xf4, // halt: hlt
    0xeb, 0xfd, // jmp halt
];

#[test]
fn a_boot_loader_comes_from_an_iscsi_disk() -> Result<()> {
    let disk = Disk::malloc(16)?;
    let scratch = Scratch::new()?;
    let (image, console) = (scratch.join("sector"), scratch.join("console"));
    let mut sector = [BOOT_SECTOR, b"started from iSCSI\r\n\0"].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    fs::write(&image, &sector)?;
    let (from, url) = (image.to_string_lossy(), disk.url(1, 0, ""));
    must("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &from, &url], LIMIT)?;
    let mut command = Process::command(paths::tool("qemu-system-x86_64")?)?;
    command.args(["-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-display", "none"]);
    command.args(["-serial", &format!("file:{}", console.display())]);
    command.args(["-drive", &format!("file={url},if=none,id=i0,format=raw")]);
    command.args(["-device", "virtio-blk-pci,drive=i0,bootindex=0"]);
    let _machine = Process::start(command, "qemu")?;
    wait::until(LIMIT, || {
        let said = fs::read(&console).unwrap_or_default();
        Ok(String::from_utf8_lossy(&said).contains("started from iSCSI").then_some(()))
    })
    .context("the boot sector did not run")
}

/// The programs of sg3-utils that the test runs.
const SG_TOOLS: &[&str] = &[
    "sg_compare_and_write",
    "sg_copy_results",
    "sg_get_lba_status",
    "sg_inq",
    "sg_luns",
    "sg_modes",
    "sg_opcodes",
    "sg_persist",
    "sg_readcap",
    "sg_requests",
    "sg_rtpg",
    "sg_sanitize",
    "sg_start",
    "sg_stpg",
    "sg_sync",
    "sg_turs",
    "sg_unmap",
    "sg_verify",
    "sg_vpd",
    "sg_write_same",
    "sg_xcopy",
];

#[test]
fn sg3_utils_find_all_of_a_disk() -> Result<()> {
    let disk = Disk::uring(64, 512)?;
    let mut guest = initiator().tools(SG_TOOLS).boot()?;
    log_in(&mut guest, &disk.ports)?;
    let said = guest.run(
        "sg_inq /dev/sda; sg_inq --only --len=36 /dev/sda >/dev/null; sg_turs /dev/sda; sg_luns /dev/sda
         for page in sv sn di ei mpp bl bdc lbpv tpc; do sg_vpd --page=$page /dev/sda || { echo page $page; exit 1; }; done
         sg_readcap --16 /dev/sda; sg_modes -a /dev/sda >/dev/null; sg_requests /dev/sda
         sg_opcodes /dev/sda | tail -n +4; sg_opcodes --tmf /dev/sda; sg_rtpg -d /dev/sda
         sg_start --start /dev/sda; sg_sync /dev/sda",
    )?;
    for expected in
        ["PENSTOCK", "Compare and write", "Unmap", "Extended copy", "active/optimized", "Abort task"]
    {
        ensure!(said.contains(expected), "it does not tell of {expected}:\n{said}");
    }
    // Blocks: written where they are as expected, made the same, copied by the target, unmapped, and their state told.
    let said = guest.run(
        "dd if=/dev/zero of=/run/zero bs=512 count=1 2>/dev/null
         tr '\\0' 'a' </run/zero >/run/a; cat /run/zero /run/a >/run/both
         sg_compare_and_write --in=/run/both --lba=8 --num=1 --xferlen=1024 /dev/sda
         if sg_compare_and_write --in=/run/both --lba=8 --num=1 --xferlen=1024 /dev/sdb; then exit 1; fi
         sg_write_same --in=/run/a --lba=16 --num=240 --xferlen=512 /dev/sda
         sg_verify --lba=8 --count=248 /dev/sda
         sg_xcopy if=/dev/sg0 of=/dev/sg1 skip=8 seek=1024 count=248 bs=512 cat=0 2>&1
         dd if=/dev/sdb bs=512 skip=1024 count=248 iflag=direct 2>/dev/null >/run/copied
         dd if=/dev/sda bs=512 skip=8 count=1 iflag=direct 2>/dev/null | cmp - /run/a
         [ \"$(tr -d a </run/copied | tr -d '\\0' | wc -c)\" = 0 ]
         sg_unmap --force --lba=1024 --num=248 /dev/sda
         sg_get_lba_status --maxlen=200 --lba=0 /dev/sda; sg_get_lba_status --brief --lba=1024 /dev/sda",
    )?;
    ensure!(said.contains("mapped") && said.contains("deallocated"), "allocation is not told:\n{said}");
    // Registrations and a reservation, seen by both paths.
    let said = guest.run(
        "sg_persist --out --register --param-sark=abc /dev/sda
         sg_persist --out --register --param-sark=def /dev/sdb
         sg_persist --out --reserve --param-rk=abc --prout-type=5 /dev/sda
         sg_persist --in --read-keys /dev/sdb; sg_persist --in --read-reservation /dev/sdb
         sg_persist --in --report-capabilities /dev/sda; sg_persist --in --read-full-status /dev/sda
         sg_persist --out --preempt --param-rk=def --param-sark=abc --prout-type=5 /dev/sdb
         sg_persist --in --read-keys /dev/sda || sg_persist --in --read-keys /dev/sda
         sg_persist --out --clear --param-rk=def /dev/sdb",
    )?;
    for expected in ["0xabc", "0xdef", "Write Exclusive, registrants only", "iqn.2026-11.h:guest"] {
        ensure!(said.contains(expected), "reservations: {expected} is not told:\n{said}");
    }
    // No bdev promises that old data cannot be had back: it says so rather than doing something else.
    let refused = guest.run("sg_sanitize --block --quick /dev/sda 2>&1 && echo done || true")?;
    ensure!(!refused.contains("done"), "{refused}");
    Ok(())
}
