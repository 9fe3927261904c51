//! Moving a guest, live, from one QEMU to another on this machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::image::Image;
use super::{Guest, Machine};
use crate::process::Process;
use crate::wait;

/// For a new QEMU to open its sockets.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// For a guest of half a GiB that writes all the while.
const MOVE_LIMIT: Duration = Duration::from_secs(120);

/// QEMU's control socket.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn open(path: &Path) -> Result<Self> {
        let stream = wait::until(OPEN_LIMIT, || Ok(UnixStream::connect(path).ok()))?;
        stream.set_read_timeout(Some(OPEN_LIMIT))?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.line()?;
        monitor.call("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            bail!("QEMU has closed its control socket");
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        self.0.get_mut().write_all(format!("{text}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if answer.get("event").is_some() {
                continue;
            }
            return match answer.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => bail!("{command} was refused: {answer}"),
            };
        }
    }
}

/// Where a guest's control socket is.
fn monitor_path(guest: &Guest, number: u32) -> PathBuf {
    guest.scratch.join(&format!("qmp{number}"))
}

impl Guest {
    /// Moves the guest to another QEMU, which is made as `machine` says: as the one that it runs in was. What it does goes on.
    ///
    /// # Errors
    /// Where it does not arrive: QEMU says why.
    pub fn migrate(&mut self, machine: &Machine) -> Result<()> {
        self.moves += 1;
        let (from, to) = (monitor_path(self, self.moves - 1), monitor_path(self, self.moves));
        let socket = self.scratch.join(&format!("channel{}", self.moves));
        let stream = self.scratch.join(&format!("stream{}", self.moves));
        let listener = UnixListener::bind(&socket)?;
        let image = Image::of(machine.kernel, &machine.extras)?;
        let mut command = machine.command(&image, &self.scratch, &socket)?;
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", to.display()));
        command.arg("-incoming").arg(format!("unix:{}", stream.display()));
        let new = Process::start(command, "qemu-system-x86_64")?;
        let channel = listener.accept().context("the new QEMU does not open its channel")?.0;
        Monitor::open(&to).context("the new QEMU does not come up")?;
        let mut old = Monitor::open(&from)?;
        let no_limit = json!({"max-bandwidth": 4_u64 << 30, "downtime-limit": 2000});
        old.call("migrate-set-parameters", &no_limit)?;
        old.call("migrate", &json!({"uri": format!("unix:{}", stream.display())}))?;
        wait::until(MOVE_LIMIT, || {
            let now = old.call("query-migrate", &json!({}))?;
            match now.get("status").and_then(Value::as_str) {
                Some("completed") => Ok(Some(())),
                Some("failed" | "cancelled") => bail!("the guest was not moved: {now}"),
                _ => Ok(None),
            }
        })?;
        self.qemu = new;
        self.channel = BufReader::new(channel);
        Ok(())
    }
}

impl Machine {
    /// Makes it one that [`Guest::migrate`] can move away: QEMU gets a control socket.
    #[must_use]
    pub fn movable(mut self) -> Self {
        self.movable = true;
        self
    }
}

/// The argument that gives a movable machine its control socket.
pub(super) fn monitor_argument(scratch: &crate::paths::Scratch) -> String {
    format!("unix:{},server=on,wait=off", scratch.join("qmp0").display())
}
