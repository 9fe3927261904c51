//! Disks of a pool lost, added and left while a Linux host writes and verifies on a vdisk.
#![expect(clippy::indexing_slicing, reason = "a member that a JSON value lacks is null")]

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::guest::{Guest, HOST, Kernel};
use penstock_tests::target::{Backend, Penstock, Target};
use penstock_tests::{paths, wait};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// A bdev on a sparse file.
fn disk(target: &mut Penstock, name: &str) -> Result<()> {
    let file = target.daemon().dir().join(format!("{name}.img"));
    File::create_new(&file)?.set_len(512 * MIB)?;
    let params = json!({"name": name, "filename": file, "block_size": 4096});
    target.daemon().call("bdev_uring_create", params).map(drop)
}

/// The only pool as `pool_list` has it.
fn pool(target: &mut Penstock) -> Result<Value> {
    let list = target.daemon().call("pool_list", json!({}))?;
    list.get(0).cloned().context("there is no pool")
}

/// States of the pool's disks, by bdev; those that are out have none.
fn states(target: &mut Penstock) -> Result<Vec<(String, String)>> {
    let pool = pool(target)?;
    let disks = pool["disks"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(disks.iter().map(|disk| (text(&disk["bdev"]), text(&disk["state"]))).collect())
}

fn wait_for(target: &mut Penstock, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
    let done = wait::until(LIMIT, || Ok(is_so(&pool(target)?).then_some(())));
    done.with_context(|| format!("{what}: {:?}", pool(target)))
}

/// A pool whose disks are the only ones in use, with all its copies.
fn is_whole(pool: &Value, bdevs: &[&str]) -> bool {
    let disks = pool["disks"].as_array().cloned().unwrap_or_default();
    let mut used: Vec<String> = disks
        .iter()
        .filter(|disk| disk["state"] == "in")
        .map(|disk| disk["bdev"].as_str().unwrap_or_default().to_owned())
        .collect();
    used.sort();
    pool["degraded"] == false && used == bdevs && !disks.iter().any(|disk| disk["state"] == "leaving")
}

/// A vdisk with a copy on d0 and one on d1, which can be made to fail, as namespace 1.
fn two_disks_in_use_and_two_beside() -> Result<Penstock> {
    let mut target = Penstock::start(Backend::Malloc, 4096)?;
    for name in ["d0", "d1", "d2", "d3"] {
        disk(&mut target, name)?;
    }
    target.daemon().call("bdev_error_create", json!({"base_name": "d1"}))?;
    let new = json!({"name": "p", "bdevs": ["d0", "EE_d1"], "lanes": 2, "log_mib": 16, "region_mib": 8});
    target.daemon().call("pool_create", new)?;
    ensure!(pool(&mut target)?["copies"] == 2, "two disks are not two copies");
    target.daemon().call("vdisk_create", json!({"name": "v", "bytes": 64 * MIB, "block_size": 4096}))?;
    let nqn = target.nqn().to_owned();
    let namespace = json!({"bdev_name": "v", "nsid": 1});
    target.daemon().call("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}))?;
    Ok(target)
}

#[test]
fn a_host_sees_no_error_while_disks_of_the_pool_fail_vanish_come_and_are_left() -> Result<()> {
    let mut target = two_disks_in_use_and_two_beside()?;
    let (port, nqn) = (target.port(), target.nqn().to_owned());
    let mut guest = Guest::boot(Kernel::Linux6_12, &[])?;
    guest.run(&format!(
        "modprobe nvme-tcp
         nvme connect -t tcp -a {HOST} -s {port} -n {nqn} --nr-io-queues=2
         eventually 10 ns 1"
    ))?;
    let fio = guest.start(
        "fio --name=disks --filename=$(ns 1) --size=48m --rw=randwrite --bsrange=4k-64k --iodepth=16 --ioengine=libaio \
             --direct=1 --loops=4 --rate=8m --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=7",
    )?;
    std::thread::sleep(Duration::from_secs(2));
    // One does not write any more.
    let fail = json!({"name": "EE_d1", "io_type": "write", "error_type": "failure", "num": 1_000_000});
    target.daemon().call("bdev_error_inject_error", fail)?;
    let out = |pool: &Value| {
        pool["disks"].as_array().is_some_and(|all| all.iter().any(|disk| disk["state"] == "out"))
    };
    wait_for(&mut target, "the disk that fails is not out", out)?;
    ensure!(pool(&mut target)?["degraded"] == true, "nothing says that copies are missing");
    target.daemon().call("pool_add_disk", json!({"bdev": "d2"}))?;
    wait_for(&mut target, "copies are not made again", |pool| is_whole(pool, &["d0", "d2"]))?;
    ensure!(guest.is_running(&fio)?, "fio ended too early");
    // One is pulled.
    target.daemon().call("bdev_uring_delete", json!({"name": "d0"}))?;
    wait_for(&mut target, "the disk that was pulled is not out", |pool| pool["degraded"] == true)?;
    target.daemon().call("pool_add_disk", json!({"bdev": "d3"}))?;
    wait_for(&mut target, "copies are not made again", |pool| is_whole(pool, &["d2", "d3"]))?;
    // One is left, after the one that failed has come back as a new one.
    let forget = json!({"name": "EE_d1", "io_type": "clear", "error_type": "failure"});
    target.daemon().call("bdev_error_inject_error", forget)?;
    let refused = target.daemon().call("pool_remove_disk", json!({"disk": "d3"}));
    ensure!(refused.is_err(), "the last disk but one could be left");
    target.daemon().call("pool_add_disk", json!({"bdev": "EE_d1", "force": true}))?;
    target.daemon().call("pool_remove_disk", json!({"disk": "d3"}))?;
    wait_for(&mut target, "the disk is not left", |pool| is_whole(pool, &["EE_d1", "d2"]))?;
    let report = guest.finish(fio, Duration::from_secs(240))?;
    ensure!(report.contains("err= 0"), "fio ended with an error:\n{report}");
    let sum = guest.run("sha256sum $(ns 1)")?;
    guest.run("nvme disconnect-all")?;
    // A restart without one of the two.
    target.daemon().call("bdev_error_delete", json!({"name": "EE_d1"}))?;
    wait_for(&mut target, "the disk that was pulled is not out", |pool| pool["degraded"] == true)?;
    target.daemon().stop()?;
    let file = target.daemon().dir().join("d2.img");
    let fsck = Command::new(paths::program("penstock")?).arg("fsck").arg("--data").arg(&file).output()?;
    let said = String::from_utf8_lossy(&fsck.stdout).into_owned();
    ensure!(
        fsck.status.success() && said.contains("clean"),
        "fsck: {said}{}",
        String::from_utf8_lossy(&fsck.stderr)
    );
    target.daemon().restart()?;
    wait::until(LIMIT, || Ok((pool(&mut target)?["state"] == "open").then_some(())))?;
    ensure!(states(&mut target)?.iter().any(|(bdev, state)| bdev == "d2" && state == "in"));
    guest.run(&format!(
        "nvme connect -t tcp -a {HOST} -s {port} -n {nqn} --nr-io-queues=2
         eventually 30 ns 1"
    ))?;
    let again = guest.run("sha256sum $(ns 1)")?;
    let first = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(first(&sum) == first(&again), "the vdisk has changed: {sum} and {again}");
    guest.run("nvme disconnect-all")?;
    target.daemon().stop()
}
