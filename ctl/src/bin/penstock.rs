//! The tool for people who run a Penstock node.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use penstock_ctl::cli::{self, CliError};

fn main() -> ExitCode {
    match cli::run(cli::args::Args::parse(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock: {}", penstock_ctl::rpc::error::chain(&error));
            ExitCode::FAILURE
        }
    }
}
