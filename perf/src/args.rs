//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use penstock_security::dh::DhGroup;
use penstock_security::hash::Hash;

use crate::workload::Pattern;

/// Drives a bdev of this process, or an NVMe/TCP or iSCSI target, as fast as it can, and reports IOPS and latencies.
#[derive(Debug, Clone, Parser)]
#[command(name = "penstock-perf", version, after_help = AFTER_HELP)]
pub struct Args {
    /// What to drive, see below.
    pub target: String,
    /// The load.
    #[arg(long, value_enum, default_value = "randread")]
    pub rw: Pattern,
    /// Reads in a hundred, for mixed loads.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmix: u8,
    /// Bytes of one I/O: 512 to 1M, a multiple of the block size.
    #[arg(long, default_value = "4k", value_parser = parse_bytes)]
    pub bs: u64,
    /// I/Os in flight per worker.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd: u32,
    /// Seconds to measure.
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    pub time: f64,
    /// Seconds to run before measuring.
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    pub warmup: f64,
    /// Cores to use, one worker each: "1", "0-3", "0,2". Without it, one worker that is not pinned.
    #[arg(long, value_parser = parse_cores)]
    pub cores: Option<Cores>,
    /// Milliseconds without I/O after each batch of completions: what does a target that slept answer first?
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Use only so many bytes at the beginning of the device.
    #[arg(long, value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Stop after so many I/Os per worker.
    #[arg(long)]
    pub ios: Option<u64>,
    /// Seed of the load.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write everything once before the warm-up, so that nothing is measured that was never written.
    #[arg(long)]
    pub prefill: bool,
    /// Mark what is written, check what is read, and read everything back at the end.
    #[arg(long)]
    pub verify: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
    /// Header digests (NVMe/TCP).
    #[arg(long)]
    pub hdgst: bool,
    /// Data digests (NVMe/TCP).
    #[arg(long)]
    pub ddgst: bool,
    /// Keep submission queue flow control, so that the target sends a completion for each read (NVMe/TCP).
    #[arg(long)]
    pub sq_flow_control: bool,
    /// NQN of this host (NVMe/TCP). Default: a random one.
    #[arg(long)]
    pub hostnqn: Option<String>,
    /// File with the secret that this host authenticates itself with (NVMe/TCP; DHHC-1:...), mode 0600.
    #[arg(long, value_name = "FILE")]
    pub dhchap_key: Option<PathBuf>,
    /// File with the secret that the controller must authenticate itself with (NVMe/TCP), mode 0600.
    #[arg(long, value_name = "FILE", requires = "dhchap_key")]
    pub dhchap_ctrlr_key: Option<PathBuf>,
    /// Hash functions to offer for that: sha256, sha384, sha512. Default: all.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_hash)]
    pub dhchap_digests: Vec<Hash>,
    /// Diffie-Hellman groups to offer for that: null, ffdhe2048, ..., ffdhe8192. Default: all.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_group)]
    pub dhchap_dhgroups: Vec<DhGroup>,
    /// File with the key that connections are secured by TLS with (NVMe/TCP; NVMeTLSkey-1:...), mode 0600.
    #[arg(long, value_name = "FILE", requires = "hostnqn")]
    pub psk: Option<PathBuf>,
    /// Have the authentication make that key (NVMe/TCP; secure channel concatenation). Done without it where the controller
    /// insists.
    #[arg(long, requires = "dhchap_key", conflicts_with = "psk")]
    pub concat: bool,
    /// I/O queues per worker (NVMe/TCP).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub queues: u16,
}

const AFTER_HELP: &str = "\
TARGETS:
  null                                   a bdev that stores nothing (1 TiB)
  malloc[:SIZE]                          a bdev in memory (default 256M)
  file:PATH                              a file or block device, through io_uring
  pcie:ADDRESS[?nsid=N]                  an NVMe device that vfio-pci has (penstock-hugepage-setup), as in pcie:0000:5e:00.0
  nvme-tcp://HOST:PORT/NQN[?nsid=N]      an NVMe/TCP target, through penstock's own initiator
  iscsi://HOST:PORT/IQN/LUN              an iSCSI target, through penstock's own initiator (no digests, no CHAP)

EXAMPLES:
  penstock-perf null --qd 128 --cores 1
  penstock-perf nvme-tcp://127.0.0.1:4420/nqn.2026-11.io.penstock:vdisk0 --rw randwrite --qd 32 --verify";

/// A list of cores.
pub type Cores = Box<[u32]>;

impl Args {
    /// How long to measure.
    #[must_use]
    pub fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.time)
    }

    /// How long to run before.
    #[must_use]
    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }
}

fn parse_hash(text: &str) -> Result<Hash, String> {
    Hash::from_name(text).ok_or_else(|| format!("{text} is none of sha256, sha384, sha512"))
}

fn parse_group(text: &str) -> Result<DhGroup, String> {
    let names = DhGroup::ALL.map(DhGroup::name).join(", ");
    DhGroup::from_name(text).ok_or_else(|| format!("{text} is none of {names}"))
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is no number of seconds"))?;
    if (0.0..=1e6).contains(&seconds) { Ok(seconds) } else { Err("must be 0 to 1000000 seconds".into()) }
}

/// Bytes with an optional suffix: 512, 4k, 256M, 4G, 1T.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or("").to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        suffix => return Err(format!("unknown suffix {suffix}: use k, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text} is no size"))?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text} is out of range"))
}

fn parse_cores(text: &str) -> Result<Cores, String> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| format!("{text} is no core"));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last > 4095 {
            return Err(format!("{part} is no range of cores"));
        }
        cores.extend(first..=last);
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(cores.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_core_lists_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_bytes("4k"), Ok(4096));
        assert_eq!(parse_bytes("1GiB"), Ok(1 << 30));
        assert!(parse_bytes("0").is_err() && parse_bytes("4x").is_err() && parse_bytes("99999999T").is_err());
        assert_eq!(parse_cores("0-2,5").unwrap().as_ref(), [0, 1, 2, 5]);
        assert!(parse_cores("3-1").is_err() && parse_cores("").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
