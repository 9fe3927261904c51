//! The project's own tasks, `cargo xtask <task>`: one module each.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

mod deps;
mod run;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the tests need (Debian packages, guest kernels, Python tools); does nothing when all is there.
    Deps(deps::Args),
    /// Install what the tests need, then check the format, lint, and run the unit and end-to-end tests.
    Test(test::Args),
    /// Build the node and run it here, on a sparse file, until Ctrl-C.
    Up(up::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Deps(args) => deps::main(&args),
        Task::Test(args) => test::main(&args),
        Task::Up(args) => up::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
