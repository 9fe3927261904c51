//! Steps, their record, and their undoing.

use std::fmt;
use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::root::{Root, SetupError};

/// Where it is noted what was there before.
const RECORD: &str = "/var/lib/penstock/hugepage-setup.json";

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub(crate) enum Step {
    /// Write a file.
    Write {
        path: String,
        value: String,
        /// What it held; empty where it holds nothing that could be put back.
        before: String,
    },
    /// Load a kernel module.
    Load { module: String },
}

impl Step {
    pub(crate) fn write(path: String, value: &str, before: &str) -> Self {
        Self::Write { path, value: value.to_owned(), before: before.to_owned() }
    }

    fn run(&self, root: &Root) -> Result<(), SetupError> {
        match self {
            Self::Write { path, value, .. } => root.write(path, value),
            Self::Load { module } if root.is_real() => {
                let ran = Command::new("modprobe").arg(module).output();
                let problem = match ran {
                    Ok(out) if out.status.success() => return Ok(()),
                    Ok(out) => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
                    Err(error) => error.to_string(),
                };
                Err(SetupError::Program { command: format!("modprobe {module}"), problem })
            }
            Self::Load { .. } => Ok(()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, value, before } => {
                write!(f, "write {:?} to {path}", value.trim())?;
                if before.is_empty() { Ok(()) } else { write!(f, " (was {before:?})") }
            }
            Self::Load { module } => write!(f, "modprobe {module}"),
        }
    }
}

/// What was done, in order.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    steps: Vec<Step>,
}

impl Record {
    /// Does the steps in order. Each is noted before it is done, so that undo knows of it whatever comes in between.
    pub(crate) fn apply(root: &Root, steps: &[Step]) -> Result<(), SetupError> {
        let mut record = Self::read(root)?;
        for step in steps {
            record.steps.push(step.clone());
            record.keep(root)?;
            step.run(root)?;
        }
        Ok(())
    }

    pub(crate) fn read(root: &Root) -> Result<Self, SetupError> {
        let path = root.path(RECORD);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(SetupError::File { what: "read", path, source }),
            Ok(text) => serde_json::from_str(&text).map_err(|source| SetupError::File {
                what: "understand",
                path,
                source: source.into(),
            }),
        }
    }

    /// What puts everything back, the last first.
    pub(crate) fn undo_steps(&self, root: &Root) -> Vec<Step> {
        let mut steps = Vec::new();
        for step in self.steps.iter().rev() {
            let Step::Write { path, value, before } = step else { continue };
            if !root.exists(path) {
                // It was pulled out since; there is nothing to put back.
                continue;
            }
            if let Some(device) = path.strip_suffix("/driver_override") {
                let address = device.rsplit('/').next().unwrap_or_default();
                // Where vfio-pci still has it, it goes back to the driver that the kernel finds for it.
                if root.link(&format!("{device}/driver")).as_deref() == Some("vfio-pci") {
                    steps.push(Step::write(format!("{device}/driver/unbind"), address, ""));
                }
                let old = if before.is_empty() { "\n" } else { before };
                steps.push(Step::write(path.clone(), old, value.trim()));
                steps.push(Step::write("/sys/bus/pci/drivers_probe".to_owned(), address, ""));
            } else if !before.is_empty() {
                steps.push(Step::write(path.clone(), before, value));
            }
        }
        steps
    }

    pub(crate) fn undo(&self, root: &Root) -> Result<(), SetupError> {
        for step in self.undo_steps(root) {
            step.run(root)?;
        }
        let path = root.path(RECORD);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(SetupError::File { what: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Replaces the record on disk as a whole.
    fn keep(&self, root: &Root) -> Result<(), SetupError> {
        let path = root.path(RECORD);
        let new = path.with_extension("new");
        let failed = |source| SetupError::File { what: "write", path: new.clone(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        fs::write(&new, text).map_err(failed)?;
        fs::File::open(&new).and_then(|file| file.sync_all()).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::tree;

    #[test]
    fn what_was_written_is_put_back_the_last_first() {
        let root = tree("undo", &[("sys/a", "1"), ("sys/b", "x")]);
        let steps = [
            Step::write("/sys/a".into(), "2", "1"),
            Step::write("/sys/b".into(), "y", "x"),
            Step::write("/sys/a".into(), "3", "2"),
        ];
        Record::apply(&root, &steps).unwrap();
        assert_eq!((root.text("/sys/a").unwrap(), root.text("/sys/b").unwrap()), ("3".into(), "y".into()));
        let record = Record::read(&root).unwrap();
        assert_eq!(record.undo_steps(&root).len(), 3);
        record.undo(&root).unwrap();
        assert_eq!((root.text("/sys/a").unwrap(), root.text("/sys/b").unwrap()), ("1".into(), "x".into()));
        assert_eq!(Record::read(&root).unwrap(), Record::default());
    }

    #[test]
    fn what_was_pulled_out_since_is_passed_over() {
        let root = tree("pulled", &[("sys/a", "1"), ("sys/d/driver_override", "")]);
        let steps = [
            Step::write("/sys/a".into(), "2", "1"),
            Step::write("/sys/d/driver_override".into(), "vfio-pci", ""),
        ];
        Record::apply(&root, &steps).unwrap();
        std::fs::remove_dir_all(root.path("/sys/d")).unwrap();
        Record::read(&root).unwrap().undo(&root).unwrap();
        assert_eq!(root.text("/sys/a").unwrap(), "1");
    }

    #[test]
    fn a_step_that_fails_is_noted_all_the_same() {
        let root = tree("fails", &[("sys/a", "1")]);
        let steps = [Step::write("/sys/a".into(), "2", "1"), Step::write("/sys/none/b".into(), "y", "x")];
        assert!(Record::apply(&root, &steps).is_err());
        assert_eq!(Record::read(&root).unwrap().steps.len(), 2);
    }
}
