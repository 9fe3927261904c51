//! Guest kernels: Debian's own images, downloaded and unpacked, never installed.
//!
//! ```text
//! kernels/linux-image-6.1.0-57-cloud-amd64/{boot/vmlinuz-*,lib/modules/*}   one directory for each version
//! kernels/6.1 -> linux-image-6.1.0-57-cloud-amd64                           what the tests ask for
//! ```

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::Apt;
use crate::run;

/// The kernel series that the end-to-end tests boot.
const SERIES: &[&str] = &["6.1", "6.12"];

/// The package whose versions depend on the newest image of each series.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Makes sure that every series has a kernel under `dir`/kernels; looks for newer ones only where `refresh` says so.
pub(crate) fn fetch(dir: &Path, apt: &mut Apt, refresh: bool) -> Result<()> {
    let kernels = dir.join("kernels");
    fs::create_dir_all(&kernels)?;
    for series in SERIES {
        let link = kernels.join(series);
        if link.exists() && !refresh {
            continue;
        }
        let shown = apt.guest_show(META_PACKAGE)?;
        let package = newest_image(&shown, series)
            .with_context(|| format!("no version of {META_PACKAGE} depends on a linux-image-{series}.*"))?;
        let unpacked = kernels.join(package);
        if !unpacked.exists() {
            unpack(apt, package, &unpacked)?;
        }
        let new_link = kernels.join(format!("{series}.new"));
        drop(fs::remove_file(&new_link));
        std::os::unix::fs::symlink(package, &new_link)?;
        fs::rename(&new_link, &link)?;
    }
    Ok(())
}

/// The image of `series` that the newest version of the meta package depends on.
fn newest_image<'a>(shown: &'a str, series: &str) -> Option<&'a str> {
    let prefix = format!("linux-image-{series}.");
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: "))
        .flat_map(|depends| depends.split([',', ' ']))
        .find(|word| word.starts_with(&prefix))
}

/// Downloads `package` and unpacks it as `into`, which appears only when complete.
fn unpack(apt: &mut Apt, package: &str, into: &Path) -> Result<()> {
    let partial = into.with_file_name(format!("{package}.partial"));
    drop(fs::remove_dir_all(&partial));
    fs::create_dir_all(&partial)?;
    let deb = apt.guest_download(package, &partial)?;
    run::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&partial))?;
    fs::remove_file(&deb)?;
    let modules = fs::read_dir(partial.join("lib/modules"))?
        .next()
        .with_context(|| format!("{package} has no lib/modules"))??;
    let mut depmod = Command::new(run::find_in_path("depmod").context("depmod is not installed")?);
    run::run(depmod.arg("-b").arg(&partial).arg(modules.file_name()))?;
    fs::rename(&partial, into)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_of_a_series_is_the_first_that_is_named() {
        let shown = "Version: 6.12.95-1~bpo12+1\nDepends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)\n\n\
                     Version: 6.1.192-2\nDepends: linux-image-6.1.0-57-cloud-amd64 (= 6.1.192-2)\n\n\
                     Version: 6.1.176-1\nDepends: linux-image-6.1.0-51-cloud-amd64 (= 6.1.176-1)\n";
        assert_eq!(newest_image(shown, "6.12"), Some("linux-image-6.12.95+deb12-cloud-amd64"));
        assert_eq!(newest_image(shown, "6.1"), Some("linux-image-6.1.0-57-cloud-amd64"));
        assert_eq!(newest_image(shown, "5.10"), None);
    }
}
