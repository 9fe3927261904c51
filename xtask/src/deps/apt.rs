//! Debian's apt with a configuration of our own beside the machine's: one more source (the backports, for a newer
//! QEMU and a newer guest kernel) and lists of packages in a directory of our own. The machine's sources and lists stay as they
//! are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::mirror::Mirrors;
use crate::run;

/// The Debian release whose kernels and backports the guests run.
const GUEST_RELEASE: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Which version of a package to install.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum From {
    /// The release's own.
    Release,
    /// The one in the release's backports; the release's own where we name no backports.
    Backports,
}

/// Which sources a run of apt sees.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sources {
    /// The machine's, and on [`GUEST_RELEASE`] its backports.
    Machine,
    /// [`GUEST_RELEASE`], its security updates and backports, and nothing else.
    Guest,
}

/// Private apt configurations under one directory; package lists are fetched on first use only.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    /// The release that the machine runs.
    codename: String,
    /// That is [`GUEST_RELEASE`]: one configuration serves both uses.
    is_guest_release: bool,
    updated: Vec<&'static str>,
}

impl Apt {
    /// Prepares for keeping configurations in `dir`/apt. Nothing is written or fetched yet.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let release = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.unwrap_or_default().trim_matches('"').to_owned();
        let is_guest_release = codename == GUEST_RELEASE;
        Ok(Self { dir: dir.join("apt"), codename, is_guest_release, updated: Vec::new() })
    }

    /// Installs `packages` without asking; does nothing for an empty list.
    pub(crate) fn install(&mut self, packages: &[&str], from: From) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let listed = packages.join(" ");
        if !is_root()? {
            bail!(
                "the tests need these packages, and only root can install them: run `apt-get install {listed}`"
            );
        }
        let mut command = self.apt("apt-get", Sources::Machine)?;
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["install", "-y", "--no-install-recommends", "-qq"]);
        command.args(["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=120"]);
        if from == From::Backports && self.is_guest_release {
            command.args(["-t", &format!("{GUEST_RELEASE}-backports")]);
        }
        run::run(command.args(packages)).with_context(|| {
            format!("apt could not install {listed}, which the tests need; see its words above")
        })
    }

    /// What `apt-cache show` says of `package` in the guests' release: a paragraph for each version, newest first.
    pub(crate) fn guest_show(&mut self, package: &str) -> Result<String> {
        run::output(self.apt("apt-cache", Sources::Guest)?.args(["show", package]))
    }

    /// Downloads a package of the guests' release into `into`, which holds nothing else, and returns the file.
    pub(crate) fn guest_download(&mut self, package: &str, into: &Path) -> Result<PathBuf> {
        let mut command = self.apt("apt-get", Sources::Guest)?;
        run::run(command.args(["download", "-qq", package]).current_dir(into))?;
        let file = std::fs::read_dir(into)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"));
        file.with_context(|| format!("apt-get download left no .deb of {package} in {}", into.display()))
    }

    /// A command of apt's that sees `sources`, with fresh lists.
    fn apt(&mut self, program: &str, sources: Sources) -> Result<Command> {
        let name = match sources {
            Sources::Guest if !self.is_guest_release => "guest",
            _ => "machine",
        };
        let dir = self.dir.join(name);
        let conf = dir.join("apt.conf");
        if !self.updated.contains(&name) {
            self.configure(&dir, name == "guest")?;
            run::run(Command::new("apt-get").env("APT_CONFIG", &conf).args(["update", "-qq"]))
                .context("apt could not fetch the lists of packages: is the network up?")?;
            self.updated.push(name);
        }
        let mut command = Command::new(program);
        command.env("APT_CONFIG", conf);
        Ok(command)
    }

    fn configure(&self, dir: &Path, guest_only: bool) -> Result<()> {
        std::fs::create_dir_all(dir.join("lists/partial"))?;
        let (list, conf) = (dir.join("sources.list"), dir.join("apt.conf"));
        let mut sources = String::new();
        if !guest_only {
            sources += &std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        }
        if guest_only || self.is_guest_release {
            if !Path::new(KEYRING).exists() {
                bail!(
                    "{KEYRING} is not there: install debian-archive-keyring (the tests' guests run Debian's kernels)"
                );
            }
            let mirrors = Mirrors::of_machine(&self.codename)?;
            let mut source = |mirror: &str, suite: &str| {
                sources += &format!("\ndeb [signed-by={KEYRING}] {mirror} {suite} main\n");
            };
            source(&mirrors.release, &format!("{GUEST_RELEASE}-backports"));
            if guest_only {
                source(&mirrors.release, GUEST_RELEASE);
                source(&mirrors.security, &format!("{GUEST_RELEASE}-security"));
            }
        }
        std::fs::write(&list, sources)?;
        let mut text = format!(
            "Dir::State::lists \"{}\";\nDir::Etc::sourcelist \"{}\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n",
            dir.join("lists").display(),
            list.display()
        );
        if guest_only {
            text += "Dir::Etc::sourceparts \"/dev/null\";\n";
        }
        std::fs::write(&conf, text)?;
        Ok(())
    }
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    Ok(uids.split_whitespace().nth(1) == Some("0"))
}
