//! The control socket, driven by SPDK's own client, and the daemon's end.

use std::process::Command;

use anyhow::{Result, ensure};
use penstock_tests::daemon::Daemon;
use penstock_tests::initiator::Host;
use penstock_tests::net;
use penstock_tests::paths;
use penstock_tests::target::{Backend, Penstock, Target};

/// Runs SPDK's `spdk-rpc` on the daemon's socket; returns whether it succeeded, and what it said.
fn spdk_rpc(daemon: &Daemon, words: &str) -> Result<(bool, String)> {
    let program = paths::e2e_dir().join("venv/bin/spdk-rpc");
    let out = Command::new(program).arg("-s").arg(daemon.socket()).args(words.split(' ')).output()?;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((out.status.success(), text))
}

#[test]
fn spdks_own_client_sets_up_a_target_that_a_host_uses() -> Result<()> {
    const NQN: &str = "nqn.2026-11.io.penstock:by-spdk-rpc";
    let daemon = Daemon::start(2)?;
    let port = net::free_port()?;
    for words in [
        "spdk_get_version".to_owned(),
        "rpc_get_methods".to_owned(),
        "framework_get_reactors".to_owned(),
        "bdev_malloc_create -b mem0 16 512".to_owned(),
        "bdev_null_create null0 64 4096".to_owned(),
        "bdev_get_bdevs -b mem0".to_owned(),
        "nvmf_create_transport -t TCP".to_owned(),
        "nvmf_get_transports".to_owned(),
        format!("nvmf_create_subsystem {NQN} -a -s SPDKRPC0 -d Penstock"),
        format!("nvmf_subsystem_add_ns {NQN} mem0 -n 1"),
        format!("nvmf_subsystem_add_ns {NQN} null0 -n 2"),
        format!("nvmf_subsystem_add_listener {NQN} -t TCP -f ipv4 -a 127.0.0.1 -s {port}"),
        "nvmf_get_subsystems".to_owned(),
    ] {
        let (done, said) = spdk_rpc(&daemon, &words)?;
        ensure!(done, "spdk-rpc {words} failed:\n{said}");
    }
    Host::connect(port, NQN)?.io.read(1, 0, 8, 512)?;
    for words in [
        "bdev_get_iostat --names mem0".to_owned(),
        "nvmf_get_stats".to_owned(),
        format!("nvmf_subsystem_remove_ns {NQN} 2"),
        "bdev_null_delete null0".to_owned(),
        format!("nvmf_subsystem_remove_listener {NQN} -t TCP -f ipv4 -a 127.0.0.1 -s {port}"),
        format!("nvmf_delete_subsystem {NQN}"),
        "bdev_malloc_delete mem0".to_owned(),
    ] {
        let (done, said) = spdk_rpc(&daemon, &words)?;
        ensure!(done, "spdk-rpc {words} failed:\n{said}");
    }
    let (done, said) = spdk_rpc(&daemon, "bdev_get_bdevs -b nowhere")?;
    ensure!(!done && said.contains("nowhere"), "the refusal does not name the bdev:\n{said}");
    Ok(())
}

#[test]
fn a_host_that_is_not_on_the_list_is_refused() -> Result<()> {
    use serde_json::json;
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 8 << 20)?;
    let (port, nqn) = (target.port(), target.nqn().to_owned());
    let daemon = target.daemon();
    daemon.call("nvmf_subsystem_allow_any_host", json!({"nqn": nqn, "allow_any_host": false}))?;
    ensure!(Host::connect(port, &nqn).is_err(), "a host that is not on the list got in");
    daemon
        .call("nvmf_subsystem_add_host", json!({"nqn": nqn, "host": penstock_tests::initiator::HOST_NQN}))?;
    Host::connect(port, &nqn)?.io.read(1, 0, 8, 512)?;
    Ok(())
}

#[test]
fn sigterm_ends_the_daemon_cleanly_with_hosts_connected() -> Result<()> {
    let mut target = Penstock::start(Backend::Uring, 512)?;
    target.add_namespace(1, 8 << 20)?;
    let mut host = Host::connect(target.port(), target.nqn())?;
    for _ in 0..32 {
        host.io.submit_read(1, 0, 256, 512)?;
    }
    target.daemon().stop()
}
