//! Goal: a remote namespace over TLS is a bdev like any other, and no key gets out.
//! Method: daemon A has hosts with keys at a listener that wants TLS; daemon B attaches and exports the namespace again; our
//! own load generator verifies through B and straight to A, through a kill of A.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_security::hash::Hash;
use penstock_security::psk::ConfiguredPsk;
use penstock_security::secret::Secret;
use penstock_tests::daemon::Daemon;
use penstock_tests::process::Process;
use penstock_tests::{net, paths, wait};
use serde_json::{Value, json};

const FAR: &str = "nqn.2026-11.io.penstock:far";
const NEAR: &str = "nqn.2026-11.io.penstock:near";
/// Comes with a key.
const KEYED: &str = "nqn.2026-11.io.penstock:keyed";
/// Comes with a key and a secret.
const BOTH: &str = "nqn.2026-11.io.penstock:both";
/// Comes with a secret, which makes the key.
const SECRET: &str = "nqn.2026-11.io.penstock:secret";
const LIMIT: Duration = Duration::from_secs(30);

fn address(port: u16) -> Value {
    json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()})
}

/// Puts a key into a file and the daemon's keyring.
fn add_key(daemon: &Daemon, name: &str, text: &str) -> Result<PathBuf> {
    let path = daemon.dir().join(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    writeln!(file, "{text}")?;
    daemon.call("keyring_file_add_key", json!({"name": name, "path": path}))?;
    Ok(path)
}

/// A: a disk at a secure port and at an open one; files with its keys.
struct Far {
    daemon: Daemon,
    secure: u16,
    open: u16,
    psk: PathBuf,
    secret: PathBuf,
    texts: [String; 2],
}

impl Far {
    fn start() -> Result<Self> {
        let daemon = Daemon::start(2)?;
        let (secure, open) = (net::free_port()?, net::free_port()?);
        let texts = [
            ConfiguredPsk::generate(Hash::Sha384)?.to_text().to_string(),
            Secret::generate(None)?.to_text().to_string(),
        ];
        let psk = add_key(&daemon, "psk", &texts[0])?;
        let secret = add_key(&daemon, "secret", &texts[1])?;
        let file = daemon.dir().join("far.img");
        fs::File::create_new(&file)?.set_len(32 << 20)?;
        daemon.call("bdev_uring_create", json!({"name": "far", "filename": file, "block_size": 4096}))?;
        daemon.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
        daemon.call("nvmf_create_subsystem", json!({"nqn": FAR}))?;
        daemon.call("nvmf_subsystem_add_ns", json!({"nqn": FAR, "namespace": {"bdev_name": "far"}}))?;
        let listen = |port: u16, secure: bool| {
            let params = json!({"nqn": FAR, "listen_address": address(port), "secure_channel": secure});
            daemon.call("nvmf_subsystem_add_listener", params)
        };
        listen(secure, true)?;
        listen(open, false)?;
        for (host, psk, secret) in [(KEYED, true, false), (BOTH, true, true), (SECRET, false, true)] {
            let psk = psk.then_some("psk");
            let secret = secret.then_some("secret");
            let params = json!({"nqn": FAR, "host": host, "psk": psk, "dhchap_key": secret});
            daemon.call("nvmf_subsystem_add_host", params)?;
        }
        Ok(Self { daemon, secure, open, psk, secret, texts })
    }
}

fn perf(port: u16, nqn: &str, more: &[&str]) -> Result<Output> {
    let mut command = Process::command(paths::program("penstock-perf")?)?;
    command.arg(format!("nvme-tcp://127.0.0.1:{port}/{nqn}")).args(more);
    command.args(["--rw", "randrw", "--qd", "16", "--size", "16m", "--verify", "--warmup", "0", "--quiet"]);
    Ok(command.output()?)
}

fn succeeds(output: &Output, what: &str) -> Result<()> {
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {:?}: I/O failed, or data are wrong\n{told}", output.status);
    Ok(())
}

#[test]
fn the_load_generator_verifies_over_tls_by_each_kind_of_key() -> Result<()> {
    let far = Far::start()?;
    let path = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path");
    let (psk, secret) = (path(&far.psk)?, path(&far.secret)?);
    let keyed = ["--hostnqn", KEYED, "--psk", &psk, "--time", "1"];
    succeeds(&perf(far.secure, FAR, &[&keyed[..], &["--bs", "4k"]].concat())?, "a key")?;
    succeeds(&perf(far.open, FAR, &[&keyed[..], &["--bs", "256k", "--hdgst", "--ddgst"]].concat())?, "256k")?;
    let both = ["--hostnqn", BOTH, "--psk", &psk, "--dhchap-key", &secret, "--time", "1"];
    succeeds(&perf(far.secure, FAR, &both)?, "key and secret")?;
    let concat = ["--hostnqn", SECRET, "--dhchap-key", &secret, "--concat", "--time", "1"];
    succeeds(&perf(far.open, FAR, &concat)?, "a key made by the secret")?;
    for (port, more) in [
        (far.secure, vec!["--hostnqn", KEYED]),
        (far.open, vec!["--hostnqn", KEYED]),
        (far.secure, vec!["--hostnqn", SECRET, "--psk", &psk]),
        (far.secure, vec!["--hostnqn", BOTH, "--psk", &psk]),
    ] {
        let output = perf(port, FAR, &more)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && told.contains("cannot connect"), "let in: {more:?}\n{told}");
    }
    Ok(())
}

#[test]
fn a_bdev_over_tls_survives_a_kill_of_its_target_and_a_restart_and_no_key_gets_out() -> Result<()> {
    let mut far = Far::start()?;
    let mut near = Daemon::start(2)?;
    let port = net::free_port()?;
    for (name, text) in ["psk", "secret"].iter().zip(&far.texts) {
        add_key(&near, name, text)?;
    }
    let wrong = ConfiguredPsk::generate(Hash::Sha384)?.to_text().to_string();
    add_key(&near, "wrong", &wrong)?;
    let attach = |near: &Daemon, psk: &str| {
        let params = json!({"name": "Far", "trtype": "tcp", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": far.secure.to_string(), "subnqn": FAR, "hostnqn": BOTH, "psk": psk, "dhchap_key": "secret",
            "reconnect_delay_sec": 1, "ctrlr_loss_timeout_sec": 60});
        near.call("bdev_nvme_attach_controller", params)
    };
    let refused = attach(&near, "wrong").err().context("attached with a wrong key")?;
    ensure!(format!("{refused:#}").contains("no TLS with"), "{refused:#}");
    ensure!(attach(&near, "none").is_err(), "attached with a key that is not there");
    ensure!(attach(&near, "psk")? == json!(["Farn1"]));
    near.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    near.call("nvmf_create_subsystem", json!({"nqn": NEAR, "allow_any_host": true}))?;
    near.call("nvmf_subsystem_add_ns", json!({"nqn": NEAR, "namespace": {"bdev_name": "Farn1"}}))?;
    near.call("nvmf_subsystem_add_listener", json!({"nqn": NEAR, "listen_address": address(port)}))?;
    let load = std::thread::spawn(move || perf(port, NEAR, &["--time", "6", "--bs", "64k"]));
    std::thread::sleep(Duration::from_secs(2));
    far.daemon.kill()?;
    far.daemon.restart()?;
    let output = load.join().ok().context("the load's thread panicked")??;
    succeeds(&output, "through a kill of the target")?;
    for daemon in [&near, &far.daemon] {
        let saved = daemon.call("save_config", json!({}))?.to_string();
        ensure!(saved.contains("\"psk\":\"psk\""), "the key's name is saved: {saved}");
        ensure!(far.texts.iter().all(|text| !saved.contains(text.as_str())), "a key is saved");
    }
    let log = fs::read_to_string(near.dir().join("log"))?;
    ensure!(!log.contains("NVMeTLSkey") && !log.contains("DHHC"), "a key is in the log");
    near.stop()?;
    near.restart()?;
    wait::until(LIMIT, || {
        let bdevs = near.call("bdev_get_bdevs", json!({}))?;
        Ok(bdevs.to_string().contains("Farn1").then_some(()))
    })?;
    succeeds(&perf(port, NEAR, &["--time", "1"])?, "after a restart")
}
