//! What `penstockd` takes on its command line and in its configuration file, and what follows from both.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use penstock_reactor::mem::{Hugepages, MemConfig};
use penstock_reactor::{PollMode, mem};
use serde::Deserialize;

use crate::daemon::DaemonError;
use crate::daemon::logging::Level;

/// Reactors of one daemon at most.
pub const REACTORS_MAX: u32 = 256;

/// The daemon of a Penstock node. Flags win over the configuration file.
#[derive(Debug, Parser)]
#[command(name = "penstockd", version)]
pub struct Args {
    /// Read this configuration file: TOML, or JSON as SPDK's save_config writes it
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Wait for framework_start_init on the control socket before restoring anything
    #[arg(long)]
    pub wait_for_rpc: bool,
}

/// What a reactor does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Poll {
    /// Poll for a while, then sleep until something comes.
    Adaptive,
    /// Poll for ever.
    Busy,
}

/// Whether to use hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Huge {
    /// Where some are reserved.
    Auto,
    /// Or do not start.
    Require,
    /// Never.
    Never,
}

/// The settings that flags and the configuration file's section `[daemon]` share.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Number of reactors (default: as many as --cores names; else 2, or 1 on a machine with one core)
    #[arg(long, value_name = "N")]
    pub(crate) reactors: Option<u32>,
    /// Pin one reactor to each of these cores, like 0-3,8
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<String>,
    /// What an idle reactor does (default: adaptive)
    #[arg(long, value_enum)]
    pub(crate) poll: Option<Poll>,
    /// How long an adaptive reactor polls in vain before it sleeps, in microseconds (default: 1000)
    #[arg(long, value_name = "US")]
    pub(crate) spin_us: Option<u64>,
    /// Memory for data at start, like 64M (default: 64M)
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Memory for data at most, like 1G (default: 1G)
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_max: Option<String>,
    /// Whether memory for data comes from hugepages (default: auto)
    #[arg(long, value_enum)]
    pub(crate) hugepages: Option<Huge>,
    /// The control socket (default: /run/penstock.sock for root, else penstock.sock in $XDG_RUNTIME_DIR or /tmp)
    #[arg(long, short, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The directory of the vhost-user sockets (default: where the control socket is)
    #[arg(long, value_name = "DIR")]
    pub(crate) vhost_dir: Option<PathBuf>,
    /// Keep the live configuration in this file: restored at start, written after every change
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Serve Prometheus metrics over HTTP on this address, like 127.0.0.1:9440
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,
    /// What goes to standard error (default: notice)
    #[arg(long, value_enum, value_name = "LEVEL", ignore_case = true)]
    pub(crate) print_level: Option<Level>,
    /// What goes to the log: --log-file, and what log_get_records shows (default: info)
    #[arg(long, value_enum, value_name = "LEVEL", ignore_case = true)]
    pub(crate) log_level: Option<Level>,
    /// Append the log to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
}

impl Settings {
    /// These settings, and `others` where these say nothing.
    pub(crate) fn or(self, others: Self) -> Self {
        Self {
            reactors: self.reactors.or(others.reactors),
            cores: self.cores.or(others.cores),
            poll: self.poll.or(others.poll),
            spin_us: self.spin_us.or(others.spin_us),
            memory: self.memory.or(others.memory),
            memory_max: self.memory_max.or(others.memory_max),
            hugepages: self.hugepages.or(others.hugepages),
            socket: self.socket.or(others.socket),
            vhost_dir: self.vhost_dir.or(others.vhost_dir),
            state: self.state.or(others.state),
            metrics: self.metrics.or(others.metrics),
            print_level: self.print_level.or(others.print_level),
            log_level: self.log_level.or(others.log_level),
            log_file: self.log_file.or(others.log_file),
        }
    }

    /// The core of each reactor; `None` leaves it to the scheduler.
    pub(crate) fn reactor_cores(&self) -> Result<Vec<Option<u32>>, DaemonError> {
        let cores = self.cores.as_deref().map(core_list).transpose()?;
        let count = match (&cores, self.reactors) {
            (Some(cores), Some(count)) if u32::try_from(cores.len()) != Ok(count) => {
                let problem =
                    format!("names {} cores, but --reactors is {count}; leave one out", cores.len());
                return Err(DaemonError::Option { option: "--cores", problem });
            }
            (Some(cores), _) => return Ok(cores.iter().copied().map(Some).collect()),
            (None, Some(count)) => count,
            (None, None) => match std::thread::available_parallelism() {
                Ok(cores) if cores.get() > 1 => 2,
                _ => 1,
            },
        };
        if count == 0 || count > REACTORS_MAX {
            let problem = format!("is {count}; it must be 1 to {REACTORS_MAX}");
            return Err(DaemonError::Option { option: "--reactors", problem });
        }
        Ok((0..count).map(|_| None).collect())
    }

    /// How the reactors poll.
    pub(crate) fn poll_mode(&self) -> Result<PollMode, DaemonError> {
        match (self.poll, self.spin_us) {
            (Some(Poll::Busy), None) => Ok(PollMode::Busy),
            (Some(Poll::Busy), Some(_)) => {
                let problem = "has no meaning with --poll busy; leave it out".to_owned();
                Err(DaemonError::Option { option: "--spin-us", problem })
            }
            (_, None) => Ok(PollMode::ADAPTIVE),
            (_, Some(us)) => Ok(PollMode::Adaptive { spin_ns: us.saturating_mul(1000) }),
        }
    }

    /// How much memory for data.
    pub(crate) fn mem_config(&self) -> Result<MemConfig, DaemonError> {
        let mut config = MemConfig::default();
        if let Some(text) = &self.memory {
            config.initial_bytes = size("--memory", text)?;
            config.max_bytes = config.max_bytes.max(config.initial_bytes);
        }
        if let Some(text) = &self.memory_max {
            config.max_bytes = size("--memory-max", text)?;
        }
        if config.max_bytes < config.initial_bytes || config.max_bytes < mem::ARENA_BYTES {
            let least = config.initial_bytes.max(mem::ARENA_BYTES);
            let problem = format!("is {} bytes; it must be at least {least}", config.max_bytes);
            return Err(DaemonError::Option { option: "--memory-max", problem });
        }
        config.hugepages = match self.hugepages {
            None | Some(Huge::Auto) => Hugepages::Auto,
            Some(Huge::Require) => Hugepages::Require,
            Some(Huge::Never) => Hugepages::Never,
        };
        Ok(config)
    }

    /// Where the control socket is.
    pub(crate) fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(default_socket)
    }

    /// Where the vhost-user sockets are.
    pub(crate) fn vhost_dir(&self) -> PathBuf {
        let beside = || self.socket_path().parent().map(PathBuf::from).unwrap_or_default();
        self.vhost_dir.clone().unwrap_or_else(beside)
    }
}

/// Where the control socket is unless it is said.
#[must_use]
pub fn default_socket() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/penstock.sock");
    }
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    dir.join("penstock.sock")
}

/// Cores like `0-3,8`.
fn core_list(text: &str) -> Result<Vec<u32>, DaemonError> {
    let bad = |part: &str, why: &str| {
        let problem = format!("{part:?} {why}; write numbers and ranges like 0-3,8");
        DaemonError::Option { option: "--cores", problem }
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad(part, "is no core"));
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if last < first || last - first >= REACTORS_MAX {
            return Err(bad(part, "is no range of cores"));
        }
        for core in first..=last {
            if cores.contains(&core) {
                return Err(bad(part, "names a core twice"));
            }
            cores.push(core);
        }
    }
    if cores.len() > REACTORS_MAX as usize {
        return Err(bad(text, "names more cores than there may be reactors"));
    }
    Ok(cores)
}

/// Bytes from `64M`, `1G`, `1GiB`, `4096`.
///
/// # Errors
/// The option's name with what is wrong.
pub fn size(option: &'static str, text: &str) -> Result<usize, DaemonError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase();
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => Some(0),
        "k" => Some(10),
        "m" => Some(20),
        "g" => Some(30),
        "t" => Some(40),
        _ => None,
    };
    let number = digits.trim().parse::<usize>().ok();
    let bytes = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| {
        let problem = format!("{text:?} is no size; write a whole number with K, M, G or T, like 64M");
        DaemonError::Option { option, problem }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(words: &[&str]) -> Settings {
        Args::parse_from(["penstockd"].iter().chain(words)).settings
    }

    #[test]
    fn cores_are_read_as_numbers_and_ranges() {
        let cores = settings(&["--cores", "0-2,5"]).reactor_cores().unwrap();
        assert_eq!(cores, [Some(0), Some(1), Some(2), Some(5)]);
        for bad in ["", "a", "3-1", "1,1", "0-999"] {
            let error = settings(&["--cores", bad]).reactor_cores().unwrap_err().to_string();
            assert!(error.starts_with("--cores: "), "{error}");
        }
        assert!(settings(&["--cores", "0,1", "--reactors", "3"]).reactor_cores().is_err());
        assert_eq!(settings(&["--reactors", "3"]).reactor_cores().unwrap(), [None, None, None]);
        assert!(settings(&["--reactors", "0"]).reactor_cores().is_err());
    }

    #[test]
    fn sizes_have_units_and_wrong_ones_name_the_option() {
        assert_eq!(size("--memory", "64M").unwrap(), 64 << 20);
        assert_eq!(size("--memory", "1GiB").unwrap(), 1 << 30);
        assert_eq!(size("--memory", "4096").unwrap(), 4096);
        for bad in ["", "M", "1X", "1.5G", "99999999999T"] {
            assert!(size("--memory", bad).unwrap_err().to_string().starts_with("--memory: "), "{bad}");
        }
        let less = settings(&["--memory", "128M", "--memory-max", "64M"]).mem_config().unwrap_err();
        assert!(less.to_string().contains("at least 134217728"), "{less}");
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = Settings { reactors: Some(4), spin_us: Some(5), ..Settings::default() };
        let both = settings(&["--reactors", "2"]).or(file);
        assert_eq!((both.reactors, both.spin_us), (Some(2), Some(5)));
        assert_eq!(both.poll_mode().unwrap(), PollMode::Adaptive { spin_ns: 5000 });
    }
}
