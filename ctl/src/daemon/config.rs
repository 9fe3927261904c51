//! Configuration and state files: TOML, or JSON in the shape of SPDK's `save_config`.
//!
//! ```toml
//! [daemon]                       # every flag of penstockd, with _ for -
//! reactors = 2
//! metrics = "127.0.0.1:9440"
//!
//! [[subsystems]]                 # methods of the control socket, in order
//! subsystem = "bdev"
//! config = [{ method = "bdev_malloc_create", params = { name = "m0", num_blocks = 131072, block_size = 512 } }]
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::daemon::DaemonError;
use crate::daemon::options::Settings;

/// Bytes of a file at most.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A call of a method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The method.
    pub method: String,
    /// Its parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
}

/// The calls that make one subsystem what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsystemCalls {
    /// Which subsystem.
    pub subsystem: String,
    /// The calls, in order; SPDK writes null for none.
    pub config: Option<Vec<Call>>,
}

/// The calls that make the whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calls {
    /// In the order of initialisation.
    pub subsystems: Vec<SubsystemCalls>,
}

impl Calls {
    /// All calls, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Call> {
        self.subsystems.iter().flat_map(|subsystem| subsystem.config.iter().flatten())
    }
}

/// A configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    /// Settings of the daemon itself.
    pub(crate) daemon: Settings,
    /// Objects.
    pub(crate) subsystems: Vec<SubsystemCalls>,
}

/// Reads a configuration file: JSON where it begins with a brace, else TOML.
pub(crate) fn read(path: &Path) -> Result<File, DaemonError> {
    let text = read_text(path)?;
    let bad =
        |problem: String| DaemonError::BadFile { path: path.to_owned(), kind: "configuration", problem };
    if text.trim_start().starts_with('{') {
        let mut json = serde_json::Deserializer::from_str(&text);
        let file = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| bad(format!("{} (at {})", error.inner(), error.path())))?;
        json.end().map_err(|error| bad(error.to_string()))?;
        return Ok(file);
    }
    toml::from_str(&text).map_err(|error| bad(error.to_string().trim_end().to_owned()))
}

pub(crate) fn read_text(path: &Path) -> Result<String, DaemonError> {
    let file = |what, source| DaemonError::File { what, path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(|source| file("read", source))?.len();
    if length > FILE_BYTES_MAX {
        let problem = format!("it has {length} bytes; at most {FILE_BYTES_MAX} are read");
        return Err(DaemonError::BadFile { path: path.to_owned(), kind: "configuration", problem });
    }
    std::fs::read_to_string(path).map_err(|source| file("read", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<File, String> {
        let path = std::env::temp_dir().join(format!("penstock-config-{}-{:p}", std::process::id(), &text));
        std::fs::write(&path, text).unwrap();
        let file = read(&path).map_err(|error| error.to_string());
        std::fs::remove_file(&path).unwrap();
        file
    }

    #[test]
    fn toml_and_spdks_json_say_the_same() {
        let toml = "[daemon]\nreactors = 3\n[[subsystems]]\nsubsystem = \"bdev\"\n\
                    config = [{ method = \"bdev_null_create\", params = { name = \"n0\", num_blocks = 8 } }]\n";
        let json = r#"{"daemon": {"reactors": 3}, "subsystems": [{"subsystem": "bdev", "config":
            [{"method": "bdev_null_create", "params": {"name": "n0", "num_blocks": 8}}]}]}"#;
        let (toml, json) = (parsed(toml).unwrap(), parsed(json).unwrap());
        assert_eq!(toml.subsystems, json.subsystems);
        assert_eq!((toml.daemon.reactors, json.daemon.reactors), (Some(3), Some(3)));
        let empty = parsed(r#"{"subsystems": [{"subsystem": "sock", "config": null}]}"#).unwrap();
        assert_eq!(empty.subsystems.len(), 1);
    }

    #[test]
    fn a_word_that_is_not_known_is_named_with_its_place() {
        let toml = parsed("[daemon]\nreactor = 3\n").unwrap_err();
        assert!(toml.contains("`reactor`") && toml.contains("line 2"), "{toml}");
        let json = parsed(r#"{"subsystems": [{"subsystem": "bdev", "confg": []}]}"#).unwrap_err();
        assert!(json.contains("`confg`") && json.contains("subsystems[0]"), "{json}");
        assert!(parsed(r#"{"subsystems": []} x"#).unwrap_err().contains("trailing"));
    }
}
