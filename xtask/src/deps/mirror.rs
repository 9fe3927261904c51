//! Where this machine gets Debian from: read out of apt's own configuration, in both of its notations.

use std::path::Path;

use anyhow::{Context, Result};

/// The mirrors of the release's packages and of its security updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    pub(crate) release: String,
    pub(crate) security: String,
}

impl Mirrors {
    /// The mirrors that apt uses for the release `codename`.
    pub(crate) fn of_machine(codename: &str) -> Result<Self> {
        let mut text = std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        let parts = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
        let mut files: Vec<_> = parts.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        for file in files.iter().filter(|path| is_source(path)) {
            text += &format!("\n\n{}\n", std::fs::read_to_string(file).unwrap_or_default());
        }
        Self::find(&text, codename).with_context(|| {
            format!("apt knows no mirror of Debian {codename}: add one to /etc/apt/sources.list")
        })
    }

    fn find(text: &str, codename: &str) -> Option<Self> {
        let known = sources(text);
        let of = |suite: &str| known.iter().find(|(_, known)| known == suite).map(|(uri, _)| uri.clone());
        let release = of(codename)?;
        // Every mirror of Debian keeps its security updates beside it, under this name.
        let beside = || format!("{}-security", release.trim_end_matches('/'));
        let security = of(&format!("{codename}-security")).unwrap_or_else(beside);
        Some(Self { release, security })
    }
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext == "list" || ext == "sources")
}

/// All pairs of URI and suite.
fn sources(text: &str) -> Vec<(String, String)> {
    let (mut found, mut uris, mut suites) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines().map(str::trim).chain([""]) {
        if let Some(line) = line.strip_prefix("deb ") {
            // deb [options] URI suite components…
            let line = line.trim_start();
            let line =
                if line.starts_with('[') { line.split_once(']').map_or("", |(_, rest)| rest) } else { line };
            let mut words = line.split_whitespace();
            if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
                found.push((uri.to_owned(), suite.to_owned()));
            }
        } else if let Some(list) = line.strip_prefix("URIs:") {
            uris = list.split_whitespace().map(str::to_owned).collect();
        } else if let Some(list) = line.strip_prefix("Suites:") {
            suites = list.split_whitespace().map(str::to_owned).collect();
        } else if line.is_empty() {
            // The end of a paragraph.
            let suites = std::mem::take(&mut suites);
            for uri in std::mem::take(&mut uris) {
                found.extend(suites.iter().map(|suite: &String| (uri.clone(), suite.clone())));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_of_apts_sources_are_read() {
        let lines = "# a comment\ndeb [signed-by=/a/b arch=amd64] http://m.example/debian trixie main contrib\n\
                     deb http://other.example/debian bookworm main\n";
        let paragraphs = "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n\n\
                          Types: deb\nURIs: http://s.example/sec\nSuites: bookworm-security\nComponents: main\n";
        let mirrors = |release: &str, security: &str| {
            Some(Mirrors { release: release.to_owned(), security: security.to_owned() })
        };
        let beside = mirrors("http://m.example/debian", "http://m.example/debian-security");
        assert_eq!(Mirrors::find(lines, "trixie"), beside);
        assert_eq!(
            Mirrors::find(paragraphs, "bookworm"),
            mirrors("http://m.example/debian", "http://s.example/sec")
        );
        assert_eq!(Mirrors::find(paragraphs, "forky"), None);
    }
}
