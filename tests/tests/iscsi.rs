//! iSCSI against the daemon, with initiators that others wrote and that need no kernel: libiscsi's suite, QEMU's tools.

use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use penstock_tests::initiator::Host;
use penstock_tests::iscsi::{Disk, IQN, credentials, must, run};
use penstock_tests::{net, paths};
use serde_json::json;

/// The suite waits for time-outs of its own making.
const SUITE_LIMIT: Duration = Duration::from_secs(360);
/// Everything else is a matter of moments.
const LIMIT: Duration = Duration::from_secs(30);

/// Why tests of libiscsi's suite may leave themselves out. Any other reason is a failure.
const ALLOWED_SKIPS: &[&str] = &[
    // Logical blocks are as long as physical ones (in memory).
    "LBPPB < 2",
    // It is no removable medium, and can be written.
    "is not removable",
    "is not write-protected",
    // A cold reset would end the sessions of all initiators.
    "functionfor ColdReset is not",
    // No bdev can promise that old data cannot be had back, and none that long writes are all or nothing.
    "SANITIZE",
    "WRITEATOMIC16 is not implemented",
    // A length of 0 would mean the whole disk: WSNZ forbids it.
    "does not support 0-blocks",
];

/// How many tests libiscsi 1.19 (Debian 12) has.
const TESTS_OF_1_19: u32 = 230;

/// Tests of libiscsi 1.19 that write 512 bytes to a disk whose blocks are longer and want that to succeed; 1.20 writes blocks.
const SHORT_WRITES: &[&str] =
    &["AccessEA", "AccessWE", "AccessEARO", "AccessWERO", "AccessEAAR", "AccessWEAR"];

/// Tests that ask for the block behind the unmapped ones, and want the answer to begin at the next physical block: the same only
/// where physical blocks are as long as logical ones.
const LONG_PHYSICAL_BLOCKS: &[&str] = &["UnmapSingle"];

/// Runs libiscsi's whole suite on a disk with logical and physical blocks of these lengths: all tests must pass, and skip for allowed reasons only.
fn passes_libiscsis_suite(urls: &[&str], block_bytes: u32, physical_bytes: u32) -> Result<()> {
    let mut args = vec!["-d", "-S", "-v", "-t", "ALL"];
    args.extend(urls);
    let (_, said) = run("iscsi-test-cu", &args, SUITE_LIMIT)?;
    let line = said.lines().find(|line| line.trim_start().starts_with("tests "));
    let line = line.with_context(|| format!("the suite did not end:\n{said}"))?;
    let counts: Vec<u32> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [total, ran, _, count, ..] = counts[..] else {
        anyhow::bail!("the suite said `{line}`");
    };
    let mut test = "";
    let mut failed = Vec::new();
    for line in said.lines().map(str::trim) {
        test = line.strip_prefix("Test: ").and_then(|line| line.split_whitespace().next()).unwrap_or(test);
        // What a test says beside comes before the verdict.
        if line.ends_with("FAILED") {
            failed.push(test);
        }
    }
    let wrong = match (block_bytes, physical_bytes) {
        (513.., _) if total == TESTS_OF_1_19 => SHORT_WRITES,
        (512, 513..) => LONG_PHYSICAL_BLOCKS,
        _ => &[],
    };
    let as_known = failed == wrong && usize::try_from(count)? == wrong.len();
    ensure!(total >= TESTS_OF_1_19 && ran == total && as_known, "{failed:?} failed, {line}\n{said}");
    for skip in said.lines().filter_map(|line| Some(line.split_once("[SKIPPED]")?.1)) {
        ensure!(ALLOWED_SKIPS.iter().any(|allowed| skip.contains(allowed)), "skipped:{skip}");
    }
    Ok(())
}

#[test]
fn libiscsis_suite_passes_on_memory_with_chap_and_two_paths() -> Result<()> {
    let disk = Disk::malloc(64)?;
    disk.require_chap()?;
    let urls = [disk.url(1, 0, &credentials()), disk.url(2, 0, &credentials())];
    passes_libiscsis_suite(&urls.each_ref().map(String::as_str), 512, 512)
}

#[test]
fn libiscsis_suite_passes_on_files_with_short_and_long_blocks_and_two_paths() -> Result<()> {
    for block_bytes in [512, 4096] {
        let disk = Disk::uring(64, block_bytes)?;
        let urls = [disk.url(1, 0, ""), disk.url(2, 0, "")];
        passes_libiscsis_suite(&urls.each_ref().map(String::as_str), block_bytes, block_bytes)?;
    }
    Ok(())
}

#[test]
fn libiscsis_suite_passes_on_a_vdisk_with_short_blocks() -> Result<()> {
    let disk = Disk::vdisk(512, 64, 512)?;
    passes_libiscsis_suite(&[&disk.url(1, 0, ""), &disk.url(2, 0, "")], 512, 4096)
}

#[test]
#[ignore = "a minute more for what the one before shows nearly as well; run it by name with --ignored"]
fn libiscsis_suite_passes_on_a_vdisk_with_long_blocks() -> Result<()> {
    let disk = Disk::vdisk(512, 64, 4096)?;
    passes_libiscsis_suite(&[&disk.url(1, 0, ""), &disk.url(2, 0, "")], 4096, 4096)
}

#[test]
fn qemus_initiator_reads_back_what_it_wrote_and_nvme_reads_the_same_disk() -> Result<()> {
    const NQN: &str = "nqn.2026-11.io.penstock:same-disk";
    let disk = Disk::uring(64, 512)?;
    let url = disk.url(1, 0, "");
    let info = must("qemu-img", &["info", "-f", "raw", &url], LIMIT)?;
    ensure!(info.contains("64 MiB"), "{info}");
    let script = [
        "write -P 0xab 0 1M",
        "read -P 0xab 0 1M",
        "write -z 1M 64k",
        "read -P 0 1M 64k",
        "write -P 0x5a 8M 2M",
        "discard 9M 1M",
        "read -P 0x5a 8M 1M",
        "flush",
    ];
    let mut args = vec!["-f", "raw"];
    args.extend(script.iter().flat_map(|command| ["-c", *command]));
    args.push(&url);
    let said = must("qemu-io", &args, LIMIT)?;
    ensure!(!said.contains("failed"), "{said}");
    must(
        "qemu-img",
        &["bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "32", "-s", "4096", &url],
        LIMIT,
    )?;
    let port = net::free_port()?;
    disk.daemon.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    disk.daemon.call("nvmf_create_subsystem", json!({"nqn": NQN, "allow_any_host": true}))?;
    let namespace = json!({"bdev_name": "disk"});
    disk.daemon.call("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": namespace}))?;
    let address = json!({"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
    disk.daemon.call("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address}))?;
    let (data, _) = Host::connect(port, NQN)?.io.read(1, 0, 8, 512)?;
    ensure!(data.iter().all(|byte| *byte == 0xab), "NVMe does not see what SCSI wrote");
    Ok(())
}

#[test]
fn portals_are_reached_by_ipv6_too() -> Result<()> {
    let disk = Disk::malloc(16)?;
    let port = net::free_port()?;
    let portal = json!({"host": "[::1]", "port": port.to_string()});
    disk.daemon.call("iscsi_create_portal_group", json!({"tag": 6, "portals": [portal]}))?;
    let map = json!([{"pg_tag": 6, "ig_tag": 1}]);
    disk.daemon.call("iscsi_target_node_add_pg_ig_maps", json!({"name": IQN, "pg_ig_maps": map}))?;
    let listed = must("iscsi-ls", &["-s", &format!("iscsi://[::1]:{port}")], LIMIT)?;
    ensure!(listed.contains(&format!("[::1]:{port}")) && listed.contains("Lun:0"), "{listed}");
    let url = format!("iscsi://[::1]:{port}/{IQN}/0");
    let said =
        must("qemu-io", &["-f", "raw", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", &url], LIMIT)?;
    ensure!(!said.contains("failed"), "{said}");
    Ok(())
}

#[test]
fn only_who_proves_itself_gets_in_also_after_a_restart() -> Result<()> {
    let mut disk = Disk::uring(16, 512)?;
    disk.require_chap()?;
    let right = disk.url(1, 0, &credentials());
    let read = |url: &str| run("qemu-io", &["-f", "raw", "-r", "-c", "read 0 4k", url], LIMIT);
    for restarted in [false, true] {
        if restarted {
            disk.daemon.stop()?;
            disk.daemon.restart()?;
        }
        let (done, said) = read(&right)?;
        ensure!(done && said.contains("read 4096/4096"), "{said}");
        for wrong in ["", "initiator%another-secret-0@", "nobody%secret-of-the-initiator@"] {
            let (done, said) = read(&disk.url(1, 0, wrong))?;
            ensure!(!done, "{wrong} got in:\n{said}");
        }
    }
    let auth = json!({"name": IQN, "chap_group": 1, "require_chap": true, "mutual_chap": true});
    disk.daemon.call("iscsi_target_node_set_auth", auth)?;
    ensure!(!read(&right)?.0, "one-way CHAP was enough where both ways are required");
    let groups = disk.daemon.call("iscsi_get_auth_groups", json!({}))?.to_string();
    ensure!(groups.contains("initiator") && !groups.contains("secret-of"), "{groups}");
    let log = std::fs::read_to_string(disk.daemon.dir().join("log"))?;
    ensure!(!log.contains("secret-of"), "a secret is in the log");
    Ok(())
}

#[test]
fn initiators_see_what_they_may_see() -> Result<()> {
    let disk = Disk::malloc(16)?;
    let daemon = &disk.daemon;
    daemon.call("bdev_malloc_create", json!({"name": "other", "num_blocks": 32768, "block_size": 512}))?;
    let chosen = json!({"tag": 2, "initiators": ["iqn.2026-11.h:chosen"], "netmasks": ["127.0.0.0/8"]});
    daemon.call("iscsi_create_initiator_group", chosen)?;
    let lun = json!({"name": IQN, "bdev_name": "other", "ig_tags": [2]});
    ensure!(daemon.call("iscsi_target_node_add_lun", lun)? == 1);
    let portal = format!("iscsi://127.0.0.1:{}", disk.ports[0]);
    let list = |name: &str| run("iscsi-ls", &["-s", "-i", name, &portal], LIMIT);
    let (_, chosen) = list("iqn.2026-11.h:chosen")?;
    let (_, other) = list("iqn.2026-11.h:other")?;
    ensure!(chosen.contains("Lun:0") && chosen.contains("Lun:1"), "{chosen}");
    ensure!(other.contains("Lun:0") && !other.contains("Lun:1"), "{other}");
    let refused = daemon.call("iscsi_delete_initiator_group", json!({"tag": 2})).err();
    let refused = refused.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("LUN 1"), "{refused}");
    daemon.call("iscsi_target_node_remove_lun", json!({"name": IQN, "lun_id": 1}))?;
    ensure!(!list("iqn.2026-11.h:chosen")?.1.contains("Lun:1"));
    daemon.call("iscsi_delete_initiator_group", json!({"tag": 2}))?;
    // Nobody but one, and from elsewhere.
    let change = json!({"tag": 1, "initiators": ["ANY"], "netmasks": ["ANY"]});
    daemon.call("iscsi_initiator_group_remove_initiators", change)?;
    let change = json!({"tag": 1, "initiators": ["iqn.2026-11.h:one"], "netmasks": ["192.0.2.0/24"]});
    daemon.call("iscsi_initiator_group_add_initiators", change)?;
    ensure!(!list("iqn.2026-11.h:one")?.1.contains(IQN), "the network does not count");
    daemon.call("iscsi_initiator_group_add_initiators", json!({"tag": 1, "netmasks": ["127.0.0.1"]}))?;
    ensure!(list("iqn.2026-11.h:one")?.1.contains("Lun:0") && !list("iqn.2026-11.h:two")?.1.contains(IQN));
    Ok(())
}

#[test]
fn logins_are_sent_elsewhere_and_taken_again() -> Result<()> {
    let disk = Disk::malloc(16)?;
    let read = || must("qemu-io", &["-f", "raw", "-r", "-c", "read 0 4k", &disk.url(1, 0, "")], LIMIT);
    let redirects = || -> Result<u64> {
        let stats = disk.daemon.call("iscsi_get_stats", json!({}))?;
        let groups = stats["poll_groups"].as_array().cloned().unwrap_or_default();
        Ok(groups.iter().filter_map(|group| group["redirects"].as_u64()).sum())
    };
    let mut redirect = json!({"name": IQN, "pg_tag": 1, "redirect_host": "127.0.0.1",
        "redirect_port": disk.ports[1].to_string()});
    disk.daemon.call("iscsi_target_node_set_redirect", redirect.clone())?;
    read()?;
    ensure!(redirects()? == 1, "the login was not sent elsewhere");
    let saved = disk.daemon.call("save_config", json!({}))?.to_string();
    ensure!(saved.contains("iscsi_target_node_set_redirect"), "{saved}");
    disk.daemon.call("iscsi_target_node_set_redirect", json!({"name": IQN, "pg_tag": 1}))?;
    read()?;
    ensure!(redirects()? == 1, "the login is still sent elsewhere");
    redirect["redirect_port"] = json!(disk.ports[0].to_string());
    ensure!(disk.daemon.call("iscsi_target_node_set_redirect", redirect).is_err(), "to where it is");
    Ok(())
}

#[test]
fn a_login_that_never_ends_is_cut_off() -> Result<()> {
    let disk = Disk::malloc(16)?;
    disk.daemon.call("iscsi_set_options", json!({"login_timeout": 1}))?;
    let mut silent = TcpStream::connect(("127.0.0.1", disk.ports[0]))?;
    silent.set_read_timeout(Some(LIMIT))?;
    let start = Instant::now();
    ensure!(silent.read(&mut [0; 1])? == 0, "it was answered");
    ensure!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    Ok(())
}

/// Runs SPDK's client; returns whether it succeeded, and what it said.
fn spdk_rpc(disk: &Disk, words: &[&str]) -> Result<(bool, String)> {
    let program = paths::e2e_dir().join("venv/bin/spdk-rpc");
    let out = Command::new(program).arg("-s").arg(disk.daemon.socket()).args(words).output()?;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((out.status.success(), text))
}

#[test]
fn spdks_own_client_drives_all_methods() -> Result<()> {
    const NAME: &str = "iqn.2026-11.io.penstock:d0";
    let disk = Disk::malloc(16)?;
    let ports = [net::free_port()?, net::free_port()?];
    let portals = ports.map(|port| format!("127.0.0.1:{port}"));
    let (port, all) = (ports[1].to_string(), portals.join(" "));
    let secrets =
        "user:u1 secret:secret-number-1 muser:m1 msecret:secret-number-2,user:u2 secret:secret-number-3";
    let calls: &[&[&str]] = &[
        &["bdev_malloc_create", "-b", "m0", "16", "512"],
        &["bdev_malloc_create", "-b", "m1", "16", "512"],
        &["iscsi_set_options", "-o", "30", "-n", "20", "-q", "64", "-a", "100", "-s", "8192", "-i"],
        &["iscsi_get_options"],
        &["iscsi_create_auth_group", "7", "-c", secrets],
        &["iscsi_auth_group_add_secret", "7", "-u", "u3", "-s", "secret-number-4"],
        &["iscsi_auth_group_remove_secret", "7", "-u", "u2"],
        &["iscsi_get_auth_groups"],
        &["iscsi_set_discovery_auth", "-r", "-g", "7"],
        &["iscsi_set_discovery_auth", "-d"],
        &["iscsi_create_portal_group", "10", &portals[0]],
        &["iscsi_create_portal_group", "11", &portals[1], "-p", "-w"],
        &["iscsi_start_portal_group", "11"],
        &["iscsi_portal_group_set_auth", "10", "-d"],
        &["iscsi_get_portal_groups"],
        &["iscsi_create_initiator_group", "20", "ANY", "127.0.0.0/8"],
        &["iscsi_initiator_group_add_initiators", "20", "-n", "!iqn.2026-11.h:bad", "-m", "[::1]/128"],
        &["iscsi_initiator_group_remove_initiators", "20", "-n", "!iqn.2026-11.h:bad", "-m", "[::1]/128"],
        &["iscsi_get_initiator_groups"],
        &["iscsi_create_target_node", "d0", "alias", "m0:0", "10:20", "64", "-g", "7", "-r"],
        &["iscsi_target_node_set_auth", NAME, "-d"],
        &["iscsi_target_node_add_lun", NAME, "m1", "-i", "5"],
        &["iscsi_target_node_add_pg_ig_maps", NAME, "11:20"],
        &["iscsi_target_node_set_redirect", NAME, "10", "-a", "127.0.0.1", "-p", &port],
        &["iscsi_get_target_nodes"],
        &["iscsi_enable_histogram", NAME, "--histogram"],
        &["iscsi_get_histogram", NAME],
        &["iscsi_target_node_request_logout", NAME, "-t", "10"],
        &["iscsi_get_connections"],
        &["iscsi_get_stats"],
        &["save_config"],
        &["iscsi_target_node_remove_pg_ig_maps", NAME, "11:20"],
        &["iscsi_target_node_set_redirect", NAME, "10"],
        &["iscsi_delete_target_node", NAME],
        &["iscsi_delete_initiator_group", "20"],
        &["iscsi_delete_portal_group", "10"],
        &["iscsi_delete_portal_group", "11"],
        &["iscsi_delete_auth_group", "7"],
        &["bdev_malloc_delete", "m0"],
        &["bdev_malloc_delete", "m1"],
    ];
    for words in calls {
        let (done, said) = spdk_rpc(&disk, words)?;
        ensure!(done, "spdk-rpc {words:?} failed:\n{said}");
    }
    let (done, said) = spdk_rpc(&disk, &["iscsi_create_portal_group", "12", &all])?;
    ensure!(done, "the ports are not free again:\n{said}");
    let (done, said) = spdk_rpc(&disk, &["iscsi_delete_target_node", "iqn.2026-11.no:where"])?;
    ensure!(!done && said.contains("no:where"), "the refusal does not name the target:\n{said}");
    Ok(())
}

#[test]
fn what_was_saved_is_made_again_elsewhere() -> Result<()> {
    let disk = Disk::malloc(16)?;
    disk.require_chap()?;
    let saved = disk.daemon.call("save_config", json!({}))?;
    drop(disk);
    let copy = penstock_tests::daemon::Daemon::start(1)?;
    copy.call("load_config", saved.clone())?;
    ensure!(copy.call("save_config", json!({}))? == saved, "the copy is another");
    Ok(())
}
