//! What a Linux host does with a target, and must find: the same against the daemon and against the kernel's own target.
//!
//! Every scenario leaves the guest disconnected, so that several run in one boot.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::guest::{Guest, HOST};
use crate::target::Target;

/// Writes with verification in software emulation take their time.
const FIO_LIMIT: Duration = Duration::from_secs(180);

/// How a host connects: options of `nvme connect`, and how many queues that must give.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    options: &'static str,
    queues: u32,
}

impl Connect {
    /// An admin queue and one I/O queue.
    pub const ONE_QUEUE: Self = Self { options: "--nr-io-queues=1", queues: 2 };

    /// As many as a guest of two processors makes: two for reads, two for writes, two polled, and the admin queue.
    pub const MANY_QUEUES: Self =
        Self { options: "--nr-io-queues=2 --nr-write-queues=2 --nr-poll-queues=2", queues: 7 };

    /// Header and data digests on two queues.
    pub const DIGESTS: Self = Self { options: "--hdr-digest --data-digest --nr-io-queues=2", queues: 3 };
}

/// The discovery controller names the subsystem.
///
/// # Errors
/// Where it does not.
pub fn is_discovered(guest: &mut Guest, target: &dyn Target) -> Result<()> {
    let port = target.port();
    let log = guest.run(&format!("modprobe nvme-tcp; nvme discover -t tcp -a {HOST} -s {port}"))?;
    ensure!(
        log.contains(&format!("subnqn:  {}\n", target.nqn())),
        "the discovery log lacks the subsystem:\n{log}"
    );
    Ok(())
}

/// Connects and waits for namespace 1.
///
/// # Errors
/// Where the host cannot connect, or gets another number of queues.
pub fn connect(guest: &mut Guest, target: &dyn Target, how: Connect) -> Result<()> {
    let (port, nqn) = (target.port(), target.nqn());
    guest.run(&format!(
        "modprobe nvme-tcp; nvme connect -t tcp -a {HOST} -s {port} -n {nqn} {} && eventually 10 ns 1",
        how.options
    ))?;
    let queues = guest.run("cat /sys/class/nvme/nvme*/queue_count")?;
    ensure!(
        queues.trim() == how.queues.to_string(),
        "{} gave {} queues, not {}",
        how.options,
        queues.trim(),
        how.queues
    );
    Ok(())
}

/// Disconnects from everything.
///
/// # Errors
/// Where the host's kernel will not.
pub fn disconnect(guest: &mut Guest) -> Result<()> {
    guest.run("nvme disconnect-all; eventually 10 no_ns 1")?;
    Ok(())
}

/// What is written to namespace 1, in blocks of many sizes, is what is read; zeroed blocks are zero.
///
/// # Errors
/// Where a byte differs, or an I/O fails.
pub fn data_comes_back(guest: &mut Guest, target: &dyn Target, how: Connect) -> Result<()> {
    connect(guest, target, how)?;
    guest.run_for(
        FIO_LIMIT,
        "dev=$(ns 1)
         fio --name=sizes --filename=$dev --size=24m --rw=randwrite --bsrange=4k-256k --iodepth=16 --ioengine=libaio \
             --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=1
         blkdiscard -z -o 1m -l 3m $dev
         dd if=$dev bs=1M skip=1 count=3 iflag=direct 2>/dev/null | cmp -n 3145728 - /dev/zero
         fio --name=rest --filename=$dev --offset=4m --size=20m --rw=randrw --bs=4k --io_size=2m --iodepth=32 \
             --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --randseed=2",
    )?;
    disconnect(guest)
}

/// nvme-cli's identify, log and feature commands, flush, write zeroes and deallocate are answered.
///
/// # Errors
/// Where one is refused, or names another subsystem.
pub fn admin_commands_are_answered(guest: &mut Guest, target: &dyn Target) -> Result<()> {
    connect(guest, target, Connect::ONE_QUEUE)?;
    let answers = guest.run(
        "ctrl=/dev/$(basename $(ls -d /sys/class/nvme/nvme*)); dev=$(ns 1); refused=0
         for command in id-ctrl 'id-ns -n 1' list-ns 'ns-descs -n 1' smart-log 'error-log -e 1' fw-log effects-log \
                 changed-ns-list-log 'get-feature -f 7' 'get-feature -f 0xb' 'get-feature -f 0xf' 'get-property -o 0x8' \
                 'flush -n 1' 'write-zeroes -n 1 -s 0 -c 7' 'dsm -n 1 -d -s 8 -b 8'; do
             node=$ctrl; case $command in *zeroes*|dsm*) node=$dev ;; esac
             echo nvme $command; nvme ${command%% *} $node ${command#${command%% *}} || { echo refused: $command; refused=1; }
         done
         [ $refused = 0 ]
         nvme reset $ctrl; eventually 10 grep -x live /sys/class/nvme/nvme*/state
         dd if=$dev of=/dev/null bs=64k count=1 iflag=direct",
    )?;
    ensure!(answers.contains(target.nqn()), "Identify Controller names another subsystem:\n{answers}");
    disconnect(guest)
}

/// A file system on namespace 1 survives use: made, written with verification, unmounted, and found clean after a
/// reconnect.
///
/// # Errors
/// Where a byte differs, an I/O fails or the file system is not clean.
pub fn a_file_system_stays_clean(guest: &mut Guest, target: &dyn Target, how: Connect) -> Result<()> {
    connect(guest, target, how)?;
    let sum = guest.run_for(
        FIO_LIMIT,
        "dev=$(ns 1); mkfs.ext4 -q -F $dev; mount -t ext4 $dev /mnt
         fio --name=files --directory=/mnt --nrfiles=8 --size=8m --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio \
             --direct=1 --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1 >/run/fio || { cat /run/fio; exit 1; }
         mkdir /mnt/copy; cp /usr/lib/x86_64-linux-gnu/libc.so.6 /usr/bin/busybox /mnt/copy; rm /mnt/files.0.0; sync
         cat /mnt/copy/* | md5sum; umount /mnt",
    )?;
    disconnect(guest)?;
    connect(guest, target, how)?;
    let again = guest.run_for(
        FIO_LIMIT,
        "dev=$(ns 1); fsck.ext4 -f -n $dev >/run/fsck 2>&1 || { cat /run/fsck; exit 1; }
         mount -t ext4 $dev /mnt; cat /mnt/copy/* | md5sum; umount /mnt",
    )?;
    ensure!(sum == again, "the files changed over a reconnect: {sum} became {again}");
    disconnect(guest)
}

/// Namespaces that are added, resized and removed while the host is connected show up, grow and go there, without a
/// reconnect.
///
/// # Errors
/// Where one does not within ten seconds, or the host reconnected.
pub fn namespaces_come_grow_and_go(guest: &mut Guest, target: &mut dyn Target) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let controller =
        "cat /sys/class/nvme/nvme*/cntlid; dmesg | grep -ciE 'nvme.*(reconnect|reset|time.?out)' || true";
    connect(guest, target, Connect::ONE_QUEUE)?;
    let before = guest.run(controller)?;
    target.add_namespace(2, 16 * MIB)?;
    guest.run(&format!("eventually 10 ns_has_bytes 2 {}", 16 * MIB))?;
    let write_at = |mib: u64| {
        format!(
            "dev=$(ns 2); dd if=/dev/urandom of=/run/block bs=64k count=1 2>/dev/null
             dd if=/run/block of=$dev bs=64k seek={0} oflag=direct conv=notrunc
             dd if=$dev bs=64k skip={0} count=1 iflag=direct | cmp - /run/block",
            mib * 16
        )
    };
    guest.run(&write_at(15))?;
    target.resize_namespace(2, 48 * MIB)?;
    guest.run(&format!("eventually 10 ns_has_bytes 2 {}", 48 * MIB))?;
    guest.run(&write_at(47))?;
    target.remove_namespace(2)?;
    guest.run("eventually 10 no_ns 2; dd if=$(ns 1) of=/dev/null bs=64k count=16 iflag=direct")?;
    let after = guest.run(controller)?;
    ensure!(before == after, "the host reconnected: controller and events were\n{before}and are\n{after}");
    disconnect(guest)
}
