//! The files of the system, below a root that a test may choose.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why nothing could be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// A file.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A wish that cannot be.
    #[error("{0}")]
    Wish(String),
    /// A program failed.
    #[error("{command} failed: {problem}")]
    Program {
        /// The command.
        command: String,
        /// What it said.
        problem: String,
    },
}

/// Where /sys, /proc and /var are.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Whether this is the machine's own: then programs may be run and devices opened.
    pub(crate) fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A file's text without its newline; `None` where it cannot be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// The names in a directory, sorted; none where there is no such directory.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The last part of what a link leads to.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        fs::read_link(self.path(path)).ok()?.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    pub(crate) fn write(&self, path: &str, value: &str) -> Result<(), SetupError> {
        let path = self.path(path);
        fs::write(&path, value).map_err(|source| SetupError::File { what: "write", path, source })
    }
}

/// Trees of files for tests.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fresh directory below the temporary one with these files; a value that begins with `->` is a link.
    pub(crate) fn tree(name: &str, files: &[(&str, &str)]) -> Root {
        let dir = std::env::temp_dir().join(format!("penstock-setup-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        for (path, text) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match text.strip_prefix("->") {
                Some(to) => std::os::unix::fs::symlink(to, path).unwrap(),
                None => fs::write(path, text).unwrap(),
            }
        }
        Root::new(&dir)
    }
}
