//! Logs: written by a thread of their own, so that neither a reactor nor the control thread ever waits for a disk or a
//! terminal; what comes faster than it is written is dropped and counted.
//!
//! Two outlets with a level each, as SPDK has them: standard error (`log_set_print_level`) and the log
//! (`log_set_level`): the last records in memory, and `--log-file`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use clap::ValueEnum;
use serde::Deserialize;
use tracing::Metadata;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::SubscriberExt;

use crate::daemon::DaemonError;

/// Records kept in memory.
pub const RECORDS_MAX: usize = 1024;
/// Records that wait to be written; more are dropped.
const WAITING_MAX: usize = 8192;
/// Bytes of one kept record at most.
const RECORD_BYTES_MAX: usize = 4096;

/// Between the log's thread and the control thread; no reactor takes it.
type Records = Arc<std::sync::Mutex<VecDeque<String>>>;

/// SPDK's levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "lowercase")]
#[repr(u8)]
pub enum Level {
    /// What failed.
    #[serde(alias = "error")]
    Error = 1,
    /// What may be wrong.
    #[serde(alias = "warning")]
    Warning = 2,
    /// What an operator wants to know.
    #[serde(alias = "notice")]
    Notice = 3,
    /// As `Notice`: our records have no level between.
    #[serde(alias = "info")]
    Info = 4,
    /// What a developer wants to know.
    #[serde(alias = "debug")]
    Debug = 5,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warning, Self::Notice, Self::Info, Self::Debug];

    /// SPDK's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
        }
    }

    /// Whether records of `level` are let through.
    fn lets(self, level: tracing::Level) -> bool {
        let most = match self {
            Self::Error => tracing::Level::ERROR,
            Self::Warning => tracing::Level::WARN,
            Self::Notice | Self::Info => tracing::Level::INFO,
            Self::Debug => tracing::Level::DEBUG,
        };
        level <= most
    }
}

/// Parts of the daemon whose debug records can be switched on by themselves: name and crate.
pub const FLAGS: [(&str, &str); 5] = [
    ("bdev", "penstock_bdev"),
    ("nvmf", "penstock_nvmf"),
    ("reactor", "penstock_reactor"),
    ("rpc", "penstock_ctl::rpc"),
    ("ctl", "penstock_ctl"),
];

#[derive(Debug)]
struct Levels {
    print: AtomicU8,
    log: AtomicU8,
    flags: AtomicU32,
}

impl Levels {
    fn lets(&self, outlet: &AtomicU8, metadata: &Metadata<'_>) -> bool {
        level_of(outlet).lets(*metadata.level()) || self.flag_lets(metadata)
    }

    fn flag_lets(&self, metadata: &Metadata<'_>) -> bool {
        let set = self.flags.load(Ordering::Relaxed);
        let mut flags = FLAGS.iter().enumerate();
        set != 0
            && flags.any(|(bit, (_, target))| set & (1 << bit) != 0 && metadata.target().starts_with(target))
    }
}

fn level_of(outlet: &AtomicU8) -> Level {
    let code = outlet.load(Ordering::Relaxed);
    Level::ALL.into_iter().find(|level| *level as u8 == code).unwrap_or(Level::Notice)
}

/// The logs' switches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    levels: Arc<Levels>,
    records: Records,
    dropped: Vec<ErrorCounter>,
}

/// Writes out what waits when it is dropped.
#[derive(Debug)]
pub struct LogGuard {
    _outlets: Vec<WorkerGuard>,
}

impl Log {
    /// Switches of logs that nobody writes: for tests.
    #[must_use]
    pub fn detached() -> Self {
        Self {
            levels: Arc::new(levels(Level::Notice, Level::Info)),
            records: Records::default(),
            dropped: Vec::new(),
        }
    }

    /// Starts logging for the whole process.
    ///
    /// # Errors
    /// Where the log file cannot be opened.
    pub fn start(print: Level, log: Level, file: Option<&Path>) -> Result<(Self, LogGuard), DaemonError> {
        let levels = Arc::new(levels(print, log));
        let records = Records::default();
        let file = file.map(open).transpose()?;
        let keeper = Keeper { records: Arc::clone(&records), file };
        let (print_writer, print_guard) = non_blocking(io::stderr());
        let (log_writer, log_guard) = non_blocking(keeper);
        let dropped = vec![print_writer.error_counter(), log_writer.error_counter()];
        let (print_levels, log_levels) = (Arc::clone(&levels), Arc::clone(&levels));
        let terminal = io::IsTerminal::is_terminal(&io::stderr());
        let print_layer =
            tracing_subscriber::fmt::layer().with_writer(print_writer).with_ansi(terminal).with_filter(
                dynamic_filter_fn(move |metadata, _| print_levels.lets(&print_levels.print, metadata)),
            );
        let log_layer = tracing_subscriber::fmt::layer()
            .with_writer(log_writer)
            .with_ansi(false)
            .with_thread_names(true)
            .with_filter(dynamic_filter_fn(move |metadata, _| log_levels.lets(&log_levels.log, metadata)));
        let subscriber = tracing_subscriber::registry().with(print_layer).with(log_layer);
        // Only a test that starts two daemons in one process finds one in place; its records go there.
        drop(tracing::subscriber::set_global_default(subscriber));
        Ok((Self { levels, records, dropped }, LogGuard { _outlets: vec![print_guard, log_guard] }))
    }

    /// What goes to standard error.
    #[must_use]
    pub fn print_level(&self) -> Level {
        level_of(&self.levels.print)
    }

    /// What goes to the log.
    #[must_use]
    pub fn log_level(&self) -> Level {
        level_of(&self.levels.log)
    }

    /// Changes what goes to standard error.
    pub fn set_print_level(&self, level: Level) {
        self.levels.print.store(level as u8, Ordering::Relaxed);
    }

    /// Changes what goes to the log.
    pub fn set_log_level(&self, level: Level) {
        self.levels.log.store(level as u8, Ordering::Relaxed);
    }

    /// Every flag, and whether it is set.
    pub fn flags(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let set = self.levels.flags.load(Ordering::Relaxed);
        FLAGS.iter().enumerate().map(move |(bit, (name, _))| (*name, set & (1 << bit) != 0))
    }

    /// Sets or clears a flag, or `all`; false where there is no such flag.
    #[must_use]
    pub fn set_flag(&self, flag: &str, on: bool) -> bool {
        let named = FLAGS.iter().enumerate().filter(|(_, (name, _))| *name == flag || flag == "all");
        let mask = named.fold(0, |mask, (bit, _)| mask | (1 << bit));
        if on {
            self.levels.flags.fetch_or(mask, Ordering::Relaxed);
        } else {
            self.levels.flags.fetch_and(!mask, Ordering::Relaxed);
        }
        mask != 0
    }

    /// The last records, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<String> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Records that came faster than they could be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.iter().map(|counter| u64::try_from(counter.dropped_lines()).unwrap_or(u64::MAX)).sum()
    }
}

fn levels(print: Level, log: Level) -> Levels {
    Levels { print: AtomicU8::new(print as u8), log: AtomicU8::new(log as u8), flags: AtomicU32::new(0) }
}

fn non_blocking(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(writer)
}

fn open(path: &Path) -> Result<File, DaemonError> {
    File::options().create(true).append(true).open(path).map_err(|source| DaemonError::File {
        what: "open the log file",
        path: path.to_owned(),
        source,
    })
}

/// Keeps the last records, and writes all to the file. Runs on the log's thread.
struct Keeper {
    records: Records,
    file: Option<File>,
}

impl Write for Keeper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes.get(..RECORD_BYTES_MAX).unwrap_or(bytes));
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() == RECORDS_MAX {
            records.pop_front();
        }
        records.push_back(text.trim_end().to_owned());
        drop(records);
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), File::flush)
    }
}
