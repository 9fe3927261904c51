//! The stock fio with this project's engine: verify against the daemon over NVMe/TCP and against bdevs of fio's own process,
//! wrong options, and a target that dies.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::paths::{self, Scratch};
use penstock_tests::target::{Backend, Penstock, Target};
use penstock_tests::{process, wait};

const MIB: u64 = 1 << 20;
/// Until fio's first I/Os are through.
const LIMIT: Duration = Duration::from_secs(30);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// fio on `target`, in a directory of its own.
fn fio(target: &str, dir: &Path) -> Result<Command> {
    let mut command = process::Process::command(paths::tool("fio")?)?;
    command.env("ENGINE", paths::program("libpenstock_fio.so")?).env("TARGET", target.replace(':', "\\:"));
    command.current_dir(dir).stdin(Stdio::null());
    Ok(command)
}

/// fio's option for the engine.
fn engine() -> Result<String> {
    Ok(format!("--ioengine=external:{}", paths::program("libpenstock_fio.so")?.display()))
}

fn job_file(name: &str) -> PathBuf {
    repository().join("perf/fio").join(name)
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}", text(&output.stdout), text(&output.stderr))
}

/// The project's own job file with verify.
fn verify(target: &str) -> Result<()> {
    let scratch = Scratch::new()?;
    let output = fio(target, scratch.path())?.arg(job_file("engine-verify.fio")).output()?;
    let told = told(&output);
    ensure!(output.status.success() && !told.contains("verify:"), "{target}: {:?}\n{told}", output.status);
    ensure!(told.matches("err= 0").count() == 4, "{target}: four groups of jobs\n{told}");
    Ok(())
}

fn url(target: &Penstock, options: &str) -> String {
    format!("nvme-tcp://127.0.0.1:{}/{}{options}", target.port(), target.nqn())
}

#[test]
fn fio_verifies_what_it_wrote_to_the_daemon_over_nvme_tcp() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, MIB)?;
    target.add_namespace(2, 64 * MIB)?;
    verify(&url(&target, "?nsid=2"))?;
    verify(&url(&target, "?nsid=2&hdgst&ddgst&queues=2&fua&sq_flow_control"))
}

#[test]
fn fio_verifies_what_it_wrote_to_bdevs_of_its_own() -> Result<()> {
    verify("malloc:64M")?;
    let scratch = Scratch::new()?;
    let file = scratch.join("disk");
    File::create_new(&file)?.set_len(64 * MIB)?;
    verify(&format!("file:{}", file.display()))
}

#[test]
fn processes_in_place_of_threads_and_several_files_work_as_well() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 4096)?;
    target.add_namespace(1, 16 * MIB)?;
    target.add_namespace(2, 16 * MIB)?;
    let scratch = Scratch::new()?;
    let [one, two] = ["", "?nsid=2"].map(|options| url(&target, options).replace(':', "\\:"));
    let mut command = fio("", scratch.path())?;
    command.arg(engine()?).args(["--rw=randrw", "--bs=4k", "--iodepth=16", "--size=4m", "--verify=crc32c"]);
    command.args(["--name=one".to_owned(), format!("--filename={one}")]);
    command.args(["--name=two".to_owned(), format!("--filename={two}")]);
    command.args(["--name=both".to_owned(), "--stonewall".to_owned(), format!("--filename={one}:{two}")]);
    let output = command.output()?;
    let told = told(&output);
    ensure!(output.status.success() && told.matches("err= 0").count() == 3, "{:?}\n{told}", output.status);
    Ok(())
}

#[test]
fn wrong_options_and_places_are_refused_with_a_reason() -> Result<()> {
    let port = penstock_tests::net::free_port()?;
    let nowhere = format!("nvme-tcp://127.0.0.1:{port}/nqn.2026-11.io.penstock:none");
    for (target, reason) in [
        ("malloc:8M?speed=9", "speed=9 is no option"),
        ("malloc:8M?queues=0", "queues"),
        ("floppy:a", "unknown target floppy"),
        (nowhere.as_str(), "cannot connect"),
    ] {
        let scratch = Scratch::new()?;
        let output = fio(target, scratch.path())?.arg(job_file("engine-verify.fio")).output()?;
        let told = told(&output);
        ensure!(!output.status.success() && told.contains(reason), "{target}: {:?}\n{told}", output.status);
    }
    Ok(())
}

#[test]
fn a_target_that_dies_ends_fio_with_an_error() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 4096)?;
    target.add_namespace(1, 16 * MIB)?;
    let scratch = Scratch::new()?;
    let log = File::create_new(scratch.join("log"))?;
    let name = format!("--filename={}", url(&target, "").replace(':', "\\:"));
    let mut command = fio("", scratch.path())?;
    command.arg(engine()?).args([&name, "--name=dies", "--thread", "--rw=randrw", "--bs=4k", "--iodepth=32"]);
    command.args(["--time_based", "--runtime=60"]);
    command.stdout(log.try_clone()?).stderr(log);
    let mut running = process::Process::start(command, "fio")?;
    wait::until(LIMIT, || {
        let served = target.daemon().call("bdev_get_iostat", serde_json::json!({ "name": "ns1" }))?;
        let ops = served.pointer("/bdevs/0/num_read_ops").and_then(serde_json::Value::as_u64);
        Ok(ops.filter(|ops| *ops > 1000))
    })?;
    target.daemon().kill()?;
    let code = running.wait(Duration::from_secs(20)).context("fio does not end")?;
    let told = std::fs::read_to_string(scratch.join("log"))?;
    ensure!(code.is_some_and(|code| code != 0), "fio ended with {code:?}\n{told}");
    ensure!(told.contains("No such device"), "fio says why\n{told}");
    Ok(())
}
