//! Images that QEMU's tools made become vdisks, and vdisks become files again: the same bytes, holes stay holes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::daemon::Daemon;
use penstock_tests::iscsi::{must, run};
use penstock_tests::paths;
use penstock_tests::target::{fsck, make_pool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Not whole blocks of 4 KiB.
const BYTES: u64 = 20 * MIB + 512;

/// What `qemu-img convert` is told for each image.
const KINDS: &[&[&str]] = &[
    &["-o", "cluster_size=64k"],
    &["-c"],
    &["-c", "-o", "compression_type=zstd"],
    &["-c", "-o", "cluster_size=2M,compression_type=zstd"],
    &["-o", "cluster_size=512"],
    &["-o", "compat=0.10"],
    &["-o", "extended_l2=on,cluster_size=128k"],
    &["-o", "preallocation=metadata"],
];

/// A disk with what shrinks, what does not, zeroes in between, and something in its last sector.
fn make_raw(path: &Path) -> Result<()> {
    let file = File::create_new(path)?;
    file.set_len(BYTES)?;
    let mut state = 1_u64;
    let mut noise = vec![0; 3 << 20];
    for part in noise.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        part.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    file.write_all_at(&noise, MIB + 12_288)?;
    file.write_all_at(&vec![0x5a; 2 << 20], 8 * MIB + 512)?;
    file.write_all_at(b"in the middle of nothing", 15 * MIB + 7)?;
    file.write_all_at(&[0xee; 512], BYTES - 512)?;
    Ok(())
}

/// Runs `penstock`; whether it succeeded, and what it said.
fn penstock(daemon: &Daemon, words: &[&str]) -> Result<(bool, String)> {
    let (program, socket) = (paths::program("penstock")?, daemon.socket());
    let mut all = vec!["--socket", socket.to_str().context("ASCII")?];
    all.extend(words);
    run(program.to_str().context("ASCII")?, &all, LIMIT)
}

/// Imports a file, and wants what `penstock` answers.
fn import(daemon: &Daemon, file: &str, name: &str) -> Result<Value> {
    let (done, said) = penstock(daemon, &["--json", "import", file, name])?;
    ensure!(done, "import of {file}:\n{said}");
    serde_json::from_str(&said).with_context(|| said)
}

#[test]
fn images_of_qemu_become_vdisks_and_files_again() -> Result<()> {
    let mut daemon = Daemon::start(2)?;
    make_pool(&daemon, 512)?;
    let at = |name: &str| daemon.dir().join(name).to_str().map(str::to_owned).context("ASCII");
    let raw = at("disk.raw")?;
    make_raw(Path::new(&raw))?;
    let mut wanted = fs::read(&raw)?;
    wanted.resize(wanted.len().next_multiple_of(4096), 0);
    let mut images = vec![(raw.clone(), "raw".to_owned())];
    for (number, options) in KINDS.iter().enumerate() {
        let file = at(&format!("kind{number}.qcow2"))?;
        let mut words = vec!["convert", "-f", "raw", "-O", "qcow2"];
        words.extend(*options);
        words.extend([raw.as_str(), file.as_str()]);
        must("qemu-img", &words, LIMIT)?;
        images.push((file, format!("kind{number}")));
    }
    for (file, name) in &images {
        let job = import(&daemon, file, name)?;
        let written = job["written_bytes"].as_u64().context("written_bytes")?;
        ensure!(written < 6 * MIB, "{file}: {written} bytes were written: zeroes too");
        let out = at(&format!("{name}.out"))?;
        let (done, said) = penstock(&daemon, &["export", name, &out])?;
        ensure!(done && said.contains("exported"), "export of {name}:\n{said}");
        ensure!(fs::read(&out)? == wanted, "{file}: other bytes came back");
        let stored = fs::metadata(&out)?.blocks() * 512;
        ensure!(stored < 8 * MIB, "{out} takes {stored} bytes: it is not sparse");
        fs::remove_file(&out)?;
    }
    // A snapshot, while the vdisk has gone on.
    daemon.call("vdisk_snapshot", json!({"vdisks": ["raw"], "name": "old"}))?;
    let out = at("old.out")?;
    ensure!(penstock(&daemon, &["export", "raw@old", &out])?.0 && fs::read(&out)? == wanted);
    ensure!(!penstock(&daemon, &["export", "raw", &out])?.0, "a file that is there is written over");
    daemon.call("vdisk_snapshot_delete", json!({"vdisk": "raw", "snapshot": "old"}))?;
    daemon.stop()?;
    fsck(&daemon).map(drop)
}

#[test]
fn what_cannot_be_imported_is_refused_and_leaves_nothing() -> Result<()> {
    let daemon = Daemon::start(1)?;
    make_pool(&daemon, 256)?;
    let at = |name: &str| daemon.dir().join(name).to_str().map(str::to_owned).context("ASCII");
    let (raw, backed, cut) = (at("base.raw")?, at("backed.qcow2")?, at("cut.qcow2")?);
    make_raw(Path::new(&raw))?;
    must("qemu-img", &["create", "-f", "qcow2", "-b", &raw, "-F", "raw", &backed], LIMIT)?;
    let (done, said) = penstock(&daemon, &["import", &backed])?;
    ensure!(!done && said.contains("backing file") && said.contains("qemu-img"), "{said}");
    // Half of an image: found out while the job runs.
    must("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &cut], LIMIT)?;
    let bytes = fs::metadata(&cut)?.len();
    File::options().write(true).open(&cut)?.set_len(bytes / 2)?;
    let (done, said) = penstock(&daemon, &["import", &cut, "cut"])?;
    ensure!(!done && said.contains("damaged"), "{said}");
    let (done, said) = penstock(&daemon, &["import", &at("nothing")?])?;
    ensure!(!done && said.contains("No such file"), "{said}");
    // More than the pool has room for.
    let large = at("large.raw")?;
    let file = File::create_new(&large)?;
    let noise = fs::read(&raw)?;
    let piece = noise.get((1 << 20) + 12_288..(4 << 20)).context("noise")?;
    for part in 0..90_u64 {
        file.write_all_at(piece, part * 3 * MIB)?;
    }
    let (done, said) = penstock(&daemon, &["import", &large, "large"])?;
    ensure!(!done && said.contains("no room"), "{said}");
    ensure!(daemon.call("vdisk_get", json!({}))? == json!([]), "something is left behind");
    // The room is there again.
    let again = at("again.raw")?;
    fs::copy(&raw, &again)?;
    import(&daemon, &again, "again").map(drop)
}
