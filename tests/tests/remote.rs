//! Goal: remote NVMe/TCP namespaces are bdevs that keep serving whatever happens to their paths.
//! Method: daemon A exports a file by two listeners; daemon B attaches both and exports the namespace again; our own
//! load generator verifies what it writes by B while A's paths flip, go and come back.

use std::fs::{File, OpenOptions};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::daemon::Daemon;
use penstock_tests::process::Process;
use penstock_tests::{net, paths, rpc, wait};
use serde_json::{Value, json};

const FAR: &str = "nqn.2026-11.io.penstock:far";
const NEAR: &str = "nqn.2026-11.io.penstock:near";
const BYTES: u64 = 32 << 20;
const LIMIT: Duration = Duration::from_secs(30);

fn address(port: u16) -> Value {
    json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()})
}

/// A: a file of [`BYTES`], exported at two ports with ANA.
struct Far {
    daemon: Daemon,
    ports: [u16; 2],
}

impl Far {
    fn start() -> Result<Self> {
        let daemon = Daemon::start(2)?;
        let ports = [net::free_port()?, net::free_port()?];
        let file = daemon.dir().join("far.img");
        File::create_new(&file)?.set_len(BYTES)?;
        daemon.call("bdev_uring_create", json!({"name": "far", "filename": file, "block_size": 4096}))?;
        daemon.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
        let subsystem = json!({"nqn": FAR, "allow_any_host": true, "ana_reporting": true});
        daemon.call("nvmf_create_subsystem", subsystem)?;
        daemon.call("nvmf_subsystem_add_ns", json!({"nqn": FAR, "namespace": {"bdev_name": "far"}}))?;
        let far = Self { daemon, ports };
        for port in ports {
            far.listen(port)?;
        }
        Ok(far)
    }

    fn listen(&self, port: u16) -> Result<()> {
        let params = json!({"nqn": FAR, "listen_address": address(port)});
        self.daemon.call("nvmf_subsystem_add_listener", params)?;
        Ok(())
    }

    fn deafen(&self, port: u16) -> Result<()> {
        let params = json!({"nqn": FAR, "listen_address": address(port)});
        self.daemon.call("nvmf_subsystem_remove_listener", params)?;
        Ok(())
    }

    fn set(&self, port: u16, state: &str) -> Result<()> {
        let params = json!({"nqn": FAR, "listen_address": address(port), "ana_state": state});
        self.daemon.call("nvmf_subsystem_listener_set_ana_state", params)?;
        Ok(())
    }
}

/// B: attaches A.
struct Near {
    daemon: Daemon,
    port: u16,
}

impl Near {
    fn start() -> Result<Self> {
        Ok(Self { daemon: Daemon::start(2)?, port: net::free_port()? })
    }

    fn attach(&self, port: u16, more: &Value) -> Result<Value> {
        let mut params = json!({"name": "Far", "trtype": "tcp", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": port.to_string(), "subnqn": FAR, "reconnect_delay_sec": 1, "ctrlr_loss_timeout_sec": 60});
        let members = params.as_object_mut().context("an object")?;
        members.extend(more.as_object().context("an object")?.clone());
        self.daemon.call("bdev_nvme_attach_controller", params)
    }

    /// Exports the namespace again.
    fn export(&self) -> Result<()> {
        self.daemon.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
        self.daemon.call("nvmf_create_subsystem", json!({"nqn": NEAR, "allow_any_host": true}))?;
        self.daemon
            .call("nvmf_subsystem_add_ns", json!({"nqn": NEAR, "namespace": {"bdev_name": "Farn1"}}))?;
        let params = json!({"nqn": NEAR, "listen_address": address(self.port)});
        self.daemon.call("nvmf_subsystem_add_listener", params)?;
        Ok(())
    }

    /// The load generator on what is exported again.
    fn verify(&self, seconds: u32) -> Result<Process> {
        let mut command = Process::command(paths::program("penstock-perf")?)?;
        command
            .arg(format!("nvme-tcp://127.0.0.1:{}/{NEAR}", self.port))
            .args([
                "--rw", "randrw", "--qd", "16", "--bs", "4k", "--size", "16m", "--verify", "--warmup", "0",
            ])
            .args(["--time", &seconds.to_string(), "--json"])
            .stdout(Stdio::null());
        Process::start(command, "penstock-perf")
    }

    /// States of the paths by port, as the daemon tells them.
    fn paths(&self) -> Result<Vec<(String, bool, bool, bool)>> {
        let all = self.daemon.call("bdev_nvme_get_io_paths", json!({"name": "Farn1"}))?;
        let first = all.pointer("/poll_groups/0/io_paths").and_then(Value::as_array).context("io_paths")?;
        let one = |path: &Value| {
            let flag = |name: &str| path.get(name) == Some(&Value::Bool(true));
            let port =
                path.pointer("/transport/trsvcid").and_then(Value::as_str).unwrap_or_default().to_owned();
            (port, flag("connected"), flag("accessible"), flag("current"))
        };
        Ok(first.iter().map(one).collect())
    }

    fn await_path(&self, port: u16, connected: bool, accessible: bool) -> Result<()> {
        let wanted = port.to_string();
        wait::until(LIMIT, || {
            let paths = self.paths()?;
            let there = paths.iter().any(|(port, is_connected, is_accessible, _)| {
                *port == wanted && *is_connected == connected && *is_accessible == accessible
            });
            Ok(there.then_some(()))
        })
        .with_context(|| {
            format!("port {port}: not connected={connected} accessible={accessible}: {:?}", self.paths())
        })
    }

    fn blocks(&self, bdev: &str) -> Option<u64> {
        let found = rpc::call(&self.daemon.socket(), "bdev_get_bdevs", &json!({"name": bdev})).ok()?;
        found.pointer("/0/num_blocks")?.as_u64()
    }
}

fn ends_well(mut load: Process, limit: Duration) -> Result<()> {
    let code = load.wait(limit).context("the load generator does not end")?;
    ensure!(code == Some(0), "the load generator ended with {code:?}: I/O failed, or data are wrong");
    Ok(())
}

#[test]
fn io_goes_on_through_flips_and_losses_of_paths_and_a_kill_of_the_target() -> Result<()> {
    let mut far = Far::start()?;
    let near = Near::start()?;
    let [one, other] = far.ports;
    ensure!(near.attach(one, &json!({"hdgst": true, "ddgst": true}))? == json!(["Farn1"]));
    ensure!(near.attach(other, &json!({}))? == json!(["Farn1"]), "a path adds no bdev");
    near.export()?;
    let load = near.verify(14)?;
    for (from, to) in [(one, other), (other, one), (one, other), (other, one)] {
        far.set(to, "optimized")?;
        far.set(from, "change")?;
        far.set(from, "inaccessible")?;
        near.await_path(from, true, false)?;
        near.await_path(to, true, true)?;
        far.set(from, "non_optimized")?;
        near.await_path(from, true, true)?;
    }
    // Both at once: I/O waits for the first that comes back.
    far.set(one, "inaccessible")?;
    far.set(other, "inaccessible")?;
    near.await_path(one, true, false)?;
    far.set(one, "optimized")?;
    far.set(other, "optimized")?;
    far.deafen(one)?;
    near.await_path(one, false, false)?;
    far.listen(one)?;
    near.await_path(one, true, true)?;
    far.daemon.kill()?;
    std::thread::sleep(Duration::from_millis(500));
    far.daemon.restart()?;
    near.await_path(one, true, true)?;
    near.await_path(other, true, true)?;
    near.daemon.call("bdev_nvme_reset_controller", json!({"name": "Far"}))?;
    ends_well(load, Duration::from_secs(60))
}

#[test]
fn paths_come_and_go_and_outlive_a_restart() -> Result<()> {
    let mut far = Far::start()?;
    let mut near = Near::start()?;
    let [one, other] = far.ports;
    near.attach(one, &json!({"hostnqn": "nqn.2026-11.io.penstock:host"}))?;
    ensure!(near.attach(one, &json!({})).is_err(), "the path is there");
    ensure!(near.attach(other, &json!({"multipath": "disable"})).is_err(), "no multipath was wanted");
    ensure!(near.attach(other, &json!({"hostnqn": "nqn.2026-11.io.penstock:x"})).is_err(), "another host");
    near.attach(other, &json!({}))?;
    near.daemon.call(
        "bdev_nvme_set_multipath_policy",
        json!({"name": "Farn1", "policy": "active_active", "rr_min_io": 4}),
    )?;
    near.export()?;
    ends_well(near.verify(1)?, LIMIT)?;
    let controllers = near.daemon.call("bdev_nvme_get_controllers", json!({"name": "Far"}))?;
    let commands: Vec<u64> =
        [0, 1].iter().filter_map(|at| controllers[0]["ctrlrs"][at]["commands"].as_u64()).collect();
    ensure!(commands.len() == 2 && commands.iter().all(|count| *count > 100), "both serve: {controllers}");
    // A path that cannot be connected does not keep the daemon from starting.
    far.deafen(one)?;
    near.daemon.stop()?;
    near.daemon.restart()?;
    near.await_path(other, true, true)?;
    near.await_path(one, false, false)?;
    ends_well(near.verify(1)?, LIMIT)?;
    far.listen(one)?;
    near.await_path(one, true, true)?;
    let path = json!({"name": "Far", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": one.to_string()});
    near.daemon.call("bdev_nvme_detach_controller", path)?;
    ensure!(near.paths()?.len() == 1, "one path is left");
    ends_well(near.verify(1)?, LIMIT)?;
    // As an address to fall back on, it is used when the other is gone.
    near.attach(one, &json!({"multipath": "failover"}))?;
    let load = near.verify(5)?;
    std::thread::sleep(Duration::from_secs(1));
    far.deafen(other)?;
    near.await_path(one, true, true)?;
    ends_well(load, LIMIT)?;
    near.daemon.call("bdev_nvme_detach_controller", json!({"name": "Far"}))?;
    ensure!(near.blocks("Farn1").is_none(), "the bdev is gone");
    far.daemon.stop()
}

#[test]
fn namespaces_come_grow_and_go_and_a_target_that_stays_away_is_given_up() -> Result<()> {
    let mut far = Far::start()?;
    let near = Near::start()?;
    let port = far.ports[0];
    let limits =
        json!({"reconnect_delay_sec": 1, "fast_io_fail_timeout_sec": 1, "ctrlr_loss_timeout_sec": 4});
    near.attach(port, &limits)?;
    far.daemon
        .call("bdev_malloc_create", json!({"name": "second", "num_blocks": 2048, "block_size": 512}))?;
    far.daemon.call(
        "nvmf_subsystem_add_ns",
        json!({"nqn": FAR, "namespace": {"bdev_name": "second", "nsid": 2}}),
    )?;
    let has = |bdev: &'static str, blocks: Option<u64>| {
        wait::until(LIMIT, || Ok((near.blocks(bdev) == blocks).then_some(())))
            .with_context(|| format!("{bdev} has not become {blocks:?}"))
    };
    has("Farn2", Some(2048))?;
    let file = far.daemon.dir().join("far.img");
    OpenOptions::new().write(true).open(file)?.set_len(2 * BYTES)?;
    far.daemon.call("bdev_uring_rescan", json!({"name": "far"}))?;
    has("Farn1", Some(2 * BYTES / 4096))?;
    far.daemon.call("nvmf_subsystem_remove_ns", json!({"nqn": FAR, "nsid": 2}))?;
    has("Farn2", None)?;
    near.export()?;
    far.daemon.kill()?;
    // I/O that waits ends with an error once nothing waits for the path any more.
    let code = near.verify(1)?.wait(LIMIT).context("I/O waits for a path that was given up")?;
    ensure!(code != Some(0), "I/O without a path succeeded");
    has("Farn1", None)?;
    wait::until(LIMIT, || {
        let left = near.daemon.call("bdev_nvme_get_controllers", json!({}))?;
        Ok((left == json!([])).then_some(()))
    })
    .context("the controller is still there")
}
