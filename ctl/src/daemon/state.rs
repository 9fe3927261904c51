//! The state file: the live configuration, replaced as a whole after every change.
//!
//! A crash at any moment leaves the old file or the new one: the new one is written beside it, made durable, renamed
//! over it, and the directory is made durable.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::daemon::DaemonError;
use crate::daemon::config::{self, Calls, SubsystemCalls};

/// The format that this daemon writes; it reads this one and older ones.
pub const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    penstock_state: u32,
    subsystems: Vec<SubsystemCalls>,
}

/// Reads a state file; `None` where there is none yet.
///
/// # Errors
/// Where it cannot be read, is none, or is of a newer format.
pub fn read(path: &Path) -> Result<Option<Calls>, DaemonError> {
    if !path.try_exists().map_err(|source| file("look for", path, source))? {
        return Ok(None);
    }
    let bad = |problem: String| DaemonError::BadFile { path: path.to_owned(), kind: "state file", problem };
    let text = config::read_text(path)?;
    let contents: Contents = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    if contents.penstock_state > FORMAT {
        let format = contents.penstock_state;
        return Err(bad(format!(
            "its format is {format}, and this daemon reads up to {FORMAT}; use a newer one"
        )));
    }
    Ok(Some(Calls { subsystems: contents.subsystems }))
}

/// Replaces the state file. Blocks until the new one is durable.
///
/// # Errors
/// What the file system says; the old file is then still there.
pub fn write(path: &Path, calls: Calls) -> Result<(), DaemonError> {
    let contents = Contents { penstock_state: FORMAT, subsystems: calls.subsystems };
    let mut bytes =
        serde_json::to_vec_pretty(&contents).map_err(|error| file("write", path, io::Error::other(error)))?;
    bytes.push(b'\n');
    replace(path, &bytes)
}

/// Replaces a file that nobody else may read. Blocks until the new one is durable.
///
/// # Errors
/// What the file system says; the old file is then still there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), DaemonError> {
    let beside = beside(path);
    let mut new = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(|source| file("create", &beside, source))?;
    new.write_all(bytes).map_err(|source| file("write", &beside, source))?;
    new.sync_all().map_err(|source| file("sync", &beside, source))?;
    std::fs::rename(&beside, path).map_err(|source| file("replace", path, source))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let opened = File::open(directory).map_err(|source| file("open", directory, source))?;
    opened.sync_all().map_err(|source| file("sync", directory, source))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn file(what: &'static str, path: &Path, source: io::Error) -> DaemonError {
    DaemonError::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::daemon::config::Call;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("penstock-state-{}-{name}", std::process::id()));
        drop(std::fs::remove_file(&path));
        path
    }

    #[test]
    fn what_was_written_is_read_again_and_nothing_is_left_beside() {
        let path = scratch("round");
        assert_eq!(read(&path).unwrap(), None);
        let call = Call { method: "bdev_null_create".into(), params: Some(json!({"name": "n0"})) };
        let calls =
            Calls { subsystems: vec![SubsystemCalls { subsystem: "bdev".into(), config: Some(vec![call]) }] };
        write(&path, Calls::default()).unwrap();
        write(&path, calls.clone()).unwrap();
        assert_eq!(read(&path).unwrap(), Some(calls));
        assert!(!beside(&path).exists());
    }

    #[test]
    fn a_newer_format_is_refused_and_rubbish_too() {
        let path = scratch("newer");
        std::fs::write(&path, r#"{"penstock_state": 2, "subsystems": []}"#).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("use a newer one"));
        std::fs::write(&path, "{").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no valid state file"));
    }
}
