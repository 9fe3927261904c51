//! In-band authentication by the Linux kernel's initiator: all hash functions and groups, both directions, wrong
//! secrets, and again on a live controller.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_security::hash::Hash;
use penstock_security::secret::Secret;
use penstock_tests::guest::{Guest, HOST, Kernel};
use penstock_tests::target::{Backend, Penstock, Target};
use serde_json::json;

const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
/// A guest computes powers in software emulation.
const LIMIT: Duration = Duration::from_secs(90);

/// A fresh secret, which the daemon knows by this name.
fn secret(target: &mut Penstock, name: &str, transform: Option<Hash>) -> Result<String> {
    let text = Secret::generate(transform)?.to_text().to_string();
    let path = target.daemon().dir().join(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    writeln!(file, "{text}")?;
    target.daemon().call("keyring_file_add_key", json!({ "name": name, "path": path }))?;
    Ok(text)
}

fn connect(target: &Penstock, host: &str, controller: Option<&str>) -> String {
    let (port, nqn) = (target.port(), target.nqn());
    let controller = controller.map_or(String::new(), |secret| format!("--dhchap-ctrl-secret={secret}"));
    format!(
        "nvme connect -t tcp -a {HOST} -s {port} -n {nqn} --nr-io-queues=2 --dhchap-secret={host} {controller}"
    )
}

fn reads(guest: &mut Guest, connect: &str) -> Result<()> {
    guest.run_for(
        LIMIT,
        &format!("{connect}; eventually 20 ns 1; dd if=$(ns 1) of=/dev/null bs=64k count=4 iflag=direct"),
    )?;
    guest.run("nvme disconnect-all; eventually 10 no_ns 1").map(drop)
}

#[test]
fn linux_authenticates_itself_and_the_controller() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 16 << 20)?;
    let host = secret(&mut target, "host", Some(Hash::Sha256))?;
    let controller = secret(&mut target, "controller", Some(Hash::Sha512))?;
    let other = secret(&mut target, "other", None)?;
    let nqn = target.nqn().to_owned();
    let keys = json!({ "nqn": nqn, "host": HOSTNQN, "dhchap_key": "host", "dhchap_ctrlr_key": "controller" });
    target.daemon().call("nvmf_subsystem_add_host", keys)?;
    let mut guest = Guest::boot(Kernel::Linux6_12, &[])?;
    guest.run("modprobe nvme-tcp")?;
    // All groups; before its first use of one, the kernel tests it, for longer than its keep-alive timeout of 5 s.
    for (hash, group, both) in [
        ("sha256", "null", false),
        ("sha384", "ffdhe2048", true),
        ("sha512", "ffdhe3072", true),
        ("sha256", "ffdhe4096", false),
        ("sha384", "ffdhe6144", true),
        ("sha512", "ffdhe8192", true),
    ] {
        let policy = json!({ "dhchap_digests": [hash], "dhchap_dhgroups": [group] });
        target.daemon().call("nvmf_set_config", policy)?;
        reads(&mut guest, &connect(&target, &host, both.then_some(&*controller)))?;
    }

    let policy =
        json!({ "dhchap_digests": ["sha256", "sha384", "sha512"], "dhchap_dhgroups": ["null", "ffdhe2048"] });
    target.daemon().call("nvmf_set_config", policy)?;
    let refused = [
        connect(&target, &other, None),
        connect(&target, &host, Some(&other)),
        connect(&target, &host, None).replace(&format!("--dhchap-secret={host}"), ""),
    ];
    for command in refused {
        let output = guest.try_run(&format!("timeout 60 {command}"), LIMIT)?;
        ensure!(output.code != 0, "let in: {command}");
    }

    // Another secret, and the host proves itself again without losing its disk.
    guest.run_for(LIMIT, &format!("{}; eventually 20 ns 1", connect(&target, &host, None)))?;
    let keys = json!({ "nqn": nqn, "host": HOSTNQN, "dhchap_key": "other" });
    target.daemon().call("nvmf_subsystem_set_keys", keys)?;
    guest.run_for(
        LIMIT,
        &format!(
            "echo -n '{other}' > $(ls -d /sys/class/nvme/nvme[0-9])/dhchap_secret; sleep 1
             eventually 20 grep -x live /sys/class/nvme/nvme[0-9]/state
             dd if=$(ns 1) of=/dev/null bs=64k count=4 iflag=direct"
        ),
    )?;
    guest.run("nvme disconnect-all; eventually 10 no_ns 1")?;

    let saved = target.daemon().call("save_config", json!({}))?.to_string();
    ensure!(saved.contains("keyring_file_add_key") && saved.contains("\"dhchap_key\":\"other\""), "{saved}");
    ensure!(!saved.contains("DHHC-1"), "a secret is saved");
    Ok(())
}
