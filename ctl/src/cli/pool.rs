//! `penstock pool`, `penstock container`.

use serde_json::{Value, json};

use crate::cli::args::{ContainerCommand, ContainerOptions, PoolCommand};
use crate::cli::client::Client;
use crate::cli::table::{Table, bytes, elements, number_of, text_of};
use crate::cli::{CliError, Out, size_of};

pub(crate) fn pool(client: &mut Client, out: &mut Out<'_>, command: PoolCommand) -> Result<(), CliError> {
    match command {
        PoolCommand::List => {
            let mut value = client.call("pool_list", json!({}))?;
            for pool in value.as_array_mut().into_iter().flatten() {
                with_stats(client, pool)?;
            }
            out.show(&value, list)
        }
        PoolCommand::Show { name } => {
            let name = which(client, name)?;
            let all = client.call("pool_list", json!({}))?;
            let is_it = |pool: &&Value| text_of(pool, "name") == name || text_of(pool, "uuid") == name;
            let mut pool =
                elements(&all).iter().find(is_it).cloned().unwrap_or_else(|| json!({ "name": name }));
            with_stats(client, &mut pool)?;
            out.show(&pool, show)
        }
        PoolCommand::Usage { name } => {
            let value = client.call("pool_get_usage", json!({ "pool": name }))?;
            out.show(&value, usage)
        }
        PoolCommand::Create { name, bdevs, tier, lanes, log, region, force } => {
            let mib = |text: Option<String>| text.map(|text| Ok(size_of(&text)? >> 20)).transpose();
            let params = json!({
                "name": name, "bdevs": bdevs, "tier": tier, "lanes": lanes, "log_mib": mib(log)?,
                "region_mib": mib(region)?, "force": force,
            });
            let uuid = client.call("pool_create", params)?;
            out.show(&uuid, |uuid| format!("made pool {name} ({})\n", uuid.as_str().unwrap_or_default()))
        }
        PoolCommand::Delete { name, force } => {
            client.call("pool_delete", json!({ "name": name, "force": force }))?;
            out.line(&format!("deleted pool {name}"))
        }
    }
}

/// The pool that is named, or the only one.
fn which(client: &mut Client, name: Option<String>) -> Result<String, CliError> {
    match name {
        Some(name) => Ok(name),
        None => Ok(text_of(&client.call("pool_get_stats", json!({}))?, "name")),
    }
}

/// Puts how full it is into the description of a pool that is open.
fn with_stats(client: &mut Client, pool: &mut Value) -> Result<(), CliError> {
    if text_of(pool, "state") != "open" {
        return Ok(());
    }
    let stats = client.call("pool_get_stats", json!({ "pool": text_of(pool, "uuid") }))?;
    if let Some(members) = pool.as_object_mut() {
        members.insert("stats".to_owned(), stats);
    }
    Ok(())
}

/// What is wrong with a pool that is open, in a word or two.
fn health(pool: &Value) -> String {
    let Some(stats) = pool.get("stats") else { return text_of(pool, "state") };
    match (
        number_of(stats, "failed_lanes"),
        number_of(stats, "full_lanes"),
        number_of(stats, "above_percent"),
    ) {
        (1.., _, _) => "takes no writes".to_owned(),
        (_, 1.., _) => "full".to_owned(),
        (_, _, percent @ 1..) => format!("above {percent} %"),
        _ => "ok".to_owned(),
    }
}

fn list(value: &Value) -> String {
    let head = ["POOL", "STATE", "DISKS", "VDISKS", "SNAPSHOTS", "CAPACITY", "FREE", "USED"];
    let mut table = Table::new(&head, 2);
    for pool in elements(value) {
        let stats = pool.get("stats").cloned().unwrap_or_default();
        let name = if pool.get("name").is_some() { text_of(pool, "name") } else { text_of(pool, "uuid") };
        let disks = pool.get("disks").map_or(0, |disks| elements(disks).len());
        table.row([
            name,
            health(pool),
            disks.to_string(),
            text_of(pool, "vdisks"),
            text_of(pool, "snapshots"),
            bytes(number_of(&stats, "capacity_bytes")),
            bytes(number_of(&stats, "free_bytes")),
            format!("{} %", number_of(&stats, "used_percent")),
        ]);
    }
    table.text("no pools")
}

fn show(pool: &Value) -> String {
    let mut text = format!("{} ({}): {}\n", text_of(pool, "name"), text_of(pool, "uuid"), health(pool));
    let mut table = Table::new(&["DISK", "TIER", "UUID", "SIZE"], 3);
    for disk in pool.get("disks").map(elements).unwrap_or_default() {
        let size = bytes(number_of(disk, "bytes"));
        table.row([text_of(disk, "bdev"), text_of(disk, "tier"), text_of(disk, "uuid"), size]);
    }
    text += &table.text("no disks");
    let Some(stats) = pool.get("stats") else { return text };
    let mut table = Table::new(&["SPACE", "BYTES"], 1);
    for (words, member) in [
        ("capacity", "capacity_bytes"),
        ("free", "free_bytes"),
        ("occupied by data and maps", "used_bytes"),
        ("of that garbage, to be collected", "garbage_bytes"),
        ("data and maps, not compressed", "decoded_bytes"),
        ("mapped by vdisks", "mapped_bytes"),
        ("in the log, to be put in place", "undrained_bytes"),
    ] {
        table.row([words.to_owned(), bytes(number_of(stats, member))]);
    }
    text += &table.text("");
    let segments = (number_of(stats, "log_segments_used"), number_of(stats, "log_segments"));
    text += &format!(
        "{} lanes ({} full, {} failed), {} of {} log segments in use, {} checksum errors\n",
        number_of(pool, "lanes"),
        number_of(stats, "full_lanes"),
        number_of(stats, "failed_lanes"),
        segments.0,
        segments.1,
        number_of(stats, "checksum_errors"),
    );
    text
}

fn usage(value: &Value) -> String {
    let mut table = Table::new(&["VDISK", "SIZE", "MAPPED", "ALONE", "SHARED", "FREED BY DELETING"], 1);
    for vdisk in value.get("vdisks").map(elements).unwrap_or_default() {
        let size = |member| bytes(number_of(vdisk, member));
        let name = text_of(vdisk, "name");
        let cells =
            ["bytes", "mapped_bytes", "exclusive_bytes", "shared_bytes", "with_snapshots_bytes"].map(size);
        table.row(std::iter::once(name.clone()).chain(cells));
        for snapshot in vdisk.get("snapshots").map(elements).unwrap_or_default() {
            let (mapped, alone) =
                (number_of(snapshot, "mapped_bytes"), number_of(snapshot, "exclusive_bytes"));
            let shared = bytes(mapped.saturating_sub(alone));
            let row = [bytes(mapped), bytes(alone), shared, bytes(alone)];
            let name = [format!("{name}@{}", text_of(snapshot, "name")), "-".to_owned()];
            table.row(name.into_iter().chain(row));
        }
    }
    let mut text = table.text("no vdisks");
    let mut table = Table::new(&["TECHNIQUE", "BEFORE", "AFTER", "SAVED", "RATIO"], 1);
    for one in value.pointer("/reduction/techniques").map(elements).unwrap_or_default() {
        let size = |member| bytes(number_of(one, member));
        let ratio =
            one.get("ratio").and_then(Value::as_f64).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let [before, after, saved] = ["before_bytes", "after_bytes", "saved_bytes"].map(size);
        table.row([text_of(one, "technique"), before, after, saved, ratio]);
    }
    text.push('\n');
    text += &table.text("");
    let undrained = number_of(value, "undrained_bytes");
    if undrained > 0 {
        text += &format!("not counted: {} that wait in the log\n", bytes(undrained));
    }
    text
}

pub(crate) fn container(
    client: &mut Client,
    out: &mut Out<'_>,
    command: ContainerCommand,
) -> Result<(), CliError> {
    match command {
        ContainerCommand::List { pool } => {
            let pools = match pool {
                Some(pool) => vec![pool],
                None => {
                    let all = client.call("pool_list", json!({}))?;
                    let open = elements(&all).iter().filter(|pool| text_of(pool, "state") == "open");
                    open.map(|pool| text_of(pool, "uuid")).collect()
                }
            };
            let mut all = Vec::new();
            for pool in pools {
                all.extend_from_slice(elements(&client.call("container_list", json!({ "pool": pool }))?));
            }
            out.show(&Value::Array(all), containers)
        }
        ContainerCommand::Create { name, options } => {
            client.call("container_create", params(&name, options)?)?;
            out.line(&format!("made container {name}"))
        }
        ContainerCommand::Set { name, options } => {
            client.call("container_update", params(&name, options)?)?;
            out.line("done")
        }
        ContainerCommand::Delete { name, pool } => {
            client.call("container_delete", json!({ "name": name, "pool": pool }))?;
            out.line(&format!("deleted container {name}"))
        }
    }
}

fn params(name: &str, options: ContainerOptions) -> Result<Value, CliError> {
    let size = |text: Option<String>| text.map(|text| size_of(&text)).transpose();
    Ok(json!({
        "name": name,
        "pool": options.pool,
        "limit_bytes": size(options.limit)?,
        "reserved_bytes": size(options.reserve)?,
        "compression": options.compression,
        "compression_delay_s": options.compression_delay,
    }))
}

fn containers(value: &Value) -> String {
    let head = ["CONTAINER", "POOL", "COMPRESSION", "COPIES", "VDISKS", "MAPPED", "LIMIT", "RESERVED"];
    let mut table = Table::new(&head, 3);
    for one in elements(value) {
        let compression = match one.get("compression_delay_s").and_then(Value::as_u64) {
            Some(delay) => format!("{} after {delay} s", text_of(one, "compression")),
            None => text_of(one, "compression"),
        };
        let limit = one.get("limit_bytes").and_then(Value::as_u64).map_or("-".to_owned(), bytes);
        table.row([
            text_of(one, "name"),
            text_of(one, "pool"),
            compression,
            text_of(one, "replication_factor"),
            text_of(one, "vdisks"),
            bytes(number_of(one, "mapped_bytes")),
            limit,
            bytes(number_of(one, "reserved_bytes")),
        ]);
    }
    table.text("no containers")
}
