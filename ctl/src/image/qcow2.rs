//! qcow2 images, versions 2 and 3, to be read: QEMU's docs/interop/qcow2.rst.
//!
//! Read are clusters as they are, zero clusters, clusters compressed by zlib or Zstandard, and subclusters (extended L2 entries). Refused are
//! backing files, encryption, external data files and images that are marked corrupt. Reference counts, snapshots and bitmaps do not
//! matter for reading the disk. Every number of the file is checked before it is used.

use std::fs::File;
use std::io::Read as _;

use super::{ImageError, WINDOW_BYTES, read_some};

/// The first bytes of a file.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header that are looked at.
const HEADER_BYTES: usize = 112;
/// Bytes of an L1 table at most, as in QEMU.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Where a cluster or a table is, in an entry of L1 or L2.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// In an entry of L2: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// In an entry of L2: all of it is zero (version 3).
const ZERO: u64 = 1;
/// Subclusters of a cluster, with extended L2 entries.
const SUBCLUSTERS: u64 = 32;

/// Bits of the header's incompatible features.
mod incompatible {
    /// Reference counts may be wrong.
    pub(super) const DIRTY: u64 = 1;
    /// Metadata may be wrong.
    pub(super) const CORRUPT: u64 = 1 << 1;
    /// The data are in another file.
    pub(super) const EXTERNAL: u64 = 1 << 2;
    /// The header says how clusters are compressed.
    pub(super) const COMPRESSION: u64 = 1 << 3;
    /// Entries of L2 have bitmaps of subclusters.
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Deflate,
    Zstd,
}

/// An image.
#[derive(Debug)]
pub struct Qcow2 {
    file: File,
    file_bytes: u64,
    bytes: u64,
    cluster_bits: u32,
    compression: Compression,
    extended: bool,
    l1: Vec<u64>,
    /// The L2 table that was used last: its place in L1, and its bytes.
    l2: Option<(u64, Vec<u8>)>,
}

/// What a cluster holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cluster {
    Nothing,
    /// At an offset of the file; of which subclusters are data.
    Plain(u64, u32),
    /// At an offset of the file, and how many bytes at most.
    Compressed(u64, u64),
}

fn damaged<T>(problem: String) -> Result<T, ImageError> {
    Err(ImageError::Damaged(problem))
}

fn unsupported<T>(problem: impl Into<String>, remedy: &'static str) -> Result<T, ImageError> {
    Err(ImageError::Unsupported { problem: problem.into(), remedy })
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u64::from_be_bytes(*field))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_be_bytes(*field))
}

impl Qcow2 {
    /// Reads header and L1 table.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn new(file: File) -> Result<Self, ImageError> {
        let file_bytes = file.metadata().map_err(|source| ImageError::Read { offset: 0, source })?.len();
        let mut header = [0; HEADER_BYTES];
        let length = read_some(&file, &mut header, 0)?;
        if length < 72 || header.get(..4) != Some(&MAGIC) {
            return damaged("it does not begin as a qcow2 image".into());
        }
        let version = be32(&header, 4);
        if !matches!(version, 2 | 3) {
            return unsupported(
                format!("is qcow version {version}"),
                "convert it: qemu-img convert -O qcow2",
            );
        }
        // Version 2 ends here: what follows belongs to something else.
        let features = if version == 3 { be64(&header, 72) } else { 0 };
        check_features(&header, features)?;
        let cluster_bits = be32(&header, 20);
        let extended = features & incompatible::EXTENDED_L2 != 0;
        let least = if extended { 14 } else { 9 };
        if !(least..=21).contains(&cluster_bits) {
            return damaged(format!("its clusters have 2^{cluster_bits} bytes"));
        }
        let compression = compression_of(&header, version, features)?;
        let mut image = Self {
            file,
            file_bytes,
            bytes: be64(&header, 24),
            cluster_bits,
            compression,
            extended,
            l1: Vec::new(),
            l2: None,
        };
        image.read_l1(be64(&header, 40), be32(&header, 36))?;
        Ok(image)
    }

    fn read_l1(&mut self, offset: u64, entries: u32) -> Result<(), ImageError> {
        if self.bytes > 1 << 63 {
            return damaged(format!("the disk would have {} bytes", self.bytes));
        }
        let needed = self.bytes.div_ceil(self.covered());
        if needed > u64::from(entries) || needed * 8 > L1_BYTES_MAX {
            return damaged(format!(
                "its L1 table has {entries} entries; {needed} are needed, {} at most",
                L1_BYTES_MAX / 8
            ));
        }
        if needed == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(needed * 8).unwrap_or(0)];
        let is_inside = offset.checked_add(needed * 8).is_some_and(|end| end <= self.file_bytes);
        if !is_inside
            || !offset.is_multiple_of(self.cluster())
            || read_some(&self.file, &mut bytes, offset)? < bytes.len()
        {
            return damaged(format!(
                "its L1 table of {needed} entries is at byte {offset} of a file of {}",
                self.file_bytes
            ));
        }
        self.l1 = bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        Ok(())
    }

    /// The disk's length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are read at once: whole clusters.
    #[must_use]
    pub fn window(&self) -> u64 {
        WINDOW_BYTES.max(self.cluster())
    }

    /// The first byte from `offset` on that a table of L2 speaks of.
    ///
    /// # Errors
    /// None, as for other formats some.
    pub fn next_data(&mut self, offset: u64) -> Result<Option<u64>, ImageError> {
        if offset >= self.bytes {
            return Ok(None);
        }
        let first = usize::try_from(offset / self.covered()).unwrap_or(usize::MAX);
        let mut tables = self.l1.iter().enumerate().skip(first);
        let found = tables.find(|(_, entry)| **entry & OFFSET_MASK != 0);
        Ok(found.map(|(table, _)| (table as u64).saturating_mul(self.covered()).max(offset)))
    }

    /// Reads what the disk has at `offset`, the beginning of a cluster, into `out`, which is zero.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ImageError> {
        let cluster = usize::try_from(self.cluster()).unwrap_or(usize::MAX);
        for (at, part) in (offset..).step_by(cluster).zip(out.chunks_mut(cluster)) {
            match self.cluster_at(at)? {
                Cluster::Nothing => {}
                Cluster::Plain(from, subclusters) => self.read_plain(from, subclusters, part)?,
                Cluster::Compressed(from, most) => self.read_compressed(from, most, part)?,
            }
        }
        Ok(())
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Bytes of the disk that one table of L2 speaks of.
    fn covered(&self) -> u64 {
        self.cluster() / self.entry_bytes() * self.cluster()
    }

    /// What is at a byte of the disk.
    fn cluster_at(&mut self, offset: u64) -> Result<Cluster, ImageError> {
        let table = offset / self.covered();
        let entry = usize::try_from(table).ok().and_then(|table| self.l1.get(table)).copied().unwrap_or(0);
        let at = entry & OFFSET_MASK;
        if at == 0 {
            return Ok(Cluster::Nothing);
        }
        self.load_l2(table, at)?;
        let index = offset % self.covered() / self.cluster() * self.entry_bytes();
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let Some((_, table)) = &self.l2 else { return Ok(Cluster::Nothing) };
        let (entry, bitmap) =
            (be64(table, index), if self.extended { be64(table, index.saturating_add(8)) } else { 0 });
        self.parse(offset, entry, bitmap)
    }

    fn load_l2(&mut self, table: u64, at: u64) -> Result<(), ImageError> {
        if self.l2.as_ref().is_some_and(|(loaded, _)| *loaded == table) {
            return Ok(());
        }
        let mut bytes = self.l2.take().map(|(_, bytes)| bytes).unwrap_or_default();
        bytes.resize(usize::try_from(self.cluster()).unwrap_or(0), 0);
        let read = if at.is_multiple_of(self.cluster()) { read_some(&self.file, &mut bytes, at)? } else { 0 };
        if read < bytes.len() {
            return damaged(format!("L2 table {table} is at byte {at} of a file of {}", self.file_bytes));
        }
        self.l2 = Some((table, bytes));
        Ok(())
    }

    /// What an entry of L2 says.
    fn parse(&self, offset: u64, entry: u64, bitmap: u64) -> Result<Cluster, ImageError> {
        if entry & COMPRESSED != 0 {
            // An offset of so many bits, then how many more sectors of 512 bytes.
            let bits = 62 - (self.cluster_bits - 8);
            let at = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            let most = (sectors + 1) * 512 - at % 512;
            if at >= self.file_bytes {
                return damaged(format!(
                    "the compressed cluster for byte {offset} is at {at}, behind the file's end"
                ));
            }
            return Ok(Cluster::Compressed(at, most));
        }
        let at = entry & OFFSET_MASK;
        let subclusters = if self.extended {
            // The low half: data; the high half: zero. Both is an error.
            let (data, zero) = (bitmap & 0xffff_ffff, bitmap >> 32);
            if data & zero != 0 {
                return damaged(format!("subclusters at byte {offset} are data and zero at once"));
            }
            u32::try_from(data).unwrap_or(0)
        } else if entry & ZERO != 0 || at == 0 {
            0
        } else {
            u32::MAX
        };
        if subclusters == 0 {
            return Ok(Cluster::Nothing);
        }
        if at == 0 || at >= self.file_bytes || !at.is_multiple_of(self.cluster()) {
            return damaged(format!(
                "the cluster for byte {offset} is at byte {at} of a file of {}",
                self.file_bytes
            ));
        }
        Ok(Cluster::Plain(at, subclusters))
    }

    /// A file that ends within its last cluster has zeroes behind its end, as for QEMU.
    fn read_plain(&self, from: u64, subclusters: u32, out: &mut [u8]) -> Result<(), ImageError> {
        if subclusters == u32::MAX {
            return read_some(&self.file, out, from).map(drop);
        }
        let length = usize::try_from(self.cluster() / SUBCLUSTERS).unwrap_or(usize::MAX);
        for (number, part) in (0_u32..).zip(out.chunks_mut(length)) {
            if subclusters >> number & 1 == 1 {
                read_some(&self.file, part, from.saturating_add(u64::from(number) * length as u64))?;
            }
        }
        Ok(())
    }

    fn read_compressed(&self, from: u64, most: u64, out: &mut [u8]) -> Result<(), ImageError> {
        let mut stored = vec![0; usize::try_from(most).unwrap_or(0)];
        let length = read_some(&self.file, &mut stored, from)?;
        stored.truncate(length);
        let mut cluster = vec![0; usize::try_from(self.cluster()).unwrap_or(0)];
        let is_whole = match self.compression {
            Compression::Deflate => inflate(&stored, &mut cluster),
            Compression::Zstd => unzstd(&stored, &mut cluster),
        };
        let Some(decoded) = cluster.get(..out.len()).filter(|_| is_whole) else {
            return damaged(format!("the compressed cluster at byte {from} of the file cannot be decoded"));
        };
        out.copy_from_slice(decoded);
        Ok(())
    }
}

/// Refuses what cannot be read.
fn check_features(header: &[u8], features: u64) -> Result<(), ImageError> {
    use incompatible::{COMPRESSION, CORRUPT, DIRTY, EXTENDED_L2, EXTERNAL};
    if be64(header, 8) != 0 {
        let remedy = "flatten it first: qemu-img convert -O qcow2 IMAGE FLAT, or qemu-img rebase -b ''";
        return unsupported("has a backing file, without which it is not whole", remedy);
    }
    if be32(header, 32) != 0 {
        return unsupported("is encrypted", "decrypt it first: qemu-img convert --object secret,...");
    }
    if features & EXTERNAL != 0 {
        return unsupported(
            "keeps its data in another file",
            "put them together: qemu-img convert -O qcow2 IMAGE WHOLE",
        );
    }
    if features & CORRUPT != 0 {
        return unsupported("is marked as corrupt", "mend it first: qemu-img check -r all");
    }
    let unknown = features & !(DIRTY | CORRUPT | EXTERNAL | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        let problem = format!("has features {unknown:#x} that are newer than this program");
        return unsupported(problem, "convert it: qemu-img convert -O raw");
    }
    Ok(())
}

fn compression_of(header: &[u8], version: u32, features: u64) -> Result<Compression, ImageError> {
    let is_said = version == 3 && features & incompatible::COMPRESSION != 0 && be32(header, 100) > 104;
    match header.get(104).copied().filter(|_| is_said) {
        None | Some(0) => Ok(Compression::Deflate),
        Some(1) => Ok(Compression::Zstd),
        Some(other) => {
            let problem = format!("has clusters compressed in way {other}, which this program does not know");
            unsupported(problem, "convert it: qemu-img convert -O raw")
        }
    }
}

/// Decodes raw deflate data until `out` is full; what is behind them does not matter.
fn inflate(stored: &[u8], out: &mut [u8]) -> bool {
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (_, _, written) = decompress(&mut DecompressorOxide::new(), stored, out, 0, flags);
    written == out.len()
}

/// The same for a Zstandard frame.
fn unzstd(stored: &[u8], out: &mut [u8]) -> bool {
    zstd::stream::read::Decoder::with_buffer(stored).is_ok_and(|mut decoder| decoder.read_exact(out).is_ok())
}

#[cfg(test)]
mod tests;
