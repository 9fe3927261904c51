//! A Linux guest that a test drives: booted in a few seconds by QEMU's software emulation, it runs the scripts that the
//! test sends it, while the test acts on the host in between. The host's 127.0.0.1 is the guest's [`HOST`].

mod cpio;
mod disk;
mod image;
mod machine;
mod migration;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths::Scratch;
use crate::process::{Process, Signal};

pub use machine::Machine;

/// The address under which a guest reaches the host's 127.0.0.1.
pub const HOST: &str = "10.0.2.2";

/// How long a script may take where the test does not say.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);

const LIBRARY: &str = include_str!("guest/lib.sh");

/// A kernel that `cargo xtask deps` has fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// Debian 12's.
    Linux6_1,
    /// Debian 13's.
    Linux6_12,
}

impl Kernel {
    /// The series, as the directory of kernels names it.
    pub fn series(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
        }
    }
}

/// What a script printed and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code.
    pub code: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

/// A script that runs in the guest while the test does something else.
#[derive(Debug)]
#[must_use = "wait for it"]
pub struct Job(String);

/// A running guest. It ends with the value.
#[derive(Debug)]
pub struct Guest {
    channel: BufReader<UnixStream>,
    qemu: Process,
    scratch: Scratch,
    next_id: u32,
    /// How often it was moved to another QEMU.
    moves: u32,
}

impl Guest {
    /// Boots an ordinary guest ([`Machine`] makes others) and waits until it takes scripts. `forwards` are pairs of a port
    /// on the host's 127.0.0.1 and the guest's port that it leads to.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn boot(kernel: Kernel, forwards: &[(u16, u16)]) -> Result<Self> {
        forwards.iter().fold(Machine::new(kernel), |machine, pair| machine.forward(*pair)).boot()
    }

    /// Runs `script` and returns how it ended.
    ///
    /// # Errors
    /// Where the guest does not answer within `limit`: it is lost then.
    pub fn try_run(&mut self, script: &str, limit: Duration) -> Result<Output> {
        self.next_id += 1;
        let id = self.next_id.to_string();
        let line = format!("{id} {}\n", base64(format!("{LIBRARY}\n{script}").as_bytes()));
        self.channel.get_mut().write_all(line.as_bytes())?;
        let head =
            self.line(limit).with_context(|| format!("the guest did not end this script:\n{script}"))?;
        let [said_id, code, length] = *head.split(' ').collect::<Vec<_>>() else {
            bail!("the guest said `{head}`")
        };
        if said_id != id {
            bail!("the guest answered script {said_id} instead of {id}");
        }
        let mut bytes = vec![0; length.parse()?];
        self.channel.read_exact(&mut bytes)?;
        Ok(Output { code: code.parse()?, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// Runs `script`, whose first failing command ends it, and returns what it printed.
    ///
    /// # Errors
    /// Where it fails, with what it and the guest's kernel said; or does not end within a minute.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.run_for(SCRIPT_LIMIT, script)
    }

    /// [`Guest::run`] with a limit of its own.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn run_for(&mut self, limit: Duration, script: &str) -> Result<String> {
        let output = self.try_run(&format!("set -e\n{script}"), limit)?;
        self.checked(output, script)
    }

    /// Starts `script`, whose first failing command ends it, and does not wait for its end.
    ///
    /// # Errors
    /// Where the guest does not take it.
    pub fn start(&mut self, script: &str) -> Result<Job> {
        let name = format!("/run/jobs/{}", self.next_id + 1);
        let body = base64(format!("{LIBRARY}\nset -e\n{script}").as_bytes());
        self.run(&format!(
            "echo {body} | base64 -d >{name}.sh\n\
             (sh {name}.sh >{name}.out 2>&1; echo $? >{name}.new; mv {name}.new {name}.code) >/dev/null 2>&1 &"
        ))?;
        Ok(Job(name))
    }

    /// Whether `job` still runs.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn is_running(&mut self, job: &Job) -> Result<bool> {
        Ok(self.try_run(&format!("test -e {}.code", job.0), SCRIPT_LIMIT)?.code != 0)
    }

    /// Waits for `job`'s end and returns what it printed.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn finish(&mut self, job: Job, limit: Duration) -> Result<String> {
        let name = &job.0;
        let script = format!("eventually {} test -e {name}.code || true; cat {name}.out", limit.as_secs());
        let text = self.try_run(&script, limit + SCRIPT_LIMIT)?.text;
        let code = self.try_run(&format!("cat {name}.code"), SCRIPT_LIMIT)?.text;
        let Ok(code) = code.trim().parse() else {
            let log = self.kernel_log()?;
            bail!("the job did not end within {limit:?}:\n{text}\nkernel log:\n{log}");
        };
        self.checked(Output { code, text }, "a background job")
    }

    /// Stops the guest's processors (as `kill -STOP` does the whole machine) or lets them go on.
    ///
    /// # Errors
    /// Where QEMU has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.qemu.signal(signal)
    }

    /// The last lines of the guest's kernel log.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn kernel_log(&mut self) -> Result<String> {
        Ok(self.try_run("dmesg | tail -n 40", SCRIPT_LIMIT)?.text)
    }

    fn checked(&mut self, output: Output, script: &str) -> Result<String> {
        if output.code == 0 {
            return Ok(output.text);
        }
        let log = self.kernel_log().unwrap_or_default();
        bail!(
            "exit code {} in the guest from:\n{script}\nwhich said:\n{}\nkernel log:\n{log}",
            output.code,
            output.text
        )
    }

    /// One line from the guest.
    fn line(&mut self, limit: Duration) -> Result<String> {
        self.channel.get_ref().set_read_timeout(Some(limit))?;
        let mut line = String::new();
        match self.channel.read_line(&mut line) {
            Ok(1..) => Ok(line.trim_end().to_owned()),
            Ok(0) => bail!("the guest is gone; its console ended with:\n{}", self.console_tail()),
            Err(error) => Err(error)
                .with_context(|| format!("no answer; the console ended with:\n{}", self.console_tail())),
        }
    }

    fn console_tail(&self) -> String {
        let text = std::fs::read(self.scratch.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        for (place, byte) in group.iter_mut().skip(1).zip(chunk) {
            *place = *byte;
        }
        let group = u32::from_be_bytes(group);
        for place in 0..4 {
            let digit = DIGITS.get(((group >> (18 - 6 * place)) & 63) as usize).copied().unwrap_or_default();
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_what_three_does_not_divide() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
