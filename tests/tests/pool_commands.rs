//! `penstock pool`, `container`, `vdisk`, `snapshot` and `why`, as people type them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::daemon::Daemon;
use penstock_tests::iscsi::run;
use penstock_tests::paths;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

fn penstock(daemon: &Daemon, line: &str) -> Result<(bool, String)> {
    let (program, socket) = (paths::program("penstock")?, daemon.socket());
    let mut words = vec!["--socket", socket.to_str().context("ASCII")?];
    words.extend(line.split_whitespace());
    run(program.to_str().context("ASCII")?, &words, LIMIT)
}

fn must(daemon: &Daemon, line: &str) -> Result<String> {
    let (done, said) = penstock(daemon, line)?;
    ensure!(done, "penstock {line}:\n{said}");
    Ok(said)
}

fn value(daemon: &Daemon, line: &str) -> Result<Value> {
    let said = must(daemon, &format!("{line} --json"))?;
    serde_json::from_str(&said).with_context(|| format!("penstock {line} --json:\n{said}"))
}

#[test]
fn pools_containers_vdisks_and_snapshots_are_driven_by_the_tool_and_kept_over_a_restart() -> Result<()> {
    let mut daemon = Daemon::start(2)?;
    let file = daemon.dir().join("disk.img");
    must(&daemon, &format!("bdev create uring d0 {} --size 512M --block-size 4096", file.display()))?;
    must(&daemon, "pool create p0 d0 --lanes 2 --log 16M --region 8M")?;
    must(
        &daemon,
        "container create gold --limit 200M --reserve 16M --compression zstd --compression-delay 60",
    )?;
    must(&daemon, "vdisk create a 64M --container gold")?;
    must(&daemon, "vdisk create b 32M --block-size 4096")?;
    must(&daemon, "snapshot create monday a b")?;
    must(&daemon, "snapshot clone a@monday c")?;
    must(&daemon, "vdisk resize a 128M")?;
    let (done, said) = penstock(&daemon, "vdisk resize a 64M")?;
    ensure!(!done && said.contains("give shrink"), "{said}");
    must(&daemon, "vdisk resize a 64M --shrink")?;
    must(&daemon, "vdisk rename c renamed")?;
    for restarted in [false, true] {
        if restarted {
            daemon.stop()?;
            daemon.restart()?;
        }
        let pools = must(&daemon, "pool list")?;
        ensure!(
            pools.contains("CAPACITY") && pools.lines().any(|line| line.starts_with("p0    ok")),
            "{pools}"
        );
        let containers = must(&daemon, "container list")?;
        ensure!(containers.contains("zstd after 60 s") && containers.contains("200.0 MiB"), "{containers}");
        let vdisks = must(&daemon, "vdisk list")?;
        ensure!(vdisks.contains("renamed") && vdisks.contains("a@monday"), "{vdisks}");
        let snapshots = value(&daemon, "snapshot list")?;
        ensure!(snapshots.as_array().is_some_and(|list| list.len() == 2), "{snapshots}");
    }
    must(&daemon, "container set gold --compression lz4 --limit 0")?;
    let gold = value(&daemon, "container list --pool p0")?;
    let gold = gold.as_array().and_then(|list| list.iter().find(|one| one["name"] == "gold")).cloned();
    let gold = gold.context("no container gold")?;
    ensure!(gold["compression"] == "lz4" && gold["compression_delay_s"] == Value::Null, "{gold}");
    ensure!(gold["limit_bytes"] == Value::Null && gold["reserved_bytes"] == json!(16 << 20), "{gold}");
    for wrong in ["container set gold --compression-delay 5", "container set gold --compression lzma"] {
        ensure!(!penstock(&daemon, wrong)?.0, "{wrong}");
    }
    ensure!(must(&daemon, "snapshot diff a@monday")?.contains("no differences"));
    ensure!(must(&daemon, "snapshot show a@monday")?.contains("a@monday is bdev a@monday"));
    must(&daemon, "snapshot hide a@monday")?;
    must(&daemon, "snapshot revert b@monday")?;
    let why = must(&daemon, "why a")?;
    ensure!(why.starts_with("a is online\n") && why.contains("next:"), "{why}");
    ensure!(value(&daemon, "why b")?["state"] == "online");
    let usage = must(&daemon, "pool usage")?;
    ensure!(usage.contains("a@monday") && usage.contains("thin provisioning"), "{usage}");
    ensure!(value(&daemon, "pool show")?["stats"]["capacity_bytes"].as_u64() > Some(0));
    let (done, said) = penstock(&daemon, "pool delete p0")?;
    ensure!(!done && said.contains("in use"), "{said}");
    must(&daemon, "vdisk delete a b renamed --snapshots")?;
    must(&daemon, "container delete gold")?;
    must(&daemon, "pool delete p0")?;
    ensure!(must(&daemon, "pool list")?.contains("no pools"));
    let completions = must(&daemon, "completions bash")?;
    ensure!(["snapshot", "container", "import", "why"].iter().all(|word| completions.contains(word)));
    Ok(())
}
