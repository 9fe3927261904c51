//! Disk images in files, as others make them: raw and qcow2, to be read.
//!
//! An image gives the bytes of a disk, window by window, and says which windows have nothing in them, so that holes stay holes.

mod qcow2;
mod raw;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use qcow2::Qcow2;
pub use raw::Raw;

/// Bytes of a window, unless the image's clusters are longer.
pub const WINDOW_BYTES: u64 = 1 << 20;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file.
    #[error("the image cannot be read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is of a kind that is not read.
    #[error("the image {problem}; {remedy}")]
    Unsupported {
        /// What it has.
        problem: String,
        /// What helps.
        remedy: &'static str,
    },
    /// It contradicts itself.
    #[error("the image is damaged: {0}; look at it with qemu-img check")]
    Damaged(String),
}

/// An image of any format.
#[derive(Debug)]
pub enum Image {
    /// The disk's bytes as they are.
    Raw(Raw),
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2(Box<Qcow2>),
}

impl Image {
    /// Opens an image: `format` is `raw` or `qcow2`; `None`: what its first bytes say.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(path: &Path, format: Option<&str>) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(|source| ImageError::Read { offset: 0, source })?;
        let mut magic = [0; 4];
        let length = read_some(&file, &mut magic, 0)?;
        match format {
            Some("raw") => Raw::new(file).map(Self::Raw),
            Some("qcow2") => Qcow2::new(file).map(Box::new).map(Self::Qcow2),
            None if length == 4 && magic == qcow2::MAGIC => Qcow2::new(file).map(Box::new).map(Self::Qcow2),
            None => Raw::new(file).map(Self::Raw),
            Some(other) => Err(ImageError::Unsupported {
                problem: format!("is said to be {other:?}"),
                remedy: "give raw or qcow2; qemu-img convert makes these of others",
            }),
        }
    }

    /// Its format's name.
    #[must_use]
    pub fn format(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw",
            Self::Qcow2(_) => "qcow2",
        }
    }

    /// The disk's length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Raw(raw) => raw.bytes(),
            Self::Qcow2(qcow2) => qcow2.bytes(),
        }
    }

    /// Bytes of a window.
    #[must_use]
    pub fn window(&self) -> u64 {
        match self {
            Self::Raw(_) => WINDOW_BYTES,
            Self::Qcow2(qcow2) => qcow2.window(),
        }
    }

    /// The first window from `offset` on that may have something in it; `None`: nothing comes any more.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn next_data(&mut self, offset: u64) -> Result<Option<u64>, ImageError> {
        let window = self.window();
        let found = match self {
            Self::Raw(raw) => raw.next_data(offset)?,
            Self::Qcow2(qcow2) => qcow2.next_data(offset)?,
        };
        Ok(found.map(|found| (found / window * window).max(offset)))
    }

    /// Reads the window at `offset`, a multiple of the window's length, into `out`: what the disk has there, shorter at its end.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn read(&mut self, offset: u64, out: &mut Vec<u8>) -> Result<(), ImageError> {
        let length = self.window().min(self.bytes().saturating_sub(offset));
        out.clear();
        out.resize(usize::try_from(length).unwrap_or(0), 0);
        match self {
            Self::Raw(raw) => raw.read(offset, out),
            Self::Qcow2(qcow2) => qcow2.read(offset, out),
        }
    }
}

/// Reads as much as there is.
fn read_some(file: &File, out: &mut [u8], offset: u64) -> Result<usize, ImageError> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(done as u64);
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ImageError::Read { offset: at, source }),
        }
    }
    Ok(done)
}
