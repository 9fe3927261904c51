//! Python tools in a virtual environment of their own: SPDK's RPC client, which drives our control socket unchanged.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::run;

/// SPDK's Python package, for its `spdk-rpc` program.
const SPDK: &str = "spdk==26.9";

/// Whether this machine's Python can make virtual environments with pip in them.
pub(crate) fn can_make_venv() -> bool {
    let mut python = Command::new("python3");
    python.args(["-c", "import ensurepip, venv"]).stdout(Stdio::null()).stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

/// Installs the tools into `dir`/venv when they are not there.
pub(crate) fn install(dir: &Path) -> Result<()> {
    let venv = dir.join("venv");
    if venv.join("bin/spdk-rpc").exists() {
        return Ok(());
    }
    run::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", SPDK]);
    run::run(&mut pip)
        .context("pip could not install SPDK's RPC client, which the tests drive the control socket with")
}
