//! The daemon under test, with a control socket, ports and files of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::paths::{self, Scratch};
use crate::process::{Process, Signal};
use crate::{rpc, wait};

/// From start to the first answer on the control socket.
const START_LIMIT: Duration = Duration::from_secs(20);

/// From SIGTERM to the end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// `penstockd`, killed with the value. Its directory outlives restarts, and what was configured with it.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    reactors: u32,
    scratch: Scratch,
}

impl Daemon {
    /// Starts the daemon with nothing configured, and waits until its control socket answers.
    ///
    /// # Errors
    /// Where it is not built, or does not come up: with the end of its log.
    pub fn start(reactors: u32) -> Result<Self> {
        let scratch = Scratch::new()?;
        let process = spawn(&scratch, reactors)?;
        let mut daemon = Self { process, reactors, scratch };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// Starts it again, on the same directory, after [`Daemon::kill`] or [`Daemon::stop`].
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.scratch, self.reactors)?;
        self.wait_until_ready()
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Asks it to end, and waits until it has, with exit code 0.
    ///
    /// # Errors
    /// Where it does not, or not cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::Term)?;
        let code = self.process.wait(STOP_LIMIT).with_context(|| self.log_tail())?;
        ensure!(code == Some(0), "SIGTERM ended the daemon with {code:?}\n{}", self.log_tail());
        Ok(())
    }

    /// Calls a method on the control socket.
    ///
    /// # Errors
    /// As [`rpc::call`], with the end of the daemon's log.
    #[expect(clippy::needless_pass_by_value, reason = "callers write json!({..}) in place")]
    pub fn call(&self, method: &str, params: Value) -> Result<Value> {
        rpc::call(&self.socket(), method, &params).with_context(|| self.log_tail())
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("penstock.sock")
    }

    /// The directory that lasts as long as this value.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let ready = wait::until(START_LIMIT, || {
            ensure!(self.process.is_running()?, "the daemon ended at once");
            Ok(rpc::call(&self.socket(), "spdk_get_version", &json!(null)).ok())
        });
        ready.with_context(|| format!("the daemon did not come up\n{}", self.log_tail()))?;
        let mode = std::fs::metadata(self.socket())?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "the control socket has mode {mode:o}, not 600");
        Ok(())
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read(self.scratch.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
        format!("the daemon's log ended with:\n{}", tail.join("\n"))
    }
}

fn spawn(scratch: &Scratch, reactors: u32) -> Result<Process> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(scratch.join("log"))?;
    let mut command = Process::command(paths::program("penstockd")?)?;
    command.arg("--socket").arg(scratch.join("penstock.sock"));
    command.arg("--state").arg(scratch.join("state.json"));
    command.args(["--reactors", &reactors.to_string()]);
    command.current_dir(scratch.path()).stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
    Process::start(command, "penstockd")
}
