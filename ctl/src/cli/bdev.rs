//! `penstock bdev`.

use serde_json::{Value, json};

use crate::cli::args::{BdevCommand, CreateCommand, InjectError, InjectIo};
use crate::cli::client::Client;
use crate::cli::table::{Table, bytes, elements, number_of, text_of, time_ns};
use crate::cli::{CliError, Out, histogram, size_of};

pub(crate) fn run(client: &mut Client, out: &mut Out<'_>, command: BdevCommand) -> Result<(), CliError> {
    match command {
        BdevCommand::List => {
            let value = client.call("bdev_get_bdevs", json!({}))?;
            out.show(&value, list)
        }
        BdevCommand::Show { name } => {
            let value = client.call("bdev_get_bdevs", json!({"name": name}))?;
            out.value(value.get(0).unwrap_or(&Value::Null))
        }
        BdevCommand::Create(command) => {
            let (method, params) = create(command)?;
            let name = client.call(method, params)?;
            out.show(&name, |name| match name.as_array() {
                Some(names) => format!(
                    "made {}\n",
                    names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
                ),
                None => format!("made {}\n", name.as_str().unwrap_or_default()),
            })
        }
        BdevCommand::Delete { name } => {
            client.call("penstock_bdev_delete", json!({"name": name}))?;
            out.line(&format!("deleted {name}"))
        }
        BdevCommand::Resize { name, size } => {
            let size = size.as_deref().map(size_of).transpose()?;
            let blocks = client.call("penstock_bdev_resize", json!({"name": name, "bytes": size}))?;
            out.show(&blocks, |value| format!("{name} has {}\n", bytes(number_of(value, "bytes"))))
        }
        BdevCommand::Qos { name, iops, mib, read_mib, write_mib } => {
            let params = json!({"name": name, "rw_ios_per_sec": iops, "rw_mbytes_per_sec": mib,
                "r_mbytes_per_sec": read_mib, "w_mbytes_per_sec": write_mib});
            client.call("bdev_set_qos_limit", params)?;
            out.line("done")
        }
        BdevCommand::Latency { name, which, us } => {
            let params = json!({"delay_bdev_name": name, "latency_type": which, "latency_us": us});
            client.call("bdev_delay_update_latency", params)?;
            out.line("done")
        }
        BdevCommand::Inject { name, io, error, num, lba, blocks, per_mille, xor } => {
            let params = json!({"name": name, "io_type": io, "error_type": error_of(io, error)?, "num": num,
                "lba": lba, "num_blocks": blocks, "rate_per_mille": per_mille, "corrupt_value": xor});
            client.call("bdev_error_inject_error", params)?;
            out.line("done")
        }
        BdevCommand::Stat { reset } => {
            let reset_mode = if reset { "all" } else { "none" };
            let value = client.call("bdev_get_iostat", json!({"reset_mode": reset_mode}))?;
            out.show(&value, stat)
        }
        BdevCommand::Histogram(command) => histogram::run(client, out, "bdev", command),
    }
}

/// What happens to I/Os; the method wants a word with clear too.
fn error_of(io: InjectIo, error: Option<InjectError>) -> Result<InjectError, CliError> {
    match (io, error) {
        (InjectIo::Clear, None) => Ok(InjectError::Failure),
        (InjectIo::Clear, Some(_)) => {
            Err(CliError::Usage("clear takes all rules away; no kind of error goes with it".into()))
        }
        (_, Some(error)) => Ok(error),
        (_, None) => {
            Err(CliError::Usage("say what is to happen: failure, pending, corrupt-data or nomem".into()))
        }
    }
}

fn create(command: CreateCommand) -> Result<(&'static str, Value), CliError> {
    let (method, name, size, block_size) = match command {
        CreateCommand::Uring { name, file, size, block_size, readonly } => {
            // The daemon has a working directory of its own.
            let file = std::path::absolute(&file).map_err(|source| CliError::File { path: file, source })?;
            let size_mib = size.as_deref().map(size_of).transpose()?.map(|bytes| bytes >> 20);
            let params = json!({"name": name, "filename": file, "block_size": block_size,
                "create_size_mib": size_mib, "readonly": readonly});
            return Ok(("bdev_uring_create", params));
        }
        CreateCommand::Delay { name, base, read, read_p99, write, write_p99 } => {
            let params = json!({"name": name, "base_bdev_name": base,
                "avg_read_latency": read, "p99_read_latency": read_p99.unwrap_or(read),
                "avg_write_latency": write, "p99_write_latency": write_p99.unwrap_or(write)});
            return Ok(("bdev_delay_create", params));
        }
        CreateCommand::Error { base } => return Ok(("bdev_error_create", json!({"base_name": base}))),
        CreateCommand::Split { base, parts, size } => {
            let size_mib = size.as_deref().map(size_of).transpose()?.map(|bytes| bytes >> 20);
            let params = json!({"base_bdev": base, "split_count": parts, "split_size_mb": size_mib});
            return Ok(("bdev_split_create", params));
        }
        CreateCommand::Passthru { name, base } => {
            return Ok(("bdev_passthru_create", json!({"name": name, "base_bdev_name": base})));
        }
        CreateCommand::Null { name, size, block_size } => ("bdev_null_create", name, size, block_size),
        CreateCommand::Malloc { name, size, block_size } => ("bdev_malloc_create", name, size, block_size),
    };
    let blocks = size_of(&size)? / usize::try_from(block_size.max(1)).unwrap_or(usize::MAX);
    Ok((method, json!({"name": name, "num_blocks": blocks, "block_size": block_size})))
}

fn list(value: &Value) -> String {
    let mut table = Table::new(&["NAME", "KIND", "USED BY", "BLOCK", "SIZE"], 3);
    for bdev in elements(value) {
        let users: Vec<&str> =
            bdev.get("users").map(elements).unwrap_or_default().iter().filter_map(Value::as_str).collect();
        let size = number_of(bdev, "num_blocks").saturating_mul(number_of(bdev, "block_size"));
        let users = if users.is_empty() { "-".to_owned() } else { users.join(", ") };
        let cells = [text_of(bdev, "name"), text_of(bdev, "product_name"), users];
        table.row(cells.into_iter().chain([text_of(bdev, "block_size"), bytes(size)]));
    }
    table.text("no bdevs; make one with penstock bdev create")
}

fn stat(value: &Value) -> String {
    let mut table = Table::new(
        &["NAME", "READS", "READ", "AVERAGE", "LONGEST", "WRITES", "WRITTEN", "AVERAGE", "LONGEST", "QUEUED"],
        1,
    );
    for bdev in value.get("bdevs").map(elements).unwrap_or_default() {
        let mut cells = vec![text_of(bdev, "name")];
        for (word, moved) in [("read", "bytes_read"), ("write", "bytes_written")] {
            let ops = number_of(bdev, &format!("num_{word}_ops"));
            let average = number_of(bdev, &format!("{word}_latency_ticks")).checked_div(ops).unwrap_or(0);
            let longest = number_of(bdev, &format!("max_{word}_latency_ticks"));
            cells.extend([
                ops.to_string(),
                bytes(number_of(bdev, moved)),
                time_ns(average),
                time_ns(longest),
            ]);
        }
        cells.push(text_of(bdev, "queue_depth"));
        table.row(cells);
    }
    table.text("no bdevs")
}
