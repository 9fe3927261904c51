//! Raw images: a file, or a block device, is the disk. Holes of files are known without reading them.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use rustix::fs::{SeekFrom as Where, seek};

use super::{ImageError, read_some};

/// A raw image.
#[derive(Debug)]
pub struct Raw {
    file: File,
    bytes: u64,
}

impl Raw {
    /// Takes a file, or a block device.
    ///
    /// # Errors
    /// [`ImageError::Read`].
    pub fn new(mut file: File) -> Result<Self, ImageError> {
        // Of a block device the metadata say nothing.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|source| ImageError::Read { offset: 0, source })?;
        Ok(Self { file, bytes })
    }

    /// The disk's length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first byte from `offset` on that is no hole.
    ///
    /// # Errors
    /// [`ImageError::Read`].
    pub fn next_data(&mut self, offset: u64) -> Result<Option<u64>, ImageError> {
        if offset >= self.bytes {
            return Ok(None);
        }
        match seek(&self.file, Where::Data(offset)) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A device or file system without holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(ImageError::Read { offset, source: error.into() }),
        }
    }

    /// Reads what is at `offset`; zeroes behind a file that became shorter.
    ///
    /// # Errors
    /// [`ImageError::Read`].
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ImageError> {
        read_some(&self.file, out, offset).map(drop)
    }
}
