//! `penstock-ceiling`: a minimal busy-poll TCP exchange with the message sizes and batching of NVMe/TCP, and nothing
//! else: no protocol, no bdev. What it reaches is the most that a target can reach on this machine just then, so a
//! target's figure can be given as a fraction of it.
//!
//! Two threads, each on its core: a client that keeps `qd` requests in flight on each of `connections`, and a server
//! that answers. A request is 72 bytes (a command capsule) plus the block of a write; a response is 24 bytes (a response
//! capsule, or a C2HData header with the SUCCESS flag) plus the block of a read, which comes from a random place of a
//! region of memory. Neither side looks at what it received.
//!
//! Backends are measured in turns, round after round, because the machine's speed drifts; medians are reported.

mod args;
mod exchange;
mod grouped;
mod measure;
mod plain;
mod report;
mod uring;

use clap::Parser as _;

#[expect(clippy::print_stdout, reason = "the result is this program's output")]
fn main() -> anyhow::Result<()> {
    let args = args::Args::parse();
    // Used by both threads until the end of the program.
    let memory: &'static [u8] = Vec::leak(vec![0xa5; args.memory]);
    let mut results = Vec::new();
    for case in args.cases() {
        for result in measure::measure(&args, case, memory)? {
            if !args.json {
                println!("{}", result.to_line());
            }
            results.push(result);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    }
    Ok(())
}
