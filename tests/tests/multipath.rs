//! Several paths to one subsystem: a Linux host goes on through flips and losses of paths with no I/O failed; what a
//! stopped daemon missed is not executed when it goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::guest::{Guest, HOST, Kernel};
use penstock_tests::initiator::{Connect, Host, Queue};
use penstock_tests::net;
use penstock_tests::process::Signal;
use penstock_tests::target::{Backend, Penstock, Target};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const NQN: &str = "nqn.2026-11.io.penstock:paths";

fn address(port: u16) -> Value {
    json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()})
}

/// A daemon with a subsystem of one namespace that reports ANA at two ports.
fn start() -> Result<(Penstock, [u16; 2])> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    let ports = [net::free_port()?, net::free_port()?];
    let daemon = target.daemon();
    daemon.call("bdev_malloc_create", json!({"name": "mp", "num_blocks": 131_072, "block_size": 512}))?;
    let subsystem = json!({"nqn": NQN, "allow_any_host": true, "ana_reporting": true});
    daemon.call("nvmf_create_subsystem", subsystem)?;
    daemon.call("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "mp"}}))?;
    for port in ports {
        let params = json!({"nqn": NQN, "listen_address": address(port)});
        daemon.call("nvmf_subsystem_add_listener", params)?;
    }
    Ok((target, ports))
}

fn set(target: &mut Penstock, port: u16, state: &str) -> Result<()> {
    let params = json!({"nqn": NQN, "listen_address": address(port), "ana_state": state});
    target.daemon().call("nvmf_subsystem_listener_set_ana_state", params)?;
    Ok(())
}

/// Waits until the host has seen that so many of its paths are in `state`.
fn await_paths(guest: &mut Guest, count: u32, state: &str) -> Result<()> {
    let script = format!(
        "seen() {{ [ \"$(cat /sys/block/nvme*c*n*/ana_state | grep -cx '{state}')\" = {count} ]; }}; eventually 15 seen"
    );
    guest.run(&script).with_context(|| format!("the host does not see {count} paths {state}"))?;
    Ok(())
}

#[test]
fn linux_6_1_goes_on_through_flips_and_the_loss_of_a_path() -> Result<()> {
    goes_on_through_flips_and_the_loss_of_a_path(Kernel::Linux6_1)
}

#[test]
fn linux_6_12_goes_on_through_flips_and_the_loss_of_a_path() -> Result<()> {
    goes_on_through_flips_and_the_loss_of_a_path(Kernel::Linux6_12)
}

fn goes_on_through_flips_and_the_loss_of_a_path(kernel: Kernel) -> Result<()> {
    let (mut target, [one, other]) = start()?;
    let mut guest = Guest::boot(kernel, &[])?;
    guest.run(&format!(
        "modprobe nvme-tcp
         for port in {one} {other}; do
             nvme connect -t tcp -a {HOST} -s $port -n {NQN} --nr-io-queues=1 --reconnect-delay=1 --ctrl-loss-tmo=60
         done
         eventually 10 ns 1"
    ))?;
    await_paths(&mut guest, 2, "optimized")?;
    let job = guest.start(
        "fio --name=mp --filename=$(ns 1) --size=32m --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
             --time_based --runtime=25 --verify=crc32c --verify_fatal=1 --verify_backlog=128 --randseed=3",
    )?;
    for _ in 0..2 {
        for (from, to) in [(one, other), (other, one)] {
            set(&mut target, from, "change")?;
            set(&mut target, to, "optimized")?;
            set(&mut target, from, "inaccessible")?;
            await_paths(&mut guest, 1, "inaccessible")?;
            set(&mut target, from, "non_optimized")?;
            await_paths(&mut guest, 1, "non-optimized")?;
        }
    }
    // A whole path goes, and comes back.
    let listener = json!({"nqn": NQN, "listen_address": address(one)});
    target.daemon().call("nvmf_subsystem_remove_listener", listener.clone())?;
    guest.run("lost() { ! grep -qx live /sys/class/nvme/nvme0/state; }; eventually 15 lost")?;
    target.daemon().call("nvmf_subsystem_add_listener", listener)?;
    guest.run("eventually 15 grep -qx live /sys/class/nvme/nvme0/state")?;
    let told = guest.finish(job, Duration::from_secs(120))?;
    ensure!(told.contains("err= 0"), "I/O failed:\n{told}");
    guest.run("nvme disconnect-all")?;
    Ok(())
}

#[test]
fn linux_discovers_referrals_and_stays_connected_to_the_service() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, MIB)?;
    let referral = json!({"address": {"trtype": "TCP", "adrfam": "IPv4", "traddr": "198.51.100.7", "trsvcid": "8009"},
        "subnqn": "nqn.2026-11.io.penstock:elsewhere"});
    target.daemon().call("nvmf_discovery_add_referral", referral)?;
    let mut guest = Guest::boot(Kernel::Linux6_12, &[])?;
    let port = target.port();
    let log = guest.run(&format!(
        "modprobe nvme-tcp; nvme discover -t tcp -a {HOST} -s {port} --persistent --keep-alive-tmo=2"
    ))?;
    for expected in ["subnqn:  nqn.2026-11.io.penstock:elsewhere", "traddr:  198.51.100.7", "trsvcid: 8009"] {
        ensure!(log.contains(expected), "the discovery log lacks {expected}:\n{log}");
    }
    guest.run("sleep 6; grep -x live /sys/class/nvme/nvme0/state")?;
    let all = target.daemon().call("nvmf_subsystem_get_controllers", json!({"nqn": "discovery"}))?;
    let kinds: Vec<_> = all.as_array().into_iter().flatten().map(|one| &one["cntrltype"]).collect();
    ensure!(kinds == ["discovery"], "the persistent controller is not there: {all}");
    guest.run("nvme disconnect-all")?;
    Ok(())
}

/// Its host took a stopped target for dead and failed over; when it went on, it executed the writes that had come
/// meanwhile.
#[test]
fn what_a_stopped_daemon_missed_is_not_executed() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, MIB)?;
    let nqn = target.nqn().to_owned();
    let keep_alive = Duration::from_secs(1);
    let mut admin = Queue::open(target.port())?;
    admin.initialize()?;
    let controller = admin.connect(&Connect { keep_alive, ..Connect::admin(&nqn) })?;
    admin.enable()?;
    let mut io = Queue::open(target.port())?;
    io.initialize()?;
    io.connect(&Connect::io(&nqn, controller, 1))?;
    io.submit_write(1, 0, &[1; 512])?;
    ensure!(io.completion()?.status == 0, "a write failed");
    target.daemon().process().signal(Signal::Stop)?;
    io.submit_write(1, 0, &[2; 512])?;
    std::thread::sleep(Duration::from_secs(4));
    target.daemon().process().signal(Signal::Cont)?;
    ensure!(io.completion().is_err(), "the stale write was answered");
    let mut host = Host::connect(target.port(), &nqn)?;
    let (back, _) = host.io.read(1, 0, 1, 512)?;
    ensure!(back == vec![1; 512], "the stale write was executed");
    Ok(())
}
