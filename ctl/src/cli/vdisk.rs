//! `penstock vdisk`, `penstock snapshot`, `penstock why`.

use serde_json::{Value, json};

use crate::cli::args::{SnapshotCommand, VdiskCommand};
use crate::cli::client::Client;
use crate::cli::table::{Table, bytes, elements, number_of, text_of};
use crate::cli::{CliError, Out, size_of};

pub(crate) fn vdisk(client: &mut Client, out: &mut Out<'_>, command: VdiskCommand) -> Result<(), CliError> {
    match command {
        VdiskCommand::List => {
            let value = client.call("vdisk_get", json!({}))?;
            out.show(&value, list)
        }
        VdiskCommand::Show { name } => {
            let value = client.call("vdisk_get", json!({ "name": name }))?;
            out.value(value.get(0).unwrap_or(&Value::Null))
        }
        VdiskCommand::Create { name, size, pool, container, block_size, shards } => {
            let params = json!({
                "name": name, "bytes": size_of(&size)?, "pool": pool, "container": container,
                "block_size": block_size, "shards": shards,
            });
            let uuid = client.call("vdisk_create", params)?;
            out.show(&uuid, |uuid| format!("made vdisk {name} ({})\n", uuid.as_str().unwrap_or_default()))
        }
        VdiskCommand::Delete { names, snapshots, force } => {
            for name in names {
                let params = json!({ "name": name, "snapshots": snapshots, "force": force });
                client.call("vdisk_delete", params)?;
                out.line(&format!("deleted {name}"))?;
            }
            Ok(())
        }
        VdiskCommand::Resize { name, size, shrink } => {
            let size = size_of(&size)?;
            client.call("vdisk_resize", json!({ "name": name, "bytes": size, "shrink": shrink }))?;
            out.line(&format!("{name} has {}", bytes(size as u64)))
        }
        VdiskCommand::Rename { name, new_name } => {
            client.call("vdisk_rename", json!({ "name": name, "new_name": new_name }))?;
            out.line(&format!("{name} is {new_name} now"))
        }
    }
}

fn list(value: &Value) -> String {
    let head = ["VDISK", "POOL", "CONTAINER", "CLONE OF", "STATE", "SIZE", "MAPPED", "SNAPSHOTS"];
    let mut table = Table::new(&head, 5);
    for vdisk in elements(value) {
        let words = ["name", "pool", "container", "clone_of", "state"].map(|member| text_of(vdisk, member));
        let sizes = ["bytes", "mapped_bytes"].map(|member| bytes(number_of(vdisk, member)));
        table.row(words.into_iter().chain(sizes).chain([text_of(vdisk, "snapshots")]));
    }
    table.text("no vdisks")
}

pub(crate) fn snapshot(
    client: &mut Client,
    out: &mut Out<'_>,
    command: SnapshotCommand,
) -> Result<(), CliError> {
    match command {
        SnapshotCommand::List { vdisk } => {
            let vdisks = match vdisk {
                Some(vdisk) => vec![vdisk],
                None => {
                    let all = client.call("vdisk_get", json!({}))?;
                    elements(&all).iter().map(|vdisk| text_of(vdisk, "uuid")).collect()
                }
            };
            let mut all = Vec::new();
            for vdisk in vdisks {
                let found = client.call("vdisk_snapshot_list", json!({ "vdisk": vdisk }))?;
                all.extend_from_slice(elements(&found));
            }
            out.show(&Value::Array(all), snapshots)
        }
        SnapshotCommand::Create { name, vdisks } => {
            let made = client.call("vdisk_snapshot", json!({ "name": name, "vdisks": vdisks }))?;
            out.show(&made, |_| vdisks.iter().map(|vdisk| format!("made {vdisk}@{name}\n")).collect())
        }
        SnapshotCommand::Delete { snapshots } => {
            for snapshot in snapshots {
                client.call("vdisk_snapshot_delete", of(&snapshot)?)?;
                out.line(&format!("deleted {snapshot}"))?;
            }
            Ok(())
        }
        SnapshotCommand::Show { snapshot } => {
            let bdev = client.call("vdisk_snapshot_show", of(&snapshot)?)?;
            out.show(&bdev, |bdev| format!("{snapshot} is bdev {}\n", bdev.as_str().unwrap_or_default()))
        }
        SnapshotCommand::Hide { snapshot } => {
            client.call("vdisk_snapshot_hide", of(&snapshot)?)?;
            out.line("done")
        }
        SnapshotCommand::Clone { snapshot, name } => {
            let mut params = of(&snapshot)?;
            if let Some(members) = params.as_object_mut() {
                members.insert("name".to_owned(), json!(name));
            }
            let uuid = client.call("vdisk_clone", params)?;
            out.show(&uuid, |uuid| format!("made vdisk {name} ({})\n", uuid.as_str().unwrap_or_default()))
        }
        SnapshotCommand::Revert { snapshot } => {
            client.call("vdisk_revert", of(&snapshot)?)?;
            out.line("done")
        }
        SnapshotCommand::Diff { snapshot, from } => {
            let (vdisk, to) = parts(&snapshot)?;
            let ranges = diff(client, vdisk, from.as_deref(), to)?;
            out.show(&Value::Array(ranges), |ranges| {
                let mut table = Table::new(&["WHAT", "OFFSET", "BYTES"], 1);
                for range in elements(ranges) {
                    let zero = range.get("zero").and_then(Value::as_bool).unwrap_or(false);
                    let what = if zero { "zeroed" } else { "changed" };
                    table.row([what.to_owned(), text_of(range, "offset"), text_of(range, "bytes")]);
                }
                table.text("no differences")
            })
        }
    }
}

/// All ranges that differ, in order, however many answers that takes.
pub(crate) fn diff(
    client: &mut Client,
    vdisk: &str,
    from: Option<&str>,
    to: &str,
) -> Result<Vec<Value>, CliError> {
    let mut all = Vec::new();
    let mut start = 0;
    loop {
        let params = json!({ "vdisk": vdisk, "from": from, "to": to, "start": start });
        let answer = client.call("vdisk_diff", params)?;
        all.extend_from_slice(answer.get("ranges").map(elements).unwrap_or_default());
        match answer.get("next").and_then(Value::as_u64) {
            Some(next) => start = next,
            None => return Ok(all),
        }
    }
}

/// A vdisk and its snapshot, as people write them.
fn parts(text: &str) -> Result<(&str, &str), CliError> {
    let usage = || CliError::Usage(format!("{text:?} is no snapshot; write VDISK@SNAPSHOT"));
    text.rsplit_once('@').filter(|(vdisk, name)| !vdisk.is_empty() && !name.is_empty()).ok_or_else(usage)
}

fn of(text: &str) -> Result<Value, CliError> {
    let (vdisk, snapshot) = parts(text)?;
    Ok(json!({ "vdisk": vdisk, "snapshot": snapshot }))
}

fn snapshots(value: &Value) -> String {
    let mut table = Table::new(&["SNAPSHOT", "TAKEN", "SHOWN AS", "GROUP", "SIZE"], 3);
    for one in elements(value) {
        table.row([
            format!("{}@{}", text_of(one, "vdisk"), text_of(one, "name")),
            utc(number_of(one, "created")),
            text_of(one, "bdev"),
            text_of(one, "group"),
            bytes(number_of(one, "bytes")),
        ]);
    }
    table.text("no snapshots")
}

/// Seconds since 1970 as a date and a time in UTC.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days of the Gregorian calendar, in eras of 400 years that begin in March (Howard Hinnant's algorithm).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

pub(crate) fn why(client: &mut Client, out: &mut Out<'_>, vdisk: &str) -> Result<(), CliError> {
    let value = client.call("vdisk_why", json!({ "vdisk": vdisk }))?;
    out.show(&value, |value| {
        let mut text = format!("{} is {}\n", text_of(value, "name"), text_of(value, "state"));
        for cause in value.get("causes").map(elements).unwrap_or_default() {
            text += &format!(
                "- {}\n    evidence: {}\n    next:     {}\n",
                text_of(cause, "cause"),
                text_of(cause, "evidence"),
                text_of(cause, "next")
            );
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_273_445), "2026-11-21 15:04:05 UTC");
    }

    #[test]
    fn a_snapshot_is_written_with_its_vdisk() {
        assert_eq!(parts("vd0@monday").unwrap(), ("vd0", "monday"));
        for wrong in ["vd0", "@x", "vd0@", ""] {
            assert!(parts(wrong).unwrap_err().to_string().contains("VDISK@SNAPSHOT"), "{wrong}");
        }
    }
}
