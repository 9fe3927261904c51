//! `penstock-hugepage-setup`: hugepages and NVMe devices for user space.
//!
//! ```text
//!   plan    what would be written, and what is refused and why          reads only
//!   apply   the same; with --yes it is done, and noted for undo
//!   undo    what apply wrote is put back; with --yes
//!   status  how it is now: hugepages, limits, IOMMU groups, devices and their use
//! ```
//!
//! Invariants: nothing is written that was not shown; a device whose namespace is in use is never unbound; what was there
//! before is noted on disk before it is changed.

mod act;
mod device;
mod pages;
mod root;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use act::{Record, Step};
use device::Selector;
use pages::Wish;
use root::{Root, SetupError};

#[derive(Debug, Parser)]
#[command(version, about = "Gives hugepages and NVMe devices to user space, and takes them back")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Answers JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Where /sys, /proc and /var are, for tests.
    #[arg(long, global = true, default_value = "/", hide = true)]
    root: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows what apply would write, and what it refuses.
    Plan(Wishes),
    /// Does it, with --yes; shows it else.
    Apply {
        #[command(flatten)]
        wishes: Wishes,
        /// Really writes.
        #[arg(long)]
        yes: bool,
    },
    /// Puts back what apply wrote, with --yes; shows it else.
    Undo {
        /// Really writes.
        #[arg(long)]
        yes: bool,
    },
    /// Shows hugepages, limits, IOMMU groups and NVMe devices.
    Status,
}

#[derive(Debug, Args)]
struct Wishes {
    /// Hugepages: [NODE:]SIZE=COUNT, as in 2M=512 (on every NUMA node) or 0:1G=4.
    #[arg(long, value_name = "PAGES")]
    hugepages: Vec<Wish>,
    /// A device for vfio-pci: a PCI address (0000:5e:00.0), serial:SERIAL, or class:nvme (all that are not in use).
    #[arg(long, value_name = "DEVICE")]
    bind: Vec<Selector>,
    /// A device for the kernel's own driver again, named likewise.
    #[arg(long, value_name = "DEVICE")]
    unbind: Vec<Selector>,
}

/// What is to be done, what is refused, and what else is to be known.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) refused: Vec<String>,
    pub(crate) advice: Vec<String>,
    done: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(fine) => ExitCode::from(u8::from(!fine)),
        Err(error) => {
            say_error(&error);
            ExitCode::from(2)
        }
    }
}

/// Returns whether nothing was refused.
fn run(cli: &Cli) -> Result<bool, SetupError> {
    let root = Root::new(&cli.root);
    match &cli.command {
        Command::Status => {
            let status = status::read(&root);
            say(cli.json, &status, || status.text());
            Ok(true)
        }
        Command::Plan(wishes) => {
            let plan = plan(&root, wishes)?;
            say(cli.json, &plan, || plan.text());
            Ok(plan.refused.is_empty())
        }
        Command::Apply { wishes, yes } => {
            let mut plan = plan(&root, wishes)?;
            // All or nothing: a refusal is an answer, not something to work around.
            if *yes && plan.refused.is_empty() {
                Record::apply(&root, &plan.steps)?;
                plan.done = true;
            }
            say(cli.json, &plan, || plan.text());
            Ok(plan.refused.is_empty())
        }
        Command::Undo { yes } => {
            let record = Record::read(&root)?;
            let mut plan = Plan { steps: record.undo_steps(&root), ..Plan::default() };
            if *yes {
                record.undo(&root)?;
                plan.done = true;
            }
            say(cli.json, &plan, || plan.text());
            Ok(true)
        }
    }
}

fn plan(root: &Root, wishes: &Wishes) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    for wish in &wishes.hugepages {
        pages::plan(root, wish, &mut plan)?;
    }
    if !wishes.bind.is_empty() {
        device::plan_bind(root, &wishes.bind, &mut plan)?;
    }
    if !wishes.unbind.is_empty() {
        device::plan_unbind(root, &wishes.unbind, &mut plan)?;
    }
    plan.advice = status::advice(root);
    Ok(plan)
}

impl Plan {
    fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            text += &format!("{} {step}\n", if self.done { "done:" } else { "would" });
        }
        for refused in &self.refused {
            text += &format!("refused: {refused}\n");
        }
        for advice in &self.advice {
            text += &format!("advice: {advice}\n");
        }
        if self.steps.is_empty() && self.refused.is_empty() {
            text += "nothing to do\n";
        } else if !self.done {
            text += "nothing was written; apply --yes or undo --yes does it\n";
        }
        text
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program answers")]
fn say(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) {
    if json {
        println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
    } else {
        print!("{}", text());
    }
}

fn say_error(error: &SetupError) {
    use std::io::Write as _;
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    // Where nobody reads it, nobody misses it.
    writeln!(std::io::stderr(), "penstock-hugepage-setup: {error}{source}").ok();
}
