//! Instructions per I/O of each layer, counted by Valgrind and held against `perf/instructions/limits.toml`: they are the
//! same on a busy machine, so a change that makes the path longer fails here and not in somebody's benchmark.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use penstock_tests::paths;

/// Two runs, one twice as long: what differs is I/Os alone.
const IOS: u64 = 2000;

/// How far above its figure a case may be, in hundredths: compilers and C libraries differ a little.
const SLACK_PERCENT: u64 = 5;

fn count(case: &str, ios: u64) -> Result<u64> {
    let mut words = case.split(' ');
    let mut command = Command::new(paths::tool("valgrind")?);
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    if case.starts_with("nvme-tcp/") || case.starts_with("iscsi/") {
        command.args(["--zero-before=penstock_instructions::drive*", "--toggle-collect=*GroupPoller*poll*"]);
    } else if case.starts_with("nvme/") {
        command.arg("--toggle-collect=*nvme::Driver*");
    } else {
        command.arg("--toggle-collect=penstock_instructions::drive*");
    }
    // Valgrind counts each step of a `rep movsb` as an instruction: the C library shall copy by vectors.
    command.env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1073741824");
    command.arg(paths::program("penstock-instructions")?).args(words.next()).arg(ios.to_string()).args(words);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    let sum = said.lines().find_map(|line| line.split("Collected :").nth(1));
    Ok(sum.with_context(|| format!("no sum in: {said}"))?.trim().parse()?)
}

fn instructions_per_io(case: &str) -> Result<u64> {
    let (once, twice) = (count(case, IOS)?, count(case, 2 * IOS)?);
    ensure!(
        twice > once && once > 0,
        "{case}: {once} and {twice} were counted: is the function still there?"
    );
    Ok((twice - once) / IOS)
}

#[test]
fn no_layer_executes_more_instructions_per_io_than_it_did() -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Limits {
        cases: BTreeMap<String, u64>,
    }
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let limits: Limits =
        toml::from_str(&std::fs::read_to_string(root.join("perf/instructions/limits.toml"))?)?;
    let mut above = Vec::new();
    for (case, figure) in &limits.cases {
        let now = instructions_per_io(case)?;
        println!("{case}: {now} instructions per I/O, {figure} in limits.toml");
        if now * 100 > figure * (100 + SLACK_PERCENT) {
            above.push(format!("{case}: {now} instead of {figure}"));
        }
    }
    if !above.is_empty() {
        bail!("more instructions per I/O than perf/instructions/limits.toml allows:\n{}", above.join("\n"));
    }
    Ok(())
}
