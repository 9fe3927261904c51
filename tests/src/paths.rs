//! Where things are: what `cargo xtask deps` installed, the programs under test, and a directory for each test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

/// The directory that `cargo xtask deps` fills: `PENSTOCK_E2E_DIR`, else `target/e2e`.
pub fn e2e_dir() -> PathBuf {
    std::env::var_os("PENSTOCK_E2E_DIR").map_or_else(|| target_dir().join("e2e"), PathBuf::from)
}

/// A program of this workspace: from `PENSTOCK_BIN_DIR`, else the newer of the release and debug builds.
///
/// # Errors
/// Where it was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let dirs = match std::env::var_os("PENSTOCK_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => vec![target_dir().join("release"), target_dir().join("debug")],
    };
    dirs.iter()
        .map(|dir| dir.join(name))
        .filter(|file| file.is_file())
        .max_by_key(|file| file.metadata().and_then(|meta| meta.modified()).ok())
        .with_context(|| {
            format!("{name} is not built: run `cargo xtask test --only e2e`, or `cargo build --bins`")
        })
}

/// A program of the machine's, also from the directories that only an administrator's PATH names.
///
/// # Errors
/// Where it is not installed.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed: run `cargo xtask deps`"))
}

/// A directory of one test's own with a short path (UNIX sockets want one). Removed with the value, but kept where the
/// test panics.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes a new, empty directory.
    ///
    /// # Errors
    /// Where it cannot be made, or another run's is there.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("penstock-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        if dir.exists() {
            bail!("{} is there already, from an older run: remove it", dir.display());
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}

fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
