//! `penstock-perf`: see `--help`.

use std::process::ExitCode;

use clap::Parser as _;
use penstock_perf::{args::Args, run};

#[expect(clippy::print_stdout, reason = "the result is this program's output")]
fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let report = run::run(&args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.to_text());
    }
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
