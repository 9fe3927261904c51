//! `cargo xtask test`: everything that must hold before a change is taken, in one command.
//!
//! Every stage runs even where an earlier one failed, so that one run tells all; the end-to-end tests come last.

use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{deps, run};

/// The package with the end-to-end tests.
const E2E_PACKAGE: &str = "penstock-tests";

/// Guests run in software emulation, each on two threads: more at a time only slow each other down.
const E2E_THREADS: usize = 2;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run these stages only.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    only: Vec<Stage>,
    /// Run only tests whose names contain one of these.
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// A stage of the test run.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Stage {
    /// `cargo fmt --check`.
    Fmt,
    /// `cargo clippy`, with warnings as errors.
    Clippy,
    /// `cargo deny`: licences and origins of what we depend on.
    Deny,
    /// Unit and property tests of every crate.
    Unit,
    /// The end-to-end tests: Linux guests against release builds of our programs.
    E2e,
}

/// `cargo xtask test`.
pub(crate) fn main(args: &Args) -> Result<()> {
    let stages: Vec<Stage> = Stage::value_variants()
        .iter()
        .copied()
        .filter(|stage| args.only.is_empty() || args.only.contains(stage))
        .collect();
    if stages.contains(&Stage::E2e) {
        deps::main(&deps::Args::default())?;
    }
    let mut failed = Vec::new();
    for stage in stages {
        if let Err(error) = stage.run(&args.filters) {
            println!("{error:#}");
            failed.push(format!("{stage:?}").to_lowercase());
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

impl Stage {
    fn run(self, filters: &[String]) -> Result<()> {
        match self {
            Self::Fmt => run::run(run::cargo().args(["fmt", "--all", "--check"])),
            Self::Clippy => run::run(run::cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ])),
            Self::Deny => {
                let mut deny = Command::new(deps::cargo_deny()?);
                // Advisories come from a repository that is not everywhere to be had; the rest needs nothing from outside.
                deny.args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
                run::run(deny.current_dir(run::workspace()))
            }
            Self::Unit => {
                let mut test = run::cargo();
                test.args(["test", "--workspace", "--exclude", E2E_PACKAGE, "--no-fail-fast"]);
                let crates = run::run(with_filters(&mut test, filters));
                // Of the end-to-end package, what needs neither a guest nor the daemon: its own parts, and the rules of the tree.
                let mut test = run::cargo();
                test.args(["test", "--package", E2E_PACKAGE, "--lib", "--test", "tidy"]);
                let rules = run::run(with_filters(&mut test, filters));
                crates.and(rules)
            }
            Self::E2e => {
                run::run(run::cargo().args([
                    "build",
                    "--release",
                    "--workspace",
                    "--exclude",
                    "xtask",
                    "--bins",
                    "--lib", // fio's engine, which is a library that fio loads
                    "--example",
                    "vhost_bench", // the client that tests run in a guest
                ]))?;
                let mut test = run::cargo();
                test.env("PENSTOCK_BIN_DIR", run::target_dir().join("release"));
                test.env("PENSTOCK_E2E_DIR", run::e2e_dir());
                test.env("RUST_LIB_BACKTRACE", "0"); // an error names the guest's words, not our stack
                test.args(["test", "--package", E2E_PACKAGE, "--no-fail-fast"]);
                with_filters(&mut test, filters).arg(format!("--test-threads={E2E_THREADS}"));
                run::run(&mut test)
            }
        }
    }
}

/// Appends `--` and `filters` for the test programs themselves.
fn with_filters<'a>(test: &'a mut Command, filters: &[String]) -> &'a mut Command {
    test.arg("--").args(filters)
}
