//! `tlshd`, which does TLS handshakes for the kernel's NVMe/TCP initiator: Debian's ktls-utils with every library it needs,
//! of a newer release than the guests' other programs, as one archive that a guest unpacks beside its own files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::mirror::Mirrors;
use crate::run;

/// The first Debian release that has the package.
const RELEASE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Makes `dir`/ktls.tar, unless it is there.
pub(crate) fn fetch(dir: &Path) -> Result<()> {
    let archive = dir.join("ktls.tar");
    if archive.exists() {
        return Ok(());
    }
    let work = dir.join("apt/ktls");
    let (lists, archives, root) = (work.join("lists"), work.join("archives"), work.join("root"));
    drop(fs::remove_dir_all(&root));
    for dir in [&lists.join("partial"), &archives.join("partial"), &root] {
        fs::create_dir_all(dir)?;
    }
    let conf = configure(&work)?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &conf).args(["-qq", "-y"]).args(arguments);
        run::run(&mut command)
    };
    apt(&["update"]).context("apt could not fetch the lists of packages: is the network up?")?;
    // Nothing counts as installed, so that all that it depends on comes along.
    apt(&["install", "--download-only", "--no-install-recommends", "ktls-utils"])?;
    for entry in fs::read_dir(&archives)? {
        let package = entry?.path();
        if package.extension().is_some_and(|ext| ext == "deb") {
            run::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
        }
    }
    let partial = archive.with_extension("partial");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("--exclude=usr/share").arg("-cf").arg(&partial).arg("usr");
    run::run(&mut tar)?;
    fs::rename(&partial, &archive)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// apt's configuration, which shares nothing with the machine's.
fn configure(work: &Path) -> Result<std::path::PathBuf> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let mirrors = Mirrors::of_machine(codename.unwrap_or_default().trim_matches('"'))?;
    let (list, conf, status) = (work.join("sources.list"), work.join("apt.conf"), work.join("status"));
    fs::write(&list, format!("deb [signed-by={KEYRING}] {} {RELEASE} main\n", mirrors.release))?;
    fs::write(&status, "")?;
    let text = format!(
        "Dir::State::lists \"{}\";\nDir::State::status \"{}\";\nDir::Cache::archives \"{}\";\n\
         Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n\
         Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\nAPT::Sandbox::User \"root\";\n",
        work.join("lists").display(),
        status.display(),
        work.join("archives").display(),
        list.display()
    );
    fs::write(&conf, text)?;
    Ok(conf)
}
