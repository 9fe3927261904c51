//! `cargo-deny`, built from the registry: no Debian release has it, and it changes too often for any to have the right one.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run;

const VERSION: &str = "0.20.2";

/// Where the program is; it is built, which takes a minute or two, when it is not there.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    let root = run::e2e_dir().join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        let mut install = run::cargo();
        install
            .args(["install", "--quiet", "--locked", "--version", VERSION, "cargo-deny", "--root"])
            .arg(&root);
        // It runs for a second: building it fast matters more than its speed.
        install.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env("CARGO_PROFILE_RELEASE_LTO", "off");
        install.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16").env_remove("CARGO_TARGET_DIR");
        run::run(&mut install).context("cargo-deny could not be built")?;
    }
    Ok(program)
}
