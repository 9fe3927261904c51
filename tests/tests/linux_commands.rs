//! What an administrator does with nvme-cli on a Linux host: compare, copy, verify, zero and deallocate; and reservations, over
//! which two NVMe hosts and an iSCSI host fight.

use anyhow::{Result, ensure};
use penstock_tests::guest::{Guest, HOST, Kernel, Machine};
use penstock_tests::iscsi::IQN;
use penstock_tests::net;
use penstock_tests::target::{Backend, Penstock, Target};
use serde_json::json;

const MIB: u64 = 1 << 20;

#[test]
fn nvme_cli_compares_copies_verifies_zeroes_and_deallocates() -> Result<()> {
    let mut target = Penstock::start(Backend::Uring, 4096)?;
    target.add_namespace(1, 64 * MIB)?;
    let mut guest = Guest::boot(Kernel::Linux6_12, &[])?;
    let (port, nqn) = (target.port(), target.nqn().to_owned());
    guest.run(&format!(
        "modprobe nvme-tcp; nvme connect -t tcp -a {HOST} -s {port} -n {nqn} --nr-io-queues=2; eventually 10 ns 1"
    ))?;
    let said = guest.run(
        "dev=$(ns 1)
         dd if=/dev/urandom of=/run/data bs=4k count=8 2>/dev/null
         cp /run/data /run/other; printf x | dd of=/run/other bs=1 seek=20000 conv=notrunc 2>/dev/null
         dd if=/run/data of=$dev bs=4k count=8 seek=8 oflag=direct 2>/dev/null
         same() { dd if=$dev bs=4k count=8 skip=$1 iflag=direct 2>/dev/null | cmp - $2; }
         echo compare; nvme compare $dev -s 8 -c 7 -z 32768 -d /run/data
         ! nvme compare $dev -s 8 -c 7 -z 32768 -d /run/other || exit 1
         echo verify; nvme verify $dev -s 8 -c 7
         ! nvme verify $dev -s 16380 -c 7 || exit 1
         echo copy; nvme copy $dev --sdlba=100 --slbs=8,12 --blocks=3,3
         same 100 /run/data
         echo write-zeroes; nvme write-zeroes $dev -s 8 -c 7; same 8 /dev/zero 2>&1 | grep -q 'EOF on -'
         nvme write-zeroes $dev -s 100 -c 3 -d
         dd if=$dev bs=4k count=4 skip=100 iflag=direct 2>/dev/null | cmp - /dev/zero 2>&1 | grep -q 'EOF on -'
         echo dsm; nvme dsm $dev --ad --slbs=104 --blocks=4
         dd if=$dev bs=4k count=4 skip=104 iflag=direct 2>/dev/null | cmp -n 16384 - /dev/zero || true
         echo flush; nvme flush $dev
         ! nvme copy $dev --sdlba=16383 --slbs=0 --blocks=7 || exit 1
         ! nvme write-zeroes $dev -s 16384 -c 0 || exit 1
         blkdiscard -z $dev; blkdiscard $dev
         dmesg | grep -i 'nvme.*error\\|I/O error' || true",
    )?;
    for step in ["compare", "verify", "copy", "write-zeroes", "dsm", "flush"] {
        ensure!(said.contains(step), "{said}");
    }
    guest.run("nvme disconnect-all")?;
    Ok(())
}

/// A guest that is three hosts: two by NVMe, which do not know that their namespaces are one, and one by iSCSI.
fn boot() -> Result<Guest> {
    let machine = Machine::new(Kernel::Linux6_12)
        .modules(&["iscsi_tcp", "sd_mod", "crc32c_generic"])
        .tools(&["iscsid", "iscsiadm", "sg_persist"])
        .kernel_argument("nvme_core.multipath=N");
    let mut guest = machine.boot()?;
    guest.run(
        "for module in nvme-tcp iscsi_tcp sd_mod crc32c_generic; do modprobe $module 2>/dev/null || true; done
         mkdir -p /etc/iscsi /var/lib/iscsi /run/lock/iscsi
         echo InitiatorName=iqn.2026-11.h:guest >/etc/iscsi/initiatorname.iscsi
         printf '%s\\n' 'node.startup = manual' 'node.conn[0].timeo.noop_out_interval = 0' >/etc/iscsi/iscsid.conf
         iscsid -f >/run/iscsid.log 2>&1 &
         eventually 10 iscsiadm -m session -P 0 || true",
    )?;
    Ok(guest)
}

/// Puts the namespace's bdev behind a LUN; its port.
fn export_by_iscsi(target: &mut Penstock) -> Result<u16> {
    let port = net::free_port()?;
    let portal = json!({"host": "127.0.0.1", "port": port.to_string()});
    let daemon = target.daemon();
    daemon.call("iscsi_create_portal_group", json!({"tag": 1, "portals": [portal]}))?;
    let any = json!({"tag": 1, "initiators": ["ANY"], "netmasks": ["ANY"]});
    daemon.call("iscsi_create_initiator_group", any)?;
    let luns = json!([{"bdev_name": "ns1", "lun_id": 0}]);
    let maps = json!([{"pg_tag": 1, "ig_tag": 1}]);
    daemon.call("iscsi_create_target_node", json!({"name": IQN, "luns": luns, "pg_ig_maps": maps}))?;
    Ok(port)
}

/// Functions for the scripts: hosts a, b (NVMe) and c (iSCSI); `may H` and `may_not H`: whether it can write.
fn vocabulary(target: &Penstock, iscsi: u16) -> String {
    let (port, nqn) = (target.port(), target.nqn());
    format!(
        "connect() {{ # not by nvme-cli, for which there is one host
             printf 'transport=tcp,traddr={HOST},trsvcid={port},nqn={nqn},nr_io_queues=1,hostnqn=%s,hostid=%s' \\
                 nqn.2026-11.io.penstock:$1 $2 >/dev/nvme-fabrics; }}
         log_in() {{ iscsiadm -m node -o new -T {IQN} -p {HOST}:{iscsi}; iscsiadm -m node -T {IQN} -p {HOST}:{iscsi} --login; }}
         a=/dev/nvme0n1 b=/dev/nvme1n1 c=/dev/sda
         write_by() {{ eval dd if=/dev/zero of=\\$$1 bs=4k count=1 oflag=direct; }}
         read_by() {{ eval dd if=\\$$1 of=/dev/null bs=4k count=1 iflag=direct; }}
         may() {{ write_by $1 2>&1 || {{ echo \"$1 cannot write\"; exit 1; }}; }}
         may_not() {{ ! write_by $1 2>/dev/null || {{ echo \"$1 can write\"; exit 1; }}; }}
         may_not_read() {{ ! read_by $1 2>/dev/null || {{ echo \"$1 can read\"; exit 1; }}; }}
         holder() {{ nvme resv-report $a --eds -o json | tr -d ' \\n'; }}
         scsi() {{ sg_persist --out \"$@\" $c || sg_persist --out \"$@\" $c; }}
        "
    )
}

#[test]
fn two_nvme_hosts_and_an_iscsi_host_fight_over_one_disk() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 16 * MIB)?;
    let iscsi = export_by_iscsi(&mut target)?;
    let mut guest = boot()?;
    let words = vocabulary(&target, iscsi);
    let mut play = |act: &str| guest.run(&format!("{words}\n{act}"));
    play(
        "connect one 11111111-2222-3333-4444-555555555501; eventually 10 test -b $a
         connect two 11111111-2222-3333-4444-555555555502; eventually 10 test -b $b
         log_in; eventually 20 test -b $c
         for host in a b c; do may $host; done",
    )?;
    // Write Exclusive by a: the others read.
    let report = play(
        "nvme resv-register $a --nrkey=0xa --rrega=0; nvme resv-register $b --nrkey=0xb --rrega=0
         nvme resv-acquire $a --crkey=0xa --rtype=1 --racqa=0
         may a; may_not b; may_not c; read_by b; read_by c
         ! nvme resv-acquire $b --crkey=0xb --rtype=1 --racqa=0 || exit 1
         ! nvme resv-release $b --crkey=0xbad --rtype=1 --rrela=0 || exit 1
         echo REPORT $(holder)",
    )?;
    ensure!(report.contains("\"rtype\":1") && report.contains("\"regctl\":2"), "{report}");
    // Exclusive Access by a; the iSCSI host registers itself and preempts it.
    play(
        "nvme resv-release $a --crkey=0xa --rtype=1 --rrela=0; may b
         nvme resv-acquire $a --crkey=0xa --rtype=2 --racqa=0
         may a; may_not b; may_not_read b; may_not_read c
         scsi --register --param-sark=0xc
         scsi --preempt --param-rk=0xc --param-sark=0xa --prout-type=3
         may c; may_not a; may_not b; may_not_read a
         sg_persist --in --read-reservation $c | grep -q 'Key=0xc'",
    )?;
    // The other NVMe host takes it from the iSCSI host, and aborts what that has under way.
    let report = play(
        "nvme resv-acquire $b --crkey=0xb --prkey=0xc --rtype=1 --racqa=2
         may b; may_not c; may_not a; read_by a
         ! sg_persist --in --read-keys $c | grep -q 0xc || exit 1
         nvme resv-release $b --crkey=0xb --rtype=1 --rrela=1
         for host in a b c; do read_by $host; done
         may a; may b; may c
         echo REPORT $(holder)",
    )?;
    ensure!(report.contains("\"regctl\":0"), "{report}");
    // Write Exclusive, All Registrants: of either protocol; who unregisters is none any more.
    play(
        "nvme resv-register $a --nrkey=0xa --rrega=0
         nvme resv-acquire $a --crkey=0xa --rtype=5 --racqa=0
         may a; may_not b; may_not c
         nvme resv-register $b --nrkey=0xb --rrega=0; may b
         scsi --register --param-sark=0xc; may c
         nvme resv-register $a --crkey=0xa --nrkey=0xaa --rrega=2; may a
         nvme resv-register $a --crkey=0xaa --rrega=1; may_not a; may b; may c",
    )?;
    play("nvme disconnect-all; iscsiadm -m node --logoutall=all || true")?;
    Ok(())
}
