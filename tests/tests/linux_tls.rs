//! TLS by the Linux kernel's initiator: the handshake by tlshd, the records by the kernel; with a key, with a secret beside it,
//! and with a wrong key.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_security::hash::Hash;
use penstock_security::psk::ConfiguredPsk;
use penstock_security::secret::Secret;
use penstock_spec::nvmf::Nqn;
use penstock_tests::guest::{Guest, HOST, Kernel, Machine};
use penstock_tests::paths;
use penstock_tests::target::{Backend, Penstock, Target};
use serde_json::json;

const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
const LIMIT: Duration = Duration::from_secs(90);

/// Puts a key into a file and the daemon's keyring.
fn add_key(target: &mut Penstock, name: &str, text: &str) -> Result<()> {
    let path = target.daemon().dir().join(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    writeln!(file, "{text}")?;
    target.daemon().call("keyring_file_add_key", json!({ "name": name, "path": path })).map(drop)
}

/// A guest in which tlshd runs, from an archive on a disk.
fn boot() -> Result<Guest> {
    let archive = paths::e2e_dir().join("ktls.tar");
    ensure!(archive.exists(), "{} is not there: run `cargo xtask deps`", archive.display());
    let drive = format!("file={},format=raw,if=virtio,readonly=on", archive.display());
    let machine = Machine::new(Kernel::Linux6_12).arguments(["-drive", &drive]);
    let mut guest =
        machine.modules(&["virtio_blk", "tls", "gcm", "ghash-generic"]).tools(&["keyctl"]).boot()?;
    guest.run(
        "for module in virtio_blk gcm ghash-generic tls nvme-tcp; do modprobe $module; done
         eventually 10 test -b /dev/vda
         mkdir /ktls; tar xf /dev/vda -C /ktls
         printf '[debug]\\nloglevel=1\\n[authenticate]\\nkeyrings=.nvme\\n[authenticate.client]\\n[authenticate.server]\\n' >/etc/tlshd.conf
         libraries=/ktls/usr/lib/x86_64-linux-gnu
         /ktls/usr/lib64/ld-linux-x86-64.so.2 --library-path $libraries /ktls/usr/sbin/tlshd --stderr --config /etc/tlshd.conf \
             >/run/tlshd.log 2>&1 </dev/null 3<&- &
         eventually 10 grep -q .nvme /run/tlshd.log",
    )?;
    Ok(guest)
}

/// Gives the guest's kernel the key by its identity of version 0, which is the one that it looks for.
fn give(guest: &mut Guest, psk: &ConfiguredPsk, subsystem: &str) -> Result<()> {
    let (host, subsystem) = (Nqn::parse(HOSTNQN.as_bytes())?, Nqn::parse(subsystem.as_bytes())?);
    let psk = psk.tls_psk(&host, &subsystem, 0).context("the key has no identity")?;
    let octal: String = psk.key.as_slice().iter().map(|byte| format!("\\{byte:03o}")).collect();
    let script = format!("printf '{octal}' | keyctl padd psk '{}' %:.nvme", psk.identity);
    guest.run(&script).map(drop)
}

/// Connects as nvme-cli does; Debian 12's does not know of TLS.
fn connect(target: &Penstock, more: &str) -> String {
    let (port, nqn) = (target.port(), target.nqn());
    let id = HOSTNQN.rsplit(':').next().unwrap_or_default();
    let options =
        format!("nqn={nqn},transport=tcp,traddr={HOST},trsvcid={port},hostnqn={HOSTNQN},hostid={id}");
    format!("echo '{options},nr_io_queues=1,tls{more}' >/dev/nvme-fabrics")
}

#[test]
fn linux_reads_and_writes_over_tls() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 16 << 20)?;
    let nqn = target.nqn().to_owned();
    let psk = ConfiguredPsk::generate(Hash::Sha256)?;
    let secret = Secret::generate(Some(Hash::Sha256))?.to_text().to_string();
    add_key(&mut target, "psk", &psk.to_text())?;
    add_key(&mut target, "secret", &secret)?;
    let host = json!({ "nqn": nqn, "host": HOSTNQN, "psk": "psk" });
    target.daemon().call("nvmf_subsystem_add_host", host)?;
    let mut guest = boot()?;

    let wrong = guest.try_run(&connect(&target, ""), LIMIT)?;
    ensure!(wrong.code != 0, "let in without a key");
    give(&mut guest, &ConfiguredPsk::generate(Hash::Sha256)?, &nqn)?;
    let wrong = guest.try_run(&connect(&target, ""), LIMIT)?;
    ensure!(wrong.code != 0, "let in with a wrong key");
    guest.run("keyctl clear %:.nvme")?;
    give(&mut guest, &psk, &nqn)?;
    let checked = format!(
        "{} || {{ cat /run/tlshd.log; exit 1; }}
         eventually 20 ns 1
         fio --name=t --filename=$(ns 1) --rw=randwrite --bs=4k-256k --blockalign=4k --size=8m --iodepth=8 --ioengine=libaio \
             --direct=1 --verify=crc32c --serialize_overlap=1 --verify_fatal=1 --minimal >/dev/null
         nvme disconnect-all; eventually 10 no_ns 1",
        connect(&target, "")
    );
    guest.run_for(LIMIT, &checked)?;
    // A secret beside the key: both are asked for.
    let keys = json!({ "nqn": nqn, "host": HOSTNQN, "psk": "psk", "dhchap_key": "secret" });
    target.daemon().call("nvmf_subsystem_remove_host", json!({ "nqn": nqn, "host": HOSTNQN }))?;
    target.daemon().call("nvmf_subsystem_add_host", keys)?;
    let refused = guest.try_run(&connect(&target, ""), LIMIT)?;
    ensure!(refused.code != 0, "let in without the secret");
    let both = connect(&target, &format!(",dhchap_secret={secret}"));
    guest.run_for(
        LIMIT,
        &format!("{both}; eventually 20 ns 1; dd if=$(ns 1) of=/dev/null bs=64k count=16 iflag=direct"),
    )?;
    Ok(())
}
