//! An archive in the "new ASCII" cpio format, as the kernel unpacks it into its initial root file system.
//!
//! ```text
//! 070701 | 13 fields of 8 hexadecimal digits | name, NUL, padding to 4 | content, padding to 4
//! ```
//! Described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// Writes an archive to `out`; everything in it belongs to root.
#[derive(Debug)]
pub(super) struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a directory; its parent must be there.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, &[])
    }

    /// Adds a file that may be executed.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, PROGRAM, content)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.entry(path, LINK, to.as_bytes())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let too_big = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is over 4 GiB"));
        let length = u32::try_from(content.len()).map_err(too_big)?;
        let name_length = u32::try_from(name.len() + 1).map_err(too_big)?;
        let fields = [self.inode, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        write!(self.out, "{name}\0")?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        let zeros = [0; 3];
        self.out.write_all(zeros.get(..length.wrapping_neg() % 4).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_four_bytes_and_a_trailer_ends_them() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.directory("/etc").unwrap();
        archive.file("/etc/name", b"penstock").unwrap();
        archive.link("/lib", "usr/lib").unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("070701"));
        assert!(text.contains("etc/name\0\0penstock070701"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
