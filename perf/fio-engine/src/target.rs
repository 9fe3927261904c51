//! What a file name of fio's means.
//!
//! ```text
//! null | malloc[:SIZE] | file:PATH | nvme-tcp://HOST:PORT/NQN | iscsi://HOST:PORT/IQN/LUN     as penstock-perf has them,
//! ...?OPTION[=VALUE]&OPTION...                                                  and options, named as penstock-perf's
//! ```
//!
//! fio takes `:` for the end of a file name: in a job file and on the command line it is written `\:`.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context as _, bail, ensure};
use clap::Parser as _;
use penstock_bdev::{Descriptor, Op};
use penstock_perf::args::Args;
use penstock_perf::target::Target;

/// Options without a value, as penstock-perf's command line has them.
const SWITCHES: &[&str] = &["hdgst", "ddgst", "sq_flow_control", "concat"];
/// Options with one.
const VALUES: &[&str] =
    &["hostnqn", "dhchap_key", "dhchap_ctrlr_key", "dhchap_digests", "dhchap_dhgroups", "psk", "queues"];

/// A file name, taken apart.
#[derive(Debug)]
pub(crate) struct Name {
    /// What penstock-perf is to open.
    pub(crate) args: Args,
    /// Writes are on the medium when they end.
    pub(crate) fua: bool,
}

impl Name {
    /// Takes a file name apart.
    ///
    /// # Errors
    /// A sentence that names the option that is unknown or wrong.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let (place, options) = text.split_once('?').unwrap_or((text, ""));
        let (mut place, mut fua) = (place.to_owned(), false);
        let mut line = Vec::new();
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) =
                option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
            let flag = format!("--{}", name.replace('_', "-"));
            match (name, value) {
                ("nsid", Some(value)) => place = format!("{place}?nsid={value}"),
                ("fua", None | Some("1")) => fua = true,
                ("fua", Some("0")) => {}
                (name, None | Some("1")) if SWITCHES.contains(&name) => line.push(flag),
                (name, Some("0")) if SWITCHES.contains(&name) => {}
                (name, Some(value)) if VALUES.contains(&name) => line.push(format!("{flag}={value}")),
                _ => bail!(
                    "{option} is no option: there are nsid=N, fua, {}, and with a value {}",
                    SWITCHES.join(", "),
                    VALUES.join(", ")
                ),
            }
        }
        ensure!(!place.is_empty(), "the file name is empty: it is a target, as nvme-tcp\\://HOST\\:PORT/NQN");
        let line = ["fio".to_owned(), place].into_iter().chain(line);
        let args = Args::try_parse_from(line).map_err(|error| {
            anyhow::anyhow!("{}", error.to_string().lines().next().unwrap_or_default().to_owned())
        })?;
        Ok(Self { args, fua })
    }

    /// Opens the target. Bdevs of this process are opened once and shared by all jobs that name them alike.
    ///
    /// # Errors
    /// As [`Target::open`].
    pub(crate) fn open(&self) -> anyhow::Result<Target> {
        /// Bdevs by process (a job may be a fork of the one before) and name.
        static BDEVS: Mutex<BTreeMap<(u32, String), Descriptor>> = Mutex::new(BTreeMap::new());
        let name = &self.args.target;
        if name.contains("://") {
            return Target::open(&self.args, &[]);
        }
        let mut bdevs = BDEVS.lock().ok().context("another job panicked")?;
        let key = (std::process::id(), name.clone());
        if let Some(descriptor) = bdevs.get(&key) {
            return Ok(Target::Bdev(descriptor.clone()));
        }
        let target = Target::open(&self.args, &[])?;
        if let Target::Bdev(descriptor) = &target {
            bdevs.insert(key, descriptor.clone());
        }
        Ok(target)
    }
}

/// Whether a target does `op`.
pub(crate) fn does(target: &Target, op: Op) -> bool {
    match target {
        Target::Bdev(descriptor) => descriptor.shared().caps().supports(op),
        Target::Pcie(pcie) => pcie.descriptor().shared().caps().supports(op),
        Target::Remote(_) => matches!(op, Op::Read | Op::Write | Op::Flush | Op::Unmap),
        Target::Iscsi(_) => matches!(op, Op::Read | Op::Write),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_file_name_are_those_of_the_command_line() {
        let text = "nvme-tcp://127.0.0.1:4420/nqn.2026-11.io.penstock:a?nsid=3&hdgst&ddgst=1&queues=2&fua&sq_flow_control=0";
        let name = Name::parse(text).unwrap();
        assert_eq!(name.args.target, "nvme-tcp://127.0.0.1:4420/nqn.2026-11.io.penstock:a?nsid=3");
        assert!(name.args.hdgst && name.args.ddgst && !name.args.sq_flow_control && name.fua);
        assert_eq!(name.args.queues, 2);
        let plain = Name::parse("malloc:64M").unwrap();
        assert!(plain.args.target == "malloc:64M" && !plain.fua && !plain.args.hdgst);
    }

    #[test]
    fn unknown_and_wrong_options_are_refused_by_name() {
        for (text, word) in [("null?speed=9", "speed=9"), ("null?hdgst=2", "hdgst=2"), ("null?nsid", "nsid")]
        {
            let error = Name::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(Name::parse("null?queues=0").is_err() && Name::parse("").is_err());
    }

    #[test]
    fn a_bdev_of_this_process_is_the_same_for_all_who_name_it() {
        let shared = |text: &str| match Name::parse(text).unwrap().open().unwrap() {
            Target::Bdev(descriptor) => std::sync::Arc::as_ptr(descriptor.shared()),
            _ => unreachable!("a malloc bdev is a bdev"),
        };
        assert_eq!(shared("malloc:8M"), shared("malloc:8M"));
        assert_ne!(shared("malloc:8M"), shared("malloc:16M"));
    }
}
