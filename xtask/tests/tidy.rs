//! The shape of the workspace: which package may depend on which, and what no source file may be called.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Our packages, lowest layer first: a package may depend on those of lower layers only.
const LAYERS: &[&[&str]] = &[
    &["penstock-spec"],
    &["penstock-reactor"],
    &["penstock-bdev", "penstock-hugepage-setup"],
    &["penstock-replication", "penstock-nvmf", "penstock-iscsi", "penstock-vhost"],
    &["penstock-fabric"],
    &["penstock-ctl"],
    &["penstock-perf", "penstock-tests", "penstock-fuzz", "xtask"],
];

/// Names that say nothing: split by noun, then by verb.
const BANNED_FILES: &[&str] = &["utils.rs", "util.rs", "common.rs", "manager.rs", "helpers.rs"];

/// A longer file wants to be split.
const FILE_LINES_MAX: usize = 800;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

fn layer(package: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&package))
}

/// The directories of the workspace's packages.
fn members() -> Result<Vec<PathBuf>> {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml"))?;
    let (_, rest) = manifest.split_once("members = [").context("the root Cargo.toml names no members")?;
    let (list, _) = rest.split_once(']').context("the list of members does not end")?;
    Ok(list.split('"').skip(1).step_by(2).map(|member| workspace().join(member)).collect())
}

/// The name of a package and those of ours that it depends on, outside its tests.
fn dependencies(manifest: &str) -> (String, Vec<String>) {
    let (mut section, mut name, mut ours) = ("", String::new(), Vec::new());
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if let Some(value) = line.strip_prefix("name = ").filter(|_| section == "[package]") {
            value.trim_matches('"').clone_into(&mut name);
        } else if section == "[dependencies]" && line.starts_with("penstock-") {
            ours.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    (name, ours)
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn packages_depend_on_lower_layers_only() {
    let mut wrong = Vec::new();
    for member in members().unwrap() {
        let (name, ours) = dependencies(&fs::read_to_string(member.join("Cargo.toml")).unwrap());
        match layer(&name) {
            None => wrong.push(format!("{name} is in no layer: give it its place in {}", file!())),
            Some(own) => wrong.extend(
                ours.iter()
                    .filter(|dependency| layer(dependency).is_none_or(|lower| lower >= own))
                    .map(|dependency| format!("{name} must not depend on {dependency}")),
            ),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn source_files_have_telling_names_and_bounded_lengths() {
    let mut wrong = Vec::new();
    for member in members().unwrap() {
        let mut files = Vec::new();
        rust_files(&member, &mut files).unwrap();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            if BANNED_FILES.contains(&name.as_ref()) || lines > FILE_LINES_MAX {
                wrong.push(format!("{}: {lines} lines", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_dependency_is_found_in_either_notation() {
    let manifest = "[package]\nname = \"penstock-bdev\"\n[dependencies]\npenstock-reactor.workspace = true\n\
                    penstock-spec = { path = \"../spec\" }\nserde.workspace = true\n[dev-dependencies]\npenstock-ctl = \"1\"\n";
    let (name, ours) = dependencies(manifest);
    assert_eq!(name, "penstock-bdev");
    assert_eq!(ours, ["penstock-reactor", "penstock-spec"]);
}
