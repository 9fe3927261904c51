//! The daemon of a Penstock node.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match penstock_ctl::daemon::run::run(penstock_ctl::daemon::options::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstockd: {}", penstock_ctl::rpc::error::chain(&error));
            ExitCode::FAILURE
        }
    }
}
