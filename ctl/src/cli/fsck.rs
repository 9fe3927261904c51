//! `penstock fsck` and `penstock rescue`: a pool's disks, looked at and mended while no daemon has them.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use penstock_bdev::uring::{Uring, UringOptions};
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_fabric::driver::Channels;
use penstock_fabric::flow::Flow;
use penstock_fabric::fsck::{self, CheckOptions, Finding, Findings, Severity};
use penstock_fabric::id::{DiskNo, LaneNo};
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};
use serde_json::json;

use super::{CliError, Out};

/// Looks at the pool on `disks`, and repairs what is safe to repair.
pub(crate) fn check(out: &mut Out<'_>, disks: &[PathBuf], options: CheckOptions) -> Result<(), CliError> {
    // For people that look.
    let quiet = out.json || !std::io::stderr().is_terminal();
    let report = on_disks(disks, options.repair, async move |flow, plugged| {
        let mut shown = 0;
        let mut progress = |lane: LaneNo, done: u64, of: u64| {
            let percent = done * 100 / of.max(1);
            if !quiet && (percent != shown || done == 0) {
                shown = percent;
                eprint!(
                    "\rlane {:3}: {percent:3} % of {of} egroups{}",
                    lane.0,
                    if done == of { "\n" } else { "" }
                );
            }
        };
        fsck::check(&flow, &plugged, options, &mut progress).await
    })?;
    let report = report.map_err(|error| CliError::Pool(Box::new(error)))?;
    let seen = &report.seen;
    let value = json!({
        "clean": report.findings.is_clean(),
        "findings": findings(&report.findings),
        "vdisks": report.vdisks.iter().map(|(number, name)| json!({ "shards": number, "name": name })).collect::<Vec<_>>(),
        "lanes": seen.lanes, "shards": seen.shards, "snapshots": seen.snapshots, "egroups": seen.egroups,
        "mapped_bytes": seen.mapped_blocks * 4096, "used_bytes": seen.used_blocks * 4096, "log_records": seen.log_records,
    });
    out.show(&value, |_| {
        format!(
            "{}{}{} lanes, {} shards, {} snapshots, {} egroups; {} MiB mapped, {} MiB used, {} records in logs\n",
            text(&report.findings),
            names(&report),
            seen.lanes,
            seen.shards,
            seen.snapshots,
            seen.egroups,
            seen.mapped_blocks / 256,
            seen.used_blocks / 256,
            seen.log_records,
        )
    })?;
    if report.findings.is_clean() {
        return out.line("clean");
    }
    Err(CliError::Unclean { count: report.findings.count, damage: report.findings.damage })
}

/// Makes the lanes of the pool on `disks` that cannot be opened openable again.
pub(crate) fn rescue(out: &mut Out<'_>, disks: &[PathBuf]) -> Result<(), CliError> {
    let outcome = on_disks(disks, true, async |flow, plugged| fsck::rescue(&flow, &plugged).await)?;
    let (found, lanes) = outcome.map_err(|error| CliError::Pool(Box::new(error)))?;
    let lane = |(lane, rescued): &(LaneNo, fsck::Rescued)| {
        json!({
            "lane": lane.0, "egroups": rescued.egroups, "maps_found": rescued.maps_found, "maps_made": rescued.maps_made,
            "log_records": rescued.log_records,
        })
    };
    let value = json!({ "findings": findings(&found), "lanes": lanes.iter().map(lane).collect::<Vec<_>>() });
    out.show(&value, |_| {
        let mut all = text(&found);
        for (lane, rescued) in &lanes {
            all += &format!(
                "lane {}: made again from {} egroups; {} maps found whole, {} made from extents; {} records of the log on top\n",
                lane.0, rescued.egroups, rescued.maps_found, rescued.maps_made, rescued.log_records
            );
        }
        if lanes.is_empty() {
            all += "every lane can be opened; nothing had to be made again\n";
        }
        all
    })
}

fn findings(findings: &Findings) -> serde_json::Value {
    let one = |finding: &Finding| {
        json!({
            "severity": severity(finding), "what": finding.what, "consequence": finding.consequence,
            "remedy": finding.remedy, "repaired": finding.repaired,
        })
    };
    findings.list.iter().map(one).collect()
}

fn severity(finding: &Finding) -> &'static str {
    match (finding.severity, finding.repaired) {
        (_, true) => "repaired",
        (Severity::Note, _) => "note",
        (Severity::Repairable, _) => "repairable",
        (Severity::Damage, _) => "damage",
    }
}

/// Which vdisks the findings speak of.
fn names(report: &fsck::Report) -> String {
    let mut all = String::new();
    for (number, name) in &report.vdisks {
        let word = format!("shard {number}.");
        if report.findings.list.iter().any(|finding| finding.what.contains(&word)) {
            all += &format!(
                "shards {number}.* are vdisk {name}, whose blocks count from its beginning, 4096 bytes each\n"
            );
        }
    }
    all
}

fn text(findings: &Findings) -> String {
    let mut all = String::new();
    for finding in &findings.list {
        let Finding { what, consequence, remedy, .. } = finding;
        all += &format!(
            "{}: {what}\n    what follows: {consequence}\n    what helps:   {remedy}\n",
            severity(finding)
        );
    }
    let more = findings.count.saturating_sub(findings.list.len() as u64);
    if more > 0 {
        all += &format!("and {more} more\n");
    }
    all
}

/// Runs a control flow over the disks, which is let write to them or not, on a reactor of its own in this thread.
fn on_disks<T: 'static>(
    disks: &[PathBuf],
    writes: bool,
    work: impl AsyncFnOnce(Flow, Vec<(DiskNo, u64)>) -> T + 'static,
) -> Result<T, CliError> {
    let pool = |error: Box<dyn std::error::Error + Send + Sync>| CliError::Pool(error);
    let config =
        ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock: Clock::system(), seed: 1 };
    let mut reactor = Reactor::new(&config).map_err(|error| pool(error.into()))?;
    let mut channels = Vec::with_capacity(disks.len());
    let mut open = Vec::with_capacity(disks.len());
    for (number, path) in disks.iter().enumerate() {
        let options = json!({ "name": format!("disk{number}"), "filename": path, "readonly": !writes });
        let options: UringOptions = serde_json::from_value(options).map_err(CliError::Params)?;
        let bdev: Arc<dyn Bdev> = Uring::new(options).map_err(|error| pool(error.into()))?;
        let mode = if writes { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
        let disk = Descriptor::unregistered(bdev, mode);
        channels.push(disk.channel(reactor.cx()).map_err(|error| pool(error.into()))?);
        open.push(disk);
    }
    let mut channels = Channels::new(channels);
    let (flow, plugged) = (Flow::new(), channels.plugged());
    let (sender, receiver) = std::sync::mpsc::channel();
    let mouth = flow.clone();
    let task = async move {
        // The receiver waits below.
        sender.send(work(mouth, plugged).await).unwrap_or_default();
    };
    reactor.cx().spawn(task).map_err(|error| pool(error.to_string().into()))?.detach();
    loop {
        reactor.turn();
        channels.turn(&flow, Tick::ZERO);
        if let Ok(outcome) = receiver.try_recv() {
            return Ok(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use penstock_fabric::format::superblock::Tier;
    use penstock_fabric::lane;
    use penstock_fabric::pool::{self, NewDisk, PoolOptions};

    use super::*;

    /// A file with an empty pool of two lanes.
    fn pool_in_a_file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("penstock-{name}-{}", std::process::id()));
        std::fs::File::create(&path).unwrap().set_len(256 << 20).unwrap();
        on_disks(std::slice::from_ref(&path), true, async |flow: Flow, plugged: Vec<(DiskNo, u64)>| {
            let (at, blocks) = plugged[0];
            let uuid = uuid::Uuid::from_u128(1);
            let options = PoolOptions { lanes: 2, segments: 4, ..PoolOptions::default() };
            let disks = [NewDisk { at, uuid, blocks, tier: Tier::Ssd }];
            pool::create(&flow, uuid::Uuid::from_u128(2), &disks, &options).await.unwrap();
            let pool = pool::open(&flow, &plugged).await.unwrap();
            let regions = pool.regions();
            for number in 0..2 {
                lane::format(&flow, &pool.place(LaneNo(number), &regions).unwrap()).await.unwrap();
            }
        })
        .unwrap();
        path
    }

    fn run(path: &std::path::Path, repair: bool, rescued: bool) -> (Result<(), CliError>, String) {
        let mut text = Vec::new();
        let mut out = Out { writer: &mut text, json: false };
        let disks = [path.to_owned()];
        let outcome = if rescued {
            rescue(&mut out, &disks)
        } else {
            check(&mut out, &disks, CheckOptions { data: true, repair })
        };
        (outcome, String::from_utf8(text).unwrap())
    }

    #[test]
    fn fsck_says_what_is_wrong_with_a_pool_in_a_file_and_mends_it() {
        use std::os::unix::fs::FileExt as _;
        let path = pool_in_a_file("fsck");
        let (outcome, text) = run(&path, false, false);
        assert!(outcome.is_ok() && text.contains("2 lanes") && text.ends_with("clean\n"), "{text}");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 4096], 0).unwrap();
        let (outcome, text) = run(&path, false, false);
        assert!(matches!(outcome, Err(CliError::Unclean { count: 1, damage: 0 })), "{text}");
        assert!(text.contains("repairable: disk 0: 1 of 4 copies"), "{text}");
        assert!(run(&path, true, false).0.is_ok() && run(&path, false, false).1.ends_with("clean\n"));
        // All of both lanes' checkpoints.
        file.write_all_at(&vec![0; 64 << 20], 33 << 20).unwrap();
        let (outcome, text) = run(&path, false, false);
        assert!(matches!(outcome, Err(CliError::Unclean { count: 2, damage: 2 })), "{text}");
        let (outcome, text) = run(&path, false, true);
        assert!(outcome.is_ok() && text.contains("lane 1: made again from 0 egroups"), "{text}");
        assert!(run(&path, false, false).1.ends_with("clean\n"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_pool_is_said_to_be_none() {
        let path = std::env::temp_dir().join(format!("penstock-nopool-{}", std::process::id()));
        std::fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
        assert!(matches!(run(&path, false, false).0, Err(CliError::Pool(_))));
        std::fs::remove_file(&path).unwrap();
    }
}
