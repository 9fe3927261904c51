//! The rules of the tree, as a test: layers, sizes, leftovers, what every package inherits.
#![expect(clippy::unwrap_used, reason = "a test: what cannot be read is a failure")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A file longer than this must be split.
const FILE_LINES_MAX: usize = 800;

/// Names that say nothing: split by noun, then by verb.
const BANNED_NAMES: &[&str] = &["utils.rs", "util.rs", "common.rs", "manager.rs", "helpers.rs"];

/// Which packages of ours a package may depend on, lower layers first.
const LAYERS: &[(&str, &[&str])] = &[
    ("penstock-spec", &[]),
    ("penstock-security", &["penstock-spec"]),
    ("penstock-reactor", &["penstock-spec"]),
    ("penstock-bdev", &["penstock-spec", "penstock-reactor"]),
    ("penstock-nvme-tcp", &["penstock-spec", "penstock-security", "penstock-reactor"]),
    ("penstock-fabric", &["penstock-spec", "penstock-reactor", "penstock-bdev"]),
    ("penstock-nvme", &["penstock-spec", "penstock-reactor", "penstock-bdev", "penstock-nvme-tcp"]),
    ("penstock-scsi", &["penstock-spec", "penstock-reactor", "penstock-bdev"]),
    ("penstock-iscsi", &["penstock-spec", "penstock-reactor", "penstock-bdev", "penstock-scsi"]),
    ("penstock-nvmf", &["penstock-spec", "penstock-security", "penstock-reactor", "penstock-bdev"]),
    (
        "penstock-ctl",
        &[
            "penstock-spec",
            "penstock-security",
            "penstock-reactor",
            "penstock-bdev",
            "penstock-fabric",
            "penstock-nvmf",
            "penstock-iscsi",
            "penstock-vhost",
            "penstock-nvme",
        ],
    ),
    ("penstock-vhost", &["penstock-spec", "penstock-reactor", "penstock-bdev"]),
    ("penstock-ceiling", &["penstock-spec", "penstock-reactor"]),
    (
        "penstock-perf",
        &[
            "penstock-spec",
            "penstock-security",
            "penstock-reactor",
            "penstock-bdev",
            "penstock-nvme",
            "penstock-nvme-tcp",
            "penstock-nvmf",
        ],
    ),
    ("penstock-fio-engine", &["penstock-reactor", "penstock-bdev", "penstock-perf"]),
    (
        "penstock-instructions",
        &[
            "penstock-spec",
            "penstock-reactor",
            "penstock-bdev",
            "penstock-nvme",
            "penstock-nvme-tcp",
            "penstock-nvmf",
            "penstock-scsi",
            "penstock-iscsi",
            "penstock-perf",
        ],
    ),
    ("penstock-allocations", &[]),
    ("penstock-tests", &["*"]),
    ("penstock-fuzz", &["*"]),
    ("penstock-hugepage-setup", &[]),
    ("xtask", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All files below `dir` that git would have, by a plain walk that leaves build output out.
fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name == "target" || (name.starts_with('.') && name != ".ci") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn files_with(extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn manifests() -> Vec<(PathBuf, toml::Table)> {
    let manifests = files_with("toml").into_iter().filter(|path| path.file_name().unwrap() == "Cargo.toml");
    manifests.map(|path| (path.clone(), fs::read_to_string(path).unwrap().parse().unwrap())).collect()
}

/// The names in one table of dependencies.
fn names<'a>(manifest: &'a toml::Table, table: &str) -> Vec<&'a str> {
    let table = manifest.get(table).and_then(toml::Value::as_table);
    table.map(|table| table.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[test]
fn packages_depend_only_on_lower_layers() {
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    for (path, manifest) in manifests() {
        let Some(package) = manifest.get("package") else { continue };
        let name = package["name"].as_str().unwrap();
        let allowed =
            allowed.get(name).unwrap_or_else(|| panic!("{}: say {name}'s layer here", path.display()));
        for dependency in names(&manifest, "dependencies") {
            let ours = dependency.starts_with("penstock-");
            let fine = allowed.contains(&dependency) || allowed.contains(&"*");
            assert!(!ours || fine, "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn versions_lints_and_edition_come_from_the_workspace() {
    for (path, manifest) in manifests() {
        // The fuzz package is no member: libFuzzer needs another compiler.
        if !manifest.contains_key("package") || path.starts_with(root().join("fuzz")) {
            continue;
        }
        let inherits =
            |table: &toml::Table| table.get("workspace").and_then(toml::Value::as_bool) == Some(true);
        let lints = manifest.get("lints").and_then(toml::Value::as_table);
        assert!(lints.is_some_and(inherits), "{}: lints.workspace = true is missing", path.display());
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(table).and_then(toml::Value::as_table) else { continue };
            for (name, value) in table {
                let fine = value.as_table().is_some_and(inherits);
                assert!(fine, "{}: {name} must come from the workspace", path.display());
            }
        }
    }
}

#[test]
fn source_files_are_short_documented_and_finished() {
    // In two halves, so that this file does not find itself.
    let leftovers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    for path in files_with("rs") {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines, more than {FILE_LINES_MAX}", path.display());
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(!BANNED_NAMES.contains(&name.as_ref()), "{} has a name that says nothing", path.display());
        for leftover in leftovers {
            assert!(!text.contains(leftover), "{} contains {leftover}", path.display());
        }
        let is_test = name == "tests.rs";
        let documented = text.lines().take(3).any(|line| line.starts_with("//!"));
        assert!(is_test || documented, "{} does not begin by saying what it is", path.display());
    }
}

#[test]
fn unsafe_code_stays_in_its_few_places() {
    const ALLOWED: &[&str] = &[
        "reactor/src/mem",
        "reactor/src/sys",
        "reactor/src/ring",
        "bdev/src/malloc",
        // The one place that lends parts of a buffer; safe for all others.
        "bdev/src/sg/alias.rs",
        "bdev/src/uring",
        "bdev/nvme/src/dma",
        "bdev/nvme/src/vfio",
        "perf/ceiling/src/uring.rs",
        // fio's structures, and the functions that it calls.
        "perf/fio-engine/src/abi.rs",
        "perf/fio-engine/src/hooks.rs",
        // Guest memory: another process writes it at any time.
        "export/vhost/src/memory",
        // The calls of OpenSSL's library.
        "security/src/tls/openssl.rs",
    ];
    for path in files_with("rs") {
        let relative = path.strip_prefix(root()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let test_code =
            relative.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "benches")));
        let allowed = ALLOWED.iter().any(|place| relative.starts_with(place)) || test_code;
        let used = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or("");
            code.contains(concat!("unsafe", " {")) || code.contains(concat!("unsafe", " impl"))
        });
        assert!(allowed || !used, "{} uses unsafe code; its places are {ALLOWED:?}", relative.display());
    }
}
