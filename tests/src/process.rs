//! Child processes that never outlive the test that started them.

use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{paths, wait};

/// A signal, by the name that `kill` knows it by.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// Ends the process at once; it cannot catch it.
    Kill,
    /// Asks the process to end.
    Term,
    /// Stops the process where it is.
    Stop,
    /// Lets a stopped process go on.
    Cont,
}

/// A running child, killed when the value goes, and by the kernel should the thread that started it end first.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// A command for [`Process::start`]: `program`, tied to the life of the calling thread.
    ///
    /// # Errors
    /// Where `setpriv`, which ties it, is not installed.
    pub fn command(program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(paths::tool("setpriv")?);
        command.args(["--pdeathsig", "KILL"]).arg(program).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts a command made by [`Process::command`]; `name` says in errors which it is.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(mut command: Command, name: &str) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// Where the kernel will not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// Where the process is gone already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running()? {
            bail!("{} has ended already: {:?}", self.name, self.child.try_wait()?);
        }
        let name = format!("{signal:?}").to_uppercase();
        let status =
            Command::new(paths::tool("kill")?).args(["-s", &name, &self.pid().to_string()]).status()?;
        if !status.success() {
            bail!("cannot send {name} to {}: {status}", self.name);
        }
        Ok(())
    }

    /// Waits for its end, at most `limit`, and returns its exit code; none where a signal ended it.
    ///
    /// # Errors
    /// Where it has not ended by then.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        let end = wait::until(limit, || Ok(self.child.try_wait()?))
            .with_context(|| format!("{} did not end", self.name))?;
        Ok(end.code())
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// The processor time it has used.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        /// The unit of these two fields of /proc/PID/stat (USER_HZ) on every machine that Linux runs on today.
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no `) ` in /proc/PID/stat")?;
        let times: Vec<u32> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(TICK * times.iter().sum())
    }

    /// How many file descriptors it has open.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// How long `work` took, with what it returned.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed())
}
