//! What a guest is made of, and its boot.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::BufReader;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::image::{Extras, Image};
use super::{Guest, Kernel, migration};
use crate::paths::{self, Scratch};
use crate::process::Process;
use crate::wait;

/// A boot takes 4 to 10 s on a busy machine of two cores; past this it hangs.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// A guest that is not booted yet: two processors, 1 GiB, a network card, and what the test adds.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) kernel: Kernel,
    forwards: Vec<(u16, u16)>,
    machine: String,
    memory_mib: u32,
    kernel_arguments: Vec<String>,
    arguments: Vec<OsString>,
    pub(super) extras: Extras,
    pub(super) movable: bool,
    programs: Vec<(String, PathBuf)>,
    pub(super) from_disk: bool,
}

impl Machine {
    /// An ordinary machine.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            forwards: Vec::new(),
            machine: "q35".to_owned(),
            memory_mib: 1024,
            kernel_arguments: Vec::new(),
            arguments: Vec::new(),
            extras: Extras::default(),
            movable: false,
            programs: Vec::new(),
            from_disk: false,
        }
    }

    /// Leads a port on the host's 127.0.0.1 to a port of the guest.
    #[must_use]
    pub fn forward(mut self, (host, guest): (u16, u16)) -> Self {
        self.forwards.push((host, guest));
        self
    }

    /// QEMU's `-machine`, instead of `q35`.
    #[must_use]
    pub fn machine(mut self, machine: &str) -> Self {
        machine.clone_into(&mut self.machine);
        self
    }

    /// So much memory.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn kernel_argument(mut self, argument: &str) -> Self {
        self.kernel_arguments.push(argument.to_owned());
        self
    }

    /// Adds to QEMU's command line, before all that is put there otherwise (an IOMMU wants to be the first device).
    #[must_use]
    pub fn arguments<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Gives the guest modules of its kernel beside the usual ones; what is built in, or not there, is left out.
    #[must_use]
    pub fn modules(mut self, names: &[&'static str]) -> Self {
        self.extras.modules.extend(names);
        self
    }

    /// Gives the guest installed programs of this machine's beside the usual ones.
    #[must_use]
    pub fn tools(mut self, names: &[&'static str]) -> Self {
        self.extras.tools.extend(names);
        self
    }

    /// Gives the guest files of this machine's, and all files of directories, at the same places; without libraries.
    #[must_use]
    pub fn files(mut self, paths: &[&'static str]) -> Self {
        self.extras.files.extend(paths);
        self
    }

    /// Gives the guest a program of this workspace's, as /usr/bin/`name`.
    ///
    /// # Errors
    /// Where it was not built.
    pub fn program(mut self, name: &str) -> Result<Self> {
        self.programs.push((name.to_owned(), paths::program(name)?));
        Ok(self)
    }

    /// Boots it and waits until it takes scripts.
    ///
    /// # Errors
    /// Where QEMU or a kernel is missing, or the guest does not come up: with the end of what its console said.
    pub fn boot(&self) -> Result<Guest> {
        let mut image = Image::of(self.kernel, &self.extras)?;
        let scratch = Scratch::new()?;
        if !self.programs.is_empty() {
            image = image.with_programs(&self.programs, scratch.join("initrd"))?;
        }
        let socket = scratch.join("channel");
        let listener = UnixListener::bind(&socket)?;
        let mut command = self.command(&image, &scratch, &socket)?;
        if self.movable {
            command.arg("-qmp").arg(migration::monitor_argument(&scratch));
        }
        let mut qemu = Process::start(command, "qemu-system-x86_64")?;
        listener.set_nonblocking(true)?;
        let channel = wait::until(BOOT_LIMIT, || {
            if !qemu.is_running()? {
                bail!("QEMU ended at once; its words are above");
            }
            Ok(listener.accept().ok())
        })?;
        channel.0.set_nonblocking(false)?;
        let mut guest = Guest { channel: BufReader::new(channel.0), qemu, scratch, next_id: 0, moves: 0 };
        let ready = guest.line(BOOT_LIMIT).context("the guest did not boot")?;
        if !ready.starts_with("ready ") {
            bail!("the guest said `{ready}` instead of `ready`");
        }
        Ok(guest)
    }

    pub(super) fn command(&self, image: &Image, scratch: &Scratch, socket: &Path) -> Result<Command> {
        let mut network = "user,id=n0,restrict=off".to_owned();
        for (host, guest) in &self.forwards {
            write!(network, ",hostfwd=tcp:127.0.0.1:{host}-:{guest}")?;
        }
        let mut command = Process::command(paths::tool("qemu-system-x86_64")?)?;
        // KVM is named nowhere: where it exists inside a virtual machine it may be broken, and the tests must be the same everywhere.
        // A firmware changes the memory map while it runs from it: with a thread for each processor QEMU 10.0 ends in its own
        // assertion now and then (`iotlb_to_section: section_index < d->map.sections_nb`).
        let threads = if self.from_disk { "tcg,thread=single" } else { "tcg,thread=multi" };
        command.args(["-accel", threads, "-cpu", "max", "-smp", "2"]);
        command.args(["-machine", &self.machine, "-m", &self.memory_mib.to_string()]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-monitor",
            "none",
        ]);
        command.args(&self.arguments);
        command.arg("-serial").arg(format!("file:{}", scratch.join("console").display()));
        if !self.from_disk {
            command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
            command.args(["-append", &self.kernel_line()?]);
        }
        command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=n0,romfile="]);
        command.arg("-chardev").arg(format!("socket,id=c0,path={}", socket.display()));
        command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=c0,nr=1"]);
        Ok(command)
    }

    /// The kernel's command line.
    pub(super) fn kernel_line(&self) -> Result<String> {
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on no_timer_check tsc_early_khz={}",
            tsc_khz()?
        );
        for argument in &self.kernel_arguments {
            write!(line, " {argument}")?;
        }
        Ok(line)
    }
}

/// The rate of the processor's time-stamp counter, in kHz. The emulated counter is the host's; a guest that measures its
/// rate while the host is busy gets it wrong by factors, and all its time-outs with it.
fn tsc_khz() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split(": ").nth(1));
    let mhz = value.context("/proc/cpuinfo names no `cpu MHz`")?;
    let (whole, thousandths) = mhz.split_once('.').unwrap_or((mhz, "0"));
    let thousandths: u64 = format!("{thousandths:0<3}").get(..3).unwrap_or("0").parse()?;
    Ok(whole.parse::<u64>()? * 1000 + thousandths)
}
