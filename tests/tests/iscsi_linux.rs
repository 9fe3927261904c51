//! The Linux kernel's iSCSI initiator (open-iscsi) in a guest: data, redirection and failback under load, resizing, and
//! the end of the disk.

use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_tests::guest::{Guest, HOST, Kernel, Machine};
use penstock_tests::iscsi::{Disk, IQN, TARGET_USER, USER};
use penstock_tests::wait;
use serde_json::json;

/// Writes with verification in software emulation take their time.
const FIO_LIMIT: Duration = Duration::from_secs(180);
/// From a request to log out to the session on another portal.
const MOVE_LIMIT: Duration = Duration::from_secs(30);

fn boot() -> Result<Guest> {
    let machine = Machine::new(Kernel::Linux6_12)
        .modules(&["iscsi_tcp", "sd_mod", "crc32c_generic"])
        .tools(&["iscsid", "iscsiadm"]);
    let mut guest = machine.boot()?;
    guest.run(
        "for module in iscsi_tcp sd_mod crc32c_generic; do modprobe $module 2>/dev/null || true; done
         mkdir -p /etc/iscsi /var/lib/iscsi /run/lock/iscsi
         echo InitiatorName=iqn.2026-11.h:guest >/etc/iscsi/initiatorname.iscsi
         printf '%s\\n' 'node.startup = manual' 'node.session.timeo.replacement_timeout = 5' \\
             'node.conn[0].timeo.noop_out_interval = 0' >/etc/iscsi/iscsid.conf
         iscsid -f >/run/iscsid.log 2>&1 &
         eventually 10 iscsiadm -m session -P 0 || true",
    )?;
    Ok(guest)
}

/// Logs in to portal group 1, mutually authenticated and with digests, and waits for the disk.
fn log_in(guest: &mut Guest, disk: &Disk) -> Result<()> {
    let port = disk.ports[0];
    let mut settings = String::new();
    for (name, value) in [
        ("node.session.auth.authmethod", "CHAP"),
        ("node.session.auth.username", USER.0),
        ("node.session.auth.password", USER.1),
        ("node.session.auth.username_in", TARGET_USER.0),
        ("node.session.auth.password_in", TARGET_USER.1),
        ("node.conn[0].iscsi.HeaderDigest", "CRC32C"),
        ("node.conn[0].iscsi.DataDigest", "CRC32C"),
    ] {
        settings += &format!("iscsiadm -m node -T {IQN} -p {HOST}:{port} -o update -n '{name}' -v {value}\n");
    }
    guest.run(&format!(
        "iscsiadm -m node -o new -T {IQN} -p {HOST}:{port}
         {settings}
         iscsiadm -m node -T {IQN} -p {HOST}:{port} --login || {{ cat /run/iscsid.log; exit 1; }}
         eventually 20 test -b /dev/sda"
    ))?;
    Ok(())
}

/// Waits until the guest's session is at that portal group, and only there.
fn is_at(disk: &Disk, tag: u64) -> Result<()> {
    wait::until(MOVE_LIMIT, || {
        let connections = disk.connections()?;
        let [one] = connections.as_slice() else { return Ok(None) };
        let there = one["portal_group_tag"] == tag && one["login_phase"] == "full_feature_phase";
        Ok(there.then_some(()))
    })
}

#[test]
fn linux_moves_between_portals_under_load_sees_the_disk_grow_and_go() -> Result<()> {
    let disk = Disk::uring(64, 512)?;
    disk.require_chap()?;
    let auth = json!({"name": IQN, "chap_group": 1, "require_chap": true, "mutual_chap": true});
    disk.daemon.call("iscsi_target_node_set_auth", auth)?;
    let mut guest = boot()?;
    log_in(&mut guest, &disk)?;
    is_at(&disk, 1)?;
    let job = guest.start(
        "fio --name=v --filename=/dev/sda --direct=1 --ioengine=libaio --rw=randwrite --bs=16k --iodepth=8 \\
             --size=2m --time_based --runtime=8 --verify=crc32c --verify_fatal=1",
    )?;
    let redirect = json!({"name": IQN, "pg_tag": 1, "redirect_host": HOST,
        "redirect_port": disk.ports[1].to_string()});
    disk.daemon.call("iscsi_target_node_set_redirect", redirect)?;
    disk.daemon.call("iscsi_target_node_request_logout", json!({"name": IQN, "pg_tag": 1}))?;
    is_at(&disk, 2)?;
    disk.daemon.call("iscsi_target_node_set_redirect", json!({"name": IQN, "pg_tag": 1}))?;
    disk.daemon.call("iscsi_target_node_request_logout", json!({"name": IQN, "pg_tag": 2}))?;
    is_at(&disk, 1)?;
    // It ends with another code than 0 where it saw one error.
    guest.finish(job, FIO_LIMIT)?;
    // It grows.
    disk.daemon.call("penstock_bdev_resize", json!({"name": "disk", "bytes": 96 << 20}))?;
    let bytes = guest.run("echo 1 >/sys/block/sda/device/rescan; blockdev --getsize64 /dev/sda")?;
    ensure!(bytes.trim() == (96 << 20).to_string(), "it has {bytes} bytes");
    // It goes.
    disk.daemon.call("bdev_uring_delete", json!({"name": "disk"}))?;
    let read = guest
        .run("dd if=/dev/sda of=/dev/null bs=4k count=1 iflag=direct 2>&1 && echo still there || true")?;
    ensure!(!read.contains("still there"), "a disk that is gone was read");
    guest.run(&format!("iscsiadm -m node -T {IQN} --logout"))?;
    Ok(())
}
