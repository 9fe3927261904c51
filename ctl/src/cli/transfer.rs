//! `penstock import`, `penstock export`: jobs of the daemon's, watched to their end.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::args::{ExportOptions, ImportOptions};
use crate::cli::client::Client;
use crate::cli::table::{bytes, elements, number_of, text_of};
use crate::cli::{CliError, Out};

/// Between two looks at a job.
const LOOK: Duration = Duration::from_millis(200);
/// Characters of the bar.
const BAR: u64 = 30;

pub(crate) fn import(client: &mut Client, out: &mut Out<'_>, options: ImportOptions) -> Result<(), CliError> {
    let stem = options.file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = options.name.or(stem).unwrap_or_default();
    let params = json!({
        "name": name, "path": absolute(&options.file)?, "format": options.format, "pool": options.pool,
        "container": options.container, "block_size": options.block_size,
    });
    let id = client.call("vdisk_import", params)?;
    let job = watch(client, &id, options.detach)?;
    finish(out, &job, |job| {
        format!(
            "imported {} as vdisk {name}: {}, of which {} were written\n",
            options.file.display(),
            bytes(number_of(job, "bytes")),
            bytes(number_of(job, "written_bytes")),
        )
    })
}

pub(crate) fn export(client: &mut Client, out: &mut Out<'_>, options: ExportOptions) -> Result<(), CliError> {
    let (vdisk, snapshot) = match options.vdisk.rsplit_once('@') {
        Some((vdisk, snapshot)) => (vdisk, Some(snapshot)),
        None => (options.vdisk.as_str(), None),
    };
    let params = json!({ "vdisk": vdisk, "snapshot": snapshot, "path": absolute(&options.file)? });
    let id = client.call("vdisk_export", params)?;
    let job = watch(client, &id, options.detach)?;
    finish(out, &job, |job| {
        format!(
            "exported {} to {}: {}, of which {} were written\n",
            options.vdisk,
            options.file.display(),
            bytes(number_of(job, "bytes")),
            bytes(number_of(job, "written_bytes")),
        )
    })
}

/// The daemon has a working directory of its own.
fn absolute(path: &Path) -> Result<String, CliError> {
    let of_file = |source| CliError::File { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(of_file)?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| CliError::Usage(format!("{} is no path of UTF-8", path.display())))
}

/// Waits for a job's end, and shows how far it is where somebody looks.
fn watch(client: &mut Client, id: &Value, detach: bool) -> Result<Value, CliError> {
    let look = std::io::stderr().is_terminal();
    loop {
        let jobs = client.call("job_list", json!({}))?;
        let job = elements(&jobs).iter().find(|job| job.get("id") == Some(id)).cloned().unwrap_or_default();
        if text_of(&job, "state") != "running" || detach {
            if look && !detach {
                eprintln!("\r{}", progress(&job));
            }
            return Ok(job);
        }
        if look {
            eprint!("\r{}", progress(&job));
            // A bar that is late is no reason to stop.
            drop(std::io::stderr().flush());
        }
        std::thread::sleep(LOOK);
    }
}

/// A bar, like `[######      ] 50 % 2.0 GiB of 4.0 GiB`.
fn progress(job: &Value) -> String {
    let (done, all) = (number_of(job, "done_bytes"), number_of(job, "bytes"));
    let share = |of: u64| u64::try_from(u128::from(done.min(all)) * u128::from(of) / u128::from(all.max(1)));
    let (full, percent) = (share(BAR).unwrap_or(0), if all == 0 { 100 } else { share(100).unwrap_or(0) });
    let bar: String = (0..BAR).map(|at| if at < full { '#' } else { ' ' }).collect();
    format!("[{bar}] {percent:3} % {} of {}  ", bytes(done), bytes(all))
}

fn finish(out: &mut Out<'_>, job: &Value, words: impl FnOnce(&Value) -> String) -> Result<(), CliError> {
    match text_of(job, "state").as_str() {
        "done" => out.show(job, words),
        "running" => {
            out.show(job, |job| format!("job {} goes on: penstock rpc job_list\n", text_of(job, "id")))
        }
        _ => Err(CliError::Job {
            kind: text_of(job, "kind"),
            vdisk: text_of(job, "vdisk"),
            error: text_of(job, "error"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_long_as_the_share_that_is_done() {
        let half = progress(&json!({ "done_bytes": 2_u64 << 30, "bytes": 4_u64 << 30 }));
        assert_eq!(half, format!("[{}{}]  50 % 2.0 GiB of 4.0 GiB  ", "#".repeat(15), " ".repeat(15)));
        assert!(progress(&json!({ "done_bytes": 0, "bytes": 0 })).contains("100 %"));
    }
}
